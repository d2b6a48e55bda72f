"""Grids on a real Slurm: results as from a local run, nothing doubled, requeued tasks that go on,
and errors in Slurm's own words.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.cluster.config import ClusterConfig, Slurm
from common.cluster.journal import past_events
from common.cluster.slurm import start
from common.cluster.slurm.queue import final_states, name_prefix
from common.paths import Paths
from tests.conftest import ROOT, failed_in_one_line, wait_until
from tests.scripts.made import DOCUMENTED_PEOPLE, write_data
from tests.scripts.projects import ENDLESS, QUICK, Project, made
from tests.slurm.cluster import SlurmCluster
from tests.slurm.conftest import write_config

TWO_PHASES = "run_two_phase_distributed.py"
ONE_PHASE = "run_distributed_training.py"
# Long enough to be interrupted several times: some seconds without an end to its patience.
LONG = {**QUICK, "max_epochs": 600, "early_stopping_patience": 1_000_000}


def events(project: Project, event: str) -> list[dict[str, Any]]:
    """Of all runs, those that tasks wrote included."""
    return [found for found in past_events(Paths(project.folder)) if found["event"] == event]


def started(project: Project, job: str) -> int:
    """How often a job was started."""
    return sum(event["job"] == job for event in events(project, "started"))


def count_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch in front of the real one that writes down each call. Returns the list's file."""
    real, calls = shutil.which("sbatch"), folder / "sbatch.calls"
    assert real
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(calls))}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    return calls


