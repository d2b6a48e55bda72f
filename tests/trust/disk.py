"""The disk as this process sees it: every create, write, fsync, rename, mkdir, unlink below one
folder, counted, recorded, and failing where a trial says so.

    with Disk(folder) as disk:                          # only looks
        publish(...)
    for number in range(len(disk.operations)):
        with Disk(folder, fail_at=number, error=errno.ENOSPC):
            publish(...)                                # that one call fails, once

Patched are the functions of `os` and the raw files beneath `open`, so that a buffered write counts
where it reaches the system. Nothing is really synced: the trace says what was, and trials are many.
"""

from __future__ import annotations

import builtins
import io
import itertools
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

CALLS = ("create", "write", "truncate", "fsync", "fsync folder", "rename", "mkdir", "unlink")


@dataclass(frozen=True)
class Operation:
    """One call that reached the system. `file` numbers the files in order of creation, so that a
    renamed file stays itself.
    """

    call: str
    path: str
    other: str = ""  # a rename's target
    data: bytes = b""
    file: int = -1


class Disk:
    """The context manager. `operations` is what happened so far."""

    def __init__(self, root: Path, fail_at: int | None = None, error: int = 0) -> None:
        self.root, self._fail_at, self._error = os.path.realpath(root), fail_at, error
        self.operations: list[Operation] = []
        self._files: dict[tuple[int, int], int] = {}  # device and inode -> number
        self._numbers = itertools.count()
        self._patches = ExitStack()
        self._real = {
            name: getattr(os, name)
            for name in ("open", "replace", "rename", "mkdir", "unlink", "remove", "fstat")
        }
        self._real_open = io.open

    def __enter__(self) -> Disk:
        patches: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "fsync": self._fsync,
            "mkdir": self._mkdir,
            "unlink": self._unlink,
            "remove": self._unlink,
            "replace": self._rename,
            "rename": self._rename,
        }
        for name, function in patches.items():
            self._patches.enter_context(mock.patch.object(os, name, function))
        for module in (io, builtins):
            self._patches.enter_context(mock.patch.object(module, "open", self._open_file))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patches.close()

    # -- what is counted

    def ours(self, path: Any) -> str | None:
        """The path of a file or descriptor, absolute, if it lies below the folder."""
        if isinstance(path, int):
            whole = os.readlink(f"/proc/self/fd/{path}")
            return whole if whole == self.root or whole.startswith(self.root + os.sep) else None
        whole = os.path.join(
            os.path.realpath(os.path.dirname(os.path.abspath(os.fspath(path)))),
            os.path.basename(os.fspath(path)),
        )
        return whole if whole.startswith(self.root + os.sep) or whole == self.root else None

    def happens(
        self, call: str, path: str, other: str = "", data: bytes = b"", file: int = -1
    ) -> None:
        """Count a call that is about to reach the system, or let it fail."""
        number = len(self.operations)
        self.operations.append(Operation(call, path, other, data, file))
        if number == self._fail_at:
            # As the system would say it: calls on a descriptor know no name.
            named = (path,) if call in ("create", "mkdir", "unlink", "rename") else ()
            raise OSError(self._error, os.strerror(self._error), *named)

    def number(self, descriptor: int) -> int:
        """Which file an open descriptor is."""
        status = self._real["fstat"](descriptor)
        key = (status.st_dev, status.st_ino)
        if key not in self._files:
            self._files[key] = next(self._numbers)
        return self._files[key]

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        ours = self.ours(path) if not more else None
        creates = ours is not None and flags & os.O_CREAT and not os.path.lexists(ours)
        if creates:
            assert ours is not None
            self.happens("create", ours)
        descriptor: int = self._real["open"](path, flags, mode, **more)
        if creates:
            self.created(descriptor)
        return descriptor

    def created(self, descriptor: int) -> None:
        """The last operation made this file: a new one, also where the system gives it the inode of
        one that is gone.
        """
        status, last = self._real["fstat"](descriptor), self.operations[-1]
        number = self._files[status.st_dev, status.st_ino] = next(self._numbers)
        self.operations[-1] = Operation(last.call, last.path, file=number)

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if ours := self.ours(number):
            folder = os.path.isdir(ours)
            self.happens(
                "fsync folder" if folder else "fsync",
                ours,
                file=-1 if folder else self.number(number),
            )

    def _mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        if not more and (ours := self.ours(path)) and not os.path.lexists(ours):
            self.happens("mkdir", ours)
        self._real["mkdir"](path, mode, **more)

    def _unlink(self, path: Any, **more: Any) -> None:
        if not more and (ours := self.ours(path)) and os.path.lexists(ours):
            self.happens("unlink", ours)
        self._real["unlink"](path, **more)

    def _rename(self, source: Any, target: Any, **more: Any) -> None:
        if (
            not more
            and (ours := self.ours(source))
            and (other := self.ours(target))
            and os.path.lexists(ours)
        ):
            status = os.lstat(ours)
            self.happens(
                "rename", ours, other, file=self._files.get((status.st_dev, status.st_ino), -1)
            )
        self._real["rename"](source, target, **more)

    # -- files opened for writing

    def _open_file(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        ours = self.ours(file)
        if ours is None or not set(mode) & set("wax+"):
            return self._real_open(
                file, mode, buffering, encoding, errors, newline, closefd, opener
            )
        creates = not isinstance(file, int) and not os.path.lexists(ours)
        if creates:
            self.happens("create", ours)
        elif not isinstance(file, int) and "w" in mode:
            self.happens("truncate", ours)
        raw = _Raw(self, ours, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if creates:
            self.created(raw.fileno())
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    def __init__(
        self, disk: Disk, path: str, file: Any, mode: str, closefd: bool, opener: Any
    ) -> None:
        self._disk, self._path = disk, path
        super().__init__(file, mode, closefd, opener)

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._disk.happens("write", self._path, data=content, file=self._disk.number(self.fileno()))
        return super().write(content) or 0

    def truncate(self, size: int | None = None) -> int:
        self._disk.happens("truncate", self._path, file=self._disk.number(self.fileno()))
        return super().truncate(size)
