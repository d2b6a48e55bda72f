"""--check, --status, --setup-nodes, --clean-nodes and --notify-command on real hosts."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import sys
import termios
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import OWN, TWO_PHASE, Project, opened, own_jobs
from tests.conftest import ROOT, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "head") as made:
        made.grid({"mode": ["target_only_fine_tuning"], "n_base_participants": [1]}, folds=(0,))
        yield made


def use(project: Project, hosts: Hosts, *names: str) -> None:
    """Run on these hosts."""
    project.config(
        [server for server in hosts.servers() if server["host"] in names],
        ssh_config=str(hosts.ssh_config),
    )


def line_of(said: str, name: str) -> str:
    """The one line about a node."""
    (line,) = [line for line in said.splitlines() if line.startswith(f"{name}: ")]
    return line


def test_check_says_one_line_a_node_and_fails_unless_all_can_work(
    hosts: Hosts, project: Project
) -> None:
    use(project, hosts, "h1", "h2")
    said = project.run(TWO_PHASE, "--check").said
    first = line_of(said, "h1")
    version = ".".join(map(str, sys.version_info[:3]))
    parts = (
        f"h1: ok: python {version}, torch ",
        "driver none",
        " cores, 1 slots, ",
        " GB free, clock ",
        "files will be sent, data 6 of 6 files will be sent",
    )
    for part in parts:
        assert part in first
    assert len(said.splitlines()) == 2
    assert not (hosts["h1"].project / "common").exists()
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    use(project, hosts, "h1", "h2", "h3")
    hosts.kill_all("h3")
    said = project.run(TWO_PHASE, "--check", code=1).said
    assert line_of(said, "h1").endswith("code equal, data equal")
    assert "CANNOT WORK: 198.18." in line_of(said, "h3")
    assert "refuses port 22" in line_of(said, "h3")


def test_check_shows_what_differs_between_nodes(hosts: Hosts, project: Project) -> None:
    use(project, hosts, "h1", "h2")
    assert "differs" not in project.run(TWO_PHASE, "--check").said
    folder = hosts["h2"].home / "bin"  # no compiler is found there
    folder.mkdir()
    for tool in ("sh", "env", "mkdir", "cat"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    (hosts["h2"].home / ".bashrc").write_text(f'export PATH="{folder}"\n')
    said = project.run(TWO_PHASE, "--check").said.splitlines()
    table = said[said.index("what differs between the nodes:") + 1 :]
    assert table[0].split() == ["node", "CPU"]
    assert table[1].startswith("h1    kernel, ")
    assert table[2] == "h2    stock operators, no C++ compiler"
    assert "may differ in the last digits" in table[3]


def test_check_finds_what_a_node_lacks(hosts: Hosts, project: Project) -> None:
    bare = shutil.which("python3", path="/usr/bin:/bin")
    if bare is None:
        pytest.skip("no system python3 beside the environment's")
    servers = hosts.servers()[:1]
    servers[0]["python"] = bare
    project.config(servers, ssh_config=str(hosts.ssh_config))
    said = project.run(TWO_PHASE, "--check", code=1).said
    assert "h1: CANNOT WORK: " in said
    assert "not installed there: run with --setup-nodes" in said


def test_status_shows_from_any_terminal_what_runs_where(hosts: Hosts, project: Project) -> None:
    own_jobs(project, 3, waits=True)
    use(project, hosts, "h1", "h2")
    run = project.start(*OWN)
    project.wait_epoch("h1")
    project.wait_epoch("h2")
    assert project.run(TWO_PHASE, "--status").said.splitlines()[0].endswith(": running")
    status = project.run(*OWN, "--status").said
    assert "  h1: open, 1 slots, 0 done, 0 failed, " in status
    assert " MB/s; job" in status
    assert " epoch 1/2" in status
    assert "  script: 0 done, 2 running, 0 failed, 0 blocked, 1 waiting" in status
    assert "  time left: " in status
    for name in ("h1", "h2"):
        (hosts[name].project / "go").touch()
    run.ends_with(0)
    status = project.run(TWO_PHASE, "--status").said
    assert status.splitlines()[0].endswith(": ended")
    assert "  script: 3 done, 0 running, 0 failed, 0 blocked, 0 waiting" in status


def test_in_a_terminal_the_run_shows_the_same_under_its_bar(project: Project) -> None:
    own_jobs(project, 1, waits=True)
    project.config([{"host": "localhost", "cpu_slots": 1}])
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 200, 0, 0))
    run = project.start(*OWN, stderr=theirs)
    shown = bytearray()

    def seen(*parts: bytes) -> bool:
        if select.select([ours], [], [], 0.1)[0]:
            shown.extend(os.read(ours, 65536))
        return all(part in shown for part in parts)

    parts = (
        b"0/1",
        b"1 running, 0 failed",
        b"  localhost: open, 1 slots, 0 done",
        b"job0 epoch 1/2",
        b"  script: 0 done, 1 running",
    )
    wait_until(lambda: seen(*parts), what="the bar")
    (project.folder / "go").touch()
    wait_until(lambda: seen() or run.process.poll() is not None)
    run.ends_with(0)
    os.close(theirs)
    os.close(ours)


def test_clean_nodes_removes_only_what_the_head_has_byte_for_byte(
    hosts: Hosts, project: Project
) -> None:
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    there = hosts["h1"].project
    (base,) = there.glob("base_models/*.pt")
    raw = base.read_bytes()
    base.write_bytes(b"not what the head has")
    foreign = there / "experiments/somebody/fold0_ann/metrics.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    before = project.results()
    use(project, hosts, "h1", "h2")
    said = project.run(TWO_PHASE, "--clean-nodes").said
    assert (
        "h1: 7 files removed from base_models/ and experiments/, each of them verified here" in said
    )
    assert "h2: 0 files removed" in said
    assert project.results() == before
    assert sorted(
        path.name
        for path in there.rglob("*")
        if path.is_file() and ("base_models" in path.parts or "experiments" in path.parts)
    ) == [
        base.name,
        "metrics.json",
    ]
    assert foreign.is_file()
    base.write_bytes(raw)
    (project.folder / "base_models" / base.name).write_bytes(b"damaged on the head")
    assert "h1: 0 files removed" in project.run(TWO_PHASE, "--clean-nodes").said
    assert base.read_bytes() == raw


def test_clean_nodes_follows_no_link(hosts: Hosts, project: Project) -> None:
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    elsewhere = hosts["h1"].folder / "elsewhere"
    shutil.move(hosts["h1"].project / "experiments", elsewhere)
    (hosts["h1"].project / "experiments").symlink_to(elsewhere)
    assert "h1: 2 files removed" in project.run(TWO_PHASE, "--clean-nodes").said
    assert len(list(elsewhere.rglob("metrics.json"))) == 1
    shutil.rmtree(elsewhere)


def wheel(folder: Path, name: str, version: str) -> Path:
    """An installable package with nothing in it."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the code whose requirements are empty packages: real ones take minutes."""
    folder = tmp_path / "code"
    shutil.copytree(
        ROOT / "common", folder / "common", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    names = ("torch", "numpy", "pydantic", "scikit-learn")
    wheels = [wheel(tmp_path, name, metadata.version(name).partition("+")[0]) for name in names]
    (folder / "requirements.txt").write_text("\n".join(map(str, wheels)) + "\n")
    (folder / "constraints.txt").write_text("# nothing\n")
    return folder


def test_setup_nodes_builds_the_environment_and_may_be_repeated(
    hosts: Hosts, tmp_path: Path, code: Path
) -> None:
    with opened(tmp_path / "head", data=False, code=code) as project:
        servers = [
            {key: value for key, value in server.items() if key != "python"}
            for server in hosts.servers()[:1]
        ]
        project.config(servers, ssh_config=str(hosts.ssh_config))
        said = project.run(TWO_PHASE, "--setup-nodes").said
        assert "h1: building env/ from requirements.txt" in said
        assert "h1: env/bin/python: python 3." in said
        python = hosts["h1"].project / "env/bin/python"
        made = python.lstat().st_ctime_ns
        project.run(TWO_PHASE, "--setup-nodes")
        assert python.lstat().st_ctime_ns == made
        (hosts["h1"].project / "env/half-built").touch()  # a set-up that was interrupted
        assert "h1: CANNOT WORK: " in project.run(TWO_PHASE, "--check", code=1).said
        project.run(TWO_PHASE, "--setup-nodes")
        assert python.lstat().st_ctime_ns != made
        assert not (hosts["h1"].project / "env/half-built").exists()
        (code / "requirements.txt").write_text(
            "a-package-that-nobody-has-made==0.0.1\n--no-index\n"
        )
        said = project.run(TWO_PHASE, "--setup-nodes", code=1).said
        assert "h1: the environment was not built: " in said


def test_an_environment_in_which_nothing_can_work_is_no_success(
    hosts: Hosts, tmp_path: Path, code: Path
) -> None:
    (code / "requirements.txt").write_text("# nothing\n")
    with opened(tmp_path / "head", data=False, code=code) as project:
        servers = [{**hosts.servers()[0], "python": "/usr/bin/python3"}]
        project.config(servers, ssh_config=str(hosts.ssh_config))
        said = project.run(TWO_PHASE, "--setup-nodes", code=1).said
        assert "h1: torch, numpy, pydantic, scikit-learn not installed there" in said


def test_setup_nodes_builds_with_the_python_that_is_named_and_it_is_used(
    hosts: Hosts, tmp_path: Path, code: Path
) -> None:
    named = tmp_path / "my python"
    log = tmp_path / "called"
    go = tmp_path / "go"
    waits = f'while test "$2" = venv && ! test -e "{go}"; do sleep 0.1; done'
    named.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n{waits}\nexec {sys.executable} "$@"\n')
    named.chmod(0o755)
    with opened(tmp_path / "head", data=False, code=code) as project:
        server = {**hosts.servers()[0], "python": str(named)}
        project.config([server], ssh_config=str(hosts.ssh_config))
        first = project.start(TWO_PHASE, "--setup-nodes")
        wait_until(lambda: log.exists() and "-m venv env" in log.read_text(), what="its venv")
        first.end()  # what it started on the node goes on
        second = project.start(TWO_PHASE, "--setup-nodes")
        wait_until(lambda: log.read_text().count("flock") == 2, what="the second to wait")
        go.touch()
        assert "h1: env/bin/python: python 3." in second.ends_with(0)
        assert log.read_text().count("-m venv env") == 1
        log.unlink()
        assert "h1: ok: " in project.run(TWO_PHASE, "--check").said
        assert not log.exists()
        project.config([{**server, "python": sys.executable}], ssh_config=str(hosts.ssh_config))
        assert "h1: env/bin/python: " in project.run(TWO_PHASE, "--setup-nodes").said


def test_the_notify_command_hears_of_the_first_failure_and_of_the_end(
    hosts: Hosts, project: Project
) -> None:
    (project.folder / "note it.py").write_text(
        "import sys\nopen('heard.txt', 'a').write(sys.argv[-1] + '\\n')\n"
    )
    (project.folder / "own.py").write_text(
        "def run(options, progress):\n    raise ValueError('number ' + str(options['number']))\n"
    )
    (project.folder / "jobs.json").write_text('[{"number": 1}, {"number": 2}]')
    use(project, hosts, "h1")
    project.run(*OWN, "--notify-command", f"'{sys.executable}' 'note it.py'", code=1)
    heard = (project.folder / "heard.txt").read_text().splitlines()
    assert len(heard) == 2
    assert heard[0].startswith("failed: job0: ValueError: number 1")
    assert heard[1] == "0 done, 2 failed, 0 blocked, 0 left, 0 reused"
    hosts.wait_idle("h1")
