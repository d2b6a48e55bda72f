"""Event scores of detectors whose worth is plain; recomputed second by second in another way."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.use.episodes import Interval, episodes, recorded
from common.use.events import EventScores, SessionEvents, event_scores, match
from tests.conftest import ROOT

WINDOW, STRIDE, HOURS = 60.0, 30.0, 6
BOUTS: list[Interval] = [(3600.0, 4500.0), (9000.0, 9900.0), (16200.0, 17100.0)]
STARTS = np.arange(0.0, HOURS * 3600 - WINDOW + 1, STRIDE)


def touching(intervals: list[Interval], shift: float = 0.0) -> np.ndarray:
    """Probability .9 of each window that lies in one of the intervals by half or more."""
    p = np.full(len(STARTS), 0.1)
    for start, end in intervals:
        common = np.minimum(STARTS + WINDOW, end + shift) - np.maximum(STARTS, start + shift)
        p[common >= WINDOW / 2] = 0.9
    return p


def fragments() -> np.ndarray:
    """Each bout found in three pieces."""
    pieces = [
        (start + k * 300.0, start + k * 300.0 + 180.0) for start, _ in BOUTS for k in range(3)
    ]
    return touching(pieces)


DETECTORS = {
    "perfect": touching(BOUTS),
    "one false minute": np.maximum(touching(BOUTS), touching([(12000.0, 12060.0)])),
    "one minute late": touching(BOUTS, shift=60.0),
    "fragmented": fragments(),
    "always positive": np.full(len(STARTS), 0.9),
    "always negative": np.full(len(STARTS), 0.1),
}


def scores_of(name: str, iou: float | None = None) -> EventScores:
    """A detector's scores over six hours with three bouts of a quarter of an hour."""
    found = [episode.interval for episode in episodes(STARTS, DETECTORS[name], WINDOW)]
    return event_scores([SessionEvents(BOUTS, found, recorded(STARTS, WINDOW))], iou)


@pytest.mark.parametrize(
    ("name", "any_overlap", "half", "false", "fragmented", "merged", "false_share"),
    [
        # recall, precision and F1 at any overlap; the same at IoU .5
        ("perfect", (1, 1, 1), (1, 1, 1), 0, 0, 0, 180 / 21600),
        ("one false minute", (1, 3 / 4, 6 / 7), (1, 3 / 4, 6 / 7), 1, 0, 0, 300 / 21600),
        ("one minute late", (1, 1, 1), (1, 1, 1), 0, 0, 0, 270 / 21600),
        ("fragmented", (1, 1 / 3, 1 / 2), (0, 0, 0), 6, 3, 0, 90 / 21600),
        ("always positive", (1 / 3, 1, 1 / 2), (0, 0, 0), 0, 0, 3, 18900 / 21600),
        ("always negative", (0, None, 0), (0, None, 0), 0, 0, 0, 0),
    ],
)
def test_detectors_score_as_their_users_would_say(
    name: str,
    any_overlap: tuple[float, float | None, float],
    half: tuple[float, float | None, float],
    false: int,
    fragmented: int,
    merged: int,
    false_share: float,
) -> None:
    loose, strict = scores_of(name), scores_of(name, 0.5)
    assert (loose.recall, loose.precision, loose.f1) == pytest.approx(any_overlap)
    assert (strict.recall, strict.precision, strict.f1) == pytest.approx(half)
    assert (loose.false_episodes, loose.fragmented_bouts) == (false, fragmented)
    assert loose.merged_bouts == merged
    assert loose.false_episodes_per_hour == pytest.approx(false / HOURS)
    assert loose.false_episodes_per_day == pytest.approx(24 * false / HOURS)
    assert loose.false_time_share == pytest.approx(false_share)
    assert loose.recorded_hours == HOURS


def test_smoothing_mends_the_fragmented_detector() -> None:
    found = episodes(STARTS, DETECTORS["fragmented"], WINDOW, merge_gap_seconds=120)
    assert len(found) == 3
    scores = event_scores([SessionEvents(BOUTS, [e.interval for e in found], [(0, 1)])], 0.5)
    assert (scores.recall, scores.precision, scores.fragmented_bouts) == (1, 1, 0)


