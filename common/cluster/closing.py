"""The table that ends a run: macro F1 on the test windows, per participant, of the untouched base
and of each mode and fraction.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from common import artifacts
from common.errors import CorruptArtifact
from common.jobs.job_files import Job
from common.paths import EXPERIMENT_METRICS, Paths

SHORT = {
    "full_fine_tuning": "full",
    "target_only_fine_tuning": "fine-tuned",
    "head_only_fine_tuning": "head only",
    "target_only": "from scratch",
}
Column = tuple[str, float]
BASE: Column = ("base", 0.0)


def closing_table(paths: Paths, jobs: Sequence[Job]) -> list[str]:
    """Lines of the table; scores of one participant, mode and fraction are averaged over the rest
    of the grid. Empty without results.
    """
    scores: dict[str, dict[Column, list[float]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        if job.kind == "finetune":
            with contextlib.suppress(FileNotFoundError, CorruptArtifact):
                metrics = artifacts.read_sealed(paths.experiments / job.id / EXPERIMENT_METRICS)
                person = scores[str(metrics["target_participant"])]
                for column, name in (
                    (BASE, "base_test_macro_f1"),
                    ((str(metrics["mode"]), float(metrics["target_data_pct"])), "test_macro_f1"),
                ):
                    if metrics.get(name) is not None:
                        person[column].append(metrics[name])
    columns = sorted(
        {column for person in scores.values() for column in person},
        key=lambda column: (column != BASE, column),
    )
    return _lines(scores, columns) if columns else []


def _lines(scores: dict[str, dict[Column, list[float]]], columns: list[Column]) -> list[str]:
    titles = [_title(column) for column in columns]
    first = max(len("participant"), *(len(name) for name in scores))
    means = {
        name: [fmean(person[column]) if person[column] else None for column in columns]
        for name, person in scores.items()
    }
    rows = [("participant", titles)] + [
        (name, [_number(value) for value in values]) for name, values in means.items()
    ]
    overall = [[values[i] for values in means.values()] for i in range(len(columns))]
    rows.append(
        ("mean", [_number(fmean([v for v in column if v is not None])) for column in overall])
    )
    widths = [max(len(title), 5) for title in titles]
    body = [
        "  ".join(
            [
                name.ljust(first),
                *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)),
            ]
        )
        for name, cells in rows
    ]
    return [
        (
            "test macro F1 at threshold 0.5 (fractions count training windows; stopping uses the"
            " selection windows too)"
        ),
        *body,
    ]


def _title(column: Column) -> str:
    return column[0] if column == BASE else f"{SHORT[column[0]]} {100 * column[1]:g} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".lstrip("0") if value < 1 else "1.00"
