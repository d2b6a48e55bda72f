"""Results come home or are refused in words: whatever changed on the head meanwhile, a run goes
on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import artifacts
from common.cluster import results
from common.cluster.results import Results
from common.data.data_sets import Data
from common.jobs.job_files import base_job
from common.jobs.verdicts import State
from common.paths import Paths
from tests.trust.hostile import Pair, put, reseal_metrics, write_sealed
from tests.trust.kills import here
from tests.trust.world import BASE, opened, write_split


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A node with results that the head has not."""
    with opened(tmp_path, "node") as node, opened(tmp_path, "head") as head:
        made = Pair(node, head)
        assert made.accept(made.base) == ""
        yield made


def test_results_of_another_configuration_in_the_way_are_kept_and_told(pair: Pair) -> None:
    head = pair.head.folder
    here(head, "finetune", {**pair.tune.values, "max_epochs": 1})
    mine = head / f"experiments/{pair.tune.id}/metrics.json"
    before = mine.read_bytes()
    assert "holds results of another configuration (max_epochs 1 there, 3 here)" in pair.accept(
        pair.tune
    )
    assert mine.read_bytes() == before


def test_what_waits_for_data_that_are_edited_meanwhile_is_not_current(pair: Pair) -> None:
    head = Paths(pair.head.folder)
    assert pair.accept(pair.tune) == ""
    assert pair.results.judge(pair.tune, head).state is State.DONE
    (head.data("data/tiny") / "ann_test.pt").unlink()
    verdict = pair.results.judge(pair.tune, head)
    assert verdict.state is State.STALE
    assert "ann_test.pt: No such file" in verdict.reason
    assert "ann_test.pt: No such file" in pair.accept(pair.tune)


@pytest.mark.parametrize("number", [0, 1])
def test_a_record_that_lacks_what_the_head_will_read_is_refused(pair: Pair, number: int) -> None:
    path = pair.documents(pair.alone)[number]
    write_sealed(path, put(json.loads(path.read_bytes()), ("base_model_hash",), put))
    reseal_metrics(path.parent)
    assert (
        pair.accept(pair.alone)
        == f"{pair.alone.id}: its record: base_model_hash: field required: it is not used"
    )


@pytest.mark.parametrize(
    ("loss", "said"), [(1e30, ""), (10**30, "test_loss in metrics.json is no number")]
)
def test_a_loss_may_be_of_any_size(pair: Pair, loss: float, said: str) -> None:
    """A whole number may not: Python reads it with any number of digits."""
    path = pair.documents(pair.alone)[-1]
    write_sealed(path, json.loads(path.read_bytes()) | {"test_loss": loss})
    refused = pair.accept(pair.alone)
    assert said in refused
    assert bool(refused) == bool(said)


def test_a_result_from_a_node_is_read_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def count(path: Path, limit: int | None = None) -> bytes:
        read.append(path)
        return plain(path, limit)

    plain = artifacts.read_regular
    monkeypatch.setattr(artifacts, "read_regular", count)
    assert pair.accept(pair.tune) == ""
    there = sorted(path for path in read if path.is_relative_to(pair.node.folder))
    assert there == sorted((pair.node.folder / f"experiments/{pair.tune.id}").iterdir())


@pytest.mark.parametrize("kind", ["base", "tune"])
def test_a_result_that_a_node_sealed_in_another_form_is_published_in_ours(
    pair: Pair, kind: str
) -> None:
    """A key twice, and the right checksum of that text."""
    job = getattr(pair, kind)
    if kind == "base":
        Paths(pair.head.folder).base_metadata(job.id).unlink()
    path = pair.documents(job)[-1]
    text = artifacts.to_json(artifacts._unsealed(json.loads(path.read_bytes())))
    text = text.replace(b"{", b'{\n  "base_model_hash": 0,', 1)
    line = f'    "checksum": "{artifacts.sha256(text)}",\n'.encode()
    path.write_bytes(text.replace(b'"provenance": {\n', b'"provenance": {\n' + line, 1))
    assert pair.accept(job) == ""
    assert pair.results.judge(job, Paths(pair.head.folder)).state is State.DONE


def test_a_base_model_that_was_published_again_is_read_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "is_settled", lambda *_: True)
    assert pair.accept(pair.tune) == ""
    path = Paths(pair.head.folder).base_metadata(pair.base.id)
    record = json.loads(path.read_bytes())
    write_sealed(path, {**record, "weights_sha256": "0" * 64})
    assert "its base model changed" in pair.accept(pair.tune)
    path.write_bytes(path.read_bytes()[:-2])
    assert "damaged" in pair.accept(pair.tune)
    path.unlink()
    assert "Base model not found" in pair.accept(pair.tune)


def test_results_of_other_data_than_the_heads_are_refused(pair: Pair) -> None:
    write_split(pair.head.folder / "data/tiny/bob_val.pt", 99)
    assert "is stale: data changed (bob_val.pt)" in pair.accept(pair.base)
    write_split(pair.head.folder / "data/tiny/ann_val.pt", 99)
    assert "is stale: data changed (ann_val.pt" in pair.accept(pair.alone)
    assert not (pair.head.folder / "experiments").exists()


def test_the_first_result_stays_when_a_node_has_made_another(pair: Pair) -> None:
    assert pair.accept(pair.tune) == ""
    mine, theirs = (
        world.folder / f"experiments/{pair.tune.id}/metrics.json"
        for world in (pair.head, pair.node)
    )
    before = mine.read_bytes()
    record = json.loads(theirs.read_bytes())
    record["provenance"]["host"] = "later"
    write_sealed(theirs, record)
    assert pair.accept(pair.tune) == ""
    assert mine.read_bytes() == before != theirs.read_bytes()
    assert not (pair.head.folder / "superseded").exists()


def test_the_first_base_model_stays_when_a_node_has_made_another(pair: Pair) -> None:
    head, node = Paths(pair.head.folder), Paths(pair.node.folder)
    here = artifacts.open_base_model(head, pair.base.id)
    theirs = artifacts.open_base_model(node, pair.base.id)
    artifacts.publish_base_model(node, pair.base.id, theirs.weights + b"0", theirs.metadata)
    assert pair.accept(pair.base) == ""
    assert artifacts.open_base_model(head, pair.base.id) == here
    assert not head.superseded.exists()

    head.base_weights(pair.base.id).write_bytes(b"cut")
    assert pair.accept(pair.base) == ""
    assert artifacts.open_base_model(head, pair.base.id).weights == theirs.weights + b"0"
    assert head.superseded.exists()


def test_a_base_model_is_published_under_all_hashes_that_share_its_training(pair: Pair) -> None:
    head, values = Paths(pair.head.folder), [{**BASE, "fold": fold} for fold in (1, 2)]
    here(pair.node.folder, "base", values[0])
    data = Data(head)
    trained, sibling = (base_job(each, "x", data) for each in values)
    results = Results(head, data.sha256, {trained.id: [sibling]})
    assert results.accept(trained, Paths(pair.node.folder)) == ""
    one, other = (artifacts.open_base_model(head, job.id) for job in (trained, sibling))
    assert one.weights == other.weights
    assert other.metadata["config"]["fold"] == 2
