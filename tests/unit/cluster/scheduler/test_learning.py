"""Corrections of durations and speeds."""

from __future__ import annotations

import math

import pytest

from common.cluster.scheduler.learning import Learning
from common.cluster.scheduler.states import JobRecord, NodeRecord, PlannedJob


def record(estimate: float = 10.0, kind: str = "base") -> JobRecord:
    return JobRecord(PlannedJob("j", estimate, kind), None, 0)


def node(speed: float = 1.0) -> NodeRecord:
    return NodeRecord("n", speed=speed, prior=speed)


def test_before_any_job_the_estimates_are_taken_as_they_are() -> None:
    assert Learning().factor("base") == 1
    assert Learning().including([]).factor("base") == 1


def test_a_kind_of_which_no_job_is_done_is_corrected_by_all_others() -> None:
    learning = Learning()
    for _ in range(5):
        learning.observe(record(10.0, "base"), node(), 40.0)
    assert learning.factor("base") == pytest.approx(4, rel=0.1)
    assert learning.factor("finetune") == pytest.approx(4, rel=0.1)
    for _ in range(5):
        learning.observe(record(10.0, "finetune"), node(), 10.0)
    assert learning.factor("finetune") == pytest.approx(1, rel=0.3)
    assert learning.factor("base") == pytest.approx(4, rel=0.1)


def test_the_first_job_of_a_kind_shows_how_wrong_estimates_are_and_nothing_about_its_node() -> None:
    learning, slow = Learning(), node()
    assert not learning.observe(record(), slow, 100.0)
    assert slow.speed == 1


def test_a_node_that_takes_twice_as_long_as_others_is_half_as_fast() -> None:
    learning, nodes = Learning(), [node() for _ in range(8)]
    for _ in range(20):
        for number, host in enumerate(nodes):
            learning.observe(record(), host, 20.0 if number == 0 else 10.0)
    assert nodes[0].speed / nodes[1].speed == pytest.approx(0.5, rel=0.1)


def test_a_job_that_has_run_for_longer_than_expected_counts_with_more_than_it_has_run() -> None:
    learning = Learning()
    for _ in range(3):
        learning.observe(record(), node(), 10.0)
    on_time = learning.including([(record(), 1.0)] * 3)
    late = learning.including([(record(), 30.0)] * 3)
    assert on_time.factor("base") == pytest.approx(1, rel=0.05)
    assert late.factor("base") > 2
    assert learning.factor("base") == pytest.approx(1)


@pytest.mark.parametrize("so_far", [0.0, 1e-9, 1e9])
def test_any_time_so_far_gives_a_finite_factor(so_far: float) -> None:
    factor = Learning().including([(record(), so_far)] * 3).factor("base")
    assert math.isfinite(factor)
    assert factor > 0


def test_a_factor_that_has_changed_is_reported_once() -> None:
    learning = Learning()
    assert not learning.moved()
    learning.observe(record(), node(), 30.0)
    assert learning.moved()
    assert not learning.moved()
