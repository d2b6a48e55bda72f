"""Labels and annotations."""

import numpy as np
import pytest

from common.data.bouts import (
    POSITIVE,
    UNKNOWN,
    Bout,
    BoutTable,
    annotated_bouts,
    bouts_inside,
    label_runs,
    read_bouts,
)
from common.data.clock import Clock, ClockRules, SetBack, Stamps, read_clock
from common.data.sessions import Part
from common.errors import InputError
from tests.unit.data.made_sessions import session


def test_an_annotation_is_clipped_to_what_was_recorded_inside_it():
    broken = session(
        seconds=30, gaps=[(10, 14)], bouts=[(8, 12), (11, 13), (9, 20), (28, 40), (21, 22)]
    )
    rows = annotated_bouts([broken], {"train": [Part(broken, 0, 200)], "val": [], "test": []})
    # A gap inside a bout does not make two of it; one in the gap alone is not there.
    assert rows == [
        ("s1", 8.0, 10.0, "train"),
        ("s1", 9.0, 20.0, "train"),
        ("s1", 21.0, 22.0, ""),
        ("s1", 28.0, 30.0, ""),
    ]


def test_a_run_of_labels_lasts_an_interval_beyond_its_last_sample():
    labels, times = np.array([0, 1, 1, 0, -1, 1], np.int8), np.arange(6) / 10
    assert label_runs(labels, times, POSITIVE) == pytest.approx(np.array([[0.1, 0.3], [0.5, 0.6]]))
    assert label_runs(labels, times, UNKNOWN) == pytest.approx(np.array([[0.4, 0.5]]))


def test_bouts_and_stretches_of_unknown_label_are_told_apart(tmp_path):
    (tmp_path / "bouts.csv").write_text(
        "participant,session,start,end,label\n"
        "ann,s1,1,2,\nann,s1,3,4,1\nann,s1,5,6,-1\nann,s1,7,8,Exclude\n"
    )
    table = read_bouts(tmp_path, {"ann": ["s1"]}, "s")
    labels = [bout.label for bout in table.rows["ann", "s1"]]
    assert labels == [POSITIVE, POSITIVE, UNKNOWN, UNKNOWN]
    clock = Clock(0.0, np.arange(20.0))
    positive, unknown = bouts_inside("s1", table, table.rows["ann", "s1"], clock, table.form)
    assert positive.tolist() == [[1, 2], [3, 4]]
    assert unknown.tolist() == [[5, 6], [7, 8]]


def placed(tmp_path, *bouts):
    """Bouts on a clock that shows 0 to 100 s, is set back by 29 s, and goes on to 120 s."""
    clock = Clock(0.0, np.arange(151.0), set_backs=(SetBack(101, 100.0, 71.0, 30.0),))
    table = BoutTable(tmp_path / "bouts.csv", "number", {})
    rows = [Bout(number, *times, POSITIVE) for number, times in enumerate(bouts, 1)]
    return bouts_inside("s1", table, rows, clock, "number")[0].tolist()


def test_a_bout_after_the_clock_was_set_back_lies_as_much_later(tmp_path):
    assert placed(tmp_path, (10, 20), (105, 110)) == [[10, 20], [135, 140]]
    with pytest.raises(InputError, match=r"row 1: the clock of this recording shows 71 to 100 s"):
        placed(tmp_path, (80, 90))
    with pytest.raises(InputError, match="row 1: the bout from 200 s to 210 s lies outside"):
        placed(tmp_path, (200, 210))


@pytest.mark.parametrize("times_set_back", [1, 5, 50])
def test_a_bout_that_starts_at_a_rows_stamp_lies_at_that_row(tmp_path, times_set_back):
    # 100 rows, set back to 3 s before the last of them, 100 rows, and so on
    stamps = np.concatenate([96 * k + np.arange(100) for k in range(times_set_back + 1)])
    rules = ClockRules("time", "s", 1.0, None, repair=True)
    clock = read_clock("s1", Stamps(stamps, 1, "number"), rules)
    assert len(clock.set_backs) == times_set_back
    row = len(stamps) - 20
    bout = Bout(1, float(stamps[row]), float(stamps[row]) + 5, POSITIVE)
    table = BoutTable(tmp_path / "bouts.csv", "number", {})
    starts = bouts_inside("s1", table, [bout], clock, "number")[0][:, 0]
    assert starts.tolist() == [clock.times[row]]
