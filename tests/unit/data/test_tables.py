"""Tables as people and their apps write them; the layouts of known exports with made-up numbers."""

import gzip
import unicodedata

import numpy as np
import pytest

from common.data.clock import ClockRules, StampReader, Stamps, read_clock
from common.data.columns import ColumnRules, read_columns
from common.data.preparation import Preparation
from common.data.recordings import Layout, Recordings, list_recordings
from common.data.resampling import make_session
from common.data.tables import open_table
from common.errors import InputError


def table(tmp_path, content, name="rec.csv", **how):
    """Columns, separator and rows as numbers."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    opened = open_table(path, **how)
    rows = [row for block in opened.blocks() for row in block.to_numpy().tolist()]
    return opened.columns, opened.separator, rows


ROWS = [[0, 1.5], [1, 2.5]]


@pytest.mark.parametrize(
    "content",
    [
        b"t,x\n0,1.5\n1,2.5\n",
        b"\xef\xbb\xbft,x\r\n0,1.5\r\n1,2.5\r\n",
        "t,x\n0,1.5\n1,2.5\n".encode("utf-16"),
        b"t;x\n0;1,5\n1;2,5\n",
        b"t\tx\n0\t1.5\n1\t2.5\n",
        b"sep=;\nt;x\n0;1,5\n1;2,5\n",
        b"t, x\n0, 1.5\n1, 2.5\n",
        b'"t","x"\n"0","1.5"\n"1","2.5"\n',
    ],
)
def test_encodings_separators_and_decimal_marks(tmp_path, content):
    columns, _, rows = table(tmp_path, content)
    assert columns == ("t", "x")
    assert [[float(cell) for cell in row] for row in rows] == ROWS


def test_compressed_tables_and_row_names(tmp_path):
    assert table(tmp_path, gzip.compress(b"t,x\n0,1.5\n1,2.5\n"), "rec.CSV.GZ")[2] == ROWS
    assert table(tmp_path, '"t","x"\n"1",0,1.5\n"2",1,2.5\n')[0] == ("", "t", "x")
    assert table(tmp_path, "t,x\n0,1.5,\n1,2.5,\n")[0] == ("t", "x", "")
    assert table(tmp_path, "Unnamed: 0,t,x\n0,0,1.5\n")[0] == ("", "t", "x")
    assert table(tmp_path, "0,1.5\n1,2.5\n", names=["t", "x"])[2] == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("t,x,Höhe\n0,1,2\n".encode("latin-1"), "line 1 is not UTF-8 (byte 0xf6); it looks like L"),
        ("t,x\n0,1\n".encode("utf-16-le"), "looks like UTF-16 without its byte order mark"),
        (b"t,x\n0,1,2\n1,2,3\n", "rows have 3 cells, the header 2"),
        (b"t,x\n0,1\n1,2,3,4\n", "not a readable CSV table"),
        (b"t;x\n0;1,5\n1;2.5\n", "decimal comma (1,5 in row 1) and a decimal point (2.5 in row 2)"),
        (b"0,1.5\n1,2.5\n", "line 1 is no header but holds values (0, 1.5)"),
        (b"", "it is empty"),
        (b"not a gzip file", "not a readable CSV table"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, said):
    with pytest.raises(InputError) as caught:
        table(tmp_path, content, "rec.csv.gz" if b"gzip" in content else "rec.csv")
    assert said in str(caught.value)


def spoilt(tmp_path, mark, spoil):
    """What is said of 60 rows with this decimal mark and semicolons; `spoil` changes a row's cells,
    row by row.
    """
    lines = ["time;x;label"]
    for row in range(1, 61):
        cells = [f"{row / 10}", f"{np.sin(row):.3f}", f"{row % 2}"]
        spoil(row, cells)
        lines.append(";".join(cells).replace(".", mark))
    path = tmp_path / "rec.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as caught:
        read_columns(open_table(path), ColumnRules("time", "s", "label", None, None))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("place", "rows", "cell", "said"),
    [
        (1, [45], "", "x in row 45 is empty or NaN; correct"),
        (1, range(2, 61), "", "column x is slower than the others: it holds 1 numbers in 60 rows"),
        (1, [45], "high", "x in row 45 is 'high', not a number; correct"),
        (0, [45], "", "time in row 45 is empty or NaN; correct"),
        (2, [45], "0.5", "label in row 45 is 0.5: labels are 0 or 1"),
        (2, [45], "x", "label in row 45 is 'x', not a number: labels are 0 or 1"),
    ],
)
@pytest.mark.parametrize("mark", [".", ","])
def test_a_bad_cell_is_named_alike_with_either_decimal_mark(
    tmp_path, monkeypatch, mark, place, rows, cell, said
):
    def spoil(row, cells):
        if row in rows:
            cells[place] = cell

    for block_rows in (100, 7):
        monkeypatch.setattr("common.data.tables.BLOCK_ROWS", block_rows)
        assert spoilt(tmp_path, mark, spoil).startswith(said)


@pytest.mark.parametrize("channels", [("x",), None])
def test_a_decimal_point_far_below_decimal_commas_is_not_taken_for_one(
    tmp_path, monkeypatch, channels
):
    monkeypatch.setattr("common.data.tables.BLOCK_ROWS", 400)
    rows = [f"{row};{row % 7},5;{row % 5},5" for row in range(1, 1000)]
    rows[499] = "500;1,5;1.234"  # after the lines by which the mark is found out
    (tmp_path / "rec.csv").write_text("time;x;y\n" + "\n".join(rows) + "\n")
    rules = ColumnRules("time", "s", "label", channels, None)
    opened = open_table(tmp_path / "rec.csv")
    if channels:  # a column that nobody asked for may hold anything
        assert read_columns(opened, rules).values[499] == 1.5
    else:
        with pytest.raises(InputError, match=r"y in row 500 is '1.234 \(decimal point\)', not a"):
            read_columns(opened, rules)


def test_names_are_compared_in_one_form_of_accents(tmp_path):
    for form, name in (("NFD", "José"), ("NFC", "Zoë")):
        folder = tmp_path / unicodedata.normalize(form, name)
        folder.mkdir()
        (folder / "s.csv").write_text("time,x\n0,1\n1,2\n")
    assert list(list_recordings(tmp_path)) == ["José", "Zoë"]
    rows = "participant,session,start,end\n" + unicodedata.normalize("NFC", "José") + ",s,0,1\n"
    (tmp_path / "bouts.csv").write_text(rows)
    Recordings(tmp_path, Layout("time", "s", "label", None, 10.0, None))


@pytest.mark.parametrize(
    ("cell", "seconds", "form"),
    [
        ("2019-07-24T14:06:17.412Z", 1563977177.412, "date with zone"),
        ("2016-09-28 17:24:32.385 +0200", 1475076272.385, "date with zone"),
        ("2013-03-01 15:15:00.000", 1362150900.0, "date"),
        ("2013-03-01 15:15:00,5", 1362150900.5, "date"),
        ("1e3", 1000.0, "number"),
    ],
)
def test_stamps(cell, seconds, form):
    import pandas as pd

    reader = StampReader("rec", "time", "s", None)
    reader.add(pd.Series([cell, cell], dtype=object))
    stamps = reader.stamps()
    assert (stamps.ticks[0] / stamps.per_second, stamps.form) == (pytest.approx(seconds), form)


@pytest.mark.parametrize(
    ("cell", "date_format", "seconds", "form"),
    [
        ("01/02/2024 13:00:00.5 +0100", "%d/%m/%Y %H:%M:%S.%f %z", 1706788800.5, "date with zone"),
        ("01/02/2024 13:00:00.5+01:00", "%d/%m/%Y %H:%M:%S.%f%z", 1706788800.5, "date with zone"),
        ("01/02/2024 13:00:00.5 UTC", "%d/%m/%Y %H:%M:%S.%f UTC", 1706792400.5, "date with zone"),
        ("01/02/2024 13:00:00.5 UTC", "%d/%m/%Y %H:%M:%S.%f %Z", 1706792400.5, "date with zone"),
        ("01/02/2024 13:00:00.5Z", "%d/%m/%Y %H:%M:%S.%fZ", 1706792400.5, "date with zone"),
        ("01/02/2024 13:00:00.5", "%d/%m/%Y %H:%M:%S.%f", 1706792400.5, "date"),
        ("13:00:00 31-01-2024", "%H:%M:%S %d-%m-%Y", 1706706000.0, "date"),
        ("13:00:00 2024-01-31", "%H:%M:%S %Y-%m-%d", 1706706000.0, "date"),
        ("13:00:00 %z 31-01-2024", "%H:%M:%S %%z %d-%m-%Y", 1706706000.0, "date"),
    ],
)
def test_dates_are_read_by_the_format_as_they_are_written(cell, date_format, seconds, form):
    import pandas as pd

    reader = StampReader("rec", "time", "s", date_format)
    reader.add(pd.Series([cell, cell], dtype=object))
    stamps = reader.stamps()
    assert (stamps.ticks[0] / stamps.per_second, stamps.form) == (seconds, form)


@pytest.mark.parametrize("date_format", ["%q", "%d/%m/%Y %", "%d %d"])
def test_a_format_that_is_none_is_refused_before_anything_is_read(date_format):
    given = {"sessions": "rec", "data_path": "data/a", "date_format": date_format}
    with pytest.raises(InputError, match=r"date_format: .*; the directives are those of Python"):
        Preparation.parse(given)


def test_a_date_that_does_not_fit_the_format_is_refused_with_both():
    import pandas as pd

    reader = StampReader("rec", "time", "s", "%d/%m/%Y %H:%M:%S%z")
    with pytest.raises(InputError) as caught:
        reader.add(pd.Series(["01/02/2024 13:00:00 +0100"], dtype=object))
    assert str(caught.value) == (
        "rec: time in row 1 is '01/02/2024 13:00:00 +0100', not a number or date; correct it, or"
        " --date_format '%d/%m/%Y %H:%M:%S%z', which does not fit it"
    )


# Header and first row of each export, as their makers document them, and what has to be said
EXPORTS = {
    "ActiGraph, raw": ("Timestamp,Accelerometer X,Accelerometer Y,Accelerometer Z", "Timestamp"),
    "Axivity, no header": ("2013-03-01 15:15:00.000,0.035,0.282,1.033", "Time"),
    "Empatica EmbracePlus": ("unix_timestamp,x,y,z", "unix_timestamp"),
    "Sensor Logger": ("time,z,y,x", "time"),
    "SensorLog": ("loggingTime;motionUserAccelerationX;motionUserAccelerationY", "loggingTime"),
}


@pytest.mark.parametrize("export", EXPORTS)
def test_layouts_of_exports_are_read(tmp_path, export):
    header, time_column = EXPORTS[export]
    separator = ";" if ";" in header else ","
    width = header.count(separator)
    stamps = {
        "ActiGraph, raw": "2024-02-01 10:00:{:06.3f}",
        "Axivity, no header": "2013-03-01 15:15:{:06.3f}",
        "Empatica EmbracePlus": "{:.0f}",
        "Sensor Logger": "{:.0f}",
        "SensorLog": "2016-09-28 17:24:{:06.3f} +0200",
    }[export]
    scale = {"Empatica EmbracePlus": 10**6, "Sensor Logger": 10**9}.get(export, 1)
    units = {10**6: "us", 10**9: "ns", 1: "s"}
    lines = [] if "no header" in export else [header]
    if export == "ActiGraph, raw":
        lines = ["----- Data File Created By ActiGraph -----", "Serial Number: X", *lines]
    for k in range(500):
        cells = [stamps.format(k * 0.02 * scale), *(f"{(k * 7 + c) % 13}.5" for c in range(width))]
        lines.append(separator.join(cells))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "s.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "bouts.csv").write_text("participant,session,start,end\n")
    layout = Layout(
        time_column,
        units[scale],
        "label",
        None,
        50.0,
        None,
        columns=("Time", "x", "y", "z") if "no header" in export else None,
        header_line=3 if export == "ActiGraph, raw" else None,
    )
    (reading,) = Recordings(tmp_path, layout).sessions("p")
    assert reading.session.values.shape == (500, width)
    assert reading.session.values[1, 0] == 7.5


def test_an_empatica_e4_file_is_refused_with_what_it_lacks(tmp_path):
    with pytest.raises(InputError, match="line 1 is no header but holds values"):
        table(tmp_path, "1544027337.0,1544027337.0,1544027337.0\n32.0,32.0,32.0\n-2,3,64\n")


def recording(tmp_path, columns, order=None, rows=30):
    """Channels ax, ay of noise, and what else is named: counted rows, or the label 0."""
    random = np.random.default_rng(0)
    cells = {
        "time": [row / 10 for row in range(rows)],
        "ax": random.normal(size=rows),
        "ay": random.normal(size=rows),
        "packet": range(rows),
    }
    lines = [",".join(columns)]
    lines += [",".join(str(cells[name][row]) for name in columns) for row in range(rows)]
    path = tmp_path / "r.csv"
    path.write_text("\n".join(lines) + "\n")
    rules = ColumnRules("time", "s", "label", None, None)
    return read_columns(open_table(path), rules, order)


def test_channels_have_the_order_of_the_first_recording(tmp_path):
    first = recording(tmp_path, ("time", "ax", "ay"))
    other = recording(tmp_path, ("ay", "time", "ax"), first.channels)
    assert first.channels == other.channels == ("ax", "ay")
    assert np.array_equal(first.values, other.values)


def test_a_counter_is_no_channel(tmp_path):
    with pytest.raises(InputError, match="column packet never falls from one row to the next"):
        recording(tmp_path, ("time", "ax", "ay", "packet"))


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_units_of_time(unit, per_second):
    import pandas as pd

    reader = StampReader("rec", "time", unit, None)
    reader.add(pd.Series([0, 1500]))
    stamps = reader.stamps()
    assert (stamps.ticks[1] - stamps.ticks[0]) / stamps.per_second == 1500 / per_second


def test_gaps_that_need_too_much_memory_on_the_grid_are_refused_with_the_longest():
    stamps = np.arange(400) / 50
    stamps[100:] += 1000.0
    stamps[300:] += 1e7
    rules = ClockRules("time", "s", 50.0, None, repair=True)
    assert len(read_clock("rec", Stamps(stamps, 1, "number"), rules, channels=3).times) == 400
    stamps[[301, 302]] = stamps[[302, 301]]  # rows are counted as in the file
    with pytest.raises(InputError) as caught:
        read_clock("rec", Stamps(stamps, 1, "number"), rules, channels=6)
    assert str(caught.value) == (
        "rec: time has a gap of 10000000.02 s at row 301 (after 1005.98 comes 10001006.0); with 6"
        " channel(s) at --sampling_rate 50, its gaps need 12.0 GB of memory, more than 8 GB; cut"
        " the session there into two files, or correct the stamps"
    )


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize(("stamp", "rows"), [(1, 2), (5.0, 3000)])
@pytest.mark.parametrize("doubled", [None, lambda earlier, later: earlier < later])
def test_a_time_that_never_changes_is_no_time(repair, stamp, rows, doubled):
    rules = ClockRules("time", "s", 50.0, None, repair)
    stamps = Stamps(np.full(rows, stamp), 1, "number")
    with pytest.raises(InputError) as caught:
        read_clock("rec", stamps, rules, doubled)
    assert str(caught.value) == (
        f"rec: time never rises above {stamp} in {rows} rows; is it the time column? name it with"
        " --time_column"
    )


def test_a_time_that_only_falls_once_is_no_time_either():
    stamps = Stamps(np.array([5, 5, 5, 5, 5, 2]), 1, "number")
    with pytest.raises(InputError, match="time never rises above 5 in 6 rows; is it the time col"):
        read_clock("rec", stamps, ClockRules("time", "s", 50.0, None, repair=True))


@pytest.mark.parametrize("first", [[1, 0, 2], [2, 1, 0]])
def test_times_count_from_the_earliest_row_where_the_files_first_one_is_late(first):
    stamps = 1000 + np.array([*first, *range(3, 200)]) / 10
    rules = ClockRules("time", "s", 10.0, None, repair=True)
    clock = read_clock("rec", Stamps(stamps, 1, "number"), rules)
    assert (clock.start_s, clock.times[0]) == (1000.0, 0.0)
    values = np.zeros((200, 1))
    made = make_session("s", clock.start_s, clock.times, values, np.zeros((0, 2)), 10.0)
    assert made.pieces == ((0, 200),)
    assert np.isfinite(made.values).all()


def test_two_rows_in_the_wrong_order_are_two_rows():
    rules = ClockRules("time", "s", 1.0, None, repair=True)
    assert read_clock("rec", Stamps(np.array([2, 1]), 1, "number"), rules).times.tolist() == [0, 1]
