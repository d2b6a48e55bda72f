"""generate_jobs.py: which grid it expands, what it keeps, what it says beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.artifacts import to_json
from common.data.data_sets import Data
from common.data.subsets import subset_sizes
from common.errors import InputError
from common.jobs.generate import choose_grid, generate, read_analysis
from common.jobs.job_files import read_jobs
from common.paths import BASE_JOBS, FINETUNE_JOBS, Paths

FIXED: dict[str, Any] = {"participants": ["ann", "bob", "cyd"], "data_path": "data/made"}
GRID: dict[str, Any] = {"grid": {"target_data_pct": [0.5, 1.0]}, "fixed": FIXED}
HERE = Path(".")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text(json.dumps(GRID))
    return tmp_path


def call(
    grid: str | None = None, folds: list[str] | None = None, *, baselines: bool = False
) -> tuple[str, list[str]]:
    """As generate_jobs.py does: the grid's name and remark, and the lines."""
    paths = Paths(Path.cwd())
    data = Data(paths)
    origin, remark = choose_grid(HERE, Path(grid) if grid else None, folds, baselines=baselines)
    return origin.name + remark, generate(paths, data, origin, HERE)[0]


def jobs(name: str = FINETUNE_JOBS) -> list[str]:
    kind = "base" if name.startswith(BASE_JOBS) else "finetune"
    return [job.id for job in read_jobs(Path(name), kind, Data(Paths(Path.cwd())))]


def test_without_a_grid_the_first_call_expands_the_documented_one() -> None:
    for _ in range(2):  # also over job files that came from it
        said, lines = call()
        assert said == "the documented grid"
        assert lines[:2] == [
            "finetune_jobs.json: 1,008 fine-tunes",
            "base_training_jobs.json: 84 base models, 12 fine-tunes each",
        ]
    assert not list(HERE.glob("*.bak"))


def test_without_a_grid_the_same_grid_is_expanded_again() -> None:
    call("mine.json", ["ann", "bob"], baselines=True)
    before = jobs()
    said, lines = call()
    assert said == (
        "mine.json, as finetune_jobs.json came from it; folds ann, bob only; all: --grid mine.json"
    )
    assert jobs() == before
    assert not any(line.startswith("replaced") for line in lines)
    assert call(folds=["cyd"])[0] == "mine.json, as finetune_jobs.json came from it"
    assert {job.rpartition("_")[2] for job in jobs()} == {"cyd"}


def test_an_edited_grid_file_counts_and_a_lost_one_is_not_missed() -> None:
    call("mine.json")
    Path("mine.json").write_text(json.dumps(GRID | {"grid": {"target_data_pct": [0.25]}}))
    _, lines = call()
    assert len(jobs()) == 3
    assert lines[0] == (
        "replaced: 6 fine-tunes of mine.json, 6 of them not in this grid; the old job files are"
        " kept as base_training_jobs.json.bak and finetune_jobs.json.bak"
    )
    Path("mine.json").unlink()
    said, _ = call()
    assert said.startswith("mine.json as recorded in finetune_jobs.json")
    assert len(jobs()) == 3


def test_another_grid_keeps_the_old_job_files() -> None:
    call("mine.json")
    old = [Path(name).read_bytes() for name in (BASE_JOBS, FINETUNE_JOBS)]
    Path("other.json").write_text(json.dumps(GRID | {"grid": {"lr": [0.1]}}))
    call("other.json")
    assert [Path(f"{name}.bak").read_bytes() for name in (BASE_JOBS, FINETUNE_JOBS)] == old
    second = [Path(name).read_bytes() for name in (BASE_JOBS, FINETUNE_JOBS)]
    _, lines = call("mine.json")
    assert lines[0].endswith("base_training_jobs.json.bak1 and finetune_jobs.json.bak1")
    assert [Path(f"{name}.bak").read_bytes() for name in (BASE_JOBS, FINETUNE_JOBS)] == old
    assert [Path(f"{name}.bak1").read_bytes() for name in (BASE_JOBS, FINETUNE_JOBS)] == second


def test_a_grid_that_only_grew_replaces_nothing() -> None:
    call("mine.json")
    Path("mine.json").write_text(json.dumps(GRID | {"grid": {"target_data_pct": [0.1, 0.5, 1.0]}}))
    _, lines = call()
    assert len(jobs()) == 9
    assert not list(HERE.glob("*.bak"))
    assert not any(line.startswith("replaced") for line in lines)


def unrecorded(path: Path) -> None:
    entries = json.loads(path.read_bytes())
    path.write_text(json.dumps([{k: v for k, v in e.items() if k[0] != "_"} for e in entries]))


