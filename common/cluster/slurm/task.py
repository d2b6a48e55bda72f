"""One task of a Slurm array: runs a few jobs in one process and writes an event log of its own. No
head has to be there.

On the signal before its end (time limit, preemption) the running training saves a checkpoint at the
end of its epoch, and the task requeues itself through submitit and continues there. After a node
failure Slurm requeues the task.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from common.artifacts import write_file
from common.cluster.estimates import Estimates, kind
from common.cluster.journal import Journal
from common.cluster.on_node.worker import Worker
from common.cluster.protocol import CURVES
from common.cluster.results import Results
from common.cluster.slurm.queue import ask
from common.data.data_sets import Data
from common.errors import ProjectError, TrainingError
from common.jobs.job_files import Job
from common.paths import CODE_ROOT, Paths
from common.training.stopping import Stopped, stopping

HELD_GPUS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")  # set by Slurm in a task that holds GPUs
PROGRESS_SECONDS = 10.0
STALLS = 3  # attempts in a row in which neither a job nor an epoch came to its end
# An epoch may take this share of the notice; then the task is requeued from its last checkpoint,
# while there is time left to do it.
PATIENCE = 0.7
FOREVER = 86400.0  # longer than Slurm takes to kill a task


def part(label: str, index: int) -> str:
    """File name of a task in its run's folder, without an ending."""
    return f"{label}_{index}"


def progress_file(paths: Paths, run: str, label: str, index: int) -> Path:
    """Epoch of the running job, which the head shows."""
    return paths.slurm(run) / f"{part(label, index)}.progress.json"


