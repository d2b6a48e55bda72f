"""Memory and time of prepare_data.py for a recording of 24 hours at 100 Hz with 6 axes.

    python benchmarks/preparation.py [--repeats 1] [--json FILE]

Two rows are shares of a limit: peak memory of 1 GB (everything that the kernel counts for the
process, pages of mapped files too) and 90 s. The third is the peak memory of its own that eight
sessions of three hours need, over that of two: it should not grow. Needs 2 GB of disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from rows import Row, main  # noqa: E402

RATE, AXES = 100, 6
LIMIT_BYTES, LIMIT_S = 1e9, 90
SETTINGS = ("--window_seconds", "2", "--stride_seconds", "1", "--min_overlap", "0.5")
BLOCK = 100_000
WATCH_S = 0.05


def write_recording(path: Path, hours: float, seed: int) -> None:
    """Noise with two bouts an hour."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = round(hours * 3600 * RATE)
    with path.open("w") as file:
        file.write("time,ax,ay,az,gx,gy,gz,label\n")
        for begin in range(0, rows, BLOCK):
            k = np.arange(begin, min(begin + BLOCK, rows))
            table = np.empty((len(k), AXES + 2))
            table[:, 0] = seed * 1e6 + k / RATE
            table[:, 1:-1] = rng.normal(size=(len(k), AXES))
            table[:, -1] = k % (RATE * 1800) < RATE * 120
            np.savetxt(file, table, fmt=["%.2f"] + ["%.4f"] * AXES + ["%d"], delimiter=",")


def measure(folder: Path, sessions: str, split: str) -> tuple[float, float, float]:
    """Seconds, peak memory, and the peak of its own (anonymous) memory, in bytes."""
    command = [sys.executable, str(ROOT / "prepare_data.py"), "--sessions", sessions]
    command += ["--data_path", f"data/{sessions}", "--split", split, *SETTINGS]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peak = own = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        held = dict(line.split(":", 1) for line in status.splitlines())
        peak = max(peak, int(held.get("VmHWM", "0 kB").split()[0]))
        own = max(own, int(held.get("RssAnon", "0 kB").split()[0]))
        time.sleep(WATCH_S)
    if process.wait():
        raise SystemExit("prepare_data.py failed")
    return time.monotonic() - began, peak * 1024, own * 1024


def rows(repeats: int) -> list[Row]:
    """The three shares."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_recording(folder / "day" / "p01" / "day.csv", 24, 1)
        for number in range(8):
            write_recording(folder / "eight" / "p01" / f"s{number}.csv", 3, number + 2)
        (folder / "two" / "p01").mkdir(parents=True)
        for number in range(2):
            name = f"p01/s{number}.csv"
            os.link(folder / "eight" / name, folder / "two" / name)
        seconds, peaks, growth = [], [], []
        for _ in range(repeats):
            took, peak, _own = measure(folder, "day", "time")
            seconds.append(took / LIMIT_S)
            peaks.append(peak / LIMIT_BYTES)
            own = [measure(folder, name, "time")[2] for name in ("two", "eight")]
            growth.append(own[1] / own[0])
            for made in (folder / "data").iterdir():
                for path in made.iterdir():
                    path.unlink()
                made.rmdir()
    return [
        Row.of("prepare 24 h, 100 Hz, 6 axes: memory / 1 GB", peaks, 1, at_most=True),
        Row.of("prepare 24 h, 100 Hz, 6 axes: time / 90 s", seconds, 1, at_most=True),
        Row.of("prepare 8 sessions: own memory / 2 sessions", growth, 1.1, at_most=True),
    ]


if __name__ == "__main__":
    main(__doc__ or "", rows, 1)
