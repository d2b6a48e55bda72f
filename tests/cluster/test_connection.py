"""Connections to real SSH hosts: words and names arrive as they are, ends are not mistaken, keys
are checked, copies are whole.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.cluster.config import Server
from common.cluster.ssh.node_commands import probe
from common.cluster.transport import connection as connection_module
from common.cluster.transport import link as link_module
from common.cluster.transport import process as process_module
from common.cluster.transport.connection import Connection, connect
from common.cluster.transport.host_keys import HostCertificate
from common.cluster.transport.openssh import ConnectError, SshSettings
from common.cluster.transport.rsync import verify_arrived
from common.errors import InputError, NodeError
from tests.cluster.hosts import DOMAIN_USERS, Hosts
from tests.conftest import ROOT, wait_until

pytestmark = pytest.mark.root

HOSTILE = [
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    ";touch pwned",
    "'",
    '"',
    "\\",
    "~",
    "~root",
    "*",
    "?",
    "[a]",
    "#x",
    "&",
    "|x",
    ">x",
    "<x",
    "!x",
    "a\nb",
    "\t",
    "--delete",
    "-e sh",
    "é",
    "日本",
    "\udcff",
    "$HOME",
    "${x:-y}",
    "a'b\"c",
    "{a,b}",
    "=",
    "%h",
    "\\n",
    "host:x",
    "::1",
    "\x7f\x01",
]
# What a program can be given: anything but NUL; surrogates stand for bytes that are not UTF-8.
WORDS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    max_size=6,
)
PIECES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20
)
REAL = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def server(hosts: Hosts, name: str = "h1", **keys: Any) -> Server:
    return Server(
        **{
            "host": name,
            "path": str(hosts[name].project) if name in hosts.hosts else None,
            "ssh_config": str(hosts.ssh_config),
            **keys,
        }
    )


@pytest.fixture
def node(hosts: Hosts, head: Path) -> Iterator[Connection]:
    with connect(server(hosts)) as made:
        yield made


def refused(hosts: Hosts, name: str = "h1", **keys: Any) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        connect(server(hosts, name, **keys)).close()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")
    return caught.value


def authentications(hosts: Hosts, name: str) -> int:
    """Tries to authenticate that the host has seen."""
    return sum(
        line.startswith(("Accepted", "Failed", "Postponed", "Connection closed by authenticating"))
        for line in hosts[name].log.splitlines()
    )


# Words and ends


@REAL
@given(WORDS)
@example(HOSTILE)
def test_every_word_arrives_as_it_is_and_none_is_executed(
    node: Connection, words: list[str]
) -> None:
    before = node.run(["ls", "-A"]).stdout
    result = node.run(["printf", "%s\\0", *words, "end"])
    assert result.stdout == b"".join(os.fsencode(word) + b"\0" for word in [*words, "end"])
    assert result.stderr == b""
    assert node.run(["ls", "-A"]).stdout == before


def test_a_project_folder_with_a_hostile_name_is_only_a_name(hosts: Hosts, head: Path) -> None:
    (head / "a").write_text("x")
    for word in ("$(touch pwned)", "a 'b\" c;touch pwned`id`", "日 本", "-n"):
        with connect(server(hosts, path=f"{hosts['h1'].project}/{word}")) as node:
            assert node.path == f"{hosts['h1'].project}/{word}"
            assert node.run(["pwd"]).text == node.path
            assert node.push(["a"]).bytes > 0
            assert node.pull(["a"], head / f"in {word}").files == ("a",)
            assert node.run(["ls", "-A"]).text == "a"
    assert not list(hosts.folder.rglob("pwned"))


def test_the_default_folder_lies_in_the_home_of_the_node(hosts: Hosts, head: Path) -> None:
    with connect(server(hosts, path=None)) as node:
        assert node.path == f"{hosts['h1'].home}/ml-customization"
        assert node.python == "python3"
        node.run(["mkdir", "-p", "env/bin"])
        node.run(["ln", "-s", "/usr/bin/env", "env/bin/python"])
        node.refresh()
        assert node.python == "env/bin/python"
    with connect(server(hosts, path="~/my projects/x", python="~/my env/bin/python")) as node:
        assert node.path == f"{hosts['h1'].home}/my projects/x"
        assert node.python == f"{hosts['h1'].home}/my env/bin/python"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -SEGV $$", 139),
        ("kill -TERM $$", 143),
    ],
)
def test_exit_codes_and_signals_are_the_commands_own(
    node: Connection, script: str, code: int
) -> None:
    result = node.run(["sh", "-c", f"echo out; echo err >&2; {script}"])
    assert (result.exit_code, result.stdout, result.stderr[:4]) == (code, b"out\n", b"err\n")


def test_a_command_that_is_not_there_exits_with_127(node: Connection) -> None:
    result = node.run(["no-such-command"])
    assert result.exit_code == 127
    assert "no-such-command" in result.last_words


def test_large_input_and_output_pass_through_unchanged(node: Connection) -> None:
    data = os.urandom(5 << 20)
    assert node.run(["cat"], input=data).stdout == data
    assert node.run(["head", "-c", "3"], input=data).stdout == data[:3]
    with pytest.raises(NodeError, match="printed more than 1000 bytes"):
        node.run(["cat"], input=data, limit=1000)


def test_a_command_that_outlives_its_time_is_killed_on_the_node(
    hosts: Hosts, node: Connection
) -> None:
    result = node.run(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.5)
    assert result.exit_code is None
    wait_until(lambda: not hosts.user_processes("h1"))


def test_a_long_lived_process_is_spoken_with_line_by_line(node: Connection) -> None:
    process = node.start(
        ["sh", "-c", "while read line; do echo got $line; echo aside >&2; done; exit 3"]
    )
    with pytest.raises(TimeoutError):
        process.read_line(0.01)
    process.write(b"one\ntwo\n")
    assert [process.read_line(10), process.read_line(10)] == [b"got one\n", b"got two\n"]
    process.close_input()
    assert process.read_line(10) == b""
    assert process.wait(10) == 3
    assert process.stderr_tail == b"aside\naside\n"
    process.close()
    with pytest.raises(NodeError):
        process.write(b"more\n")


def test_killing_a_process_ends_all_that_it_started(hosts: Hosts, node: Connection) -> None:
    process = node.start(["sh", "-c", "sleep 1000 & sleep 1000 & wait"])
    wait_until(lambda: list(hosts.user_processes("h1").values()).count("sleep 1000") == 2)
    process.kill()
    assert process.wait(10) == 137
    process.close()
    wait_until(lambda: not hosts.user_processes("h1"))


def test_closing_ends_the_input_of_what_runs(hosts: Hosts, head: Path) -> None:
    with connect(server(hosts)) as node:
        node.start(["cat"])
        wait_until(lambda: "cat" in hosts.user_processes("h1").values())
    wait_until(lambda: not hosts.user_processes("h1"))


# Lost links


def test_a_cut_link_is_no_exit_and_a_healed_one_goes_on(hosts: Hosts, node: Connection) -> None:
    process = node.start(["sh", "-c", "while read line; do echo got $line; done; exit 3"])
    hosts.cut("h1")
    process.write(b"one\n")
    with pytest.raises(TimeoutError):
        process.read_line(1)
    with pytest.raises(TimeoutError):
        process.wait(0.1)
    hosts.heal("h1")
    assert process.read_line(30) == b"got one\n"
    process.close_input()
    assert process.wait(30) == 3


def test_a_cut_link_leaves_the_end_of_a_command_unknown(
    hosts: Hosts, node: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.run, ["sh", "-c", "touch started; sleep 1000"], timeout=2)
        wait_until(lambda: (hosts["h1"].project / "started").exists())
        hosts.cut("h1")
        assert running.result(60).exit_code is None
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 1)
    hosts.cut("h1")
    with pytest.raises(NodeError, match="h1: "):
        node.run(["true"], timeout=1)


def test_a_node_that_dies_is_told_apart_from_a_command_that_does(
    hosts: Hosts, node: Connection
) -> None:
    with connect(server(hosts, "h2")) as other:
        doomed, killed = node.start(["cat"]), other.start(["cat"])
        hosts.kill_all("h1")
        other.run(["sh", "-c", 'kill -KILL "-$1"', "sh", str(killed.pid)])
        assert doomed.read_line(10) == b""
        assert (doomed.wait(10), killed.wait(10)) == (None, 137)
        assert other.run(["hostname"]).text == "h2"
        with pytest.raises(NodeError):
            doomed.write(b"x")


def test_a_frozen_node_gives_no_exit_and_does_not_hold_us(hosts: Hosts, node: Connection) -> None:
    process = node.start(["cat"])
    hosts.freeze("h1")
    with pytest.raises(TimeoutError):
        process.wait(0.5)
    process.close()
    node.close()
    assert process.wait(1) is None


def test_a_restarted_node_is_connected_to_again(hosts: Hosts, node: Connection) -> None:
    hosts.restart_sshd("h1")
    wait_until(lambda: not any(shared.link.transport.is_active() for shared in node._links))
    assert node.run(["hostname"]).text == "h1"


# Failures by cause


def test_a_name_that_does_not_exist_a_closed_port_and_silence_are_told_apart(
    hosts: Hosts, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(hosts, "no-such-host.invalid").cause == "name"
    with pytest.raises(ConnectError) as caught:
        connect(server(hosts, port=2222))
    assert (caught.value.cause, caught.value.transient) == ("refused", True)
    monkeypatch.setattr(link_module, "CONNECT_SECONDS", 1)
    hosts.cut("h2")
    assert refused(hosts, "h2").cause == "timeout"
    hosts.freeze("h3")
    error = refused(hosts, "h3")
    assert error.cause == "timeout"
    assert "does not speak" in str(error)


def test_an_unknown_host_key_is_refused_before_authentication(hosts: Hosts, head: Path) -> None:
    hosts.known_hosts.write_text("")
    before = authentications(hosts, "h1")
    error = refused(hosts)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", hosts["h1"].folder / "host_key.pub"], capture_output=True, text=True
    ).stdout.split()[1]
    assert error.cause == "host_key"
    assert shown in str(error)
    assert f"ssh -F {hosts.ssh_config} h1 true" in str(error)
    assert "accept-new" in str(error)
    assert authentications(hosts, "h1") == before
    assert hosts.known_hosts.read_text() == ""


def test_accept_new_records_the_first_key_and_stops_at_another(hosts: Hosts, head: Path) -> None:
    hosts.known_hosts.write_text("# no line break at the end")
    (head / "a").write_text("x")
    with connect(server(hosts, host_key="accept-new")) as node:
        assert node.push(["a"]).bytes > 0
    assert hosts["h1"].public_key in hosts.known_hosts.read_text()
    assert hosts.known_hosts.read_text().startswith("# no line break at the end\n")
    connect(server(hosts)).close()
    hosts.known_hosts.write_text(f"{hosts['h1'].address} {hosts['h2'].public_key}\n")
    before, known = authentications(hosts, "h1"), hosts.known_hosts.read_text()
    error = refused(hosts, host_key="accept-new")
    assert error.cause == "host_key"
    assert "HAS CHANGED" in str(error)
    assert "ssh-keygen -R" in str(error)
    assert (authentications(hosts, "h1"), hosts.known_hosts.read_text()) == (before, known)


def test_recorded_names_are_hashed_where_ssh_hashes_them(hosts: Hosts, head: Path) -> None:
    hosts.known_hosts.write_text("")
    hosts.write_ssh_config("HashKnownHosts yes")
    connect(server(hosts, host_key="accept-new")).close()
    assert hosts.known_hosts.read_text().startswith("|1|")
    connect(server(hosts)).close()


def test_a_revoked_key_is_refused(hosts: Hosts, head: Path) -> None:
    hosts.known_hosts.write_text(
        f"@revoked * {hosts['h1'].public_key}\n{hosts['h1'].address} {hosts['h1'].public_key}\n"
    )
    assert "revoked" in str(refused(hosts))


def test_a_host_with_a_second_kind_of_key_is_not_taken_for_changed(
    hosts: Hosts, head: Path
) -> None:
    rsa = hosts["h1"].folder / "rsa_key"
    if not rsa.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", rsa], check=True
        )
    hosts.kill_all("h1")
    hosts["h1"].extra = [f"HostKey {rsa}"]
    hosts.start_sshd("h1")
    kind, key, *_ = rsa.with_suffix(".pub").read_text().split()
    hosts.known_hosts.write_text(f"{hosts['h1'].address} {kind} {key}\n")
    connect(server(hosts)).close()


def certified_host(hosts: Hosts, folder: Path, name: str) -> str:
    """h1 has a host certificate for `name`; returns the public key of its authority."""
    authority, key = folder / "host authority", hosts["h1"].folder / "host_key.pub"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", authority]
    subprocess.run(make, check=True)
    sign = ["ssh-keygen", "-q", "-s", authority, "-I", "h1", "-h", "-n", name, key]
    subprocess.run(sign, check=True)
    hosts["h1"].extra = [f"HostCertificate {hosts['h1'].folder}/host_key-cert.pub"]
    hosts.restart_sshd("h1")
    return " ".join(authority.with_suffix(".pub").read_text().split()[:2])


def test_a_host_certificate_of_a_known_authority_is_enough(hosts: Hosts, head: Path) -> None:
    authority = certified_host(hosts, head, hosts["h1"].address)
    hosts.known_hosts.write_text(f"@cert-authority 198.18.* {authority}\n")
    (head / "a").write_text("x")
    with connect(server(hosts)) as node:
        assert node.push(["a"]).bytes > 0
    hosts.known_hosts.write_text(f"@cert-authority *.example {authority}\n")
    assert "unknown host key" in str(refused(hosts))
    revoked = f"@revoked * {authority}\n@cert-authority * {authority}\n"
    hosts.known_hosts.write_text(revoked)
    assert "revoked" in str(refused(hosts))


def test_a_host_certificate_for_another_name_is_refused(hosts: Hosts, head: Path) -> None:
    authority = certified_host(hosts, head, "other.example")
    hosts.known_hosts.write_text(f"@cert-authority * {authority}\n")
    before = authentications(hosts, "h1")
    assert "is for other.example, not for 198.18." in str(refused(hosts))
    assert authentications(hosts, "h1") == before


def test_a_forged_host_certificate_is_refused(hosts: Hosts, head: Path) -> None:
    authority = certified_host(hosts, head, hosts["h1"].address)
    path = hosts["h1"].folder / "host_key-cert.pub"
    blob = paramiko.pkey.PublicBlob.from_file(str(path)).key_blob
    whole = HostCertificate.read(blob)
    assert whole.problem(hosts["h1"].address, time.time()) == ""
    assert whole.authority == authority.split()[1]
    forged = HostCertificate.read(blob.replace(b"198.18.", b"198.19."))
    name = hosts["h1"].address.replace("198.18.", "198.19.")
    assert forged.problem(name, time.time()) == "has a wrong signature"
    assert replace(whole, kind=1).problem(hosts["h1"].address, 1.0) == "is not that of a host"
    late = replace(whole, before=1)
    assert late.problem(hosts["h1"].address, 2.0) == "is not valid at this time"


def test_host_keys_from_a_known_hosts_command(hosts: Hosts, head: Path) -> None:
    hosts.known_hosts.write_text("")
    command, key = head / "known", hosts["h1"].public_key
    command.write_text(f'#!/bin/sh\necho "$@" >> "{head}/asked"\necho "$1 {key}"\n')
    command.chmod(0o755)
    hosts.write_ssh_config(f'KnownHostsCommand "{command}" %H %t %I')
    (head / "a").write_text("x")
    with connect(server(hosts)) as node:
        assert node.push(["a"]).bytes > 0
    asked = (head / "asked").read_text().splitlines()
    address = hosts["h1"].address
    assert asked[:2] == [f"{address} NONE ORDER", f"{address} ssh-ed25519 HOSTNAME"]
    command.write_text("#!/bin/sh\nexit 1\n")
    assert "KnownHostsCommand" in str(refused(hosts))


@pytest.mark.parametrize("beside", [True, False])
def test_a_certificate_for_the_users_key_is_used(hosts: Hosts, head: Path, beside: bool) -> None:
    authority, key = head / "user authority", head / "key"
    for path in (authority, key):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]
        subprocess.run(make, check=True)
    sign = ["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", "root", key.with_suffix(".pub")]
    subprocess.run(sign, check=True)
    hosts["h1"].extra = [
        f'TrustedUserCAKeys "{authority.with_suffix(".pub")}"',
        "AuthorizedKeysFile none",
    ]
    hosts.restart_sshd("h1")
    certificate = head / "key-cert.pub"
    if not beside:
        certificate = certificate.rename(head / "else where.pub")
        assert refused(hosts, ssh_key=str(key)).cause == "auth"
        hosts.write_ssh_config(f'CertificateFile "{certificate}"')
    (head / "a").write_text("x")
    with connect(server(hosts, ssh_key=str(key))) as node:
        assert node.push(["a"]).bytes > 0


@pytest.mark.parametrize("user", DOMAIN_USERS)
def test_users_of_a_domain_are_taken_literally(hosts: Hosts, head: Path, user: str) -> None:
    (head / "a").write_text("x")
    with connect(server(hosts, user=user)) as node:
        assert node.push(["a"]).bytes > 0
    logged = user.replace("\\", "\\\\")  # as sshd writes it
    assert f"Accepted publickey for {logged} from" in hosts["h1"].log


def test_ipv6_as_host_and_as_jump(hosts: Hosts, head: Path) -> None:
    first, second = hosts["h1"], hosts["h2"]
    hosts.known_hosts.write_text(
        f"{first.address6} {first.public_key}\n{second.address6} {second.public_key}\n"
    )
    (head / "a").write_text("x")
    path = str(second.project)
    with connect(server(hosts, second.address6, path=path)) as node:
        assert node.push(["a"]).bytes > 0
        assert node.run(["hostname"]).text == "h2"
    for jump in (f"root@[{first.address6}]:22", f"[{first.address6}]"):
        (second.project / "a").unlink()
        hosts.write_ssh_config(f"Host {second.address6}", f"  ProxyJump {jump}")
        with connect(server(hosts, second.address6, path=path)) as node:
            assert node.run(["sh", "-c", "echo ${SSH_CLIENT%% *}"]).text == first.address6
            assert node.push(["a"]).bytes > 0


def test_aliases_and_ports_name_the_host_key(hosts: Hosts, head: Path) -> None:
    hosts.kill_all("h1")
    hosts["h1"].extra = ["Port 2222"]
    hosts.start_sshd("h1")
    key = hosts["h1"].public_key
    (head / "a").write_text("x")
    with pytest.raises(ConnectError, match="unknown host key"):
        connect(server(hosts, port=2222))
    hosts.known_hosts.write_text(f"[{hosts['h1'].address}]:2222 {key}\n")
    with connect(server(hosts, port=2222)) as node:
        assert node.push(["a"]).bytes > 0
    hosts.known_hosts.write_text(f"lab-node {key}\n")
    hosts.write_ssh_config("Host h1", "  HostKeyAlias lab-node", "  Port 2222")
    with connect(server(hosts)) as node:
        assert node.run(["sh", "-c", "echo ${SSH_CONNECTION##* }"]).text == "2222"


def test_a_locked_key_says_run_ssh_add_and_works_from_the_agent(
    hosts: Hosts, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.write_ssh_config(key=False)
    locked, unlocked = head / "locked key", head / "unlocked"
    shutil.copy(hosts.key, unlocked)
    shutil.copy(hosts.key, locked)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", locked],
        check=True,
        capture_output=True,
    )
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    error = refused(hosts, ssh_key=str(locked))
    assert error.cause == "auth"
    assert f"run ssh-add '{locked}'" in str(error)
    with agent(monkeypatch):
        subprocess.run(["ssh-add", "-q", unlocked], check=True)
        (head / "a").write_text("x")
        with connect(server(hosts, ssh_key=str(locked))) as node:
            assert node.push(["a"]).bytes > 0


@contextmanager
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An ssh-agent for this test."""
    words = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    found = dict(
        part.split("=", 1)
        for part in words.replace("\n", " ").replace(";", " ").split()
        if "=" in part
    )
    monkeypatch.setenv("SSH_AUTH_SOCK", found["SSH_AUTH_SOCK"])
    try:
        yield
    finally:
        os.kill(int(found["SSH_AGENT_PID"]), signal.SIGTERM)


