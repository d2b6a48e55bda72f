"""A run on this machine as its user meets it: Ctrl-C, signals, exit codes, a second orchestrator,
and the flags of both orchestrators.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, failed_in_one_line, wait_until
from tests.scripts.projects import QUICK, Project, made

# A job that waits until it is told to go on, and fails when its job says so.
WAITING = """
import os, time

def run(options, progress):
    open(f"began-{options['name']}", "w").close()
    while not os.path.exists("go"):
        progress({"epoch": 1, "of": 2})
        time.sleep(0.02)
    if os.path.exists(f"fail-{options['name']}"):
        raise ValueError("told to fail")
    return {}
"""
OWN = ("run_distributed_training.py", "--jobs-config", "jobs.json", "--script-path", "waiting.py")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Four jobs that wait, two slots."""
    project = Project.create(tmp_path)
    (project.folder / "waiting.py").write_text(WAITING)
    project.write("jobs.json", [{"name": str(number)} for number in range(4)])
    project.write_cluster(slots=2)
    return project


def began(project: Project) -> list[str]:
    return sorted(path.name for path in project.folder.glob("began-*"))


@contextmanager
def two_at_work(project: Project) -> Iterator[subprocess.Popen[str]]:
    with project.started(*OWN) as run:
        wait_until(
            lambda: len(began(project)) == 2 or run.poll() is not None, what="the start of two jobs"
        )
        yield run


def release(project: Project) -> None:
    (project.folder / "go").touch()


def test_the_first_ctrl_c_lets_running_jobs_finish(project: Project) -> None:
    with two_at_work(project) as run:
        run.send_signal(signal.SIGINT)
        wait_until(
            lambda: "running jobs finish, nothing new starts" in project.output,
            what="the answer to Ctrl-C",
        )
        wait_until(  # it is written now and then
            lambda: (
                f"process {run.pid}: stopping: running jobs finish"
                in project.run("run_two_phase_distributed.py", "--status").stdout
            ),
            what="the status to say so",
        )
        release(project)
        assert run.wait(60) == 130
    assert project.output.splitlines()[-1] == "2 done, 0 failed, 0 blocked, 2 left, 0 reused"
    assert len(began(project)) == 2
    assert project.processes() == {}


def test_the_second_ctrl_c_stops_now(project: Project) -> None:
    with two_at_work(project) as run:
        run.send_signal(signal.SIGINT)
        wait_until(
            lambda: "running jobs finish, nothing new starts" in project.output,
            what="the answer to Ctrl-C",
        )
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
        wait_until(lambda: not project.processes(), what="the end of the workers")
    assert project.output.splitlines()[-1] == "0 done, 0 failed, 0 blocked, 4 left, 0 reused"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_stop_now(project: Project, number: signal.Signals) -> None:
    with two_at_work(project) as run:
        run.send_signal(number)
        assert run.wait(60) == 130
        wait_until(lambda: not project.processes(), what="the end of the workers")
    assert "4 left" in project.output


def test_a_killed_orchestrator_takes_its_workers_along_and_status_says_so(project: Project) -> None:
    with two_at_work(project) as run:
        run.kill()
        run.wait()
        wait_until(lambda: not project.processes(), what="the end of the workers")
    said = project.run("run_two_phase_distributed.py", "--status").stdout
    assert f"process {run.pid}: its orchestrator was killed" in said
    release(project)
    assert (
        project.run(*OWN).stdout.splitlines()[-1] == "4 done, 0 failed, 0 blocked, 0 left, 0 reused"
    )


def test_a_second_orchestrator_is_refused_naming_the_first_and_status_shows_it(
    project: Project,
) -> None:
    with two_at_work(project) as run:
        line = failed_in_one_line(project.run(*OWN, exit_code=2))
        assert f"another orchestrator runs in this project folder (process {run.pid} on " in line
        wait_until(
            lambda: "2 running" in project.run("run_two_phase_distributed.py", "--status").stdout,
            what="the status of two running jobs",
        )
        said = project.run("run_distributed_training.py", "--status").stdout
        assert f"process {run.pid}: running" in said
        assert "localhost: open, 2 slots, 0 done, 0 failed" in said
        assert "script: 0 done, 2 running, 0 failed, 0 blocked, 2 waiting" in said
        release(project)
        assert run.wait(60) == 0
    assert ": ended" in project.run("run_distributed_training.py", "--status").stdout


