"""Options of knowledge distillation.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hf_compress.options import Options


@dataclass(frozen=True)
class DistillationConfig(Options):
    """loss = task_weight x task loss + logit_weight x T^2 x divergence(teacher / T, student / T)."""

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

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not self.temperature > 0:
            yield f"temperature must be above 0, found {self.temperature}"
        for name in ("task_weight", "logit_weight"):
            if getattr(self, name) < 0:
                yield f"{name} must be at least 0, found {getattr(self, name)}"
        if self.logit_weight == 0:
            yield "logit_weight is 0, so the teacher would do nothing; give it a positive weight"
