"""The figures over participants."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from common.jobs.choosing import ROUNDING
from common.report.analysis import draws, finite
from common.report.calibration import Calibration
from common.report.comparisons import Comparison, compare
from common.report.conditions import BASE, CONDITION_WORDS, MODES, RECALIBRATED, Condition, percent
from common.report.drawing import (
    COLUMN,
    LOOKS,
    PAGE,
    Drawn,
    finish,
    new_figure,
    score_axis,
    short,
    style,
)
from common.report.grids import Grid
from common.report.statistics import median_interval
from common.report.wording import count, draws_words, metric_words, score_text

Made = tuple[Figure, str, str, str]  # figure, name, title, caption
TITLE_LETTERS = 13  # of a line above a block of the heat map
NARROWEST = 1 / 8  # share of the width that such a block has at least: its title needs the room


def draw_grid(
    grid: Grid, comparisons: list[Comparison], calibrated: Calibration | None, stem: str = ""
) -> list[Drawn]:
    """All figures of a grid for which there is something to show."""
    makers: list[Callable[[Grid], Made | None]] = [
        paired_lines,
        by_fraction,
        heat_map,
        by_base_participants,
        gain_by_base,
        by_draw,
    ]
    with style():
        made = [maker(grid) for maker in makers] if grid.participants else []
        made += [reliability(grid, calibrated)] if calibrated else []
        made += [compared(grid, comparison) for comparison in comparisons if len(comparison.scores)]
        return [
            finish(figure, stem + name, title, caption)
            for figure, name, title, caption in filter(None, made)
        ]


def _panels(grid: Grid, height: float) -> tuple[Figure, Any, list[tuple[str, str]]]:
    """A figure with a panel at threshold 0.5 and, where the score has one, at the tuned threshold;
    suffix and title of each.
    """
    panels = [("", "")]
    if grid.has_tuned:
        panels = [("", "threshold 0.5"), ("_tuned", "threshold tuned, for both")]
    width = COLUMN * len(panels) + 0.1 * (len(panels) - 1)
    figure, axes = new_figure(width, height, len(panels), sharey=True)
    return figure, axes, panels


# -- over participants


def paired_lines(grid: Grid) -> Made | None:
    """Base against fine-tuned, a line a participant."""
    if grid.primary is None or BASE not in grid.conditions:
        return None
    figure, axes, panels = _panels(grid, 3.0)
    for place, (suffix, title) in enumerate(panels):
        pair = grid.pair(grid.primary, suffix=suffix).dropna()
        _slopes(
            axes[0, place], pair, grid, "base,\nthreshold tuned" if suffix else "untouched\nbase"
        )
        axes[0, place].set_title(f"{title} (n = {len(pair)})".strip())
    axes[0, 0].set_ylabel(f"Test {metric_words(grid.metric)}")
    score_axis(axes[0, 0], grid.metric)
    caption = (
        "Each line is one participant: the untouched base that it started from against"
        f" {grid.primary.words}. Solid: better, dashed: worse, dotted: unchanged. Thick line:"
        " medians."
    )
    return figure, "paired", "Who gains", caption


def _slopes(axes: Axes, scores: pd.DataFrame, grid: Grid, base: str) -> None:
    before, after = scores.iloc[:, 0].to_numpy(), scores.iloc[:, 1].to_numpy()
    better = np.sign(np.round((-1 if grid.lower else 1) * (after - before), ROUNDING))
    looks = {1.0: ("#0072B2", "-"), -1.0: ("#D55E00", (0, (4, 2))), 0.0: ("#777777", (0, (1, 1.5)))}
    for left, right, sign in zip(before, after, better, strict=True):
        color, line = looks[float(sign)]
        axes.plot([0, 1], [left, right], color=color, linestyle=line, linewidth=0.8, zorder=2)
        axes.plot(
            [0], [left], color=color, marker="s", markerfacecolor="white", markersize=3.5, zorder=3
        )
        axes.plot([1], [right], color=color, marker="o", markersize=3.5, zorder=3)
    if len(scores):
        axes.plot(
            [0, 1],
            [np.median(before), np.median(after)],
            color="black",
            linewidth=2.4,
            marker="D",
            markersize=5,
            zorder=4,
        )
    words = grid.primary.words if grid.primary else "fine-tuned"
    axes.set_xticks([0, 1], [base, words.replace(", ", ",\n", 1)])
    axes.set_xlim(-0.25, 1.55)
    if len(scores) <= 20:
        _end_labels(axes, after, [str(name) for name in scores.index])


def _end_labels(axes: Axes, heights: np.ndarray[Any, Any], names: list[str]) -> None:
    """Names right of their points, moved apart where they would overlap, each tied to its point by
    a hair line.
    """
    low, high = axes.get_ylim()
    step = (high - low) * 0.048
    order = np.argsort(heights, kind="stable")
    places = spread(heights[order], step, low + step / 2, high)
    for place, index in zip(places, order, strict=True):
        axes.plot(
            [1.03, 1.1], [heights[index], place], color="#999999", linewidth=0.4, clip_on=False
        )
        axes.text(1.12, place, short(names[index]), va="center", fontsize=6.5)


def spread(
    heights: np.ndarray[Any, Any], step: float, low: float, high: float
) -> np.ndarray[Any, Any]:
    """Ascending heights moved as little as possible (least squares), so that neighbours are `step`
    apart; shifted to lie between low and high if they fit.
    """
    offsets = step * np.arange(len(heights))
    places = isotonic_regression(np.asarray(heights, dtype=float) - offsets).x + offsets
    places -= max(0.0, float(places[-1]) - high)
    return np.asarray(places + max(0.0, low - float(places[0])))


def by_fraction(grid: Grid) -> Made | None:
    """Score against the fraction of the target's training windows, log axis, a line a mode."""
    if not any(len(grid.fractions(series)) > 1 for series in grid.series()):
        return None
    figure, axes, panels = _panels(grid, 3.1)
    for place, (suffix, title) in enumerate(panels):
        _fraction_panel(axes[0, place], grid, suffix)
        axes[0, place].set_title(title)
    axes[0, 0].set_ylabel(f"Median test {metric_words(grid.metric)}")
    score_axis(axes[0, 0], grid.metric)
    _legend_below(figure, *axes[0, 0].get_legend_handles_labels())
    caption = (
        f"Median over participants (n = {len(grid.participants)}) with exact order-statistic bands"
        " of at least 95 %. Below each fraction, the median number of labelled training windows;"
        " the windows that choose the epoch come on top."
    )
    return figure, "fraction", "How much labelled data it takes", caption


