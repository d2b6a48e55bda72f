"""An authenticated paramiko transport to a node."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import paramiko
from paramiko.agent import AgentKey, AgentSSH

from common.cluster.transport.host_keys import CERTIFICATE, check_host_key, known_types_first
from common.cluster.transport.openssh import CONNECT_SECONDS, ConnectError, SshSettings, run_openssh

# paramiko reports a lost link to the root logger's last resort, which is standard error; failures
# reach the caller as exceptions anyway.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass
class Link:
    """An authenticated transport, and the proxy command that carries it, if any."""

    transport: paramiko.Transport
    proxy: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End both; safe to repeat."""
        self.transport.close()
        self.transport.sock.close()  # paramiko leaves it open before the transport has started
        if self.proxy:
            self.proxy.kill()
            self.proxy.wait()


def open_link(settings: SshSettings) -> Link:
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


def _open_proxy(s: SshSettings, said: IO[bytes]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
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


def _open_socket(s: SshSettings) -> socket.socket:
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


def _negotiate(transport: paramiko.Transport, s: SshSettings, said: IO[bytes]) -> None:
    transport.banner_timeout = transport.auth_timeout = CONNECT_SECONDS
    transport.get_security_options().key_types = known_types_first(transport, s)
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


def _silent(s: SshSettings) -> ConnectError:
    return ConnectError(
        "timeout",
        f"{s.hostname} port {s.port} takes the connection but does not speak; is the node frozen?",
        node=s.name,
    )


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
                # a dead agent counts as none; the message about keys says what was tried
                sock.close()

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def _authenticate(transport: paramiko.Transport, s: SshSettings) -> None:
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
        plain = [*configured, *others, *files]
        for key in itertools.chain(_certified(s, [*held, *files]), plain):
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


def _certified(s: SshSettings, keys: Iterable[paramiko.PKey]) -> list[paramiko.PKey]:
    """Keys with their certificates: CertificateFile, and those that lie beside key files."""
    by_public = {key.get_base64(): key for key in keys}
    beside = [path.with_name(path.name + "-cert.pub") for path in s.identities]
    found: list[paramiko.PKey] = []
    for path in dict.fromkeys((*s.certificates, *beside)):
        try:
            blob = paramiko.pkey.PublicBlob.from_file(str(path))
            kind = blob.key_type.removesuffix(CERTIFICATE)
            public = paramiko.PKey.from_type_string(kind, blob.key_blob).get_base64()
        except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
            continue
        if public in by_public:
            key = copy.copy(by_public[public])
            key.public_blob = blob
            found.append(key)
    return found


def _advice(s: SshSettings) -> str:
    return (
        "set one up: ssh-keygen -t ed25519, then"
        f" {shlex.join(['ssh-copy-id', '-p', str(s.port), f'{s.user}@{s.hostname}'])}"
    )


def _public_fingerprint(path: Path) -> str:
    """Of a key file, readable without its passphrase."""
    answer = run_openssh("ssh-keygen", "-lf", str(path))
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


def _accepted(transport: paramiko.Transport, s: SshSettings, key: paramiko.PKey) -> bool:
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
            "auth", f"{s.hostname} wants more than a key; only keys are used", node=s.name
        )
    return True