def test_a_key_that_others_may_read_is_not_used(hosts: Hosts, head: Path) -> None:
    hosts.write_ssh_config(key=False)
    key = head / "key"
    shutil.copy(hosts.key, key)
    key.chmod(0o644)
    assert f"chmod 600 '{key}'" in str(refused(hosts, ssh_key=str(key)))


def test_a_node_that_knows_none_of_our_keys_says_how_to_add_one(hosts: Hosts, head: Path) -> None:
    hosts.write_ssh_config(key=False)
    key = head / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    error = refused(hosts, ssh_key=str(key))
    assert error.cause == "auth"
    assert f"ssh-copy-id -p 22 root@{hosts['h1'].address}" in str(error)


def test_a_node_that_takes_only_passwords_is_refused(hosts: Hosts, head: Path) -> None:
    hosts.kill_all("h1")
    hosts["h1"].extra = [
        "PubkeyAuthentication no",
        "PasswordAuthentication yes",
        "PermitRootLogin yes",
    ]
    hosts.start_sshd("h1")
    error = refused(hosts)
    assert error.cause == "auth"
    assert "passwords are never used" in str(error)


# Many sessions, jumps, chatter


def test_forty_sessions_share_connections_within_sshds_limits(
    hosts: Hosts, node: Connection
) -> None:
    before = hosts["h1"].log.count("Accepted publickey")
    with ThreadPoolExecutor(40) as pool:
        processes = list(
            pool.map(
                lambda number: node.start(["sh", "-c", f"read x; echo {number}; exit 4"]), range(40)
            )
        )
        for process in processes:
            process.write(b"go\n")
        assert [process.read_line(60) for process in processes] == [
            b"%d\n" % number for number in range(40)
        ]
        assert {process.wait(30) for process in processes} == {4}
    for process in processes:
        process.close()
    assert hosts["h1"].log.count("Accepted publickey") - before == 4  # the first was there
    assert "MaxStartups" not in hosts["h1"].log
    assert "no more sessions" not in hosts["h1"].log
    assert node.run(["true"]).ok