def _legend_below(figure: Figure, handles: list[Any], labels: list[str]) -> None:
    """In as many columns, four at most, as fit the figure's width."""
    for columns in range(min(len(labels), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            return
        legend.remove()


def _fraction_panel(axes: Axes, grid: Grid, suffix: str) -> None:
    scores = grid.scores(suffix=suffix)
    trained = [c for c in grid.conditions if c.mode in MODES]
    everything = sorted({c.fraction for c in trained if c.fraction})
    ends = [everything[0] / 1.25, everything[-1] * 1.25]
    # what has no fraction of the target's windows
    for flat in (BASE, Condition(RECALIBRATED, 0.0), *(c for c in trained if not c.fraction)):
        if flat in scores:
            values = finite(scores[flat].to_numpy(dtype=float))
            words = Condition(RECALIBRATED, 0.0) if suffix and flat == BASE else flat
            _band(axes, ends, np.repeat(values[:, None], 2, axis=1), words, marker=None)
    for series in grid.series():
        fractions = grid.fractions(series)
        columns = [series._replace(fraction=fraction) for fraction in fractions]
        _band(axes, fractions, scores[columns].dropna().to_numpy(dtype=float), series)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        everything,
        [f"{percent(fraction)}\n{_windows_at(grid, fraction)}" for fraction in everything],
    )
    axes.set_xlabel("Training windows used, share and median number")


def _windows_at(grid: Grid, fraction: float) -> str:
    cells = grid.cells[
        (grid.cells["fraction"] == fraction)
        & grid.cells["target_participant"].isin(grid.participants)
    ]
    numbers = (
        cells.groupby("target_participant")["train_windows"].mean()
        if "train_windows" in cells
        else pd.Series(dtype=float)
    )
    return count(float(numbers.median())) if numbers.notna().any() else ""


def _band(
    axes: Axes,
    x: list[float],
    values: np.ndarray[Any, Any],
    series: Condition,
    marker: str | None = "own",
) -> None:
    """Median line with its interval as a band. `values` is `[participants, len(x)]`."""
    if not len(values):
        return
    look = dict(LOOKS[series.mode])
    if series.budget_words:
        look["markerfacecolor"] = "white"
    if marker is None:
        look["marker"] = ""
    medians = [median_interval(column) for column in values.T]
    low, high = [estimate.low for estimate in medians], [estimate.high for estimate in medians]
    label = CONDITION_WORDS[series.mode] + series.budget_words
    axes.plot(x, [estimate.value for estimate in medians], label=label, **look)
    if np.isfinite(low).all():
        axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
        for edge in (low, high):
            axes.plot(
                x, edge, color=look["color"], linestyle=look["linestyle"], linewidth=0.4, alpha=0.7
            )


def heat_map(grid: Grid) -> Made | None:
    """Participants by fractions, a block a mode."""
    scores = grid.scores()
    order = (
        scores[BASE].sort_values(kind="stable", ascending=not grid.lower).index
        if BASE in grid.conditions
        else scores.index
    )
    scores = scores.loc[order]
    series = dict.fromkeys(condition.series for condition in grid.conditions)
    blocks = [[c for c in grid.conditions if c.series == one] for one in series]
    people = len(scores)
    figure = Figure(figsize=(PAGE, 0.9 + min(0.2 * people + 0.35, 8.0)), layout="constrained")
    axes = figure.subplots(
        1,
        len(blocks),
        squeeze=False,
        width_ratios=[max(len(block), NARROWEST * len(grid.conditions)) for block in blocks],
        sharey=True,
    )
    values = scores.to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    high = high if high > low else low + 1e-3
    for place, block in enumerate(blocks):
        image = _heat_block(axes[0, place], scores[block], grid.metric, (low, high), people)
    axes[0, 0].set_yticks(
        range(people),
        [short(str(name), 20) for name in scores.index],
        fontsize=6.5 if people <= 30 else 4,
    )
    bar = figure.colorbar(image, ax=axes[0, :].tolist(), fraction=0.03, pad=0.01)
    bar.set_label(f"Test {metric_words(grid.metric)}")
    bar.outline.set_linewidth(0)  # type: ignore[operator]
    score_axis(bar.ax, grid.metric)
    figure.supxlabel("Training windows of the target used", fontsize=8)
    caption = "Each cell is one participant's test score at threshold 0.5, repeats averaged." + (
        " Worst base score first." if BASE in grid.conditions else ""
    )
    return figure, "heat_map", "Participants by fractions", caption


def _heat_block(
    axes: Axes, scores: pd.DataFrame, metric: str, limits: tuple[float, float], people: int
) -> Any:
    values = scores.to_numpy(dtype=float)
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=limits[0], vmax=limits[1])
    conditions = [Condition(*column) for column in scores.columns]
    words = CONDITION_WORDS[conditions[0].mode] + conditions[0].budget_words
    axes.set_title(textwrap.fill(words, TITLE_LETTERS), fontsize=7)
    axes.set_xticks(
        range(len(conditions)),
        [percent(c.fraction) if c.fraction else "0" for c in conditions],
        rotation=45 if len(conditions) > 3 else 0,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if people <= 40:
        for (row, column), value in np.ndenumerate(values):
            dark = (value - limits[0]) / (limits[1] - limits[0]) < 0.5
            axes.text(
                column,
                row,
                score_text(value, metric),
                ha="center",
                va="center",
                fontsize=5.5,
                color="white" if dark else "black",
            )
    return image


def by_base_participants(grid: Grid) -> Made | None:
    """The effect of the number of base participants, at the primary condition."""
    if grid.primary is None or grid.rows["n_base_participants"].nunique() < 2:
        return None
    result = compare([grid], "n_base_participants")
    if not len(result.scores):
        return None
    numbers = [float(name) for name in result.values]
    figure, axes = new_figure(COLUMN, 2.8)
    _band(axes[0, 0], numbers, result.base.to_numpy(dtype=float), BASE)
    _band(axes[0, 0], numbers, result.scores.to_numpy(dtype=float), grid.primary.series)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_xlabel("Base participants (number)")
    axes[0, 0].set_ylabel(f"Median test {metric_words(grid.metric)}")
    score_axis(axes[0, 0], grid.metric)
    axes[0, 0].legend()
    caption = (
        f"Median over participants (n = {len(result.scores)}) with exact bands of at least 95 %,"
        f" {grid.primary.words}."
    )
    if order_unset(grid):
        caption += (
            " Base participants are the first ones as listed (base_order_seed is unset), so their"
            " number is confounded with who they are."
        )
    return figure, "base_participants", "How many people the base learns from", caption


def order_unset(grid: Grid) -> bool:
    """Whether the number of base participants is confounded with who they are."""
    tuned = grid.rows[grid.rows["n_base_participants"].notna()]
    return bool(
        tuned["n_base_participants"].nunique() > 1 and tuned["base_order_seed"].isna().any()
    )


def gain_by_base(grid: Grid) -> Made | None:
    """Gain against the base score."""
    if grid.primary is None or BASE not in grid.conditions:
        return None
    pair = grid.pair(grid.primary).dropna()
    if not len(pair):
        return None
    gains = pd.Series(grid.gains(grid.primary), index=grid.participants)[pair.index]
    base, gain = pair["before"].to_numpy(dtype=float), gains.to_numpy(dtype=float)
    figure, axes = new_figure(COLUMN, 2.9)
    panel = axes[0, 0]
    panel.axhline(0, color="#777777", linewidth=0.6)
    ascending = np.sort(base)
    line = np.stack([ascending, ascending if grid.lower else 1 - ascending])
    panel.plot(base, gain, **_DOTS)
    top = max(float(gain.max()), 0.0)
    panel.set_ylim(min(float(gain.min()), 0.0) - 0.12 * _span(gain), top + 0.25 * _span(gain))
    panel.margins(x=0.16)
    if line[1].min() < panel.get_ylim()[1]:
        panel.plot(
            line[0],
            line[1],
            color="black",
            linewidth=0.8,
            linestyle=(0, (1, 1.5)),
            label="most that is possible",
        )
        figure.legend(loc="outside lower center")
    if len(base) <= 20:
        _point_labels(panel, base, gain, [str(name) for name in pair.index])
    panel.set_xlabel(f"Test {metric_words(grid.metric)} of the untouched base")
    panel.set_ylabel(f"Gain in {metric_words(grid.metric)}")
    score_axis(panel, grid.metric)
    score_axis(panel, grid.metric, "x")
    caption = (
        f"{grid.primary.words.capitalize()}, one point a participant. The base score is part of the"
        " gain, so some downward slope is arithmetic, not an effect."
    )
    return figure, "gain", "Gain against the base's score", caption


def _span(values: np.ndarray[Any, Any]) -> float:
    return max(float(values.max()), 0.0) - min(float(values.min()), 0.0) or 0.1


def _point_labels(
    axes: Axes, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], names: list[str]
) -> None:
    """Names beside points: right, left, above or below, whichever place is still free."""
    width, height = float(np.ptp(axes.get_xlim())), float(np.ptp(axes.get_ylim()))
    taken = [(float(a), float(b), 0.015 * width, 0.02 * height) for a, b in zip(x, y, strict=True)]
    for a, b, name in zip(x, y, names, strict=True):
        half = 0.0105 * len(short(name)) * width
        options = [
            (a + half + 0.02 * width, b),
            (a - half - 0.02 * width, b),
            (a, b + 0.045 * height),
            (a, b - 0.045 * height),
        ]
        best = min(
            range(4), key=lambda i: (_overlaps((*options[i], half, 0.022 * height), taken), i)
        )
        taken.append((*options[best], half, 0.022 * height))
        across = ((0.02, 0.0), (-0.02, 0.0), (0.0, 0.045), (0.0, -0.045))[best]
        axes.text(
            a + across[0] * width,
            b + across[1] * height,
            short(name),
            fontsize=6,
            ha=("left", "right", "center", "center")[best],
            va="center",
        )


