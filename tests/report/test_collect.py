"""What cannot be read is named and left out; what is missing is named with the reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.artifacts import publish_base_model, sha256
from common.data.preparation import Preparation
from common.data.prepare import prepare
from common.data.recordings import Layout, Recordings
from common.errors import InputError
from common.report.collect import collect
from common.report.experiment_table import curves
from common.report.grids import Analysis
from common.report.methods import data_sets, warnings
from common.report.missing import mark_stale, missing_cells, planned_jobs
from common.report.run_figures import training_curves
from tests.report.made import Made


def reasons(made: Made) -> dict[str, str]:
    """Reason by folder of what was left out."""
    return {
        skip.folder.removeprefix("project/"): skip.reason for skip in collect([made.root]).skipped
    }


def missing(made: Made) -> dict[str, tuple[str, str, str]]:
    """Reason, detail and log by participant and prefix."""
    collection = collect([made.root])
    if len(collection.table):
        mark_stale(collection)
    cells = missing_cells(collection, planned_jobs(collection)[0])
    return {
        f"{cell['prefix']}/{cell['target_participant']}": (
            cell["reason"],
            cell["detail"],
            cell["log"],
        )
        for cell in cells
    }


def test_a_row_holds_options_scores_counts_and_times(made: Made) -> None:
    made.run("anna", prefix="p", target_data_pct=0.1, windows=31)
    row = collect([made.root]).table.iloc[0]
    assert (row["target_participant"], row["prefix"], row["mode"], row["lr"]) == (
        "anna",
        "p",
        "target_only_fine_tuning",
        0.0003,
    )
    assert (row["test_macro_f1"], row["base_test_macro_f1"], row["test_macro_f1_tuned"]) == (
        0.9,
        0.8,
        0.91,
    )
    assert (
        row["train_windows"],
        row["train_positives"],
        row["selection_windows"],
        row["train_seconds"],
    ) == (31, 10, 40, 60.0)
    assert row["n_base_participants"] == 6
    assert row["seed_finetune"] == 0


def test_each_model_is_counted_at_its_own_tuned_threshold(made: Made) -> None:
    """0.4 for the fine-tune, 0.6 for its base."""
    lines = ["split,index,session,start_s,label,p_base,p_finetuned"]
    lines += ["test,0,,,1,0.5,0.5", "test,1,,,0,0.5,0.1"]
    made.run("anna", predictions="\n".join(lines).encode())
    row = collect([made.root]).table.iloc[0]
    names = ("tn", "fp", "fn", "tp")
    assert [row[f"test_{name}_tuned"] for name in names] == [1, 0, 0, 1]
    assert [row[f"base_test_{name}_tuned"] for name in names] == [1, 0, 1, 0]
    assert [row[f"base_test_{name}"] for name in names] == [0, 1, 0, 1]


def prepared(made: Made, name: str, **given: Any) -> Path:
    """A data folder of ten short sessions, as prepare_data.py makes it, but with empty .pt
    files.
    """
    for number in range(10):
        path = made.root / "rec" / "anna" / f"s{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "time,ax,label\n"
            + "".join(
                f"{100 * number + i / 10},{(i * i + number) % 31},{int(20 <= i < 60)}\n"
                for i in range(200)
            )
        )
    values = {
        "sessions": "rec",
        "data_path": f"data/{name}",
        "sampling_rate": 10,
        "window_seconds": 2,
        "stride_seconds": 1,
    } | given
    source = Recordings(made.root / "rec", Layout("time", "s", "label", None, 10.0, None))
    folder = made.root / "data" / name
    prepare(
        Preparation.parse(values),
        source,
        [folder],
        lambda path, _x, _y: path.touch(),
        {"kind": "sessions", "folder": "rec"},
    )
    return folder


def test_data_sets_that_differ_by_their_split_seed_alone_are_one(made: Made) -> None:
    for name, given in (
        ("a", {"split_seed": 0}),
        ("b", {"split_seed": 1}),
        ("c", {"split_seed": 1, "min_overlap": 0.5}),
    ):
        folder = prepared(made, name, **given)
        for path in folder.glob("*.pt"):  # as on a machine that has no data
            path.unlink()
        made.run("anna", data_path=f"data/{name}")
    table = collect([made.root]).table.set_index("data_path")
    family = table["data_family"]
    assert family["data/a"] == family["data/b"] != family["data/c"]
    assert table["split_seed"].to_dict() == {"data/a": 0, "data/b": 1, "data/c": 1}


def test_the_time_of_a_split_counts_overlapping_windows_once(made: Made) -> None:
    folder = prepared(made, "a")
    for path in folder.glob("*.pt"):
        path.unlink()
    made.run("anna", data_path="data/a")
    (folder / "anna_val_windows.csv").unlink()
    ((person,),) = (line["people"] for line in data_sets(collect([made.root])))
    # Sessions of 20 s, 2 s windows every second: 19 windows each, six sessions train and two test.
    assert [split[:2] + split[3:] for split in person["splits"]] == [
        ("train", "114", "2 min 00 s"),
        ("val", "38", "–"),
        ("test", "38", "40 s"),
    ]


def test_data_without_a_manifest_are_warned_of(made: Made) -> None:
    for path in prepared(made, "proved").glob("*.pt"):
        path.unlink()
    made.run("anna", data_path="data/proved")
    made.run("anna", data_path="data/plain")
    collection = collect([made.root])
    mark_stale(collection)
    (text,) = (text for text in warnings(collection, [], [], []) if "leakage" in text)
    assert "data/plain" in text
    assert "data/proved" not in text


@pytest.mark.parametrize(
    ("mode", "first", "label"),
    [("target_only_fine_tuning", 0, "Epoch (0: untouched base)"), ("target_only", 1, "Epoch")],
)
def test_curves_begin_at_the_first_epoch_that_was_scored(
    made: Made, mode: str, first: int, label: str
) -> None:
    made.run("anna", mode=mode)  # the best epoch is 3
    collection = collect([made.root])
    run = collection.runs[0]
    shown = curves(run)
    assert shown["epochs"] == list(range(first, 7))
    assert shown["val"][shown["epochs"].index(shown["best"])] == 0.45
    drawn = training_curves(run, collection.table.iloc[0])
    assert drawn is not None
    panel = drawn[0].axes[0]
    assert panel.get_xlabel() == label
    assert [
        panel.lines[0].get_xdata()[0],
        panel.lines[-1].get_xdata()[0],
        panel.lines[-1].get_ydata()[0],
    ] == [first, 3, 0.45]
    assert "after 6 epochs" in drawn[3]


def test_empty_half_written_and_foreign_folders_are_named(made: Made) -> None:
    made.run("anna", prefix="p")
    experiments = made.root / "experiments"
    (experiments / "nothing").mkdir()
    (experiments / "p" / "fold1_ben").mkdir()
    (experiments / "p" / "fold2_carla").mkdir()
    (experiments / "p" / "fold2_carla" / "losses.json").write_text("{}")
    (experiments / "p" / "my notes").mkdir()
    (experiments / "p" / "my notes" / "a.txt").write_text("hello")
    (experiments / "p" / "readme.txt").write_text("a file is no folder")
    assert reasons(made) == {
        "experiments/nothing": "empty: no experiment in it",
        "experiments/p/fold1_ben": "empty: nothing in it yet",
        "experiments/p/fold2_carla": "half-written: no metrics.json yet (running, or cut short)",
        "experiments/p/my notes": "foreign: not the folder of an experiment",
    }
    assert len(collect([made.root]).table) == 1


@pytest.mark.parametrize(
    "name", ["best_model.pt", "losses.json", "config.json", "predictions.csv", "metrics.json"]
)
def test_one_flipped_bit_in_any_file_leaves_the_experiment_out(made: Made, name: str) -> None:
    folder = made.run("anna", prefix="p")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert reasons(made)["experiments/p/fold0_anna"].startswith("corrupt: ")
    assert len(collect([made.root]).table) == 0


def test_a_truncated_or_missing_file_leaves_the_experiment_out(made: Made) -> None:
    first, second = made.run("anna", prefix="p"), made.run("ben", prefix="p")
    (first / "metrics.json").write_bytes((first / "metrics.json").read_bytes()[:100])
    (second / "predictions.csv").unlink()
    assert set(reasons(made)) == {"experiments/p/fold0_anna", "experiments/p/fold1_ben"}


def test_metrics_of_another_program_are_foreign_or_corrupt_never_read(made: Made) -> None:
    folder = made.root / "experiments" / "theirs" / "run1"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"test_macro_f1": 0.99}))
    assert "theirs/run1" in next(iter(reasons(made)))
    assert len(collect([made.root]).table) == 0


def test_a_score_that_is_no_number_is_foreign(made: Made) -> None:
    made.run("anna", prefix="p", metrics={"test_macro_f1": "high"})
    assert reasons(made)["experiments/p/fold0_anna"].startswith("foreign: ")


@pytest.mark.parametrize("predictions", [b"a,b\n1,2\n", b"\n", b""])
def test_predictions_without_the_columns_are_foreign(made: Made, predictions: bytes) -> None:
    made.run("anna", prefix="p", predictions=predictions)
    assert reasons(made)["experiments/p/fold0_anna"].startswith("foreign: ")


def test_a_folder_copied_under_another_name_is_not_believed(made: Made) -> None:
    folder = made.run("anna", prefix="p")
    shutil.copytree(folder, folder.with_name("fold1_ben"))
    assert "moved or copied by hand" in reasons(made)["experiments/p/fold1_ben"]
    assert len(collect([made.root]).table) == 1


def test_a_damaged_base_model_is_named_and_its_experiments_stay(made: Made) -> None:
    made.run("anna")
    (path,) = made.paths.base_models.glob("*_metadata.json")
    path.write_text("{}")
    assert len(collect([made.root]).table) == 1
    assert f"base_models/{path.name}" in reasons(made)


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no experiments/ in it"):
        collect([tmp_path])


def test_every_planned_cell_without_a_result_has_its_reason(made: Made) -> None:
    made.run("anna", prefix="p")
    failed, blocked, waiting = (
        made.plan(person, prefix="p") for person in ("ben", "carla", "dora")
    )
    made.base(failed)
    made.base(made.plan("emil", prefix="p"))
    made.base(made.plan("finn", prefix="p"))
    half = made.root / "experiments" / "p" / "fold4_emil"
    half.mkdir()
    (half / "losses.json").write_text("{}")
    made.log(
        {
            "event": "failed",
            "job": "p/fold1_ben",
            "error": "loss is NaN at epoch 3",
            "log": "runs/run1/logs/ben.log",
        },
        {
            "event": "failed",
            "job": blocked.base_model_hash,
            "error": "out of memory",
            "log": "runs/run1/logs/base.log",
        },
        {"event": "started", "job": "p/fold5_finn"},
        tail='{"event": "failed", "jo',
    )
    made.write_jobs()
    assert missing(made) == {
        "p/ben": ("failed", "loss is NaN at epoch 3", "runs/run1/logs/ben.log"),
        "p/carla": (
            "blocked",
            f"its base model {blocked.base_model_hash} failed: out of memory",
            "runs/run1/logs/base.log",
        ),
        "p/dora": ("never run", f"waits for its base model {waiting.base_model_hash}", ""),
        "p/emil": ("unreadable", "half-written: no metrics.json yet (running, or cut short)", ""),
        "p/finn": ("never run", "started, not finished", ""),
    }


def test_a_later_success_outweighs_an_earlier_failure(made: Made) -> None:
    made.base(made.plan("ben", prefix="p"))
    made.log({"event": "failed", "job": "p/fold1_ben", "error": "e", "log": "l"}, run="run1")
    made.log({"event": "started", "job": "p/fold1_ben"}, run="run2")
    made.write_jobs()
    assert missing(made)["p/ben"][0] == "never run"


def test_a_result_whose_base_was_trained_anew_is_stale_and_missing(made: Made) -> None:
    made.run("anna", prefix="p")
    made.write_jobs()
    assert missing(made) == {}
    (base_hash,) = made.bases
    publish_base_model(made.paths, base_hash, b"other weights", made.bases[base_hash])
    assert missing(made)["p/anna"][:2] == (
        "stale",
        f"its base model {base_hash} was trained anew since",
    )


def test_a_result_whose_data_changed_is_stale(made: Made) -> None:
    made.run("anna", prefix="p")
    made.write_jobs()
    data = made.root / "data" / "made"
    data.mkdir(parents=True)
    (data / "anna_train.pt").write_bytes(b"changed")
    (data / "anna_test.pt").write_bytes(b"anna_test.pt")  # the bytes whose SHA-256 is recorded
    assert missing(made)["p/anna"][:2] == ("stale", "data changed since: anna_train.pt")


def test_a_result_whose_base_is_stale_is_stale(made: Made) -> None:
    """Base training also read the data of people of whom the fine-tune read nothing."""
    ben = sha256(b"ben_train.pt")
    made.run("anna", prefix="p", base_data={"ben_train.pt": ben})
    made.run("carla", prefix="p", base_data={"dora_train.pt": ben})
    made.write_jobs()
    data = made.root / "data" / "made"
    data.mkdir(parents=True)
    (data / "ben_train.pt").write_bytes(b"changed")
    said = missing(made)
    assert list(said) == ["p/anna"]
    assert said["p/anna"][0] == "stale"
    assert re.search(
        r"base model \w+ is stale: data changed since: ben_train.pt", said["p/anna"][1]
    )


def test_a_result_of_another_configuration_does_not_fill_the_cell(made: Made) -> None:
    made.run("anna", prefix="p", lr=0.001)
    made.jobs.clear()
    made.plan("anna", prefix="p")
    made.write_jobs()
    reason, detail, _ = missing(made)["p/anna"]
    assert reason == "stale"
    assert "lr 0.001 there, 0.0003 planned" in detail


def test_without_job_files_it_is_said_that_nobody_knows_what_is_missing(made: Made) -> None:
    made.run("anna")
    collection = collect([made.root])
    plans, notes = planned_jobs(collection)
    cells = missing_cells(collection, plans)
    assert cells == []
    assert "no finetune_jobs.json" in notes[0]


def test_a_broken_job_file_is_said_not_raised(made: Made) -> None:
    made.run("anna")
    (made.root / "finetune_jobs.json").write_text("[{")
    _, notes = planned_jobs(collect([made.root]))
    assert "cannot be said" in notes[0]


def test_what_the_grid_fixed_is_read_from_the_job_file(made: Made) -> None:
    made.run("anna")
    assert not collect([made.root]).projects[0].analysis.fixed
    made.write_jobs()
    path = made.root / "finetune_jobs.json"
    jobs = json.loads(path.read_text())
    jobs[0]["_analysis"] = {"metric": "event_f1", "target_data_pct": 0.25}
    path.write_text(json.dumps(jobs))
    assert collect([made.root]).projects[0].analysis == Analysis("event_f1", None, 0.25)
