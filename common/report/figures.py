"""The report's figures: PNG at 300 dpi and SVG, readable in grey and by the colour-blind (markers
and line styles carry what colours do).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from common.report.analysis import (
    BASE,
    MODE_WORDS,
    MODES,
    Comparison,
    Condition,
    Grid,
    compare,
    percent,
    possible_gain,
)
from common.report.bouts import Windows
from common.report.collect import Run
from common.report.statistics import median_interval
from common.report.wording import UNBOUNDED, count, metric_words, score

matplotlib.use("Agg")

COLUMN, PAGE = 3.5, 7.1  # inches: one and two columns of a journal page
# Okabe and Ito's colours, in an order that also steps in lightness; each with a marker and a line
# of its own.
LOOKS: dict[str, dict[str, Any]] = {
    "base": {"color": "#000000", "marker": "s", "linestyle": (0, (1, 1.5))},
    "target_only_fine_tuning": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "full_fine_tuning": {"color": "#D55E00", "marker": "^", "linestyle": (0, (5, 1.5))},
    "head_only_fine_tuning": {
        "color": "#009E73",
        "marker": "D",
        "linestyle": (0, (5, 1.5, 1, 1.5)),
    },
    "target_only": {"color": "#CC79A7", "marker": "v", "linestyle": (0, (2, 1))},
}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "text.parse_math": False,  # a name with $ signs is a name
    "svg.hashsalt": "report",  # equal figures are equal files
    "figure.dpi": 100,
}


@dataclass(frozen=True)
class Drawn:
    """A finished figure."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes
    wide: bool


@contextmanager
def style() -> Iterator[None]:
    """The figures' common look. A name in a script that the font lacks is drawn as boxes, without a
    warning a figure.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def finish(figure: Figure, name: str, title: str, caption: str) -> Drawn:
    """Both files of a figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(
        png, format="png", dpi=300, metadata={"Software": None}, pil_kwargs={"compress_level": 4}
    )
    figure.set_layout_engine("none")  # both files in one layout, worked out once
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawn(
        name, title, caption, png.getvalue(), svg.getvalue(), figure.get_figwidth() > COLUMN + 0.1
    )


def draw_grid(grid: Grid, comparisons: list[Comparison], stem: str = "") -> list[Drawn]:
    """All figures of a grid for which there is something to show."""
    makers: list[Callable[[Grid], tuple[Figure, str, str, str] | None]] = [
        paired_lines,
        by_fraction,
        heat_map,
        by_base_participants,
        gain_by_base,
    ]
    drawn = []
    with style():
        for maker in makers:
            made = maker(grid) if grid.participants else None
            if made:
                figure, name, title, caption = made
                drawn.append(finish(figure, stem + name, title, caption))
        for comparison in comparisons:
            if len(comparison.scores):
                drawn.append(finish(*_named(compared(grid, comparison), stem)))
    return drawn


def draw_run(run: Run, row: pd.Series, stem: str = "") -> list[Drawn]:
    """The figures of one experiment."""
    with style():
        made = [precision_recall(run, row), probability(run, row), training_curves(run, row)]
        return [finish(*_named(figure, stem)) for figure in made if figure]


def _named(made: tuple[Figure, str, str, str], stem: str) -> tuple[Figure, str, str, str]:
    figure, name, title, caption = made
    return figure, stem + name, title, caption


def _figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _thresholds(grid: Grid) -> list[tuple[str, str]]:
    """The panels: at 0.5 and, where the score has one, at the tuned threshold."""
    tuned = f"test_{grid.metric}_tuned" in grid.cells
    return [("", "threshold 0.5" if tuned else "")] + (
        [("_tuned", "threshold tuned on validation windows")] if tuned else []
    )


def _score_axis(axes: Axes, metric: str, side: str = "y") -> None:
    axis = axes.yaxis if side == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if metric in UNBOUNDED:
        return

    def tick(value: float, _: object) -> str:
        fine = any(
            abs(place * 100 - round(place * 100)) > 1e-6 for place in axis.get_majorticklocs()
        )
        text = f"{abs(value):.{3 if fine else 2}f}".removeprefix("0")
        return f"−{text}" if value < -1e-9 else text

    axis.set_major_formatter(FuncFormatter(tick))