def test_episodes_join_drop_and_average_as_they_say() -> None:
    starts = [0, 10, 20, 60, 200, 205]
    p = [0.5, 0.7, 0.2, 0.9, 0.8, 0.1]
    assert [(e.start_s, e.end_s) for e in episodes(starts, p, 10)] == [
        (0, 20),
        (60, 70),
        (200, 210),
    ]
    joined = episodes(starts, p, 10, merge_gap_seconds=40, min_episode_seconds=20)
    assert [(e.start_s, e.end_s) for e in joined] == [(0, 70)]
    assert joined[0].mean_probability == pytest.approx((0.5 + 0.7 + 0.9) / 3)
    assert [e.interval for e in episodes(starts[::-1], p[::-1], 10)] == [
        (0, 20),
        (60, 70),
        (200, 210),
    ]
    assert episodes([], [], 10) == []
    assert recorded(starts, 10) == [(0, 30), (60, 70), (200, 215)]


def test_unix_times_lose_no_episode() -> None:
    starts = 1.7e9 + np.arange(0, 100, 0.02)
    assert len(episodes(starts, np.ones(len(starts)), 0.02)) == 1


def test_what_is_undefined_says_why() -> None:
    nothing = event_scores([])
    assert nothing.undefined == {
        "recall": "no bout was annotated",
        "precision": "no episode was predicted",
        "f1": "no bout was annotated and no episode predicted",
        "false_episodes_per_hour": "nothing was recorded",
        "false_episodes_per_day": "nothing was recorded",
        "false_time_share": "nothing was recorded",
    }
    for name in nothing.undefined:
        assert getattr(nothing, name) is None


def test_the_greatest_overlap_is_matched_first() -> None:
    assert match([(0, 10), (12, 30)], [(8, 25)]) == [(1, 0)]
    assert match([(0, 10)], [(0, 4), (4, 10)]) == [(0, 1)]
    assert match([(0, 10)], [(5, 10)], 0.5) == [(0, 0)]
    assert match([(0, 10)], [(6, 10)], 0.5) == []


stretches = st.lists(st.integers(1, 12), max_size=8).map(
    lambda gaps: [
        (float(a), float(b))
        for a, b in zip(np.cumsum(gaps)[::2], np.cumsum(gaps)[1::2], strict=False)
    ]
)


@settings(max_examples=200, deadline=None)
@given(bouts=stretches, found=stretches, iou=st.sampled_from([None, 0.5]))
def test_scores_agree_with_a_count_second_by_second(
    bouts: list[Interval], found: list[Interval], iou: float | None
) -> None:
    length = 120
    seconds = np.arange(length) + 0.5
    in_bout = [(seconds > a) & (seconds < b) for a, b in bouts]
    in_found = [(seconds > a) & (seconds < b) for a, b in found]
    common = np.array([[(x & y).sum() for y in in_found] for x in in_bout], dtype=float).reshape(
        len(bouts), len(found)
    )
    union = np.array([[(x | y).sum() for y in in_found] for x in in_bout]).reshape(common.shape)
    allowed = (common > 0) & (common >= (iou or 0) * union)
    left, matched = np.where(allowed, common, 0), 0
    while left.size and left.max() > 0:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        left[row, :] = left[:, column] = 0
        matched += 1
    scores = event_scores([SessionEvents(bouts, found, [(0.0, float(length))])], iou)
    assert scores.matched == matched
    assert scores.fragmented_bouts == ((common > 0).sum(axis=1) > 1).sum()
    shared = (common > 0).sum(axis=0) > 1
    assert scores.merged_bouts == ((common > 0)[:, shared].any(axis=1)).sum()
    called = np.any(in_found, axis=0) if found else np.zeros(length, dtype=bool)
    labelled = np.any(in_bout, axis=0) if bouts else np.zeros(length, dtype=bool)
    assert scores.false_time_share == pytest.approx((called & ~labelled).sum() / length)


def test_events_need_no_torch() -> None:
    code = "import sys, common.use.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
