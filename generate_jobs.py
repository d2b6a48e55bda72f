"""Expand a grid of experiments into jobs: one base training job for each distinct base model, and
every fine-tune with the base model that it needs.

    python3 generate_jobs.py                        the grid of the job files that are here; the
                                                    first time the documented one: 1,008 fine-tunes
                                                    on 84 base models
    python3 generate_jobs.py --grid demo_grid.json  another grid; see docs/grids.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.cli import Parser, run_script, text_path
from common.data.data_sets import Data
from common.jobs.generate import choose_grid, generate
from common.paths import Paths


def parser() -> Parser:
    """The flags."""
    flags = Parser(__doc__ or "")
    flags.add_argument(
        "--grid",
        type=text_path,
        help="grid file (default: the grid of the job files that are here, else the documented"
        " grid); job files of other fine-tunes are kept as .bak, .bak1, ...",
    )
    flags.add_argument(
        "--folds", nargs="+", help="only these folds, by number or participant (default: all)"
    )
    flags.add_argument(
        "--output-dir",
        type=Path,
        default=Path("."),
        help="where the two job files go (default: here)",
    )
    flags.switch(
        "--with-baselines",
        "add the modes target_only (once per target) and head_only_fine_tuning",
    )
    return flags


def main() -> int:
    """Write the job files and say what they hold."""
    args = parser().parse()
    paths = Paths.here()
    data = Data(paths)
    origin, remark = choose_grid(
        args.output_dir, args.grid, args.folds, baselines=args.with_baselines
    )
    lines, warnings = generate(paths, data, origin, args.output_dir)
    sys.stdout.write("\n".join([f"grid: {origin.name}{remark}", *lines]) + "\n")
    sys.stderr.writelines(f"{warning}\n" for warning in warnings)
    return 0


if __name__ == "__main__":
    run_script(main)
