"""Proof that no sample is in two splits, from the samples themselves.

Within a session, the windows of different splits must not overlap. Between sessions, recordings are
compared row by row: one file copied, two exports that share a stretch, or one recording under two
people would carry samples from one split into another, whatever the sessions are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.clock import Clock, shown_seconds
from common.data.sessions import Floats, Ints
from common.errors import InputError

Hashes = NDArray[np.uint64]
# Rows are compared in blocks of so many, of which half must differ from the row before: a sensor at
# rest gives the same few rows again and again
BLOCK_ROWS, CHANGES = 32, 16
# Of the hashes in so many neighbouring blocks the smallest is kept (winnowing: Schleimer, Wilkerson
# and Aiken 2003): any shared stretch of BLOCK_ROWS + NEIGHBOURS - 1 rows has one in common
NEIGHBOURS = 64
SHARED_ROWS = BLOCK_ROWS + NEIGHBOURS - 1
AT_A_TIME = 1 << 19  # rows
EDGE_ROWS = SHARED_ROWS  # at each end, kept whole
SAME_STAMP_S = 1e-3
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Fingerprint:
    """What one recording is compared by.

    Attributes:
        sha256: of the file.
        anchors: hashes of some blocks of rows, and `at_s`, the time of each on the clock.
        head, tail: hash and time of each of the first and last rows.
    """

    participant: str
    session: str
    path: str
    sha256: str
    start_s: float
    end_s: float
    rows: int
    anchors: Hashes
    at_s: Floats
    head: tuple[Hashes, Floats]
    tail: tuple[Hashes, Floats]

    @property
    def name(self) -> str:
        return f"{self.participant}/{self.session}"


def fingerprint(
    participant: str,
    session: str,
    path: Path | str,
    sha256: str,
    clock: Clock,
    values: NDArray[np.float32],
) -> Fingerprint:
    """What a recording is compared by. `values`: [rows, channels], as recorded."""
    hashes, rows = _anchors(values)
    times = clock.start_s + clock.times[rows]
    head, tail = (
        (_row_hashes(values[end]), clock.start_s + clock.times[end])
        for end in (slice(None, EDGE_ROWS), slice(-EDGE_ROWS, None))
    )
    last_s = clock.start_s + float(clock.times[-1])
    return Fingerprint(
        participant,
        session,
        str(path),
        sha256,
        clock.start_s,
        last_s,
        len(values),
        hashes,
        times,
        head,
        tail,
    )


def _mixed(hashes: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the input changes half of the output's."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _row_hashes(values: NDArray[np.float32]) -> Hashes:
    """A hash of each row, of its float32 values."""
    hashes: Hashes = np.zeros(len(values), np.uint64)
    for channel in values.T:
        bits = (channel + np.float32(0)).view(np.uint32)  # -0 is 0
        hashes = _mixed(hashes * MULTIPLIER + bits + np.uint64(1))
    return hashes


def _anchors(values: NDArray[np.float32]) -> tuple[Hashes, Ints]:
    """Hashes of the chosen blocks of rows, and the first row of each."""
    hashes: list[Hashes] = [np.zeros(0, np.uint64)]
    places: list[Ints] = [np.zeros(0, np.int64)]
    for begin in range(0, len(values), AT_A_TIME):
        end = min(begin + AT_A_TIME, len(values))
        low, high = max(begin - 2 * NEIGHBOURS, 0), end + 2 * SHARED_ROWS
        found, rows = _anchors_of(_row_hashes(values[low:high]))
        own = (rows + low >= begin) & (rows + low < end)
        hashes.append(found[own])
        places.append(rows[own] + low)
    return np.concatenate(hashes), np.concatenate(places)


def _anchors_of(rows: Hashes) -> tuple[Hashes, Ints]:
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    count = len(rows) - BLOCK_ROWS + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    blocks: Hashes = np.zeros(count, np.uint64)
    for place in range(BLOCK_ROWS):
        blocks = blocks * MULTIPLIER + rows[place : place + count]
    blocks = _mixed(blocks)
    changed = np.concatenate([[0], np.cumsum(rows[1:] != rows[:-1])])
    moving = changed[BLOCK_ROWS - 1 :] - changed[:count] >= CHANGES
    # As whole numbers that a double holds: the filters compute with doubles
    order = np.where(moving, (blocks >> np.uint64(12)).astype(np.float64), 2.0**53)
    # Smallest in one of the windows that hold it: the least of each, then the greatest of those
    least = minimum_filter1d(order, NEIGHBOURS, mode="nearest")
    kept: Ints = np.flatnonzero(
        (maximum_filter1d(least, NEIGHBOURS, mode="nearest", origin=-1) == order) & moving
    )
    return blocks[kept], kept


# -- between sessions


@dataclass(frozen=True)
class Shared:
    """A stretch that two recordings share."""

    one: Fingerprint
    other: Fingerprint
    begin_s: float
    end_s: float
    at_once: bool  # at the same time on their clocks


def refuse_shared(prints: Sequence[Fingerprint]) -> list[str]:
    """Compare all recordings with each other. Returns warnings about equal stretches at different
    times on the clocks of one person, which may be copies or may not.

    Raises:
        InputError: two recordings are equal files, or hold the same samples.
    """
    _refuse_equal_files(prints)
    _refuse_shared_ends(prints)
    warnings = []
    for shared in shared_stretches(prints):
        one, other = shared.one, shared.other
        stretch = f"{shown_seconds(shared.begin_s)} to {shown_seconds(shared.end_s)} s"
        if shared.at_once:
            raise InputError(
                f"{one.path} and {other.path} hold the same samples from {stretch}; remove one of"
                " them or cut the shared stretch out of one, so that no sample is in two splits"
            )
        warnings.append(
            f"{one.name} and {other.name} hold equal rows, {stretch} of {one.session}, at another"
            f" time in {other.session}: if one is a copy, remove it"
        )
    return warnings


def _refuse_equal_files(prints: Sequence[Fingerprint]) -> None:
    first: dict[str, Fingerprint] = {}
    for own in prints:
        twin = first.setdefault(own.sha256, own)
        if twin is not own:
            raise InputError(
                f"{twin.path} and {own.path} are the same file; remove one of them"
                + ("" if twin.participant == own.participant else ", whoever it does not belong to")
            )


def _refuse_shared_ends(prints: Sequence[Fingerprint]) -> None:
    """A few rows at the end of one session that are also the first ones of the next."""
    people: dict[str, list[Fingerprint]] = {}
    for own in prints:
        people.setdefault(own.participant, []).append(own)
    for sessions in people.values():
        for one, other in pairwise(sorted(sessions, key=lambda p: p.start_s)):
            if one.start_s < other.start_s <= one.end_s <= other.end_s:
                _refuse_end(one, other)


def _refuse_end(one: Fingerprint, other: Fingerprint) -> None:
    inside = one.tail[1] >= other.start_s - SAME_STAMP_S
    count = min(int(inside.sum()), len(other.head[0]))
    if not count or (inside.all() and one.rows > len(inside)):
        return  # more than the ends is shared, if anything: anchors tell
    hashes, times = one.tail[0][inside][:count], one.tail[1][inside][:count]
    near = np.abs(other.head[1][:count] - times) <= SAME_STAMP_S
    if (near & (other.head[0][:count] == hashes)).all():
        raise InputError(
            f"{one.path} and {other.path} hold the same samples from {shown_seconds(times[0])} to"
            f" {shown_seconds(times[-1])} s ({count} row(s)); remove them from one of the two"
        )


def shared_stretches(prints: Sequence[Fingerprint]) -> list[Shared]:
    """Stretches that two recordings share, found by their anchors: one a pair."""
    owners = np.repeat(np.arange(len(prints)), [len(p.anchors) for p in prints])
    hashes = np.concatenate([np.zeros(0, np.uint64), *(p.anchors for p in prints)])
    times = np.concatenate([np.zeros(0), *(p.at_s for p in prints)])
    order = np.lexsort((times, hashes))  # equal rows at equal times are neighbours
    hashes, owners, times = hashes[order], owners[order], times[order]
    twice = np.flatnonzero((hashes[1:] == hashes[:-1]) & (owners[1:] != owners[:-1]))
    pairs: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for place in twice.tolist():
        ends = sorted((int(owners[k]), float(times[k])) for k in (place, place + 1))
        pairs.setdefault((ends[0][0], ends[1][0]), []).append((ends[0][1], ends[1][1]))
    return [_shared(prints[a], prints[b], found) for (a, b), found in sorted(pairs.items())]


def _shared(one: Fingerprint, other: Fingerprint, found: list[tuple[float, float]]) -> Shared:
    at_once = [own for own, its in found if abs(own - its) <= SAME_STAMP_S]
    times = at_once or [own for own, _ in found]
    begin, end = min(times), max(times)
    if at_once:  # between two anchors that are not shared lies where it ends: at a file's, mostly
        reach = SHARED_ROWS * (one.end_s - one.start_s) / one.rows
        first, last = max(one.start_s, other.start_s), min(one.end_s, other.end_s)
        begin = first if begin - first <= reach else begin
        end = last if last - end <= reach else end
    return Shared(one, other, begin, end, bool(at_once))


# -- within a session


def shared_sample(
    windows: Mapping[str, Iterable[tuple[str, float]]], window_seconds: float, rate: float
) -> str | None:
    """Two windows of different splits that share a sample, described, or None.

    It does not depend on how the splits were made. Windows are all of one length, so if any two of
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
