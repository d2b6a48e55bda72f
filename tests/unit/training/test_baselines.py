"""Features of windows against a plain reference; what the baselines learn, read and keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import artifacts
from common.data.dataset import Windows, open_split
from common.errors import InputError
from common.jobs import identity
from common.options import FinetuneOptions
from common.paths import Paths
from common.training import baselines, finetune, loop
from common.use.model import open_model
from tests.scripts.made import PEOPLE, write_data

OPTIONS: dict[str, Any] = {
    "data_path": "data/made",
    "window_size": 40,
    "participants": list(PEOPLE),
    "prefix": "p",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data/made", manifest=True)
    return tmp_path


def published(**given: Any) -> artifacts.Experiment:
    done = finetune.run(OPTIONS | given, lambda state: None)
    return artifacts.open_experiment(Path(done["folder"]))


def reference(window: np.ndarray[Any, Any]) -> list[float]:
    """The documented features of one window [channels, samples], in plain steps."""
    rows = [list(map(float, channel)) for channel in window]
    n = len(rows[0])
    means = [sum(row) / n for row in rows]
    sds = [(sum((v - m) ** 2 for v in row) / n) ** 0.5 for row, m in zip(rows, means, strict=True)]
    quartiles = [[float(np.percentile(row, q)) for row in rows] for q in (25, 50, 75)]
    energies = [sum(v * v for v in row) / n for row in rows]
    dominant = []
    for row, m, sd in zip(rows, means, sds, strict=True):
        power = [
            abs(sum((v - m) * np.exp(-2j * np.pi * k * t / n) for t, v in enumerate(row)))
            for k in range(1, n // 2 + 1)
        ]
        dominant.append((1 + int(np.argmax(power))) / n if sd else 0.0)
    pairs = [(a, b) for a in range(len(rows)) for b in range(a + 1, len(rows))]
    correlations = [
        float(np.corrcoef(rows[a], rows[b])[0, 1]) if sds[a] and sds[b] else 0.0 for a, b in pairs
    ]
    spread = [value for quartile in quartiles for value in quartile]
    return [*means, *sds, *spread, *energies, *dominant, *correlations]


@pytest.mark.parametrize("samples", [40, 41])
def test_features_are_those_of_a_plain_reference(samples: int) -> None:
    x = np.random.default_rng(0).normal(1.0, 2.0, (3, 3, samples)).astype(np.float32)
    x[1, 2] = 5.0  # a constant channel
    x[2, 0] = np.sin(2 * np.pi * 0.25 * np.arange(samples))
    found = baselines.window_features(x)
    assert found.shape == (3, 7 * 3 + 3)
    np.testing.assert_allclose(found, [reference(window) for window in x], rtol=1e-6, atol=1e-9)
    assert abs(found[2, 6 * 3] - 0.25) < 0.02
    assert baselines.window_features(x[:, :1]).shape == (3, 7)


def test_majority_gives_the_share_of_positives_of_the_selected_windows() -> None:
    folder = Path("data/few")
    write_data(folder)
    x, y = torch.load(folder / "ann_train.pt")
    y[:] = 0
    y[:6] = 1  # of 24
    torch.save((x, y), folder / "ann_train.pt")
    found = published(mode="majority", data_path="data/few", target_data_pct=0.5)
    rows = found.contents["predictions.csv"].decode().splitlines()[1:]
    assert {tuple(row.split(",")[-2:]) for row in rows} == {("", "0.25")}
    assert found.metrics["counts"]["train"] == {"windows": 12, "positives": 3, "hours": None}
    assert loop.deserialize(found.contents["best_model.pt"])["positive"].tolist() == [0.25]
    assert (found.metrics["test_recall"], found.metrics["test_roc_auc"]) == (0.0, 0.5)
    losses = -(np.log(0.25) + np.log(0.75)) / 2
    assert found.metrics["test_loss"] == pytest.approx(losses)


def test_only_one_class_to_learn_from_gives_a_finite_loss() -> None:
    folder = Path("data/few")
    write_data(folder)
    x, y = torch.load(folder / "ann_train.pt")
    torch.save((x, torch.ones_like(y)), folder / "ann_train.pt")
    for mode in ("majority", "forest_target_only"):
        found = published(mode=mode, data_path="data/few", prefix=mode)
        assert found.metrics["test_recall"] == 1.0
        assert found.metrics["test_loss"] == pytest.approx(-np.log(1e-7) / 2, rel=1e-6)


def test_a_forest_of_base_participants_never_reads_the_targets_training_windows() -> None:
    options = FinetuneOptions.parse(
        OPTIONS | {"mode": "forest_base", "n_base_participants": 2}, "here"
    )
    base = [f"{name}_{split}.pt" for name in ("bob", "cyd") for split in ("train", "val")]
    files = ["ann_val.pt", "ann_test.pt", *base]
    assert identity.finetune_data_files(options, ()) == files
    Path("data/made/ann_train.pt").unlink()
    found = published(mode="forest_base", n_base_participants=2)
    assert list(found.config["data_fingerprints"]) == sorted(files)
    assert found.config["base_participants"] == ["bob", "cyd"]
    assert found.metrics["counts"]["train"]["windows"] == 0
    assert found.metrics["counts"]["base_train"] == {"windows": 72, "positives": 36}
    assert found.metrics["test_macro_f1"] > 0.9


def test_the_forests_file_is_tensors_that_give_its_probabilities() -> None:
    found = published(mode="forest_target_only")
    state = {n: v.numpy() for n, v in loop.deserialize(found.contents["best_model.pt"]).items()}
    folder = Paths.here().data("data/made")
    x = baselines.features(Windows([open_split(folder, "ann", "test")])).astype(np.float32)
    votes = np.zeros(len(x))
    trees = len(state["start"]) - 1
    for first in state["start"][:-1]:
        for number, row in enumerate(x):
            node = first
            while state["left"][node] >= 0:
                goes_left = row[state["feature"][node]] <= state["threshold"][node]
                node = first + state["left" if goes_left else "right"][node]
            votes[number] += state["positive"][node] / trees
    rows = found.contents["predictions.csv"].decode().splitlines()
    written = [float(row.split(",")[-1]) for row in rows if row.startswith("test")]
    np.testing.assert_allclose(written, votes, rtol=1e-8)


@pytest.mark.parametrize("mode", ["majority", "forest_target_only", "forest_base"])
def test_a_baseline_is_the_same_twice_and_is_refused_where_a_network_is_needed(mode: str) -> None:
    one, two = (published(mode=mode, prefix=prefix) for prefix in ("p", "q"))
    same = ("best_model.pt", "predictions.csv", "losses.json")
    assert [one.contents[name] for name in same] == [two.contents[name] for name in same]
    assert json.loads(one.contents["losses.json"]) == {"train": [], "val": [], "val_macro_f1": []}
    with pytest.raises(InputError, match=f"mode {mode} is a baseline for the report") as refused:
        open_model(str(one.folder), Paths.here())
    assert "\n" not in str(refused.value)


def test_options_of_networks_do_not_enter_a_baseline() -> None:
    plain, other = (
        FinetuneOptions.parse(
            OPTIONS | {"mode": "forest_base", "n_base_participants": 2} | more, ""
        )
        for more in ({}, {"lr": 0.5, "use_augmentation": True, "max_epochs": 3, "dropout": 0.5})
    )
    assert identity.experiment_fields(plain) == identity.experiment_fields(other)
    assert identity.experiment_fields(plain)["n_base_participants"] == 2
