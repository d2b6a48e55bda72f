"""Labels of recordings: a label column or bouts.csv, and the annotations that a data set keeps."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.clock import Clock, StampReader, Stamps, shown_cell, shown_seconds, shown_time
from common.data.manifest import KeptBout
from common.data.sessions import Floats, Part, Session, recorded_within, true_ranges
from common.data.tables import SUFFIXES, Table, open_table
from common.errors import InputError, nearest

BOUTS = "bouts.csv"
BOUT_COLUMNS = ("participant", "session", "start", "end")
LABEL_COLUMN = "label"  # of bouts.csv, optional
POSITIVE, UNKNOWN = 1, -1
LABELS = {"": POSITIVE, "1": POSITIVE, "-1": UNKNOWN, "exclude": UNKNOWN}
# Clocks differ by time zones, most often: whole quarters of an hour, up to 14 hours
ZONE_STEP_S, ZONE_STEPS = 900.0, 56


@dataclass(frozen=True)
class Bout:
    """A row of bouts.csv, in seconds on its session's clock; `label` is POSITIVE or UNKNOWN."""

    row: int
    start_s: float
    end_s: float
    label: int


@dataclass(frozen=True)
class BoutTable:
    """bouts.csv: rows by participant and session. `form` of its times is that of `Stamps`."""

    path: Path
    form: str
    rows: Mapping[tuple[str, str], Sequence[Bout]]


def composed(name: str) -> str:
    """A name in one of the two forms in which accented letters are written (NFC)."""
    return unicodedata.normalize("NFC", name)


# -- bouts.csv


def read_bouts(
    folder: Path,
    sessions: Mapping[str, Sequence[str]],
    time_unit: str,
    date_format: str | None = None,
) -> BoutTable | None:
    """The bouts of a folder of recordings, or None where there is no bouts.csv.

    Args:
        sessions: names of sessions by participant.

    Raises:
        InputError: a column is missing, a bout names an unknown participant, or it ends before it
            starts.
    """
    path = folder / BOUTS
    if not path.exists():
        return None
    table = open_table(path, known=BOUT_COLUMNS)
    for name in BOUT_COLUMNS:
        if name not in table.columns:
            raise missing_column(
                path, name, table.columns, f"a {BOUTS} has the columns {', '.join(BOUT_COLUMNS)}"
            )
    cells = table.text()
    starts, ends = (
        _times(table, cells[name], name, time_unit, date_format) for name in ("start", "end")
    )
    labels = cells.get(LABEL_COLUMN, [""] * len(cells["start"]))
    rows: dict[tuple[str, str], list[Bout]] = {}
    for place, (person, session) in enumerate(
        zip(cells["participant"], cells["session"], strict=True)
    ):
        bout = _bout(path, place, starts, ends, labels[place])
        rows.setdefault(_named(path, bout.row, person, session, sessions), []).append(bout)
    return BoutTable(path, starts.form, rows)


def _times(
    table: Table, cells: Sequence[str], column: str, unit: str, date_format: str | None
) -> Stamps:
    """Start or end of each bout."""
    reader = StampReader(str(table.path), column, unit, date_format)
    series = pd.Series(list(cells), dtype=object)
    if table.decimal == ",":
        series = series.str.replace(",", ".", regex=False)
    reader.add(series)
    return reader.stamps()


def _bout(path: Path, place: int, starts: Stamps, ends: Stamps, label: str) -> Bout:
    if starts.form != ends.form:
        raise InputError(f"{path}: start is a {starts.form}, end a {ends.form}; write them alike")
    if label.lower() not in LABELS:
        raise InputError(
            f"{path}: {LABEL_COLUMN} in row {place + 1} is {label!r}; 1 is a bout, -1 or exclude a"
            " stretch whose label is not known"
        )
    start, end = (float(s.ticks[place] / s.per_second) for s in (starts, ends))
    if not start < end:
        raise InputError(
            f"{path}: row {place + 1}: the bout ends at {shown_time(end, ends.form)},"
            f" {'before' if end < start else 'when'} it starts"
            f" ({shown_time(start, starts.form)}); correct it"
        )
    return Bout(place + 1, start, end, LABELS[label.lower()])


