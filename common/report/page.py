"""index.html: one file that asks the network for nothing, and the other files of the report
folder.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from common.artifacts import write_file
from common.report import methods
from common.report.analysis import (
    BASE,
    Comparison,
    Condition,
    Contrast,
    Grid,
    Line,
    contrasts,
    main_lines,
    percent,
)
from common.report.collect import Collection, Run
from common.report.figures import Drawn
from common.report.tables import (
    COLUMNS,
    adjusted_text,
    caption_of,
    latex_table,
    macros,
    macros_file,
    markdown_table,
    table_cells,
)
from common.report.wording import (
    NOTHING,
    beside_headline,
    count,
    duration,
    fixed_words,
    gain_text,
    headline,
    metric_words,
    people_words,
    score,
    settings_words,
    share_text,
)

Json = dict[str, Any]
CURVE_POINTS = 80


@dataclass
class Section:
    """A grid with everything that is said about it."""

    grid: Grid
    lines: list[Line]
    tuned: list[Line]
    contrasts: list[Contrast]
    tuned_contrasts: list[Contrast]
    comparisons: list[Comparison]
    figures: list[Drawn]

    @property
    def p_holm(self) -> dict[Condition, float | None]:
        """Adjusted p of each condition against the base."""
        by_name = {contrast.name: contrast.p_holm for contrast in self.contrasts}
        return {
            line.condition: by_name.get(f"{line.condition.words} − {BASE.words}")
            for line in self.lines
            if line.condition != BASE
        }


def section(grid: Grid, comparisons: list[Comparison], figures: list[Drawn]) -> Section:
    """Compute the numbers of a grid's section."""
    has_tuned = f"test_{grid.metric}_tuned" in grid.cells
    tuned = main_lines(grid, "_tuned") if has_tuned else []
    return Section(
        grid,
        main_lines(grid),
        tuned,
        contrasts(grid),
        contrasts(grid, "_tuned") if has_tuned else [],
        comparisons,
        figures,
    )


# -- files


def write_tables(out: Path, sections: list[Section], collection: Collection) -> None:
    """main_table.tex, main_table.md, numbers.tex, contrasts.csv."""
    tex, md, rows = [], [], []
    for number, part in enumerate(sections, start=1):
        which = "" if number == 1 else f"-grid{number}"
        for lines, label, threshold in (
            (part.lines, "", "threshold 0.5"),
            (part.tuned, "-tuned", "the threshold tuned on each model's validation windows"),
        ):
            if lines:
                p_holm = part.p_holm if lines is part.lines else _tuned_holm(part)
                cells, caption = (
                    table_cells(
                        part.grid, lines, p_holm, part.grid.primary if lines is part.lines else None
                    ),
                    caption_of(part.grid, threshold),
                )
                tex.append(latex_table(cells, caption, f"personalisation{which}{label}"))
                md.append(markdown_table(cells, caption))
        rows += [_contrast_row(part.grid.name, "0.5", c) for c in part.contrasts] + [
            _contrast_row(part.grid.name, "tuned", c) for c in part.tuned_contrasts
        ]
        rows += [
            _contrast_row(part.grid.name, "0.5", c)
            for comparison in part.comparisons
            for c in comparison.contrasts
        ]
    write_file(out / "main_table.tex", "\n".join(tex).encode())
    write_file(out / "main_table.md", "\n".join(md).encode())
    write_file(out / "numbers.tex", macros_file(_macros(sections, collection)).encode())
    write_file(out / "contrasts.csv", pd.DataFrame(rows).to_csv(index=False).encode())


def _tuned_holm(part: Section) -> dict[Condition, float | None]:
    by_name = {contrast.name: contrast.p_holm for contrast in part.tuned_contrasts}
    return {
        line.condition: by_name.get(f"{line.condition.words} − {BASE.words}")
        for line in part.tuned
        if line.condition != BASE
    }


def _macros(sections: list[Section], collection: Collection) -> dict[str, str]:
    more = {
        "Experiments": count(float(len(collection.table))),
        "BaseModels": count(float(sum(len(p.bases) for p in collection.projects))),
    }
    for row in methods.hours(collection) if len(collection.table) else []:
        more |= {
            f"{row['kind']}Time{what.capitalize()}": str(row[what])
            for what in ("finetunes", "bases", "used", "saved")
        }
    if not sections:
        return {f"pers{name}": text for name, text in more.items()}
    first = sections[0]
    return macros(first.grid, first.lines, first.tuned, first.p_holm, more)


def _contrast_row(grid: str, threshold: str, contrast: Contrast) -> Json:
    result = contrast.result
    row: Json = {
        "grid": grid,
        "threshold": threshold,
        "contrast": contrast.name,
        "primary": contrast.primary,
    }
    row |= {
        name: getattr(result, name)
        for name in ("n", "better", "worse", "zeros", "median", "low", "high", "p")
    }
    return row | {"p_holm": contrast.p_holm}