@contextmanager
def command(project: Project, *argv: object) -> Iterator[subprocess.Popen[str]]:
    """The orchestrator, left alone while the test acts; its tasks are Slurm's and outlive it."""
    with (project.folder.parent / f"{project.folder.name}-output.txt").open("w+") as output:
        process = subprocess.Popen(
            project.command(*argv),
            cwd=project.folder,
            env=project.environment,
            stdout=output,
            stderr=output,
            text=True,
        )  # type: ignore[arg-type]
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_grid_whose_command_is_killed_and_started_again_ends_as_the_local_run(
    slurm: SlurmCluster, slurm_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {
        "mode": ["target_only_fine_tuning", "target_only"],
        "target_data_pct": [0.5, 1.0],
        "n_base_participants": [1],
        "fold": [0, 1, 2],
    }
    calls = count_sbatch(tmp_path, monkeypatch)
    slurm_project.generate(axes)
    with command(slurm_project, TWO_PHASES) as process:
        wait_until(lambda: events(slurm_project, "started"), what="the first task")
        process.kill()
    done = slurm_project.run(TWO_PHASES, timeout=250)
    assert "14 done, 0 failed, 0 blocked, 0 left" in done.stdout or "reused" in done.stdout
    assert "from scratch 50 %" in done.stdout
    assert len(calls.read_text().splitlines()) == 3  # bases, their fine-tunes, those from scratch
    jobs = [job["base_model_hash"] for job in slurm_project.jobs("base_training_jobs.json")]
    assert len(jobs) == 3
    assert sorted(event["job"] for event in events(slurm_project, "started")) == sorted(
        {event["job"] for event in events(slurm_project, "started")}
    )

    local = made(tmp_path, "local")
    local.generate(axes)
    local.run(TWO_PHASES)
    assert slurm_project.published() == local.published()
    assert len(local.published()) == 3 * 2 + 12 * 5

    again = slurm_project.run(TWO_PHASES)
    assert "nothing to do: all 15 results are there" in again.stdout
    assert len(calls.read_text().splitlines()) == 3


def test_fine_tunes_of_a_failing_base_never_start_and_the_others_are_not_held_up(
    slurm: SlurmCluster, slurm_project: Project
) -> None:
    axes = {
        "mode": ["target_only_fine_tuning"],
        "target_data_pct": [0.5],
        "n_base_participants": [2],
        "fold": [0],
        "lr": [0.01, 1e30],
    }
    slurm_project.generate(axes, {name: value for name, value in QUICK.items() if name != "lr"})
    by_rate = {
        job["lr"]: job["base_model_hash"] for job in slurm_project.jobs("base_training_jobs.json")
    }
    done = slurm_project.run(TWO_PHASES, exit_code=1, timeout=200)
    assert f"failed: {by_rate[1e30]}: the training loss became nan" in done.stdout
    assert "2 done, 1 failed, 1 blocked, 0 left" in done.stdout
    assert (
        "Traceback"
        in (slurm_project.folder / events(slurm_project, "failed")[0]["log"]).read_text()
    )
    wait_until(lambda: not slurm.waiting_or_running(), what="the end of what can never start")
    mark = name_prefix(Paths(slurm_project.folder))
    mine = [
        task
        for task in slurm.tasks()
        if task["name"].startswith(mark) and task["name"].endswith("tune0c0")
    ]
    assert sorted((task["state"], task["reason"]) for task in mine) == [
        ("CANCELLED", "DependencyNeverSatisfied"),
        ("COMPLETED", "None"),
    ]
    bases = {
        job["prefix"]: job["base_model_hash"] for job in slurm_project.jobs("finetune_jobs.json")
    }
    assert {
        bases[event["job"].partition("/")[0]]
        for event in events(slurm_project, "started")
        if "/" in event["job"]
    } == {by_rate[0.01]}
    failed = slurm_project.run(TWO_PHASES, "--only", "failed", "--dry-run").stdout
    assert f"would train {by_rate[1e30]}" in failed
    assert by_rate[0.01] not in failed


def test_a_training_goes_on_after_a_lost_node_a_requeue_and_a_preemption_and_ends_in_the_same_bytes(
    slurm: SlurmCluster, slurm_project: Project, tmp_path: Path
) -> None:
    job = {**LONG, "fold": 0, "n_base_participants": 1}
    slurm_project.write("base_training_jobs.json", [job])

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
        # takes the whole node after a grace time, in which the task gets SIGTERM
        urgent = slurm.do(
            "sbatch",
            "--parsable",
            "--partition=urgent",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=sleep 600",
        ).strip()
        wait_until(lambda: events(slurm_project, "job"), what="the task's own requeue")
        assert list(slurm_project.folder.glob("checkpoints/*.ckpt"))
        wait_until(
            lambda: urgent in {t["array"] for t in slurm.tasks("running")}, what="the urgent job"
        )
        slurm.do("scancel", urgent)
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
    local.run(
        ONE_PHASE, "--jobs-config", "base_training_jobs.json", "--script-path", "train_base.py"
    )
    assert slurm_project.published() == local.published()


def test_at_its_time_limit_a_task_checkpoints_and_requeues_itself_and_cancel_ends_this_project_only(
    slurm: SlurmCluster, slurm_project: Project, tmp_path: Path
) -> None:
    write_config(slurm_project, time="1", notice_seconds=30)
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
        wait_until(
            lambda: events(slurm_project, "job"),
            seconds=120,
            what="the requeue before the time limit",
        )
        (checkpoint,) = slurm_project.folder.glob("checkpoints/*.ckpt")
        before = checkpoint.stat().st_mtime_ns
        (task,) = [task for task in slurm.waiting_or_running() if task["array"] != others]
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


def test_the_documented_grid_takes_a_handful_of_sbatch_calls_and_is_not_doubled(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.create(tmp_path)
    write_data(
        project.folder / "data/001_60s_window", DOCUMENTED_PEOPLE, samples=3000, sizes=(4, 2, 2)
    )
    write_config(project, sbatch={"hold": True})
    calls = count_sbatch(tmp_path, monkeypatch)
    said = project.run("generate_jobs.py").stdout
    assert "1,008" in said
    with command(
        project,
        ONE_PHASE,
        "--jobs-config",
        "base_training_jobs.json",
        "--script-path",
        "train_base.py",
    ) as process:
        wait_until(lambda: events(project, "start"), what="the submission of the bases")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert len(calls.read_text().splitlines()) == 1
    (bases,) = {task["array"] for task in slurm.waiting_or_running()}
    assert len(slurm.waiting_or_running()) == 54
    with command(project, TWO_PHASES) as process:
        wait_until(
            lambda: len(events(project, "start")) == 2, what="the submission of the fine-tunes"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    output = (project.folder.parent / "project-output.txt").read_text()
    assert "the jobs go on in Slurm" in output
    submitted = len(calls.read_text().splitlines())
    # 72 fine-tunes at most share a training: six arrays of twelve a task, and the bases
    assert submitted == 7
    tasks = slurm.waiting_or_running()
    assert len(tasks) == 54 + 1008 // 12
    dependencies = set(slurm.do("squeue", "-h", "-t", "pending", "-o", "%F %E").splitlines())
    assert all(
        line.split() == [bases, "(null)"] or f"aftercorr:{bases}" in line for line in dependencies
    )
    with command(project, TWO_PHASES) as process:
        wait_until(lambda: len(events(project, "start")) == 3, what="the third start")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert len(calls.read_text().splitlines()) == submitted
    assert (
        "already submitted; watching" in (project.folder.parent / "project-output.txt").read_text()
    )
    assert "138 tasks of this project are cancelled" in project.run(TWO_PHASES, "--cancel").stdout


def test_in_two_literal_phases_no_fine_tune_starts_early_and_under_nohup_a_hangup_ends_nothing(
    slurm: SlurmCluster, slurm_project: Project
) -> None:
    write_config(slurm_project, sbatch={"hold": True})
    slurm_project.generate(
        {
            "mode": ["target_only_fine_tuning", "target_only"],
            "target_data_pct": [1.0],
            "n_base_participants": [1],
            "fold": [0, 1],
        }
    )
    argv = ["nohup", *slurm_project.command(TWO_PHASES, "--wait-for-all-bases")]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        argv, cwd=slurm_project.folder, env=slurm_project.environment, **quiet
    ) as process:
        try:
            wait_until(lambda: events(slurm_project, "start"), what="the submission")
            process.send_signal(signal.SIGHUP)
            for array in {task["array"] for task in slurm.waiting_or_running()}:
                slurm.do("scontrol", "release", array)
            assert process.wait(timeout=200) == 0
        finally:
            process.kill()
    trained = [event["time"] for event in events(slurm_project, "done") if "/" not in event["job"]]
    assert min(
        event["time"] for event in events(slurm_project, "started") if "/" in event["job"]
    ) > max(trained)


def test_a_script_of_the_users_own_runs_and_a_task_that_dies_is_a_failure(
    slurm: SlurmCluster, slurm_project: Project
) -> None:
    (slurm_project.folder / "mine.py").write_text(
        "import os, signal, sys\nassert sys.argv[1] in ('--n=1', '--n=2')\nsys.argv[1] == '--n=2'"
        " and os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    slurm_project.write("jobs.json", [{"n": 1}, {"n": 2}])
    done = slurm_project.run(
        ONE_PHASE, "--jobs-config", "jobs.json", "--script-path", "mine.py", exit_code=1
    )
    assert "1 done, 1 failed, 0 blocked, 0 left" in done.stdout
    assert (
        "failed: job1: its Slurm task ended (FAILED) before it was done (log: runs/" in done.stdout
    )
    assert [event["job"] for event in events(slurm_project, "failed")] == ["job1"]


def test_a_task_that_holds_a_gpu_uses_it_or_fails_and_every_form_of_asking_for_one_is_accepted(
    slurm: SlurmCluster, slurm_project: Project
) -> None:
    for settings, accepted in (
        ({"gpus": 1}, True),
        ({"gpus": "a100:1"}, True),
        ({"gpus": "h100"}, False),
        ({"sbatch": {"gres": "gpu:1"}}, True),
        ({"sbatch": {"gpus": "a100:1"}}, True),
        ({"memory_gb": 1, "sbatch": {"mem-per-cpu": "100M"}}, True),
        ({"memory_gb": 1, "gpus": 1, "sbatch": {"mem-per-gpu": "100M"}}, True),
        ({"memory_gb": 5000}, False),
    ):
        config = ClusterConfig(engine="slurm", slurm=Slurm.model_validate(settings))
        lines, good = start.check(config, Paths(slurm_project.folder), (), lambda *_: "")
        assert good == accepted, (settings, lines)
    write_config(slurm_project, sbatch={"gpus-per-node": "a100:1"})
    slurm_project.generate({"mode": ["target_only"], "target_data_pct": [1.0], "fold": [0]})
    done = slurm_project.run(TWO_PHASES, exit_code=1)
    assert "0 done, 1 failed" in done.stdout
    assert "GPU 0 is not there (0 GPUs are visible)" in done.stdout
    assert not slurm_project.published()


def test_settings_of_an_allocation_around_the_command_do_not_reach_its_tasks(
    slurm: SlurmCluster, slurm_project: Project
) -> None:
    slurm_project.generate({"mode": ["target_only"], "target_data_pct": [1.0], "fold": [0]})
    # as some profiles set them: tasks would go to no partition, and squeue would hide them
    profile = {"SBATCH_PARTITION": "nope", "SQUEUE_PARTITION": "nope", "SLURM_TIME_FORMAT": "%s"}
    done = subprocess.run(
        ["salloc", "--mem-per-cpu=10M", "--cpus-per-task=1", *slurm_project.command(TWO_PHASES)],
        cwd=slurm_project.folder,
        env={**slurm_project.environment, **profile},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 done, 0 failed" in done.stdout


def test_accounting_knows_how_tasks_ended_that_squeue_has_forgotten(
    accounting: SlurmCluster, tmp_path: Path
) -> None:
    def submitted(*argv: str) -> str:
        return accounting.do("sbatch", "--parsable", "--output=/dev/null", *argv).strip()

    ended = submitted("--array=0-1", "--wrap=exit $SLURM_ARRAY_TASK_ID")
    cancelled = submitted("--array=3-5", "--hold", "--wrap=sleep 600")
    wait_until(
        lambda: {t["array"] for t in accounting.waiting_or_running()} == {cancelled},
        what="the end of the tasks",
    )
    accounting.do("scancel", cancelled)
    expected = {(ended, 0): "COMPLETED", (ended, 1): "FAILED"}
    expected |= {(cancelled, index): "CANCELLED" for index in (3, 4, 5)}
    wait_until(
        lambda: final_states([ended, cancelled]) == expected, what="the states in the database"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "nope"}, "invalid partition specified: nope"),
        ({"partition": "short", "time": "60"}, "Requested time limit is invalid"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_own_words(
    slurm: SlurmCluster, slurm_project: Project, settings: dict[str, object], words: str
) -> None:
    write_config(slurm_project, **settings)
    slurm_project.generate({"mode": ["target_only"], "target_data_pct": [1.0]})
    line = failed_in_one_line(slurm_project.run(TWO_PHASES, exit_code=2))
    assert "Slurm refuses" in line
    assert words in line
    assert not list(slurm_project.folder.glob("runs/*"))
    assert words in slurm_project.run(TWO_PHASES, "--check", exit_code=1).stdout
    assert not slurm.waiting_or_running()


def test_a_machine_without_slurm_is_told_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = made(tmp_path)
    write_config(project)
    project.generate({"mode": ["target_only"], "target_data_pct": [1.0]})
    monkeypatch.setenv("PATH", str(tmp_path))
    for flags in ((), ("--cancel",), ("--check",)):
        assert "on this machine" in failed_in_one_line(project.run(TWO_PHASES, *flags, exit_code=2))
    project.write_cluster()
    assert "slurm" in failed_in_one_line(project.run(TWO_PHASES, "--cancel", exit_code=2))


def test_the_example_networks_give_the_bytes_of_a_local_run(
    slurm: SlurmCluster, slurm_project: Project, tmp_path: Path
) -> None:
    axes = {
        "model": [f"examples/networks.py:{name}" for name in ("ResNet", "GRU", "Transformer")],
        "mode": ["target_only_fine_tuning", "head_only_fine_tuning"],
        "n_base_participants": [1],
        "fold": [0, 1],
    }
    fixed = QUICK | {"use_augmentation": True, "augmentation": "examples/augmentation.py:rotate"}
    local = made(tmp_path, "local")
    for project in (local, slurm_project):
        shutil.copytree(ROOT / "examples", project.folder / "examples")
        project.generate(axes, fixed)
        project.run(TWO_PHASES, timeout=250)
    assert slurm_project.published() == local.published()
    assert sum(name.endswith("/model.py") for name in local.published()) == 12
