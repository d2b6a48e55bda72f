"""Faults on three real hosts: every job ends done or told as failed, and nothing is left
running.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, missing_parts
from tests.trust import nodes

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, so that the undisturbed run is made once."""
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def hosts(shared: Path) -> Iterator[Hosts]:
    """Three hosts."""
    if reason := missing_parts():
        pytest.skip(f"needs real SSH hosts: {reason}")
    with Hosts(shared) as made:
        yield made


def test_a_head_killed_over_three_nodes_ends_in_the_bytes_of_an_undisturbed_run(
    shared: Path, hosts: Hosts
) -> None:
    assert nodes.head_killed(1, shared, hosts) >= 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nodes_cut_off_frozen_and_rebooted_lose_nothing(
    shared: Path, hosts: Hosts, seed: int
) -> None:
    nodes.node_harmed(seed, shared, hosts)


def test_rsync_killed_in_either_direction_loses_nothing(shared: Path, hosts: Hosts) -> None:
    nodes.rsync_killed(1, shared, hosts)


def test_a_passphrase_is_found_nowhere(shared: Path, hosts: Hosts) -> None:
    nodes.passphrase(shared, hosts)
