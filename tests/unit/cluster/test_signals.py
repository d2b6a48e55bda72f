"""Who hears of Ctrl-C, SIGTERM and SIGHUP during a run, and what an ignored one stays."""

from __future__ import annotations

import os
import signal

import pytest

from common.cluster.request import signals


@pytest.mark.parametrize("ignored", [False, True])
def test_signals_are_heard_in_the_block_only_and_an_ignored_one_stays_ignored(
    ignored: bool,
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    others = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with signals(lambda number, frame: heard.append(number)):
            for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if ignored else [])):
                os.kill(os.getpid(), number)
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == ignored
        assert heard == [signal.SIGINT, signal.SIGTERM]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == others
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
