"""Models whose weights are read one block at a time, and written as each block is done.

Level: state.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.errors import ArchitectureError, OutputExistsError
from hf_compress.output import copy_companions
from hf_compress.pruning.oneshot.blocks import WHOLE

_INDEX = "model.safetensors.index.json"
_STATE = "state.json"
_META = torch.device("meta")


class StreamedModel:
    """A saved model of which only what stands outside the blocks, and one block, is in memory.

    Args:
        source: folder or Hub id.
        device: where it runs.

    Raises:
        ArchitectureError: if it is no model of transformers.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        import transformers

        self.source, self.device = source, device
        try:
            self.config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ArchitectureError(
                f"expected the folder or id of a transformers model, found {source!r}: {error}"
            ) from error
        names = [n for n in getattr(self.config, "architectures", None) or () if hasattr(transformers, n)]
        if not names:
            raise ArchitectureError(
                f"expected a saved model whose class is part of transformers, found {source!r}; load it and pass it"
            )
        self.model_class = getattr(transformers, names[0])
        # On the meta device it costs nothing, and is what the parts are saved through.
        self.skeleton = probing.build(self.model_class, self.config)
        self.model: nn.Module = self.skeleton
        self.folder = _local(source)
        stored_keys(self.folder)

    def open(self, blocks: Sequence[str]) -> None:
        """Load everything but the blocks."""
        self.model = probing.build(self.model_class, self.config).eval()
        self._take(self.folder, blocks, inside=_META, outside=self.device)

    def load(self, block: str, folder: Path | None = None) -> None:
        """Load a block, from another folder if one is given."""
        self._take(folder or self.folder, [block], inside=self.device, outside=_META)

    def drop(self, block: str) -> None:
        """Give the memory of a block back."""
        self.model.set_submodule(block, self.model.get_submodule(block).to("meta"))
        # Models hold references to themselves.
        gc.collect()

    def parameters(self, block: str) -> dict[str, torch.Tensor]:
        """Return the parameters of a block, by full name."""
        return {f"{block}.{name}": p for name, p in self.model.get_submodule(block).named_parameters()}

    def save(self, blocks: Sequence[str], folder: Path) -> None:
        """Save what is loaded: one block, or what stands outside of all `blocks`."""
        state = {
            name: value
            for name, value in self.model.state_dict().items()
            if value.device.type != "meta"
            and (name.startswith(f"{blocks[0]}.") if len(blocks) == 1 else not _is_in(name, blocks))
        }
        with probing.quiet():
            self.skeleton.save_pretrained(folder, state_dict=state, max_shard_size="1000GB")

    def _take(self, folder: Path, blocks: Sequence[str], inside: torch.device, outside: torch.device) -> None:
        """Take from a saved model what is not on the meta device, with whatever transformers converts in loading."""
        device_map = _device_map(self.skeleton, "", set(blocks), inside, outside)
        patterns = [_as_stored(block) for block in blocks]
        keys = stored_keys(folder)
        chosen = {k: f for k, f in keys.items() if any(p.search(k) for p in patterns) == (inside.type != "meta")}
        # Where names in files differ from those in the model, all are given; those on the meta device cost nothing.
        for each in (chosen, keys):
            with probing.quiet(), warnings.catch_warnings():
                # accelerate wonders at names of parameters in the map.
                warnings.simplefilter("ignore", UserWarning)
                part, info = self.model_class.from_pretrained(
                    None, config=self.config, state_dict=_read(each), device_map=device_map, dtype="auto",
                    output_loading_info=True,
                )  # fmt: skip
            lacking = [n for n in info["missing_keys"] if (_is_in(n, blocks) == (inside.type != "meta"))]
            if not lacking:
                break
        else:
            # transformers would fill them with new random values.
            raise ArchitectureError(
                f"{folder} lacks weights of {self.model_class.__name__}: {', '.join(lacking[:3])}; load the model, "
                "which says what it makes of that, and pass it"
            )
        for path, module in part.named_modules():
            own = self.model.get_submodule(path)
            for mine, given in ((own._parameters, module._parameters), (own._buffers, module._buffers)):
                mine.update({n: t for n, t in given.items() if t is not None and t.device.type != "meta"})
                given.clear()


def _local(source: str) -> Path:
    """Return the folder of a saved model, downloaded if it is an id."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))


def _as_stored(block: str) -> re.Pattern[str]:
    """Return what finds the keys of a block in a file: whatever comes before, the stack and the number stay."""
    stack, number = block.split(".")[-2:]
    return re.compile(rf"(^|\.){re.escape(stack)}\.{number}\.")


def stored_keys(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of a saved model.

    Raises:
        ArchitectureError: if it has no safetensors.
    """
    from safetensors import safe_open

    index = folder / _INDEX
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: folder / file for key, file in weight_map.items()}
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ArchitectureError(f"expected model.safetensors or {_INDEX} in {folder}, found neither")
    with safe_open(file, "pt") as opened:
        return dict.fromkeys(opened.keys(), file)


