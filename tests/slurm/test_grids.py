"""Grids on a real Slurm: the results of a local run, nothing submitted twice, base models first,
errors in Slurm's own words.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.cluster.slurm.queue import name_prefix
from common.paths import Paths
from tests.conftest import failed_in_one_line, wait_until
from tests.scripts.curves import check_curves
from tests.scripts.made import DOCUMENTED_PEOPLE, write_data
from tests.scripts.projects import QUICK, Project, made
from tests.slurm.cluster import SlurmCluster
from tests.slurm.conftest import write_config
from tests.slurm.runs import ONE_PHASE, TWO_PHASES, command, count_sbatch, events


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
    argv.append("--tensorboard")
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
    assert check_curves(slurm_project.folder) == 6


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
