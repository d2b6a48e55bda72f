"""Process-wide request to checkpoint and exit: the training saves a checkpoint at the end of the
epoch and raises Stopped. No torch.

Set `stopping.wanted` before a time limit, or when the machine is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass


class Stopped(BaseException):
    """A training stopped after its checkpoint was saved. Not an Exception: no job may swallow
    it.
    """


@dataclass
class Stopping:
    """`saved` counts the checkpoints of this process."""

    wanted: bool = False
    saved: int = 0


stopping = Stopping()
