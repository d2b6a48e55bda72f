"""How the report's figures look: PNG at 300 dpi and SVG, readable in grey and by the colour-blind
(markers and line styles carry what colours do).

They start from matplotlib's own defaults, whatever a matplotlibrc says; cli.run_script sets the
backend.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from common.fonts import installed_families
from common.report.conditions import UNBOUNDED

COLUMN, PAGE = 3.5, 7.1  # inches: one and two columns of a journal page
# Okabe and Ito's colours, in an order that also steps in lightness; each with a marker and a line
# of its own.
LOOKS: dict[str, dict[str, Any]] = {
    "base": {"color": "#000000", "marker": "s", "linestyle": (0, (1, 1.5))},
    "base_tuned": {"color": "#56B4E9", "marker": "P", "linestyle": (0, (1, 1, 3, 1))},
    "target_only_fine_tuning": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "full_fine_tuning": {"color": "#D55E00", "marker": "^", "linestyle": (0, (5, 1.5))},
    "head_only_fine_tuning": {
        "color": "#009E73",
        "marker": "D",
        "linestyle": (0, (5, 1.5, 1, 1.5)),
    },
    "target_only": {"color": "#CC79A7", "marker": "v", "linestyle": (0, (2, 1))},
    "forest_target_only": {"color": "#E69F00", "marker": "X", "linestyle": (0, (3, 1, 1, 1))},
    "forest_base": {"color": "#8A6100", "marker": "p", "linestyle": (0, (1, 1))},
    "majority": {"color": "#888888", "marker": "d", "linestyle": (0, (4, 4))},
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
    """The figures' common look. Characters that no font has are drawn as boxes, without a warning a
    figure; the page's warnings name them.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | {"font.family": list(installed_families())})
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


def new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def score_axis(axes: Axes, metric: str, side: str = "y") -> None:
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


def short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
