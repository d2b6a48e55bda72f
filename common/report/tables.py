"""The main table in LaTeX and Markdown, and every number of the text as a LaTeX macro."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from common.report.analysis import Contrast, Draws, Line, Sensitivity
from common.report.conditions import MODES, RECALIBRATED, UNTOUCHED, Condition, percent
from common.report.grids import Grid
from common.report.statistics import Estimate, Paired, median_level, p_text, signed_rank_level
from common.report.wording import (
    NOTHING,
    count,
    gain_text,
    level_text,
    metric_words,
    p_sentence,
    score_text,
    share_text,
    time_text,
    with_interval,
)

OVER_TUNED = "Over base, threshold tuned"
COLUMNS = (
    "Condition",
    "n",
    "Training windows",
    "Selection windows",
    "Median",
    "Mean",
    "Gain",
    "Better / worse / equal",
    "p",
    "p (Holm)",
    OVER_TUNED,
    "Share of possible gain",
)
PRIMARY, EXPLORATORY = "primary", "exploratory"
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": r"$-$",
    "–": "--",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
}
FIRST_UNKNOWN = 0x180
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def latex(text: str) -> str:
    """Text that LaTeX prints as it is; '?' for characters beyond Latin, which pdflatex lacks."""
    known = (_LATEX.get(c, c if ord(c) < FIRST_UNKNOWN else "?") for c in text)
    return "".join(known)


def markdown(text: str) -> str:
    """Text that Markdown prints as it is, inside a table cell."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
    return escaped.replace("\n", " ")


def columns(tuned: bool) -> tuple[str, ...]:
    """Heads of the main table. At tuned thresholds the gain is over the tuned base already."""
    return tuple(name for name in COLUMNS if not (tuned and name == OVER_TUNED))


def table_cells(
    grid: Grid, lines: Sequence[Line], tested: Sequence[Contrast], tuned: bool
) -> list[list[str]]:
    """The main table as text, a list a condition. `tested`: the contrasts of the same threshold."""
    against_base = {
        contrast.pair[0]: contrast
        for contrast in tested
        if contrast.pair and contrast.pair[1].mode == UNTOUCHED
    }
    rows = []
    for line in lines:
        words = line.condition.words
        if tuned and line.condition.mode == UNTOUCHED:
            words = line.condition._replace(mode=RECALIBRATED).words
        cells = _cells(grid, line, against_base.get(line.condition))
        by_name = dict(zip(COLUMNS, [words, *cells], strict=True))
        rows.append([by_name[name] for name in columns(tuned)])
    return rows


def holm_text(contrast: Contrast | None) -> str:
    """A Holm-adjusted p value as papers print it; 'primary'; a dash where there is none."""
    if contrast is None:
        return NOTHING
    if contrast.primary:
        return PRIMARY
    return NOTHING if contrast.p_holm is None else p_text(contrast.p_holm)


def _cells(grid: Grid, line: Line, contrast: Contrast | None) -> list[str]:
    counts, gain = line.counts, line.gain
    time = f" ({time_text(counts['train_hours'])})" if "train_hours" in counts else ""
    training = f"{count(counts['train_windows'])}{time}" if "train_windows" in counts else NOTHING
    cells = [str(line.n), training, count(counts.get("selection_windows"))]
    cells += [with_interval(line.median, grid.metric), score_text(line.mean, grid.metric)]
    if gain is None:
        return [*cells, *[NOTHING] * 6]
    return [
        *cells,
        gain_text(gain, grid.metric),
        f"{gain.better} / {gain.worse} / {gain.zeros}",
        gain.p_text,
        holm_text(contrast),
        NOTHING if line.over_tuned is None else gain_text(line.over_tuned, grid.metric),
        share_text(line.share),
    ]


