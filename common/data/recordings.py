"""The user's recordings: {folder}/{participant}/{session}.csv with a label column, or bouts.csv
beside the participants.

Everything is checked here, so that what leaves is a session on the grid or one line of what is
wrong where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.cli import few
from common.data.bouts import (
    BOUTS,
    POSITIVE,
    UNKNOWN,
    BoutTable,
    bouts_inside,
    composed,
    label_runs,
    missing_column,
    read_bouts,
)
from common.data.clock import Clock, ClockRules, read_clock
from common.data.columns import ColumnRules, RawRecording, read_columns
from common.data.manifest import file_sha256
from common.data.preparation import Preparation
from common.data.proof import Fingerprint, fingerprint
from common.data.resampling import make_session
from common.data.sessions import NO_RANGES, Session, natural
from common.data.tables import SEPARATOR_NAMES, Table, is_table, open_table, table_stem
from common.errors import InputError
from common.options import safe_name


@dataclass(frozen=True)
class Layout:
    """How the recordings are written, and the grid they are put on.

    Attributes:
        label_required: the label column was named, so bouts.csv does not replace it.
        columns: names of the columns of files without a header line.
        header_line: the line with the names of the columns (None: the first one).
        date_format: of the time column, as strptime takes it (None: numbers or ISO 8601).
        repair_clock: mend stamps that are refused otherwise.
        of_model: channels and rate are a model's, not options.
    """

    time_column: str
    time_unit: str
    label_column: str
    channels: tuple[str, ...] | None
    rate: float
    max_gap_s: float | None
    label_required: bool = False
    columns: tuple[str, ...] | None = None
    header_line: int | None = None
    date_format: str | None = None
    repair_clock: bool = False
    of_model: bool = False

    @classmethod
    def of(cls, options: Preparation) -> Layout:
        """As the options of prepare_data.py say."""
        return cls(
            time_column=options.time_column,
            time_unit=options.time_unit,
            label_column=options.label_column,
            channels=tuple(options.channels) if options.channels else None,
            rate=options.sampling_rate,
            max_gap_s=options.max_gap_seconds,
            label_required="label_column" in options.model_fields_set,
            columns=tuple(options.columns) if options.columns else None,
            header_line=options.header_line,
            date_format=options.date_format,
            repair_clock=options.repair_clock,
        )

    @property
    def clock_rules(self) -> ClockRules:
        """What a clock must fit."""
        return ClockRules(
            self.time_column,
            self.time_unit,
            self.rate,
            self.max_gap_s,
            self.repair_clock,
            self.of_model,
        )

    @property
    def column_rules(self) -> ColumnRules:
        """Which columns mean what."""
        return ColumnRules(
            self.time_column, self.time_unit, self.label_column, self.channels, self.date_format
        )


@dataclass(frozen=True)
class Reading:
    """One recording as read: the session, what it was compared by, and what was done to its clock.

    Attributes:
        fingerprint: what tells whether another recording holds the same samples.
        mended: mended stamps, rows or packets of its clock, by kind.
    """

    session: Session
    fingerprint: Fingerprint
    mended: dict[str, int] = field(default_factory=dict)


class Recordings:
    """A folder of recordings: listed and its bouts checked at once, each person's sessions read one
    after the other when asked for.

    Attributes:
        files: recordings by participant, both in natural order.
        channels: channel columns, once the first session has been read.
        notes: choices that the files forced, and what was skipped.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self._noted: set[str] = set()
        self.files = list_recordings(folder, self.notes)
        self.channels = layout.channels
        self._layout = layout
        names = {person: [table_stem(p) for p in paths] for person, paths in self.files.items()}
        self._bouts = read_bouts(folder, names, layout.time_unit, layout.date_format)

    @property
    def participants(self) -> list[str]:
        """Everyone, in natural order."""
        return list(self.files)

    @property
    def labels_from(self) -> str:
        """Where labels come from: bouts.csv or the label column's name."""
        return BOUTS if self._bouts is not None else f"column {self._layout.label_column}"

    def sha256(self) -> str:
        """One digest over the names and bytes of all files that are read."""
        paths = [path for files in self.files.values() for path in files] + (
            [self.folder / BOUTS] if self._bouts is not None else []
        )
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{file_sha256(path)}  {path.relative_to(self.folder)}\n".encode())
        return digest.hexdigest()

    def sessions(self, participant: str) -> Iterator[Reading]:
        """One person's sessions, on the grid.

        Raises:
            InputError: a file is not what the layout says.
        """
        for path in self.files[participant]:
            yield self._read(participant, path)

    def _read(self, participant: str, path: Path) -> Reading:
        layout = self._layout
        table = open_table(
            path,
            known=(layout.time_column, layout.label_column),
            header_line=layout.header_line,
            names=layout.columns,
        )
        self._note_form(table)
        self._check_labelling(table)
        raw = read_columns(table, layout.column_rules, self.channels)
        self.channels = self._same_channels(path, raw.channels)
        self._note_once(path, raw.notes)
        session, clock, values = on_grid(path, raw, layout, participant, self._bouts)
        print_ = fingerprint(participant, session.name, path, file_sha256(path), clock, values)
        return Reading(session, print_, clock.mended)

    def _check_labelling(self, table: Table) -> None:
        layout, path, bouts = self._layout, table.path, self.folder / BOUTS
        labelled = layout.label_column in table.columns
        if self._bouts is not None and labelled:
            raise InputError(
                f"{path}: column {layout.label_column} and {bouts} both label it: remove one"
            )
        if not labelled and self._bouts is None:
            advice = f"and there is no {bouts}: name it with --label_column or add the file"
            raise missing_column(path, layout.label_column, table.columns, advice)
        if not labelled and layout.label_required:
            advice = f"correct --label_column, or leave it out to label by {bouts}"
            raise missing_column(path, layout.label_column, table.columns, advice)

    def _same_channels(self, path: Path, found: tuple[str, ...]) -> tuple[str, ...]:
        if self.channels is None or self._layout.channels is not None:
            return found
        if set(found) != set(self.channels):
            odd = sorted(set(found) ^ set(self.channels))[0]
            have = "has" if odd in found else "lacks"
            raise InputError(
                f"{path}: {have} the column {odd}, unlike the sessions before it; make them alike"
                " or choose with --channels"
            )
        return self.channels

    def _note_form(self, table: Table) -> None:
        """Note separator, decimal mark and encoding where they are not the usual ones."""
        said = []
        if table.separator != ",":
            said.append(f"columns separated by {SEPARATOR_NAMES[table.separator]}")
        if table.decimal != ".":
            said.append("decimal comma")
        if table.encoding == "utf-16":
            said.append("UTF-16")
        if said:
            self._note_once(table.path, [f"read as: {', '.join(said)}"])

    def _note_once(self, path: Path, notes: Iterable[str]) -> None:
        """Note what holds for many files at the first of them."""
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                self.notes.append(f"{note} (first in {path})")


