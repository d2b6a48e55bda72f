"""Read a table that people or their apps wrote: its encoding, separator, decimal mark and header.

A table is read in blocks, so that a recording of a day needs no more memory than one of a minute.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

import pandas as pd

from common.errors import InputError

SUFFIXES = (".csv.gz", ".csv")
BLOCK_ROWS = 100_000
SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
LOOKED_AT_LINES = 300
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?$|[+-]?(nan|inf)$", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?$")
DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?$")
POINT = " (decimal point)"  # after such a number where others have commas
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]|$)")
# The name that pandas gives to a column without one when it writes a table that it has read
UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?$")
# Byte order marks, the longest first; a file without one is UTF-8
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Table:
    """A table whose header has been read.

    Attributes:
        columns: names, empty for a column without one.
        separator, decimal, encoding: as found in the file.
        first_line: the line, counted from 1, in which the rows begin.
    """

    path: Path
    columns: tuple[str, ...]
    separator: str
    decimal: str
    encoding: str
    first_line: int

    def blocks(self) -> Iterator[pd.DataFrame]:
        """Rows in order, some thousand at a time; columns are numbered from 0.

        What pandas does not take for numbers stays text, also NA, null and an empty cell.

        Raises:
            InputError: a row is longer than the header, or a byte does not fit the encoding.
        """
        with explained(self.path, self.encoding), _open_text(self.path, self.encoding) as file:
            for _ in range(self.first_line - 1):
                file.readline()
            with contextlib.suppress(pd.errors.EmptyDataError):  # a header alone: no rows
                yield from self._parsed(file)

    def _parsed(self, file: TextIO) -> Iterator[pd.DataFrame]:
        with warnings.catch_warnings():
            # pandas only warns of rows that are longer than the header, and cuts them
            warnings.simplefilter("error", pd.errors.ParserWarning)
            blocks = pd.read_csv(
                file,
                header=None,
                names=list(range(len(self.columns))),
                index_col=False,
                sep=self.separator,
                decimal=self.decimal,
                keep_default_na=False,
                na_values=[],
                skipinitialspace=True,
                low_memory=False,
                chunksize=BLOCK_ROWS,
            )
            for block in blocks:
                yield block if self.decimal == "." else self._with_points(block)

    def _with_points(self, block: pd.DataFrame) -> pd.DataFrame:
        """A block with decimal points for commas in the columns that pandas left as text.

        Pandas leaves a whole column as text where one cell is no number. Its other cells are read
        one by one then, by to_numeric, which knows decimal points only. A point that is there
        already may separate thousands: such a cell is no number, should anybody need it as one.
        """
        for place in block.select_dtypes("object"):
            cells = block[place].astype(str).str.strip()
            points, numbers = (cells.str.match(form) for form in (DECIMAL_POINT, NUMBER))
            written = block[place].mask(points, cells + POINT)
            mended = cells.str.replace(",", ".", regex=False)
            block[place] = written.mask(numbers & ~points, mended)
        return block

    def text(self) -> dict[str, list[str]]:
        """All rows as text, by column: what looks like a number stays as it was written."""
        with explained(self.path, self.encoding), _open_text(self.path, self.encoding) as file:
            for _ in range(self.first_line - 1):
                file.readline()
            rows = [row for row in csv.reader(file, delimiter=self.separator) if any(row)]
        for number, row in enumerate(rows, 1):
            if len(row) > len(self.columns) and any(row[len(self.columns) :]):
                raise InputError(
                    f"{self.path}: row {number} has {len(row)} cells, the header"
                    f" {len(self.columns)}; make them equally many"
                )
        return {
            name: [row[place].strip() if place < len(row) else "" for row in rows]
            for place, name in enumerate(self.columns)
            if name
        }


def is_table(path: Path) -> bool:
    """Whether a file is read as a table, by its name: .csv or .csv.gz in any case."""
    return path.name.lower().endswith(SUFFIXES)


def table_stem(path: Path) -> str:
    """The name of a table's file without .csv or .csv.gz."""
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def open_table(
    path: Path,
    *,
    known: Sequence[str] = (),
    header_line: int | None = None,
    names: Sequence[str] | None = None,
) -> Table:
    """Find out how a table is written.

    Args:
        known: names of columns that are sure to be in a header.
        header_line: the line with the names of the columns (None: the first one).
        names: the columns of a file that has no header line.

    Raises:
        InputError: what the file is instead of a table with one header line.
    """
    encoding = _encoding(path)
    with explained(path, encoding), _open_text(path, encoding) as file:
        lines = [line for _, line in zip(range(LOOKED_AT_LINES), file, strict=False)]
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: not a readable CSV table (it is empty); it needs a header line")
    if names is not None:
        first, separator = (header_line or 0), _separator(lines[header_line or 0 : -1] or lines)
        columns = list(names)
    else:
        place, separator = _header(path, lines, known, header_line)
        columns, first = [_name(cell) for cell in _cells(lines[place], separator)], place + 1
    rows = [_cells(line, separator) for line in lines[first:] if line.strip()]
    columns = _with_nameless(path, columns, rows, may_be_first=names is None)
    _refuse_twins(path, columns)
    return Table(
        path, tuple(columns), separator, _decimal(path, separator, rows), encoding, first + 1
    )


