"""Nodes that are cut off, frozen, switched off, and heads that are killed, in mid-job; jobs that
take their worker with them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import (
    ONE_PHASE,
    SHORT,
    TWO_PHASE,
    Project,
    Script,
    opened,
    own_jobs,
    traces,
)
from tests.cluster.project import OWN as OWN_JOBS
from tests.conftest import wait_until

pytestmark = pytest.mark.root

# A user's own augmentation: no epoch ends while a file `stall` lies in the node's folder.
STALLS = """
import time
from pathlib import Path

def stall(x, generator):
    while Path("stall").exists():
        time.sleep(0.02)
    return x
"""
ONE_OF_EACH = {"mode": ["target_only_fine_tuning"], "n_base_participants": [1]}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "head") as made:
        yield made


@contextmanager
def held(folder: Path, key: str) -> Iterator[None]:
    """Hold a training on a node: it waits for its own lock, as when two of them were started by
    hand.
    """
    path = folder / "locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def one_base(
    project: Project,
    hosts: Hosts,
    names: tuple[str, ...],
    fixed: Mapping[str, Any] = {},
    **config: Any,
) -> tuple[str, str]:
    """A project with one base model and one fine-tune on these hosts. Returns the base's hash and
    training key.
    """
    project.grid(ONE_OF_EACH, folds=(0,), **fixed)
    servers = [server for server in hosts.servers() if server["host"] in names]
    project.config(servers, ssh_config=str(hosts.ssh_config), **(SHORT | config))
    base = project.jobs("base_training_jobs.json")[0]
    return base["base_model_hash"], base["training_key"]


def begun_on(project: Project, job: str, nodes: tuple[str, ...] = ()) -> str:
    """The node on which the job was started first (of these nodes)."""
    wait_until(lambda: started(project, job, nodes), 60, f"start of {job}; {project.tail()}")
    return started(project, job, nodes)[0]


def started(project: Project, job: str, nodes: tuple[str, ...] = ()) -> list[str]:
    """The nodes on which it was started."""
    return [
        event["node"]
        for event in project.found(event="started", job=job)
        if not nodes or event["node"] in nodes
    ]


def other(name: str) -> str:
    """The other one of two hosts."""
    return "h2" if name == "h1" else "h1"


def one_result(project: Project, base: str) -> None:
    """The base model and the fine-tune were done once each."""
    assert [event["job"] for event in project.found(event="done")].count(base) == 1
    assert len(project.found(event="done")) == 2
    assert len(list((project.folder / "experiments").glob("*/*/metrics.json"))) == 1


def test_a_link_that_comes_back_in_time_keeps_its_job_and_the_spare_copy_is_cancelled(
    hosts: Hosts, project: Project
) -> None:
    base, key = one_base(project, hosts, ("h1", "h2"), suspect_seconds=3, close_seconds=60)
    with ExitStack() as first_hold, ExitStack() as second_hold:
        holds = {"h1": first_hold, "h2": second_hold}
        for name, hold in holds.items():
            hold.enter_context(held(hosts[name].project, key))
        run = project.start(TWO_PHASE)
        first = begun_on(project, base)
        hosts.cut(first)
        project.wait_for(event="node", node=first, state="suspect")
        assert begun_on(project, base, (other(first),)) == other(first)
        hosts.heal(first)
        project.wait_for(event="cancelled", job=base, node=other(first))
        holds[first].close()
        project.wait_for(event="done", job=base, node=first)
    run.ends_with(0)
    one_result(project, base)
    hosts.wait_idle("h1", "h2")


def test_a_cancelled_copy_is_stopped_where_it_runs(hosts: Hosts, tmp_path: Path) -> None:
    with opened(tmp_path / "own head", data=False) as project:
        own_jobs(project, 4, waits=True)
        servers = [
            server | {"cpu_slots": slots}
            for server, slots in zip(hosts.servers(), (1, 3), strict=False)
        ]
        project.config(
            servers, ssh_config=str(hosts.ssh_config), suspect_seconds=3, close_seconds=60
        )
        run = project.start(*OWN_JOBS)
        project.wait_for(event="started", count=4)  # every slot is taken
        (job,) = [event["job"] for event in project.found(event="started", node="h1")]
        there = project.found(event="started", node="h2")[0]["job"]
        (hosts["h2"].project / f"go-{there.removeprefix('job')}").touch()
        project.wait_for(event="done", job=there)  # one is free
        hosts.cut("h1")
        project.wait_for(event="started", node="h2", job=job)
        hosts.heal("h1")
        stopped = hosts["h2"].project / f"stopped-{job.removeprefix('job')}"
        wait_until(stopped.exists, what="the end of the spare copy")
        assert stopped.read_text() == "Cancelled"
        for name in ("h1", "h2"):
            (hosts[name].project / "go").touch()
        assert "4 done" in run.ends_with(0)
        assert len(traces(hosts["h1"].project)) == 1
        assert len(traces(hosts["h2"].project)) == 3


def lose(hosts: Hosts, project: Project, how: str) -> tuple[str, Script]:
    """A run whose base is being trained on a node when that node is lost. Returns that node and the
    run, which has ended well.
    """
    base, key = one_base(project, hosts, ("h1", "h2"))
    with ExitStack() as hold:
        for name in ("h1", "h2"):
            hold.enter_context(held(hosts[name].project, key))
        run = project.start(TWO_PHASE)
        first = begun_on(project, base)
        {"cut": hosts.cut, "freeze": hosts.freeze, "kill": hosts.kill_all}[how](first)
        project.wait_for(event="node", node=first, state="closed")
        assert begun_on(project, base, (other(first),)) == other(first)
    run.ends_with(0)
    one_result(project, base)
    assert {event["node"] for event in project.found(event="done")} == {other(first)}
    return first, run


def test_jobs_of_a_node_that_was_cut_off_are_done_elsewhere_and_it_ends_them_itself(
    hosts: Hosts, project: Project
) -> None:
    first, _ = lose(hosts, project, "cut")
    states = [event["state"] for event in project.found(event="node", node=first)]
    assert states.index("suspect") < states.index("closed")
    # it is still cut off: nobody but the worker itself can have ended it
    hosts.wait_idle(first)
    hosts.heal(first)
    hosts.wait_idle("h1", "h2")


def test_jobs_of_a_frozen_node_are_done_elsewhere_and_it_ends_them_when_it_wakes(
    hosts: Hosts, project: Project
) -> None:
    first, _ = lose(hosts, project, "freeze")
    assert "suspect" in [event["state"] for event in project.found(event="node", node=first)]
    hosts.thaw(first)
    hosts.wait_idle("h1", "h2")


def test_jobs_of_a_node_that_was_switched_off_are_done_elsewhere(
    hosts: Hosts, project: Project
) -> None:
    first, run = lose(hosts, project, "kill")
    assert f"lost: {first}: connection lost" in run.said
    hosts.wait_idle(other(first))


def test_with_the_real_limits_a_cut_of_40_s_costs_nothing_and_one_for_good_moves_the_job(
    hosts: Hosts, project: Project
) -> None:
    base, key = one_base(
        project, hosts, ("h1", "h2"), heartbeat_seconds=5, suspect_seconds=30, close_seconds=60
    )
    with ExitStack() as hold:
        for name in ("h1", "h2"):
            hold.enter_context(held(hosts[name].project, key))
        run = project.start(TWO_PHASE)
        first = begun_on(project, base)
        hosts.cut(first)
        cut = time.monotonic()
        wait_until(lambda: time.monotonic() - cut >= 40, 60)
        assert project.found(event="node", node=first, state="suspect")
        hosts.heal(first)
        project.wait_for(event="cancelled", job=base, node=other(first))
        assert not project.found(event="node", state="closed")
        hosts.cut(first)
        (closed,) = project.wait_for(event="node", node=first, state="closed", seconds=120)
        assert 60 <= int(closed["cause"].removeprefix("silent for ").removesuffix(" s")) < 70
    run.ends_with(0)
    one_result(project, base)
    assert {event["node"] for event in project.found(event="done")} == {other(first)}
    hosts.heal(first)
    hosts.wait_idle("h1", "h2", seconds=90)


def test_a_training_that_finishes_no_epoch_is_ended_and_done_elsewhere(
    hosts: Hosts, project: Project
) -> None:
    (project.folder / "slow.py").write_text(STALLS)
    slow = {"use_augmentation": True, "augmentation": "slow.py:stall"}
    base, _ = one_base(project, hosts, ("h1", "h2"), slow, stall_minutes=0.1)
    stalls = {name: hosts[name].project / "stall" for name in ("h1", "h2")}
    for stall in stalls.values():
        stall.touch()
    run = project.start(TWO_PHASE)
    first = begun_on(project, base)
    stalls[other(first)].unlink()
    project.wait_for(event="done", job=base, node=other(first))
    stalls[first].unlink()  # for the fine-tune
    ended, *_ = project.found(event="job", job=base, state="ready")
    assert ended["cause"].endswith("finished no epoch in 0.1 minutes (stall_minutes)")
    run.ends_with(0)
    assert not project.found(event="node", state="closed")
    one_result(project, base)
    hosts.wait_idle("h1", "h2")


def test_a_training_that_another_process_makes_on_its_node_is_waited_for(
    hosts: Hosts, project: Project
) -> None:
    base, key = one_base(project, hosts, ("h1",), stall_minutes=0.1)
    with held(hosts["h1"].project, key):
        run = project.start(TWO_PHASE)
        begun_on(project, base)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun >= 2 * 60 * 0.1, 30)
    run.ends_with(0)
    assert started(project, base) == ["h1"]
    one_result(project, base)


def test_a_killed_worker_is_started_again_and_its_job_done(hosts: Hosts, project: Project) -> None:
    base, key = one_base(project, hosts, ("h1",))
    with held(hosts["h1"].project, key):
        run = project.start(TWO_PHASE)
        begun_on(project, base)
        (worker,) = [
            pid
            for pid, command in hosts.commands("h1").items()
            if "common.cluster.on_node.worker" in command and "env " not in command[:4]
        ][-1:]
        os.kill(worker, signal.SIGKILL)
        project.wait_for(event="worker", node="h1", state="ended", job=base)
    run.ends_with(0)
    one_result(project, base)
    assert not project.found(event="node", state="closed")  # nobody waited for the node's silence


def test_nothing_outlives_a_killed_head_and_the_next_start_does_only_what_is_missing(
    hosts: Hosts, project: Project
) -> None:
    project.grid(
        {"mode": ["target_only_fine_tuning"], "n_base_participants": [1]},
        folds=(0, 1, 2),
        max_epochs=400,
    )
    project.config(hosts.servers()[:2], ssh_config=str(hosts.ssh_config))
    run = project.start(TWO_PHASE)
    project.wait_for(event="done", kind="target_only_fine_tuning")
    run.signal(signal.SIGKILL)
    run.process.wait()
    hosts.wait_idle("h1", "h2", seconds=90)
    before = {event["job"] for event in project.found(event="done")}
    project.run(TWO_PHASE)
    assert before.isdisjoint(event["job"] for event in project.found(event="started"))
    assert len(list((project.folder / "experiments").glob("*/*/metrics.json"))) == 3


def test_what_nodes_had_published_is_fetched_and_not_done_again(
    hosts: Hosts, project: Project
) -> None:
    project.grid(ONE_OF_EACH)
    project.config(hosts.servers()[:2], ssh_config=str(hosts.ssh_config))
    project.run(TWO_PHASE)
    results = project.results()
    for name in ("experiments", "base_models"):
        shutil.rmtree(project.folder / name)
    project.run(TWO_PHASE)
    assert project.results() == results
    assert not project.found(event="started")


# Jobs

SCRIPT = """
import os, signal, resource
from pathlib import Path

