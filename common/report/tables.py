"""The main table in LaTeX and Markdown, and every number of the text as a LaTeX macro."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from common.report.analysis import Condition, Grid, Line, percent
from common.report.statistics import Paired, p_text
from common.report.wording import (
    NOTHING,
    count,
    duration,
    gain_text,
    metric_words,
    p_sentence,
    score,
    share_text,
    with_interval,
)

COLUMNS = (
    "Condition",
    "Training windows",
    "Selection windows",
    "Median",
    "Mean",
    "Median gain",
    "Better",
    "Unchanged",
    "p",
    "p (Holm)",
    "Share of possible gain",
)
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
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown(text: str) -> str:
    """Text that Markdown prints as it is, inside a table cell."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
    return escaped.replace("\n", " ")


def table_cells(
    grid: Grid,
    lines: Sequence[Line],
    p_holm: Mapping[Condition, float | None],
    primary: Condition | None,
) -> list[list[str]]:
    """The main table as text, a list a condition. `primary`: the condition whose test is not
    adjusted, if it is in this table.
    """
    return [
        _cells(
            grid,
            line,
            "primary" if line.condition == primary else adjusted_text(p_holm.get(line.condition)),
        )
        for line in lines
    ]


def adjusted_text(p: float | None) -> str:
    """A Holm-adjusted p value as papers print it; a dash where there is none."""
    return NOTHING if p is None else p_text(p)


def _cells(grid: Grid, line: Line, holm: str) -> list[str]:
    counts, gain = line.counts, line.gain
    time = f" ({duration(counts['train_hours'])})" if "train_hours" in counts else ""
    training = f"{count(counts['train_windows'])}{time}" if "train_windows" in counts else NOTHING
    cells = [line.condition.words, training, count(counts.get("selection_windows"))]
    cells += [with_interval(line.median, grid.metric), score(line.mean, grid.metric)]
    if gain is None:
        return [*cells, *[NOTHING] * 6]
    return [
        *cells,
        gain_text(gain, grid.metric),
        f"{gain.better} of {gain.n}",
        str(gain.zeros),
        gain.p_text,
        holm,
        share_text(line.share),
    ]


def latex_table(cells: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A booktabs table, referred to as `tab:label`."""
    body = "\n".join("    " + " & ".join(latex(cell) for cell in row) + r" \\" for row in cells)
    head = " & ".join(
        latex(column).replace("p (Holm)", "$p$ (Holm)") if column != "p" else "$p$"
        for column in COLUMNS
    )
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}. Written by report.py.",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex(caption)}}}",
            rf"  \label{{tab:{label}}}",
            r"  \resizebox{\linewidth}{!}{%",
            rf"  \begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}",
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


def markdown_table(cells: Sequence[Sequence[str]], caption: str) -> str:
    """A table for a README or a manuscript in Markdown."""
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(COLUMNS) - 1)) + "|",
    ]
    lines += ["| " + " | ".join(markdown(cell) for cell in row) + " |" for row in cells]
    return "\n".join([*lines, "", markdown(caption), ""])


def caption_of(grid: Grid, threshold: str) -> str:
    """What a reader must know beside the main table."""
    name = f" ({grid.name})" if grid.name else ""
    people = len(grid.participants)
    of = f" of {people + len(grid.excluded)}" if grid.excluded else ""
    return (
        f"Test {metric_words(grid.metric)}{name} at {threshold}: median over participants with 95 %"
        f" bootstrap interval, n = {people}{of}."
        " Gain: difference from the untouched base, positive is better. p: exact two-sided"
        " Wilcoxon signed-rank; all but the primary contrast Holm-adjusted. Share: mean gain over"
        " mean possible gain. Counts are medians over participants."
    )


# -- macros


def macros(
    grid: Grid,
    lines: Sequence[Line],
    tuned: Sequence[Line],
    p_holm: Mapping[Condition, float | None],
    more: Mapping[str, str],
) -> dict[str, str]:
    """Macro name to its text: the headline's numbers, each line of the main table at 0.5 and tuned,
    and `more`.
    """
    found = {
        "Metric": metric_words(grid.metric),
        "N": str(len(grid.participants)),
        "NAll": str(len(grid.participants) + len(grid.excluded)),
    }
    for prefix, several in (("", lines), ("Tuned", tuned)):
        for line in several:
            found |= _line_macros(prefix + condition_letters(line.condition), grid, line)
            if line.condition == grid.primary:
                found |= _line_macros(f"{prefix}Primary", grid, line)
    for condition, p in p_holm.items():
        found[f"{condition_letters(condition)}PHolm"] = adjusted_text(p)
    if grid.primary:
        found["PrimaryCondition"] = grid.primary.words
        found["PrimaryFraction"] = percent(grid.primary.fraction)
    return {f"pers{name}": text for name, text in (found | dict(more)).items()}


def _line_macros(name: str, grid: Grid, line: Line) -> dict[str, str]:
    found = _interval_macros(name + "Median", line.median, grid.metric) | {
        name + "Mean": score(line.mean, grid.metric)
    }
    for key, text in (
        ("train_windows", "Windows"),
        ("train_positives", "Positives"),
        ("selection_windows", "SelectionWindows"),
    ):
        if key in line.counts:
            found[name + text] = count(line.counts[key])
    if "train_hours" in line.counts:
        found[name + "Time"] = duration(line.counts["train_hours"])
    if line.share:
        found[name + "Share"] = share_text(line.share)
    if line.share_of_full:
        found[name + "ShareOfFull"] = share_text(line.share_of_full)
    return found | (_gain_macros(name, grid, line.gain) if line.gain else {})


def _gain_macros(name: str, grid: Grid, gain: Paired) -> dict[str, str]:
    found = _interval_macros(
        name + "Gain", (gain.median, gain.low, gain.high), grid.metric, signed=True
    )
    found |= {
        name + "GainN": str(gain.n),
        name + "Better": str(gain.better),
        name + "Zeros": str(gain.zeros),
    }
    return found | {name + "P": p_sentence(gain.p, gain.n)}


def _interval_macros(
    name: str, values: tuple[float, float, float], metric: str, signed: bool = False
) -> dict[str, str]:
    return {
        name + end: score(value, metric, signed)
        for end, value in zip(("", "Low", "High"), values, strict=True)
        if math.isfinite(value)
    }


def condition_letters(condition: Condition) -> str:
    """'TargetOnlyFineTuningTwelvePointFive' would need an English speaker; digits are spelled one
    by one: 'TargetOnlyFineTuningOneTwoPointFive'.
    """
    if condition.mode == "base":
        return "Base"
    return "".join(part.capitalize() for part in condition.mode.split("_")) + _letters(
        percent(condition.fraction)
    )


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
