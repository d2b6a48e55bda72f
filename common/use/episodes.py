"""Episodes: the positive stretches of a session, made from window probabilities.

One code for predict.py, which writes them, and for the report, which scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]  # start and end in seconds
SAME = 1e-6  # seconds; stretches closer than this touch


@dataclass(frozen=True)
class Episode:
    """A stretch of one session that was called positive. Times are in seconds."""

    start_s: float
    end_s: float
    mean_probability: float  # over the windows at or above the threshold

    @property
    def interval(self) -> Interval:
        """Start and end."""
        return self.start_s, self.end_s


def episodes(
    starts: ArrayLike,
    probabilities: ArrayLike,
    window_seconds: float,
    threshold: float = 0.5,
    merge_gap_seconds: float = 0.0,
    min_episode_seconds: float = 0.0,
) -> list[Episode]:
    """Join the positive windows of one session into episodes, in order of time.

    A window is positive from `threshold` up and covers `window_seconds` from its start. Positive
    windows that overlap, touch, or lie at most `merge_gap_seconds` apart are one episode. Episodes
    shorter than `min_episode_seconds` are dropped, after the joining.

    Args:
        starts: start second of each window `[windows]`, in any order.
        probabilities: of being positive, `[windows]`.
        window_seconds: length of a window.
    """
    times, p = np.asarray(starts, dtype=float), np.asarray(probabilities, dtype=float)
    order = np.argsort(times, kind="stable")
    times, p = times[order], p[order]
    positive = p >= threshold
    times, p = times[positive], p[positive]
    found = []
    for first, last in _groups(times, window_seconds + merge_gap_seconds):
        episode = Episode(
            float(times[first]),
            float(times[last - 1]) + window_seconds,
            float(p[first:last].mean()),
        )
        if episode.end_s - episode.start_s >= min_episode_seconds - SAME:
            found.append(episode)
    return found


def recorded(starts: ArrayLike, window_seconds: float) -> list[Interval]:
    """The recorded stretches of one session: what its windows cover, overlaps counted once."""
    times = np.sort(np.asarray(starts, dtype=float))
    return [
        (float(times[first]), float(times[last - 1]) + window_seconds)
        for first, last in _groups(times, window_seconds)
    ]


def _groups(times: NDArray[Any], reach: float) -> Sequence[tuple[int, int]]:
    """First index and index after the last of each run of ascending times at most `reach` apart."""
    if not len(times):
        return []
    breaks = (np.flatnonzero(np.diff(times) > reach + SAME) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(times)], strict=True))
