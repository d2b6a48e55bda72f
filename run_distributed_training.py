"""Run one phase: every job of a job file through one script, on the slots of cluster_config.json.

    python3 run_distributed_training.py \\
        --jobs-config base_training_jobs.json --script-path train_base.py
    python3 run_distributed_training.py \\
        --jobs-config finetune_jobs.json --script-path train_finetune.py

Any other script works as well: one that defines run(options, progress) runs inside the warm
workers, any other as a process of its own with the job as flags. Exit code: 0 all done, 1 some
failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path

from common.cli import run_script
from common.cluster.command import execute, parser
from common.data.data_sets import Data
from common.errors import InputError
from common.jobs.job_files import KINDS, Job, read_jobs
from common.paths import CODE_ROOT


def main() -> int:
    """Read the jobs, run them."""
    flags = parser(__doc__ or "")
    flags.add_argument("--jobs-config", type=Path, help="job file: a list of jobs")
    flags.add_argument(
        "--script-path", type=Path, help="the script that runs a job, in the project folder"
    )
    args = flags.parse()

    def read(data: Data) -> tuple[list[Job], list[Job], Path | None]:
        if args.jobs_config is None or args.script_path is None:
            raise InputError("--jobs-config and --script-path are needed; see --help")
        script: Path = args.script_path
        if not (script.is_file() or (CODE_ROOT / script).is_file()):
            raise InputError(f"--script-path {script}: not found in the project folder")
        if script.is_absolute() or ".." in script.parts:
            raise InputError(
                f"--script-path {script}: must lie in the project folder, so that the nodes have"
                " it too"
            )
        kind = KINDS.get(str(script), "script")
        jobs = read_jobs(args.jobs_config, kind, data)
        return (
            (jobs, [], None) if kind == "base" else ([], jobs, script if kind == "script" else None)
        )

    return execute(args, read)


if __name__ == "__main__":
    run_script(main)
