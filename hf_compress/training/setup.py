"""What is checked and set before a run.

Level: glue.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from hf_compress.architecture.modes import evaluating
from hf_compress.config import CompressionConfig
from hf_compress.errors import ConfigError, DataError, UnsupportedError
from hf_compress.quantization.api import check_quantizable, failing_layers
from hf_compress.quantization.schemes import usable_scheme
from hf_compress.training.background import BackgroundPush

logger = logging.getLogger(__name__)


def check_arguments(compression: Any, teacher: Any, unlabeled_dataset: Any = None) -> None:
    """Make sure that `compression`, `teacher` and `unlabeled_dataset` go together.

    Raises:
        ConfigError: if they do not, or there is no such quantization scheme.
        MissingDependencyError: if a package of the scheme is missing.
        QuantizationError: if an option is not for the scheme.
    """
    if compression is not None and not isinstance(compression, CompressionConfig):
        raise ConfigError(
            f"compression must be a CompressionConfig (CompressionConfig.from_dict reads plain data), found "
            f"{type(compression).__name__}"
        )
    if compression is not None and compression.quantization is not None:
        # An unknown scheme or a missing package is refused now, not after training.
        usable_scheme(compression.quantization)
    distillation = compression.distillation if compression is not None else None
    distils = distillation is not None
    if distillation is not None and teacher is None and not distillation.cache:
        raise ConfigError(
            "distillation needs a teacher: pass teacher= a model, a folder or a Hub id, or make a cache of one"
        )
    if unlabeled_dataset is not None and not distils:
        raise ConfigError("unlabeled_dataset is for the teacher's terms, and compression has no distillation")
    if teacher is not None and not distils:
        raise ConfigError("a teacher was given, but compression has no distillation: add DistillationConfig()")


def is_plain_module(model: Any) -> bool:
    """Say whether `model` has no `save_pretrained`: a Trainer saves its weights alone, without a config."""
    return not hasattr(model, "save_pretrained")


def check_model(model: Any, compression: CompressionConfig, push_to_hub: bool) -> None:
    """Refuse, before training, what cannot be done with the model afterwards.

    Raises:
        UnsupportedError: for quantization after training, and for a push, of a plain module.
        QuantizationError: if the scheme does not take the model, or `skip_modules` matches nothing in it.
    """
    if not is_plain_module(model):
        _check_quantization(model, compression)
        return
    if compression.quantization is not None and not compression.quantization.aware:
        raise UnsupportedError(
            f"quantization after training reads a saved transformers model, and {type(model).__name__} is a plain "
            "module; leave it out, and give the trained module to export(..., quantization='static')"
        )
    if push_to_hub:
        refuse_card(model)


def _check_quantization(model: Any, compression: CompressionConfig) -> None:
    config = compression.quantization
    model = model.get_base_model() if hasattr(model, "merge_and_unload") else model
    # What is trained with rounded weights is checked when they are; adapters on codes are saved as adapters.
    if config is not None and not config.aware and not getattr(model, "is_quantized", False):
        scheme = usable_scheme(config)
        with evaluating(model):
            failing = {} if is_zero3() else failing_layers(model, config, scheme)
        check_quantizable(model, config, scheme, failing)


def refuse_card(model: Any) -> None:
    """Raise if nobody could load what a push of `model` would bring to the Hub.

    Raises:
        UnsupportedError: for a plain module.
    """
    if is_plain_module(model):
        raise UnsupportedError(
            f"cards and pushes are for models with a config.json that says how to load them, and "
            f"{type(model).__name__} is a plain module; make it a PreTrainedModel with a config of its own"
        )


def push_without_training_state(trainer: Any) -> None:
    """Put pushes of our own in the place of a Trainer's background pushes, which upload pickles and swallow errors."""
    from transformers.trainer_utils import HubStrategy

    wanted = trainer.args.hub_strategy
    if not trainer.args.push_to_hub or wanted == HubStrategy.END:
        return
    trainer.args = copy.copy(trainer.args)
    # The Trainer itself pushes at the end only, through push_to_hub.
    trainer.args.hub_strategy = HubStrategy.END
    if wanted != HubStrategy.EVERY_SAVE:
        logger.warning(
            "hub_strategy=%r uploads optimizer states for resuming elsewhere, which are pickles: the model of each "
            "checkpoint is pushed, its training state stays here",
            wanted.value,
        )
    repo_id = trainer.hub_model_id or trainer.args.hub_model_id or Path(trainer.args.output_dir).absolute().name
    options = {"private": trainer.args.hub_private_repo, "revision": trainer.args.hub_revision}
    trainer.add_callback(BackgroundPush(repo_id, trainer.args.hub_token, options))


def is_zero3() -> bool:
    """Say whether DeepSpeed shares out the weights."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


def refuse_scheduler(trainer: Any, sides: Sequence[Any]) -> None:
    """Refuse a scheduler of the user's own where parameters beside the model join the optimizer.

    Raises:
        UnsupportedError: with what to do.
    """
    fresh = sum(p.numel() for side in sides for p in side.modules.parameters())
    if fresh and getattr(trainer, "lr_scheduler", None) is not None:
        raise UnsupportedError(
            f"projections between widths, or learned ranges, add {fresh:,} parameters to the optimizer, which a "
            "scheduler made before does not know; pass optimizers=(optimizer, None) and choose lr_scheduler_type"
        )


def refuse_reentrant(args: Any, config: Any) -> None:
    """Refuse layer terms whose gradients get lost in reentrant gradient checkpointing.

    Raises:
        UnsupportedError: with the option to set.
    """
    is_reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if is_reentrant and (config.attention_weight > 0 or config.relation_weight > 0):
        raise UnsupportedError(
            "attention_weight and relation_weight look inside layers, and reentrant gradient checkpointing keeps no "
            "gradient of that; set gradient_checkpointing_kwargs={'use_reentrant': False}"
        )


def refuse_zero3() -> None:
    """Refuse what cannot work where weights are shared out as they are loaded.

    Raises:
        UnsupportedError: under DeepSpeed ZeRO stage 3.
    """
    if is_zero3():
        raise UnsupportedError(
            "DeepSpeed ZeRO stage 3 shares out the weights of every model as it is loaded, the teacher's too, and "
            "puts only the student's together again; distil under ZeRO stage 2, FSDP 2 or DistributedDataParallel"
        )


def refuse_empty(dataset: Any) -> None:
    """Raise if there is nothing to train on.

    Raises:
        DataError: if `dataset` has a length, and it is 0.
    """
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise DataError("the training dataset is empty; expected at least one row")
