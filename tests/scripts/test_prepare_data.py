"""prepare_data.py on recordings made up here and on the demo: what it makes, what it refuses, and
that refusing leaves nothing behind.
"""

import csv
import json
import os
import sys
import zlib
from itertools import combinations

import numpy as np
import pytest
import torch

import prepare_data
from common import artifacts
from common.cli import run_script
from common.data import overview, prepare, staging
from common.data.manifest import file_sha256, listed_bouts, read_manifest
from common.data.preparation import Preparation
from common.data.subsets import subset_sizes
from common.paths import Paths
from tests.conftest import ROOT, demo_wheel

WINDOWS = ("--sampling_rate", "10", "--window_seconds", "2", "--stride_seconds", "1")
MINE = ("--sessions", "rec", "--data_path", "data/mine", *WINDOWS)


def write_session(
    path, seconds=40.0, bouts=((10, 20),), zero=0.0, unit=1, rate=10.0, label="label"
):
    """A CSV with a time, two channels and, unless `label` is empty, the labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    columns = {
        "time": [
            round((zero + t) * unit) if unit > 1 else round(zero + t, 3) for t in times.tolist()
        ],
        "ax": np.random.default_rng(zlib.crc32(f"{path} {zero}".encode())).normal(size=len(times)),
        "ay": -times,
    }
    if label:
        columns[label] = np.array([any(a <= t < b for a, b in bouts) for t in times]).astype(int)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*(list(c) for c in columns.values()), strict=True))


@pytest.fixture
def rec(project):
    """Two people with five sessions each, in `rec` of the project folder."""
    for person in ("anna", "bo"):
        for number in range(5):
            write_session(project / "rec" / person / f"s{number}.csv", zero=100 * number)
    return project / "rec"


@pytest.fixture
def call(project, monkeypatch, capsys):
    """Run the script's main in this process, as run_script would: (exit code, stdout, stderr)."""

    def run_here(*argv):
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, argv)])
        with pytest.raises(SystemExit) as left:
            run_script(prepare_data.main)
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return run_here


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_apart(folder, length, rate):
    """No sample of any session in two splits, by sets of sample numbers; returns the number of
    windows.
    """
    manifest, total = json.loads((folder / "dataset.json").read_text()), 0
    for participant in manifest["participants"]:
        held = []
        for split in ("train", "val", "test"):
            with (folder / f"{participant}_{split}_windows.csv").open(newline="") as file:
                rows = [
                    (row["session"], round(float(row["start_s"]) * rate))
                    for row in csv.DictReader(file)
                ]
            held.append({(session, first + k) for session, first in rows for k in range(length)})
            total += len(rows)
        assert not any(a & b for a, b in combinations(held, 2)), participant
    return total


def test_sessions_become_tuples_lists_of_windows_and_a_manifest(run, rec, project):
    done = run("prepare_data.py", *MINE, "--units", "g", "m")
    assert (done.returncode, done.stderr) == (0, "")
    folder = project / "data" / "mine"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mine"]
    manifest = read_manifest(folder)
    assert (manifest.sampling_rate_hz, manifest.window_size, manifest.channels, manifest.units) == (
        10.0,
        20,
        ["ax", "ay"],
        ["g", "m"],
    )
    assert manifest.split == {
        "rule": "session",
        "seed": 0,
        "fractions": {"train": 0.6, "val": 0.2, "test": 0.2},
        "before_windowing": True,
    }
    assert list(manifest.participants) == ["anna", "bo"]
    assert manifest.files == {
        path.name: file_sha256(path) for path in folder.iterdir() if path.name != "dataset.json"
    }
    for participant, splits in manifest.participants.items():
        for split, counts in splits.items():
            x, y = torch.load(folder / f"{participant}_{split}.pt", weights_only=True, mmap=True)
            assert (x.dtype, y.dtype, tuple(x.shape)) == (
                torch.float32,
                torch.int64,
                (counts.windows, 2, 20),
            )
            assert int(y.sum()) == counts.positives > 0
            with (folder / f"{participant}_{split}_windows.csv").open(newline="") as file:
                starts = [float(row["start_s"]) for row in csv.DictReader(file)]
            # The second channel is minus the seconds since the session's start; sessions start at
            # whole hundreds.
            assert np.allclose(-x[:, 1, 0].numpy(), np.array(starts) % 100, atol=1e-4)
            inside = (np.array(starts) % 100 < 20) & (np.array(starts) % 100 + 2 > 10)
            assert y.tolist() == inside.astype(int).tolist()
    assert assert_apart(folder, 20, 10) == 2 * 5 * 39


