"""What goes to nodes and comes home: data, code, base models, results; damaged, killed in mid-copy,
behind links, or only on the nodes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import artifacts
from common.data.prepare import hold_data
from common.errors import Conflict
from common.paths import Paths
from tests.cluster.hosts import Hosts
from tests.cluster.project import OWN, TWO_PHASE, Project, opened, own_jobs, traces, write_data
from tests.conftest import ROOT

pytestmark = pytest.mark.root

SMALL: dict[str, Any] = {"mode": ["full_fine_tuning"], "n_base_participants": [1]}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a local run of the small project gives."""
    with opened(tmp_path_factory.mktemp("reference") / "local") as local:
        local.grid(SMALL, folds=(0,))
        local.config([{"host": "localhost", "cpu_slots": 1}])
        local.run(TWO_PHASE)
        return local.results()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with opened(tmp_path / "head") as made:
        made.grid(SMALL, folds=(0,))
        yield made


def use(project: Project, hosts: Hosts, *names: str, **more: Any) -> None:
    """Run on these hosts."""
    servers = [server for server in hosts.servers() if server["host"] in names]
    project.config(servers, ssh_config=str(hosts.ssh_config), **more)


def forget(project: Project, *more: Path) -> None:
    """No results, on the head and in these folders."""
    for folder in (project.folder, *more):
        for name in ("base_models", "experiments", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)


def flip(path: Path) -> None:
    """Change one bit in the middle, at equal size and time."""
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# Data


