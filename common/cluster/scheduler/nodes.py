"""The nodes: silence, faults, setting aside, draining, closing, and the base models that they
hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from common.cluster.scheduler.slots import DOWN, SlotTable
from common.cluster.scheduler.states import Change, Copy, Limits, NodeRecord


class Nodes:
    """Keeps each node's record and decides whether the node may get jobs; `log` takes its changes.

    sound: number of nodes that could take any job.
    """

    def __init__(self, limits: Limits, slots: SlotTable, log: list[Change]) -> None:
        self._limits, self._slots, self._log = limits, slots, log
        self._records: dict[str, NodeRecord] = {}
        self._check_at = math.inf  # before this time no silence or delay can end
        self._idle = 0.0
        self._idle_from: float | None = None
        self.sound = 0

    def __getitem__(self, name: str) -> NodeRecord:
        return self._records[name]

    def get(self, name: str) -> NodeRecord | None:
        """The record, or None for an unknown name."""
        return self._records.get(name)

    def all(self) -> Iterable[NodeRecord]:
        """Every node that ever joined."""
        return self._records.values()

    @property
    def single(self) -> bool:
        """Whether only one node ever joined."""
        return len(self._records) == 1

    # ---- joining and leaving

    def join(self, now: float, host: NodeRecord) -> None:
        """Open a node that is new or closed; take back one that drains."""
        self._records[host.name] = host
        host.draining, host.heard = False, now
        if host.state == "closed":
            host.state = "open"
            self._note(host, "open", "")
        self._check_at = min(self._check_at, self._next_check(host))
        self.refresh(host)

    def drain(self, host: NodeRecord) -> None:
        """Nothing new starts there."""
        host.draining = True
        self._note(host, "draining", "removed from the configuration")
        self.refresh(host)

    def close(self, now: float, host: NodeRecord, cause: str) -> None:
        """Its slots are down, its transfers lost; a fault unless it was draining."""
        host.state = "closed"
        self._note(host, "closed", cause)
        for row in host.rows.values():
            self._slots.set(row, DOWN)
        for base in host.coming - host.holds:
            self._slots.base_absent(host, base)
        host.coming.clear()
        if not host.draining:
            self.fault(now, host, cause)
        self.refresh(host)

    # ---- silence

    def heard(self, now: float, host: NodeRecord) -> bool:
        """Something was heard from the node. Returns True if it was suspect."""
        host.heard = max(now, host.heard)
        if host.state != "suspect":
            return False
        host.state = "open"
        self._check_at = min(self._check_at, self._next_check(host))
        self._note(host, "open", "heard again")
        self.refresh(host)
        return True

    def expire(self, now: float) -> tuple[list[NodeRecord], list[NodeRecord]]:
        """End delays that are over. Returns the nodes that have become suspect, and those that have
        been silent too long and have to be closed.
        """
        suspects: list[NodeRecord] = []
        silent: list[NodeRecord] = []
        if now < self._check_at:
            return suspects, silent
        for host in self._records.values():
            if host.aside_until is not None and now >= host.aside_until:
                host.aside_until = None
                self._note(host, host.state, "tried again")
                self.refresh(host)
            silence = now - host.heard if host.state != "closed" else 0.0
            if silence >= self._limits.close_after:
                silent.append(host)
            elif silence >= self._limits.suspect_after and host.state == "open":
                host.state = "suspect"
                self._note(host, "suspect", f"silent for {silence:.0f} s")
                self.refresh(host)
                suspects.append(host)
        self._check_at = min(map(self._next_check, self._records.values()), default=math.inf)
        return suspects, silent

    def _next_check(self, host: NodeRecord) -> float:
        aside = math.inf if host.aside_until is None else host.aside_until
        if host.state == "closed":
            return aside
        limit = self._limits.suspect_after if host.state == "open" else self._limits.close_after
        return min(aside, host.heard + limit)

    # ---- faults

    def fault(self, now: float, host: NodeRecord, cause: str) -> None:
        """Count a fault; the third in a row, and each one of the trials after it, sets the node
        aside for a growing time.
        """
        if host.aside_until is not None:
            return
        host.faults += 1
        if host.faults >= self._limits.faults_in_a_row:
            delay = min(self._limits.set_aside * 2.0**host.asides, self._limits.set_aside_most)
            host.asides += 1
            host.aside_until = now + delay
            self._check_at = min(self._check_at, host.aside_until)
            self._note(host, "set aside", f"{cause}; tried again in {delay:.0f} s")
        self.refresh(host)

    def praise(self, host: NodeRecord) -> None:
        """Reset the fault counters: a result of the node was verified."""
        if host.faults or host.deaths:
            host.faults, host.asides, host.aside_until = 0, 0, None
            host.deaths.clear()
            self.refresh(host)

    def refresh(self, host: NodeRecord) -> None:
        """Recompute whether a node may get jobs. After being set aside it gets one at a time until
        a result comes back.
        """
        healthy = host.faults < self._limits.faults_in_a_row
        works = host.state == "open" and not host.draining and host.aside_until is None
        usable = works and (healthy or not host.copies)
        sound = works and healthy and host.up > 0
        self.sound += sound - host.sound
        host.sound = sound
        if usable != host.usable:
            host.usable = usable
            self._slots.refresh(host)

    # ---- slots and base models

    def set_slot(self, row: int, status: int, copy: Copy | None = None) -> None:
        """Change a slot: FREE, BUSY or DOWN."""
        host = self._slots.nodes[row]
        before = host.up
        self._slots.set(row, status, copy)
        if (host.up > 0) != (before > 0):
            self.refresh(host)

    def shrink(self, row: int, gpu: str) -> bool:
        """Take the slot away if its GPU has another one. Returns whether it did."""
        host, number = self._slots.nodes[row], self._slots.ids[row].number
        same = [each for each, name in host.gpus.items() if name == gpu]
        if number in host.retired or len(set(same) - host.retired) < 2:
            return False
        self.set_slot(row, DOWN)
        host.retired.add(number)
        return True

    def hold(self, host: NodeRecord, base: str) -> None:
        """The node holds the base, checked."""
        host.coming.discard(base)
        if base not in host.holds:
            host.holds.add(base)
            self._slots.base_present(host, base)

    def lose_base(self, host: NodeRecord, base: str) -> None:
        """The node no longer holds the base, or its transfer failed."""
        host.holds.discard(base)
        host.coming.discard(base)
        self._slots.base_absent(host, base)

    def fetch(self, host: NodeRecord, base: str) -> bool:
        """The node needs the base for a job. Returns True if its transfer begins with this job."""
        if base in host.holds or base in host.coming:
            return False
        host.coming.add(base)
        self._slots.base_present(host, base)
        return True

    # ---- time without a node that can work

    def count_idle(self, now: float, jobs_left: bool) -> None:
        """Count the seconds without a sound node; a node on trial that runs a job stops the
        count, a sound node resets it.
        """
        if self.sound or not jobs_left:
            self._idle, self._idle_from = 0.0, None
            return
        if self._idle_from is not None:
            self._idle += now - self._idle_from
        on_trial = any(host.state == "open" and host.copies for host in self._records.values())
        self._idle_from = None if on_trial else now

    @property
    def given_up(self) -> bool:
        """True when no node could work for `no_node_limit` seconds."""
        return self._idle >= self._limits.no_node_limit

    def state(self, host: NodeRecord) -> str:
        """open, suspect, closed, set aside or draining."""
        if host.state != "open":
            return host.state
        if host.aside_until is not None:
            return "set aside"
        return "draining" if host.draining else "open"

    def _note(self, host: NodeRecord, state: str, cause: str) -> None:
        self._log.append(Change("node", host.name, state, cause))
