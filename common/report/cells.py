"""From rows of experiments to cells: one a participant, condition and setting, repeats averaged.

A setting (any option that the grid varies and that is neither a factor, a repeat nor other data) is
chosen for a participant by the mean validation score of the *other* participants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from common.jobs.choosing import choose_settings, reported_base_count
from common.options import FROM_SCRATCH
from common.report.conditions import (
    BASE,
    LOWER_IS_BETTER,
    RECALIBRATED,
    UNTOUCHED,
    Condition,
)

POOLED = "pooled_runs"  # column: ids of the experiments behind a row; only where some are pooled
KEYS = ["target_participant", "mode", "fraction", "val", "order", "setting"]
SCORES = ("test_", "val_", "base_test_", "base_val_", "train_", "selection_")


class Reasons(dict[str, str]):
    """Why scores are undefined, by name of the score; in a CSV file as text."""

    def __str__(self) -> str:
        return "; ".join(f"{name}: {why}" for name, why in sorted(self.items()))

    def of(self, metric: str) -> Reasons:
        """Those of a score on the test windows, for any model and threshold."""
        return Reasons(item for item in sorted(self.items()) if f"test_{metric}" in item[0])


class Names(tuple[str, ...]):
    """Names in a column; in a CSV file as text."""

    __slots__ = ()

    def __str__(self) -> str:
        return " ".join(self)


def with_base(rows: pd.DataFrame, n_base: float | None) -> pd.DataFrame:
    """Those with so many base participants, and those of the target alone."""
    return rows[rows["n_base_participants"].isna() | (rows["n_base_participants"] == n_base)]


def run_ids(rows: pd.DataFrame) -> list[int]:
    """The experiments behind rows."""
    if POOLED not in rows:
        return [int(index) for index in rows.index]
    return [index for several in rows[POOLED] for index in several]


def from_base(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that started from a base model."""
    return rows[~rows["mode"].isin(FROM_SCRATCH)]


def reported_base(rows: pd.DataFrame, notes: list[str]) -> float | None:
    """The most base participants with which at least half of the people have results: with more a
    run may just have begun. None: all is from scratch.
    """
    based = from_base(rows)
    if not len(based):
        based = rows[rows["n_base_participants"].notna()]
    people = {
        float(count): set(part["target_participant"])
        for count, part in based.groupby(based["n_base_participants"].astype(float))
    }
    chosen, most = reported_base_count(people), max(people, default=None)
    if chosen is None or most is None:
        return None
    if chosen < most:
        notes.append(
            f"With {most:.0f} base participants {len(people[most])} of"
            f" {based['target_participant'].nunique()} people have results"
            f" yet, so those with {chosen:.0f} are reported."
        )
    return chosen


def setting_texts(rows: pd.DataFrame, settings: list[str]) -> pd.Series:
    """The settings of each row as one text."""
    if not settings:
        return pd.Series("as given", index=rows.index)
    texts = [name + " " + rows[name].astype("string").fillna("unset") for name in settings]
    return texts[0].str.cat(texts[1:], sep=", ") if len(texts) > 1 else texts[0]


# -- averaging