def test_only_files_that_jobs_read_are_sent_and_only_where_they_run(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    write_data(project.folder / "data/tiny", ("dan",))
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    assert project.results() == reference
    # what the base needs, then what else its fine-tune does
    sent = [event["files"] for event in project.found(event="data", node="h1")]
    assert [sorted(Path(name).name[:3] for name in files) for files in sent] == [
        ["bob"] * 3,
        ["ann"] * 3,
    ]
    there = sorted(path.name for path in (hosts["h1"].project / "data/tiny").iterdir())
    assert there == [
        "ann_test.pt",
        "ann_train.pt",
        "ann_val.pt",
        "bob_test.pt",
        "bob_train.pt",
        "bob_val.pt",
    ]


def test_data_that_only_the_nodes_have_are_used_when_they_agree(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    shutil.copytree(project.folder / "data", hosts["h1"].project / "data")
    shutil.move(project.folder / "data", hosts["h2"].project / "data")
    use(project, hosts, "h1", "h2", "h3")
    said = project.run(TWO_PHASE).said
    assert "left out: h3: data/tiny/bob_train.pt is missing there and cannot be sent" in said
    assert project.results() == reference
    assert not (project.folder / "data").exists()


def test_data_that_only_the_nodes_have_are_refused_when_they_differ(
    hosts: Hosts, project: Project
) -> None:
    shutil.copytree(project.folder / "data", hosts["h1"].project / "data")
    shutil.move(project.folder / "data", hosts["h2"].project / "data")
    flip(hosts["h2"].project / "data/tiny/bob_val.pt")
    use(project, hosts, "h1", "h2")
    said = project.run(TWO_PHASE, code=2).said
    assert "data/tiny/bob_val.pt: h2 has another file than the other nodes" in said
    assert not project.run_folders()


def test_data_may_lie_behind_links_here_and_there(
    hosts: Hosts, project: Project, reference: dict[str, Any], tmp_path: Path
) -> None:
    shutil.move(project.folder / "data/tiny", tmp_path / "a disk")
    (project.folder / "data/tiny").symlink_to(tmp_path / "a disk")
    disk = hosts["h1"].folder / "another disk"
    disk.mkdir()
    (hosts["h1"].project / "data").symlink_to(disk)
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    assert project.results() == reference
    assert (hosts["h1"].project / "data").is_symlink()
    assert len(list((disk / "tiny").iterdir())) == 6
    shutil.rmtree(disk)


def test_data_changed_at_equal_size_and_time_are_noticed_there_and_here(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    for name in ("bob_train.pt", "ann_test.pt"):
        flip(hosts["h1"].project / "data/tiny" / name)
    forget(project, hosts["h1"].project)
    project.run(TWO_PHASE)
    assert project.results() == reference
    mine = project.folder / "data/tiny/bob_train.pt"
    before = mine.stat()
    write_data(project.folder / "data/tiny/new", ("bob",), seed=1)
    mine.write_bytes((project.folder / "data/tiny/new/bob_train.pt").read_bytes())
    os.utime(mine, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert mine.stat().st_size == before.st_size
    said = project.run(TWO_PHASE).said
    assert "is stale: data changed (bob_train.pt)" in said
    assert len(project.found(event="done")) == 2
    assert mine.read_bytes() == (hosts["h1"].project / "data/tiny/bob_train.pt").read_bytes()
    assert project.results().keys() == reference.keys()
    assert project.results() != reference


def test_data_under_an_absolute_path_are_never_sent(hosts: Hosts, tmp_path: Path) -> None:
    with opened(tmp_path / "absolute", data=False) as project:
        write_data(tmp_path / "shared disk")
        project.grid(SMALL, folds=(0,), data_path=str(tmp_path / "shared disk"))
        use(project, hosts, "h1")
        project.run(TWO_PHASE)  # the hosts see this very disk
        assert len(project.found(event="done")) == 2
        assert not (hosts["h1"].project / "data").exists()


def test_nodes_get_the_code_of_the_head(hosts: Hosts, project: Project) -> None:
    own_jobs(project, 1)
    use(project, hosts, "h1")
    project.run(*OWN)
    shutil.rmtree(hosts["h1"].project / "common/cluster/__pycache__")
    worker = hosts["h1"].project / "common/cluster/on_node/worker.py"
    worker.write_text("raise SystemExit('old code')\n")
    (hosts["h1"].project / "own.py").write_text(
        "def run(options, progress):\n    raise ValueError('old script')\n"
    )
    project.run(*OWN)
    assert worker.read_bytes() == (project.code / "common/cluster/on_node/worker.py").read_bytes()
    assert set(traces(hosts["h1"].project)) == {0}


def test_a_script_in_a_folder_of_the_checkout_is_sent_where_the_project_is_the_checkout(
    hosts: Hosts, tmp_path: Path
) -> None:
    shutil.copytree(
        ROOT / "common", tmp_path / "head/common", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path / "head")
    with opened(tmp_path / "head", data=False, code=tmp_path / "head") as project:
        own_jobs(project, 1)
        (project.folder / "scripts").mkdir()
        (project.folder / "own.py").rename(project.folder / "scripts/mine.py")
        use(project, hosts, "h1")
        project.run(*OWN[:-1], "scripts/mine.py")
    assert set(traces(hosts["h1"].project)) == {0}


def test_a_shared_project_folder_needs_the_code_in_its_place_there_too(
    hosts: Hosts, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT / "common", code / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, code)
    with opened(tmp_path / "head", data=False, code=code) as project:
        own_jobs(project, 1)
        server = {**hosts.servers()[0], "path": str(project.folder)}
        project.config([server], ssh_config=str(hosts.ssh_config))
        assert "1 done" in project.run(*OWN).said
        assert set(traces(project.folder)) == {0}
        sshd = hosts["h1"].sshd
        assert sshd is not None
        hide = ["nsenter", "--mount", "-t", str(sshd.pid), "mount", "-t", "tmpfs", "none", code]
        subprocess.run(hide, check=True)  # on h1 alone
        lines = [
            f"h1: CANNOT WORK: its project folder is the head's (a shared file system), but the"
            f" head's code is not in {code} there (common/__init__.py, ",
            "left out: h1: its project folder is the head's (a shared file system)",
        ]
        for line, flags in zip(lines, (["--check"], []), strict=True):
            assert line in project.run(*OWN, *flags, code=1).said


# Base models


def base_of(project: Project) -> str:
    """The one base model's file name."""
    return f"{project.jobs('base_training_jobs.json')[0]['base_model_hash']}.pt"


def without_experiments(hosts: Hosts, project: Project) -> Path:
    """Trained bases on head and h1, and no experiment anywhere. Returns h1's base model."""
    use(project, hosts, "h1")
    project.run(TWO_PHASE)
    for folder in (project.folder, hosts["h1"].project):
        shutil.rmtree(folder / "experiments")
    return hosts["h1"].project / "base_models" / base_of(project)


def test_a_flipped_bit_in_a_nodes_base_model_is_refused_set_aside_and_sent_again(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    base = without_experiments(hosts, project)
    good = base.read_bytes()
    flip(base)
    bad = base.read_bytes()
    said = project.run(TWO_PHASE, "--skip-base-training", "--skip-sync").said
    assert "its SHA-256 is not that of its metadata" in said
    assert "it is sent again" in said
    assert len(project.found(event="resent", node="h1")) == 1
    assert base.read_bytes() == good
    assert [
        path.read_bytes()
        for path in (hosts["h1"].project / "superseded/base_models").glob("*.pt.*")
    ] == [bad]
    assert project.results() == reference


def test_a_base_model_that_skip_sync_trusts_in_vain_is_sent_when_it_is_missed(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    without_experiments(hosts, project).unlink()
    assert (
        "Base model not found: base_models/"
        in project.run(TWO_PHASE, "--skip-base-training", "--skip-sync").said
    )
    assert project.results() == reference


def test_sync_repairs_a_flipped_bit_before_it_is_met(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    base = without_experiments(hosts, project)
    flip(base)
    project.run(TWO_PHASE)
    assert not project.found(event="resent")
    assert base.read_bytes() == (project.folder / "base_models" / base_of(project)).read_bytes()
    assert project.results() == reference


def test_skip_base_training_sends_base_models_to_all_nodes_first(
    hosts: Hosts, project: Project, reference: dict[str, Any]
) -> None:
    use(project, hosts, "h1")
    project.run(
        "run_distributed_training.py",
        "--jobs-config",
        "base_training_jobs.json",
        "--script-path",
        "train_base.py",
    )
    use(project, hosts, "h1", "h2", "h3")
    hosts.kill_all("h3")
    said = project.run(TWO_PHASE, "--skip-base-training").said
    for name in ("h1", "h2"):
        assert (hosts[name].project / "base_models" / base_of(project)).is_file(), said
        assert {event["base"] + ".pt" for event in project.found(event="sync", node=name)} == {
            base_of(project)
        }
    assert (
        f"rsync -avz --checksum -e 'ssh -F {hosts.ssh_config}' -- base_models/"
        f" h3:{hosts['h3'].project}/base_models/" in said
    )
    assert project.results() == reference
    assert (
        "nothing to do: all"
        in project.run(
            "run_distributed_training.py",
            "--jobs-config",
            "finetune_jobs.json",
            "--script-path",
            "train_finetune.py",
        ).said
    )


# Copies that are killed


# A node's rsync. Once the node has joined, its first copies in one direction are killed when 1,000
# bytes of them have passed, and leave a folder each.
KILLED_RSYNC = """#!{python}
import os, subprocess, sys, threading
from pathlib import Path
events = "".join(path.read_text() for path in Path({runs!r}).glob("*/events.jsonl"))
copy = subprocess.Popen([{rsync!r}, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
wanted = '"state": "joined"' in events and ("--sender" in sys.argv) == {pull}

def kill():
    for number in range({times}):
        try:
            os.mkdir(f"{killed}/{{number}}")
        except FileExistsError:
            continue
        copy.kill()
        os._exit(137)

def passing(source, target, counts):
    passed = 0
    while data := os.read(source, 200):
        os.write(target, data)
        passed += len(data)
        if counts and passed > 1000:
            kill()
    os.close(target)

pipes = copy.stdin.fileno(), copy.stdout.fileno()
to = threading.Thread(target=passing, args=(0, pipes[0], wanted and not {pull}), daemon=True)
to.start()
passing(pipes[1], 1, wanted and {pull})
os._exit(copy.wait())
"""


@pytest.mark.parametrize("times", [1, 2])  # a job is given up after three attempts
@pytest.mark.parametrize("pull", [False, True], ids=["to the node", "from the node"])
def test_a_copy_that_is_killed_is_repeated_and_leaves_no_bad_file(
    hosts: Hosts, project: Project, reference: dict[str, Any], pull: bool, times: int
) -> None:
    use(project, hosts, "h1")
    tools, killed = hosts["h1"].home / "tools", project.folder.parent / "killed"
    tools.mkdir()
    killed.mkdir()
    (tools / "rsync").write_text(
        KILLED_RSYNC.format(
            python=sys.executable,
            rsync=shutil.which("rsync"),
            runs=str(project.folder / "runs"),
            pull=pull,
            times=times,
            killed=killed,
        )
    )
    (tools / "rsync").chmod(0o755)
    (hosts["h1"].home / ".bashrc").write_text(f'export PATH="{tools}:$PATH"\n')
    project.run(TWO_PHASE)
    assert len(list(killed.iterdir())) == times
    assert project.results() == reference
    for folder in (project.folder, hosts["h1"].project):
        for path in (folder / "data/tiny").glob("*.pt"):
            assert path.read_bytes() == (project.folder / "data/tiny" / path.name).read_bytes()
    assert not (project.folder / "incoming").exists()


@pytest.mark.parametrize("where", ["localhost", "h1"])
def test_data_that_are_prepared_again_end_the_run_at_once_and_blame_nobody(
    hosts: Hosts, tmp_path: Path, where: str
) -> None:
    with opened(tmp_path / "head") as project:
        project.grid({"mode": ["target_only"]}, max_epochs=100_000)
        local = [{"host": "localhost", "cpu_slots": 1}]
        servers = local if where == "localhost" else hosts.servers()[:1]
        project.config(servers, ssh_config=str(hosts.ssh_config))
        run = project.start(TWO_PHASE)
        project.wait_epoch(where)
        paths = Paths(project.folder)
        run_id = next(paths.runs.iterdir()).name
        with (
            pytest.raises(Conflict, match=f"data/tiny: is used by run {run_id} "),
            hold_data(paths, "data/tiny"),
        ):
            pass
        with hold_data(paths, "data/tiny", force=True):
            write_data(project.folder / "data/tiny", seed=1)
        said = run.ends_with(1)
        assert "data/tiny was prepared again since this run started: start it again" in said
        assert "0 done, 0 failed, 0 blocked, 3 left" in said
        assert "damaged" not in said
        assert "failed: " not in said
        with artifacts.lock(paths.data_lock("data/tiny"), wait=False, owner="prepare_data.py"):
            said = project.run(TWO_PHASE, code=2).said
        assert "data/tiny: is being prepared by prepare_data.py: wait for it to end" in said
