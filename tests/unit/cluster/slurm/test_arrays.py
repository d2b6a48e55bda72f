"""How a grid becomes Slurm arrays: each job once, each chunk at its base's index, nothing above the
site's limit; what sbatch is told.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cluster.config import ClusterConfig, Slurm
from common.cluster.journal import last_failures, past_events
from common.cluster.on_node.worker import Worker
from common.cluster.request import Request
from common.cluster.slurm.arrays import BaseTask, lay_out, ranges
from common.cluster.slurm.queue import QueuedTask, SlurmError, ask, error_text, final_states
from common.cluster.slurm.start import _dependency
from common.cluster.slurm.submission import (
    SubmissionRecord,
    check_submitit,
    parameters,
    rename_pickles,
    sbatch_flags,
)
from common.cluster.slurm.task import STALLS, Task, _Attempt, _device
from common.cluster.work import Work
from common.errors import InputError, TrainingError
from common.jobs.job_files import Job
from common.paths import Paths
from common.training.stopping import Stopped, stopping


def finetune(name: str, needs: str | None) -> Job:
    return Job("finetune", f"p{name}/fold0_ann", {"fold": 0}, needs)


def work(bases: list[str], others: list[Job], siblings: dict[str, list[str]] | None = None) -> Work:
    equal = {
        base: [Job("base", name, {}) for name in names] for base, names in (siblings or {}).items()
    }
    return Work([Job("base", name, {}) for name in bases], equal, others, frozenset(), {})


def test_fine_tunes_lie_at_the_index_of_the_training_that_publishes_their_base() -> None:
    others = [
        finetune("1", "b"),
        finetune("2", "a"),
        finetune("3", "a"),
        finetune("4", "c"),
        finetune("5", None),
        finetune("6", "there"),
    ]
    arrays = lay_out(work(["a", "b"], others, {"b": ["c"]}), {}, 1001, 1)
    assert [
        (
            array.label,
            array.after and array.after.label,
            {i: [job.id for job in jobs] for i, jobs in array.tasks.items()},
        )
        for array in arrays
    ] == [
        ("base0", None, {0: ["a"], 1: ["b"]}),
        ("tune0c0", "base0", {0: ["p2/fold0_ann"], 1: ["p1/fold0_ann"]}),
        ("tune0c1", "base0", {0: ["p3/fold0_ann"], 1: ["p4/fold0_ann"]}),
        ("free0", None, {0: ["p5/fold0_ann"], 1: ["p6/fold0_ann"]}),
    ]


@pytest.mark.parametrize("folds", [("A", 1, None), ({"a": 1}, "B", 0)])
def test_jobs_of_an_own_script_keep_their_order_whatever_their_fold_is(folds: Any) -> None:
    jobs = [Job("script", f"job{number}", {"fold": fold}) for number, fold in enumerate(folds)]
    jobs.append(Job("script", "job3", {"lr": 1}))
    (array,) = lay_out(work([], jobs), {}, 1001, 12)
    assert [job.id for job in array.tasks[0]] == ["job0", "job1", "job2", "job3"]


def test_fine_tunes_of_a_base_that_slurm_has_already_follow_it_at_its_index() -> None:
    (array,) = lay_out(work([], [finetune("1", "a")]), {"a": BaseTask("base0", 7, "123")}, 1001, 12)
    assert array.after == BaseTask("base0", 0, "123")
    assert list(array.tasks) == [7]


def test_two_literal_phases_hold_back_what_needs_no_base_too(tmp_path: Path) -> None:
    arrays = lay_out(
        work(["a"], [finetune("1", "a"), finetune("2", "b"), finetune("3", None)]),
        {"b": BaseTask("base0", 0, "7")},
        1001,
        12,
    )
    taken = {"base0": "9"}
    config = ClusterConfig(engine="slurm", slurm=Slurm())
    plain, literal = (
        ["", "aftercorr:9", "aftercorr:7", ""],
        [
            "",
            "aftercorr:9,afterany:9:7",
            "aftercorr:7,afterany:7:9",
            "afterany:7:9",
        ],
    )
    for wait, expected in ((False, plain), (True, literal)):
        request = Request(Paths(tmp_path), tmp_path, config, wait_for_all_bases=wait)
        assert [
            _dependency(
                array, *(({}, ["7"]) if array.trains_bases else (taken, ["7", "9"])), request
            )
            for array in arrays
        ] == expected
    (alone,) = lay_out(work([], [finetune("3", None)]), {}, 1001, 12)
    assert _dependency(alone, {}, [], request) == ""


@given(
    st.integers(0, 12),
    st.lists(st.integers(-2, 11), max_size=40),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_each_job_is_in_one_task_and_above_the_limit_arrays_are_split_at_the_same_indices(
    number: int, needs: list[int], size: int, per_task: int
) -> None:
    bases = [f"b{n}" for n in range(number)]
    others = [finetune(str(n), f"b{base}" if base >= 0 else None) for n, base in enumerate(needs)]
    arrays = lay_out(work(bases, others), {}, size, per_task)
    assert sorted(
        job.id for array in arrays for jobs in array.tasks.values() for job in jobs
    ) == sorted([*bases, *(job.id for job in others)])
    by_label = {array.label: array for array in arrays}
    assert len(by_label) == len(arrays)
    for array in arrays:
        assert all(
            0 <= index < size and 0 < len(jobs) <= per_task for index, jobs in array.tasks.items()
        )
        if array.after:
            assert all(
                job.needs == by_label[array.after.label].tasks[index][0].id
                for index, jobs in array.tasks.items()
                for job in jobs
            )


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_exactly_the_indices(indices: set[int]) -> None:
    said = set()
    for piece in filter(None, ranges(indices).split(",")):
        first, _, last = piece.partition("-")
        said |= set(range(int(first), int(last or first) + 1))
    assert said == indices
    assert re.fullmatch(r"(\d+(-\d+)?(,|$))*", ranges(indices))


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("04:00:00", 240),
        ("00:00:01", 1),
        ("2-0", 2880),
        ("1-01:30", 1530),
        ("1-00:00:30", 1441),
    ],
)
def test_time_is_read_as_slurm_reads_it(time: str, minutes: int) -> None:
    assert Slurm(time=time).minutes == minutes


def test_sbatch_is_told_sizes_throttle_dependency_and_to_requeue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/with space/slurm.conf")
    settings = Slurm(
        partition="gpu",
        gpus=1,
        cpus=4,
        memory_gb=1.5,
        max_parallel=8,
        setup=["module load cuda"],
        sbatch={"qos": "low", "exclusive": True},
    )
    told = parameters(settings, "name", [0, 1, 2, 5], "aftercorr:7")
    assert told["additional_parameters"] == {
        "qos": "low",
        "exclusive": True,
        "partition": "gpu",
        "gres": "gpu:1",
        "cpus-per-task": 4,
        "mem": "1536M",
        "array": "0-2,5%8",
        "requeue": True,
        "dependency": "aftercorr:7",
        "kill-on-invalid-dep": "yes",
    }
    assert told["setup"][0] == "module load cuda"
    assert "export SLURM_CONF='/etc/with space/slurm.conf'" in told["setup"]
    assert (
        "kill-on-invalid-dep" not in parameters(settings, "name", [0], "")["additional_parameters"]
    )
    assert {"--exclusive", "--qos=low", "--time=240"} <= set(sbatch_flags(settings))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, {}),
        ({"memory_gb": 2}, {"mem": "2048M"}),
        ({"memory_gb": 2, "sbatch": {"mem-per-cpu": "1G"}}, {"mem-per-cpu": "1G"}),
        ({"memory_gb": 2, "sbatch": {"mem-per-gpu": "1G"}}, {"mem-per-gpu": "1G"}),
        ({"memory_gb": 2, "sbatch": {"mem": "3G"}}, {"mem": "3G"}),
        ({"gpus": "a100:1"}, {"gres": "gpu:a100:1"}),
        ({"gpus": "1"}, {"gres": "gpu:1"}),
        ({"gpus": "0"}, {}),
        ({"gpus": "a100", "sbatch": {"gres": "scratch:9"}}, {"gres": "gpu:a100,scratch:9"}),
        ({"sbatch": {"gpus-per-node": "a100:1"}}, {"gpus-per-node": "a100:1"}),
        ({"sbatch": {"gres": "gpu:4"}}, {"gres": "gpu:4"}),
        ({"sbatch": {"gres": "scratch:9"}}, {"gres": "scratch:9"}),
    ],
)
def test_memory_and_gpus_reach_sbatch_once_each(
    settings: dict[str, Any], sizes: dict[str, str]
) -> None:
    slurm = Slurm(**settings)
    assert parameters(slurm, "name", [0], "")["additional_parameters"] == {
        **sizes,
        "cpus-per-task": 1,
        "array": "0%64",
        "requeue": True,
    }
    assert slurm.asks_for_gpu == any("gpu" in f"{k}{v}" for k, v in sizes.items() if "mem" not in k)


@pytest.mark.parametrize(
    "settings",
    [
        {"gpus": 2},
        {"gpus": -1},
        {"gpus": "a100:2"},
        {"gpus": "a100:x"},
        {"gpus": 1, "sbatch": {"gres": "gpu:1"}},
        {"gpus": "a100", "sbatch": {"gpus-per-node": 1}},
    ],
)
def test_gpus_that_no_training_would_use_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one GPU|twice"):
        Slurm(**settings)


def test_settings_of_an_allocation_around_the_head_do_not_reach_slurms_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _command(tmp_path, "squeue", "env | grep -oE '^(SLURM_|SBATCH_|SQUEUE_|KEPT)\\w*' | sort")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for name in ("SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "SQUEUE_USERS", "SLURM_CONF", "KEPT"):
        monkeypatch.setenv(name, "x")
    assert ask("squeue").split() == ["KEPT", "SLURM_CONF"]
    assert os.environ["SLURM_MEM_PER_CPU"] == "x"


@pytest.mark.parametrize("name", ["array", "dependency", "Bad", "--qos"])
def test_flags_that_this_project_decides_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sbatch"):
        Slurm(sbatch={name: "x"})


def test_slurms_message_is_one_line_without_the_programs_name() -> None:
    said = (
        "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed:"
        " Invalid partition name specified\n"
    )
    assert (
        error_text(said)
        == "invalid partition specified: x; Batch job submission failed: Invalid partition name"
        " specified"
    )
    assert error_text("") == "no reason given"


def test_a_task_that_can_never_start_does_not_count_as_waiting() -> None:
    assert QueuedTask("r", "tune0c0", 1, "7", "PENDING", "DependencyNeverSatisfied").ended
    assert not QueuedTask("r", "tune0c0", 1, "7", "PENDING", "Dependency").ended


def test_without_submitit_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"requirements-slurm\.txt"):
        check_submitit()


def _command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_squeue_has_forgotten_sacct_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    _command(
        tmp_path,
        "sacct",
        "printf '7_0|COMPLETED\\n7_1|CANCELLED by 0\\n7_[2-3,9%%64]|CANCELLED\\n8|FAILED\\n'",
    )
    assert final_states(["7", "8"]) == {
        ("7", 0): "COMPLETED",
        **{("7", index): "CANCELLED" for index in (1, 2, 3, 9)},
    }
    assert final_states([]) == {}
    _command(
        tmp_path, "sacct", "echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1"
    )
    with pytest.raises(SlurmError, match="Slurm accounting storage is disabled"):
        final_states(["7"])


def test_pickles_that_a_killed_command_did_not_rename_are_renamed_by_the_next(
    tmp_path: Path,
) -> None:
    pytest.importorskip("submitit")
    for name in ("tune0c0_0.pkl", "tune0c0_12.pkl", "tune0c1_0.pkl"):
        (tmp_path / name).write_bytes(name.encode())
    rename_pickles(str(tmp_path), "tune0c0", "77")
    rename_pickles(str(tmp_path), "tune0c0", "77")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "77_0_submitted.pkl": "tune0c0_0.pkl",
        "77_12_submitted.pkl": "tune0c0_12.pkl",
        "tune0c1_0.pkl": "tune0c1_0.pkl",
    }


def test_a_record_is_read_as_it_was_written_and_is_empty_where_there_is_none(
    tmp_path: Path,
) -> None:
    equal = work(["a"], [finetune("1", "c")], {"a": ["c"]})
    record = SubmissionRecord(Paths(tmp_path), "run", lay_out(equal, {}, 10, 2), equal.siblings)
    record.write()
    record.submitted("base0", "5")
    again = SubmissionRecord.read(Paths(tmp_path), "run")
    assert again.arrays == record.arrays
    assert again.arrays["base0"]["id"] == "5"
    assert (again.jobs("base0", 0), again.publishes("base0", 0), again.jobs("tune0c0", 0)) == (
        ["a"],
        ["a", "c"],
        ["p1/fold0_ann"],
    )
    assert SubmissionRecord.read(Paths(tmp_path), "other").jobs("base0", 0) == []


def test_a_task_in_which_no_epoch_ends_is_requeued_twice_and_then_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "saved", 0)
    task = Task(str(tmp_path), "run", "base0", 0, (Job("base", "a", {}),), (), {}, False, "cpu", 90)
    requeued: list[int] = []

    def by_submitit(number: int, frame: object) -> None:
        requeued.append(number)
        raise SystemExit(255)

    before = signal.signal(signal.SIGUSR2, by_submitit)
    try:
        for expected in [SystemExit] * (STALLS - 1) + [TrainingError]:
            attempt = _Attempt(task)
            with contextlib.closing(attempt._journal), pytest.raises(expected):
                attempt._requeue()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(requeued) == STALLS - 1
    assert [event["event"] for event in past_events(Paths(tmp_path))] == ["job", "job", "failed"]
    assert "raise time in cluster_config" in last_failures(Paths(tmp_path))["a"]["error"]


class _EndedBySlurm:
    """A worker whose script got Slurm's signal, as its task did."""

    def outcome(self, message: dict[str, Any]) -> dict[str, Any]:
        stopping.wanted = True
        return {"failed": message["job"], "error": "ended by signal SIGTERM", "seconds": 1.0}


def test_a_users_own_script_that_slurms_signal_ends_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "wanted", False)
    job = Job("script", "job0", {})
    task = Task(str(tmp_path), "r", "free0", 0, (job,), (), {"script": "m.py"}, False, "cpu", 90)
    attempt, worker = _Attempt(task), cast("Worker", _EndedBySlurm())
    log = (tmp_path / "log").open("wb")
    with contextlib.closing(attempt._journal), log, pytest.raises(Stopped):
        attempt._run_job(worker, log, job)
    assert not last_failures(Paths(tmp_path))
    assert not task.settled


def test_a_task_that_was_given_a_gpu_unasked_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_GPUS", raising=False)
    assert (_device("cpu"), _device("0")) == ("cpu", "0")
    monkeypatch.setenv("SLURM_JOB_GPUS", "3")
    assert _device("cpu") == "0"
