"""What the runner remembers of each node of a run: how it stands, what is on its way there, and
which jobs wait for that. No threads, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from common.cluster.ssh.node import Node
from common.jobs.inputs import File

REJOIN_SECONDS = (5.0, 60.0)  # first and longest pause before a lost node is tried again
Item = str | File  # a base model's hash, or a data file

# joined: its workers are being started; open: one has spoken; lost: it is tried again; dead: it is
# not.
Stage = Literal["joining", "joined", "open", "lost", "dead"]


@dataclass(eq=False)
class Waiting:
    """A job that has its slot, and starts when `left` is on the node."""

    job: str
    slot: int
    left: set[Item]


@dataclass(eq=False)
class Member:
    """A node of the run."""

    node: Node
    stage: Stage = "joining"
    draining: bool = False  # removed from the configuration
    tried: bool = False  # the first attempt to join has ended
    seen: bool = False  # it has said what it had published, or cannot
    expected: set[str] = field(default_factory=set)  # results found there that are coming home
    again_at: float = math.inf
    pause: float = REJOIN_SECONDS[0]
    lacking: set[Item] = field(default_factory=set)  # data files
    holds: set[str] = field(default_factory=set)  # base models that came to it
    gone: set[int] = field(default_factory=set)  # slots that get no worker any more
    coming: dict[Item, list[Waiting]] = field(default_factory=dict)
    waiting: dict[int, Waiting] = field(default_factory=dict)  # by slot
    bytes: int = 0
    done: int = 0
    failed: int = 0

    def lose(self, now: float) -> None:
        """It cannot be worked with; it is tried again after a pause that doubles."""
        self.stage, self.again_at = "lost", now + self.pause
        self.pause = min(2 * self.pause, REJOIN_SECONDS[1])
        self.forget()

    def forget(self) -> None:
        """Nothing is on its way any more."""
        self.seen, self.tried = True, True
        self.expected.clear()
        self.coming.clear()
        self.waiting.clear()

    def wait(self, job: str, slot: int, items: Iterable[Item]) -> list[Item]:
        """`job` starts when `items` are there. Returns those that have to be sent."""
        waiting = self.waiting[slot] = Waiting(job, slot, set(items))
        new = [item for item in waiting.left if item not in self.coming]
        for item in waiting.left:
            self.coming.setdefault(item, []).append(waiting)
        return new

    def arrived(self, items: Iterable[Item], *, failed: bool) -> list[Waiting]:
        """Items have come, or will not come. Returns the jobs that can start, or that cannot; they
        no longer wait.
        """
        ended: list[Waiting] = []
        for item in items:
            for waiting in self.coming.pop(item, ()):
                waiting.left.discard(item)
                if (failed or not waiting.left) and self.waiting.get(waiting.slot) is waiting:
                    del self.waiting[waiting.slot]
                    ended.append(waiting)
        return ended