def test_fewer_sessions_a_connection_are_respected(hosts: Hosts, head: Path) -> None:
    hosts.kill_all("h1")
    hosts["h1"].extra = ["MaxSessions 2"]
    hosts.start_sshd("h1")
    with connect(server(hosts)) as node:
        processes = [node.start(["cat"]) for _ in range(5)]
        for process in processes:
            process.write(b"x\n")
        assert [process.read_line(30) for process in processes] == [b"x\n"] * 5


def test_sessions_that_still_run_after_they_were_closed_do_not_use_up_the_node(
    hosts: Hosts, node: Connection
) -> None:
    for _ in range(15):
        # hears neither its input nor us
        node.start(["sh", "-c", "trap '' HUP; while :; do sleep 1000; done"]).close()
    assert node.run(["hostname"]).text == "h1"


def test_no_session_at_all_is_said(hosts: Hosts, head: Path) -> None:
    hosts.kill_all("h1")
    hosts["h1"].extra = ["MaxSessions 0"]
    hosts.start_sshd("h1")
    with pytest.raises(NodeError, match="allows no session"):
        connect(server(hosts))


def the_only_connection(address: str) -> socket.socket:
    """A connection that uses up the one that sshd allows; the fixture's own may still be ending."""
    made: list[socket.socket] = []

    def taken() -> bool:
        made.append(socket.create_connection((address, 22)))
        if made[-1].recv(4) == b"SSH-":
            return True
        made.pop().close()
        return False

    wait_until(taken)
    return made[0]


