"""From folders to the report folder: the order of things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from common.artifacts import write_file
from common.cli import few
from common.errors import InputError
from common.jobs.job_files import Job
from common.paths import EXPERIMENTS
from common.report.calibration import calibration
from common.report.cells import run_ids
from common.report.collect import Collection, collect, mark_duplicates
from common.report.comparisons import Comparison, compare, groups_to_compare
from common.report.conditions import BASE
from common.report.figures import draw_grid
from common.report.folds import pool_folds
from common.report.grids import Grid, chosen_metric, filter_rows, split_grids
from common.report.methods import absent_data
from common.report.missing import MISSING_COLUMNS, mark_stale, missing_cells, planned_jobs
from common.report.page import render
from common.report.predictions import EventRules
from common.report.report_files import write_figures, write_tables
from common.report.run_figures import draw_run
from common.report.sections import Section, lead, section

PAGE = "index.html"


@dataclass(frozen=True)
class Summary:
    """What the script tells its user."""

    page: Path
    headline: str
    beside: list[str]  # the other grids on the page
    experiments: int
    missing: int
    skipped: list[str]
    remarks: list[str]


@dataclass(frozen=True)
class ReportRequest:
    """What a user asked for. `metric` None: the one that was fixed beforehand."""

    folders: list[Path]
    out: Path
    metric: str | None = None
    comparisons: Sequence[str] = ()
    filters: Sequence[str] = ()
    experiment: str | None = None
    rules: EventRules = field(default_factory=EventRules)


def build_report(request: ReportRequest) -> Summary:
    """Read the project folders and write the report.

    Raises:
        InputError: no such folder, metric, option, column or experiment, or `out` is no place for
        a report; nothing is written then.
    """
    _check_place(request.out)
    collection = collect(request.folders, request.rules)
    if len(collection.table):
        mark_stale(collection)
    plans, notes = planned_jobs(collection)
    missing = missing_cells(collection, plans)
    grids = _grids(collection, request, plans)
    compared = _comparisons(grids, request.comparisons)
    notes += _not_compared(grids, compared)
    sections = [
        _section(grid, number, [one for beside, one in compared if beside is grid], collection)
        for number, grid in enumerate(grids)
    ]
    chosen = chosen_run(collection, grids, request.experiment)
    run_figures = (
        draw_run(collection.runs[chosen], collection.table.loc[chosen])
        if chosen is not None
        else []
    )
    html = render(sections, collection, missing, notes, run_figures)
    figures = [figure for part in sections for figure in part.figures]
    write_file(request.out / PAGE, html)  # first: the sign that the folder is a report's
    write_figures(request.out, figures + run_figures)
    write_tables(request.out, sections, collection)
    _write_lists(request.out, collection, missing)
    return Summary(
        request.out / PAGE,
        lead(sections)["headline"],
        [grid.name for grid in grids[1:]],
        len(collection.table),
        len(missing),
        [f"{skip.folder}: {skip.reason}" for skip in collection.skipped],
        absent_data(collection),
    )


def _check_place(out: Path) -> None:
    """A report is written beside files of the user's own only where one already is."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others and PAGE not in others:
        raise InputError(f"--out {out}: holds {few(others)} and no report; give a new folder")


def _grids(
    collection: Collection, request: ReportRequest, plans: Mapping[str, Sequence[Job]]
) -> list[Grid]:
    if not len(collection.table):
        return []
    collection.table = filter_rows(collection.table, request.filters).copy()
    mark_duplicates(collection.table)  # anew: the first of a pair may be filtered away
    collection.runs = {index: collection.runs[index] for index in collection.table.index}
    analyses = {project.label: project.analysis for project in collection.projects}
    metric = chosen_metric(request.metric, list(analyses.values()))
    table = collection.table
    planned = {(project, f"{EXPERIMENTS}/{job.id}") for project in plans for job in plans[project]}
    now = [place in planned for place in zip(table["project"], table["folder"], strict=True)]
    families = set(table.loc[now, "data_family"])
    if not any(text.startswith("data_path=") for text in request.filters):
        table = pool_folds(table, collection.runs, request.rules)
    return split_grids(table, metric, analyses, families)


def _not_compared(grids: list[Grid], compared: list[tuple[Grid, Comparison]]) -> list[str]:
    several = len({grid.rows["project"].iloc[0] for grid in grids}) > 1
    if not several or any(comparison.option == "project" for _, comparison in compared):
        return []
    return ["The projects are not compared: no two of them have results on the same data."]


def _write_lists(out: Path, collection: Collection, missing: list[dict[str, Any]]) -> None:
    """summary.csv and missing.csv."""
    table = collection.table.drop(columns=["data_family", "part_tested"], errors="ignore")
    write_file(out / "summary.csv", table.to_csv(index=False).encode())
    cells = pd.DataFrame(missing, columns=list(MISSING_COLUMNS))
    write_file(out / "missing.csv", cells.to_csv(index=False).encode())


def _comparisons(grids: list[Grid], asked: Sequence[str]) -> list[tuple[Grid, Comparison]]:
    """Each comparison with the grid beside which it stands: the first of those that it is made of.
    Projects are compared unasked.
    """
    if not grids:
        return []
    options = [
        *asked,
        *(["project"] if "project" not in asked and groups_to_compare(grids, "project") else []),
    ]
    return [
        (group[0], compare(group, option))
        for option in options
        for group in groups_to_compare(grids, option) or [grids[:1]]
    ]


def _section(
    grid: Grid, number: int, comparisons: list[Comparison], collection: Collection
) -> Section:
    stem = "" if number == 0 else f"grid{number + 1}_"
    calibrated = calibration(grid, collection.runs)
    return section(grid, comparisons, draw_grid(grid, comparisons, calibrated, stem))


def chosen_run(collection: Collection, grids: list[Grid], experiment: str | None) -> int | None:
    """The experiment whose own figures are shown: the one that was asked for, else the participant
    with the median score at the primary condition.
    """
    table = collection.table
    if experiment is not None:
        wanted = experiment.rstrip("/").removeprefix("experiments/")
        found = table.index[table["folder"] == f"experiments/{wanted}"] if len(table) else []
        if not len(found):
            raise InputError(
                f"--experiment {experiment}: no readable experiment of that name; give"
                " PREFIX/foldN_PARTICIPANT as in summary.csv"
            )
        return int(found[0])
    if not grids or not grids[0].participants:
        return None
    grid = grids[0]
    condition = grid.primary or next(c for c in grid.conditions if c != BASE)
    scores = grid.scores()[condition].sort_values(kind="stable")
    person = scores.index[(len(scores) - 1) // 2]
    return run_ids(grid.behind(str(person), condition))[0]
