"""Scores from labels and probabilities, with scikit-learn. No torch.

A score that the data leave undefined is None with a reason, never 0 or 1 by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.jobs.score_names import SCORES, THRESHOLDED

Array = npt.NDArray[Any]
ECE_BINS = 10
# Without a window of this class in the labels, these have no meaning.
NEED_POSITIVES = ("macro_f1", "f1", "precision", "recall", "balanced_accuracy", "mcc", "pr_auc")
NEED_NEGATIVES = ("macro_f1", "precision", "specificity", "balanced_accuracy", "mcc", "pr_auc")


def macro_f1(counts: Sequence[float]) -> float | None:
    """Mean of both classes' F1 from counts [tn, fp, fn, tp]; None where the labels hold one class
    only.
    """
    tn, fp, fn, tp = counts
    if tn + fp == 0 or tp + fn == 0:
        return None
    return (tn / (tn + (fp + fn) / 2) + tp / (tp + (fp + fn) / 2)) / 2


def final_scores(
    y: Array, p: Array, *, loss: float | None = None, threshold: float | Array = 0.5
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Scores of probabilities `p` [windows] for labels `y` [windows], a window counting as positive
    from `threshold` up (one for all, or one a window).

    Returns (every name of SCORES -> value or None, name -> reason for each None). pr_auc is average
    precision.
    """
    from sklearn import metrics as sk  # a second and more: only when a score is due

    y, p = np.asarray(y).astype(np.int64), np.asarray(p, dtype=np.float64)
    scores, undefined = threshold_scores(y, p, threshold)
    others: dict[str, Callable[[], Any]] = {
        "pr_auc": lambda: sk.average_precision_score(y, p),
        "roc_auc": lambda: sk.roc_auc_score(y, p),
        "brier": lambda: np.mean((p - y) ** 2),
        "ece": lambda: calibration_error(y, p),
    }
    undefined |= {
        name: why for name, why in _undefined(y, p >= threshold).items() if name in others
    }
    undefined |= {"loss": "not computed"} if loss is None else {}
    scores |= {"loss": loss} | {
        name: None if name in undefined else float(compute()) for name, compute in others.items()
    }
    return {name: scores[name] for name in SCORES}, undefined


def threshold_scores(
    y: Array, p: Array, threshold: float | Array
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The scores of THRESHOLDED alone, as `final_scores` gives them, in one pass of scikit-learn
    over the labels.
    """
    from sklearn import metrics as sk

    y, predicted = np.asarray(y).astype(np.int64), np.asarray(p, dtype=np.float64) >= threshold
    undefined = {name: why for name, why in _undefined(y, predicted).items() if name in THRESHOLDED}
    if not len(y):
        return dict.fromkeys(THRESHOLDED), undefined
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        y, predicted.astype(np.int64), labels=[0, 1], zero_division=0.0
    )
    values = {
        "macro_f1": f1.mean(),
        "f1": f1[1],
        "precision": precision[1],
        "recall": recall[1],
        "specificity": recall[0],
        "balanced_accuracy": recall.mean(),
        "mcc": _matthews(y, predicted) if "mcc" not in undefined else None,
    }
    return {
        name: None if name in undefined else float(values[name]) for name in THRESHOLDED
    }, undefined


def _matthews(y: Array, predicted: Array) -> float:
    """Matthews correlation coefficient; both classes occur in the labels and the predictions."""
    tp, fp = float((predicted & (y == 1)).sum()), float((predicted & (y == 0)).sum())
    fn, tn = float(y.sum()) - tp, float((y == 0).sum()) - fp
    return (tp * tn - fp * fn) / float(np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def calibration_error(y: Array, p: Array, bins: int = ECE_BINS) -> float:
    """Expected calibration error: windows in order of their probability, in bins of equally many
    (equal mass; one more in the first bins where they do not divide), the mean over windows of
    the distance between a bin's mean probability and its share of positives.

    Source: V. A. Nguyen and B. O'Connor, "Posterior calibration and exploratory analysis for
    natural language processing models", EMNLP 2015.
    """
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(p[part].sum() - y[part].sum()) for part in parts) / len(p))


def _undefined(y: Array, predicted: Array) -> dict[str, str]:
    positives = int(y.sum())
    if not len(y):
        return dict.fromkeys(SCORES, "no windows")
    if positives == 0:
        return dict.fromkeys((*NEED_POSITIVES, "roc_auc"), "no positive window in the labels")
    if positives == len(y):
        return dict.fromkeys((*NEED_NEGATIVES, "roc_auc"), "no negative window in the labels")
    if not predicted.any():
        why = "no window was predicted positive"
        return {"precision": why, "mcc": why}
    return {"mcc": "every window was predicted positive"} if predicted.all() else {}


def tuned_threshold(y: Array, p: Array) -> float | None:
    """The threshold that maximises macro F1 of probabilities `p` for labels `y`; None where the
    labels hold one class only.

    Candidates are 0.5 and the middles between neighbouring distinct probabilities; of equally good
    ones the nearest to 0.5, then the lower.
    """
    y = np.asarray(y).astype(np.int64)
    p = np.asarray(p, dtype=np.float64)
    if not len(y) or y.min() == y.max():
        return None
    values = np.unique(p)
    candidates = np.unique(np.concatenate([[0.5], (values[1:] + values[:-1]) / 2]))
    order = np.argsort(p, kind="stable")
    below = np.searchsorted(p[order], candidates, side="left")  # windows predicted negative
    positives_below = np.concatenate([[0], np.cumsum(y[order])])[below]
    fn, tn = positives_below, below - positives_below
    fp, tp = (len(y) - y.sum()) - tn, y.sum() - fn
    errors = (fp + fn) / 2
    score = np.round((tp / (tp + errors) + tn / (tn + errors)) / 2, 12)
    best = candidates[score == score.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
