"""What is decided about a node without touching it: its facts, its files, its slots' names, and
what its jobs wait for.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.cluster.config import ClusterConfig, Server, Slot, SlotPlan
from common.cluster.request import Prepared, Request
from common.cluster.ssh.node_commands import check_facts, slot_name, worker_argv
from common.cluster.ssh.nodes import REJOIN_SECONDS, Node, Stage
from common.cluster.ssh.payload import Needs, differing, extra_files
from common.cluster.ssh.start import _needs
from common.cluster.work import Work
from common.data.data_sets import Data
from common.errors import InputError, NodeError
from common.jobs.inputs import beside_files, data_files
from common.jobs.job_files import finetune_job
from common.jobs.plan import Plan
from common.paths import Paths, published_file, result_files

PACKAGES = ("torch", "numpy", "pydantic", "scikit-learn")


def facts(**more: Any) -> dict[str, Any]:
    """Of a node like this machine."""
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "free_bytes": 1 << 40,
        "clock": time.time(),
        **more,
    }


def test_a_node_like_the_head_calls_for_no_remark() -> None:
    assert check_facts("n", facts()) == []


def test_another_torch_is_named_before_it_matters() -> None:
    (remark,) = check_facts("n", facts(versions=facts()["versions"] | {"torch": "1.0"}))
    assert (
        remark
        == f"torch 1.0 there, {metadata.version('torch')} here: results may differ in their last"
        " digits"
    )


def test_a_clock_that_is_off_is_named() -> None:
    (remark,) = check_facts("n", facts(clock=time.time() - 3600))
    assert "its clock differs by -3600 s" in remark


@pytest.mark.parametrize("package", PACKAGES)
def test_a_node_without_a_package_cannot_work(package: str) -> None:
    with pytest.raises(
        NodeError, match=f"n: {package} not installed there: run with --setup-nodes"
    ):
        check_facts("n", facts(versions=facts()["versions"] | {package: None}))


def test_a_node_with_a_full_disk_cannot_work() -> None:
    with pytest.raises(NodeError, match="n: only 100 MB free on its disk"):
        check_facts("n", facts(free_bytes=100 << 20))


NEEDS = Needs(
    (),
    {("data/a", "x.pt"): "1", ("data/a", "y.pt"): "2"},
    (),
    (),
    "",
    beside={("data/a", "dataset.json"): "3"},
)


def test_files_that_a_node_lacks_or_has_otherwise_are_sent() -> None:
    assert differing(
        "n",
        NEEDS,
        {("data/a", "x.pt"): "1", ("data/a", "y.pt"): "9", ("data/a", "dataset.json"): None},
    ) == [
        ("data/a", "y.pt"),
        ("data/a", "dataset.json"),
    ]


def test_absolute_paths_are_compared_and_never_sent() -> None:
    needs = replace(NEEDS, data={("/disk/a", "x.pt"): "1"}, beside={})
    assert differing("n", needs, {("/disk/a", "x.pt"): "1"}) == []
    with pytest.raises(InputError, match=r"n: /disk/a/x\.pt is another there and cannot be sent"):
        differing("n", needs, {("/disk/a", "x.pt"): "2"})


def test_files_that_only_nodes_have_are_left_as_they_are() -> None:
    needs = replace(NEEDS, data={("data/a", "x.pt"): None}, beside={})
    assert differing("n", needs, {("data/a", "x.pt"): "7"}) == []
    with pytest.raises(InputError, match=r"n: data/a/x\.pt is missing there"):
        differing("n", needs, {("data/a", "x.pt"): None})


def test_a_job_reads_its_own_files_only(tmp_path: Path) -> None:
    people = ["ann", "bob", "cem"]
    entry = {
        "participants": people,
        "fold": 1,
        "n_base_participants": 1,
        "data_path": "data/a",
        "prefix": "p",
    }
    job = finetune_job(entry | {"mode": "target_only_fine_tuning"}, "here", Data(Paths(tmp_path)))
    assert [name for _, name in data_files(job)] == ["bob_train.pt", "bob_val.pt", "bob_test.pt"]
    assert [name for _, name in beside_files(job)] == [
        "dataset.json",
        "bob_train_windows.csv",
        "bob_val_windows.csv",
        "bob_test_windows.csv",
    ]
    full = finetune_job(entry | {"mode": "full_fine_tuning"}, "here", Data(Paths(tmp_path)))
    assert [name for _, name in data_files(full)][3:] == ["ann_train.pt", "ann_val.pt"]


def test_a_users_script_is_sent_unless_it_goes_with_the_code() -> None:
    # in the code's folder, not among what is sent of it
    assert extra_files(Path("benchmarks/run_all.py")) == ("benchmarks/run_all.py",)
    assert extra_files(Path("scripts/mine.py")) == ("scripts/mine.py",)
    assert (
        extra_files(Path("report.py"))
        == extra_files(Path("common/jobs/job_files.py"))
        == extra_files(None)
        == ()
    )


def test_slots_are_named_after_the_physical_place() -> None:
    places: list[str | None] = ["0", "MIG-GPU-8/1/0", "0", None, None]
    slots = SlotPlan(tuple(Slot("n", index, gpu) for index, gpu in enumerate(places)))
    assert [slot_name(slot, slots) for slot in slots.slots] == [
        "gpu0-0",
        "gpuMIG-GPU-8_1_0-0",
        "gpu0-1",
        "cpu0",
        "cpu1",
    ]


def test_the_file_that_makes_a_result_published_is_named() -> None:
    assert published_file("0123456789abcdef") == "base_models/0123456789abcdef_metadata.json"
    assert published_file("prefix/fold0_ann") == "experiments/prefix/fold0_ann/metrics.json"
    assert published_file("prefix/fold0_ann") in result_files("prefix/fold0_ann")


# What jobs wait for


def record() -> Node:
    """Of a node that is never touched."""
    threads = SimpleNamespace(name="n", server=None, close=lambda: None)
    return Node(threads)


def test_what_is_on_its_way_is_not_sent_twice() -> None:
    one = record()
    assert one.wait("a", 0, ["base"]) == ["base"]
    assert one.wait("b", 1, ["base", ("data", "x.pt")]) == [("data", "x.pt")]
    assert [waiting.job for waiting in one.arrived(["base"], failed=False)] == ["a"]
    assert [waiting.job for waiting in one.arrived([("data", "x.pt")], failed=False)] == ["b"]
    assert not one.waiting


def test_all_that_wait_for_a_failed_copy_are_told_once() -> None:
    one = record()
    one.wait("a", 0, ["base", ("data", "x.pt")])
    one.wait("b", 1, ["base"])
    assert [waiting.job for waiting in one.arrived(["base"], failed=True)] == ["a", "b"]
    assert one.arrived([("data", "x.pt")], failed=False) == []
    assert one.wait("c", 0, ["base"]) == ["base"]


def test_a_job_that_was_cancelled_while_it_waited_is_not_started() -> None:
    one = record()
    one.wait("a", 0, ["base"])
    del one.waiting[0]
    assert one.arrived(["base"], failed=False) == []


def test_a_lost_node_is_tried_again_after_pauses_that_double_to_a_limit() -> None:
    one = record()
    one.wait("a", 0, ["base"])
    pauses = []
    for _ in range(6):
        one.lose(100.0)
        pauses.append(one.again_at - 100.0)
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert REJOIN_SECONDS == (5, 60)
    assert one.stage is Stage.LOST
    assert not one.waiting
    assert not one.coming


def test_workers_get_ready_to_train_and_are_measured_where_there_are_nodes_to_compare(
    tmp_path: Path,
) -> None:
    prepared = Prepared(Plan(), Work((), {}, (), frozenset(), {}), lambda *_: "")

    def measured(nodes: int, script: Path | None = None) -> float | None:
        config = ClusterConfig.model_validate(
            {"servers": [{"host": f"n{n}"} for n in range(nodes)]}
        )
        request = Request(Paths(tmp_path), tmp_path / "c.json", config, script=script)
        return _needs(request, prepared).measure

    assert [measured(1), measured(2), measured(2, Path("own.py"))] == [0.0, 0.3, None]


@pytest.mark.parametrize(("nodes", "seconds"), [(1, "1.0"), (25, "1.0"), (100, "4.0")])
def test_workers_of_many_nodes_report_less_often(nodes: int, seconds: str) -> None:
    settings = ClusterConfig(servers=[Server(host=f"n{number}") for number in range(nodes)])
    plan = SlotPlan(tuple(Slot("n0", number, None) for number in range(8)))
    there: Any = SimpleNamespace(shared=False, path="/there", python="python3")
    argv = worker_argv(there, plan.slots[0], plan, settings, 1, "us", "m", wait=True, measure=None)
    assert f"--progress={seconds}" in argv
