"""Trials over three real SSH hosts: the head killed, rsync killed in both directions, nodes cut
off, frozen, switched off and on.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.hosts import Hosts
from tests.conftest import wait_until
from tests.trust.checker import Planned, whole
from tests.trust.endurance import files_with, watched
from tests.trust.kills import killed_again_and_again, not_made_again, wait_for
from tests.trust.world import TWO_PHASE, World, opened, random_moment, run_seconds, undisturbed

SHORT = {"heartbeat_seconds": 0.5, "suspect_seconds": 3, "close_seconds": 6}
HARMS = ("cut", "freeze", "reboot")


@contextmanager
def over_hosts(hosts: Hosts, parent: Path, name: str) -> Iterator[tuple[World, Planned]]:
    """A project that runs on the three hosts, which are empty; afterwards nothing of it runs
    there.
    """
    hosts.reset()
    with opened(parent, name) as world:
        planned = world.jobs()
        world.config(hosts.servers(), ssh_config=str(hosts.ssh_config), **SHORT)
        yield world, planned
        for host in hosts.names:
            wait_until(
                lambda host=host: not hosts.user_processes(host),
                40,
                f"the end of {hosts.user_processes(host)}",
            )


def ends_well(world: World, planned: Planned, head: subprocess.Popen[bytes], parent: Path) -> None:
    """Every job done or told as failed; what failed is done by the next start; nothing is made
    twice.
    """
    code, failed = head.wait(240), world.failures()
    assert code in (0, 1), (code, world.said, world.events()[-20:])
    assert "Traceback" not in world.said, world.said
    reference = undisturbed(parent)
    if code == 0:
        assert not failed, failed
        world.must_be_whole(planned, reference)
    else:
        world.must_be_whole(planned, reference, complete=False)
    kept = whole(world.folder)
    if code:
        world.finish()
    not_made_again(world, kept)
    world.must_be_whole(planned, reference)


def head_killed(seed: int, parent: Path, hosts: Hosts, kills: int = 5) -> int:
    """The head killed again and again; the workers of a dead head end by themselves, or are ended
    by the next one's.
    """
    with over_hosts(hosts, parent, f"head killed over hosts {seed}") as (world, planned):
        return killed_again_and_again(world, planned, random.Random(seed), parent, kills)


def node_harmed(seed: int, parent: Path, hosts: Hosts) -> int:
    """One or two nodes cut off, frozen or rebooted at random moments, and healed a while later."""
    rng, hits, seconds = random.Random(seed), 0, run_seconds(parent)
    with over_hosts(hosts, parent, f"node harmed {seed}") as (world, planned):
        head = world.start(TWO_PHASE)
        harmed: list[tuple[str, str]] = []
        for host in rng.sample(hosts.names, rng.choice((1, 1, 2))):
            wait_for(head, world, rng, seconds)
            harm = rng.choice(HARMS)
            hits += head.poll() is None
            harmed.append((host, harm))
            {"cut": hosts.cut, "freeze": hosts.freeze, "reboot": hosts.restart_sshd}[harm](host)
        moment = random_moment(rng, 12)
        with suppress(subprocess.TimeoutExpired):
            head.wait(max(0.0, moment - time.monotonic()))
        for host, harm in harmed:
            {"cut": hosts.heal, "freeze": hosts.thaw, "reboot": lambda host: None}[harm](host)
        ends_well(world, planned, head, parent)
    return hits


def rsync_killed(seed: int, parent: Path, hosts: Hosts, kills: int = 3) -> int:
    """rsync killed on the head or on a node, whenever one is met."""
    rng, hits = random.Random(seed), 0
    with over_hosts(hosts, parent, f"rsync killed {seed}") as (world, planned):
        head = world.start(TWO_PHASE)
        while hits < kills and head.poll() is None:
            here = list(world.processes("rsync"))
            there = [
                pid
                for host in hosts.names
                for pid, command in hosts.commands(host).items()
                if "rsync --server" in command
            ]
            if (side := rng.choice((here, there))) and rng.random() < 0.3:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(side), signal.SIGKILL)
                    hits += 1
            with suppress(subprocess.TimeoutExpired):
                head.wait(0.01)
        ends_well(world, planned, head, parent)
    return hits


def passphrase(parent: Path, hosts: Hosts) -> int:
    """A key with a passphrase: without an agent refused in words, nobody is asked; with one used;
    the passphrase is found nowhere.
    """
    secret = "correct horse battery 4711"
    locked = hosts.ssh / "locked"
    subprocess.run(["cp", str(hosts.key), str(locked)], check=True)
    locked.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", secret, "-f", str(locked)],
        check=True,
        capture_output=True,
    )
    askpass = parent / "askpass"
    askpass.write_text('#!/bin/sh\necho "$KEY_WORDS"\n')
    askpass.chmod(0o700)
    with over_hosts(hosts, parent, "passphrase") as (world, planned):
        hosts.write_ssh_config(key=False)
        world.config(
            [{**server, "ssh_key": str(locked)} for server in hosts.servers()],
            ssh_config=str(hosts.ssh_config),
            **SHORT,
        )
        with watched(secret), _agent(parent) as agent:
            code, said = world.run("run_two_phase_distributed.py", "--check")
            assert code == 1, said
            assert "Traceback" not in said, said
            words = {
                **os.environ,
                **agent,
                "SSH_ASKPASS": str(askpass),
                "SSH_ASKPASS_REQUIRE": "force",
                "KEY_WORDS": secret,
            }
            subprocess.run(
                ["ssh-add", "-q", str(locked)],
                env=words,
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )
            code, said = world.run(TWO_PHASE, **agent, KEY_WORDS=secret)
            assert code == 0, said
        world.must_be_whole(planned, undisturbed(parent))
        places = (world.folder, world.temporary, *(hosts[host].folder for host in hosts.names))
        found = [path for place in places for path in files_with(place, secret)]
        assert not found, found
        assert secret not in said
    return 1


@contextmanager
def _agent(parent: Path) -> Iterator[dict[str, str]]:
    socket = parent / "agent"
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(socket.exists, 20, "the agent")
        yield {"SSH_AUTH_SOCK": str(socket)}
    finally:
        process.kill()
        process.wait()
