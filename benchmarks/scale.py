"""What a hundred nodes with eight slots each cost the head: CPU, memory, threads, time to join; and
one node after the other dying.

    python benchmarks/scale.py [--repeats 1] [--json FILE]

The head is the real script in a process of its own, with the real scheduler, transport, rsync,
verification and publishing. Nodes are folders of this machine; what plays is their Python
(stub_node.py): workers speak the protocol, report their progress as real ones do and publish small
results that were made before. One check of the head is left out: a configuration may name this
machine once only.

Wanted, at 50 results a second: half a core, 500 MB, all slots at work within 60 s. Then one node a
second dies for a minute, silently, and comes back 20 s later: every job must be done exactly once.
Last, ten nodes behind a real sshd on this machine, to count what an SSH node costs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from dispatch import call, environment, events  # noqa: E402
from rows import Row, main  # noqa: E402

from common import artifacts  # noqa: E402
from common.cluster.on_node.processes import stat_fields  # noqa: E402
from common.data.data_sets import Data  # noqa: E402
from common.jobs import identity  # noqa: E402
from common.jobs.job_files import Job, read_jobs  # noqa: E402
from common.options import to_flags  # noqa: E402
from common.paths import EXPERIMENT_METRICS, Paths  # noqa: E402

NODES, SLOTS = 100, 8
RESULTS_A_SECOND = 50
STEADY_SECONDS, SETTLE_SECONDS = 40, 25
DEAD, AWAY_SECONDS = 60, 20.0
JOBS = 6500
SSH_NODES, SSH_SECONDS = 10, 5.0
SSHD = "/usr/sbin/sshd"
CORE_SHARE, MEMORY, JOIN_SECONDS = 0.5, 500e6, 60.0
PEOPLE = ("ann", "bob", "cyd")
SILENCE = {"heartbeat_seconds": 5, "suspect_seconds": 10, "close_seconds": 15}
FIXED: dict[str, Any] = {
    "data_path": "data/tiny",
    "window_size": 16,
    "participants": list(PEOPLE),
    "mode": "target_only",
    "max_epochs": 1,
    "base_channels": 8,
}
# The head, for which every node that is named so is this machine.
HEAD = """
import runpy, sys
sys.path[:0] = [sys.argv[1]]
from common.cluster.config import Server
Server.is_local = property(lambda server: server.host.startswith("local"))
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Sample:
    """The head at one moment."""

    time: float
    cpu: float  # seconds so far, all of its threads
    children: float  # seconds of the commands that it has started and that have ended
    memory: int  # bytes
    threads: int


