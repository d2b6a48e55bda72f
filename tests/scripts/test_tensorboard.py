"""--tensorboard: one curve a job, readable by TensorBoard itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.cluster.curves import Curves, told
from common.paths import Paths
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


def test_of_jobs_that_do_not_run_no_file_stays_open(tmp_path: Path) -> None:
    curves = Curves(Paths(tmp_path))

    def files(*running: tuple[str, int]) -> int:
        """Open ones, when these jobs run and have come to these epochs."""
        jobs = [{"job": job, "epoch": epoch, "train_loss": 0.5} for job, epoch in running]
        curves.show({"run": "r", "nodes": [{"running": jobs}]})
        opened = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        return sum(path.startswith(str(tmp_path)) for path in opened)

    for number in range(5):
        assert files((f"p/fold{number}", 1), ("p/long", number)) == 2
    assert files(("p/fold0", 2)) == 1  # it runs again
    assert files() == 0
    curves.finish(())
    assert curve(tmp_path / "runs/r/tensorboard/p/fold0", "loss/train") == [(1, 0.5), (2, 0.5)]
    assert len(curve(tmp_path / "runs/r/tensorboard/p/long", "loss/train")) == 5


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
