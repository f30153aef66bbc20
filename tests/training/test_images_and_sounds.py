"""Models that write about images and sounds count tokens as the stock Trainer does; frames and pixels are refused."""

import pytest
import tiny
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, DistillationTrainer, PruningConfig
from hf_compress.errors import UnsupportedError

# So many tokens that logits are made in chunks.
VOCABULARY = 5000


def llava(seed):
    torch.manual_seed(seed)
    both = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    seeing = {"model_type": "clip_vision_model", "num_hidden_layers": 2, "image_size": 8, "patch_size": 4, **both}
    writing = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        **both,
    }
    image = {"image_token_index": 59, "image_seq_length": 4, "vision_feature_layer": -1}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=seeing, text_config=writing, **image))


def described(count=8):
    """The image's four tokens, then a hundred of text, of which few have labels."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = torch.cat([torch.full((4,), 59), torch.randint(60, 90, (100,), generator=generator)])
        labels = ids.clone()
        labels[: 80 + 2 * i] = -100
        pixels = torch.randn(3, 8, 8, generator=generator)
        rows.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": labels}
        )
    return rows


def whisper(seed):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20}
    parts = {
        f"{part}_{field}": n
        for part in ("encoder", "decoder")
        for field, n in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
    }
    ids = {"decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=VOCABULARY, **sizes, **parts, **ids))


def spoken(count=8):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        labels = torch.randint(3, 50, (9,), generator=generator)
        labels[1 + i :] = -100
        rows.append({"input_features": torch.randn(8, 40, generator=generator), "labels": labels})
    return rows


@pytest.mark.parametrize(("make", "rows"), [(llava, described), (whisper, spoken)])
def test_losses_and_gradients_are_those_of_the_stock_trainer_however_batches_are_split(tmp_path, make, rows):
    def first_step(kind, size, **options):
        arguments = tiny.arguments(
            tmp_path, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = kind(make(0), arguments, train_dataset=rows(), **options)
        trainer.train()
        return trainer.state.log_history[0]

    expected = first_step(Trainer, 8)
    pruning = CompressionConfig(pruning=PruningConfig(begin=0.5))
    for size in (8, 2):
        found = first_step(CompressionTrainer, size, compression=pruning)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    whole, split = (first_step(DistillationTrainer, size, teacher=make(1)) for size in (8, 2))
    assert whole["task_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert whole["distillation_loss"] > 0
    for name in ("loss", "grad_norm", "distillation_loss"):
        # The divergence is small beside the entropies that it is the difference of.
        assert split[name] == pytest.approx(whole[name], rel=1e-3)


def ctc(seed):
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    front = {"conv_dim": (16,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2ForCTC(Wav2Vec2Config(intermediate_size=32, **sizes, **front, **places))


def segmenting(seed):
    lists = {"depths": [1], "sr_ratios": [1], "hidden_sizes": [16], "num_attention_heads": [2], "patch_sizes": [3]}
    more = {"strides": [2], "mlp_ratios": [2], "decoder_hidden_size": 16, "num_labels": 3, "num_encoder_blocks": 1}
    return SegformerForSemanticSegmentation(SegformerConfig(**lists, **more))


@pytest.mark.parametrize(("make", "what"), [(ctc, "frames"), (segmenting, "pixels")])
def test_predictions_of_frames_and_pixels_are_refused_before_training(tmp_path, make, what):
    with pytest.raises(UnsupportedError, match=f"which predicts {what}"):
        DistillationTrainer(
            make(0), tiny.arguments(tmp_path), teacher=make(1), distillation=DistillationConfig(), train_dataset=[{}]
        )
