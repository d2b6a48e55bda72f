"""What a run sends over the wire: three SSH hosts in network namespaces (root), counted by the
kernel on their cables, not by the product.

    python benchmarks/distribution.py [--repeats 1] [--json FILE]

Bytes that had to be sent: to each node the code, every data file that its jobs read and every base
model that a fine-tune there started from but that was trained elsewhere; from it every result. The
second row runs the same command again with nothing left to do, the third with one more fine-tune.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from dispatch import call, events  # noqa: E402
from rows import Row, main  # noqa: E402

from common.cluster.ssh.payload import code_files  # noqa: E402
from tests.cluster.hosts import Hosts, missing_parts  # noqa: E402

PEOPLE = ["ann", "bob", "cyd", "dan"]
WINDOWS = 48  # of [6, 3000] a file: 3.5 MB


def write_data(folder: Path) -> None:
    """`folder`/{participant}_{split}.pt: noise, of a real data set's size."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in PEOPLE:
        for split in ("train", "val", "test"):
            torch.save(
                (torch.randn(WINDOWS, 6, 3000, generator=generator), torch.arange(WINDOWS) % 2),
                folder / f"{name}_{split}.pt",
            )


def write_jobs(project: Path, fractions: list[float]) -> None:
    """A small grid with one epoch a job: what is measured is the wire."""
    fixed = {
        "data_path": "data/noise",
        "participants": PEOPLE,
        "max_epochs": 1,
        "n_base_participants": 2,
        "target_val": "none",
    }
    grid = {
        "grid": {
            "mode": ["target_only_fine_tuning", "full_fine_tuning"],
            "target_data_pct": fractions,
        },
        "fixed": fixed,
    }
    (project / "grid.json").write_text(json.dumps(grid))
    call(project, "generate_jobs.py", "--grid", "grid.json")


def on_the_wire(hosts: Hosts) -> int:
    """Bytes that all hosts have received and sent so far."""
    total = 0
    for host in hosts.hosts.values():
        for direction in ("rx_bytes", "tx_bytes"):
            argv = [
                "ip",
                "netns",
                "exec",
                host.namespace,
                "cat",
                f"/sys/class/net/eth0/statistics/{direction}",
            ]
            total += int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    return total


def had_to_be_sent(hosts: Hosts, project: Path, log: list[dict[str, Any]]) -> int:
    """As the module's text says, from the files and from where each job was done."""
    code = sum((ROOT / name).stat().st_size for name in code_files())
    total = 0
    by = {event["job"]: event["node"] for event in log if event["event"] == "done"}
    jobs = json.loads((project / "finetune_jobs.json").read_text())
    needs = {
        f"{job['prefix']}/fold{job['fold']}_{PEOPLE[job['fold']]}": job["base_model_hash"]
        for job in jobs
    }
    for name, host in hosts.hosts.items():
        mine = [job for job, node in by.items() if node == name]
        used = {needs[job] for job in mine if "/" in job} - {job for job in mine if "/" not in job}
        data = sum(path.stat().st_size for path in (host.project / "data").rglob("*.pt"))
        bases = sum(size(project / "base_models", f"{base}*") for base in used)
        results = sum(
            (
                size(project / "experiments" / job, "*")
                if "/" in job
                else size(project / "base_models", f"{job}*")
            )
            for job in mine
        )
        total += (code + data + bases + results) if mine else 0
    return total


def size(folder: Path, pattern: str) -> int:
    """Bytes of the files there."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def measure(repeats: int) -> list[Row]:
    """All rows; none where hosts cannot be made."""
    if why := missing_parts():
        sys.stderr.write(f"distribution is not measured: {why}\n")
        return []
    first, again, more = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as temporary, Hosts(Path(temporary)) as hosts:
            project = Path(temporary) / "project"
            write_data(project / "data" / "noise")
            write_jobs(project, [0.5])
            hosts.write_config(project)
            sent = [on_the_wire(hosts)]
            needed = 0
            for number, fractions in enumerate(([0.5], [0.5], [0.5, 1.0])):
                write_jobs(project, fractions)
                call(project, "run_two_phase_distributed.py")
                sent.append(on_the_wire(hosts))
                needed = needed if number else had_to_be_sent(hosts, project, events(project))
            whole, repeat, growth = (after - before for before, after in itertools.pairwise(sent))
            first.append(whole / needed)
            again.append(repeat / whole)
            more.append(growth / whole)
    return [
        Row.of(
            "distribution: bytes on the wire / bytes that had to be sent, three nodes",
            first,
            1.02,
            at_most=True,
        ),
        Row.of("distribution: the same command again / the first run", again, 0.01, at_most=True),
        Row.of(
            "distribution: twice as many fine-tunes on the same data / the first run", more, None
        ),
    ]


if __name__ == "__main__":
    main(__doc__ or "", measure, 1)