def write_figures(out: Path, drawn: list[Drawn]) -> None:
    """figures/*.png and *.svg."""
    for figure in drawn:
        write_file(out / "figures" / f"{figure.name}.png", figure.png)
        write_file(out / "figures" / f"{figure.name}.svg", figure.svg)


# -- page


def render(
    sections: list[Section],
    collection: Collection,
    missing: list[Json],
    notes: list[str],
    run_figures: list[Drawn],
) -> bytes:
    """The page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"embedded": _embedded}
    script = _template("table.js")
    has_rows = bool(len(collection.table))
    return (
        environment.from_string(_template("report.html.j2"))
        .render(
            style=Markup(_template("style.css")),  # files of this package, not input
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            sections=[_section_view(part) for part in sections],
            lead=_lead(sections),
            several=len(sections) > 1,
            warnings=(
                methods.warnings(collection, [part.grid for part in sections], missing, notes)
                if has_rows
                else notes
            ),
            run_figures=run_figures,
            columns=_columns(collection.table, sections),
            rows=_rows(collection, sections) if has_rows else [],
            curves={str(run.id): curves(run) for run in collection.runs.values()},
            missing=missing,
            skipped=collection.skipped,
            data_sets=methods.data_sets(collection),
            facts=methods.facts(collection) if has_rows else [],
            hours=methods.hours(collection) if has_rows else [],
        )
        .encode()
    )


def _template(name: str) -> str:
    return resources.files("common.report").joinpath("templates", name).read_text(encoding="utf-8")


def _embedded(figure: Drawn) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(figure.svg).decode()


def _lead(sections: list[Section]) -> Json:
    if not sections:
        return {
            "headline": "No experiment is complete yet.",
            "beside": "Run this again when the first results are there.",
            "people": "",
        }
    first = sections[0]
    return {
        "headline": headline(first.grid, first.lines),
        "beside": beside_headline(first.grid, first.lines),
        "people": people_words(first.grid),
    }


def _section_view(part: Section) -> Json:
    grid = part.grid
    return {
        "name": grid.name,
        "headline": headline(grid, part.lines),
        "people": people_words(grid),
        "settings": settings_words(grid),
        "fixed": fixed_words(grid),
        "columns": COLUMNS,
        "table": table_cells(grid, part.lines, part.p_holm, grid.primary),
        "caption": caption_of(grid, "threshold 0.5"),
        "tuned": table_cells(grid, part.tuned, _tuned_holm(part), None),
        "tuned_caption": caption_of(grid, "the threshold tuned on each model's validation windows"),
        "shares": [
            (line.condition.words, share_text(line.share), share_text(line.share_of_full))
            for line in part.lines
            if line.share
        ],
        "contrasts": [_contrast_view(contrast, grid.metric) for contrast in part.contrasts],
        "comparisons": [
            _comparison_view(comparison, grid.metric) for comparison in part.comparisons
        ],
        "choices": _choices(grid),
        "bouts": _bouts(grid),
        "figures": part.figures,
    }


def _contrast_view(contrast: Contrast, metric: str) -> list[str]:
    result = contrast.result
    holm = "primary" if contrast.primary else adjusted_text(contrast.p_holm)
    return [
        contrast.name,
        str(result.n),
        gain_text(result, metric),
        f"{result.better} / {result.worse} / {result.zeros}",
        result.p_text,
        holm,
    ]


def _comparison_view(comparison: Comparison, metric: str) -> Json:
    medians = [
        (
            value,
            (
                score(float(comparison.scores[value].median()), metric)
                if len(comparison.scores)
                else NOTHING
            ),
        )
        for value in comparison.values
    ]
    rows = [_contrast_view(contrast, metric) for contrast in comparison.contrasts]
    return {
        "option": comparison.option,
        "at": comparison.at,
        "note": comparison.note,
        "medians": medians,
        "rows": rows,
    }


def _choices(grid: Grid) -> list[tuple[str, str]]:
    """Which settings were chosen, by condition, with how many participants they were chosen for."""
    if not grid.settings:
        return []
    found = []
    for condition in grid.conditions:
        chosen = grid.choices[condition].reindex(grid.participants).value_counts()
        found.append(
            (
                condition.words,
                "; ".join(f"{setting} ({number})" for setting, number in chosen.items()),
            )
        )
    return found


def _bouts(grid: Grid) -> list[list[str]]:
    """Per condition: bout recall and false alarms an hour, at 0.5 and tuned; empty without
    times.
    """
    if "test_bout_recall" not in grid.cells or not grid.cells["test_bout_recall"].notna().any():
        return []
    tables = [
        (metric, grid.scores(metric, suffix))
        for metric in ("bout_recall", "false_alarms_per_hour")
        for suffix in ("", "_tuned")
    ]
    known = {condition: int(tables[0][1][condition].notna().sum()) for condition in grid.conditions}
    return [
        [
            c.words,
            str(known[c]),
            *(score(float(table[c].median()), metric) for metric, table in tables),
        ]
        for c in grid.conditions
    ]


# -- the table of experiments


def _columns(table: pd.DataFrame, sections: list[Section]) -> list[tuple[str, str, bool]]:
    """Column of the frame, its heading, whether it is a number."""
    metric = sections[0].grid.metric if sections else "macro_f1"
    settings = list(dict.fromkeys(name for part in sections for name in part.grid.settings))
    varied = [
        name
        for name in (
            "project",
            "data_path",
            "n_base_participants",
            "seed",
            "seed_finetune",
            "base_order_seed",
        )
        if _varies(table, name)
    ]
    shown = [
        ("target_participant", "participant", False),
        ("mode", "mode", False),
        ("target_data_pct", "fraction", True),
    ]
    shown += [
        (name, name.removeprefix("n_").replace("_", " "), name not in ("project", "data_path"))
        for name in varied
    ]
    shown += [
        (
            name,
            name.replace("_", " "),
            bool(name in table and pd.api.types.is_numeric_dtype(table[name])),
        )
        for name in settings
    ]
    shown += [
        ("train_windows", "training windows", True),
        ("selection_windows", "selection windows", True),
    ]
    words = metric_words(metric)
    shown += [
        (f"base_test_{metric}", f"base {words}", True),
        (f"test_{metric}", words, True),
        ("gain", "gain", True),
    ]
    if f"test_{metric}_tuned" in table:
        shown += [
            (f"base_test_{metric}_tuned", f"base {words}, tuned", True),
            (f"test_{metric}_tuned", f"{words}, tuned", True),
        ]
    return [*shown, ("best_epoch", "best epoch", True), ("marks", "marks", False)]


def _varies(table: pd.DataFrame, name: str) -> bool:
    return name in table and bool(table[name].nunique(dropna=True) > 1)


def _rows(collection: Collection, sections: list[Section]) -> list[Json]:
    table = collection.table
    columns = _columns(table, sections)
    metric = sections[0].grid.metric if sections else "macro_f1"
    sign = -1 if sections and sections[0].grid.lower else 1
    frame = table.assign(
        gain=sign * (_column(table, f"test_{metric}") - _column(table, f"base_test_{metric}")),
        marks=table.apply(_marks, axis=1, metric=metric),
    )
    records = frame[[name for name, _, _ in columns if name in frame]].to_dict("records")
    rows = []
    for index, record in zip(frame.index, records, strict=True):
        cells = [_cell(name, record.get(name), metric) for name, _, _ in columns]
        rows.append(
            {
                "id": index,
                "cells": cells,
                "folder": table.at[index, "folder"],
                "title": f"{table.at[index, 'project']}/{table.at[index, 'folder']}",
            }
        )
    return rows


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name].astype(float) if name in table else pd.Series(math.nan, index=table.index)


def _cell(name: str, value: Any, metric: str) -> tuple[str, str]:
    """What is shown, and what is sorted by."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return NOTHING, ""
    if name == "target_data_pct":
        return percent(value), repr(float(value))
    if name.startswith(("test_", "base_test_")) or name == "gain":
        return score(float(value), metric, signed=name == "gain"), repr(float(value))
    if isinstance(value, float):
        return f"{value:.12g}", repr(value)
    return str(value), str(value)


