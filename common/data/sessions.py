"""A session: one continuous recording of one person on a regular grid. Arrays only: no files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_RANGES: Floats = np.zeros((0, 2))


def true_ranges(flags: NDArray[np.bool_]) -> Ints:
    """Ranges [begin, end) in which all flags are set, as [ranges, 2]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)


class Samples(Protocol):
    """Float32 [samples, channels], in memory or in a file; a slice of it is an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> NDArray[Any]: ...


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
        unknown: as `bouts`, of the stretches whose label is not known.
    """

    name: str
    start_s: float
    rate: float
    values: Samples
    pieces: tuple[tuple[int, int], ...]
    bouts: Floats
    annotations: Floats
    sampled_at: float
    unknown: Floats = field(default_factory=lambda: NO_RANGES)

    @property
    def recorded(self) -> int:
        """Samples outside gaps."""
        return sum(end - begin for begin, end in self.pieces)

    @property
    def end_s(self) -> float:
        """The last sample's time on the recording's own clock, in seconds."""
        return self.start_s + (len(self.values) - 1) / self.rate

    def present(self) -> Ints:
        """Numbers of the samples outside gaps."""
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(*p) for p in self.pieces)])


@dataclass(frozen=True)
class Part:
    """The samples [begin, end) of one session, all in one split."""

    session: Session
    begin: int
    end: int


def merge_ranges(ranges: Floats) -> Floats:
    """Ranges [n, 2] sorted by start, overlapping and touching ones joined.

    In samples, to a thousandth: a clock in epoch seconds resolves no more.
    """
    merged: list[list[float]] = []
    for start, end in sorted(np.round(ranges, 3).tolist()):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return np.array(merged, np.float64).reshape(-1, 2)


def covered(ranges: Floats, starts: Ints | Floats, length: float) -> Floats:
    """How much of each [start, start + length) the ranges cover.

    Args:
        ranges: [n, 2], sorted and disjoint.
    """
    if not len(ranges):
        return np.zeros(len(starts))
    before = np.concatenate([[0.0], np.cumsum(ranges[:, 1] - ranges[:, 0])])
    covered_until = np.repeat(before, 2)[1:-1]  # at start_0, end_0, start_1, end_1, ...
    ends = ranges.ravel()
    found: Floats = np.interp(starts + length, ends, covered_until) - np.interp(
        starts, ends, covered_until
    )
    return found


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


def in_order(sessions: Sequence[Session]) -> tuple[list[Session], bool]:
    """Sessions in time order, and whether their clocks gave it: where recordings overlap (each
    starts at its own zero), names do.
    """
    by_clock = sorted(sessions, key=lambda s: s.start_s)
    if all(a.end_s < b.start_s for a, b in pairwise(by_clock)):
        return by_clock, True
    return sorted(sessions, key=lambda s: natural(s.name)), False


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts session2 before session10."""
    return [
        (not digits, int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)
    ]
