"""--compare: the values of one option side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError, nearest
from common.jobs.choosing import ROUNDING
from common.jobs.identity import has_effect
from common.options import FinetuneOptions
from common.report.analysis import Contrast, adjusted
from common.report.cells import chosen, with_base
from common.report.conditions import BASE, CONDITION_WORDS, MODES, Condition, percent
from common.report.grids import CONTEXT, Grid, family, make_grid
from common.report.statistics import paired

UNSET = "unset"  # the value of an option that was left out


@dataclass
class Comparison:
    """The values of one option, side by side."""

    option: str
    at: str  # what is held fixed
    values: list[str]
    scores: pd.DataFrame  # participants x values
    base: pd.DataFrame
    contrasts: list[Contrast]
    note: str


def groups_to_compare(grids: list[Grid], option: str) -> list[list[Grid]]:
    """The grids among which an option can be compared: the first one alone; for what is never
    pooled, those that differ in nothing else of that kind.
    """
    if option not in CONTEXT:
        return [grids[:1]]
    # other data may well have windows of another length
    fixed = ("data_path", "window_size") if option == "project" else ("project",)
    groups: dict[tuple[Any, ...], list[Grid]] = {}
    for grid in grids:
        groups.setdefault(tuple(family(grid.rows, name).iloc[0] for name in fixed), []).append(grid)
    return [
        group
        for group in groups.values()
        if pd.concat([grid.rows for grid in group])[option].nunique() > 1
    ]


def compare(grids: list[Grid], option: str) -> Comparison:
    """The values of one option at the primary condition, each against the first, over the
    participants that have them all.

    Args:
        grids: of `groups_to_compare`.

    Raises:
        InputError: not an option that these experiments vary, or one whose values stand for several
        data sets.
    """
    parts = [
        grid.rows if option == "n_base_participants" else with_base(grid.rows, grid.n_base)
        for grid in grids
    ]
    parts = [_unset_named(part, option) for part in parts]
    rows = pd.concat(parts)
    values = _compared_values(rows, option)
    _refuse_pooled(parts, option, values)
    at = grids[0].primary or grids[0].conditions[-1]
    scores, base = {}, {}
    for value in values:
        part = make_grid(
            str(value), rows[rows[option] == value], grids[0].metric, grids[0].analysis
        )
        name = percent(value) if option == "target_data_pct" else _value_text(value)
        scores[name] = _all_scores(part, _compared_condition(at, option, value))
        base[name] = _all_scores(part, BASE)
    table = pd.DataFrame(scores).dropna()
    everyone = list(dict.fromkeys(rows.sort_values("fold")["target_participant"]))
    table = table.loc[[person for person in everyone if person in table.index]]
    return Comparison(
        option,
        _held(at, option),
        list(table.columns),
        table,
        pd.DataFrame(base).reindex(table.index),
        _against_the_first(table, option, grids[0].lower),
        f"{len(table)} of {len(everyone)} participants have every value",
    )


def _against_the_first(table: pd.DataFrame, option: str, lower: bool) -> list[Contrast]:
    first, sign = table.columns[0], -1.0 if lower else 1.0
    return adjusted(
        [
            (
                f"{option}: {name} − {first}",
                paired(np.round(sign * (table[name] - table[first]).to_numpy(), ROUNDING)),
                None,
            )
            for name in table.columns[1:]
        ]
    )


def _held(at: Condition, option: str) -> str:
    """What is the same for all values."""
    words = {
        "mode": f"{percent(at.fraction)}{at.budget_words}",
        "target_data_pct": CONDITION_WORDS[at.mode] + at.budget_words,
        "target_val": at._replace(val="full").words,
        "target_order": at._replace(order="random").words,
    }
    return words.get(option, at.words).capitalize()


def _unset_named(rows: pd.DataFrame, option: str) -> pd.DataFrame:
    """An option that may be left out has a value there too, wherever it shapes the result."""
    if option not in rows:
        return rows
    acts = np.array([has_effect(option, mode) for mode in rows["mode"]], bool)
    return rows.assign(
        **{option: rows[option].astype(object).mask(rows[option].isna() & acts, UNSET)}
    )


def _refuse_pooled(parts: list[pd.DataFrame], option: str, values: list[Any]) -> None:
    pooled = [value for value in values if sum((rows[option] == value).any() for rows in parts) > 1]
    if pooled:
        raise InputError(
            f"--compare {option}: {pooled[0]} stands for several data sets, which are never pooled;"
            " choose one with --filter data_path=..."
        )


def _compared_values(rows: pd.DataFrame, option: str) -> list[Any]:
    names = [
        name
        for name in ("project", *FinetuneOptions.model_fields)
        if name in rows and name not in ("fold", "prefix", "base_model_hash", "device")
    ]
    varied = [name for name in names if rows[name].astype("string").nunique() > 1]
    if option not in varied:
        data = " on one data set" if option in CONTEXT else ""
        raise InputError(
            f"--compare {option}: these experiments{data} vary"
            f" {', '.join(varied) or 'no option'}{nearest(option, varied)}"
        )
    values = rows[option].dropna().unique().tolist()
    return (
        [mode for mode in MODES if mode in values]
        if option == "mode"
        else sorted(values, key=lambda value: (value != UNSET, isinstance(value, str), value))
    )


def _compared_condition(at: Condition, option: str, value: Any) -> Condition:
    names = {
        "mode": "mode",
        "target_data_pct": "fraction",
        "target_val": "val",
        "target_order": "order",
    }
    return at._replace(**{names[option]: value}) if option in names else at


def _value_text(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _all_scores(grid: Grid, condition: Condition) -> pd.Series:
    if condition not in grid.choices:
        return pd.Series(dtype=float)
    return chosen(grid.cells, condition, grid.choices[condition], f"test_{grid.metric}")
