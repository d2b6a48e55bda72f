"""Every file name comes from one place, and lies in the project folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.paths import Paths, experiment_name, split_file, windows_file


def test_the_documented_names() -> None:
    paths = Paths(Path("/p"))
    assert paths.base_weights("ab") == Path("/p/base_models/ab.pt")
    assert paths.base_metadata("ab") == Path("/p/base_models/ab_metadata.json")
    assert paths.experiment("pre", experiment_name(3, "ann")) == Path(
        "/p/experiments/pre/fold3_ann"
    )
    assert (split_file("ann", "val"), windows_file("ann", "val")) == (
        "ann_val.pt",
        "ann_val_windows.csv",
    )


def test_the_project_folder_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.here() == Paths(tmp_path)


def test_all_that_is_written_lies_below_the_project_folder() -> None:
    paths = Paths(Path("/p"))
    written = [
        paths.base_models,
        paths.experiments,
        paths.superseded,
        paths.runs,
        paths.incoming,
        paths.orchestrator_lock,
        paths.sha256_cache,
        paths.training_lock("k"),
        paths.checkpoint("k"),
        paths.run("r"),
    ]
    assert all(path.is_relative_to("/p") for path in written)
    assert len(set(written)) == len(written)


def test_a_data_path_may_be_absolute() -> None:
    assert Paths(Path("/p")).data("/elsewhere/data") == Path("/elsewhere/data")


def test_every_data_path_has_a_lock_of_its_own_whose_name_a_file_system_takes() -> None:
    paths = Paths(Path("/p"))
    assert paths.data_lock("data/x") == Path("/p/locks/data.data%2Fx.lock")
    cyrillic = "data/данные_исследования_курения/окна_60_секунд_шаг_"
    locks = [paths.data_lock(f"{cyrillic}{step}") for step in (30, 60)]
    locks += [paths.data_lock("data/" + "x" * 150 + f"/{step}") for step in (30, 60, "y" * 200)]
    assert len(set(locks)) == len(locks)
    assert all(lock.parent == paths.root / "locks" for lock in locks)
    assert max(len(lock.name) for lock in locks) < 255
