"""A benchmark's result: ratios of ours against a plain baseline, both measured in turn in one run.
Never absolute times, never a failing test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table. `target` is what the ratio should reach (`at_most`: stay under), None
    where it is only reported.
    """

    name: str
    ratio_median: float
    ratio_min: float
    ratio_max: float
    target: float | None
    at_most: bool = False

    @classmethod
    def of(
        cls, name: str, ratios: Sequence[float], target: float | None, *, at_most: bool = False
    ) -> Row:
        """From the ratio of each pair of measurements."""
        return cls(name, statistics.median(ratios), min(ratios), max(ratios), target, at_most)

    @property
    def line(self) -> str:
        """For a terminal."""
        wanted = (
            ""
            if self.target is None
            else f"   wanted: {'at most' if self.at_most else 'at least'} {self.target:g}"
        )
        return (
            f"{self.name:<78} {self.ratio_median:8.3f}   ({self.ratio_min:.3f} to"
            f" {self.ratio_max:.3f}){wanted}"
        )


def main(description: str, measure: Callable[[int], list[Row]], repeats: int) -> None:
    """Parse --repeats and --json, measure, print."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument(
        "--repeats",
        type=int,
        default=repeats,
        help=f"measurements of each side, in turn (default: {repeats})",
    )
    flags.add_argument("--json", type=Path, help="write the rows there as well")
    args = flags.parse_args()
    rows = measure(args.repeats)
    sys.stdout.write("\n".join(row.line for row in rows) + "\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
