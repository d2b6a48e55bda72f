"""A grid becomes jobs, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.data.data_sets import Data
from common.errors import InputError
from common.jobs.grid import DOCUMENTED_GRID, expand, read_grid
from common.paths import Paths

FIXED: dict[str, Any] = {"participants": ["ann", "bob", "cyd"], "data_path": "data/made"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.chdir(tmp_path)
    return Data(Paths(tmp_path))


def grid(axes: dict[str, Any], **fixed: Any) -> dict[str, Any]:
    return {"grid": axes, "fixed": FIXED | fixed}


def test_the_documented_grid(data: Data) -> None:
    bases, finetunes = expand(DOCUMENTED_GRID, "here", data)
    assert (len(bases), len(finetunes)) == (84, 1008)
    assert "dd8687760fb0bcb2" in {job.id for job in bases}


def test_each_fold_and_value_once_and_each_base_once(data: Data) -> None:
    bases, finetunes = expand(
        grid({"target_data_pct": [0.5, 1.0, 0.5], "n_base_participants": [1, 2]}), "here", data
    )
    assert (len(bases), len(finetunes)) == (6, 12)
    assert {job.needs for job in finetunes} == {job.id for job in bases}


@pytest.mark.parametrize("folds", [["bob"], ["1"], ["1", "bob"]])
def test_folds_are_numbers_or_names(data: Data, folds: list[str]) -> None:
    bases, finetunes = expand(grid({}), "here", data, folds)
    assert [job.values["fold"] for job in bases] == [1]
    assert [job.values["fold"] for job in finetunes] == [1]


@pytest.mark.parametrize("fold", ["3", "-1", "eve", ""])
def test_a_fold_that_nobody_is_is_refused(data: Data, fold: str) -> None:
    with pytest.raises(InputError, match="--folds"):
        expand(grid({}), "here", data, [fold])


@pytest.mark.parametrize(("axes", "fixed"), [({"fold": [0, 1]}, {}), ({}, {"fold": 1})])
def test_folds_beside_the_grids_own_are_refused(
    data: Data, axes: dict[str, Any], fixed: dict[str, Any]
) -> None:
    assert {job.values["fold"] for job in expand(grid(axes, **fixed), "g.json", data)[1]} == set(
        axes.get("fold", [1])
    )
    with pytest.raises(
        InputError, match=r"--folds: g\.json names its own 'fold': leave one of the two out"
    ):
        expand(grid(axes, **fixed), "g.json", data, ["nobody"])


def test_baselines_add_two_modes_and_target_only_once_a_target(data: Data) -> None:
    axes = {
        "n_base_participants": [1, 2],
        "early_stopping_patience": [5, 6],
        "seed": [0, 1],
        "target_data_pct": [0.5],
    }
    bases, finetunes = expand(grid(axes), "here", data, baselines=True)
    modes = [job.values["mode"] for job in finetunes]
    assert (modes.count("target_only_fine_tuning"), modes.count("head_only_fine_tuning")) == (
        24,
        24,
    )
    # each target once for each seed, which is the fine-tune's own as well
    assert modes.count("target_only") == 3 * 2
    assert all(job.needs is None for job in finetunes if job.values["mode"] == "target_only")
    assert len(bases) == 24


def test_adding_a_value_keeps_every_earlier_job(data: Data) -> None:
    _, few = expand(grid({"target_data_pct": [0.5]}), "here", data)
    _, more = expand(grid({"target_data_pct": [0.1, 0.5], "lr": [0.0003, 0.1]}), "here", data)
    assert {job.id for job in few} <= {job.id for job in more}


@pytest.mark.parametrize(
    ("axes", "fixed", "differ"),
    [
        ({"target_data_pct": [0.5, 1.0]}, {"prefix": "p"}, "target_data_pct 0.5 there, 1.0 here"),
        ({"threads": [1, 2]}, {}, "threads 1 there, 2 here"),
        ({"jitter_std": [0.1, 0.2]}, {}, "jitter_std 0.1 there, 0.2 here"),
        ({"lr": [0.1, 0.2], "seed": [1, 2]}, {"prefix": "p"}, "seed 1 there, 2 here"),
    ],
)
def test_two_jobs_for_one_place_are_refused_by_what_differs(
    data: Data, axes: dict[str, Any], fixed: dict[str, Any], differ: str
) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"g\.json: job 1: writes to the same place as another job \(.*/fold0_ann\) with other"
            rf" options \(.*{differ}"
        ),
    ):
        expand(grid(axes, **fixed), "g.json", data)


def test_augmentation_settings_are_crossed_only_with_augmentation(data: Data) -> None:
    bases, finetunes = expand(
        grid({"use_augmentation": [False, True], "jitter_std": [0.1, 0.2]}), "here", data, ["ann"]
    )
    assert (
        [job.values["use_augmentation"] for job in bases]
        == [job.values["use_augmentation"] for job in finetunes]
        == [False, True, True]
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "a grid file is an object"),
        ({"gird": {}}, "did you mean grid"),
        ({"grid": []}, "objects of option names"),
        ({"grid": {"lr": []}}, "lr: a list of at least one value"),
        ({"grid": {"lr": [1]}, "fixed": {"lr": 1}}, "lr is in 'grid' and in 'fixed'"),
    ],
)
def test_a_grid_file_of_another_form_is_refused(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        read_grid(path)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"lrr": [1]}, "unknown option 'lrr', did you mean lr"),
        ({"lr": [0]}, "lr"),
        ({"participants": [["a", "b"]]}, "fixed"),
    ],
)
def test_options_of_a_grid_are_checked(data: Data, axes: dict[str, Any], says: str) -> None:
    fixed = {} if "participants" in axes else FIXED
    with pytest.raises(InputError, match=says):
        expand({"grid": axes, "fixed": fixed}, "g.json", data)


def test_a_number_that_a_program_computed_is_the_same_cell(data: Data) -> None:
    """Two grid files, of which one has 0.1 + 0.2 instead of 0.3."""
    there, here = (
        expand(grid({"target_data_pct": [third, 1.0], "lr": [third / 100]}), "here", data)
        for third in (0.1 + 0.2, 0.3)
    )
    for before, after in zip(there, here, strict=True):
        assert [(job.id, job.values) for job in before] == [(job.id, job.values) for job in after]


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text('{"grid": {"lr": [0.001], "lr": [0.01]}}')
    with pytest.raises(InputError, match=r"g\.json: the key 'lr' is given twice"):
        read_grid(path)
