"""Slurm's own commands: which of this project's tasks wait, run or have ended, and how to end them.
Nobody else starts these commands.
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

ASK_SECONDS = 60
DEFAULT_ARRAY_SIZE = 1001
_ENDED = frozenset(
    (
        "COMPLETED",
        "CANCELLED",
        "FAILED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
        "REVOKED",
    )
)
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SACCT_")
NEVER = "DependencyNeverSatisfied"


class SlurmError(ProjectError):
    """Slurm did not do what it was asked; in its own words."""


@dataclass(frozen=True)
class Seen:
    """One task as Slurm shows it. `run` and `label` come from the job's name, `state` and `reason`
    are Slurm's words.
    """

    run: str
    label: str
    index: int
    array: str
    state: str
    reason: str = ""

    @property
    def place(self) -> tuple[str, str, int]:
        """Names the task for good, also when Slurm has forgotten it."""
        return self.run, self.label, self.index

    @property
    def ended(self) -> bool:
        """It will not run any more."""
        return self.state in _ENDED or self.reason == NEVER


def project_mark(paths: Paths) -> str:
    """What the names of this project's jobs begin with."""
    return f"mlc-{hashlib.sha256(os.fsencode(os.path.realpath(paths.root))).hexdigest()[:12]}-"


def job_name(paths: Paths, run: str, label: str) -> str:
    """Name of one array: project, run and array, all that is needed to know it again."""
    return f"{project_mark(paths)}{run}-{label}"


def plain(words: str) -> str:
    """Slurm's words without the program's name on each line."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in words.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def ask(*argv: str) -> str:
    """Output of one of Slurm's commands.

    Raises:
        InputError: the command is not installed here. SlurmError: it failed; its own words.
    """
    return _run(argv).stdout


def trial(flags: Sequence[str]) -> str:
    """What sbatch would do with such a task, in its own words; nothing is submitted. Raises
    InputError and SlurmError.
    """
    return plain(_run(["sbatch", "--test-only", *flags, "--wrap=true"]).stderr)


@contextlib.contextmanager
def outer_job_hidden() -> Iterator[None]:
    """Without what an allocation around this process (salloc), or a user's profile, set for Slurm's
    commands: it would apply to our tasks. SLURM_CONF, which names the cluster, stays.
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
                timeout=ASK_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer within {ASK_SECONDS} s") from None
    if done.returncode:
        raise SlurmError(f"{argv[0]}: {plain(done.stderr or done.stdout)}")
    return done


def tasks(paths: Paths) -> list[Seen]:
    """This user's tasks of this project that Slurm still knows, those that ended a few minutes ago
    included. One call of squeue.
    """
    lines = ask(
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--user={os.getuid()}",
        "--format=%F|%K|%T|%j|%r",
    ).splitlines()
    mark, found = project_mark(paths), []
    for line in lines:
        array, index, state, name, reason = (*line.split("|", 4), "", "", "", "")[:5]
        if name.startswith(mark) and index.isdecimal():
            run, _, label = name.removeprefix(mark).rpartition("-")
            found.append(Seen(run, label, int(index), array, state, reason))
    return found


def final_states(arrays: Sequence[str]) -> dict[tuple[str, int], str]:
    """(array, index) -> state, of what squeue has forgotten. Raises SlurmError where the cluster
    keeps no accounting.
    """
    if not arrays:
        return {}
    found = {}
    for line in ask(
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={','.join(arrays)}",
        "--format=JobID,State",
    ).splitlines():
        job, _, state = line.partition("|")
        array, _, index = job.partition("_")
        if index.isdecimal() and state:
            found[array, int(index)] = state.split()[0]
    return found


def array_size() -> int:
    """Indices of an array lie below this."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return int(match[1]) if match else DEFAULT_ARRAY_SIZE


def cancel(arrays: Sequence[str]) -> None:
    """End arrays, waiting and running tasks alike."""
    if arrays:
        ask("scancel", *arrays)
