"""Made-up recordings against an independent reference: what a sensor did is known, so that every
window can be compared with the true signal, the true labels and the true gaps.

2,000 recordings by default; FUZZ_RECORDINGS=20000 makes more.
"""

import os
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest

from common.data.bouts import label_runs
from common.data.clock import ClockRules, Stamps, read_clock
from common.data.resampling import make_session
from common.data.splits import SplitRule, split_sessions
from common.data.windowing import Labelling, place_windows
from common.errors import InputError

GROUPS = 40
RECORDINGS = int(os.environ.get("FUZZ_RECORDINGS", "2000")) // GROUPS
FAULTS = ("none", "jitter", "packets", "set_back", "disorder", "equal", "milliseconds")
WINDOW_S = 1.0


@dataclass
class Truth:
    """What a sensor did: `t` is when each row was sampled, `stamps` what its clock wrote."""

    rate: float
    grid: float
    fault: str
    t: np.ndarray
    stamps: np.ndarray  # microseconds
    frequency: float
    gaps: list = field(default_factory=list)  # (last row before, first row after)
    joint: int | None = None  # the first row after the clock was set back
    stamp_error_s: float = 2e-6

    def signal(self, t):
        """Two channels."""
        phase = 2 * np.pi * self.frequency * t
        return np.stack([np.sin(phase), np.cos(phase) + 0.5 * np.sin(phase / 3)], axis=-1)


def make(rng):
    """A recording of 14 to 40 s."""
    rate = float(np.exp(rng.uniform(np.log(20), np.log(1000))))
    grid = float(rng.choice([20, 25, 50, 64]))
    fault = str(rng.choice(FAULTS))
    count = int(rng.uniform(14, min(40, max(15, 9000 / rate))) * rate)
    t = np.arange(count) / rate
    truth = Truth(rate, grid, fault, t, t, 0.08 * min(rate, grid) * rng.uniform(0.2, 1))
    for _ in range(rng.integers(0, 3) if fault != "set_back" else 0):
        row, pause = int(rng.integers(1, count - 1)), rng.uniform(2, 4)
        truth.t = np.concatenate([truth.t[:row], truth.t[row:] + pause])
    truth.gaps = [(k, k + 1) for k in np.flatnonzero(np.diff(truth.t) > 1.5).tolist()]
    spoil(truth, rng)
    return truth