def test_job_files_of_an_unknown_grid_are_not_replaced_by_the_documented_one() -> None:
    call("mine.json")
    unrecorded(Path(FINETUNE_JOBS))
    for spoilt in (None, "[", "{}"):
        if spoilt:
            Path(FINETUNE_JOBS).write_text(spoilt)
        before = Path(FINETUNE_JOBS).read_bytes()
        with pytest.raises(InputError, match="give it with --grid"):
            call()
        assert Path(FINETUNE_JOBS).read_bytes() == before
    _, lines = call("mine.json")
    assert Path(f"{FINETUNE_JOBS}.bak").read_bytes() == before
    assert lines[0].startswith("replaced: 1 fine-tune, 1 of them")


def test_documented_job_files_of_an_earlier_version_are_known() -> None:
    call()
    unrecorded(Path(FINETUNE_JOBS))
    assert call()[0] == "the documented grid"


def test_the_analysis_is_written_into_each_fine_tune_job() -> None:
    assert read_analysis(Path(FINETUNE_JOBS)) == {}
    analysis = {"metric": "macro_f1", "mode": "target_only_fine_tuning", "target_data_pct": 0.5}
    Path("mine.json").write_text(json.dumps(GRID | {"analysis": analysis}))
    call("mine.json")
    entries = json.loads(Path(FINETUNE_JOBS).read_bytes())
    assert [entry["_analysis"] for entry in entries] == [analysis] * 6
    assert read_analysis(Path(FINETUNE_JOBS)) == analysis
    for spoilt in ({"metrik": "f1"}, {"target_data_pct": "0.5"}, ["macro_f1"]):
        Path("spoilt.json").write_text(json.dumps([{**entries[0], "_analysis": spoilt}]))
        with pytest.raises(InputError, match=r"^spoilt\.json: _analysis: "):
            read_analysis(Path("spoilt.json"))
    before = jobs()
    Path("mine.json").write_text(json.dumps(GRID))
    call()
    assert jobs() == before  # what is primary shapes no result
    assert read_analysis(Path(FINETUNE_JOBS)) == {}


def test_the_cost_of_another_participant_is_said_with_all() -> None:
    _, lines = call("mine.json")
    assert lines[-1] == (
        "n_base_participants all: one more participant means 3 trainings and 6 fine-tunes again;"
        " with a number (n_base_participants 2 is the same today) a participant added at the end"
        " costs only its own"
    )
    fixed = GRID | {"fixed": FIXED | {"n_base_participants": 2}}
    Path("mine.json").write_text(json.dumps(fixed))
    assert not any("n_base_participants" in line for line in call("mine.json")[1])


def write_dataset(counts: dict[str, tuple[int, int]], window_size: int = 100) -> None:
    """A dataset.json with these (windows, positives) of each person's training split."""
    folder = Path("data/made")
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        name: {"train": {"windows": windows, "positives": positives}}
        for name, (windows, positives) in counts.items()
    }
    manifest = {
        "sampling_rate_hz": 50,
        "channels": ["x"],
        "units": ["g"],
        "window_seconds": 2,
        "stride_seconds": 1,
        "window_size": window_size,
        "labelling": {},
        "split": {},
        "source": {},
        "participants": splits,
        "files": {},
    }
    (folder / "dataset.json").write_bytes(to_json(manifest))


def test_fractions_that_choose_the_same_windows_are_named_with_their_people() -> None:
    write_dataset({"ann": (9, 4), "bob": (9, 4), "cyd": (1000, 300)})
    grid = GRID | {"grid": {"target_data_pct": [0.05, 0.1, 1.0]}}
    Path("mine.json").write_text(json.dumps(grid))
    _, lines = call("mine.json")
    assert [line for line in lines if "the same" in line and "windows" in line] == [
        "target_data_pct 0.05 and 0.1 are the same 2 of 9 windows for ann, bob (data/made)"
    ]


def test_the_window_size_is_that_of_dataset_json_unless_given() -> None:
    write_dataset({"ann": (9, 4), "bob": (9, 4), "cyd": (9, 3)})
    call("mine.json")
    named = jobs()
    assert {entry["window_size"] for entry in json.loads(Path(FINETUNE_JOBS).read_bytes())} == {100}
    Path("mine.json").write_text(json.dumps(GRID | {"fixed": FIXED | {"window_size": 100}}))
    call("mine.json")
    assert jobs() == named
    Path("mine.json").write_text(json.dumps(GRID | {"fixed": FIXED | {"window_size": 50}}))
    with pytest.raises(InputError, match=r"window_size is 50, but .* have 100"):
        call("mine.json")


@pytest.mark.parametrize("order", ["random", "time"])
def test_the_sizes_said_beforehand_are_those_of_the_subsets(order: str) -> None:
    from common.data.dataset import select_subset

    for negatives, positives in ((5, 4), (100, 1), (33, 66)):
        labels = [0] * negatives + [1] * positives
        for fraction in (0.01, 0.05, 0.1, 0.125, 0.5, 1.0):
            rows = select_subset(labels, fraction, order=order, seed=3)
            sizes = subset_sizes(negatives, positives, fraction, order)
            # in time order one window of each class is there in any case
            assert len(rows) >= sum(sizes)
            if order == "random":
                assert len(rows) == sum(sizes)
