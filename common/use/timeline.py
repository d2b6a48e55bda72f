"""A picture of one session: probability over time, episodes, and annotations where there are
any.
"""

from __future__ import annotations

import io
import warnings
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.fonts import installed_families
from common.use.predict import Predicted, Prediction

LINES = ("-", (0, (3, 1.5)), (0, (1, 1)), "-.")  # so that curves on one another are both seen
GAP = "#dddddd"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by the colour-blind
ANNOTATED = "#555555"
POINTS = 4000  # more windows than this are drawn as the highest and lowest of each stretch


def timeline_png(title: str, predicted: Predicted) -> bytes:
    """The picture, as PNG. A name with $ signs is a name, and a box stands for a sign that no font
    has.
    """
    look = {"text.parse_math": False, "font.family": list(installed_families())}
    with mpl.rc_context(look), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _drawn(title, predicted)


def _drawn(title: str, predicted: Predicted) -> bytes:
    session = predicted.session
    seconds = len(session.values) / session.rate
    unit, name = next(
        (size, name)
        for size, name in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        if seconds >= 2 * size or size == 1
    )
    rows = len(predicted.predictions) + predicted.labelled
    figure = Figure(figsize=(11, 2.6 + 0.32 * rows), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.32 * rows])
    for number, one in enumerate(predicted.predictions):
        _draw_probability(upper, predicted, one, number, unit)
    _draw_thresholds(upper, predicted)
    _draw_gaps((upper, lower), predicted, unit)
    upper.set(ylim=(-0.03, 1.03), ylabel="probability", title=title)
    upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    _draw_stretches(lower, predicted, unit)
    began = f" (at {session.start_s:.12g} s on its clock)" if session.start_s else ""
    lower.set_xlabel(f"{name} since the recording began{began}")
    lower.set_xlim(0, seconds / unit)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()


def _draw_probability(
    axes: Any, predicted: Predicted, one: Prediction, number: int, unit: float
) -> None:
    session, colour = predicted.session, COLOURS[number % len(COLOURS)]
    window = one.model.options.window_size / session.rate
    middles = (one.starts_s - session.start_s + window / 2) / unit
    first = True
    for rows in _without_gaps(predicted, one):
        t, p = _thinned(middles[rows], one.probabilities[rows])
        label = one.model.name if first else None
        marker = "." if len(t) < 60 else None
        line = LINES[number % len(LINES)]
        look = {"linestyle": line, "marker": marker, "markersize": 3, "label": label}
        axes.plot(t, p, color=colour, lw=1.0, **look)
        first = False
    if first:
        axes.plot([], [], color=colour, label=f"{one.model.name}: no window")


def _draw_thresholds(axes: Any, predicted: Predicted) -> None:
    """One line where all models have the same."""
    thresholds = [one.threshold for one in predicted.predictions]
    same = len(set(thresholds)) == 1
    for number, value in enumerate(thresholds[:1] if same else thresholds):
        colour = "black" if same else COLOURS[number % len(COLOURS)]
        axes.axhline(value, color=colour, lw=0.7, ls=":", label=f"threshold {value:.3g}")


def _draw_gaps(both: Any, predicted: Predicted, unit: float) -> None:
    pieces, rate = predicted.session.pieces, predicted.session.rate
    for number, ((_, end), (begin, _)) in enumerate(pairwise(pieces)):
        for axes in both:
            label = "gap" if not number and axes is both[0] else None
            axes.axvspan(end / rate / unit, begin / rate / unit, color=GAP, lw=0, label=label)


def _without_gaps(predicted: Predicted, one: Prediction) -> list[NDArray[np.intp]]:
    """Numbers of the windows of each stretch without a gap."""
    session = predicted.session
    if not len(one.starts_s):
        return []
    samples = np.rint((one.starts_s - session.start_s) * session.rate)
    ends = np.array([end for _, end in session.pieces])
    owner = np.searchsorted(ends, samples, side="right")
    return np.split(np.arange(len(samples)), np.flatnonzero(np.diff(owner)) + 1)


def _thinned(t: NDArray[Any], p: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most about POINTS points, with every peak and every trough."""
    if len(t) <= POINTS:
        return t, p
    edges = np.linspace(0, len(t), POINTS // 2 + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(p, edges), np.maximum.reduceat(p, edges)
    return np.repeat(t[edges], 2), np.stack([low, high], axis=1).ravel()


def _draw_stretches(axes: Any, predicted: Predicted, unit: float) -> None:
    """One row of bars a model, one for the annotations."""
    session, names = predicted.session, list[str]()
    if predicted.labelled:
        bouts = session.bouts / session.rate / unit
        spans = [(start, end - start) for start, end in bouts.tolist()]
        axes.broken_barh(spans, (-0.35, 0.7), color=ANNOTATED)
        names.append("annotated")
    for number, one in enumerate(predicted.predictions):
        spans = [
            ((found.start_s - session.start_s) / unit, (found.end_s - found.start_s) / unit)
            for found in one.episodes
        ]
        axes.broken_barh(spans, (len(names) - 0.35, 0.7), color=COLOURS[number % len(COLOURS)])
        names.append(f"episodes, {one.model.name}")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
