"""Scores: against scikit-learn, undefined ones said by us, the tuned threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from common.jobs.score_names import SCORES, THRESHOLDED
from common.training.backends import confusion
from common.training.metrics import (
    final_scores,
    macro_f1,
    threshold_scores,
    tuned_threshold,
)

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 300)
P = np.clip(Y * 0.3 + RNG.random(300) * 0.7, 0, 1).astype(np.float32)


def test_counts_on_the_device_are_scikit_learns():
    logits = torch.from_numpy(np.log(P / (1 - P)))
    counts = confusion(logits, torch.from_numpy(Y).float()).tolist()
    assert counts == sk.confusion_matrix(Y, P >= 0.5).ravel().tolist()
    assert macro_f1(counts) == pytest.approx(sk.f1_score(Y, P >= 0.5, average="macro"))


def test_all_scores_are_given_and_right():
    scores, undefined = final_scores(Y, P, loss=0.25)
    assert undefined == {}
    assert set(scores) == set(SCORES)
    assert set(THRESHOLDED) < set(SCORES)
    assert scores["loss"] == 0.25
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(Y, P >= 0.5, average="macro"))
    assert scores["pr_auc"] == pytest.approx(sk.average_precision_score(Y, P))
    assert scores["roc_auc"] == pytest.approx(sk.roc_auc_score(Y, P))
    assert scores["mcc"] == pytest.approx(sk.matthews_corrcoef(Y, P >= 0.5))
    assert scores["specificity"] == pytest.approx(sk.recall_score(Y, P >= 0.5, pos_label=0))
    assert scores["brier"] == pytest.approx(sk.brier_score_loss(Y, P))


def test_the_calibration_error_is_that_of_bins_of_equally_many_windows():
    scores, _ = final_scores(Y, P, loss=0.25)
    pairs = sorted(zip(P.tolist(), Y.tolist(), strict=True))
    bins = [pairs[first : first + 30] for first in range(0, 300, 30)]
    gaps = [abs(sum(p for p, _ in part) - sum(y for _, y in part)) / 30 for part in bins]
    assert scores["ece"] == pytest.approx(sum(gaps) / 10)
    assert final_scores(np.array([0, 1]), np.array([0.0, 1.0]))[0]["ece"] == 0


def test_a_test_set_without_positives_is_undefined_not_perfect():
    scores, undefined = final_scores(np.zeros(10), np.full(10, 0.1), loss=0.1)
    assert {name for name, value in scores.items() if value is not None} == {
        "loss",
        "specificity",
        "brier",
        "ece",
    }
    assert set(undefined.values()) == {"no positive window in the labels"}


def test_a_test_set_without_negatives_keeps_what_is_defined():
    scores, undefined = final_scores(np.ones(10), np.linspace(0, 1, 10), loss=0.1)
    assert set(undefined) == {
        "macro_f1",
        "precision",
        "specificity",
        "balanced_accuracy",
        "mcc",
        "pr_auc",
        "roc_auc",
    }
    assert scores["recall"] == 0.5


def test_precision_is_undefined_when_nothing_is_predicted_positive():
    scores, undefined = final_scores(Y, np.full(300, 0.1), loss=0.1)
    assert undefined == dict.fromkeys(("precision", "mcc"), "no window was predicted positive")
    assert scores["recall"] == scores["f1"] == 0


def test_no_windows_leave_everything_undefined():
    scores, undefined = final_scores(np.zeros(0), np.zeros(0))
    assert set(scores.values()) == {None}
    assert set(undefined) == set(SCORES)


def test_macro_f1_of_one_class_is_none():
    assert macro_f1([5, 1, 0, 0]) is None
    assert macro_f1([0, 0, 2, 3]) is None


def test_the_tuned_threshold_is_the_best_of_all():
    threshold = tuned_threshold(Y, P)
    best = max(sk.f1_score(Y, t <= P, average="macro") for t in [0.5, *P, *(P + 1e-6)])
    assert sk.f1_score(Y, threshold <= P, average="macro") == pytest.approx(best)


def test_equally_good_thresholds_give_the_one_nearest_to_a_half():
    assert tuned_threshold(np.array([0, 1]), np.array([0.2, 0.6])) == 0.5
    assert tuned_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.1, 0.3])) == pytest.approx(
        0.15
    )


def test_the_threshold_of_one_class_is_none():
    assert tuned_threshold(np.ones(3), np.array([0.1, 0.2, 0.3])) is None


def test_a_window_at_the_threshold_is_positive():
    scores, _ = threshold_scores(np.array([0, 1]), np.array([0.4, 0.5]), 0.5)
    assert (scores["recall"], scores["precision"]) == (1, 1)
