"""The documented grid, really run: 84 base models and 1,008 fine-tunes of seven people with made
windows [6, 3000], on local slots, with the report at the end.

    python benchmarks/whole_grid.py [--repeats 1] [--json FILE]

Few windows a person, so that it takes minutes and not days: what is measured is what the product
adds to the trainings. Baseline: the jobs' own computing time, spread over the slots without a gap.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from dispatch import SLOTS, call, environment, events  # noqa: E402
from rows import Row, main  # noqa: E402

PEOPLE = ["tonmoy", "asfik", "alsaad", "anam", "ejaz", "iftakhar", "unk1"]
WINDOWS = {"train": 4, "val": 2, "test": 2}  # of each person, [6, 3000]
WANTED = 1.03
HEAD_BYTES = 300e6


def write_data(folder: Path) -> None:
    """Noise in which positive windows carry a weak slow wave, other for each person."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(PEOPLE):
        wave = 0.4 * torch.sin(torch.arange(3000) * (0.3 + 0.02 * number))
        for split, count in WINDOWS.items():
            y = torch.arange(count) % 2
            x = torch.randn(count, 6, 3000, generator=generator) + wave * y[:, None, None]
            torch.save((x, y), folder / f"{name}_{split}.pt")


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had so far, or 0 where it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def run(project: Path) -> tuple[float, int]:
    """Seconds of the whole command, and the most memory of the head."""
    began, peak = time.perf_counter(), 0
    with (project / "run.log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, str(ROOT / "run_two_phase_distributed.py")],
            cwd=project,
            env=environment(project),
            stdout=log,
            stderr=log,
        )
        while head.poll() is None:
            peak = max(peak, peak_bytes(head.pid))
            with suppress(subprocess.TimeoutExpired):
                head.wait(1)
    if head.returncode:
        raise SystemExit(f"the run ended with exit code {head.returncode}: {project}/run.log")
    return time.perf_counter() - began, peak


def measure(repeats: int) -> list[Row]:
    """Wall time, and the head's memory."""
    ratios, peaks, jobs = [], [], 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as temporary:
            project = Path(temporary)
            (project / "cluster_config.json").write_text(
                json.dumps({"servers": [{"host": "localhost", "cpu_slots": SLOTS}]})
            )
            write_data(project / "data" / "001_60s_window")
            call(project, "generate_jobs.py")
            wall, peak = run(project)
            done = [event for event in events(project) if event["event"] == "done"]
            jobs = len(done)
            ratios.append(wall / (sum(event["seconds"] for event in done) / SLOTS))
            peaks.append(peak / HEAD_BYTES)
            call(project, "report.py")
    title = f"whole grid: {jobs} jobs run"
    return [
        Row.of(f"{title}, wall / (own compute / slots)", ratios, WANTED, at_most=True),
        Row.of(f"{title}, head's memory / 300 MB", peaks, 1, at_most=True),
    ]


if __name__ == "__main__":
    main(__doc__ or "", measure, 1)
