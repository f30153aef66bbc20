"""Tiny models and data for tests: made from configs and a seed, no download."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BlipConfig,
    BlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert(seed: int = 0, dropout: float = 0.0, **changes) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **{"vocab_size": 50, **WIDTH, **changes},
    )
    return BertForSequenceClassification(config)


def bert_tokens(seed: int = 0) -> BertForTokenClassification:
    model = bert(seed)
    torch.manual_seed(seed)
    model.config.num_labels = 3
    return BertForTokenClassification(model.config)


def llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{"vocab_size": 50, "max_position_embeddings": 32, "num_key_value_heads": 1, **WIDTH, **changes}
    )
    return LlamaForCausalLM(config)


def vit(seed: int = 0, **changes) -> ViTForImageClassification:
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **{**WIDTH, **changes}))


def blip(seed: int = 0, **changes) -> BlipForConditionalGeneration:
    torch.manual_seed(seed)
    part = {**WIDTH, **changes}
    text = {**part, "vocab_size": 50, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
    config = BlipConfig(text_config=text, vision_config={**part, "image_size": 32, "patch_size": 8}, projection_dim=16)
    return BlipForConditionalGeneration(config)


def t5(seed: int = 0) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


@functools.cache
def compiles() -> bool:
    """Say whether stock torch.compile gets through a stock model: torch 2.6 fails at transformers 5.17's."""
    try:
        torch.compile(bert(), backend="eager")(input_ids=torch.ones(1, 4, dtype=torch.long))
    except NameError:
        return False
    return True


def needs_compile() -> None:
    """Skip the test that asks where torch and transformers do not compile together."""
    if not compiles():
        pytest.skip("torch.compile of a stock model fails with this torch and this transformers")


def can_shard() -> bool:
    """Say whether fully_shard runs on CPUs: torch 2.6 asks their streams for a method that they lack."""
    return hasattr(torch.cpu.Stream, "record_event")


def needs_shards() -> None:
    """Skip the test that asks where fully_shard does not run on CPUs."""
    if not can_shard():
        pytest.skip("fully_shard of this torch fails on CPUs")


@functools.cache
def dinov2_can_lose_heads() -> bool:
    """Say whether DINOv2's heads may have any size: transformers 5.17 refuses all but width / heads."""
    from transformers import Dinov2Config, Dinov2Model

    try:
        Dinov2Model(Dinov2Config(hidden_size=32, num_attention_heads=3, num_hidden_layers=1))
    except ValueError:
        return False
    return True


def needs_onnx() -> None:
    """Skip the test that asks where ONNX is not installed."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


def sentences(count: int = 64, seed: int = 0, length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Classify by whether the first token is below 25; the rest is noise."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    return [
        {"input_ids": i, "attention_mask": m, "labels": (i[0] < 25).long()} for i, m in zip(ids, mask, strict=True)
    ]


def tagged(count: int = 32, seed: int = 0, length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Token labels 0-2 with a different number of ignored (-100) labels in each row."""
    generator = torch.Generator().manual_seed(seed)
    rows = sentences(count, seed, length)
    for i, row in enumerate(rows):
        labels = torch.randint(0, 3, (length,), generator=generator)
        labels[: 1 + i % (length - 1)] = -100
        row["labels"] = labels
    return rows


def texts(count: int = 32, seed: int = 0, length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Language-model rows with a different number of ignored (-100) labels in each row."""
    rows = sentences(count, seed, length)
    for i, row in enumerate(rows):
        labels = row["input_ids"].clone()
        labels[: i % length] = -100
        row["labels"] = labels
    return rows


def images(count: int = 32, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Three classes of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, 8, 8, generator=generator)
    return [{"pixel_values": p, "labels": torch.tensor(i % 3)} for i, p in enumerate(pixels)]


def arguments(output_dir, **changes) -> TrainingArguments:
    """Short, silent, deterministic CPU training."""
    defaults = {
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    return TrainingArguments(output_dir=str(output_dir), **{**defaults, **changes})
