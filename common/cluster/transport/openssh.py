"""From a server of cluster_config.json to an authenticated paramiko transport, by OpenSSH's own
rules.

`ssh -G` answers what Include, Match, ProxyJump and the defaults come to; the file's keys are given
to it as command-line options, which win. rsync's ssh gets those same options, so both ways into a
node agree.
"""

from __future__ import annotations

import base64
import itertools
import logging
import os
import pwd
import re
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

import paramiko
from paramiko.agent import AgentKey, AgentSSH
from paramiko.hostkeys import HostKeyEntry, HostKeys

from common.cluster.config import Server
from common.errors import InputError, NodeError

CONNECT_SECONDS = 15
# paramiko reports a lost link to the root logger's last resort, which is standard error; failures
# reach the caller as exceptions anyway.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

Cause = Literal["name", "refused", "timeout", "lost", "host_key", "auth", "proxy", "folder"]
_recording = threading.Lock()  # one writer of a known_hosts file at a time


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
class Settings:
    """What `ssh -G` says about one server, and the options that rsync's ssh gets."""

    name: str  # of the node, for messages
    host: str  # as ssh is given it
    options: tuple[str, ...]  # ssh's arguments before the host
    hostname: str
    port: int
    user: str
    known_as: str  # the name under which known_hosts lists it
    identities: tuple[Path, ...]
    identities_only: bool
    agent: str | None  # its socket
    user_known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
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


def read_settings(server: Server) -> Settings:
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
    settings = Settings(
        name=server.name,
        host=server.host,
        options=tuple(ssh_options(server)),
        hostname=hostname,
        port=port,
        user=one["user"],
        known_as=alias if alias != "none" else hostname if port == 22 else f"[{hostname}]:{port}",
        identities=(),
        identities_only=one.get("identitiesonly") == "yes",
        agent=_agent_socket(one.get("identityagent")),
        user_known_hosts=_files(one.get("userknownhostsfile", "")),
        global_known_hosts=_files(one.get("globalknownhostsfile", "")),
        accept_new=accept_new,
        hash_names=one.get("hashknownhosts") == "yes",
        proxy=(),
        bind_address=bind if bind != "none" else None,
    )
    settings = replace(
        settings,
        identities=tuple(
            Path(_tokens(settings, expand_home(p))) for p in found.get("identityfile", [])
        ),
    )
    return _with_proxy(
        settings, server, one.get("proxyjump", "none"), one.get("proxycommand", "none")
    )


def _ask_openssh(server: Server) -> dict[str, list[str]]:
    try:
        answer = subprocess.run(
            ["ssh", *ssh_options(server, strict=False), "-G", server.host],
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )
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


def _tokens(settings: Settings, text: str) -> str:
    """OpenSSH's percent tokens that `ssh -G` leaves unexpanded."""
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
    }
    return re.sub("%(.)", lambda found: values.get(found[1], found[0]), text)


def _with_proxy(settings: Settings, server: Server, jumps: str, command: str) -> Settings:
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
        argv += ["-W", f"[{settings.hostname}]:{settings.port}", _jump(last)]
        quoted = shlex.join(argv).replace("%", "%%")
        return replace(
            settings, proxy=tuple(argv), options=(*settings.options, "-o", f"ProxyCommand={quoted}")
        )
    if command != "none":
        # The user's own line in the user's own file; OpenSSH hands it to a shell as well.
        return replace(settings, proxy=("/bin/sh", "-c", "exec " + _tokens(settings, command)))
    return settings


def _jump(text: str) -> str:
    """ssh takes a port with its destination only as a URI."""
    return f"ssh://{text}" if re.search(r":\d+$", text) and "://" not in text else text


@dataclass
class Link:
    """An authenticated transport, and the proxy command that carries it, if any."""

    transport: paramiko.Transport
    proxy: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End both; safe to repeat."""
        self.transport.close()
        if self.proxy:
            self.proxy.kill()
            self.proxy.wait()


def open_link(settings: Settings) -> Link:
    """Connect, check the host key, authenticate. Raises ConnectError; nothing is sent for
    authentication before the host key is accepted.
    """
    with tempfile.TemporaryFile() as said:
        sock, proxy = (
            _open_proxy(settings, said) if settings.proxy else (_open_socket(settings), None)
        )
        link = Link(paramiko.Transport(sock), proxy)
        try:
            _negotiate(link.transport, settings, said)
            check_host_key(settings, link.transport.get_remote_server_key())
            _authenticate(link.transport, settings)
        except BaseException:
            link.close()
            raise
    # only keeps firewalls from forgetting the connection: it does not notice a cut link in useful
    # time
    link.transport.set_keepalive(30)
    return link


def _open_proxy(s: Settings, said: IO[bytes]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A socket whose other end is the command's input and output (paramiko's own ProxyCommand spins
    for ever when the command ends).
    """
    ours, theirs = socket.socketpair()
    with theirs:
        return ours, subprocess.Popen(
            s.proxy,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=said,
            start_new_session=True,
        )


