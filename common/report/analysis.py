"""From the table of experiments to conditions, participants, scores and contrasts. One number a
participant and condition; nothing here knows of files.

What is fixed before any result is looked at: the primary mode is the first of MODES that was run,
the primary fraction the one nearest to 10 % (on a log scale), base participants are the most that
at least half of the people have. A setting (any other option that the grid varies) is chosen for a
participant by the mean validation score of the *other* participants. Repeats (seeds, split seeds)
are averaged within a person first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common.errors import InputError, nearest
from common.jobs import choosing
from common.jobs.choosing import ROUNDING, choose_settings, reported_base_count, setting_names
from common.options import FinetuneOptions
from common.report.statistics import Paired, holm, median_interval, paired, ratio_of_means

MODES = ("target_only_fine_tuning", "full_fine_tuning", "head_only_fine_tuning", "target_only")
MODE_WORDS = {
    "base": "untouched base",
    "target_only_fine_tuning": "fine-tuned, target only",
    "full_fine_tuning": "fine-tuned, with base data",
    "head_only_fine_tuning": "fine-tuned, head only",
    "target_only": "from scratch",
}
PRIMARY_FRACTION = 0.1
LOWER_IS_BETTER = frozenset({"loss", "false_alarms_per_hour"})
CONTEXT = ("project", *choosing.CONTEXT)  # never pooled: other data


class Condition(NamedTuple):
    """A mode and the fraction of the target's training windows; the untouched base has fraction
    0.
    """

    mode: str
    fraction: float

    @property
    def words(self) -> str:
        """As tables and figures name it."""
        return MODE_WORDS[self.mode] + (
            "" if self.mode == "base" else f", {percent(self.fraction)}"
        )


BASE = Condition("base", 0.0)


@dataclass(frozen=True)
class Line:
    """One line of the main table: a condition."""

    condition: Condition
    median: tuple[float, float, float]  # of the scores, with its 95 % interval
    mean: float
    # medians over participants of windows, positives, hours, selection windows
    counts: dict[str, float]
    gain: Paired | None  # against the untouched base
    share: tuple[float, float, float] | None  # of the possible gain
    # of the gain with the largest fraction of the same mode
    share_of_full: tuple[float, float, float] | None


@dataclass(frozen=True)
class Contrast:
    """One comparison of the family."""

    name: str
    result: Paired
    p_holm: float | None  # None: the primary one, or n too small
    primary: bool = False


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


@dataclass
class Grid:
    """Experiments that may be averaged: one project, one data set. Lists of participants may
    differ: adding somebody keeps what was there.
    """

    name: str
    rows: pd.DataFrame
    metric: str
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

    def scores(
        self, metric: str | None = None, suffix: str = "", side: str = "test"
    ) -> pd.DataFrame:
        """Participants by conditions, for those participants that all conditions have. `suffix`
        '_tuned': at the tuned threshold.
        """
        column = f"{side}_{metric or self.metric}{suffix}"
        table = {
            condition: _chosen(self.cells, condition, self.choices[condition], column)
            for condition in self.conditions
        }
        return pd.DataFrame(table).reindex(
            index=self.participants, columns=pd.MultiIndex.from_tuples(self.conditions)
        )

    def behind(self, person: str, condition: Condition) -> pd.DataFrame:
        """The rows whose mean is this person's score: those of the chosen setting, one a repeat."""
        rows = _with_base(self.rows, self.n_base)
        mine = (
            (rows["target_participant"] == person)
            & (rows["mode"] == condition.mode)
            & (rows["target_data_pct"] == condition.fraction)
        )
        return rows[mine & (_setting_texts(rows, self.settings) == self.choices[condition][person])]

    def gain(
        self, scores: pd.DataFrame, condition: Condition, against: Condition = BASE
    ) -> np.ndarray[Any, Any]:
        """Differences, one a participant, positive where `condition` is better."""
        sign = -1.0 if self.lower else 1.0
        return np.asarray(
            np.round(sign * (scores[condition] - scores[against]).to_numpy(dtype=float), ROUNDING)
        )

    def modes(self) -> list[str]:
        """Modes among the conditions, in their fixed order."""
        return [
            mode for mode in MODES if any(condition.mode == mode for condition in self.conditions)
        ]

    def fractions(self, mode: str) -> list[float]:
        """Fractions of a mode, ascending."""
        return sorted(condition.fraction for condition in self.conditions if condition.mode == mode)