# -- over participants


def paired_lines(grid: Grid) -> tuple[Figure, str, str, str] | None:
    """Base against fine-tuned, a line a participant."""
    if grid.primary is None or BASE not in grid.conditions:
        return None
    panels = _thresholds(grid)
    figure, axes = _figure(
        COLUMN * len(panels) + 0.1 * (len(panels) - 1), 3.0, len(panels), sharey=True
    )
    for place, (suffix, title) in enumerate(panels):
        scores = grid.scores(suffix=suffix)[[BASE, grid.primary]].dropna()
        _slopes(axes[0, place], scores, grid)
        axes[0, place].set_title(title)
    axes[0, 0].set_ylabel(f"Test {metric_words(grid.metric)}")
    _score_axis(axes[0, 0], grid.metric)
    caption = (
        f"Each line is one participant (n = {len(grid.participants)}): untouched base against"
        f" {grid.primary.words}. Solid: better, dashed: worse, dotted: unchanged. Thick line:"
        " medians."
    )
    return figure, "paired", "Who gains", caption


def _slopes(axes: Axes, scores: pd.DataFrame, grid: Grid) -> None:
    before, after = scores.iloc[:, 0].to_numpy(), scores.iloc[:, 1].to_numpy()
    better = np.sign(grid.gain(scores, grid.primary)) if grid.primary else np.zeros(len(scores))
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
    axes.set_xticks([0, 1], ["untouched\nbase", words.replace(", ", ",\n", 1)])
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
        axes.text(1.12, place, _short(names[index]), va="center", fontsize=6.5)


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


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def by_fraction(grid: Grid) -> tuple[Figure, str, str, str] | None:
    """Score against the fraction of the target's training windows, log axis, a line a mode."""
    if not any(len(grid.fractions(mode)) > 1 for mode in grid.modes()):
        return None
    panels = _thresholds(grid)
    figure, axes = _figure(
        COLUMN * len(panels) + 0.1 * (len(panels) - 1), 3.1, len(panels), sharey=True
    )
    for place, (suffix, title) in enumerate(panels):
        _fraction_panel(axes[0, place], grid, suffix)
        axes[0, place].set_title(title)
    axes[0, 0].set_ylabel(f"Median test {metric_words(grid.metric)}")
    _score_axis(axes[0, 0], grid.metric)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) if len(panels) > 1 else 2
    )
    caption = (
        f"Median over participants (n = {len(grid.participants)}) with 95 % bootstrap bands over"
        " participants. Below each fraction, the median number of labelled training windows; the"
        " windows that choose the epoch come on top."
    )
    return figure, "fraction", "How much labelled data it takes", caption


def _fraction_panel(axes: Axes, grid: Grid, suffix: str) -> None:
    scores = grid.scores(suffix=suffix)
    everything = sorted({condition.fraction for condition in grid.conditions if condition != BASE})
    if BASE in grid.conditions:
        _band(
            axes,
            [everything[0] / 1.25, everything[-1] * 1.25],
            np.repeat(_finite(scores[BASE])[:, None], 2, axis=1),
            "base",
            marker=None,
        )
    for mode in grid.modes():
        fractions = grid.fractions(mode)
        table = (
            scores[[Condition(mode, fraction) for fraction in fractions]]
            .dropna()
            .to_numpy(dtype=float)
        )
        _band(axes, fractions, table, mode)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        everything,
        [f"{percent(fraction)}\n{_windows_at(grid, fraction)}" for fraction in everything],
    )
    axes.set_xlabel("Training windows used, share and median number")


