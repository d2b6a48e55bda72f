"""Tasks that Slurm ends early: they are requeued, continue, and end in the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import wait_until
from tests.scripts.projects import ENDLESS, PACE, PACED, QUICK, Project, made
from tests.slurm.cluster import SlurmCluster
from tests.slurm.conftest import write_config
from tests.slurm.runs import ONE_PHASE, command, events, started


def preempt(slurm: SlurmCluster, requeued: Callable[[], object]) -> None:
    """A job of higher priority takes the whole node after a grace time, in which the task there
    gets SIGTERM.
    """
    flags = ("--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null")
    urgent = slurm.do("sbatch", *flags, "--wrap=sleep 600").strip()
    wait_until(requeued, what="the task's own requeue")
    running = lambda: urgent in {task["array"] for task in slurm.tasks("running")}  # noqa: E731
    wait_until(running, what="the urgent job")
    slurm.do("scancel", urgent)


def test_a_training_goes_on_after_a_lost_node_a_requeue_and_a_preemption_and_ends_in_the_same_bytes(
    slurm: SlurmCluster, slurm_project: Project, tmp_path: Path
) -> None:
    job = {**QUICK, **PACED, "fold": 0, "n_base_participants": 1}
    slurm_project.write("base_training_jobs.json", [job])
    (slurm_project.folder / "paced.py").write_text(PACE)
    slowly = slurm_project.folder / "slowly"
    slowly.touch()

    def running(times: int) -> bool:
        """The training has been started so often, and this time an epoch has ended."""
        slurm.start_requeued()
        progress = next(iter(slurm_project.folder.glob("runs/*/slurm/*.progress.json")), None)
        begun = [event["time"] for event in events(slurm_project, "started")]
        return len(begun) == times and progress is not None and progress.stat().st_mtime > begun[-1]

    with command(
        slurm_project,
        ONE_PHASE,
        "--jobs-config",
        "base_training_jobs.json",
        "--script-path",
        "train_base.py",
    ) as process:
        wait_until(lambda: running(1), what="an epoch")
        (task,) = slurm.waiting_or_running()
        slurm.do("scontrol", "update", f"NodeName={slurm.host}", "State=DOWN", "Reason=test")
        slurm.do("scontrol", "update", f"NodeName={slurm.host}", "State=RESUME")
        wait_until(lambda: running(2), what="an epoch after the node was lost")
        slurm.do("scontrol", "requeue", task["id"])
        wait_until(lambda: running(3), what="an epoch after the requeue")
        preempt(slurm, lambda: events(slurm_project, "job"))
        assert list(slurm_project.folder.glob("checkpoints/*.ckpt"))
        slowly.unlink()
        wait_until(
            lambda: slurm.start_requeued() or process.poll() is not None,
            seconds=120,
            what="the end",
        )
    assert process.returncode == 0, (
        slurm_project.folder.parent / "my project-output.txt"
    ).read_text()
    (done,) = events(slurm_project, "done")
    assert done["seconds"] is None  # it was resumed, so its time says nothing
    base = done["job"]
    assert started(slurm_project, base) == 4
    assert not list(slurm_project.folder.glob("checkpoints/*.ckpt"))

    local = made(tmp_path, "local")
    local.write("base_training_jobs.json", [job])
    (local.folder / "paced.py").write_text(PACE)
    local.run(
        ONE_PHASE, "--jobs-config", "base_training_jobs.json", "--script-path", "train_base.py"
    )
    assert slurm_project.published() == local.published()


def test_at_its_time_limit_a_task_checkpoints_and_requeues_itself_and_cancel_ends_this_project_only(
    slurm: SlurmCluster, slurm_project: Project, tmp_path: Path
) -> None:
    write_config(slurm_project, notice_seconds=55)
    slurm_project.write(
        "base_training_jobs.json", [{**ENDLESS, "fold": 0, "n_base_participants": 1}]
    )
    other = tmp_path / "other.sh"
    other.write_text("#!/bin/sh\nexec sleep 600\n")
    others = slurm.do(
        "sbatch", "--parsable", "--mem=10M", f"--output={tmp_path}/other.out", str(other)
    ).strip()
    flags = ("--jobs-config", "base_training_jobs.json", "--script-path", "train_base.py")
    with command(slurm_project, ONE_PHASE, *flags) as process:
        wait_until(lambda: events(slurm_project, "started"), what="the start")
        (task,) = [task for task in slurm.waiting_or_running() if task["array"] != others]
        slurm.do("scontrol", "update", f"JobId={task['id']}", "TimeLimit=1")
        wait_until(
            lambda: events(slurm_project, "job"),
            seconds=120,
            what="the requeue before the time limit",
        )
        (checkpoint,) = slurm_project.folder.glob("checkpoints/*.ckpt")
        before = checkpoint.stat().st_mtime_ns
        # or the next notice comes while the test looks
        slurm.do("scontrol", "update", f"JobId={task['id']}", "TimeLimit=30")
        wait_until(
            lambda: slurm.start_requeued() or len(events(slurm_project, "started")) == 2,
            what="the second start",
        )
        (progress,) = slurm_project.folder.glob("runs/*/slurm/*.progress.json")
        wait_until(
            lambda: (
                progress.stat().st_mtime_ns > before
                and json.loads(progress.read_bytes())["epoch"] > 100
            ),
            what="later epochs",
        )
        assert "1 running" in slurm_project.run(ONE_PHASE, "--status").stdout
        said = slurm_project.run(ONE_PHASE, "--cancel").stdout
        assert "1 tasks of this project are cancelled" in said
        wait_until(lambda: process.poll() is not None, what="the end of the watching command")
    assert process.returncode == 1
    assert [task["array"] for task in slurm.waiting_or_running()] == [others]
    assert "no tasks of this project" in slurm_project.run(ONE_PHASE, "--cancel").stdout
