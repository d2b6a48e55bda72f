"""index.html: one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from common.artifacts import Json
from common.report import methods
from common.report.collect import Collection
from common.report.drawing import Drawn
from common.report.experiment_table import columns_of, curves, rows_of
from common.report.sections import Section, lead, section_view


def render(
    sections: list[Section],
    collection: Collection,
    missing: list[Json],
    notes: list[str],
    run_figures: list[Drawn],
) -> bytes:
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
            sections=[section_view(part) for part in sections],
            lead=lead(sections),
            several=len(sections) > 1,
            warnings=(
                methods.warnings(collection, [part.grid for part in sections], missing, notes)
                if has_rows
                else notes
            ),
            run_figures=run_figures,
            columns=columns_of(collection.table, sections),
            rows=rows_of(collection, sections) if has_rows else [],
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