def test_a_dropped_connection_is_tried_again(
    hosts: Hosts, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []

    def watched(settings: SshSettings) -> link_module.Link:
        try:
            return link_module.open_link(settings)
        except ConnectError as error:
            dropped.append(error.cause)
            raise

    monkeypatch.setattr(connection_module, "open_link", watched)
    hosts.kill_all("h1")
    hosts["h1"].extra = ["MaxStartups 1:100:1", "LoginGraceTime 60"]
    hosts.start_sshd("h1")
    with the_only_connection(hosts["h1"].address) as held, ThreadPoolExecutor(1) as pool:
        future = pool.submit(connect, server(hosts))
        wait_until(lambda: dropped == ["lost"])
        held.close()
        with future.result(60) as node:
            assert node.run(["hostname"]).text == "h1"


def test_a_jump_through_one_node_to_another(hosts: Hosts, head: Path) -> None:
    hosts.write_ssh_config("Host inner", f"  HostName {hosts['h2'].address}", "  ProxyJump h1")
    (head / "a b").write_text("x")
    with connect(server(hosts, "inner", path=str(hosts["h2"].project))) as node:
        assert (
            node.run(["sh", "-c", "hostname; echo ${SSH_CLIENT%% *}"]).text
            == f"h2\n{hosts['h1'].address}"
        )
        before = hosts["h1"].log.count("Accepted publickey")
        assert node.push(["a b"]).bytes > 0
        assert hosts["h1"].log.count("Accepted publickey") == before + 1
        assert node.pull(["a b"], head / "in").files == ("a b",)
    hosts.known_hosts.write_text(f"{hosts['h2'].address} {hosts['h2'].public_key}\n")
    error = refused(hosts, "inner")
    assert error.cause == "proxy"
    assert "Host key verification failed" in str(error)


def test_a_proxy_command_of_the_users_own_is_used(hosts: Hosts, head: Path) -> None:
    hosts.write_ssh_config(
        "Host inner",
        f"  HostName {hosts['h2'].address}",
        f'  ProxyCommand ssh -F "{hosts.ssh_config}" -W %h:%p h1',
    )
    with connect(server(hosts, "inner", path=str(hosts["h2"].project))) as node:
        assert node.run(["sh", "-c", "echo ${SSH_CLIENT%% *}"]).text == hosts["h1"].address


def test_a_login_file_that_prints_does_no_harm(hosts: Hosts, head: Path) -> None:
    chatter = (
        "for i in $(seq 2000); do echo 'Welcome to the lab, mind the gap'; echo 'Quota 99 %' >&2;"
        " done; printf 'no line break'\n"
    )
    (hosts["h1"].home / ".bashrc").write_text(chatter)
    (head / "a").write_text("content of a")
    with connect(server(hosts)) as node:
        result = node.run(["sh", "-c", "echo out; echo err >&2"])
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        process = node.start(["cat"])
        process.write(b"x\n")
        assert process.read_line(10) == b"x\n"
        assert node.push(["a"]).bytes > 0
        assert (hosts["h1"].project / "a").read_text() == "content of a"
        node.pull(["a"], head / "in")
        assert (head / "in" / "a").read_text() == "content of a"
    plain = subprocess.run(
        ["ssh", "-F", hosts.ssh_config, "h1", "true"], capture_output=True, text=True
    )
    assert "mind the gap" in plain.stdout  # it does print


# Login shells


def with_login_shell(hosts: Hosts, shell: str) -> None:
    """h1's users get this shell."""
    if shell.startswith("/bin/") and not shutil.which(shell):
        pytest.skip(f"not installed: {shell}")
    hosts["h1"].shell = shell
    hosts.restart_sshd("h1")


@pytest.mark.parametrize("shell", ["/bin/tcsh", "/bin/csh", "/bin/bash", "/bin/dash"])
def test_any_login_shell_takes_commands_words_and_copies(
    hosts: Hosts, head: Path, shell: str
) -> None:
    with_login_shell(hosts, shell)
    (head / "a b!").write_text("content of a")
    with connect(server(hosts)) as node:
        program = 'for word; do\n  printf "%s\\0" "$word"\ndone\n'
        result = node.run(["sh", "-c", program, "sh", *HOSTILE])
        assert result.stdout == b"".join(os.fsencode(word) + b"\0" for word in HOSTILE)
        assert not (hosts["h1"].project / "pwned").exists()
        assert node.run(["sh", "-c", "cat; exit 7"], input=b"one\ntwo").stdout == b"one\ntwo"
        assert node.run(["sh", "-c", "exit 7"]).exit_code == 7
        assert probe(node)["cores"] > 0
        assert node.push(["a b!"]).bytes > 0
        node.pull(["a b!"], head / "in")
        assert (head / "in" / "a b!").read_text() == "content of a"


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ("echo disk quota exceeded >&2; exit 1\n", "disk quota exceeded"),
        ("echo account has expired; exit 1\n", "account has expired"),
        ("printf '\\033[2Jcome back\\007 later\\n' >&2; exit 1\n", "come back"),
    ],
)
def test_a_login_file_that_ends_the_shell_is_quoted(
    hosts: Hosts, head: Path, login: str, words: str
) -> None:
    (hosts["h1"].home / ".bashrc").write_text(login)
    with pytest.raises(NodeError) as caught:
        connect(server(hosts))
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_account_without_a_shell_is_told_in_its_own_words(hosts: Hosts, head: Path) -> None:
    with_login_shell(hosts, "/usr/sbin/nologin")
    with pytest.raises(NodeError, match="This account is currently not available"):
        connect(server(hosts))


