"""Whatever happens in whatever order: no rule is broken, and the run comes to an end.

The rules themselves (no slot runs two jobs, no fine-tune before its base, nothing starts on a node
that is suspect, draining, set aside or closed, every job ends once, retries are bounded) are
asserted by SimulatedCluster after every event.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from common.cluster.scheduler.states import ENDED, JobState, Limits, PlannedJob, SlotId
from tests.unit.cluster.scheduler.simulated import SimulatedCluster, grid

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
PICK = st.integers(0, 10**6)
NODES = ("n0", "n1", "n2")


class Storm(RuleBasedStateMachine):
    """Events in any order, then fair weather until the run is over."""

    limits = Limits()

    def __init__(self) -> None:
        super().__init__()
        self.world = SimulatedCluster(self.limits)
        self.scheduler = self.world.scheduler
        self.world.add_jobs(*grid(2, 2))
        self.known: set[str] = set()
        self.extra = 0

    def running(self, pick: int) -> tuple[str, SlotId] | None:
        copies = self.world.running()
        return copies[pick % len(copies)] if copies else None

    @rule(
        name=st.sampled_from(NODES),
        slots=st.integers(1, 3),
        speed=st.sampled_from([0.5, 1.0, 2.0]),
        gpu=st.sampled_from([None, "0"]),
    )
    def a_node_joins(self, name: str, slots: int, speed: float, gpu: str | None) -> None:
        if name not in self.known or self.scheduler.node_state(name) == "closed":
            self.world.lose_node(name)
            self.world.add_node(name, slots, speed, gpu)
            self.known.add(name)
        else:
            self.scheduler.add_node(self.world.now, name)

    @rule(seconds=st.sampled_from([0.0, 1.0, 7.0, 31.0, 61.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.step(seconds)

    @rule(pick=PICK)
    def a_job_ends_well(self, pick: int) -> None:
        if copy := self.running(pick):
            self.world.pack(*copy)

    @precondition(lambda self: self.world.parcels)
    @rule(pick=PICK, verified=st.booleans())
    def a_result_comes_home(self, pick: int, verified: bool) -> None:
        job, node = self.world.parcels[pick % len(self.world.parcels)]
        if verified:
            before = self.scheduler.state(job)
            assert self.world.deliver(job, node) == (before not in ENDED)
            assert self.scheduler.state(job) in ENDED
        else:
            self.world.parcels.remove((job, node))
            self.scheduler.node_fault(self.world.now, job, node, "its result was not what was sent")

    @rule(pick=PICK)
    def a_result_is_found_where_the_job_runs(self, pick: int) -> None:
        if copy := self.running(pick):
            job, slot = copy
            before = self.scheduler.state(job)
            assert self.scheduler.finished(self.world.now, job, slot.node) == (before not in ENDED)
            self.world.step()

    @rule(pick=PICK, how=st.sampled_from(["fault", "killed", "gpu", "error", "gone"]))
    def a_copy_ends_badly(self, pick: int, how: str) -> None:
        if (copy := self.running(pick)) is None:
            return
        (job, slot), now = copy, self.world.now
        self.world.slots[slot] = "down"
        if how == "fault":
            self.scheduler.node_fault(now, job, slot.node, "disk full")
        elif how == "killed":
            self.scheduler.job_killed(now, job, slot.node, "its worker died")
        elif how == "gpu":
            taken = self.scheduler.out_of_gpu_memory(now, job, slot.node, "0")
            assert taken in (None, slot)
        elif how == "gone":
            self.scheduler.slot_gone(now, slot)
        else:
            self.world.slots[slot] = (
                None if self.scheduler.node_state(slot.node) != "closed" else "down"
            )
            self.scheduler.job_error(now, job, slot.node, "ValueError")

    @rule(pick=PICK)
    def a_slot_comes_back(self, pick: int) -> None:
        slots = [
            slot for slot, job in sorted(self.world.slots.items()) if job in ("down", "stopping")
        ]
        if slots:
            self.world.free(slots[pick % len(slots)])

    @rule(name=st.sampled_from(NODES))
    def a_node_falls_silent(self, name: str) -> None:
        self.world.mute.add(name)

    @rule(name=st.sampled_from(NODES))
    def a_node_is_heard_again(self, name: str) -> None:
        self.world.mute.discard(name)

    @rule(name=st.sampled_from(NODES), how=st.sampled_from(["drain", "close", "fault"]))
    def a_node_goes(self, name: str, how: str) -> None:
        if name not in self.known:
            return
        if how == "drain":
            self.scheduler.drain_node(self.world.now, name)
        elif how == "fault":
            self.scheduler.node_fault(self.world.now, None, name, "no base could be copied")
        else:
            self.scheduler.close_node(self.world.now, name, "the connection ended")
            self.world.lose_node(name)

    @rule(name=st.sampled_from(NODES), base=st.sampled_from(["b0", "b1"]), lost=st.booleans())
    def a_base_moves(self, name: str, base: str, lost: bool) -> None:
        if name in self.known:
            (self.scheduler.base_lost if lost else self.scheduler.base_arrived)(name, base)

    @rule(needs=st.sampled_from([None, "b0", "b1"]))
    def more_jobs_come(self, needs: str | None) -> None:
        self.extra += 1
        self.world.add_jobs(
            PlannedJob(f"x{self.extra}", 30.0, "finetune" if needs else "base", needs=needs)
        )

    @rule(rarely=st.integers(0, 9))
    def interrupted(self, rarely: int) -> None:
        if rarely == 0:
            self.scheduler.stop_starting()
            self.world.stopped = True

    def teardown(self) -> None:
        """Fair weather: what is silent stays silent, what runs ends well, nobody joins."""
        self.world.step()
        self.world.work(limit=6 * 3600)
        self.world.obey()
        unended = set(self.scheduler.left())
        assert unended == self.world.jobs.keys() - self.world.ended.keys()
        assert not unended or self.scheduler.given_up or self.world.stopped
        failed = {JobState.FAILED, JobState.BLOCKED}
        for job in self.world.jobs.values():
            if job.needs and self.world.ended.get(job.needs) in failed:
                assert self.world.ended[job.id] in failed | {JobState.DONE}


class StormWithBarrier(Storm):
    """The same in two literal phases."""

    limits = Limits(wait_for_all_bases=True)


def test_in_any_storm_the_rules_hold_and_the_run_ends() -> None:
    run_state_machine_as_test(
        Storm,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=QUIET,
        ),
    )


def test_in_any_storm_the_rules_hold_in_two_phases_too() -> None:
    run_state_machine_as_test(
        StormWithBarrier,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=QUIET,
        ),
    )


FAULTS: dict[str, Callable[[SimulatedCluster, str], object]] = {
    "disk full": lambda world, job: world.scheduler.node_fault(world.now, job, "n", "disk full"),
    "worker died": lambda world, job: world.scheduler.job_killed(
        world.now, job, "n", "its worker died"
    ),
    "GPU memory": lambda world, job: world.scheduler.out_of_gpu_memory(world.now, job, "n", "0"),
    "worker gone": lambda world, job: world.scheduler.slot_gone(world.now, world.where(job)),
    "connection lost": lambda world, job: world.scheduler.close_node(
        world.now, "n", "the connection ended"
    ),
}


@given(
    st.integers(1, 12),
    st.integers(1, 3),
    st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=6),
    st.sampled_from([0.0, 5.0, 60.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_a_lone_bad_node_ends_the_run_in_bounded_time(
    jobs: int, slots: int, faults: list[str], delay: float
) -> None:
    """Every job that it is given ends in a fault after `delay` seconds."""
    world = SimulatedCluster()
    world.add_jobs(*(PlannedJob(f"j{i}", 100.0) for i in range(jobs)))
    world.add_node("n", slots, gpu="0")
    turn = 0
    while not world.scheduler.over:
        world.step(5)
        for job, slot in world.running():
            if slot in world.slots and world.now - world.begun[job, "n"] >= delay:
                FAULTS[faults[turn % len(faults)]](world, job)
                turn += 1
                if world.scheduler.node_state("n") == "closed":
                    world.lose_node("n")
                    world.add_node("n", slots, gpu="0")
                    break
                world.slots[slot] = "down"
                world.free(slot, "0")
        assert world.now < 3600 + 3 * jobs * (delay + 5)
    world.obey()
    assert JobState.DONE not in world.ended.values()
    assert world.ended.keys() | set(world.scheduler.left()) == world.jobs.keys()


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_a_sound_cluster_of_any_speeds_does_everything_without_idling_away_the_time(
    data: st.DataObject,
) -> None:
    """However wrong the estimates are, the makespan stays under that of the slowest slot alone."""
    world = SimulatedCluster(Limits(bytes_per_second=1e6))
    speeds = data.draw(
        st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=5), "speeds"
    )
    seconds = data.draw(st.lists(st.integers(1, 200), min_size=8, max_size=8), "seconds")
    wrong = data.draw(st.sampled_from([0.1, 1.0, 10.0]), "estimate over seconds")
    jobs = [PlannedJob(f"b{i}", wrong * seconds[i], "base") for i in range(2)]
    jobs += [
        PlannedJob(f"f{i}", wrong * seconds[i], "finetune", needs=f"b{i % 2}", base_bytes=10**6)
        for i in range(2, 8)
    ]
    world.add_jobs(*jobs)
    for i, speed in enumerate(speeds):
        world.add_node(f"n{i}", speed=speed)
    true = {job.id: float(each) for job, each in zip(jobs, seconds, strict=True)}
    while not world.scheduler.over:
        world.step(1)
        for job, slot in world.running():
            if world.now - world.begun[job, slot.node] >= true[job] / speeds[int(slot.node[1:])]:
                world.end(job, slot)
    assert set(world.ended.values()) == {JobState.DONE}
    assert world.now <= sum(seconds) / min(speeds) + 2 * len(jobs)


@given(st.lists(st.sampled_from(["done", "error", "lost", "late"]), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_job_ends_once_however_many_answers_come(answers: list[str]) -> None:
    world = SimulatedCluster()
    world.add_jobs(*grid(1, 1))
    world.add_node("n")
    world.step()
    verdicts = []
    for answer in answers:
        if answer == "done":
            verdicts.append(world.scheduler.finished(world.now, "b0", "n"))
        elif answer == "late":
            verdicts.append(world.scheduler.finished(world.now, "b0", "elsewhere"))
        elif answer == "error":
            world.scheduler.job_error(world.now, "b0", "n", "ValueError")
        else:
            world.scheduler.node_fault(world.now, "b0", "n", "disk full")
    world.check_books()
    assert verdicts.count(True) <= 1
    assert (world.scheduler.state("b0") is JobState.DONE) == (True in verdicts)
