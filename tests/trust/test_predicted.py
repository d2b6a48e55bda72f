"""predict.py on hostile recordings and results."""

from __future__ import annotations

from pathlib import Path

from tests.trust import predicted


def test_recordings_with_hostile_names(tmp_path: Path) -> None:
    assert predicted.hostile_recordings(1, tmp_path, 8) == 8


def test_damaged_and_lying_results(tmp_path: Path) -> None:
    assert predicted.damaged_results(1, tmp_path, 60) == 60
