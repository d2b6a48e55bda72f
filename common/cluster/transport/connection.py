"""One interface to a node, be it this machine or one behind SSH: run and start commands, copy
files.

    with connect(server) as node:
        node.run(["nvidia-smi", "-L"]).text
        worker = node.start([node.python, "-m", "common.cluster.on_node.worker", ...])
        node.push(["data/watch/ann_train.pt"])
        node.pull(["experiments/a/fold0_ann/metrics.json"], Path("incoming/x"))

Commands are argv lists and run in the node's project folder; each word arrives as it is. Nobody
else asks whether a node is local.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from common.cluster.config import Server
from common.cluster.transport.link import Link, open_link
from common.cluster.transport.openssh import (
    CONNECT_SECONDS,
    ConnectError,
    SshSettings,
    expand_home,
    read_settings,
)
from common.cluster.transport.process import LocalProcess, Process, RemoteProcess, Result
from common.cluster.transport.rsync import (
    DEFAULT_PATH,
    Side,
    Transfer,
    by_linked_folder,
    copy,
    folders_above,
    relative_names,
    rsync_argv,
    verify_arrived,
)
from common.errors import InputError, NodeError

SESSIONS = 8  # on one connection; sshd allows 10, and rsync's ssh has its own
COPIES = 2  # at a time and node
ATTEMPTS = 5  # to connect: sshd drops bursts of new connections
BUILT_FROM = "env/built-from"  # the Python that env/ was built from, as the configuration names it
HALF_BUILT = "env/half-built"  # there while --setup-nodes builds env/
OUTPUT_LIMIT = 64 << 20

# What sshd hands to the login shell, whatever that is (csh reads a quoted argument with line breaks
# line by line): fixed text, {0} is a marker of hex digits. The command follows on standard input,
# once the marker has come: a login file that reads cannot swallow it.
_AWAIT = """/bin/sh -c 'echo {0}; IFS= read -r mlc_line && eval "$mlc_line"'"""
# The markers let us drop what login files print; the subshell reports a signal as 128 + N.
_START = (
    'mlc_n=$(printf "\\nx"); mlc_n=${{mlc_n%x}}; cd {folder} || exit 96;'
    ' printf "%s %s\\n" {marker} "$$"; printf "%s\\n" {marker} >&2; (exec {command}); exit "$?"\n'
)
# Where env/ was built by --setup-nodes from the Python that is named, env/ is used.
_RESOLVE = (
    'case "$1" in "~") p=$HOME;; "~/"*) p=$HOME/${1#"~/"};; /*) p=$1;; *) p=$HOME/$1;; esac; case'
    ' "$2" in "") q=python3;; "~/"*) q=$HOME/${2#"~/"};; *) q=$2;; esac; mkdir -p "$p" && cd "$p"'
    f' && if test -x env/bin/python && ! test -e {HALF_BUILT} && {{ test -z "$2" || test "$2" ='
    f' "$(cat {BUILT_FROM} 2>/dev/null)"; }}; then q=env/bin/python; fi'
    ' && printf "%s\\0" "$p" "$q"'
)
_LINKS = 'for f; do if test -L "$f"; then printf "%s\\0" "$f"; fi; done'
_KILL = 'kill -KILL "-$1" 2>/dev/null || kill -KILL "$1"'


class Connection(ABC):
    """A node that can be worked on. All methods may be called from several threads."""

    name: str  # as in messages and slots
    path: str  # its project folder, absolute
    python: str  # first word of a Python command, run in the project folder
    # its project folder is the head's own: nothing needs copying
    shared: bool

    def __init__(self, server: Server, project: Path) -> None:
        self.server, self.name, self.project = server, server.name, project
        self._copying = threading.BoundedSemaphore(COPIES)
        self._copies: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        input: bytes = b"",
        timeout: float | None = 60,
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        """Run to the end. NodeError when it cannot be started; a lost link or exceeded `timeout` is
        a Result whose exit_code is None.
        """
        return self._start(_checked(argv), keep_all=True).communicate(input, timeout, limit)

    def start(self, argv: Sequence[str]) -> Process:
        """Start a long-lived command; NodeError when it cannot be started. For environment
        variables begin with `env NAME=VALUE`.
        """
        return self._start(_checked(argv), keep_all=False)

    def push(self, files: Iterable[str], base: Path | None = None) -> Transfer:
        """Copy `base/file` (default: the project folder here) to `file` in the node's project
        folder, each whole or not at all, comparing content.

        `files` are relative names. Content behind symbolic links here is sent; a folder of the node
        may be a link. Raises InputError when one does not exist here, NodeError when the copy
        failed.
        """
        names, base = relative_names(files), (base or self.project).resolve()
        if absent := [name for name in names if not (base / name).is_file()]:
            raise InputError(f"cannot copy {absent[0]} to {self.name}: no such file in {base}")
        if not names or (self.shared and base == self.project):
            return Transfer(self.project, tuple(names), (), 0)
        moved = 0
        for folder, below in by_linked_folder(names, self._linked_folders(names)).items():
            moved += self._copy(
                rsync_argv(Side(str(base)).below(folder), self._place().below(folder), pull=False),
                below,
            )
        return Transfer(Path(self.path), tuple(names), (), moved)

    def pull(self, files: Iterable[str], to: Path) -> Transfer:
        """Copy `file` of the node's project folder to `to/file`; `to` is absent or empty and is
        made.

        Only plain files that were asked for arrive, never a link; those that the node lacks (or
        that are links there, or lie behind one) are `missing`. Content is the node's: verify it.
        Where the folder is shared nothing is copied and `root` is the project folder. Raises
        NodeError, leaving `to` absent.
        """
        names = relative_names(files)
        if self.shared:
            there = tuple(name for name in names if _is_plain(self.project, name))
            return Transfer(self.project, there, tuple(sorted(set(names) - set(there))), 0)
        to.mkdir(parents=True, exist_ok=True)
        if any(to.iterdir()):
            raise InputError(
                f"{to} is not empty; files from a node are taken only into a fresh folder"
            )
        try:
            # What lies behind a link is not the project's.
            own = by_linked_folder(names, self._linked_folders(names)).get("", [])
            moved = (
                self._copy(rsync_argv(self._place(), Side(str(to.resolve())), pull=True), own)
                if own
                else 0
            )
            arrived = verify_arrived(self.name, to, names)
        except BaseException:
            shutil.rmtree(to, ignore_errors=True)
            raise
        return Transfer(to, arrived, tuple(sorted(set(names) - set(arrived))), moved)

    def _linked_folders(self, names: Iterable[str]) -> list[str]:
        """Which folders above `names` are symbolic links on the node."""
        folders = dict.fromkeys(folder for name in names for folder in folders_above(name))
        if not folders:
            return []
        result = self.run(
            ["xargs", "-0", "sh", "-c", _LINKS, "sh"],
            input=b"".join(b"./" + os.fsencode(folder) + b"\0" for folder in folders),
        )
        if not result.ok:
            raise NodeError(
                f"cannot look at the project folder: {result.last_words or 'link lost'}",
                node=self.name,
            )
        return [os.fsdecode(folder)[2:] for folder in result.stdout.split(b"\0")[:-1]]

    def _copy(self, argv: list[str], names: list[str]) -> int:
        with self._copying:
            running: list[subprocess.Popen[bytes]] = []

            def alive(process: subprocess.Popen[bytes]) -> None:
                running.append(process)
                self._copies.add(process)
                if self._closed:
                    _kill_group(process)

            try:
                return copy(self.name, argv, names, alive)
            finally:
                self._copies.difference_update(running)

    def close(self) -> None:
        """End copies and the link. Workers on the node end by themselves when their input does.
        Safe to repeat.
        """
        self._closed = True
        for process in list(self._copies):
            _kill_group(process)

    @abstractmethod
    def refresh(self) -> None:
        """Look again for the Python of the node, after its environment was built."""

    @abstractmethod
    def _start(self, argv: list[str], keep_all: bool) -> Process: ...

    @abstractmethod
    def _place(self) -> Side: ...


def connect(server: Server, project: Path | None = None) -> Connection:
    """A working connection to `server`, whose project folder is made if it is not there. `project`:
    the head's own, default the working folder.

    Raises ConnectError (a NodeError with a cause) when the node cannot be reached or not be
    trusted, InputError for settings that OpenSSH refuses.
    """
    project = (project or Path.cwd()).resolve()
    return Local(server, project) if server.is_local else Ssh(server, project)


class Local(Connection):
    """This machine."""

    def __init__(self, server: Server, project: Path) -> None:
        super().__init__(server, project)
        folder = Path(expand_home(server.path)) if server.path else project
        folder = folder if folder.is_absolute() else Path(expand_home("~")) / folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConnectError(
                "folder", f"no project folder: {folder}: {error.strerror}", node=self.name
            ) from None
        self.path = str(folder.resolve())
        self.shared = Path(self.path) == project
        self.refresh()

    def refresh(self) -> None:
        built_from = Path(self.path, BUILT_FROM)
        if not self.server.python:
            self.python = sys.executable
        elif built_from.is_file() and built_from.read_text() == self.server.python:
            self.python = "env/bin/python"
        else:
            self.python = expand_home(self.server.python)

    def _start(self, argv: list[str], keep_all: bool) -> Process:
        try:
            return LocalProcess(self.name, argv, self.path, keep_all)
        except OSError as error:
            raise NodeError(f"cannot start {argv[0]}: {error.strerror}", node=self.name) from None

    def _place(self) -> Side:
        return Side(self.path)


@dataclass
class _Shared:
    """A link and how many sessions are open on it."""

    link: Link
    sessions: int = 0
    most: int = SESSIONS
    proven: bool = False  # it has carried a session


class Ssh(Connection):
    """A node behind SSH. Sessions share links, at most SESSIONS on each; new links are opened one
    after the other.
    """

    def __init__(self, server: Server, project: Path) -> None:
        super().__init__(server, project)
        self._settings: SshSettings = read_settings(server)
        self._links: list[_Shared] = []
        self._guard, self._opening = threading.Lock(), threading.Lock()
        self.path = "/"
        try:
            self.refresh()
            self.shared = self._sees_our_folder()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        argv = [
            "sh",
            "-c",
            _RESOLVE,
            "sh",
            self.server.path or DEFAULT_PATH,
            self.server.python or "",
        ]
        result = self._start(argv, True, folder="/").communicate(b"", 60, OUTPUT_LIMIT)
        parts = result.stdout.split(b"\0")
        if not result.ok or len(parts) != 3:
            raise ConnectError(
                "lost" if result.exit_code is None else "folder",
                f"no project folder: {result.last_words or 'link lost'}",
                node=self.name,
            )
        self.path, self.python = os.fsdecode(parts[0]), os.fsdecode(parts[1])

    def _sees_our_folder(self) -> bool:
        """A shared file system: a file that we write here is read there."""
        token, content = self.project / f".token-{secrets.token_hex(16)}", secrets.token_hex(16)
        token.write_text(content)  # not the name, which the node learns
        try:
            return self.run(["cat", token.name]).text == content
        finally:
            token.unlink()

    def close(self) -> None:
        super().close()
        with self._guard:
            links, self._links = self._links, []
        for shared in links:
            shared.link.close()

    def _place(self) -> Side:
        return Side(self.path, self._settings.host, (*self._settings.ssh_command,))

    def _start(self, argv: list[str], keep_all: bool, folder: str | None = None) -> Process:
        ready, marker = secrets.token_hex(16), secrets.token_hex(16)
        command = _START.format(
            folder=_quoted(folder or self.path), marker=marker, command=" ".join(map(_quoted, argv))
        )
        shared, channel = self._open_session()
        process = RemoteProcess(
            self.name,
            channel,
            shared.link.transport,
            lambda: self._release(shared),
            self._kill,
            keep_all,
        )
        # paramiko waits for the answer without limit; closing the channel ends that wait.
        limit = threading.Timer(CONNECT_SECONDS, channel.close)
        limit.start()
        try:
            channel.exec_command(_AWAIT.format(ready))
            limit.cancel()
            process.await_shell(ready)
            process.write(os.fsencode(command))  # bytes keep names that are not UTF-8
            process.read_start(marker)
        except (paramiko.SSHException, EOFError, OSError) as error:
            process.close()
            raise NodeError(
                f"the node did not take a command: {error or 'link lost'}", node=self.name
            ) from None
        except BaseException:
            process.close()
            raise
        finally:
            limit.cancel()
        return process

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(NodeError):
            self._start(["sh", "-c", _KILL, "sh", str(pid)], keep_all=True, folder="/").communicate(
                b"", CONNECT_SECONDS, OUTPUT_LIMIT
            )

    def _open_session(self) -> tuple[_Shared, paramiko.Channel]:
        while True:
            shared = self._take_place()
            try:
                channel = shared.link.transport.open_session(timeout=CONNECT_SECONDS)
                shared.proven = True
                return shared, channel
            except paramiko.ChannelException:
                self._lower_cap(shared)
            except (paramiko.SSHException, EOFError, OSError) as error:
                self._release(shared)
                shared.link.close()  # a link that does not answer is useless
                raise ConnectError(
                    "lost", f"the link was lost: {error or 'no answer'}", node=self.name
                ) from None

    def _lower_cap(self, shared: _Shared) -> None:
        """sshd refused a session: it allows fewer (MaxSessions), or commands that we gave up still
        run there. Other links take over.
        """
        with self._guard:
            shared.sessions -= 1
            shared.most = shared.sessions
        if not shared.most:
            shared.link.close()
        if not shared.proven and not shared.most:
            raise NodeError(
                "sshd there allows no session; look at MaxSessions in its sshd_config",
                node=self.name,
            )

    def _take_place(self) -> _Shared:
        """A link with room, opened if need be; its session is counted."""
        with self._opening:
            with self._guard:
                self._refuse_if_closed()
                for dead in [s for s in self._links if not s.link.transport.is_active()]:
                    self._links.remove(dead)
                    dead.link.close()
                for shared in self._links:
                    if shared.sessions < shared.most:
                        shared.sessions += 1
                        return shared
            shared = _Shared(self._open_patiently(), sessions=1)
            try:
                with self._guard:
                    self._refuse_if_closed()  # closed meanwhile: this link would stay open
                    self._links.append(shared)
            except ConnectError:
                shared.link.close()
                raise
            return shared

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ConnectError("lost", "the connection was closed", node=self.name)

    def _open_patiently(self) -> Link:
        for attempt in range(ATTEMPTS):
            try:
                return open_link(self._settings)
            except ConnectError as error:
                if error.cause != "lost" or attempt == ATTEMPTS - 1 or self._closed:
                    raise
                time.sleep(0.5 * 2**attempt * (0.5 + random.random()))  # no two heads in step
        raise AssertionError("unreachable")

    def _release(self, shared: _Shared) -> None:
        with self._guard:
            shared.sessions -= 1


def _checked(argv: Sequence[str]) -> list[str]:
    """An argv that can be passed on: words without NUL, the first one a command."""
    if isinstance(argv, str) or not argv or not argv[0] or argv[0].startswith("-"):
        raise InputError(f"not a command: {argv!r}")
    if any("\0" in word for word in argv):
        raise InputError(f"a command cannot hold a NUL character: {argv!r}")
    return list(argv)


def _quoted(word: str) -> str:
    """A word for /bin/sh, in a command of one line."""
    return shlex.quote(word).replace("\n", "'\"$mlc_n\"'")


def _is_plain(folder: Path, name: str) -> bool:
    """A file that is no symbolic link, nor lies behind one below `folder`."""
    return (folder / name).is_file() and not any(
        (folder / part).is_symlink() for part in (name, *folders_above(name))
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