class Head:
    """The orchestrator under measurement."""

    def __init__(self, project: Path) -> None:
        self.project, self.samples, self.began = project, list[Sample](), time.time()
        script = str(ROOT / "run_distributed_training.py")
        argv = [sys.executable, "-c", HEAD, str(ROOT), script]
        argv += ["--jobs-config", "finetune_jobs.json", "--script-path", "train_finetune.py"]
        with (project / "said.txt").open("wb") as said:
            self.process = subprocess.Popen(
                [*argv, "--max-retries", "20"],
                cwd=project,
                env=environment(project),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def sample(self) -> Sample | None:
        """Look at the head; None once it has ended."""
        pid = self.process.pid
        if self.process.poll() is not None or (fields := stat_fields(pid)) is None:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        own, children = (sum(map(int, fields[at : at + 2])) / ticks for at in (11, 13))
        memory, threads = 0, int(fields[17])
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if found := re.search(r"VmRSS:\s+(\d+)", status):
                memory = 1024 * int(found[1])
        self.samples.append(Sample(time.time(), own, children, memory, threads))
        return self.samples[-1]

    def watch(self, until: Callable[[], object], seconds: float) -> None:
        """Sample twice a second until something is so; ends the benchmark where it is not."""
        deadline = time.monotonic() + seconds
        while not until():
            if self.sample() is None or time.monotonic() > deadline:
                said = (self.project / "said.txt").read_text()
                raise SystemExit(f"the head ended, or {seconds:.0f} s were over: {said[-2000:]}")
            time.sleep(min(0.5, seconds))

    def wait(self, seconds: float) -> Sample:
        """Sample for so long; the last one."""
        over = time.monotonic() + seconds
        self.watch(lambda: time.monotonic() >= over, 2 * seconds + 10)
        return self.samples[-1]

    def log(self) -> list[dict[str, Any]]:
        """Its event log so far."""
        with suppress(OSError, ValueError):
            return events(self.project)
        return []

    def end(self) -> None:
        """Kill it, where it still runs."""
        self.process.kill()
        self.process.wait()


# -- what the nodes have


def make_project(project: Path, jobs: int) -> None:
    """Data, `jobs` jobs, and under stub/ the result of each, as a node would make it."""
    import torch

    data = project / "data" / "tiny"
    data.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in PEOPLE:
        for split in ("train", "val", "test"):
            y = torch.arange(48) % 2
            x = torch.randn(48, 2, 16, generator=generator) + y[:, None, None]
            torch.save((x, y), data / f"{name}_{split}.pt")
    call(project, "train_finetune.py", "--fold=0", "--seed_finetune=0", *to_flags(FIXED))
    (made,) = (project / "experiments").glob("*/*")
    template = artifacts.open_experiment(made)
    (project / "stub").mkdir()
    shutil.move(made, project / "stub" / "common")
    shutil.rmtree(project / "experiments")
    write_jobs(project, jobs)
    for job in read_jobs(project / "finetune_jobs.json", "finetune", Data(Paths(project))):
        folder = project / "stub" / "results" / job.id
        folder.mkdir(parents=True)
        for name, content in own_files(template, job).items():
            (folder / name).write_bytes(content)


def write_jobs(project: Path, number: int) -> None:
    """A job file of that many fine-tunes without a base model."""
    grid = {"grid": {"seed_finetune": list(range(number))}, "fixed": FIXED}
    (project / "grid.json").write_text(json.dumps(grid))
    call(project, "generate_jobs.py", "--grid", "grid.json", "--folds", "0")


def own_files(template: artifacts.Experiment, job: Job) -> dict[str, bytes]:
    """What a result that the head accepts for `job` has not in common with that of another seed."""
    options = job.finetune
    config = {
        **template.config,
        "options": {
            **template.config["options"],
            "prefix": job.values["prefix"],
            "seed_finetune": options.seed_finetune,
        },
        "experiment_fields": identity.experiment_fields(options),
        "experiment_key": identity.experiment_key(
            options, None, template.config["data_fingerprints"]
        ),
    }
    content = artifacts.to_json(config)
    digests = {**template.metrics["files"], "config.json": artifacts.sha256(content)}
    metrics = artifacts.seal({**template.metrics, "files": digests})
    return {"config.json": content, EXPERIMENT_METRICS: artifacts.to_json(metrics)}


def make_nodes(
    project: Path, names: list[str], seconds: float, slots: int = SLOTS, **more: Any
) -> None:
    """Folders, their Python, and the configuration. `seconds`: of a job, on average."""
    stub = project / "stub.py"
    text = (ROOT / "benchmarks" / "stub_node.py").read_text()
    stub.write_text(f"#!{sys.executable} -ISE\n{text}")
    stub.chmod(0o755)
    (project / "stub" / "seconds").write_text(str(seconds))
    packages = ("torch", "numpy", "pydantic", "scikit-learn")
    facts = {
        "python": "3",
        "versions": {name: version(name) for name in packages},
        "cores": slots,
        "gpus": [],
        "free_bytes": 1 << 40,
        "code": {},
    }
    (project / "stub" / "facts.json").write_text(json.dumps(facts))
    servers = [
        {"host": name, "cpu_slots": slots, "path": str(folder(project, name)), "python": str(stub)}
        for name in names
    ]
    for name in names:
        folder(project, name).mkdir(parents=True)
    config = {"servers": servers, **SILENCE, **more}
    (project / "cluster_config.json").write_text(json.dumps(config))


def folder(project: Path, node: str) -> Path:
    """A node's project folder."""
    return project / "nodes" / node


# -- nodes that die


class Deaths:
    """One node a second falls silent, and is back some seconds later."""

    def __init__(self, project: Path, names: list[str], seconds: float) -> None:
        self._project, self._alive, self._seconds = project, list(names), seconds
        self._dead: list[tuple[float, str, list[int]]] = []
        self.number = 0

    def one(self) -> None:
        """The next node dies."""
        name = self._alive.pop(0)
        (folder(self._project, name) / "dead").touch()
        pids = workers_on(folder(self._project, name))
        signal_all(pids, signal.SIGSTOP)
        self._dead.append((time.monotonic() + self._seconds, name, pids))
        self.number += 1

    def come_back(self, *, all_of_them: bool = False) -> None:
        """Those whose time has come."""
        while self._dead and (all_of_them or time.monotonic() >= self._dead[0][0]):
            _, name, pids = self._dead.pop(0)
            signal_all(pids, signal.SIGKILL)
            (folder(self._project, name) / "dead").unlink()
            self._alive.append(name)


def workers_on(project: Path) -> list[int]:
    """Process ids of the workers of a node."""
    found, flag = [], f"--project={project}".encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if flag in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Those that still run."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# -- what is measured


@dataclass(frozen=True)
class Found:
    """One run."""

    join: float  # seconds until every slot had a job, from the first connection
    rate: float  # results a second, in the steady part
    cores: float  # the head's CPU seconds a second, there
    copying: float  # the same of rsync and all other commands that the head starts
    memory: int  # most bytes
    growth: int  # of these, those since the first connection
    threads: tuple[int, int]  # in the steady part, and the most
    lost: int  # nodes that died
    again: int  # jobs that were started more than once


def busy_slots(log: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """When each slot got its first job."""
    first: dict[tuple[str, int], float] = {}
    for event in log:
        if event["event"] == "started":
            first.setdefault((event["node"], event["slot"]), event["time"])
    return first


def run(
    project: Path, slots: int, *, settle: float, steady: float, dead: int = 0, away: float = 0.0
) -> Found:
    """One run of the head, from its start to its end: seconds until all slots work at their pace,
    seconds that are measured, nodes that die then, for how long.
    """
    head = Head(project)
    names = sorted(path.name for path in (project / "nodes").iterdir())
    deaths = Deaths(project, names, away)
    try:
        head.watch(lambda: len(busy_slots(head.log())) == slots, 4 * JOIN_SECONDS)
        first, last = (head.wait(seconds) for seconds in (settle, steady))
        for _ in range(dead):
            deaths.one()
            deaths.come_back()
            head.wait(1.0)
        while head.sample() is not None:
            deaths.come_back()
            time.sleep(0.5)
    finally:
        deaths.come_back(all_of_them=True)
        head.end()
    return found(head, first, last, deaths)


def found(head: Head, first: Sample, last: Sample, deaths: Deaths) -> Found:
    """What the samples and the event log say. Ends the benchmark where a job is not done once."""
    log, said = head.log(), (head.project / "said.txt").read_text()
    done = Counter(event["job"] for event in log if event["event"] == "done")
    starts = Counter(event["job"] for event in log if event["event"] == "started")
    published = {
        f"{path.parent.parent.name}/{path.parent.name}"
        for path in (head.project / "experiments").glob(f"*/*/{EXPERIMENT_METRICS}")
    }
    once = set(done.values()) == {1} and done.keys() == published
    if head.process.returncode != 0 or not once:
        raise SystemExit(f"exit code {head.process.returncode}, once: {once}: {said[-2000:]}")
    began = next(event["time"] for event in log if event["event"] == "start")
    before = [sample.memory for sample in head.samples if sample.time <= began] or [0]
    most = max(sample.memory for sample in head.samples)
    steady = last.time - first.time
    ends = [event["time"] for event in log if event["event"] == "done"]
    results = sum(first.time <= end < last.time for end in ends)
    return Found(
        max(busy_slots(log).values()) - began,
        results / steady,
        (last.cpu - first.cpu) / steady,
        (last.children - first.children) / steady,
        most,
        most - before[-1],
        (last.threads, max(sample.threads for sample in head.samples)),
        deaths.number,
        sum(number > 1 for number in starts.values()),
    )


# -- behind a real sshd


@contextmanager
def ssh_server(place: Path, names: list[str]) -> Iterator[Path]:
    """An sshd of our own on the loopback, which is every one of these hosts; yields the ssh_config
    that says so.
    """
    place.mkdir()
    with suppress(PermissionError):  # as root, sshd needs it; its service would make it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for key in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key)]
        subprocess.run(argv, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {place}/host", "PidFile none"]
    lines += [f"AuthorizedKeysFile {place}/user.pub", "StrictModes no", "UsePAM no"]
    (place / "sshd_config").write_text("\n".join([*lines, "MaxStartups 200", ""]))
    known = f"[127.0.0.1]:{port} {(place / 'host.pub').read_text()}"
    (place / "known_hosts").write_text(known)
    lines = [f"Host {' '.join(names)}", "HostName 127.0.0.1", f"Port {port}"]
    lines += [f"IdentityFile {place}/user", f"UserKnownHostsFile {place}/known_hosts"]
    (place / "ssh_config").write_text("\n".join([*lines, "IdentityAgent none", ""]))
    with (place / "log").open("wb") as log:
        argv = [SSHD, "-D", "-e", "-f", str(place / "sshd_config")]
        server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield place / "ssh_config"
    finally:
        server.kill()
        server.wait()


def measure_ssh(parent: Path) -> Found | None:
    """Ten nodes behind sshd; None where there is none."""
    if not Path(SSHD).exists():
        sys.stderr.write(f"scale: no {SSHD}: what an SSH node costs is not measured\n")
        return None
    names = [f"ssh{number:02}" for number in range(SSH_NODES)]
    project = parent / "ssh"
    make_project(project, SSH_NODES * SLOTS * 12)
    with ssh_server(parent / "sshd", names) as config:
        make_nodes(project, names, SSH_SECONDS, ssh_config=str(config))
        return run(project, SSH_NODES * SLOTS, settle=SSH_SECONDS, steady=10.0)


def measure_local(parent: Path) -> Found:
    """A hundred nodes on this machine."""
    names = [f"local{number:03}" for number in range(NODES)]
    project = parent / "local"
    make_project(project, JOBS)
    make_nodes(project, names, NODES * SLOTS / RESULTS_A_SECOND)
    return run(
        project,
        NODES * SLOTS,
        settle=SETTLE_SECONDS,
        steady=STEADY_SECONDS,
        dead=DEAD,
        away=AWAY_SECONDS,
    )


def _row(name: str, values: list[float], unit: float, most: float | None = None) -> Row:
    return Row.of(name, [value / unit for value in values], most, at_most=True)


def _rows_of(runs: list[Found]) -> list[Row]:
    """What the local nodes cost."""
    named = f"scale: {NODES} nodes of {SLOTS} slots:"
    rates = [run.rate / RESULTS_A_SECOND for run in runs]
    cpu, copying = [run.cores for run in runs], [run.copying for run in runs]
    threads = [run.threads[1] for run in runs]
    return [
        Row.of(f"{named} results a second over {RESULTS_A_SECOND}", rates, 0.9),
        _row(f"{named} the head's CPU over half a core", cpu, CORE_SHARE, 1),
        _row(f"{named} the same of rsync, with both of its ends", copying, CORE_SHARE),
        _row(f"{named} the head's memory over 500 MB", [run.memory for run in runs], MEMORY, 1),
        _row(f"{named} seconds until all slots work over 60", [run.join for run in runs], 60, 1),
        _row(f"{named} threads of the head for each node, {DEAD} nodes dying", threads, NODES),
    ]


def measure(repeats: int) -> list[Row]:
    """All rows."""
    local, ssh = list[Found](), list[Found]()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as temporary:
            local.append(measure_local(Path(temporary)))
            sys.stderr.write(f"scale, on this machine: {local[-1]}\n")
            if (found := measure_ssh(Path(temporary))) is not None:
                ssh.append(found)
                sys.stderr.write(f"scale, behind sshd: {found}\n")
    rows = _rows_of(local)
    if ssh:
        threads, bytes_ = [run.threads[0] for run in ssh], [run.growth for run in ssh]
        of_node = "of the head for each SSH node of 8 slots"
        rows += [
            _row(f"scale: threads {of_node}, at work", threads, SSH_NODES),
            _row(f"scale: MB {of_node}", bytes_, SSH_NODES * 1e6),
        ]
    return rows


if __name__ == "__main__":
    main(__doc__ or "", measure, 1)