@pytest.mark.parametrize("rule", ["session", "chronological", "time"])
def test_each_split_rule_keeps_samples_apart(call, rec, project, rule):
    code, out, _ = call(*MINE, "--split", rule)
    assert code == 0
    assert "no sample is in two splits (compared: " in out
    assert assert_apart(project / "data" / "mine", 20, 10) > 0
    assert read_manifest(project / "data" / "mine").split["rule"] == rule


def test_equal_recordings_give_equal_files(call, rec, project):
    call(*MINE)
    call(*MINE, "--data_path", "data/again")
    assert everything(project / "data" / "mine") == everything(project / "data" / "again")


def test_the_same_settings_again_do_nothing(call, rec, project):
    call(*MINE)
    before = {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")}
    assert call(*MINE) == (0, "data/mine is up to date\n", "")
    assert {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")} == before


def test_other_settings_are_refused_until_overwrite_is_given(call, rec, project):
    call(*MINE)
    before = everything(project)
    code, out, err = call(*MINE, "--split_seed", "7")
    assert (code, out) == (2, "")
    assert "was made with other settings (split_seed 0, now 7)" in err
    assert everything(project) == before
    assert call(*MINE, "--split_seed", "7", "--overwrite")[0] == 0
    assert read_manifest(project / "data" / "mine").split["seed"] == 7
    assert sorted(path.name for path in (project / "data").iterdir()) == ["mine"]


def test_changed_recordings_and_damaged_files_are_noticed(call, rec, project):
    call(*MINE)
    damaged = project / "data" / "mine" / "bo_val.pt"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged (bo_val.pt is not what was written)" in call(*MINE)[2]
    assert call(*MINE, "--overwrite")[0] == 0
    assert damaged.read_bytes() == content
    write_session(rec / "bo" / "s1.csv", seconds=41, zero=100)
    err = call(*MINE)[2]
    assert "data/mine: its recordings have changed since it was made; choose" in err
    err = call(*MINE, "--split_seed", "7")[2]
    assert "other settings (split_seed 0, now 7) and its recordings have changed" in err


def test_a_folder_that_is_not_its_own_is_never_replaced(call, rec, project):
    call(*MINE)
    (project / "data" / "mine" / "notes.txt").write_text("mine")
    (project / "data" / "tuples").mkdir()
    (project / "data" / "tuples" / "x_train.pt").write_bytes(b"")
    before = everything(project)
    assert "holds notes.txt" in call(*MINE, "--split_seed", "1", "--overwrite")[2]
    assert (
        "holds files but no dataset.json"
        in call(*MINE, "--data_path", "data/tuples", "--overwrite")[2]
    )
    assert everything(project) == before


def test_bouts_csv_labels_in_the_unit_of_the_time_column(call, project):
    zero = 1_700_000_000
    for number in range(3):
        write_session(
            project / "rec" / "anna" / f"s{number}.csv",
            zero=zero + 100 * number,
            unit=10**9,
            label="",
        )
    lines = [
        f"anna,s{k},{(zero + 100 * k + 10) * 10**9},{(zero + 100 * k + 20) * 10**9}"
        for k in range(3)
    ]
    (project / "rec" / "bouts.csv").write_text(
        "participant,session,start,end\n" + "\n".join(lines) + "\n"
    )
    code, _, err = call(*MINE, "--time_unit", "ns", "--min_overlap", "1")
    assert (code, err) == (0, "")
    manifest = read_manifest(project / "data" / "mine")
    assert manifest.labelling["from"] == "bouts.csv"
    # Windows of 2 s at whole seconds that lie wholly in [10, 20]: from 10 to 18.
    assert [splits.positives for splits in manifest.participants["anna"].values()] == [9, 9, 9]


def test_a_label_column_that_was_named_is_not_replaced_by_a_bouts_csv(call, rec, project):
    bouts(rec, "anna,s0,5,9")
    before = everything(project)
    code, _, err = call(*MINE, "--label_column", "smoking")
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "s0.csv: no column 'smoking' (it has time, ax, ay); correct --label_column, or leave it out"
        " to label by rec/bouts.csv" in err
    )
    assert everything(project) == before
    assert call(*MINE)[0] == 0


@pytest.mark.parametrize("overlap", ["any", "1"])  # 1 needs the whole last sample of a run to count
def test_the_label_column_and_a_bouts_csv_say_the_same(call, rec, project, overlap):
    call(*MINE, "--min_overlap", overlap)
    for path in rec.rglob("*.csv"):
        write_session(path, zero=100 * int(path.stem[1:]), label="")
    lines = [
        f"{person},s{k},{100 * k + 10},{100 * k + 20}"
        for person in ("anna", "bo")
        for k in range(5)
    ]
    (rec / "bouts.csv").write_text("participant,session,start,end\n" + "\n".join(lines) + "\n")
    call(*MINE, "--data_path", "data/bouts", "--min_overlap", overlap)
    tuples = [path.name for path in (project / "data" / "mine").glob("*.pt")]
    assert len(tuples) == 6
    for name in tuples:
        assert (project / "data" / "mine" / name).read_bytes() == (
            project / "data" / "bouts" / name
        ).read_bytes()


def test_annotations_are_kept_as_given_with_their_split(call, project):
    for number in range(3):
        write_session(project / "rec" / "anna" / f"s{number}.csv", zero=100 * number, label="")
    rows = [
        "anna,s0,12,20",
        "anna,s0,10,12",
        "anna,s0,38,55",
        "anna,s1,105.123,106",
        "anna,s2,200,240",
    ]
    (project / "rec" / "bouts.csv").write_text(
        "participant,session,start,end\n" + "\n".join(rows) + "\n"
    )
    assert call(*MINE, "--split", "chronological")[0] == 0
    assert (project / "data" / "mine" / "anna_bouts.csv").read_text() == (
        "session,start_s,end_s,split\n"
        "s0,10.0,12.0,train\ns0,12.0,20.0,train\ns0,38.0,40.0,train\n"
        "s1,105.123,106.0,val\ns2,200.0,240.0,test\n"
    )
    assert call(*MINE, "--split", "time", "--data_path", "data/time")[0] == 0
    by_time = listed_bouts(project / "data" / "time", "anna")
    assert ("s1", 105.123, 106.0, "train") in by_time
    # s2 is labelled from end to end: the one bout that may be cut, into a row for each split.
    assert [row for row in by_time if row[0] == "s2"] == [
        ("s2", 200.0, 221.6, "train"),
        ("s2", 223.6, 230.8, "val"),
        ("s2", 232.8, 240.0, "test"),
    ]


def test_a_split_with_one_class_or_no_window_is_named(call, project):
    for number in range(3):
        write_session(
            project / "rec" / "anna" / f"s{number}.csv",
            zero=100 * number,
            bouts=[(5, 9)] if number == 1 else [],
        )
    code, _, err = call(*MINE, "--split", "chronological")
    assert code == 0
    assert err.splitlines() == [
        f"warning: anna {split}: one class only (all 39 windows are 0)"
        for split in ("train", "test")
    ]
    write_session(project / "rec" / "anna" / "s0.csv", bouts=[(1, 39.5)])
    for number in (1, 2):
        (project / "rec" / "anna" / f"s{number}.csv").unlink()
    err = call(*MINE, "--split", "time", "--data_path", "data/one")[2]
    assert err.splitlines()[1:] == [
        "warning: anna val: no windows",
        "warning: anna test: no windows",
        "warning: anna: more than half of all windows are positive (100 %); shorter"
        " --window_seconds or a --min_overlap lower that",
    ]


def test_what_the_data_forced_is_said(call, project):
    for number in range(3):
        write_session(
            project / "rec" / "anna" / f"s{number}.csv", bouts=[(0, 40)] if number else [(10, 20)]
        )
    assert "note: anna: s1, s2: labelled 1 from end to end" in call(*MINE, "--split", "time")[1]
    assert (
        "note: anna: recordings overlap in time"
        in call(*MINE, "--split", "chronological", "--data_path", "data/other")[1]
    )


def cut_out(path, begin, end):
    """Remove the rows of [begin, end) seconds of the file's clock."""
    head, *rows = path.read_text().splitlines()
    kept = [row for row in rows if not begin <= float(row.split(",")[0]) < end]
    path.write_text("\n".join([head, *kept]) + "\n")


def test_gaps_and_the_bouts_in_them_are_said(call, project):
    for person in ("anna", "bo"):
        for number in range(3):
            path = project / "rec" / person / f"s{number}.csv"
            write_session(path, seconds=400, bouts=[(50, 90)], zero=1000 * number, label="")
    rows = [f"{p},s{k},{1000 * k + 50},{1000 * k + 90}" for p in ("anna", "bo") for k in range(3)]
    rows += ["anna,s0,150,160"]
    (project / "rec" / "bouts.csv").write_text(
        "participant,session,start,end\n" + "\n".join(rows) + "\n"
    )
    cut_out(project / "rec" / "anna" / "s0.csv", 140, 170)  # a bout altogether: named as unused
    cut_out(project / "rec" / "anna" / "s1.csv", 1060, 1300)
    cut_out(project / "rec" / "bo" / "s2.csv", 2071, 2083.5)  # less than half of a bout
    code, out, err = call(*MINE)
    assert code == 0
    assert [line for line in out.splitlines() if "gap" in line] == [
        "note: anna: 2 gaps (4 min 30 s together), the longest (4 min 00 s) in s1 from 1060 s",
        "note: bo: 1 gap (12.5 s) in s2 from 2071 s",
    ]
    assert [line for line in err.splitlines() if "bouts" in line] == [
        "warning: anna: more than half of 1 of 4 bouts lies in a gap: s1 1050 to 1090 s (30 s of"
        " it)",
        "warning: anna: 1 of 4 bouts labels no window: s0 150 to 160 s (nothing was recorded then)",
    ]


def test_the_overviews_legend_explains_white():
    bar = overview.SessionBar("anna", "s0", 60, {"train": [(0, 20), (40, 60)]}, [], [])
    legend = overview._figure([bar], 1).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["positive", "not recorded"]


def edit(path, change):
    path.write_text(change(path.read_text()))


def replace_row(path, row, text):
    lines = path.read_text().splitlines()
    lines[row] = text
    path.write_text("\n".join(lines) + "\n")


def bouts(rec, *rows, header="participant,session,start,end"):
    for path in rec.rglob("s*.csv"):
        write_session(path, zero=100 * int(path.stem[1:]), label="")
    (rec / "bouts.csv").write_text("\n".join([header, *rows]) + "\n")


SPOILT = {
    "no folder": (lambda rec: rec.rename(rec.with_name("elsewhere")), "rec: no such folder"),
    "empty folder": (
        lambda rec: [os.rename(p, rec.parent / p.name) for p in list(rec.iterdir())],
        "rec: no participants in it",
    ),
    "nobody's sessions": (lambda rec: (rec / "cy").mkdir(), "rec/cy: no .csv in it"),
    "hostile name": (lambda rec: (rec / "bo").rename(rec / "-rf"), "cannot be part of a file name"),
    "dotted name": (
        lambda rec: (rec / "bo" / "s1.csv").rename(rec / "bo" / "a..b.csv"),
        "cannot be part of a file name",
    ),
    "control characters": (
        lambda rec: (rec / "bo").rename(rec / "b\no"),
        "cannot be part of a file name",
    ),
    "no time column": (
        lambda rec: edit(rec / "bo" / "s1.csv", lambda t: t.replace("time,", "tine,", 1)),
        "no column 'time', did you mean tine?",
    ),
    "no label column": (
        lambda rec: edit(rec / "bo" / "s1.csv", lambda t: t.replace(",label", ",lable", 1)),
        "no column 'label', did you mean lable?",
    ),
    "another channel": (
        lambda rec: edit(rec / "bo" / "s1.csv", lambda t: t.replace(",ay", ",az", 1)),
        "s1.csv: lacks the column ay, unlike",
    ),
    "column twice": (
        lambda rec: edit(rec / "bo" / "s1.csv", lambda t: t.replace(",ay", ",ax", 1)),
        "the column 'ax' is there twice",
    ),
    "words": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,high,0.3,0"),
        "ax in row 4 is 'high', not a number",
    ),
    "NaN": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,nan,0.3,0"),
        "ax in row 4 is empty or NaN",
    ),
    "empty cell": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,,0.3,0"),
        "ax in row 4 is empty or NaN",
    ),
    "infinite": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,inf,0.3,0"),
        "ax in row 4 is inf, not a finite number",
    ),
    "too large": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,1e300,0.3,0"),
        "not a finite 32-bit number",
    ),
    "label 2": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,1,0.3,2"),
        "label in row 4 is 2: labels are 0 or 1",
    ),
    "unsorted": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.1,1,0.3,0"),
        "time is out of order in 1 row(s), first in row 4 (100.1 after 100.2); sort the rows by it",
    ),
    "time twice": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.2,1,0.3,0"),
        "time is the same in rows 3 and 4 (100.2), and in 1 row(s) in all",
    ),
    "gap of years": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 400, "900000139.9,1,0.3,0"),
        "s1.csv: time has a gap of 900000000.1 s at row 400 (after 139.8 comes 900000139.9); with 2"
        " channel(s) at --sampling_rate 10, its gaps need 72.0 GB of memory, more than 8 GB; cut"
        " the session there into two files, or correct the stamps",
    ),
    "long row": (
        lambda rec: replace_row(rec / "bo" / "s1.csv", 4, "100.3,1,0.3,0,7,8"),
        "not a readable CSV table",
    ),
    "empty file": (lambda rec: (rec / "bo" / "s1.csv").write_text(""), "not a readable CSV table"),
    "binary file": (lambda rec: (rec / "bo" / "s1.csv").write_bytes(bytes(range(256))), "s1.csv: "),
    "header only": (
        lambda rec: (rec / "bo" / "s1.csv").write_text("time,ax,ay,label\n"),
        "0 sample(s), too short",
    ),
    "short session": (
        lambda rec: write_session(rec / "bo" / "s1.csv", seconds=1.5, zero=100),
        "bo: session s1 is too short",
    ),
    "few sessions": (
        lambda rec: [(rec / "bo" / f"s{k}.csv").unlink() for k in (0, 1, 2)],
        "bo: 2 session(s), but --split session needs one each",
    ),
    "two labellings": (
        lambda rec: (rec / "bouts.csv").write_text("participant,session,start,end\n"),
        "both label it",
    ),
    "bout columns": (
        lambda rec: bouts(rec, "anna,s0,1,2", header="participant,session,start,stop"),
        "bouts.csv: no column 'end'",
    ),
    "bout of nobody": (
        lambda rec: bouts(rec, "ana,s0,1,2"),
        "row 1: unknown participant 'ana', did you mean anna?",
    ),
    "bout of no session": (
        lambda rec: bouts(rec, "anna,s0,1,2", "bo,s9,1,2"),
        "row 2: bo has no session 's9'",
    ),
    "bout backwards": (
        lambda rec: bouts(rec, "anna,s0,5,2"),
        "row 1: the bout ends at 2 s, before it starts (5 s)",
    ),
    "bout of no length": (
        lambda rec: bouts(rec, "anna,s0,5,5"),
        "row 1: the bout ends at 5 s, when it starts",
    ),
    "bout without end": (lambda rec: bouts(rec, "anna,s0,5,"), "end in row 1 is empty or NaN"),
    "one bout of several outside": (
        lambda rec: bouts(rec, "anna,s0,1,2", "anna,s0,300,320"),
        "s); bouts.csv must use the same clock",
    ),
    "bout on another clock": (
        lambda rec: bouts(rec, "anna,s1,5,9"),
        "bouts.csv: row 1: the bout from 5 s to 9 s lies outside the recording rec/anna/s1.csv"
        " (100 s to 139.9 s); they would lie inside with 95 s added at least",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_bad_recordings_are_refused_in_one_line_and_nothing_is_written(call, rec, project, case):
    spoil, message = SPOILT[case]
    spoil(rec)
    before = everything(project)
    code, out, err = call(*MINE)
    assert (code, out) == (2, "")
    assert message in err
    assert (err.count("\n"), err.startswith("error: ")) == (1, True)
    assert everything(project) == before


FLAGS = {
    ("--sessions", "rec"): "data_path: give --data_path data/NAME",
    (): "sessions: give --sessions DIR, or --demo",
    ("--demo", "--window_seconds", "3"): "demo: has its own settings: leave out --window_seconds",
    (*MINE, "--time_unit", "h"): "time_unit: input should be 's', 'ms', 'us' or 'ns' (got 'h')",
    (
        *MINE,
        "--window_secnods",
        "3",
    ): "unknown argument --window_secnods, did you mean --window_seconds?",
    (
        *MINE,
        "--window_seconds",
        "2.05",
    ): "window_seconds: 2.05 s is not a whole number of samples at 10 Hz",
    (*MINE, "--window_seconds", "-1"): "window_seconds: input should be greater than 0",
    (*MINE, "--min_overlap", "1.5"): "min_overlap: ",
    (*MINE, "--min_overlap", "0"): "min_overlap: ",
    (*MINE, "--split", "random"): "split: input should be",
    (*MINE, "--channels", "ax", "gx"): "no column 'gx'",
    (*MINE, "--channels", "ax", "ax"): "channels: ax given twice",
    (*MINE, "--units", "g"): "--units: 1 for 2 channels (ax, ay)",
    (*MINE, "--data_path", "../mine"): "data_path: '../mine' leaves the project folder",
    (*MINE, "--time_unit", "ns"): (
        "s0.csv: samples are 9.975e-11 s apart by time in ns, too near for --sampling_rate 10: is"
        " time in s? give --time_unit s"
    ),
    (
        *MINE,
        "--time_unit",
        "us",
    ): "give --time_unit s; or, for a sensor this fast, a higher --sampling_rate",
    (
        *MINE,
        "--split",
        "time",
        "--window_seconds",
        "10",
    ): "anna: session s0 is too short for --split time",
}


@pytest.mark.parametrize("argv", FLAGS, ids=lambda argv: " ".join(argv[-2:]))
def test_bad_flags_are_refused_in_one_line_and_nothing_is_written(call, rec, project, argv):
    before = everything(project)
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert FLAGS[argv] in err
    assert (err.count("\n"), err.startswith("error: ")) == (1, True)
    assert everything(project) == before


@pytest.mark.parametrize(
    ("unit", "rate", "says"),
    [
        (
            1_000,
            10,
            (
                "s0.csv: samples are 100 s apart by time in s, too far for --sampling_rate 10: is"
                " time in ms? give --time_unit ms; or, "
            ),
        ),
        (1_000_000, 10, "is time in us? give --time_unit us"),
        (
            1,
            0.4,
            (
                "s0.csv: samples are 2.5 s apart by time in s, too far for --sampling_rate 10: for"
                " a sensor this slow, --sampling_rate 0.4"
            ),
        ),
    ],
)
def test_samples_that_are_too_far_apart_for_the_grid_are_refused_with_the_unit_that_fits(
    call, project, unit, rate, says
):
    write_session(project / "rec" / "anna" / "s0.csv", seconds=400, unit=unit, rate=rate)
    before = everything(project)
    code, _, err = call(*MINE)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert everything(project) == before


# 20 times slower than the grid, 10 times, and 40 times faster
@pytest.mark.parametrize("rate", [0.5, 1, 400])
def test_honest_sensors_of_other_rates_are_resampled_and_their_rate_and_time_are_said(
    call, project, rate
):
    for number in range(3):
        write_session(
            project / "rec" / "anna" / f"s{number}.csv", seconds=240, zero=1000 * number, rate=rate
        )
    code, out, err = call(*MINE)
    assert (code, err) == (0, "")
    assert f"\n0.20 h recorded, sampled at {rate:g} Hz\n" in out


def test_a_leak_between_splits_stops_the_command_and_writes_nothing(
    call, rec, project, monkeypatch
):
    honest = prepare.split_sessions

    def leaky(*arguments):
        (parts,) = honest(*arguments)
        return [{**parts, "test": [*parts["test"], *parts["val"]]}]

    monkeypatch.setattr(prepare, "split_sessions", leaky)
    before = everything(project)
    code, out, err = call(*MINE)
    assert (code, out) == (1, "")
    assert "two splits share a sample (session s" in err
    assert everything(project) == before


def test_a_full_disk_leaves_nothing_and_an_older_data_set_as_it_was(
    call, rec, project, monkeypatch
):
    honest = prepare_data.save

    def full(path, x, y):
        if path.name == "bo_test.pt":
            raise OSError(28, "No space left on device", str(path))
        honest(path, x, y)

    before = everything(project)
    with monkeypatch.context() as broken:
        broken.setattr(prepare_data, "save", full)
        code, _, err = call(*MINE)
    assert code == 2
    assert "No space left on device" in err
    assert everything(project) == before
    call(*MINE)
    before = everything(project)
    monkeypatch.setattr(prepare_data, "save", full)
    assert call(*MINE, "--split_seed", "3", "--overwrite")[0] == 2
    assert everything(project) == before


def test_what_a_killed_run_left_behind_is_used_up(call, rec, project):
    left = project / "data" / ".mine.partial"
    left.mkdir(parents=True)
    for name in ("anna_train.pt", "someone_else_train.pt"):
        (left / name).write_bytes(b"half")
    assert call(*MINE)[0] == 0
    assert sorted(path.name for path in (project / "data").iterdir()) == ["mine"]
    assert sorted(path.name for path in (project / "data" / "mine").iterdir()) == sorted(
        [
            "dataset.json",
            *(
                f"{person}_{split}{end}"
                for person in ("anna", "bo")
                for split in ("train", "val", "test")
                for end in (".pt", "_windows.csv")
            ),
            "anna_bouts.csv",
            "bo_bouts.csv",
            "overview.png",
        ]
    )


def test_a_second_one_at_the_same_time_is_refused(call, rec, project):
    with staging.staged_folder(project / "data" / "mine") as folder:
        before = everything(project)
        assert "another prepare_data.py is making it" in call(*MINE)[2]
        assert everything(project) == before
        (folder / "dataset.json").write_text("{}")
    assert (project / "data" / "mine" / "dataset.json").read_text() == "{}"


def test_data_that_a_run_reads_are_not_replaced_unless_forced(call, rec, project):
    assert call(*MINE)[0] == 0
    lock = Paths(project).data_lock("data/mine")
    with artifacts.lock(lock, wait=False, shared=True, owner="a run, process 7 on head"):
        before = everything(project)
        code, out, err = call(*MINE, "--split_seed", "7", "--overwrite")
        assert (code, out) == (2, "")
        assert "data/mine: is used by a run, process 7 on head; wait for it to end" in err
        assert "--force (that run then ends, unless the files that it reads stay the same)" in err
        assert everything(project) == before
        assert call(*MINE, "--split_seed", "7", "--overwrite", "--force")[0] == 0
    assert call(*MINE, "--split_seed", "8", "--overwrite")[0] == 0


def test_data_behind_a_link_stays_behind_it(call, rec, project, tmp_path):
    (tmp_path / "big_disk").mkdir()
    (project / "data").symlink_to(tmp_path / "big_disk")
    assert call(*MINE)[0] == 0
    assert (project / "data").is_symlink()
    assert (tmp_path / "big_disk" / "mine" / "dataset.json").is_file()
    (project / "data" / "linked").symlink_to(tmp_path / "other_disk" / "mine")
    assert call(*MINE, "--data_path", "data/linked")[0] == 0
    assert (project / "data" / "linked").is_symlink()
    assert (tmp_path / "other_disk" / "mine" / "dataset.json").is_file()


def test_every_flag_has_help(run):
    done = run("prepare_data.py", "--help")
    assert done.returncode == 0
    for name, field in Preparation.model_fields.items():
        assert field.description
        assert f"--{name}" in done.stdout


def test_the_demo_command_makes_real_data_and_is_idempotent(run, project):
    wheel = demo_wheel()
    (project / "cache").mkdir()
    os.link(wheel, project / "cache" / wheel.name)
    done = run("prepare_data.py", "--demo")
    assert (done.returncode, done.stderr) == (0, "")
    folder = project / "data" / "watch"
    manifest = read_manifest(folder)
    assert list(manifest.participants) == [f"p{number:02d}" for number in range(1, 11)]
    assert (manifest.window_size, manifest.sampling_rate_hz, manifest.split["rule"]) == (
        100,
        50.0,
        "time",
    )
    assert all(
        0 < counts.positives < counts.windows
        for splits in manifest.participants.values()
        for counts in splits.values()
    )
    assert assert_apart(folder, 100, 50) == sum(
        counts.windows for splits in manifest.participants.values() for counts in splits.values()
    )
    tenths = [
        subset_sizes(counts["train"].windows - positives, positives, 0.1, "random")
        for counts in manifest.participants.values()
        for positives in [counts["train"].positives]
    ]
    fewest, most = (f([sum(sizes) for sizes in tenths]) for f in (min, max))
    low, high = (f([positives for _, positives in tenths]) for f in (min, max))
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"({fewest} to {most}, of which {low} to {high} are positive)" in said
    again = run("prepare_data.py", "--demo")
    assert (again.returncode, again.stdout) == (0, "data/watch is up to date\n")
