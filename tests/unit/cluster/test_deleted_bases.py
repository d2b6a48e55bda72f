"""Fine-tunes whose published base model was deleted meanwhile pull its training in again."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import artifacts
from common.cluster.config import ClusterConfig, Server
from common.cluster.request import Request, conclude, without_their_base
from common.cluster.work import Outcome
from common.jobs.job_files import Job
from common.jobs.plan import Plan
from common.paths import Paths

# a learns from bob, b and c from ann
VALUES = {"participants": ["ann", "bob", "cyd"], "n_base_participants": 1}
BASES = [Job("base", name * 16, {**VALUES, "fold": fold}) for fold, name in enumerate("abc")]
FINETUNES = [Job("finetune", f"p/fold0_{job.id[0]}", {}, job.id) for job in BASES]
A, B, C = (job.id for job in FINETUNES)


@pytest.fixture
def request_of_all(tmp_path: Path) -> Request:
    """Three base models, of which only b is published."""
    paths = Paths(tmp_path)
    artifacts.publish_base_model(paths, BASES[1].id, b"weights", {})
    config = ClusterConfig(servers=[Server(host="localhost")])
    return Request(paths, Path("c.json"), config, BASES, FINETUNES, only="failed")


def failed(*jobs: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(jobs, ("Base model not found", ""))


def test_only_those_whose_base_is_gone_run_again_with_its_training(request_of_all: Request) -> None:
    again = without_their_base(request_of_all, Outcome(failed=failed(A, B)))
    assert again is not None
    assert (again.bases, again.others, again.only) == (BASES[:1], FINETUNES[:1], None)


def test_a_base_whose_own_training_failed_is_not_tried_once_more(request_of_all: Request) -> None:
    lost = failed(BASES[0].id) | failed(B)
    assert without_their_base(request_of_all, Outcome(failed=lost, blocked=[A])) is None


def test_a_training_that_failed_is_not_tried_under_another_of_its_hashes(
    request_of_all: Request,
) -> None:
    artifacts.supersede_base_model(request_of_all.paths, BASES[1].id)
    assert (
        without_their_base(request_of_all, Outcome(failed=failed(BASES[1].id), blocked=[B, C]))
        is None
    )
    again = without_their_base(request_of_all, Outcome(failed=failed(BASES[1].id, A), blocked=[C]))
    assert again is not None
    assert (again.bases, again.others) == (BASES[:1], FINETUNES[:1])


def test_an_interrupted_run_goes_on_with_nothing(request_of_all: Request) -> None:
    outcome = Outcome(failed=failed(A), interrupted=True)
    assert without_their_base(request_of_all, outcome) is None


def test_the_later_run_decides_about_what_it_repeated() -> None:
    outcome = Outcome(done=2, failed=failed(A, B), blocked=[C])
    later = Outcome(done=2, left=["x"], why="because")
    outcome.add(later, [FINETUNES[0], FINETUNES[2]])
    assert outcome == Outcome(done=4, failed=failed(B), left=["x"], why="because")


def test_jobs_that_failed_for_one_reason_are_one_line() -> None:
    made = {f"p/fold{base.id[0]}": (f"no base: {base.id}.pt", "x.log") for base in BASES}
    lines = conclude(Outcome(failed={**made, "q": ("a bug", "")}), Plan())
    assert lines == [
        "p/folda and 2 more: no base: aaaaaaaaaaaaaaaa.pt (log: x.log)",
        "q: a bug",
        "0 done, 4 failed, 0 blocked, 0 left, 0 reused",
    ]
