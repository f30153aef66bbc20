"""`LanguageHead`: the linear layer that makes a language model's logits, taken out of its forward pass.

Level: state. While it is taken out the model ends with hidden states, and whoever took it applies it to some rows at a
time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.errors import TeacherError

# Tokens of a batch on which a head is tried.
_TRIED = 32
Transform = Callable[[torch.Tensor], torch.Tensor]


class LanguageHead:
    """The output layer of `model`.

    Args:
        model: with `get_output_embeddings`.

    Attributes:
        layer: the output layer.
        transform: what the model does to the logits behind the head, such as soft-capping; None if nothing.
        problem: why the logits cannot be made outside the model; "" if they can.
    """

    def __init__(self, model: Any) -> None:
        self.layer: Any = model.get_output_embeddings()
        self.transform: Transform | None = None
        self._config = getattr(model, "config", None)
        self.problem = "" if self.layer is not None else f"{type(model).__name__} has no language-model head"

    @property
    def is_plain(self) -> bool:
        """Whether the head is a linear layer with floating-point weights, so that its gradient is known."""
        return isinstance(self.layer, nn.Linear) and self.layer.weight.is_floating_point()

    @contextlib.contextmanager
    def replaced(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Let the model call `forward` in place of its head."""
        # accelerate hooks the forward methods of single modules in the same way.
        before = self.layer.__dict__.get("forward")
        self.layer.forward = forward
        try:
            yield
        finally:
            del self.layer.forward
            if before is not None:
                self.layer.forward = before

    @contextlib.contextmanager
    def captured(self) -> Iterator[list[torch.Tensor]]:
        """Collect what the head would have been given, in place of making logits."""
        found: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            found.append(hidden)
            return hidden.new_zeros(1, 1, 1)

        with self.replaced(keep):
            yield found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of `hidden`, float32."""
        found = self.layer(hidden).float()
        return found if self.transform is None else self.transform(found)

    @torch.no_grad()
    def try_out(self, call: Callable[[Mapping[str, Any]], Any], batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Find out what the model does behind its head, by a call with it and one without.

        Args:
            call: runs the model in evaluation mode and returns its output.
            batch: inputs, a few tokens.

        Returns:
            The logits; None if `problem` says why the head cannot be taken out.
        """
        whole = call(batch)["logits"].float()
        with self.captured() as found:
            call(batch)
        if len(found) != 1 or found[0].shape[:-1] != whole.shape[:-1]:
            self.problem = "its head is not called once with the hidden states of all tokens"
            return None
        plain = self.layer(found[0].to(next(self.layer.parameters()).device)).to(whole.device)
        tolerance = 1e-3 if plain.dtype == torch.float32 else 1e-2
        plain = plain.float()
        for transform in self._candidates(plain, whole):
            made = plain if transform is None else transform(plain)
            if made.shape == whole.shape and (made - whole).norm() <= tolerance * whole.norm():
                self.transform = transform
                return whole
        self.problem = "its logits are not those of its head, and how they come about is not known"
        return None

    def _candidates(self, plain: torch.Tensor, whole: torch.Tensor) -> Iterator[Transform | None]:
        text = self._config.get_text_config() if self._config is not None else None
        cap = getattr(text, "final_logit_softcapping", None)
        if cap:
            # First: small logits hardly show it.
            yield lambda z: cap * torch.tanh(z / cap)
        yield None
        if plain.shape != whole.shape:
            return
        scale = float((plain * whole).sum() / plain.square().sum().clamp_min(1e-30))
        yield lambda z: scale * z
        offset = (whole - plain).flatten(0, -2).mean(0)
        if plain[..., 0].numel() > 1:
            yield lambda z: z + offset.to(z.device)


def few_tokens(batch: Mapping[str, Any], count: int = _TRIED) -> dict[str, Any]:
    """Return the first row of a batch with a label that counts, cut to `count` tokens around the first of these.

    Beside images and sounds text stays whole: some tokens stand for parts of these.
    """
    labels = batch.get("labels")
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    if any(value.dim() > 2 and value.is_floating_point() for value in tensors):
        count = max(value.shape[1] for value in tensors if value.dim() > 1)
    first = 0
    if labels is not None and labels.dim() == 2:
        row = int((labels != -100).any(-1).int().argmax())
        first = max(0, int((labels[row] != -100).int().argmax()) - 1)
    else:
        row = 0
    cut: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            cut[name] = value
        elif value.dim() == 2:
            start = min(first, max(0, value.shape[1] - count))
            cut[name] = value[row : row + 1, start : start + count]
        else:
            cut[name] = value[row : row + 1]
    return cut


def require_rows(hidden: torch.Tensor, positions: torch.Tensor, whose: str) -> None:
    """Make sure that there is a hidden state for each position.

    Raises:
        TeacherError: if not.
    """
    if hidden.shape[:-1] != positions.shape:
        raise TeacherError(
            f"expected hidden states for {tuple(positions.shape)} positions, found {tuple(hidden.shape[:-1])} from "
            f"the {whose}; set chunk_size=0"
        )
