"""Metrics of tasks; those that a well-kept package has are that package's.

Level: outside. All are fractions (-1 to 1) but losses, perplexities and squared errors.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_compress.imports import is_available, require


def accuracy(prediction: Any) -> dict[str, float]:
    """`compute_metrics` of the Trainer for one class a row."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def multi_label_f1(prediction: Any) -> dict[str, float]:
    """`compute_metrics` for any number of classes a row: F1 with each class taken from a probability of 0.5 on.

    Micro counts over all classes together, macro averages over classes; a class that is neither there nor predicted
    has F1 0.
    """
    chosen, right = prediction.predictions > 0, np.asarray(prediction.label_ids) > 0.5
    both, either = (chosen & right).sum(0), chosen.sum(0) + right.sum(0)
    macro = np.where(either > 0, 2 * both / np.maximum(either, 1), 0.0).mean()
    return {"f1_micro": float(2 * both.sum() / max(either.sum(), 1)), "f1_macro": float(macro)}


def regression(prediction: Any) -> dict[str, float]:
    """`compute_metrics` for one number a row: mean squared error, Pearson's and Spearman's correlation.

    A correlation with a constant is 0.
    """
    found = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1)
    right = np.asarray(prediction.label_ids, dtype=np.float64).reshape(-1)
    return {
        "mse": float(np.square(found - right).mean()),
        "pearson": pearson(found, right),
        "spearman": spearman(found, right),
    }


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two vectors, 0 if one is constant."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation of two vectors, 0 if one is constant; equal values share a rank.

    Raises:
        MissingDependencyError: if scipy is not installed.
    """
    require("scipy", "rank correlations")
    from scipy.stats import rankdata

    return pearson(rankdata(one), rankdata(other))


def is_entity_scheme(names: Iterable[str]) -> bool:
    """Say whether tags mark entities: O, and others that begin with B-, I-, E-, S-, L- or U-."""
    others = [n for n in names if n != "O"]
    return bool(others) and all(re.match(r"[BIESLU]-", n) for n in others)


def tag_metrics(found: Sequence[Sequence[str]], right: Sequence[Sequence[str]], entities: bool) -> dict[str, float]:
    """Return F1, precision and recall over whole entities as conlleval counts them, and the accuracy over words.

    F1 comes first: the first metric is what pictures show and searches look at.

    Args:
        found: predicted tags of the words of each text.
        right: the true ones.
        entities: whether tags mark entities (IOB and its kin).

    Raises:
        MissingDependencyError: if seqeval is not installed and there are entities.
    """
    pairs = [pair for one, other in zip(found, right, strict=True) for pair in zip(one, other, strict=True)]
    metrics = {"accuracy": sum(a == b for a, b in pairs) / max(1, len(pairs))}
    if not entities:
        return metrics
    require("seqeval", "scores of entities")
    from seqeval.metrics import f1_score, precision_score, recall_score

    scores = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: float(score(right, found, zero_division=0)) for name, score in scores.items()} | metrics


def answer_metrics(found: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD's exact match and F1: of each question the best over its right answers, averaged over questions.

    Source: Rajpurkar et al. 2016, section 6.1.
    """
    scores = [
        (max(float(_plain(a) == _plain(b)) for b in answers), max(_overlap(_plain(a), _plain(b)) for b in answers))
        for a, answers in zip(found, right, strict=True)
    ]
    exact, f1 = (sum(s[i] for s in scores) / max(1, len(scores)) for i in (0, 1))
    return {"exact_match": exact, "f1": f1}


def _plain(answer: str) -> list[str]:
    """Return the words of an answer without case, punctuation and articles."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _overlap(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    shared = sum((Counter(found) & Counter(right)).values())
    return 2 * shared / (len(found) + len(right))


def written_metrics(found: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Return how often a text is exactly right, chrF if sacrebleu is installed, ROUGE-L if rouge_score is (0-1)."""
    metrics = {"exact_match": sum(a.strip() == b.strip() for a, b in zip(found, right, strict=True)) / len(right)}
    if is_available("sacrebleu"):
        from sacrebleu import corpus_chrf

        metrics["chrf"] = corpus_chrf(list(found), [list(right)]).score / 100
    if is_available("rouge_score"):
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"])
        scores = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(found, right, strict=True)]
        metrics["rouge_l"] = sum(scores) / len(scores)
    return metrics
