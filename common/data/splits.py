"""Splits of one person's sessions into train, val and test. Arrays only: no files, no torch.

They are decided on whole sessions or on blocks of them *before* any window is cut, so that
overlapping windows can never carry a sample from one split into another:

    session        whole sessions, stratified: how well the model does on another occasion
    chronological  earlier sessions train, the latest test: how well it does later on
    time           three blocks of each session: how well it does later in the same occasion; the
                   mildest test, since posture, strap and surroundings are those of training
    blocks         many blocks of each session, assigned so that each split has its share of
                   positive time: for protocols, in which one class comes after the other

Between blocks of different splits lies a gap of at least one window, and no boundary cuts a bout.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from common.data.sessions import Floats, Ints, Part, Session, in_order
from common.data.windowing import Labelling, label_windows, window_starts
from common.errors import InputError
from common.paths import SPLITS

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}
SHARES = np.array([FRACTIONS[split] for split in SPLITS])
FEWEST = 3  # sessions or blocks: one for each split; so many folds, too
DRAWS = 10  # of stratified folds
NEAR = 0.1  # splits whose distances from 60/20/20 differ by less are as good as each other
BLOCK_DRAWS = 60
MOST_BLOCKS_DRAWN = 20_000
Parts = dict[str, list[Part]]
Ranges = Sequence[tuple[int, int]]


def split_shares(folds: int) -> Floats:
    """The share of train, val and test; with several folds, one is tested and one is val."""
    return SHARES if folds == 1 else np.array([folds - 2, 1, 1]) / folds


@dataclass(frozen=True)
class SplitRule:
    """How splits are made.

    Attributes:
        name: session, chronological, time or blocks.
        block: samples in a block (blocks).
        folds: so many data sets, in each of which other sessions or blocks are tested (1: one).
    """

    name: str
    seed: int = 0
    block: int = 0
    folds: int = 1


def split_sessions(sessions: Sequence[Session], rule: SplitRule, how: Labelling) -> list[Parts]:
    """The parts of one person's sessions that belong to train, val and test, in time order; one
    such split for each of `rule.folds`.

    Raises:
        InputError: too few sessions, or one too short, for this rule.
    """
    ordered, _ = in_order(sessions)
    for session in ordered:
        if max((end - begin for begin, end in session.pieces), default=0) < how.length:
            raise InputError(
                f"session {session.name} is too short: no stretch of"
                f" {how.length / session.rate:g} s without a gap; leave it out or shorten"
                " --window_seconds"
            )
    if rule.name == "time":
        return [_by_time(ordered, how.length)]
    if rule.name == "blocks":
        return _by_blocks(ordered, rule, how)
    if len(ordered) < max(FEWEST, rule.folds):
        raise InputError(_too_few_sessions(len(ordered), rule))
    if rule.name == "chronological":
        return [_whole(ordered, _chronological(ordered))]
    return [_whole(ordered, places) for places in _stratified(ordered, rule, how)]


def _too_few_sessions(number: int, rule: SplitRule) -> str:
    """What is wrong, and what can be done: with folds, not every other split."""
    if rule.folds == 1:
        needed, others = "one each for train, val and test", "--split time or blocks"
    else:
        needed, others = f"{rule.folds} to test in turn", f"{_fewer_folds(number)}--split blocks"
    return (
        f"{number} session(s), but --split {rule.name} needs {needed}; record more or use {others}"
    )


def _fewer_folds(number: int) -> str:
    """Advice where so many sessions or blocks can be tested in turn."""
    return f"--split_folds {number} or " if number >= FEWEST else ""


def _whole(ordered: Sequence[Session], places: Sequence[str]) -> Parts:
    return {
        split: [
            Part(session, 0, len(session.values))
            for session, place in zip(ordered, places, strict=True)
            if place == split
        ]
        for split in SPLITS
    }


# -- whole sessions


def _chronological(ordered: Sequence[Session]) -> list[str]:
    """Split of each session: cuts where 60 and 80 % of the recorded time are nearest, at least one
    session each.
    """
    after = np.cumsum([session.recorded for session in ordered])
    first = int(np.argmin(np.abs(after[:-2] - FRACTIONS["train"] * after[-1]))) + 1
    second = (
        int(np.argmin(np.abs(after[first:-1] - (1 - FRACTIONS["test"]) * after[-1]))) + first + 1
    )
    return ["train"] * first + ["val"] * (second - first) + ["test"] * (len(ordered) - second)


def _stratified(
    ordered: Sequence[Session], rule: SplitRule, how: Labelling
) -> list[tuple[str, ...]]:
    """Split of each session by StratifiedGroupKFold: one fold each for val and test, the rest
    trains.

    Several draws of folds are made (it is greedy, and breaks ties by order). Of all their pairs of
    folds, those count that leave no split without a class and come nearest to 60/20/20 of windows
    and of positives; among the nearly equal ones the seed chooses. With several folds the draw
    counts whose folds, each tested once, do so together.
    """
    random = np.random.default_rng(rule.seed)
    labels = [_end_to_end_labels(session, how) for session in ordered]
    sizes = np.array([[len(part), part.sum()] for part in labels], float)
    found: dict[tuple[tuple[str, ...], ...], tuple[int, int, float]] = {}
    for _ in range(DRAWS):
        groups = _drawn_groups(labels, rule.folds if rule.folds > 1 else 5, random)
        for places in _assignments(groups, rule.folds):
            worst = [_imbalance(place, sizes, split_shares(rule.folds)) for place in places]
            empty, missing, distance = (sum(one) for one in zip(*worst, strict=True))
            found[places] = (int(empty), int(missing), round(float(distance) / len(places), 9))
    best = min(found.values())
    near = sorted(
        places for places, how in found.items() if how[:2] == best[:2] and how[2] <= best[2] + NEAR
    )
    return list(near[random.integers(len(near))])


def _end_to_end_labels(session: Session, how: Labelling) -> Ints:
    """Labels of windows laid end to end."""
    starts = window_starts(Part(session, 0, len(session.values)), how.length, how.length)
    labels = label_windows(session, starts, how)
    return labels[labels >= 0] if (labels >= 0).any() else np.zeros(1, np.int64)


def _drawn_groups(labels: Sequence[Ints], folds: int, random: np.random.Generator) -> list[int]:
    """The fold of each session, in one draw."""
    from sklearn.model_selection import StratifiedGroupKFold

    number = min(folds, len(labels))
    # Its own shuffle=True (scikit-learn 1.5 to 1.7) shuffles class counts away from their groups.
    renamed = random.permutation(len(labels)).tolist()
    # Each label counts `number` times, which changes no share and spares small sets the class-size
    # complaint.
    repeated = [np.repeat(own, number) for own in labels]
    groups = np.repeat(renamed, [len(own) for own in repeated])
    draw = StratifiedGroupKFold(number).split(
        np.zeros(len(groups)), np.concatenate(repeated), groups
    )
    fold_of = {
        group: fold for fold, (_, rows) in enumerate(draw) for group in set(groups[rows].tolist())
    }
    return [fold_of[group] for group in renamed]


def _assignments(groups: Sequence[int], folds: int) -> list[tuple[tuple[str, ...], ...]]:
    """The splits that groups of sessions (or blocks) allow: each pair of groups as val and test,
    or, with several folds, each group tested once and the next one val.
    """
    number = max(groups) + 1

    def places(val: int, test: int) -> tuple[str, ...]:
        return tuple("val" if g == val else "test" if g == test else "train" for g in groups)

    if folds > 1:
        return [tuple(places((k + 1) % folds, k) for k in range(folds))]
    return [(places(val, test),) for val, test in permutations(range(number), 2)]


def _imbalance(places: Sequence[str], sizes: Floats, target: Floats) -> tuple[int, int, float]:
    """How bad an assignment is: empty splits, classes missing from splits, distance from the
    target shares.

    Args:
        sizes: [sessions, (windows, positives)].
    """
    inside = np.array([sizes[np.array(places) == split].sum(axis=0) for split in SPLITS])
    windows, positives = inside.T
    missing = int((positives == 0).sum() + (positives == windows).sum())
    shares = inside / np.maximum(sizes.sum(axis=0), 1)
    distance = np.abs(shares - target[:, None]).sum()
    return int((windows == 0).sum()), missing, float(distance)


# -- blocks of sessions


def _by_time(ordered: Sequence[Session], length: int) -> Parts:
    blocks = [(session, time_blocks(session, length)) for session in ordered]
    return {
        split: [Part(session, *places[split]) for session, places in blocks] for split in SPLITS
    }


def time_blocks(session: Session, length: int) -> dict[str, tuple[int, int]]:
    """Sample ranges [begin, end) of the train, val and test block of a session, at least `length`
    samples apart.

    The blocks share the recorded time, without the two gaps, 60/20/20. A boundary inside a bout
    moves to the nearer end of it, so that no bout has samples in two splits. One case is excepted:
    a bout from the first sample to the last is the session's label, and there is no place outside
    it where a boundary could go.

    Raises:
        InputError: too short for three blocks of a window each.
    """
    present = session.present()
    usable = len(present) - 2 * length
    if usable < 3 * length:
        raise InputError(
            f"session {session.name} is too short for --split time: {len(present) / session.rate:g}"
            f" s, but three blocks of a window and two gaps take {5 * length / session.rate:g} s;"
            " leave it out, shorten --window_seconds or use --split session"
        )
    size = len(session.values)
    protected = protected_ranges(session)
    # Each block takes its share, and a window at least; nearly always that is its share.
    val_size = max(length, round(FRACTIONS["val"] * usable))
    first = _outside(protected, int(present[usable - 2 * val_size - 1]) + 1, 0, size)
    val_begin = _after(protected, first + length, size)
    second = _outside(protected, int(present[-val_size - length - 1]) + 1, val_begin, size)
    return {
        "train": (0, first),
        "val": (val_begin, second),
        "test": (_after(protected, second + length, size), size),
    }


def spans(session: Session) -> bool:
    """Whether one bout covers the session from the first sample to the last."""
    return bool(
        len(session.bouts)
        and session.bouts[0, 0] <= 0
        and session.bouts[0, 1] >= len(session.values) - 1
    )


def protected_ranges(session: Session) -> list[tuple[int, int]]:
    """Whole-sample ranges that hold the bouts, joined where they share a sample; none where one
    bout is the whole session.
    """
    ranges: list[tuple[int, int]] = []
    if spans(session):
        return ranges
    for start, end in zip(
        np.floor(session.bouts[:, 0]).astype(int).tolist(),
        np.ceil(session.bouts[:, 1]).astype(int).tolist(),
        strict=True,
    ):
        if ranges and start < ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges


def _outside(bouts: Ranges, place: int, low: int, high: int) -> int:
    """The boundary nearest to `place` and between `low` and `high` that is strictly inside no bout
    (`low` and `high` are not; `place` is at most `high`).
    """
    edges = [edge for edge in _bout_around(bouts, place) if low <= edge <= high]
    return min(edges, key=lambda edge: abs(edge - place), default=low)


def _after(bouts: Ranges, place: int, high: int) -> int:
    """The first boundary from `place` on that is strictly inside no bout."""
    return min(_bout_around(bouts, place)[1], high)


def _bout_around(bouts: Ranges, place: int) -> tuple[int, int]:
    """The bout that `place` is strictly inside; (place, place) where it is in none."""
    at = bisect_left(bouts, (place, 0)) - 1
    return bouts[at] if at >= 0 and place < bouts[at][1] else (place, place)


def equal_blocks(session: Session, block: int) -> list[tuple[int, int]]:
    """Sample ranges [begin, end) of about `block` recorded samples that share a session; no
    boundary is inside a bout.
    """
    present, size = session.present(), len(session.values)
    number = max(1, round(len(present) / block))
    protected = protected_ranges(session)
    places = [
        _outside(protected, int(present[len(present) * k // number]), 0, size)
        for k in range(1, number)
    ]
    edges = [0, *sorted({place for place in places if 0 < place < size}), size]
    return list(pairwise(edges))


class _Covered:
    """How much of a session sorted, disjoint ranges [n, 2] cover; asked often, for short pieces."""

    def __init__(self, ranges: Floats) -> None:
        ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
        self._edges: list[float] = ranges.ravel().tolist()
        before = np.concatenate([[0.0], ends])[:-1]
        self._until: list[float] = np.stack([before, ends], axis=1).ravel().tolist()

    def within(self, begin: int, end: int) -> float:
        """Covered samples of [begin, end)."""
        return self._before(end) - self._before(begin)

    def _before(self, place: int) -> float:
        at = bisect_right(self._edges, place)
        if at == 0:
            return 0.0
        inside = at % 2 == 1
        return self._until[at - 1] + (place - self._edges[at - 1] if inside else 0.0)


@dataclass(frozen=True)
class _Ground:
    """A session with what is looked up often while blocks are assigned."""

    session: Session
    recorded: _Covered
    positive: _Covered  # recorded parts of bouts
    protected: list[tuple[int, int]]

    @classmethod
    def of(cls, session: Session) -> _Ground:
        pieces = np.array(session.pieces, np.float64).reshape(-1, 2)
        inside = [
            (max(start, begin), min(end, stop))
            for start, end in session.bouts.tolist()
            for begin, stop in pieces[(pieces[:, 0] < end) & (pieces[:, 1] > start)].tolist()
        ]
        positive = np.array(inside, np.float64).reshape(-1, 2)
        return cls(session, _Covered(pieces), _Covered(positive), protected_ranges(session))

    def before(self, place: int) -> int:
        """The last boundary up to `place` that is strictly inside no bout."""
        return max(_bout_around(self.protected, place)[0], 0)

    def after(self, place: int) -> int:
        """The first boundary from `place` on that is strictly inside no bout."""
        return _after(self.protected, place, len(self.session.values))

    def times(self, begin: int, end: int) -> tuple[float, float]:
        """Recorded and positive samples of a range."""
        return self.recorded.within(begin, end), self.positive.within(begin, end)


@dataclass(frozen=True)
class _Block:
    """The samples [begin, end) of a session."""

    ground: _Ground
    begin: int
    end: int

    def times(self) -> tuple[float, float]:
        """Recorded and positive samples."""
        return self.ground.times(self.begin, self.end)


def _by_blocks(ordered: Sequence[Session], rule: SplitRule, how: Labelling) -> list[Parts]:
    """Blocks of all sessions, assigned by the best of several draws."""
    grounds = [_Ground.of(session) for session in ordered]
    blocks = [
        _Block(ground, begin, end)
        for ground in grounds
        for begin, end in equal_blocks(ground.session, rule.block)
    ]
    needed = max(FEWEST, rule.folds)
    if len(blocks) < needed:
        fewer = "" if rule.folds == 1 else _fewer_folds(len(blocks))
        raise InputError(
            f"only {len(blocks)} block(s) of {rule.block / ordered[0].rate:g} s that cut no bout,"
            f" but --split blocks needs {needed}; shorten --block_seconds, or use"
            f" {fewer}--split session"
        )
    sizes = np.array([block.times() for block in blocks])
    random = np.random.default_rng(rule.seed)
    shares = SHARES if rule.folds == 1 else np.full(rule.folds, 1 / rule.folds)
    best: tuple[tuple[float, ...], list[Parts]] | None = None
    for _ in range(min(BLOCK_DRAWS, 1 + MOST_BLOCKS_DRAWN // len(blocks))):
        groups = _dealt(sizes, shares, random)
        splits = [apart(blocks, places, how.length) for places in _of_groups(groups, rule.folds)]
        costs = [_cost(parts, sizes, split_shares(rule.folds)) for parts in splits]
        cost = tuple(sum(one) for one in zip(*costs, strict=True))
        if best is None or cost < best[0]:
            best = cost, [_without_grounds(parts) for parts in splits]
    assert best is not None
    return best[1]


def _of_groups(groups: list[int], folds: int) -> list[tuple[str, ...]]:
    """Split of each block: its group, or with several folds, each group tested once."""
    if folds == 1:
        return [tuple(SPLITS[group] for group in groups)]
    return list(_assignments(groups, folds)[0])


def _without_grounds(parts: dict[str, list[_Block]]) -> Parts:
    return {
        split: [Part(block.ground.session, block.begin, block.end) for block in own]
        for split, own in parts.items()
    }


def _dealt(sizes: Floats, shares: Floats, random: np.random.Generator) -> list[int]:
    """A group for each block: the largest positive times first, each to the group that lacks most
    of its share; then the blocks without positive time, in the same way by recorded time.

    Args:
        sizes: [blocks, (recorded, positive)].
        shares: of the groups.
    """
    groups = np.zeros(len(sizes), int)
    held = np.zeros((len(shares), 2))
    order = np.argsort(-sizes[:, 1] * random.uniform(0.8, 1.25, len(sizes)), kind="stable")
    with_bouts = int((sizes[:, 1] > 0).sum())
    rest = random.permutation(order[with_bouts:])
    totals = np.maximum(sizes.sum(axis=0), 1)
    for number, block in enumerate([*order[:with_bouts], *rest]):
        measure = 1 if number < with_bouts else 0
        groups[block] = int(np.argmin(held[:, measure] / totals[measure] / shares))
        held[groups[block]] += sizes[block]
    return groups.tolist()


def _cost(parts: dict[str, list[_Block]], sizes: Floats, target: Floats) -> tuple[float, ...]:
    """How bad an assignment is: empty splits; splits that hold little more than half or little less
    than twice their share of positive time; how far shares are from the target, and what gaps take.
    """
    held = np.array(
        [np.sum([b.times() for b in parts[s]], axis=0) if parts[s] else (0, 0) for s in SPLITS]
    )
    shares = held / np.maximum(held.sum(axis=0), 1e-9)
    ratio = shares[:, 1] / target
    outside = ((ratio < 0.55) | (ratio > 1.8)).sum() if held[:, 1].any() else 0
    distance = np.abs(shares - target[:, None]).sum()
    lost = 1 - held[:, 0].sum() / max(sizes[:, 0].sum(), 1)
    return float((held[:, 0] == 0).sum()), float(outside), float(distance + lost)


def apart(blocks: Sequence[_Block], places: Sequence[str], length: int) -> dict[str, list[_Block]]:
    """Blocks by split, neighbours of one split joined, those of different ones at least `length`
    samples apart.
    """
    kept: list[tuple[_Block, str]] = []
    for block, place in zip(blocks, places, strict=True):
        new: _Block | None = block
        while new and kept and kept[-1][0].ground is new.ground and kept[-1][1] != place:
            last = kept.pop()
            left, new = _with_gap(last, (new, place), length)
            if left:
                kept.append((left, last[1]))
                break
        if new and kept and kept[-1][1] == place and _touch(kept[-1][0], new):
            kept[-1] = (_Block(new.ground, kept[-1][0].begin, new.end), place)
        elif new:
            kept.append((new, place))
    return {split: [block for block, place in kept if place == split] for split in SPLITS}


def _touch(left: _Block, right: _Block) -> bool:
    return left.ground is right.ground and left.end == right.begin


def _with_gap(
    left: tuple[_Block, str], right: tuple[_Block, str], length: int
) -> tuple[_Block | None, _Block | None]:
    """Two neighbours with a gap between them; None where nothing is left of one.

    The gap is taken from the side on which it costs less positive time, then from the training
    side.
    """
    (a, a_split), (b, b_split) = left, right
    if b.begin - a.end >= length:
        return a, b
    end = max(a.ground.before(b.begin - length), a.begin)
    begin = min(a.ground.after(a.end + length), b.end)
    lost_left = a.ground.times(end, a.end)[1], a_split != "train", a.end - end
    lost_right = a.ground.times(b.begin, begin)[1], b_split != "train", begin - b.begin
    if lost_left <= lost_right:
        return (_Block(a.ground, a.begin, end) if end > a.begin else None), b
    return a, (_Block(b.ground, begin, b.end) if begin < b.end else None)