def latex_table(
    heads: Sequence[str], cells: Sequence[Sequence[str]], caption: str, label: str
) -> str:
    """A booktabs table, referred to as `tab:label`."""
    body = "\n".join("    " + " & ".join(latex(cell) for cell in row) + r" \\" for row in cells)
    head = " & ".join(_latex_head(name) for name in heads)
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}. Written by report.py.",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex(caption)}}}",
            rf"  \label{{tab:{label}}}",
            r"  \resizebox{\linewidth}{!}{%",
            rf"  \begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"    \toprule",
            f"    {head} \\\\",
            r"    \midrule",
            body,
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _latex_head(name: str) -> str:
    """A head; long ones in two lines."""
    name = {"p": "$p$", "p (Holm)": "$p$ (Holm)", "n": "$n$"}.get(name, latex(name))
    first, space, rest = name.partition(" ")
    if not space or len(name) < 12:
        return name
    return rf"\shortstack[r]{{{first}\\{rest}}}"


def markdown_table(heads: Sequence[str], cells: Sequence[Sequence[str]], caption: str) -> str:
    """A table for a README or a manuscript in Markdown."""
    lines = [
        "| " + " | ".join(heads) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(heads) - 1)) + "|",
    ]
    lines += ["| " + " | ".join(markdown(cell) for cell in row) + " |" for row in cells]
    return "\n".join([*lines, "", markdown(caption), ""])


def caption_of(grid: Grid, lines: Sequence[Line], tuned: bool) -> str:
    """What a reader must know beside the main table."""
    name = f" ({grid.name})" if grid.name else ""
    at = "the threshold tuned on each model's selection windows" if tuned else "threshold 0.5"
    numbers = sorted({line.n for line in lines})
    levels = ", ".join(f"{level_text(median_level(n))} at n = {n}" for n in numbers if n > 5)
    gains = sorted({line.gain.n for line in lines if line.gain})
    tests = ", ".join(f"{level_text(signed_rank_level(n))} at n = {n}" for n in gains if n > 5)
    base = "the own base, its threshold tuned as well" if tuned else "the own untouched base"
    first = "Exploratory score. " if grid.exploratory else ""
    if grid.tests > 1:
        first += f"Scores of a person's {grid.tests} tests pooled (--split_folds). "
    return (
        f"{first}Test {metric_words(grid.metric)}{name} at {at}: median over participants with"
        f" exact order-statistic interval ({levels or 'none below 6 participants'}). Gain:"
        f" difference from {base}, positive is better: Hodges-Lehmann estimate with the interval of"
        f" the exact Wilcoxon test ({tests or 'none below 6 participants'}; a round bracket where"
        " the end itself is rejected). p: exact two-sided Wilcoxon signed-rank, zeros after Pratt;"
        f" {_adjusted_words(grid, tuned)} Share: median pairwise ratio of gain and possible gain."
        f" Counts are medians over participants.{other_people(grid, lines)}"
    )


def _adjusted_words(grid: Grid, tuned: bool) -> str:
    if tuned or grid.exploratory:
        return "Holm-adjusted over all contrasts at this threshold."
    return "all but the primary contrast Holm-adjusted, those over the tuned base included."


def other_people(grid: Grid, lines: Sequence[Line]) -> str:
    """That rows cover fewer people than others, and why."""
    everyone = len(grid.participants)
    fewer = [line.condition.words for line in lines if line.n < everyone]
    if not fewer:
        return ""
    return (
        f" n is smaller than {everyone} where the score is undefined (no threshold could be tuned,"
        f" or one class only): {'; '.join(fewer)}. Such rows cover other people than the rest."
    )


# -- macros


def macros(
    grid: Grid,
    lines: Sequence[Line],
    tuned: Sequence[Line],
    tested: Sequence[Contrast],
    more: Mapping[str, str],
) -> dict[str, str]:
    """Macro name to its text: the headline's numbers, each line of the main table at 0.5 and tuned,
    and `more`.
    """
    found = {
        "Metric": metric_words(grid.metric),
        "Status": EXPLORATORY if grid.exploratory else PRIMARY,
        "N": str(len(grid.participants)),
        "NAll": str(len(grid.participants) + len(grid.excluded)),
    }
    for prefix, several in (("", lines), ("Tuned", tuned)):
        for line in several:
            found |= _line_macros(prefix + condition_letters(line.condition), grid, line)
            if line.condition == grid.primary:
                found |= _line_macros(f"{prefix}Primary", grid, line)
    for contrast in tested:
        if contrast.pair and contrast.pair[1].mode == UNTOUCHED:
            found[f"{condition_letters(contrast.pair[0])}PHolm"] = holm_text(contrast)
    if grid.primary:
        found["PrimaryCondition"] = grid.primary.words
        found["PrimaryFraction"] = percent(grid.primary.fraction)
    return {f"pers{name}": text for name, text in (found | dict(more)).items()}


