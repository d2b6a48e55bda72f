"""Trials: processes killed at random moments, and two heads at once. Each function makes its trials
from a seed and returns how many there were.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.conftest import wait_until
from tests.trust.checker import Planned, contents, whole
from tests.trust.world import (
    BASE,
    GRID,
    ONE_PHASE,
    TWO_PHASE,
    World,
    opened,
    random_moment,
    run_seconds,
    same_bytes,
    undisturbed,
)

# Runs inside the worker until the trial lets it go.
WAITING_SCRIPT = """
import time
from pathlib import Path

def run(options, progress):
    while not Path("go").exists():
        progress({"epoch": 0, "of": 1})
        time.sleep(0.02)
    return {}
"""
# run_two_phase_distributed.py on a machine where a worker that died takes its time to come back.
SLOW_TO_RESTART = """
import sys, time
sys.path.insert(0, {root!r})
import run_two_phase_distributed
from common.cli import run_script
from common.cluster.ssh.node import NodeThreads

start, started = NodeThreads._start_worker, set()

def slowly(node, slot):
    if slot.index in started:
        time.sleep(6)
    started.add(slot.index)
    start(node, slot)

NodeThreads._start_worker = slowly
run_script(run_two_phase_distributed.main)
"""


def wait_for(
    process: subprocess.Popen[bytes], world: World, rng: random.Random, seconds: float
) -> None:
    """Until a random moment of the run: one of the next `seconds`, or one shortly after a random
    event of its log.
    """
    if rng.random() < 0.5:
        moment = random_moment(rng, seconds)
    else:
        more = len(world.events()) + rng.randint(1, 20)
        wait_until(
            lambda: len(world.events()) >= more or process.poll() is not None, 120, "the next event"
        )
        moment = random_moment(rng, 0.2)
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, moment - time.monotonic()))


def not_made_again(world: World, kept: Mapping[str, bytes]) -> dict[str, bytes]:
    """What was whole is still there, to the last byte of its provenance. Returns what is whole
    now.
    """
    now = whole(world.folder)
    changed = [name for name, content in kept.items() if now.get(name) != content]
    assert not changed, f"made again or lost: {changed}"
    return now


def head_killed(seed: int, parent: Path, kills: int = 5) -> int:
    """One project whose head is killed again and again, and then left alone."""
    with opened(parent, f"head killed {seed}") as world:
        hits = killed_again_and_again(world, world.jobs(), random.Random(seed), parent, kills)
        world.nothing_runs()
    return hits


def killed_again_and_again(
    world: World, planned: Planned, rng: random.Random, parent: Path, kills: int
) -> int:
    """Heads killed at random moments, each going on where the one before was stopped; the last is
    left alone. Returns how many were at work.
    """
    hits, kept, reference = 0, dict[str, bytes](), undisturbed(parent)
    for _ in range(kills):
        head = world.start(TWO_PHASE)
        # late moments come with the runs that have less to do
        wait_for(head, world, rng, 0.7 * run_seconds(parent))
        hits += head.poll() is None
        head.kill()
        head.wait()
        assert "Traceback" not in world.said, world.said
        world.must_be_whole(planned, reference, complete=False)
        kept = not_made_again(world, kept)
    world.finish()
    world.must_be_whole(planned, reference)
    not_made_again(world, kept)
    return hits


def worker_killed(seed: int, parent: Path, kills: int = 3) -> int:
    """A run whose workers are killed; it goes on by itself. A job that was hit twice on its only
    node is told as failed, and done by the next start.
    """
    rng, reference = random.Random(seed), undisturbed(parent)
    hits = 0
    with opened(parent, f"worker killed {seed}") as world:
        planned = world.jobs()
        head = world.start(TWO_PHASE)
        for _ in range(kills):
            wait_until(lambda: bool(world.workers()) or head.poll() is not None, 60, "a worker")
            wait_for(head, world, rng, run_seconds(parent) / 2)
            if workers := world.workers():
                hits += 1
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
        code, failed = head.wait(180), world.failures()
        assert code == bool(failed), (code, failed, world.said, world.events()[-20:])
        assert "Traceback" not in world.said, world.said
        world.must_be_whole(
            type(planned)(planned.bases, planned.experiments, frozenset(failed)),
            reference,
            complete=not failed,
        )
        kept = whole(world.folder)
        if failed:
            world.finish()
        not_made_again(world, kept)
        world.must_be_whole(planned, reference)
        world.nothing_runs()
    return hits


def idle_worker_killed(seed: int, parent: Path) -> int:
    """A worker that has nothing to do is killed, and work for it appears before the next one is
    there: it is not given to the dead one.
    """
    with opened(parent, f"idle worker killed {seed}") as world:
        # the base training outlasts the kill
        long = {"max_epochs": 3000, "early_stopping_patience": 3000, "max_epochs_finetune": 2}
        planned = world.jobs({**GRID, "fold": [0]}, **long)
        (world.folder / "slow_to_restart.py").write_text(
            SLOW_TO_RESTART.format(root=str(world.code))
        )
        head = world.start("slow_to_restart.py")
        wait_until(
            lambda: any(event["event"] == "started" for event in world.events()),
            60,
            "the base training",
        )
        (busy,) = [event["slot"] for event in world.events() if event["event"] == "started"]
        wait_until(lambda: len(world.workers()) == 2, 60, "both workers")
        (idle,) = world.processes(f"--slot=cpu{1 - busy}")
        os.kill(idle, signal.SIGKILL)
        wait_until(
            lambda: any(event["event"] == "worker" for event in world.events()),
            60,
            "the end of the worker",
        )
        assert head.wait(120) == 0, world.said
        world.must_be_whole(planned)
        (ended,) = [event for event in world.events() if event["event"] == "worker"]
        assert ended["job"] is None, ended
    return 1


# -- trainings, in forks of this process: torch is imported only once


def fork(work: Callable[[], object], said: Path) -> int:
    """A child that does `work` and ends with 0, or with 1 and its error in `said`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        said.write_text(json.dumps(work()))
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the parent reads what went wrong
        said.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def train(folder: Path, kind: str, values: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """A training as a worker runs it, in `folder`."""

    def work() -> dict[str, Any]:
        import torch

        from common.training import base, finetune

        os.chdir(folder)
        torch.set_num_threads(1)
        return (base if kind == "base" else finetune).run(values, lambda state: None)

    return work


def here(folder: Path, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same in this process."""
    before = Path.cwd()
    try:
        return train(folder, kind, values)()
    finally:
        os.chdir(before)


def finetune_values(base_hash: str, **more: Any) -> dict[str, Any]:
    """A short fine-tune of the base model."""
    return {
        "base_model_hash": base_hash,
        "mode": "full_fine_tuning",
        "prefix": "p",
        "batch_size": 8,
        "lr": 0.01,
        "max_epochs": 3,
        **more,
    }


def training_killed(seed: int, parent: Path, kills: int = 20) -> int:
    """A base training and its fine-tune, killed at random moments and started again until done;
    then the same anew.
    """
    rng, hits = random.Random(seed), 0
    with (
        opened(parent, f"training killed {seed}") as world,
        opened(parent, f"training left alone {seed}") as other,
    ):
        values = {**BASE, "max_epochs": 40}
        tune = finetune_values(here(other.folder, "base", values)["base_model_hash"], max_epochs=40)
        for kind, place, options in (
            ("base", "base_models", values),
            ("finetune", "experiments", tune),
        ):
            shutil.rmtree(other.folder / place, ignore_errors=True)
            began = time.monotonic()
            here(other.folder, kind, options)
            seconds, reference = 1.2 * (time.monotonic() - began), contents(other.folder)
            for _ in range(kills // 2):
                kept = whole(world.folder)
                hits += _killed_after(
                    fork(train(world.folder, kind, options), world.temporary / "said"),
                    rng.uniform(0, seconds),
                )
                not_made_again(world, kept)
                if any(name.startswith(place) for name in whole(world.folder)):
                    same_bytes(contents(world.folder), reference, complete=True)
                    shutil.rmtree(world.folder / place)
            here(world.folder, kind, options)
            same_bytes(contents(world.folder), reference, complete=True)
    return hits


def _killed_after(pid: int, seconds: float) -> bool:
    """Whether the child was still at work when it was killed."""
    deadline = time.monotonic() + seconds
    descriptor = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, (
            "the training failed by itself"
        )
        return not ended
    finally:
        os.close(descriptor)


# -- two at once


def two_heads(seed: int, parent: Path, **world_form: Any) -> int:
    """Two heads started at once, or a moment apart: exactly one runs, the other is refused and
    names it.
    """
    rng = random.Random(seed)
    with opened(parent, f"two heads {seed}", data=False, cores=1, **world_form) as world:
        (world.folder / "waiting.py").write_text(WAITING_SCRIPT)
        (world.folder / "jobs.json").write_text(json.dumps([{"name": "a"}]))
        argv = (ONE_PHASE, "--jobs-config", "jobs.json", "--script-path", "waiting.py")
        first = world.start(*argv)
        with suppress(subprocess.TimeoutExpired):
            first.wait(rng.choice([0.0, rng.uniform(0, 1.5)]))
        second = world.start(*argv)
        heads = (first, second)
        wait_until(
            lambda: any(head.poll() is not None for head in heads), 60, "the end of one head"
        )
        (world.folder / "go").touch()
        codes = [head.wait(60) for head in heads]
        said = [world._output(number).read_text() for number in (1, 2)]
        assert sorted(codes) == [0, 2], (codes, said)
        winner, loser = codes.index(0), codes.index(2)
        assert (
            f"another orchestrator runs in this project folder (process {heads[winner].pid} on "
            in said[loser]
        ), said
        assert len(said[loser].splitlines()) == 1, said
        assert sum(event["event"] == "done" for event in world.events()) == 1
        world.nothing_runs()
    return 1


def two_trainings(seed: int, parent: Path) -> int:
    """The same training twice at once: one trains, the other waits and takes what it published."""
    with opened(parent, f"two trainings {seed}") as world:
        outputs = [world.temporary / f"said {number}" for number in range(2)]
        pids = [
            fork(train(world.folder, "base", {**BASE, "max_epochs": 20}), output)
            for output in outputs
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = [output.read_text() for output in outputs]
        assert codes == [0, 0], said
        assert sorted("reused" in json.loads(text) for text in said) == [False, True], said
    return 1
