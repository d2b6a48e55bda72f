"""The scheduler, rule by rule, on a cluster that exists only as numbers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from common.cluster.scheduler.scheduler import Scheduler
from common.cluster.scheduler.states import (
    Assignment,
    Change,
    JobRecord,
    JobState,
    Limits,
    NodeRecord,
    PlannedJob,
    SlotId,
)
from tests.unit.cluster.scheduler.simulated import SimulatedCluster, grid


def cluster(
    *nodes: str, jobs: list[PlannedJob], slots: int = 1, limits: Limits | None = None
) -> SimulatedCluster:
    made = SimulatedCluster(limits)
    made.add_jobs(*jobs)
    for name in nodes:
        made.add_node(name, slots)
    return made


def one(name: str = "j", seconds: float = 1000.0) -> list[PlannedJob]:
    return [PlannedJob(name, seconds)]


# ---- order


def test_a_fine_tune_starts_the_moment_its_own_base_is_done() -> None:
    world = cluster("n", jobs=grid(2, 1), slots=2)
    assert sorted(world.step()) == ["b0", "b1"]
    world.step(10)
    world.end("b0")
    assert world.step() == ["b0f0"]
    assert world.scheduler.state("b1f0") is JobState.WAITING


def test_with_the_barrier_no_fine_tune_starts_before_all_bases_have_ended() -> None:
    world = cluster(
        "n",
        jobs=[*grid(2, 1), PlannedJob("alone", 5, "finetune")],
        slots=4,
        limits=Limits(wait_for_all_bases=True),
    )
    assert sorted(world.step()) == ["b0", "b1"]
    world.end("b0")
    assert world.step() == []
    world.scheduler.job_error(0, "b1", "n", "ValueError")
    world.slots[SlotId("n", 1)] = None
    assert sorted(world.step()) == ["alone", "b0f0"]
    assert world.scheduler.state("b1f0") is JobState.BLOCKED


def test_the_longest_remaining_chain_goes_first_and_a_base_counts_with_its_longest_fine_tune() -> (
    None
):
    jobs = [
        PlannedJob("long", 50),
        PlannedJob("base", 30, "base"),
        PlannedJob("tail", 40, "finetune", needs="base"),
        PlannedJob("short", 10),
    ]
    world = cluster("n", jobs=jobs)
    assert world.step() == ["base"]
    world.end("base")
    assert world.step() == ["long"]


def test_the_fast_slot_gets_the_long_chain() -> None:
    world = SimulatedCluster()
    world.add_jobs(PlannedJob("short", 10), PlannedJob("long", 100))
    world.add_node("slow", speed=0.5)
    world.add_node("fast", speed=2.0)
    world.step()
    assert (world.where("long").node, world.where("short").node) == ("fast", "slow")


def test_at_the_end_a_long_job_waits_for_the_fast_slot_that_ends_it_sooner() -> None:
    world = SimulatedCluster()
    world.add_jobs(PlannedJob("first", 101), PlannedJob("second", 100))
    world.add_node("slow", speed=0.25)
    world.add_node("fast", speed=1.0)
    assert world.step() == ["first"]
    assert world.step(100) == []
    world.end("first")
    assert world.step() == ["second"]
    assert world.where("second").node == "fast"


def test_a_slot_for_which_one_job_waits_is_spoken_for_when_the_next_is_placed() -> None:
    world = SimulatedCluster()
    world.add_jobs(PlannedJob("first", 101), PlannedJob("second", 100), PlannedJob("third", 100))
    world.add_node("fast", speed=1.0)
    assert world.step() == ["first"]
    world.step(100)
    world.add_node("slow", speed=0.6)
    assert world.step() == ["third"]
    world.end("first")
    assert world.step() == ["second"]


@pytest.mark.parametrize(
    ("observed", "slow_gets"),
    [
        ((), "short"),
        ((1.0, 1.0) * 10, "second"),
        ((0.2, 1.8) * 10, "short"),
    ],
    ids=["no job is done", "jobs take what was expected", "jobs take anything"],
)
def test_a_slow_slot_gets_a_long_job_only_when_it_is_known_to_end_in_time(
    observed: tuple[float, ...], slow_gets: str
) -> None:
    world = SimulatedCluster()
    world.add_jobs(*[PlannedJob(f"short{i}", 1) for i in range(60)])
    world.add_jobs(PlannedJob("first", 10.5), PlannedJob("second", 10))
    done, elsewhere = JobRecord(PlannedJob("done", 1), None, 0), NodeRecord("elsewhere")
    for seconds in observed:
        world.scheduler.learning.observe(done, elsewhere, seconds)
    world.add_node("fast", speed=1.0)
    world.add_node("slow", speed=0.4)
    world.step()
    assert world.where("first").node == "fast"
    assert next(job for job, slot in world.running() if slot.node == "slow").startswith(slow_gets)


def test_a_job_that_waits_for_a_slot_takes_the_free_one_when_the_other_does_not_come_free() -> None:
    world = SimulatedCluster()
    world.add_jobs(PlannedJob("first", 101), PlannedJob("second", 100))
    world.add_node("slow", speed=0.25)
    world.add_node("fast", speed=1.0)
    assert world.step() == ["first"]
    assert "second" in world.step(5000)


def test_a_job_does_not_wait_for_a_slot_whose_node_is_gone() -> None:
    world = SimulatedCluster()
    world.add_jobs(PlannedJob("first", 101), PlannedJob("second", 100))
    world.add_node("slow", speed=0.25)
    world.add_node("fast", speed=1.0)
    world.step()
    world.scheduler.drain_node(world.now, "fast")
    assert world.step() == ["second"]


def test_a_fine_tune_prefers_the_node_that_holds_its_base() -> None:
    world = SimulatedCluster(Limits(bytes_per_second=1.0))
    world.add_jobs(PlannedJob("tune", 100, "finetune", base="published", base_bytes=10))
    world.add_node("without")
    world.add_node("with", holds=("published",))
    assert world.scheduler.assign(0) == [Assignment("tune", SlotId("with", 0), None)]


def test_among_many_free_slots_too_the_node_that_holds_the_base_is_found() -> None:
    world = SimulatedCluster(Limits(bytes_per_second=1.0))
    world.add_jobs(PlannedJob("tune", 100, "finetune", base="published", base_bytes=10))
    for i in range(9):
        world.add_node(f"without{i}")
    world.add_node("with", holds=("published",))
    assert world.scheduler.assign(0) == [Assignment("tune", SlotId("with", 0), None)]


def test_a_transfer_is_worth_it_when_the_other_node_is_so_much_faster() -> None:
    world = SimulatedCluster(Limits(bytes_per_second=1.0))
    world.add_jobs(PlannedJob("tune", 100, "finetune", base="published", base_bytes=10))
    world.add_node("with", speed=0.5, holds=("published",))
    world.add_node("without")
    assert world.scheduler.assign(0) == [Assignment("tune", SlotId("without", 0), "published")]


def test_the_node_that_trained_a_base_holds_it_and_another_has_to_fetch_it() -> None:
    world = cluster("n1", jobs=grid(1, 2))
    world.step()
    world.end("b0")
    world.add_node("n2")
    fetched = {slot.node: fetch for _, slot, fetch in world.scheduler.assign(0)}
    assert fetched == {"n1": None, "n2": "b0"}


def test_a_job_whose_base_is_on_its_way_waits_for_it_too() -> None:
    world = SimulatedCluster()
    jobs = [PlannedJob(f"tune{i}", 100, "finetune", base="published") for i in range(3)]
    world.add_jobs(*jobs)
    world.add_node("n", slots=2)
    assert [order.fetch for order in world.scheduler.assign(0)] == ["published"] * 2
    world.scheduler.base_arrived("n", "published")
    world.free(SlotId("n", 0))
    assert [order.fetch for order in world.scheduler.assign(0)] == [None]


def test_a_base_that_was_lost_is_fetched_again() -> None:
    world = SimulatedCluster()
    world.add_jobs(PlannedJob("tune", 100, "finetune", base="published", base_bytes=10))
    world.add_node("n", holds=("published",))
    world.scheduler.base_lost("n", "published")
    assert world.scheduler.assign(0)[0].fetch == "published"


# ---- the end of a job


def test_a_slot_is_used_again_while_a_result_is_still_on_its_way() -> None:
    world = cluster("n", jobs=[PlannedJob("a", 20), PlannedJob("b", 10)])
    world.step()
    world.pack("a", SlotId("n", 0))
    assert world.step() == ["b"]
    assert world.scheduler.state("a") is JobState.RUNNING
    world.deliver("a", "n")
    assert world.scheduler.state("a") is JobState.DONE


def test_an_error_of_the_job_fails_it_at_once_and_blocks_its_fine_tunes() -> None:
    world = cluster("n", jobs=grid(1, 2))
    world.step()
    world.scheduler.job_error(0, "b0", "n", "ValueError: no positives")
    world.slots[SlotId("n", 0)] = None
    world.step()
    assert world.ended == {
        "b0": JobState.FAILED,
        "b0f0": JobState.BLOCKED,
        "b0f1": JobState.BLOCKED,
    }
    assert world.scheduler.cause("b0") == "ValueError: no positives"
    assert "b0" in world.scheduler.cause("b0f0")
    assert world.scheduler.over


def test_a_job_added_to_a_failed_base_is_blocked_and_to_a_done_base_ready() -> None:
    world = cluster(
        "n", jobs=[PlannedJob("good", 2, "base"), PlannedJob("bad", 1, "base")], slots=2
    )
    world.step()
    world.end("good")
    world.scheduler.job_error(0, "bad", "n", "ValueError")
    world.add_jobs(PlannedJob("f1", 1, needs="good"), PlannedJob("f2", 1, needs="bad"))
    assert (world.scheduler.state("f1"), world.scheduler.state("f2")) == (
        JobState.READY,
        JobState.BLOCKED,
    )


def test_a_result_that_does_not_verify_counts_as_the_nodes_fault_and_the_job_is_done_again() -> (
    None
):
    world = cluster("n1", "n2", jobs=one())
    world.step()
    first = world.where("j")
    world.scheduler.node_fault(0, "j", first.node, "its result was not what was sent")
    world.slots[first] = "down"
    assert world.step() == ["j"]
    assert world.where("j").node != first.node


def test_a_result_found_on_the_node_that_does_the_job_again_stops_it_and_keeps_its_slot_busy():
    world = cluster("n", jobs=[PlannedJob("j", 100), PlannedJob("k", 10)])
    world.step()
    slot = world.where("j")
    assert world.scheduler.finished(0, "j", "n")
    assert world.step() == []
    assert world.slots[slot] == "stopping"
    world.free(slot)
    assert world.step() == ["k"]


def test_a_result_found_published_ends_a_job_that_never_ran() -> None:
    world = cluster("n", jobs=grid(1, 1))
    assert world.scheduler.finished(0, "b0", "head")
    assert world.step() == ["b0f0"]


# ---- silence


def test_after_30_s_of_silence_a_job_is_ready_elsewhere_and_after_60_s_its_node_is_closed() -> None:
    world = cluster("n1", jobs=one())
    world.step()
    world.add_node("n2")
    world.mute.add("n1")
    assert world.step(29) == []
    assert world.scheduler.node_state("n1") == "open"
    assert world.step(2) == ["j"]
    assert world.scheduler.node_state("n1") == "suspect"
    world.step(28)
    assert world.scheduler.node_state("n1") == "suspect"
    world.step(2)
    assert world.scheduler.node_state("n1") == "closed"
    assert world.scheduler.copies("j") == ["n2"]


def test_a_job_on_a_suspect_node_is_ready_while_nobody_else_can_take_it() -> None:
    world = cluster("n1", jobs=one())
    world.step()
    world.mute.add("n1")
    world.step(31)
    assert world.scheduler.state("j") is JobState.READY
    world.mute.clear()
    world.step(5)
    assert world.scheduler.state("j") is JobState.RUNNING
    assert world.starts["j"] == 1


def test_a_node_heard_before_60_s_keeps_its_job_and_the_later_copy_is_cancelled() -> None:
    world = cluster("n1", jobs=one())
    world.step()
    world.add_node("n2")
    world.mute.add("n1")
    world.step(40)
    world.mute.clear()
    world.step(5)
    assert world.scheduler.copies("j") == ["n1"]
    assert world.slots[SlotId("n2", 0)] == "stopping"
    assert world.scheduler.state("j") is JobState.RUNNING


def test_the_slot_of_a_cancelled_copy_is_used_only_when_it_says_that_it_is_free() -> None:
    world = cluster("n1", jobs=one())
    world.step()
    world.add_node("n2")
    world.mute.add("n1")
    world.step(40)
    world.mute.clear()
    world.step(5)
    world.add_jobs(PlannedJob("next", 10))
    assert world.step(20) == []
    world.free(SlotId("n2", 0))
    assert world.step() == ["next"]


def test_an_order_to_stop_a_copy_whose_slot_is_free_again_is_dropped_lest_it_hit_the_next_job() -> (
    None
):
    world = cluster("n1", jobs=one())
    world.step()
    world.add_node("n2")
    world.mute.add("n1")
    world.step(40)
    world.scheduler.heartbeat(world.now, "n1")
    world.free(SlotId("n2", 0))
    assert world.scheduler.cancellations() == []


def test_the_first_verified_result_wins_and_the_other_copy_is_cancelled() -> None:
    world = cluster("n1", jobs=one())
    world.step()
    world.add_node("n2")
    world.mute.add("n1")
    world.step(40)
    world.end("j", SlotId("n2", 0))
    world.obey()
    assert world.slots[SlotId("n1", 0)] == "stopping"
    assert not world.scheduler.finished(world.now, "j", "n1")
    assert world.scheduler.state("j") is JobState.DONE


def test_a_node_that_is_silent_again_and_again_does_not_make_copies_without_end() -> None:
    world = cluster("n1", jobs=one(seconds=10_000))
    world.step()
    world.add_node("n2")
    for _ in range(5):
        world.mute.add("n1")
        world.step(40)
        world.mute.clear()
        world.step(5)
        if world.slots[SlotId("n2", 0)] == "stopping":
            world.free(SlotId("n2", 0))
    assert world.starts["j"] == 3
    assert world.scheduler.copies("j") == ["n1"]


def test_a_closed_node_gets_nothing_until_it_joins_again() -> None:
    world = cluster("n", jobs=one())
    world.step()
    world.scheduler.close_node(0, "n", "the connection ended")
    world.lose_node("n")
    assert world.scheduler.state("j") is JobState.READY
    assert not world.scheduler.slot_free(0, SlotId("n", 0))
    assert world.step(20) == []
    world.add_node("n")
    assert world.step() == ["j"]


def test_a_node_added_again_while_it_is_suspect_stays_so_until_it_is_heard() -> None:
    world = cluster("n", jobs=one())
    world.mute.add("n")
    world.scheduler.tick(31)
    world.scheduler.add_node(31, "n")
    assert world.scheduler.node_state("n") == "suspect"
    world.scheduler.heartbeat(32, "n")
    assert world.scheduler.node_state("n") == "open"


def test_a_short_silence_limit_is_a_setting() -> None:
    world = cluster("n", jobs=one(), limits=Limits(suspect_after=3, close_after=6))
    world.scheduler.tick(4)
    assert world.scheduler.node_state("n") == "suspect"
    world.scheduler.tick(7)
    assert world.scheduler.node_state("n") == "closed"


# ---- faults


def test_a_nodes_fault_is_retried_on_another_node_even_if_the_first_is_free_again() -> None:
    world = cluster("n1", "n2", jobs=[PlannedJob("j", 100), PlannedJob("other", 90)])
    world.step()
    bad, good = world.where("j"), world.where("other")
    world.scheduler.node_fault(0, "j", bad.node, "disk full")
    world.free(bad)
    assert world.step() == []
    world.end("other")
    world.step()
    assert world.where("j") == good


def test_a_job_is_given_up_after_its_retries() -> None:
    world = cluster("n", jobs=one(), limits=Limits(faults_in_a_row=100))
    for _ in range(3):
        assert world.step() == ["j"]
        world.scheduler.node_fault(0, "j", "n", "disk full")
        world.free(SlotId("n", 0))
    assert world.step() == []
    assert world.scheduler.state("j") is JobState.FAILED
    assert "disk full" in world.scheduler.cause("j")


def test_three_faults_in_a_row_set_a_node_aside_and_it_is_tried_again_with_one_job_at_a_time() -> (
    None
):
    world = cluster("n", jobs=[PlannedJob(f"j{i}", 100) for i in range(9)], slots=3)
    assert len(world.step()) == 3
    for job, slot in world.running():
        world.scheduler.node_fault(0, job, "n", "disk full")
        world.free(slot)
    assert world.scheduler.node_state("n") == "set aside"
    assert world.step(29) == []
    assert len(world.step(10)) == 1
    job, slot = world.running()[0]
    world.end(job)
    assert len(world.step()) == 3


def test_a_node_that_fails_its_trial_is_set_aside_for_longer() -> None:
    world = cluster("n", jobs=[PlannedJob(f"j{i}", 100) for i in range(9)])
    waits = []
    for _ in range(6):
        begun = world.now
        world.step()
        while not world.running():
            world.step(1)
        waits.append(world.now - begun)
        world.scheduler.node_fault(world.now, world.running()[0][0], "n", "disk full")
        world.free(SlotId("n", 0))
    assert waits == [0, 0, 0, 30, 60, 120]


def test_a_good_result_breaks_the_row_of_faults() -> None:
    world = cluster("n", jobs=[PlannedJob(f"j{i}", 100) for i in range(9)])
    for _ in range(3):
        for _ in range(2):
            world.step()
            world.scheduler.node_fault(0, world.running()[0][0], "n", "disk full")
            world.free(SlotId("n", 0))
        world.step()
        world.end(world.running()[0][0])
    assert world.scheduler.node_state("n") == "open"


def test_one_job_that_kills_its_worker_on_two_nodes_fails_and_no_node_is_blamed() -> None:
    world = cluster(
        "n1", "n2", jobs=[*one(), PlannedJob("other", 10)], limits=Limits(faults_in_a_row=1)
    )
    for _ in range(2):
        world.step()
        slot = world.where("j")
        world.scheduler.job_killed(0, "j", slot.node, "its worker died with signal 11")
        world.free(slot)
        if world.scheduler.state("other") is JobState.RUNNING:
            world.end("other")
    assert world.scheduler.state("j") is JobState.FAILED
    assert "n1 and n2" in world.scheduler.cause("j")
    assert {world.scheduler.node_state(name) for name in ("n1", "n2")} == {"open"}


def test_where_there_is_one_node_a_job_fails_when_it_died_there_twice() -> None:
    world = cluster("n", jobs=one())
    for _ in range(2):
        assert world.step() == ["j"]
        world.scheduler.job_killed(0, "j", "n", "out of memory")
        world.free(SlotId("n", 0))
    assert world.scheduler.state("j") is JobState.FAILED


def test_a_node_is_blamed_when_a_second_job_dies_there() -> None:
    world = cluster(
        "n",
        jobs=[PlannedJob("a", 10), PlannedJob("b", 10)],
        slots=2,
        limits=Limits(faults_in_a_row=1),
    )
    world.step()
    world.scheduler.job_killed(0, "a", "n", "out of memory")
    assert world.scheduler.node_state("n") == "open"
    world.scheduler.job_killed(0, "b", "n", "out of memory")
    assert world.scheduler.node_state("n") == "set aside"


def test_a_job_that_killed_a_worker_is_tried_again_after_all_others() -> None:
    world = cluster(
        "n",
        jobs=[
            PlannedJob("killer", 100, "base"),
            PlannedJob("a", 10, "base"),
            PlannedJob("b", 10, "finetune"),
        ],
    )
    assert world.step() == ["killer"]
    world.scheduler.job_killed(0, "killer", "n", "out of memory")
    world.free(SlotId("n", 0))
    order = []
    for _ in range(3):
        order += world.step()
        world.end(order[-1])
    assert order == ["a", "b", "killer"]


def test_out_of_gpu_memory_takes_one_slot_from_that_gpu_but_never_its_last() -> None:
    world = cluster(jobs=[PlannedJob("a", 30), PlannedJob("b", 20), PlannedJob("c", 10)])
    world.add_node("n", 2, gpu="0")
    world.add_node("n2")
    world.step()
    slot = next(slot for _, slot in world.running() if slot.node == "n")
    job = world.slots[slot]
    assert job is not None
    taken = world.scheduler.out_of_gpu_memory(0, job, "n", "0")
    assert taken == slot
    assert not world.scheduler.slot_free(0, slot, "0")
    rest, other = next(
        (job, slot) for job, slot in world.running() if slot.node == "n" and slot != taken
    )
    assert world.scheduler.out_of_gpu_memory(0, rest, "n", "0") is None
    assert world.scheduler.slot_free(0, other, "0")


def test_a_worker_that_vanishes_without_a_word_costs_its_job_an_attempt() -> None:
    world = cluster("n1", "n2", jobs=one())
    world.step()
    slot = world.where("j")
    world.scheduler.slot_gone(0, slot)
    world.slots[slot] = "down"
    assert world.step() == ["j"]


def test_a_word_about_a_copy_that_was_lost_is_ignored() -> None:
    world = cluster("n1", "n2", jobs=one())
    world.step()
    slot = world.where("j")
    world.scheduler.node_fault(0, "j", slot.node, "disk full")
    world.slots[slot] = "down"
    world.scheduler.job_error(0, "j", slot.node, "late")
    world.scheduler.job_killed(0, "j", slot.node, "late")
    assert world.scheduler.out_of_gpu_memory(0, "j", slot.node, "0") is None
    assert world.scheduler.state("j") is JobState.READY


def test_when_no_node_can_work_for_ten_minutes_the_run_is_given_up_and_the_rest_listed() -> None:
    world = cluster("n", jobs=grid(1, 1))
    world.scheduler.drain_node(0, "n")
    world.step(599)
    assert not world.scheduler.given_up
    world.step(2)
    assert world.scheduler.given_up
    assert world.scheduler.over
    assert world.scheduler.left() == ["b0", "b0f0"]


def test_ten_minutes_begin_again_when_a_node_works() -> None:
    world = cluster(jobs=one())
    world.step(500)
    world.add_node("n")
    world.step(5)
    world.scheduler.close_node(world.now, "n", "the connection ended")
    world.lose_node("n")
    world.step(500)
    assert not world.scheduler.given_up


# ---- leaving and stopping


def test_a_drained_node_finishes_what_it_runs_and_gets_nothing_new() -> None:
    world = cluster("n", jobs=[PlannedJob("a", 20), PlannedJob("b", 10)])
    world.step()
    world.scheduler.drain_node(0, "n")
    assert world.scheduler.jobs_on("n") == ["a"]
    world.end("a")
    assert world.step(20) == []
    assert world.scheduler.jobs_on("n") == []
    world.scheduler.add_node(world.now, "n")
    assert world.step() == ["b"]


def test_after_stop_starting_running_jobs_finish_and_nothing_new_starts() -> None:
    world = cluster("n", jobs=[PlannedJob("a", 20), PlannedJob("b", 10)])
    world.step()
    world.scheduler.stop_starting()
    world.stopped = True
    assert not world.scheduler.over
    world.end("a")
    assert world.step(20) == []
    assert world.scheduler.over
    assert world.scheduler.left() == ["b"]


# ---- estimates, counts


def test_observed_durations_correct_the_estimates_of_that_kind_and_the_time_left() -> None:
    world = cluster(
        "n",
        jobs=[
            *(PlannedJob(f"f{i}", 10, "finetune") for i in range(10)),
            PlannedJob("b", 10, "base"),
        ],
    )
    before = world.scheduler.time_left(0)
    assert before == pytest.approx(110)
    for _ in range(5):
        (job,) = world.step()
        world.step(30)
        world.end(job)
    assert world.scheduler.learning.factor("finetune") > 1.5
    # no base is done: their estimates are corrected by what is known of all jobs
    assert world.scheduler.learning.factor("base") > 1.5
    left = world.scheduler.time_left(world.now)
    assert left is not None
    assert left > 120


def test_a_node_that_is_slower_than_the_others_is_found_out() -> None:
    world = cluster("slow", "fast", jobs=[PlannedJob(f"j{i}", 10) for i in range(60)])
    while not world.scheduler.over:
        world.step(10)
        for job, slot in world.running():
            if world.now - world.begun[job, slot.node] >= (40 if slot.node == "slow" else 10):
                world.end(job)
    assert world.scheduler.speed("slow") < 0.6 * world.scheduler.speed("fast")


def test_cores_beside_a_gpu_have_a_speed_of_their_own() -> None:
    scheduler = Scheduler()
    scheduler.add_jobs(0, [PlannedJob("long", 100), PlannedJob("short", 10)])
    scheduler.add_node(0, "n", speed=10.0)
    scheduler.slot_free(0, SlotId("n", 0), share=0.05)
    scheduler.slot_free(0, SlotId("n", 1), gpu="0", share=1.1)
    assert scheduler.assign(0) == [Assignment("long", SlotId("n", 1), None)]
    scheduler.slot_free(10, SlotId("n", 1))
    scheduler.observe("long", "n", 10.0)
    assert scheduler.finished(10, "long", "n")
    assert scheduler.assign(10) == [Assignment("short", SlotId("n", 1), None)]
    assert scheduler.speed("n") == 10.0


def test_a_job_on_a_slow_slot_counts_with_what_it_would_take_on_the_others() -> None:
    scheduler = Scheduler()
    scheduler.add_jobs(0, [PlannedJob(f"j{i}", 10) for i in range(4)])
    scheduler.add_node(0, "n", speed=10.0)
    scheduler.slot_free(0, SlotId("n", 0), share=0.1)
    for now in range(4):
        (start,) = scheduler.assign(now)
        scheduler.slot_free(now, SlotId("n", 0))
        scheduler.observe(start.job, "n", 10.0)
        scheduler.finished(now, start.job, "n")
    assert scheduler.speed("n") == pytest.approx(10.0)
    assert scheduler.learning.factor("job") == pytest.approx(1.0)


def test_time_left_is_unknown_while_no_slot_can_work_and_zero_at_the_end() -> None:
    world = cluster(jobs=one())
    assert world.scheduler.time_left(0) is None
    world.add_node("n")
    assert world.scheduler.time_left(0) == pytest.approx(1000)
    world.step()
    world.end("j")
    assert world.scheduler.time_left(0) == 0


def test_after_stop_starting_the_time_left_is_that_of_the_running_jobs() -> None:
    world = cluster("n", jobs=[PlannedJob("a", 20), *(PlannedJob(f"b{i}", 10) for i in range(9))])
    world.step()
    assert world.scheduler.time_left(0) == pytest.approx(110)
    world.scheduler.stop_starting()
    assert world.scheduler.time_left(0) == pytest.approx(20)
    world.end("a")
    assert world.scheduler.time_left(0) == 0


def test_failed_and_blocked_jobs_need_no_time() -> None:
    world = cluster("n", jobs=[*grid(1, 5), PlannedJob("other", 10)], slots=2)
    world.step()
    world.scheduler.job_error(0, "b0", "n", "ValueError")
    assert world.scheduler.time_left(0) == pytest.approx(10)


def test_counts_are_kept_for_each_kind() -> None:
    world = cluster("n", jobs=grid(2, 3))
    world.step()
    assert world.scheduler.kinds() == ["base", "finetune"]
    assert world.scheduler.counts("base")[JobState.RUNNING] == 1
    assert world.scheduler.counts("finetune")[JobState.WAITING] == 6
    assert sum(world.scheduler.counts().values()) == 8
    assert sum(world.scheduler.counts("unheard").values()) == 0


def test_changes_tell_the_story_for_the_event_log() -> None:
    scheduler = Scheduler()
    scheduler.add_jobs(0, one())
    scheduler.add_node(0, "n")
    scheduler.slot_free(0, SlotId("n", 0))
    scheduler.assign(0)
    scheduler.close_node(1, "n", "the connection ended")
    assert scheduler.changes() == [
        Change("job", "j", "ready", ""),
        Change("node", "n", "open", ""),
        Change("job", "j", "running", ""),
        Change("node", "n", "closed", "the connection ended"),
        Change("job", "j", "ready", "the connection ended"),
    ]
    assert scheduler.changes() == []


@pytest.mark.parametrize(
    ("jobs", "word"),
    [
        ([PlannedJob("a", 1), PlannedJob("a", 1)], "twice"),
        ([PlannedJob("a", 0)], "estimate"),
        ([PlannedJob("a", float("nan"))], "estimate"),
        ([PlannedJob("a", 1, needs="b")], "not among"),
        ([PlannedJob("a", 1, needs="a")], "needs a job itself"),
        (
            [PlannedJob("a", 1, needs="b"), PlannedJob("b", 1, needs="c"), PlannedJob("c", 1)],
            "needs a job itself",
        ),
    ],
)
def test_a_callers_mistake_is_refused_and_changes_nothing(
    jobs: list[PlannedJob], word: str
) -> None:
    scheduler = Scheduler()
    with pytest.raises(ValueError, match=word):
        scheduler.add_jobs(0, jobs)
    assert scheduler.left() == []


@pytest.mark.parametrize("wrong", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_after_a_tenth_of_the_work_the_time_left_is_right_within_30_percent(
    seed: int, wrong: float
) -> None:
    """Estimates are off by `wrong` in common and by 30 % each, speeds by 15 %; durations scatter by
    50 % around those of their kind.
    """
    rng = random.Random(seed)
    world = SimulatedCluster()
    seconds = {
        job.id: job.estimate * rng.lognormvariate(0, 0.5) for job in grid(12, 12, 600.0, 120.0)
    }
    for job in grid(12, 12):
        estimate = seconds[job.id] * wrong * rng.lognormvariate(0, 0.3)
        world.add_jobs(replace(job, estimate=estimate))
    speeds = [rng.uniform(0.5, 2.0) for _ in range(8)]
    for number, speed in enumerate(speeds):
        world.add_node(f"n{number}", speed=speed * rng.lognormvariate(0, 0.15))
    done, guess = 0.0, None
    while not world.scheduler.over:
        world.step(2)
        for job, slot in world.running():
            speed = speeds[int(slot.node[1:])]
            if world.now - world.begun[job, slot.node] >= seconds[job] / speed:
                world.end(job)
                done += seconds[job]
        if guess is None and done >= 0.1 * sum(seconds.values()):
            guess, asked = world.scheduler.time_left(world.now), world.now
    assert guess == pytest.approx(world.now - asked, rel=0.3)
