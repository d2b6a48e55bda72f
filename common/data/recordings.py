"""The user's recordings: {folder}/{participant}/{session}.csv with a label column, or bouts.csv
beside the participants.

Everything is checked here, so that what leaves is a list of clean sessions or one line of what is
wrong where.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.data.manifest import file_sha256
from common.data.windowing import Floats, Session, make_session, natural
from common.errors import InputError, nearest
from common.options import safe_name

BOUTS = "bouts.csv"
BOUT_COLUMNS = ("participant", "session", "start", "end")
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# how far a recording's own rate may be from the grid's. A wrong unit is off by 1,000: it shows, and
# 5 Hz on a grid of 50 Hz is let through
TIMES_OFF = 20
# slower than this is believed on any grid: fast signals are put on slow ones for good reasons
FASTEST_HZ = 20_000
Bouts = dict[tuple[str, str], list[tuple[float, float]]]


@dataclass(frozen=True)
class Layout:
    """How the recordings are written, and the grid they are put on. `label_required`: somebody
    named the label column, so no bouts.csv stands in for it.
    """

    time_column: str
    time_unit: str
    label_column: str
    channels: tuple[str, ...] | None
    rate: float
    max_gap_s: float | None
    label_required: bool = False


class Recordings:
    """A folder of recordings: listed and its bouts checked at once, each person's sessions read
    when asked for.

    Attributes:
        files: CSV files by participant, both in natural order.
        channels: channel columns, once the first session has been read.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.files = list_recordings(folder)
        self.channels = layout.channels
        self._layout = layout
        self._bouts = read_bouts(folder, self.files, layout.time_unit)

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

    def sessions(self, participant: str) -> list[Session]:
        """One person's sessions, on the grid.

        Raises:
            InputError: a file is not what the layout says.
        """
        return [self._session(participant, path) for path in self.files[participant]]

    def _session(self, participant: str, path: Path) -> Session:
        layout, table = self._layout, _read_csv(path)
        labelled = layout.label_column in table.columns
        if self._bouts is not None and labelled:
            raise InputError(
                f"{path}: column {layout.label_column} and {self.folder / BOUTS} both label it:"
                " remove one"
            )
        if not labelled and self._bouts is None:
            raise _missing(
                path,
                layout.label_column,
                table,
                f"and there is no {self.folder / BOUTS}: name it with --label_column or add the"
                " file",
            )
        if not labelled and layout.label_required:
            raise _missing(
                path,
                layout.label_column,
                table,
                f"correct --label_column, or leave it out to label by {self.folder / BOUTS}",
            )
        start_s, times = _clock(path, table, layout)
        channels = self._channels(path, table)
        values = np.stack(
            [_numbers(path, table, name).astype(np.float64) for name in channels], axis=1
        )
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32))
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            raise InputError(
                f"{path}: {channels[column]} in row {row + 1} is {values[row, column]}: not a"
                " finite 32-bit number; correct or remove it"
            )
        if self._bouts is None:
            bouts = _label_runs(path, table, layout.label_column, times)
        else:
            bouts = _inside(path, self._bouts.get((participant, path.stem), []), start_s, times)
        return make_session(path.stem, start_s, times, values, bouts, layout.rate, layout.max_gap_s)

    def _channels(self, path: Path, table: pd.DataFrame) -> tuple[str, ...]:
        known = (self._layout.time_column, self._layout.label_column)
        found = tuple(str(name) for name in table.columns if name not in known)
        if self.channels is None:
            if not found:
                raise InputError(
                    f"{path}: no channel columns beside {self._layout.time_column}; add the"
                    " signals, one column each"
                )
            self.channels = found
        if self._layout.channels is None and set(found) != set(self.channels):
            odd = sorted(set(found) ^ set(self.channels))[0]
            have = "has" if odd in found else "lacks"
            raise InputError(
                f"{path}: {have} the column {odd}, unlike the sessions before it; make them alike"
                " or choose with --channels"
            )
        for name in self.channels:
            if name not in found:
                raise _missing(path, name, table, "correct --channels")
        return self.channels


