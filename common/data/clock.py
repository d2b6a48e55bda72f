"""When each row of a recording was sampled: stamps to seconds, and clocks that went wrong.

A clock that went wrong is refused with its cause, row and remedy, or mended where that was asked
for. Mending never takes a sample from another moment than its own: it orders rows, spreads stamps
that stand together, and lets the time go on where the clock was set back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.data.sessions import Floats, Ints
from common.errors import InputError

Bools = NDArray[np.bool_]
EMPTY = ("", "nan", "na", "n/a", "null", "none")  # cells, in lower case
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
DATES_PER_SECOND = PER_SECOND["ns"]
ZONE = re.compile(r"(?:Z|UTC|GMT|[+-]\d\d:?(?:\d\d)?)$")
SPACE_BEFORE_ZONE = re.compile(r"\s+(?=(?:Z|UTC|GMT|[+-]\d\d:?(?:\d\d)?)$)")
# Of --date_format: a directive, and the words for UTC among what is not one
DIRECTIVE = re.compile(r"%.")
UTC_WORD = re.compile(r"\b(?:Z|UTC|GMT)\b")
# How far a recording's own rate may be from the grid's. A wrong unit is off by 1,000: it shows, and
# 5 Hz on a grid of 50 Hz is let through
TIMES_OFF = 20
# A rate below this is accepted on any grid: fast signals are put on slow grids for good reasons
FASTEST_HZ = 20_000
MAX_GRID_SAMPLES = 1e9
# Gaps take memory on the grid as samples do, twice while windows are cut: 16 of 32 GB
MAX_GAP_BYTES = 8e9
SAMPLE_BYTES = 4  # float32
# A pause of this many usual steps is a gap, unless --max_gap_seconds says otherwise
GAP_STEPS = 5
# Rows that are out of order by more than this were not written a little late: the clock changed
LATE_SECONDS, LATE_ROWS = 2.0, 100
# Packets follow each other within this time; longer pauses are a sensor that rests
PACKET_PERIOD_SECONDS = 2.0
MIN_PACKETS = 5
MAX_SET_BACKS = 1000


@dataclass(frozen=True)
class SetBack:
    """The clock was set back before row `row` (from 0).

    `before_s` is the last time before, `after_s` the first one after, as the clock showed them.
    `seconds_added` is what mending adds from that row on: by how much it was set back, and the
    usual time from one row to the next.
    """

    row: int
    before_s: float
    after_s: float
    seconds_added: float


@dataclass(frozen=True)
class Clock:
    """When each row of a recording was sampled.

    Attributes:
        start_s: the earliest row's time on the recording's own clock.
        times: [rows], seconds since the earliest row, increasing from 0.
        rows: the rows of the file in the order of `times`; None: all, as they are.
        joints: indices into `times` at which a stretch begins that the clock does not join to the
            one before.
        set_backs: where the clock was set back, mended.
        mended: how many stamps, rows or packets were mended, by kind.
    """

    start_s: float
    times: Floats
    rows: Ints | None = None
    joints: tuple[int, ...] = ()
    set_backs: tuple[SetBack, ...] = ()
    mended: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stamps:
    """A time column as whole or real ticks; dates are nanoseconds since 1970.

    `form`: number, date (without a zone) or date with zone.
    """

    ticks: Any
    per_second: int
    form: str


@dataclass(frozen=True)
class ClockRules:
    """What a clock must fit: the grid, the longest pause that is no gap, and whether to mend.

    `of_model`: the grid is a model's, which no option changes.
    """

    column: str
    unit: str
    rate: float
    max_gap_s: float | None
    repair: bool
    of_model: bool = False


class StampReader:
    """A time column, read block by block.

    Raises (from `add`):
        InputError: a cell is neither a number nor a date, or numbers and dates are mixed.
    """

    def __init__(self, where: str, column: str, unit: str, date_format: str | None) -> None:
        self._where, self._column, self._unit = where, column, unit
        self._format = date_format
        self._form: str | None = None
        self._blocks: list[Any] = []
        self._rows = 0

    def add(self, cells: pd.Series) -> None:
        """Take the next rows."""
        numbers = cells.dtype.kind in "iuf" and self._format is None
        if not numbers and self._form in (None, "number") and self._format is None:
            numbers = bool(len(cells)) and _is_number(cells.iloc[0])
        block, form = self._as_numbers(cells) if numbers else self._as_dates(cells)
        if self._form not in (None, form):
            raise InputError(
                f"{self._where}: {self._column} in row {self._rows + 1} is a {form}, the rows"
                f" before it hold a {self._form}; write them alike"
            )
        self._form = form
        self._blocks.append(block)
        self._rows += len(block)

    def stamps(self) -> Stamps:
        """All that was added."""
        ticks = np.concatenate(self._blocks) if self._blocks else np.zeros(0)
        form = self._form or "number"
        return Stamps(ticks, PER_SECOND[self._unit] if form == "number" else DATES_PER_SECOND, form)

    def _as_numbers(self, cells: pd.Series) -> tuple[Any, str]:
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy()
        if numbers.dtype.kind in "iu":
            return numbers.astype(np.int64), "number"
        numbers = numbers.astype(np.float64)
        self._refuse(cells, ~np.isfinite(numbers), "number")
        return numbers, "number"

    def _as_dates(self, cells: pd.Series) -> tuple[Any, str]:
        text = cells.astype(str).str.strip()
        if self._format is None:
            text, zoned = self._as_iso(text)
        else:  # the user's own format: the cells stay as they are
            zoned = _has_zone(self._format)
        found = pd.to_datetime(text, format=self._format or "ISO8601", utc=True, errors="coerce")
        self._refuse(cells, found.isna().to_numpy(), "number or date")
        ticks = found.dt.as_unit("ns").astype("int64").to_numpy()
        return ticks, "date with zone" if zoned else "date"

    def _as_iso(self, text: pd.Series) -> tuple[pd.Series, bool]:
        """Dates as ISO 8601 writes them, and whether they have a zone."""
        zoned = text.str.contains(ZONE, regex=True) & text.str.contains(":")
        if zoned.any() and not zoned.all():
            row = int(np.flatnonzero(~zoned.to_numpy())[0])
            raise InputError(
                f"{self._where}: {self._column} in row {self._rows + row + 1} has no time zone"
                f" ({text.iloc[row]!r}), unlike others; write them alike"
            )
        if zoned.any():
            text = text.str.replace(SPACE_BEFORE_ZONE, "", regex=True)
            text = text.str.replace(r"(?:UTC|GMT)$", "Z", regex=True)
        return text.str.replace(",", ".", regex=False), bool(zoned.any())

    def _refuse(self, cells: pd.Series, wrong: Bools, kind: str) -> None:
        if not wrong.any():
            return
        row = int(np.flatnonzero(wrong)[0])
        cell = cells.iloc[row]
        advice = "correct or remove it"
        if kind != "number" and str(cell).strip() and re.search(r"\d", str(cell)):
            advice = (
                "write dates as 2024-01-31 13:59:59.5, or say how they are written with"
                " --date_format, as '%d/%m/%Y %H:%M:%S.%f'"
            )
            if self._format is not None:
                advice = f"correct it, or --date_format {self._format!r}, which does not fit it"
        raise InputError(
            f"{self._where}: {self._column} in row {self._rows + row + 1} is"
            f" {shown_cell(cell, kind)}; {advice}"
        )


def _has_zone(date_format: str) -> bool:
    """Whether dates of this format name their zone: by a directive, or by a word for UTC."""
    directives = DIRECTIVE.findall(date_format)
    return bool({"%z", "%Z"} & {*directives} or UTC_WORD.search(DIRECTIVE.sub(" ", date_format)))


def shown_cell(cell: object, kind: str = "number") -> str:
    """A cell that is no number, for a message."""
    text = str(cell).strip()
    if text.lower() in EMPTY:
        return f"empty or NaN ({text})" if text else "empty or NaN"
    if isinstance(cell, str) and not _is_number(cell):
        return f"{text[:40]!r}, not a {kind}"
    return f"{text[:40]}, not a finite number"


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def shown_seconds(seconds: float) -> str:
    """Seconds with all their digits, to a microsecond."""
    text = f"{seconds:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def shown_time(seconds: float, form: str) -> str:
    """A time as the recording's clock writes it: '12.5 s', or a date."""
    if form == "number":
        return f"{shown_seconds(seconds)} s"
    stamp = pd.Timestamp(round(seconds * 1e6), unit="us")
    return f"{stamp.isoformat(sep=' ')}{' UTC' if form == 'date with zone' else ''}"