def _named(
    path: Path, row: int, person: str, session: str, sessions: Mapping[str, Sequence[str]]
) -> tuple[str, str]:
    """Participant and session under the names of their folder and file."""
    people = {composed(name): name for name in sessions}
    if composed(person) not in people:
        raise InputError(
            f"{path}: row {row}: unknown participant {person!r}{nearest(person, sessions)}; correct"
            " it or add the folder"
        )
    person = people[composed(person)]
    known = {composed(name): name for name in sessions[person]}
    name = composed(session)
    for suffix in SUFFIXES:
        if name not in known and name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    if name not in known:
        raise InputError(
            f"{path}: row {row}: {person} has no session {session!r}"
            f"{nearest(name, sessions[person])}; correct it or add {name}.csv"
        )
    return person, known[name]


def bouts_inside(
    where: str, table: BoutTable, bouts: Sequence[Bout], clock: Clock, form: str
) -> tuple[Floats, Floats]:
    """Bouts, and stretches of unknown label, in seconds since the session's first sample.

    Raises:
        InputError: one lies wholly outside the recording, which means another clock or unit, or
            the clock was set back so that its time is there twice.
    """
    if bouts and table.form != form:
        raise InputError(
            f"{table.path}: row {bouts[0].row}: start is a {table.form}, but the time column of"
            f" {where} holds a {form}; use one clock for both"
        )
    placed = [_on_mended_clock(table, bout, clock) for bout in bouts]
    last = float(clock.times[-1])
    for bout, (start, end) in zip(bouts, placed, strict=True):
        if end <= 0 or start > last:
            raise InputError(
                f"{table.path}: row {bout.row}: the bout from {shown_time(bout.start_s, form)} to"
                f" {shown_time(bout.end_s, form)} lies outside the recording {where}"
                f" ({shown_time(clock.start_s, form)} to"
                f" {shown_time(clock.start_s + last, form)})"
                f"{_hint(bouts, placed, clock)};"
                f" {BOUTS} must use the same clock and unit as the time column"
            )
    labels = np.array([bout.label for bout in bouts], int)
    ranges = np.array(placed, np.float64).reshape(-1, 2)
    return ranges[labels == POSITIVE], ranges[labels == UNKNOWN]


def _on_mended_clock(table: BoutTable, bout: Bout, clock: Clock) -> tuple[float, float]:
    """A bout in seconds since the first sample, where the clock may have been set back in between.

    What lies after the last time before it was set back was written after that.
    """
    shift = 0.0
    for back in clock.set_backs:
        if bout.start_s > back.before_s:
            shift += back.seconds_added
        elif bout.end_s > back.after_s:
            raise InputError(
                f"{table.path}: row {bout.row}: the clock of this recording shows"
                f" {shown_seconds(back.after_s)} to {shown_seconds(back.before_s)} s twice, since"
                " it was set back: it is not known where the bout lies; cut the recording there"
                " into two files"
            )
    return bout.start_s - clock.start_s + shift, bout.end_s - clock.start_s + shift


def _hint(bouts: Sequence[Bout], placed: Sequence[tuple[float, float]], clock: Clock) -> str:
    """What may be wrong where a bout lies outside. Not the clock or unit where other bouts of the
    session lie inside: then it is that one row.
    """
    last = float(clock.times[-1])
    zone = _zone_that_fits(placed, last)
    if any(end > 0 and start <= last for start, end in placed):
        return zone
    return _unit_that_fits(bouts, clock) or zone or _shift_that_fits(placed, last)


def _unit_that_fits(bouts: Sequence[Bout], clock: Clock) -> str:
    """The factor of a wrong unit with which all bouts of a session would lie inside, as a hint."""
    last = clock.start_s + float(clock.times[-1])
    for power in (3, 6, 9):
        for word, factor in (("divided", 10.0**-power), ("multiplied", 10.0**power)):
            if all(b.start_s * factor >= clock.start_s and b.end_s * factor <= last for b in bouts):
                return f"; {word} by {10**power} all its bouts would lie inside: is the unit right?"
    return ""


