"""The report's statistics, on plain numbers. One number a participant everywhere: windows, folds
and seeds are never the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

RESAMPLES = 10_000
SEED = 20240
SMALLEST_N = 6  # below it no two-sided Wilcoxon test can reach .05


@dataclass(frozen=True)
class Paired:
    """Differences between two conditions, one a participant; positive is better."""

    n: int
    better: int
    worse: int
    zeros: int
    median: float
    low: float
    high: float
    p: float | None  # None: n too small

    @property
    def p_text(self) -> str:
        """The p value as papers print it, or why there is none."""
        return p_text(self.p)


def p_text(p: float | None) -> str:
    """'.002', '< .001' or 'n too small'."""
    if p is None:
        return "n too small"
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0") if p < 0.1 else f"{p:.2f}".removeprefix("0")


def paired(differences: Sequence[float] | Floats, resamples: int = RESAMPLES) -> Paired:
    """Median of paired differences with its bootstrap interval, and the exact signed-rank test.

    Args:
        differences: one finite number a participant, positive where the second condition is better.
    """
    values = np.asarray(differences, dtype=float)
    low, high = interval(values, _median, resamples)
    return Paired(
        n=len(values),
        better=int((values > 0).sum()),
        worse=int((values < 0).sum()),
        zeros=int((values == 0).sum()),
        median=float(np.median(values)) if len(values) else float("nan"),
        low=low,
        high=high,
        p=wilcoxon_exact(values),
    )


def wilcoxon_exact(differences: Sequence[float] | Floats) -> float | None:
    """Exact two-sided p of Wilcoxon's signed-rank test (Wilcoxon 1945); zeros are dropped, as he
    did. None where n is too small.

    scipy's exact distribution where all sizes differ. With ties it is only exact for n up to 13, so
    there the distribution over all sign patterns of the midranks is counted out here (Streitberg
    and Roehmel 1986); the two agree where both are exact.
    """
    # .92 - .84 and .32 - .24 are one size, whatever floats say
    values = np.round(np.asarray(differences, dtype=float), 12)
    if len(values) < SMALLEST_N:
        return None
    sizes = values[values != 0]
    if not len(sizes):
        return 1.0
    if len(np.unique(np.abs(sizes))) == len(sizes):
        return float(stats.wilcoxon(sizes, method="exact").pvalue)
    return _exact_with_ties(sizes)


def _exact_with_ties(values: Floats) -> float:
    doubled = np.rint(2 * stats.rankdata(np.abs(values))).astype(int)  # midranks end in .0 or .5
    patterns: Floats = np.zeros(int(doubled.sum()) + 1)
    patterns[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(patterns)
        moved[rank:] = patterns[: len(patterns) - rank]
        patterns = (patterns + moved) / 2
    observed = int(doubled[values > 0].sum())
    tail = min(patterns[: observed + 1].sum(), patterns[observed:].sum())
    return float(min(1.0, 2 * tail))


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


def resampled(n: int, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """`[resamples, n]` participants drawn with replacement, always the same ones for the same n."""
    return np.random.default_rng(SEED).integers(0, max(n, 1), size=(resamples, n))


def interval(
    values: Floats, statistic: Statistic, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over participants (Efron 1979).

    Args:
        values: `[n]` or `[n, k]`, one row a participant.
        statistic: from `[resamples, n]` or `[resamples, n, k]` to `[resamples]`.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = statistic(values[resampled(len(values), resamples)])
    drawn = np.asarray(drawn[np.isfinite(drawn)])
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def median_interval(values: Floats) -> tuple[float, float, float]:
    """Median with its 95 % interval."""
    return (float(np.median(values)) if len(values) else float("nan"), *interval(values, _median))


def ratio_of_means(numerator: Floats, denominator: Floats) -> tuple[float, float, float]:
    """Mean over mean with its 95 % interval: no participant with a denominator near zero can
    dominate, as in a mean of ratios.
    """
    both = np.stack([numerator, denominator], axis=-1)
    below = denominator.mean() if len(denominator) else 0.0
    ratio = float(numerator.mean() / below) if below > 0 else float("nan")
    return (ratio, *interval(both, _ratio))


def _median(values: Floats) -> Floats:
    return np.asarray(np.median(values, axis=1))


def _ratio(values: Floats) -> Floats:
    means = values.mean(axis=1)
    safe = np.where(means[:, 1] > 0, means[:, 1], np.nan)
    return np.asarray(means[:, 0] / safe)
