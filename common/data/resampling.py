"""Timed samples onto a regular grid: exactly where they already lie on it, by splines elsewhere.

Between evenly spread samples a spline of degree 5 is used. A linear interpolation from 31.25 to
50 Hz loses 29 % of a 10 Hz component, a cubic spline 5 %, this one 1 %. Next to a pause and next to
a level that a signal is clipped at, where a spline would overshoot, values stay between those of
the two neighbouring samples. What was sampled faster than the grid is low-passed first.

Long recordings are worked through in blocks that overlap by more than the filters reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.data.clock import GAP_STEPS
from common.data.sessions import NO_RANGES, Floats, Ints, Session, merge_ranges, true_ranges

DEGREE = 5
# A grid point this near to a sample, in seconds, is that sample: clocks in epoch seconds resolve
# no more
SAME_TIME_S = 4e-7
# Samples whose distance from the next is within these times the usual one are evenly spread
EVEN = (0.4, 1.6)
END_STEPS = 3  # at each end of a stretch, where a spline knows only one side
FASTER = 1.05  # times the grid's rate: what was sampled faster than this is low-passed
LOW_PASS = 0.45  # of the grid's rate
MIRRORED = 10  # grid samples beyond both ends, from where the low pass swings in
AT_THE_LEVEL, CLIPPED_TIMES = 5, 3.0  # samples, and times the usual number of equal ones
BLOCK_SAMPLES = 1 << 17
REACH = 256  # samples of the slower of both rates, beyond which nothing is felt any more


def make_session(
    name: str,
    start_s: float,
    times: Floats,
    values: NDArray[np.floating],
    bouts_s: Floats,
    rate: float,
    max_gap_s: float | None = None,
    *,
    unknown_s: Floats = NO_RANGES,
    joints: Sequence[int] = (),
) -> Session:
    """A session from timed samples.

    Args:
        times: [samples], seconds since the first sample, increasing.
        values: [samples, channels].
        bouts_s, unknown_s: [n, 2], start and end in seconds since the first sample.
        rate: of the grid, in Hz.
        max_gap_s: a longer pause between samples is a gap (None: five usual sample intervals).
        joints: samples before which there is a gap, whatever the clock says.
    """
    steps = np.diff(times)
    longest = GAP_STEPS * float(np.median(steps)) if max_gap_s is None else max_gap_s
    breaks = sorted({*(np.flatnonzero(steps > longest) + 1).tolist(), *joints})
    within = steps[steps <= longest]
    grid = np.full(
        (int(np.floor(times[-1] * rate + 1e-6)) + 1, values.shape[1]), np.nan, np.float32
    )
    pieces = []
    for begin, end in pairwise([0, *breaks, len(times)]):
        first = int(np.ceil(times[begin] * rate - 1e-6))
        last = int(np.floor(times[end - 1] * rate + 1e-6))
        if first <= last:
            onto_grid(times[begin:end], values[begin:end], first, rate, grid[first : last + 1])
            pieces.append((first, last + 1))
    return Session(
        name,
        start_s,
        rate,
        grid,
        tuple(pieces),
        merge_ranges(bouts_s * rate),
        np.round(bouts_s * rate, 3).reshape(-1, 2),
        1 / float((within if len(within) else steps).mean()),
        merge_ranges(unknown_s * rate),
    )


def onto_grid(
    times: Floats, values: NDArray[np.floating], first: int, rate: float, out: NDArray[np.float32]
) -> None:
    """Fill `out` [points, channels] with the signal at (first + k) / rate seconds.

    Args:
        times: [samples], without a gap, from no later than the first point to no earlier than the
            last.
        values: [samples, channels].
    """
    for begin, end in _blocks(len(times), len(out)):
        at = np.arange(first + begin, first + end) / rate
        reach = REACH * max(1 / rate, (times[-1] - times[0]) / max(len(times) - 1, 1))
        low, high = np.searchsorted(times, [at[0] - reach, at[-1] + reach])
        rows = slice(max(int(low) - 1, 0), int(high) + 1)
        out[begin:end] = _resampled(times[rows], values[rows].astype(np.float64), at, rate)


def _blocks(samples: int, points: int) -> Iterator[tuple[int, int]]:
    """Ranges of grid points that are made from about `BLOCK_SAMPLES` samples each."""
    size = max(1, round(BLOCK_SAMPLES * points / max(samples, points)))
    for begin in range(0, points, size):
        yield begin, min(begin + size, points)


def _resampled(times: Floats, values: Floats, at: Floats, rate: float) -> Floats:
    if len(times) > 2:
        sampled_at = (len(times) - 1) / (times[-1] - times[0])
        if sampled_at > FASTER * rate:
            times, values = _low_passed(times, values, sampled_at, rate)
    return interpolate(at, times, values)


def _low_passed(
    times: Floats, values: Floats, sampled_at: float, rate: float
) -> tuple[Floats, Floats]:
    """Evenly spread samples without what the grid cannot hold (zero phase)."""
    from scipy.signal import butter, sosfiltfilt

    even = np.linspace(times[0], times[-1], len(times))
    if np.abs(even - times).max() > SAME_TIME_S:
        values = interpolate(even, times, values)
    low = butter(8, LOW_PASS * rate, fs=sampled_at, output="sos")
    beyond = min(max(27, round(MIRRORED * sampled_at / rate)), len(times) - 1)
    passed = sosfiltfilt(low, values, axis=0, padlen=beyond)
    return even, np.clip(passed, *clip_levels(values))


def interpolate(at: Floats, times: Floats, values: Floats) -> Floats:
    """The signal [points, channels] at the times `at`.

    Args:
        times: [samples], increasing.
        values: [samples, channels].
    """
    right = np.searchsorted(times, at).clip(1, len(times) - 1) if len(times) > 1 else at * 0
    right = right.astype(np.int64)
    left = np.maximum(right - 1, 0)
    near_left = np.abs(at - times[left]) <= np.abs(times[right] - at)
    nearest = np.where(near_left, left, right)
    made: Floats = values[nearest]  # a copy
    between = np.flatnonzero(np.abs(at - times[nearest]) > SAME_TIME_S)
    if len(between):
        made[between] = _between(at[between], left[between], times, values)
    return made


def _between(at: Floats, left: Ints, times: Floats, values: Floats) -> Floats:
    """The signal between sample `left` and the next one: by a spline, else on a straight line."""
    share = ((at - times[left]) / (times[left + 1] - times[left]))[:, None]
    lower, upper = values[left], values[left + 1]
    made: Floats = lower + share * (upper - lower)
    steps = np.diff(times)
    usual = np.median(steps)
    even = (steps > EVEN[0] * usual) & (steps < EVEN[1] * usual)
    for begin, end in true_ranges(even).tolist():
        inside = slice(*np.searchsorted(left, [begin, end]))
        if end - begin >= 2 * DEGREE and inside.stop > inside.start:
            made[inside] = _spline(at[inside], times[begin : end + 1], values[begin : end + 1])
    held = _at_a_level(values)[left] | ~np.isfinite(made)
    bounds = np.minimum(lower, upper), np.maximum(lower, upper)
    made = np.clip(made, *clip_levels(values))
    return np.where(held, np.clip(np.nan_to_num(made), *bounds), made)


def clip_levels(values: Floats) -> tuple[Floats, Floats]:
    """The levels [channels] that a signal is clipped at below and above, infinite where it is not.

    It is where its lowest or highest value comes again and again, more often than its values do.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    for levels, none in ((low, -np.inf), (high, np.inf)):
        often = np.count_nonzero(values == levels, axis=0)
        for channel in range(values.shape[1]):
            if often[channel] >= AT_THE_LEVEL:
                distinct = len(np.unique(values[:, channel]))
                clipped = often[channel] >= CLIPPED_TIMES * len(values) / distinct
            else:
                clipped = False
            if not clipped:
                levels[channel] = none
    return low, high


