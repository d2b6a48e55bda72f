"""Sessions, their order and ranges."""

import numpy as np

from common.data.sessions import Session, in_order, merge_ranges, natural
from tests.unit.data.made_sessions import session


def test_bouts_that_overlap_or_touch_are_one():
    np.testing.assert_array_equal(
        merge_ranges(np.array([[5.0, 9], [0, 2], [2, 3], [6, 7]])), [[0, 3], [5, 9]]
    )


def test_where_clocks_overlap_the_names_give_the_order():
    ordered, by_clock = in_order([session("s10"), session("s2"), session("s1")])
    assert ([s.name for s in ordered], by_clock) == (["s1", "s2", "s10"], False)
    ordered, by_clock = in_order([session("s1", start_s=100), session("s2", start_s=0)])
    assert ([s.name for s in ordered], by_clock) == (["s2", "s1"], True)
    assert not in_order([session("s1", start_s=0), session("s2", start_s=59)])[1]
    assert sorted(["b", "a10", "a9", "10", "9"], key=natural) == ["9", "10", "a9", "a10", "b"]


def test_a_session_knows_how_much_was_recorded():
    assert isinstance(session(), Session)
    assert session(seconds=30, gaps=[(10, 14)]).recorded == 260
