"""How predictions and labels of a model correspond, decided from what the model is.

Level: state.
"""

from __future__ import annotations

from torch import nn

from hf_compress.distillation.reduce import CAUSAL, ROWS, TOKENS
from hf_compress.errors import UnsupportedError


def alignment_of(model: nn.Module) -> str:
    """Return "rows", "tokens" or "causal" for the task head of `model`.

    A plain `nn.Module` counts as "rows"; give it a `transformers` config to say otherwise.
    """
    from transformers.models.auto import modeling_auto as auto

    name = type(model).__name__
    if name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return TOKENS if is_encoder_decoder else CAUSAL
    per_token = (
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return TOKENS if any(name in mapping.values() for mapping in per_token) else ROWS


def refuse_unsupported_task(model: nn.Module) -> None:
    """Raise if a softmax over the last axis of the logits would be the wrong distribution for this model.

    Raises:
        UnsupportedError: for question answering, multi-label classification and regression.
    """
    from transformers.models.auto import modeling_auto as auto

    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    found = None
    if type(model).__name__ in auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values():
        found = "question answering (two heads)"
    elif problem in ("multi_label_classification", "regression"):
        found = problem.replace("_", " ")
    elif config is not None and getattr(config, "num_labels", 2) == 1:
        found = "regression (one label)"
    if found:
        raise UnsupportedError(
            f"this version distils softmax outputs: classification with one label a sample or token, and language "
            f"models; found {found}. Train without distillation, or with pruning only"
        )