def _read(keys: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found = {}
    for file in sorted(set(keys.values())):
        with safe_open(file, "pt") as opened:
            found.update({key: opened.get_tensor(key) for key, place in keys.items() if place == file})
    return found


def _device_map(
    module: nn.Module, path: str, blocks: set[str], inside: torch.device, outside: torch.device
) -> dict[str, torch.device]:
    """Return a device for each largest part that lies inside or outside of the blocks as a whole.

    A default for all the rest would have accelerate move the blocks too; and devices as such, not the string "cpu",
    which it takes for a place to offload to.
    """
    if path in blocks:
        return {path: inside}
    if path and not any(block.startswith(f"{path}.") for block in blocks):
        return {path: outside}
    found = {}
    for name, child in module.named_children():
        found.update(_device_map(child, f"{path}.{name}".lstrip("."), blocks, inside, outside))
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return found | {f"{path}.{name}".lstrip("."): outside for name, _ in own}


def _is_in(name: str, blocks: Sequence[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


class Output:
    """A folder that is filled block by block, and is there under its name only once it is whole.

    Args:
        folder: to make.
        wanted: what the run is, as plain data; one that was interrupted goes on only if it was the same.
        rank: of the process; only the first one writes, the others read what it has written before.

    Raises:
        OutputExistsError: if the folder exists, or its beginnings are of another run.
    """

    def __init__(self, folder: str | os.PathLike[str], wanted: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.rank = Path(folder), rank
        self.part = self.folder.with_name(self.folder.name + ".part")
        self.state: dict[str, Any] = {"wanted": wanted, "done": [], "needs": {}, "report": {}}
        if rank:
            self.state = json.loads((self.part / _STATE).read_text(encoding="utf-8"))
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise OutputExistsError(f"{self.folder} exists already; remove it or choose another output")
        if (self.part / _STATE).is_file():
            found = json.loads((self.part / _STATE).read_text(encoding="utf-8"))
            if found["wanted"] != json.loads(json.dumps(wanted)):
                raise OutputExistsError(
                    f"{self.part} holds the beginnings of another run; remove it or choose another output"
                )
            self.state = found
        self.part.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        """Write down how far the run is."""
        if self.rank:
            return
        new = self.part / f"{_STATE}.new"
        new.write_text(json.dumps(self.state), encoding="utf-8")
        os.replace(new, self.part / _STATE)

    def block(self, position: int | None) -> Path:
        """Return the folder of a block; None: of what stands outside."""
        return self.part / ("outside" if position is None else f"block-{position:05d}")

    @contextlib.contextmanager
    def activations(self) -> Iterator[Path]:
        """Give a folder for what passes between blocks, emptied before and removed after."""
        place = self.part / f"activations-{self.rank}"
        shutil.rmtree(place, ignore_errors=True)
        yield place
        shutil.rmtree(place, ignore_errors=True)

    def finish(self, blocks: int, report: dict[str, Any], source: Path) -> None:
        """Make one checkpoint of all parts, each block a shard, with the tokenizer of `source`, under its name."""
        if self.rank:
            return
        parts = [self.block(None), *(self.block(i) for i in range(blocks))]
        whole = self.part / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        weight_map, total = {}, 0
        for number, part in enumerate(parts, 1):
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            for key, size in _keys(part / "model.safetensors"):
                weight_map[key] = name
                total += size
            os.link(part / "model.safetensors", whole / name)
        for file in self.block(None).iterdir():
            if file.suffix == ".json" and file.name != _INDEX:
                shutil.copy2(file, whole / file.name)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (whole / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (whole / "oneshot.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        copy_companions(source, whole)
        if self.folder.is_dir():
            self.folder.rmdir()
        os.replace(whole, self.folder)
        # Without it what is left of the parts is no run that could go on.
        (self.part / _STATE).unlink()
        shutil.rmtree(self.part)


def _keys(path: Path) -> Iterator[tuple[str, int]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for key in file.keys():
            part = file.get_slice(key)
            size = torch.Size(part.get_shape()).numel()
            yield key, size * _WIDTHS.get(part.get_dtype(), 4)


_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def refuse_whole(blocks: Sequence[str], source: str) -> None:
    """Refuse a model without blocks that could be read one at a time.

    Raises:
        ArchitectureError: always where there are none.
    """
    if list(blocks) == [WHOLE]:
        raise ArchitectureError(
            f"expected a model of blocks that run one after the other, found none in {source!r}; load it and pass it"
        )
