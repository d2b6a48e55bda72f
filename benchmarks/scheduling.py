"""The real scheduler in simulated time: its makespan against a greedy schedule that knows all, and
against a barrier; the cost of a decision.

    python benchmarks/scheduling.py [--seeds 40] [--world equal|spread|mix|decisions] [--json FILE]

84 bases and 1,008 fine-tunes. Durations are lognormal (sigma 0.5 and 1) around 600 s for a base and
120 s for a fine-tune, estimates are off by 30 % (lognormal, sigma 0.3), and a base takes 4 s to
reach a node. Worlds: equal slots in nodes of four; slots with a node and a speed (0.5 to 2) of
their own; 8 fast slots and 16 at a twentieth of their speed, in nodes of four. Ratios are of two
makespans of one and the same instance; of each setting the slot count with the worst median is
shown. What the scheduler knows:

- (default) estimates off by 30 %, speeds exact
- speeds measured: each node's speed off by 15 %, as a measurement at the start of a worker gives it
- speeds unknown: 1 for every node
- rates unknown: as by default, but the seconds per byte of each kind of job are wrong by a factor
  (lognormal, sigma 1) that only the first jobs of the kind reveal
- durations unknown: every job has the same estimate, so that nothing tells long jobs from short

Only the rows about a decision are timed, in CPU time, which other programs on the machine disturb
less than wall time.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from rows import Row  # noqa: E402

from common.cluster.scheduler.scheduler import Scheduler  # noqa: E402
from common.cluster.scheduler.states import Limits, PlannedJob, SlotId  # noqa: E402

BASES, SIBLINGS = 84, 12
BASE_SECONDS, FINETUNE_SECONDS = 600.0, 120.0
TRANSFER_SECONDS, BYTES = 4.0, 200_000_000
SLOTS = (1, 4, 16, 32, 64, 128, 256, 1000)
EQUAL, SPREAD, MIX = "equal slots", "speeds 0.5 to 2", "8 fast slots, 16 at 1/20"
WORLDS = {"equal": (EQUAL, SLOTS), "spread": (SPREAD, SLOTS), "mix": (MIX, (24,))}
KNOWN, MEASURED, RATES_UNKNOWN, UNKNOWN = "known", "measured", "rates unknown", "unknown"


@dataclass
class World:
    """One instance. Per job: true seconds at speed 1, the estimate, the number of its base (-1 for
    a base). Per slot: speed and node.
    """

    seconds: list[float]
    estimate: list[float]
    parent: list[int]
    speed: np.ndarray[Any, Any]
    node: list[int]
    arrival: dict[tuple[int, int], float] = field(default_factory=dict)

    def begin(self, now: float, job: int, slot: int) -> float:
        """When training begins there: now, or when its base has reached the node."""
        base = self.parent[job]
        return (
            now
            if base < 0
            else max(now, self.arrival.setdefault((base, self.node[slot]), now + TRANSFER_SECONDS))
        )

    def run(self, now: float, job: int, slot: int) -> tuple[float, float]:
        """Begin and end of the job if it is started on the slot now; its base is on the node from
        then on.
        """
        begin = self.begin(now, job, slot)
        end = begin + self.seconds[job] / float(self.speed[slot])
        if self.parent[job] < 0:
            self.arrival[job, self.node[slot]] = end
        return begin, end


def make(
    seed: int, sigma: float, slots: int, world: str, bases: int = BASES, siblings: int = SIBLINGS
) -> World:
    """An instance; its jobs depend on seed and sigma alone."""
    rng = np.random.default_rng([seed, int(sigma * 10)])
    parent = np.concatenate([np.full(bases, -1), np.repeat(np.arange(bases), siblings)])
    seconds = np.where(parent < 0, BASE_SECONDS, FINETUNE_SECONDS) * np.exp(
        sigma * rng.standard_normal(len(parent))
    )
    estimate = seconds * np.exp(0.3 * rng.standard_normal(len(parent)))
    speed = np.ones(slots)
    if world == SPREAD:
        speed = rng.uniform(0.5, 2.0, slots)
    elif world == MIX:
        speed[slots // 3 :] = 1 / 20
    node = np.arange(slots) // (1 if world == SPREAD else 4)
    return World(seconds.tolist(), estimate.tolist(), parent.tolist(), speed, node.tolist())


class Simulation:
    """The real scheduler under a clock of our own: its makespan, and the CPU seconds spent in
    `assign` and in the other calls.
    """

    def __init__(self, world: World, durations: str = KNOWN, speeds: str = KNOWN) -> None:
        self.world, self.deciding, self.telling = world, 0.0, 0.0
        self.names = [str(node) for node in world.node]
        # time, order, job or base, slot (-1: a base arrives), its begin (the slot it arrives for)
        self.events: list[tuple[float, int, str, int, float]] = []
        self.scheduler = Scheduler(
            Limits(
                suspect_after=math.inf,
                close_after=math.inf,
                bytes_per_second=BYTES / TRANSFER_SECONDS,
            )
        )
        rng = np.random.default_rng(len(world.node) + int(world.seconds[0]))
        guesses = self.guesses(rng, durations)
        jobs = [
            PlannedJob(
                str(job),
                guesses[job],
                "base" if base < 0 else "finetune",
                None if base < 0 else str(base),
                None,
                BYTES,
            )
            for job, base in enumerate(world.parent)
        ]
        self.tell(self.scheduler.add_jobs, 0.0, jobs)
        for name, speed in dict(zip(self.names, world.speed.tolist(), strict=True)).items():
            given = {
                KNOWN: speed,
                MEASURED: speed * math.exp(0.15 * rng.standard_normal()),
                UNKNOWN: 1.0,
            }
            self.tell(self.scheduler.add_node, 0.0, name, given[speeds])
        for slot, name in enumerate(self.names):
            self.tell(self.scheduler.slot_free, 0.0, SlotId(name, slot))

    def guesses(self, rng: np.random.Generator, durations: str) -> list[float]:
        """The estimate of each job, as the scheduler is told."""
        if durations == UNKNOWN:
            return [1.0] * len(self.world.estimate)
        base, finetune = np.exp(rng.standard_normal(2)) if durations == RATES_UNKNOWN else (1, 1)
        return [
            estimate * float(base if parent < 0 else finetune)
            for estimate, parent in zip(self.world.estimate, self.world.parent, strict=True)
        ]

    def tell(self, call: Callable[..., object], *args: object) -> None:
        before = time.process_time()
        call(*args)
        self.telling += time.process_time() - before

    def assign(self, now: float) -> None:
        before = time.process_time()
        starts = self.scheduler.assign(now)
        self.deciding += time.process_time() - before
        for job, slot, fetch in starts:
            begin, end = self.world.run(now, int(job), slot.number)
            heapq.heappush(self.events, (end, 1, job, slot.number, begin))
            if fetch is not None:
                heapq.heappush(self.events, (begin, 0, fetch, -1, slot.number))

    def run(self) -> float:
        now, scheduler = 0.0, self.scheduler
        self.assign(now)
        while self.events:
            now, _, name, number, extra = heapq.heappop(self.events)
            if number < 0:
                self.tell(scheduler.base_arrived, self.names[int(extra)], name)
                continue
            node = self.names[number]
            self.tell(scheduler.slot_free, now, SlotId(node, number))
            self.tell(scheduler.observe, name, node, now - extra)
            self.tell(scheduler.finished, now, name, node)
            scheduler.changes()
            self.assign(now)
        assert scheduler.over, "the run did not end"
        return now


class List:
    """A list schedule, the plain baseline: ready jobs by descending rank, each on the free slot
    that ends it first; O(jobs x slots).

    patient: a job stays in the list when a busy slot, free at a time that is known, would end it
    sooner. barrier: fine-tunes wait for all bases.
    """

    def __init__(
        self, world: World, rank: list[float], patient: bool, barrier: bool = False
    ) -> None:
        self.world, self.rank, self.patient, self.barrier = world, rank, patient, barrier
        self.children: dict[int, list[int]] = {}
        for job, base in enumerate(world.parent):
            self.children.setdefault(base, []).append(job)
        self.free_at, self.busy = np.zeros(len(world.speed)), np.zeros(len(world.speed), dtype=bool)
        self.node = np.array(world.node)
        self.fetch = {
            base: np.full(world.node[-1] + 1, TRANSFER_SECONDS) for base in self.children[-1]
        }
        self.ready = [(-rank[job], job) for job in self.children[-1]]
        heapq.heapify(self.ready)
        self.events: list[tuple[float, int, int]] = []

    def start(self, now: float) -> None:
        """All that can start now; a slot on whose node a base is still arriving is charged as if it
        were there.
        """
        spoken = np.maximum(self.free_at, now)
        passed: list[tuple[float, int]] = []
        while self.ready and not self.busy.all() and len(passed) < 200:
            entry = heapq.heappop(self.ready)
            job, base = entry[1], self.world.parent[entry[1]]
            cost = self.world.seconds[job] / self.world.speed + (
                self.fetch[base][self.node] if base >= 0 else 0.0
            )
            slot = int(np.where(self.busy, math.inf, cost).argmin())
            best = int((spoken + cost).argmin())
            if self.patient and spoken[best] + cost[best] < now + cost[slot]:
                spoken[best] += cost[best]
                passed.append(entry)
                continue
            self.free_at[slot] = spoken[slot] = now + cost[slot]
            self.busy[slot] = True
            self.fetch[base if base >= 0 else job][self.node[slot]] = 0.0
            heapq.heappush(self.events, (float(self.free_at[slot]), job, slot))
        for entry in passed:
            heapq.heappush(self.ready, entry)

    def run(self) -> float:
        now, bases, held = 0.0, len(self.children[-1]), []
        self.start(now)
        while self.events:
            now, job, slot = heapq.heappop(self.events)
            self.busy[slot] = False
            if self.world.parent[job] < 0:
                bases -= 1
                held += self.children.get(job, [])
                if not self.barrier or not bases:
                    for child in held:
                        heapq.heappush(self.ready, (-self.rank[child], child))
                    held = []
            self.start(now)
        return now


def all_knowing(world: World) -> float:
    """The reference: longest remaining chain first, true durations; the better one of the patient
    and the impatient greedy schedule.
    """
    rank = list(world.seconds)
    for job, base in enumerate(world.parent):
        if base >= 0:
            rank[base] = max(rank[base], world.seconds[base] + world.seconds[job])
    return min(List(world, rank, patient).run() for patient in (False, True))


def two_phases(world: World) -> float:
    """The baseline: a barrier, jobs in the order of their file, each on the fastest free slot;
    bases are fetched when needed, as in ours.
    """
    return List(
        world, [-float(job) for job in range(len(world.seconds))], patient=False, barrier=True
    ).run()


CONDITIONS = {
    "": (KNOWN, KNOWN),
    "speeds measured": (KNOWN, MEASURED),
    "speeds unknown": (KNOWN, UNKNOWN),
    "rates unknown": (RATES_UNKNOWN, KNOWN),
    "durations unknown": (UNKNOWN, KNOWN),
}
TARGETS = {"": 1.05, "speeds measured": 1.10, "rates unknown": 1.25}
MIX_TARGET = 1.10


def instance(setting: tuple[int, float, int, str]) -> tuple[float, ...]:
    """Of one instance: ours under each condition over the all-knowing schedule; the barrier over
    ours.
    """
    best = all_knowing(make(*setting))
    ours = [Simulation(make(*setting), *known).run() for known in CONDITIONS.values()]
    return (*(each / best for each in ours), two_phases(make(*setting)) / ours[0])


def worst(name: str, ratios: dict[int, list[float]], target: float | None) -> Row:
    """The row of the slot count whose median is worst."""
    rows = [
        Row.of(f"scheduling: {name} (worst: {slots} slots)", each, target, at_most=True)
        for slots, each in ratios.items()
    ]
    return max(rows, key=lambda row: row.ratio_median)


def makespans(world: str, counts: tuple[int, ...], seeds: int) -> list[Row]:
    rows = []
    with multiprocessing.Pool() as pool:
        for sigma in (0.5, 1.0):
            settings = [(seed, sigma, slots, world) for slots in counts for seed in range(seeds)]
            results = list(zip(*pool.map(instance, settings, chunksize=1), strict=True))
            *ours, barrier = (
                {slots: list(column[i * seeds : (i + 1) * seeds]) for i, slots in enumerate(counts)}
                for column in results
            )
            for condition, ratios in zip(CONDITIONS, ours, strict=True):
                if world == EQUAL and condition.startswith("speeds"):
                    continue
                target = MIX_TARGET if world == MIX and not condition else TARGETS.get(condition)
                name = f"{condition or 'makespan over all-knowing'}, {world}, sigma {sigma:g}"
                rows.append(worst(name, ratios, target))
            slots = 32 if 32 in counts else counts[0]
            name = f"scheduling: barrier over ours, {world}, sigma {sigma:g}, {slots} slots"
            rows.append(Row.of(name, barrier[slots], 1.15))
    return rows


def decisions() -> list[Row]:
    """100,000 jobs on 1,000 slots, equal and unequal: CPU time of a decision over 100 us, memory of
    this process over 500 MB.
    """
    deciding, all_calls = [], []
    for world in (EQUAL, SPREAD):
        simulation = Simulation(make(0, 1.0, 1000, world, bases=7693))
        simulation.run()
        jobs = len(simulation.world.seconds)
        deciding.append(simulation.deciding / jobs / 100e-6)
        all_calls.append((simulation.deciding + simulation.telling) / jobs / 100e-6)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 500e6
    where = "100,000 jobs, 1,000 slots"
    return [
        Row.of(f"scheduling: {where}: time of a decision over 100 us", deciding, 1.0, at_most=True),
        Row.of(
            f"scheduling: {where}: all calls of a job over 100 us", all_calls, None, at_most=True
        ),
        Row.of(f"scheduling: {where}: memory over 500 MB", [memory], 1.0, at_most=True),
    ]


def main() -> None:
    flags = argparse.ArgumentParser(
        description="The scheduler's makespans and the cost of its decisions."
    )
    flags.add_argument(
        "--seeds", type=int, default=40, help="instances of each setting (default: 40)"
    )
    flags.add_argument(
        "--world", choices=[*WORLDS, "decisions"], help="one part alone (default: all)"
    )
    flags.add_argument("--json", type=Path, help="write the rows there as well")
    args = flags.parse_args()
    rows = decisions() if args.world in (None, "decisions") else []
    for name, (world, counts) in WORLDS.items():
        if args.world in (None, name):
            rows += makespans(world, counts, args.seeds)
    sys.stdout.write("\n".join(row.line for row in rows) + "\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
