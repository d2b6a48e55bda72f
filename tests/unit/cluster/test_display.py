"""The table of scores that ends a run, and what is shown while it goes on."""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from common import artifacts
from common.artifacts import read_sealed, seal, sha256, to_json, write_file
from common.cluster.display import Display, closing_table, status_lines
from common.cluster.journal import Journal, latest_status
from common.data.manifest import Manifest
from common.jobs.job_files import Job
from common.paths import Paths

TUNED, SCRATCH = "target_only_fine_tuning", "target_only"


class Results:
    """Published experiments, and the jobs that they belong to."""

    def __init__(self, root: Path) -> None:
        self.paths, self.jobs = Paths(root), list[Job]()

    def add(
        self,
        person: str,
        test: float | None,
        base: float | None = None,
        *,
        val: float = 0.5,
        mode: str = TUNED,
        **values: Any,
    ) -> None:
        """One fine-tune of `person`."""
        values = {
            "mode": mode,
            "target_data_pct": 0.1,
            "n_base_participants": 1,
            "data_path": "data/a",
            "window_size": 40,
            **values,
        }
        job = Job(
            "finetune",
            f"p{len(self.jobs)}/fold0_{person}",
            values,
            f"base {base} of {person}" if base is not None else None,
        )
        self.jobs.append(job)
        metrics = {
            "target_participant": person,
            "mode": mode,
            "target_data_pct": values["target_data_pct"],
            "test_macro_f1": test,
            "val_macro_f1": val,
            "base_test_macro_f1": base,
            "base_val_macro_f1": val,
        }
        folder = self.paths.experiments / job.id
        folder.mkdir(parents=True)
        write_file(folder / "metrics.json", to_json(seal(metrics)))

    def table(self) -> list[list[str]]:
        """The cells of each line but the first, which says what the scores are."""
        title, *lines = closing_table(self.paths, self.jobs)
        assert title.startswith("test macro F1")
        return [" ".join(line.split()).replace(" %", "%").split(" ") for line in lines]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def test_the_mean_is_over_those_who_have_every_column_and_each_column_has_its_n(
    results: Results,
) -> None:
    results.add("ann", 0.8, 0.6)
    results.add("bob", 0.9, 0.1)
    results.add("cem", 0.7, 0.4)
    results.add("ann", 1.0, mode=SCRATCH)
    results.add("bob", 0.5, mode=SCRATCH)
    results.add("cem", None, mode=SCRATCH)
    assert results.table() == [
        ["participant", "base", "from", "scratch", "10%", "fine-tuned", "10%"],
        ["ann", ".600", "1.00", ".800"],
        ["bob", ".100", ".500", ".900"],
        ["cem", ".400", "-", ".700"],
        ["n", "3", "2", "3"],
        ["mean", "of", "2", ".350", ".750", ".850"],
        ["not", "in", "the", "mean:", "cem", "(no", "from", "scratch", "10%)"],
    ]


def test_a_person_without_a_score_is_named(results: Results) -> None:
    results.add("ann", 0.8, 0.6)
    results.add("bob", None, None)
    assert results.table()[2:] == [
        ["bob", "-", "-"],
        ["n", "1", "1"],
        ["mean", "of", "1", ".600", ".800"],
        ["not", "in", "the", "mean:", "bob", "(no", "base,", "fine-tuned", "10%)"],
    ]


def test_without_anybody_who_has_every_column_there_is_no_mean(results: Results) -> None:
    results.add("ann", 0.8, 0.6)
    results.add("bob", 0.9, mode=SCRATCH)
    lines = closing_table(results.paths, results.jobs)
    assert not any(line.startswith("mean of") for line in lines)
    assert lines[-1].startswith("not in the mean: ann (no from scratch 10 %); bob (no base, fine")


