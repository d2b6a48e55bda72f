"""What is reported of a grid: the lines of the main table, the contrasts with their families, what
a test of this size could find, and how much one draw of windows decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from common.report.conditions import BASE, MODES, RECALIBRATED, UNTOUCHED, Condition
from common.report.grids import Grid
from common.report.statistics import (
    Estimate,
    Paired,
    detectable_shift,
    holm,
    median_interval,
    paired,
    pairwise_share,
)

COUNTS = (
    "train_windows",
    "train_positives",
    "train_hours",
    "selection_windows",
    "selection_positives",
    "selection_hours",
)


@dataclass(frozen=True)
class Line:
    """One line of the main table: a condition."""

    condition: Condition
    n: int  # participants with this score
    median: Estimate
    mean: float
    counts: dict[str, float]  # medians over participants
    gain: Paired | None  # over the untouched base (at tuned thresholds: the base, tuned as well)
    over_tuned: Paired | None  # over the base, threshold tuned
    share: Estimate | None  # of the possible gain
    share_of_full: Estimate | None  # of the gain with the largest fraction of the same mode


Tested = tuple[str, Paired, tuple[Condition, Condition] | None]


@dataclass(frozen=True)
class Contrast:
    """One comparison of a family."""

    name: str
    result: Paired
    p_holm: float | None  # None: the primary one, or n too small
    primary: bool = False
    pair: tuple[Condition, Condition] | None = None


# -- the main table


def main_lines(grid: Grid, suffix: str = "") -> list[Line]:
    """The main table, one line a condition."""
    return [_line(grid, condition, suffix) for condition in grid.shown(suffix)]


def _line(grid: Grid, condition: Condition, suffix: str) -> Line:
    values = finite(grid.column(condition, f"test_{grid.metric}{suffix}").to_numpy(dtype=float))
    has_base = BASE in grid.conditions and condition != BASE
    gain = grid.gains(condition, suffix=suffix) if has_base else np.array([])
    against = grid.recalibrated(condition) if condition.mode != UNTOUCHED and not suffix else None
    full = condition._replace(fraction=max(grid.fractions(condition), default=1.0))
    trained = condition.mode not in (UNTOUCHED, RECALIBRATED)
    return Line(
        condition,
        len(values),
        median_interval(values),
        float(values.mean()) if len(values) else float("nan"),
        {} if condition == BASE else _median_counts(grid, condition),
        paired(finite(gain)) if has_base else None,
        paired(finite(grid.gains(condition, against))) if against else None,
        _share(gain, possible_gain(grid, condition, suffix)) if has_base else None,
        _share(gain, grid.gains(full, suffix=suffix))
        if has_base and trained and condition != full
        else None,
    )


def finite(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Without what is not there."""
    return np.asarray(values[np.isfinite(values)])


def possible_gain(grid: Grid, condition: Condition, suffix: str = "") -> np.ndarray[Any, Any]:
    """What lies between each participant's base score and a perfect one."""
    base = grid.pair(condition, BASE, suffix)["before"].to_numpy(dtype=float)
    return np.asarray(base if grid.lower else 1.0 - base)


def _share(gain: np.ndarray[Any, Any], of: np.ndarray[Any, Any]) -> Estimate:
    both = np.isfinite(gain) & np.isfinite(of)
    return pairwise_share(gain[both], of[both])


def _median_counts(grid: Grid, condition: Condition) -> dict[str, float]:
    series = {name: grid.column(condition, name) for name in COUNTS}
    return {name: float(values.median()) for name, values in series.items() if values.notna().any()}


# -- contrasts


def contrasts(grid: Grid, suffix: str = "") -> list[Contrast]:
    """The primary contrast, then the others, Holm-adjusted among themselves. At the tuned
    threshold, and of an exploratory score, all are among the others.
    """
    shown = grid.shown(suffix)
    pairs = [(c, BASE) for c in shown if c != BASE and BASE in shown]
    if not suffix:
        pairs += [(c, base) for c in shown if c != BASE if (base := grid.recalibrated(c))]
    pairs += _between_modes(grid)
    against = {BASE: Condition(RECALIBRATED, 0.0)} if suffix else {}
    results: list[Tested] = [
        (f"{a.words} − {against.get(b, b).words}", paired(finite(grid.gains(a, b, suffix))), (a, b))
        for a, b in pairs
    ]
    primary = (grid.primary, BASE) if not suffix and not grid.exploratory else None
    return adjusted(results, primary)


def _between_modes(grid: Grid) -> list[tuple[Condition, Condition]]:
    """Modes against each other at equal fractions and budgets, earlier ones of MODES first."""
    return [
        (a, b)
        for mode, other in combinations(MODES, 2)
        for a in grid.conditions
        if a.mode == mode and (b := a._replace(mode=other)) in grid.conditions
    ]


def adjusted(
    results: list[Tested], primary: tuple[Condition | None, Condition] | None = None
) -> list[Contrast]:
    """Holm over all but the primary contrast, which comes first."""
    first = [entry for entry in results if entry[2] is not None and entry[2] == primary]
    others = [entry for entry in results if entry not in first]
    p_holm = holm([result.p for _, result, _ in others])
    return [Contrast(name, result, None, True, pair) for name, result, pair in first] + [
        Contrast(name, result, p, False, pair)
        for (name, result, pair), p in zip(others, p_holm, strict=True)
    ]


# -- what a test of this size could find; how much one draw decides


@dataclass(frozen=True)
class Sensitivity:
    """The smallest gain that the primary test finds in 80 % of simulated samples."""

    n: int
    sd: float  # of the gains that were seen
    gain: float


def sensitivity(grid: Grid) -> Sensitivity | None:
    """For the primary contrast, at its n and the SD of its gains; None without a test."""
    if grid.primary is None or BASE not in grid.conditions:
        return None
    gains = finite(grid.gains(grid.primary))
    sd = float(np.std(gains, ddof=1)) if len(gains) > 1 else float("nan")
    found = detectable_shift(len(gains)) * sd
    return Sensitivity(len(gains), sd, found) if np.isfinite(found) else None


@dataclass(frozen=True)
class Draws:
    """Scores at the primary condition by participant and draw of its windows (seed_finetune)."""

    scores: pd.DataFrame  # participants x draws
    within: float  # SD over the draws of one person, root of the mean variance
    between: float  # SD between people of their means over draws


def draws(grid: Grid) -> Draws | None:
    """How much the draw of the training windows decides; None where everybody has one draw."""
    if grid.primary is None or not grid.participants:
        return None
    rows = pd.concat([grid.behind(person, grid.primary) for person in grid.participants])
    scores = rows.pivot_table(
        index="target_participant", columns="seed_finetune", values=f"test_{grid.metric}"
    )
    scores = scores.reindex([p for p in grid.participants if p in scores.index])
    variances = scores.var(axis="columns", ddof=1).dropna()
    if variances.empty:
        return None
    between = float(scores.mean(axis="columns").std(ddof=1))
    return Draws(scores, float(np.sqrt(variances.mean())), between)
