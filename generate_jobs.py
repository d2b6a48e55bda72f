"""Expand a grid of experiments into jobs: one base training job per distinct base model, and every
fine-tune with the base it needs.

    python3 generate_jobs.py                        the documented grid: 1,008 fine-tunes on 84 base
    models python3 generate_jobs.py --grid demo_grid.json  another grid: {"grid": {option:
    [values]}, "fixed": {option: value}}
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from common.cli import Parser, run_script
from common.data.data_sets import Data
from common.jobs.grid import DOCUMENTED_GRID, expand, read_grid
from common.jobs.job_files import Job, base_entries, write_jobs
from common.jobs.plan import Plan, code_notice, counted, plan
from common.jobs.verdicts import State
from common.paths import BASE_JOBS, FINETUNE_JOBS, Paths


def parser() -> Parser:
    """The flags."""
    flags = Parser(__doc__ or "")
    flags.add_argument("--grid", type=Path, help="grid file (default: the documented grid)")
    flags.add_argument(
        "--folds", nargs="+", help="only these folds, by number or participant (default: all)"
    )
    flags.add_argument(
        "--output-dir",
        type=Path,
        default=Path("."),
        help="where the two job files go (default: here)",
    )
    flags.add_argument(
        "--with-baselines",
        action="store_true",
        help="add the modes target_only (once per target) and head_only_fine_tuning",
    )
    return flags


def describe(bases: list[Job], finetunes: list[Job], made: Plan, output: Path) -> list[str]:
    """What was written, for a person."""
    dependents = Counter(job.needs for job in finetunes if job.needs)
    sizes = sorted(set(dependents.values()))
    each = (
        f", {'-'.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} fine-tunes each"
        if sizes
        else ""
    )
    lines = [
        f"{output / FINETUNE_JOBS}: {len(finetunes):,} fine-tunes",
        f"{output / BASE_JOBS}: {len(bases):,} base models{each}",
        f"distinct trainings: {made.trainings():,}"
        + (
            f" (by configuration; the data were not looked at: {made.unseen})"
            if made.unseen
            else ""
        ),
        f"base models: {counted(made.bases)}"
        + (
            f" ({len(made.copies):,} of them only copied from an equal training)"
            if made.copies
            else ""
        ),
        f"fine-tunes:  {counted(made.finetunes)}",
    ]
    stale = [
        v.reason
        for v in (*made.bases.values(), *made.finetunes.values())
        if v.state in (State.STALE, State.DAMAGED, State.CONFLICT)
    ]
    lines += stale[:10] + ([f"... and {len(stale) - 10:,} more"] if len(stale) > 10 else [])
    notice = code_notice(made)
    return lines + ([notice] if notice else [])


def main() -> int:
    """Write the job files and say what they hold."""
    args = parser().parse()
    paths, where = Paths.here(), str(args.grid or "the documented grid")
    data = Data(paths)
    bases, finetunes = expand(
        read_grid(args.grid) if args.grid else DOCUMENTED_GRID,
        where,
        data,
        args.folds,
        baselines=args.with_baselines,
    )
    made = plan(paths, bases, finetunes, data.sha256)
    keys = dict.fromkeys(made.keys) if made.unseen else made.keys
    write_jobs(args.output_dir / BASE_JOBS, base_entries(bases, finetunes, keys))
    write_jobs(args.output_dir / FINETUNE_JOBS, [job.values for job in finetunes])
    sys.stdout.write("\n".join(describe(bases, finetunes, made, args.output_dir)) + "\n")
    for data_path in dict.fromkeys(str(job.values["data_path"]) for job in finetunes):
        if remark := data.leakage_remark(data_path):
            sys.stderr.write(remark + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
