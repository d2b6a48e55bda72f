"""prepare_data.py --split_folds K as one axis of a grid: from recordings to the report."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from tests.scripts.projects import Project

PEOPLE = ["anna", "bo", "cy"]
FOLDS = [f"data/x_{number}of3" for number in (1, 2, 3)]


def record(folder: Path, seed: int) -> None:
    """Two sessions of 200 s at 10 Hz, active for 9 of every 28 s."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for session in range(2):
        time = np.arange(2000) / 10
        label = (time % 28 > 10) & (time % 28 < 19)
        signal = np.sin(time * (2 + 3 * label)) + random.normal(size=2000) / 2
        rows = zip(1000 * session + time, signal, label.astype(int), strict=True)
        lines = [f"{at:.1f},{x:.4f},{y}\n" for at, x, y in rows]
        (folder / f"s{session}.csv").write_text("time,ax,label\n" + "".join(lines))


def test_the_tests_of_a_person_are_one_from_the_recordings_to_the_report(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    for place, person in enumerate(PEOPLE):
        record(project.folder / "rec" / person, place)
    cut = ("--sampling_rate", 10, "--window_seconds", 2, "--stride_seconds", 1)
    how = ("--split", "blocks", "--block_seconds", 20, "--split_folds", 3)
    done = project.run("prepare_data.py", "--sessions", "rec", "--data_path", "data/x", *cut, *how)
    axis = done.stdout.splitlines()[-1].partition(": ")[2]
    grid = json.loads(
        '{"fixed": {"participants": ["anna", "bo", "cy"], "max_epochs": 2, "target_data_pct": 1.0},'
        ' "grid": {"mode": ["target_only_fine_tuning", "majority"], ' + axis + "}}"
    )
    assert grid["grid"]["data_path"] == FOLDS
    project.write("grid.json", grid)
    project.write_cluster()
    planned = project.run("generate_jobs.py", "--grid", "grid.json").stdout
    assert "finetune_jobs.json: 18 fine-tunes" in planned
    assert "base_training_jobs.json: 9 base models, 1 fine-tune each" in planned
    ended = project.run("run_two_phase_distributed.py", timeout=300).stdout.splitlines()
    (title,) = (place for place, line in enumerate(ended) if line.startswith("test macro F1"))
    project.run("report.py")

    mine = []
    for person in PEOPLE:
        pairs = [
            (int(line["label"]), float(line["p_finetuned"]) >= 0.5)
            for path in (project.folder / "experiments").glob(f"*/*_{person}/predictions.csv")
            if "target_only_fine_tuning" in path.with_name("config.json").read_text()
            for line in csv.DictReader(path.read_text().splitlines())
            if line["split"] == "test"
        ]
        mine.append(f1_score(*zip(*pairs, strict=True), average="macro"))
    rows = {line.split()[0]: line.split() for line in ended[title + 2 : title + 5]}
    texts = [f"{score:.3f}".lstrip("0") for score in mine]
    assert [texts[place] in rows[person] for place, person in enumerate(PEOPLE)] == [True] * 3
    table = (project.folder / "report" / "main_table.md").read_text().splitlines()
    (cells,) = (line.split(" | ") for line in table[:5] if "fine-tuned, target only" in line)
    assert cells[1] == "3"
    assert cells[4] == f"{statistics.median(mine):.2f}".lstrip("0")
    assert "score over 3 tests" in (project.folder / "report" / "index.html").read_text()
    assert len(pd.read_csv(project.folder / "report" / "summary.csv")) == 18
