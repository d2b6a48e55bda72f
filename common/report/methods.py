"""How the results were made: data, code, versions, hosts, hours; and what a reader must be warned
of.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from common.artifacts import Json
from common.cli import few, number_are, number_of
from common.data.manifest import Manifest, listed_windows
from common.data.windowing import covered_hours
from common.fonts import missing_signs_warning
from common.jobs.identity import digest
from common.report.analysis import draws
from common.report.cells import from_base, run_ids
from common.report.collect import Collection, Project, Run
from common.report.figures import order_unset
from common.report.grids import Grid
from common.report.wording import count, metric_words, time_text


def hours(collection: Collection) -> list[Json]:
    """Hours of training by kind of device: fine-tunes, distinct base trainings, and what sharing
    them saved.
    """
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    table = collection.table
    for project in collection.projects:
        trainings: dict[str, Json] = {}  # the provenance of each distinct one
        for index in table.index[table["project"] == project.label]:
            row = table.loc[index]
            tally = found[_kind(row["trained_on"])]
            tally["finetunes"] += _seconds(row["train_seconds"])
            if base := project.bases.get(str(row["base_model_hash"])):
                trainings.setdefault(str(base.get("training_key")), base["provenance"])
                tally["alone"] += _seconds(base["provenance"].get("train_seconds"))
        for made in trainings.values():
            found[_kind(made.get("device"))]["bases"] += _seconds(made.get("train_seconds"))
    return [_hours_row(kind, tally) for kind, tally in sorted(found.items())]


def _hours_row(kind: str, tally: dict[str, float]) -> Json:
    saved = max(0.0, tally["alone"] - tally["bases"])
    used = tally["finetunes"] + tally["bases"]
    texts = {"finetunes": tally["finetunes"], "bases": tally["bases"], "used": used, "saved": saved}
    return {"kind": kind} | {key: time_text(seconds / 3600) for key, seconds in texts.items()}


def _kind(device: object) -> str:
    text = str(device).lower()
    return "GPU" if "cuda" in text or "nvidia" in text or "gpu" in text else "CPU"


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and value == value else 0.0


def data_sets(collection: Collection) -> list[Json]:
    """A line a data set and participant, from dataset.json; or one that says there is none."""
    lines: list[Json] = []
    for project in collection.projects:
        for data_path, manifest in sorted(project.manifests.items()):
            name = _data_name(collection, project, data_path)
            if manifest is None:
                lines.append(
                    {
                        "name": name,
                        "about": "no dataset.json: leakage between its splits cannot be excluded",
                        "people": [],
                    }
                )
                continue
            about = (
                f"{len(manifest.channels)} channels at {manifest.sampling_rate_hz:g} Hz, windows of"
                f" {manifest.window_seconds:g} s every {manifest.stride_seconds:g} s; split:"
                f" {_pairs(manifest.split)}; labelling: {_pairs(manifest.labelling)}; source:"
                f" {_pairs(manifest.source)}"
            )
            folder = project.paths.data(data_path)
            people = [
                {"name": person, "splits": _splits(folder, person, manifest)}
                for person in manifest.participants
            ]
            lines.append({"name": name, "about": about, "people": people})
    return lines


def absent_data(collection: Collection) -> list[str]:
    """A line for each data set whose folder is not where it was."""
    return [
        f"{_data_name(collection, project, data_path)} is not here (moved?): that none of its"
        " results is stale cannot be said, and there are no event scores."
        for project in collection.projects
        for data_path in sorted(project.manifests)
        if not project.paths.data(data_path).is_dir()
    ]


def _data_name(collection: Collection, project: Project, data_path: str) -> str:
    return data_path if len(collection.projects) == 1 else f"{project.label}: {data_path}"


def _splits(folder: Path, person: str, manifest: Manifest) -> list[tuple[str, str, str, str]]:
    """Of each split its name, windows, positives and recorded time; the time is a dash where the
    list of windows is not on this machine.
    """
    found = []
    for split, counts in manifest.participants[person].items():
        places = listed_windows(folder, person, split)
        hours = None
        if len(places) == counts.windows:
            with contextlib.suppress(TypeError, ValueError):
                hours = covered_hours(
                    [(session, float(start)) for session, start in places], manifest.window_seconds
                )
        found.append((split, count(counts.windows), count(counts.positives), time_text(hours)))
    return found


def _pairs(values: Json) -> str:
    """'rule session, fractions (train 0.6, test 0.4), repaired yes'; nothing of what is unset."""
    return ", ".join(
        f"{key} {text}" for key, value in values.items() if (text := _plain(value)) != ""
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return f"({pairs})" if (pairs := _pairs(value)) else ""
    if isinstance(value, list):
        return " and ".join(filter(None, map(_plain, value)))
    return "" if value is None else str(value)


def facts(collection: Collection) -> list[tuple[str, str]]:
    """Name and text of everything else that a methods section needs."""
    table, projects = collection.table, collection.projects
    data = {item for run in collection.runs.values() for item in _recorded(run, "data")}
    code = {item for run in collection.runs.values() for item in _recorded(run, "code")}
    bases = sum(len(project.bases) for project in projects)
    roots = ", ".join(str(project.paths.root) for project in projects)
    seeds = {
        "base training": "seed",
        "fine-tuning": "seed_finetune",
        "base order": "base_order_seed",
    }
    found = {
        "Experiments": f"{len(table):,} read from {roots}",
        "Base models": f"{bases:,} published, {_trainings(projects):,} distinct trainings",
        "Networks": "; ".join(_networks(table)),
        "Data fingerprint": digest(sorted(data), 12),
        "Code fingerprints": ", ".join(sorted(f"{name} {sha[:12]}" for name, sha in code)),
        "Versions": "; ".join(_tally(table["versions"])),
        "Git commits": "; ".join(_tally(table["git_commit"])),
        "Hosts": "; ".join(_tally(table["host"])),
        "Devices": "; ".join(_tally(table["trained_on"])),
        "Seeds": "; ".join(f"{what} {_values(table[name])}" for what, name in seeds.items()),
        "Split seeds": _values(table["split_seed"]),
        "Trained between": f"{_edge(table['started'], min)} and {_edge(table['finished'], max)}"
        " (UTC)",
    }
    return [(name, text) for name, text in found.items() if text]


def _recorded(run: Run, kind: str) -> Iterable[tuple[str, str]]:
    """Name and SHA-256 of the data or code that an experiment was made with."""
    fingerprints: dict[str, str] = run.config.get(f"{kind}_fingerprints", {})
    return fingerprints.items()


def _trainings(projects: Iterable[Project]) -> int:
    return sum(
        len({base.get("training_key") for base in project.bases.values()}) for project in projects
    )


def _networks(table: pd.DataFrame) -> list[str]:
    """Each network with its number of parameters, where its results say it."""
    named = []
    for name, numbers in table.groupby("model")["parameters"]:
        sizes = ", ".join(f"{size:,}" for size in sorted(numbers.dropna().astype(int).unique()))
        named.append(f"{name} ({sizes} parameters)" if sizes else str(name))
    return named


def _tally(column: pd.Series) -> list[str]:
    counts = column.dropna().astype(str).value_counts()
    return [
        f"{value} ({number:,})" if len(counts) > 1 else str(value)
        for value, number in counts.items()
        if value
    ]


def _values(column: pd.Series) -> str:
    values = sorted(column.dropna().unique())
    return (
        ", ".join(f"{value:.12g}" if isinstance(value, float) else str(value) for value in values)
        or "unset"
    )


def _edge(column: pd.Series, which: Any) -> str:
    values = [str(value) for value in column.dropna()]
    return str(which(values))[:19].replace("T", " ") if values else "unknown"


# -- warnings


def warnings(
    collection: Collection, grids: list[Grid], missing: list[Json], notes: list[str]
) -> list[str]:
    """What to know before citing a number, the gravest first."""
    table = collection.table
    found = [*_unproved(collection), *_mixed(table), *_set_aside(collection, missing), *notes]
    found += _no_events(table) + _no_font(table)
    for grid in grids:
        name = f"{grid.name}: " if grid.name else ""
        found += [name + text for text in _grid_warnings(grid, table)]
    return found


def _unproved(collection: Collection) -> list[str]:
    used = set(zip(collection.table["project"], collection.table["data_path"], strict=True))
    names = [
        _data_name(collection, project, data_path)
        for project in collection.projects
        for data_path, manifest in sorted(project.manifests.items())
        if manifest is None and (project.label, data_path) in used
    ]
    return (
        [
            f"No readable dataset.json in {few(names, 5)}: leakage between train, validation and"
            " test cannot be excluded."
        ]
        if names
        else []
    )


def _no_events(table: pd.DataFrame) -> list[str]:
    reasons = [str(text) for text in table["no_events"].dropna().unique()]
    return [f"No event scores for some experiments: {few(reasons, 5)}."] if reasons else []


def _no_font(table: pd.DataFrame) -> list[str]:
    people = [str(name) for name in table["target_participant"].unique()]
    warning = missing_signs_warning("figures", people)
    return [warning] if warning else []


def _mixed(table: pd.DataFrame) -> list[str]:
    words = {"other_data": "data files", "other_code": "code", "other_versions": "library versions"}
    table, found = table[table["duplicate_of"].isna() & table["stale"].isna()], []
    for column, what in words.items():
        differing = table[table[column].map(bool)]
        if len(differing):
            names = sorted({name for some in differing[column] for name in some})
            found.append(
                f"Mixed {what}: {len(differing)} of {len(table)} experiments were made with other"
                f" {what} than the rest ({few(names, 5)}); see the column {column}. Numbers that"
                " average over both are marked by this line only: make them anew, or look at one"
                " part with --filter."
            )
    return found


def _set_aside(collection: Collection, missing: list[Json]) -> list[str]:
    table, found = collection.table, absent_data(collection)
    stale = table[table["stale"].notna()]
    if len(stale):
        found.append(
            f"{number_are(len(stale), 'stale experiment')} left out of all numbers:"
            f" {few((f'{row.folder} ({row.stale})' for row in stale.itertuples()), 5)}."
        )
    duplicates = table["duplicate_of"].notna().sum()
    if duplicates:
        found.append(
            f"{number_are(duplicates, 'experiment')} the same as another one under a second"
            " prefix: each counts once."
        )
    if missing:
        kinds = pd.Series([cell["reason"] for cell in missing]).value_counts()
        text = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        found.append(
            f"{number_of(len(missing), 'planned experiment')} without a result ({text}):"
            " missing.csv names each."
        )
    if collection.skipped:
        found.append(
            f"{number_of(len(collection.skipped), 'folder')} could not be read and so left out:"
            " named at the end."
        )
    return found


def _grid_warnings(grid: Grid, table: pd.DataFrame) -> list[str]:
    rows, found = table.loc[run_ids(grid.rows)], list(grid.notes)
    if grid.left_out:
        found.append(
            "Too few results yet, so not compared:"
            f" {', '.join(condition.words for condition in grid.left_out)}."
        )
    capped, base_capped = (
        int(rows["hit_max_epochs"].sum()),
        rows.loc[rows["base_hit_max_epochs"], "base_model_hash"].nunique(),
    )
    if capped or base_capped:
        found.append(
            f"{capped} of {number_of(len(rows), 'fine-tune')} and"
            f" {number_of(base_capped, 'base model')} stopped at max_epochs instead of by patience"
            " (marked in the table) and may be undertrained."
        )
    found += _several_lists(rows)
    if order_unset(grid):
        found.append(
            "The number of base participants is confounded with who they are: base_order_seed is"
            " unset, so the first ones as listed are always taken."
        )
    found += _uneven_repeats(grid)
    found += _undefined(grid.rows, grid.metric)
    found += _one_draw(grid)
    based = from_base(rows)
    if kept := int((based["best_epoch"] == 0).sum()):
        found.append(
            f"In {kept} of {number_of(len(based), 'fine-tune')} no epoch beat the untouched base on"
            " the selection windows, so fine-tuned and base are the same model."
        )
    return found


def _one_draw(grid: Grid) -> list[str]:
    """One draw of a fraction may decide a person's result."""
    primary = grid.primary
    if primary is None or primary.fraction == 1 or primary.order != "random" or draws(grid):
        return []
    return [
        f"Each person's windows of “{primary.words}” are one draw: how much that draw decides"
        " cannot be said. Give the grid several values of seed_finetune, for example [0, 1, 2]."
    ]