@contextlib.contextmanager
def explained(path: Path, encoding: str) -> Iterator[None]:
    """Turn what a reader of tables raises into an InputError that names the file."""
    try:
        yield
    except (UnicodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        if isinstance(error, UnicodeError):
            raise _wrong_encoding(path, encoding) from None
        raise InputError(f"{path}: not a readable CSV table ({error}); write it again") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise InputError(
            f"{path}: not a readable CSV table ({' '.join(str(error).split())}); it needs a header"
            " line and equally long rows"
        ) from None


# -- encoding


def _open_bytes(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _open_text(path: Path, encoding: str) -> TextIO:
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline="")


def _encoding(path: Path) -> str:
    """UTF-8, or what the mark at the beginning of the file says.

    Raises:
        InputError: the file holds zero bytes and no mark: UTF-16 without its mark, or no text.
    """
    with explained(path, "utf-8"), _open_bytes(path) as file:
        head = file.read(4096)
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    if head.count(0) * 3 > len(head):
        raise InputError(f"{path}: looks like UTF-16 without its byte order mark; save it as UTF-8")
    if 0 in head:
        raise InputError(f"{path}: not a readable CSV table (it is not text); export it again")
    return "utf-8"


def _wrong_encoding(path: Path, encoding: str) -> InputError:
    """Name the first line that does not fit, and the encoding that it is likely to be in."""
    if encoding == "utf-16":
        return InputError(f"{path}: not whole UTF-16, though it has its mark; save it as UTF-8")
    with contextlib.suppress(OSError, EOFError), _open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                return InputError(
                    f"{path}: line {number} is not UTF-8 (byte 0x{byte:02x}); it looks like Latin-1"
                    " (Windows-1252), as Excel writes: save it as UTF-8, or iconv -f WINDOWS-1252"
                    " -t UTF-8"
                )
    return InputError(f"{path}: not UTF-8 text; save it as UTF-8")


# -- header


def _name(cell: str) -> str:
    name = cell.strip()
    return "" if UNNAMED.match(name) else name


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])


def _separator(lines: Sequence[str]) -> str:
    """The separator that a line holds most of; that of the first line that holds any."""
    for line in lines:
        outside = re.sub(r'"[^"]*"', "", line)
        counts = {separator: outside.count(separator) for separator in SEPARATORS}
        if any(counts.values()):
            # decimal commas are as many as the other separator, or more
            others = {s: n for s, n in counts.items() if s != "," and n}
            return max(others or counts, key=lambda s: counts[s])
    return ","