def _open_socket(s: Settings) -> socket.socket:
    try:
        return socket.create_connection(
            (s.hostname, s.port), CONNECT_SECONDS, (s.bind_address, 0) if s.bind_address else None
        )
    except socket.gaierror as error:
        raise ConnectError(
            "name",
            f"cannot find the host {s.hostname}: {error.strerror}; check the name, or"
            " your ssh config",
            node=s.name,
        ) from None
    except ConnectionRefusedError:
        raise ConnectError(
            "refused",
            f"{s.hostname} refuses port {s.port}: is sshd running there, and is it this port?",
            node=s.name,
        ) from None
    except TimeoutError:
        raise ConnectError(
            "timeout",
            f"no answer from {s.hostname} port {s.port} in {CONNECT_SECONDS} s: is it on,"
            " and in this network?",
            node=s.name,
        ) from None
    except OSError as error:
        raise ConnectError(
            "timeout",
            f"cannot reach {s.hostname} port {s.port}: {error.strerror or error}",
            node=s.name,
        ) from None


def _negotiate(transport: paramiko.Transport, s: Settings, said: IO[bytes]) -> None:
    transport.banner_timeout = transport.auth_timeout = CONNECT_SECONDS
    transport.get_security_options().key_types = _known_types_first(transport, s)
    started = time.monotonic()
    try:
        transport.start_client(timeout=2 * CONNECT_SECONDS)
        if not transport.initial_kex_done:
            raise _silent(s)
    except (paramiko.SSHException, EOFError, OSError) as error:
        said.seek(0)
        if s.proxy:
            words = said.read().decode(errors="replace").strip().splitlines() or [str(error)]
            raise ConnectError(
                "proxy",
                f"no connection through {shlex.join(s.proxy)}: {'; '.join(words[-3:])}",
                node=s.name,
            ) from None
        if time.monotonic() - started >= CONNECT_SECONDS:
            raise _silent(s) from None
        raise ConnectError(
            "lost",
            f"{s.hostname} port {s.port} ended the connection: {error or 'no reason given'}",
            node=s.name,
        ) from None


def _silent(s: Settings) -> ConnectError:
    return ConnectError(
        "timeout",
        f"{s.hostname} port {s.port} takes the connection but does not speak; is the node frozen?",
        node=s.name,
    )


