"""What is scored from predictions.csv: confusion counts and, against the annotations that the data
set keeps, events.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.manifest import KeptBout
from common.errors import InputError
from common.jobs.score_names import MATCHED, STRICTER, UNMATCHED
from common.use.episodes import episodes, recorded
from common.use.events import EVENT_IOU, EventScores, SessionEvents, event_scores

Predictions = dict[str, NDArray[Any]]
CONFUSION = ("tn", "fp", "fn", "tp")


@dataclass(frozen=True)
class EventRules:
    """How windows become episodes, as in predict.py, and when an episode matches a bout."""

    merge_gap_seconds: float = 0.0
    min_episode_seconds: float = 0.0
    iou: float = EVENT_IOU  # of the stricter matching; the other is any overlap

    @classmethod
    def checked(
        cls, merge_gap_seconds: float, min_episode_seconds: float, iou: float
    ) -> EventRules:
        """Rules as a user gave them.

        Raises:
            InputError: a value out of bounds.
        """
        for name, value in (("merge_gap", merge_gap_seconds), ("min_episode", min_episode_seconds)):
            if not 0 <= value < math.inf:
                raise InputError(f"--{name}_seconds {value:g}: seconds are needed, 0 or more")
        if not 0 < iou <= 1:
            raise InputError(f"--event_iou {iou:g}: a number above 0, at most 1, is needed")
        return cls(merge_gap_seconds, min_episode_seconds, iou)


def read_windows(text: str) -> dict[str, Predictions]:
    """predictions.csv by split: columns session (text), start_s, label, p_base, p_finetuned (NaN
    where the file has nothing).

    Raises:
        ValueError: not such a file.
    """
    if not text.strip():
        raise ValueError("predictions.csv is empty")
    lines = (
        [line.split(",") for line in text.splitlines()]
        if '"' not in text
        else list(csv.reader(text.splitlines()))
    )
    head, rows = lines[0], lines[1:]
    columns = (
        dict(zip(head, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(head, ())
    )
    arrays: Predictions = {
        name: np.array([cell or "nan" for cell in columns[name]], dtype=float)
        for name in ("start_s", "label", "p_base", "p_finetuned")
    }
    arrays["session"] = np.array(columns["session"], dtype=str)
    splits = np.array(columns["split"], dtype=str)
    return {
        split: {name: values[splits == split] for name, values in arrays.items()}
        for split in ("val", "test")
    }


def confusion_counts(
    labels: NDArray[Any], p: NDArray[Any], threshold: float | NDArray[Any] | None
) -> dict[str, float]:
    """tn, fp, fn, tp of windows called positive from `threshold` up (one for all, or one a window);
    nothing without one.
    """
    if threshold is None or not len(p) or not np.isfinite(p).all():
        return {}
    cells = 2 * (labels == 1) + (p >= threshold)
    counts = np.bincount(cells.astype(int), minlength=4)
    return dict(zip(CONFUSION, counts.astype(float).tolist(), strict=True))


def no_events(
    windows: Predictions, bouts: Sequence[KeptBout] | None, window_seconds: float | None
) -> str | None:
    """Why event scores cannot be given, or None."""
    if bouts is None:
        return "the data set keeps no annotations: prepare it with prepare_data.py"
    if window_seconds is None:
        return "the data set's windows are not those of the experiment"
    starts = windows["start_s"]
    if not len(starts) or not np.isfinite(starts).all():
        return "the windows have no times"
    return None


@dataclass(frozen=True)
class SplitWindows:
    """One experiment's windows of a split, with the annotations of that split and the length of a
    window where they are known.
    """

    windows: Predictions
    bouts: list[KeptBout] | None
    window_seconds: float | None


def event_columns(
    tests: Sequence[SplitWindows],
    column: str,
    thresholds: Sequence[float | None],
    rules: EventRules,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Event scores over `tests` by name of the score, and why some are undefined. `column`: of the
    probability; `thresholds`: of each test. Nothing without a threshold or a probability.
    """
    sessions: list[SessionEvents] = []
    for test, threshold in zip(tests, thresholds, strict=True):
        windows, bouts, seconds = test.windows, test.bouts, test.window_seconds
        if threshold is None or bouts is None or seconds is None:
            return {}, {}
        if not np.isfinite(windows[column]).all():
            return {}, {}
        sessions += [
            _session(windows, name, bouts, seconds, column, threshold, rules)
            for name in sorted({*windows["session"].tolist(), *(bout[0] for bout in bouts)})
        ]
    loose, strict = event_scores(sessions), event_scores(sessions, rules.iou)
    values, reasons = _named(loose, MATCHED | UNMATCHED, "")
    more, more_reasons = _named(strict, MATCHED, STRICTER)
    return values | more, reasons | more_reasons


def _named(
    scores: EventScores, names: dict[str, str], suffix: str
) -> tuple[dict[str, float | None], dict[str, str]]:
    values = {name + suffix: getattr(scores, field) for field, name in names.items()}
    reasons = {
        names[field] + suffix: why for field, why in scores.undefined.items() if field in names
    }
    return values, reasons


def _session(
    windows: Predictions,
    name: str,
    bouts: Sequence[KeptBout],
    window_seconds: float,
    column: str,
    threshold: float,
    rules: EventRules,
) -> SessionEvents:
    mine = windows["session"] == name
    found = episodes(
        windows["start_s"][mine],
        windows[column][mine],
        window_seconds,
        threshold,
        rules.merge_gap_seconds,
        rules.min_episode_seconds,
    )
    return SessionEvents(
        bouts=[(start, end) for session, start, end, _ in bouts if session == name],
        episodes=[episode.interval for episode in found],
        recorded=recorded(windows["start_s"][mine], window_seconds),
    )
