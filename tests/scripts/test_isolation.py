"""The target's data never reach its base model, and its test windows reach no model at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import train_base
import train_finetune
from tests.scripts.projects import QUICK, Project, made

MODES = ("target_only_fine_tuning", "full_fine_tuning", "head_only_fine_tuning", "target_only")
BASE = QUICK | {"max_epochs": 3, "normalization": "train", "use_augmentation": True}


def silent(state: Mapping[str, Any]) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    torch.set_num_threads(1)
    project = made(tmp_path)
    monkeypatch.chdir(project.folder)
    return project


def poison(name: str, *splits: str) -> None:
    """Other samples, a thousand times as large, and the opposite labels."""
    for split in splits:
        path = Path(f"data/made/{name}_{split}.pt")
        x, y = torch.load(path, weights_only=True)
        torch.save(
            (1000 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), 1 - y), path
        )


def weights_of_base(**changes: object) -> bytes:
    """Train anew; the weights."""
    shutil.rmtree("base_models", ignore_errors=True)
    return Path(
        f"base_models/{train_base.run(BASE | changes, silent)['base_model_hash']}.pt"
    ).read_bytes()


@pytest.mark.parametrize("fold", range(4))
def test_whatever_stands_in_the_targets_files_its_base_model_is_the_same(
    project: Project, fold: int
) -> None:
    target = QUICK["participants"][fold]
    before = weights_of_base(fold=fold)
    poison(target, "train", "val", "test")
    assert weights_of_base(fold=fold) == before
    for path in Path("data/made").glob(f"{target}_*"):
        path.unlink()
    assert weights_of_base(fold=fold) == before


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_poison_would_have_shown(project: Project, split: str) -> None:
    before = weights_of_base(fold=0)
    poison("bob", split)
    assert weights_of_base(fold=0) != before


def fine_tune(monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any]) -> dict[str, bytes]:
    """Fine-tune anew, with random numbers that do not depend on the data (their seed is the
    experiment's key, of which the data are a part).
    """
    monkeypatch.setattr("common.jobs.identity.experiment_key", lambda *_: "0123456789abcdef")
    shutil.rmtree("experiments", ignore_errors=True)
    folder = Path(train_finetune.run(options, silent)["folder"])
    return {
        name: (folder / name).read_bytes()
        for name in ("best_model.pt", "losses.json", "predictions.csv")
    }


@pytest.mark.parametrize("mode", MODES)
def test_the_targets_test_windows_shape_no_model(
    project: Project, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = (
        {}
        if mode == "target_only"
        else {"base_model_hash": train_base.run(BASE, silent)["base_model_hash"]}
    )
    options = BASE | base | {"mode": mode, "target_data_pct": 0.5, "prefix": "p"}
    before = fine_tune(monkeypatch, options)
    poison("ann", "test")
    after = fine_tune(monkeypatch, options)
    assert [name for name in before if after[name] != before[name]] == ["predictions.csv"]


def test_a_fine_tune_learns_from_its_fraction_only(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later half of the training windows is left alone, whatever stands there."""
    base = train_base.run(BASE, silent)["base_model_hash"]
    options = BASE | {
        "base_model_hash": base,
        "target_data_pct": 0.5,
        "prefix": "p",
        "target_order": "time",
    }
    before = fine_tune(monkeypatch, options)
    x, y = torch.load("data/made/ann_train.pt", weights_only=True)
    x[len(x) // 2 :] = 1000.0
    torch.save((x, y), "data/made/ann_train.pt")
    assert fine_tune(monkeypatch, options) == before
    x[: len(x) // 2] = 1000.0
    torch.save((x, y), "data/made/ann_train.pt")
    assert fine_tune(monkeypatch, options) != before
