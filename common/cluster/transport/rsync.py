"""Copies between the head and a node, by rsync: literal names, whole files or none, nothing
followed out of the project folder.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from common.cluster.config import Server
from common.cluster.transport.openssh import expand_home, own_options, ssh_options
from common.errors import InputError, NodeError

DEFAULT_PATH = "~/ml-customization"  # of the project folder on a node
IO_SECONDS = 120  # rsync's own limit for silence on a link
# bytes kept of its two outputs, a number a file and what it complains of; of a message
MAX_OUT, MAX_SAID, MAX_WORDS = 16 << 20, 64 << 10, 2_000
_RETRIED = (10, 12, 30, 35, 255)  # the link, not the files


@dataclass(frozen=True)
class Transfer:
    """What a copy did. `root` holds the files under their relative names: the folder asked for, or
    the project folder itself where it is shared.
    """

    root: Path
    files: tuple[str, ...]  # those now there
    missing: tuple[str, ...]  # asked for, but absent at the source
    bytes: int  # of file content that went over the link


@dataclass(frozen=True)
class Side:
    """One end of a copy: a folder here, or on a node through `ssh`."""

    folder: str
    host: str = ""
    ssh: tuple[str, ...] = ()

    def below(self, folder: str) -> Side:
        return replace(self, folder=f"{self.folder}/{folder}") if folder else self

    @property
    def spec(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.folder}/" if self.host else f"{self.folder}/"


def by_linked_folder(files: Iterable[str], links: Iterable[str]) -> dict[str, list[str]]:
    """`files` grouped by the deepest of `links` (folders that are symbolic links) above them, ""
    for none; names relative to that folder.

    rsync follows a link that is the folder it is given, never one on the way to a file below it
    (3.5 refuses that even with --keep-dirlinks).
    """
    linked, groups = set(links), dict[str, list[str]]()
    for name in files:
        folder = next((parent for parent in folders_above(name) if parent in linked), "")
        groups.setdefault(folder, []).append(name[len(folder) + 1 :] if folder else name)
    return groups


def folders_above(name: str) -> list[str]:
    """'a/b/c' -> ['a/b', 'a']."""
    return [str(parent) for parent in PurePosixPath(name).parents][:-1]


def relative_names(files: Iterable[str]) -> list[str]:
    """`files` without repetition; InputError for one that could leave the project folder."""
    names = list(dict.fromkeys(files))
    for name in names:
        path = PurePosixPath(name)
        if (
            not name
            or path.is_absolute()
            or ".." in path.parts
            or str(path) != name
            or name == "."
            or "\0" in name
        ):
            raise InputError(
                f"cannot copy {name!r}: only plain names relative to the project folder are copied"
            )
    return names


def quote_for_rsync(argv: Sequence[str]) -> str:
    """One `-e` value: rsync splits it itself, at spaces outside quotes, and knows a doubled quote
    as the only escape.
    """
    return " ".join("'" + word.replace("'", "''") + "'" for word in argv)


def rsync_argv(source: Side, target: Side, pull: bool) -> list[str]:
    """The command; the names follow on its standard input, each ended by NUL.

    A target file is written beside its final name and renamed, because neither --partial nor
    --inplace is given. From a node no link is copied and none is followed on our side. To a node
    the content behind our links is sent.
    """
    argv = [
        "rsync",
        "--times",
        "--relative",
        "--secluded-args",
        "--from0",
        "--files-from=-",
        "--out-format=%b",
        f"--timeout={IO_SECONDS}",
    ]
    if pull:
        argv += [
            "--no-links",
            "--no-devices",
            "--no-specials",
            "--ignore-missing-args",
            "--chmod=D700,F600",
        ]
    else:
        # Equal size and time do not exclude a flipped bit: compare content.
        argv += ["--checksum", "--copy-links"]
    if remote := source.ssh or target.ssh:
        rsh = Path(__file__).with_name("rsh.py")
        argv += ["-e", quote_for_rsync([sys.executable, "-I", str(rsh), str(len(remote)), *remote])]
    return [*argv, source.spec, target.spec]


def manual_rsync_command(server: Server, folder: str) -> str:
    """What a person types in the project folder to copy `folder` to the node by hand."""
    ssh = ["ssh", *own_options(ssh_options(server))]
    argv = ["rsync", "-avz", "--checksum"] + (["-e", quote_if_needed(ssh)] if len(ssh) > 1 else [])
    target = Side(server.path or DEFAULT_PATH, "" if server.is_local else server.host).below(folder)
    return shlex.join([*argv, "--", f"{folder}/", expand_home(target.spec)])


def quote_if_needed(argv: Sequence[str]) -> str:
    """As `quote_for_rsync`, quiet where no quotes are needed, to be read by people."""
    return " ".join(
        word if word and not set(word) & set(" '\"") else quote_for_rsync([word]) for word in argv
    )


def copy(
    name: str,
    argv: Sequence[str],
    files: Sequence[str],
    alive: Callable[[subprocess.Popen[bytes]], object],
    attempts: int = 3,
) -> int:
    """Run rsync for `files`; bytes of content moved. Raises NodeError with rsync's last words.
    `alive` gets each process, so that it can be killed.
    """
    moved = 0
    for attempt in range(attempts):
        code, out, said = _once(argv, files, alive)
        moved += sum(int(line) for line in out.split() if line.isdigit() and len(line) < 20)
        if code == 0:
            return moved
        if code not in _RETRIED or attempt == attempts - 1:
            break
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    raise NodeError(
        f"{_why(code)}: {'; '.join(lines[-3:])[-MAX_WORDS:] or 'no message'}", node=name
    )


def _once(
    argv: Sequence[str], files: Sequence[str], alive: Callable[[subprocess.Popen[bytes]], object]
) -> tuple[int, bytes, bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RSYNC_")} | {
        "LC_ALL": "C.UTF-8"
    }
    # without ./ a name beginning with # or ; is taken for a remark
    names = b"".join(b"./" + os.fsencode(name) + b"\0" for name in files)
    try:
        # A session of its own: Ctrl-C in the terminal is for the head to decide about.
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        ) as process:
            alive(process)
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            out, said = _End(process.stdout, MAX_OUT), _End(process.stderr, MAX_SAID)
            with contextlib.suppress(BrokenPipeError):  # it ended first, and says why
                process.stdin.write(names)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            return process.wait(), out.read(), said.read()
    except FileNotFoundError:
        raise InputError("no rsync on this machine; install it") from None


class _End:
    """The end of what a process says, read in a thread: what comes from a node passes through
    rsync, and may be without end.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit, self._kept = stream, limit, bytearray()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := os.read(self._stream.fileno(), 1 << 16):
            self._kept += data
            if len(self._kept) > 2 * self._limit:
                del self._kept[: -self._limit]

    def read(self) -> bytes:
        """Once the process has ended."""
        self._thread.join()
        return bytes(self._kept[-self._limit :])


def _why(code: int) -> str:
    if code < 0:
        return f"rsync was ended by signal {-code}"
    words = {
        11: "rsync could not read or write a file (disk full?)",
        23: "rsync could not copy every file",
        127: "no rsync on the node; install it there",
        255: "rsync got no connection",
        12: "rsync lost the connection",
        30: "rsync timed out",
        10: "rsync lost the connection",
    }
    return words.get(code, f"rsync failed with exit code {code}")


def verify_arrived(name: str, folder: Path, asked: Sequence[str]) -> tuple[str, ...]:
    """The asked names that lie in `folder` as plain files. Anything else there was not asked for:
    all is removed, NodeError.
    """
    wanted, found = set(asked), []
    for top, folders, names in os.walk(folder):
        for entry in folders + names:
            path = Path(top, entry)
            mode, relative = path.lstat().st_mode, path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode) and relative in wanted:
                found.append(relative)
            elif not stat.S_ISDIR(mode):
                shutil.rmtree(folder)
                raise NodeError(
                    f"the node sent {relative!r}, which is not a plain file that was asked"
                    " for; nothing of it is used",
                    node=name,
                )
    return tuple(sorted(found))
