"""Sessions -> windows -> splits. Arrays only: no files, no torch.

A session is one continuous recording of one person on a regular grid. Splits are decided on whole
sessions or on blocks of them *before* any window is cut, so that overlapping windows can never
carry a sample from one split into another:

    session         whole sessions, stratified: how well the model does on another occasion of the
        same person
    chronological   earlier sessions train, the latest test: how well it does later on
    time            blocks inside each session, a gap of at least one window between them: how well
        it does later in the same occasion;
                    the mildest test of the three, since posture, strap and surroundings are those
                    of training
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.paths import SPLITS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MinOverlap = float | Literal["any"]
DRAWS = 10  # of stratified folds
NEAR = 0.1  # splits whose distances from 60/20/20 differ by less are as good as each other
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Session:
    """One recording on a regular grid; sample k stands at start_s + k / rate.

    Attributes:
        name: unique for its participant.
        start_s: the first sample's time on the recording's own clock, in seconds.
        rate: samples per second.
        values: float32 [samples, channels]; NaN inside gaps.
        pieces: half-open sample ranges without a gap, in order.
        bouts: float [bouts, 2], start and end in samples, sorted and disjoint.
        annotations: as `bouts`, but as they were given: neither joined nor cut.
        sampled_at: Hz, of the samples that it was made from outside gaps.
    """

    name: str
    start_s: float
    rate: float
    values: NDArray[np.float32]
    pieces: tuple[tuple[int, int], ...]
    bouts: Floats
    annotations: Floats
    sampled_at: float

    @property
    def recorded(self) -> int:
        """Samples outside gaps."""
        return sum(end - begin for begin, end in self.pieces)


@dataclass(frozen=True)
class Part:
    """The samples [begin, end) of one session, all in one split."""

    session: Session
    begin: int
    end: int


@dataclass(frozen=True)
class Windows:
    """Windows of one split in time order: x float32 [windows, channels, samples], y int64
    [windows], and where each begins.
    """

    x: NDArray[np.float32]
    y: Ints
    sessions: list[str]
    starts_s: list[float]


def make_session(
    name: str,
    start_s: float,
    times: Floats,
    values: Floats,
    bouts_s: Floats,
    rate: float,
    max_gap_s: float | None = None,
) -> Session:
    """A session from timed samples.

    Args:
        times: [samples], seconds since the first sample, increasing.
        values: [samples, channels].
        bouts_s: [bouts, 2], start and end in seconds since the first sample.
        rate: of the grid, in Hz.
        max_gap_s: a longer pause between samples is a gap (None: five median sample intervals).
    """
    steps = np.diff(times)
    longest = 5 * float(np.median(steps)) if max_gap_s is None else max_gap_s
    breaks = np.flatnonzero(steps > longest) + 1
    within = steps[steps <= longest]
    edges = [0, *breaks.tolist(), len(times)]
    grid = np.full(
        (int(np.floor(times[-1] * rate + 1e-6)) + 1, values.shape[1]), np.nan, np.float32
    )
    pieces = []
    for begin, end in pairwise(edges):
        first, last = (
            int(np.ceil(times[begin] * rate - 1e-6)),
            int(np.floor(times[end - 1] * rate + 1e-6)),
        )
        if first <= last:
            grid[first : last + 1] = _onto_grid(
                times[begin:end], values[begin:end], np.arange(first, last + 1) / rate, rate
            )
            pieces.append((first, last + 1))
    return Session(
        name,
        start_s,
        rate,
        grid,
        tuple(pieces),
        merge_bouts(bouts_s * rate),
        np.round(bouts_s * rate, 3).reshape(-1, 2),
        1 / float((within if len(within) else steps).mean()),
    )


def _onto_grid(times: Floats, values: Floats, at: Floats, rate: float) -> Floats:
    """Linear interpolation; what was sampled faster is low-passed first (zero phase, 0.45 of the
    new rate), so that nothing folds back into the band.
    """
    if len(times) > 2 and (sampled_at := (len(times) - 1) / (times[-1] - times[0])) > 1.05 * rate:
        from scipy.signal import butter, sosfiltfilt

        regular = np.linspace(times[0], times[-1], len(times))
        low = butter(8, 0.45 * rate, fs=sampled_at, output="sos")
        times, values = (
            regular,
            sosfiltfilt(
                low, _interpolate(regular, times, values), axis=0, padlen=min(27, len(times) - 1)
            ),
        )
    return _interpolate(at, times, values)


def _interpolate(at: Floats, times: Floats, values: Floats) -> Floats:
    return np.stack([np.interp(at, times, channel) for channel in values.T], axis=1)


def merge_bouts(bouts: Floats) -> Floats:
    """Sorted by start, overlapping and touching ones joined; in samples, to a thousandth (a clock
    in epoch seconds resolves no more).
    """
    merged: list[list[float]] = []
    for start, end in sorted(np.round(bouts, 3).tolist()):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return np.array(merged, np.float64).reshape(-1, 2)


def label_windows(bouts: Floats, starts: Ints, length: int, min_overlap: MinOverlap) -> Ints:
    """1 where bouts cover at least `min_overlap` of the window ("any": some of it), 0 elsewhere.

    Args:
        bouts: [bouts, 2] in samples, disjoint and sorted.
        starts: [windows], first samples.
    """
    if not len(bouts):
        return np.zeros(len(starts), np.int64)
    before = np.concatenate([[0.0], np.cumsum(bouts[:, 1] - bouts[:, 0])])
    covered_until = np.repeat(before, 2)[1:-1]  # at start_0, end_0, start_1, end_1, ...
    covered = np.interp(starts + length, bouts.ravel(), covered_until) - np.interp(
        starts, bouts.ravel(), covered_until
    )
    needed = 1e-6 if min_overlap == "any" else min_overlap * length - 1e-6
    labels: Ints = (covered >= needed).astype(np.int64)
    return labels


def in_order(sessions: Sequence[Session]) -> tuple[list[Session], bool]:
    """Sessions in time order, and whether their clocks gave it: where recordings overlap (each
    starts at its own zero), names do.
    """
    by_clock = sorted(sessions, key=lambda s: s.start_s)
    apart = all(a.start_s + (len(a.values) - 1) / a.rate < b.start_s for a, b in pairwise(by_clock))
    return (by_clock, True) if apart else (sorted(sessions, key=lambda s: natural(s.name)), False)


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts session2 before session10."""
    return [
        (not digits, int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)
    ]


