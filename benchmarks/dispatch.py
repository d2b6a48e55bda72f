"""What a job costs beside its own computation: empty jobs through warm workers, and many small
fine-tunes.

    python benchmarks/dispatch.py [--repeats 3] [--json FILE]

Baseline of the first: the same script, `import torch` at its top as every training script has it,
started once a job in as many processes at a time as there are slots. The second has no baseline but
the ideal: the jobs' own computing time, spread over the slots without a gap.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from rows import Row, main  # noqa: E402

SLOTS = os.cpu_count() or 1
EMPTY_JOBS = 400
PROCESSES = 3 * SLOTS
FINETUNES = 100
EMPTY = """import torch

def run(options, progress):
    return {"threads": torch.get_num_threads()}

if __name__ == "__main__":
    run({}, None)
"""


def environment(project: Path) -> dict[str, str]:
    """One thread a slot on both sides; slot locks of our own."""
    (project / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(project / "tmp")}


def call(project: Path, script: str, *argv: str) -> None:
    """A script of the product, in `project`."""
    subprocess.run(
        [sys.executable, str(ROOT / script), *argv],
        cwd=project,
        env=environment(project),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def events(project: Path) -> list[dict[str, Any]]:
    """The event log of the latest run."""
    latest = max((project / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return [json.loads(line) for line in (latest / "events.jsonl").read_text().splitlines()]


def span(log: list[dict[str, Any]]) -> float:
    """Seconds from the first job's start to the last job's end."""
    return max(e["time"] for e in log if e["event"] == "done") - min(
        e["time"] for e in log if e["event"] == "started"
    )


def jobs_a_second(project: Path) -> tuple[float, float]:
    """Through warm workers: while they work, and over the whole command with its start-up."""
    began = time.perf_counter()
    call(
        project,
        "run_distributed_training.py",
        "--jobs-config",
        "empty.json",
        "--script-path",
        "empty.py",
    )
    return EMPTY_JOBS / span(events(project)), EMPTY_JOBS / (time.perf_counter() - began)


def processes_a_second(project: Path) -> float:
    """One process a job, SLOTS at a time."""
    began = time.perf_counter()
    with ThreadPoolExecutor(SLOTS) as pool:
        argv = [sys.executable, "empty.py"]
        list(
            pool.map(
                lambda _: subprocess.run(argv, cwd=project, env=environment(project), check=True),
                range(PROCESSES),
            )
        )
    return PROCESSES / (time.perf_counter() - began)


def idle_share(project: Path, number: int) -> float:
    """Wall time of FINETUNES small fine-tunes over their own computing time / slots."""
    grid = json.loads((ROOT / "demo_grid.json").read_text())
    grid.pop("analysis")  # compares settings that are not in this grid
    grid["grid"] = {
        "target_data_pct": [0.01],
        "seed_finetune": list(range(number * FINETUNES, (number + 1) * FINETUNES)),
    }
    (project / "grid.json").write_text(json.dumps(grid))
    call(project, "generate_jobs.py", "--grid", "grid.json", "--folds", "0")
    call(project, "run_two_phase_distributed.py")
    log = [
        e
        for e in events(project)
        if e.get("kind") != "base"
        and ("/" in str(e.get("job")) or e["event"] not in ("started", "done"))
    ]
    return span(log) / (sum(e["seconds"] for e in log if e["event"] == "done") / SLOTS)


def measure(repeats: int) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        (project / "cluster_config.json").write_text(
            json.dumps({"servers": [{"host": "localhost", "cpu_slots": SLOTS}]})
        )
        (project / "empty.py").write_text(EMPTY)
        (project / "empty.json").write_text(
            json.dumps([{"number": number} for number in range(EMPTY_JOBS)])
        )
        (project / "cache").mkdir()
        for wheel in (ROOT / "cache").glob("*.whl"):
            (project / "cache" / wheel.name).write_bytes(wheel.read_bytes())
        call(project, "prepare_data.py", "--demo", "--data_path", "data/watch")
        call(project, "generate_jobs.py", "--grid", str(ROOT / "demo_grid.json"), "--folds", "0")
        call(project, "run_two_phase_distributed.py")  # the base model
        warm, whole, idle = [], [], []
        for number in range(repeats):
            plain = processes_a_second(project)
            working, command = jobs_a_second(project)
            warm.append(working / plain)
            whole.append(command / plain)
            idle.append(idle_share(project, number + 1))
    return [
        Row.of("dispatch: empty jobs a second, warm workers / a process a job", warm, 100),
        Row.of(f"dispatch: the same over the whole command of {EMPTY_JOBS} jobs", whole, None),
        Row.of(
            f"dispatch: {FINETUNES} fine-tunes at 1 %, wall / (own compute / slots)",
            idle,
            1.05,
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    main(__doc__ or "", measure, 3)
