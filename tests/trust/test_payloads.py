"""Files that would run something if they were unpickled carelessly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust import payloads
from tests.trust.damage import published
from tests.trust.world import opened


def test_there_are_twenty_kinds_and_a_careless_load_does_run_them(tmp_path: Path) -> None:
    assert payloads.kinds() >= 20
    assert payloads.really_runs(tmp_path / "mark") > 40


@pytest.mark.parametrize(
    ("place", "every"),
    [("data", 1), ("base model", 1), ("checkpoint", 7), ("demo's wheel", 1), ("JSON", 1)],
)
def test_no_payload_runs(place: str, every: int, tmp_path: Path) -> None:
    with opened(tmp_path) as world:
        assert payloads.nothing_runs(published(world), place, tmp_path / "mark", every) > 10
