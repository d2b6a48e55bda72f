"""The three hosts, made once for a test module and put in order again before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, missing_parts


@pytest.fixture(scope="module")
def three_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts; use `hosts`, which resets them."""
    if reason := missing_parts():
        pytest.skip(f"needs real SSH hosts: {reason}")
    with Hosts(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def hosts(three_hosts: Hosts) -> Iterator[Hosts]:
    """The three hosts with links up, sshd running as at first, plain ssh_config and the right
    known_hosts.
    """
    yield three_hosts
    three_hosts.reset()


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder as the working folder of the test."""
    folder = tmp_path / "head project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