def make_cells(rows: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """One row a participant, condition and setting. A trained one holds its own scores and, as
    `base_...`, those of the bases that it started from; the two bases hold theirs as their own.
    """
    numbers = [
        name
        for name in rows
        if name.startswith(SCORES) and pd.api.types.is_numeric_dtype(rows[name])
    ]
    frame = rows[["target_participant", "mode", "base_model_hash", *numbers]].assign(
        fraction=rows["target_data_pct"],
        val=rows["target_val"],
        order=rows["target_order"],
        setting=setting_texts(rows, settings),
    )
    parts = [frame.groupby(KEYS, sort=True)[numbers].mean().reset_index()]
    based = from_base(frame)
    if len(based):
        parts += [_untouched(based), _recalibrated(based)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _untouched(based: pd.DataFrame) -> pd.DataFrame:
    """The untouched base; validation scores of one kind of selection only, so that scores on
    different windows never choose a setting.
    """
    budget = based["val"] + " " + based["order"] + " " + based["fraction"].astype(str)
    first = budget.where(based["val"] != "full", "full")
    same = first == ("full" if (first == "full").any() else first.min())
    frame = based.assign(mode=UNTOUCHED, fraction=0.0, val="full", order="random")
    for name in [name for name in frame if name.startswith("base_val_")]:
        frame[name] = frame[name].where(same)
    renamed = {
        name: name.removeprefix("base_")
        for name in frame
        if name.startswith(("base_test_", "base_val_"))
    }
    frame = frame[[*KEYS, "base_model_hash", *renamed]].rename(columns=renamed)
    return _once_a_base(frame)


def _recalibrated(based: pd.DataFrame) -> pd.DataFrame:
    """The base with nothing but its threshold tuned, on the target's selection windows."""
    frame = based[based["val"] != "none"].assign(mode=RECALIBRATED)
    every = frame["val"] == "full"
    frame["fraction"] = frame["fraction"].where(~every, 0.0)
    frame["order"] = frame["order"].where(~every, "random")
    renamed = {
        name: name.removeprefix("base_").removesuffix("_tuned")
        for name in frame
        if name.startswith(("base_test_", "base_val_")) and name.endswith("_tuned")
    }
    beside = [name for name in frame if name.startswith(("base_test_", "selection_"))]
    beside = [name for name in beside if not name.endswith("_tuned")]
    if not renamed:
        return frame.iloc[:0]
    frame = frame[[*KEYS, "base_model_hash", *renamed, *beside]].rename(columns=renamed)
    return _once_a_base(frame)


def _once_a_base(frame: pd.DataFrame) -> pd.DataFrame:
    """A base counts once, however many fine-tunes started from it."""
    each = frame.groupby([*KEYS, "base_model_hash"], sort=True).mean(numeric_only=True)
    return each.groupby(KEYS, sort=True).mean(numeric_only=True).reset_index()


# -- choosing


def conditions_of(cells: pd.DataFrame, metric: str) -> list[Condition]:
    """Those that the cells hold; the recalibrated base only where its score is known."""
    known = cells[cells["mode"] != RECALIBRATED]
    if f"test_{metric}" in cells:
        tuned = cells[(cells["mode"] == RECALIBRATED) & cells[f"test_{metric}"].notna()]
        known = pd.concat([known, tuned])
    keys = known[["mode", "fraction", "val", "order"]].drop_duplicates()
    return sorted((Condition(*row) for row in keys.itertuples(index=False)), key=lambda c: c.place)


def choose(cells: pd.DataFrame, condition: Condition, metric: str, notes: list[str]) -> pd.Series:
    """Setting by participant: the best mean validation score over the *other* participants; the
    first in order among equals. Never looks at test scores.

    Settings without any validation score (target_val none), or that fewer people have
    results of than another, are chosen only where there are no others.
    """
    mine = _cells_of(cells, condition)
    column = f"val_{metric}"
    settings = sorted(mine["setting"].unique())
    people = list(dict.fromkeys(mine["target_participant"]))
    if len(settings) == 1:
        return pd.Series(settings[0], index=people)
    scores = {
        str(person): dict(zip(part["setting"], part.get(column, [None] * len(part)), strict=True))
        for person, part in mine.groupby("target_participant", sort=False)
    }
    choice = choose_settings(scores, lower_is_better=metric in LOWER_IS_BETTER)
    others = mine[~mine["setting"].isin(choice.candidates)]
    known = mine[mine[column].notna()] if column in mine else mine
    scored = set((known if len(known) else mine)["setting"])
    for reason, names in (
        ("for want of validation scores", set(others["setting"]) - scored),
        ("because fewer people have results of it", set(others["setting"]) & scored),
    ):
        note = (
            f"Not chosen, {reason}: {', '.join(f'“{name}”' for name in sorted(names))}; --filter"
            " reports such a setting by itself."
        )
        if names and note not in notes:
            notes.append(note)
    if choice.undecided:
        lack = (
            "nobody else has a validation score of every setting yet"
            if column in mine and mine[column].notna().any()
            else "no setting has a validation score"
        )
        notes.append(
            f"{condition.words}: {lack}, so “{choice.candidates[0]}”, the first in order, was"
            " taken; fix the setting with --filter."
        )
    return pd.Series(choice.settings)


def _cells_of(cells: pd.DataFrame, condition: Condition) -> pd.DataFrame:
    mine = pd.Series(True, index=cells.index)
    for name, value in condition._asdict().items():
        mine &= cells[name] == value
    return cells[mine]


def chosen(cells: pd.DataFrame, condition: Condition, choice: pd.Series, column: str) -> pd.Series:
    """A column by participant, at each one's chosen setting."""
    mine = _cells_of(cells, condition)
    if column not in mine:
        return pd.Series(np.nan, index=choice.index)
    picked = mine[mine["setting"] == mine["target_participant"].map(choice)]
    return picked.set_index("target_participant")[column].astype(float)


def complete_cases(
    scores: dict[Condition, pd.Series], people: list[str], primary: Condition | None
) -> tuple[list[Condition], list[Condition], list[str]]:
    """The conditions that are compared, those left out as too incomplete, and the participants that
    have every compared one.

    While fewer than half of the participants have everything (a run is going on), the least
    complete condition is left out, but never the base or the primary one. Only whether a score is
    there is looked at, never the score. A threshold that could not be tuned
    leaves no participant out.
    """
    there = {
        condition: {p for p in people if p in series.index and np.isfinite(series[p])}
        for condition, series in scores.items()
    }
    kept, left_out = list(scores), list[Condition]()
    while True:
        needed = [condition for condition in kept if condition.mode != RECALIBRATED]
        complete = set(people).intersection(*(there[condition] for condition in needed))
        droppable = [condition for condition in needed if condition not in (BASE, primary)]
        if 2 * len(complete) >= len(people) or not droppable:
            return kept, left_out, [p for p in people if p in complete]
        worst = min(droppable, key=lambda c: (len(there[c]), c.place))
        if not kept or len(there[worst]) == len(people):
            return kept, left_out, [p for p in people if p in complete]
        kept.remove(worst)
        left_out.append(worst)


def why_excluded(
    person: str,
    test: dict[Condition, pd.Series],
    kept: Sequence[Condition],
    rows: pd.DataFrame,
    metric: str,
    choices: Mapping[Condition, pd.Series],
) -> str:
    """Why a participant lacks a compared condition. `choices`: the setting that stands for each
    person who has any result of a condition.
    """
    needed = [c for c in kept if c.mode != RECALIBRATED]
    lacking = [c for c in needed if person not in test[c].index or not np.isfinite(test[c][person])]
    undefined = rows.loc[rows["target_participant"] == person, "undefined"]
    reasons = [f"{name}: {why}" for cell in undefined for name, why in cell.of(metric).items()]
    absent = [c for c in lacking if person not in test[c].index]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        setting = choices[first].get(person) if (first := absent[0]) in choices else None
        return f"no result {f'at {setting}' if setting else 'yet'} for {first.words}{more}"
    return reasons[0] if reasons else f"no {metric} for {lacking[0].words}"
