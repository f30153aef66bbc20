"""`CachedTeacher`: what a teacher said of each example, in its place.

Level: state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_compress.distillation.alignment import alignment_of
from hf_compress.distillation.cache_file import CacheReader, example_keys
from hf_compress.distillation.reduce import ROWS, SPANS, TOKENS, valid_positions
from hf_compress.distillation.sparse import SparseRows, sample_tail
from hf_compress.distillation.teacher import LABELS, check_labels, logits_of
from hf_compress.distillation.tokens import fingerprint
from hf_compress.errors import CheckpointError, ConfigError, TeacherError


class StoredOutputs:
    """How the logits of a batch become columns of a table, and back.

    Args:
        settings: of the cache.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def keys(self, batch: Mapping[str, Any]) -> list[int]:
        """Return what each example of a batch is known by."""
        mask, tensors = batch.get("attention_mask"), {}
        for name in self._settings["inputs"]:
            value = batch.get(name)
            if isinstance(value, torch.Tensor) and not name.endswith("mask") and not name.startswith("decoder_"):
                tensors[name] = value
        if self._settings["is_encoder_decoder"]:
            # What the decoder was given: its inputs are the labels, shifted.
            name = "labels" if "labels" in batch else "decoder_input_ids"
            inner = example_keys({name: batch[name]}, self._mask(batch))
            tensors["decoder"] = torch.tensor(inner)
        return example_keys(tensors, mask if mask is not None and mask.dim() == 2 else None)

    def columns(self, outputs: Any, batch: Mapping[str, Any], keys: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns for a batch of new examples."""
        mask, alignment = self._mask(batch), self._settings["alignment"]
        if alignment == SPANS:
            named = {name: outputs[name].float().cpu() for name in ("start_logits", "end_logits")}
        else:
            logits = logits_of(outputs)
            if logits is None:
                raise TeacherError("the teacher returned no logits; load it with the head of the task")
            named = {"logits": logits.float()}
        found: dict[str, list[Any]] = {"key": list(keys)}
        for name, values in named.items():
            per_example = [v if mask is None else v[mask[i].to(v.device)] for i, v in enumerate(values)]
            if "top_k" not in self._settings:
                found[name] = [v.cpu().numpy().ravel() for v in per_example]
                continue
            sampled = [self._sample(v, key) for v, key in zip(per_example, keys, strict=True)]
            found |= {column: [row[column] for row in sampled] for column in sampled[0]}
        return found

    def outputs(self, found: Mapping[str, list[np.ndarray]], batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return what was stored for a batch: logits as a model returns them, or sparse rows and their mask."""
        mask, device = self._mask(batch), next(iter(batch.values())).device
        whole = {
            k: torch.from_numpy(np.concatenate([np.atleast_1d(r) for r in v])).to(device) for k, v in found.items()
        }
        if "top_k" in self._settings:
            k, draws = self._kept()
            log_mass = whole["log_mass"].view(-1, k + 1 if draws else k)
            tail = log_mass[:, k:].exp().expand(-1, draws) / max(1, draws)
            mass = torch.cat([log_mass[:, :k].exp(), tail], -1)
            ids = whole["ids"].view(-1, k + draws).long()
            return {"sparse": SparseRows(ids, mass / mass.sum(-1, keepdim=True), whole["entropy"]), "mask": mask}
        found_all: dict[str, Any] = {}
        for name, values in whole.items():
            rows = values if name != "logits" else values.view(-1, self._settings["classes"])
            if mask is None:
                found_all[name] = rows
            else:
                found_all[name] = rows.new_zeros(*mask.shape, *rows.shape[1:])
                found_all[name][mask.to(device)] = rows
        return found_all

    def _kept(self) -> tuple[int, int]:
        k = min(self._settings["top_k"], self._settings["classes"])
        return k, self._settings["tail_draws"] if k < self._settings["classes"] else 0

    def _sample(self, logits: torch.Tensor, key: int) -> dict[str, np.ndarray]:
        # The draws of an example are its own, whatever is done before it.
        generator = torch.Generator(logits.device).manual_seed((key ^ self._settings["seed"]) & (2**63 - 1))
        k, draws = self._kept()
        logits = logits.view(-1, self._settings["classes"])
        rows = sample_tail(logits / self._settings["temperature"], k, draws, generator)
        mass = torch.cat([rows.mass[:, :k], rows.mass[:, k:].sum(-1, keepdim=True)], -1) if draws else rows.mass
        small = np.uint16 if self._settings["classes"] <= 2**16 else np.uint32
        return {
            "ids": rows.ids.cpu().numpy().astype(small).ravel(),
            "log_mass": mass.clamp_min(1e-30).log().cpu().numpy().astype(np.float16).ravel(),
            "entropy": rows.entropy.cpu().numpy().astype(np.float32),
        }

    def _mask(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Return which positions are stored; None where an example has one prediction."""
        if self._settings["alignment"] == ROWS:
            return None
        tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
        if not self._settings["is_encoder_decoder"]:
            tensors = {k: v for k, v in tensors.items() if k not in LABELS and not k.startswith("decoder_")}
        return valid_positions(tensors, TOKENS)


class CachedTeacher:
    """Stands where a `Teacher` does, and knows only the examples of its cache.

    Args:
        folder: made by `cache_teacher`.

    Raises:
        CheckpointError: if there is no finished cache.
    """

    model = None

    def __init__(self, folder: str | Path) -> None:
        self._reader = CacheReader(Path(folder))
        self.settings = self._reader.settings
        self._stored = StoredOutputs(self.settings)
        self.accepts = set(self.settings["inputs"])

    @property
    def is_sampled(self) -> bool:
        """Whether a part of the classes is there only."""
        return "top_k" in self.settings

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.settings["classes"]

    def check_source(
        self, sources: Sequence[Any], tokens: Mapping[str, int] | None, load: Callable[[Any], torch.nn.Module]
    ) -> None:
        """Make sure that the cache is of the teacher in `sources`, if there is one, and of this tokenizer.

        Raises:
            ConfigError: for more than one teacher.
            CheckpointError: if it is of another.
        """
        if len(sources) > 1:
            raise ConfigError("DistillationConfig: a cache is of one teacher; leave it out to use several")
        if sources and fingerprint_model(load(sources[0])) != self.settings["teacher"]:
            raise CheckpointError("the cache was made by another teacher; make it again, or leave one of the two out")
        theirs = self.settings["tokenizer"]
        if tokens is not None and theirs is not None and fingerprint(tokens) != theirs:
            raise CheckpointError("the cache was made with another tokenizer than this run's; make it again")

    def check(self, student: Any) -> torch.Tensor | None:
        """Make sure that the logits mean the same as the student's; as `check_teacher`."""
        if alignment_of(student) != self.settings["alignment"]:
            raise TeacherError(
                f"the cache is of a model with predictions for {self.settings['alignment']}, the student's are for "
                f"{alignment_of(student)}; make a cache with a teacher of the student's task"
            )
        labels = {int(k): v for k, v in self.settings["id2label"].items()}
        return check_labels(student, labels, self.classes if self.settings["has_vocabulary"] else None)

    def try_head(self, batch: Mapping[str, Any]) -> str:
        """Return "": the logits are there."""
        return ""

    def hidden(self, inputs: Mapping[str, Any], asks: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        """Return what the teacher said of a batch, twice, as `Teacher` returns its outputs and hidden states."""
        found = self.outputs(inputs, asks)
        return found, found

    def rows(self, said: Any, positions: torch.Tensor) -> Callable[[slice], Any]:
        """Return the function from rows, among the positions that count, to logits or `SparseRows`."""
        if not self.is_sampled:
            chosen = said["logits"][positions]
            return lambda rows: chosen[rows].float()
        sparse = sparse_rows(said, positions)
        return sparse.rows

    def outputs(self, inputs: Mapping[str, Any], asks: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what the teacher said of a batch: logits, or under "sparse" rows and where they stand.

        Raises:
            CheckpointError: if an example is not in the cache.
        """
        tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        found = self._reader.find(self._stored.keys(tensors))
        return self._stored.outputs(found, tensors)


def sparse_rows(said: Mapping[str, Any], positions: torch.Tensor) -> SparseRows:
    """Return the rows at `positions`, bool (batch, length) or (batch,), of what a sampled cache gave.

    Raises:
        TeacherError: if a position is not in the cache.
    """
    mask = said["mask"]
    if mask is None:
        return said["sparse"].rows(positions)
    if bool((positions & ~mask).any()):
        raise TeacherError("a label stands where the attention mask says padding; the cache has nothing there")
    number = mask.flatten().cumsum(0).view_as(mask) - 1
    return said["sparse"].rows(number[positions])


def fingerprint_model(model: torch.nn.Module) -> str:
    """Return a hash of what `model` is: its class, the shape of each weight and some of its numbers."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy()
        digest.update(json.dumps([name, list(tensor.shape)]).encode() + some.tobytes())
    return digest.hexdigest()[:16]