def _zone_that_fits(placed: Sequence[tuple[float, float]], last: float) -> str:
    """The time zone's offset with which all bouts of a session would lie inside it, as a hint."""
    first, end = min(start for start, _ in placed), max(end for _, end in placed)
    for step in sorted(range(-ZONE_STEPS, ZONE_STEPS + 1), key=abs):
        offset = step * ZONE_STEP_S
        if first + offset >= 0 and end + offset <= last:
            return f"; with {shown_seconds(offset)} s added all its bouts would lie inside"
    return ""


def _shift_that_fits(placed: Sequence[tuple[float, float]], last: float) -> str:
    """The least shift with which all bouts of a session would lie inside it, as a hint."""
    first, end = min(start for start, _ in placed), max(end for _, end in placed)
    if end - first > last:
        return ""
    offset = -first if first < 0 else last - end
    return (
        f"; they would lie inside with {shown_seconds(np.ceil(offset))} s added at least"
        if offset > 0
        else f"; they would lie inside with {shown_seconds(-np.floor(offset))} s taken off at least"
    )


def missing_column(path: Path, column: str, columns: Sequence[str], advice: str) -> InputError:
    """The error for a column that is not there."""
    names = [name for name in columns if name]
    return InputError(
        f"{path}: no column {column!r}{nearest(column, names)} (it has {', '.join(names[:12])});"
        f" {advice}"
    )


# -- a label column


class LabelReader:
    """A label column of 0, 1 and -1 (not known), read block by block."""

    def __init__(self, where: str, column: str) -> None:
        self._where, self._column = where, column
        self._blocks: list[NDArray[np.int8]] = []
        self._rows = 0

    def add(self, cells: pd.Series) -> None:
        """Take the next rows. Raises InputError where a cell is none of the three."""
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy().astype(np.float64)
        wrong = np.flatnonzero(~np.isin(numbers, (0, POSITIVE, UNKNOWN)))
        if len(wrong):
            row, value = int(wrong[0]), numbers[wrong[0]]
            shown = f"{value:g}" if np.isfinite(value) else shown_cell(cells.iloc[row])
            raise InputError(
                f"{self._where}: {self._column} in row {self._rows + row + 1} is {shown}: labels"
                " are 0 or 1, or -1 where it is not known"
            )
        self._blocks.append(numbers.astype(np.int8))
        self._rows += len(numbers)

    def labels(self) -> NDArray[np.int8]:
        """All that was added, int8 [rows]."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.int8)


def label_runs(labels: NDArray[np.int8], times: Floats, value: int) -> Floats:
    """Runs of one label as [runs, 2] in seconds; a run lasts one sample interval beyond its last
    sample, but not into the next run.
    """
    first, end = true_ranges(labels == value).T
    last = end - 1
    every = np.median(np.diff(times))
    after = np.append(times, np.inf)[last + 1]
    runs: Floats = np.stack([times[first], np.minimum(times[last] + every, after)], axis=1)
    return runs


# -- what a data set keeps


def annotated_bouts(
    sessions: Iterable[Session], parts: Mapping[str, Sequence[Part]]
) -> list[KeptBout]:
    """Rows of {participant}_bouts.csv: every annotation as given.

    Times are on the recording's own clock, as in {participant}_{split}_windows.csv. Annotations
    are not joined, even where they touch or overlap. Each is clipped to what was recorded: from
    the first to the last recorded sample inside it, so that a short gap in a bout does not make
    two of it; one that lies in a gap altogether has no row. An annotation that reaches into
    several splits (only a session labelled from end to end does) is clipped to each of them. The
    split is empty where an annotation lies between splits: no window of any split sees it.
    """
    rows: list[KeptBout] = []
    for session in sessions:
        own = [
            (split, part)
            for split in parts
            for part in parts[split]
            if part.session.name == session.name
        ]
        for start, end in sorted(session.annotations.tolist()):
            kept = [
                (split, *found)
                for split, part in own
                if (found := recorded_within(session, max(start, part.begin), min(end, part.end)))
            ]
            if not kept and (found := recorded_within(session, start, end)):
                kept = [("", *found)]
            for split, begin, stop in kept:
                at = [round(session.start_s + k / session.rate, 6) for k in (begin, stop)]
                rows.append((session.name, at[0], at[1], split))
    return rows
