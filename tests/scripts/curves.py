"""The curves of a run, as TensorBoard itself reads them, against what its results record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def check_curves(project: Path) -> int:
    """Assert that the latest run with curves has all epochs of every result that is published.
    Returns how many results there are.
    """
    place = max(project.glob("runs/*/tensorboard"))
    told = {}
    for record in project.glob("base_models/*_metadata.json"):
        base = json.loads(record.read_text())
        told[base["base_model_hash"]] = base["losses"]
    for path in project.glob("experiments/*/*/losses.json"):
        told[str(path.parent.relative_to(project / "experiments"))] = json.loads(path.read_text())
    for job, losses in told.items():
        for tag, values in (("loss/train", losses["train"]), ("loss/val", losses["val"])):
            known = [value for value in values if value is not None]
            found = curve(place / job, tag)
            first = len(losses["train"]) - len(known) + (losses["train"][0] is not None)
            assert [step for step, _ in found] == [first + n for n in range(len(known))], (job, tag)
            assert [value for _, value in found] == pytest.approx(known), (job, tag)
    return len(told)
