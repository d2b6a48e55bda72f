"""The files of the report folder beside the page: tables, macros, contrasts, figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.artifacts import Json, write_file
from common.report import methods
from common.report.analysis import Contrast
from common.report.collect import Collection
from common.report.drawing import Drawn
from common.report.sections import Section
from common.report.tables import (
    EXPLORATORY,
    PRIMARY,
    caption_of,
    columns,
    latex_table,
    macros,
    macros_file,
    markdown_table,
    more_macros,
    table_cells,
)
from common.report.wording import count


def write_tables(out: Path, sections: list[Section], collection: Collection) -> None:
    """main_table.tex, main_table.md, numbers.tex, contrasts.csv."""
    tex, md, rows = [], [], []
    for number, part in enumerate(sections, start=1):
        which = "" if number == 1 else f"-grid{number}"
        for lines, tested, tuned in (
            (part.lines, part.contrasts, False),
            (part.tuned, part.tuned_contrasts, True),
        ):
            if lines:
                heads, label = columns(tuned), f"personalisation{which}{'-tuned' if tuned else ''}"
                cells = table_cells(part.grid, lines, tested, tuned)
                caption = caption_of(part.grid, lines, tuned)
                tex.append(latex_table(heads, cells, caption, label))
                md.append(markdown_table(heads, cells, caption))
        rows += _contrast_rows(part)
    write_file(out / "main_table.tex", "\n".join(tex).encode())
    write_file(out / "main_table.md", "\n".join(md).encode())
    write_file(out / "numbers.tex", macros_file(_macros(sections, collection)).encode())
    write_file(out / "contrasts.csv", pd.DataFrame(rows).to_csv(index=False).encode())


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
    more |= more_macros(first.grid, first.draws, first.sensitivity)
    return macros(first.grid, first.lines, first.tuned, first.contrasts, more)


def _contrast_rows(part: Section) -> list[Json]:
    several = [("0.5", part.contrasts), ("tuned", part.tuned_contrasts)]
    several += [("0.5", comparison.contrasts) for comparison in part.comparisons]
    return [
        _contrast_row(part, threshold, contrast)
        for threshold, contrasts in several
        for contrast in contrasts
    ]


def _contrast_row(part: Section, threshold: str, contrast: Contrast) -> Json:
    result, estimate = contrast.result, contrast.result.estimate
    role = EXPLORATORY if part.grid.exploratory else PRIMARY if contrast.primary else "secondary"
    return {
        "grid": part.grid.name,
        "metric": part.grid.metric,
        "threshold": threshold,
        "contrast": contrast.name,
        "primary": contrast.primary,
        "role": role,
        "n": result.n,
        "better": result.better,
        "worse": result.worse,
        "zeros": result.zeros,
        "estimate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "low_open": estimate.low_open,
        "high_open": estimate.high_open,
        "level": estimate.level,
        "median": result.median,
        "rank_biserial": result.effect,
        "p": result.p,
        "p_holm": contrast.p_holm,
    }


def write_figures(out: Path, drawn: list[Drawn]) -> None:
    """figures/*.png and *.svg."""
    for figure in drawn:
        write_file(out / "figures" / f"{figure.name}.png", figure.png)
        write_file(out / "figures" / f"{figure.name}.svg", figure.svg)
