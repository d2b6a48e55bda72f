"""The report's statistics, on plain numbers: exact, without resampling and without a seed. One
number a participant everywhere: windows, folds and seeds are never the unit.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Number = TypeVar("Number", Floats, Integers)

SMALLEST_N = 6  # below it no two-sided Wilcoxon test can reach .05, and no interval 95 %
TAIL = 0.025  # of a two-sided 95 % interval
UNIT = 1e-10  # differences are counted in whole units: what is left of a float sum is no difference


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. NaN ends: too few participants for one."""

    value: float
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan  # the interval's true confidence level, at least .95
    low_open: bool = False  # the end itself is rejected by the test
    high_open: bool = False


@dataclass(frozen=True)
class Paired:
    """Differences between two conditions, one a participant; positive is better."""

    n: int
    better: int
    worse: int
    zeros: int
    estimate: Estimate  # Hodges-Lehmann
    median: float
    p: float | None  # None: n too small
    effect: float  # matched-pairs rank-biserial correlation

    @property
    def p_text(self) -> str:
        """The p value as papers print it, or why there is none."""
        return p_text(self.p)

    @property
    def significant(self) -> bool:
        """Whether p is below .05, unadjusted."""
        return self.p is not None and self.p < 2 * TAIL


def p_text(p: float | None) -> str:
    """'.002', '< .001' or 'n too small'."""
    if p is None:
        return "n too small"
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0") if p < 0.1 else f"{p:.2f}".removeprefix("0")


def paired(differences: Sequence[float] | Floats) -> Paired:
    """Hodges-Lehmann estimate with the interval of the exact Wilcoxon test, and that test.

    Args:
        differences: one finite number a participant, positive where the second condition is better.
    """
    values = np.asarray(differences, dtype=float)
    whole = _whole(values)
    return Paired(
        n=len(values),
        better=int((whole > 0).sum()),
        worse=int((whole < 0).sum()),
        zeros=int((whole == 0).sum()),
        estimate=hodges_lehmann(values),
        median=float(np.median(values)) if len(values) else math.nan,
        p=wilcoxon_exact(values),
        effect=rank_biserial(values),
    )


# -- the signed-rank test


def _whole(values: Floats) -> Integers:
    """Differences in whole units, so that equal ones are ties and zeros are zeros."""
    return np.rint(np.asarray(values, dtype=float) / UNIT).astype(np.int64)


def wilcoxon_exact(differences: Sequence[float] | Floats) -> float | None:
    """Exact two-sided p of Wilcoxon's signed-rank test (Wilcoxon 1945), zeros after Pratt (1959):
    they are ranked, then left out. None where n is too small.

    The distribution over all sign patterns of the midranks is counted out (Streitberg and Roehmel
    1986), so that p is exact with ties and zeros too.
    """
    whole = _whole(np.asarray(differences, dtype=float))
    if len(whole) < SMALLEST_N:
        return None
    return float(min(1.0, 2 * min(_tails(whole))))


def _tails(whole: Integers) -> tuple[float, float]:
    """P(W+ as large or larger), P(W+ as small or smaller), given the sizes of the differences."""
    ranks, signs = _pratt_ranks(whole)
    larger, smaller = _null(tuple(sorted(ranks.tolist())))
    observed = int(ranks[signs > 0].sum())
    return float(larger[observed]), float(smaller[observed])


def _pratt_ranks(whole: Integers) -> tuple[Integers, Integers]:
    """Twice the midrank (midranks end in .0 or .5) and the sign of each difference that is not 0;
    zeros take part in the ranking.
    """
    doubled = np.rint(2 * stats.rankdata(np.abs(whole))).astype(np.int64)
    there = whole != 0
    return doubled[there], np.sign(whole[there])