def _several_lists(rows: pd.DataFrame) -> list[str]:
    """Somebody was added, or the order changed: what was there stays, with the base participants
    that it had.
    """
    lists = from_base(rows)["participants"].value_counts()
    if len(lists) < 2:
        return []
    return [
        f"Experiments were planned with {len(lists)} lists of participants"
        f" ({', '.join(map(str, lists))} experiments) and are reported together: equal numbers of"
        " base participants may be other people (column base_participants), and a person's results"
        " with several such groups are averaged like seeds."
    ]


def _undefined(rows: pd.DataFrame, metric: str) -> list[str]:
    """Who lacks the reported score and why; that others are undefined is only mentioned."""
    affected = rows[rows["undefined"].map(bool)]
    mine = dict.fromkeys(
        f"{row.target_participant} ({why})"
        for row in affected.itertuples()
        for why in row.undefined.of(metric).values()
    )
    if mine:
        return [f"Undefined {metric_words(metric)}, shown as a dash: {few(mine, 5)}."]
    return (
        [
            f"In {number_of(len(affected), 'experiment')} other scores than"
            f" {metric_words(metric)} are undefined; summary.csv has the reasons."
        ]
        if len(affected)
        else []
    )


def _uneven_repeats(grid: Grid) -> list[str]:
    keys = ["mode", "target_data_pct", "target_val", "target_order", "n_base_participants"]
    repeats = grid.rows.groupby([*keys, "target_participant"], dropna=False).size()
    sizes = repeats.groupby(level=keys, dropna=False).agg(["min", "max"])
    uneven = sizes[sizes["min"] < sizes["max"]]
    if not len(uneven):
        return []
    words = metric_words(grid.metric)
    return [
        "Participants differ in how many seeds or settings have run"
        f" ({number_of(len(uneven), 'condition')}); each one's {words} is the mean of what is"
        " there."
    ]
