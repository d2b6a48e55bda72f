"""Somebody else's scripts through run_distributed_training.py: in processes of their own, or, with
run(options, progress), inside the warm workers.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.scripts.projects import Project

# Without run(): says what it was started with, and ends as it is told.
PLAIN = """
import json, os, sys
argv = sys.argv[1:]
name = next(word[7:] for word in argv if word.startswith("--name="))
open(f"{name}.json", "w").write(json.dumps(argv))
print('{"done": "job0", "result": {}}', flush=True)
print("words on stdout", flush=True)
print("words on stderr", file=sys.stderr, flush=True)
if name == "bad":
    sys.exit(3)
if name == "segfault":
    import ctypes
    ctypes.string_at(0)
if name == "parent":
    import subprocess
    for apart in (False, True):
        argv = [sys.executable, "-c", "import time; time.sleep(1000)"]
        subprocess.Popen(argv, start_new_session=apart)
"""

# With run(): in the worker's own process.
INSIDE = """
import ctypes, json, os, sys

def run(options, progress):
    print("inside", options["name"])
    os.write(1, b"raw bytes on file descriptor 1\\n{\\"beat\\": 1}\\n")
    progress({"epoch": 1, "of": 2})
    if options["name"] == "raises":
        raise ValueError("this is\\nwrong")
    if options["name"] == "exits":
        sys.exit("enough")
    if options["name"] == "segfault":
        ctypes.string_at(0)
    with open(f"in-{options['name']}.json", "w") as file:
        json.dump({"pid": os.getpid(), **options}, file)
    return {"anything": 1}

if __name__ == "__main__":
    raise SystemExit("not meant to be started")
"""


def prepared(
    parent: Path, script: str, text: str, jobs: list[dict[str, Any]], slots: int = 1
) -> Project:
    project = Project.create(parent)
    (project.folder / script).write_text(text)
    project.write("jobs.json", jobs)
    project.write_cluster(slots)
    return project


def run(project: Project, script: str, exit_code: int) -> subprocess.CompletedProcess[str]:
    return project.run(
        "run_distributed_training.py",
        "--jobs-config",
        "jobs.json",
        "--script-path",
        script,
        exit_code=exit_code,
    )


def log_of(project: Project, job: str) -> str:
    (path,) = project.folder.glob(f"runs/*/logs/{job}.log")
    return path.read_text()


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """A run of PLAIN with a job of every kind."""
    jobs = [
        {
            "name": "good",
            "lr": 0.1,
            "verbose": True,
            "quiet": False,
            "nothing": None,
            "people": ["ann", "b b"],
            "_note": "not passed on",
        },
        {"name": "bad"},
        {"name": "segfault"},
        {"name": "parent"},
        {"name": "-x; touch owned"},
    ]
    project = prepared(tmp_path_factory.mktemp("plain"), "own.py", PLAIN, jobs)
    return project, run(project, "own.py", exit_code=1)


Ran = tuple[Project, subprocess.CompletedProcess[str]]


def test_a_job_becomes_flags(plain: Ran) -> None:
    project, _ = plain
    argv = json.loads((project.folder / "good.json").read_text())
    assert argv == ["--name=good", "--lr=0.1", "--verbose", "--people", "ann", "b b"]
    assert json.loads((project.folder / "-x; touch owned.json").read_text()) == [
        "--name=-x; touch owned"
    ]
    assert not (project.folder / "owned").exists()


def test_exit_codes_and_signals_fail_the_job_by_name_and_the_log_is_kept(plain: Ran) -> None:
    project, done = plain
    failed = {
        line.split()[1].rstrip(":"): line
        for line in done.stdout.splitlines()
        if line.startswith("failed: ")
    }
    assert set(failed) == {"job1", "job2"}
    assert "own.py exited with 3: " in failed["job1"]
    assert "words on stderr" in failed["job1"]
    assert "own.py was ended by signal SIGSEGV" in failed["job2"]
    for job in ("job0", "job1", "job2"):
        assert "words on stdout" in log_of(project, job)
    assert done.stdout.splitlines()[-1] == "3 done, 2 failed, 0 blocked, 0 left, 0 reused"


def test_children_of_a_script_do_not_outlive_its_job(plain: Ran) -> None:
    project, _ = plain
    assert (project.folder / "parent.json").exists()
    assert project.processes() == {}


def test_run_is_called_inside_the_worker_and_prints_do_no_harm(tmp_path: Path) -> None:
    jobs = [
        {"name": "one", "device": "7", "list": [1, 2]},
        {"name": "raises"},
        {"name": "exits"},
        {"name": "two"},
    ]
    project = prepared(tmp_path, "inside.py", INSIDE, jobs)
    done = run(project, "inside.py", exit_code=1)
    one, two = (
        json.loads((project.folder / f"in-{name}.json").read_text()) for name in ("one", "two")
    )
    assert one["pid"] == two["pid"]
    assert one["device"] == "cpu"  # the slot's, not the job's
    assert one["list"] == [1, 2]
    assert "failed: job1: ValueError: this is; wrong" in done.stdout
    assert "failed: job2: SystemExit: enough" in done.stdout
    assert "inside one\nraw bytes on file descriptor 1\n" in log_of(project, "job0")
    assert "Traceback" in log_of(project, "job1")
    assert done.stdout.splitlines()[-1] == "2 done, 2 failed, 0 blocked, 0 left, 0 reused"


def test_a_script_that_kills_its_worker_is_tried_twice_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    project = prepared(
        tmp_path, "inside.py", INSIDE, [{"name": "segfault"}, {"name": "one"}, {"name": "two"}]
    )
    done = run(project, "inside.py", exit_code=1)
    assert project.ran()["job0"] == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert "its worker died" in line
    assert done.stdout.splitlines()[-1] == "2 done, 1 failed, 0 blocked, 0 left, 0 reused"
    wait_until(
        lambda: not project.processes(), what="the end of the worker that was started in its place"
    )
