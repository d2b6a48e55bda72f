"""Scores: confusion counts on the device while training, and the final scores with scikit-learn.

A score that the data leave undefined is None with a reason, never 0 or 1 by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

SCORES = ("loss", "macro_f1", "f1", "precision", "recall", "balanced_accuracy", "pr_auc", "roc_auc")
THRESHOLDED = ("macro_f1", "f1", "precision", "recall", "balanced_accuracy")


def confusion(logits: Tensor, y: Tensor) -> Tensor:
    """Counts [tn, fp, fn, tp] at probability 0.5, float64, on the device of the logits. logits, y:
    [windows].
    """
    cell = 2 * y + (torch.sigmoid(logits) >= 0.5)
    return (cell[:, None] == torch.arange(4, device=y.device)).sum(dim=0).double()


def macro_f1(counts: Sequence[float]) -> float | None:
    """Mean of both classes' F1 from counts [tn, fp, fn, tp]; None where the labels hold one class
    only.
    """
    tn, fp, fn, tp = counts
    if tn + fp == 0 or tp + fn == 0:
        return None
    return (tn / (tn + (fp + fn) / 2) + tp / (tp + (fp + fn) / 2)) / 2


def final_scores(
    y: Array, p: Array, *, loss: float | None = None, threshold: float = 0.5
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Scores of probabilities `p` [windows] for labels `y` [windows], a window counting as positive
    from `threshold` up.

    Returns (every name of SCORES -> value or None, name -> reason for each None). pr_auc is average
    precision.
    """
    from sklearn import metrics as sk  # a second and more: only when a score is due

    y, p = np.asarray(y).astype(np.int64), np.asarray(p, dtype=np.float64)
    scores, undefined = threshold_scores(y, p, threshold)
    ranking: dict[str, Callable[[], Any]] = {
        "pr_auc": lambda: sk.average_precision_score(y, p),
        "roc_auc": lambda: sk.roc_auc_score(y, p),
    }
    undefined |= {
        name: why for name, why in _undefined(y, p >= threshold).items() if name in ranking
    }
    undefined |= {"loss": "not computed"} if loss is None else {}
    scores |= {"loss": loss} | {
        name: None if name in undefined else float(compute()) for name, compute in ranking.items()
    }
    return {name: scores[name] for name in SCORES}, undefined


def threshold_scores(
    y: Array, p: Array, threshold: float
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
        "balanced_accuracy": recall.mean(),
    }
    return {
        name: None if name in undefined else float(values[name]) for name in THRESHOLDED
    }, undefined


def _undefined(y: Array, predicted: Array) -> dict[str, str]:
    positives = int(y.sum())
    if not len(y):
        return dict.fromkeys(SCORES, "no windows")
    if positives == 0:
        return dict.fromkeys(
            [name for name in SCORES if name != "loss"], "no positive window in the labels"
        )
    if positives == len(y):
        return dict.fromkeys(
            ["macro_f1", "precision", "balanced_accuracy", "pr_auc", "roc_auc"],
            "no negative window in the labels",
        )
    return {} if predicted.any() else {"precision": "no window was predicted positive"}


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
