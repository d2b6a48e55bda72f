"""Damaged files are refused before they are loaded, and made anew; data changed unseen are
noticed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust import damage


def test_damaged_artifacts_are_refused_unloaded_and_made_anew(tmp_path: Path) -> None:
    assert damage.damaged_artifacts(1, tmp_path, 400) == 400


def test_a_damaged_base_model_comes_back_from_an_equal_training(tmp_path: Path) -> None:
    damage.repaired_from_a_copy(1, tmp_path)


def test_damaged_checkpoints_are_left_aside_unloaded(tmp_path: Path) -> None:
    assert damage.damaged_checkpoints(1, tmp_path) == 50


def test_a_damaged_cache_is_slower_and_never_wrong(tmp_path: Path) -> None:
    assert damage.damaged_cache(1, tmp_path) == 50


def test_damaged_data_are_refused_by_name(tmp_path: Path) -> None:
    assert damage.damaged_data(1, tmp_path, 20) == 20


@pytest.mark.parametrize("seed", range(3))
def test_data_changed_under_the_same_size_and_time_make_results_stale_by_name(
    seed: int, tmp_path: Path
) -> None:
    damage.changed_before(seed, tmp_path)


@pytest.mark.parametrize("kind", ["base", "finetune"])
@pytest.mark.parametrize("seed", range(6))
def test_data_changed_while_they_are_trained_on_publish_nothing(
    kind: str, seed: int, tmp_path: Path
) -> None:
    damage.changed_during(seed, tmp_path, kind)
