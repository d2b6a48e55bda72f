"""--tensorboard: one curve a job, readable by TensorBoard itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts.projects import QUICK, flags, made

pytest.importorskip("tensorboard")


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def test_an_orchestrator_and_a_training_by_hand_write_the_curves_of_their_epochs(
    tmp_path: Path,
) -> None:
    project = made(tmp_path)
    project.generate({"n_base_participants": [1], "fold": [0]})
    project.run("run_two_phase_distributed.py", "--tensorboard")
    place = next(project.folder.glob("runs/*/tensorboard"))
    for record in project.folder.glob("base_models/*_metadata.json"):
        base = json.loads(record.read_text())
        found = curve(place / base["base_model_hash"], "loss/train")
        assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in found] == pytest.approx(base["losses"]["train"])
    for losses in project.folder.glob("experiments/*/*/losses.json"):
        job = losses.parent.relative_to(project.folder / "experiments")
        told = json.loads(losses.read_text())["val"]
        found = curve(place / job, "loss/val")
        assert [step for step, _ in found] == list(range(7))  # epoch 0 is the untouched base
        assert [value for _, value in found] == pytest.approx(told)

    project.run("train_base.py", *flags({**QUICK, "max_epochs": 4}), "--tensorboard")
    by_hand = max(project.folder.glob("runs/*/tensorboard/base_model"))
    assert [step for step, _ in curve(by_hand, "macro_f1/val")] == [1, 2, 3, 4]