def read_clock(
    where: str,
    stamps: Stamps,
    rules: ClockRules,
    doubled: Callable[[Ints, Ints], Bools] | None = None,
    channels: int = 1,
) -> Clock:
    """When each row was sampled.

    Args:
        doubled: which of these pairs of rows (numbers of the earlier and the later ones) are equal
            in all other columns (None: none is).
        channels: that are put on the grid.

    Raises:
        InputError: a stamp is no later than the one before it, samples come in packets, the unit
            cannot be right, no stamp is later than the first, or gaps are too long for the memory;
            with `rules.repair` only what cannot be mended.
    """
    ticks, per_second = stamps.ticks, stamps.per_second
    if len(ticks) < 2:
        raise InputError(f"{where}: {len(ticks)} sample(s), too short for a session; leave it out")
    # Whole numbers are subtracted as such: nanoseconds since 1970 do not fit a float
    times = (ticks - ticks[0]) / per_second
    start_s = float(ticks[0] / per_second)
    shown = _Shown(where, stamps, rules)
    rows: Ints | None = None
    set_backs: list[SetBack] = []
    mended: dict[str, int] = {}
    if (times[1:] < times[:-1]).any():
        times, set_backs = _without_set_backs(times, start_s, shown)
        times, rows = _in_order(times, shown, mended)
        # Seconds since the earliest row, which need not be the file's first one
        start_s, times = start_s + float(times[0]), times - times[0]
    joints = [back.row for back in set_backs]
    if set_backs:
        mended["set_back"] = len(set_backs)
    if rows is not None and set_backs:  # where the first row of each stretch went
        joints = [int(np.flatnonzero(rows == row)[0]) for row in joints]
    if times[-1] == times[0]:  # they are in order by now
        raise InputError(
            f"{where}: {rules.column} never rises above {shown.stamp(0)} in {len(times)} rows; is"
            " it the time column? name it with --time_column"
        )
    packets = find_packets(times, rules.max_gap_s)
    if packets is not None:
        times = _spread_packets(times, packets, shown, mended)
    times, rows, joints = _without_equal(times, rows, joints, doubled, shown, mended)
    check_unit(where, times, rules)
    _check_gaps(times, rows, channels, shown)
    check_span(where, times, rules)
    return Clock(start_s, times, rows, tuple(joints), tuple(set_backs), mended)