def percent(fraction: float) -> str:
    """'12.5 %'."""
    return f"{100 * fraction:.12g} %"


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
            there = sorted({str(value) for value in table[key].dropna().unique()})
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
        c.removeprefix("test_")
        for c in table.columns
        if c.startswith("test_") and not c.endswith("_tuned")
    ]
    return [name for name in names if name not in ("windows", "positives", "hours", "bouts")]


def split_grids(table: pd.DataFrame, metric: str) -> list[Grid]:
    """The grids of a table, the largest first. Duplicates and stale results are left out.

    Raises:
        InputError: no such metric.
    """
    if metric not in known_metrics(table):
        raise InputError(
            f"--metric {metric}: not among the scores"
            f" ({', '.join(known_metrics(table))}){nearest(metric, known_metrics(table))}"
        )
    usable = table[table["duplicate_of"].isna() & table["stale"].isna()]
    context = [name for name in CONTEXT if _family(usable, name).nunique(dropna=False) > 1]
    if not len(usable):
        return []
    if not context:
        return [make_grid("", usable, metric)]
    parts = usable.groupby([_family(usable, name) for name in context], dropna=False, sort=True)
    grids = [make_grid(_grid_name(part, context), part, metric) for _, part in parts]
    return sorted(grids, key=lambda grid: -len(grid.rows))


def _family(table: pd.DataFrame, name: str) -> pd.Series:
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
    return ", ".join(str(words[name]) for name in context)


# -- one grid


def make_grid(name: str, rows: pd.DataFrame, metric: str) -> Grid:
    """Choose settings, find the conditions, and the participants that have them all."""
    notes: list[str] = []
    n_base = reported_base(rows, notes)
    rows_used = _with_base(rows, n_base)
    settings = setting_names(rows_used.to_dict("records"))
    cells = average_repeats(rows_used, settings)
    conditions = sorted(
        {Condition(m, f) for m, f in zip(cells["mode"], cells["fraction"], strict=True)}, key=_order
    )
    choices = {condition: choose(cells, condition, metric, notes) for condition in conditions}
    primary = primary_condition(conditions)
    test = {
        condition: _chosen(cells, condition, choices[condition], f"test_{metric}")
        for condition in conditions
    }
    people = sorted(
        rows["target_participant"].unique(),
        key=lambda p: (rows.loc[rows["target_participant"] == p, "fold"].min(), p),
    )
    kept, left_out, participants = complete_cases(test, people, primary)
    excluded = {
        p: _why_excluded(p, test, kept, rows_used, metric) for p in people if p not in participants
    }
    return Grid(
        name,
        rows,
        metric,
        n_base,
        settings,
        cells,
        choices,
        kept,
        left_out,
        participants,
        excluded,
        primary,
        notes,
    )