def _overlaps(
    box: tuple[float, float, float, float], others: list[tuple[float, float, float, float]]
) -> int:
    return sum(
        abs(box[0] - x) < box[2] + w and abs(box[1] - y) < box[3] + h for x, y, w, h in others
    )


def compared(grid: Grid, comparison: Comparison) -> Made:
    """The values of one option: participants as thin lines, medians with intervals."""
    figure, axes = new_figure(COLUMN, 2.8)
    panel = axes[0, 0]
    x = np.arange(len(comparison.values))
    table = comparison.scores.to_numpy(dtype=float)
    for values in table:
        panel.plot(x, values, color="#999999", linewidth=0.5, marker=".", markersize=2.5)
    medians = [median_interval(column) for column in table.T]
    middle = [estimate.value for estimate in medians]
    errors = np.abs([[e.value - e.low for e in medians], [e.high - e.value for e in medians]])
    panel.errorbar(
        x,
        middle,
        yerr=np.nan_to_num(errors),
        color="black",
        marker="D",
        capsize=3,
        linewidth=1.6,
        zorder=3,
    )
    panel.set_xticks(
        x,
        [short(CONDITION_WORDS.get(value, value), 24) for value in comparison.values],
        rotation=20 if max(map(len, comparison.values)) > 8 else 0,
    )
    panel.set_xlim(-0.4, len(x) - 0.6)
    panel.set_xlabel(comparison.option.replace("_", " "))
    panel.set_ylabel(f"Test {metric_words(grid.metric)}")
    score_axis(panel, grid.metric)
    caption = (
        f"{comparison.at}. Thin lines: participants ({comparison.note}). Thick: median"
        " with exact interval of at least 95 %."
    )
    return (
        figure,
        f"compare_{comparison.option}",
        f"Compared: {comparison.option.replace('_', ' ')}",
        caption,
    )