def _header(
    path: Path, lines: list[str], known: Sequence[str], header_line: int | None
) -> tuple[int, str]:
    """Index of the header line, and the separator."""
    if header_line is not None:
        if header_line > len(lines):
            raise InputError(
                f"{path}: has no line {header_line} with names of columns; correct --header_line"
            )
        return header_line - 1, _separator(lines[header_line - 1 :])
    if told := re.fullmatch(r"sep=(.)\s*", lines[0]):  # written by and for Excel
        return 1, told.group(1)
    separator = _separator(lines[:1])
    cells = _cells(lines[0], separator)
    if {_name(cell) for cell in cells} & set(known) or _may_be_header(lines, 0):
        return 0, separator
    raise _no_header(path, lines, cells)


def _may_be_header(lines: Sequence[str], place: int) -> bool:
    """Whether a line holds names only, and the next ones rows of as many cells."""
    separator = _separator(lines[place:])
    cells = _cells(lines[place], separator)
    if len(cells) < 2 or any(_is_value(cell) for cell in cells):
        return False
    rows = [_cells(line, separator) for line in lines[place + 1 : place + 4] if line.strip()]
    return not rows or (
        Counter(map(len, rows)).most_common(1)[0][0] in (len(cells), len(cells) + 1)
        and any(_is_value(cell) for cell in rows[-1])
    )


def _is_value(cell: str) -> bool:
    return bool(NUMBER.match(cell.strip()) or DATE.match(cell.strip()))


def _no_header(path: Path, lines: list[str], cells: Sequence[str]) -> InputError:
    for place in range(1, len(lines)):
        if _may_be_header(lines, place) and any(line.strip() for line in lines[place + 1 :]):
            return InputError(
                f"{path}: line 1 is no header; the table seems to begin in line {place + 1}: remove"
                f" the lines before it, or give --header_line {place + 1}"
            )
    if any(_is_value(cell) for cell in cells):
        return InputError(
            f"{path}: line 1 is no header but holds values ({', '.join(cells)[:60]}): add a line"
            " with the names of the columns, or name them with --columns (if these are names, give"
            " --header_line 1)"
        )
    return InputError(
        f"{path}: line 1 is no header ({lines[0].strip()[:60]!r}): not a readable CSV table with"
        " comma, semicolon or tab between columns; if it is one, give --header_line 1"
    )


def _with_nameless(
    path: Path, columns: list[str], rows: Sequence[list[str]], *, may_be_first: bool
) -> list[str]:
    """The columns, with one more where rows have one cell more than the header.

    That is the last column where a separator ends every row, and the first where row numbers are
    written without a name, as R does.
    """
    lengths = Counter(map(len, rows))
    if not rows or lengths.most_common(1)[0][0] != len(columns) + 1:
        return columns
    longer = [row for row in rows if len(row) == len(columns) + 1]
    if not any(row[-1].strip() for row in longer):
        return [*columns, ""]
    if may_be_first and [row[0] for row in longer] == [str(k) for k in range(1, len(longer) + 1)]:
        return ["", *columns]
    raise InputError(
        f"{path}: rows have {len(columns) + 1} cells, the header {len(columns)}: not a readable CSV"
        " table; name every column"
    )


def _refuse_twins(path: Path, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the column {twice[0]!r} is there twice; rename one")


def _decimal(path: Path, separator: str, rows: Sequence[list[str]]) -> str:
    """The decimal mark: a comma only where commas do not separate columns."""
    if separator == ",":
        return "."
    comma = [
        (n, cell) for n, row in enumerate(rows, 1) for cell in row if DECIMAL_COMMA.match(cell)
    ]
    point = [
        (n, cell) for n, row in enumerate(rows, 1) for cell in row if DECIMAL_POINT.match(cell)
    ]
    if comma and point:
        raise InputError(
            f"{path}: numbers have a decimal comma ({comma[0][1]} in row {comma[0][0]}) and a"
            f" decimal point ({point[0][1]} in row {point[0][0]}); write one of them throughout"
        )
    return "," if comma else "."
