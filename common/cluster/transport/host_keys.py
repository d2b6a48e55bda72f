"""A node's host key, checked as OpenSSH does: known_hosts files, KnownHostsCommand, and host
certificates of a @cert-authority.
"""

from __future__ import annotations

import base64
import fnmatch
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys

from common.cluster.transport.openssh import (
    ConnectError,
    SshSettings,
    expand_tokens,
    own_options,
    run_openssh,
)

CERTIFICATE = "-cert-v01@openssh.com"  # end of a certificate's kind

_recording = threading.Lock()  # one writer of a known_hosts file at a time


@dataclass(frozen=True)
class KnownKey:
    """A line of a known_hosts file, or of KnownHostsCommand's answer, that is for this node."""

    source: str
    marker: str  # "", @revoked or @cert-authority
    kind: str
    key: str  # in base64


def known_types_first(transport: paramiko.Transport, s: SshSettings) -> tuple[str, ...]:
    """Ask for the kind of host key that we know, as OpenSSH does: otherwise a node with several
    would look changed.
    """
    known = list(_known(s))
    kinds = {entry.kind for entry in known if not entry.marker}
    wanted = {kind for kind in kinds if kind != "ssh-rsa"} | (
        {"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in kinds else set()
    )
    offered = transport.get_security_options().key_types
    certified = any(entry.marker == "@cert-authority" for entry in known)
    certificates = tuple(f"{kind}{CERTIFICATE}" for kind in offered) if certified else ()
    return (*certificates, *sorted(offered, key=lambda kind: kind not in wanted))


def _known(s: SshSettings, offered: paramiko.PKey | None = None) -> Iterable[KnownKey]:
    """What is known of the node's host keys."""
    for path in (*s.user_known_hosts, *s.global_known_hosts):
        if path.is_file():
            yield from _lines(s, path, str(path))
    if s.known_hosts_command:
        with tempfile.NamedTemporaryFile("wb") as file:
            file.write(_run_command(s, offered))
            file.flush()
            yield from _lines(s, Path(file.name), "KnownHostsCommand")


def _lines(s: SshSettings, path: Path, source: str) -> Iterable[KnownKey]:
    """ssh-keygen knows hashed names and patterns."""
    answer = run_openssh("ssh-keygen", "-F", s.known_as, "-f", str(path))
    for line in answer.stdout.splitlines():
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) >= 3 and not line.startswith("#"):
            yield KnownKey(source, marker, words[1], words[2])


def _run_command(s: SshSettings, offered: paramiko.PKey | None) -> bytes:
    """The answer of KnownHostsCommand, before (ORDER) or after the node has shown its key."""
    tokens = {"H": s.known_as, "k": plain_name(s), "I": "HOSTNAME" if offered else "ORDER"}
    tokens |= {
        "t": offered.get_name() if offered else "NONE",
        "K": offered.get_base64() if offered else "NONE",
        "f": offered.fingerprint if offered else "NONE",
    }
    argv = [expand_tokens(s, word, tokens) for word in shlex.split(s.known_hosts_command)]
    try:
        answer = subprocess.run(
            argv, capture_output=True, timeout=30, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConnectError(
            "host_key", f"KnownHostsCommand {argv[0]} failed: {error}", node=s.name
        ) from None
    return answer.stdout


def plain_name(s: SshSettings) -> str:
    """The name under which the node is known, without a port."""
    return re.sub(r"^\[(.*)\]:\d+$", r"\1", s.known_as)


def check_host_key(s: SshSettings, offered: paramiko.PKey) -> None:
    """Return when the key is known (or it is new and `accept-new` recorded it), or certified by a
    known authority; raise ConnectError otherwise.
    """
    entries = list(_known(s, offered))
    shown = offered.fingerprint
    blob = getattr(offered, "public_blob", None)
    certificate = HostCertificate.read(blob.key_blob) if blob is not None else None
    revoked = {entry.key for entry in entries if entry.marker == "@revoked"}
    if revoked & {offered.get_base64(), certificate.authority if certificate else ""}:
        raise ConnectError(
            "host_key",
            f"its host key {shown} is marked @revoked; do not connect until the node has a new one",
            node=s.name,
        )
    authorities = {entry.key for entry in entries if entry.marker == "@cert-authority"}
    if certificate and certificate.authority in authorities:
        if problem := certificate.problem(plain_name(s), time.time()):
            raise ConnectError("host_key", f"its host certificate {problem}", node=s.name)
        return
    _check_plain(s, offered, [entry for entry in entries if not entry.marker])


def _check_plain(s: SshSettings, offered: paramiko.PKey, known: Sequence[KnownKey]) -> None:
    shown, kind = offered.fingerprint, offered.get_name()
    if any(entry.key == offered.get_base64() for entry in known):
        return
    if known:
        path = known[0].source
        old = ", ".join(sorted({_fingerprint(entry.key) for entry in known}))
        raise ConnectError(
            "host_key",
            f"THE HOST KEY HAS CHANGED: {path} knows {old}, the node offers {kind}"
            f" {shown}; another machine may be answering. Nothing was sent. If the node was set up"
            f" anew: {shlex.join(['ssh-keygen', '-R', s.known_as, '-f', path])}, then connect once"
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


@dataclass(frozen=True)
class HostCertificate:
    """An OpenSSH host certificate (PROTOCOL.certkeys of OpenSSH)."""

    kind: int  # 1: of a user, 2: of a host
    principals: tuple[str, ...]
    after: int
    before: int
    critical: bytes
    authority: str  # public key in base64
    signed: bytes
    signature: bytes

    @classmethod
    def read(cls, blob: bytes) -> HostCertificate:
        """From its bytes on the wire."""
        message = paramiko.Message(blob)
        fields = {"ssh-ed25519": 1, "ssh-rsa": 2}.get(message.get_text().partition("-cert-")[0], 2)
        for _ in range(1 + fields):  # a nonce, and the numbers of the public key
            message.get_string()
        message.get_int64()  # a serial number
        kind = message.get_int()
        message.get_string()  # an identity for logs
        names, principals = paramiko.Message(message.get_string()), list[str]()
        while names.get_remainder():
            principals.append(names.get_text())
        after, before = message.get_int64(), message.get_int64()
        critical = message.get_string()
        message.get_string()  # extensions
        message.get_string()  # reserved
        authority = message.get_string()
        signed = message.get_so_far()
        return cls(
            kind,
            tuple(principals),
            after,
            before,
            critical,
            base64.b64encode(authority).decode(),
            signed,
            message.get_string(),
        )

    def problem(self, name: str, now: float) -> str:
        """Why it does not prove that this is host `name`; empty where it does."""
        if self.kind != 2:
            return "is not that of a host"
        if not self.after <= now < self.before:
            return "is not valid at this time"
        if self.principals and not any(fnmatch.fnmatchcase(name, p) for p in self.principals):
            return f"is for {', '.join(self.principals)}, not for {name}"
        if self.critical:
            return "has critical options, which host certificates cannot have"
        authority = paramiko.PKey.from_type_string(
            _kind(self.authority), base64.b64decode(self.authority)
        )
        if not authority.verify_ssh_sig(self.signed, paramiko.Message(self.signature)):
            return "has a wrong signature"
        return ""


def _fingerprint(key: str) -> str:
    try:
        return paramiko.PKey.from_type_string(_kind(key), base64.b64decode(key)).fingerprint
    except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
        return "an unreadable key"


def _kind(key: str) -> str:
    return paramiko.Message(base64.b64decode(key)).get_text()


def _record(s: SshSettings, key: paramiko.PKey) -> None:
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
