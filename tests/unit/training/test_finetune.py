"""What a fine-tune takes from its base model, learns from, and publishes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common import artifacts
from common.data.dataset import Windows, open_split
from common.errors import BaseModelNotFound, Conflict, InputError
from common.jobs.score_names import SCORES, THRESHOLDED
from common.paths import Paths
from common.training import base as base_training
from common.training import finetune, loop, metrics
from common.use.model import open_model
from tests.scripts.made import PEOPLE, write_data, write_manifest

OPTIONS: dict[str, Any] = {
    "data_path": "data/made",
    "window_size": 40,
    "participants": list(PEOPLE),
    "lr": 0.01,
    "batch_size": 16,
    "max_epochs": 3,
}


def silent(state: object) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_data(tmp_path / "data/made", manifest=True)
    return tmp_path


@pytest.fixture
def base() -> str:
    base_hash: str = base_training.run(OPTIONS | {"n_base_participants": 2}, silent)[
        "base_model_hash"
    ]
    return base_hash


def fine_tune(
    base_hash: str | None, progress: Callable[[dict[str, Any]], None] = silent, **given: Any
) -> tuple[Path, dict[str, Any]]:
    options = {
        "base_model_hash": base_hash,
        "prefix": "p",
        "lr": 0.01,
        "batch_size": 8,
        "max_epochs": 3,
    } | given
    folder = Path(finetune.run(options, progress)["folder"])
    return folder, artifacts.open_experiment(folder).metrics


def test_what_is_not_given_comes_from_the_base_model(base: str) -> None:
    folder, record = fine_tune(base)
    config = json.loads((folder / "config.json").read_text())
    options = config["options"]
    assert (folder.name, config["base_participants"]) == ("fold0_ann", ["bob", "cyd"])
    assert (
        options["window_size"],
        options["n_base_participants"],
        options["data_path"],
        options["participants"],
    ) == (
        40,
        2,
        "data/made",
        list(PEOPLE),
    )
    assert (options["lr"], options["batch_size"]) == (0.01, 8)
    assert (record["base_model_hash"], record["fold"], record["target_participant"]) == (
        base,
        0,
        "ann",
    )


def test_a_fine_tunes_own_options_hold_for_it_and_not_for_its_base_model(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[loop.TrainingSettings] = []
    fit, network = loop.fit, finetune.network
    dropouts: list[float] = []

    def recorded_fit(model: Any, train: Any, selection: Any, settings: Any, **more: Any) -> Any:
        used.append(settings)
        return fit(model, train, selection, settings, **more)

    def recorded_network(options: Any, *more: Any) -> Any:
        dropouts.append(options.dropout)
        return network(options, *more)

    monkeypatch.setattr(loop, "fit", recorded_fit)
    monkeypatch.setattr(finetune, "network", recorded_network)
    own = {"lr": 0.05, "max_epochs": 2, "batch_size": 4, "use_augmentation": True, "dropout": 0.5}
    folder, _ = fine_tune(base, **{f"{name}_finetune": value for name, value in own.items()})
    (settings,) = used
    assert (settings.lr, settings.max_epochs, settings.batch_size) == (0.05, 2, 4)
    assert settings.augment is not None
    assert dropouts == [0.5]
    config = json.loads((folder / "config.json").read_text())["options"]
    assert (config["lr"], config["max_epochs"], config["dropout"]) == (0.01, 3, 0.0)


def test_a_base_model_of_an_earlier_version_lacks_the_newer_options(
    base: str, project: Path
) -> None:
    path = project / f"base_models/{base}_metadata.json"
    metadata = artifacts.read_sealed(path)
    del metadata["config"]["base_selection"]
    path.write_bytes(artifacts.to_json(artifacts.seal(metadata)))
    assert fine_tune(base)[0].is_dir()


def test_every_score_is_a_number_or_null_with_a_reason(base: str) -> None:
    _, record = fine_tune(base)
    names = [
        f"{who}{split}_{score}"
        for who in ("", "base_")
        for split in ("val", "test")
        for score in SCORES
    ]
    names += [
        f"{who}{split}_{score}_tuned"
        for who in ("", "base_")
        for split in ("val", "test")
        for score in THRESHOLDED
    ]
    for name in (*names, "threshold_tuned", "base_threshold_tuned"):
        assert (record[name] is None) == (name in record["undefined"]), name
    assert not record["undefined"]
    assert record["counts"] == {
        "train": {"windows": 24, "positives": 12, "hours": round(24 * 2 / 3600, 6)},
        "selection": {"windows": 12, "positives": 6, "hours": round(24 / 3600, 6)},
        "test": {"windows": 12, "positives": 6, "hours": round(24 / 3600, 6)},
    }


def test_epoch_0_is_the_untouched_base_and_a_candidate(base: str, project: Path) -> None:
    folder, record = fine_tune(base, lr=5.0, max_epochs=2)
    losses = json.loads((folder / "losses.json").read_text())
    assert losses["train"][0] is None
    assert losses["val"][0] == pytest.approx(record["base_val_loss"], abs=1e-6)
    assert record["best_epoch"] == 0
    assert record["test_loss"] == record["base_test_loss"]
    assert (folder / "best_model.pt").read_bytes() == (
        project / f"base_models/{base}.pt"
    ).read_bytes()


def test_predictions_list_every_window_of_val_and_test(base: str) -> None:
    folder, record = fine_tune(base)
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["val"] * 12 + ["test"] * 12
    assert [int(row["index"]) for row in rows] == list(range(12)) * 2
    assert all((row["session"], row["start_s"]) == ("", "") for row in rows)
    right = [
        (float(row["p_finetuned"]) >= 0.5) == (row["label"] == "1")
        for row in rows
        if row["split"] == "test"
    ]
    assert (sum(right) == 12) == (record["test_macro_f1"] == 1.0)


def test_full_fine_tuning_learns_from_everybody_but_the_rest(base: str) -> None:
    _, record = fine_tune(base, mode="full_fine_tuning", target_data_pct=0.5)
    assert record["counts"]["train"]["windows"] == 12
    assert record["counts"]["base_train"] == {"windows": 72, "positives": 36}


def test_head_only_leaves_all_but_the_head(base: str, project: Path) -> None:
    folder, record = fine_tune(base, mode="head_only_fine_tuning", max_epochs=1, target_val="none")
    one, two = (
        loop.deserialize(path.read_bytes())
        for path in (project / f"base_models/{base}.pt", folder / "best_model.pt")
    )
    changed = [name for name in one if not torch.equal(one[name], two[name])]
    assert changed
    assert len(changed) <= 2
    assert record["stopped_by"] == "max_epochs"


@pytest.mark.parametrize(
    "mode", ["target_only_fine_tuning", "full_fine_tuning", "target_only", "forest_target_only"]
)
def test_the_targets_test_windows_decide_its_scores_and_never_its_weights(
    base: str, project: Path, mode: str
) -> None:
    given: dict[str, Any] = {"mode": mode, "use_augmentation": not mode.startswith("forest")}
    start = base if mode.endswith("fine_tuning") else None
    given |= {} if start else OPTIONS | {"n_base_participants": 0}
    folder, record = fine_tune(start, **given)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = project / "data/made/ann_test.pt"
    x, y = torch.load(path)
    torch.save((-x, y), path)
    write_manifest(path.parent, PEOPLE)
    again, other = fine_tune(start, **given)
    assert again == folder
    for name in ("best_model.pt", "losses.json"):
        assert (folder / name).read_bytes() == made[name]
    assert other["test_loss"] != record["test_loss"]
    assert other["val_loss"] == record["val_loss"]
    (superseded,) = project.glob(f"superseded/**/{folder.name}*/metrics.json")  # it was stale
    assert superseded.read_bytes() == made["metrics.json"]


def test_by_hand_a_result_of_another_base_model_is_not_replaced(base: str) -> None:
    other = base_training.run(OPTIONS | {"n_base_participants": 2, "lr": 0.3}, silent)
    given: dict[str, Any] = {"_by_hand": True, "prefix": None}  # one name for both
    folder, _ = fine_tune(base, **given)
    made = (folder / "metrics.json").read_bytes()
    with pytest.raises(Conflict, match=f"started from base model {base}, not .* another --prefix"):
        fine_tune(other["base_model_hash"], **given)
    assert (folder / "metrics.json").read_bytes() == made
    fine_tune(other["base_model_hash"], **given, overwrite=True)
    assert (folder / "metrics.json").read_bytes() != made


def test_target_only_starts_from_nothing() -> None:
    _, record = fine_tune(None, **{**OPTIONS, "mode": "target_only"})
    assert record["base_model_hash"] is None
    assert record["base_test_macro_f1"] is None
    assert record["undefined"]["base_test_macro_f1"] == "no base model"


@pytest.mark.parametrize(("target_val", "windows"), [("full", 12), ("matched", 6), ("none", 0)])
def test_the_fraction_applies_to_val_only_when_matched(
    base: str, target_val: str, windows: int
) -> None:
    _, record = fine_tune(base, target_data_pct=0.5, target_val=target_val)
    assert record["counts"]["selection"]["windows"] == windows
    assert (record["val_macro_f1"] is None) == (windows == 0)
    if not windows:
        assert (record["epochs"], record["best_epoch"], record["stopped_by"]) == (
            3,
            3,
            "max_epochs",
        )


def test_what_contradicts_the_base_is_refused(base: str) -> None:
    for given, says in (
        ({"model": "cnn64"}, "model: cnn64 was given"),
        ({"seed": 3}, "--seed_finetune"),
        ({"fold": 2}, "cyd is among the base participants"),
    ):
        with pytest.raises(InputError, match=says):
            fine_tune(base, **given)
    with pytest.raises(BaseModelNotFound, match=r"^Base model not found: base_models/0{16}\.pt$"):
        fine_tune("0" * 16)
    fine_tune(base, n_base_participants="all")  # what the base model has, whatever that is


def test_another_target_of_a_base_that_left_two_out(base: str) -> None:
    folder, record = fine_tune(base, fold=3)
    assert (folder.name, record["target_participant"]) == ("fold3_dan", "dan")


@pytest.mark.parametrize(
    "other",
    [{"lr": 0.02}, {"prefix": "q"}],
    ids=["another configuration, the same folder", "another folder, the same checkpoint"],
)
def test_two_fine_tunes_never_write_to_one_place_at_a_time(
    base: str, project: Path, other: dict[str, Any]
) -> None:
    """The second waits and says for whom; it can be cancelled then."""
    waited: list[dict[str, Any]] = []

    def cancel(state: dict[str, Any]) -> None:
        waited.append(state)
        raise KeyboardInterrupt

    def second(state: object) -> None:
        if not waited:
            with pytest.raises(KeyboardInterrupt):
                fine_tune(base, progress=cancel, **other)

    fine_tune(base, progress=second)
    assert waited == [{"waits_for": f"process {os.getpid()}"}]
    assert list(project.glob("experiments/*/*")) == [project / "experiments/p/fold0_ann"]


def test_the_second_of_two_configurations_sees_what_the_first_published(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused at publication too, when the first's result came by another way than a training
    here.
    """
    monkeypatch.setattr(artifacts, "lock", lambda path, *, wait, owner: nullcontext())
    first: list[tuple[Path, dict[str, Any]]] = []

    def other(state: object) -> None:
        if not first:
            first.append(fine_tune(base, lr=0.02))

    with pytest.raises(
        Conflict,
        match=(
            r"experiments/p/fold0_ann holds results of another configuration \(lr 0\.02 there,"
            r" 0\.01 here\)"
        ),
    ):
        fine_tune(base, progress=other)
    assert first == [fine_tune(base, lr=0.02)]


