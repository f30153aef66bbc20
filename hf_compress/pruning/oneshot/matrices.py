"""The matrices that single weights are pruned in, and what is seen of their inputs.

Level: state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_compress.architecture.targets import compile_patterns, expert_stacks, find_targets

_PRODUCTS = (torch.addmm, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__)
_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


@dataclass(frozen=True)
class Place:
    """One matrix of a parameter: the whole of it, or that of one expert.

    Args:
        name: of the parameter.
        expert: its index in a parameter of three dimensions; None for others.
        input_dim: which of the first two dimensions, of the matrix if it is an expert's, is that of the inputs.
        shape: of the parameter.
    """

    name: str
    expert: int | None
    input_dim: int
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """The name, with the expert."""
        return self.name if self.expert is None else f"{self.name}[{self.expert}]"

    @property
    def size(self) -> int:
        """Number of weights."""
        whole = torch.Size(self.shape).numel()
        return whole if self.expert is None else whole // self.shape[0]

    @property
    def rows_columns(self) -> tuple[int, int]:
        """Outputs and inputs."""
        shape = self.shape if self.expert is None else self.shape[1:]
        outputs = shape[1 - self.input_dim]
        return outputs, self.size // outputs

    def read(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return a copy as (outputs, inputs), float32."""
        found = parameter.detach() if self.expert is None else parameter.detach()[self.expert]
        return found.movedim(self.input_dim, 1).reshape(self.rows_columns).to(torch.float32, copy=True)

    @torch.no_grad()
    def write(self, parameter: torch.Tensor, matrix: torch.Tensor) -> None:
        """Put a matrix (outputs, inputs) back."""
        place = parameter if self.expert is None else parameter[self.expert]
        moved = place.movedim(self.input_dim, 1)
        moved.copy_(matrix.reshape(moved.shape))


def find_places(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Place]:
    """Return the matrices that may be pruned: linear and convolutional weights of the body, and those of experts.

    Args:
        model: any module; it may be on the meta device.
        include: regular expressions, as of `find_targets`.
        exclude: the same.

    Raises:
        TargetError: if a pattern matches nothing, or nothing is left.
    """
    stacks = expert_stacks(model)
    experts = {name: p for name, p in model.named_parameters() if id(p) in stacks}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    wanted, unwanted = compile_patterns("include", include, names), compile_patterns("exclude", exclude, names)
    found = [t for t in find_targets(model, include, exclude) if t.name not in experts]
    grouped = {id(m.weight) for m in model.modules() if getattr(m, "groups", 1) != 1 and hasattr(m, "weight")}
    places = [
        Place(t.name, None, t.input_dim, tuple(t.parameter.shape))
        for t in found
        if t.parameter.dim() > 1 and id(t.parameter) not in grouped
    ]
    for name, parameter in experts.items():
        is_wanted = not wanted or any(p.search(name) for p in wanted)
        if is_wanted and not any(p.search(name) for p in unwanted):
            inputs = stacks[id(parameter)] - 1
            places += [Place(name, i, inputs, tuple(parameter.shape)) for i in range(parameter.shape[0])]
    order = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    return sorted(places, key=lambda place: (order[place.name], place.expert or 0))


@dataclass
class Seen:
    """Sums over what one or more matrices were given.

    Args:
        total: X^T X, (inputs, inputs), or only its diagonal, (inputs,); None before anything was seen.
        samples: number of positions.
        is_summed: whether the sums of all processes are in it.
    """

    total: torch.Tensor | None = None
    samples: int = 0
    is_summed: bool = False

    def add(self, given: torch.Tensor, is_whole: bool) -> None:
        """Add rows of inputs, (samples, inputs)."""
        given = given.float()
        if self.total is None:
            self.total = given.new_zeros(given.shape[1:] * (2 if is_whole else 1))
        if is_whole:
            self.total.addmm_(given.T, given)
        else:
            self.total += torch.linalg.vector_norm(given, dim=0).square()
        self.samples += len(given)

    @property
    def norms(self) -> torch.Tensor | None:
        """L2 norm of each input over all positions."""
        if self.total is None:
            return None
        return (self.total.diagonal() if self.total.dim() == 2 else self.total).clamp(min=0).sqrt()


