"""Sessions made up for tests: their samples say which sample they are."""

import numpy as np

from common.data.resampling import make_session
from common.data.splits import SplitRule, split_sessions
from common.data.windowing import Labelling, place_windows

RATE = 10.0
NO_BOUTS = np.zeros((0, 2))


def session(name="s1", seconds=60.0, bouts=(), start_s=0.0, rate=RATE, gaps=(), unknown=()):
    """A session whose two channels are the sample number and its negative; `gaps` are (from, to) in
    seconds.
    """
    times = np.arange(round(seconds * rate)) / rate
    for begin, end in gaps:
        times = times[(times < begin) | (times >= end)]
    values = np.stack([times * rate, -times * rate], axis=1)
    return make_session(
        name,
        start_s,
        times,
        values,
        np.array(bouts, float).reshape(-1, 2),
        rate,
        None,
        unknown_s=np.array(unknown, float).reshape(-1, 2),
    )


def split(sessions, rule, length, overlap="any", seed=0, block=0):
    """The one split of a rule without folds."""
    return split_sessions(
        sessions, SplitRule(rule, seed, block), Labelling(length, length, overlap)
    )[0]


def cut(parts, length, stride, overlap="any", channels=2):
    """Placed windows."""
    return place_windows(parts, Labelling(length, stride, overlap), channels)


def split_of_samples(sessions, rule, length, stride=1, seed=0, block=0):
    """Which samples each split's windows hold, told by their values (the sample number), as {split:
    {(session, sample)}}.
    """
    held = {}
    for name, own in split(sessions, rule, length, seed=seed, block=block).items():
        windows = cut(own, length, stride)
        x = windows.x()
        assert x.dtype == np.float32
        assert x.shape == (len(windows.y), 2, length)
        held[name] = {
            (session, round(float(k)))
            for session, window in zip(windows.sessions(), x, strict=True)
            for k in window[0]
        }
    return held
