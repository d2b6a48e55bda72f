"""Slots of nodes: GPUs, cores, many of them, shared with another project, and added or removed in
mid-run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import OWN, TWO_PHASE, Project, opened, own_jobs, traces
from tests.conftest import wait_until

pytestmark = pytest.mark.root

# Three GPUs, somebody (process 1) computing on the second.
NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=index,uuid,name) printf '0, GPU-a, Model A\\n1, GPU-b, Model B\\n2, GPU-c, Model C\\n';;
--query-gpu=driver_version) printf '550.1\\n550.1\\n550.1\\n';;
--query-compute-apps=gpu_uuid,pid) printf 'GPU-b, 1\\n';;
*) exit 9;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "head", data=False) as made:
        yield made


def give_gpus(hosts: Hosts, name: str) -> None:
    """A driver that tells of three GPUs, found on the node's PATH."""
    folder = hosts[name].home / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)
    (hosts[name].home / ".bashrc").write_text(f'export PATH="{folder}:$PATH"\n')


def server(hosts: Hosts, name: str, **more: Any) -> dict[str, Any]:
    """The entry of a host, without its cpu_slots."""
    (found,) = [server for server in hosts.servers() if server["host"] == name]
    return {key: value for key, value in found.items() if key != "cpu_slots"} | more


def test_each_worker_sees_its_own_gpu_only(hosts: Hosts, project: Project) -> None:
    give_gpus(hosts, "h1")
    own_jobs(project, 5, waits=True)
    project.config(
        [server(hosts, "h1", gpus=[0, 2], jobs_per_gpu=2, cpu_slots=1)],
        ssh_config=str(hosts.ssh_config),
    )
    run = project.start(*OWN)
    project.wait_for(event="started", count=5)
    (hosts["h1"].project / "go").touch()
    run.ends_with(0)
    seen = traces(hosts["h1"].project).values()
    assert sorted((trace["cuda"], trace["device"]) for trace in seen) == [
        ("", "cpu"),
        ("0", "0"),
        ("0", "0"),
        ("2", "0"),
        ("2", "0"),
    ]
    assert {trace["per_gpu"] for trace in seen} == {"2"}
    assert len({trace["pid"] for trace in seen}) == 5


def test_auto_takes_the_gpus_that_nobody_uses_and_names_the_others(
    hosts: Hosts, project: Project
) -> None:
    give_gpus(hosts, "h1")
    own_jobs(project, 4)
    project.config([server(hosts, "h1", gpus="auto")], ssh_config=str(hosts.ssh_config))
    said = project.run(*OWN).said
    assert "h1: GPU 1 is left out, used by user root, process 1" in said
    assert {trace["cuda"] for trace in traces(hosts["h1"].project).values()} <= {"0", "2"}
    assert project.found(event="node", state="joined")[0]["slots"] == 2


def test_a_gpu_that_is_not_there_is_refused_by_name(hosts: Hosts, project: Project) -> None:
    give_gpus(hosts, "h1")
    own_jobs(project, 1)
    project.config([server(hosts, "h1", gpus=[7])], ssh_config=str(hosts.ssh_config))
    assert "left out: h1: no GPU 7 on the node, which has 0, 1, 2" in project.run(*OWN, code=1).said


def test_a_worker_for_a_gpu_never_trains_on_the_cpu(hosts: Hosts, tmp_path: Path) -> None:
    give_gpus(hosts, "h1")  # a driver that is there, and GPUs that torch does not find
    with opened(tmp_path / "training") as project:
        project.grid({"n_base_participants": [1]}, folds=(0,))
        project.config([server(hosts, "h1", gpus=1)], ssh_config=str(hosts.ssh_config))
        said = project.run(TWO_PHASE, code=1).said
        assert "GPU 0 is not there" in said
        assert "no node is left that can work" in said
        assert not list(hosts["h1"].project.glob("base_models/*.pt"))


def test_forty_slots_on_one_node_keep_to_what_sshd_allows(hosts: Hosts, project: Project) -> None:
    own_jobs(project, 60)
    project.config(
        [server(hosts, "h1", cpu_slots=40)],
        ssh_config=str(hosts.ssh_config),
    )
    run = project.run(*OWN, seconds=240)
    assert "60 done, 0 failed" in run.said
    assert len(traces(hosts["h1"].project)) == 60
    log = hosts["h1"].log
    assert "MaxStartups" not in log  # what sshd says when it drops new connections
    assert 5 <= log.count("Accepted publickey") <= 30
    hosts.wait_idle("h1")


@pytest.fixture
def second(hosts: Hosts, tmp_path: Path) -> Iterator[Project]:
    """Another project of the same user."""
    with opened(tmp_path / "second head", data=False) as made:
        yield made


def use_one_node(hosts: Hosts, project: Project, folder: str, slots: int, **more: Any) -> Path:
    """h1, with a project folder of its own there."""
    there = hosts["h1"].folder / folder
    entry = server(hosts, "h1", cpu_slots=slots) | {"path": str(there)}
    project.config([entry], ssh_config=str(hosts.ssh_config), **more)
    return there


