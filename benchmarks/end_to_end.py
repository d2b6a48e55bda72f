"""A whole grid on the demo data: 3 folds, 2 modes, 4 fractions, from job files to scored results.

    python benchmarks/end_to_end.py [--repeats 3] [--json FILE]

Baseline: plain_job.py, a process a job, as many at a time as there are slots, all base models
before the first fine-tune; same data, network, batch size and exactly the same number of epochs.
Both sides are timed whole, start-up included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from dispatch import SLOTS, call, environment  # noqa: E402
from rows import Row, main  # noqa: E402

FOLDS = 3
FRACTIONS = [0.05, 0.1, 0.5, 1.0]
MODES = {"full": "full_fine_tuning", "target": "target_only_fine_tuning"}
EPOCHS = 100  # at most 10 would let start-up decide


def ours(project: Path, *flags: str) -> float:
    """Seconds from the two commands to the last result."""
    for name in ("base_models", "experiments", "runs"):
        subprocess.run(["rm", "-rf", str(project / name)], check=True)
    began = time.perf_counter()
    call(project, "generate_jobs.py", "--grid", "grid.json", "--folds", *map(str, range(FOLDS)))
    call(project, "run_two_phase_distributed.py", *flags)
    return time.perf_counter() - began


def plain(project: Path, people: list[str]) -> float:
    """Seconds for the same by hand."""
    out = project / "plain"
    out.mkdir(exist_ok=True)

    def job(name: str, target: str, *argv: str) -> list[str]:
        others = [person for person in people if person != target]
        script = str(ROOT / "benchmarks" / "plain_job.py")
        return [
            sys.executable,
            script,
            "data/watch",
            str(out / name),
            "--target",
            target,
            "--epochs",
            str(EPOCHS),
            "--others",
            *others,
            *argv,
        ]

    targets = people[:FOLDS]
    bases = [job(f"{target}.pt", target) for target in targets]
    finetunes = [
        job(
            f"{target}-{mode}-{fraction}.pt",
            target,
            "--base",
            str(out / f"{target}.pt"),
            "--mode",
            mode,
            "--fraction",
            str(fraction),
        )
        for target in targets
        for mode in MODES
        for fraction in FRACTIONS
    ]
    began = time.perf_counter()
    for phase in (bases, finetunes):
        with ThreadPoolExecutor(SLOTS) as pool:
            list(
                pool.map(
                    lambda argv: subprocess.run(
                        argv, cwd=project, env=environment(project), check=True
                    ),
                    phase,
                )
            )
    return time.perf_counter() - began


def measure(repeats: int) -> list[Row]:
    """The grid against the same by hand, and with --tensorboard against without."""
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        (project / "cluster_config.json").write_text(
            json.dumps({"servers": [{"host": "localhost", "cpu_slots": SLOTS}]})
        )
        grid = json.loads((ROOT / "demo_grid.json").read_text())
        grid["grid"] = {"mode": list(MODES.values()), "target_data_pct": FRACTIONS}
        grid["fixed"] |= {
            "max_epochs": EPOCHS,
            "early_stopping_patience": EPOCHS,
            "early_stopping_patience_target": EPOCHS,
        }
        (project / "grid.json").write_text(json.dumps(grid))
        (project / "cache").mkdir()
        for wheel in (ROOT / "cache").glob("*.whl"):
            (project / "cache" / wheel.name).write_bytes(wheel.read_bytes())
        call(project, "prepare_data.py", "--demo", "--data_path", "data/watch")
        people = list(
            json.loads((project / "data" / "watch" / "dataset.json").read_text())["participants"]
        )
        ratios, curves = [], []
        for _ in range(repeats):
            by_hand, whole = plain(project, people), ours(project)
            ratios.append(by_hand / whole)
            curves.append(ours(project, "--tensorboard") / whole)
    return [
        Row.of(
            f"end to end: {FOLDS} folds, {len(MODES)} modes, {len(FRACTIONS)} fractions, {EPOCHS}"
            " epochs: by hand / ours",
            ratios,
            10,
        ),
        Row.of("the same grid: with --tensorboard / without", curves, 1.02, at_most=True),
    ]


if __name__ == "__main__":
    main(__doc__ or "", measure, 3)