def more_macros(grid: Grid, drawn: Draws | None, size: Sensitivity | None) -> dict[str, str]:
    """SDs over draws and people, and the smallest gain that would have been found."""
    found: dict[str, str] = {}
    if drawn:
        found["SDWithin"] = score_text(drawn.within, digits=3)
        found["SDBetween"] = score_text(drawn.between, digits=3)
    if size:
        found["DetectableGain"] = score_text(size.gain, grid.metric, signed=True)
    return found


def _line_macros(name: str, grid: Grid, line: Line) -> dict[str, str]:
    found = _interval_macros(name + "Median", line.median, grid.metric) | {
        name + "Mean": score_text(line.mean, grid.metric),
        name + "N": str(line.n),
    }
    for key, text in (
        ("train_windows", "Windows"),
        ("train_positives", "Positives"),
        ("selection_windows", "SelectionWindows"),
    ):
        if key in line.counts:
            found[name + text] = count(line.counts[key])
    if "train_hours" in line.counts:
        found[name + "Time"] = time_text(line.counts["train_hours"])
    if line.share:
        found[name + "Share"] = share_text(line.share)
    if line.over_tuned:
        found |= _gain_macros(name + "OverTuned", grid, line.over_tuned)
    if line.share_of_full:
        found[name + "ShareOfFull"] = share_text(line.share_of_full)
    return found | (_gain_macros(name, grid, line.gain) if line.gain else {})


def _gain_macros(name: str, grid: Grid, gain: Paired) -> dict[str, str]:
    found = _interval_macros(name + "Gain", gain.estimate, grid.metric, signed=True)
    found |= {
        name + "GainText": gain_text(gain, grid.metric),
        name + "GainN": str(gain.n),
        name + "Better": str(gain.better),
        name + "Zeros": str(gain.zeros),
        name + "Effect": score_text(gain.effect, signed=True),
    }
    return found | {name + "P": p_sentence(gain.p, gain.n)}


def _interval_macros(
    name: str, estimate: Estimate, metric: str, signed: bool = False
) -> dict[str, str]:
    ends = {"": estimate.value, "Low": estimate.low, "High": estimate.high}
    found = {
        name + end: score_text(value, metric, signed)
        for end, value in ends.items()
        if math.isfinite(value)
    }
    if math.isfinite(estimate.level):
        found[name + "Level"] = level_text(estimate.level)
    return found


def condition_letters(condition: Condition) -> str:
    """The condition in letters, as a macro's name needs: 'TargetOnlyFineTuningOneTwoPointFive'. A
    budget that is not the usual one follows.
    """
    budget = ("" if condition.val == "full" else condition.val.capitalize()) + (
        "" if condition.order == "random" else condition.order.capitalize()
    )
    mode = "".join(part.capitalize() for part in condition.mode.split("_"))
    assert condition.mode in (UNTOUCHED, RECALIBRATED, *MODES)
    return mode + (_letters(percent(condition.fraction)) if condition.fraction else "") + budget


def _letters(text: str) -> str:
    """Only letters, as a macro's name needs."""
    spelled = re.sub(r"\d", lambda digit: _DIGITS[int(digit.group())], text).replace(".", "Point")
    return re.sub(r"[^A-Za-z]", "", spelled)


def macros_file(values: Mapping[str, str]) -> str:
    """numbers.tex."""
    lines = [
        "% Every number of the report's text. Written by report.py; \\input it and use, for"
        " example, \\persPrimaryMedian."
    ]
    return "\n".join(
        [
            *lines,
            *(rf"\newcommand{{\{name}}}{{{latex(text)}}}" for name, text in sorted(values.items())),
            "",
        ]
    )
