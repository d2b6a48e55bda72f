"""Many tiny jobs, and planted secrets."""

from __future__ import annotations

from pathlib import Path

from tests.trust import endurance


def test_nothing_grows_over_two_thousand_jobs(tmp_path: Path) -> None:
    assert endurance.tiny_jobs(tmp_path) == 2_000


def test_planted_secrets_are_found_nowhere(tmp_path: Path) -> None:
    endurance.planted_secrets(1, tmp_path)
