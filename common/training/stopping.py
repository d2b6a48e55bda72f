"""A wish that this process stop soon: its training saves a checkpoint at the end of the epoch and
raises Stopped. No torch.

Whoever is told of a coming end (a time limit, a machine that is taken away) sets `stopping.wanted`;
the training knows nothing of why.
"""

from __future__ import annotations

from dataclasses import dataclass


class Stopped(BaseException):
    """A training stopped after its checkpoint was saved. Not an Exception: no job may swallow
    it.
    """


@dataclass
class Stopping:
    """`saved` counts this process's checkpoints: whether it came anywhere at all."""

    wanted: bool = False
    saved: int = 0


stopping = Stopping()