def test_a_forced_command_is_told_in_its_own_words(hosts: Hosts, head: Path) -> None:
    hosts["h1"].extra = ["ForceCommand echo only backups here"]
    hosts.restart_sshd("h1")
    with pytest.raises(NodeError, match="only backups here"):
        connect(server(hosts))


def test_a_path_in_which_nothing_is_found_is_told(hosts: Hosts, head: Path) -> None:
    (hosts["h1"].home / ".bashrc").write_text("export PATH=/nowhere\n")
    with pytest.raises(NodeError, match="sh: not found"):
        connect(server(hosts))


def test_a_login_file_that_waits_for_input_is_named_and_gets_no_command(
    hosts: Hosts, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hosts["h1"].home / ".bashrc").write_text('read answer; echo "$answer" > ~/read\n')
    monkeypatch.setattr(process_module, "START_SECONDS", 1)
    with pytest.raises(NodeError, match="did not start a command in 1 s; does a login file wait"):
        connect(server(hosts))
    assert (
        not (hosts["h1"].home / "read").exists()
        or not (hosts["h1"].home / "read").read_text().strip()
    )


def test_a_slow_login_file_has_longer_than_the_answer_to_a_command(
    hosts: Hosts, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.5)
    (hosts["h1"].home / ".bashrc").write_text("sleep 1.5\n")
    with connect(server(hosts)) as node:
        assert node.run(["hostname"]).text == "h1"
    assert process_module.START_SECONDS == 30


