"""What a crash may leave on the disk: all states between any two operations of a recorded trace.

The model is what a program may rely on, and no more (POSIX; Pillai and others, "All file systems
are not created equal", OSDI 2014): content is safe once its file was synced, a name once its folder
was. What is not safe may be there or lost, content also in part or as zeros, names in any
combination.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.trust.disk import Operation

Tree = dict[str, bytes | None]  # path below the folder -> content; None: a folder
ALL_SUBSETS = 6  # of so many names that are not safe; of more, a seeded choice
CHOSEN_SUBSETS = 48


@dataclass
class _File:
    written: bytearray = field(default_factory=bytearray)
    safe: int = 0  # bytes of it that were synced

    def variants(self) -> list[bytes]:
        """What a crash may leave of its content."""
        whole, rest = bytes(self.written), len(self.written) - self.safe
        if not rest:
            return [whole]
        safe = whole[: self.safe]
        return list(
            dict.fromkeys([safe, whole[: self.safe + rest // 2], safe + bytes(rest), whole])
        )


@dataclass(frozen=True)
class _Entry:
    """A change of names that is not safe yet: it becomes so when all its folders were synced."""

    call: str
    path: str
    other: str
    file: int
    folders: frozenset[str]


def read_tree(folder: Path) -> Tree:
    """What is there before a trace begins; all of it is safe."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def states(
    before: Tree, operations: Sequence[Operation], root: Path, seed: int = 0
) -> Iterator[tuple[int, Tree]]:
    """(number of operations before the crash, tree) for every crash point; equal trees are given
    once a point. The last point is after the trace's end.
    """
    disk = _Model(before, str(os.path.realpath(root)), random.Random(seed))
    for number, operation in enumerate(operations):
        yield from ((number, tree) for tree in disk.trees())
        disk.apply(operation)
    yield from ((len(operations), tree) for tree in disk.trees())


class _Model:
    """The disk as a crash finds it."""

    def __init__(self, before: Tree, root: str, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        self.files: dict[int, _File] = {}
        # names that are safe -> file number, content from before, or a folder
        self.safe: dict[str, int | bytes | None] = dict(before)
        self.pending: list[_Entry] = []

    def relative(self, path: str) -> str:
        """Below the folder."""
        return os.path.relpath(path, self.root)

    def apply(self, operation: Operation) -> None:
        """One more operation reached the system."""
        path, call = self.relative(operation.path), operation.call
        if call == "write":
            self.files.setdefault(operation.file, _File()).written += operation.data
        elif call == "truncate":
            self.files[operation.file] = _File()
        elif call == "fsync":
            file = self.files.setdefault(operation.file, _File())
            file.safe = len(file.written)
        elif call == "fsync folder":
            self._sync(path)
        else:
            if call == "create":
                self.files[operation.file] = _File()
            other = self.relative(operation.other) if operation.other else ""
            folders = frozenset(os.path.dirname(name) or "." for name in (path, other) if name)
            self.pending.append(_Entry(call, path, other, operation.file, folders))

    def _sync(self, folder: str) -> None:
        """Names in `folder` are safe now, in the order in which they were made; a rename between
        two folders waits for the other one.
        """
        left: list[_Entry] = []
        for entry in self.pending:
            remaining = entry.folders - {folder}
            blocked = any(
                entry.folders & earlier.folders
                and {entry.path, entry.other} & {earlier.path, earlier.other}
                for earlier in left
            )
            if remaining or blocked:
                left.append(
                    _Entry(
                        entry.call, entry.path, entry.other, entry.file, remaining or entry.folders
                    )
                )
            else:
                _change(self.safe, entry)
        self.pending = left

    def trees(self) -> Iterator[Tree]:
        """Every state that a crash may leave now."""
        seen: set[tuple[tuple[str, bytes | None], ...]] = set()
        for kept in self._subsets():
            names = dict(self.safe)
            for entry in kept:
                _change(names, entry)
            for tree in self._contents(_reachable(names)):
                key = tuple(sorted(tree.items()))
                if key not in seen:
                    seen.add(key)
                    yield tree

    def _subsets(self) -> Iterator[tuple[_Entry, ...]]:
        count = len(self.pending)
        if count <= ALL_SUBSETS:
            chosen: Iterator[Sequence[bool]] = itertools.product((False, True), repeat=count)
        else:
            some = [[self.rng.random() < 0.5 for _ in range(count)] for _ in range(CHOSEN_SUBSETS)]
            prefixes = [[place < length for place in range(count)] for length in range(count + 1)]
            single = [[place != without for place in range(count)] for without in range(count)]
            chosen = iter([*prefixes, *single, *some])
        for keep in chosen:
            yield tuple(entry for entry, kept in zip(self.pending, keep, strict=True) if kept)

    def _contents(self, names: Mapping[str, int | bytes | None]) -> Iterator[Tree]:
        """Names with each possible content; of a temporary file one will do, nobody reads it."""
        choices: list[list[bytes | None]] = []
        for path, what in names.items():
            if isinstance(what, int):
                variants = self.files.get(what, _File()).variants()
                choices.append(
                    [variants[-1]] if os.path.basename(path).startswith(".") else list(variants)
                )
            else:
                choices.append([what])
        for contents in itertools.product(*choices):
            yield dict(zip(names, contents, strict=True))


def _change(names: dict[str, int | bytes | None], entry: _Entry) -> None:
    """Do to names what the operation does; what it needs may have been lost."""
    if entry.call == "create":
        names.setdefault(entry.path, entry.file)
    elif entry.call == "mkdir":
        names.setdefault(entry.path, None)
    elif entry.call == "unlink":
        names.pop(entry.path, None)
    elif entry.call == "rename":
        moved = {
            path: what
            for path, what in names.items()
            if path == entry.path or path.startswith(entry.path + "/")
        }
        if not moved and entry.file >= 0:
            moved = {entry.path: entry.file}  # the old name was lost, the new one was not
        for path, what in moved.items():
            names.pop(path, None)
            names[entry.other + path[len(entry.path) :]] = what


def _reachable(names: Mapping[str, int | bytes | None]) -> dict[str, int | bytes | None]:
    """Without what lies in a folder whose own name was lost."""
    folders = {path for path, what in names.items() if what is None} | {""}

    def there(path: str) -> bool:
        parent = os.path.dirname(path)
        return parent in folders and (not parent or there(parent))

    return {path: what for path, what in names.items() if there(path)}


def build(tree: Tree, folder: Path) -> None:
    """Make a state in an empty folder."""
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
