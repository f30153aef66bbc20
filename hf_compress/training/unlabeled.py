"""Batches of unlabelled data beside the labelled ones.

Level: glue. A batch is a function of its number, so a resumed run goes on with the batches of one that never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from hf_compress.distillation.alignment import input_names, plain_model
from hf_compress.distillation.teacher import LABELS
from hf_compress.errors import DataError


class UnlabeledBatches:
    """Shuffled batches of a dataset, one epoch after another, without labels.

    Args:
        dataset: rows as mappings, with a length.
        collator: makes a batch of a list of rows.
        model: whose forward call says which columns are inputs.
        batch_size: rows of a batch on each process, at least 1.
        seed: of the order.
        rank: of this process.
        world: number of processes; each gets other rows.
        more: names of columns that only a teacher takes.

    Raises:
        DataError: if the dataset is empty, has no length, or no column that the model takes.
    """

    def __init__(
        self,
        dataset: Any,
        collator: Callable,
        model: nn.Module,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        more: Collection[str] = (),
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError("unlabeled_dataset must have a length and rows by number; a stream has neither")
        if len(dataset) == 0:
            raise DataError("unlabeled_dataset is empty; expected at least one row")
        self._dataset, self._collator = dataset, collator
        self._columns = {*input_names(model), *more} - LABELS
        if not self._row(0):
            raise DataError(
                f"unlabeled_dataset has the columns {sorted(dataset[0])}, and none is an input of "
                f"{type(model).__name__}; prepare it as the training dataset was"
            )
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, number: int) -> dict[str, Any]:
        """Return batch `number`, from 0, of this process, on the CPU."""
        first = (number * self._world + self._rank) * self._size
        rows = [self._row(self._index(position)) for position in range(first, first + self._size)]
        return {k: v for k, v in self._collator(rows).items() if k not in LABELS}

    def _row(self, index: int) -> dict[str, Any]:
        return {k: v for k, v in self._dataset[index].items() if k in self._columns}

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self._dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._dataset), generator=generator)
        return int(self._order[place])


def unlabeled_batches(trainer: Any, dataset: Any, ratio: float, more: Collection[str] = ()) -> UnlabeledBatches:
    """Return batches of `dataset` for `trainer`, with `ratio` unlabelled rows for each labelled one; see the class."""
    args = trainer.args
    size = max(1, round(ratio * args.per_device_train_batch_size))
    model = trainer.accelerator.unwrap_model(trainer.model)
    return UnlabeledBatches(
        dataset,
        trainer.data_collator,
        plain_model(model),
        size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        rank=args.process_index,
        world=args.world_size,
        more=more,
    )
