"""The same job gives the same bytes: by its own script, in a warm worker, after other jobs, in
another order, resumed from a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import train_base
import train_finetune
from common.options import to_flags
from tests.conftest import ROOT
from tests.scripts.projects import QUICK, Project, made

# Everything that draws random numbers is on.
OPTIONS = QUICK | {
    "n_base_participants": 2,
    "use_augmentation": True,
    "aug_prob": 0.5,
    "dropout": 0.2,
    "normalization": "train",
    "min_steps_per_epoch": 4,
}
MODES = ["target_only_fine_tuning", "full_fine_tuning", "head_only_fine_tuning"]
BASELINES = ["majority", "forest_target_only", "forest_base"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def silent(state: Mapping[str, Any]) -> None:
    """Progress that nobody looks at."""


def jobs_of(project: Project) -> list[tuple[Any, dict[str, Any]]]:
    """(script, values) of every job, bases first."""
    bases = [(train_base, job) for job in project.jobs("base_training_jobs.json")]
    return bases + [(train_finetune, job) for job in project.jobs("finetune_jobs.json")]


def generated(parent: Path) -> Project:
    project = made(parent)
    project.write_cluster(slots=1)
    project.generate(
        {"mode": [*MODES, *BASELINES], "target_data_pct": [0.5]},
        OPTIONS,
        "--folds",
        "ann",
        "--with-baselines",
    )
    return project


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Every job by its own script, as the documented commands do it: the reference."""
    project = generated(tmp_path_factory.mktemp("hand"))
    for script, job in jobs_of(project):
        given = {
            name: value
            for name, value in job.items()
            if name not in ("training_key", "num_dependent_jobs")
        }
        if script is train_base:
            del given["base_model_hash"]
        project.run(f"{script.__name__}.py", *to_flags(given))
    assert len(project.published()) == 2 + 7 * 5
    return project


def assert_same(project: Project, reference: Project, *only: str) -> None:
    """Name what differs, not the bytes."""
    here, there = project.published(), reference.published()
    if only:
        there = {name: value for name, value in there.items() if any(part in name for part in only)}
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_a_warm_worker_gives_the_bytes_of_the_scripts(by_hand: Project, tmp_path: Path) -> None:
    project = generated(tmp_path)
    project.run("run_two_phase_distributed.py")
    assert sum(project.ran().values()) == 8
    assert_same(project, by_hand)


def test_after_other_jobs_and_in_another_order_they_are_the_same(
    by_hand: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = generated(tmp_path)
    monkeypatch.chdir(project.folder)
    (_, base), *finetunes = jobs_of(project)
    other = train_base.run({**base, "fold": 1, "base_model_hash": None}, silent)["base_model_hash"]
    train_finetune.run(
        {**finetunes[0][1], "fold": 1, "base_model_hash": other, "prefix": "other"}, silent
    )
    train_base.run(base, silent)
    for _, job in reversed(finetunes):
        train_finetune.run(job, silent)
    shutil.rmtree("experiments/other")
    for path in project.folder.glob(f"base_models/{other}*"):
        path.unlink()
    assert_same(project, by_hand)


# A job whose process is killed after its third checkpoint.
KILLED = """
import json, os, signal, sys
from common.training import {module} as job
plain = job.loop_settings
job.loop_settings = lambda *given, **changes: plain(*given, checkpoint_seconds=0.0, **changes)
def progress(state):
    if state["epoch"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
job.run(json.load(sys.stdin), progress)
"""


@pytest.mark.parametrize("number", [0, 1], ids=["base", "fine-tune"])
def test_a_training_killed_and_resumed_gives_the_same(
    by_hand: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:

    project = generated(tmp_path)
    script, job = jobs_of(project)[number]
    if number:
        shutil.copytree(by_hand.folder / "base_models", project.folder / "base_models")
    code = KILLED.format(module="finetune" if number else "base")
    environment = project.environment | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        cwd=project.folder,
        env=environment,
        text=True,
        timeout=100,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(project.folder / "checkpoints")) == 1
    monkeypatch.chdir(project.folder)
    epochs: list[int] = []
    result = script.run(job, lambda state: epochs.append(state["epoch"]))
    assert result["resumed"]
    assert epochs == [4, 5, 6]
    (
        assert_same(project, by_hand, "base_models", job["prefix"])
        if number
        else assert_same(project, by_hand, "base_models")
    )
    assert os.listdir(project.folder / "checkpoints") == []


def test_a_damaged_checkpoint_is_left_aside(
    by_hand: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    project = generated(tmp_path)
    _, job = jobs_of(project)[0]
    environment = project.environment | {"PYTHONPATH": str(ROOT)}
    code = KILLED.format(module="base")
    subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        cwd=project.folder,
        env=environment,
        text=True,
        timeout=100,
        check=False,
    )
    (checkpoint,) = (project.folder / "checkpoints").iterdir()
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(bytes(content))
    monkeypatch.chdir(project.folder)
    assert not train_base.run(job, silent)["resumed"]
    assert_same(project, by_hand, "base_models")


def test_another_seed_would_have_shown(
    by_hand: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: another seed changes the weights."""
    project = generated(tmp_path)
    monkeypatch.chdir(project.folder)
    _, base = jobs_of(project)[0]
    plain = train_base.run(base, silent)["base_model_hash"]
    other = train_base.run({**base, "seed": 1, "base_model_hash": None}, silent)["base_model_hash"]
    assert (project.folder / f"base_models/{plain}.pt").read_bytes() != (
        project.folder / f"base_models/{other}.pt"
    ).read_bytes()
