"""A data folder that appears whole, in one rename, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.artifacts import sync_folder
from common.errors import Conflict


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target`, under a temporary name, that becomes `target` in one rename when
    the block ends well and vanishes when it does not.

    One left by a killed run is emptied and used again. An existing `target` is replaced, so ask
    `up_to_date` first.

    Raises:
        Conflict: another process is making the same folder.
    """
    target = target.resolve()  # a link stays a link
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _hold(handle, partial, target)
        try:
            _empty(partial)
            yield partial
            os.fsync(handle)
            _publish(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # another process may have put something there
                for parent in made:
                    parent.rmdir()
            raise
    finally:
        os.close(handle)


def _hold(handle: int, partial: Path, target: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = partial.exists() and os.path.samestat(os.fstat(handle), partial.stat())
    except BlockingIOError:
        mine = False
    if not mine:
        raise Conflict(
            f"{target}: another prepare_data.py is making it; wait for that one, then run this"
            " again",
            path=target,
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _publish(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
