"""hf_compress: distil, prune, shrink, quantize, measure and push Hugging Face models, in the Trainer you have.

Names are loaded on first use (PEP 562), so importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "CompressionConfig": "config",
    "CacheConfig": "distillation.config",
    "DistillationConfig": "distillation.config",
    "PruningConfig": "pruning.config",
    "QuantizationConfig": "quantization.config",
    "CompressionMixin": "training.mixin",
    "CompressionTrainer": "training.trainer",
    "DistillationTrainer": "training.trainer",
    "PruningTrainer": "training.trainer",
    "Seq2SeqCompressionTrainer": "training.trainer",
    "EmbeddingTrainer": "training.embedding",
    "PruningCallback": "pruning.callback",
    "merge_adapter": "pruning.adapters",
    "OneShotConfig": "pruning.oneshot.config",
    "calibration_batches": "pruning.oneshot.calibration",
    "prune_oneshot": "pruning.oneshot.api",
    "inspect_model": "architecture.capability",
    "shrink": "architecture.shrink",
    "shrink_vocabulary": "architecture.vocabulary",
    "save_per_layer": "architecture.per_layer",
    "quantize": "quantization.api",
    "export": "quantization.export",
    "protect_4bit": "quantization.bnb",
    "quantization_sensitivity": "quantization.sensitivity",
    "mixed_precision": "quantization.sensitivity",
    "recovery_adapter": "quantization.recovery",
    "merge_recovered": "quantization.recovery",
    "cache_teacher": "distillation.cache",
    "choose_logit_weight": "training.choose",
    "make_student": "distillation.student",
    "measure": "measurement.api",
    "compare": "report.compare",
    "create_card": "hub.card",
    "push": "hub.push",
    "push_pair": "hub.pair",
    "run_recipe": "recipes.recipe",
    "fit_budget": "search.budget",
    "sensitivity": "search.sensitivity",
    "share_out": "search.sensitivity",
    "sweep": "search.sweep",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from hf_compress.architecture.capability import inspect_model as inspect_model
    from hf_compress.architecture.per_layer import save_per_layer as save_per_layer
    from hf_compress.architecture.shrink import shrink as shrink
    from hf_compress.architecture.vocabulary import shrink_vocabulary as shrink_vocabulary
    from hf_compress.config import CompressionConfig as CompressionConfig
    from hf_compress.distillation.cache import cache_teacher as cache_teacher
    from hf_compress.distillation.config import CacheConfig as CacheConfig
    from hf_compress.distillation.config import DistillationConfig as DistillationConfig
    from hf_compress.distillation.student import make_student as make_student
    from hf_compress.hub.card import create_card as create_card
    from hf_compress.hub.pair import push_pair as push_pair
    from hf_compress.hub.push import push as push
    from hf_compress.measurement.api import measure as measure
    from hf_compress.pruning.adapters import merge_adapter as merge_adapter
    from hf_compress.pruning.callback import PruningCallback as PruningCallback
    from hf_compress.pruning.config import PruningConfig as PruningConfig
    from hf_compress.pruning.oneshot.api import prune_oneshot as prune_oneshot
    from hf_compress.pruning.oneshot.calibration import calibration_batches as calibration_batches
    from hf_compress.pruning.oneshot.config import OneShotConfig as OneShotConfig
    from hf_compress.quantization.api import quantize as quantize
    from hf_compress.quantization.bnb import protect_4bit as protect_4bit
    from hf_compress.quantization.config import QuantizationConfig as QuantizationConfig
    from hf_compress.quantization.export import export as export
    from hf_compress.quantization.recovery import merge_recovered as merge_recovered
    from hf_compress.quantization.recovery import recovery_adapter as recovery_adapter
    from hf_compress.quantization.sensitivity import mixed_precision as mixed_precision
    from hf_compress.quantization.sensitivity import quantization_sensitivity as quantization_sensitivity
    from hf_compress.recipes.recipe import run_recipe as run_recipe
    from hf_compress.report.compare import compare as compare
    from hf_compress.search.budget import fit_budget as fit_budget
    from hf_compress.search.sensitivity import sensitivity as sensitivity
    from hf_compress.search.sensitivity import share_out as share_out
    from hf_compress.search.sweep import sweep as sweep
    from hf_compress.training.choose import choose_logit_weight as choose_logit_weight
    from hf_compress.training.embedding import EmbeddingTrainer as EmbeddingTrainer
    from hf_compress.training.mixin import CompressionMixin as CompressionMixin
    from hf_compress.training.trainer import CompressionTrainer as CompressionTrainer
    from hf_compress.training.trainer import DistillationTrainer as DistillationTrainer
    from hf_compress.training.trainer import PruningTrainer as PruningTrainer
    from hf_compress.training.trainer import Seq2SeqCompressionTrainer as Seq2SeqCompressionTrainer


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