def _spline(at: Floats, times: Floats, values: Floats) -> Floats:
    """A spline of degree 5, straight beyond its ends (as if mirrored in the first and last point).

    Near its ends it stays within the range that the signal has elsewhere.
    """
    from scipy.interpolate import make_interp_spline

    origin = times[0]  # near zero, where floats are finest
    straight = [(order, np.zeros(values.shape[1])) for order in (2, 4)]
    spline = make_interp_spline(times - origin, values, k=DEGREE, bc_type=(straight, straight))
    made: Floats = spline(at - origin)
    ends = (at < times[END_STEPS]) | (at > times[-1 - END_STEPS])
    sure = np.concatenate([values, made[~ends]])
    made[ends] = np.clip(made[ends], sure.min(axis=0), sure.max(axis=0))
    return made


def _at_a_level(values: Floats) -> NDArray[np.bool_]:
    """Whether a signal stays at a level at one end of each interval [samples - 1, channels].

    It does where three samples in a row are equal, or two of them at its highest or lowest value:
    clipped, or at rest.
    """
    equal = np.diff(values, axis=0) == 0
    extreme = (values[1:] == values.max(axis=0)) | (values[1:] == values.min(axis=0))
    level = equal & extreme
    level[1:] |= equal[1:] & equal[:-1]
    level[:-1] |= equal[1:] & equal[:-1]
    near: NDArray[np.bool_] = level.copy()
    near[1:] |= level[:-1]
    near[:-1] |= level[1:]
    return near
