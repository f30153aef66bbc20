"""Options of knowledge distillation.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hf_compress.options import Options


@dataclass(frozen=True)
class DistillationConfig(Options):
    """loss = task_weight x task loss + logit_weight x T^2 x divergence(teacher / T, student / T) + layer terms.

    The layer terms (`hidden_weight`, `attention_weight`, `relation_weight`, `gram_weight`) compare mapped layers.
    """

    temperature: float = field(default=2.0, metadata={"help": "softmax temperature T of both models, above 0"})
    task_weight: float = field(default=0.5, metadata={"help": "weight of the loss on the labels, at least 0"})
    logit_weight: float = field(default=0.5, metadata={"help": "weight of the divergence between logits, at least 0"})
    divergence: str = field(
        default="forward_kl",
        metadata={
            "help": "divergence between teacher and student logits: forward_kl, reverse_kl, jsd, skewed_kl, "
            "skewed_reverse_kl, soft_cross_entropy, mse, taid"
        },
    )
    divergence_options: Mapping[str, float] = field(
        default_factory=dict, metadata={"help": "options of the divergence by name, such as beta of jsd, each 0-1"}
    )
    chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "rows of a language model's logits that exist at a time, exact; 0: all; by default chosen by "
            "their size where the vocabulary is large"
        },
    )

    hidden_weight: float = field(default=0.0, metadata={"help": "weight of the loss on hidden states, at least 0"})
    hidden_loss: str = field(
        default="mse",
        metadata={"help": "mse (over the teacher's mean square) or cosine; learnt projections if widths differ"},
    )
    attention_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the KL between attention maps, at least 0; needs slow eager attention"},
    )
    relation_weight: float = field(
        default=0.0,
        metadata={"help": "weight of MiniLMv2's query, key and value relations, at least 0; for any two widths"},
    )
    relation_heads: int = field(
        default=0, metadata={"help": "relation heads; 0: as many as divide both widths into pieces of 16 or more"}
    )
    gram_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the difference of cosines between tokens, at least 0; for any two widths"},
    )
    layer_map: str | tuple[str, ...] = field(
        default="uniform",
        metadata={
            "help": "which layers are compared: uniform, last, kept (of a student from make_student), or pairs "
            "'student:teacher' counted from 1 (0: embeddings)"
        },
    )

    teacher_weights: tuple[float, ...] = field(
        default=(), metadata={"help": "weight of each of several teachers, scaled to a sum of 1; empty: equal"}
    )
    teacher_precision: str = field(
        default="",
        metadata={"help": "load a teacher from its folder or id as float16, bfloat16, int8, nf4 or fp4"},
    )
    teacher_device_map: str = field(
        default="",
        metadata={"help": "spread such a teacher over devices: auto, balanced, sequential"},
    )
    cache: str = field(
        default="", metadata={"help": "folder made by cache_teacher, which stands for the teacher; empty: none"}
    )
    on_policy_fraction: float = field(
        default=0.0,
        metadata={"help": "share of batches that the student writes itself and the teacher scores, 0-1 (slow)"},
    )
    on_policy_tokens: int = field(default=64, metadata={"help": "most tokens that the student writes, at least 1"})
    on_policy_temperature: float = field(default=1.0, metadata={"help": "of the student's sampling, above 0"})
    measure_agreement: bool = field(
        default=False, metadata={"help": "evaluate how often student and teacher predict the same (runs the teacher)"}
    )
    unlabeled_ratio: float = field(
        default=1.0, metadata={"help": "rows of unlabeled_dataset for each labelled row, above 0"}
    )
    unlabeled_weight: float = field(
        default=1.0,
        metadata={"help": "weight of the teacher's terms on unlabelled rows, above 0 (the lambda of textbooks)"},
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not self.temperature > 0:
            yield f"temperature must be above 0, found {self.temperature}"
        terms = ("logit_weight", "hidden_weight", "attention_weight", "relation_weight", "gram_weight")
        for name in ("task_weight", *terms):
            if getattr(self, name) < 0:
                yield f"{name} must be at least 0, found {getattr(self, name)}"
        if not any(getattr(self, name) > 0 for name in terms):
            yield f"the teacher would do nothing: give one of {', '.join(terms)} a positive value"
        if self.hidden_loss not in ("mse", "cosine"):
            yield f"hidden_loss must be 'mse' or 'cosine', found {self.hidden_loss!r}"
        if not 0 <= self.on_policy_fraction <= 1:
            yield f"on_policy_fraction must lie in 0-1, found {self.on_policy_fraction}"
        if self.on_policy_tokens < 1:
            yield f"on_policy_tokens must be at least 1, found {self.on_policy_tokens}"
        if self.cache and (self.on_policy_fraction or self.measure_agreement):
            yield "on_policy_fraction and measure_agreement need the teacher itself; a cache knows its examples only"
        for name in ("unlabeled_ratio", "unlabeled_weight", "on_policy_temperature"):
            if not getattr(self, name) > 0:
                yield f"{name} must be above 0, found {getattr(self, name)}"
        if self.chunk_size is not None and self.chunk_size < 0:
            yield f"chunk_size must be at least 0, found {self.chunk_size}"
        if self.teacher_precision not in ("", "float16", "bfloat16", "int8", "nf4", "fp4"):
            yield f"teacher_precision must be float16, bfloat16, int8, nf4 or fp4, found {self.teacher_precision!r}"
        if self.relation_heads < 0:
            yield f"relation_heads must be at least 0, found {self.relation_heads}"


@dataclass(frozen=True)
class CacheConfig(Options):
    """What `cache_teacher` keeps of each position.

    Up to 1,024 classes whole logits are kept, for any temperature and divergence; of more, the largest probabilities
    and draws from the others, which make the gradient of forward KL right in expectation, at this temperature.
    """

    batch_size: int = field(default=32, metadata={"help": "rows that the teacher gets at a time, at least 1"})
    top_k: int = field(
        default=0, metadata={"help": "probabilities kept of each position; 0: all up to 1,024 classes, 32 of more"}
    )
    tail_draws: int = field(
        default=16,
        metadata={"help": "draws from the others, at least 0; without any the student becomes over-confident"},
    )
    temperature: float = field(default=1.0, metadata={"help": "above 0; of the probabilities, not of whole logits"})
    seed: int = field(default=0, metadata={"help": "of the draws"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        for name, least in (("batch_size", 1), ("top_k", 0), ("tail_draws", 0)):
            if getattr(self, name) < least:
                yield f"{name} must be at least {least}, found {getattr(self, name)}"
        if not self.temperature > 0:
            yield f"temperature must be above 0, found {self.temperature}"
