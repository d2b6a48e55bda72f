"""Grids: experiments that may be averaged, with what is compared among them. Nothing here knows of
files.

What is fixed before any result is looked at: the metric, mode and fraction that the grid's
`analysis` names. Without one: macro F1, the first of MODES that was run, the fraction nearest to
10 % (on a log scale). Base participants are the most that at least half of the people have.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError, nearest
from common.jobs import choosing
from common.jobs.choosing import ROUNDING, setting_names
from common.options import FROM_SCRATCH, FinetuneOptions
from common.report.cells import (
    POOLED,
    choose,
    chosen,
    complete_cases,
    conditions_of,
    make_cells,
    reported_base,
    setting_texts,
    why_excluded,
    with_base,
)
from common.report.conditions import (
    BASE,
    LOWER_IS_BETTER,
    MODES,
    RECALIBRATED,
    UNTOUCHED,
    Condition,
    recalibrated,
)

DEFAULT_METRIC = "macro_f1"
PRIMARY_FRACTION = 0.1
OPTIONS = list(FinetuneOptions.model_fields)
CONTEXT = ("project", *choosing.CONTEXT)  # never pooled: other data
NO_SCORES = ("windows", "positives", "hours", "tn", "fp", "fn", "tp", "bouts", "events_undefined")


@dataclass(frozen=True)
class Analysis:
    """What a grid's `analysis` fixes before anything runs. None: not fixed, the default rule."""

    metric: str | None = None
    mode: str | None = None
    target_data_pct: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether the job files fix anything."""
        return self != Analysis()


@dataclass
class Grid:
    """Experiments that may be averaged: one project, one data set. Lists of participants may
    differ: adding a participant keeps earlier results.
    """

    name: str
    rows: pd.DataFrame
    metric: str
    analysis: Analysis
    n_base: float | None
    settings: list[str]
    cells: pd.DataFrame  # one row a participant, condition and setting, repeats averaged
    choices: dict[Condition, pd.Series]
    conditions: list[Condition]
    left_out: list[Condition]
    participants: list[str]
    excluded: dict[str, str]
    primary: Condition | None
    notes: list[str] = field(default_factory=list)

    @property
    def lower(self) -> bool:
        """Whether small scores are good ones."""
        return self.metric in LOWER_IS_BETTER

    @property
    def exploratory(self) -> bool:
        """Whether another score is shown than the one that was fixed beforehand."""
        return self.metric != (self.analysis.metric or DEFAULT_METRIC)

    @property
    def has_tuned(self) -> bool:
        """Whether the score depends on a threshold that was tuned too."""
        name = f"test_{self.metric}_tuned"
        return name in self.cells and bool(self.cells[name].notna().any())

    def shown(self, suffix: str = "") -> list[Condition]:
        """Conditions of a table; at tuned thresholds the base is the recalibrated one."""
        return [c for c in self.conditions if not suffix or c.mode != RECALIBRATED]

    def column(self, condition: Condition, name: str) -> pd.Series:
        """A column of the cells by participant of this grid, at each one's chosen setting."""
        return chosen(self.cells, condition, self.choices[condition], name).reindex(
            self.participants
        )

    def scores(self, metric: str | None = None, suffix: str = "") -> pd.DataFrame:
        """Participants by conditions, for those participants that all conditions have. `suffix`
        '_tuned': at the tuned threshold.
        """
        shown = self.shown(suffix)
        name = f"test_{metric or self.metric}{suffix}"
        table = {condition: self.column(condition, name) for condition in shown}
        return pd.DataFrame(table, index=self.participants).reindex(
            columns=pd.MultiIndex.from_tuples(shown, names=Condition._fields)
        )

    def pair(
        self, condition: Condition, against: Condition = BASE, suffix: str = ""
    ) -> pd.DataFrame:
        """Scores of both, a row a participant: columns `before`, `after`. A base is the own one:
        that from which the condition started, in the same setting.
        """
        after = self.column(condition, f"test_{self.metric}{suffix}")
        before = None
        if against.mode in (UNTOUCHED, RECALIBRATED) and condition.starts_from_base:
            tuned = suffix or ("_tuned" if against.mode == RECALIBRATED else "")
            before = self.column(condition, f"base_test_{self.metric}{tuned}")
        if before is None or (condition.val == "none" and against.mode == RECALIBRATED):
            before = self.column(against, f"test_{self.metric}{suffix}")
        return pd.DataFrame({"before": before, "after": after})

    def gains(
        self, condition: Condition, against: Condition = BASE, suffix: str = ""
    ) -> np.ndarray[Any, Any]:
        """Differences, one a participant, positive where `condition` is better; NaN where one of
        the two is not there.
        """
        both = self.pair(condition, against, suffix)
        sign = -1.0 if self.lower else 1.0
        return np.asarray(np.round(sign * (both["after"] - both["before"]).to_numpy(), ROUNDING))

    def recalibrated(self, condition: Condition) -> Condition | None:
        """The base with a threshold tuned on the same windows, if it is known."""
        found = recalibrated(condition)
        return found if found in self.conditions and condition != found else None

    def behind(self, person: str, condition: Condition) -> pd.DataFrame:
        """The rows whose mean is this person's score: those of the chosen setting, one a repeat."""
        rows = with_base(self.rows, self.n_base)
        wanted = {
            "target_participant": person,
            "mode": condition.mode,
            "target_data_pct": condition.fraction,
            "target_val": condition.val,
            "target_order": condition.order,
        }
        mine = setting_texts(rows, self.settings) == self.choices[condition][person]
        for name, value in wanted.items():
            mine &= rows[name] == value
        return rows[mine]

    @property
    def tests(self) -> int:
        """How many tests of a person are pooled into one (1: none are)."""
        parts = self.rows["part_tested"].dropna() if POOLED in self.rows else []
        return max((part.of for part in parts), default=1)

    def series(self) -> list[Condition]:
        """The lines of a figure over fractions: trained modes, each with its labelling budget."""
        trained = [c for c in self.conditions if c.mode in MODES and c.fraction]
        return list(dict.fromkeys(condition.series for condition in trained))

    def fractions(self, series: Condition) -> list[float]:
        """Fractions of a mode and budget, ascending."""
        return sorted(c.fraction for c in self.conditions if c.series == series.series)


