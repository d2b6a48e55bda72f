"""Sessions, windows and splits, without files."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.windowing import (
    Part,
    Session,
    annotated_bouts,
    covered_hours,
    cut_windows,
    in_order,
    label_windows,
    make_session,
    merge_bouts,
    natural,
    shared_sample,
    spans,
    split_sessions,
    time_blocks,
)
from common.errors import InputError

RATE = 10.0
NO_BOUTS = np.zeros((0, 2))


def session(name="s1", seconds=60.0, bouts=(), start_s=0.0, rate=RATE, gaps=()):
    """A session whose two channels are the sample number and its negative; `gaps` are (from, to) in
    seconds.
    """
    times = np.arange(round(seconds * rate)) / rate
    for begin, end in gaps:
        times = times[(times < begin) | (times >= end)]
    values = np.stack([times * rate, -times * rate], axis=1)
    return make_session(
        name, start_s, times, values, np.array(bouts, float).reshape(-1, 2), rate, None
    )


def split_of_samples(sessions, rule, length, stride=1, seed=0):
    """Which samples each split's windows hold, told by their values (the sample number), as {split:
    {(session, sample)}}.
    """
    parts = split_sessions(sessions, rule, length, "any", seed)
    held = {}
    for split, own in parts.items():
        windows = cut_windows(own, length, stride, "any", 2)
        assert windows.x.dtype == np.float32
        assert windows.x.shape == (len(windows.y), 2, length)
        held[split] = {
            (name, round(float(k)))
            for name, window in zip(windows.sessions, windows.x, strict=True)
            for k in window[0]
        }
    return held


def test_a_regular_recording_at_the_grid_rate_is_unchanged():
    values = np.random.default_rng(0).normal(size=(200, 3))
    made = make_session("s", 0.0, np.arange(200) / 50, values, NO_BOUTS, 50.0)
    np.testing.assert_array_equal(made.values, values.astype(np.float32))
    assert made.pieces == ((0, 200),)


def test_uneven_times_are_put_on_the_grid_linearly():
    times = np.arange(100) / RATE + np.random.default_rng(1).uniform(-0.04, 0.04, 100)
    times -= times[0]
    made = make_session(
        "s", 0.0, times, np.stack([3 * times + 1], axis=1), NO_BOUTS, RATE, max_gap_s=1.0
    )
    np.testing.assert_allclose(
        made.values[:, 0], 3 * np.arange(len(made.values)) / RATE + 1, rtol=1e-6
    )


def test_what_was_sampled_faster_is_low_passed_before_it_is_thinned():
    times = np.arange(2000) / 200
    # at 50 Hz, 47 Hz would look like 3 Hz
    slow, fast = np.sin(2 * np.pi * 2 * times), np.sin(2 * np.pi * 47 * times)
    kept = make_session("s", 0.0, times, slow[:, None], NO_BOUTS, 50.0).values[50:-50, 0]
    gone = make_session("s", 0.0, times, fast[:, None], NO_BOUTS, 50.0).values[50:-50, 0]
    np.testing.assert_allclose(kept, slow[::4][50:-50], atol=0.01)
    assert np.abs(gone).max() < 0.01


@pytest.mark.parametrize("times_faster", [1.1, 2, 100, 9999])
def test_the_low_pass_keeps_slow_signals_at_any_ratio(times_faster):
    times = np.arange(int(8 * RATE * times_faster)) / (RATE * times_faster)
    made = make_session("s", 0.0, times, np.sin(2 * np.pi * 0.5 * times)[:, None], NO_BOUTS, RATE)
    np.testing.assert_allclose(
        made.values[5:-5, 0],
        np.sin(2 * np.pi * 0.5 * np.arange(len(made.values)) / RATE)[5:-5],
        atol=0.02,
    )


def test_a_gap_breaks_the_session_and_no_window_spans_it():
    broken = session(seconds=30, gaps=[(10, 14)])
    assert broken.pieces == ((0, 100), (140, 300))
    windows = cut_windows([Part(broken, 0, 300)], 20, 5, "any", 2)
    assert np.isfinite(windows.x).all()
    assert not any(80 < start * RATE < 140 for start in windows.starts_s)


def test_a_pause_shorter_than_the_given_gap_is_bridged():
    times = np.concatenate([np.arange(50), np.arange(60, 100)]) / RATE
    assert (
        len(make_session("s", 0.0, times, times[:, None], NO_BOUTS, RATE, max_gap_s=2.0).pieces)
        == 1
    )
    assert (
        len(make_session("s", 0.0, times, times[:, None], NO_BOUTS, RATE, max_gap_s=0.5).pieces)
        == 2
    )


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


def test_bouts_that_overlap_or_touch_are_one():
    np.testing.assert_array_equal(
        merge_bouts(np.array([[5.0, 9], [0, 2], [2, 3], [6, 7]])), [[0, 3], [5, 9]]
    )


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [("any", [0, 1, 1, 1, 0]), (0.5, [0, 0, 1, 1, 0]), (1.0, [0, 0, 1, 0, 0])],
)
def test_a_window_is_positive_when_bouts_cover_enough_of_it(overlap, expected):
    bouts = np.array([[18.0, 30], [30.5, 36]])
    assert label_windows(bouts, np.array([0, 10, 20, 30, 40]), 10, overlap).tolist() == expected


@given(
    st.lists(st.tuples(st.floats(-20, 120), st.floats(0.01, 30)), max_size=6),
    st.integers(1, 30),
    st.one_of(st.just("any"), st.floats(0.05, 1)),
)
def test_labels_agree_with_counting_small_slices(bouts, length, overlap):
    merged = merge_bouts(np.round(np.array([(a, a + d) for a, d in bouts]).reshape(-1, 2), 2))
    starts = np.arange(0, 100, 7)
    slices = np.arange(-2000, 20000) / 100 + 0.005  # hundredths of a sample, by their middles
    inside = np.zeros(len(slices), bool)
    for start, end in merged:
        inside |= (slices > start) & (slices < end)
    covered = np.array(
        [inside[(slices > start) & (slices < start + length)].sum() / 100 for start in starts]
    )
    if overlap != "any":
        clear = np.abs(covered - overlap * length) > 1e-3
        assert (label_windows(merged, starts, length, overlap) == (covered >= overlap * length))[
            clear
        ].all()
    else:
        assert (label_windows(merged, starts, length, "any") == (covered > 0)).all()


def test_windows_say_where_they_begin_on_the_recordings_own_clock():
    windows = cut_windows([Part(session(start_s=1700000000.5), 13, 60)], 20, 10, "any", 2)
    assert windows.starts_s == [1700000001.8, 1700000002.8, 1700000003.8]
    assert windows.x[1, 0].tolist() == list(range(23, 43))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_sample_stands_in_two_splits(data):
    length, stride = (
        data.draw(st.integers(2, 12), "length"),
        data.draw(st.integers(1, 15), "stride"),
    )
    rule = data.draw(st.sampled_from(["session", "chronological", "time"]), "rule")
    clocks = data.draw(st.sampled_from([0.0, 1000.0]), "apart")
    sessions = []
    for number in range(data.draw(st.integers(3, 7), "sessions")):
        seconds = data.draw(st.integers(5 * length + 20, 300), "samples") / RATE
        bouts = [
            (a / 10, (a + d) / 10)
            for a, d in data.draw(
                st.lists(st.tuples(st.integers(-5, 290), st.integers(1, 80)), max_size=4), "bouts"
            )
        ]
        gaps = [(seconds / 3, seconds / 3 + 1)] if data.draw(st.booleans(), "gap") else []
        sessions.append(session(f"s{number}", seconds, bouts, start_s=clocks * number, gaps=gaps))
    try:
        held = split_of_samples(
            sessions, rule, length, stride, seed=data.draw(st.integers(0, 5), "seed")
        )
    except InputError:
        return
    assert not held["train"] & held["val"]
    assert not held["train"] & held["test"]
    assert not held["val"] & held["test"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2990), st.integers(1, 900)), max_size=8), st.integers(1, 60)
)
def test_time_blocks_keep_a_gap_and_never_cut_a_bout(bouts, length):
    whole = session(
        seconds=300, bouts=[(a / RATE, min(a + d, 2999) / RATE) for a, d in bouts if a > 0]
    )
    blocks = time_blocks(whole, length)
    (a0, a1), (b0, b1), (c0, c1) = (blocks[split] for split in ("train", "val", "test"))
    assert 0 == a0 <= a1 <= 3000
    assert c1 == 3000
    assert b0 >= min(a1 + length, 3000)
    assert c0 >= min(b1 + length, 3000)
    for start, end in whole.bouts:
        assert sum(min(end, stop) > max(start, begin) for begin, stop in blocks.values()) <= 1


def test_time_blocks_are_60_20_20_of_what_the_gaps_leave():
    blocks = time_blocks(session(seconds=104), 20)
    assert blocks == {"train": (0, 600), "val": (620, 820), "test": (840, 1040)}


def test_a_boundary_inside_a_bout_moves_to_its_nearer_end():
    blocks = time_blocks(session(seconds=104, bouts=[(58, 70), (81, 90)]), 20)
    assert blocks["train"] == (0, 580)
    assert blocks["val"] == (700, 810)  # not in the bout's second half either
    assert blocks["test"] == (900, 1040)


def test_a_bout_from_end_to_end_is_the_sessions_label_and_is_divided():
    whole = session(seconds=104, bouts=[(0, 104)])
    assert spans(whole)
    assert time_blocks(whole, 20)["train"] == (0, 600)
    assert not spans(session(seconds=104, bouts=[(0, 90)]))


def test_a_session_too_short_for_its_rule_is_named():
    with pytest.raises(
        InputError, match=r"session s1 is too short for --split time: 9 s, but .* take 10 s"
    ):
        time_blocks(session(seconds=9), 20)
    with pytest.raises(InputError, match="session s2 is too short"):
        split_sessions(
            [session("s1"), session("s2", seconds=1), session("s3")], "session", 20, "any", 0
        )
    with pytest.raises(
        InputError, match=r"2 session\(s\), but --split chronological needs one each"
    ):
        split_sessions([session("s1"), session("s2")], "chronological", 20, "any", 0)


def names(parts):
    return {split: [part.session.name for part in own] for split, own in parts.items()}


def test_chronological_trains_on_the_earlier_and_tests_on_the_latest():
    sessions = [session(f"s{k}", seconds=60, start_s=100.0 * (9 - k)) for k in range(10)]
    parts = names(split_sessions(sessions, "chronological", 20, "any", 0))
    assert parts == {
        "train": ["s9", "s8", "s7", "s6", "s5", "s4"],
        "val": ["s3", "s2"],
        "test": ["s1", "s0"],
    }


def test_where_clocks_overlap_the_names_give_the_order():
    ordered, by_clock = in_order([session("s10"), session("s2"), session("s1")])
    assert ([s.name for s in ordered], by_clock) == (["s1", "s2", "s10"], False)
    assert in_order([session("s2", start_s=0), session("s1", start_s=100)])[1]
    assert sorted(["b", "a10", "a9", "10", "9"], key=natural) == ["9", "10", "a9", "a10", "b"]


def test_session_split_gives_every_split_both_classes_where_three_sessions_have_them():
    # Ten sessions, bouts in three of them only: a draw of folds alone would often leave val or test
    # without a positive.
    sessions = [session(f"s{k}", bouts=[(10, 20)] if k in (2, 3, 7) else []) for k in range(10)]
    for seed in range(8):
        parts = split_sessions(sessions, "session", 20, "any", seed)
        assert [len(parts[split]) for split in ("train", "val", "test")] == [6, 2, 2]
        assert all(cut_windows(own, 20, 10, "any", 2).y.any() for own in parts.values())


@pytest.mark.parametrize("longer", [0, 1], ids=["equal sessions", "unequal sessions"])
def test_session_split_follows_its_seed(longer):
    sessions = [
        session(f"s{k}", seconds=60 + longer * k, bouts=[(10, 20 + longer * k)]) for k in range(12)
    ]
    chosen = [
        names(split_sessions(sessions, "session", 20, "any", seed)) for seed in (0, 0, 1, 2, 3)
    ]
    assert chosen[0] == chosen[1]
    assert any(other != chosen[0] for other in chosen[2:])


@pytest.mark.parametrize("seed", range(5))
def test_session_split_balances_sessions_of_unequal_length(seed):
    lengths = [14, 48, 20, 35, 41, 17, 29, 23, 44, 31]
    sessions = [
        session(f"s{k}", seconds=length, bouts=[(3, 3 + length / 4)])
        for k, length in enumerate(lengths)
    ]
    parts = split_sessions(sessions, "session", 10, "any", seed)
    shares = {
        split: (
            sum(part.end - part.begin for part in parts[split])
            / sum(len(s.values) for s in sessions)
        )
        for split in parts
    }
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.07)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@pytest.mark.parametrize("bouts", [[], [(0, 60)], [(5, 6)]])
def test_session_split_fills_every_split_without_a_warning(count, bouts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = split_sessions(
            [session(f"s{k}", bouts=bouts) for k in range(count)], "session", 600, "any", 0
        )
    assert all(parts.values())
    assert sum(map(len, parts.values())) == count


def test_the_proof_finds_a_single_shared_sample_and_nothing_else():
    apart = {"train": [("a", 0.0), ("a", 1.0)], "val": [("a", 3.0), ("b", 0.0)], "test": []}
    assert shared_sample(apart, 2.0, RATE) is None
    found = shared_sample(apart | {"test": [("a", 4.9)]}, 2.0, RATE)
    assert found == "session a: the val window at 3 s and the test window at 4.9 s"


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(0, 60), st.sampled_from(["train", "val", "test"])
        ),
        max_size=12,
    ),
    st.integers(1, 10),
)
def test_the_proof_agrees_with_comparing_sets_of_samples(rows, length):
    held = {
        split: {(s, start + k) for s, start, own in rows if own == split for k in range(length)}
        for split in ("train", "val", "test")
    }
    shares = bool(
        held["train"] & held["val"] or held["train"] & held["test"] or held["val"] & held["test"]
    )
    listed = {
        split: [(s, start / RATE) for s, start, own in rows if own == split] for split in held
    }
    assert (shared_sample(listed, length / RATE, RATE) is not None) == shares


def test_a_session_knows_how_much_was_recorded():
    assert isinstance(session(), Session)
    assert session(seconds=30, gaps=[(10, 14)]).recorded == 260


def test_covered_time_counts_overlaps_once_in_each_session_in_any_order():
    places = [("b", 0.0), ("a", 5.0), ("a", 0.0), ("a", 1.0), ("a", 1.0), ("b", 1.5)]
    # a: 0 to 3 and 5 to 7; b: 0 to 3.5
    assert covered_hours(places, 2.0) * 3600 == pytest.approx(3 + 2 + 3.5)
    assert covered_hours([("a", 7.0)], 2.0) * 3600 == pytest.approx(2)
    assert covered_hours([], 2.0) == 0


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=20), st.integers(1, 8)
)
def test_covered_hours_count_each_second_of_a_session_once(places, seconds):
    once = {
        (session, second) for session, start in places for second in range(start, start + seconds)
    }
    assert covered_hours(places, seconds) == pytest.approx(len(once) / 3600)
