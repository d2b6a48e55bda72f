"""Every call to the disk failing once, every state that a crash leaves: published whole, or
absent.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.trust import disks
from tests.trust.disks import PUBLISHES, Training


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> list[Training]:
    """A base training and a fine-tune, to be copied."""
    return disks.trainings(tmp_path_factory.mktemp("trainings"))


@pytest.mark.parametrize("name", PUBLISHES)
def test_a_crash_between_any_two_operations_leaves_it_whole_or_absent(
    name: str, tmp_path: Path
) -> None:
    assert disks.every_crash(name, tmp_path) > 5


@pytest.mark.parametrize("name", PUBLISHES)
def test_a_call_that_fails_names_its_path_and_publishes_nothing_by_half(
    name: str, tmp_path: Path
) -> None:
    assert disks.every_failure(name, tmp_path) > 5


@pytest.mark.parametrize(
    ("kind", "errors"),
    [(0, disks.ERRORS), (1, (errno.ENOSPC,))],
    ids=["base training", "fine-tune"],
)
def test_a_training_in_which_a_call_fails_is_done_again(
    kind: int, errors: tuple[int, ...], trainings: list[Training], tmp_path: Path
) -> None:
    assert disks.every_failure_of_a_training(trainings[kind], tmp_path, errors) > 20


@pytest.mark.parametrize(("kind", "every"), [(0, 5), (1, 40)], ids=["base training", "fine-tune"])
def test_a_training_that_a_crash_cut_short_is_done_again_to_the_same_bytes(
    kind: int, every: int, trainings: list[Training], tmp_path: Path
) -> None:
    assert disks.every_crash_of_a_training(trainings[kind], tmp_path, every=every) > 50
