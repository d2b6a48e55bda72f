"""Windows of a fixed length cut out of sessions, and their labels. Arrays only: no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.data.sessions import Ints, Part, Session, covered

MinOverlap = float | Literal["any"]
BLOCK_BYTES = 8 << 20
LEAST = 1e-6  # samples: less than this of a bout in a window is nothing


@dataclass(frozen=True)
class Labelling:
    """How windows are cut and labelled.

    Attributes:
        length, stride: in samples.
        min_overlap: fraction of a window that bouts must cover to label it 1; "any": some of it.
        exclude_partial: leave out windows that bouts cover in part, but by less than that.
    """

    length: int
    stride: int
    min_overlap: MinOverlap = "any"
    exclude_partial: bool = False


@dataclass(frozen=True)
class PlacedWindows:
    """Windows of one split in time order: where each begins, and its label.

    Attributes:
        places: (session, first samples of its windows).
        y: int64 [windows].
    """

    places: list[tuple[Session, Ints]]
    y: Ints
    length: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """[windows, channels, samples]."""
        return len(self.y), self.channels, self.length

    def sessions(self) -> list[str]:
        """Session of each window."""
        return [session.name for session, starts in self.places for _ in range(len(starts))]

    def starts_s(self) -> list[float]:
        """Start of each window on its session's own clock, in seconds."""
        return [
            second
            for session, starts in self.places
            for second in np.round(session.start_s + starts / session.rate, 6).tolist()
        ]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The windows in order, [some, channels, samples] at a time."""
        size = max(1, BLOCK_BYTES // (4 * self.channels * self.length))
        for session, starts in self.places:
            for begin in range(0, len(starts), size):
                own = starts[begin : begin + size]
                stretch = session.values[int(own[0]) : int(own[-1]) + self.length]
                views = np.lib.stride_tricks.sliding_window_view(stretch, self.length, axis=0)
                yield views[own - own[0]]

    def x(self) -> NDArray[np.float32]:
        """All windows, [windows, channels, samples]."""
        return np.concatenate([np.zeros((0, *self.shape[1:]), np.float32), *self.blocks()])


def place_windows(parts: Iterable[Part], how: Labelling, channels: int) -> PlacedWindows:
    """All windows that lie inside one gapless stretch of one part, every `how.stride` samples from
    its beginning, without those whose label is not known.
    """
    places: list[tuple[Session, Ints]] = []
    labels: list[Ints] = [np.zeros(0, np.int64)]
    for part in parts:
        starts = window_starts(part, how.length, how.stride)
        known = label_windows(part.session, starts, how)
        if (known >= 0).any():
            places.append((part.session, starts[known >= 0]))
            labels.append(known[known >= 0])
    return PlacedWindows(places, np.concatenate(labels), how.length, channels)


def window_starts(part: Part, length: int, stride: int) -> Ints:
    """First samples of a part's windows."""
    ranges = [(max(begin, part.begin), min(end, part.end)) for begin, end in part.session.pieces]
    return np.concatenate(
        [
            np.zeros(0, np.int64),
            *(np.arange(begin, end - length + 1, stride) for begin, end in ranges),
        ]
    )


def label_windows(session: Session, starts: Ints, how: Labelling) -> Ints:
    """1 where bouts cover enough of a window, 0 elsewhere; -1 where the window is to be left out.

    Args:
        starts: [windows], first samples.
    """
    inside = covered(session.bouts, starts, how.length)
    needed = LEAST if how.min_overlap == "any" else how.min_overlap * how.length - LEAST
    labels: Ints = (inside >= needed).astype(np.int64)
    if how.exclude_partial:
        labels[(inside >= LEAST) & (inside < needed)] = -1
    labels[covered(session.unknown, starts, how.length) >= LEAST] = -1
    return labels


def bouts_without_window(
    session: Session, windows: Sequence[PlacedWindows], length: int
) -> list[tuple[float, float]]:
    """Annotations (start, end in samples) that overlap no window labelled 1."""
    positive = np.concatenate(
        [np.zeros(0), *(starts[y == 1] for starts, y in _of_session(session, windows))]
    )
    return [
        (start, end)
        for start, end in session.annotations.tolist()
        if not ((positive < end) & (positive + length > start)).any()
    ]


def _of_session(session: Session, windows: Sequence[PlacedWindows]) -> Iterator[tuple[Ints, Ints]]:
    for placed in windows:
        first = 0
        for own, starts in placed.places:
            if own.name == session.name:
                yield starts, placed.y[first : first + len(starts)]
            first += len(starts)


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