def _marks(row: pd.Series, metric: str) -> str:
    words = {"hit_max_epochs": "max_epochs", "base_hit_max_epochs": "base max_epochs"}
    marks = [text for column, text in words.items() if row[column]]
    marks += [
        text
        for column, text in (("stale", "stale"), ("duplicate_of", "duplicate"))
        if isinstance(row[column], str)
    ]
    marks += [
        column.replace("_", " ")
        for column in ("other_data", "other_code", "other_versions")
        if row[column]
    ]
    return ", ".join(
        [*marks, "undefined scores"] if f"test_{metric}" in row["undefined"] else marks
    )


def curves(run: Run) -> Json:
    """Losses thin enough for a page: at most CURVE_POINTS epochs, always the first, the best and
    the last.
    """
    length = max(
        (len(values) for values in run.losses.values() if isinstance(values, list)), default=0
    )
    best, first = run.metrics.get("best_epoch"), run.first_epoch
    step = max(1, math.ceil(length / CURVE_POINTS))
    kept = [best - first] if isinstance(best, int) and first <= best < first + length else []
    places = sorted({*range(0, length, step), *kept, length - 1}) if length else []
    losses: Json = {
        name: [_rounded(run.losses[name], place) for place in places]
        for name in ("train", "val", "val_macro_f1")
        if name in run.losses
    }
    seconds = run.metrics.get("provenance", {}).get("train_seconds")
    time = duration(seconds / 3600) if seconds is not None else NOTHING
    return {
        "epochs": [first + place for place in places],
        "best": best,
        "stopped": run.metrics.get("stopped_by"),
        "time": time,
    } | losses


def _rounded(values: list[float | None], place: int) -> float | None:
    value = values[place] if place < len(values) else None
    return None if value is None else float(f"{value:.4g}")
