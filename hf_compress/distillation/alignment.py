"""How predictions and labels of a model correspond, and what its outputs are, decided from what the model is.

Level: state.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from hf_compress.distillation.reduce import CAUSAL, NUMBERS, ROWS, SIGMOID, SOFTMAX, SPANS, TOKENS
from hf_compress.errors import UnsupportedError


def alignment_of(model: nn.Module) -> str:
    """Return ROWS, TOKENS, CAUSAL or SPANS for the task head of `model`.

    A plain `nn.Module` counts as ROWS; give it a `transformers` config to say otherwise.
    """
    from transformers.models.auto import modeling_auto as auto

    names = _classes(model)
    if names & set(auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()):
        return SPANS
    # Of images and sounds too, which go in before the text or into an encoder.
    writers = ("CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    if any(names & set(getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {}).values()) for kind in writers):
        is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return TOKENS if is_encoder_decoder else CAUSAL
    per_token = (
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return TOKENS if any(names & set(mapping.values()) for mapping in per_token) else ROWS


def refuse_unaligned(model: nn.Module) -> None:
    """Refuse to distil predictions that are not one for each label.

    Raises:
        UnsupportedError: for frames of sound, pixels and boxes.
    """
    from transformers.models.auto import modeling_auto as auto

    kinds = {
        "CTC": "frames, and labels come without their places",
        "SEMANTIC_SEGMENTATION": "pixels",
        "UNIVERSAL_SEGMENTATION": "pixels",
        "INSTANCE_SEGMENTATION": "pixels",
        "OBJECT_DETECTION": "boxes",
    }
    for kind, what in kinds.items():
        if _classes(model) & set(getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {}).values()):
            raise UnsupportedError(
                f"expected predictions for rows or tokens, found {type(plain_model(model)).__name__}, which predicts "
                f"{what}; such logits cannot be distilled: prune and quantize it without a teacher"
            )


def _classes(model: nn.Module) -> set[str]:
    # A user's subclass of a model counts as that model.
    return {base.__name__ for base in type(plain_model(model)).__mro__}


def outputs_of(model: nn.Module, labels: torch.Tensor | None) -> str:
    """Return SOFTMAX, SIGMOID or NUMBERS: what the logits of `model` are.

    transformers' sequence classifiers decide by `config.problem_type`, and where that is not set by the number and
    type of the labels; so does this.

    Args:
        model: any module.
        labels: of the batch; None if there are none.
    """
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem is not None:
        found = {"regression": NUMBERS, "multi_label_classification": SIGMOID}
        return found.get(problem, SOFTMAX)
    if alignment_of(model) != ROWS:
        return SOFTMAX
    if getattr(config, "num_labels", 2) == 1:
        return NUMBERS
    return SIGMOID if labels is not None and labels.is_floating_point() else SOFTMAX


def input_names(model: nn.Module) -> set[str]:
    """Return what the forward call of `model` takes by name, also inside the wrappers of PEFT and torch.compile."""
    inner = plain_model(getattr(model, "_orig_mod", model))
    return set(inspect.signature(inner.forward).parameters)


def plain_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside PEFT's wrapper, or `model` itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model
