"""Bouts and false alarms, counted by hand on short recordings."""

from __future__ import annotations

import numpy as np
import pytest

from common.report.bouts import Windows, bout_scores, read_windows
from common.report.figures import curve, runs_of, spread

AT_HALF = {"": ("p", 0.5)}


def windows(
    labels: str, called: str, *, sessions: str | None = None, starts: list[float] | None = None
) -> Windows:
    """Windows every second; '1' in `called` is a probability of .9."""
    number = len(labels)
    return {
        "session": np.array(list(sessions or "a" * number)),
        "start_s": np.array(starts or range(number), dtype=float),
        "label": np.array([int(c) for c in labels], dtype=float),
        "p": np.array([0.9 if c == "1" else 0.1 for c in called]),
    }


def test_a_bout_is_found_by_one_of_its_windows_and_a_run_of_false_calls_is_one_alarm() -> None:
    scores = bout_scores(windows("0111000110000000", "0010000000011101"), AT_HALF, 1.0)
    assert scores["bouts"] == 2
    assert scores["bout_recall"] == 0.5
    assert scores["false_alarms_per_hour"] == pytest.approx(2 / (16 / 3600))


def test_a_call_that_spills_over_its_bout_is_no_false_alarm() -> None:
    scores = bout_scores(windows("00011000", "00111110"), AT_HALF, 1.0)
    assert (scores["bout_recall"], scores["false_alarms_per_hour"]) == (1.0, 0.0)


def test_a_new_session_or_a_gap_begins_a_new_bout() -> None:
    assert bout_scores(windows("1111", "1100", sessions="aabb"), AT_HALF, 1.0)["bouts"] == 2
    assert (
        bout_scores(windows("1111", "1100", starts=[0, 1, 60, 61]), AT_HALF, 1.0)["bout_recall"]
        == 0.5
    )


def test_overlapping_windows_count_their_time_once() -> None:
    # 2 s windows every second: 5 s in all
    scores = bout_scores(windows("0001", "1000"), AT_HALF, 2.0)
    assert scores["hours"] == pytest.approx(5 / 3600)


def test_order_in_the_file_does_not_matter() -> None:
    table = windows("0110100", "0100001")
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    assert bout_scores(
        {name: values[order] for name, values in table.items()}, AT_HALF, 1.0
    ) == bout_scores(table, AT_HALF, 1.0)


def test_without_a_bout_recall_is_undefined_but_false_alarms_are_not() -> None:
    scores = bout_scores(windows("0000", "0110"), AT_HALF, 1.0)
    assert scores["bout_recall"] is None
    assert scores["false_alarms_per_hour"] == pytest.approx(1 / (4 / 3600))


def test_without_times_there_are_no_bout_scores() -> None:
    table = windows("0110", "0110")
    table["start_s"] = np.full(4, np.nan)
    assert bout_scores(table, AT_HALF, 1.0) == {}


def test_predictions_are_read_by_split_with_and_without_quotes() -> None:
    text = (
        "split,index,session,start_s,label,p_base,p_finetuned\n"
        'val,0,"a,b",1.5,1,,0.75\ntest,0,c,,0,0.25,0.5\n'
    )
    splits = read_windows(text)
    assert splits["val"]["session"].tolist() == ["a,b"]
    assert np.isnan(splits["val"]["p_base"]).all()
    assert splits["test"]["p_finetuned"].tolist() == [0.5]


@pytest.mark.parametrize("seed", range(5))
def test_the_precision_recall_curve_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.metrics import precision_recall_curve

    random = np.random.default_rng(seed)
    labels, p = np.append(random.integers(0, 2, size=30), [0, 1]), np.round(random.random(32), 1)
    precision, recall = curve(labels, p)
    theirs = precision_recall_curve(labels, p)
    # theirs runs the other way and ends in a point (recall 0, precision 1) of its own
    assert precision[1:] == pytest.approx(theirs[0][:-1][::-1])
    assert recall[1:] == pytest.approx(theirs[1][:-1][::-1])


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