def _finite(column: pd.Series) -> np.ndarray[Any, Any]:
    values = column.to_numpy(dtype=float)
    return np.asarray(values[np.isfinite(values)])


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
    axes: Axes, x: list[float], values: np.ndarray[Any, Any], mode: str, marker: str | None = "own"
) -> None:
    """Median line with its bootstrap band. `values` is `[participants, len(x)]`."""
    if not len(values):
        return
    look = dict(LOOKS[mode])
    if marker is None:
        look["marker"] = ""
    middle, low, high = zip(*(median_interval(column) for column in values.T), strict=True)
    axes.plot(x, middle, label=MODE_WORDS[mode], **look)
    if np.isfinite(low).all():
        axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
        for edge in (low, high):
            axes.plot(
                x, edge, color=look["color"], linestyle=look["linestyle"], linewidth=0.4, alpha=0.7
            )


def heat_map(grid: Grid) -> tuple[Figure, str, str, str] | None:
    """Participants by fractions, a block a mode."""
    scores = grid.scores()
    order = (
        scores[BASE].sort_values(kind="stable", ascending=not grid.lower).index
        if BASE in grid.conditions
        else scores.index
    )
    scores = scores.loc[order]
    blocks = [
        [condition for condition in grid.conditions if condition.mode == mode]
        for mode in ("base", *grid.modes())
    ]
    blocks = [block for block in blocks if block]
    people = len(scores)
    figure = Figure(figsize=(PAGE, 0.9 + min(0.2 * people + 0.35, 8.0)), layout="constrained")
    axes = figure.subplots(
        1,
        len(blocks),
        squeeze=False,
        width_ratios=[max(len(block), 1) for block in blocks],
        sharey=True,
    )
    values = scores.to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    high = high if high > low else low + 1e-3
    for place, block in enumerate(blocks):
        image = _heat_block(axes[0, place], scores[block], grid.metric, (low, high), people)
    axes[0, 0].set_yticks(
        range(people),
        [_short(str(name), 20) for name in scores.index],
        fontsize=6.5 if people <= 30 else 4,
    )
    bar = figure.colorbar(image, ax=axes[0, :].tolist(), fraction=0.03, pad=0.01)
    bar.set_label(f"Test {metric_words(grid.metric)}")
    bar.outline.set_linewidth(0)  # type: ignore[operator]
    _score_axis(bar.ax, grid.metric)
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
    words = (
        MODE_WORDS[conditions[0].mode]
        .replace(", ", ",\n")
        .replace("untouched base", "untouched\nbase")
        .replace("from scratch", "from\nscratch")
    )
    axes.set_title(words, fontsize=7)
    axes.set_xticks(
        range(len(conditions)),
        ["0" if c == BASE else percent(c.fraction) for c in conditions],
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
                score(value, metric),
                ha="center",
                va="center",
                fontsize=5.5,
                color="white" if dark else "black",
            )
    return image


