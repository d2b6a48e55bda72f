"""A process that has loaded the large libraries, none of the product, and forks for each test run.

    python -B -m tests.trust.warm

Reads a JSON list a line: seconds that the run may take, then arguments of pytest. Answers each with
a JSON list of what became of the tests: [[node id, "passed" | "failed" | "skipped" | "error",
message], ...].
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies  # noqa: F401 - only to have them loaded
import numpy  # noqa: F401
import pandas  # noqa: F401
import pydantic  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401

# hypothesis is a plugin of pytest, which complains where it is loaded already
QUIETLY = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")


class Outcomes:
    """A pytest plugin that notes what became of each test."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's call; its fixtures only where they did not pass."""
        if report.when == "call" or report.outcome != "passed":
            outcome = "error" if report.when != "call" and report.failed else str(report.outcome)
            self.found.append((report.nodeid, outcome, _message(report)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported."""
        if report.failed:
            self.found.append((report.nodeid, "error", _message(report)))


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr or "")


def run(arguments: list[str], answer: int) -> None:
    """In a fork: the tests, and the answer to the file descriptor `answer`."""
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silence, number)
    outcomes = Outcomes()
    try:
        code = pytest.main([*QUIETLY, *arguments], plugins=[outcomes])
        if not outcomes.found:
            outcomes.found.append(("", "error", f"pytest ended with {code} and ran no test"))
    except BaseException as error:  # noqa: BLE001 - told as what became of the tests
        outcomes.found.append(("", "error", repr(error)))
    with os.fdopen(answer, "w") as file:
        json.dump(outcomes.found, file)


def main() -> None:
    """Fork for each line."""
    gc.freeze()  # forks do not look through all this again and again
    for line in sys.stdin:
        seconds, *arguments = json.loads(line)
        reads, writes = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reads)
            try:
                run(arguments, writes)
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as file:
            # hypothesis takes the end of a test's time for one more failure, and goes on
            if not select.select([file], [], [], seconds)[0]:
                os.kill(pid, signal.SIGKILL)
            answer = file.read()
        os.waitpid(pid, 0)
        sys.stdout.write((answer or json.dumps([["", "error", "no test came to its end"]])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    sys.path.insert(0, str(Path.cwd()))
    main()