def write_lists(project: Path, **starts: str) -> None:
    """{ann}_{split}_windows.csv: a window a second, so that half of each is in the next; `starts`
    by split in place of these.
    """
    for split, number in (("train", 24), ("val", 12), ("test", 12)):
        lines = [f"{row},monday,{starts.get(split, row)}" for row in range(number)]
        (project / f"data/made/ann_{split}_windows.csv").write_text(
            "\n".join(["index,session,start_s", *lines]) + "\n"
        )


def hours(record: dict[str, Any]) -> list[float | None]:
    """In seconds."""
    found = [record["counts"][name]["hours"] for name in ("train", "selection", "test")]
    return [None if value is None else round(value * 3600, 2) for value in found]


def test_hours_are_recorded_time_overlaps_counted_once(base: str, project: Path) -> None:
    write_lists(project)
    assert hours(fine_tune(base)[1]) == [25, 13, 13]
    assert hours(
        fine_tune(base, prefix="q", target_order="time", target_data_pct=0.5, target_val="none")[1]
    ) == [13, 0, 13]
    write_lists(project, train="", val="late", test="nan")
    assert hours(fine_tune(base, prefix="r")[1]) == [48, 24, 24]


def test_without_lists_hours_are_those_of_the_stride_and_without_dataset_json_unknown(
    base: str, project: Path
) -> None:
    path = project / "data/made/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stride_seconds": 0.5}))
    assert hours(fine_tune(base)[1]) == [12, 6, 6]
    path.unlink()
    assert hours(fine_tune(base, prefix="q")[1]) == [None, None, None]