def split_sessions(
    sessions: Sequence[Session], rule: str, length: int, min_overlap: MinOverlap, seed: int
) -> dict[str, list[Part]]:
    """The parts of one person's sessions that belong to train, val and test, in time order.

    Args:
        rule: session, chronological or time.
        length: samples in a window.

    Raises:
        InputError: too few sessions, or one too short, for this rule.
    """
    ordered, _ = in_order(sessions)
    for session in ordered:
        if max((end - begin for begin, end in session.pieces), default=0) < length:
            raise InputError(
                f"session {session.name} is too short: no stretch of {length / session.rate:g} s"
                " without a gap; leave it out or shorten --window_seconds"
            )
    if rule == "time":
        blocks = [(session, time_blocks(session, length)) for session in ordered]
        return {
            split: [Part(session, *places[split]) for session, places in blocks] for split in SPLITS
        }
    if len(ordered) < 3:
        raise InputError(
            f"{len(ordered)} session(s), but --split {rule} needs one each for train, val and test;"
            " record more or use --split time"
        )
    places = (
        _stratified(ordered, length, min_overlap, seed)
        if rule == "session"
        else _chronological(ordered)
    )
    return {
        split: [
            Part(s, 0, len(s.values))
            for s, place in zip(ordered, places, strict=True)
            if place == split
        ]
        for split in SPLITS
    }


def _chronological(ordered: Sequence[Session]) -> list[str]:
    """Split of each session: cuts where 60 and 80 % of the recorded time are nearest, at least one
    session each.
    """
    after = np.cumsum([session.recorded for session in ordered])
    first = int(np.argmin(np.abs(after[:-2] - FRACTIONS["train"] * after[-1]))) + 1
    second = (
        int(np.argmin(np.abs(after[first:-1] - (1 - FRACTIONS["test"]) * after[-1]))) + first + 1
    )
    return ["train"] * first + ["val"] * (second - first) + ["test"] * (len(ordered) - second)