@dataclass(frozen=True)
class _Shown:
    """Messages about one recording's clock."""

    where: str
    stamps: Stamps
    rules: ClockRules

    def stamp(self, row: int) -> str:
        """A row's stamp as it is in the file, or nearly so."""
        tick = self.stamps.ticks[row]
        return (
            str(tick) if self.stamps.form == "number" else shown_time(tick / 1e9, self.stamps.form)
        )

    def refuse(self, fault: str, remedy: str) -> None:
        """Raise InputError, unless it is to be mended."""
        if not self.rules.repair:
            raise InputError(f"{self.where}: {self.rules.column} {fault}; {remedy}")


# -- a clock that was set back, and rows out of order


def _without_set_backs(
    times: Floats, start_s: float, shown: _Shown
) -> tuple[Floats, list[SetBack]]:
    """Times that go on where the clock was set back, and where that was.

    Raises:
        InputError: it was set back, and mending was not asked for.
    """
    usual = float(np.median(np.abs(np.diff(times))))
    found: list[SetBack] = []
    begin = 0
    while (place := _first_set_back(times, usual, begin)) is not None:
        row, seconds = place
        shown.refuse(
            f"is set back by {shown_seconds(seconds)} s at row {row + 1} (after"
            f" {shown.stamp(row - 1)} comes {shown.stamp(row)})",
            "cut the session there into two files, or let --repair_clock go on counting from there",
        )
        if len(found) == MAX_SET_BACKS:
            raise InputError(
                f"{shown.where}: {shown.rules.column} is set back more than {MAX_SET_BACKS} times;"
                " is it the time column? name it with --time_column"
            )
        ticks, per_second = shown.stamps.ticks, shown.stamps.per_second
        before_s, after_s = ticks[:row].max() / per_second, ticks[row] / per_second
        found.append(SetBack(row, float(before_s), float(after_s), seconds + usual))
        times = times.copy() if len(found) == 1 else times
        times[row:] += found[-1].seconds_added
        begin = row
    return times, found


def _first_set_back(times: Floats, usual: float, begin: int) -> tuple[int, float] | None:
    """Row and seconds of the first jump back from `begin` on that is not a few rows out of order.

    Rows are late while they are earlier than one before them. A few late rows that fit between
    their neighbours once all are sorted were only written out of order.
    """
    latest = np.maximum.accumulate(times)
    late = times < latest
    starts = np.flatnonzero(late & ~np.concatenate([[False], late[:-1]]))
    for row in starts[starts >= begin].tolist():
        depth = float(latest[row - 1] - times[row])
        if depth <= 2 * usual:
            continue
        after = np.flatnonzero(~late[row:])
        end = row + (int(after[0]) if len(after) else len(times) - row)
        if end - row > LATE_ROWS or depth > LATE_SECONDS:
            return row, depth
        first = int(np.searchsorted(latest[:row], times[row:end].min()))
        mixed = times[first:end]
        if float(np.ptp(mixed)) < 0.75 * usual * (len(mixed) - 1):
            return row, depth  # sorting would interleave two stretches
    return None


