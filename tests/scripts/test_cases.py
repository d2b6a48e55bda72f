"""Recordings as people have them (tests/cases): each is read, or refused in one line that names the
cause, the place and the remedy.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
from common.cli import run_script
from common.data.manifest import read_manifest

CASES = Path(__file__).resolve().parents[1] / "cases" / "recordings"
FLAGS = ("--window_seconds", "2", "--stride_seconds", "1")
# All but a few cases are this signal, labelled 1 in these seconds
BOUTS = ((8, 16), (24, 32), (40, 48))


@pytest.fixture
def call(project, monkeypatch, capsys):
    """Prepare a case as data/mine: (exit code, stdout, stderr)."""

    def run_here(case, *flags, split="time"):
        shutil.copytree(CASES / case, project / "rec", dirs_exist_ok=True)
        monkeypatch.chdir(project)
        argv = ["--sessions", "rec", "--data_path", "data/mine", "--split", split]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *argv, *FLAGS, *flags])
        with pytest.raises(SystemExit) as left:
            run_script(prepare_data.main)
        captured = capsys.readouterr()
        assert left.value.code in (0, 2)
        if left.value.code == 2:
            assert captured.err.count("\n") == 1
            assert not (project / "data").exists()
        return left.value.code, captured.out, captured.err

    return run_here


def made(project, person="p01"):
    """Channels, windows and labels of the training split."""
    folder = project / "data" / "mine"
    x, y = torch.load(folder / f"{person}_train.pt", weights_only=True)
    return read_manifest(folder), x.numpy(), y.numpy()


def usual(project, person="p01"):
    """The windows are those of the plain recording."""
    manifest, x, y = made(project, person)
    assert sorted(manifest.channels) == ["x", "y", "z"]
    expected = np.loadtxt(CASES / "upper_case_suffix/p01/rec.csv", delimiter=",", skiprows=1)
    first = expected[:100, 1:4].T
    np.testing.assert_allclose(x[0], first.astype(np.float32), atol=6e-4)
    starts = np.arange(len(y))
    inside = np.array([any(s < b and s + 2 > a for a, b in BOUTS) for s in starts])
    assert y.tolist() == inside[: len(y)].astype(int).tolist()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("index_column", "note: left out: a column without a name that only counts rows"),
        ("comma_at_the_end", "note: left out: an empty column without a name"),
        ("semicolons", "note: read as: columns separated by semicolon (first in rec/p01/rec.csv)"),
        ("decimal_commas", "note: read as: columns separated by semicolon, decimal comma"),
        ("dates", "channels: x, y, z"),
    ],
)
def test_other_forms_of_a_table_are_read_and_it_is_said_how(call, project, case, said):
    code, out, _ = call(case)
    assert code == 0
    assert said in out
    assert "channels: x, y, z\n" in out
    usual(project)


def test_a_second_clock_is_refused_by_name_unless_channels_are_named(call, project):
    code, _, err = call("second_clock", "--time_unit", "ns")
    assert code == 2
    assert "column seconds_elapsed never falls from one row to the next, as a clock" in err
    assert call("second_clock", "--time_unit", "ns", "--channels", "z,y,x")[0] == 0
    usual(project)
    assert made(project)[0].channels == ["z", "y", "x"]


def test_suffixes_are_read_in_any_case_and_what_is_skipped_is_named(call, project):
    (project / "rec" / "p01").mkdir(parents=True)
    (project / "rec" / "p01" / "notes.txt").write_text("x")
    (project / "rec" / "read me.md").write_text("x")
    code, out, err = call("upper_case_suffix")
    assert code == 0
    starts = (project / "data/mine/p01_train_windows.csv").read_text()
    assert {line.split(",")[0] for line in starts.split()[1:]} == {"rec", "rec2", "rec3"}
    assert "skipped, since not PARTICIPANT/SESSION.csv or .csv.gz: read me.md, p01/notes.txt" in out
    # All three hold the same rows, at other times: that is for a person to judge.
    assert "p01/rec and p01/rec2 hold equal rows" in err


@pytest.mark.parametrize("split", ["time", "session"])
def test_the_same_recording_twice_is_refused(call, split):
    code, _, err = call("same_recording_twice", split=split)
    assert code == 2
    assert "rec/p01/monday.csv and rec/p01/monday (1).csv are the same file; remove one" in err


def test_one_recording_under_two_people_is_refused(call, project):
    for person in ("anna", "bo"):
        (project / "rec" / person).mkdir(parents=True)
        shutil.copy(CASES / "upper_case_suffix/p01/rec.csv", project / "rec" / person / "s.csv")
    with (project / "rec" / "bo" / "s.csv").open("a") as file:
        file.write("60.000,0.1,0.2,0.3,0\n")  # no longer the same file
    code, _, err = call("participant_NA", "--label_column", "label")
    assert code == 2  # bouts.csv of the case and a label column
    shutil.rmtree(project / "rec" / "NA")
    (project / "rec" / "bouts.csv").unlink()
    code, _, err = call("semicolons")
    assert code == 2
    assert "s.csv hold the same samples from 0 to 59.98 s" in err


@pytest.mark.parametrize("split", ["time", "session"])
def test_overlapping_exports_are_refused_with_the_stretch(call, split):
    code, _, err = call("overlapping_sessions", split=split)
    assert code == 2
    assert "part0.csv and rec/p01/part1.csv hold the same samples from 50 to 79.98 s" in err


def test_a_person_called_na_is_a_person(call, project):
    assert call("participant_NA")[0] == 0
    usual(project, "NA")


def test_labels_on_another_clock_are_refused_with_row_digits_and_offset(call):
    code, _, err = call("bouts_one_hour_off")
    assert code == 2
    assert (
        "rec/bouts.csv: row 1: the bout from 1700003608 s to 1700003616 s lies outside the"
        " recording rec/p01/rec.csv (1700000000 s to 1700000059.98 s); with -3600 s added all its"
        " bouts would lie inside" in err
    )


def test_lines_before_the_header_are_named_and_can_be_skipped(call, project):
    code, _, err = call("preamble")
    assert code == 2
    assert (
        "rec/p01/rec.csv: line 1 is no header; the table seems to begin in line 11: remove the"
        " lines before it, or give --header_line 11" in err
    )
    named = ("--header_line", "11", "--time_column", "Timestamp")
    (project / "rec" / "bouts.csv").write_text(
        "participant,session,start,end\np01,rec,2024-02-01 10:00:08,2024-02-01T10:00:16\n"
    )
    code, _, err = call("preamble", *named)
    assert code == 2
    assert "Timestamp in row 1 is '01/02/2024 10:00:00.000', not a number or date" in err
    assert "--date_format, as '%d/%m/%Y %H:%M:%S.%f'" in err
    (project / "rec" / "bouts.csv").write_text(
        "participant,session,start,end\np01,rec,01/02/2024 10:00:08.0,01/02/2024 10:00:16.0\n"
    )
    assert call("preamble", *named, "--date_format", "%d/%m/%Y %H:%M:%S.%f")[0] == 0
    manifest, x, y = made(project)
    assert manifest.channels == [f"Accelerometer {axis}" for axis in "XYZ"]
    assert np.abs(x[0, :, :4].T - [[0.035, 0.282, 1.033]] * 4).max() < 1
    assert y.tolist()[:10] == [0] * 7 + [1] * 3


def test_a_clock_that_was_set_back_is_refused_or_goes_on(call, project):
    code, _, err = call("clock_set_back")
    assert code == 2
    assert (
        "time is set back by 19.98 s at row 1501 (after 29.98 comes 10.0); cut the session there"
        " into two files, or let --repair_clock" in err
    )
    code, out, _ = call("clock_set_back", "--repair_clock")
    assert code == 0
    assert "note: p01: rec: clock repaired (1 set back)" in out
    manifest, _, _ = made(project)
    assert manifest.clock_repairs == {"p01": {"rec": {"set_back": 1}}}
    starts = (project / "data/mine/p01_train_windows.csv").read_text().split()[1:]
    assert not any(28.0 < float(line.split(",")[1]) < 30.0 for line in starts)  # across the joint


def test_packets_are_named_and_spread(call, project):
    code, _, err = call("packets")
    assert code == 2
    assert "time comes in packets: about 10 rows within 0.009 s, then none for 0.191 s" in err
    assert "packets" in call("packets", "--max_gap_seconds", "1")[2]  # accepted once, all wrong
    code, _, _ = call("packets", "--repair_clock")
    assert code == 0
    assert made(project)[0].clock_repairs == {"p01": {"rec": {"packets": 300}}}
    usual(project)


def test_a_slow_channel_is_named_with_the_way_to_leave_it_out(call, project):
    code, _, err = call("slow_channel")
    assert code == 2
    assert "column hr is slower than the others: it holds 273 numbers in 3000 rows" in err
    assert "--channels" in err
    assert call("slow_channel", "--channels", "x", "y", "z")[0] == 0
    usual(project)


def test_a_bout_where_nothing_was_recorded_is_named(call, project):
    code, _, err = call("bout_in_a_gap")
    assert code == 0
    assert "p01: 1 of 1 bouts labels no window: rec 21 to 29 s (nothing was recorded then)" in err
    assert (project / "data/mine/p01_bouts.csv").read_text() == "session,start_s,end_s,split\n"


def test_every_case_is_looked_at_here():
    text = Path(__file__).read_text()
    assert all(f'"{path.name}"' in text for path in CASES.iterdir())
    assert json.loads((CASES.parent / "grids" / "third_b.json").read_text())
