"""A simulated cluster: it carries out the scheduler's orders in simulated time and raises when one
cannot be carried out.
"""

from __future__ import annotations

from collections import Counter

from common.cluster.scheduler.scheduler import Scheduler
from common.cluster.scheduler.states import (
    ENDED,
    JobState,
    Limits,
    PlannedJob,
    SlotId,
)

HEARTBEAT = 5.0


class SimulatedCluster:
    """Records slots and starts itself, to check the scheduler's records against.

    slots: what each slot does: None idle, a job's id, "down" (no worker) or "stopping" (its
    job was cancelled).
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.scheduler = Scheduler(limits)
        self.now = 0.0
        self.slots: dict[SlotId, str | None] = {}
        self.jobs: dict[str, PlannedJob] = {}
        self.begun: dict[tuple[str, str], float] = {}
        self.parcels: list[tuple[str, str]] = []  # finished on the node, not home yet: job, node
        self.starts: Counter[str] = Counter()
        self.ended: dict[str, JobState] = {}
        self.mute: set[str] = set()
        self.stopped = False

    def add_jobs(self, *jobs: PlannedJob) -> None:
        self.jobs.update({job.id: job for job in jobs})
        self.scheduler.add_jobs(self.now, jobs)

    def add_node(
        self,
        name: str,
        slots: int = 1,
        speed: float = 1.0,
        gpu: str | None = None,
        holds: tuple[str, ...] = (),
    ) -> None:
        self.mute.discard(name)
        self.scheduler.add_node(self.now, name, speed, holds=holds)
        for number in range(slots):
            self.free(SlotId(name, number), gpu)

    def free(self, slot: SlotId, gpu: str | None = None) -> None:
        """The slot's worker says that it is idle."""
        if self.scheduler.slot_free(self.now, slot, gpu):
            self.slots[slot] = None
        else:
            self.slots.pop(slot, None)

    def step(self, seconds: float = 0.0) -> list[str]:
        """Let time pass with heartbeats from every node that can speak, then obey: returns the jobs
        started.
        """
        until = self.now + seconds
        started = self.obey()
        while self.now < until:
            self.now = min(until, self.now + HEARTBEAT)
            for name in {slot.node for slot in self.slots} - self.mute:
                self.scheduler.heartbeat(self.now, name)
            started += self.obey()
        return started

    def obey(self) -> list[str]:
        started = []
        for job, slot, _ in self.scheduler.assign(self.now):
            self.check_start(job, slot)
            self.slots[slot] = job
            self.begun[job, slot.node] = self.now
            self.starts[job] += 1
            started.append(job)
        for cancelled in self.scheduler.cancellations():
            if cancelled.slot is not None:
                assert self.slots[cancelled.slot] == cancelled.job, f"{cancelled} was not running"
                self.slots[cancelled.slot] = "stopping"
        self.check_books()
        return started

    def check_start(self, job: str, slot: SlotId) -> None:
        """The order can be carried out and breaks no rule."""
        scheduler, needs = self.scheduler, self.jobs[job].needs
        assert not self.stopped, f"{job} started after the first Ctrl-C"
        assert self.slots.get(slot, "unknown") is None, (
            f"{slot} got {job} while it was {self.slots.get(slot, 'unknown')}"
        )
        assert scheduler.node_state(slot.node) == "open", (
            f"{job} started on a node that is {scheduler.node_state(slot.node)}"
        )
        assert needs is None or scheduler.state(needs) is JobState.DONE, (
            f"{job} started before its base {needs} was done"
        )
        assert job not in self.ended, f"{job} started after it had ended"

    def check_books(self) -> None:
        """What the scheduler says agrees with what is, whatever happened."""
        for change in self.scheduler.changes():
            if change.what == "job" and change.state in {state.value for state in ENDED}:
                assert change.name not in self.ended, f"{change.name} ended twice"
                self.ended[change.name] = JobState(change.state)
        for job in self.jobs:
            state = self.scheduler.state(job)
            assert (state in ENDED) == (job in self.ended), f"{job} is {state}"
            assert self.ended.get(job, state) is state, (
                f"{job} ended as {self.ended[job]} and is now {state}"
            )
        assert sum(self.scheduler.counts().values()) == len(self.jobs)
        assert set(self.scheduler.left()) == self.jobs.keys() - self.ended.keys()
        retries = self.scheduler.limits.max_retries
        assert all(count <= 1 + 2 * retries for count in self.starts.values()), (
            "retries are not bounded"
        )

    def running(self) -> list[tuple[str, SlotId]]:
        """Copies that are training, in a fixed order."""
        return [
            (job, slot)
            for slot, job in sorted(self.slots.items())
            if job not in (None, "down", "stopping")
        ]

    def where(self, job: str) -> SlotId:
        """The one slot that runs `job`."""
        (slot,) = [slot for name, slot in self.running() if name == job]
        return slot

    def end(self, job: str, slot: SlotId | None = None) -> SlotId:
        """The training of `job` ends well and its result is home at once."""
        slot = slot or self.where(job)
        self.pack(job, slot)
        self.deliver(job, slot.node)
        return slot

    def pack(self, job: str, slot: SlotId) -> None:
        """The training ends well; the slot is idle, the result is still on the node."""
        self.parcels.append((job, slot.node))
        self.free(slot)
        self.scheduler.observe(job, slot.node, self.now - self.begun[job, slot.node])

    def deliver(self, job: str, node: str) -> bool:
        self.parcels.remove((job, node))
        return self.scheduler.finished(self.now, job, node)

    def lose_node(self, name: str) -> None:
        """Everything on the node is gone."""
        self.slots = {slot: job for slot, job in self.slots.items() if slot.node != name}
        self.parcels = [parcel for parcel in self.parcels if parcel[1] != name]

    def work(self, limit: float) -> None:
        """From here on nothing goes wrong: run each job for its estimate until the run is over."""
        deadline = self.now + limit
        while not self.scheduler.over:
            assert self.now < deadline, f"not over after {limit} s, left: {self.scheduler.left()}"
            for job, node in list(self.parcels):
                self.deliver(job, node)
            for slot, job in list(self.slots.items()):
                if job in ("down", "stopping"):
                    self.free(slot)
            for job, slot in self.running():
                if self.scheduler.node_state(slot.node) == "closed":
                    self.slots.pop(slot)
                elif self.now - self.begun[job, slot.node] >= self.jobs[
                    job
                ].estimate / self.scheduler.speed(slot.node):
                    self.end(job, slot)
            self.step(HEARTBEAT)


def grid(
    bases: int, siblings: int, base_seconds: float = 60.0, finetune_seconds: float = 20.0
) -> list[PlannedJob]:
    """Bases b0, b1, ... and their fine-tunes b0f0, b0f1, ..."""
    base_jobs = [PlannedJob(f"b{i}", base_seconds, "base") for i in range(bases)]
    return base_jobs + [
        PlannedJob(f"b{i}f{j}", finetune_seconds, "finetune", needs=f"b{i}")
        for i in range(bases)
        for j in range(siblings)
    ]