def _in_order(times: Floats, shown: _Shown, mended: dict[str, int]) -> tuple[Floats, Ints | None]:
    """Times in order, and the rows in that order."""
    late = times < np.maximum.accumulate(times)
    if not late.any():
        return times, None
    row = int(np.flatnonzero(late)[0])
    shown.refuse(
        f"is out of order in {int(late.sum())} row(s), first in row {row + 1} ({shown.stamp(row)}"
        f" after {shown.stamp(row - 1)})",
        "sort the rows by it, or let --repair_clock do that",
    )
    mended["out_of_order"] = int(late.sum())
    rows = np.argsort(times, kind="stable")
    return times[rows], rows


# -- equal stamps


def _without_equal(
    times: Floats,
    rows: Ints | None,
    joints: Sequence[int],
    doubled: Callable[[Ints, Ints], Bools] | None,
    shown: _Shown,
    mended: dict[str, int],
) -> tuple[Floats, Ints | None, list[int]]:
    """Equal stamps spread evenly up to the next later one, rows that are there twice left out."""
    equal = np.concatenate([[False], times[1:] <= times[:-1]])
    if not equal.any():
        return times, rows, list(joints)
    order = np.arange(len(times)) if rows is None else rows
    place = int(np.flatnonzero(equal)[0])
    shown.refuse(
        f"is the same in rows {order[place - 1] + 1} and {order[place] + 1}"
        f" ({shown.stamp(int(order[place]))}), and in {int(equal.sum())} row(s) in all",
        "remove the rows that are there twice, or let --repair_clock spread equal stamps evenly",
    )
    if doubled is not None:
        twice = equal.copy()
        twice[equal] = doubled(order[:-1][equal[1:]], order[1:][equal[1:]])
        if twice.any():
            mended["doubled_rows"] = int(twice.sum())
            joints = [joint - int(twice[:joint].sum()) for joint in joints]
            times, order, equal = times[~twice], order[~twice], equal[~twice]
            equal = np.concatenate([[False], times[1:] <= times[:-1]])
            rows = order
    if equal.any():
        mended["equal_stamps"] = int(equal.sum())
        times = _spread(times, np.flatnonzero(~equal), _usual(times))
    return times, rows, list(joints)


def _usual(times: Floats) -> float:
    """The usual time from one row to the next, also where many stamps are equal."""
    steps = np.diff(times)
    longest = GAP_STEPS * float(np.median(steps[steps > 0]))
    within = steps[steps <= longest]
    return float(within.mean())


def _spread(times: Floats, first: Ints, usual: float) -> Floats:
    """Groups of rows, each spread evenly from its first stamp up to the next group's.

    A group that is followed by a gap is spread at the usual rate.

    Args:
        first: the first row of each group.
        usual: seconds from one row to the next.
    """
    sizes = np.diff(np.append(first, len(times)))
    begin = times[first]
    room = np.append(np.diff(begin), np.inf) / sizes
    typical = float(np.median(room[:-1])) if len(room) > 1 else usual
    usual = min(max(usual, 1e-9), typical) if np.isfinite(typical) else usual
    steps = np.where(room > usual * (1 + GAP_STEPS / sizes), usual, room)
    within = np.arange(len(times)) - np.repeat(first, sizes)
    spread: Floats = np.repeat(begin, sizes) + within * np.repeat(steps, sizes)
    return spread


# -- packets


def find_packets(times: Floats, max_gap_s: float | None = None) -> Ints | None:
    """First row of each packet, or None where rows do not come in packets.

    In packets, rows are stamped as they arrive: some at once, then none for a while, over and over.
    A sensor that pauses for longer than `PACKET_PERIOD_SECONDS`, or for longer than a given
    `max_gap_s`, is not taken for one.

    Args:
        times: [rows], not decreasing.
    """
    steps = np.diff(times)
    if len(steps) < 3 * MIN_PACKETS:
        return None
    near = float(np.quantile(steps, 0.25))
    first = np.concatenate([[0], np.flatnonzero(steps > GAP_STEPS * near) + 1])
    sizes = np.diff(np.append(first, len(times)))
    if len(first) < MIN_PACKETS or np.median(sizes) < 2:
        return None
    periods = np.diff(times[first])
    period = float(np.median(periods))
    lasts = times[np.append(first[1:], len(times)) - 1] - times[first]
    regular = np.mean((periods > 0.5 * period) & (periods < 1.5 * period))
    pause = period - float(np.median(lasts))
    if (
        float(np.median(lasts)) + near > 0.5 * period
        or period > PACKET_PERIOD_SECONDS
        or regular < 0.75
        or (max_gap_s is not None and pause > max_gap_s)
    ):
        return None
    return first


