"""Numbers and sentences as a paper prints them. Everything said about results is worded here,
once.
"""

from __future__ import annotations

import math

from common.report.analysis import BASE, Condition, Grid, Line, percent
from common.report.statistics import Paired, p_text

METRIC_WORDS = {
    "macro_f1": "macro F1",
    "f1": "F1",
    "loss": "loss",
    "precision": "precision",
    "recall": "recall",
    "balanced_accuracy": "balanced accuracy",
    "pr_auc": "average precision",
    "roc_auc": "ROC AUC",
    "bout_recall": "bout recall",
    "false_alarms_per_hour": "false alarms per hour",
}
UNBOUNDED = frozenset({"loss", "false_alarms_per_hour"})
NOTHING = "–"


def metric_words(metric: str) -> str:
    """'macro F1'."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def score(value: float | None, metric: str = "", signed: bool = False) -> str:
    """'.84', '1.00'; '0.84' where a score can exceed 1; differences are signed and have a digit
    more, '+.071'; a dash where there is none.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{abs(value):.{3 if signed else 2}f}"
    negative = value < 0 and float(text) != 0
    text = text if metric in UNBOUNDED else text.removeprefix("0")
    return ("−" if negative else "+" if signed and float(text) != 0 else "") + text


def with_interval(
    values: tuple[float, float, float], metric: str = "", signed: bool = False
) -> str:
    """'.84 [.79, .90]'."""
    middle, low, high = (score(value, metric, signed) for value in values)
    return middle if NOTHING in (low, high) else f"{middle} [{low}, {high}]"


def gain_text(gain: Paired, metric: str) -> str:
    """Median difference with its interval; positive is better, also for a loss."""
    return with_interval((gain.median, gain.low, gain.high), metric, signed=True)


def share_text(share: tuple[float, float, float] | None) -> str:
    """'51 % [40, 63]'; a loss is no share of a gain."""
    if share is None or not math.isfinite(share[0]):
        return NOTHING
    if share[0] < 0:
        return "none (worse)"
    low, high = share[1:]
    inside = (
        f" [{100 * low:.0f}, {100 * high:.0f}]"
        if math.isfinite(low) and math.isfinite(high)
        else ""
    )
    return f"{100 * share[0]:.0f} %{inside}".replace("-", "−")


def count(value: float | None) -> str:
    """'31', '31.5', a dash."""
    return (
        NOTHING
        if value is None or not math.isfinite(value)
        else f"{value:,.12g}"
        if value == round(value)
        else f"{value:,.1f}"
    )


def duration(hours: float | None) -> str:
    """'40 s', '1 min', '2.5 h'."""
    if hours is None or not math.isfinite(hours):
        return NOTHING
    seconds = hours * 3600
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.2g} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def p_sentence(p: float | None, n: int) -> str:
    """'p = .002', or why there is none."""
    if p is None:
        return f"n = {n} is too small for a test"
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def headline(grid: Grid, lines: list[Line]) -> str:
    """The result in one sentence, with the labelled windows that it took beside it."""
    by_condition = {line.condition: line for line in lines}
    primary = by_condition.get(grid.primary) if grid.primary else None
    base = by_condition.get(BASE)
    if primary is None or base is None or primary.gain is None or not primary.gain.n:
        return "There is no participant yet with both a base score and a fine-tuned score."
    gain, words = primary.gain, metric_words(grid.metric)
    before, after = score(base.median[0], grid.metric), score(primary.median[0], grid.metric)
    significant = gain.p is not None and gain.p < 0.05
    verb = ("lowers" if grid.lower else "lifts") if gain.median > 0 and significant else "takes"
    end = "" if significant or gain.p is None else ": no reliable difference"
    return (
        f"Fine-tuning on {_material(grid.primary, primary)} {verb} the median {words} from {before}"
        f" to {after}, better for {gain.better} of {gain.n} people,"
        f" {p_sentence(gain.p, gain.n)}{end}."
    )


def _material(condition: Condition | None, line: Line) -> str:
    windows, hours = line.counts.get("train_windows"), line.counts.get("train_hours")
    time = f" ({duration(hours)})" if hours is not None else ""
    also = (
        " together with the base participants' windows"
        if condition and condition.mode == "full_fine_tuning"
        else ""
    )
    return f"a median of {count(windows)} labelled training windows{time}{also}"


def beside_headline(grid: Grid, lines: list[Line]) -> str:
    """What a careful reader asks next: selection windows, difference and interval, test, who."""
    primary = next((line for line in lines if line.condition == grid.primary), None)
    if primary is None or primary.gain is None or not primary.gain.n:
        return ""
    gain, counts = primary.gain, primary.counts
    selection = counts.get("selection_windows")
    time = f" ({duration(counts['selection_hours'])})" if "selection_hours" in counts else ""
    beside = (
        f"Besides, a median of {count(selection)} labelled windows{time} chose the epoch to stop"
        " at. "
        if selection
        else ""
    )
    zeros = f", {gain.zeros} unchanged" if gain.zeros else ""
    share = (
        f", {share_text(primary.share)} of what lay between the base and a perfect score"
        if primary.share
        else ""
    )
    return (
        f"{beside}Median difference {gain_text(gain, grid.metric)} (95 % bootstrap interval over"
        f" people; positive is better), n = {gain.n}{zeros}{share}. Exact two-sided Wilcoxon"
        f" signed-rank test of {condition_words(grid.primary)} against the untouched base, at"
        " threshold 0.5."
    )


def condition_words(condition: Condition | None) -> str:
    """'“fine-tuned, target only, 10 %”'."""
    return f"“{condition.words}”" if condition else NOTHING


def people_words(grid: Grid) -> str:
    """'15 of 17 participants', with the names of the others and why."""
    number, total = len(grid.participants), len(grid.participants) + len(grid.excluded)
    if not grid.excluded:
        return f"All {total} participants have every compared condition."
    named = "; ".join(f"{name} ({reason})" for name, reason in grid.excluded.items())
    return (
        f"{number} of {total} participants have every compared condition and are reported. Left"
        f" out: {named}."
    )


def settings_words(grid: Grid) -> str:
    """How the other options came about."""
    base = (
        f"All results are those with {grid.n_base:.0f} base participants, the most that at least"
        " half of the people have. "
        if grid.n_base is not None
        else ""
    )
    if not grid.settings:
        return f"{base}No other option varies, so nothing was chosen."
    names = ", ".join(grid.settings)
    return (
        f"{base}For each participant and condition, {names} was chosen by the mean validation"
        f" {metric_words(grid.metric)} over the other participants."
    )


def fixed_words(grid: Grid) -> str:
    """What was fixed beforehand."""
    if grid.primary is None:
        return "Nothing was fine-tuned from a base, so there is no primary contrast."
    return (
        f"The primary contrast, {condition_words(grid.primary)} against the untouched base, was"
        " fixed before any result was looked at: the first mode that was run of target only, with"
        f" base data, head only; the fraction nearest to {percent(0.1)}. --filter fixes another."
    )
