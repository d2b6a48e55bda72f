"""What every kind of test shares: the scripts as subprocesses, in a project folder of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.data.demo import DownloadError, fetch_wheel
from tests import forked

ROOT = Path(__file__).resolve().parent.parent

# Whoever starts the tests in the background (nohup, `&`) ignores these, and every script under test
# would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


# Long files first, so that none is alone at the end; the quick ones fill the gaps.
LONG_FIRST = ("slurm", "cluster", "trust", "scripts", "report", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which the processes of `pytest -n` take them."""
    tests = ROOT / "tests"
    items.sort(key=lambda item: LONG_FIRST.index(item.path.relative_to(tests).parts[0]))


def demo_wheel() -> Path:
    """The demo's wheel; skips the test where it cannot be downloaded, and only there."""
    try:
        return fetch_wheel(ROOT / "cache")
    except DownloadError as error:
        pytest.skip(str(error))


def wait_until(true: Callable[[], object], seconds: float = 60, what: str = "the event") -> None:
    """Wait for something that will happen, and fail by name when it does not."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def script_environment(temporary: Path) -> dict[str, str]:
    """The environment of a script under test: one thread, and slot locks of its own."""
    # by name: in another thread pytest changes a variable of its own at every test
    names = ("PATH", "HOME", "LANG", "USER", "LOGNAME", "SLURM_CONF")
    keep = {name: value for name in names if (value := os.environ.get(name)) is not None}
    return {**keep, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script as a user would, in a project folder of its own: `run("train_base.py", "--fold",
    "0")`.
    """
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def call(
        script: str, *argv: object, cwd: Path = project, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / script), *map(str, argv)]
        return forked.run(command, cwd, script_environment(temporary), timeout)

    return call


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project folder that `run` works in."""
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    return folder


def failed_in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a script that refused its input; asserts that it was one,
    with exit 2.
    """
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
