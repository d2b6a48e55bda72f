"""A picture of every session: what was recorded, what is positive, and in which split it is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.sessions import Session
from common.data.splits import Parts
from common.fonts import installed_families, missing_signs_warning
from common.paths import SPLITS

# Okabe and Ito's colours: told apart by the colour-blind, and in grey
COLOURS = {"train": "#56B4E9", "val": "#E69F00", "test": "#009E73", "": "#DDDDDD"}
POSITIVE, UNKNOWN = "#000000", "#CC79A7"
EDGE = "#999999"
WIDTH_INCHES, ROW_INCHES, MOST_ROWS, DPI = 11.0, 0.24, 200, 110
LETTER_POINTS = 5.5  # room for a letter of a session's name
MAX_NAME = 28  # letters of a session's name
Ranges = list[tuple[float, float]]


@dataclass(frozen=True)
class SessionBar:
    """One session for the picture, in seconds since its start.

    `recorded`: ranges by split, under '' those in no split.
    """

    participant: str
    name: str
    seconds: float
    recorded: dict[str, Ranges]
    positive: Ranges
    unknown: Ranges


def session_bar(participant: str, session: Session, parts: Parts) -> SessionBar:
    """What the picture shows of a session."""
    rate = session.rate
    recorded: dict[str, Ranges] = {"": [(b / rate, e / rate) for b, e in session.pieces]}
    for split in SPLITS:
        recorded[split] = [
            (max(begin, part.begin) / rate, min(end, part.end) / rate)
            for part in parts[split]
            if part.session.name == session.name
            for begin, end in session.pieces
            if max(begin, part.begin) < min(end, part.end)
        ]
    return SessionBar(
        participant,
        session.name,
        len(session.values) / rate,
        recorded,
        [(start / rate, end / rate) for start, end in session.bouts.tolist()],
        [(start / rate, end / rate) for start, end in session.unknown.tolist()],
    )


def draw_overview(path: Path, bars: Sequence[SessionBar]) -> list[str]:
    """Write the picture. Returns warnings: names that no installed font can show, sessions left
    out.
    """
    import matplotlib

    shown = bars[:MOST_ROWS]
    names = [bar.participant for bar in shown] + [bar.name for bar in shown]
    warning = missing_signs_warning(path.name, dict.fromkeys(names))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style
        matplotlib.rcParams["font.family"] = list(installed_families())
        figure = _figure(shown, len(bars))
        with warnings.catch_warnings():  # missing signs are named in one line instead
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, dpi=DPI, metadata={"Software": None}, bbox_inches="tight")
    return [warning] if warning else []


def _figure(bars: Sequence[SessionBar], number: int) -> Any:
    from matplotlib.figure import Figure

    height = 1.3 + ROW_INCHES * len(bars)
    figure = Figure(figsize=(WIDTH_INCHES, height))
    axes = figure.add_subplot()
    scale, unit = _time_unit(max(bar.seconds for bar in bars))
    for row, bar in enumerate(bars):
        for split, ranges in bar.recorded.items():
            _draw(axes, row, ranges, scale, COLOURS[split], 0.8)
        _draw(axes, row, bar.positive, scale, POSITIVE, 0.3)
        _draw(axes, row, bar.unknown, scale, UNKNOWN, 0.3)
    _label_rows(axes, bars)
    axes.set_xlim(0, max(bar.seconds for bar in bars) / scale)
    axes.set_xlabel(f"{unit} from the start of the session")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _legend(axes, bars)
    if number > len(bars):
        axes.set_title(f"the first {len(bars)} of {number} sessions", fontsize=9, loc="right")
    return figure


def _time_unit(seconds: float) -> tuple[float, str]:
    """Seconds in a unit in which the longest session reads well, and the unit's name."""
    if seconds < 180:
        return 1, "seconds"
    return (60, "minutes") if seconds < 3 * 3600 else (3600, "hours")


def _draw(axes: Any, row: int, ranges: Ranges, scale: float, colour: str, height: float) -> None:
    bars = [(start / scale, (end - start) / scale) for start, end in ranges]
    axes.broken_barh(bars, (row - height / 2, height), facecolors=colour, linewidth=0)


def _label_rows(axes: Any, bars: Sequence[SessionBar]) -> None:
    """Session names at the rows, each participant's name once, a line between participants."""
    axes.set_ylim(len(bars) - 0.4, -0.6)
    short = [b.name if len(b.name) <= MAX_NAME else b.name[: MAX_NAME - 3] + "..." for b in bars]
    axes.set_yticks(range(len(bars)), short, fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)
    beside = -16 - LETTER_POINTS * max(map(len, short))
    for row, bar in enumerate(bars):
        if row and bars[row - 1].participant == bar.participant:
            continue
        axes.annotate(
            bar.participant,
            (0, row),
            xycoords=("axes fraction", "data"),
            xytext=(beside, 0),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
            va="center",
            ha="right",
            parse_math=False,
        )
        if row:
            axes.axhline(row - 0.5, color=EDGE, linewidth=0.6)


def _legend(axes: Any, bars: Sequence[SessionBar]) -> None:
    from matplotlib.patches import Patch

    entries = [(split, COLOURS[split]) for split in SPLITS]
    entries += [("in no split", COLOURS[""]), ("positive", POSITIVE)]
    if any(bar.unknown for bar in bars):
        entries.append(("label not known", UNKNOWN))
    patches = [Patch(facecolor=colour, label=name) for name, colour in entries]
    patches.append(Patch(facecolor="white", edgecolor=EDGE, label="not recorded"))
    axes.legend(
        handles=patches,
        ncols=len(patches),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        fontsize=8,
    )
