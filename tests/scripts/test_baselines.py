"""The majority class and random forests in a grid: run beside fine-tunes, reported with them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from tests.scripts.projects import QUICK, made

MODES = ["target_only_fine_tuning", "majority", "forest_target_only", "forest_base"]


def test_baselines_run_beside_fine_tunes_and_are_reported_with_them(tmp_path: Path) -> None:
    project = made(tmp_path)
    project.write_cluster(slots=1)
    axes = {"mode": MODES, "target_data_pct": [0.5, 1.0], "lr": [0.01, 0.02]}
    fixed = {name: value for name, value in QUICK.items() if name != "lr"}
    project.generate(axes, fixed | {"n_base_participants": 2})
    jobs = project.jobs("finetune_jobs.json")
    counts = {mode: sum(job["mode"] == mode for job in jobs) for mode in MODES}
    # four people; a forest of base participants has no fraction, a baseline no learning rate
    assert counts == dict(zip(MODES, [16, 8, 8, 4], strict=True))
    printed = project.run("run_two_phase_distributed.py").stdout
    assert "forest of base " in printed
    project.run("report.py")
    main = (project.folder / "report/index.html").read_text()
    assert main.count('href="#curves-') == counts["target_only_fine_tuning"]
    for words in ("majority class, 50 %", "random forest, target only, 100 %"):
        assert words in main
    assert "random forest, base participants" in main
    assert "random forest, base participants, " not in main
    with (project.folder / "report/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(jobs)
    assert {row["mode"] for row in rows} == set(MODES)

    # changed data of ann, from whom bob, cyd and dan learn
    x, y = torch.load(project.folder / "data/made/ann_train.pt")
    torch.save((x + 1, y), project.folder / "data/made/ann_train.pt")
    stale = project.run("run_two_phase_distributed.py", "--dry-run").stdout
    named = [line.rpartition("_")[2] for line in stale.splitlines() if "run forest_base" in line]
    assert named == ["bob", "cyd", "dan"]
    assert "experiments are stale: data changed (ann_train.pt)" in stale
    assert "is there: forest_base_pct1_base2_bs0" in stale  # ann's own does not read them
