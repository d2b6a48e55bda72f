"""The product with one piece of what shapes results broken, and the test that must say so.

    python -m tests.trust.mutants                    all of mutants.txt, a line each
    python -m tests.trust.mutants --only patience    those whose sentence holds the word

Exit code 1 where a mutant survives. A mutant is applied to a copy of the tree, never to the tree
itself. Its test must pass without it, and fail with it with the words that are written beside it:
any other failure is no catch.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

TABLE = Path(__file__).with_suffix(".txt")
COPIED = ("common", "tests", "docs", "examples", "*.py", "*.toml", "*.md", "*.json", "Makefile")
SECONDS = 120  # for a test
SAMPLE = 10
KILLED = "killed"


@dataclass(frozen=True)
class Mutant:
    """What is broken: in `file`, `new` in place of `old`. `test` must fail then, with `says` in its
    message.
    """

    what: str
    file: str
    old: str
    new: str
    test: str
    says: str

    def applied(self, text: str) -> str:
        """The file's text with the mutant. Raises ValueError where `old` is not there once."""
        if (number := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.what}: its old text is {number} times in {self.file}, not once:"
                f" {self.old!r}"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What became of a test with a mutant, or without: "passed", "failed", "skipped", "error"."""

    state: str
    message: str = ""


def read(text: str) -> list[Mutant]:
    """The table: a sentence, `file:`, lines with - and +, `test:` and `says:`; see mutants.txt."""
    found = []
    for entry in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        what, *lines = entry.rstrip().splitlines()
        parts = {
            key: "\n".join(line[len(key) :] for line in lines if line.startswith(key))
            for key in ("file: ", "- ", "+ ", "test: ", "says: ")
        }
        unknown = [line for line in lines if line and not line.startswith((*parts, "+"))]
        if unknown or not all(parts[key] for key in parts if key != "+ "):
            raise ValueError(f"{TABLE.name}: {what}: {unknown or 'a part is missing'}")
        found.append(Mutant(what, *parts.values()))
    return found


def table() -> list[Mutant]:
    """All mutants."""
    return read(TABLE.read_text())


def stale(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What is wrong with entries whose file, or whose old text, is no longer there."""
    wrong = []
    for mutant in mutants:
        try:
            mutant.applied((root / mutant.file).read_text())
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    return wrong


def sample(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Ten, spread over the table, of those that need no compiler."""
    quick = [mutant for mutant in mutants if not mutant.file.endswith(".cpp")]
    return [quick[number * len(quick) // SAMPLE] for number in range(SAMPLE)]


class Copy:
    """A copy of the tree, and a process that runs its tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for pattern in COPIED:
            for source in ROOT.glob(pattern):
                self._take(source)
        (folder / "cache").mkdir()
        for built in ROOT.glob("cache/kernel-*.s*"):
            shutil.copy(built, folder / "cache")
        self._time = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.trust.warm"],
            cwd=folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _take(self, source: Path) -> None:
        if source.is_dir():
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, self.folder / source.name, ignore=without)
        else:
            shutil.copy(source, self.folder)

    def run(self, tests: Sequence[str]) -> dict[str, Outcome]:
        """What became of each test, by node id without parameters; the first that did not pass
        counts.
        """
        assert self._process.stdin
        assert self._process.stdout
        limits = ["--timeout", str(SECONDS), "-o", "addopts=--import-mode=importlib"]
        seconds = 2 * SECONDS * len(tests)
        self._process.stdin.write(json.dumps([seconds, *limits, *tests]) + "\n")
        self._process.stdin.flush()
        found: dict[str, Outcome] = {}
        for test, state, message in json.loads(self._process.stdout.readline()):
            name = test.partition("[")[0]
            if name not in found or found[name].state == "passed":
                found[name] = Outcome(state, message)
        return found

    @contextmanager
    def broken(self, mutant: Mutant) -> Iterator[None]:
        """The copy with the mutant in it."""
        path = self.folder / mutant.file
        before = path.read_text()
        self._write(path, mutant.applied(before))
        try:
            yield
        finally:
            self._write(path, before)

    def _write(self, path: Path, text: str) -> None:
        """With a time of its own: compiled code of another text is never taken for this one's."""
        path.write_text(text)
        self._time += 2
        os.utime(path, (self._time, self._time))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def judged(mutant: Mutant, control: Outcome | None, found: dict[str, Outcome]) -> str:
    """'killed', or why not."""
    if control is None or control.state != "passed":
        return f"NO CONTROL: {mutant.test} without it: {control or 'no such test'}"
    outcome = found.get(mutant.test, next(iter(found.values())))
    if outcome.state == "passed":
        return f"SURVIVED: {mutant.test} passes"
    if outcome.state != "failed" or mutant.says not in outcome.message:
        return f"OTHER WORDS: {mutant.test} {outcome.state}: {outcome.message[:600]}"
    return KILLED


def tried(mutants: Sequence[Mutant], workers: int = 1) -> Iterator[tuple[Mutant, str]]:
    """Each mutant and what became of it, as it comes."""
    todo: queue.Queue[Mutant] = queue.Queue()
    told: queue.Queue[tuple[Mutant, str]] = queue.Queue()
    for mutant in mutants:
        todo.put(mutant)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants "))
        copies = [Copy(Path(folder) / f"copy {number}") for number in range(workers)]
        for copy in copies:
            stack.callback(copy.close)
        controls = copies[0].run(sorted({mutant.test for mutant in mutants}))

        def work(copy: Copy) -> None:
            while True:
                try:
                    mutant = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    with copy.broken(mutant):
                        found = copy.run(["-x", mutant.test])
                    told.put((mutant, judged(mutant, controls.get(mutant.test), found)))
                except ValueError as error:
                    told.put((mutant, f"STALE: {error}"))

        for copy in copies:
            threading.Thread(target=work, args=(copy,), daemon=True).start()
        for _ in mutants:
            yield told.get()


def all_killed() -> int:
    """How many there are; AssertionError where one is not killed."""
    every = table()
    wrong = [f"{mutant.what}: {verdict}" for mutant, verdict in tried(every) if verdict != KILLED]
    assert not wrong, "\n".join(wrong)
    return len(every)


def main() -> int:
    """Try them, tell each."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--only", action="append", default=[], help="mutants whose entry holds this")
    flags.add_argument("--workers", type=int, default=1, help="how many at a time (default: 1)")
    args = flags.parse_args()
    chosen = [
        mutant
        for mutant in table()
        if not args.only or any(word in mutant.what + mutant.file for word in args.only)
    ]
    survivors = 0
    for mutant, verdict in tried(chosen, args.workers):
        survivors += verdict != KILLED
        sys.stdout.write(f"{mutant.file}: {mutant.what}: {verdict}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - survivors} of {len(chosen)} mutants were killed\n")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
