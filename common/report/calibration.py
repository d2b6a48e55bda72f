"""Can the probabilities be believed: observed against predicted, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.report.cells import run_ids
from common.report.collect import Run
from common.report.conditions import Condition
from common.report.grids import Grid

BINS = 10
Bins = list[tuple[float, float]]  # mean predicted probability, share labelled positive


@dataclass(frozen=True)
class Calibration:
    """Reliability at the primary condition, over all participants' test windows."""

    condition: Condition
    people: int
    before: Bins
    after: Bins


def calibration(grid: Grid, runs: Mapping[int, Run]) -> Calibration | None:
    """Of the grid's primary condition; None without one or without windows."""
    if grid.primary is None or not grid.participants:
        return None
    parts = [
        runs[index].windows("test")
        for person in grid.participants
        for index in run_ids(grid.behind(person, grid.primary))
    ]
    every = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("label", "p_base", "p_finetuned")
    }
    if not len(every["label"]):
        return None
    return Calibration(
        grid.primary,
        len(grid.participants),
        mass_bins(every["label"], every["p_base"]),
        mass_bins(every["label"], every["p_finetuned"]),
    )


def mass_bins(labels: np.ndarray[Any, Any], p: np.ndarray[Any, Any], number: int = BINS) -> Bins:
    """Mean probability and share of positives in bins of equally many windows (one more in the
    first ones where they do not divide); empty where a probability is not there.
    """
    if not np.isfinite(p).all():
        return []
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, number) if len(part)]
    return [(float(p[part].mean()), float((labels[part] == 1).mean())) for part in parts]