def _stratified(
    ordered: Sequence[Session], length: int, min_overlap: MinOverlap, seed: int
) -> list[str]:
    """Split of each session: StratifiedGroupKFold, one fold each for val and test, the rest trains.

    Several draws of folds are made (it is greedy, and breaks ties by order). Of all their pairs of
    folds, those count that leave no split without a class and come nearest to 60/20/20 of windows
    and of positives; among the nearly equal ones the seed chooses.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    number, random = min(5, len(ordered)), np.random.default_rng(seed)
    # Stratified by the labels of windows laid end to end. Each counts `number` times, which changes
    # no share and spares small sets the class-size complaint.
    whole = [Part(session, 0, len(session.values)) for session in ordered]
    labels = [
        np.repeat(
            label_windows(p.session.bouts, _starts(p, length, length), length, min_overlap), number
        )
        for p in whole
    ]
    sizes = np.array([[len(part), part.sum()] for part in labels], float)
    found: dict[tuple[str, ...], tuple[int, int, float]] = {}
    for _ in range(DRAWS):
        # Its own shuffle=True (scikit-learn 1.5 to 1.7) shuffles class counts away from their
        # groups.
        renamed = random.permutation(len(ordered)).tolist()
        groups = np.repeat(renamed, [len(part) for part in labels])
        folds = StratifiedGroupKFold(number).split(
            np.zeros(len(groups)), np.concatenate(labels), groups
        )
        drawn = [set(groups[rows].tolist()) for _, rows in folds]
        for val, test in permutations(range(number), 2):
            places = tuple(
                "val" if group in drawn[val] else "test" if group in drawn[test] else "train"
                for group in renamed
            )
            found[places] = _imbalance(places, sizes)
    best = min(found.values())
    near = sorted(
        places for places, how in found.items() if how[:2] == best[:2] and how[2] <= best[2] + NEAR
    )
    return list(near[random.integers(len(near))])


def _imbalance(places: Sequence[str], sizes: Floats) -> tuple[int, int, float]:
    """How bad an assignment is: empty splits, classes missing from splits, distance from 60/20/20.
    `sizes` is [sessions, (windows, positives)].
    """
    inside = np.array([sizes[np.array(places) == split].sum(axis=0) for split in SPLITS])
    windows, positives = inside.T
    missing = int((positives == 0).sum() + (positives == windows).sum())
    shares = inside / np.maximum(sizes.sum(axis=0), 1)
    distance = np.abs(shares - np.array([[FRACTIONS[split]] for split in SPLITS])).sum()
    return int((windows == 0).sum()), missing, round(float(distance), 9)


def time_blocks(session: Session, length: int) -> dict[str, tuple[int, int]]:
    """Sample ranges [begin, end) of the train, val and test block of a session, at least `length`
    samples apart.

    The blocks share the recorded time, without the two gaps, 60/20/20. A boundary inside a bout
    moves to the nearer end of it, so that no bout has samples in two splits. One case is excepted:
    a bout from the first sample to the last is the session's label, and there is no place outside
    it where a boundary could go.

    Raises:
        InputError: too short for three blocks of a window each.
    """
    present = np.concatenate([np.arange(begin, end) for begin, end in session.pieces])
    usable = len(present) - 2 * length
    if usable < 3 * length:
        raise InputError(
            f"session {session.name} is too short for --split time: {len(present) / session.rate:g}"
            f" s, but three blocks of a window and two gaps take {5 * length / session.rate:g} s;"
            " leave it out, shorten --window_seconds or use --split session"
        )
    size = len(session.values)
    protected = [] if spans(session) else _sample_ranges(session.bouts)
    # Each block takes its share, and a window at least; nearly always that is its share.
    val_size = max(length, round(FRACTIONS["val"] * usable))
    first = _outside(protected, int(present[usable - 2 * val_size - 1]) + 1, 0, size)
    val_begin = _after(protected, first + length, size)
    second = _outside(protected, int(present[-val_size - length - 1]) + 1, val_begin, size)
    return {
        "train": (0, first),
        "val": (val_begin, second),
        "test": (_after(protected, second + length, size), size),
    }


def spans(session: Session) -> bool:
    """Whether one bout covers the session from the first sample to the last."""
    return bool(
        len(session.bouts)
        and session.bouts[0, 0] <= 0
        and session.bouts[0, 1] >= len(session.values) - 1
    )


def _sample_ranges(bouts: Floats) -> list[tuple[int, int]]:
    """Whole-sample ranges that hold the bouts, joined where they share a sample."""
    ranges: list[tuple[int, int]] = []
    for start, end in zip(
        np.floor(bouts[:, 0]).astype(int).tolist(),
        np.ceil(bouts[:, 1]).astype(int).tolist(),
        strict=True,
    ):
        if ranges and start < ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges


def _outside(bouts: Sequence[tuple[int, int]], place: int, low: int, high: int) -> int:
    """The boundary nearest to `place` and between `low` and `high` that is strictly inside no bout
    (`low` and `high` are not).
    """
    for start, end in bouts:
        if start < place < end:
            return min(
                (edge for edge in (start, end) if low <= edge <= high),
                key=lambda edge: abs(edge - place),
                default=low,
            )
    return min(max(place, low), high)


def _after(bouts: Sequence[tuple[int, int]], place: int, high: int) -> int:
    """The first boundary from `place` on that is strictly inside no bout."""
    return min(next((end for start, end in bouts if start < place < end), place), high)


def cut_windows(
    parts: Iterable[Part], length: int, stride: int, min_overlap: MinOverlap, channels: int
) -> Windows:
    """All windows that lie inside one gapless stretch of one part, every `stride` samples from its
    beginning.
    """
    x: list[NDArray[np.float32]] = [np.zeros((0, channels, length), np.float32)]
    y: list[Ints] = [np.zeros(0, np.int64)]
    sessions: list[str] = []
    starts_s: list[float] = []
    for part in parts:
        starts = _starts(part, length, stride)
        if len(starts):
            x.append(
                np.lib.stride_tricks.sliding_window_view(part.session.values, length, axis=0)[
                    starts
                ]
            )
            y.append(label_windows(part.session.bouts, starts, length, min_overlap))
            sessions += [part.session.name] * len(starts)
            starts_s += np.round(part.session.start_s + starts / part.session.rate, 6).tolist()
    return Windows(np.concatenate(x), np.concatenate(y), sessions, starts_s)


def _starts(part: Part, length: int, stride: int) -> Ints:
    ranges = [(max(begin, part.begin), min(end, part.end)) for begin, end in part.session.pieces]
    return np.concatenate(
        [
            np.zeros(0, np.int64),
            *(np.arange(begin, end - length + 1, stride) for begin, end in ranges),
        ]
    )


def shared_sample(
    windows: Mapping[str, Iterable[tuple[str, float]]], window_seconds: float, rate: float
) -> str | None:
    """Two windows of different splits that share a sample, described, or None: the proof that
    splits are apart.

    It knows nothing of how the splits were made. Windows are all of one length, so if any two of
    different splits overlap, two neighbours in order of start do.

    Args:
        windows: session and start second of each window, by split.
    """
    order = sorted(
        (session, start, split) for split, rows in windows.items() for session, start in rows
    )
    for (session, start, split), (next_session, next_start, next_split) in pairwise(order):
        if (
            session == next_session
            and split != next_split
            and next_start - start < window_seconds - 0.5 / rate
        ):
            return (
                f"session {session}: the {split} window at {start:g} s and the {next_split} window"
                f" at {next_start:g} s"
            )
    return None


def annotated_bouts(
    sessions: Sequence[Session], parts: Mapping[str, Sequence[Part]]
) -> list[tuple[str, float, float, str]]:
    """Rows (session, start_s, end_s, split) of {participant}_bouts.csv: every annotation as given.

    Times are on the recording's own clock, as in {participant}_{split}_windows.csv. Annotations
    are not joined, even where they touch or overlap. Each is clipped to what was recorded: from
    the first to the last recorded sample inside it, so that a short gap in a bout does not make
    two of it; one that lies in a gap altogether has no row. An annotation that reaches into
    several splits (only a session labelled from end to end does) is clipped to each of them. The
    split is empty where an annotation lies between splits: no window of any split sees it.
    """
    rows: list[tuple[str, float, float, str]] = []
    for session in sessions:
        own = [(split, part) for split in parts for part in parts[split] if part.session is session]
        for start, end in sorted(session.annotations.tolist()):
            kept = [
                (split, *found)
                for split, part in own
                if (found := recorded_within(session, max(start, part.begin), min(end, part.end)))
            ]
            if not kept and (found := recorded_within(session, start, end)):
                kept = [("", *found)]
            rows += [
                (
                    session.name,
                    round(session.start_s + begin / session.rate, 6),
                    round(session.start_s + stop / session.rate, 6),
                    split,
                )
                for split, begin, stop in kept
            ]
    return rows


def recorded_within(session: Session, start: float, end: float) -> tuple[float, float] | None:
    """The range [start, end) without what was not recorded at its two ends; None where nothing is
    left.
    """
    inside = [
        (max(start, begin), min(end, stop))
        for begin, stop in session.pieces
        if max(start, begin) < min(end, stop)
    ]
    return (inside[0][0], inside[-1][1]) if inside else None


def covered_hours(places: Iterable[tuple[str, float]], window_seconds: float) -> float:
    """Hours of recording that windows cover: the union of [start, start + window_seconds) in each
    session, so that overlaps count once.

    Args:
        places: session and start second of each window, in any order.
    """
    order = sorted(places)
    if not order:
        return 0.0
    steps = (
        after - start if session == same else window_seconds
        for (session, start), (same, after) in pairwise(order)
    )
    return (sum(min(step, window_seconds) for step in steps) + window_seconds) / 3600
