"""How often the report's intervals hold the true value: 2,000 samples of each size from 6 to 30.

Each line: the size, then for each interval the share of samples that it covered, beside its stated
level. No share may lie below its level by more than three standard errors of the simulation.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.report.statistics import Estimate, hodges_lehmann, median_interval, share

Random = np.random.Generator


def covers(estimate: Estimate, truth: float) -> bool:
    """Whether the truth lies inside; an open end does not belong to the interval."""
    above = truth > estimate.low - 1e-9 and not (estimate.low_open and truth <= estimate.low)
    below = truth < estimate.high + 1e-9 and not (estimate.high_open and truth >= estimate.high)
    return above and below


def _skewed(random: Random, n: int) -> bool:
    return covers(median_interval(random.lognormal(size=n)), 1.0)


def _scores(random: Random, n: int) -> bool:
    """Bounded scores with ties at the top, as F1 has them; the true median is .9."""
    return covers(median_interval(np.minimum(random.normal(0.9, 0.1, size=n), 1.0)), 0.9)


def _normal(random: Random, n: int) -> bool:
    return covers(hodges_lehmann(random.normal(0.1, 1.0, size=n)), 0.1)


def _heavy_tails(random: Random, n: int) -> bool:
    return covers(hodges_lehmann(random.standard_t(2, size=n)), 0.0)


def _zeros_and_ties(random: Random, n: int) -> bool:
    unchanged = random.random(n) < 0.4
    return covers(hodges_lehmann(np.where(unchanged, 0.0, random.normal(size=n).round(1))), 0.0)


def _share(random: Random, n: int) -> bool:
    possible = random.uniform(0.02, 0.4, size=n)
    return covers(share(0.5 * possible + random.normal(0, 0.05, size=n), possible), 0.5)


INTERVALS: dict[str, Callable[[Random, int], bool]] = {
    "median, skewed": _skewed,
    "median, bounded": _scores,
    "difference, normal": _normal,
    "difference, heavy tails": _heavy_tails,
    "difference, zeros and ties": _zeros_and_ties,
    "share": _share,
}


def level(name: str, n: int) -> float:
    """The level that the interval states."""
    values = np.arange(float(n))
    return (median_interval(values) if name.startswith("median") else hodges_lehmann(values)).level


def main() -> int:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(range(6, 31)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for n in options.sizes:
        random = np.random.default_rng(n)
        row: dict[str, float] = {"n": n}
        for name, sample in INTERVALS.items():
            row[name] = float(np.mean([sample(random, n) for _ in range(options.samples)]))
            row[f"{name}: level"] = level(name, n)
        rows.append(row)
        print(
            n, "  ".join(f"{row[k]:.3f} ({row[f'{k}: level']:.3f})" for k in INTERVALS), flush=True
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    low = [
        (row["n"], name)
        for row in rows
        for name in INTERVALS
        if row[name] < row[f"{name}: level"] - 3 * math.sqrt(0.05 * 0.95 / options.samples)
    ]
    print("below their level:", low or "none", "-", ", ".join(INTERVALS))
    return bool(low)


if __name__ == "__main__":
    sys.exit(main())
