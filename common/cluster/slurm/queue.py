"""Slurm's own commands: which of this project's tasks wait, run or have ended, and how to cancel
them. No other module starts these commands, except submitit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import InputError, ProjectError
from common.paths import Paths

TIMEOUT_SECONDS = 60
DEFAULT_ARRAY_SIZE = 1001
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
ENDED |= {"BOOT_FAIL", "DEADLINE", "PREEMPTED", "REVOKED"}
NEVER = "DependencyNeverSatisfied"
# Environment variables that act as flags of Slurm's commands.
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SACCT_")


class SlurmError(ProjectError):
    """A command of Slurm failed; with Slurm's own message."""


@dataclass(frozen=True)
class QueuedTask:
    """One task as squeue shows it. `run` and `label` come from the job's name, `state` and `reason`
    are Slurm's.
    """

    run: str
    label: str
    index: int
    array: str
    state: str
    reason: str = ""

    @property
    def place(self) -> tuple[str, str, int]:
        """Identifies the task, also when Slurm no longer knows it."""
        return self.run, self.label, self.index

    @property
    def ended(self) -> bool:
        """It will not run any more."""
        return self.state in ENDED or self.reason == NEVER


def name_prefix(paths: Paths) -> str:
    """The names of this project's Slurm jobs begin with this."""
    return f"mlc-{hashlib.sha256(os.fsencode(os.path.realpath(paths.root))).hexdigest()[:12]}-"


def job_name(paths: Paths, run: str, label: str) -> str:
    """Slurm's name of an array: project, run and array."""
    return f"{name_prefix(paths)}{run}-{label}"


def error_text(output: str) -> str:
    """Slurm's message in one line, without the program's name in front of each line."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in output.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def ask(*argv: str) -> str:
    """Output of one of Slurm's commands.

    Raises:
        InputError: the command is not installed here. SlurmError: it failed.
    """
    return _run(argv).stdout


def try_submission(flags: Sequence[str]) -> str:
    """What sbatch says of such a task; nothing is submitted. Raises InputError and SlurmError."""
    return error_text(_run(["sbatch", "--test-only", *flags, "--wrap=true"]).stderr)


@contextlib.contextmanager
def outer_job_hidden() -> Iterator[None]:
    """Remove Slurm's variables from the environment, except SLURM_CONF, which names the cluster.

    A shell inside salloc, or a user's profile, sets them; they would apply to our tasks and hide
    tasks from squeue.
    """
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(_INHERITED) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which(argv[0]) is None:
        raise InputError(
            f'no {argv[0]} on this machine: "engine": "slurm" works on a machine of the cluster,'
            " such as its login node"
        )
    try:
        with outer_job_hidden():
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer within {TIMEOUT_SECONDS} s") from None
    if done.returncode:
        raise SlurmError(f"{argv[0]}: {error_text(done.stderr or done.stdout)}")
    return done


def queued_tasks(paths: Paths) -> list[QueuedTask]:
    """This user's tasks of this project that squeue still shows, also those that ended a few
    minutes ago. One call of squeue.
    """
    lines = ask(
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--user={os.getuid()}",
        "--format=%F|%K|%T|%j|%r",
    ).splitlines()
    prefix, found = name_prefix(paths), []
    for line in lines:
        array, index, state, name, reason = (*line.split("|", 4), "", "", "", "")[:5]
        if name.startswith(prefix) and index.isdecimal():
            run, _, label = name.removeprefix(prefix).rpartition("-")
            found.append(QueuedTask(run, label, int(index), array, state, reason))
    return found


def final_states(arrays: Sequence[str]) -> dict[tuple[str, int], str]:
    """(array, index) -> state, of tasks that squeue no longer shows. Raises SlurmError where the
    cluster keeps no accounting.
    """
    if not arrays:
        return {}
    jobs, columns = f"--jobs={','.join(arrays)}", "--format=JobID,State"
    lines = ask("sacct", "--noheader", "--parsable2", "--allocations", jobs, columns).splitlines()
    found = {}
    for line in lines:
        job, _, state = line.partition("|")
        array, _, indices = job.partition("_")
        for index in _indices(indices) if state else []:
            found[array, index] = state.split()[0]
    return found


def _indices(text: str) -> Iterator[int]:
    """Of '7', or of '[2-4,7%64]' as Slurm names tasks that were never started."""
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text.partition("%")[0]):
        yield from range(int(first), int(last or first) + 1)


def array_size() -> int:
    """Indices of an array must be below this."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return int(match[1]) if match else DEFAULT_ARRAY_SIZE


def cancel_arrays(arrays: Sequence[str]) -> None:
    """Cancel waiting and running tasks of arrays."""
    if arrays:
        ask("scancel", *arrays)
