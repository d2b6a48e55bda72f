"""What the watching head makes of the event logs that tasks leave."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from common.cluster.estimates import Estimates
from common.cluster.journal import Journal
from common.cluster.results import Results
from common.cluster.slurm.queue import QueuedTask
from common.cluster.slurm.task import part
from common.cluster.slurm.watch import Watch
from common.cluster.work import Work
from common.jobs.job_files import Job
from common.paths import Paths


def test_a_line_that_was_cut_short_is_passed_over_and_a_remark_is_said_once(
    tmp_path: Path,
) -> None:
    paths, place = Paths(tmp_path), ("run", "free0", 0)
    jobs = [Job("script", "job0", {}), Job("script", "job1", {})]
    work = Work((), {}, jobs, frozenset(), {})
    with closing(Journal(paths, "run", part("free0", 0))) as task:
        task.event("done", job="job0", remark="net cannot be compiled")
        task._events.write('{"time": 1.0, "event": "do\n[]\n')
        task.event("done", job="job1", remark="net cannot be compiled")
    said: list[str] = []
    with closing(Journal(paths, "run")) as journal:
        home = Results(paths, lambda data_path, name: "", {})
        watch = Watch(
            paths,
            work,
            {place: {job.id: job.id for job in jobs}},
            home,
            journal,
            Estimates(paths, ()),
            said.append,
            lambda status: None,
        )
        watch._read_events()
    assert watch.status(True)["phases"] == {"script": {"done": 2}}
    assert said == ["net cannot be compiled"]


@pytest.mark.parametrize(
    ("state", "left", "words"),
    [
        ("CANCELLED", ["job0"], None),
        ("OUT_OF_MEMORY", [], "its Slurm task ended (OUT_OF_MEMORY) before it was done"),
        ("", [], "its Slurm task ended (Slurm no longer knows how) before it was done"),
    ],
)
def test_how_a_task_ended_that_squeue_has_forgotten_is_taken_from_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, left: list[str], words: str | None
) -> None:
    monkeypatch.setattr(
        "common.cluster.slurm.watch.final_states",
        lambda arrays: {("7", 0): state} if arrays == ["7"] and state else {},
    )
    monkeypatch.setattr("common.cluster.slurm.watch.queued_tasks", lambda paths: [])
    monkeypatch.setattr("common.cluster.slurm.watch.ASK_SECONDS", 0.0)
    paths = Paths(tmp_path)
    with closing(Journal(paths, "run")) as journal:
        watch = Watch(
            paths,
            Work((), {}, [Job("script", "job0", {})], frozenset(), {}),
            {("run", "free0", 0): {"job0": "job0"}},
            Results(paths, lambda data_path, name: "", {}),
            journal,
            Estimates(paths, ()),
            lambda line, failed=None: None,
            lambda status: None,
        )
        outcome = watch.run([QueuedTask("run", "free0", 0, "7", "RUNNING")], lambda: False)
    assert outcome.left == left
    assert outcome.failed == ({"job0": (words, "")} if words else {})


def test_a_job_is_estimated_once_however_often_its_state_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated: list[str] = []
    paths = Paths(tmp_path)
    jobs = [Job("script", f"job{number}", {}) for number in range(3)]
    estimates = Estimates(paths, ())
    seconds = estimates.seconds

    def recording(job: Job) -> float:
        estimated.append(job.id)
        return seconds(job)

    monkeypatch.setattr(estimates, "seconds", recording)
    with closing(Journal(paths, "run")) as journal:
        watch = Watch(
            paths,
            Work((), {}, jobs, frozenset(), {}),
            {("run", "free0", 0): {job.id: job.id for job in jobs}},
            Results(paths, lambda data_path, name: "", {}),
            journal,
            estimates,
            lambda line, failed=None: None,
            lambda status: None,
        )
        left = [watch.status(False)["time_left"] for _ in range(3)]
    assert (left, estimated) == ([None] * 3, ["job0", "job1", "job2"])