def spoil(truth, rng):
    """Stamps as the fault makes them."""
    rate, t, count = truth.rate, truth.t, len(truth.t)
    stamps = t.copy()
    if truth.fault == "jitter":
        moved = rng.uniform(-0.3, 0.3, count) / rate
        moved[0] = 0
        truth.t = stamps = t + moved
    elif truth.fault == "packets":
        size = int(rng.integers(4, max(5, min(40, 0.8 * rate))))
        edges = {0, *(after for _, after in truth.gaps)}
        first = np.zeros(count, int)
        for edge in sorted(edges):
            first[edge:] = edge + (np.arange(count - edge) // size) * size
        within = np.arange(count) - first
        stamps = t[first] + within * 0.02 / rate
    elif truth.fault == "set_back":
        truth.joint = int(rng.integers(0.3 * count, 0.7 * count))
        stamps[truth.joint :] -= rng.choice([3600.0, rng.uniform(0.5, 5)])
    elif truth.fault == "equal":
        for row in rng.integers(1, count, max(1, count // 50)):
            stamps[row] = stamps[row - 1]
        truth.stamp_error_s = 3 / rate
    elif truth.fault == "milliseconds":
        stamps = np.round(t, 3) if rate < 600 else t
        truth.stamp_error_s = 0.6e-3
    truth.stamps = np.round((stamps + 1000) * 1e6).astype(np.int64)
    truth.order = np.arange(count)
    if truth.fault == "disorder":
        for row in rng.integers(1, count - 3, 5):
            if truth.t[row + 2] - truth.t[row] < 1.5:  # not across a gap: that would be a set-back
                truth.order[row : row + 3] = truth.order[row : row + 3][::-1]


def read(truth, repair):
    ticks = truth.stamps[truth.order]
    rules = ClockRules("time", "us", truth.grid, None, repair)
    return read_clock("rec", Stamps(ticks, 1_000_000, "number"), rules)


def needs_repair(truth):
    stamps = truth.stamps[truth.order]
    return truth.fault == "packets" or bool((np.diff(stamps) <= 0).any())


def bouts_of(truth, rng):
    """Bouts anywhere, in true seconds."""
    end = truth.t[-1]
    found = [(a, a + rng.uniform(0.05, 8)) for a in rng.uniform(-2, end, rng.integers(0, 5))]
    return np.array(found).reshape(-1, 2)


def prepared(truth, bouts, by_column):
    """The session that the code makes of it."""
    clock = read(truth, True)
    rows = truth.order if clock.rows is None else truth.order[clock.rows]
    values = truth.signal(truth.t)[rows].astype(np.float32)
    if by_column:
        inside = ((truth.t[:, None] >= bouts[:, 0]) & (truth.t[:, None] < bouts[:, 1])).any(axis=1)
        bouts = label_runs(inside.astype(np.int8)[rows], clock.times, 1)
    return make_session(
        "rec", clock.start_s, clock.times, values, bouts, truth.grid, joints=clock.joints
    )


def reference_labels(truth, bouts, by_column, starts, needed):
    """1, 0, or None where it is too near to call, by counting fine slices of each window."""
    slack = truth.stamp_error_s + 2 / truth.rate if by_column else truth.stamp_error_s + 1e-5
    labels = []
    for start in starts:
        held = sum(
            min(b, start + WINDOW_S) - max(a, start)
            for a, b in merged(bouts)
            if a < start + WINDOW_S and b > start
        )
        touched = any(a - slack < start + WINDOW_S and b + slack > start for a, b in bouts)
        least = 0 if needed == "any" else needed * WINDOW_S
        edges = 2 * len(bouts) * slack + 1e-5
        if held - edges > least and held > edges:
            labels.append(1)
        elif (needed == "any" and not touched) or (needed != "any" and held + edges < least):
            labels.append(0)
        else:
            labels.append(None)
    return labels


def merged(bouts):
    found = []
    for a, b in sorted(map(tuple, bouts)):
        if found and a <= found[-1][1]:
            found[-1][1] = max(b, found[-1][1])
        else:
            found.append([a, b])
    return found


def check_signal(truth, windows, starts):
    """Windows hold the true signal, within bounds that depend on the place and the clock."""
    at = starts[:, None] + np.arange(windows.shape[2]) / truth.grid
    error = np.abs(windows.transpose(0, 2, 1) - truth.signal(at)).max(axis=2)
    edges = [truth.t[0], truth.t[-1]]
    for before, after in truth.gaps:
        edges += [truth.t[before], truth.t[after]]
    if truth.joint:
        edges.append(truth.t[truth.joint])
    distance = np.min([np.abs(at - edge) for edge in edges], axis=0)
    late = 2 * np.pi * truth.frequency * 1.6 * truth.stamp_error_s
    uneven = {"jitter": 0.05, "equal": 0.1}.get(truth.fault, 0.0)
    slow = 12 / min(truth.rate, truth.grid)
    bound = np.where(distance < slow, 0.12, 0.01) + late + uneven
    assert (error <= bound).all(), (
        truth.fault,
        truth.rate,
        truth.grid,
        float((error - bound).max()),
    )


def check_no_gap(truth, starts):
    joints = truth.gaps + ([(truth.joint - 1, truth.joint)] if truth.joint else [])
    slack = truth.stamp_error_s + 1 / truth.grid
    for before, after in joints:
        begin, end = truth.t[before] + slack, truth.t[after] - slack
        middle = (begin + end) / 2
        across = (starts < middle) & (starts + WINDOW_S - 1 / truth.grid > middle)
        assert not across.any(), (truth.fault, truth.rate, starts[across])


def check_complete(truth, starts, stride_s):
    """Nothing is lost but what a window needs at the ends of each stretch."""
    cuts = [0, *(after for _, after in truth.gaps), *([truth.joint] if truth.joint else [])]
    ends = [*sorted(cuts)[1:], len(truth.t)]
    lengths = [truth.t[e - 1] - truth.t[b] for b, e in zip(sorted(cuts), ends, strict=True)]
    expected = sum(max(0, int((n - WINDOW_S) / stride_s + 1)) for n in lengths)
    assert expected - 2 * len(lengths) <= len(starts) <= expected + len(lengths)


def check_splits(session, how, rng):
    """No sample in two splits, and no bout either, by sets of sample numbers. Returns whether it
    was split at all.
    """
    rule = SplitRule(str(rng.choice(["time", "blocks"])), int(rng.integers(5)), 4 * how.length)
    try:
        parts = split_sessions([session], rule, how)[0]
    except InputError:  # too short for the rule: other tests look at what is said
        return False
    held = []
    for own in parts.values():
        placed = place_windows(own, how, 2)
        firsts = [int(k) for _, starts in placed.places for k in starts]
        held.append({first + k for first in firsts for k in range(how.length)})
        assert np.isfinite(placed.x()).all()
    assert not any(a & b for a, b in combinations(held, 2))
    return True


@pytest.mark.parametrize("group", range(GROUPS))
def test_windows_hold_what_the_sensor_did(group):
    rng = np.random.default_rng(1000 + group)
    were_split = []
    for _ in range(RECORDINGS):
        truth = make(rng)
        if needs_repair(truth):
            with pytest.raises(InputError, match=r"repair_clock"):
                read(truth, False)
        else:
            assert not read(truth, False).mended
        bouts, by_column = bouts_of(truth, rng), bool(rng.integers(2)) or truth.fault == "set_back"
        session = prepared(truth, bouts, by_column)
        length = round(WINDOW_S * truth.grid)
        needed = [0.3, 0.5, "any"][rng.integers(3)]
        how = Labelling(length, max(1, length // 2), needed)
        placed = place_windows([whole(session)], how, 2)
        starts = np.array(placed.starts_s()) - session.start_s
        if len(starts):
            check_signal(truth, placed.x(), starts)
        check_no_gap(truth, starts)
        check_complete(truth, starts, how.stride / truth.grid)
        expected = reference_labels(truth, bouts, by_column, starts, needed)
        wrong = [
            (start, own)
            for start, own, its in zip(starts, placed.y, expected, strict=True)
            if its is not None and own != its
        ]
        assert not wrong, (truth.fault, truth.rate, bouts, wrong)
        if rng.random() < 0.3:
            were_split.append(check_splits(session, how, rng))
    assert not were_split or sum(were_split) > 0.8 * len(were_split), were_split


def whole(session):
    from common.data.sessions import Part

    return Part(session, 0, len(session.values))
