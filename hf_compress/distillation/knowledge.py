"""`IntermediateKnowledge`: the terms of the loss that compare layers of the student with layers of the teacher.

Level: state. Projections between widths live here, are trained beside the student and are never part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.distillation.capture import Seen, Wanted
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.features import attention_kl, gram_mse, hidden_cosine, hidden_mse, relation_kl
from hf_compress.distillation.layer_map import LAYER_MAPS, Pairs, explicit, kept
from hf_compress.distillation.reduce import WHOLE_ROWS, token_mask
from hf_compress.errors import ConfigError, TeacherError

HIDDEN_LOSSES = {"mse": hidden_mse, "cosine": hidden_cosine}


class IntermediateKnowledge:
    """Compares hidden states, attention maps and relations of mapped layers.

    Args:
        config: weights, layer map, kind of the hidden loss.
        student: the model in training; its config says how many layers it has and how wide they are.
        teacher: the frozen one.

    Attributes:
        projections: from the student's width to the teacher's, where they differ; to be trained with the student.

    Raises:
        ConfigError: for an unknown or impossible layer map.
        TeacherError: if the two cannot be compared in this way.
    """

    def __init__(self, config: DistillationConfig, student: nn.Module, teacher: nn.Module) -> None:
        self.config = config
        self.wanted = Wanted(
            hidden=config.hidden_weight > 0 or config.gram_weight > 0,
            maps=config.attention_weight > 0,
            relations=config.relation_weight > 0,
        )
        self.pairs = {
            stack: _pairs(config, ours, theirs, getattr(student, "kept_layers", None))
            for stack, ours, theirs in _stacks(getattr(student, "config", None), getattr(teacher, "config", None))
        }
        self.projections = nn.ModuleDict()
        widths = [_width(getattr(m, "config", None)) for m in (student, teacher)]
        if config.hidden_weight > 0 and widths[0] != widths[1]:
            for stack, pairs in self.pairs.items():
                for ours, _ in pairs:
                    self.projections[f"{stack}{ours}"] = _projection(widths[0], widths[1])

    def __call__(self, student: Seen, teacher: Seen, batch: Mapping[str, Any]) -> dict[str, tuple[Any, Any, str]]:
        """Return (sum, count, what is counted) of each term, summed over the mapped layers and averaged over them.

        Raises:
            TeacherError: if a model did not return what is compared.
        """
        found: dict[str, tuple[Any, Any, str]] = {}
        terms = (
            ("hidden_loss", self.config.hidden_weight, self._hidden, student.hidden, teacher.hidden, 0),
            ("gram_loss", self.config.gram_weight, self._gram, student.hidden, teacher.hidden, 0),
            ("attention_loss", self.config.attention_weight, self._maps, student.maps, teacher.maps, 1),
            ("relation_loss", self.config.relation_weight, self._relations, student.relations, teacher.relations, 1),
        )
        for name, weight, compare, ours, theirs, first in terms:
            if weight > 0:
                found |= self._over_layers(name, compare, ours, theirs, batch, first)
        return found

    def _over_layers(
        self, name: str, compare: Any, ours: Mapping, theirs: Mapping, batch: Mapping[str, Any], first: int
    ) -> dict[str, tuple[Any, Any, str]]:
        found = {}
        for stack, pairs in self.pairs.items():
            pairs = [(m, n) for m, n in pairs if m >= first and n >= first]
            if stack not in ours or stack not in theirs:
                raise TeacherError(
                    f"{name} needs what {'the student' if stack not in ours else 'the teacher'} does not return "
                    f"({stack or 'all'} layers); set its weight to 0"
                )
            total: Any = 0.0
            for m, n in pairs:
                one, other = _layer(ours[stack], m - first, "student"), _layer(theirs[stack], n - first, "teacher")
                mask, counted = token_mask(batch, stack, _length(one, name))
                part, count = compare(one, other, mask, f"{stack}{m}")
                # Where tokens cannot be told from padding, each sample counts with the mean over its tokens.
                size = mask.shape[1] if counted == WHOLE_ROWS else 1
                total, count = total + part / size, count / size
            if pairs:
                suffix = f"_{stack}" if stack else ""
                found[name + suffix] = (total / len(pairs), count, counted)
        return found

    def _hidden(self, ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor, key: str) -> tuple[Any, Any]:
        if key in self.projections:
            ours = self.projections[key](ours.to(self.projections[key].weight.dtype))
        if ours.shape != theirs.shape:
            raise TeacherError(
                f"hidden states of shape {tuple(ours.shape)} (student) and {tuple(theirs.shape)} (teacher) cannot be "
                "compared; use gram_weight or relation_weight, which do not ask for equal widths"
            )
        return HIDDEN_LOSSES[self.config.hidden_loss](ours, theirs, mask)

    def _gram(self, ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor, key: str) -> tuple[Any, Any]:
        return gram_mse(ours, theirs, mask)

    def _maps(self, ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor, key: str) -> tuple[Any, Any]:
        return attention_kl(ours, theirs, mask)

    def _relations(self, ours: Any, theirs: Any, mask: torch.Tensor, key: str) -> tuple[Any, Any]:
        total: Any = 0.0
        for one, other in zip(ours, theirs, strict=True):
            heads = self.config.relation_heads or relation_heads(one.shape[-1], other.shape[-1])
            if one.shape[-1] % heads or other.shape[-1] % heads:
                raise ConfigError(
                    f"relation_heads={heads} divides neither or only one of the widths {one.shape[-1]} (student) and "
                    f"{other.shape[-1]} (teacher); leave it out, or choose one that divides both"
                )
            part, count = relation_kl(one, other, mask, heads)
            total = total + part
        return total / len(ours), count


def relation_heads(student_width: int, teacher_width: int) -> int:
    """Return the largest number of relation heads that divides both widths and leaves each at least 16 wide."""
    shared = math.gcd(student_width, teacher_width)
    narrow = min(student_width, teacher_width)
    return max(h for h in range(1, shared + 1) if shared % h == 0 and (h == 1 or narrow // h >= 16))


def _projection(student_width: int, teacher_width: int) -> nn.Linear:
    # The same on all processes, and without moving the random numbers of the run.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(student_width, teacher_width, bias=False)


def _pairs(config: DistillationConfig, student_layers: int, teacher_layers: int, cut: list[int] | None) -> Pairs:
    if config.layer_map == "kept":
        if cut is None:
            raise ConfigError(
                "DistillationConfig: layer_map='kept' is for a student that make_student has just cut; "
                "this one does not know its layers: write pairs such as ['1:2', '2:4']"
            )
        return explicit([f"{m}:{n}" for m, n in kept(cut)], student_layers, teacher_layers)
    if isinstance(config.layer_map, str):
        return LAYER_MAPS.get(config.layer_map)(student_layers, teacher_layers)
    try:
        return explicit(config.layer_map, student_layers, teacher_layers)
    except ValueError as error:
        raise ConfigError(f"DistillationConfig: layer_map: {error}") from error


def _stacks(student: Any, teacher: Any) -> list[tuple[str, int, int]]:
    """Return (name, layers of the student, layers of the teacher) of each stack."""
    two = [bool(getattr(c, "is_encoder_decoder", False)) for c in (student, teacher)]
    if two[0] != two[1]:
        raise TeacherError(
            "one of student and teacher has an encoder and a decoder, the other has one stack of layers"
        )
    if not two[0]:
        return [("", _layers(student), _layers(teacher))]
    found = []
    for stack in ("encoder", "decoder"):
        counts = [getattr(c, f"{stack}_layers", None) or _own_layers(c, stack) for c in (student, teacher)]
        found.append((stack, *counts))
    return found  # type: ignore[return-value]


def _own_layers(config: Any, stack: str) -> int:
    # T5 counts its decoder apart.
    return getattr(config, "num_decoder_layers", None) or _layers(config) if stack == "decoder" else _layers(config)


def _layers(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(text, "num_hidden_layers", None)
    if not isinstance(count, int):
        whose = "a plain module has no config that says" if config is None else f"{type(config).__name__} does not say"
        raise TeacherError(f"{whose} how many layers there are, so layers cannot be mapped; distil logits only")
    return count


def _width(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "hidden_size", 0)


def _layer(layers: list, index: int, whose: str) -> Any:
    if index >= len(layers):
        raise TeacherError(
            f"the {whose} returned {len(layers)} layers, the layer map asks for number {index + 1}; name pairs of "
            "those that it returns (layer_map=['1:1', ...]), or distil logits only"
        )
    return layers[index]


def _length(value: Any, name: str) -> int:
    """Return the number of tokens: of (batch, length, width), or of (batch, heads, length, keys)."""
    tensor = value[0] if isinstance(value, tuple) else value
    return tensor.shape[2] if name == "attention_loss" else tensor.shape[1]