def _known_types_first(transport: paramiko.Transport, s: Settings) -> tuple[str, ...]:
    """Ask for the kind of host key that we know, as OpenSSH does: otherwise a node with several
    would look changed.
    """
    known = {kind for _, marker, kind, _ in _known(s) if not marker}
    wanted = {kind for kind in known if kind != "ssh-rsa"} | (
        {"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in known else set()
    )
    return tuple(
        sorted(transport.get_security_options().key_types, key=lambda kind: kind not in wanted)
    )


def _known(s: Settings) -> Iterable[tuple[Path, str, str, str]]:
    """(file, marker, kind, key in base64) of each known_hosts line for this node; ssh-keygen knows
    hashed names and patterns.
    """
    for path in (*s.user_known_hosts, *s.global_known_hosts):
        if not path.is_file():
            continue
        answer = subprocess.run(
            ["ssh-keygen", "-F", s.known_as, "-f", str(path)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        for line in answer.stdout.splitlines():
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) >= 3 and not line.startswith("#"):
                yield path, marker, words[1], words[2]


def check_host_key(s: Settings, offered: paramiko.PKey) -> None:
    """Return when known_hosts has this key (or it is new and `accept-new` recorded it); raise
    ConnectError otherwise.
    """
    entries = [
        (path, marker, key) for path, marker, _, key in _known(s) if marker != "@cert-authority"
    ]
    shown, kind = offered.fingerprint, offered.get_name()
    if any(marker == "@revoked" and key == offered.get_base64() for _, marker, key in entries):
        raise ConnectError(
            "host_key",
            f"its host key {shown} is marked @revoked; do not connect until the node has a new one",
            node=s.name,
        )
    plain = [(path, key) for path, marker, key in entries if not marker]
    if any(key == offered.get_base64() for _, key in plain):
        return
    if plain:
        path = plain[0][0]
        old = ", ".join(sorted({_fingerprint(key) for _, key in plain}))
        raise ConnectError(
            "host_key",
            f"THE HOST KEY HAS CHANGED: {path} knows {old}, the node offers {kind}"
            f" {shown}; somebody may be in between. Nothing was sent. If the node was set up anew:"
            f" {shlex.join(['ssh-keygen', '-R', s.known_as, '-f', str(path)])}, then connect once"
            " by hand",
            node=s.name,
        )
    if not s.accept_new:
        by_hand = ["ssh", *own_options(s.options), s.host, "true"]
        file = (
            "ecdsa"
            if kind.startswith("ecdsa")
            else "rsa"
            if "rsa" in kind
            else kind.removeprefix("ssh-")
        )
        raise ConnectError(
            "host_key",
            f"unknown host key {kind} {shown}; compare it on the node (ssh-keygen -lf"
            f" /etc/ssh/ssh_host_{file}_key.pub) and "
            f'accept it with: {shlex.join(by_hand)}; or set "host_key": "accept-new" in'
            " cluster_config.json",
            node=s.name,
        )
    _record(s, offered)


def own_options(options: Sequence[str]) -> list[str]:
    """-F, -p, -l and -i: what a person has to type to reach the same place."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    return [word for flag, value in pairs if flag != "-o" for word in (flag, value)]


def _fingerprint(key: str) -> str:
    try:
        return paramiko.PKey.from_type_string(_kind(key), base64.b64decode(key)).fingerprint
    except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
        return "an unreadable key"


def _kind(key: str) -> str:
    return paramiko.Message(base64.b64decode(key)).get_text()


def _record(s: Settings, key: paramiko.PKey) -> None:
    """Append to the first user known_hosts file, under a hashed name where ssh is told to hash."""
    if not s.user_known_hosts:
        raise ConnectError(
            "host_key",
            "accept-new needs a known_hosts file to record the key in,"
            " UserKnownHostsFile names none",
            node=s.name,
        )
    path = s.user_known_hosts[0]
    entry = HostKeyEntry([HostKeys.hash_host(s.known_as) if s.hash_names else s.known_as], key)
    with _recording:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            newline = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(newline + (entry.to_line() or "").encode())


class _Agent(AgentSSH):
    """The agent at a given socket (paramiko's own takes only SSH_AUTH_SOCK)."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        if path:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(CONNECT_SECONDS)
                sock.connect(path)
                self._connect(sock)  # type: ignore[attr-defined]  # what paramiko.Agent itself does
            except (OSError, paramiko.SSHException):
                # a dead agent is as good as none; the message about keys tells what was tried
                sock.close()

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def _authenticate(transport: paramiko.Transport, s: Settings) -> None:
    """Agent and key files, in OpenSSH's order: agent keys that are configured, other agent keys,
    files.
    """
    agent = _Agent(s.agent)
    try:
        wanted = {
            p: _public_fingerprint(p)
            for p in s.identities
            if p.exists() or p.with_name(p.name + ".pub").exists()
        }
        held: list[AgentKey] = list(agent.get_keys())
        configured = [key for key in held if key.fingerprint in wanted.values()]
        others = [] if s.identities_only else [key for key in held if key not in configured]
        in_agent = {key.fingerprint for key in held}
        files, problems = _load([path for path, shown in wanted.items() if shown not in in_agent])
        tried = 0
        for key in itertools.chain(configured, others, files):
            tried += 1
            if _accepted(transport, s, key):
                return
    finally:
        agent.close()
    raise ConnectError(
        "auth",
        f"{s.user}@{s.hostname} accepts none of our keys ({tried} tried); "
        + ("; ".join(problems) or _advice(s)),
        node=s.name,
    )


def _advice(s: Settings) -> str:
    return (
        "set one up: ssh-keygen -t ed25519, then"
        f" {shlex.join(['ssh-copy-id', '-p', str(s.port), f'{s.user}@{s.hostname}'])}"
    )


def _public_fingerprint(path: Path) -> str:
    """Of a key file, readable without its passphrase."""
    answer = subprocess.run(
        ["ssh-keygen", "-lf", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    words = answer.stdout.split()
    return words[1] if answer.returncode == 0 and len(words) > 1 else ""


def _load(paths: Iterable[Path]) -> tuple[list[paramiko.PKey], list[str]]:
    """The keys that can be used, and what is wrong with the others."""
    keys, problems = [], []
    for path in paths:
        try:
            if path.stat().st_mode & 0o077 and path.stat().st_uid == os.getuid():
                problems.append(
                    f"others may read {path}, so ssh ignores it:"
                    f" {shlex.join(['chmod', '600', str(path)])}"
                )
                continue
            keys.append(paramiko.PKey.from_path(path))
        except FileNotFoundError:
            continue  # only the .pub is here: the private half is meant to be in the agent
        except (TypeError, paramiko.PasswordRequiredException):
            problems.append(
                f"{path} is locked by its passphrase: run {shlex.join(['ssh-add', str(path)])}"
            )
        except (ValueError, OSError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
            problems.append(
                f"cannot use {path}: {type(error).__name__}; put it into the agent:"
                f" {shlex.join(['ssh-add', str(path)])}"
            )
    return keys, problems


def _accepted(transport: paramiko.Transport, s: Settings, key: paramiko.PKey) -> bool:
    try:
        transport.auth_publickey(s.user, key)
    except paramiko.BadAuthenticationType as error:
        kinds = ", ".join(error.allowed_types)
        raise ConnectError(
            "auth",
            f"{s.hostname} takes no keys, only {kinds}; passwords are never used: allow"
            " PubkeyAuthentication there",
            node=s.name,
        ) from None
    except paramiko.AuthenticationException:
        return False
    except (paramiko.SSHException, EOFError, OSError) as error:
        advice = 'name the right one with "ssh_key"'
        raise ConnectError(
            "auth",
            f"{s.hostname} ended the connection while keys were tried ({error}); {advice}",
            node=s.name,
        ) from None
    if not transport.is_authenticated():
        raise ConnectError(
            "auth",
            f"{s.hostname} wants more than a key; only keys are used",
            node=s.name,
        )
    return True
