"""What is kept of the masked entries: nothing but where they are, or their straight-through values too.

Level: state. Both stores keep the masked entries of plain parameters at zero; masks never live in the module.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch.utils.hooks import RemovableHandle

from hf_compress.errors import SparsityError
from hf_compress.pruning.shards import local

# Temporaries of this many entries stay in the cache.
_CHUNK = 1 << 16


class Store(Protocol):
    """Keeps masked entries at zero between optimizer steps."""

    def assign(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Take over `masks`, bool by parameter name (True stays), of parameters that hold straight-through values."""
        ...

    def before_step(self) -> None:
        """Bring the parameters into the state in which scores are taken and the optimizer steps."""
        ...

    def after_step(self) -> None:
        """Zero the masked entries in place."""
        ...

    def mask(self, name: str) -> torch.Tensor:
        """Return the bool mask of a parameter: True where it stays."""
        ...

    def release(self) -> None:
        """Let go of the parameters when training is over."""
        ...


class Zeros:
    """One bool a weight: what is masked is gone, and its gradient too.

    A channel without weights has no variance, and batch normalisation multiplies the gradients of such weights by
    hundreds: left in, they would decide how far clipping scales down those of the weights that stay.

    Args:
        parameters: by full name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.parameters = parameters
        self.masks: dict[str, torch.Tensor] = {}
        self._hooks: dict[str, RemovableHandle] = {}

    def assign(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Take over `masks` and zero."""
        self.masks = {}
        for name, mask in masks.items():
            self.restore(name, mask)
        self.after_step()

    def restore(self, name: str, mask: torch.Tensor) -> None:
        """Take over the mask of a parameter that is already zero where it is masked."""
        self.masks[name] = mask
        if name not in self._hooks and self.parameters[name].requires_grad:
            self._hooks[name] = self._hook(name)

    def _hook(self, name: str) -> RemovableHandle:
        # A stock Trainer that was broken off leaves its hooks; without their store they hold no mask and do nothing.
        found = weakref.ref(self)

        def zero_gradient(parameter: torch.Tensor) -> None:
            store = found()
            if store is not None and parameter.grad is not None and name in store.masks:
                multiply_([local(parameter.grad)], [store.masks[name]])

        return self.parameters[name].register_post_accumulate_grad_hook(zero_gradient)

    def before_step(self) -> None:
        """Leave the zeros where they are."""

    def after_step(self) -> None:
        """Zero what the optimizer moved."""
        multiply_([local(self.parameters[n].detach()) for n in self.masks], list(self.masks.values()))

    def mask(self, name: str) -> torch.Tensor:
        """Return the mask itself."""
        return self.masks[name]

    def release(self) -> None:
        """Leave gradients alone from now on."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}


class Shadows:
    """One number a weight, which is NaN where the weight stays and its straight-through value where it is masked.

    Before the optimizer's step the values go back into the parameters and after it they are taken out again, so
    forward and backward see zeros while optimizer, weight decay and scores see the dense weight. This is the
    straight-through estimator of Sanh et al. 2020 without a second parameter: the gradient with respect to W * mask
    counts as that with respect to W.

    Args:
        parameters: by full name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.parameters = parameters
        self.values: dict[str, torch.Tensor] = {}
        self._are_out = False

    def assign(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Put all values back, and take out those that the new masks hide."""
        self.before_step()
        for name, mask in masks.items():
            if name not in self.values:
                self.values[name] = torch.empty_like(local(self.parameters[name].detach()))
            self.values[name].zero_().masked_fill_(mask, torch.nan)
        self.after_step()

    def before_step(self) -> None:
        """Put the values of the masked entries into the parameters."""
        if not self._are_out:
            return
        # NaN + 0 would be NaN; nan_to_num is vectorised, torch.where is not.
        for weight, value in self._chunks():
            weight.add_(_without_nan(value))
        self._are_out = False

    def after_step(self) -> None:
        """Take the values of the masked entries out of the parameters."""
        for weight, value in self._chunks():
            value.sub_(value).add_(weight)
            weight.sub_(_without_nan(value))
        self._are_out = bool(self.values)

    def restore(self, name: str, values: torch.Tensor) -> None:
        """Take over what a checkpoint held of a parameter that is already zero where it is masked."""
        self.values[name] = values
        self._are_out = True

    def mask(self, name: str) -> torch.Tensor:
        """Return a new bool tensor."""
        return self.values[name].isnan()

    def release(self) -> None:
        """Do nothing: gradients of masked entries count, and no parameter knows of this."""

    def _chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name, value in self.values.items():
            weight = local(self.parameters[name].detach())
            is_flat = weight.is_contiguous() and weight.device.type == "cpu"
            size = _CHUNK if is_flat else max(1, weight.numel())
            pair = (weight.view(-1), value.view(-1)) if is_flat else (weight, value)
            yield from zip(*(t.split(size) for t in pair), strict=True)


def multiply_(tensors: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> None:
    """Zero the entries of `tensors` where `masks`, bool, are False, in place."""
    if tensors and tensors[0].device.type != "cpu":
        torch._foreach_mul_(list(tensors), list(masks))
        return
    for tensor, mask in zip(tensors, masks, strict=True):
        if not (tensor.is_contiguous() and mask.is_contiguous()):
            tensor.mul_(mask)
            continue
        # torch makes numbers of the bools before it multiplies; in chunks these stay in the cache.
        for part, bools in zip(tensor.view(-1).split(_CHUNK), mask.view(-1).split(_CHUNK), strict=True):
            part.mul_(bools)


def _without_nan(value: torch.Tensor) -> torch.Tensor:
    return value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def check_zeros(masks: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Make sure that `weights` are zero where `masks`, bool, are False; both by parameter name.

    Raises:
        SparsityError: naming the parameter that has other values.
    """
    for name, mask in masks.items():
        wrong = int(torch.count_nonzero(weights[name].to(mask.device)[~mask]))
        if wrong:
            raise SparsityError(
                f"{name}: {int((~mask).sum())} entries must be zero, {wrong} of them are not; something changed "
                "the weights after the optimizer step"
            )