@dataclass
class Looking(TorchFunctionMode):
    """Sums up the inputs of matrices wherever they are multiplied, whatever module does it.

    Args:
        parameters: name -> parameter, with its values.
        places: the matrices.
        is_whole: keep X^T X; False: only its diagonal.
        mask: which positions of the batch count; None: all.
        on_seen: called with a matrix and its sums before it is multiplied for the first time, and free to change it.
    """

    parameters: Mapping[str, torch.Tensor]
    places: Sequence[Place]
    is_whole: bool
    mask: torch.Tensor | None = None
    on_seen: Callable[[Place, Seen], None] | None = None
    seen: dict[Place, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._by_weight = {_key(self._matrix(place)): place for place in self.places}
        self._last: tuple[Any, Place] | None = None

    def _matrix(self, place: Place) -> torch.Tensor:
        parameter = self.parameters[place.name]
        return parameter if place.expert is None else parameter.detach()[place.expert]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func in _CONVOLUTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self._look(args[0] if args else kwargs["input"], weight, func, args, kwargs)
        elif func in _PRODUCTS and len(args) > 1:
            # GPT-2's layers and some experts hold their weights transposed.
            self._look(args[-2], args[-1], func, args, kwargs)
        return func(*args, **kwargs)

    def _look(self, given: Any, weight: Any, func: Any, args: Any, kwargs: Any) -> None:
        place = self._by_weight.get(_key(weight)) if isinstance(weight, torch.Tensor) else None
        if place is None:
            return
        is_first = place not in self.seen
        if is_first or self.on_seen is None:
            self._add(place, given, weight, func, args, kwargs)
        if is_first and self.on_seen is not None:
            self.on_seen(place, self.seen[place])

    def _add(self, place: Place, given: Any, weight: Any, func: Any, args: Any, kwargs: Any) -> None:
        if func in _CONVOLUTIONS:
            self.seen.setdefault(place, Seen()).add(_patches(given, weight, func, args, kwargs), self.is_whole)
            return
        # Query, key and value matrices are given the same tensor: it is summed up once.
        if self._last is not None and self._last[0] is given and self._is_shared(place):
            self.seen[place] = self.seen[self._last[1]]
        elif place not in self.seen or self._owner(place) == place:
            self.seen.setdefault(place, Seen()).add(self._valid(given.detach()), self.is_whole)
        self._last = given, place

    def _owner(self, place: Place) -> Place:
        return next(p for p, seen in self.seen.items() if seen is self.seen[place])

    def _is_shared(self, place: Place) -> bool:
        last = self._last[1] if self._last is not None else place
        return place not in self.seen or self.seen[place] is self.seen.get(last)

    def _valid(self, given: torch.Tensor) -> torch.Tensor:
        if self.mask is not None and self.mask.shape == given.shape[:-1]:
            return given[self.mask.to(given.device).bool()]
        return given.reshape(-1, given.shape[-1])


def _key(weight: torch.Tensor) -> tuple[int, int, tuple[int, ...]]:
    # Slices of a parameter are new tensors over its storage.
    return weight.untyped_storage().data_ptr(), weight.storage_offset(), tuple(weight.shape)


def _patches(given: torch.Tensor, weight: torch.Tensor, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """Return what each output of a convolution reads, (positions, inputs), in the order of the flattened weight."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    found = {**dict(zip(names, args, strict=False)), **kwargs}
    dims = _CONVOLUTIONS[func]
    kernel = weight.shape[2:]
    stride, dilation = (_each(found.get(name, 1), dims) for name in ("stride", "dilation"))
    padding = found.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    else:
        sides = [side for p in reversed(_each(0 if padding == "valid" else padding, dims)) for side in (p, p)]
    patches = F.pad(given.detach(), sides)
    for dim in range(dims):
        reach = dilation[dim] * (kernel[dim] - 1) + 1
        patches = patches.unfold(2 + dim, reach, stride[dim])[..., :: dilation[dim]]
    # (batch, channels, positions..., kernel...) -> (positions, channels x kernel)
    order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
    return patches.permute(order).reshape(-1, weight[0].numel())


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)