def test_the_configuration_is_read_again_when_it_changes(project: Project) -> None:
    project.write_cluster(slots=1)
    with project.started(*OWN) as run:
        wait_until(lambda: len(began(project)) == 1, what="the start of one job")
        (project.folder / "cluster_config.json").write_text('{"servers": [')
        wait_until(
            lambda: "the changed configuration is not used: " in project.output,
            what="the refusal of half a file",
        )
        project.write_cluster(slots=3)
        wait_until(
            lambda: "its running jobs finish, nothing new starts there" in project.output,
            what="the drain",
        )
        assert len(began(project)) == 1
        release(project)
        assert run.wait(90) == 0
    joined = [event["slots"] for event in project.events("node") if event["state"] == "joined"]
    assert joined == [1, 3]
    assert project.ran() == {f"job{number}": 1 for number in range(4)}


def test_only_failed_and_the_notify_command(project: Project) -> None:
    tell = project.folder / "tell.py"
    tell.write_text(
        "import sys\nopen('told.txt', 'a').write(sys.argv[1] + '|' + sys.argv[2] + '\\n')\n"
    )
    notify = ("--notify-command", shlex.join([sys.executable, str(tell), "with blanks; and more"]))
    release(project)
    for name in ("1", "3"):
        (project.folder / f"fail-{name}").touch()
    done = project.run(*OWN, *notify, exit_code=1)
    assert "2 done, 2 failed" in done.stdout
    told = (project.folder / "told.txt").read_text().splitlines()
    assert len(told) == 2
    assert told[0].startswith("with blanks; and more|failed: job")
    assert told[1] == "with blanks; and more|2 done, 2 failed, 0 blocked, 0 left, 0 reused"
    (project.folder / "fail-1").unlink()
    before = project.ran()
    done = project.run(*OWN, "--only", "failed", exit_code=1)
    assert project.ran() - before == {"job1": 1, "job3": 1}
    (project.folder / "fail-3").unlink()
    before = project.ran()
    assert "1 done, 0 failed" in project.run(*OWN, "--only", "failed").stdout
    assert project.ran() - before == {"job3": 1}
    assert (
        project.run(*OWN, "--only", "failed").stdout.splitlines()[-1]
        == "nothing to do: none of these jobs failed when it ran last"
    )


def test_a_notify_command_that_fails_harms_nothing(project: Project) -> None:
    tell = project.folder / "tell.py"
    tell.write_text("import sys\nopen('told.txt', 'a').write(sys.argv[1] + '\\n')\nsys.exit(3)\n")
    release(project)
    project.run(*OWN, "--notify-command", shlex.join([sys.executable, str(tell)]))
    assert (project.folder / "told.txt").read_text() == (
        "4 done, 0 failed, 0 blocked, 0 left, 0 reused\n"
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/nowhere/at all", "no such program: /nowhere/at"),
        ("tell 'me", "No closing quotation"),
        (" ", "names none"),
    ],
)
def test_a_notify_command_that_cannot_be_started_is_refused_before_the_run(
    project: Project, command: str, words: str
) -> None:
    assert words in failed_in_one_line(project.run(*OWN, "--notify-command", command, exit_code=2))
    assert not (project.folder / "runs").exists()


def test_the_run_goes_on_while_the_notify_command_hangs(project: Project) -> None:
    """It returns when the last job has begun, which is after the failure that it is told of."""
    tell = project.folder / "tell.py"
    told = "open('told.txt', 'a').write(sys.argv[1].partition(':')[0] + '\\n')"
    tell.write_text(
        "import glob, sys, time\nwhile len(glob.glob('began-*')) < 4:\n   "
        f" time.sleep(0.02)\n{told}\n"
    )
    project.write_cluster(slots=1)
    (project.folder / "fail-0").touch()
    release(project)
    project.run(*OWN, "--notify-command", shlex.join([sys.executable, str(tell)]), exit_code=1)
    assert (project.folder / "told.txt").read_text().splitlines() == [
        "failed",
        "3 done, 1 failed, 0 blocked, 0 left, 0 reused",
    ]


