"""Memory of its own that a worker needs for 4 GB of windows: a base model, then a full fine-tune on
top of it.

    python benchmarks/memory.py [--repeats 1] [--json FILE]

Anonymous memory, of which each worker needs its own, over the bytes of the data, which are mapped:
all workers of a node share one copy. Baseline: 1, what windows loaded into tensors need at least.
Wanted is 600 MB for 4 GB. Needs 4 GB of disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from dispatch import call, environment  # noqa: E402
from rows import Row, main  # noqa: E402

PEOPLE = [f"p{number}" for number in range(8)]
WINDOWS = {"train": 5800, "val": 580, "test": 580}  # [6, 3000] float32 each: 4 GB in all
WANTED = 600e6 / 4e9


def write_data(folder: Path) -> int:
    """Bytes written."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in PEOPLE:
        for split, count in WINDOWS.items():
            y = torch.arange(count) % 2
            torch.save(
                (torch.randn(count, 6, 3000, generator=generator) + y[:, None, None], y),
                folder / f"{name}_{split}.pt",
            )
    return sum(path.stat().st_size for path in folder.iterdir())


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == pid:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def anonymous(pid: int) -> int:
    """Bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def peak_of_a_worker(project: Path) -> int:
    """Most bytes that any process of the run had to itself."""
    head = subprocess.Popen(
        [sys.executable, str(ROOT / "run_two_phase_distributed.py")],
        cwd=project,
        env=environment(project),
        stdout=subprocess.DEVNULL,
    )
    peak = 0
    while head.poll() is None:
        peak = max([peak, *map(anonymous, children(head.pid))])
        with suppress(subprocess.TimeoutExpired):
            head.wait(0.05)
    if head.returncode:
        raise SystemExit(f"the run ended with exit code {head.returncode}")
    return peak


def measure(repeats: int) -> list[Row]:
    """The one row."""
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        (project / "cluster_config.json").write_text(
            json.dumps({"servers": [{"host": "localhost", "cpu_slots": 1}]})
        )
        size = write_data(project / "data" / "large")
        shares = []
        for number in range(repeats):
            fixed = {
                "data_path": "data/large",
                "participants": PEOPLE,
                "mode": "full_fine_tuning",
                "max_epochs": 1,
                "batch_size": 64,
                "seed": number,
            }
            grid = {"grid": {}, "fixed": fixed}
            (project / "grid.json").write_text(json.dumps(grid))
            call(project, "generate_jobs.py", "--grid", "grid.json", "--folds", "0")
            shares.append(peak_of_a_worker(project) / size)
    return [
        Row.of(
            f"memory: of a worker's own / {size / 1e9:.1f} GB of windows",
            shares,
            WANTED,
            at_most=True,
        )
    ]


if __name__ == "__main__":
    main(__doc__ or "", measure, 1)