@lru_cache(maxsize=4096)
def _null(ranks: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Upper and lower tail of W+ by its value, when each rank is in it with probability 1/2."""
    patterns: Floats = np.zeros(sum(ranks) + 1)
    patterns[0] = 1.0
    for rank in ranks:
        moved = np.zeros_like(patterns)
        moved[rank:] = patterns[: len(patterns) - rank]
        patterns = (patterns + moved) / 2
    return np.cumsum(patterns[::-1])[::-1], np.cumsum(patterns)


def rank_biserial(differences: Sequence[float] | Floats) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014): the favourable share of the rank sum
    minus the unfavourable, from -1 to 1; 0 where nothing differs.
    """
    ranks, signs = _pratt_ranks(_whole(np.asarray(differences, dtype=float)))
    return float((ranks * signs).sum() / ranks.sum()) if len(ranks) else 0.0


# -- intervals


def hodges_lehmann(differences: Sequence[float] | Floats) -> Estimate:
    """Median of the pairwise means (Hodges and Lehmann 1963), with the interval of all shifts that
    `wilcoxon_exact` does not reject at .05: 0 is inside exactly when p > .05.

    One-sided p values never decrease along the shift, so the interval has no holes. Where an end
    itself is rejected (zeros and ties) it is open.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return Estimate(math.nan)
    whole = _whole(values)
    sums = np.unique(_pairwise_sums(whole))
    value = float(np.median(_pairwise_sums(values) / 2))
    if len(values) < SMALLEST_N:
        return Estimate(value)

    # Positions along the shift: 2k is the gap before sums[k], 2k + 1 is sums[k] itself.
    def tails(position: int) -> tuple[float, float]:
        place, point = divmod(position, 2)
        left = sums[max(place - 1, 0)] - (2 if place == 0 else 0)
        right = sums[min(place, len(sums) - 1)] + (2 if place == len(sums) else 0)
        return _tails(4 * whole - (2 * sums[place] if point else left + right))

    last = 2 * len(sums)
    first = _first(0, last, lambda position: tails(position)[0] > TAIL)
    final = _first(first, last + 1, lambda position: tails(position)[1] <= TAIL) - 1
    return Estimate(
        value,
        low=float(sums[(first - 1) // 2] if first % 2 == 0 else sums[first // 2]) * UNIT / 2,
        high=float(sums[final // 2]) * UNIT / 2,
        level=signed_rank_level(len(values)),
        low_open=first % 2 == 0,
        high_open=final % 2 == 0,
    )


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first position from `low` for which `holds`, false before and true from there on; `high`
    where none does.
    """
    return low + bisect_left(range(low, high), True, key=holds)


def _pairwise_sums(values: Number) -> Number:
    rows, columns = np.triu_indices(len(values))
    return values[rows] + values[columns]


@lru_cache(maxsize=1024)
def signed_rank_level(n: int) -> float:
    """True level of the Hodges-Lehmann interval of n differences without ties and zeros."""
    _, smaller = _null(tuple(range(2, 2 * n + 1, 2)))
    rejected = smaller[smaller <= TAIL]
    return float(1 - 2 * rejected.max()) if n >= SMALLEST_N else math.nan


def median_interval(values: Floats) -> Estimate:
    """Median with the exact order-statistic interval: the narrowest symmetric pair of ordered
    values that holds the population's median with at least 95 %, whatever the distribution.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    if n < SMALLEST_N:
        return Estimate(float(np.median(ordered)) if n else math.nan)
    place = int(stats.binom.ppf(TAIL, n, 0.5))  # P(X <= place - 1) <= TAIL < P(X <= place)
    return Estimate(
        float(np.median(ordered)),
        float(ordered[place - 1]),
        float(ordered[n - place]),
        median_level(n),
    )


def median_level(n: int) -> float:
    """True level of the order-statistic interval of n values."""
    if n < SMALLEST_N:
        return math.nan
    place = int(stats.binom.ppf(TAIL, n, 0.5))
    return float(1 - 2 * stats.binom.cdf(place - 1, n, 0.5))


def pairwise_share(part: Floats, whole: Floats) -> Estimate:
    """The share r for which part - r * whole shows no shift: the median over all pairs of
    participants of (sum of parts) / (sum of wholes), a participant being a pair with itself. Its
    interval holds every r at which the exact Wilcoxon test of part - r * whole does not reject.

    `part`, `whole`: one number a participant, `whole` not negative. With `whole` 1 everywhere this
    is the Hodges-Lehmann estimate; no participant whose `whole` is near 0 can dominate.
    """
    top, below = _pairwise_sums(part), _pairwise_sums(whole)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sort(np.round(top / np.where(below > 1e-9, below, 0.0), 12))
    ratios = ratios[~np.isnan(ratios)]
    middle = _middle(ratios)
    finite = np.unique(ratios[np.isfinite(ratios)])
    if len(part) < SMALLEST_N or not math.isfinite(middle) or len(finite) < 2:
        return Estimate(middle)
    between = [finite[0] - 1, *((finite[1:] + finite[:-1]) / 2), finite[-1] + 1]

    def tails(place: int) -> tuple[float, float]:
        return _tails(_whole(part - between[place] * whole))

    first = _first(0, len(between), lambda place: tails(place)[0] > TAIL)
    final = _first(first, len(between), lambda place: tails(place)[1] <= TAIL) - 1
    if first == 0 or final >= len(between) - 1:  # unbounded: too many without anything to gain
        return Estimate(middle)
    level = signed_rank_level(len(part))
    return Estimate(middle, float(finite[first - 1]), float(finite[final]), level)


def _middle(ratios: Floats) -> float:
    if not len(ratios):
        return math.nan
    pair = ratios[(len(ratios) - 1) // 2], ratios[len(ratios) // 2]
    return float(np.mean(pair)) if np.isfinite(pair).all() else math.nan


# -- several tests, and what a test of this size could find


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979). Tests that could not be made (None) stay None and do
    not count.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[place] = highest
    return adjusted


@lru_cache(maxsize=256)
def detectable_shift(n: int) -> float:
    """The smallest shift, in SDs, that `wilcoxon_exact` calls reliable in 80 % of simulated
    samples of n normal differences. NaN where n is too small.

    The samples are Sobol's points, the same ones every time.
    """
    if n < SMALLEST_N:
        return math.nan
    with np.errstate(all="ignore"):
        points = stats.qmc.Sobol(n, scramble=False).random(4096)[1:]
    noise = stats.norm.ppf(points)
    _, smaller = _null(tuple(range(2, 2 * n + 1, 2)))
    # Shifted up, a sample is significant once all but `place` of its pairwise means are above 0.
    place = int((smaller <= TAIL).sum() - 1) // 2
    rows, columns = np.triu_indices(n)
    means = [
        np.partition((part[:, rows] + part[:, columns]) / 2, place, axis=1)[:, place]
        for part in np.array_split(noise, max(1, n * n // 500))
    ]
    return float(np.quantile(-np.concatenate(means), 0.8))