def test_by_hand_nothing_starts_from_a_stale_base_and_a_worker_leaves_that_to_the_plan(
    base: str, project: Path
) -> None:
    """A node may hold older files of people whom its jobs do not read, or none at all."""
    write_data(project / "data/made", ["bob"], seed=1)
    write_manifest(project / "data/made", PEOPLE)
    says = (
        rf"^base model {base} is stale: data changed \(bob_test\.pt, bob_train\.pt, bob_val\.pt\):"
        r" run base training again$"
    )
    with pytest.raises(InputError, match=says):
        fine_tune(base, _by_hand=True)
    fine_tune(base)
    for path in (project / "data/made").glob("bob_*.pt"):
        path.unlink()
    fine_tune(base, prefix="q", _by_hand=True)


# -- which windows, weights and seeds a fine-tune has


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What each training was given, as it was then."""
    seen: list[SimpleNamespace] = []
    fit = loop.fit

    def recorded(model: Any, train: Any, selection: Any, settings: Any, **more: Any) -> Any:
        start = {name: value.clone() for name, value in model.state_dict().items()}
        sets = {"train": train, "selection": selection}
        seen.append(SimpleNamespace(**sets, settings=settings, start=start))
        return fit(model, train, selection, settings, **more)

    monkeypatch.setattr(loop, "fit", recorded)
    return seen


def contents(windows: Windows) -> set[bytes]:
    return {x.numpy().tobytes() for x, _ in windows.batches(1)}


def of(name: str, *splits: str) -> set[bytes]:
    return contents(Windows([open_split("data/made", name, split) for split in splits]))


def test_what_is_learnt_from_selects_and_tests_are_other_windows(
    base: str, given: list[SimpleNamespace]
) -> None:
    _, record = fine_tune(base, mode="full_fine_tuning")
    fine_tune(base, prefix="q", target_data_pct=0.5)
    full, alone = given
    both = of("bob", "train", "val") | of("cyd", "train", "val")
    assert contents(full.train) == of("ann", "train") | both
    assert contents(full.selection) == contents(alone.selection) == of("ann", "val")
    assert len(alone.train) == 12
    assert contents(alone.train) < of("ann", "train")
    assert record["counts"]["test"]["windows"] == 12


def test_a_fine_tune_starts_from_its_base_with_its_normalisation(
    given: list[SimpleNamespace], project: Path
) -> None:
    options = OPTIONS | {"n_base_participants": 2, "normalization": "train"}
    base_hash = base_training.run(options, silent)["base_model_hash"]
    folder, _ = fine_tune(base_hash)
    base_state = loop.deserialize((project / f"base_models/{base_hash}.pt").read_bytes())
    state = loop.deserialize((folder / "best_model.pt").read_bytes())
    assert all(torch.equal(given[-1].start[name], value) for name, value in base_state.items())
    assert torch.equal(state["mean"], base_state["mean"])
    assert torch.equal(state["sd"], base_state["sd"])
    assert not torch.equal(
        state["mean"], Windows([open_split("data/made", "ann", "train")]).normalization()[0]
    )


def test_a_fine_tunes_seed_key_is_that_of_its_seed_and_its_target(
    base: str, given: list[SimpleNamespace]
) -> None:
    for more in ({}, {"prefix": "q"}, {"seed_finetune": 1, "prefix": "r"}, {"fold": 3}):
        fine_tune(base, **{"max_epochs": 1, **more})
    one, same, seed, target = (each.settings.seed_key for each in given)
    assert one == same
    assert len({one, seed, target}) == 3


def test_a_fine_tune_has_its_own_patience_and_freezes_what_it_is_told(
    base: str, given: list[SimpleNamespace]
) -> None:
    fine_tune(base, early_stopping_patience_target=4, freeze=["convs.0.*"])
    (fit,) = given
    assert (fit.settings.patience, fit.settings.freeze) == (4, ("convs.0.*",))


def test_predictions_are_those_of_both_models_on_the_windows_that_they_name(base: str) -> None:
    """Of two targets in one process, each with its own scores of the untouched base."""
    for fold, target in ((0, "ann"), (3, "dan")):
        folder, record = fine_tune(base, fold=fold, target_val="matched", target_data_pct=0.5)
        opened = {split: open_split("data/made", target, split) for split in ("val", "test")}
        models = {
            "p_base": open_model(base, Paths.here()),
            "p_finetuned": open_model(str(folder), Paths.here()),
        }
        found: dict[str, list[tuple[int, float]]] = {"val": [], "test": []}
        with (folder / "predictions.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                split = opened[row["split"]]
                window = split.x[int(row["index"])].numpy()[None]
                assert int(row["label"]) == int(split.y[int(row["index"])])
                for name, model in models.items():
                    assert row[name] == f"{model.probabilities([window])[0]:.9g}"
                found[row["split"]].append((int(row["label"]), float(row["p_finetuned"])))
        assert (len(found["val"]), len(found["test"])) == (6, 12)
        assert record["base_test_loss"] != record["test_loss"]


def test_the_threshold_is_tuned_on_validation_windows(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    tuned = metrics.tuned_threshold

    def recorded(y: Any, p: Any) -> float | None:
        seen.append(y.tolist())
        return tuned(y, p)

    x, y = torch.load("data/made/ann_val.pt", weights_only=True)
    torch.save((x, 1 - y), "data/made/ann_val.pt")  # other labels than those of the test
    write_manifest(Path("data/made"), PEOPLE)
    monkeypatch.setattr(metrics, "tuned_threshold", recorded)
    fine_tune(base)
    assert seen == [(1 - y).tolist()] * 2