# -- draws and calibration


def by_draw(grid: Grid) -> Made | None:
    """Scores of each person's draws of training windows beside each other."""
    found = draws(grid)
    if found is None or grid.primary is None:
        return None
    order = found.scores.mean(axis="columns").sort_values(kind="stable").index
    figure, axes = new_figure(COLUMN, 0.9 + 0.17 * len(order))
    panel = axes[0, 0]
    for place, person in enumerate(order):
        values = finite(found.scores.loc[person].to_numpy(dtype=float))
        panel.plot([values.min(), values.max()], [place, place], color="#999999", linewidth=0.8)
        panel.plot(values, [place] * len(values), markersize=3.5, **_DOTS)
        panel.plot([values.mean()], [place], color="black", marker="|", markersize=8)
    panel.set_yticks(range(len(order)), [short(str(name), 20) for name in order])
    panel.set_xlabel(f"Test {metric_words(grid.metric)}")
    score_axis(panel, grid.metric, "x")
    caption = (
        f"{draws_words(grid, found)} Each dot is one draw (seed_finetune), the bar a person's mean,"
        " which is what all other numbers are made from."
    )
    return figure, "draws", "How much one draw of the windows decides", caption


_DOTS: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "color": "#0072B2",
    "markeredgecolor": "white",
    "markeredgewidth": 0.4,
}


def reliability(grid: Grid, found: Calibration) -> Made:
    """Observed against predicted, before and after personalisation."""
    figure, axes = new_figure(COLUMN, 2.9)
    panel = axes[0, 0]
    panel.plot([0, 1], [0, 1], color="#777777", linewidth=0.6, linestyle=(0, (1, 1.5)))
    curves = [(BASE, found.before), (found.condition, found.after)]
    for condition, bins in curves:
        if bins:
            predicted, observed = zip(*bins, strict=True)
            panel.plot(predicted, observed, label=condition.words, **LOOKS[condition.mode])
    panel.set(xlabel="Mean predicted probability", ylabel="Share of windows labelled positive")
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    score_axis(panel, "recall")
    score_axis(panel, "recall", "x")
    figure.legend(loc="outside lower center")
    caption = (
        f"Test windows of {found.people} participants together, in bins of equally many windows;"
        " the diagonal is perfect calibration. Brier score and calibration error of each condition"
        " stand in the calibration table."
    )
    return figure, "reliability", "Can the probabilities be believed", caption
