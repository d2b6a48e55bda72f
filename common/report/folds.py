"""Data sets that --split_folds made from one preparation: a person's K tests are pooled into one.

The windows of the K tests are put together and scored as one test, each model's tuned threshold on
its own windows; events and hours are summed. What the models learnt from is averaged over the K.
A person's pooled result needs all K tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.artifacts import Json
from common.data.manifest import Fold
from common.jobs.score_names import SCORES, THRESHOLDED
from common.options import FROM_SCRATCH, FinetuneOptions, shapes_result
from common.report.cells import POOLED, Reasons
from common.report.collect import MODELS, Run, each_window, from_windows, joined
from common.report.predictions import EventRules
from common.training.metrics import final_scores, threshold_scores

OF_TESTS = ("test_windows", "test_positives", "test_hours")


def pool_folds(table: pd.DataFrame, runs: Mapping[int, Run], rules: EventRules) -> pd.DataFrame:
    """`table` with one row for the K tests of a person under equal options. A row that lacks a test
    has no scores, and says so in `undefined`. Duplicates and stale results are left as they are.
    """
    parts = table["part_tested"]
    folded = parts.notna() & table["duplicate_of"].isna() & table["stale"].isna()
    if not folded.any():
        return table
    mine = table[folded].assign(whole=[part.whole for part in parts[folded]])
    groups = mine.groupby(_keys(mine), dropna=False, sort=False)
    rows = {int(part.index[0]): _pooled(part, runs, rules) for _, part in groups}
    pooled = pd.DataFrame.from_dict(rows, orient="index")
    others = table[~folded].assign(**{POOLED: [[index] for index in table.index[~folded]]})
    return pd.concat([frame for frame in (pooled, others) if len(frame)])


def _keys(table: pd.DataFrame) -> list[str]:
    """What the K tests of a person have in common."""
    apart = ("data_path", "base_model_hash", "prefix", "participants", "fold")
    options = [name for name in FinetuneOptions.model_fields if name not in apart]
    shaping = [name for name in options if shapes_result(name) and name in table]
    own = ["project", "whole", "data_family", "target_participant", "base_participants"]
    return list(dict.fromkeys([*own, *shaping, "seed_finetune"]))


def _pooled(rows: pd.DataFrame, runs: Mapping[int, Run], rules: EventRules) -> Json:
    tests: dict[int, int] = {}
    for index, part in rows["part_tested"].items():
        tests.setdefault(part.number, int(index))
    first, part = rows.iloc[0], rows["part_tested"].iloc[0]
    ids = [tests[number] for number in sorted(tests)]
    row: Json = first.to_dict() | _averaged(rows.loc[ids])
    hashes = [str(name) for name in rows.loc[ids, "base_model_hash"].dropna()]
    row |= {"data_path": part.whole, POOLED: ids, "base_model_hash": " ".join(hashes) or None}
    lacking = sorted(set(range(1, part.of + 1)) - set(tests))
    scores, reasons = (
        _without(row, lacking, part)
        if lacking
        else _scored([runs[index] for index in ids], str(first["mode"]), rules)
    )
    return row | scores | {"undefined": Reasons(reasons)}


def _averaged(rows: pd.DataFrame) -> Json:
    """Windows and hours: sums of what was tested, means of what each model learnt from."""
    names = [name for name in rows if name.startswith(("train_", "selection_", "base_train_"))]
    numbers = rows[[name for name in names if name != "train_seconds"]].astype(float)
    sums = rows[[name for name in OF_TESTS if name in rows]].astype(float)
    marks = {name: bool(rows[name].any()) for name in ("hit_max_epochs", "base_hit_max_epochs")}
    return {**numbers.mean().to_dict(), **sums.sum(min_count=len(rows)).to_dict(), **marks}


def _without(row: Json, lacking: Sequence[int], part: Fold) -> tuple[Json, Json]:
    numbers = ", ".join(map(str, lacking))
    why = f"no current result yet of test {numbers} of the {part.of} of {part.whole}"
    sides = ("test_", "val_", "base_test_", "base_val_")
    names = [name for name in row if name.startswith(sides) and name not in OF_TESTS]
    told = [name for name in names if name.startswith(("test_", "val_"))]
    return dict.fromkeys(names, math.nan), dict.fromkeys(told, why)


def _scored(runs: Sequence[Run], mode: str, rules: EventRules) -> tuple[Json, Json]:
    options = FinetuneOptions.parse(runs[0].config["options"], "config.json")
    scores, reasons = from_windows(runs, options, rules)
    for side, column in MODELS:
        if side and mode in FROM_SCRATCH:
            continue
        for split in ("val", "test"):
            values, why = _window_scores(runs, split, side, column)
            scores |= {f"{side}{split}_{name}": value for name, value in values.items()}
            reasons |= {f"{side}{split}_{name}": text for name, text in why.items()}
    return scores, reasons


def _window_scores(
    runs: Sequence[Run], split: str, side: str, column: str
) -> tuple[Json, dict[str, str]]:
    """The scores of metrics.json, of all windows of a split together."""
    tests = [run.windows(split) for run in runs]
    together = joined(tests)
    sizes = [len(test["label"]) for test in tests]
    losses = [run.metrics.get(f"{side}{split}_loss") for run in runs]
    known = [float(loss) for loss in losses if loss is not None]
    whole = len(known) == len(runs) and any(sizes)
    loss = float(np.average(known, weights=sizes)) if whole else None
    values: dict[str, Any] = dict.fromkeys(SCORES)
    labels, p = together["label"], together[column]
    if not np.isfinite(p).all():
        return values, dict.fromkeys(SCORES, "a window has no probability")
    values, why = final_scores(labels, p, loss=loss)
    limits = each_window(tests, [run.threshold(side) for run in runs])
    if limits is None:
        lacks = dict.fromkeys(THRESHOLDED, "a test has no tuned threshold")
        tuned, tuned_why = dict.fromkeys(THRESHOLDED), lacks
    else:
        tuned, tuned_why = threshold_scores(labels, p, limits)
    values |= {f"{name}_tuned": value for name, value in tuned.items()}
    return values, why | {f"{name}_tuned": text for name, text in tuned_why.items()}
