"""Whole runs over three real SSH hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import TWO_PHASE, Project, opened, write_companions

pytestmark = pytest.mark.root
LOCAL = [{"host": "localhost", "cpu_slots": 2}]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "the head's project") as made:
        yield made


def test_a_run_over_three_nodes_is_byte_identical_to_a_local_one(hosts: Hosts, project: Project, tmp_path: Path) -> None:
    write_companions(project.folder / "data/tiny")
    project.grid()
    with opened(tmp_path / "local", data=False) as local:
        (local.folder / "data").symlink_to(project.folder / "data")
        local.grid()
        local.config(LOCAL)
        local.run(TWO_PHASE)
    project.config(hosts.servers(), ssh_config=str(hosts.ssh_config))
    said = project.run(TWO_PHASE).said
    assert project.results() == local.results()
    assert len(project.results()) > 50
    assert {event["node"] for event in project.found(event="done")} == {"h1", "h2", "h3"}, said
    for name in ("h1", "h2", "h3"):
        assert hosts.user_processes(name) == {}
