"""From a server of cluster_config.json to an authenticated paramiko transport, by OpenSSH's own
rules.

`ssh -G` answers what Include, Match, ProxyJump and the defaults come to; the file's keys are given
to it as command-line options, which win. rsync's ssh gets those same options, so both ways into a
node agree.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from common.cluster.config import Server
from common.errors import InputError, NodeError

CONNECT_SECONDS = 15
Cause = Literal["name", "refused", "timeout", "lost", "host_key", "auth", "proxy", "folder"]


class ConnectError(NodeError):
    """No connection to a node. `cause` says why; those that may pass by themselves are
    `transient`.
    """

    def __init__(self, cause: Cause, message: str, *, node: str | None = None) -> None:
        super().__init__(message, node=node)
        self.cause = cause

    @property
    def transient(self) -> bool:
        return self.cause in ("refused", "timeout", "lost")


@dataclass(frozen=True)
class SshSettings:
    """What `ssh -G` says about one server, and the options that rsync's ssh gets."""

    name: str  # of the node, for messages
    host: str  # as ssh is given it
    options: tuple[str, ...]  # ssh's arguments before the host
    hostname: str
    port: int
    user: str
    known_as: str  # the name under which known_hosts lists it
    identities: tuple[Path, ...]
    certificates: tuple[Path, ...]  # CertificateFile
    identities_only: bool
    agent: str | None  # its socket
    user_known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
    known_hosts_command: str
    accept_new: bool
    hash_names: bool
    proxy: tuple[str, ...]  # a command whose input and output are the connection; empty: a socket
    bind_address: str | None

    @property
    def ssh_command(self) -> tuple[str, ...]:
        return ("ssh", *self.options)


def home() -> str:
    """As OpenSSH takes it: from passwd, not from $HOME."""
    return pwd.getpwuid(os.getuid()).pw_dir


def expand_home(path: str) -> str:
    """`~/x` in the home folder."""
    return home() + path[1:] if path == "~" or path.startswith("~/") else path


def ssh_options(server: Server, strict: bool = True) -> list[str]:
    """The server's own keys as ssh options, for `ssh -G` and for rsync alike."""
    options = ["-F", expand_home(server.ssh_config)] if server.ssh_config else []
    options += ["-p", str(server.port)] if server.port else []
    options += ["-l", server.user] if server.user else []
    options += (
        ["-i", expand_home(server.ssh_key), "-o", "IdentitiesOnly=yes"] if server.ssh_key else []
    )
    # A control socket, a forwarding or a remote command of the user's interactive set-up would get
    # in the way.
    fixed = [
        "BatchMode=yes",
        "ControlMaster=no",
        "ControlPath=none",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
    ]
    fixed += [
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "RequestTTY=no",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    ]
    fixed += [f"ConnectTimeout={CONNECT_SECONDS}"] + (
        ["StrictHostKeyChecking=yes"] if strict else []
    )
    return options + [word for option in fixed for word in ("-o", option)]


def read_settings(server: Server) -> SshSettings:
    """Ask `ssh -G`; raises ConnectError without the key file, InputError when OpenSSH does not
    accept the configuration, or is not there.
    """
    key = expand_home(server.ssh_key) if server.ssh_key else ""
    if key and not os.path.exists(key) and not os.path.exists(key + ".pub"):
        raise ConnectError(
            "auth",
            f"no key file {key}; correct ssh_key in cluster_config.json, or make"
            " one: ssh-keygen -t ed25519",
            node=server.name,
        )
    found = _ask_openssh(server)
    one = {key: values[-1] for key, values in found.items()}
    hostname, port = one["hostname"], int(one["port"])
    if server.host_key:
        accept_new = server.host_key == "accept-new"
    else:
        accept_new = one.get("stricthostkeychecking") == "accept-new"
    alias = one.get("hostkeyalias", "none")
    bind = one.get("bindaddress", "none")
    settings = SshSettings(
        name=server.name,
        host=server.host,
        options=tuple(ssh_options(server)),
        hostname=hostname,
        port=port,
        user=one["user"],
        known_as=alias if alias != "none" else hostname if port == 22 else f"[{hostname}]:{port}",
        identities=(),
        certificates=(),
        identities_only=one.get("identitiesonly") == "yes",
        agent=_agent_socket(one.get("identityagent")),
        user_known_hosts=_files(one.get("userknownhostsfile", "")),
        global_known_hosts=_files(one.get("globalknownhostsfile", "")),
        known_hosts_command=_unless_none(one.get("knownhostscommand", "none")),
        accept_new=accept_new,
        hash_names=one.get("hashknownhosts") == "yes",
        proxy=(),
        bind_address=bind if bind != "none" else None,
    )
    identities, certificates = (
        tuple(Path(expand_tokens(settings, expand_home(path))) for path in found.get(key, []))
        for key in ("identityfile", "certificatefile")
    )
    settings = replace(settings, identities=identities, certificates=certificates)
    return _with_proxy(
        settings, server, one.get("proxyjump", "none"), one.get("proxycommand", "none")
    )