# -- which rows


def filter_rows(table: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """Rows for which every `key=value` (or `key=value,value`) holds.

    Raises:
        InputError: no such column, or no row is left; naming what there is.
    """
    for text in filters:
        key, equals, wanted = text.partition("=")
        if not equals or key not in table.columns:
            raise InputError(
                f"--filter {text}: give key=value with a column of"
                f" summary.csv{nearest(key, table.columns)}"
            )
        keep = pd.Series(False, index=table.index)
        for value in wanted.split(","):
            keep |= _equals(table[key], value.strip())
        if not keep.any():
            there = sorted({str(value) for value in table[key].dropna()})
            raise InputError(
                f"--filter {text}: no experiment has it; {key} is"
                f" {', '.join(there[:12]) or 'empty'}{' ...' if len(there) > 12 else ''}"
            )
        table = table[keep]
    return table


def _equals(column: pd.Series, value: str) -> pd.Series:
    text = column.astype("string").fillna("None") == value
    try:
        return text | (pd.to_numeric(column, errors="coerce") == float(value))
    except ValueError:
        return text.astype(bool)


def known_metrics(table: pd.DataFrame) -> list[str]:
    """Scores that can be reported: those of the test split, without the tuned ones."""
    names = [
        name.removeprefix("test_")
        for name in table.columns
        if name.startswith("test_") and not name.endswith("_tuned")
    ]
    return [name for name in names if name not in NO_SCORES]


def chosen_metric(asked: str | None, analyses: Sequence[Analysis]) -> str:
    """The score that is reported: the one asked for, the one that was fixed, macro F1."""
    fixed = [analysis.metric for analysis in analyses if analysis.metric]
    return asked or (fixed[0] if fixed else DEFAULT_METRIC)


def split_grids(
    table: pd.DataFrame,
    metric: str,
    analyses: dict[str, Analysis] | None = None,
    families: Collection[str] = (),
) -> list[Grid]:
    """The grids of a table: first those of today's job files, then the largest. Duplicates and
    stale results are left out.

    analyses: what was fixed, by project. families: of data sets that today's job files name.

    Raises:
        InputError: no such metric.
    """
    known = known_metrics(table)
    if metric not in known:
        raise InputError(
            f"--metric {metric}: not among the scores ({', '.join(known)}){nearest(metric, known)}"
        )
    usable = table[table["duplicate_of"].isna() & table["stale"].isna()]
    context = [name for name in CONTEXT if family(usable, name).nunique(dropna=False) > 1]
    if not len(usable):
        return []
    fixed = analyses or {}
    keys = [family(usable, name) for name in context]
    parts = (
        [part for _, part in usable.groupby(keys, dropna=False, sort=True)] if keys else [usable]
    )
    grids = [
        make_grid(
            _grid_name(part, context),
            part,
            metric,
            fixed.get(str(part["project"].iloc[0]), Analysis()),
        )
        for part in parts
    ]
    return sorted(
        grids, key=lambda grid: (not grid.rows["data_family"].isin(families).any(), -len(grid.rows))
    )


def family(table: pd.DataFrame, name: str) -> pd.Series:
    """Data folders that differ by their split seed alone are one data set, prepared several
    times.
    """
    return table["data_family"] if name == "data_path" else table[name]


def _grid_name(part: pd.DataFrame, context: list[str]) -> str:
    first = part.iloc[0]
    words = {
        "project": first["project"],
        "data_path": first["data_path"],
        "window_size": f"{first['window_size']} samples a window",
    }
    name = ", ".join(str(words[name]) for name in context)
    tests = len(part[POOLED].iloc[0]) if POOLED in part else 1
    return f"{name} ({tests} tests a person)" if name and tests > 1 else name


# -- one grid


def make_grid(name: str, rows: pd.DataFrame, metric: str, analysis: Analysis) -> Grid:
    """Choose settings, find the conditions, and the participants that have them all."""
    notes: list[str] = []
    n_base = reported_base(rows, notes)
    rows_used = with_base(rows, n_base)
    settings = setting_names(rows_used.filter(OPTIONS).to_dict("records"))
    cells = make_cells(rows_used, settings)
    conditions = conditions_of(cells, metric)
    choices = {condition: choose(cells, condition, metric, notes) for condition in conditions}
    primary = primary_condition(conditions, analysis)
    if primary is None and analysis.fixed:
        notes.append("The condition that the grid's analysis fixes as primary has no result.")
    test = {
        condition: chosen(cells, condition, choices[condition], f"test_{metric}")
        for condition in conditions
    }
    folds = rows.groupby("target_participant")["fold"].min()
    people = sorted(map(str, folds.index), key=lambda person: (folds[person], person))
    kept, left_out, participants = complete_cases(test, people, primary)
    excluded = {
        p: why_excluded(p, test, kept, rows_used, metric, choices)
        for p in people
        if p not in participants
    }
    return Grid(
        name=name,
        rows=rows,
        metric=metric,
        analysis=analysis,
        n_base=n_base,
        settings=settings,
        cells=cells,
        choices=choices,
        conditions=kept,
        left_out=left_out,
        participants=participants,
        excluded=excluded,
        primary=primary,
        notes=notes,
    )


def primary_condition(conditions: Sequence[Condition], analysis: Analysis) -> Condition | None:
    """The one condition that is tested against the base without adjustment, known before any
    result. Among labelling budgets the usual one: all selection windows, a random fraction.
    """
    wanted = analysis.target_data_pct
    for mode in [analysis.mode] if analysis.mode else [m for m in MODES if m not in FROM_SCRATCH]:
        labelled = [c for c in conditions if c.mode == mode and c.fraction]
        mine = [c for c in labelled if wanted in (None, c.fraction)]
        if mine:
            return min(
                mine,
                key=lambda c: (
                    round(abs(math.log(c.fraction / (wanted or PRIMARY_FRACTION))), 9),
                    c.place,
                ),
            )
    return None
