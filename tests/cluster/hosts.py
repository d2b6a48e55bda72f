"""Three real SSH hosts on this machine: network namespaces on a bridge, each with its own sshd,
host key, home and project folder.

    with Hosts(tmp_path) as hosts:
        config = hosts.write_config(folder)        # a cluster_config.json for all of them
        hosts.cut("h1"); hosts.heal("h1")          # the link
        hosts.freeze("h2"); hosts.thaw("h2")       # SIGSTOP, SIGCONT of everything on it
        hosts.kill_all("h3"); hosts.start_sshd("h3")

What a host runs is known by its network namespace, and ends with it: `close` kills by process id,
also after a failed set-up. The hosts share this machine's file system and user (root), so each has
a folder of its own: `folder` (its disk), `project` in it, and HOME and TMPDIR in it through sshd's
SetEnv.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.conftest import ROOT

SSHD = "/usr/sbin/sshd"
NAMES = ("h1", "h2", "h3")
DOMAIN_USERS = ("LAB\\ann", "ann@lab.example")  # further names of root there
RECORDS = Path(tempfile.gettempdir()) / "ml-customization-hosts"


def missing_parts() -> str:
    """Why hosts cannot be made here, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if lacking := [
        tool
        for tool in (SSHD, "ip", "rsync", "ssh", "ssh-keygen", "unshare")
        if not shutil.which(tool)
    ]:
        return f"not installed: {', '.join(lacking)}"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "network namespaces are not allowed here"


