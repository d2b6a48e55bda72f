"""Killed at random moments, the head, workers and trainings: nothing lost, nothing doubled, nothing
to clear up by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust import kills


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder, so that the undisturbed run is made once."""
    return tmp_path_factory.mktemp("kills")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_head_killed_again_and_again_ends_in_the_bytes_of_an_undisturbed_run(
    shared: Path, seed: int
) -> None:
    assert kills.head_killed(seed, shared) >= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_whose_workers_are_killed_goes_on_by_itself(shared: Path, seed: int) -> None:
    assert kills.worker_killed(seed, shared) >= 1


def test_no_job_is_given_to_a_worker_that_died_idle(tmp_path: Path) -> None:
    kills.idle_worker_killed(1, tmp_path)


def test_a_training_killed_by_hand_is_done_again_to_the_same_bytes(tmp_path: Path) -> None:
    assert kills.training_killed(1, tmp_path) >= 5


@pytest.mark.parametrize("seed", range(10))
def test_of_two_heads_exactly_one_runs(tmp_path: Path, seed: int) -> None:
    kills.two_heads(seed, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_of_two_equal_trainings_at_once_one_trains(tmp_path: Path, seed: int) -> None:
    kills.two_trainings(seed, tmp_path)
