"""Tiny models with their processors, and tiny files, for each task."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from architectures import build
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTImageProcessor,
)

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WHOLE = ["the", "film", "was", "good", "bad", "in", "paris", "who", "saw", "it"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} "
    "{% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Some words are one token each; others fall into letters."""
    letters = list(string.ascii_letters + string.digits + string.punctuation)
    pieces = [*SPECIAL, *WHOLE, *letters, *(f"##{c}" for c in letters)]
    core = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    found = PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", **names)
    found.chat_template = chat_template
    return found


def save_bert(folder: Path, auto_class, seed: int = 0) -> str:
    """Save a BERT with the head of `auto_class`, and its tokenizer."""
    torch.manual_seed(seed)
    words = tokenizer()
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, **none, **WIDTH)
    auto_class.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_llama(folder: Path, chat_template: str | None = None) -> str:
    torch.manual_seed(0)
    words = tokenizer(chat_template)
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=64, num_key_value_heads=1, **WIDTH)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_t5(folder: Path) -> str:
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 3}
    T5ForConditionalGeneration(T5Config(vocab_size=len(words), **sizes, **ids)).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_vit(folder: Path) -> str:
    build("vit").save_pretrained(folder)
    size = build("vit").config.image_size
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


def save_ast(folder: Path) -> str:
    """Save a transformer over spectrograms of 32 frames, at 8,000 samples a second."""
    torch.manual_seed(0)
    shape = {"num_mel_bins": 16, "max_length": 32}
    config = ASTConfig(**WIDTH, **shape, patch_size=8, frequency_stride=8, time_stride=8)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(sampling_rate=8000, **shape).save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: dict, features=None) -> str:
    """Write rows to a parquet file."""
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def sentences(count: int = 24) -> list[str]:
    return [f"the film was {('good', 'bad')[i % 2]}{' in paris' * (i % 3)}" for i in range(count)]


def questions(count: int = 12) -> dict:
    contexts = [f"{'it was good ' * (i % 4)}in paris ann{'a' * i} saw the film" for i in range(count)]
    texts = [f"ann{'a' * i}" for i in range(count)]
    answers = [{"text": [t], "answer_start": [c.index(t)]} for t, c in zip(texts, contexts, strict=True)]
    return {"question": ["who saw the film"] * count, "context": contexts, "answers": answers}


def tones(count: int = 12, rate: int = 16000) -> dict:
    """Two pitches as 16-bit samples."""
    time = np.arange(rate // 4) / rate
    sounds = [(8000 * np.sin(2 * np.pi * (300, 900)[i % 2] * time)).astype("int16") for i in range(count)]
    return {"audio": sounds, "sampling_rate": [rate] * count, "label": ["low", "high"] * (count // 2)}
