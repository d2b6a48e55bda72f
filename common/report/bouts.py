"""Per-bout recall and false alarms an hour, from the windows' times in predictions.csv."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.windowing import covered_hours

SAME = 1e-6  # seconds; two windows this close in time do not overlap, they touch
Windows = dict[str, NDArray[Any]]


def read_windows(text: str) -> dict[str, Windows]:
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
    arrays: Windows = {
        name: np.array([cell or "nan" for cell in columns[name]], dtype=float)
        for name in ("start_s", "label", "p_base", "p_finetuned")
    }
    arrays["session"] = np.array(columns["session"], dtype=str)
    splits = np.array(columns["split"], dtype=str)
    return {
        split: {name: values[splits == split] for name, values in arrays.items()}
        for split in ("val", "test")
    }


def window_spacing(starts: NDArray[Any], sessions: NDArray[Any]) -> float:
    """The usual distance in seconds between the starts of neighbouring windows of a session; NaN
    where there are no neighbours.
    """
    gaps = np.diff(starts)[sessions[1:] == sessions[:-1]]
    return float(np.median(gaps)) if len(gaps) else float("nan")


def bout_scores(
    windows: Windows, thresholds: dict[str, tuple[str, float | None]], window_seconds: float | None
) -> dict[str, float | None]:
    """Scores of one participant's split.

    A bout is a run of labelled windows of one session in which each begins no later than the one
    before ends; it is found when one of its windows is called positive. A false alarm is a run of
    windows called positive of which none is labelled. Hours are recorded time, overlaps counted
    once.

    Args:
        windows: arrays session, start_s (seconds), label and the probabilities, `[windows]` each.
        thresholds: by suffix of the score's name, the column of the probability and the threshold.
        window_seconds: length of a window; None: taken to be the distance between windows.

    Returns:
        bouts, hours, and bout_recall{suffix}, false_alarms_per_hour{suffix} (None where undefined),
        or nothing where there are no times.
    """
    if not len(windows["start_s"]) or not np.isfinite(windows["start_s"]).all():
        return {}
    order = np.lexsort((windows["start_s"], windows["session"]))
    sessions, starts, labels = (
        windows["session"][order],
        windows["start_s"][order],
        windows["label"][order] == 1,
    )
    spacing = window_spacing(starts, sessions)
    length = window_seconds or spacing
    if not np.isfinite(length):
        return {}
    reach = max(length, spacing) if np.isfinite(spacing) else length
    joined = (sessions[1:] == sessions[:-1]) & (np.diff(starts) <= reach + SAME)
    bouts, hours = (
        _runs(labels, joined),
        covered_hours(zip(sessions.tolist(), starts.tolist(), strict=True), length),
    )
    scores: dict[str, float | None] = {"bouts": float(bouts.max(initial=0)), "hours": hours}
    for suffix, (column, threshold) in thresholds.items():
        p = windows[column][order]
        if threshold is not None and np.isfinite(p).all():
            found, false = _found_and_false(p >= threshold, labels, bouts, joined)
            scores[f"bout_recall{suffix}"] = found / int(bouts.max()) if labels.any() else None
            scores[f"false_alarms_per_hour{suffix}"] = false / hours if hours > 0 else None
    return scores


def _found_and_false(
    called: NDArray[Any], labels: NDArray[Any], bouts: NDArray[Any], joined: NDArray[Any]
) -> tuple[int, int]:
    alarms = _runs(called, joined)
    right = called & labels
    return len(set(bouts[right].tolist())), int(alarms.max(initial=0)) - len(
        set(alarms[right].tolist())
    )


def _runs(flags: NDArray[Any], joined: NDArray[Any]) -> NDArray[Any]:
    """Number the runs of True from 1; 0 where False. `joined[i]`: window i + 1 goes on from window
    i.
    """
    begins = flags.copy()
    begins[1:] &= ~(flags[:-1] & joined)
    return np.where(flags, np.cumsum(begins), 0)
