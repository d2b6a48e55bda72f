"""A grid with everything that is said about it, and that as the page's template takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from common.artifacts import Json
from common.report.analysis import (
    Contrast,
    Draws,
    Line,
    Sensitivity,
    contrasts,
    draws,
    main_lines,
    sensitivity,
)
from common.report.comparisons import Comparison
from common.report.conditions import BASE
from common.report.drawing import Drawn
from common.report.grids import Grid
from common.report.tables import EXPLORATORY, caption_of, columns, holm_text, table_cells
from common.report.wording import (
    NOTHING,
    beside_headline,
    count,
    draws_words,
    families_words,
    fixed_words,
    gain_text,
    headline,
    metric_words,
    people_words,
    pooled_words,
    score_text,
    sensitivity_words,
    settings_words,
    share_text,
)

EVENT_METRICS = (
    "event_recall",
    "event_precision",
    "event_f1",
    "event_recall_iou",
    "event_precision_iou",
    "event_f1_iou",
    "false_episodes_per_hour",
    "false_episodes_per_day",
    "false_time_share",
    "fragmented_bouts",
    "merged_bouts",
)
CALIBRATION = ("brier", "ece", "mcc", "specificity", "balanced_accuracy", "roc_auc", "pr_auc")


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
    draws: Draws | None
    sensitivity: Sensitivity | None


def section(grid: Grid, comparisons: list[Comparison], figures: list[Drawn]) -> Section:
    """Compute the numbers of a grid's section."""
    return Section(
        grid=grid,
        lines=main_lines(grid),
        tuned=main_lines(grid, "_tuned") if grid.has_tuned else [],
        contrasts=contrasts(grid),
        tuned_contrasts=contrasts(grid, "_tuned") if grid.has_tuned else [],
        comparisons=comparisons,
        figures=figures,
        draws=draws(grid),
        sensitivity=sensitivity(grid),
    )


def lead(sections: list[Section]) -> Json:
    """What comes first on the page."""
    if not sections:
        return {
            "headline": "No experiment is complete yet.",
            "beside": "Run this again when the first results are there.",
            "people": "",
        }
    first = sections[0]
    name = f"{first.grid.name}: " if first.grid.name else ""
    return {
        "headline": name + headline(first.grid, first.lines),
        "beside": beside_headline(first.grid, first.lines),
        "people": people_words(first.grid),
    }


def section_view(part: Section) -> Json:
    """A section as the template takes it."""
    grid = part.grid
    return {
        "name": grid.name,
        "headline": headline(grid, part.lines),
        "people": people_words(grid),
        "status": EXPLORATORY if grid.exploratory else "",
        "tests": pooled_words(grid),
        "settings": settings_words(grid),
        "fixed": fixed_words(grid),
        "families": families_words(grid),
        "sensitivity": sensitivity_words(grid, part.sensitivity),
        "draws": draws_words(grid, part.draws),
        "columns": columns(tuned=False),
        "table": table_cells(grid, part.lines, part.contrasts, tuned=False),
        "caption": caption_of(grid, part.lines, tuned=False),
        "tuned_columns": columns(tuned=True),
        "tuned": table_cells(grid, part.tuned, part.tuned_contrasts, tuned=True),
        "tuned_caption": caption_of(grid, part.tuned, tuned=True),
        "shares": [
            (line.condition.words, share_text(line.share), share_text(line.share_of_full))
            for line in part.lines
            if line.share
        ],
        "contrasts": [_contrast_view(contrast, grid) for contrast in part.contrasts],
        "comparisons": [_comparison_view(comparison, grid) for comparison in part.comparisons],
        "choices": _choices(grid),
        "events": _medians(grid, EVENT_METRICS),
        "event_columns": _heads(EVENT_METRICS),
        "tuned_events": _medians(grid, EVENT_METRICS, "_tuned"),
        "calibration": _medians(grid, CALIBRATION),
        "calibration_columns": _heads(CALIBRATION),
        "confusion": _confusion(grid),
        "figures": part.figures,
    }


def _heads(metrics: tuple[str, ...]) -> list[str]:
    words = [metric_words(metric) for metric in metrics]
    return ["Condition", "n", *(word[0].upper() + word[1:] for word in words)]


def _contrast_view(contrast: Contrast, grid: Grid) -> list[str]:
    result = contrast.result
    return [
        contrast.name,
        str(result.n),
        gain_text(result, grid.metric),
        f"{result.better} / {result.worse} / {result.zeros}",
        score_text(result.effect, signed=True),
        result.p_text,
        holm_text(contrast),
    ]


def _comparison_view(comparison: Comparison, grid: Grid) -> Json:
    there = len(comparison.scores)
    medians = [
        (
            value,
            score_text(float(comparison.scores[value].median()), grid.metric) if there else NOTHING,
        )
        for value in comparison.values
    ]
    return {
        "option": comparison.option,
        "at": comparison.at,
        "note": comparison.note,
        "medians": medians,
        "rows": [_contrast_view(contrast, grid) for contrast in comparison.contrasts],
    }


def _choices(grid: Grid) -> list[tuple[str, str]]:
    """Which settings were chosen, by condition, with how many participants they were chosen for."""
    if not grid.settings:
        return []
    found = []
    for condition in grid.conditions:
        numbers = grid.choices[condition].reindex(grid.participants).value_counts()
        text = "; ".join(f"{setting} ({number})" for setting, number in numbers.items())
        found.append((condition.words, text))
    return found


def _medians(grid: Grid, metrics: tuple[str, ...], suffix: str = "") -> list[list[str]]:
    """Per condition the number of participants with a score, then medians of each score;
    empty where there is no score.
    """
    tables = {metric: grid.scores(metric, suffix) for metric in metrics}
    if not any(table.notna().to_numpy().any() for table in tables.values()):
        return []
    return [
        [
            condition.words,
            str(max(int(table[condition].notna().sum()) for table in tables.values())),
            *(score_text(_median(table[condition]), metric) for metric, table in tables.items()),
        ]
        for condition in grid.shown(suffix)
        if any(table[condition].notna().any() for table in tables.values())
    ]


def _median(column: Any) -> float:
    return float(column.median()) if column.notna().any() else math.nan


def _confusion(grid: Grid) -> list[list[str]]:
    """Windows by participant at the primary condition: of the own base, of the base with its
    threshold tuned, and of the fine-tuned model.
    """
    if grid.primary is None or BASE not in grid.conditions or "test_tp" not in grid.cells:
        return []
    return [
        [person, *(_counts(grid, person, *model) for model in _MODELS)]
        for person in grid.participants
    ]


_MODELS = (("base_test_", ""), ("base_test_", "_tuned"), ("test_", ""), ("test_", "_tuned"))


def _counts(grid: Grid, person: str, prefix: str, suffix: str) -> str:
    assert grid.primary is not None
    values = [
        float(grid.column(grid.primary, f"{prefix}{name}{suffix}")[person])
        for name in ("tp", "fn", "fp", "tn")
    ]
    return " / ".join(count(round(value, 1)) for value in values)
