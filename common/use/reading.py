"""New recordings, read as prepare_data.py reads them, for a model that says what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.bouts import BoutTable, composed, read_bouts
from common.data.columns import read_columns
from common.data.recordings import Layout, list_recordings, on_grid
from common.data.sessions import Session, natural
from common.data.tables import is_table, open_table, table_stem
from common.errors import InputError

SLOWEST = 0.5  # of the model's rate: a slower recording lacks most of what the model looks at
SLOW = 0.95


@dataclass(frozen=True)
class Recording:
    """A file to predict. `person` is empty where no folder names one."""

    path: Path
    person: str
    bouts: BoutTable | None

    @property
    def name(self) -> str:
        return composed(table_stem(self.path))

    @property
    def place(self) -> Path:
        """Where its predictions go, below the output folder."""
        return Path(self.person) / self.name


@dataclass(frozen=True)
class ReadSession:
    """A recording on the model's grid. `labelled`: it has a label column or a bouts.csv."""

    session: Session
    labelled: bool
    notes: tuple[str, ...]


def find(sessions: Path, time_unit: str, date_format: str | None) -> list[Recording]:
    """The recordings of a file, of a folder of files, or of a folder of participants.

    Raises:
        InputError: there are none, or one's name cannot be that of its predictions' folder.
    """
    if sessions.is_file():
        return _alone([sessions])
    if sessions.is_dir():
        inside = [path for path in sessions.iterdir() if not path.name.startswith(".")]
        files = [path for path in inside if path.is_file() and is_table(path)]
        if not any(path.is_dir() for path in inside) and files:
            return _alone(files)
    if not sessions.exists():
        raise InputError(
            f"{sessions}: no such file or folder; --sessions names a recording, a folder of them or"
            " one with a folder per participant"
        )
    people = list_recordings(sessions)
    names = {person: [table_stem(path) for path in paths] for person, paths in people.items()}
    bouts = read_bouts(sessions, names, time_unit, date_format)
    return [Recording(path, person, bouts) for person, paths in people.items() for path in paths]


def _alone(files: Sequence[Path]) -> list[Recording]:
    """Recordings without a participant, in natural order."""
    names: dict[str, Path] = {}
    for path in sorted(files):
        if not is_table(path):
            raise InputError(f"{path}: a recording is a .csv or .csv.gz file")
        name = composed(table_stem(path))
        if name in ("", ".", "..") or not name.isprintable():
            raise InputError(
                f"{path}: {name!r} cannot name the folder of its predictions; rename it"
            )
        if (twin := names.setdefault(name, path)) is not path:
            raise InputError(f"{path}: is the same session as {twin.name} by its name; rename one")
    return [Recording(names[name], "", None) for name in sorted(names, key=natural)]


def read_recording(
    recording: Recording, layout: Layout, model_input: Mapping[str, Any]
) -> ReadSession:
    """One recording on the grid of `model_input`; `layout` takes channels and rate from there.

    Raises:
        InputError: it is not what the layout says, or not what the model needs.
    """
    path = recording.path
    known = (layout.time_column, layout.label_column, *model_input["channels"])
    table = open_table(path, known=known, header_line=layout.header_line, names=layout.columns)
    _check_channels(path, table.columns, model_input["channels"])
    raw = read_columns(table, layout.column_rules, layout.channels)
    session, clock, _ = on_grid(path, raw, layout, recording.person, recording.bouts)
    labelled = raw.labels is not None or recording.bouts is not None
    mended = [f"{number} {kind.replace('_', ' ')} mended" for kind, number in clock.mended.items()]
    return ReadSession(session, labelled, (*raw.notes, *mended, *_check_rate(path, session)))


def _check_channels(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise InputError(
            f"{path}: the model needs the channels {', '.join(needed)}; {', '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} not among its columns"
            f" ({', '.join(name for name in columns if name)}); rename the columns"
        )


def _check_rate(path: Path, session: Session) -> list[str]:
    if session.sampled_at < SLOWEST * session.rate:
        raise InputError(
            f"{path}: sampled at {session.sampled_at:.3g} Hz, but the model learnt from"
            f" {session.rate:g} Hz: too slow to be understood"
        )
    if session.sampled_at < SLOW * session.rate:
        return [f"sampled at {session.sampled_at:.3g} Hz, the model's rate is {session.rate:g} Hz"]
    return []
