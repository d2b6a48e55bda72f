"""Windows and their labels, without files."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.sessions import Part, merge_ranges
from common.data.windowing import (
    Labelling,
    bouts_without_window,
    covered_hours,
    label_windows,
    place_windows,
    window_starts,
)
from tests.unit.data.made_sessions import RATE, cut, session


def test_a_gap_breaks_the_session_and_no_window_spans_it():
    broken = session(seconds=30, gaps=[(10, 14)])
    assert broken.pieces == ((0, 100), (140, 300))
    windows = cut([Part(broken, 0, 300)], 20, 5)
    assert np.isfinite(windows.x()).all()
    assert not any(80 < start * RATE < 140 for start in windows.starts_s())


def test_windows_fill_each_stretch_and_their_part_to_the_last_sample():
    broken = session(seconds=10, gaps=[(4, 6)])
    assert window_starts(Part(broken, 0, 100), 10, 1).tolist() == [*range(31), *range(60, 91)]
    assert window_starts(Part(broken, 5, 75), 10, 10).tolist() == [5, 15, 25, 60]


def labels(bouts, starts, length, overlap):
    """Of windows of a session with these bouts."""
    return label_windows(
        replace(session(), bouts=bouts), starts, Labelling(length, length, overlap)
    )


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [("any", [0, 1, 1, 1, 0]), (0.5, [0, 0, 1, 1, 0]), (1.0, [0, 0, 1, 0, 0])],
)
def test_a_window_is_positive_when_bouts_cover_enough_of_it(overlap, expected):
    bouts = np.array([[18.0, 30], [30.5, 36]])
    assert labels(bouts, np.array([0, 10, 20, 30, 40]), 10, overlap).tolist() == expected


@given(
    st.lists(st.tuples(st.floats(-20, 120), st.floats(0.01, 30)), max_size=6),
    st.integers(1, 30),
    st.one_of(st.just("any"), st.floats(0.05, 1)),
)
def test_labels_agree_with_counting_small_slices(bouts, length, overlap):
    merged = merge_ranges(np.round(np.array([(a, a + d) for a, d in bouts]).reshape(-1, 2), 2))
    starts = np.arange(0, 100, 7)
    slices = np.arange(-2000, 20000) / 100 + 0.005  # hundredths of a sample, by their middles
    inside = np.zeros(len(slices), bool)
    for start, end in merged:
        inside |= (slices > start) & (slices < end)
    covered = np.array(
        [inside[(slices > start) & (slices < start + length)].sum() / 100 for start in starts]
    )
    if overlap != "any":
        clear = np.abs(covered - overlap * length) > 1e-3
        assert (labels(merged, starts, length, overlap) == (covered >= overlap * length))[
            clear
        ].all()
    else:
        assert (labels(merged, starts, length, "any") == (covered > 0)).all()


def test_windows_say_where_they_begin_on_the_recordings_own_clock():
    windows = cut([Part(session(start_s=1700000000.5), 13, 60)], 20, 10)
    assert windows.starts_s() == [1700000001.8, 1700000002.8, 1700000003.8]
    assert windows.x()[1, 0].tolist() == list(range(23, 43))


def test_covered_time_counts_overlaps_once_in_each_session_in_any_order():
    places = [("b", 0.0), ("a", 5.0), ("a", 0.0), ("a", 1.0), ("a", 1.0), ("b", 1.5)]
    # a: 0 to 3 and 5 to 7; b: 0 to 3.5
    assert covered_hours(places, 2.0) * 3600 == pytest.approx(3 + 2 + 3.5)
    assert covered_hours([("a", 7.0)], 2.0) * 3600 == pytest.approx(2)
    assert covered_hours([], 2.0) == 0


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=20), st.integers(1, 8)
)
def test_covered_hours_count_each_second_of_a_session_once(places, seconds):
    once = {
        (session, second) for session, start in places for second in range(start, start + seconds)
    }
    assert covered_hours(places, seconds) == pytest.approx(len(once) / 3600)


def test_windows_covered_too_little_or_of_unknown_label_are_left_out():
    whole = session(seconds=60, bouts=[(10, 20)], unknown=[(40, 45)])
    how = Labelling(40, 40, 0.5, exclude_partial=True)
    placed = place_windows([Part(whole, 0, 600)], how, 2)
    # From 8 s the bout covers half of a window; from 20 s none; those from 40 and 44 s are unknown.
    assert dict(zip(placed.starts_s(), placed.y.tolist(), strict=True)) == {
        second: int(8 <= second < 20) for second in range(0, 60, 4) if second not in (40, 44)
    }
    partly = replace(whole, bouts=np.array([[110.0, 200.0]]))
    assert 8.0 not in place_windows([Part(partly, 0, 600)], how, 2).starts_s()


def test_bouts_that_label_no_window_are_found():
    whole = session(seconds=60, bouts=[(10, 20), (30, 30.5), (59.9, 70)])
    placed = place_windows([Part(whole, 0, 300)], Labelling(40, 40, 0.5), 2)
    assert bouts_without_window(whole, [placed], 40) == [(300, 305), (599, 700)]
