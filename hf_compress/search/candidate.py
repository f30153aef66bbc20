"""One answer to a budget: what is cut, and in which form it leaves.

Level: outside.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.errors import ArchitectureError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.task import training_batches

# Fractions of the FFN neurons and heads, and of the layers, that are tried.
KEEPS = (1.0, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25, 0.15)
DEPTHS = (1.0, 2 / 3, 1 / 2)
_ROUNDS = 6


@dataclass(frozen=True)
class Candidate:
    """What is cut and what it becomes.

    Args:
        form: name of a form.
        keep: fraction of the FFN neurons and, where each layer may have its own, of the heads, 0-1.
        layers: that stay; None: all.
        has_own_vocabulary: whether only tokens of the training data stay.
    """

    form: str
    keep: float = 1.0
    layers: int | None = None
    has_own_vocabulary: bool = False

    def __str__(self) -> str:
        parts = [self.form]
        parts += [f"{100 * self.keep:.0f} % of the units"] if self.keep < 1 else []
        parts += [f"{self.layers} layers"] if self.layers else []
        parts += ["tokens of the data"] if self.has_own_vocabulary else []
        return ", ".join(parts)

    @property
    def folder_name(self) -> str:
        """The same as the name of a file."""
        parts = [self.form, f"{100 * self.keep:.0f}", f"{self.layers or 'all'}"]
        return "-".join([*parts, *(["tokens"] if self.has_own_vocabulary else [])])

    @property
    def cut(self) -> Candidate:
        """The same without its form: candidates with equal ones share a model before it leaves."""
        return dataclasses.replace(self, form="")


class Cutter:
    """Cuts a model as candidates say, without training.

    Args:
        source: folder or Hub id of the model.
        task: the data.
        samples: training samples that decide what goes.
        seed: of their choice.
    """

    def __init__(self, source: str, task: TaskConfig, samples: int, seed: int) -> None:
        self.config, self.samples, self.seed = task, samples, seed
        self.model, self.task = load_for_task(source, task)
        self.layers = self._layer_count()
        self._own = self._with_own_vocabulary()

    @property
    def has_vocabulary(self) -> bool:
        """Whether the vocabulary can be cut."""
        return self._own is not None

    def parent(self, candidate: Candidate) -> tuple[Any, Any]:
        """Return the whole model that a candidate is cut from, its teacher, and the task with its tokens."""
        return self._own if candidate.has_own_vocabulary and self._own else (self.model, self.task)

    def cut(self, candidate: Candidate, layout: str, rounds: int = _ROUNDS, samples: int | None = None) -> Any:
        """Return the cut model.

        Args:
            candidate: what to cut.
            layout: "per_layer" or "uniform".
            rounds: in how many steps units go.
            samples: that decide what goes; None: as many as there are for that.
        """
        from hf_compress.pruning.oneshot.api import prune_oneshot
        from hf_compress.pruning.oneshot.config import OneShotConfig

        model, task = self.parent(candidate)
        keep: dict[str, Any] = {} if candidate.layers is None else {"layers": candidate.layers}
        keep |= _units(candidate, layout) if candidate.keep < 1 else {}
        if not keep:
            return copy.deepcopy(model)
        config = OneShotConfig(keep=keep, rounds=rounds, layout=layout)
        return prune_oneshot(model, config, self.batches(task, samples))

    def sketch(self, candidate: Candidate, layout: str) -> Any:
        """Return a model of the sizes that `cut` gives it, fast: for bytes and times, not for predictions."""
        from hf_compress.architecture.shrink import shrink
        from hf_compress.pruning.oneshot.api import prune_oneshot
        from hf_compress.pruning.oneshot.config import OneShotConfig

        model, task = self.parent(candidate)
        if candidate.layers is not None:
            model = shrink(model, layers=candidate.layers)
        if candidate.keep == 1:
            return copy.deepcopy(model)
        config = OneShotConfig(
            keep=_units(candidate, layout), criterion="magnitude", repair=None, rounds=1, layout=layout
        )
        return prune_oneshot(model, config, self.batches(task, 1))

    def batches(self, task: Any, samples: int | None = None, size: int = 32) -> list[dict[str, Any]]:
        """Return training samples as batches."""
        return training_batches(task, samples or self.samples, size, self.seed)

    def _layer_count(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "num_hidden_layers", 1))

    def _with_own_vocabulary(self) -> tuple[Any, Any] | None:
        """Return the model and the task with the tokens of the training data; None where that is not possible."""
        from hf_compress.architecture.vocabulary import shrink_vocabulary
        from hf_compress.recipes.tasks import build_task

        texts = self._texts()
        if not texts:
            return None
        try:
            smaller = shrink_vocabulary(self.model, self.task.processing_class, texts)
        except ArchitectureError:
            return None
        with tempfile.TemporaryDirectory() as folder:
            smaller.tokenizer.save_pretrained(folder)
            return smaller.model.eval(), build_task(self.config, folder)

    def _texts(self) -> list[str]:
        """Return the training texts as the model reads them; none where it reads no text."""
        rows = self.task.rows["train"]
        names = getattr(rows, "column_names", ())
        if "input_ids" not in names:
            return []
        decode = self.task.processing_class.decode
        return [decode(ids, skip_special_tokens=True) for ids in rows["input_ids"]]


def _units(candidate: Candidate, layout: str) -> dict[str, float]:
    # Heads go alone only where each layer may have its own number of them.
    return dict.fromkeys(("ffn", "heads") if layout == "per_layer" else ("ffn",), candidate.keep)


def load_for_task(source: str, config: TaskConfig) -> tuple[Any, Any]:
    """Return a saved model, with the head that a task needs and in eval mode, and the task."""
    import transformers

    from hf_compress.recipes.tasks import build_task

    task = build_task(config, source)
    auto = getattr(transformers, task.auto_class)
    return auto.from_pretrained(source, trust_remote_code=False).eval(), task


def candidates(cutter: Cutter, forms: Mapping[str, Any]) -> list[Candidate]:
    """Return all combinations of what can be cut and of the forms."""
    depths = sorted({max(1, round(cutter.layers * d)) for d in DEPTHS}, reverse=True)
    layers = [None if n == cutter.layers else n for n in depths]
    tokens = [False, True] if cutter.has_vocabulary else [False]
    return [Candidate(f, k, n, v) for f in forms for k in KEEPS for n in layers for v in tokens]


def write(candidate: Candidate, form: Any, model: Any, task: Any, folder: Path, batches: Any) -> Path:
    """Write a candidate's model to a folder, whole or not at all."""
    from hf_compress.output import whole_folder

    if not folder.exists():
        with whole_folder(folder) as part:
            form(model, task.processing_class, part, batches)
    return folder
