"""Splits of sessions, without files."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.sessions import covered
from common.data.splits import FRACTIONS, SplitRule, spans, split_sessions, time_blocks
from common.data.windowing import Labelling
from common.errors import InputError
from tests.unit.data.made_sessions import RATE, cut, session, split, split_of_samples


def test_no_sample_stands_in_two_splits():
    split_or_not = []

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def each(data):
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
                    st.lists(st.tuples(st.integers(-5, 290), st.integers(1, 80)), max_size=4),
                    "bouts",
                )
            ]
            gaps = [(seconds / 3, seconds / 3 + 1)] if data.draw(st.booleans(), "gap") else []
            sessions.append(
                session(f"s{number}", seconds, bouts, start_s=clocks * number, gaps=gaps)
            )
        try:
            held = split_of_samples(
                sessions, rule, length, stride, seed=data.draw(st.integers(0, 5), "seed")
            )
        except InputError:
            split_or_not.append(False)
            return
        split_or_not.append(True)
        assert not held["train"] & held["val"]
        assert not held["train"] & held["test"]
        assert not held["val"] & held["test"]

    each()
    most(split_or_not)


def most(outcomes):
    """Most examples were split: a rule that refuses everything keeps every promise."""
    assert outcomes.count(True) > 0.8 * len(outcomes), outcomes.count(True) / len(outcomes)


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
        split([session("s1"), session("s2", seconds=1), session("s3")], "session", 20, "any", 0)
    with pytest.raises(
        InputError, match=r"2 session\(s\), but --split chronological needs one each"
    ):
        split([session("s1"), session("s2")], "chronological", 20)


def names(parts):
    return {split: [part.session.name for part in own] for split, own in parts.items()}


def test_chronological_trains_on_the_earlier_and_tests_on_the_latest():
    sessions = [session(f"s{k}", seconds=60, start_s=100.0 * (9 - k)) for k in range(10)]
    parts = names(split(sessions, "chronological", 20, seed=0))
    assert parts == {
        "train": ["s9", "s8", "s7", "s6", "s5", "s4"],
        "val": ["s3", "s2"],
        "test": ["s1", "s0"],
    }


def test_session_split_gives_every_split_both_classes_where_three_sessions_have_them():
    # Ten sessions, bouts in three of them only: a draw of folds alone would often leave val or test
    # without a positive.
    sessions = [session(f"s{k}", bouts=[(10, 20)] if k in (2, 3, 7) else []) for k in range(10)]
    for seed in range(8):
        parts = split(sessions, "session", 20, seed=seed)
        assert [len(parts[split]) for split in ("train", "val", "test")] == [6, 2, 2]
        assert all(cut(own, 20, 10).y.any() for own in parts.values())


@pytest.mark.parametrize("longer", [0, 1], ids=["equal sessions", "unequal sessions"])
def test_session_split_follows_its_seed(longer):
    sessions = [
        session(f"s{k}", seconds=60 + longer * k, bouts=[(10, 20 + longer * k)]) for k in range(12)
    ]
    chosen = [names(split(sessions, "session", 20, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert any(other != chosen[0] for other in chosen[2:])


@pytest.mark.parametrize("seed", range(5))
def test_session_split_balances_sessions_of_unequal_length(seed):
    lengths = [14, 48, 20, 35, 41, 17, 29, 23, 44, 31]
    sessions = [
        session(f"s{k}", seconds=length, bouts=[(3, 3 + length / 4)])
        for k, length in enumerate(lengths)
    ]
    parts = split(sessions, "session", 10, seed=seed)
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
        parts = split([session(f"s{k}", bouts=bouts) for k in range(count)], "session", 600)
    assert all(parts.values())
    assert sum(map(len, parts.values())) == count


def shares(parts, measure):
    """Share of each split."""
    sums = {name: sum(map(measure, own)) for name, own in parts.items()}
    return {name: value / sum(sums.values()) for name, value in sums.items()}


def positive(part):
    """Positive samples of a part."""
    return float(covered(part.session.bouts, np.array([part.begin]), part.end - part.begin)[0])


@pytest.mark.parametrize("seed", range(4))
def test_blocks_give_each_split_its_share_of_positive_time_in_a_protocol(seed):
    # Two sessions in which all of the positive class comes at the end, as 12 bouts of 15 s.
    bouts = [(400 + 17 * k, 415 + 17 * k) for k in range(12)]
    sessions = [session(f"s{k}", seconds=620, bouts=bouts, start_s=1000 * k) for k in range(2)]
    parts = split(sessions, "blocks", 20, seed=seed, block=200)
    for name, share in shares(parts, positive).items():
        assert FRACTIONS[name] / 2 <= share <= FRACTIONS[name] * 2
    for name, share in shares(parts, lambda part: part.end - part.begin).items():
        assert FRACTIONS[name] / 1.5 <= share <= FRACTIONS[name] * 1.5
    # The time split leaves training without any.
    assert shares(split(sessions, "time", 20), positive)["train"] < 0.1


def test_blocks_keep_a_gap_and_never_cut_a_bout():
    split_or_not = []

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 2990), st.integers(1, 400)), max_size=12),
        st.integers(2, 40),
        st.integers(0, 9),
    )
    def each(bouts, length, seed):
        ranges = [(a / RATE, min(a + d, 2999) / RATE) for a, d in bouts if a > 0]
        whole = session(seconds=300, bouts=ranges, gaps=[(100, 104)])
        try:
            parts = split([whole], "blocks", length, seed=seed, block=4 * length)
        except InputError:
            split_or_not.append(False)
            return
        split_or_not.append(True)
        found = sorted((part.begin, part.end, name) for name, own in parts.items() for part in own)
        for (_, end, name), (begin, _, after) in pairwise(found):
            assert begin >= end + (length if name != after else 0)
        for start, end in whole.bouts:
            inside = [(b, e) for b, e, _ in found if min(end, e) > max(start, b)]
            assert len(inside) <= 1
            assert all(b <= start and end <= e for b, e in inside)

    each()
    most(split_or_not)


@pytest.mark.parametrize("seed", range(3))
def test_a_window_lies_between_blocks_of_different_splits(seed):
    whole = session(seconds=300, bouts=[(50, 60), (150, 170)])
    parts = split([whole], "blocks", 20, seed=seed, block=200)
    found = sorted((part.begin, part.end, name) for name, own in parts.items() for part in own)
    gaps = [begin - end for (_, end, a), (begin, _, b) in pairwise(found) if a != b]
    assert len(gaps) >= 2
    assert min(gaps) >= 20


@pytest.mark.parametrize("rule", ["session", "blocks"])
def test_with_folds_each_session_or_block_is_tested_once(rule):
    sessions = [session(f"s{k}", bouts=[(10, 20)], start_s=100 * k) for k in range(7)]
    folds = split_sessions(sessions, SplitRule(rule, 3, 100, folds=4), Labelling(10, 5))
    assert len(folds) == 4
    tested = [
        (p.session.name, k) for parts in folds for p in parts["test"] for k in range(p.begin, p.end)
    ]
    assert len(tested) == len(set(tested))
    # What the gaps between blocks take is not tested.
    assert len(tested) >= (1 if rule == "session" else 0.75) * 7 * 600
    for parts in folds:
        assert all(parts.values())
        assert shares(parts, positive)["test"] == pytest.approx(1 / 4, abs=0.15)


def test_too_few_blocks_or_sessions_for_the_folds_are_named():
    with pytest.raises(InputError, match=r"2 session\(s\), but --split session needs 4 to test"):
        split_sessions([session("a"), session("b")], SplitRule("session", folds=4), Labelling(9, 9))
    with pytest.raises(InputError, match=r"only 1 block\(s\) of 60 s that cut no bout"):
        split([session("a")], "blocks", 20, block=600)


@pytest.mark.parametrize(
    ("number", "folds", "advice"),
    [
        (2, 1, "or use --split time or blocks"),
        (2, 4, "or use --split blocks"),
        (3, 4, "or use --split_folds 3 or --split blocks"),
    ],
)
def test_what_is_advised_with_too_few_sessions_is_possible(number, folds, advice):
    """--split time goes without --split_folds, of which there are three at least."""
    sessions = [session(f"s{k}", bouts=[(10, 20)], start_s=100 * k) for k in range(number)]
    with pytest.raises(InputError, match=rf"; record more {advice}$"):
        split_sessions(sessions, SplitRule("session", folds=folds), Labelling(9, 9))
    advised = [SplitRule("blocks", 0, 100, folds)]
    advised += [SplitRule("session", folds=number)] if number == 3 else []
    for rule in advised:
        assert len(split_sessions(sessions, rule, Labelling(9, 9))) == rule.folds


def test_fewer_folds_are_advised_where_there_are_blocks_for_them():
    with pytest.raises(InputError, match=r"or use --split_folds 3 or --split session$"):
        split_sessions([session("a")], SplitRule("blocks", 0, 200, folds=4), Labelling(20, 20))