def test_max_retries_bounds_how_often_a_job_is_tried_again(project: Project) -> None:
    """A worker that dies is the job's fault when it dies twice on the only node, whatever the
    number of retries.
    """
    (project.folder / "waiting.py").write_text(
        "import os\n\ndef run(options, progress):\n    os.abort()\n"
    )
    project.write("jobs.json", [{"name": "x"}])
    done = project.run(*OWN, "--max-retries", "0", exit_code=1)
    assert project.ran()["job0"] <= 2
    assert "0 done, 1 failed" in done.stdout


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small grid that has not run."""
    project = made(tmp_path_factory.mktemp("grid"))
    project.generate(
        {"target_data_pct": [0.5, 1.0], "n_base_participants": [1]},
        QUICK | {"max_epochs": 1},
        "--folds",
        "ann",
        "bob",
        "cyd",
    )
    return project


def test_a_dry_run_tells_what_would_run_and_changes_nothing(grid: Project) -> None:
    before = grid.tree("cache", "locks")
    said = grid.run("run_two_phase_distributed.py", "--dry-run").stdout
    assert "base models: 3 new; 2 trainings to run" in said
    assert sum(line.startswith("would train ") for line in said.splitlines()) == 2
    assert said.count("(published for 1 more hashes: ") == 1
    assert sum(line.startswith("would run ") for line in said.splitlines()) == 6
    assert grid.tree("cache", "locks") == before


def test_only_a_prefix_runs_its_fine_tunes_with_the_bases_that_they_need(grid: Project) -> None:
    prefix = next(
        job["prefix"] for job in grid.jobs("finetune_jobs.json") if job["target_data_pct"] == 0.5
    )
    failed_in_one_line(grid.run("run_two_phase_distributed.py", "--only", "nobody", exit_code=2))
    said = grid.run("run_two_phase_distributed.py", "--only", prefix).stdout
    assert said.splitlines()[-1].startswith("5 done, 0 failed")
    assert {path.name for path in (grid.folder / "experiments").iterdir()} == {prefix}
    done = grid.run("run_two_phase_distributed.py", "--dry-run").stdout
    assert sum(line.startswith("is there: ") for line in done.splitlines()) == 6
    assert sum(line.startswith("would run ") for line in done.splitlines()) == 3


def test_two_literal_phases_when_asked(grid: Project) -> None:
    for folder in ("base_models", "experiments", "runs"):
        subprocess.run(["rm", "-rf", str(grid.folder / folder)], check=True)
    grid.run("run_two_phase_distributed.py", "--wait-for-all-bases")
    order = [
        ("base" if "/" not in event["job"] else "finetune", event["event"])
        for event in grid.events()
        if event["event"] in ("started", "done")
    ]
    assert order.index(("finetune", "started")) > max(
        number for number, what in enumerate(order) if what == ("base", "done")
    )


def test_every_flag_has_help(grid: Project) -> None:
    for script in (
        "train_base.py",
        "train_finetune.py",
        "generate_jobs.py",
        "run_distributed_training.py",
        "run_two_phase_distributed.py",
    ):
        text = grid.run(script, "--help").stdout
        lines = [line for line in text.splitlines() if line.startswith("  -")]
        assert len(lines) > 3
        for number, line in enumerate(text.splitlines()):
            if line.startswith("  --"):
                following = (
                    text.splitlines()[number + 1] if number + 1 < len(text.splitlines()) else ""
                )
                assert len(line.split("  ")) > 2 or following.startswith("        "), line


def test_scripts_without_their_packages_say_how_to_build_the_environment(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")],
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    for script in sorted(ROOT.glob("*.py")):
        done = subprocess.run(
            [str(tmp_path / "bare/bin/python"), str(script)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "lacks the packages torch, numpy" in done.stderr
        assert "`make env`, then `. env/bin/activate`" in done.stderr
