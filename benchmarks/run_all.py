"""Run every benchmark in turn, print one table and write benchmarks/results.md.

python benchmarks/run_all.py        (make bench)
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from rows import Row  # noqa: E402

BENCHMARKS = (
    "training",
    "dispatch",
    "scheduling",
    "scale",
    "distribution",
    "memory",
    "preparation",
    "end_to_end",
    "whole_grid",
)
HEAD = "| benchmark | ratio (median) | spread | wanted |\n|---|---|---|---|\n"


def run(name: str) -> list[Row]:
    """One benchmark in a process of its own; an empty list and a word when it broke."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "rows.json"
        done = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), "--json", str(out)], check=False
        )
        if done.returncode or not out.is_file():
            sys.stderr.write(f"{name}: not measured (exit code {done.returncode})\n")
            return []
        return [Row(**row) for row in json.loads(out.read_text())]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        wanted = (
            ""
            if row.target is None
            else f"{'at most' if row.at_most else 'at least'} {row.target:g}"
        )
        lines.append(
            f"| {row.name} | {row.ratio_median:.3f} | {row.ratio_min:.3f} to {row.ratio_max:.3f} |"
            f" {wanted} |\n"
        )
    return HEAD + "".join(lines)


def device() -> str:
    """What this was measured on, with the vector width: a CPU claim is no GPU claim."""
    import torch

    from common.training.kernel.build import kernel

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} cores {platform.machine()}, {kernel().name}, {gpu},"
        f" Python {platform.python_version()}, torch {version('torch')}"
    )


def main() -> None:
    """All of them."""
    rows = [row for name in BENCHMARKS for row in run(name)]
    said = (
        "Ratios of ours against a plain baseline in the same file, both sides in turn in one run."
    )
    text = (
        f"# Benchmarks\n\nMeasured {datetime.date.today()} on {device()}. {said}\n\n{table(rows)}"
    )
    (HERE / "results.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