@dataclass
class Host:
    """One host."""

    name: str
    namespace: str
    link: str  # this machine's end of its cable
    address: str
    address6: str
    folder: Path
    # lines for its sshd_config, before the next start_sshd
    extra: list[str] = field(default_factory=list)
    shell: str = ""  # login shell on it from the next start_sshd on; empty: this machine's
    sshd: subprocess.Popen[bytes] | None = None

    @property
    def project(self) -> Path:
        """Its project folder."""
        return self.folder / "project"

    @property
    def home(self) -> Path:
        """What HOME is on it."""
        return self.folder / "home"

    @property
    def public_key(self) -> str:
        """Kind and key, as known_hosts holds them."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def log(self) -> str:
        """What its sshd logged."""
        return (self.folder / "sshd.log").read_text(errors="replace")


class Hosts:
    """The context manager. `ssh` is a folder with ssh_config, known_hosts and the user's key."""

    first = 1  # where the search for a free number begins

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES) -> None:
        self.folder, self.names = folder / "hosts", names
        self.ssh = self.folder / "ssh"
        self.ssh_config, self.known_hosts, self.key = (
            self.ssh / "ssh_config",
            self.ssh / "known_hosts",
            self.ssh / "id_ed25519",
        )
        self.hosts: dict[str, Host] = {}
        self._record: IO[str] | None = None
        self.number = 0

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Hosts:
        try:
            self._claim_number()
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Making

    def _claim_number(self) -> None:
        """A number for bridge, namespaces and subnet. Its record is locked while its owner lives:
        what a free one names is left over.
        """
        RECORDS.mkdir(exist_ok=True)
        for number in range(self.first, 250):
            record = (RECORDS / f"{number}.lock").open("a+")
            try:
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                record.close()
                continue
            ours = (RECORDS / f"{number}.made").exists()
            if not ours and any(name.startswith(f"mlc{number}-") for name in _namespaces()):
                record.close()  # somebody else's: not touched
                continue
            self.number, self._record = number, record
            self._remove_network()
            (RECORDS / f"{number}.made").write_text(str(os.getpid()))
            return
        raise RuntimeError("no free number for test hosts")

    def _make(self) -> None:
        self.ssh.mkdir(parents=True)
        # sshd's privilege separation wants it; a package's service would make it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "user", "-f", self.key)
        _call("ip", "link", "add", self.bridge, "type", "bridge")
        _call("ip", "addr", "add", f"{self.address(1)}/24", "dev", self.bridge)
        own = f"{self.address6(1)}/64"
        _call("ip", "-6", "addr", "add", own, "dev", self.bridge, "nodad")
        _call("ip", "link", "set", self.bridge, "up")
        for index, name in enumerate(self.names):
            self.hosts[name] = host = Host(
                name,
                f"mlc{self.number}-{name}",
                f"mlc{self.number}v{index}",
                self.address(11 + index),
                self.address6(11 + index),
                self.folder / name,
            )
            self._plug_in(host)
            self._furnish(host)
            self.start_sshd(name)
        self.write_ssh_config()
        self.write_known_hosts()

    def write_known_hosts(self) -> None:
        """The right key for each host."""
        self.known_hosts.write_text(
            "".join(f"{host.address} {host.public_key}\n" for host in self.hosts.values())
        )

    def reset(self) -> None:
        """As after the start, with empty project and home folders."""
        self.write_ssh_config()
        self.write_known_hosts()
        for name, host in self.hosts.items():
            self.heal(name)
            self.kill_all(name)
            host.extra, host.shell = [], ""
            for folder in (host.project, host.home, host.folder / "tmp"):
                shutil.rmtree(folder)
                folder.mkdir()
            self.start_sshd(name)

    @property
    def bridge(self) -> str:
        return f"mlc{self.number}br"

    def address(self, last: int) -> str:
        """In 198.18.0.0/15, set aside for such networks (RFC 2544)."""
        return f"198.18.{self.number}.{last}"

    def address6(self, last: int) -> str:
        """A unique local IPv6 address."""
        return f"fd98:{self.number:x}::{last}"

    def _plug_in(self, host: Host) -> None:
        _call("ip", "netns", "add", host.namespace)
        _call(
            "ip",
            "link",
            "add",
            host.link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            host.namespace,
        )
        _call("ip", "link", "set", host.link, "master", self.bridge, "up")
        for words in (
            ["addr", "add", f"{host.address}/24", "dev", "eth0"],
            ["-6", "addr", "add", f"{host.address6}/64", "dev", "eth0", "nodad"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            _call("ip", "-n", host.namespace, *words)

    def _furnish(self, host: Host) -> None:
        for folder in (host.project, host.home, host.folder / "tmp"):
            folder.mkdir(parents=True)
        built = host.project / "cache"  # the kernel as built here: no host compiles it again
        built.mkdir()
        for library in (ROOT / "cache").glob("kernel-*.s*"):
            shutil.copy(library, built)
        _call(
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            host.name,
            "-f",
            host.folder / "host_key",
        )
        shutil.copy(self.key.with_suffix(".pub"), host.folder / "authorized_keys")

    def write_ssh_config(self, *more: str, key: bool = True) -> None:
        """Each host under its name, with `more` lines before them (the first value for an option
        wins), with or without the user's key.
        """
        lines = [*more]
        for host in self.hosts.values():
            lines += [f"Host {host.name}", f"  HostName {host.address}"]
        lines += [
            "Host *",
            "  User root",
            "  IdentitiesOnly yes",
            f'  UserKnownHostsFile "{self.known_hosts}"',
        ]
        lines += ["  GlobalKnownHostsFile /dev/null"] + (
            [f'  IdentityFile "{self.key}"'] if key else []
        )
        self.ssh_config.write_text("\n".join(lines) + "\n")

    def start_sshd(self, name: str) -> None:
        """Start it, with the host's `extra` lines first, and wait until it answers."""
        host = self.hosts[name]
        config = [
            *host.extra,
            "Port 22",
            f"ListenAddress {host.address}",
            f"ListenAddress {host.address6}",
            f'HostKey "{host.folder}/host_key"',
            f'AuthorizedKeysFile "{host.folder}/authorized_keys"',
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "UseDNS no",
            "PidFile none",
            "LogLevel VERBOSE",
            f'SetEnv HOME="{host.home}" TMPDIR="{host.folder}/tmp" OMP_NUM_THREADS=1',
        ]
        (host.folder / "sshd_config").write_text("\n".join(config) + "\n")
        passwd, lines = host.folder / "passwd", Path("/etc/passwd").read_text().splitlines()
        if host.shell:
            root = next(line for line in lines if line.startswith("root:"))
            lines[lines.index(root)] = root.rpartition(":")[0] + f":{host.shell}"
        lines += [f"{user}:x:0:0::{host.home}:/bin/bash" for user in DOMAIN_USERS]
        passwd.write_text("\n".join([*lines, ""]))
        shell = f'hostname "$1" && mount --bind "$3" /etc/passwd && exec {SSHD} -D -e -f "$2"'
        with (host.folder / "sshd.log").open("ab") as log:
            argv = [
                "ip",
                "netns",
                "exec",
                host.namespace,
                "unshare",
                "--uts",
                "--mount",
                "sh",
                "-c",
                shell,
                "sh",
                name,
                str(host.folder / "sshd_config"),
                str(passwd),
            ]
            host.sshd = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        _wait(lambda: _answers(host), f"sshd of {name} to answer; its log: {host.folder}/sshd.log")

    # Cluster files

    def servers(self, **more: Any) -> list[dict[str, Any]]:
        """One entry a host for cluster_config.json."""
        return [
            {
                "host": h.name,
                "path": str(h.project),
                "python": sys.executable,
                "cpu_slots": 1,
                **more,
            }
            for h in self.hosts.values()
        ]

    def write_config(
        self, folder: Path, servers: list[dict[str, Any]] | None = None, **more: Any
    ) -> Path:
        """`folder`/cluster_config.json."""
        path = folder / "cluster_config.json"
        path.write_text(
            json.dumps(
                {"servers": servers or self.servers(), "ssh_config": str(self.ssh_config), **more},
                indent=2,
            )
        )
        return path

    # Harm

    def cut(self, name: str) -> None:
        """Pull the cable: nothing arrives any more, nobody is told."""
        _call("ip", "link", "set", self.hosts[name].link, "down")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        _call("ip", "link", "set", self.hosts[name].link, "up")

    def processes(self, name: str) -> list[int]:
        """The ids of all processes on the host."""
        return processes_in(self.hosts[name].namespace)

    def commands(self, name: str) -> dict[int, str]:
        """What they are: id and command line."""
        found = {}
        for pid in self.processes(name):
            with suppress(OSError):
                found[pid] = (
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                    .strip()
                )
        return found

    def user_processes(self, name: str) -> dict[int, str]:
        """What runs there apart from sshd itself."""
        return {
            pid: command
            for pid, command in self.commands(name).items()
            if command and not command.startswith(("sshd:", SSHD, "ip netns", "unshare"))
        }

    def wait_idle(self, *names: str, seconds: float = 60) -> None:
        """Nothing of ours is left on the hosts (all by default), or soon will not be."""
        for name in names or self.names:
            _wait(
                lambda name=name: not self.user_processes(name),
                f"the end of all on {name}",
                seconds,
            )

    def freeze(self, name: str) -> None:
        """Stop everything on it where it stands, what is started meanwhile included."""
        _signal_until(
            lambda: [pid for pid in self.processes(name) if _state(pid) not in "TtZX"],
            signal.SIGSTOP,
        )

    def thaw(self, name: str) -> None:
        """Let it go on."""
        for pid in self.processes(name):
            _signal(pid, signal.SIGCONT)

    def kill_all(self, name: str) -> None:
        """Power off: no process of it is left."""
        _signal_until(lambda: self.processes(name), signal.SIGKILL)
        self._reap(self.hosts[name])

    def restart_sshd(self, name: str) -> None:
        """Power off and on."""
        self.kill_all(name)
        self.start_sshd(name)

    @contextmanager
    def on_host(self, name: str, argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process on the host without SSH; killed at the end."""
        argv = ["ip", "netns", "exec", self.hosts[name].namespace, *argv]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    # Ending

    def close(self) -> None:
        """Kill what runs on the hosts, remove the network. Safe to repeat, and after half a
        set-up.
        """
        if self._record is None:
            return
        self._remove_network()
        for host in self.hosts.values():
            self._reap(host)
        (RECORDS / f"{self.number}.made").unlink(missing_ok=True)
        self._record.close()
        self._record = None

    def _remove_network(self) -> None:
        """Everything under this number, made by us or left over from a run that was killed."""
        for namespace in [name for name in _namespaces() if name.startswith(f"mlc{self.number}-")]:
            _signal_until(lambda namespace=namespace: processes_in(namespace), signal.SIGKILL)
            _call("ip", "netns", "del", namespace)
        for link in [f"mlc{self.number}v{index}" for index in range(len(self.names))] + [
            self.bridge
        ]:
            if Path("/sys/class/net", link).exists():
                # a cable goes with its namespace, sometimes before we ask
                subprocess.run(["ip", "link", "del", link], capture_output=True)

    def _reap(self, host: Host) -> None:
        if host.sshd:
            host.sshd.kill()
            host.sshd.wait()
            host.sshd = None


def processes_in(namespace: str) -> list[int]:
    """Process ids whose network is the namespace; zombies are not counted, they run nothing."""
    try:
        inode = os.stat(f"/run/netns/{namespace}").st_ino
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if (
                entry.isdigit()
                and os.stat(f"/proc/{entry}/ns/net").st_ino == inode
                and _state(int(entry)) not in "ZX"
            ):
                found.append(int(entry))
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _namespaces() -> list[str]:
    return os.listdir("/run/netns") if os.path.isdir("/run/netns") else []


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_until(find: Callable[[], list[int]], number: signal.Signals) -> None:
    """Signal what `find` finds until it finds nothing: processes may be starting others."""

    def all_done() -> bool:
        found = find()
        for pid in found:
            _signal(pid, number)
        return not found

    _wait(all_done, f"all processes to take {number.name}")


def _wait(true: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)


def _answers(host: Host) -> bool:
    if host.sshd and host.sshd.poll() is not None:
        raise RuntimeError(f"sshd of {host.name} ended: {host.log[-500:]}")
    try:
        with socket.create_connection((host.address, 22), 0.5) as sock:
            sock.settimeout(2)
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False


def _call(*argv: object) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
