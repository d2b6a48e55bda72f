"""Signals to the head while nodes work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import OWN, SHORT, TWO_PHASE, Project, Script, opened, own_jobs
from tests.conftest import wait_until
from tests.scripts.projects import PACE, PACED

pytestmark = pytest.mark.root


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "head", data=False) as made:
        yield made


def two_running(hosts: Hosts, project: Project, **config: Any) -> Script:
    """Six jobs on two slots, two of them running."""
    own_jobs(project, 6, waits=True)
    project.config(hosts.servers()[:2], ssh_config=str(hosts.ssh_config), **config)
    run = project.start(*OWN)
    project.wait_for(event="started", count=2)
    return run


def test_the_first_ctrl_c_lets_running_jobs_finish_and_starts_no_other(
    hosts: Hosts, project: Project
) -> None:
    run = two_running(hosts, project)
    run.signal(signal.SIGINT)
    wait_until(
        lambda: "running jobs finish, nothing new starts" in run.said, what="the answer to Ctrl-C"
    )
    for name in ("h1", "h2"):
        (hosts[name].project / "go").touch()
    assert "2 done, 0 failed, 0 blocked, 4 left" in run.ends_with(130)
    hosts.wait_idle("h1", "h2")


def test_the_second_ctrl_c_stops_at_once(hosts: Hosts, project: Project) -> None:
    run = two_running(hosts, project)
    run.signal(signal.SIGINT)
    wait_until(lambda: "running jobs finish" in run.said, what="the answer to Ctrl-C")
    run.signal(signal.SIGINT)
    assert "0 done, 0 failed, 0 blocked, 6 left" in run.ends_with(130)
    hosts.wait_idle("h1", "h2")


def test_a_training_that_is_stopped_saves_at_its_next_epoch_and_goes_on_from_there(
    hosts: Hosts, tmp_path: Path
) -> None:
    with opened(tmp_path / "head") as project:
        (project.folder / "paced.py").write_text(PACE)
        slowly = hosts["h1"].project / "slowly"
        slowly.touch()
        project.grid({"mode": ["target_only"]}, folds=(0,), **PACED)
        project.config(hosts.servers()[:1], ssh_config=str(hosts.ssh_config))
        run = project.start(TWO_PHASE)
        project.wait_epoch("h1")
        run.signal(signal.SIGINT)
        wait_until(lambda: "running jobs finish" in run.said, what="the answer to Ctrl-C")
        run.signal(signal.SIGINT)
        assert "0 done, 0 failed, 0 blocked, 1 left" in run.ends_with(130)
        hosts.wait_idle("h1", "h2")
        assert list((hosts["h1"].project / "checkpoints").glob("*.ckpt"))
        slowly.unlink()
        project.run(TWO_PHASE)
        (done,) = project.found(event="done")
        assert done["seconds"] is None  # it went on from the checkpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_stop_at_once(
    hosts: Hosts, project: Project, number: signal.Signals
) -> None:
    run = two_running(hosts, project)
    run.signal(number)
    assert "0 done, 0 failed, 0 blocked, 6 left" in run.ends_with(130)
    hosts.wait_idle("h1", "h2")


def test_a_stopped_run_does_not_wait_for_a_node_that_is_cut_off(
    hosts: Hosts, project: Project
) -> None:
    run = two_running(hosts, project, **SHORT)
    hosts.cut("h1")
    project.wait_for(event="node", node="h1", state="closed")
    run.signal(signal.SIGTERM)
    run.ends_with(130, seconds=50)
    hosts.heal("h1")
    hosts.wait_idle("h1", "h2")
