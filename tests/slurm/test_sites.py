"""What Slurm sites differ in: GPUs, memory, allocations around the command, accounting; and tasks
that die.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from common.cluster.config import ClusterConfig, Slurm
from common.cluster.slurm import start
from common.cluster.slurm.queue import final_states
from common.paths import Paths
from tests.conftest import ROOT, wait_until
from tests.scripts.projects import QUICK, Project, made
from tests.slurm.cluster import SlurmCluster, missing_parts
from tests.slurm.conftest import write_config
from tests.slurm.runs import ONE_PHASE, TWO_PHASES, events

ACCOUNTING = True


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


def test_accounting_knows_how_tasks_ended_that_squeue_has_forgotten(slurm: SlurmCluster) -> None:
    if reason := missing_parts(accounting=True):
        pytest.skip(f"needs accounting: {reason}")

    def submitted(*argv: str) -> str:
        return slurm.do("sbatch", "--parsable", "--output=/dev/null", *argv).strip()

    ended = submitted("--array=0-1", "--wrap=exit $SLURM_ARRAY_TASK_ID")
    cancelled = submitted("--array=3-5", "--hold", "--wrap=sleep 600")
    wait_until(
        lambda: {t["array"] for t in slurm.waiting_or_running()} == {cancelled},
        what="the end of the tasks",
    )
    slurm.do("scancel", cancelled)
    expected = {(ended, 0): "COMPLETED", (ended, 1): "FAILED"}
    expected |= {(cancelled, index): "CANCELLED" for index in (3, 4, 5)}
    wait_until(
        lambda: final_states([ended, cancelled]) == expected, what="the states in the database"
    )


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
