"""How a grid becomes Slurm arrays: each job once, each chunk at its base's index, nothing above the site's limit; what sbatch is told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cluster.config import Slurm
from common.cluster.runner import Work
from common.cluster.slurm_arrays import Base, check_submitit, flags, lay_out, parameters, ranges
from common.cluster.slurm_queue import Seen, plain
from common.errors import InputError
from common.jobs import Job


def finetune(name: str, needs: str | None) -> Job:
    return Job("finetune", f"p{name}/fold0_ann", {"fold": 0}, needs)


def work(bases: list[str], others: list[Job], siblings: dict[str, list[str]] | None = None) -> Work:
    equal = {base: [Job("base", name, {}) for name in names] for base, names in (siblings or {}).items()}
    return Work([Job("base", name, {}) for name in bases], equal, others, frozenset(), {})


def test_fine_tunes_lie_at_the_index_of_the_training_that_publishes_their_base() -> None:
    others = [finetune("1", "b"), finetune("2", "a"), finetune("3", "a"), finetune("4", "c"), finetune("5", None), finetune("6", "there")]
    arrays = lay_out(work(["a", "b"], others, {"b": ["c"]}), {}, 1001, 1)
    assert [(array.label, array.after and array.after.label, {i: [job.id for job in jobs] for i, jobs in array.tasks.items()}) for array in arrays] == [
        ("base0", None, {0: ["a"], 1: ["b"]}),
        ("tune0c0", "base0", {0: ["p2/fold0_ann"], 1: ["p1/fold0_ann"]}),
        ("tune0c1", "base0", {0: ["p3/fold0_ann"], 1: ["p4/fold0_ann"]}),
        ("free0", None, {0: ["p5/fold0_ann"], 1: ["p6/fold0_ann"]}),
    ]


def test_fine_tunes_of_a_base_that_slurm_has_already_follow_it_at_its_index() -> None:
    (array,) = lay_out(work([], [finetune("1", "a")]), {"a": Base("base0", 7, "123")}, 1001, 12)
    assert array.after == Base("base0", 0, "123")
    assert list(array.tasks) == [7]


@given(st.integers(0, 12), st.lists(st.integers(-2, 11), max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_each_job_is_in_one_task_and_above_the_limit_arrays_are_split_at_the_same_indices(number: int, needs: list[int], size: int, per_task: int) -> None:
    bases = [f"b{n}" for n in range(number)]
    others = [finetune(str(n), f"b{base}" if base >= 0 else None) for n, base in enumerate(needs)]
    arrays = lay_out(work(bases, others), {}, size, per_task)
    assert sorted(job.id for array in arrays for jobs in array.tasks.values() for job in jobs) == sorted([*bases, *(job.id for job in others)])
    by_label = {array.label: array for array in arrays}
    assert len(by_label) == len(arrays)
    for array in arrays:
        assert all(0 <= index < size and 0 < len(jobs) <= per_task for index, jobs in array.tasks.items())
        if array.after:
            assert all(job.needs == by_label[array.after.label].tasks[index][0].id for index, jobs in array.tasks.items() for job in jobs)


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_exactly_the_indices(indices: set[int]) -> None:
    said = set()
    for piece in filter(None, ranges(indices).split(",")):
        first, _, last = piece.partition("-")
        said |= set(range(int(first), int(last or first) + 1))
    assert said == indices
    assert re.fullmatch(r"(\d+(-\d+)?(,|$))*", ranges(indices))


@pytest.mark.parametrize(
    ("time", "minutes"), [("90", 90), ("90:30", 91), ("04:00:00", 240), ("00:00:01", 1), ("2-0", 2880), ("1-01:30", 1530), ("1-00:00:30", 1441)]
)
def test_time_is_read_as_slurm_reads_it(time: str, minutes: int) -> None:
    assert Slurm(time=time).minutes == minutes


def test_sbatch_is_told_sizes_throttle_dependency_and_to_requeue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/with space/slurm.conf")
    settings = Slurm(partition="gpu", gpus=1, cpus=4, memory_gb=1.5, max_parallel=8, setup=["module load cuda"], sbatch={"qos": "low", "exclusive": True})
    told = parameters(settings, "name", [0, 1, 2, 5], "aftercorr:7")
    assert told["additional_parameters"] == {
        "qos": "low", "exclusive": True, "partition": "gpu", "gres": "gpu:1", "cpus-per-task": 4, "mem": "1536M",
        "array": "0-2,5%8", "requeue": True, "dependency": "aftercorr:7", "kill-on-invalid-dep": "yes",
    }  # fmt: skip
    assert told["setup"][0] == "module load cuda"
    assert "export SLURM_CONF='/etc/with space/slurm.conf'" in told["setup"]
    assert "kill-on-invalid-dep" not in parameters(settings, "name", [0], "")["additional_parameters"]
    assert {"--exclusive", "--qos=low", "--time=240"} <= set(flags(settings))


@pytest.mark.parametrize("name", ["array", "dependency", "Bad", "--qos"])
def test_flags_that_this_project_decides_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sbatch"):
        Slurm(sbatch={name: "x"})


def test_slurms_words_are_one_line_without_the_programs_name() -> None:
    said = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition name specified\n"
    assert plain(said) == "invalid partition specified: x; Batch job submission failed: Invalid partition name specified"
    assert plain("") == "no reason given"


def test_a_task_that_can_never_start_does_not_count_as_waiting() -> None:
    assert Seen("r", "tune0c0", 1, "7", "PENDING", "DependencyNeverSatisfied").ended
    assert not Seen("r", "tune0c0", 1, "7", "PENDING", "Dependency").ended


def test_without_submitit_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"requirements-slurm\.txt"):
        check_submitit()
