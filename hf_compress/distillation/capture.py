"""What goes on inside a model while it runs: hidden states, attention maps, and queries, keys and values.

Level: state. Hidden states and maps are asked for in the forward call; queries, keys and values are seen at the one
place through which transformers' models call their attention function.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_compress.errors import UnsupportedError

# Of models with one stack of layers, and of those with two.
_HIDDEN = {"": "hidden_states", "encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states"}
_MAPS = {"": "attentions", "encoder": "encoder_attentions", "decoder": "decoder_attentions"}


@dataclass
class Wanted:
    """What is looked at.

    Args:
        hidden: hidden states.
        maps: attention probabilities, which only eager attention returns.
        relations: queries, keys and values.
    """

    hidden: bool = False
    maps: bool = False
    relations: bool = False

    def inputs(self) -> dict[str, bool]:
        """Return what to add to the inputs of a forward call."""
        wanted = {"output_hidden_states": self.hidden, "output_attentions": self.maps}
        return {name: True for name, value in wanted.items() if value}


@dataclass
class Seen:
    """What was seen, by stack: "" of models with one stack, "encoder" and "decoder" of those with two.

    Attributes:
        hidden: outputs of the embeddings and of each layer, (batch, length, width).
        maps: attention probabilities of each layer, (batch, heads, length, length).
        relations: queries, keys and values of each layer, (batch, length, width).
    """

    hidden: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    maps: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    relations: dict[str, list[tuple[torch.Tensor, ...]]] = field(default_factory=dict)


def seen_in(outputs: Any, relations: Mapping[str, list[tuple[torch.Tensor, ...]]]) -> Seen:
    """Sort what a forward call returned, and what was seen beside it, by stack."""
    found = Seen(relations=dict(relations))
    for names, into in ((_HIDDEN, found.hidden), (_MAPS, found.maps)):
        for stack, name in names.items():
            value = outputs.get(name) if isinstance(outputs, Mapping) else None
            if value is not None and not (stack == "" and "encoder" in into):
                # Layers that return none, such as dropped ones, are left out.
                into[stack] = [v for v in value if v is not None]
    return found


@contextlib.contextmanager
def watched_attention(model: nn.Module) -> Iterator[dict[str, list[tuple[torch.Tensor, ...]]]]:
    """Collect queries, keys and values of the self-attention layers of `model` while it runs, by stack.

    Yields:
        A dict that is filled while the model runs: for each layer (query, key, value), each (batch, length, width).

    Raises:
        UnsupportedError: if the model's attention does not go through transformers' attention interface.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = {kind: ALL_ATTENTION_FUNCTIONS.get(kind) for kind in _attention_kinds(model)}
    has_two = bool(getattr(model.config, "is_encoder_decoder", False))
    stacks = {id(m): _stack_of(name) if has_two else "" for name, m in model.named_modules()}
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {}

    def watching(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *a: Any, **k: Any
    ) -> Any:
        stack = stacks.get(id(module))
        # Cross-attention relates two texts; another model may run at the same time.
        if stack is not None and query.shape[2] == key.shape[2]:
            found.setdefault(stack, []).append(tuple(t.transpose(1, 2).flatten(2) for t in (query, key, value)))
        own = known[_kind_of(module) if _kind_of(module) in known else _kind_of(model)]
        return (own or _eager_of(module))(module, query, key, value, *a, **k)

    for kind in known:
        ALL_ATTENTION_FUNCTIONS[kind] = watching
    try:
        yield found
    finally:
        for kind, function in known.items():
            if function is not None:
                ALL_ATTENTION_FUNCTIONS[kind] = function
            else:
                del ALL_ATTENTION_FUNCTIONS[kind]
    if not found:
        raise UnsupportedError(
            f"relation_weight sees queries, keys and values where transformers calls an attention function, and "
            f"{type(model).__name__} computes attention in its own way; use hidden_weight or gram_weight"
        )


def _eager_of(module: nn.Module) -> Any:
    """Return the eager attention of the file that defines `module`; transformers names it so in all of them."""
    return sys.modules[type(module).__module__].eager_attention_forward


def use_eager_attention(model: nn.Module) -> bool:
    """Switch `model` to eager attention, the only one that returns its maps; say whether it was another before."""
    if _attention_kinds(model) == {"eager"}:
        return False
    model.set_attn_implementation("eager")
    for part in model.modules():
        # Of models with two stacks transformers 5.17 switches the outer config only.
        if _kind_of(part) != "eager" and hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")
    return True


def _attention_kinds(model: nn.Module) -> set[str]:
    return {_kind_of(part) for part in model.modules() if part is model or hasattr(part, "config")}


def _kind_of(module: nn.Module) -> str:
    return getattr(getattr(module, "config", None), "_attn_implementation", None) or "eager"


def _stack_of(name: str) -> str | None:
    """Tell the stack from the name of an attention module; None for attention from the decoder to the encoder."""
    parts = name.split(".")
    if "encoder_attn" in parts or "EncDecAttention" in parts or "crossattention" in parts:
        return None
    return "decoder" if "decoder" in parts else "encoder" if "encoder" in parts else ""
