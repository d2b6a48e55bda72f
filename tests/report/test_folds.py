"""The K data sets of one --split_folds are one grid: a person's K tests are one test. Worked out
once more here from what stands on disk, with none of the report's code.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import average_precision_score, f1_score

from common.report.build import ReportRequest, build_report
from common.report.cells import run_ids
from common.report.collect import Collection, collect
from common.report.conditions import BASE, Condition
from common.report.folds import pool_folds
from common.report.grids import Grid, split_grids
from common.report.missing import mark_stale
from common.report.predictions import EventRules
from common.report.wording import people_words, pooled_words
from tests.report.made import Made, labelled_bouts, timed_predictions

FULL = Condition("target_only_fine_tuning", 1.0)
CUTS = (0.3, 0.5, 0.8)


def folded(made: Made, number: int) -> None:
    """Three people and their tests in the data set `number` of 3; each model has a threshold of its
    own, and each test another size.
    """
    made.data_path = f"data/x_{number}of3"
    annotated = {
        person: timed_predictions(0.8, 0.3, 10 * number + place, length=60 + 20 * number)
        for place, person in enumerate(made.people[:3])
    }
    made.annotate(annotated)
    path = made.root / made.data_path / "dataset.json"
    split = {"rule": "blocks", "seed": 0, "folds": 3, "fold": number, "fold_of": "data/x"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split": split}))
    for person, predictions in annotated.items():
        tuned = {"threshold_tuned": CUTS[number - 1], "test_loss": 0.1 * number}
        made.run(person, predictions=predictions, metrics=tuned, windows=30 * number)


def pooled(made: Made) -> tuple[Grid, Collection]:
    """As report.py makes it."""
    collection = collect([made.root])
    mark_stale(collection)
    table = pool_folds(collection.table, collection.runs, EventRules())
    (grid,) = split_grids(table, "macro_f1")
    return grid, collection


def windows_of(made: Made, person: str) -> list[dict[str, Any]]:
    """All test windows of a person with the fold's threshold."""
    found = []
    for path in made.root.glob(f"experiments/*/*_{person}/predictions.csv"):
        threshold = json.loads(path.with_name("metrics.json").read_text())["threshold_tuned"]
        with path.open() as file:
            lines = [line for line in csv.DictReader(file) if line["split"] == "test"]
        found += [line | {"cut": threshold} for line in lines]
    return found


def test_a_persons_score_is_that_of_all_windows_of_the_tests_together(made: Made) -> None:
    for number in (1, 2, 3):
        folded(made, number)
    grid, collection = pooled(made)
    assert (grid.participants, grid.name, grid.tests) == (made.people[:3], "", 3)
    for person in grid.participants:
        lines = windows_of(made, person)
        assert len(lines) == 2 * (80 + 100 + 120)
        labels = [int(line["label"]) for line in lines]
        for column, condition in (("p_finetuned", FULL), ("p_base", BASE)):
            p = [float(line[column]) for line in lines]
            score = f1_score(labels, [value >= 0.5 for value in p], average="macro")
            assert grid.scores()[condition][person] == pytest.approx(score)
            area = average_precision_score(labels, p)
            assert grid.column(condition, "test_pr_auc")[person] == pytest.approx(area)
        called = [float(line["p_finetuned"]) >= line["cut"] for line in lines]
        tuned = grid.column(FULL, "test_macro_f1_tuned")[person]
        assert tuned == pytest.approx(f1_score(labels, called, average="macro"))
        right = sum(mine and label for mine, label in zip(called, labels, strict=True))
        assert grid.column(FULL, "test_tp_tuned")[person] == right
        loss = (80 * 0.1 + 100 * 0.2 + 120 * 0.3) / 300
        assert grid.column(FULL, "test_loss")[person] == pytest.approx(loss)
        assert grid.column(FULL, "train_windows")[person] == 60
        assert grid.column(FULL, "test_windows")[person] == 150
        assert len(run_ids(grid.behind(person, FULL))) == 3
    assert "over 3 tests" in pooled_words(grid)
    assert len(collection.table) == 9


def test_events_and_hours_are_summed_over_the_tests(made: Made) -> None:
    for number in (1, 2, 3):
        folded(made, number)
    grid, collection = pooled(made)
    for person in grid.participants:
        rows = collection.table[collection.table["target_participant"] == person]
        bouts = found = false = 0.0
        for row in rows.itertuples():
            text = (made.root / row.folder / "predictions.csv").read_bytes()
            mine = len([bout for bout in labelled_bouts(text) if bout[3] == "test"])
            bouts += mine
            found += row.test_event_recall * mine
            # sessions of a test: two, from second 0 to the last window's end
            false += row.test_false_episodes_per_hour * 2 * (60 + 20 * int(row.data_path[7]) + 1)
        hours = 2 * (80 + 100 + 120 + 3)
        assert grid.column(FULL, "test_event_recall")[person] == pytest.approx(found / bouts)
        per_hour = grid.column(FULL, "test_false_episodes_per_hour")[person]
        assert per_hour == pytest.approx(false / hours)


def test_who_lacks_a_test_is_named_and_left_out(made: Made) -> None:
    for number in (1, 2, 3):
        folded(made, number)
    (lost,) = (
        path
        for path in made.root.glob("experiments/*/*_ben")
        if "x_2of3" in (path / "config.json").read_text()
    )
    lost.rename(made.root / "elsewhere")
    grid, _ = pooled(made)
    assert grid.participants == ["anna", "carla"]
    assert "no current result yet of test 2 of the 3 of data/x)." in people_words(grid)


def test_one_of_the_data_sets_by_itself_with_a_filter(made: Made, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        folded(made, number)
    request = {"folders": [made.root], "out": tmp_path / "report"}
    build_report(ReportRequest(**request))
    together = (tmp_path / "report" / "index.html").read_text()
    assert "score over 3 tests" in together
    assert "pooled" in (tmp_path / "report" / "main_table.tex").read_text()
    build_report(ReportRequest(**request, filters=["data_path=data/x_2of3"]))
    alone = (tmp_path / "report" / "index.html").read_text()
    assert "score over 3 tests" not in alone
