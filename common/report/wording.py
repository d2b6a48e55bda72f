"""Numbers and sentences as a paper prints them. Everything said about results is worded here,
once.
"""

from __future__ import annotations

import math

from common.cli import time_span
from common.options import FROM_SCRATCH
from common.report.analysis import Draws, Line, Sensitivity
from common.report.conditions import BASE, MODES, UNBOUNDED, Condition, percent
from common.report.grids import DEFAULT_METRIC, PRIMARY_FRACTION, Grid
from common.report.statistics import SMALLEST_N, Estimate, Paired, p_text

METRIC_WORDS = {
    "macro_f1": "macro F1",
    "f1": "F1",
    "loss": "loss",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "Matthews correlation",
    "pr_auc": "average precision",
    "roc_auc": "ROC AUC",
    "brier": "Brier score",
    "ece": "calibration error",
    "event_recall": "event recall",
    "event_precision": "event precision",
    "event_f1": "event F1",
    "event_recall_iou": "event recall (stricter overlap)",
    "event_precision_iou": "event precision (stricter overlap)",
    "event_f1_iou": "event F1 (stricter overlap)",
    "false_episodes_per_hour": "false episodes per hour",
    "false_episodes_per_day": "false episodes per day",
    "false_episodes_per_hour_iou": "false episodes per hour (stricter overlap)",
    "false_episodes_per_day_iou": "false episodes per day (stricter overlap)",
    "false_time_share": "share of time falsely positive",
    "fragmented_bouts": "fragmented bouts",
    "merged_bouts": "merged bouts",
}
NOTHING = "–"


def metric_words(metric: str) -> str:
    """'macro F1'."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def score_text(value: float | None, metric: str = "", signed: bool = False, digits: int = 2) -> str:
    """'.84', '1.00'; '0.84' where a score can exceed 1; differences are signed and have a digit
    more, '+.071'; a dash where there is none.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{abs(value):.{3 if signed else digits}f}"
    negative = value < 0 and float(text) != 0
    text = text if metric in UNBOUNDED else text.removeprefix("0")
    return ("−" if negative else "+" if signed and float(text) != 0 else "") + text


def with_interval(estimate: Estimate, metric: str = "", signed: bool = False) -> str:
    """'.84 [.79, .90]'; a round bracket where the end itself is rejected: '+.05 (.00, .10]'."""
    texts = (estimate.value, estimate.low, estimate.high)
    middle, low, high = (score_text(value, metric, signed) for value in texts)
    if NOTHING in (low, high):
        return middle
    return f"{middle} {'(['[not estimate.low_open]}{low}, {high}{')]'[not estimate.high_open]}"


def gain_text(gain: Paired, metric: str) -> str:
    """Hodges-Lehmann difference with its interval; positive is better, also for a loss."""
    return with_interval(gain.estimate, metric, signed=True)


def share_text(share: Estimate | None) -> str:
    """'51 % [40, 63]'; a loss is no share of a gain."""
    if share is None or not math.isfinite(share.value):
        return NOTHING
    if share.value < 0:
        return "none (worse)"
    inside = (
        f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
        if math.isfinite(share.low) and math.isfinite(share.high)
        else ""
    )
    return f"{100 * share.value:.0f} %{inside}".replace("-", "−")


def level_text(level: float) -> str:
    """'96.9 %', an interval's true level; a dash where there is none."""
    return f"{100 * level:.1f} %" if math.isfinite(level) else NOTHING


def count(value: float | None) -> str:
    """'31', '31.5', a dash."""
    return (
        NOTHING
        if value is None or not math.isfinite(value)
        else f"{value:,.12g}"
        if value == round(value)
        else f"{value:,.1f}"
    )


def time_text(hours: float | None) -> str:
    """'40 s', '1 min 02 s', '2 h 30 min', a dash."""
    if hours is None or not math.isfinite(hours):
        return NOTHING
    return time_span(round(hours * 3600))


def p_sentence(p: float | None, n: int) -> str:
    """'p = .002', or why there is none."""
    if p is None:
        return f"n = {n} is too small for a test"
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


# -- sentences


def headline(grid: Grid, lines: list[Line]) -> str:
    """The result in one sentence: the primary contrast's own estimate with its interval, then the
    two medians, beside the labelled windows that it took.
    """
    primary = primary_line(grid, lines)
    if primary is None or primary.gain is None or not primary.gain.n:
        return "There is no participant yet with both a base score and a fine-tuned score."
    gain, words = primary.gain, metric_words(grid.metric)
    pair = grid.pair(primary.condition).dropna()
    before, after = (
        score_text(float(pair[name].median()), grid.metric) for name in ("before", "after")
    )
    verb = "changes"
    if gain.significant and gain.estimate.value != 0:
        verb = "improves" if gain.estimate.value > 0 else "worsens"
    end = "" if gain.significant or gain.p is None else ": no reliable difference"
    note = "Exploratory: " if grid.exploratory else ""
    return (
        f"{note}{'f' if note else 'F'}ine-tuning on {_material(primary)} {verb} {words} by"
        f" {gain_text(gain, grid.metric)} (medians {before} to {after}), better for {gain.better}"
        f" of {gain.n} people, {p_sentence(gain.p, gain.n)}{end}."
    )


def primary_line(grid: Grid, lines: list[Line]) -> Line | None:
    return next((line for line in lines if line.condition == grid.primary), None)


def _material(line: Line) -> str:
    windows, hours = line.counts.get("train_windows"), line.counts.get("train_hours")
    time = f" ({time_text(hours)})" if hours is not None else ""
    also = (
        " together with the base participants' windows"
        if line.condition.mode == "full_fine_tuning"
        else ""
    )
    return f"a median of {count(windows)} labelled training windows{time}{also}"


