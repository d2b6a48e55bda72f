"""Where predict.py writes: a folder of its own, whose summary.json says what is in it. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.cli import few
from common.errors import Conflict
from common.paths import CODE_ROOT, Paths

SUMMARY = "summary.json"
OF_THE_CODE = ("common", "docs", "examples", "benchmarks", "tests", "env")


class ModelEntry(BaseModel):
    """A model that summary.json names."""

    name: str
    weights_sha256: str


class SessionEntry(BaseModel):
    """What summary.json says of a session; `session` is its folder."""

    model_config = ConfigDict(extra="allow")
    session: str


class PredictedBefore(BaseModel):
    """summary.json, as far as the next run reads it."""

    models: list[ModelEntry] = Field(min_length=1)
    sessions: list[SessionEntry]
    earlier_sessions: list[SessionEntry] = []


def refuse_place(out: Path, sessions: Path, paths: Paths) -> None:
    """Refuse a folder in which predictions would be taken for something else.

    Raises:
        Conflict: `out` is one of the project's own folders or lies in one; it holds the recordings,
            is their folder or lies in it; or something else than predict.py wrote what is there.
    """
    place, recordings = out.resolve(), sessions.resolve()
    for own in _own_folders(paths):
        if place.is_relative_to(own):
            raise Conflict(
                f"--out {out}: {own.name}/ is the project's own; give a folder beside it"
            )
    if place.is_relative_to(recordings) or recordings.is_relative_to(place):
        raise Conflict(
            f"--out {out}: predictions among the recordings of --sessions {sessions} would be read"
            " as recordings the next time; give a folder beside them"
        )
    if out.exists() and not out.is_dir():
        raise Conflict(f"--out {out}: is a file, not a folder; give another --out")
    inside = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if inside and _summary(out) is None:
        raise Conflict(
            f"--out {out}: holds {few(inside)}, which predict.py did not put there (no {SUMMARY} of"
            " its own); give another --out"
        )


def _own_folders(paths: Paths) -> list[Path]:
    results = [paths.base_models, paths.experiments, paths.superseded, paths.runs, paths.incoming]
    files = [paths.orchestrator_lock, paths.sha256_cache, paths.checkpoint("any")]
    results += [file.parent for file in files]
    return [folder.resolve() for folder in [*results, *(CODE_ROOT / name for name in OF_THE_CODE)]]


def predicted_before(out: Path, models: Sequence[Any]) -> list[dict[str, Any]]:
    """What summary.json says of each session that is in `out` already.

    Args:
        models: with `name` and `weights_sha256`, in the order of the columns of windows.csv.

    Raises:
        Conflict: other models predicted them.
    """
    summary = _summary(out)
    if summary is None:
        return []
    before, now = _weights(summary.models), _weights(models)
    if before != now:
        raise Conflict(
            f"--out {out}: holds predictions of {_named(summary.models)}, not of {_named(models)};"
            " give another --out, or remove that folder"
        )
    entries = [*summary.earlier_sessions, *summary.sessions]
    return [entry.model_dump() for entry in entries if (out / entry.session).is_dir()]


def without(entries: Sequence[dict[str, Any]], sessions: Collection[str]) -> list[dict[str, Any]]:
    """The entries of other sessions than these."""
    return [entry for entry in entries if entry["session"] not in sessions]


def _weights(models: Sequence[Any]) -> list[str]:
    return [model.weights_sha256 for model in models]


def _named(models: Sequence[Any]) -> str:
    return few(f"{model.name} (weights {model.weights_sha256[:8]})" for model in models)


def _summary(out: Path) -> PredictedBefore | None:
    """What predict.py wrote there; None where there is nothing of that form."""
    try:
        return PredictedBefore.model_validate_json((out / SUMMARY).read_bytes())
    except (OSError, ValueError):
        return None