def reported_base(rows: pd.DataFrame, notes: list[str]) -> float | None:
    """The most base participants with which at least half of the people have results: with more a
    run may just have begun. None: all is from scratch.
    """
    based = rows[rows["mode"] != "target_only"]
    if not len(based):
        return None
    people = {
        float(count): set(rows["target_participant"])
        for count, rows in based.groupby(based["n_base_participants"].astype(float))
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


def _with_base(rows: pd.DataFrame, n_base: float | None) -> pd.DataFrame:
    """Those with so many base participants, and those from scratch."""
    return rows[(rows["mode"] == "target_only") | (rows["n_base_participants"] == n_base)]


def _order(condition: Condition) -> tuple[int, float]:
    return (("base", *MODES).index(condition.mode), condition.fraction)


def average_repeats(rows: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """One row a participant, condition and setting: the mean over seeds and split seeds. The
    untouched base counts once a base model.
    """
    numbers = [
        c
        for c in rows.columns
        if c.startswith(("test_", "val_", "train_", "selection_"))
        and pd.api.types.is_numeric_dtype(rows[c])
    ]
    frame = rows[["target_participant", "mode", "target_data_pct", *numbers]].rename(
        columns={"target_data_pct": "fraction"}
    )
    frame["setting"] = _setting_texts(rows, settings)
    tuned = (
        frame.groupby(["target_participant", "mode", "fraction", "setting"], sort=True)
        .mean(numeric_only=True)
        .reset_index()
    )
    based = rows[rows["mode"] != "target_only"]
    sides = {
        c: c.removeprefix("base_")
        for c in rows.columns
        if c.startswith(("base_test_", "base_val_")) and pd.api.types.is_numeric_dtype(rows[c])
    }
    base = based[["target_participant", "base_model_hash", *sides]].rename(columns=sides)
    base["setting"] = _setting_texts(based, settings)
    base = base.groupby(["target_participant", "setting", "base_model_hash"], sort=True).mean(
        numeric_only=True
    )
    base = (
        base.groupby(["target_participant", "setting"], sort=True)
        .mean(numeric_only=True)
        .reset_index()
    )
    return (
        pd.concat([tuned, base.assign(mode="base", fraction=0.0)], ignore_index=True)
        if len(base)
        else tuned
    )


def _setting_texts(rows: pd.DataFrame, settings: list[str]) -> pd.Series:
    if not settings:
        return pd.Series("as given", index=rows.index)
    texts = [name + " " + rows[name].astype("string").fillna("unset") for name in settings]
    return texts[0].str.cat(texts[1:], sep=", ") if len(texts) > 1 else texts[0]


def choose(cells: pd.DataFrame, condition: Condition, metric: str, notes: list[str]) -> pd.Series:
    """Setting by participant: the best mean validation score over the *other* participants; the
    first in order among equals. Never looks at test scores.

    Settings that nobody has a validation score of (target_val none) are chosen only where there are
    no others.
    """
    mine = _cells_of(cells, condition)
    column = f"val_{metric}"
    settings = sorted(mine["setting"].unique())
    people = list(dict.fromkeys(mine["target_participant"]))
    if len(settings) == 1:
        return pd.Series(settings[0], index=people)
    scores = {
        person: dict(zip(rows["setting"], rows.get(column, [None] * len(rows)), strict=True))
        for person, rows in mine.groupby("target_participant", sort=False)
    }
    choice = choose_settings(scores, lower_is_better=metric in LOWER_IS_BETTER)
    unscored = [setting for setting in settings if setting not in choice.candidates]
    note = _unscored_words(unscored)
    if unscored and note not in notes:
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


def _unscored_words(settings: list[str]) -> str:
    return (
        "Not chosen, for want of validation scores:"
        f" {', '.join(f'“{setting}”' for setting in settings)}; --filter reports such a setting by"
        " itself."
    )


def _cells_of(cells: pd.DataFrame, condition: Condition) -> pd.DataFrame:
    return cells[(cells["mode"] == condition.mode) & (cells["fraction"] == condition.fraction)]


def _chosen(cells: pd.DataFrame, condition: Condition, choice: pd.Series, column: str) -> pd.Series:
    """A column by participant, at each one's chosen setting."""
    mine = _cells_of(cells, condition)
    if column not in mine:
        return pd.Series(np.nan, index=choice.index)
    picked = mine[mine["setting"] == mine["target_participant"].map(choice)]
    return picked.set_index("target_participant")[column].astype(float)


def primary_condition(conditions: Sequence[Condition]) -> Condition | None:
    """The one condition that is tested against the base without adjustment, known before any
    result.
    """
    for mode in MODES[:-1]:
        mine = [condition for condition in conditions if condition.mode == mode]
        if mine:
            return min(
                mine, key=lambda c: (abs(math.log(c.fraction / PRIMARY_FRACTION)), c.fraction)
            )
    return None


def complete_cases(
    scores: dict[Condition, pd.Series], people: list[str], primary: Condition | None
) -> tuple[list[Condition], list[Condition], list[str]]:
    """The conditions that are compared, those left out as too incomplete, and the participants that
    have every compared one.

    While fewer than half of the participants have everything (a run is going on), the least
    complete condition is left out, but never the base or the primary one. Only whether a score is
    there is looked at, never the score.
    """
    there = {
        condition: {p for p in people if p in series.index and np.isfinite(series[p])}
        for condition, series in scores.items()
    }
    kept, left_out = list(scores), list[Condition]()
    while True:
        complete = set(people).intersection(*(there[condition] for condition in kept))
        droppable = [condition for condition in kept if condition not in (BASE, primary)]
        if 2 * len(complete) >= len(people) or not droppable:
            return kept, left_out, [p for p in people if p in complete]
        worst = min(droppable, key=lambda c: (len(there[c]), _order(c)))
        if not kept or len(there[worst]) == len(people):
            return kept, left_out, [p for p in people if p in complete]
        kept.remove(worst)
        left_out.append(worst)


def _why_excluded(
    person: str,
    test: dict[Condition, pd.Series],
    kept: list[Condition],
    rows: pd.DataFrame,
    metric: str,
) -> str:
    lacking = [c for c in kept if person not in test[c].index or not np.isfinite(test[c][person])]
    reasons = [
        text
        for cell in rows.loc[rows["target_participant"] == person, "undefined"]
        for text in str(cell).split("; ")
        if f"test_{metric}" in text
    ]
    absent = [c.words for c in lacking if person not in test[c].index]
    if absent:
        return f"no result yet for {absent[0]}" + (
            f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        )
    return reasons[0] if reasons else f"no {metric} for {lacking[0].words}"


# -- what is reported


def main_lines(grid: Grid, suffix: str = "") -> list[Line]:
    """The main table, one line a condition."""
    scores = grid.scores(suffix=suffix)
    return [_line(grid, scores, condition) for condition in grid.conditions]


def _line(grid: Grid, scores: pd.DataFrame, condition: Condition) -> Line:
    values = scores[condition].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    has_base = BASE in grid.conditions and condition != BASE
    gain = grid.gain(scores, condition) if has_base else np.array([])
    full = Condition(condition.mode, max(grid.fractions(condition.mode), default=1.0))
    return Line(
        condition,
        median_interval(values),
        float(values.mean()) if len(values) else float("nan"),
        {} if condition == BASE else _median_counts(grid, condition),
        paired(gain[np.isfinite(gain)]) if has_base else None,
        _share(gain, possible_gain(grid, scores)) if has_base else None,
        _share(gain, grid.gain(scores, full)) if has_base and condition != full else None,
    )


def possible_gain(grid: Grid, scores: pd.DataFrame) -> np.ndarray[Any, Any]:
    """What lies between each participant's base score and a perfect one."""
    base = scores[BASE].to_numpy(dtype=float)
    return np.asarray(base if grid.lower else 1.0 - base)


def _share(gain: np.ndarray[Any, Any], of: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    both = np.isfinite(gain) & np.isfinite(of)
    return ratio_of_means(gain[both], of[both])


def _median_counts(grid: Grid, condition: Condition) -> dict[str, float]:
    columns = (
        "train_windows",
        "train_positives",
        "train_hours",
        "selection_windows",
        "selection_hours",
    )
    series = {
        c: _chosen(grid.cells, condition, grid.choices[condition], c).reindex(grid.participants)
        for c in columns
    }
    return {c: float(values.median()) for c, values in series.items() if values.notna().any()}


def contrasts(grid: Grid, suffix: str = "") -> list[Contrast]:
    """The primary contrast, then the others, Holm-adjusted among themselves. At the tuned threshold
    all are among the others.
    """
    scores = grid.scores(suffix=suffix)
    pairs = [
        (condition, BASE)
        for condition in grid.conditions
        if condition != BASE and BASE in grid.conditions
    ]
    pairs += _between_modes(grid)
    results = [
        (
            f"{a.words} − {b.words}",
            _paired(grid.gain(scores, a, b)),
            (a, b) == (grid.primary, BASE) and not suffix,
        )
        for a, b in pairs
    ]
    return adjusted(results)


def _between_modes(grid: Grid) -> list[tuple[Condition, Condition]]:
    """Modes against each other at equal fractions, earlier ones of MODES first."""
    modes = grid.modes()
    return [
        (Condition(a, fraction), Condition(b, fraction))
        for place, a in enumerate(modes)
        for b in modes[place + 1 :]
        for fraction in grid.fractions(a)
        if Condition(b, fraction) in grid.conditions
    ]


def _paired(differences: np.ndarray[Any, Any]) -> Paired:
    return paired(differences[np.isfinite(differences)])


def adjusted(results: list[tuple[str, Paired, bool]]) -> list[Contrast]:
    """Holm over all but the primary contrast, which comes first."""
    others = [(name, result) for name, result, primary in results if not primary]
    p_holm = holm([result.p for _, result in others])
    first = [
        Contrast(name, result, None, primary=True) for name, result, primary in results if primary
    ]
    return first + [
        Contrast(name, result, p) for (name, result), p in zip(others, p_holm, strict=True)
    ]


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
        groups.setdefault(tuple(_family(grid.rows, name).iloc[0] for name in fixed), []).append(
            grid
        )
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
    rows = pd.concat(
        [
            grid.rows if option == "n_base_participants" else _with_base(grid.rows, grid.n_base)
            for grid in grids
        ]
    )
    values = _compared_values(rows, option)
    pooled = [
        value for value in values if sum((grid.rows[option] == value).any() for grid in grids) > 1
    ]
    if pooled:
        raise InputError(
            f"--compare {option}: {pooled[0]} stands for several data sets, which are never pooled;"
            " choose one with --filter data_path=..."
        )
    at = grids[0].primary or grids[0].conditions[-1]
    scores, base = {}, {}
    for value in values:
        part = make_grid(str(value), rows[rows[option] == value], grids[0].metric)
        name = percent(value) if option == "target_data_pct" else _value_text(value)
        scores[name] = _all_scores(part, _compared_condition(at, option, value))
        base[name] = _all_scores(part, BASE)
    table = pd.DataFrame(scores).dropna()
    everyone = list(dict.fromkeys(rows.sort_values("fold")["target_participant"]))
    table = table.loc[[person for person in everyone if person in table.index]]
    first = table.columns[0]
    sign = -1.0 if grids[0].lower else 1.0
    differences = {
        name: np.round(sign * (table[name] - table[first]).to_numpy(), ROUNDING)
        for name in table.columns[1:]
    }
    results = [
        (f"{option}: {name} − {first}", paired(values), False)
        for name, values in differences.items()
    ]
    note = f"{len(table)} of {len(everyone)} participants have every value"
    held = {"mode": percent(at.fraction), "target_data_pct": MODE_WORDS[at.mode]}.get(
        option, at.words
    ).capitalize()
    return Comparison(
        option,
        held,
        list(table.columns),
        table,
        pd.DataFrame(base).reindex(table.index),
        adjusted(results),
        note,
    )


def _compared_values(rows: pd.DataFrame, option: str) -> list[Any]:
    names = [
        name
        for name in ("project", *FinetuneOptions.model_fields)
        if name in rows and name not in ("fold", "prefix", "base_model_hash", "device")
    ]
    varied = [name for name in names if rows[name].nunique() > 1]
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
        else sorted(values, key=lambda value: (isinstance(value, str), value))
    )


def _compared_condition(at: Condition, option: str, value: Any) -> Condition:
    if option == "mode":
        return Condition(value, at.fraction)
    return Condition(at.mode, value) if option == "target_data_pct" else at


def _value_text(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _all_scores(grid: Grid, condition: Condition) -> pd.Series:
    if condition not in grid.choices:
        return pd.Series(dtype=float)
    return _chosen(grid.cells, condition, grid.choices[condition], f"test_{grid.metric}")
