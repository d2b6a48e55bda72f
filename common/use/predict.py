"""Predictions of finished models on a recording: windows, episodes, and scores where it is
labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.artifacts import to_csv
from common.cli import number_of
from common.data.bouts import annotated_bouts
from common.data.gaps import gaps_of, shown_length, together
from common.data.sessions import Part, Session
from common.data.windowing import Labelling, MinOverlap, PlacedWindows, label_windows, window_starts
from common.errors import InputError
from common.training import metrics
from common.use.episodes import Episode, episodes, recorded
from common.use.events import EVENT_IOU, SessionEvents, event_scores
from common.use.model import FinishedModel
from common.use.reading import ReadSession

Floats = NDArray[np.float32]
TUNED = "tuned"


@dataclass(frozen=True)
class Rules:
    """From probabilities to episodes (see `episodes.episodes`). threshold: a number, or 'tuned'."""

    threshold: float | str = 0.5
    merge_gap_seconds: float = 0.0
    min_episode_seconds: float = 0.0
    stride_seconds: float | None = None

    def threshold_of(self, model: FinishedModel) -> float:
        """Raises InputError where the model has no tuned threshold."""
        if self.threshold != TUNED:
            return float(self.threshold)
        if model.threshold_tuned is None:
            raise InputError(
                f"--threshold tuned: {model.name} has no tuned threshold (a base model, or a"
                " fine-tune without validation windows of both classes): give a number"
            )
        return model.threshold_tuned


@dataclass(frozen=True)
class Prediction:
    """One model on one session. starts_s: on the recording's own clock. scored: the episodes of
    the windows whose label is known, which alone are held against the annotations.
    """

    model: FinishedModel
    threshold: float
    starts_s: NDArray[np.float64]
    probabilities: Floats
    episodes: list[Episode]
    scored: list[Episode]


@dataclass(frozen=True)
class Predicted:
    """All models on one session."""

    session: Session
    labelled: bool
    notes: tuple[str, ...]
    predictions: list[Prediction]
    labels: NDArray[np.int64]  # of the windows; -1: not known


def agree(models: Sequence[FinishedModel], rules: Rules) -> dict[str, Any]:
    """What recordings must be for all of `models`, and how windows are made of them.

    Raises:
        InputError: a model does not know, or two need different recordings or windows.
    """
    for model in models:
        if model.input is None:
            raise InputError(
                f"{model.name}: its data set had no dataset.json, so it is not known which"
                " channels, in which order and at which rate, it was trained on"
            )
    first = dict(models[0].input or {})
    names = ["channels", "sampling_rate_hz", "window_size", "labelling"]
    names += ["stride_seconds"] if rules.stride_seconds is None else []
    for model in models[1:]:
        for name in names:
            mine, others = (model.input or {}).get(name), first.get(name)
            if mine != others:
                way = ", or give --stride_seconds" if name == "stride_seconds" else ""
                raise InputError(
                    f"{model.name} needs {name} {mine}, {models[0].name} needs {others}: predict"
                    f" with one at a time{way}"
                )
    return first


def predict(
    models: Sequence[FinishedModel], read: ReadSession, needed: dict[str, Any], rules: Rules
) -> Predicted:
    """Every window that lies in a stretch without a gap, in every model."""
    session, how = read.session, _windows(needed, rules)
    starts = window_starts(Part(session, 0, len(session.values)), how.length, how.stride)
    windows = PlacedWindows(
        [(session, starts)] if len(starts) else [],
        np.zeros(len(starts), np.int64),
        how.length,
        len(needed["channels"]),
    )
    starts_s = np.array(windows.starts_s(), np.float64)
    labels = (
        label_windows(session, starts, how) if read.labelled else np.full(len(starts), -1, np.int64)
    )
    notes = read.notes
    if not len(starts):
        notes += (f"too short: no stretch of {how.length / session.rate:g} s without a gap",)
    if gaps := len(gaps_of(session)):
        length = shown_length(together(session)) + (" together" if gaps > 1 else "")
        notes += (f"{number_of(gaps, 'gap')} ({length}), in which nothing is predicted",)
    found = []
    for model in models:
        threshold, p = rules.threshold_of(model), model.probabilities(windows.blocks())
        made, scored = (
            episodes(
                starts_s[rows],
                p[rows],
                how.length / session.rate,
                threshold,
                rules.merge_gap_seconds,
                rules.min_episode_seconds,
            )
            for rows in (slice(None), labels >= 0)
        )
        found.append(Prediction(model, threshold, starts_s, p, made, scored))
    return Predicted(session, read.labelled, notes, found, labels)


def _windows(needed: dict[str, Any], rules: Rules) -> Labelling:
    labelling = needed.get("labelling") or {}
    overlap = labelling.get("min_overlap", "any")
    share: MinOverlap = float(overlap) if isinstance(overlap, (int, float)) else "any"
    rate = needed["sampling_rate_hz"]
    stride = rules.stride_seconds or needed["stride_seconds"]
    samples = round(stride * rate)
    if samples < 1:
        raise InputError(f"--stride_seconds: {stride:g} s is less than a sample at {rate:g} Hz")
    return Labelling(needed["window_size"], samples, share, bool(labelling.get("exclude_partial")))


# -- what is written


def windows_csv(predicted: Predicted) -> bytes:
    """Start second and probability of each window; one column a model."""
    several = len(predicted.predictions) > 1
    names = [
        f"probability_{number}" if several else "probability"
        for number in range(1, len(predicted.predictions) + 1)
    ]
    columns = [[f"{value:.9g}" for value in one.probabilities] for one in predicted.predictions]
    starts = predicted.predictions[0].starts_s
    rows = [[_seconds(start), *values] for start, *values in zip(starts, *columns, strict=True)]
    return to_csv(["start_s", *names], rows)


def episodes_csv(predicted: Predicted) -> bytes:
    """Start, end and mean probability of each episode; of several models, which one's."""
    several = len(predicted.predictions) > 1
    rows = []
    for number, one in enumerate(predicted.predictions, 1):
        for found in one.episodes:
            row = [_seconds(found.start_s), _seconds(found.end_s), f"{found.mean_probability:.6g}"]
            rows.append([str(number), *row] if several else row)
    header = ["start_s", "end_s", "mean_probability"]
    return to_csv(["model", *header] if several else header, rows)