def by_base_participants(grid: Grid) -> tuple[Figure, str, str, str] | None:
    """The effect of the number of base participants, at the primary condition."""
    if grid.primary is None or grid.rows["n_base_participants"].nunique() < 2:
        return None
    result = compare([grid], "n_base_participants")
    if not len(result.scores):
        return None
    numbers = [float(name) for name in result.values]
    figure, axes = _figure(COLUMN, 2.8)
    _band(axes[0, 0], numbers, result.base.to_numpy(dtype=float), "base", marker="own")
    _band(axes[0, 0], numbers, result.scores.to_numpy(dtype=float), grid.primary.mode)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_xlabel("Base participants (number)")
    axes[0, 0].set_ylabel(f"Median test {metric_words(grid.metric)}")
    _score_axis(axes[0, 0], grid.metric)
    axes[0, 0].legend()
    caption = (
        f"Median with 95 % bootstrap bands over participants (n = {len(result.scores)}),"
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
    tuned = grid.rows[grid.rows["mode"] != "target_only"]
    return bool(
        tuned["n_base_participants"].nunique() > 1 and tuned["base_order_seed"].isna().any()
    )


def gain_by_base(grid: Grid) -> tuple[Figure, str, str, str] | None:
    """Gain against the base score."""
    if grid.primary is None or BASE not in grid.conditions:
        return None
    scores = grid.scores()
    base, gain = scores[BASE].to_numpy(dtype=float), grid.gain(scores, grid.primary)
    figure, axes = _figure(COLUMN, 2.9)
    panel = axes[0, 0]
    panel.axhline(0, color="#777777", linewidth=0.6)
    line = (
        np.sort(np.stack([base, possible_gain(grid, scores)]), axis=1)
        if grid.lower
        else np.stack([np.sort(base), 1 - np.sort(base)])
    )
    panel.plot(
        base,
        gain,
        linestyle="none",
        marker="o",
        color="#0072B2",
        markeredgecolor="white",
        markeredgewidth=0.4,
    )
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
        _point_labels(panel, base, gain, [str(name) for name in scores.index])
    panel.set_xlabel(f"Test {metric_words(grid.metric)} of the untouched base")
    panel.set_ylabel(f"Gain in {metric_words(grid.metric)}")
    _score_axis(panel, grid.metric)
    _score_axis(panel, grid.metric, "x")
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
        half = 0.0105 * len(_short(name)) * width
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
            _short(name),
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


def compared(grid: Grid, comparison: Comparison) -> tuple[Figure, str, str, str]:
    """The values of one option: participants as thin lines, medians with intervals."""
    figure, axes = _figure(COLUMN, 2.8)
    panel = axes[0, 0]
    x = np.arange(len(comparison.values))
    table = comparison.scores.to_numpy(dtype=float)
    for values in table:
        panel.plot(x, values, color="#999999", linewidth=0.5, marker=".", markersize=2.5)
    middle, low, high = zip(*(median_interval(column) for column in table.T), strict=True)
    errors = np.abs(np.array([np.subtract(middle, low), np.subtract(high, middle)]))
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
        [_short(MODE_WORDS.get(value, value), 24) for value in comparison.values],
        rotation=20 if max(map(len, comparison.values)) > 8 else 0,
    )
    panel.set_xlim(-0.4, len(x) - 0.6)
    panel.set_xlabel(comparison.option.replace("_", " "))
    panel.set_ylabel(f"Test {metric_words(grid.metric)}")
    _score_axis(panel, grid.metric)
    caption = (
        f"{comparison.at}. Thin lines: participants ({comparison.note}). Thick: median with 95 %"
        " bootstrap interval over participants."
    )
    return (
        figure,
        f"compare_{comparison.option}",
        f"Compared: {comparison.option.replace('_', ' ')}",
        caption,
    )


# -- one experiment


def run_words(row: pd.Series) -> str:
    """'tonmoy, fine-tuned, target only, 10 %'."""
    return f"{row['target_participant']}, {Condition(row['mode'], row['target_data_pct']).words}"


def _models(run: Run) -> list[tuple[str, str, str]]:
    """Column, mode whose look is used, and legend of the models whose probabilities are there."""
    test = run.windows("test")
    mode = str(run.metrics.get("mode"))
    own = (
        ("p_finetuned", mode if mode in MODES else MODES[0], MODE_WORDS.get(mode, "fine-tuned")),
    )
    return (
        [("p_base", "base", "untouched base"), *own]
        if np.isfinite(test["p_base"]).all()
        else list(own)
    )


def precision_recall(run: Run, row: pd.Series) -> tuple[Figure, str, str, str] | None:
    """Precision-recall curves and confusion matrices on the test windows."""
    test = run.windows("test")
    labels = test["label"].astype(int)
    if len(set(labels.tolist())) < 2:
        return None
    figure, axes = _figure(PAGE, 2.6, 3, width_ratios=[1.5, 1, 1])
    panel = axes[0, 0]
    panel.axhline(labels.mean(), color="#999999", linewidth=0.6, linestyle=(0, (1, 1.5)))
    panel.text(0.0, labels.mean() + 0.015, "chance", fontsize=6, color="#555555")
    for column, mode, words in _models(run):
        _precision_recall_curve(panel, labels, test[column], mode, words)
    panel.set(xlabel="Recall", ylabel="Precision", xlim=(-0.02, 1.02), ylim=(0, 1.03))
    _score_axis(panel, "recall")
    _score_axis(panel, "recall", "x")
    panel.legend(loc="lower left")
    tuned = run.metrics.get("threshold_tuned")
    _confusion(axes[0, 1], labels, test["p_finetuned"], 0.5, "threshold 0.5")
    if tuned is None:
        axes[0, 2].set_axis_off()
    else:
        _confusion(
            axes[0, 2],
            labels,
            test["p_finetuned"],
            float(tuned),
            f"threshold {score(float(tuned))} (tuned)",
        )
    caption = (
        f"{run_words(row)}: test windows. Points mark threshold 0.5. Confusion matrices of the same"
        " model: windows, and shares of each true class."
    )
    return figure, "precision_recall", "Precision, recall and confusion of one experiment", caption


