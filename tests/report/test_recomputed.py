"""Every number of a report, worked out once more by an outsider: from predictions.csv, the
annotations and metrics.json, in plain Python, with none of the report's code.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.report.made import PEOPLE

MODES = ("target_only_fine_tuning", "full_fine_tuning", "target_only")
WORDS = {
    "base": "untouched base",
    "base_tuned": "base, threshold tuned",
    "target_only_fine_tuning": "fine-tuned, target only",
    "full_fine_tuning": "fine-tuned, with base data",
    "target_only": "from scratch",
}
Scores = dict[str, dict[str, float]]  # by condition, then by person


@pytest.fixture(scope="session")
def scores(project: Path) -> dict[str, Scores]:
    """Test macro F1 at 0.5 and tuned, with six base participants."""
    found: dict[str, Scores] = {"": {}, "_tuned": {}}
    for path in (project / "experiments").glob("*/*/metrics.json"):
        metrics = json.loads(path.read_text())
        config = json.loads((path.parent / "config.json").read_text())
        if config["options"]["n_base_participants"] != 3:
            person = metrics["target_participant"]
            name = f"{WORDS[metrics['mode']]}, {100 * metrics['target_data_pct']:g} %"
            for suffix, table in found.items():
                table.setdefault(name, {})[person] = metrics[f"test_macro_f1{suffix}"]
            if metrics["mode"] != "target_only":
                found[""].setdefault(WORDS["base"], {})[person] = metrics["base_test_macro_f1"]
                tuned = metrics["base_test_macro_f1_tuned"]
                for table in found.values():
                    table.setdefault(WORDS["base_tuned"], {})[person] = tuned
    return found


def pseudo_median(values: list[float]) -> float:
    """Hodges and Lehmann's."""
    pairs = itertools.combinations_with_replacement(values, 2)
    return statistics.median((a + b) / 2 for a, b in pairs)


