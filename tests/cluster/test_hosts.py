"""The test hosts themselves: what the other tests rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import hosts as module
from tests.cluster.hosts import Host, Hosts, missing_parts, processes_in
from tests.conftest import ROOT, wait_until

pytestmark = pytest.mark.root


def ssh(hosts: Hosts, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    argv = [
        "ssh",
        "-F",
        str(hosts.ssh_config),
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=2",
        name,
        *command,
    ]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_each_host_has_its_own_name_home_and_key(hosts: Hosts) -> None:
    said = {
        name: ssh(hosts, name, "hostname; echo $HOME").stdout.split("\n")[:2]
        for name in hosts.names
    }
    assert said == {name: [name, str(hosts[name].home)] for name in hosts.names}
    assert len({hosts[name].public_key for name in hosts.names}) == 3


def test_a_cut_host_does_not_answer_until_it_is_healed(hosts: Hosts) -> None:
    hosts.cut("h2")
    assert ssh(hosts, "h2", "true").returncode == 255
    assert ssh(hosts, "h1", "true").returncode == 0
    hosts.heal("h2")
    wait_until(lambda: ssh(hosts, "h2", "true").returncode == 0)


def test_processes_are_told_apart_by_host_frozen_and_killed(hosts: Hosts) -> None:
    with hosts.on_host("h1", ["sleep", "1000"]), hosts.on_host("h2", ["sleep", "1000"]):
        wait_until(
            lambda: (
                "sleep 1000" in hosts.user_processes("h1").values()
                and "sleep 1000" in hosts.user_processes("h2").values()
            )
        )
        assert set(hosts.processes("h1")).isdisjoint(hosts.processes("h2"))
        hosts.freeze("h1")
        assert {
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            for pid in hosts.processes("h1")
        } == {"T"}
        hosts.thaw("h1")
        wait_until(lambda: ssh(hosts, "h1", "true").returncode == 0)
        hosts.kill_all("h1")
        assert hosts.processes("h1") == []
        assert "sleep 1000" in hosts.user_processes("h2").values()
    hosts.start_sshd("h1")
    assert ssh(hosts, "h1", "true").returncode == 0


def made(number: int) -> list[str]:
    """What is there of the hosts with this number."""
    names = [*module._namespaces(), *os.listdir("/sys/class/net")]
    return [
        name
        for name in names
        if name.startswith((f"mlc{number}-", f"mlc{number}v", f"mlc{number}br"))
    ]


def test_nothing_is_left_after_a_set_up_that_failed_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := missing_parts():
        pytest.skip(reason)
    broken = Hosts(tmp_path)
    start = Hosts.start_sshd

    def fail_at_the_second(self: Hosts, name: str) -> None:
        if name == "h2":
            raise RuntimeError("no sshd today")
        start(self, name)

    monkeypatch.setattr(Hosts, "start_sshd", fail_at_the_second)
    with pytest.raises(RuntimeError, match="no sshd today"):
        broken.__enter__()
    assert broken.number > 0
    assert made(broken.number) == []
    assert all(host.sshd is None for host in broken.hosts.values())


def test_left_overs_of_a_killed_run_are_removed_by_the_next_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := missing_parts():
        pytest.skip(reason)
    # away from other runs, which take the first free number
    monkeypatch.setattr(Hosts, "first", 150 + os.getpid() % 50)
    program = (
        f"import sys, pathlib; from tests.cluster.hosts import Hosts; Hosts.first = {Hosts.first}\n"
        "with Hosts(pathlib.Path(sys.argv[1])) as h: print(h.number, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "killed")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert processes_in(f"mlc{number}-h1")
    foreign = f"mlc{number}-foreign"
    with Hosts(tmp_path / "next") as hosts:
        assert hosts.number == number
        wait_until(lambda: ssh(hosts, "h1", "true").returncode == 0)
    assert made(number) == []
    subprocess.run(["ip", "netns", "add", foreign], check=True)
    try:
        with Hosts(tmp_path / "third") as hosts:
            assert hosts.number != number
        assert foreign in module._namespaces()
    finally:
        subprocess.run(["ip", "netns", "del", foreign], check=True)


def test_a_host_whose_sshd_does_not_start_is_named_with_its_log(hosts: Hosts) -> None:
    host: Host = hosts["h3"]
    hosts.kill_all("h3")
    host.extra = ["NoSuchOption yes"]
    with pytest.raises(RuntimeError, match=r"(?s)sshd of h3 ended.*NoSuchOption"):
        hosts.start_sshd("h3")