def _precision_recall_curve(
    axes: Axes, labels: np.ndarray[Any, Any], p: np.ndarray[Any, Any], mode: str, words: str
) -> None:
    precision, recall = curve(labels, p)
    look = dict(LOOKS[mode], marker="")
    axes.step(recall, precision, where="pre", label=words, **look)
    called = p >= 0.5
    if called.any():
        at = (labels[called].sum() / labels.sum(), labels[called].mean())
        axes.plot(
            *at,
            color=look["color"],
            marker=LOOKS[mode]["marker"],
            markersize=5,
            markeredgecolor="white",
            linestyle="none",
        )


def curve(
    labels: np.ndarray[Any, Any], p: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Precision and recall at each distinct probability, from the strictest threshold down; begins
    at recall 0.
    """
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0, True)  # equal probabilities are one threshold
    true = np.cumsum(labels[order])[last]
    called = np.arange(1, len(p) + 1)[last]
    return np.append(true[0] / called[0], true / called), np.append(
        0.0, true / max(int(labels.sum()), 1)
    )


def _confusion(
    axes: Axes, labels: np.ndarray[Any, Any], p: np.ndarray[Any, Any], threshold: float, title: str
) -> None:
    called = (p >= threshold).astype(int)
    counts = np.array(
        [[int(((labels == t) & (called == c)).sum()) for c in (0, 1)] for t in (0, 1)]
    )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.3)
    for (row, column), number in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(
            column,
            row,
            f"{number:,}\n{100 * shares[row, column]:.0f} %",
            ha="center",
            va="center",
            color=color,
            fontsize=7.5,
        )
    axes.set_title(title)
    axes.set_xticks([0, 1], ["negative", "positive"])
    axes.set_yticks([0, 1], ["negative", "positive"], rotation=90, va="center")
    axes.set(xlabel="Called", ylabel="Labelled")
    axes.tick_params(length=0)


def probability(run: Run, row: pd.Series) -> tuple[Figure, str, str, str] | None:
    """Probability over time, with the labelled bouts. Up to four sessions, the longest ones."""
    test = run.windows("test")
    if not len(test["label"]):
        return None
    timed = bool(np.isfinite(test["start_s"]).all())
    keys = test["session"] if timed else np.full(len(test["label"]), "")
    names, sizes = np.unique(keys, return_counts=True)
    sessions = sorted(names[np.argsort(-sizes, kind="stable")[:4]].tolist())
    figure, axes = _figure(PAGE, 0.7 + 1.25 * len(sessions), 1, len(sessions), sharey=True)
    for place, name in enumerate(sessions):
        _probability_panel(
            axes[place, 0],
            {column: values[keys == name] for column, values in test.items()},
            run,
            timed,
        )
        axes[place, 0].set_title(
            f"session {_short(name, 40)}" if name else "", loc="left", fontsize=7
        )
    axes[-1, 0].set_xlabel("Time in the session (s)" if timed else "Test window (number)")
    figure.supylabel("Probability of a positive window", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4)
    left = len(names) - len(sessions)
    caption = (
        f"{run_words(row)}: test windows in order. Hatched: labelled positive. Thin lines:"
        " thresholds 0.5 and, dashed, tuned."
    )
    return (
        figure,
        "probability",
        "Probability over time",
        caption + (f" {left} more sessions are not shown." if left else ""),
    )


def _probability_panel(axes: Axes, windows: Windows, run: Run, timed: bool) -> None:
    order = (
        np.argsort(windows["start_s"], kind="stable") if timed else np.arange(len(windows["label"]))
    )
    windows = {column: values[order] for column, values in windows.items()}
    x = windows["start_s"] if timed else order.astype(float)
    step = float(np.median(np.diff(x))) if len(x) > 1 else 1.0
    breaks = np.flatnonzero(np.diff(x) > 1.5 * step) + 1  # unrecorded time is not bridged
    axes.axhline(0.5, color="#777777", linewidth=0.5)
    if run.metrics.get("threshold_tuned") is not None:
        axes.axhline(
            run.metrics["threshold_tuned"], color="#777777", linewidth=0.5, linestyle=(0, (4, 3))
        )
    labelled = windows["label"] == 1
    for first, last in runs_of(labelled, breaks):
        axes.axvspan(
            x[first] - step / 2,
            x[last] + step / 2,
            facecolor="#E8E8E8",
            edgecolor="#BBBBBB",
            hatch="////",
            linewidth=0,
            zorder=0,
        )
    if labelled.any():
        axes.fill_between(
            [],
            [],
            [],
            facecolor="#E8E8E8",
            edgecolor="#BBBBBB",
            hatch="////",
            linewidth=0,
            label="labelled positive",
        )
    for column, mode, words in _models(run):
        y = np.insert(windows[column], breaks, np.nan)
        look = dict(LOOKS[mode], marker="", linewidth=0.9)
        axes.plot(np.insert(x, breaks, np.nan), y, label=words, **look)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(x[0] - step, x[-1] + step)
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])


def runs_of(flags: np.ndarray[Any, Any], breaks: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """First and last index of each run of True; a run ends at a break."""
    found: list[tuple[int, int]] = []
    cut = set(breaks.tolist())
    for index in np.flatnonzero(flags).tolist():
        if found and found[-1][1] == index - 1 and index not in cut:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found


def training_curves(run: Run, row: pd.Series) -> tuple[Figure, str, str, str] | None:
    """Losses and validation macro F1 by epoch; epoch 0 is the untouched base, where there is
    one.
    """
    val = _numbers(run.losses.get("val", []))
    if not len(val):
        return None
    figure, axes = _figure(PAGE, 2.5, 2)
    left, right = axes[0]
    first = run.first_epoch
    left.plot(first + np.arange(len(val)), val, color="#0072B2", label="selection windows")
    train = _numbers(run.losses.get("train", []))
    left.plot(
        first + np.arange(len(train)),
        train,
        color="#D55E00",
        linestyle=(0, (5, 1.5)),
        label="training windows",
    )
    left.set_ylabel("Loss (cross-entropy)")
    left.legend()
    f1 = _numbers(run.losses.get("val_macro_f1", []))
    right.plot(first + np.arange(len(f1)), f1, color="#0072B2")
    right.set_ylabel("Macro F1, selection windows")
    _score_axis(right, "macro_f1")
    best = run.metrics.get("best_epoch")
    for panel, curve in ((left, val), (right, f1)):
        panel.set_xlabel("Epoch" if first else "Epoch (0: untouched base)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if best is not None and first <= best < first + len(curve):
            panel.axvline(best, color="black", linewidth=0.6, linestyle=(0, (1, 1.5)))
            panel.plot(
                [best],
                [curve[best - first]],
                color="black",
                marker="*",
                markersize=7,
                linestyle="none",
            )
    stopped = {"patience": "stopped by patience", "max_epochs": "reached max_epochs"}.get(
        str(row["stopped_by"]), str(row["stopped_by"])
    )
    caption = (
        f"{run_words(row)}: {stopped} after {first + len(val) - 1} epochs; the star is the epoch"
        f" whose weights were kept ({best})."
    )
    return figure, "training", "Training curves of one experiment", caption


def _numbers(values: list[float | None]) -> np.ndarray[Any, Any]:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
