"""Whole runs over three real SSH hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import (
    OWN,
    TWO_PHASE,
    Project,
    opened,
    own_jobs,
    write_companions,
    write_data,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.root
LOCAL = [{"host": "localhost", "cpu_slots": 2}]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "the head's project") as made:
        yield made


def test_a_run_over_three_nodes_is_byte_identical_to_a_local_one(
    hosts: Hosts, project: Project, tmp_path: Path
) -> None:
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
    synced = [(event["node"], event["base"]) for event in project.found(event="sync")]
    assert len(synced) == len(set(synced))  # each base model goes to a node once
    hosts.wait_idle()


def test_local_and_ssh_nodes_work_in_one_run_and_one_that_cannot_be_reached_is_left_out(
    hosts: Hosts, project: Project
) -> None:
    hosts.kill_all("h2")
    own_jobs(project, 8, waits=True)
    servers = [{"host": "localhost", "cpu_slots": 1}, *hosts.servers()[:2]]
    project.config(servers, ssh_config=str(hosts.ssh_config))
    run = project.start(*OWN)
    project.wait_for(event="started", node="localhost")
    project.wait_for(event="started", node="h1")
    for folder in (project.folder, hosts["h1"].project):
        (folder / "go").touch()
    said = run.ends_with(0)
    assert "8 done" in said
    assert "left out: h2: " in said
    assert (
        f"by hand: rsync -avz --checksum -e 'ssh -F {hosts.ssh_config}' -- base_models/"
        f" h2:{hosts['h2'].project}/base_models/" in said
    )


def test_a_node_that_comes_up_in_mid_run_joins(hosts: Hosts, project: Project) -> None:
    hosts.kill_all("h2")
    own_jobs(project, 4, waits=True)
    project.config(hosts.servers()[:2], ssh_config=str(hosts.ssh_config))
    run = project.start(*OWN)
    project.wait_for(event="started", node="h1")
    project.wait_for(event="node", node="h2", state="left")
    hosts.start_sshd("h2")
    project.wait_for(event="started", node="h2")
    for name in ("h1", "h2"):
        (hosts[name].project / "go").touch()
    assert "4 done" in run.ends_with(0)


def test_login_files_that_print_and_jumps_through_another_node_do_no_harm(
    hosts: Hosts, project: Project
) -> None:
    (hosts["h2"].home / ".bashrc").write_text(
        "echo welcome to h2; echo warnings >&2; printf 'no line break'\n"
    )
    hosts.write_ssh_config("Host h2", "  ProxyJump h1", f"  HostName {hosts['h2'].address}")
    project.grid({"mode": ["target_only_fine_tuning"], "n_base_participants": [1]}, folds=(0,))
    project.config(
        hosts.servers()[1:2],
        ssh_config=str(hosts.ssh_config),
    )
    project.run(TWO_PHASE)
    assert len(project.found(event="done", node="h2")) == 2
    assert hosts["h1"].log.count("Accepted publickey") >= 2  # paramiko's and rsync's
    assert f"from {hosts['h1'].address}" in hosts["h2"].log


def test_hostile_names_arrive_as_they_are_and_none_is_executed(
    hosts: Hosts, tmp_path: Path
) -> None:
    people = ["an'n $(touch pwned)", 'b;"o"b `touch pwned`', "ćem & ünï > pwned"]
    node_folder = hosts["h1"].folder / 'it\'s $(touch pwned); `touch pwned` "there"'
    with opened(tmp_path / 'head\'s $(touch pwned); "project"', data=False) as project:
        data_path = "data/my; touch pwned $(touch pwned) 'set'"
        write_data(project.folder / data_path, people)
        write_companions(project.folder / data_path, people)
        project.grid(
            {"mode": ["target_only_fine_tuning"], "n_base_participants": [1]},
            folds=(0, 1, 2),
            participants=people,
            data_path=data_path,
        )
        prefix = 'pre\'fix; $(touch pwned) `touch pwned` "ü" > pwned'
        project.edit_jobs(lambda jobs: [job | {"prefix": prefix} for job in jobs])
        project.config(
            [hosts.servers()[0] | {"path": str(node_folder)}],
            ssh_config=str(hosts.ssh_config),
        )
        project.run(TWO_PHASE)
        assert sorted(
            path.name for path in (project.folder / "experiments" / prefix).iterdir()
        ) == sorted(f"fold{n}_{name}" for n, name in enumerate(people))
        assert len(list((node_folder / data_path).glob("*.pt"))) == 9
        assert not [
            path for folder in (tmp_path, hosts.folder, ROOT) for path in folder.rglob("pwned")
        ]
