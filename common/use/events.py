"""Event scores: annotated bouts against predicted episodes, one to one.

Scores are made against the annotations, never against window labels. Fragmented and merged bouts
are those of J. A. Ward, P. Lukowicz and H. W. Gellersen, "Performance metrics for activity
recognition", ACM Transactions on Intelligent Systems and Technology 2(1), 2011.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from common.use.episodes import Interval

EVENT_IOU = 0.5  # the stricter of the two matchings that are reported by default


@dataclass(frozen=True)
class SessionEvents:
    """What was annotated, predicted and recorded in one session. Intervals in seconds, on one
    clock; no two episodes overlap, nor two recorded stretches.
    """

    bouts: Sequence[Interval]
    episodes: Sequence[Interval]
    recorded: Sequence[Interval]


@dataclass(frozen=True)
class EventScores:
    """Scores over the sessions of one person. A score that the data leave undefined is None, and
    `undefined` says why.
    """

    bouts: int
    episodes: int
    matched: int
    recall: float | None  # matched bouts / bouts
    precision: float | None  # matched episodes / episodes
    f1: float | None
    false_episodes: int  # episodes without a bout of their own
    false_episodes_per_hour: float | None  # of recorded time
    false_episodes_per_day: float | None  # the same, by 24 h
    fragmented_bouts: int  # overlapped by several episodes
    merged_bouts: int  # overlapped by an episode that overlaps another bout too
    false_time_share: float | None  # recorded time in episodes and in no bout / recorded time
    recorded_hours: float
    undefined: dict[str, str] = field(default_factory=dict)


def event_scores(sessions: Iterable[SessionEvents], iou: float | None = None) -> EventScores:
    """Match bouts and episodes one to one, the pair with the greatest overlap first.

    Args:
        sessions: of one person.
        iou: smallest intersection over union of a match; None: any overlap.
    """
    every = list(sessions)
    bouts = sum(len(session.bouts) for session in every)
    found = sum(len(session.episodes) for session in every)
    matched = sum(len(match(session.bouts, session.episodes, iou)) for session in every)
    seconds = sum(_length(session.recorded) for session in every)
    false_seconds = sum(_false_seconds(session) for session in every)
    shapes = [_fragmented_and_merged(session) for session in every]
    per_hour = (found - matched) / (seconds / 3600) if seconds > 0 else None
    return EventScores(
        bouts=bouts,
        episodes=found,
        matched=matched,
        recall=matched / bouts if bouts else None,
        precision=matched / found if found else None,
        f1=2 * matched / (bouts + found) if bouts + found else None,
        false_episodes=found - matched,
        false_episodes_per_hour=per_hour,
        false_episodes_per_day=None if per_hour is None else 24 * per_hour,
        fragmented_bouts=sum(fragmented for fragmented, _ in shapes),
        merged_bouts=sum(merged for _, merged in shapes),
        false_time_share=false_seconds / seconds if seconds > 0 else None,
        recorded_hours=seconds / 3600,
        undefined=_undefined(bouts, found, seconds),
    )


def _undefined(bouts: int, found: int, seconds: float) -> dict[str, str]:
    reasons = {} if bouts else {"recall": "no bout was annotated"}
    reasons |= {} if found else {"precision": "no episode was predicted"}
    reasons |= {} if bouts + found else {"f1": "no bout was annotated and no episode predicted"}
    timed = ("false_episodes_per_hour", "false_episodes_per_day", "false_time_share")
    return reasons | ({} if seconds > 0 else dict.fromkeys(timed, "nothing was recorded"))


def match(
    bouts: Sequence[Interval], found: Sequence[Interval], iou: float | None = None
) -> list[tuple[int, int]]:
    """Pairs (index of bout, index of episode), each used once; greatest overlap first, among equal
    overlaps the earlier bout, then the earlier episode.
    """
    pairs = []
    for row, column, overlap in _overlaps(bouts, found):
        union = _span(bouts[row]) + _span(found[column]) - overlap
        if iou is None or overlap / union >= iou - 1e-12:
            pairs.append((-overlap, bouts[row], found[column], row, column))
    used_bouts, used_found = set[int](), set[int]()
    chosen = []
    for *_, row, column in sorted(pairs):
        if row not in used_bouts and column not in used_found:
            used_bouts.add(row)
            used_found.add(column)
            chosen.append((row, column))
    return chosen


def _fragmented_and_merged(session: SessionEvents) -> tuple[int, int]:
    by_bout: dict[int, set[int]] = {}
    by_episode: dict[int, set[int]] = {}
    for row, column, _ in _overlaps(session.bouts, session.episodes):
        by_bout.setdefault(row, set()).add(column)
        by_episode.setdefault(column, set()).add(row)
    merged = {row for rows in by_episode.values() if len(rows) > 1 for row in rows}
    return sum(len(columns) > 1 for columns in by_bout.values()), len(merged)


def _overlaps(
    bouts: Sequence[Interval], found: Sequence[Interval]
) -> Iterable[tuple[int, int, float]]:
    """Index of bout, index of episode and seconds in common, of all that overlap."""
    rows = sorted(range(len(bouts)), key=lambda row: bouts[row])
    columns = sorted(range(len(found)), key=lambda column: found[column])
    first = 0
    for row in rows:
        while first < len(columns) and found[columns[first]][1] <= bouts[row][0]:
            first += 1
        for column in columns[first:]:
            if found[column][0] >= bouts[row][1]:
                break
            common = min(bouts[row][1], found[column][1]) - max(bouts[row][0], found[column][0])
            if common > 0:
                yield row, column, common


def _false_seconds(session: SessionEvents) -> float:
    """Recorded seconds inside an episode and outside all bouts."""
    called = _intersection(session.episodes, session.recorded)
    return _length(called) - _length(_intersection(called, _union(session.bouts)))


def _union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same stretches, joined where they overlap: two annotations may share time."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _intersection(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """What two lists of intervals have in common; within a list, no two overlap."""
    return [
        (max(left[a][0], right[b][0]), min(left[a][1], right[b][1]))
        for a, b, _ in _overlaps(left, right)
    ]


def _length(intervals: Iterable[Interval]) -> float:
    return sum(_span(interval) for interval in intervals)


def _span(interval: Interval) -> float:
    return interval[1] - interval[0]
