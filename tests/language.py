"""A tiny language model with a byte-level tokenizer, and a text for it."""

from __future__ import annotations

from pathlib import Path

from architectures import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LINES = [
    f"the {a} {b} the {c}" for a in ("cat", "dog", "bird") for b in ("sees", "hears") for c in ("sun", "sea", "man")
]


def text(repeats: int = 30) -> str:
    return "\n".join(LINES * repeats) + "\n"


def save_model(folder: Path) -> Path:
    """Save a Llama of three layers and its tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(LINES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>", pad_token="<s>")
    config = {**build("llama").config.to_dict(), "vocab_size": len(fast), "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
