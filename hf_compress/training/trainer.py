"""The Trainer drop-ins.

Level: glue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Seq2SeqTrainer, Trainer

from hf_compress.config import CompressionConfig
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.ensemble import TeacherSource
from hf_compress.pruning.config import PruningConfig
from hf_compress.training.mixin import CompressionMixin


class CompressionTrainer(CompressionMixin, Trainer):
    """`transformers.Trainer` with `compression=CompressionConfig(...)` and `teacher=`."""


class Seq2SeqCompressionTrainer(CompressionMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with `compression=CompressionConfig(...)` and `teacher=`."""


class DistillationTrainer(CompressionTrainer):
    """A Trainer that learns from a teacher.

    Args:
        *args: of `Trainer`.
        distillation: temperature and weights; the defaults if not given.
        teacher: a model, a folder or a Hub id, or a list of these.
        **kwargs: of `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        distillation: DistillationConfig | None = None,
        teacher: TeacherSource | Sequence[TeacherSource] | None = None,
        **kwargs: Any,
    ) -> None:
        config = CompressionConfig(distillation=distillation or DistillationConfig())
        super().__init__(*args, compression=config, teacher=teacher, **kwargs)


class PruningTrainer(CompressionTrainer):
    """A Trainer that prunes gradually.

    Args:
        *args: of `Trainer`.
        pruning: what to prune, how far and when; the defaults if not given.
        **kwargs: of `Trainer`.
    """

    def __init__(self, *args: Any, pruning: PruningConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, compression=CompressionConfig(pruning=pruning or PruningConfig()), **kwargs)
