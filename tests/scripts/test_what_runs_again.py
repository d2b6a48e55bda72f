"""The table "What runs again when something changed" of docs/grids.md, row by row: each change is
made in a project whose grid is done, and what would run is counted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.scripts.made import PEOPLE, windows, write_person
from tests.scripts.projects import QUICK, Project, made

# Two base participants each: ann learns from bob and cyd, bob from ann and cyd, cyd and dan from
# ann and bob. Four base models, three trainings, four fine-tunes.
AXES: dict[str, list[object]] = {"mode": ["target_only_fine_tuning"], "target_data_pct": [0.5]}
FIXED: dict[str, object] = {**QUICK, "n_base_participants": 2, "max_epochs": 1}
PAGE = (ROOT / "docs/grids.md").read_text()
ROWS = dict(
    re.findall(r"^\| ([^|]+?) \| ([0-9]+ and [0-9]+) \|", PAGE, flags=re.MULTILINE),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose grid is done."""
    project = made(tmp_path_factory.mktemp("again"))
    project.generate(AXES, FIXED)
    project.run("run_two_phase_distributed.py")
    return project


def again(project: Project, axes: dict[str, list[object]] | None = None, **fixed: object) -> None:
    project.generate({**AXES, **(axes or {})}, {**FIXED, **fixed})


def change_split(project: Project, person: str, split: str) -> None:
    path = project.folder / "data/made" / f"{person}_{split}.pt"
    count = len(torch.load(path, weights_only=True)[1])
    torch.save(windows(count, 2, 40, 99), path)


def add_eve(project: Project, **fixed: object) -> None:
    write_person(project.folder / "data/made", "eve")
    again(project, participants=[*PEOPLE, "eve"], **fixed)


def base_of(project: Project, fold: int) -> Path:
    (job,) = (job for job in project.jobs("base_training_jobs.json") if job["fold"] == fold)
    return project.folder / f"base_models/{job['base_model_hash']}_metadata.json"


def delete_experiment(project: Project) -> None:
    shutil.rmtree(next((project.folder / "experiments").glob("*/fold0_ann")))


CHANGES: dict[str, Callable[[Project], object]] = {
    "nothing": again,
    "the data are prepared again, with the same content": lambda project: [
        write_person(project.folder / "data/made", name) for name in PEOPLE
    ],
    "a fraction, a mode or a fine-tune seed is added": lambda project: again(
        project, {"target_data_pct": [0.5, 1.0]}
    ),
    "a person is added, `n_base_participants` is a number": add_eve,
    "a person is added, `n_base_participants` is `all`": lambda project: add_eve(
        project, n_base_participants="all"
    ),
    "another `lr`, `batch_size` or network": lambda project: again(project, lr=0.02),
    "a train or val recording of one person (cyd)": lambda project: change_split(
        project, "cyd", "train"
    ),
    "a test recording of a person who is in a base (ann)": lambda project: change_split(
        project, "ann", "test"
    ),
    "a test recording of a person who is in no base (dan)": lambda project: change_split(
        project, "dan", "test"
    ),
    "a base model is deleted or damaged (ann's)": lambda project: base_of(project, 0).unlink(),
    "a base model is deleted that equals another (cyd's)": lambda project: base_of(
        project, 2
    ).unlink(),
    "an experiment's folder is deleted or half-written": delete_experiment,
}


@pytest.mark.parametrize("change", ROWS)
def test_what_the_table_says_is_what_would_run(done: Project, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done.folder, folder)
    (tmp_path / "project-tmp").mkdir()
    project = Project(folder)
    CHANGES[change](project)
    said = project.run("run_two_phase_distributed.py", "--dry-run").stdout
    trainings = re.search(r"(\d+) trainings? to run", said)
    finetunes = re.search(r"fine-tunes: .*; (\d+) to run", said)
    assert trainings
    assert finetunes
    assert f"{trainings[1]} and {finetunes[1]}" == ROWS[change], said


def test_every_row_has_a_change_and_every_change_a_row() -> None:
    assert set(ROWS) == set(CHANGES)
