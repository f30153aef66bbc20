"""Batches that the student writes itself, for the teacher to score.

Level: glue. Whether a batch is written, and what is drawn, follows from its number, so a resumed run does the same.

Source: Agarwal et al. 2024, "On-policy distillation of language models", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_compress.architecture.modes import evaluating
from hf_compress.distillation.alignment import alignment_of
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.reduce import CAUSAL, IGNORED
from hf_compress.errors import ConfigError, UnsupportedError


class Written(dict):
    """A batch that the student wrote: its labels mark what is scored, and have no loss of their own."""


class StudentWriter:
    """Replaces batches by what the student makes of their beginnings.

    Args:
        trainer: whose model writes.
        config: fraction of batches, tokens, temperature.

    Raises:
        ConfigError: if the model does not generate text.
        UnsupportedError: under FSDP and DeepSpeed.
    """

    def __init__(self, trainer: Any, config: DistillationConfig) -> None:
        if trainer.args.fsdp or trainer.args.deepspeed:
            raise UnsupportedError(
                "on_policy_fraction lets the model generate while it trains, which was not tried in shards; train "
                "under DistributedDataParallel, or set it to 0"
            )
        if not getattr(trainer.model, "can_generate", lambda: False)():
            raise ConfigError(
                f"DistillationConfig: on_policy_fraction is for models that generate text; "
                f"{type(trainer.model).__name__} does not"
            )
        self._trainer = trainer
        self._config = config

    def __call__(self, batch: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """Return micro-batch `number` of the run, or what the student writes in its place."""
        args = self._trainer.args
        seed = args.seed * 1_000_003 + number
        if float(torch.rand((), generator=torch.Generator().manual_seed(seed))) >= self._config.on_policy_fraction:
            return batch
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        devices = [args.device] if args.device.type == "cuda" else []
        with evaluating(model), torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed * args.world_size + args.process_index)
            return self._write(model, {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})

    def _write(self, model: Any, batch: dict[str, torch.Tensor]) -> Written:
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        pad, end = _special(model, self._trainer.processing_class)
        is_causal = alignment_of(model) == CAUSAL
        if is_causal:
            ids, mask = _prompts(ids, mask, batch.get("labels"), pad)
        with self._trainer.accelerator.autocast():
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=self._config.on_policy_temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self._config.on_policy_tokens,
                pad_token_id=pad,
                use_cache=True,
            )
        start = ids.shape[1] if is_causal else 1
        fresh = written[:, start:]
        kept = _until_end(fresh, end)
        labels = torch.where(kept, fresh, IGNORED)
        if not is_causal:
            return Written(input_ids=ids, attention_mask=mask, labels=labels)
        return Written(
            input_ids=torch.cat([ids, torch.where(kept, fresh, pad)], 1),
            attention_mask=torch.cat([mask, kept.to(mask.dtype)], 1),
            labels=torch.cat([torch.full_like(ids, IGNORED), labels], 1),
        )


def _prompts(
    ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what stands before the first label of each row, or its first half, padded on the left."""
    rows = []
    for i, row in enumerate(ids):
        text = row[mask[i].bool()]
        counted = (labels[i][mask[i].bool()] != IGNORED).nonzero() if labels is not None else ids.new_zeros(0)
        first = int(counted[0]) if len(counted) else 0
        # Text without a prompt: its first half.
        rows.append(text[: first if first > 1 else max(1, len(text) // 2)])
    length = max(len(row) for row in rows)
    padded = [torch.nn.functional.pad(row, (length - len(row), 0), value=pad) for row in rows]
    masks = [torch.nn.functional.pad(torch.ones_like(row), (length - len(row), 0)) for row in rows]
    return torch.stack(padded), torch.stack(masks).to(mask.dtype)


def _until_end(written: torch.Tensor, end: list[int]) -> torch.Tensor:
    """Mark the tokens up to the first end of text, which counts."""
    is_end = torch.isin(written, torch.tensor(end, device=written.device)) if end else torch.zeros_like(written).bool()
    return is_end.int().cumsum(1) - is_end.int() == 0


def _special(model: Any, processing_class: Any) -> tuple[int, list[int]]:
    config = model.generation_config
    end = config.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    found = (config.pad_token_id, getattr(processing_class, "pad_token_id", None), *ends, 0)
    return next(token for token in found if token is not None), ends
