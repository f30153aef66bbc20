"""Tasks of EleutherAI's lm-evaluation-harness, by its own library, as metrics of a record.

Level: state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hf_compress.errors import ConfigError
from hf_compress.imports import require


def harness_metrics(
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> Callable[[nn.Module], dict[str, float]]:
    """Return what `measure` takes as `evaluate`: the metrics of some tasks of lm-eval.

    Args:
        tokenizer: of the models.
        tasks: names of tasks.
        include_path: folder with tasks of one's own (YAML); then only these are known.
        limit: samples of each task; None: all.
        batch_size: samples at once.

    Returns:
        A function from a causal language model to {"TASK METRIC": value}, standard errors left out.

    Raises:
        MissingDependencyError: if lm-eval is not installed.
        ConfigError: if there is no task of that name.
    """
    require("lm_eval", "tasks of the lm-evaluation-harness")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        known = ", ".join(sorted(manager.all_tasks)[:10])
        raise ConfigError(f"lm-eval: expected names of tasks, found {unknown or 'none'}; there are: {known} ...")

    def evaluate(model: nn.Module) -> dict[str, float]:
        """Return the metrics of a causal language model."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        device = str(next(model.parameters()).device)
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=device)
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0
        )
        return {
            f"{task} {metric.partition(',')[0]}": float(value)
            for task, values in found["results"].items()
            for metric, value in values.items()
            if "," in metric and "stderr" not in metric
        }

    return evaluate
