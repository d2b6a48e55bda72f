"""The columns of one recording: which of them are channels, and their numbers.

A column that is no signal is never taken for one: a counter, a second clock, text, or a sensor that
is slower than the others is named, and the user chooses with --channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.bouts import LabelReader, missing_column
from common.data.clock import EMPTY, Bools, StampReader, Stamps, shown_cell
from common.data.sessions import Ints
from common.data.tables import Table
from common.errors import InputError

# From so many rows on it is no accident that a column never falls, with so many different values
ROWS_OF_A_CLOCK, RISES_OF_A_CLOCK = 20, 10
SLOWER = 0.5  # of the rows empty: the column is slower than the others
MOSTLY = 0.9


@dataclass(frozen=True)
class ColumnRules:
    """Which columns mean what. `channels`: those asked for (None: all that are signals)."""

    time_column: str
    time_unit: str
    label_column: str
    channels: tuple[str, ...] | None
    date_format: str | None


@dataclass(frozen=True)
class RawRecording:
    """The columns of one file: stamps, float32 values [rows, channels], int8 labels [rows]."""

    channels: tuple[str, ...]
    stamps: Stamps
    values: NDArray[np.float32]
    labels: NDArray[np.int8] | None
    notes: tuple[str, ...]

    def doubled(self, earlier: Ints, later: Ints) -> Bools:
        """Which pairs of rows are equal in all channels and in their label."""
        same: Bools = (self.values[earlier] == self.values[later]).all(axis=1)
        return same if self.labels is None else same & (self.labels[earlier] == self.labels[later])


class _Column:
    """One column, read block by block: its numbers, and what is wrong with them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self.empty = 0
        self.texts = 0
        self.first_wrong: tuple[int, object] | None = None
        self.too_large: tuple[int, float] | None = None
        self.falls = False
        self.rises = 0
        self.unit_steps = 0
        self.whole = True
        self._last = np.nan
        self._blocks: list[NDArray[np.float32]] = []

    def add(self, cells: pd.Series) -> None:
        """Take the next rows."""
        if not len(cells):
            return
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy().astype(np.float64)
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            self._take_wrong(cells, wrong)
        with np.errstate(over="ignore"):
            block = numbers.astype(np.float32)
        over = np.isinf(block) & ~wrong
        if over.any() and self.too_large is None:
            row = int(np.flatnonzero(over)[0])
            self.too_large = self.rows + row + 1, float(numbers[row])
        self._take_steps(numbers)
        self._blocks.append(block)
        self.rows += len(block)

    def _take_wrong(self, cells: pd.Series, wrong: Bools) -> None:
        found = cells[wrong].astype(str).str.strip()
        empty = found.str.lower().isin(EMPTY)
        self.empty += int(empty.sum())
        self.texts += int((~empty).sum())
        if self.first_wrong is None:
            row = int(np.flatnonzero(wrong)[0])
            self.first_wrong = self.rows + row + 1, cells.iloc[row]

    def _take_steps(self, numbers: NDArray[np.float64]) -> None:
        steps = np.diff(np.concatenate([[self._last], numbers]))
        self.falls |= bool((steps < 0).any())
        self.rises += int((steps > 0).sum())
        self.unit_steps += int((steps == 1).sum())
        self.whole &= bool((numbers == np.round(numbers)).all())
        self._last = float(numbers[-1])

    @property
    def counts(self) -> bool:
        """Whether it only numbers the rows."""
        steps = max(self.rows - 1, 1)
        return self.whole and (self.unit_steps >= MOSTLY * steps or self.rises == steps)

    @property
    def never_falls(self) -> bool:
        """Whether it goes on as a clock or a counter does."""
        long = self.rows >= ROWS_OF_A_CLOCK and self.rises >= RISES_OF_A_CLOCK
        return long and not self.falls and not self.empty and not self.texts

    def refuse_wrong(self, path: Path) -> None:
        """Raise InputError where a cell is no finite number, by what kind of column it is."""
        if self.texts > SLOWER * self.rows:
            assert self.first_wrong is not None
            raise InputError(
                f"{path}: column {self.name} holds text ({str(self.first_wrong[1])[:40]!r}), not a"
                " signal; choose the signals with --channels"
            )
        if self.empty > SLOWER * self.rows and not self.texts:
            held = self.rows - self.empty
            raise InputError(
                f"{path}: column {self.name} is slower than the others: it holds {held} numbers in"
                f" {self.rows} rows; leave it out by naming the others with --channels"
            )
        if self.first_wrong is not None:
            row, cell = self.first_wrong
            many = self.empty + self.texts
            also = f" (and {many - 1} more rows)" if many > 1 else ""
            raise InputError(
                f"{path}: {self.name} in row {row} is {shown_cell(cell)}{also}; correct or remove"
                " it, or leave the column out with --channels"
            )
        if self.too_large is not None:
            row, value = self.too_large
            raise InputError(
                f"{path}: {self.name} in row {row} is {value}: not a finite 32-bit number; correct"
                " or remove it"
            )

    def numbers(self) -> NDArray[np.float32]:
        """All that was added; it is forgotten here, to spare memory."""
        blocks, self._blocks = self._blocks, []
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def read_columns(
    table: Table, rules: ColumnRules, order: Sequence[str] | None = None
) -> RawRecording:
    """Stamps, channels and labels of a recording.

    Args:
        order: of the channels, where this file has the same ones.

    Raises:
        InputError: a column is missing, or is not what it is taken for.
    """
    path, names = table.path, table.columns
    if rules.time_column not in names:
        advice = "the time column is named with --time_column"
        raise missing_column(path, rules.time_column, names, advice)
    known = {rules.time_column, rules.label_column}
    for name in rules.channels or ():
        if name not in names or name in known:
            raise missing_column(path, name, names, "correct --channels")
    signals = [
        (place, _Column(name))
        for place, name in enumerate(names)
        if (name in rules.channels if rules.channels else name not in known)
    ]
    stamps = StampReader(str(path), rules.time_column, rules.time_unit, rules.date_format)
    labels = LabelReader(str(path), rules.label_column)
    labelled = rules.label_column in names
    for block in table.blocks():
        stamps.add(block[names.index(rules.time_column)])
        if labelled:
            labels.add(block[names.index(rules.label_column)])
        for place, column in signals:
            column.add(block[place])
    chosen, notes = _channels(path, [column for _, column in signals], rules)
    if order is not None and {column.name for column in chosen} == set(order):
        chosen.sort(key=lambda column: list(order).index(column.name))
    elif rules.channels:
        chosen.sort(key=lambda column: (rules.channels or ()).index(column.name))
    return RawRecording(
        tuple(column.name for column in chosen),
        stamps.stamps(),
        _stacked(chosen),
        labels.labels() if labelled else None,
        tuple(notes),
    )


