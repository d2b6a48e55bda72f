"""Train every base model once, and run each fine-tune the moment its base is published, on the
slots of cluster_config.json.

    python3 run_two_phase_distributed.py
    python3 run_two_phase_distributed.py --status        from any terminal
    python3 run_two_phase_distributed.py --only failed   what failed last time

Run it again after anything at all went wrong: only what is missing is done. Exit code: 0 all done,
1 some failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path

from common.cli import run_script
from common.cluster.command import execute, parser
from common.data.data_sets import Data
from common.jobs.job_files import Job, read_jobs
from common.paths import BASE_JOBS, FINETUNE_JOBS


def main() -> int:
    """Read both job files, run them."""
    flags = parser(__doc__ or "")
    flags.add_argument(
        "--base-jobs", type=Path, default=Path(BASE_JOBS), help=f"base jobs (default: {BASE_JOBS})"
    )
    flags.add_argument(
        "--finetune-jobs",
        type=Path,
        default=Path(FINETUNE_JOBS),
        help=f"fine-tunes (default: {FINETUNE_JOBS})",
    )
    flags.switch(
        "--skip-base-training",
        "train no base model; send those that are published to all nodes",
    )
    flags.switch(
        "--wait-for-all-bases",
        "two literal phases: no fine-tune before the last base model",
    )
    args = flags.parse()

    def read(data: Data) -> tuple[list[Job], list[Job], None]:
        bases = [] if args.skip_base_training else read_jobs(args.base_jobs, "base", data)
        return bases, read_jobs(args.finetune_jobs, "finetune", data), None

    return execute(
        args,
        read,
        train_bases=not args.skip_base_training,
        wait_for_all_bases=args.wait_for_all_bases,
    )


if __name__ == "__main__":
    run_script(main)