def list_recordings(folder: Path) -> dict[str, list[Path]]:
    """CSV files by participant. Hidden files, and files that are no CSV, are not looked at.

    Raises:
        InputError: no folder, nobody in it, somebody without sessions, or a name that cannot be
        part of a file name.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; --sessions names the folder that holds one folder per"
            " participant"
        )
    people = sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: natural(path.name),
    )
    if not people:
        raise InputError(
            f"{folder}: no participants in it; expected {folder}/PARTICIPANT/SESSION.csv"
        )
    files: dict[str, list[Path]] = {}
    for person in people:
        found = (
            path
            for path in person.iterdir()
            if path.suffix == ".csv" and path.is_file() and not path.name.startswith(".")
        )
        files[person.name] = sorted(found, key=lambda path: natural(path.stem))
        if not files[person.name]:
            raise InputError(
                f"{person}: no .csv in it; add this participant's sessions or remove the folder"
            )
        for path, name in [
            (person, person.name),
            *((path, path.stem) for path in files[person.name]),
        ]:
            try:
                safe_name(name)
            except ValueError as error:
                raise InputError(f"{path}: {error}; rename it") from None
    return files


def read_bouts(folder: Path, files: dict[str, list[Path]], time_unit: str) -> Bouts | None:
    """Bouts in seconds on their session's clock, by participant and session, or None where there is
    no bouts.csv.

    Raises:
        InputError: a column is missing, a bout names nobody known, or it ends before it starts.
    """
    path = folder / BOUTS
    if not path.exists():
        return None
    table = _read_csv(path, text=("participant", "session"))
    for name in BOUT_COLUMNS:
        if name not in table.columns:
            raise _missing(
                path, name, table, f"a bouts.csv has the columns {', '.join(BOUT_COLUMNS)}"
            )
    ends = (
        np.stack([_numbers(path, table, name) for name in ("start", "end")], axis=1)
        / PER_SECOND[time_unit]
    )
    bouts: Bouts = {}
    for row, (person, session) in enumerate(
        zip(table["participant"], table["session"], strict=True)
    ):
        where, start, end = f"{path}: row {row + 1}", float(ends[row, 0]), float(ends[row, 1])
        if person not in files:
            raise InputError(
                f"{where}: unknown participant {person!r}{nearest(str(person), files)}; correct it"
                " or add the folder"
            )
        names = [file.stem for file in files[person]]
        session = str(session).removesuffix(".csv")
        if session not in names:
            raise InputError(
                f"{where}: {person} has no session {session!r}{nearest(session, names)}; correct it"
                f" or add {session}.csv"
            )
        if not start < end:
            raise InputError(
                f"{where}: the bout ends at {end:g} s, {'before' if end < start else 'when'} it"
                f" starts ({start:g} s); correct it"
            )
        bouts.setdefault((person, session), []).append((start, end))
    return bouts


def _inside(
    path: Path, bouts: Sequence[tuple[float, float]], start_s: float, times: Floats
) -> Floats:
    """Bouts in seconds since the session's first sample. One wholly outside the recording means
    another clock or unit.
    """
    for start, end in bouts:
        if end <= start_s or start > start_s + times[-1]:
            raise InputError(
                f"{path}: the bout from {start:g} to {end:g} s lies outside the recording"
                f" ({start_s:g} to {start_s + times[-1]:g} s); {BOUTS} must use the same clock and"
                " unit as the time column"
            )
    return np.array(bouts, np.float64).reshape(-1, 2) - start_s


def _label_runs(path: Path, table: pd.DataFrame, column: str, times: Floats) -> Floats:
    """Runs of label 1 as [bouts, 2] in seconds; a run lasts one sample interval beyond its last
    sample.
    """
    labels = _numbers(path, table, column)
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise InputError(
            f"{path}: {column} in row {wrong[0] + 1} is {labels[wrong[0]]:g}: labels are 0 or 1"
        )
    turns = np.flatnonzero(np.diff(np.concatenate([[0], labels, [0]])))
    first, last = turns[::2], turns[1::2] - 1
    return np.stack([times[first], times[last] + np.median(np.diff(times))], axis=1)


def _clock(path: Path, table: pd.DataFrame, layout: Layout) -> tuple[float, Floats]:
    """Start in seconds on the recording's clock, and seconds since then. Whole numbers are
    subtracted as such: nanoseconds since 1970 do not fit a float.
    """
    ticks = _numbers(path, table, layout.time_column)
    if len(ticks) < 2:
        raise InputError(f"{path}: {len(ticks)} sample(s), too short for a session; leave it out")
    steps = np.diff(ticks)
    back = np.flatnonzero(~(steps > 0))
    if len(back):
        row = int(back[0])
        raise InputError(
            f"{path}: {layout.time_column} does not increase from row {row + 1} ({ticks[row]}) to"
            f" row {row + 2} ({ticks[row + 1]}); sort it"
        )
    per_second = PER_SECOND[layout.time_unit]
    times = (ticks - ticks[0]) / per_second
    _check_unit(path, times, layout)
    if times[-1] * layout.rate > 1e9:
        raise InputError(
            f"{path}: lasts {times[-1]:g} s by its {layout.time_column}; is --time_unit"
            f" {layout.time_unit} right?"
        )
    return float(ticks[0] / per_second), times


def _check_unit(path: Path, times: Floats, layout: Layout) -> None:
    """Refuse a --time_unit that cannot be right: the data would be interpolated out of nothing, or
    thinned out to nothing.

    Slow by the median interval, fast by the mean one: samples that are stamped in bursts are
    neither.
    """
    every, rate, name = (
        float(np.median(np.diff(times))),
        len(times) / float(times[-1]),
        layout.time_column,
    )
    if every * layout.rate > TIMES_OFF:
        raise InputError(
            f"{path}: samples are {every:g} s apart by {name} in {layout.time_unit}, too far for"
            f" --sampling_rate {layout.rate:g}: {_unit_that_fits(1 / every, layout)}for a sensor"
            f" this slow, --sampling_rate {1 / every:.3g}"
        )
    if rate > max(FASTEST_HZ, TIMES_OFF * layout.rate):
        raise InputError(
            f"{path}: samples are {1 / rate:g} s apart by {name} in {layout.time_unit}, too near"
            f" for --sampling_rate {layout.rate:g}: {_unit_that_fits(rate, layout)}for a sensor"
            " this fast, a higher --sampling_rate"
        )


def _unit_that_fits(rate: float, layout: Layout) -> str:
    """The unit that brings a recording nearest to the grid, as advice, unless it is the one that
    was given.
    """
    ticks_per_sample = PER_SECOND[layout.time_unit] / rate
    unit = min(
        PER_SECOND, key=lambda unit: abs(np.log(PER_SECOND[unit] / ticks_per_sample / layout.rate))
    )
    return (
        ""
        if unit == layout.time_unit
        else f"is {layout.time_column} in {unit}? give --time_unit {unit}; or, "
    )


def _numbers(path: Path, table: pd.DataFrame, column: str) -> Any:
    """A column as an array of whole or real numbers.

    Raises:
        InputError: the column is missing, or a value is empty, not a number or not finite.
    """
    if column not in table.columns:
        raise _missing(path, column, table, "the time column is named with --time_column")
    numbers = pd.to_numeric(table[column], errors="coerce").to_numpy()
    if numbers.dtype.kind in "iu":
        return numbers.astype(np.int64)
    numbers = numbers.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise InputError(
            f"{path}: {column} in row {wrong[0] + 1} is {_shown(table[column].iloc[wrong[0]])};"
            " correct or remove it"
        )
    return numbers


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"{value[:40]!r}, not a number"
    return "empty or NaN" if pd.isna(value) else f"{value}, not a finite number"


def _missing(path: Path, column: str, table: pd.DataFrame, advice: str) -> InputError:
    names = [str(name) for name in table.columns]
    return InputError(
        f"{path}: no column {column!r}{nearest(column, names)} (it has {', '.join(names[:12])});"
        f" {advice}"
    )


def _read_csv(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """The table; columns in `text` stay text.

    Raises:
        InputError: not a CSV table with a header, or two columns have one name.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise InputError(f"{path}: the column {twice[0]!r} is there twice; rename one")
        with warnings.catch_warnings():
            # rows longer than the header would lose data
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                encoding="utf-8-sig",
                index_col=False,
                low_memory=False,
                dtype=dict.fromkeys(text, "str"),
            )
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        pd.errors.ParserWarning,
        UnicodeDecodeError,
        csv.Error,
    ) as error:
        raise InputError(
            f"{path}: not a readable CSV table ({error}); it needs a header line and equally long"
            " rows"
        ) from None