def exact_p(values: list[float]) -> float:
    """Two-sided signed-rank p by flipping every sign; ties share ranks, zeros are ranked too."""
    sizes = sorted(abs(value) for value in values)
    rank = {
        size: statistics.fmean(i for i, s in enumerate(sizes, 1) if s == size) for size in sizes
    }
    ranks = [rank[abs(value)] for value in values if value]
    seen = sum(rank[abs(value)] for value in values if value > 0)
    sums = [
        sum(itertools.compress(ranks, signs))
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    above = sum(s >= seen - 1e-9 for s in sums) / len(sums)
    below = sum(s <= seen + 1e-9 for s in sums) / len(sums)
    return min(1.0, 2 * min(above, below))


def differences(table: Scores, contrast: str) -> list[float]:
    """Of the two conditions that a contrast names, person by person."""
    after, before = contrast.split(" − ")
    return [round(table[after][person] - table[before][person], 9) for person in PEOPLE]


def test_every_contrast(report: Path, scores: dict[str, Scores]) -> None:
    rows = pd.read_csv(report / "contrasts.csv", dtype={"threshold": str})
    rows = rows[~rows["contrast"].str.startswith("mode:")]
    assert len(rows) == 6 + 1 + 6 + 6 + 6 + 6
    for row in rows.itertuples():
        values = differences(scores["" if row.threshold == "0.5" else "_tuned"], row.contrast)
        assert row.estimate == pytest.approx(pseudo_median(values)), row.contrast
        assert row.median == pytest.approx(statistics.median(values))
        assert row.p == pytest.approx(exact_p(values))
        assert (row.better, row.worse) == (sum(v > 0 for v in values), sum(v < 0 for v in values))
        for end, open_end in ((row.low, row.low_open), (row.high, row.high_open)):
            outside = end - 1e-6 if end == row.low else end + 1e-6
            assert exact_p([round(v - outside, 9) for v in values]) <= 0.05
            assert open_end or exact_p([round(v - end, 9) for v in values]) > 0.05


def test_adjusted_p_values(report: Path) -> None:
    rows = pd.read_csv(report / "contrasts.csv", dtype={"threshold": str})
    of_option = rows["contrast"].str.startswith("mode:")
    primary = rows["primary"]
    families = [rows[~of_option & ~primary & (rows["threshold"] == "0.5")]]
    families += [rows[rows["threshold"] == "tuned"], rows[of_option]]
    for family in families:
        p = sorted(family["p"])
        # Holm: the largest, over all smaller ones, of p times the number of those not smaller
        wanted = {
            value: min(1.0, max((len(p) - i) * q for i, q in enumerate(p) if q <= value))
            for value in p
        }
        assert family["p_holm"].tolist() == pytest.approx([wanted[v] for v in family["p"]])


def test_medians_with_their_intervals(report: Path, scores: dict[str, Scores]) -> None:
    lines = (report / "main_table.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    half = {cells[0].replace("\\", ""): cells for cells in rows[1:9]}
    assert set(half) == set(scores[""])
    for name, cells in half.items():
        ordered = sorted(scores[""][name].values())
        # of 7 values the smallest and the largest: both miss with 2 / 2^7
        texts = [f"{value:.2f}".removeprefix("0") for value in (ordered[3], ordered[0], ordered[6])]
        assert cells[4].replace("\\", "") == f"{texts[0]} [{texts[1]}, {texts[2]}]"
        assert cells[5] == f"{statistics.fmean(ordered):.2f}".removeprefix("0")


def test_macros_of_the_primary_condition(report: Path, scores: dict[str, Scores]) -> None:
    text = (report / "numbers.tex").read_text()
    macros = dict(re.findall(r"newcommand\{\\pers(\w+)\}\{(.*)\}", text))
    table = scores[""]
    after, before = table["fine-tuned, target only, 10 %"], table[WORDS["base"]]
    gains = [round(after[person] - before[person], 9) for person in PEOPLE]
    assert macros["PrimaryGain"] == f"{pseudo_median(gains):+.3f}".replace("0.", ".")
    possible = [1 - before[person] for person in PEOPLE]
    pairs = list(itertools.combinations_with_replacement(range(len(PEOPLE)), 2))
    share = statistics.median((gains[a] + gains[b]) / (possible[a] + possible[b]) for a, b in pairs)
    assert float(macros["PrimaryShare"].split(" ")[0]) == pytest.approx(100 * share, abs=0.51)
    over = [round(after[person] - table[WORDS["base_tuned"]][person], 9) for person in PEOPLE]
    assert macros["PrimaryOverTunedGain"] == f"{pseudo_median(over):+.3f}".replace("0.", ".")
    assert macros["PrimaryMedianLevel"] == rf"{100 * (1 - 2 / 2**7):.1f} \%"


# -- events, second by second


def seconds_of(rows: list[dict[str, str]], column: str, cut: float) -> set[int]:
    """Whole seconds that windows of 2 s cover, of those at or above the threshold."""
    return {
        int(float(row["start_s"])) + step
        for row in rows
        if float(row[column]) >= cut
        for step in (0, 1)
    }


def runs(seconds: set[int]) -> Iterator[set[int]]:
    """Stretches of seconds without a gap."""
    for _, group in itertools.groupby(enumerate(sorted(seconds)), lambda pair: pair[1] - pair[0]):
        yield {second for _, second in group}


def pairs_matched(bouts: list[set[int]], found: list[set[int]], iou: float) -> int:
    """Greatest overlap first, each once."""
    left = sorted(
        ((-len(a & b), i, j) for i, a in enumerate(bouts) for j, b in enumerate(found)),
    )
    used_bouts, used_found = set[int](), set[int]()
    for overlap, i, j in left:
        enough = overlap and -overlap >= iou * len(bouts[i] | found[j])
        if enough and i not in used_bouts and j not in used_found:
            used_bouts.add(i)
            used_found.add(j)
    return len(used_bouts)


@pytest.mark.parametrize("person", PEOPLE)
def test_events_and_confusion_counts(report: Path, project: Path, person: str) -> None:
    summary = pd.read_csv(report / "summary.csv")
    row = summary[summary["target_participant"] == person].iloc[0]
    with (project / row["folder"] / "predictions.csv").open() as file:
        windows = [line for line in csv.DictReader(file) if line["split"] == "test"]
    with (project / "data" / "made" / f"{person}_bouts.csv").open() as file:
        annotated = [line for line in csv.DictReader(file) if line["split"] == "test"]
    matched = {0.0: 0, 0.5: 0}
    bouts = episodes = false = recorded = split = merged = 0
    for session in {line["session"] for line in windows}:
        mine = [line for line in windows if line["session"] == session]
        truth = [
            set(range(int(float(line["start_s"])), int(float(line["end_s"]))))
            for line in annotated
            if line["session"] == session
        ]
        found = list(runs(seconds_of(mine, "p_finetuned", 0.5)))
        bouts, episodes = bouts + len(truth), episodes + len(found)
        recorded += len(seconds_of(mine, "p_finetuned", 0))
        false += len(set[int]().union(*found) - set[int]().union(*truth))
        split += sum(sum(bool(a & b) for b in found) > 1 for a in truth)
        merged += sum(
            any(a & b and sum(bool(c & b) for c in truth) > 1 for b in found) for a in truth
        )
        for iou in matched:
            matched[iou] += pairs_matched(truth, found, iou)
    assert row["test_event_recall"] == pytest.approx(matched[0.0] / bouts)
    assert row["test_event_precision"] == pytest.approx(matched[0.0] / episodes)
    assert row["test_event_f1_iou"] == pytest.approx(2 * matched[0.5] / (bouts + episodes))
    per_hour = (episodes - matched[0.0]) / (recorded / 3600)
    assert row["test_false_episodes_per_hour"] == pytest.approx(per_hour)
    assert row["test_false_time_share"] == pytest.approx(false / recorded)
    assert (row["test_fragmented_bouts"], row["test_merged_bouts"]) == (split, merged)
    called = [(line["label"] == "1", float(line["p_finetuned"]) >= 0.5) for line in windows]
    counts = [called.count(pair) for pair in ((True, True), (False, True), (True, False))]
    assert [row[f"test_{name}"] for name in ("tp", "fp", "fn")] == counts
    assert math.isclose(row["test_tn"], len(windows) - sum(counts))