@dataclass
class Task:
    """What submitit calls in the task; it keeps it in a file beside its logs. `settled`: jobs that
    have ended, in an earlier attempt too.
    """

    project: str
    run: str
    label: str
    index: int
    jobs: tuple[Job, ...]
    siblings: tuple[Job, ...]  # published with the first job, an equal training
    scripts: dict[str, str]
    retrain: bool
    device: str
    notice_seconds: int
    settled: list[str] = field(default_factory=list)
    stalls: int = 0

    def __call__(self) -> None:
        """Run what is not settled. Raises ProjectError when a job failed, so that no task that
        depends on this one starts.
        """
        _Attempt(self).run()

    def checkpoint(self) -> Any:
        """Called by submitit: what to call when the task is started again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _device(asked: str) -> str:
    """'0' wherever Slurm gave this task a GPU, also unasked (--exclusive): a training that is told
    to use a GPU fails where it cannot, so that no task holds one for nothing.
    """
    return "0" if any(os.environ.get(name) for name in HELD_GPUS) else asked


class _Attempt:
    """One start of a task."""

    def __init__(self, task: Task) -> None:
        self._task, self._paths = task, Paths(Path(task.project))
        self._journal = Journal(self._paths, task.run, part(task.label, task.index))
        self._results = Results(
            self._paths, Data(self._paths).sha256, {task.jobs[0].id: task.siblings}
        )
        self._settled_before = len(task.settled)
        self._requeue_by_submitit = signal.getsignal(signal.SIGUSR2)
        self._noticed = False
        self._told = 0.0
        self._job = task.jobs[0]

    def run(self) -> None:
        """Run the jobs that are left. Raises ProjectError when one failed; does not return when the
        task is requeued or cancelled.
        """
        os.chdir(self._task.project)
        signal.signal(signal.SIGUSR2, self._on_notice)
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.signal(signal.SIGTERM, self._on_term)
        with contextlib.closing(self._journal):
            try:
                failed = self._run_jobs()
            except Stopped:
                self._leave()
            signal.setitimer(signal.ITIMER_REAL, 0)
        if failed:
            raise ProjectError(
                f"{len(failed)} of {len(self._task.jobs)} jobs failed, the first: {failed[0]}"
            )

    def _run_jobs(self) -> list[str]:
        """Returns the errors of the jobs that failed."""
        with self._log() as log:
            worker = Worker(self, CODE_ROOT, _device(self._task.device), log)
            return [
                error
                for job in self._task.jobs
                if job.id not in self._task.settled and (error := self._run_job(worker, log, job))
            ]

    @contextlib.contextmanager
    def _log(self) -> Iterator[IO[bytes]]:
        """Redirect standard output and error to a file, whose end is kept with each job."""
        path = self._paths.slurm(self._task.run) / f"{part(self._task.label, self._task.index)}.log"
        before = [os.dup(number) for number in (1, 2)]
        with path.open("ab", buffering=0) as log:
            try:
                for number in (1, 2):
                    os.dup2(log.fileno(), number)
                yield log
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, saved in zip((1, 2), before, strict=True):
                    os.dup2(saved, number)
                    os.close(saved)

    # -- jobs

    def _run_job(self, worker: Worker, log: IO[bytes], job: Job) -> str:
        """Run one job and record its end. Returns '' or why it failed. Raises Stopped when the task
        has to end before the job has.
        """
        if stopping.wanted:
            raise Stopped
        self._job = job
        log.truncate(0)
        self._journal.event("started", job=job.id, node=platform.node())
        values = {**job.values, "_retrain": True} if self._task.retrain else job.values
        script = self._task.scripts[job.kind]
        outcome = worker.outcome({"job": job.id, "script": script, "values": values})
        error = ""
        if "failed" in outcome:
            # Slurm's signal also reaches the process of a user's own script, which it ends
            if job.kind == "script" and stopping.wanted:
                raise Stopped
            error = str(outcome["error"])
        elif job.kind != "script":
            error = self._results.accept(job, self._paths)
        self._settle(job, outcome, error)
        return f"{job.id}: {error}" if error else ""

    def _settle(self, job: Job, outcome: Mapping[str, Any], error: str) -> None:
        kept = self._journal.job_log(job.id, str(outcome["log"])) if outcome.get("log") else ""
        node = platform.node()
        if error:
            self._journal.event("failed", job=job.id, node=node, error=error, log=kept)
        else:
            result = outcome.get("result") or {}
            whole = not result.get("reused") and not result.get("resumed")
            seconds = outcome["seconds"] if whole else None
            told = {"remark": result["remark"]} if result.get("remark") else {}
            self._journal.event(
                "done",
                job=job.id,
                node=node,
                kind=kind(job),
                seconds=seconds,
                work=Estimates(self._paths, ()).work(job),
                **told,
            )
        self._task.settled.append(job.id)

    def send(self, message: Mapping[str, Any]) -> None:
        """Write the progress of the running job to a file, at most every PROGRESS_SECONDS."""
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            path = progress_file(self._paths, self._task.run, self._task.label, self._task.index)
            progress = {
                "job": message["progress"],
                "epoch": message.get("epoch"),
                "of": message.get("of"),
                **{key: message[key] for key in CURVES if key in message},
            }
            with contextlib.suppress(OSError):
                write_file(path, json.dumps(progress).encode(), durable=False)

    def check_cancelled(self, job: str) -> None:
        """Nothing: cancelled tasks get a signal."""

    # -- ending early

    def _on_notice(self, number: int, frame: FrameType | None) -> None:
        """The time limit or a preemption is near."""
        self._noticed = stopping.wanted = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * self._task.notice_seconds)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._requeue()

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        """Cancelled, preempted, or requeued by Slurm: save a checkpoint."""
        stopping.wanted = True

    def _leave(self) -> NoReturn:
        if self._noticed or self._preempted():
            self._requeue()
        sys.exit(128 + signal.SIGTERM)

    def _preempted(self) -> bool:
        """Whether Slurm takes the node away but leaves the task a grace time. A task that ends in
        that time would count as failed, so it requeues itself.

        A cancelled or requeued task is not running any more when it gets the signal.
        """
        task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            return ask("squeue", "--noheader", "--format=%T", f"--jobs={task}").strip() == "RUNNING"
        except ProjectError:
            time.sleep(FOREVER)  # Slurm kills it, and requeues it where it was preempted
            return False

    def _requeue(self) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        task = self._task
        if len(task.settled) > self._settled_before or stopping.saved:
            task.stalls = 0
        else:
            task.stalls += 1
        if task.stalls >= STALLS:
            error = (
                f"no epoch came to its end within the time limit, {STALLS} times in a row: raise"
                " time in cluster_config.json"
            )
            self._settle(self._job, {}, error)
            raise TrainingError(error)
        self._journal.event(
            "job", job=self._job.id, state="requeued", cause="time limit or preemption"
        )
        assert callable(self._requeue_by_submitit)
        self._requeue_by_submitit(signal.SIGUSR2, None)
        raise AssertionError("submitit ends the process when it has requeued the task")