# Copies


@settings(REAL, max_examples=8, derandomize=True)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=3), max_size=15))
@example([[word] for word in HOSTILE])
def test_names_of_files_arrive_as_they_are_both_ways(
    hosts: Hosts, node: Connection, head: Path, tmp_path_factory: pytest.TempPathFactory, parts: Any
) -> None:
    base, names = tmp_path_factory.mktemp("names"), []
    shutil.rmtree(hosts["h1"].project)
    hosts["h1"].project.mkdir()
    for part in parts:
        name = "/".join(piece.replace("/", "") for piece in part if piece not in (".", ".."))
        try:
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            if name and not (base / name).exists():
                (base / name).write_text(f"content of {name!r}")
                names.append(name)
        except OSError:  # a name below a file, or too long for the file system
            continue
    node.push(names, base)
    for name in names:
        assert (hosts["h1"].project / name).read_text() == f"content of {name!r}"
    taken = node.pull(names, base / "incoming folder")
    assert taken.files == tuple(sorted(names))
    assert all((taken.root / name).read_text() == f"content of {name!r}" for name in names)


def test_only_what_differs_is_sent_and_a_flipped_bit_is_repaired(
    hosts: Hosts, node: Connection, head: Path
) -> None:
    (head / "base_models").mkdir()
    data = os.urandom(100_000)
    (head / "base_models" / "x.pt").write_bytes(data)
    assert node.push(["base_models/x.pt"]).bytes >= 100_000
    assert node.push(["base_models/x.pt"]).bytes == 0
    there = hosts["h1"].project / "base_models" / "x.pt"
    times = there.stat()
    there.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    os.utime(there, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert node.push(["base_models/x.pt"]).bytes > 0
    assert there.read_bytes() == data


def test_data_behind_links_is_sent_and_a_link_on_the_node_is_kept(
    hosts: Hosts, node: Connection, head: Path, tmp_path: Path
) -> None:
    disk, big = tmp_path / "disk", hosts["h1"].folder / "big disk"
    (disk / "set").mkdir(parents=True)
    (disk / "set" / "ann.pt").write_text("x")
    (head / "data").symlink_to(disk)
    big.mkdir(exist_ok=True)
    (hosts["h1"].project / "data").symlink_to(big)
    node.push(["data/set/ann.pt"])
    assert (hosts["h1"].project / "data").is_symlink()
    assert (big / "set" / "ann.pt").read_text() == "x"
    assert not (big / "set" / "ann.pt").is_symlink()
    assert node.push(["data/set/ann.pt"]).bytes == 0


def test_links_of_a_node_are_never_followed_or_copied(
    hosts: Hosts, node: Connection, head: Path, tmp_path: Path
) -> None:
    secret, outside = tmp_path / "secret", tmp_path / "outside"
    secret.write_text("secret")
    outside.mkdir()
    project = hosts["h1"].project
    (project / "experiments").mkdir()
    (project / "experiments" / "metrics.json").symlink_to(secret)
    (project / "experiments" / "good.json").write_text("{}")
    os.mkfifo(project / "experiments" / "pipe")
    taken = node.pull(
        ["experiments/metrics.json", "experiments/good.json", "experiments/pipe", "experiments"],
        head / "in",
    )
    assert taken.files == ("experiments/good.json",)
    assert taken.missing == ("experiments", "experiments/metrics.json", "experiments/pipe")
    (project / "linked").symlink_to(outside)
    (outside / "f").write_text("f")
    assert node.pull(["linked/f", "experiments/good.json"], head / "in2").files == (
        "experiments/good.json",
    )
    assert node.pull(["linked/f"], head / "in3").missing == ("linked/f",)
    assert not any(
        path.is_symlink() for folder in ("in", "in2", "in3") for path in (head / folder).rglob("*")
    )
    assert secret.read_text() == "secret"


def test_what_was_not_asked_for_is_refused_with_all_the_rest(tmp_path: Path) -> None:
    def arrived(make: Callable[[Path], object]) -> tuple[str, ...]:
        folder = tmp_path / "in"
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "good").write_text("x")
        make(folder / "a" / "bad")
        try:
            return verify_arrived("h1", folder, ["a/good", "a/asked"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    assert arrived(lambda path: path.mkdir()) == ("a/good",)
    for make in (
        lambda path: path.write_text("x"),
        lambda path: path.symlink_to("/etc"),
        lambda path: path.symlink_to("good"),
        os.mkfifo,
    ):
        with pytest.raises(
            NodeError, match="'a/bad', which is not a plain file that was asked for"
        ):
            arrived(make)
        assert not (tmp_path / "in").exists()


def rsync_at_work(folder: Path) -> bool:
    """Whether a file is being written in `folder` under rsync's temporary name."""
    return (
        any(
            path.name.startswith(".big.pt.") and path.stat().st_size > 0
            for path in folder.glob(".*")
        )
        if folder.is_dir()
        else False
    )


def kill_rsync(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def big_file(folder: Path, size: int = 150 << 20) -> Path:
    path = folder / "big.pt"
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    return path


def test_a_push_whose_rsync_is_killed_on_the_node_is_repeated_and_never_half_there(
    hosts: Hosts, node: Connection, head: Path
) -> None:
    path, project = big_file(head), hosts["h1"].project
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(node.push, ["big.pt"])
        wait_until(lambda: rsync_at_work(project))
        hosts.freeze("h1")
        assert not (project / "big.pt").exists()
        kill_rsync(
            [
                pid
                for pid, command in hosts.user_processes("h1").items()
                if command.startswith("rsync")
            ]
        )
        assert not (project / "big.pt").exists()
        hosts.thaw("h1")
        copying.result(120)
    assert subprocess.run(["cmp", path, project / "big.pt"]).returncode == 0


def test_a_copy_that_is_killed_here_leaves_nothing_under_a_final_name(
    hosts: Hosts, node: Connection, head: Path
) -> None:
    path, project = big_file(head), hosts["h1"].project
    for direction in ("push", "pull"):
        with ThreadPoolExecutor(1) as pool:
            copying = (
                pool.submit(node.push, ["big.pt"])
                if direction == "push"
                else pool.submit(node.pull, ["big.pt"], head / "in")
            )
            wait_until(
                lambda direction=direction: rsync_at_work(
                    project if direction == "push" else head / "in"
                )
            )
            for process in list(node._copies):
                os.killpg(process.pid, signal.SIGKILL)
            with pytest.raises(NodeError, match="rsync was ended by signal 9"):
                copying.result(120)
        assert not (head / "in").exists()
        assert (project / "big.pt").exists() == (direction == "pull")
        node.push(["big.pt"])
    node.pull(["big.pt"], head / "in")
    assert subprocess.run(["cmp", path, head / "in" / "big.pt"]).returncode == 0


def test_closing_ends_copies(hosts: Hosts, head: Path) -> None:
    big_file(head)
    with ThreadPoolExecutor(1) as pool:
        with connect(server(hosts)) as node:
            copying = pool.submit(node.push, ["big.pt"])
            wait_until(lambda: rsync_at_work(hosts["h1"].project))
        with pytest.raises(NodeError):
            copying.result(60)
    wait_until(lambda: not hosts.user_processes("h1"))
    assert not (hosts["h1"].project / "big.pt").exists()


def test_a_copy_ends_with_a_head_that_was_killed(hosts: Hosts, head: Path) -> None:
    big_file(head)
    program = (
        "import sys; from common.cluster.config import load_config\n"
        "from common.cluster.transport.connection import connect\n"
    )
    program += "connect(load_config(sys.argv[1]).servers[0]).push(['big.pt'])"
    argv = [sys.executable, "-c", program, str(hosts.write_config(head))]
    with subprocess.Popen(
        argv, cwd=head, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True
    ) as doomed:
        wait_until(lambda: rsync_at_work(hosts["h1"].project))
        hosts.freeze("h1")
        copies = [
            pid
            for pid in children(doomed.pid)
            if b"rsync" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert copies
        doomed.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in copies))
    hosts.thaw("h1")
    wait_until(lambda: not hosts.user_processes("h1"))
    assert not (hosts["h1"].project / "big.pt").exists()


def children(pid: int) -> list[int]:
    """Its direct child processes."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def test_a_full_disk_is_said_and_leaves_no_file(hosts: Hosts, node: Connection, head: Path) -> None:
    small = hosts["h1"].project / "small"
    small.mkdir()
    (head / "small").mkdir()
    big_file(head / "small", 3 << 20)
    # sshd has a mount namespace of its own, and with it this disk ends.
    there = ["nsenter", "--mount", "--target", str(hosts.processes("h1")[0])]
    subprocess.run([*there, "mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        with pytest.raises(NodeError, match="disk full"):
            node.push(["small/big.pt"])
        assert node.run(["ls", "small"]).text == ""
    finally:
        subprocess.run([*there, "umount", "-l", small], check=True)


def test_a_node_without_rsync_says_so(hosts: Hosts, head: Path) -> None:
    (head / "a").write_text("x")
    with connect(server(hosts)) as node:
        (hosts["h1"].home / ".bashrc").write_text(
            f'PATH={hosts["h1"].home}\nsh() {{ /bin/sh "$@"; }}\n'
        )
        with pytest.raises(NodeError, match="no rsync on the node"):
            node.push(["a"])


def test_a_shared_folder_is_found_and_nothing_is_copied(hosts: Hosts, head: Path) -> None:
    (head / "a").write_text("x")
    with connect(server(hosts, path=str(head))) as node:
        assert node.shared
        assert node.push(["a"]).bytes == 0
        taken = node.pull(["a"], head / "in")
        assert (taken.root, taken.files) == (head.resolve(), ("a",))
    assert sorted(path.name for path in head.iterdir()) == ["a"]


def test_a_line_without_end_is_not_listened_to(
    node: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "MAX_LINE", 1 << 20)
    process = node.start(
        [
            "sh",
            "-c",
            "while :; do printf xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
        ]
    )
    with pytest.raises(NodeError, match="a line of more than"):
        process.read_line(60)
    process.kill()
    process.close()


def test_files_that_could_leave_the_project_are_refused(node: Connection, head: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(InputError):
            node.pull([name], head / "in")
        with pytest.raises(InputError):
            node.push([name])


def test_no_thread_or_process_is_left_after_closing(hosts: Hosts, head: Path) -> None:
    before = threading.active_count()
    hosts.write_ssh_config("Host inner", f"  HostName {hosts['h2'].address}", "  ProxyJump h1")
    with connect(server(hosts, "inner", path=str(hosts["h2"].project))) as node:
        node.start(["cat"])
    wait_until(lambda: threading.active_count() <= before)
    wait_until(lambda: not hosts.user_processes("h2"))
    wait_until(lambda: not hosts.user_processes("h1"))
