"""The figures of one experiment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.data.manifest import KeptBout
from common.report.collect import Run
from common.report.conditions import CONDITION_WORDS, UNTOUCHED, Condition
from common.report.drawing import LOOKS, PAGE, Drawn, finish, new_figure, score_axis, short, style
from common.report.predictions import Predictions
from common.report.wording import score_text

Made = tuple[Figure, str, str, str]  # figure, name, title, caption


def draw_run(run: Run, row: pd.Series) -> list[Drawn]:
    """The figures of one experiment."""
    with style():
        made = [precision_recall(run, row), probability(run, row), training_curves(run, row)]
        return [finish(*figure) for figure in made if figure]


def run_words(row: pd.Series) -> str:
    """'tonmoy, fine-tuned, target only, 10 %'."""
    names = ("mode", "target_data_pct", "target_val", "target_order")
    return f"{row['target_participant']}, {Condition(*(row[name] for name in names)).words}"


def _models(run: Run) -> list[tuple[str, str, str]]:
    """Column, mode whose look is used, and legend of the models whose probabilities are there."""
    test = run.windows("test")
    mode = str(run.metrics["mode"])
    models = [("p_finetuned", mode, CONDITION_WORDS[mode])]
    if np.isfinite(test["p_base"]).all():
        models.insert(0, ("p_base", UNTOUCHED, CONDITION_WORDS[UNTOUCHED]))
    return models


def precision_recall(run: Run, row: pd.Series) -> Made | None:
    """Precision-recall curves and confusion matrices on the test windows."""
    test = run.windows("test")
    labels = test["label"].astype(int)
    if len(set(labels.tolist())) < 2:
        return None
    figure, axes = new_figure(PAGE, 2.6, 3, width_ratios=[1.5, 1, 1])
    panel = axes[0, 0]
    panel.axhline(labels.mean(), color="#999999", linewidth=0.6, linestyle=(0, (1, 1.5)))
    panel.text(0.0, labels.mean() + 0.015, "chance", fontsize=6, color="#555555")
    for column, mode, words in _models(run):
        _precision_recall_curve(panel, labels, test[column], mode, words)
    panel.set(xlabel="Recall", ylabel="Precision", xlim=(-0.02, 1.02), ylim=(0, 1.03))
    score_axis(panel, "recall")
    score_axis(panel, "recall", "x")
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
            f"threshold {score_text(float(tuned))} (tuned)",
        )
    caption = (
        f"{run_words(row)}: test windows. Points mark threshold 0.5. Confusion matrices of the same"
        " model: windows, and shares of each true class."
    )
    return figure, "precision_recall", "Precision, recall and confusion of one experiment", caption


def _precision_recall_curve(
    axes: Axes, labels: np.ndarray[Any, Any], p: np.ndarray[Any, Any], mode: str, words: str
) -> None:
    from sklearn.metrics import precision_recall_curve  # a second: only for this figure

    precision, recall, _ = precision_recall_curve(labels, p)
    precision[-1] = precision[-2]  # at recall 0, where no threshold gives the 1 that it puts there
    look = dict(LOOKS[mode], marker="")
    axes.step(recall[::-1], precision[::-1], where="pre", label=words, **look)
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


def probability(run: Run, row: pd.Series) -> Made | None:
    """Probability over time, with the annotated bouts. Up to four sessions, the longest ones."""
    test = run.windows("test")
    if not len(test["label"]):
        return None
    timed = bool(np.isfinite(test["start_s"]).all())
    bouts = run.bouts("test") if timed else None
    keys = test["session"] if timed else np.full(len(test["label"]), "")
    names, sizes = np.unique(keys, return_counts=True)
    sessions = sorted(names[np.argsort(-sizes, kind="stable")[:4]].tolist())
    figure, axes = new_figure(PAGE, 0.7 + 1.25 * len(sessions), 1, len(sessions), sharey=True)
    for panel, name in zip(axes[:, 0], sessions, strict=True):
        windows = {column: values[keys == name] for column, values in test.items()}
        own = None if bouts is None else [bout for bout in bouts if bout[0] == name]
        _probability_panel(panel, windows, own, run, timed)
        panel.set_title(f"session {short(name, 40)}" if name else "", loc="left", fontsize=7)
    axes[-1, 0].set_xlabel("Minutes from the session's start" if timed else "Test window (number)")
    figure.supylabel("Probability of a positive window", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4)
    left = len(names) - len(sessions)
    hatched = "annotated bouts" if bouts is not None else "windows labelled positive"
    caption = (
        f"{run_words(row)}: test windows, each as long as it is. Hatched: {hatched}. Thin lines:"
        " thresholds 0.5 and, dashed, tuned."
        + (f" {left} more sessions are not shown." if left else "")
    )
    return figure, "probability", "Probability over time", caption


def _probability_panel(
    axes: Axes, windows: Predictions, bouts: list[KeptBout] | None, run: Run, timed: bool
) -> None:
    number = len(windows["label"])
    order = np.argsort(windows["start_s"], kind="stable") if timed else np.arange(number)
    windows = {column: values[order] for column, values in windows.items()}
    first = run.session_starts.get(str(windows["session"][0]), math.inf)
    origin = min(first, float(windows["start_s"][0])) if timed else 0.0
    x = (windows["start_s"] - origin) / 60 if timed else order.astype(float)
    step = float(np.median(np.diff(x))) if len(x) > 1 else 1.0
    length = (run.window_seconds or step * 60) / 60 if timed else 1.0
    breaks = np.flatnonzero(np.diff(x) > 1.5 * max(step, length)) + 1  # unrecorded: not bridged
    _thresholds(axes, run)
    if bouts is None:
        labelled = runs_of(windows["label"] == 1, breaks)
        marked = [(x[first], x[last] + length) for first, last in labelled]
    else:
        marked = [((start - origin) / 60, (end - origin) / 60) for _, start, end, _ in bouts]
    _hatch(axes, marked, "labelled positive" if bouts is None else "annotated")
    for column, mode, words in _models(run):
        y = np.insert(windows[column], breaks, np.nan)
        middles = np.insert(x + length / 2, breaks, np.nan)
        axes.plot(middles, y, label=words, **dict(LOOKS[mode], marker="", linewidth=0.9))
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(x[0] - 0.01 * length, x[-1] + length)
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])


def _thresholds(axes: Axes, run: Run) -> None:
    axes.axhline(0.5, color="#777777", linewidth=0.5)
    tuned = run.metrics.get("threshold_tuned")
    if tuned is not None:
        axes.axhline(tuned, color="#777777", linewidth=0.5, linestyle=(0, (4, 3)))


def _hatch(axes: Axes, stretches: list[tuple[float, float]], words: str) -> None:
    look: dict[str, Any] = {"facecolor": "#E8E8E8", "edgecolor": "#BBBBBB", "hatch": "////"}
    for start, end in stretches:
        axes.axvspan(start, end, linewidth=0, zorder=0, **look)
    axes.fill_between([], [], [], linewidth=0, label=words, **look)


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


def training_curves(run: Run, row: pd.Series) -> Made | None:
    """Losses and validation macro F1 by epoch; epoch 0 is the untouched base, where there is
    one.
    """
    val = _numbers(run.losses.get("val", []))
    if not len(val):
        return None
    figure, axes = new_figure(PAGE, 2.5, 2)
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
    score_axis(right, "macro_f1")
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
