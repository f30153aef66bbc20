"""Walks through a model block by block: each pass runs one block, and those before it hand on what they made.

Level: state. The model's own code says what a block is given (masks, positions, what an encoder made), so no line is
about any architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_compress.architecture.modes import outside_training
from hf_compress.errors import ArchitectureError
from hf_compress.pruning.oneshot.taps import Batch, on_device

# The whole model, where it has no blocks that run one after the other.
WHOLE = ""


def find_blocks(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the paths of the blocks that hold targets, in the order of the model; [WHOLE] if there are none.

    Args:
        model: any module; it may be on the meta device.
        targets: names of the parameters that will be pruned.
    """
    stacks: list[str] = []
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{stack}.") for stack in stacks)
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not is_inside:
            each = [any(name.startswith(f"{path}.{i}.") for name in targets) for i in range(len(module))]
            if any(each):
                stacks.append(path)
    blocks = [f"{stack}.{i}" for stack in stacks for i in range(len(model.get_submodule(stack)))]
    return blocks or [WHOLE]


@torch.no_grad()
def in_order(model: nn.Module, blocks: Sequence[str], batch: Batch) -> list[str]:
    """Return the blocks in the order in which they run; [WHOLE] where one does not run just once.

    Args:
        model: with all its weights.
        blocks: their paths.
        batch: inputs.
    """
    order: list[str] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: order.append(path))
        for path in blocks
        if path != WHOLE
    ]
    try:
        with outside_training(model):
            model(**next(on_device(model, [batch])))
    finally:
        for handle in handles:
            handle.remove()
    return order if sorted(order) == sorted(blocks) else [WHOLE]


class Activations:
    """What one block made of each batch, kept in memory or on disk.

    Args:
        folder: where it is kept; None: in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[tuple[str, int], Any] = {}

    def put(self, stack: str, number: int, output: Any) -> None:
        """Keep the output of the last block of a stack that has run, in place of the one before."""
        leaves, spec = pytree.tree_flatten(output)
        leaves = [leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        if self.folder is None:
            self._kept[stack, number] = leaves, spec
            return
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {str(i): t.contiguous().clone() for i, t in enumerate(leaves) if isinstance(t, torch.Tensor)}
        save_file(tensors, self._file(stack, number))
        rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._kept[stack, number] = rest, spec

    def get(self, stack: str, number: int, device: torch.device) -> Any:
        """Return what was kept, on a device."""
        leaves, spec = self._kept[stack, number]
        if self.folder is not None:
            from safetensors.torch import load_file

            found = load_file(self._file(stack, number))
            leaves = [found.get(str(i), leaf) for i, leaf in enumerate(leaves)]
        leaves = [leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return pytree.tree_unflatten(leaves, spec)

    def _file(self, stack: str, number: int) -> Path:
        return Path(str(self.folder)) / f"{stack or 'model'}-{number}.safetensors"


class _Reached(Exception):
    """Ends a pass once its block has run."""


class Walk:
    """Goes through the blocks of a model.

    Args:
        model: the model; blocks that have not run or have run before may be on the meta device.
        blocks: their paths, in the order in which they run.
        batches: inputs.
        device: where the model runs.
        activations: what passes between blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[str],
        batches: Sequence[Batch],
        device: torch.device,
        activations: Activations,
    ) -> None:
        self.model, self.blocks, self.batches, self.device = model, list(blocks), batches, device
        self.activations = activations

    @torch.no_grad()
    def run(self, position: int, on_output: Callable[[int, Any], None] | None = None) -> None:
        """Run block number `position` on all batches, all before it done; `on_output` gets batch number and output."""
        with outside_training(self.model), self._handing_on(position) as state:
            for number, batch in enumerate(self.batches):
                state["number"], state["output"] = number, None
                with contextlib.suppress(_Reached):
                    self.model(**{name: value.to(self.device) for name, value in batch.items()}, **self._extra())
                if state["output"] is None:
                    raise ArchitectureError(
                        f"expected these inputs to pass through {self.blocks[position]}, which did not run; give "
                        "inputs that use the whole model, or exclude it"
                    )
                if on_output is not None:
                    on_output(number, state["output"])

    def keep(self, position: int) -> Callable[[int, Any], None]:
        """Return a function that keeps the output of block number `position` for the blocks behind it."""
        stack = self._stack(position)
        return lambda number, output: self.activations.put(stack, number, output)

    def _stack(self, position: int) -> str:
        return self.blocks[position].rpartition(".")[0]

    def _extra(self) -> dict[str, Any]:
        # A cache of keys would grow with each block.
        return {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}

    @contextlib.contextmanager
    def _handing_on(self, position: int) -> Iterator[dict[str, Any]]:
        state: dict[str, Any] = {"number": 0, "output": None, "handed": {}}
        if self.blocks[position] == WHOLE:
            handle = self.model.register_forward_hook(lambda _, __, output: state.update(output=output))
            try:
                yield state
            finally:
                handle.remove()
            return
        replaced = []
        for before in range(position):
            block = self.model.get_submodule(self.blocks[before])
            replaced.append(block)
            block.forward = self._hander(before, state)
        handle = self.model.get_submodule(self.blocks[position]).register_forward_hook(self._stopper(state))
        try:
            yield state
        finally:
            handle.remove()
            for block in replaced:
                del block.forward

    def _hander(self, position: int, state: dict[str, Any]) -> Callable[..., Any]:
        stack, last = self._stack(position), -1

        def hand(*args: Any, **kwargs: Any) -> Any:
            nonlocal last
            if last == state["number"]:
                raise ArchitectureError(
                    f"expected every block to run once in a pass, found that {self.blocks[position]} runs more often; "
                    "pass the loaded model, which can be pruned as a whole"
                )
            last = state["number"]
            # Every block that has run gives what the last of its stack made: the next one is then given just that.
            if state["handed"].get(stack, (-1, None))[0] != last:
                state["handed"][stack] = last, self.activations.get(stack, last, self.device)
            return state["handed"][stack][1]

        return hand

    def _stopper(self, state: dict[str, Any]) -> Callable[..., None]:
        def stop(_: nn.Module, __: Any, output: Any) -> None:
            state["output"] = output
            raise _Reached

        return stop
