"""From folders to the report folder: the order of things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.artifacts import write_file
from common.errors import InputError
from common.report import page
from common.report.analysis import (
    BASE,
    Comparison,
    Grid,
    compare,
    filter_rows,
    groups_to_compare,
    split_grids,
)
from common.report.collect import Collection, collect, mark_duplicates
from common.report.figures import draw_grid, draw_run
from common.report.missing import MISSING_COLUMNS, mark_stale, missing_cells
from common.report.wording import headline


@dataclass(frozen=True)
class Summary:
    """What the script tells its user."""

    page: Path
    headline: str
    experiments: int
    missing: int
    skipped: list[str]


def build(
    folders: list[Path],
    out: Path,
    metric: str,
    comparisons: Sequence[str],
    filters: Sequence[str],
    experiment: str | None,
) -> Summary:
    """Read the project folders and write the report.

    Raises:
        InputError: no such folder, metric, option, column or experiment; nothing is written then.
    """
    collection = collect(folders)
    if len(collection.table):
        mark_stale(collection)
    missing, notes = missing_cells(collection)
    if len(collection.table):
        collection.table = filter_rows(collection.table, filters).copy()
        mark_duplicates(collection.table)  # anew: the first of a pair may be filtered away
        collection.runs = {index: collection.runs[index] for index in collection.table.index}
    grids = split_grids(collection.table, metric) if len(collection.table) else []
    compared = _comparisons(grids, comparisons)
    if len({grid.rows["project"].iloc[0] for grid in grids}) > 1 and not any(
        comparison.option == "project" for _, comparison in compared
    ):
        notes.append("The projects are not compared: no two of them have results on the same data.")
    sections = [
        _section(grid, number, [comparison for beside, comparison in compared if beside is grid])
        for number, grid in enumerate(grids)
    ]
    chosen = chosen_run(collection, grids, experiment)
    run_figures = (
        draw_run(collection.runs[chosen], collection.table.loc[chosen])
        if chosen is not None
        else []
    )
    html = page.render(sections, collection, missing, notes, run_figures)
    page.write_figures(out, [figure for part in sections for figure in part.figures] + run_figures)
    page.write_tables(out, sections, collection)
    write_file(out / "summary.csv", _tidy(collection).to_csv(index=False).encode())
    write_file(
        out / "missing.csv",
        pd.DataFrame(missing, columns=list(MISSING_COLUMNS)).to_csv(index=False).encode(),
    )
    write_file(out / "index.html", html)
    text = headline(grids[0], sections[0].lines) if grids else "No experiment is complete yet."
    return Summary(
        out / "index.html",
        text,
        len(collection.table),
        len(missing),
        [f"{skip.folder}: {skip.reason}" for skip in collection.skipped],
    )


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


def _section(grid: Grid, number: int, comparisons: list[Comparison]) -> page.Section:
    stem = "" if number == 0 else f"grid{number + 1}_"
    return page.section(grid, comparisons, draw_grid(grid, comparisons, stem))


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
    return int(grid.behind(str(person), condition).index[0])


def _tidy(collection: Collection) -> pd.DataFrame:
    """summary.csv: what says which experiment it is first, then the rest as it came."""
    return collection.table.drop(columns=["data_family"], errors="ignore")
