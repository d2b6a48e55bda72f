"""predict.py: new recordings through finished models, read as prepare_data.py reads them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, failed_in_one_line
from tests.scripts.projects import Project

RATE, SECONDS = 20, 60
OPTIONS = ("--window_seconds", 2, "--stride_seconds", 1, "--sampling_rate", RATE)


def write_recording(
    path: Path,
    seed: int,
    *,
    seconds: int = SECONDS,
    label: bool = True,
    rate: float = RATE,
    gap: tuple[float, float] | None = None,
    columns: tuple[str, ...] = ("ax", "ay"),
) -> None:
    """A recording whose bouts, two of them, are a loud slow wave."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    bout = ((t > 0.2 * seconds) & (t < 0.35 * seconds)) | (
        (t > 0.6 * seconds) & (t < 0.8 * seconds)
    )
    wave = np.where(bout, 3 * np.sin(6 * t), 0)
    signals = {name: random.normal(size=len(t)) * 0.4 + wave for name in columns}
    keep = np.ones(len(t), bool) if gap is None else (t < gap[0]) | (t > gap[1])
    table = {"time": t, **signals, **({"label": bout.astype(int)} if label else {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(table)
        rows.writerows(np.column_stack(list(table.values()))[keep].tolist())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """From recordings to a fine-tune, as README does it."""
    project = Project.create(tmp_path_factory.mktemp("predict"))
    for number, person in enumerate(("ann", "bob", "cyd")):
        for session in range(5):
            write_recording(
                project.folder / f"recordings/{person}/s{session}.csv", 10 * number + session
            )
    project.run("prepare_data.py", "--sessions", "recordings", "--data_path", "data/mine", *OPTIONS)
    common = ("--data_path", "data/mine", "--window_size", 40, "--lr", 0.01, "--batch_size", 16)
    project.run("train_base.py", *common, "--normalization", "train", "--max_epochs", 6)
    name = next(project.folder.glob("base_models/*.pt")).stem
    project.run(
        "train_finetune.py",
        "--base_model_hash",
        name,
        "--max_epochs",
        3,
        "--lr",
        0.003,
        "--prefix",
        "tuned",
    )
    (project.folder / "base.txt").write_text(name)
    return project


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(project: Project, out: str) -> dict[str, Any]:
    """summary.json."""
    read: dict[str, Any] = json.loads((project.folder / out / "summary.json").read_text())
    return read


EXPERIMENT = "experiments/tuned/fold0_ann"


def test_the_windows_of_a_data_set_get_the_bytes_of_predictions_csv(trained: Project) -> None:
    trained.run("predict.py", EXPERIMENT, "--sessions", "recordings", "--out", "same")
    compared = 0
    for row in table(trained.folder / EXPERIMENT / "predictions.csv"):
        found = {
            one["start_s"]: one["probability"]
            for one in table(trained.folder / f"same/ann/{row['session']}/windows.csv")
        }
        assert found[row["start_s"]] == row["p_finetuned"]
        compared += 1
    assert compared > 50
    record = summary(trained, "same")
    assert len(record["sessions"]) == 15
    assert record["models"][0]["scores"]["event_scores_any_overlap"]["recall"] > 0.8
    assert record["models"][0]["scores"]["window_scores"]["macro_f1"] > 0.8


def test_a_copied_result_and_its_base_side_by_side_on_a_new_file(
    trained: Project, tmp_path: Path
) -> None:
    alone = Project.create(tmp_path, "alone")
    shutil.copytree(trained.folder / EXPERIMENT, alone.folder / "mine")
    shutil.copytree(trained.folder / "base_models", alone.folder / "base_models")
    write_recording(alone.folder / "new.csv", 99, label=False, gap=(10.0, 20.0))
    name = (trained.folder / "base.txt").read_text()
    done = alone.run(
        "predict.py", "mine", name, "--sessions", "new.csv", "--out", "out", "--threshold", 0.6
    )
    assert "note: 1 gap (10.1 s), in which nothing is predicted" in done.stdout
    rows = table(alone.folder / "out/new/windows.csv")
    assert list(rows[0]) == ["start_s", "probability_1", "probability_2"]
    starts = [float(row["start_s"]) for row in rows]
    assert not [start for start in starts if start + 2 > 10.05 and start < 20]
    episodes = table(alone.folder / "out/new/episodes.csv")
    assert {row["model"] for row in episodes} == {"1", "2"}
    assert (alone.folder / "out/new/timeline.png").read_bytes().startswith(b"\x89PNG")
    record = summary(alone, "out")
    assert record["models"][0]["scores"] is None
    assert [model["threshold"] for model in record["models"]] == [0.6, 0.6]


def test_what_cannot_be_predicted_is_said_and_never_invented(
    trained: Project, tmp_path: Path
) -> None:
    def refused(name: str, *argv: object, **how: Any) -> str:
        write_recording(tmp_path / name, 1, **how)
        call = ("predict.py", EXPERIMENT, "--sessions", tmp_path / name, "--out", "no", *argv)
        return failed_in_one_line(trained.run(*call, exit_code=None))

    assert "ay is not among its columns (time, ax, az, label)" in refused(
        "channels.csv", columns=("ax", "az")
    )
    assert "sampled at 8 Hz, but the model learnt from 20 Hz" in refused("slow.csv", rate=8)
    (tmp_path / "empty.csv").write_text("")
    done = trained.run(
        "predict.py",
        EXPERIMENT,
        "--sessions",
        tmp_path / "empty.csv",
        "--out",
        "no",
        exit_code=None,
    )
    assert "empty" in failed_in_one_line(done)
    assert (
        "too far for the model's 20 Hz: is time in ms? give --time_unit ms; or, for a sensor this"
        " slow, a model trained at about 0.05 Hz" in refused("slower.csv", rate=0.05, seconds=900)
    )
    said = refused("seconds.csv", "--time_unit", "ns", rate=1, seconds=900)
    assert "too near for the model's 20 Hz: is time in s? give --time_unit s; or, for a" in said
    assert "--sampling_rate" not in said
    assert "--threshold high: a number from 0 to 1" in refused("a.csv", "--threshold", "high")
    assert "--stride_seconds inf: a number" in refused("a.csv", "--stride_seconds", "inf")
    assert "no tuned threshold" in failed_in_one_line(
        trained.run(
            "predict.py",
            (trained.folder / "base.txt").read_text(),
            "--sessions",
            "recordings",
            "--out",
            "no",
            "--threshold",
            "tuned",
            exit_code=None,
        )
    )
    assert not (trained.folder / "no").exists()

    write_recording(tmp_path / "some/short.csv", 1, seconds=1)
    write_recording(tmp_path / "some/good.csv", 2)
    write_recording(tmp_path / "some/wrong.csv", 3, columns=("ax",))
    some = trained.run(
        "predict.py", EXPERIMENT, "--sessions", tmp_path / "some", "--out", "some", exit_code=1
    )
    assert "note: too short: no stretch of 2 s without a gap" in some.stdout
    assert "left out: " in some.stderr
    assert "wrong.csv" in some.stderr
    assert (trained.folder / "some/short/windows.csv").read_text() == "start_s,probability\n"
    assert len(table(trained.folder / "some/good/windows.csv")) == 59
    assert not (trained.folder / "some/wrong").exists()


@pytest.fixture
def place(trained: Project, tmp_path: Path) -> Project:
    """A project of its own with the experiment `mine`, its base model and two recordings."""
    alone = Project.create(tmp_path, "place")
    shutil.copytree(trained.folder / EXPERIMENT, alone.folder / "mine")
    shutil.copytree(trained.folder / "base_models", alone.folder / "base_models")
    write_recording(alone.folder / "monday/mon.csv", 5)
    write_recording(alone.folder / "friday/fri.csv", 6, seconds=30)
    return alone


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("experiments", "experiments/ is the project's own; give a folder beside it"),
        ("base_models/new", "base_models/ is the project's own"),
        ("monday", "among the recordings of --sessions monday would be read as recordings"),
        ("monday/predicted", "among the recordings of --sessions monday"),
        (".", "among the recordings of --sessions monday"),
        ("mine", "holds best_model.pt, config.json, losses.json and"),
        ("friday", "holds fri.csv, which predict.py did not put there (no summary.json"),
        ("lying", "holds summary.json, which predict.py did not put there (no summary.json"),
        ("friday/fri.csv", "is a file, not a folder; give another --out"),
    ],
)
def test_predictions_are_not_put_where_something_else_is(
    place: Project, out: str, says: str
) -> None:
    place.write("lying/summary.json", {"models": [], "sessions": []})
    before = place.tree()
    done = place.run("predict.py", "mine", "--sessions", "monday", "--out", out, exit_code=None)
    said = failed_in_one_line(done)
    assert f"--out {out}: " in said
    assert says in said
    assert place.tree() == before


def test_a_second_run_replaces_what_it_predicts_and_keeps_the_rest(place: Project) -> None:
    def predict(sessions: str, *argv: object) -> str:
        done = place.run("predict.py", "mine", "--sessions", sessions, "--out", "out", *argv)
        return done.stdout

    predict("monday")
    first = place.tree("base_models")
    assert "earlier runs" not in predict("monday")
    assert place.tree("base_models") == first
    assert "out also holds 1 session of earlier runs" in predict("friday", "--threshold", 0.6)
    record = summary(place, "out")
    assert [model["name"] for model in record["models"]] == ["mine"]
    assert [
        (entry["session"], entry["models"][0]["threshold"])
        for entry in (*record["sessions"], *record["earlier_sessions"])
    ] == [("fri", 0.6), ("mon", 0.5)]
    kept = {name: content for name, content in first.items() if name.startswith("out/mon/")}
    assert kept.items() <= place.tree().items()
    predict("monday")
    record = summary(place, "out")
    assert [entry["session"] for entry in record["sessions"]] == ["mon"]
    assert [entry["session"] for entry in record["earlier_sessions"]] == ["fri"]


def test_the_predictions_of_other_models_are_not_mixed_with_those_that_are_there(
    place: Project, trained: Project
) -> None:
    base = (trained.folder / "base.txt").read_text()
    call = ("--sessions", "monday", "--out", "out")
    place.run("predict.py", "mine", base, *call)
    before = place.tree()
    for models in ([base], [base, "mine"], ["mine"]):
        done = place.run("predict.py", *models, *call, exit_code=None)
        assert "--out out: holds predictions of mine (weights " in failed_in_one_line(done)
        assert place.tree() == before
    place.run("predict.py", "mine", base, *call)


def test_the_same_command_goes_on_after_it_was_killed(place: Project, trained: Project) -> None:
    """As far as a killed run comes: summary.json is there before the first session is."""
    write_recording(place.folder / "monday/tue.csv", 7)
    program = (
        "import os, sys, predict; from common.use import timeline\n"
        "timeline.timeline_png = lambda *_: os._exit(9)\n"
        "sys.argv = ['predict.py', 'mine', '--sessions', 'monday', '--out', 'out']; predict.main()"
    )
    environment = {**place.environment, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", program], cwd=place.folder, env=environment)
    assert killed.returncode == 9
    assert summary(place, "out")["sessions"] == []
    place.run("predict.py", "mine", "--sessions", "monday", "--out", "out")
    assert [entry["session"] for entry in summary(place, "out")["sessions"]] == ["mon", "tue"]
