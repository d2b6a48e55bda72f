"""How long jobs take and how fast nodes are, from the events of earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.cluster.estimates import EPOCHS, OVERHEAD_SECONDS, SECONDS_PER_BYTE, Estimates
from common.data.data_sets import Data
from common.jobs.job_files import Job, base_job, finetune_job
from common.paths import Paths
from tests.scripts.made import write_data

MEGABYTE = 10**6


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two people, a megabyte each, one of them the target."""
    for name in ("ann", "bob"):
        for split in ("train", "val", "test"):
            path = tmp_path / "data" / "made" / f"{name}_{split}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(MEGABYTE))
    values = {
        "participants": ["ann", "bob"],
        "data_path": "data/made",
        "fold": 0,
        "n_base_participants": 1,
        "max_epochs": 100,
    }
    return base_job(values, "here", Data(Paths(tmp_path)))


def done(node: str, seconds: float | None, work: float = 1e8, kind: str = "base") -> dict[str, Any]:
    return {"event": "done", "node": node, "kind": kind, "seconds": seconds, "work": work}


def test_before_the_first_run_bytes_decide(tmp_path: Path, job: Job) -> None:
    estimates = Estimates(Paths(tmp_path), [])
    assert estimates.work(job) == 3 * MEGABYTE * EPOCHS
    assert estimates.seconds(job) == pytest.approx(
        OVERHEAD_SECONDS + 3 * MEGABYTE * EPOCHS * SECONDS_PER_BYTE
    )
    assert estimates.speed("n1") == 1


def test_small_sets_count_as_often_as_they_are_repeated_in_an_epoch(tmp_path: Path) -> None:
    """40 windows a split, 24 bytes each; a tenth of them is repeated for ten batches of 4."""
    write_data(tmp_path / "data/made", ["ann", "bob"], manifest=True, samples=3, sizes=(40, 40, 40))
    train, val = (
        (tmp_path / f"data/made/ann_{split}.pt").stat().st_size for split in ("train", "val")
    )
    values = {"data_path": "data/made", "fold": 0, "mode": "target_only", "target_data_pct": 0.1}
    data, epochs = Data(Paths(tmp_path)), {"max_epochs": 2, "batch_size": 4}

    def work(**more: object) -> float:
        job = finetune_job({**values, **epochs, **more}, "here", data)
        return Estimates(Paths(tmp_path), []).work(job)

    assert work() == pytest.approx(2 * (0.1 * train + val))
    assert work(min_steps_per_epoch=10_000) == pytest.approx(2 * (10_000 * 4 * 24 + val))
    assert work(min_steps_per_epoch=1) == work()
    (tmp_path / "data/made/dataset.json").unlink()
    assert work(min_steps_per_epoch=10_000, participants=["ann", "bob"]) == work(
        participants=["ann", "bob"]
    )


def test_jobs_of_the_same_kind_correct_the_rate(tmp_path: Path, job: Job) -> None:
    estimates = Estimates(
        Paths(tmp_path),
        [
            done("n1", OVERHEAD_SECONDS + 5),
            done("n1", OVERHEAD_SECONDS + 5, kind="full_fine_tuning", work=1e3),
        ],
    )
    assert estimates.seconds(job) == pytest.approx(OVERHEAD_SECONDS + 3 * MEGABYTE * EPOCHS * 5e-8)


def test_nodes_are_compared_on_jobs_of_equal_kinds(tmp_path: Path) -> None:
    past = [
        done(node, OVERHEAD_SECONDS + seconds, kind=kind)
        for kind, seconds in (("base", 40), ("full_fine_tuning", 4))
        for node in ("n1", "n2", "n3")
    ]
    # The fast node did only short jobs of the slow kind: it is not their length that makes it fast.
    past += [
        done("fast", OVERHEAD_SECONDS + 20, kind="base"),
        done("slow", OVERHEAD_SECONDS + 8, kind="full_fine_tuning"),
    ]
    estimates = Estimates(Paths(tmp_path), past)
    assert [estimates.speed(name) for name in ("n1", "fast", "slow")] == pytest.approx(
        [1, 2, 0.5], rel=0.05
    )


@pytest.mark.parametrize(
    "event",
    [
        done("n1", None),
        done("n1", 0),
        done("n1", 5, work=0),
        {"event": "done"},
        {"event": "failed", "node": "n1"},
        {},
    ],
)
def test_events_without_usable_numbers_are_left_out(
    tmp_path: Path, job: Job, event: dict[str, Any]
) -> None:
    estimates, none = Estimates(Paths(tmp_path), [event]), Estimates(Paths(tmp_path), [])
    assert (estimates.seconds(job), estimates.speed("n1")) == (none.seconds(job), 1)


def test_a_new_node_that_was_not_measured_has_the_median_speed(tmp_path: Path) -> None:
    # all sooner than the start-up that is expected
    tiny = [done(node, OVERHEAD_SECONDS / 10) for node in ("n1", "n2")]
    estimates = Estimates(Paths(tmp_path), tiny)
    assert [estimates.speed(node) for node in ("n1", "n2", "new")] == [1, 1, 1]


def measured(node: str, rate: float) -> dict[str, Any]:
    return {"event": "measured", "node": node, "bytes_per_second": rate}


def test_before_the_first_run_a_measured_node_has_its_speed_relative_to_the_default_rate(
    tmp_path: Path,
) -> None:
    estimates = Estimates(Paths(tmp_path), [])
    assert estimates.speed("n1", 3 / SECONDS_PER_BYTE) == pytest.approx(3)


def test_a_new_node_is_compared_with_the_measurements_of_known_ones(tmp_path: Path) -> None:
    past = [measured("n1", 1e8), done("n1", 5), measured("n2", 2e8), done("n2", 2.5)]
    estimates = Estimates(Paths(tmp_path), past)
    assert estimates.speed("n2", 1.0) == pytest.approx(2 * estimates.speed("n1", 1.0), rel=0.1)
    assert estimates.speed("new", 4e8) == pytest.approx(4 * estimates.speed("n1"), rel=0.1)


def test_without_measurements_of_known_nodes_a_new_one_has_the_median_speed(tmp_path: Path) -> None:
    assert Estimates(Paths(tmp_path), [done("n1", 5)]).speed("new", 4e8) == 1