def run_openssh(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands of OpenSSH that answer at once."""
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )


def _ask_openssh(server: Server) -> dict[str, list[str]]:
    try:
        answer = run_openssh("ssh", *ssh_options(server, strict=False), "-G", server.host)
    except FileNotFoundError:
        raise InputError(
            "no ssh on this machine; install OpenSSH's client", node=server.name
        ) from None
    except subprocess.TimeoutExpired:
        raise NodeError(
            "`ssh -G` did not end in 30 s; is there a Match exec in the ssh"
            " configuration that waits?",
            node=server.name,
        ) from None
    if answer.returncode:
        raise InputError(f"OpenSSH refuses the settings: {answer.stderr.strip()}", node=server.name)
    found: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def _unless_none(value: str) -> str:
    return "" if value == "none" else value


def _agent_socket(configured: str | None) -> str | None:
    if configured == "none":
        return None
    if configured is None or configured == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    return os.environ.get(configured[1:]) if configured.startswith("$") else expand_home(configured)


def _files(line: str) -> tuple[Path, ...]:
    """The paths of one line of `ssh -G`, which separates them by spaces and does not say which
    spaces are inside: the longest existing wins.
    """
    words, files = line.split(" "), []
    while words and words != [""]:
        for size in range(len(words), 0, -1):
            path = expand_home(" ".join(words[:size]))
            if size == 1 or Path(path).exists():
                files.append(Path(path))
                words = words[size:]
                break
    return tuple(f for f in files if str(f) not in ("none", "/dev/null"))


def expand_tokens(
    settings: SshSettings, text: str, more: Mapping[str, str] = MappingProxyType({})
) -> str:
    """OpenSSH's percent tokens that `ssh -G` leaves unexpanded, and `more` of them."""
    values = {
        "%": "%",
        "h": settings.hostname,
        "p": str(settings.port),
        "r": settings.user,
        "n": settings.host,
        "d": home(),
        "u": pwd.getpwuid(os.getuid()).pw_name,
        "i": str(os.getuid()),
        "l": socket.gethostname(),
        "L": socket.gethostname().split(".")[0],
        **more,
    }
    return re.sub("%(.)", lambda found: values.get(found[1], found[0]), text)


def _with_proxy(settings: SshSettings, server: Server, jumps: str, command: str) -> SshSettings:
    """ProxyJump becomes our own `ssh -W`, so that the jump asks no questions and checks host keys
    as the node itself does.
    """
    if jumps != "none":
        *before, last = jumps.split(",")
        checking = "accept-new" if settings.accept_new else "yes"
        argv = (
            ["ssh"]
            + (["-F", expand_home(server.ssh_config)] if server.ssh_config else [])
            + (["-J", ",".join(before)] if before else [])
        )
        for option in (
            "BatchMode=yes",
            f"StrictHostKeyChecking={checking}",
            "ControlPath=none",
            f"ConnectTimeout={CONNECT_SECONDS}",
        ):
            argv += ["-o", option]
        argv += ["-W", f"[{settings.hostname}]:{settings.port}", *_jump(last)]
        quoted = shlex.join(argv).replace("%", "%%")
        return replace(
            settings, proxy=tuple(argv), options=(*settings.options, "-o", f"ProxyCommand={quoted}")
        )
    if command != "none":
        # The user's own line in the user's own file; OpenSSH hands it to a shell as well.
        return replace(
            settings, proxy=("/bin/sh", "-c", "exec " + expand_tokens(settings, command))
        )
    return settings


def _jump(text: str) -> list[str]:
    """ssh's arguments for a destination `[user@]host[:port]`; an IPv6 address stands in brackets
    before a port. (ssh itself takes a port only in a URI, which cannot hold an IPv6 address.)
    """
    user, _, place = text.rpartition("@")
    found = re.fullmatch(
        r"\[(?P<v6>[^\]]+)\](?::(?P<p6>\d+))?|(?P<host>[^:]+):(?P<port>\d+)", place
    )
    host, port = place, None
    if found:
        host, port = found["v6"] or found["host"], found["p6"] or found["port"]
    return [*(["-l", user] if user else []), *(["-p", port] if port else []), "--", host]


def own_options(options: Sequence[str]) -> list[str]:
    """-F, -p, -l and -i: what a person has to type to reach the same place."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    return [word for flag, value in pairs if flag != "-o" for word in (flag, value)]
