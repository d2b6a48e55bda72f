"""--tensorboard: one curve a job, readable by TensorBoard itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.cluster.curves import told
from tests.scripts.curves import check_curves, curve
from tests.scripts.projects import QUICK, flags, made

pytest.importorskip("tensorboard")


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_training_by_hand_shows_nothing_while_another_process_has_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tensorboard: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with told("base model", tensorboard=tensorboard) as progress:
        progress({"waits_for": "process 7"})
    assert list(tmp_path.iterdir()) == []


def test_an_orchestrator_and_a_training_by_hand_write_the_curves_of_their_epochs(
    tmp_path: Path,
) -> None:
    project = made(tmp_path)
    project.generate({"n_base_participants": [1], "fold": [0]})
    project.run("run_two_phase_distributed.py", "--tensorboard")
    assert check_curves(project.folder) == 2

    project.run("train_base.py", *flags({**QUICK, "max_epochs": 4}), "--tensorboard")
    by_hand = max(project.folder.glob("runs/*/tensorboard/base_model"))
    assert [step for step, _ in curve(by_hand, "macro_f1/val")] == [1, 2, 3, 4]