def run(options, progress):
    print("chatter on standard output")
    os.write(1, b"more of it\\n{\\"done\\": 1}\\n")
    what = options["what"]
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "memory":
        raise MemoryError("no memory")
    if what == "disk":
        raise OSError(28, "No space left on device")
    Path("done-" + str(options["number"])).touch()
    return {}
"""


def jobs_of(
    project: Project, hosts: Hosts, whats: list[str], servers: list[dict[str, Any]]
) -> None:
    """A user's own script, and one job for each of `whats`."""
    (project.folder / "own script.py").write_text(SCRIPT)
    (project.folder / "jobs.json").write_text(
        json.dumps([{"what": what, "number": number} for number, what in enumerate(whats)])
    )
    project.config(servers, ssh_config=str(hosts.ssh_config))


OWN = (ONE_PHASE, "--jobs-config", "jobs.json", "--script-path", "own script.py")


@pytest.mark.parametrize(
    ("what", "words"),
    [("crash", "Fatal Python error: Segmentation fault"), ("memory", "MemoryError: no memory")],
)
def test_a_job_that_takes_its_worker_with_it_fails_alone(
    hosts: Hosts, project: Project, what: str, words: str
) -> None:
    jobs_of(project, hosts, [what, *["work"] * 12], hosts.servers()[:2])
    said = project.run(*OWN, code=1).said
    assert "12 done, 1 failed, 0 blocked, 0 left" in said
    assert not project.found(event="node", state="set aside")
    (failed,) = project.found(event="failed")
    assert failed["job"] == "job0"
    assert words in (project.folder / failed["log"]).read_text()
    assert sum(len(list(hosts[name].project.glob("done-*"))) for name in ("h1", "h2")) >= 12


def test_a_lone_node_that_cannot_do_its_job_ends_the_run(hosts: Hosts, project: Project) -> None:
    jobs_of(project, hosts, ["disk"], hosts.servers()[:1])
    said = project.run(*OWN, code=1).said
    assert "No space left on device" in said
    assert len(project.found(event="started")) == 3


def test_a_run_without_a_node_that_can_work_is_refused_with_the_reasons(
    hosts: Hosts, project: Project
) -> None:
    servers = hosts.servers()[:2]
    servers[0]["python"] = "/bin/false"
    hosts.kill_all("h2")
    jobs_of(project, hosts, ["work"], servers)
    said = project.run(*OWN, code=1).said
    assert "left out: h1: /bin/false does not work there" in said
    assert "left out: h2: " in said
    assert "no node is left that can work" in said