def _spread_packets(times: Floats, first: Ints, shown: _Shown, mended: dict[str, int]) -> Floats:
    sizes = np.diff(np.append(first, len(times)))
    size = int(np.median(sizes))
    period = float(np.median(np.diff(times[first])))
    lasts = float(np.median(times[np.append(first[1:], len(times)) - 1] - times[first]))
    shown.refuse(
        f"comes in packets: about {size} rows within {lasts:.3g} s, then none for"
        f" {period - lasts:.3g} s, from row {int(first[1]) + 1} on",
        "let --repair_clock spread each packet evenly until the next one (if the sensor really"
        f" rests between them, say so with --max_gap_seconds {(period - lasts) / 2:.2g})",
    )
    mended["packets"] = len(first)
    rates = np.diff(times[first]) / sizes[:-1]
    return _spread(times, first, float(np.median(rates)))


# -- gaps


def _check_gaps(times: Floats, rows: Ints | None, channels: int, shown: _Shown) -> None:
    """Refuse a recording whose gaps need too much memory on the grid."""
    steps, rate = np.diff(times), shown.rules.rate
    gaps_s = float(steps[steps > GAP_STEPS * np.median(steps)].sum())
    size = gaps_s * rate * channels * SAMPLE_BYTES
    if size <= MAX_GAP_BYTES:
        return
    place = int(np.argmax(steps)) + 1
    before, row = (place - 1, place) if rows is None else rows[place - 1 : place + 1].tolist()
    raise InputError(
        f"{shown.where}: {shown.rules.column} has a gap of {shown_seconds(steps[place - 1])} s at"
        f" row {row + 1} (after {shown.stamp(before)} comes {shown.stamp(row)}); with {channels}"
        f" channel(s) at --sampling_rate {rate:g}, its gaps need {size / 1e9:.1f} GB of memory,"
        f" more than {MAX_GAP_BYTES / 1e9:g} GB; cut the session there into two files, or correct"
        " the stamps"
    )


# -- the unit


def check_unit(where: str, times: Floats, rules: ClockRules) -> None:
    """Refuse a --time_unit that cannot be right: the data would be interpolated out of nothing, or
    thinned out to nothing.

    Slow by the median interval, fast by the mean one: samples that are stamped in bursts are
    neither.
    """
    every, rate = float(np.median(np.diff(times))), len(times) / float(times[-1])
    unit, grid = f"{rules.column} in {rules.unit}", f"--sampling_rate {rules.rate:g}"
    slower, faster = f"--sampling_rate {1 / every:.3g}", "a higher --sampling_rate"
    if rules.of_model:
        grid = f"the model's {rules.rate:g} Hz"
        slower, faster = (f"a model trained at about {hz:.3g} Hz" for hz in (1 / every, rate))
    if every * rules.rate > TIMES_OFF:
        raise InputError(
            f"{where}: samples are {every:g} s apart by {unit}, too far for {grid}:"
            f" {_unit_that_fits(1 / every, rules)}for a sensor this slow, {slower}"
        )
    if rate > max(FASTEST_HZ, TIMES_OFF * rules.rate):
        raise InputError(
            f"{where}: samples are {1 / rate:g} s apart by {unit}, too near for {grid}:"
            f" {_unit_that_fits(rate, rules)}for a sensor this fast, {faster}"
        )


def check_span(where: str, times: Floats, rules: ClockRules) -> None:
    """Refuse a recording that has too many samples on the grid."""
    if times[-1] * rules.rate > MAX_GRID_SAMPLES:
        raise InputError(
            f"{where}: lasts {times[-1]:g} s by its {rules.column}; is --time_unit {rules.unit}"
            " right?"
        )


def _unit_that_fits(rate: float, rules: ClockRules) -> str:
    """The unit that brings a recording nearest to the grid, as advice, unless it was given."""
    ticks_per_sample = PER_SECOND[rules.unit] / rate

    def distance(unit: str) -> float:
        return abs(float(np.log(PER_SECOND[unit] / ticks_per_sample / rules.rate)))

    unit = min(PER_SECOND, key=distance)
    if unit == rules.unit:
        return ""
    return f"is {rules.column} in {unit}? give --time_unit {unit}; or, "
