"""Events and confusion counts from the windows of predictions.csv, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.manifest import KeptBout
from common.errors import InputError
from common.jobs.score_names import SCORES
from common.report.calibration import mass_bins
from common.report.conditions import LOWER_IS_BETTER
from common.report.figures import spread
from common.report.predictions import (
    EventRules,
    Predictions,
    SplitWindows,
    confusion_counts,
    event_columns,
    no_events,
    read_windows,
)
from common.report.run_figures import runs_of
from common.training.metrics import final_scores


def windows(called: str, *, sessions: str | None = None, step: float = 1.0) -> Predictions:
    """Windows every `step` seconds; '1' is a probability of .9. Times are as of 2023, in Unix
    seconds.
    """
    number = len(called)
    return {
        "session": np.array(list(sessions or "a" * number)),
        "start_s": 1.7e9 + step * np.arange(number),
        "label": np.zeros(number),
        "p": np.array([0.9 if c == "1" else 0.1 for c in called]),
    }


def bout(start: float, end: float, session: str = "a") -> KeptBout:
    """An annotation of the test split, in seconds from the first window."""
    return session, 1.7e9 + start, 1.7e9 + end, "test"


def scores(table: Predictions, bouts: list[KeptBout], **rules: float) -> dict[str, float | None]:
    """Event scores at .5 with windows of 1 s."""
    return event_columns([SplitWindows(table, bouts, 1.0)], "p", [0.5], EventRules(**rules))[0]


def test_episodes_are_matched_one_to_one_with_the_annotations() -> None:
    found = scores(windows("0011100000011000000010"), [bout(2, 5), bout(11, 17)])
    assert found["event_recall"] == 1
    assert found["event_precision"] == pytest.approx(2 / 3)
    assert found["event_f1"] == pytest.approx(4 / 5)
    assert found["event_recall_iou"] == 0.5  # 2 s of 6 s is too little
    assert found["false_episodes_per_hour"] == pytest.approx(1 / (22 / 3600))
    assert found["false_episodes_per_day"] == pytest.approx(24 / (22 / 3600))
    assert found["false_time_share"] == pytest.approx(1 / 22)


def test_one_episode_over_all_bouts_scores_badly_and_is_named_merged() -> None:
    found = scores(windows("1" * 30), [bout(2, 5), bout(11, 17), bout(20, 21)])
    assert found["event_recall"] == pytest.approx(1 / 3)
    assert (found["event_f1_iou"], found["merged_bouts"]) == (0, 3)
    assert found["false_time_share"] == pytest.approx(20 / 30)


def test_smoothing_is_that_of_predict_py() -> None:
    table, bouts = windows("0111011100001000"), [bout(1, 8)]
    assert scores(table, bouts)["fragmented_bouts"] == 1
    smooth = scores(table, bouts, merge_gap_seconds=1, min_episode_seconds=2)
    assert (smooth["fragmented_bouts"], smooth["event_precision"]) == (0, 1)


def test_a_bout_of_a_session_without_windows_is_missed() -> None:
    found = scores(windows("0110"), [bout(1, 3), bout(1, 3, "b")])
    assert found["event_recall"] == 0.5


def test_sessions_are_apart_even_where_their_times_are_not() -> None:
    table = windows("1111", sessions="aabb")
    table["start_s"][2:] = table["start_s"][:2]
    found = scores(table, [bout(0, 2), bout(0, 2, "b")])
    assert (found["event_f1_iou"], found["false_time_share"]) == (1, 0)


def test_why_there_are_no_event_scores() -> None:
    table = windows("0110")
    assert no_events(table, [], 1.0) is None
    assert "keeps no annotations" in str(no_events(table, None, 1.0))
    table["start_s"][:] = np.nan
    assert no_events(table, [], 1.0) == "the windows have no times"


@pytest.mark.parametrize("rules", [(-1, 0, 0.5), (0, float("inf"), 0.5), (0, 0, 0), (0, 0, 1.5)])
def test_rules_out_of_bounds_are_refused(rules: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="--"):
        EventRules.checked(*rules)


def test_confusion_counts_are_windows() -> None:
    labels, p = np.array([0, 0, 1, 1, 1]), np.array([0.2, 0.5, 0.4, 0.6, 0.9])
    assert confusion_counts(labels, p, 0.5) == {"tn": 1, "fp": 1, "fn": 1, "tp": 2}
    assert confusion_counts(labels, p, None) == {}


def test_predictions_are_read_by_split_with_and_without_quotes() -> None:
    text = (
        "split,index,session,start_s,label,p_base,p_finetuned\n"
        'val,0,"a,b",1.5,1,,0.75\ntest,0,c,,0,0.25,0.5\n'
    )
    splits = read_windows(text)
    assert splits["val"]["session"].tolist() == ["a,b"]
    assert np.isnan(splits["val"]["p_base"]).all()
    assert splits["test"]["p_finetuned"].tolist() == [0.5]


def test_labelled_runs_end_at_gaps() -> None:
    assert runs_of(np.array([True, True, False, True, True]), np.array([4])) == [
        (0, 1),
        (3, 3),
        (4, 4),
    ]


def test_names_beside_a_figure_keep_apart_and_stay_inside() -> None:
    places = spread(np.array([0.1, 0.1, 0.1, 0.9]), 0.1, 0.05, 1.0)
    assert (np.diff(places) >= 0.1 - 1e-9).all()
    assert places.min() >= 0.05 - 1e-9
    assert places.max() <= 1.0


def test_lower_is_better_exactly_where_better_predictions_lower_a_score() -> None:
    y = np.arange(40) % 2
    noise = np.random.default_rng(0).normal(size=40)
    good, bad = (np.clip(0.5 + (y - 0.5) * clear + 0.2 * noise, 0.01, 0.99) for clear in (0.9, 0.1))
    scores = [
        final_scores(y, p, loss=float(-np.log(np.where(y == 1, p, 1 - p)).mean()))[0]
        for p in (good, bad)
    ]
    falls = {name for name in SCORES if scores[0][name] < scores[1][name]}
    assert falls == LOWER_IS_BETTER & set(SCORES)


def test_calibration_is_the_share_of_positives_by_mean_probability() -> None:
    labels, p = np.array([1, 1, 0, 1, 0]), np.array([0.9, 0.8, 0.1, 0.3, 0.2])
    expected = [(0.2, 1 / 3), (0.85, 1.0)]
    assert [bin for found in mass_bins(labels, p, 2) for bin in found] == pytest.approx(
        [value for bin in expected for value in bin]
    )
    assert mass_bins(labels, np.full(5, np.nan)) == []