def beside_headline(grid: Grid, lines: list[Line]) -> str:
    """What a careful reader asks next: selection windows, what tuning the threshold alone brings,
    which estimate and test.
    """
    primary = primary_line(grid, lines)
    if primary is None or primary.gain is None or not primary.gain.n:
        return ""
    gain, counts = primary.gain, primary.counts
    selection = counts.get("selection_windows")
    time = f" ({time_text(counts['selection_hours'])})" if "selection_hours" in counts else ""
    chose = (
        f"Besides, a median of {count(selection)} labelled windows{time} chose the epoch to stop"
        " at. "
        if selection
        else ""
    )
    share = (
        f", {share_text(primary.share)} of what lay between the base and a perfect score"
        if share_text(primary.share) != NOTHING
        else ""
    )
    zeros = f"; {gain.zeros} unchanged" if gain.zeros else ""
    return (
        f"{chose}{_over_tuned(grid, primary)}Estimates of differences are Hodges-Lehmann's, at"
        f" threshold 0.5, positive is better; n = {gain.n}{zeros}{share}. "
        f"{_interval_words(gain)} of the exact two-sided Wilcoxon signed-rank test of"
        f" {condition_words(grid.primary)} against the untouched base that it started from."
        f"{_own_base(grid)}"
    )


def _own_base(grid: Grid) -> str:
    if not grid.settings:
        return ""
    return (
        f" That base has the same {' and '.join(grid.settings)}: the main table's untouched base,"
        " chosen by itself, may be another and better one."
    )


def _over_tuned(grid: Grid, line: Line) -> str:
    if line.over_tuned is None or not line.over_tuned.n:
        return ""
    end = "" if line.over_tuned.significant or line.over_tuned.p is None else ", not reliable"
    return (
        "Over the base with nothing but its threshold tuned on those same windows the difference"
        f" is {gain_text(line.over_tuned, grid.metric)}"
        f" ({p_sentence(line.over_tuned.p, line.over_tuned.n)}{end}). "
    )


def _interval_words(gain: Paired) -> str:
    if gain.p is None:
        return f"With fewer than {SMALLEST_N} people there is no interval"
    return f"The interval (exact, {level_text(gain.estimate.level)}) is that"


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


def pooled_words(grid: Grid) -> str:
    """How a person's several tests are one."""
    if grid.tests == 1:
        return ""
    return (
        f"Each person's score is one score over {grid.tests} tests, in each of which other sessions"
        " or blocks are tested (--split_folds): the windows of all tests are put together, each"
        " with the probabilities of its own model and, at tuned thresholds, that model's threshold;"
        " events and hours are summed. Average precision and ROC AUC thus rank windows by the"
        f" probabilities of {grid.tests} different models. Numbers of training and selection"
        f" windows are means over the {grid.tests}. Who lacks a test is left out."
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
        f" {metric_words(grid.metric)} over the other participants, whose base models have learnt"
        " from this participant's training and validation windows: a choice made for a person is"
        " not wholly independent of that person's data. Gains are over the base of the same"
        " setting."
    )


def fixed_words(grid: Grid) -> str:
    """What was fixed beforehand."""
    if grid.exploratory:
        fixed = metric_words(grid.analysis.metric or DEFAULT_METRIC)
        return (
            f"Exploratory: {metric_words(grid.metric)} was asked for when the report was made; the"
            f" score fixed beforehand is {fixed}. No contrast here is primary, and all p values"
            " are Holm-adjusted."
        )
    if grid.primary is None:
        return "Nothing was fine-tuned from a base, so there is no primary contrast."
    primary = f"The primary contrast, {condition_words(grid.primary)} against the untouched base"
    if grid.analysis.fixed:
        return (
            f"{primary} in {metric_words(grid.metric)}, is the one that the grid's analysis names;"
            " it was written into the job files before anything ran."
        )
    modes = ", ".join(mode for mode in MODES if mode not in FROM_SCRATCH)
    return (
        f"{primary} in {metric_words(DEFAULT_METRIC)}, follows a rule that looks at no result: the"
        f" first mode that was run of {modes}; the fraction nearest to"
        f" {percent(PRIMARY_FRACTION)}. The key analysis of a grid file fixes another before"
        " anything runs."
    )


def families_words(grid: Grid) -> str:
    """Which tests are adjusted together."""
    first = (
        "All contrasts at threshold 0.5 are one family"
        if grid.exploratory or grid.primary is None or BASE not in grid.conditions
        else "The primary contrast is not adjusted. All others at threshold 0.5 are one family"
    )
    return (
        f"{first}, all at tuned thresholds a second, and each comparison of an option one of its"
        " own; within a family p values are adjusted after Holm."
    )


def sensitivity_words(grid: Grid, found: Sensitivity | None) -> str:
    """What a test of this size could have found."""
    if found is None:
        return ""
    sd = score_text(found.sd, grid.metric, digits=3)
    gain = score_text(found.gain, grid.metric, signed=True)
    return (
        f"Sensitivity: with n = {found.n} and an SD of the gains of {sd}, a true gain of {gain} is"
        " the smallest that the exact test would call reliable in 80 % of simulated samples (normal"
        " gains). A smaller one may exist unseen."
    )


def draws_words(grid: Grid, found: Draws | None) -> str:
    """How much the draw of the training windows decides."""
    if found is None:
        return ""
    number = found.scores.notna().sum(axis="columns").max()
    return (
        f"{number} draws of the training windows at {condition_words(grid.primary)}: SD within a"
        f" person {score_text(found.within, digits=3)}, between people"
        f" {score_text(found.between, digits=3)}."
    )
