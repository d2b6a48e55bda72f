"""Gaps: stretches inside a recording of which there are no samples. No files, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from common.cli import few, number_of, time_span
from common.data.clock import shown_seconds
from common.data.sessions import Session, recorded_within

MOST_OF_A_BOUT = 0.5
MAX_NAMED_BOUTS = 5


def gaps_of(session: Session) -> list[tuple[int, int]]:
    """Sample ranges [begin, end) without samples; none where only the clock was set back."""
    between = [(end, begin) for (_, end), (begin, _) in pairwise(session.pieces)]
    return [(begin, end) for begin, end in between if begin < end]


def together(session: Session) -> float:
    """Seconds in gaps."""
    return sum(end - begin for begin, end in gaps_of(session)) / session.rate


def shown_length(seconds: float) -> str:
    """'0.4 s', '12 s', '4 min 00 s'."""
    return f"{seconds:.3g} s" if seconds < 60 else time_span(round(seconds))


def gap_note(sessions: Sequence[Session]) -> str:
    """How many gaps there are, how long, and where the longest is; empty where there are none."""
    found = [((end - begin) / s.rate, begin, s) for s in sessions for begin, end in gaps_of(s)]
    if not found:
        return ""
    seconds, begin, session = max(found, key=lambda gap: gap[0])
    place = f"in {session.name} from {shown_seconds(session.start_s + begin / session.rate)} s"
    if len(found) == 1:
        return f"1 gap ({shown_length(seconds)}) {place}"
    whole = shown_length(sum(map(together, sessions)))
    return (
        f"{number_of(len(found), 'gap')} ({whole} together), the longest"
        f" ({shown_length(seconds)}) {place}"
    )


def swallowed_bouts(sessions: Sequence[Session]) -> str:
    """The bouts of which one gap takes more than half, as a warning; empty where there are none.
    What lies in a gap altogether labels no window, and is named for that.
    """
    found = [
        f"{session.name} {shown_seconds(session.start_s + start / session.rate)} to"
        f" {shown_seconds(session.start_s + end / session.rate)} s"
        f" ({shown_length(lost / session.rate)} of it)"
        for session in sessions
        for start, end in session.annotations.tolist()
        if (lost := _lost(session, start, end)) > MOST_OF_A_BOUT * (end - start)
        and recorded_within(session, start, end)
    ]
    if not found:
        return ""
    number = sum(len(session.annotations) for session in sessions)
    verb = "lie" if len(found) > 1 else "lies"
    return (
        f"more than half of {len(found)} of {number} bouts {verb} in a gap:"
        f" {few(found, MAX_NAMED_BOUTS)}"
    )


def _lost(session: Session, start: float, end: float) -> float:
    """The most samples of a range that lie in one gap."""
    inside = (min(end, stop) - max(start, begin) for begin, stop in gaps_of(session))
    return max(inside, default=0.0)
