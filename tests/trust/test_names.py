"""Hostile names and configurations: literal, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trust import names


@pytest.mark.parametrize(
    ("trial", "examples"),
    [
        (names.hostile_job_files, 120),
        (names.hostile_grids, 120),
        (names.hostile_clusters, 120),
        (names.hostile_flags, 120),
        (names.literal_names, 20),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_hostile_names_and_configurations(
    trial: Callable[[int, Path, int], int], examples: int, tmp_path: Path
) -> None:
    assert trial(1, tmp_path, examples) >= examples


@pytest.mark.parametrize("host", ["../../outside", "..", ".", "a/b", "/tmp"])
def test_a_host_whose_name_would_leave_the_project_folder_is_refused(
    host: str, tmp_path: Path
) -> None:
    with names.sandbox(tmp_path, "box") as box:
        box.world.config([{"host": host}])
        code, _, said = box.call("run_two_phase_distributed.py", ["--dry-run"])
        assert code == 2
        assert "servers[0].host" in said
