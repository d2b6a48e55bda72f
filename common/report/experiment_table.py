"""The table of all experiments on the page, and the curves that it draws on demand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from common.artifacts import Json
from common.report.collect import Collection, Run
from common.report.conditions import percent
from common.report.sections import Section
from common.report.wording import NOTHING, metric_words, score_text, time_text

CURVE_POINTS = 80
REPEATED = (
    "project",
    "data_path",
    "n_base_participants",
    "target_val",
    "target_order",
    "seed",
    "seed_finetune",
    "base_order_seed",
)


def columns_of(table: pd.DataFrame, sections: list[Section]) -> list[tuple[str, str, bool]]:
    """Column of the frame, its heading, whether it is a number."""
    metric = sections[0].grid.metric if sections else "macro_f1"
    settings = list(dict.fromkeys(name for part in sections for name in part.grid.settings))
    varied = [name for name in REPEATED if _varies(table, name)]
    shown = [
        ("target_participant", "participant", False),
        ("mode", "mode", False),
        ("target_data_pct", "fraction", True),
    ]
    shown += [
        (name, name.removeprefix("n_").replace("_", " "), _is_number(table, name))
        for name in (*varied, *settings)
    ]
    words = metric_words(metric)
    shown += [
        ("train_windows", "training windows", True),
        ("selection_windows", "selection windows", True),
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


def _is_number(table: pd.DataFrame, name: str) -> bool:
    return bool(name in table and pd.api.types.is_numeric_dtype(table[name]))


def _varies(table: pd.DataFrame, name: str) -> bool:
    return name in table and bool(table[name].nunique(dropna=True) > 1)


def rows_of(collection: Collection, sections: list[Section]) -> list[Json]:
    table = collection.table
    columns = columns_of(table, sections)
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
        return score_text(float(value), metric, signed=name == "gain"), repr(float(value))
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
    return ", ".join([*marks, "undefined scores"] if row["undefined"].of(metric) else marks)


def curves(run: Run) -> Json:
    """Losses thin enough for a page: at most CURVE_POINTS epochs, always the first, the best and
    the last.
    """
    length = max(map(len, run.losses.values()), default=0)
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
    time = time_text(seconds / 3600) if seconds is not None else NOTHING
    return {
        "epochs": [first + place for place in places],
        "best": best,
        "stopped": run.metrics.get("stopped_by"),
        "time": time,
    } | losses


def _rounded(values: list[float | None], place: int) -> float | None:
    value = values[place] if place < len(values) else None
    return None if value is None else float(f"{value:.4g}")
