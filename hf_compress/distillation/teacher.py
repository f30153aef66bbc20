"""`Teacher`: a frozen model as a source of logits, checked against its student before training.

Level: state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.heads import head_modules
from hf_compress.distillation.alignment import input_names
from hf_compress.distillation.head import LanguageHead, require_rows
from hf_compress.errors import TeacherError

# What the inputs of the models of transformers call their labels.
LABELS = {"labels", "label", "label_ids", "start_positions", "end_positions"}
# A vocabulary padded to a multiple of 64 or 128 differs by far less than another tokenizer's does.
_LARGEST_VOCABULARY_PADDING = 0.01


class Teacher:
    """A model in evaluation mode that is asked for logits without gradients.

    Args:
        model: the teacher; it is put into evaluation mode.
        device: where to run it; a model that is quantized or split over devices stays where it is.

    Attributes:
        accepts: names of what its forward call takes.
    """

    is_sampled = False

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        movable = not getattr(model, "is_quantized", False) and getattr(model, "hf_device_map", None) is None
        self.model = model.to(device) if device is not None and movable else model
        self.model.eval()
        self.accepts = input_names(model)
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._needs_labels = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Any], asks: Mapping[str, Any] | None = None) -> Any:
        """Return the outputs for a batch of the student's inputs; what the teacher does not know is left out.

        Args:
            inputs: the batch.
            asks: more arguments of the forward call, such as `output_hidden_states`.
        """
        # Encoder-decoders make their decoder inputs from the labels; nobody else needs labels.
        keep_labels = self._needs_labels and inputs.get("decoder_input_ids") is None
        unwanted = LABELS - ({"labels"} if keep_labels else set())
        chosen = {k: self._cast(v) for k, v in inputs.items() if k in self.accepts and k not in unwanted}
        # A teacher that the student's training touched (a shared module) could have been put into training mode.
        self.model.eval()
        return self.model(**chosen, **(asks or {}))

    def _cast(self, value: Any) -> Any:
        # Images and sounds come in 32 bit, which layers in 16 bit do not take.
        is_half = self._dtype in (torch.float16, torch.bfloat16)
        is_float = isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return value.to(self._dtype) if is_half and is_float else value

    def hidden(self, inputs: Mapping[str, Any], asks: Mapping[str, Any] | None = None) -> tuple[Any, torch.Tensor]:
        """Return the outputs without logits, and what goes into the language-model head instead."""
        with self.head.captured() as found:
            outputs = self.outputs(inputs, asks)
        return outputs, found[0]

    @functools.cached_property
    def head(self) -> LanguageHead:
        """The language-model head."""
        return LanguageHead(self.model)

    @property
    def classes(self) -> int | None:
        """Number of classes of a language-model head; None if it does not say."""
        return getattr(self.head.layer, "out_features", None)

    def try_head(self, batch: Mapping[str, Any]) -> str:
        """Return why logits cannot be made outside the model, found on a few tokens; "" if they can."""
        if self.head.layer is not None:
            self.head.try_out(self.outputs, batch)
        return self.head.problem

    def check(self, student: nn.Module) -> torch.Tensor | None:
        """Make sure that the logits mean the same as the student's; as `check_teacher`."""
        return check_teacher(self.model, student)

    def rows(self, hidden: Any, positions: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """Return the function from rows, among the positions that count, to their logits.

        Args:
            hidden: what `hidden` gave, (batch, length, width).
            positions: bool (batch, length).
        """
        require_rows(hidden, positions, "teacher")
        states = hidden[positions.to(hidden.device)]
        kind = states.device.type
        # Chunks of the student are made outside of mixed precision; the teacher's head is as it is in whole passes.
        mixed, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        @torch.no_grad()
        def logits(rows: slice) -> torch.Tensor:
            with torch.autocast(kind, dtype=dtype, enabled=mixed):
                return self.head.logits(states[rows])

        return logits


def load_teacher_model(source: str | Path, precision: str = "", device_map: str = "") -> nn.Module:
    """Load a teacher from a Hub id or a folder, with the class that its config names.

    Args:
        source: the folder or id.
        precision: "", float16, bfloat16, or with bitsandbytes int8, nf4, fp4.
        device_map: "", or as in `from_pretrained`: auto, balanced, sequential, a device.

    Raises:
        TeacherError: if there is no config, or it names no class of transformers.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        # What a Trainer saves of a plain module has no config.
        raise TeacherError(
            f"the teacher {Path(source).name!r} is no model of transformers: {str(error).splitlines()[0]}; load the "
            "model yourself and pass it as teacher"
        ) from error
    names = config.architectures or []
    model_class = getattr(transformers, names[0], None) if names else None
    if model_class is None:
        raise TeacherError(
            f"the config of teacher {Path(source).name!r} names no class of transformers (architectures={names}); "
            "load the model yourself and pass it as teacher"
        )
    options: dict[str, Any] = {"device_map": device_map} if device_map else {}
    if precision in ("float16", "bfloat16"):
        options["dtype"] = getattr(torch, precision)
    elif precision:
        is_8_bit = precision == "int8"
        four = {} if is_8_bit else {"bnb_4bit_quant_type": precision, "bnb_4bit_compute_dtype": torch.bfloat16}
        with torch.device("meta"):
            heads = head_modules(model_class(config))
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=is_8_bit, load_in_4bit=not is_8_bit, llm_int8_skip_modules=heads, **four
        )
    return model_class.from_pretrained(source, **options)


def check_teacher(teacher: nn.Module, student: nn.Module) -> torch.Tensor | None:
    """Make sure that the logits of both mean the same.

    Returns:
        Where the teacher has the student's labels in another order: for each label of the student, its index in the
        teacher's logits.

    Raises:
        TeacherError: if they are one object, or their labels or vocabularies differ.
    """
    if teacher is student:
        raise TeacherError("teacher and student are the same object; pass a copy (copy.deepcopy) as teacher")
    theirs = getattr(teacher, "config", None)
    if getattr(student, "config", None) is None or theirs is None:
        return None
    vocabulary = theirs.get_text_config().vocab_size if has_vocabulary_head(teacher) else None
    return check_labels(student, dict(theirs.id2label), vocabulary)


def check_labels(student: Any, labels: dict[int, str], vocabulary: int | None) -> torch.Tensor | None:
    """Make sure that a teacher's logits mean the same as the student's; as `check_teacher`.

    Args:
        student: a transformers model.
        labels: the teacher's, by number.
        vocabulary: size of the teacher's, if it is a language model.
    """
    if getattr(student, "config", None) is None:
        # A plain module says nothing of its labels.
        return None
    if not has_vocabulary_head(student):
        return _label_order(dict(student.config.id2label), labels)
    ours = student.config.get_text_config().vocab_size
    if vocabulary is not None and abs(ours - vocabulary) > _LARGEST_VOCABULARY_PADDING * max(ours, vocabulary):
        raise TeacherError(
            f"the student's vocabulary has {ours} entries, the teacher's {vocabulary}: that is more than "
            "padding, so their tokenizers differ; take a teacher with the student's tokenizer"
        )
    return None


def has_vocabulary_head(model: Any) -> bool:
    """Return whether `model` predicts tokens."""
    get = getattr(model, "get_output_embeddings", None)
    return get is not None and get() is not None


def logits_of(outputs: Any) -> torch.Tensor | None:
    """Return the logits in the output of a model: by name, or the first tensor of a tuple that is no loss."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    parts: Sequence[Any] = outputs if isinstance(outputs, (tuple, list)) else ()
    return next((o for o in parts if isinstance(o, torch.Tensor) and o.dim() > 1), None)


def _label_order(ours: dict[int, str], theirs: dict[int, str]) -> torch.Tensor | None:
    if len(ours) != len(theirs):
        raise TeacherError(
            f"the student has {len(ours)} labels {_some(ours)}, the teacher {len(theirs)} {_some(theirs)}; "
            "take a teacher trained for the same labels"
        )
    # Names that nobody chose (LABEL_0 ...) say nothing about meaning.
    chosen = [names for names in (ours, theirs) if any(n != f"LABEL_{i}" for i, n in names.items())]
    if len(chosen) < 2 or ours == theirs:
        return None
    if sorted(ours.values()) != sorted(theirs.values()) or len(set(ours.values())) < len(ours):
        raise TeacherError(
            f"the student's labels are {_some(ours)}, the teacher's {_some(theirs)}; take a teacher trained for the "
            "same labels, or give both the same id2label"
        )
    index = {name: i for i, name in theirs.items()}
    return torch.tensor([index[ours[i]] for i in range(len(ours))])


def _some(labels: dict[int, str]) -> str:
    names = [labels[i] for i in sorted(labels)]
    return "(" + ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") + ")"