def _channels(
    path: Path, columns: Sequence[_Column], rules: ColumnRules
) -> tuple[list[_Column], list[str]]:
    """The columns that are signals, and what was left out."""
    notes: list[str] = []
    chosen: list[_Column] = []
    for column in columns:
        if column.name:
            chosen.append(column)
        elif column.empty == column.rows:
            notes.append("left out: an empty column without a name")
        elif column.counts:
            notes.append("left out: a column without a name that only counts rows")
        else:
            raise InputError(
                f"{path}: a column has no name; name it, or choose the signals with --channels"
            )
    if not chosen:
        raise InputError(
            f"{path}: no channel columns beside {rules.time_column}; add the signals, one column"
            " each"
        )
    for column in chosen:
        column.refuse_wrong(path)
        if rules.channels is None and column.never_falls:
            raise InputError(
                f"{path}: column {column.name} never falls from one row to the next, as a clock or"
                " a counter: it is no signal; leave it out by naming the signals with --channels"
                f" (or name {column.name} there too, if it is one)"
            )
    return chosen, notes


def _stacked(columns: Sequence[_Column]) -> NDArray[np.float32]:
    """[rows, channels]; the columns' own numbers are forgotten one after the other."""
    values = np.empty((columns[0].rows, len(columns)), np.float32)
    for place, column in enumerate(columns):
        values[:, place] = column.numbers()
    return values