def test_a_slot_of_another_project_can_be_left_out(
    hosts: Hosts, project: Project, second: Project
) -> None:
    own_jobs(project, 2, waits=True)
    there = use_one_node(hosts, project, "project", 1)
    first = project.start(*OWN)
    project.wait_for(event="started")
    own_jobs(second, 4, waits=True)
    elsewhere = use_one_node(hosts, second, "another project", 2)
    run = second.start(*OWN, "--no-wait")
    wait_until(
        lambda: "h1: slot 0 is left out: slot cpu0 held by " in run.said,
        what="the slot that is left out",
    )
    assert str(project.folder) in run.said
    (elsewhere / "go").touch()
    run.ends_with(0)
    assert {event["slot"] for event in second.found(event="started")} == {1}
    use_one_node(hosts, second, "another project", 1)
    assert "no node is left that can work" in second.run(*OWN, "--no-wait", code=1).said
    (there / "go").touch()
    assert "2 done" in first.ends_with(0)
    assert len({trace["pid"] for trace in traces(there).values()}) == 1


def test_a_second_project_waits_for_a_slot_and_takes_it_when_it_is_free(
    hosts: Hosts, project: Project, second: Project
) -> None:
    own_jobs(project, 1, waits=True)
    there = use_one_node(hosts, project, "project", 1)
    first = project.start(*OWN)
    project.wait_for(event="started")
    own_jobs(second, 2)
    use_one_node(hosts, second, "another project", 1)
    run = second.start(*OWN)
    wait_until(lambda: "h1: slot 0 is held by " in run.said, what="who holds the slot")
    assert f"{project.folder} since " in run.said
    wait_until(
        lambda: "h1: waits for " in second.run(*OWN, "--status").said, what="the status to say so"
    )
    (there / "go").touch()
    assert "1 done" in first.ends_with(0)
    assert "2 done" in run.ends_with(0)


def test_two_projects_take_turns(hosts: Hosts, project: Project, second: Project) -> None:
    folders = []
    for each, folder in ((project, "project"), (second, "another project")):
        own_jobs(each, 3)
        folders.append(use_one_node(hosts, each, folder, 1, turn_seconds=0))
    own_jobs(project, 3, waits=True)
    first = project.start(*OWN)
    project.wait_for(event="started")
    run = second.start(*OWN)
    wait_until(lambda: "h1: slot 0 is held by " in run.said, what="who holds the slot")
    (folders[0] / "go").touch()
    assert "3 done" in first.ends_with(0)
    assert "3 done" in run.ends_with(0)
    began = [
        (event["time"], name)
        for name, each in (("first", project), ("second", second))
        for event in each.found(event="started")
    ]
    order = [name for _, name in sorted(began)]
    assert order[:2] == ["first", "second"]  # after one job, though the first has more
    assert "first" in order[2:]


def test_nodes_join_and_drain_when_the_configuration_is_edited(
    hosts: Hosts, project: Project
) -> None:
    own_jobs(project, 6, waits=True)
    project.config([server(hosts, "h1", cpu_slots=1)], ssh_config=str(hosts.ssh_config))
    run = project.start(*OWN)
    project.wait_for(event="started", node="h1")
    (project.folder / "cluster_config.json").write_text("{ half a")
    wait_until(
        lambda: "the changed configuration is not used" in run.said,
        what="the remark on half a file",
    )
    project.config([server(hosts, "h2", cpu_slots=1)], ssh_config=str(hosts.ssh_config))
    project.wait_for(event="node", node="h1", state="draining")
    project.wait_for(event="started", node="h2")
    for name in ("h1", "h2"):
        (hosts[name].project / "go").touch()
    assert "6 done" in run.ends_with(0)
    assert len(project.found(event="started", node="h1")) == 1
    assert len(traces(hosts["h1"].project)) == 1
    assert len(traces(hosts["h2"].project)) == 5
    assert "h1: removed or changed in cluster_config.json: its running jobs finish" in run.said
    hosts.wait_idle("h1")


def test_a_node_whose_entry_changed_comes_back_with_its_new_slots(
    hosts: Hosts, project: Project
) -> None:
    own_jobs(project, 5, waits=True)
    project.config([server(hosts, "h1", cpu_slots=1)], ssh_config=str(hosts.ssh_config))
    run = project.start(*OWN)
    project.wait_for(event="started")
    project.config([server(hosts, "h1", cpu_slots=2)], ssh_config=str(hosts.ssh_config))
    project.wait_for(event="node", node="h1", state="draining")
    (hosts["h1"].project / "go").touch()
    assert "5 done" in run.ends_with(0)
    assert [event["slots"] for event in project.found(event="node", state="joined")] == [1, 2]


def test_a_node_with_only_cores_has_one_slot_a_core(hosts: Hosts, project: Project) -> None:
    own_jobs(project, 1)
    project.config([server(hosts, "h1")], ssh_config=str(hosts.ssh_config))
    project.run(*OWN)
    assert project.found(event="node", state="joined")[0]["slots"] == len(os.sched_getaffinity(0))
