"""What base training publishes, and when it trains nothing."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from common import artifacts
from common.data.dataset import Windows, open_split
from common.errors import InputError, TrainingError
from common.jobs import identity
from common.paths import Paths
from common.training import base, loop, networks
from common.training.setup import CheckpointFile
from tests.scripts.made import PEOPLE, write_data, write_manifest

OPTIONS: dict[str, Any] = {
    "data_path": "data/made",
    "window_size": 40,
    "participants": list(PEOPLE),
    "lr": 0.01,
    "batch_size": 16,
    "max_epochs": 4,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_data(tmp_path / "data/made")
    return tmp_path


def train(**changes: Any) -> tuple[dict[str, Any], list[int]]:
    """The result, and the epochs that were seen."""
    epochs: list[int] = []
    return base.run(OPTIONS | changes, lambda state: epochs.append(state["epoch"])), epochs


def test_what_is_published_tells_how_it_was_made(project: Path) -> None:
    result, epochs = train(fold=1, n_base_participants=2)
    assert epochs == [1, 2, 3, 4]
    metadata = artifacts.open_base_model(Paths(project), result["base_model_hash"]).metadata
    assert (metadata["base_participants"], metadata["target_participant"]) == (
        ["ann", "cyd"],
        "bob",
    )
    assert (
        metadata["provenance"]["trained_as"]
        == metadata["base_model_hash"]
        == result["base_model_hash"]
    )
    assert metadata["counts"] == {
        "train": {"windows": 72, "positives": 36},
        "selection": {"windows": 24, "positives": 12},
    }
    assert sorted(metadata["data_fingerprints"]) == sorted(
        f"{name}_{split}.pt" for name in ("ann", "cyd") for split in ("train", "val", "test")
    )
    assert [len(metadata["losses"][name]) for name in ("train", "val", "val_macro_f1")] == [4, 4, 4]
    assert (
        metadata["stopped_by"],
        metadata["epochs"],
        metadata["updates"],
        metadata["channels"],
    ) == ("max_epochs", 4, 20, 2)
    assert {
        "versions",
        "device",
        "host",
        "started",
        "finished",
        "train_seconds",
        "threads",
        "compile",
        "checksum",
    } <= metadata["provenance"].keys()
    assert 0 <= metadata["metrics"]["macro_f1"] <= 1


def test_the_same_again_trains_nothing() -> None:
    train()
    result, epochs = train()
    assert (result["reused"], epochs) == ("already published", [])


def test_a_base_model_that_another_process_trains_is_waited_for_and_taken(project: Path) -> None:
    first, _ = train()
    key = artifacts.read_base_metadata(Paths(project), first["base_model_hash"])["training_key"]
    told: list[dict[str, Any]] = []
    with ExitStack() as other:
        other.enter_context(artifacts.training_lock(Paths(project), key))

        def progress(state: dict[str, Any]) -> None:
            told.append(state)
            other.close()  # it has ended

        result = base.run(OPTIONS, progress)
    assert told == [{"waits_for": f"process {os.getpid()}"}]
    assert result["reused"] == "already published"


def test_an_equal_training_under_another_hash_is_copied() -> None:
    first, _ = train(fold=1, n_base_participants=1)
    second, epochs = train(fold=2, n_base_participants=1)
    assert epochs == []
    assert second["reused"] == f"copied from {first['base_model_hash']}, an equal training"
    assert first["base_model_hash"] != second["base_model_hash"]


def test_retrain_copies_an_equal_training_that_todays_code_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _ = train(fold=1, n_base_participants=1)
    second, epochs = train(fold=2, n_base_participants=1, _retrain=True)
    assert (second["reused"], epochs) == (
        f"copied from {first['base_model_hash']}, an equal training",
        [],
    )
    code = dict(identity.code_fingerprints()) | {"training/networks.py": "0"}
    monkeypatch.setattr(identity, "code_fingerprints", lambda: code)
    assert len(train(fold=2, n_base_participants=1, _retrain=True)[1]) == 4
    again, epochs = train(fold=1, n_base_participants=1, _retrain=True)
    assert (again["reused"], epochs) == (
        f"copied from {second['base_model_hash']}, an equal training",
        [],
    )


def test_a_damaged_copy_is_no_source(project: Path) -> None:
    first, _ = train(fold=1, n_base_participants=1)
    (project / f"base_models/{first['base_model_hash']}.pt").write_bytes(b"x")
    result, epochs = train(fold=1, n_base_participants=1)
    assert result == {"base_model_hash": first["base_model_hash"], "resumed": False}
    assert len(epochs) == 4
    assert (
        project / f"superseded/base_models/{first['base_model_hash']}.pt.0"
    ).read_bytes() == b"x"


def test_a_failing_training_leaves_what_was_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = train(n_base_participants=1)
    paths = Paths(project)
    before = artifacts.open_base_model(paths, result["base_model_hash"])
    x, y = torch.load("data/made/bob_train.pt", weights_only=True)
    torch.save((x * float("inf"), y), "data/made/bob_train.pt")
    with pytest.raises(InputError, match="NaN or infinite"):
        train(n_base_participants=1)
    torch.save((x * 2, y), "data/made/bob_train.pt")

    def diverging(*_: object, **__: object) -> None:
        raise TrainingError("the training loss became nan in epoch 1")

    monkeypatch.setattr(base.loop, "fit", diverging)
    with pytest.raises(TrainingError, match="in epoch 1"):
        train(n_base_participants=1)
    assert artifacts.open_base_model(paths, result["base_model_hash"]) == before
    assert not (project / "superseded").exists()


@pytest.mark.parametrize(
    "whole", [True, False], ids=["a whole data set", "files before their dataset.json"]
)
def test_a_data_set_replaced_during_training_is_named_as_changed(
    project: Path, whole: bool
) -> None:
    write_manifest(project / "data/made", PEOPLE)

    def replaced(state: object) -> None:
        write_data(project / "data/made", seed=1, manifest=whole)

    with pytest.raises(
        TrainingError,
        match="the data changed while it was trained: nothing is published, run it again",
    ):
        base.run(OPTIONS, replaced)
    assert not (project / "base_models").exists() or not list((project / "base_models").iterdir())


def test_a_training_whose_weights_are_whole_but_unannounced_is_done_again(project: Path) -> None:
    result, _ = train()
    (project / f"base_models/{result['base_model_hash']}_metadata.json").unlink()
    _, epochs = train()
    assert len(epochs) == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_is_told_as_resumed_only_when_it_went_on(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A checkpoint of another number of threads is whole, but not of this training."""
    plain = base.loop_settings
    monkeypatch.setattr(
        base,
        "loop_settings",
        lambda *args, **changes: plain(*args, checkpoint_seconds=0.0, **changes),
    )

    def cut_short(state: dict[str, Any]) -> None:
        if state["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base.run(OPTIONS, cut_short)
    result, epochs = train(threads=threads)
    torch.set_num_threads(1)
    assert (result["resumed"], epochs[0]) == ((True, 3) if threads == 1 else (False, 1))


def test_base_selection_val_learns_from_train_alone_and_needs_no_test_file(project: Path) -> None:
    (project / "data/made/ann_test.pt").unlink()
    with pytest.raises(InputError, match="ann_test"):
        train(fold=1, n_base_participants=2)
    result, _ = train(fold=1, n_base_participants=2, base_selection="val")
    metadata = artifacts.open_base_model(Paths(project), result["base_model_hash"]).metadata
    assert metadata["counts"] == {
        "train": {"windows": 48, "positives": 24},
        "selection": {"windows": 24, "positives": 12},
    }
    assert sorted(metadata["data_fingerprints"]) == sorted(
        f"{name}_{split}.pt" for name in ("ann", "cyd") for split in ("train", "val")
    )


def test_the_window_size_is_that_of_dataset_json_unless_given(project: Path) -> None:
    write_data(project / "data/made", manifest=True)
    options = {name: value for name, value in OPTIONS.items() if name != "window_size"}
    given, taken = (base.run(values, lambda _: None) for values in (OPTIONS, options))
    assert taken["reused"] == "already published"
    assert given["base_model_hash"] == taken["base_model_hash"]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[loop.TrainingSettings]:
    """The settings of each training."""
    seen: list[loop.TrainingSettings] = []
    fit = loop.fit

    def recorded(model: Any, train: Any, val: Any, settings: Any, **more: Any) -> Any:
        seen.append(settings)
        return fit(model, train, val, settings, **more)

    monkeypatch.setattr(loop, "fit", recorded)
    return seen


def test_every_option_of_the_loop_reaches_it(given: list[loop.TrainingSettings]) -> None:
    options = {
        "batch_size": 7,
        "lr": 0.02,
        "max_epochs": 2,
        "early_stopping_metric": "macro_f1",
        "pos_weight": 3.0,
        "min_steps_per_epoch": 12,
        "weight_decay": 0.1,
    }
    train(**options, early_stopping_patience=9, use_augmentation=True, jitter_std=0.5)
    (settings,) = given
    named = {name.replace("early_stopping_", ""): value for name, value in options.items()}
    assert {name: getattr(settings, name) for name in named} == named
    assert (settings.patience, settings.augment.jitter_std) == (9, 0.5)


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = artifacts.open_base_model(Paths.here(), result["base_model_hash"])
    found: dict[str, torch.Tensor] = loop.deserialize(model.weights)
    return found


def test_equal_trainings_under_other_hashes_give_equal_weights(
    project: Path, given: list[loop.TrainingSettings]
) -> None:
    made = []
    for fold in (1, 2):
        result, _ = train(fold=fold, n_base_participants=1)
        made.append(weights(result))
        shutil.rmtree(project / "base_models")
    assert len(given) == 2
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_another_seed_begins_with_other_weights() -> None:
    one, other = (weights(train(seed=seed, lr=1e-12, max_epochs=1)[0]) for seed in (1, 2))
    assert not torch.allclose(one["convs.0.weight"], other["convs.0.weight"])


def test_normalisation_is_that_of_the_windows_that_are_learnt_from() -> None:
    state = weights(train(fold=1, n_base_participants=2, normalization="train")[0])
    learnt = [
        open_split("data/made", name, split)
        for name in ("ann", "cyd")
        for split in ("train", "val")
    ]
    for found, expected in zip(
        (state["mean"], state["sd"]), Windows(learnt).normalization(), strict=True
    ):
        assert torch.equal(found, expected)


def test_initial_weights_never_bring_a_normalisation(project: Path) -> None:
    state = networks.build_network("test", channels=2).state_dict()
    torch.save(state | {"mean": torch.ones(2), "sd": torch.full((2,), 9.0)}, "start.pt")
    result, _ = train(init_weights="start.pt", max_epochs=1)
    assert weights(result)["mean"].tolist() == [0, 0]
    metadata = artifacts.read_base_metadata(Paths.here(), result["base_model_hash"])
    assert metadata["init_weights"]["not_taken"] == ["mean", "sd"]


def test_a_checkpoint_of_changed_data_or_with_other_bytes_is_none(project: Path) -> None:
    def changed() -> None:
        raise TrainingError("the data changed")

    with pytest.raises(TrainingError, match="the data changed"):
        CheckpointFile(Paths(project), "key", changed).save(b"state")
    kept = CheckpointFile(Paths(project), "key")
    assert kept.load() is None
    kept.save(b"state")
    assert kept.load() == b"state"
    (path,) = (project / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes() + b"x")
    assert kept.load() is None


def test_half_a_checkpoint_of_a_killed_worker_is_deleted_by_the_next_training(
    project: Path,
) -> None:
    result, _ = train(fold=1, n_base_participants=2)
    metadata = artifacts.read_base_metadata(Paths(project), result["base_model_hash"])
    folder = project / "checkpoints"
    folder.mkdir()
    (folder / f".writing.{metadata['training_key']}-0123abcd.ckpt.x").touch()
    (folder / ".writing.anothers-0123abcd.ckpt.x").touch()
    artifacts.supersede_base_model(Paths(project), result["base_model_hash"])
    train(fold=1, n_base_participants=2)
    assert [path.name for path in folder.iterdir()] == [".writing.anothers-0123abcd.ckpt.x"]