def _seconds(value: float) -> str:
    return str(round(float(value), 6))


def summary(place: str, predicted: Predicted) -> dict[str, Any]:
    """One session in numbers."""
    session = predicted.session
    return {
        "session": place,
        "windows": len(predicted.labels),
        "recorded_hours": session.recorded / session.rate / 3600,
        "sampled_at_hz": session.sampled_at,
        "labelled": predicted.labelled,
        "notes": list(predicted.notes),
        "models": [
            {
                "threshold": one.threshold,
                "episodes": len(one.episodes),
                "positive_windows": int(_called(one).sum()),
            }
            for one in predicted.predictions
        ],
    }


def _called(one: Prediction) -> NDArray[np.bool_]:
    called: NDArray[np.bool_] = one.probabilities >= one.threshold
    return called


def scores(sessions: Sequence[Predicted], model: int) -> dict[str, Any] | None:
    """Scores of the model with this number over all labelled sessions; None where there are none.
    Event scores are made against the annotations, window scores against window labels.
    """
    labelled = [one for one in sessions if one.labelled]
    if not labelled:
        return None
    threshold = labelled[0].predictions[model].threshold
    known = [one.labels >= 0 for one in labelled]
    y = np.concatenate([one.labels[rows] for one, rows in zip(labelled, known, strict=True)])
    p = np.concatenate(
        [
            one.predictions[model].probabilities[rows]
            for one, rows in zip(labelled, known, strict=True)
        ]
    )
    values, undefined = metrics.final_scores(y, p, threshold=threshold)
    events = [_events(one, one.predictions[model]) for one in labelled]
    return {
        "threshold": threshold,
        "windows": len(y),
        "positives": int(y.sum()),
        "window_scores": {name: value for name, value in values.items() if name != "loss"},
        "undefined": {name: why for name, why in undefined.items() if name != "loss"},
        "event_scores_any_overlap": asdict(event_scores(events)),
        f"event_scores_iou_{EVENT_IOU:g}": asdict(event_scores(events, EVENT_IOU)),
    }


def _events(predicted: Predicted, one: Prediction) -> SessionEvents:
    """As the report makes them of a test split: annotations as given, windows of known label."""
    session = predicted.session
    window = one.model.options.window_size / session.rate
    whole = {"": [Part(session, 0, len(session.values))]}
    return SessionEvents(
        [(start, end) for _, start, end, _ in annotated_bouts([session], whole)],
        [found.interval for found in one.scored],
        recorded(one.starts_s[predicted.labels >= 0], window),
    )