def on_grid(
    path: Path, raw: RawRecording, layout: Layout, person: str, bouts: BoutTable | None
) -> tuple[Session, Clock, NDArray[np.float32]]:
    """The columns of a recording as a session, its clock, and the values in the clock's order.

    Labels come from the label column where there is one, else from `bouts`, if there are any.

    Raises:
        InputError: the clock, or a bout, does not fit.
    """
    channels = len(raw.channels)
    clock = read_clock(str(path), raw.stamps, layout.clock_rules, raw.doubled, channels)
    values = raw.values if clock.rows is None else raw.values[clock.rows]
    positive = unknown = NO_RANGES
    if raw.labels is not None:
        labels = raw.labels if clock.rows is None else raw.labels[clock.rows]
        positive, unknown = (label_runs(labels, clock.times, v) for v in (POSITIVE, UNKNOWN))
    elif bouts is not None:
        rows = bouts.rows.get((person, table_stem(path)), [])
        positive, unknown = bouts_inside(str(path), bouts, rows, clock, raw.stamps.form)
    session = make_session(
        composed(table_stem(path)),
        clock.start_s,
        clock.times,
        values,
        positive,
        layout.rate,
        layout.max_gap_s,
        unknown_s=unknown,
        joints=clock.joints,
    )
    return session, clock, values


def list_recordings(folder: Path, notes: list[str] | None = None) -> dict[str, list[Path]]:
    """Recordings by participant. Hidden files are not looked at; what is skipped is added to
    `notes`.

    Raises:
        InputError: no folder, no participant, one without sessions, two sessions with one name,
        or a name that cannot be part of a file name.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; --sessions names the folder that holds one folder per"
            " participant"
        )
    inside = sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: natural(path.name),
    )
    people = [path for path in inside if path.is_dir()]
    if not people:
        raise InputError(
            f"{folder}: no participants in it; expected {folder}/PARTICIPANT/SESSION.csv"
        )
    skipped = [path for path in inside if not path.is_dir() and path.name != BOUTS]
    files = {composed(person.name): _recordings_of(person, skipped) for person in people}
    if len(files) < len(people):
        raise InputError(f"{folder}: two participants' names differ only in how accents are stored")
    if notes is not None and skipped:
        shown = few((str(path.relative_to(folder)) for path in skipped), 5)
        notes.append(f"skipped, since not PARTICIPANT/SESSION.csv or .csv.gz: {shown}")
    return files


def _recordings_of(person: Path, skipped: list[Path]) -> list[Path]:
    inside = [path for path in person.iterdir() if not path.name.startswith(".")]
    found = [path for path in inside if path.is_file() and is_table(path)]
    skipped += sorted(set(inside) - set(found))
    if not found:
        raise InputError(
            f"{person}: no .csv in it; add this participant's sessions or remove the folder"
        )
    for path, name in [(person, person.name), *((path, table_stem(path)) for path in found)]:
        try:
            safe_name(name)
        except ValueError as error:
            raise InputError(f"{path}: {error}; rename it") from None
    names: dict[str, Path] = {}
    for path in sorted(found):
        twin = names.setdefault(composed(table_stem(path)), path)
        if twin is not path:
            raise InputError(f"{path}: is the same session as {twin.name} by its name; rename one")
    return sorted(found, key=lambda path: natural(composed(table_stem(path))))