def test_a_result_that_cannot_be_read_at_the_end_is_left_out(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    for person in ("ann", "bob", "cem"):
        results.add(person, 0.8, 0.6)
    read = artifacts.read_sealed

    def stale(path: Path) -> dict[str, Any]:
        if path.parent.name.endswith("bob"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    monkeypatch.setattr(artifacts, "read_sealed", stale)
    assert [row[0] for row in results.table()[1:3]] == ["ann", "cem"]


def test_repeats_are_averaged_and_of_settings_the_others_validation_scores_choose_one(
    results: Results,
) -> None:
    for person in ("ann", "bob"):
        for seed in (0, 1):
            results.add(person, 0.4 + seed / 5, seed=seed, lr=0.1, val=0.9, mode=SCRATCH)
        results.add(person, 1.0, seed=0, lr=0.2, val=0.1, mode=SCRATCH)
    assert [row[:2] for row in results.table()[1:3]] == [["ann", ".500"], ["bob", ".500"]]


def test_budgets_data_sets_and_numbers_of_base_participants_are_never_averaged(
    results: Results,
) -> None:
    for person in ("ann", "bob"):
        results.add(person, 0.4, 0.3)
        results.add(person, 0.6, 0.5, n_base_participants=2)
        results.add(person, 0.8, 0.5, n_base_participants=2, target_val="matched")
    results.add("ann", 0.2, 0.1, data_path="data/b")
    lines = closing_table(results.paths, results.jobs)
    assert lines[0].endswith("; data/a; with 2 base participants")
    assert [line.split() for line in lines[1:4]] == [
        ["participant", "base", "fine-tuned", "10", "%", "fine-tuned", "10", "%", "matched"],
        ["ann", ".500", ".600", ".800"],
        ["bob", ".500", ".600", ".800"],
    ]
    assert lines[6].endswith("; data/b")
    assert lines[8].split() == ["ann", ".100", ".200"]


def test_a_table_needs_results(results: Results) -> None:
    assert closing_table(results.paths, [Job("finetune", "p/fold0_ann", {"mode": TUNED})]) == []
    assert closing_table(results.paths, [Job("base", "0" * 16, {})]) == []


def folded(results: Results, number: int, rows: str) -> None:
    """A data set of three that dataset.json marks, and what predictions.csv of ann's job on it
    shall hold.
    """
    name = f"data/x_{number}of3"
    folder = results.paths.data(name)
    folder.mkdir(parents=True)
    manifest = Manifest(
        sampling_rate_hz=20,
        channels=["x"],
        units=["g"],
        window_seconds=2,
        stride_seconds=1,
        window_size=40,
        labelling={},
        split={"folds": 3, "fold": number, "fold_of": "data/x"},
        source={},
        participants={},
        files={},
    )
    (folder / "dataset.json").write_text(manifest.model_dump_json())
    results.add("ann", 0.1, 0.1, data_path=name, base_model_hash=f"hash {number}")
    head = "split,index,session,start_s,label,p_base,p_finetuned\n"
    text = head + "".join(f"test,0,s,0,{row}\n" for row in rows.split())
    published = results.paths.experiments / results.jobs[-1].id
    (published / "predictions.csv").write_text(text)
    metrics = read_sealed(published / "metrics.json")
    files = {"predictions.csv": sha256(text.encode())}
    write_file(published / "metrics.json", to_json(seal(metrics | {"files": files})))


def test_the_tests_of_one_preparation_are_one_table_with_their_windows_together(
    results: Results,
) -> None:
    folded(results, 1, "1,0.1,0.9 0,0.1,0.9")
    folded(results, 2, "0,0.9,0.1")
    lines = closing_table(results.paths, results.jobs)
    assert lines == []  # no result without all three
    results.add("bob", 0.5, 0.5)
    folded(results, 3, "1,0.9,0.9")
    lines = closing_table(results.paths, results.jobs)
    assert lines[0].endswith("; data/x")
    # base: one of two right in each class; fine-tuned: tn 1, fp 1, fn 0, tp 2
    assert lines[2].split() == ["ann", ".500", f"{(2 / 3 + 4 / 5) / 2:.3f}"[1:]]
    assert [line for line in lines if line.startswith("ann")] == [lines[2]]
    (results.paths.experiments / results.jobs[0].id / "predictions.csv").write_text("cut sh")
    lines = closing_table(results.paths, results.jobs)
    assert not any(line.startswith("ann") for line in lines)


STATUS: dict[str, Any] = {
    "phases": {"base": {"done": 2, "failed": 1}, TUNED: {"blocked": 3, "ready": 4}},
    "time_left": 70,
    "nodes": [
        {
            "name": "gpu1",
            "state": "open",
            "slots": 2,
            "done": 2,
            "failed": 1,
            "bytes_per_second": 1e6,
            "running": [
                {"job": "p/fold0_ann", "epoch": 3, "of": 9, "seconds": 65.0},
                {"job": "p/fold1_bob", "epoch": None, "of": None, "seconds": 3.0},
            ],
        }
    ],
}


def test_the_status_names_the_slowest_experiment_and_counts_what_failed_or_is_blocked() -> None:
    status = {**STATUS, "run": "r", "pid": 7, "updated": time.time()}
    lines = status_lines(status)
    assert lines[0] == "run r, process 7: running"
    assert "  slowest: p/fold0_ann for 1 min 05 s on gpu1 epoch 3/9" in lines
    assert "  base: 2 done, 0 running, 1 failed, 0 blocked, 0 waiting" in lines
    assert lines[-1] == "  time left: 1 min 10 s"


def test_after_ctrl_c_the_status_says_that_the_run_is_stopping() -> None:
    status = {**STATUS, "run": "r", "pid": 7, "updated": time.time(), "stopping": True}
    assert status_lines(status)[0] == "run r, process 7: stopping: running jobs finish"
    assert status_lines({**status, "ended": True})[0] == "run r, process 7: ended"


def test_the_status_of_a_run_that_has_ended_shows_nothing_running_and_no_time_left() -> None:
    phases = {"base": {"done": 2, "running": 3, "ready": 1}}
    status = {**STATUS, "phases": phases, "run": "r", "pid": 7, "updated": 0, "ended": True}
    assert status_lines(status) == [
        "run r, process 7: ended",
        "  gpu1: open, 2 slots, 2 done, 1 failed, 1.0 MB/s; idle",
        "  base: 2 done, 0 running, 0 failed, 0 blocked, 4 waiting",
    ]


def test_a_status_whose_process_is_gone_says_so_at_once(tmp_path: Path) -> None:
    with closing(Journal(Paths(tmp_path), "r")) as journal:
        journal.status(STATUS)
    status = latest_status(Paths(tmp_path))
    assert status is not None
    assert status_lines(status)[0].endswith(": running")
    gone = {**status, "process_began": "1"}  # its id was given to another process
    assert "its orchestrator was killed" in status_lines(gone)[0]
    assert "idle" in status_lines(gone)[1]
    assert status_lines({**gone, "host": "elsewhere"})[0].endswith(": running")
    assert status_lines({**gone, "engine": "slurm"})[0].endswith(": running")


def test_failed_and_blocked_jobs_are_no_progress_of_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    display = Display()
    display.show(STATUS)
    assert display._bar is not None
    assert (display._bar.n, display._bar.total) == (2, 10)
    display.close()
    assert "2/10 done, 1 failed, 3 blocked, 1 min 10 s left" in capsys.readouterr().err
