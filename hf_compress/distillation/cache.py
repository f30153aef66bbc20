"""`cache_teacher`: run a teacher once over a dataset.

Level: state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_compress.distillation.alignment import alignment_of, input_names
from hf_compress.distillation.cache_file import CacheWriter
from hf_compress.distillation.cached import StoredOutputs, fingerprint_model
from hf_compress.distillation.config import CacheConfig
from hf_compress.distillation.teacher import LABELS, Teacher, has_vocabulary_head, load_teacher_model
from hf_compress.distillation.tokens import fingerprint, vocabulary
from hf_compress.errors import DataError, TeacherError
from hf_compress.output import full_disk_explained

# More classes than this are stored by their largest and a sample.
_MANY_CLASSES = 1024
_WINDOW = 32  # batches that are sorted by length together and make a part


def cache_teacher(
    teacher: Any,
    dataset: Any,
    folder: str | Path,
    config: CacheConfig | None = None,
    *,
    collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Path:
    """Write what `teacher` says of each row of `dataset`, for `DistillationConfig(cache=folder)`.

    Called again after an interruption it goes on; under several processes each takes its share.

    Args:
        teacher: a model, a folder or a Hub id.
        dataset: rows as mappings, with a length, as the Trainer will get them.
        folder: to write to; new, empty, or of the same call before.
        config: what is kept; the defaults if not given.
        collator: makes a batch of a list of rows, as the Trainer's will; without randomness. By default that of the
            Trainer: padding if there is a tokenizer.
        processing_class: tokenizer of the data; its vocabulary is remembered and compared.
        device: where to run; by default a GPU if there is one.
        progress: show a bar.

    Raises:
        CheckpointError: if `folder` holds something else, or a cache with other settings.
        DataError: if `dataset` is empty or has no column that the teacher takes.
        TeacherError: if the teacher is a plain module, without a config.
        DiskFullError: if there is no room; what is there stays for the next call.
    """
    config = config or CacheConfig()
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError("the dataset must have a length and rows by number; a stream has neither")
    if len(dataset) == 0:
        raise DataError("the dataset is empty; expected at least one row")
    model = teacher if isinstance(teacher, torch.nn.Module) else load_teacher_model(teacher)
    if getattr(model, "config", None) is None:
        raise TeacherError(
            f"a cache says which labels its logits are of, and {type(model).__name__} has no config that says it; "
            "pass the model itself as teacher"
        )
    settings = _settings(model, processing_class, len(dataset))
    top_k = config.top_k or (32 if settings["classes"] > _MANY_CLASSES else 0)
    if top_k:
        kept = {"tail_draws": config.tail_draws, "temperature": config.temperature, "seed": config.seed}
        settings |= {"top_k": top_k, **kept}
    rows = _Rows(dataset, *_process(), settings["inputs"])
    writer = _shared_writer(Path(folder), settings)
    asked = Teacher(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    collate = collator or _default_collator(processing_class)
    with full_disk_explained(f"{folder} is not complete; free some space and call cache_teacher again, which goes on"):
        _fill(writer, settings, asked, rows, collate, config.batch_size, progress)
    return Path(folder)


def _shared_writer(folder: Path, settings: Mapping[str, Any]) -> CacheWriter:
    rank, _ = _process()
    writer = CacheWriter(folder, settings) if rank == 0 else None
    _wait()
    return writer or CacheWriter(folder, settings, is_first=False)


def _settings(model: Any, processing_class: Any, rows: int) -> dict[str, Any]:
    return {
        "teacher": fingerprint_model(model),
        "tokenizer": fingerprint(vocabulary(processing_class)),
        "alignment": alignment_of(model),
        "is_encoder_decoder": bool(getattr(model.config, "is_encoder_decoder", False)),
        "inputs": sorted(input_names(model) - LABELS),
        "classes": _classes(model),
        "has_vocabulary": has_vocabulary_head(model),
        "id2label": {str(k): v for k, v in model.config.id2label.items()},
        "rows": rows,
    }


def _fill(
    writer: CacheWriter,
    settings: Mapping[str, Any],
    teacher: Teacher,
    rows: _Rows,
    collator: Callable,
    batch_size: int,
    progress: bool,
) -> None:
    from tqdm.auto import tqdm

    rank, _ = _process()
    known, stored = writer.known(), StoredOutputs(settings)
    bar = tqdm(total=len(rows), desc="teacher", unit="rows", disable=not progress)
    for start in range(0, len(rows), _WINDOW * batch_size):
        window = sorted(rows[start : start + _WINDOW * batch_size], key=_length)
        columns: dict[str, list[Any]] = {}
        for first in range(0, len(window), batch_size):
            batch = dict(collator(window[first : first + batch_size]))
            keys = stored.keys(batch)
            fresh = [i for i, key in enumerate(keys) if key not in known and key not in keys[:i]]
            if fresh:
                chosen = {k: v[fresh] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()}
                device = next(teacher.model.parameters()).device
                placed = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in chosen.items()}
                found = stored.columns(teacher.outputs(placed), chosen, [keys[i] for i in fresh])
                for name, values in found.items():
                    columns.setdefault(name, []).extend(values)
                known.update(found["key"])
            bar.update(len(keys))
        if columns:
            writer.add(columns, f"{rank:03d}")
    bar.close()
    _wait()
    if rank == 0:
        writer.finish()
    _wait()


class _Rows:
    """The share of a dataset that one process has."""

    def __init__(self, dataset: Any, rank: int, world: int, columns: Sequence[str]) -> None:
        self._dataset, self._indices, self._columns = dataset, range(rank, len(dataset), world), {*columns, *LABELS}
        if not set(dataset[0]) & set(columns):
            raise DataError(
                f"the dataset has the columns {sorted(dataset[0])}, and none is an input of the teacher; prepare it "
                "as the training dataset is"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, which: slice) -> Iterator[dict[str, Any]]:
        for i in self._indices[which]:
            yield {k: v for k, v in self._dataset[i].items() if k in self._columns}


def _classes(model: Any) -> int:
    if has_vocabulary_head(model):
        layer = model.get_output_embeddings()
        return getattr(layer, "out_features", None) or layer.weight.shape[0]
    return int(model.config.num_labels)


def _default_collator(processing_class: Any) -> Callable:
    from transformers import DataCollatorWithPadding, default_data_collator

    return DataCollatorWithPadding(processing_class) if hasattr(processing_class, "pad") else default_data_collator


def _length(row: Mapping[str, Any]) -> int:
    ids = row.get("input_ids")
    return len(ids) if ids is not None else 0


def _process() -> tuple[int, int]:
    """Return the number of this process and how many there are, as torchrun started them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState()
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _wait() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
