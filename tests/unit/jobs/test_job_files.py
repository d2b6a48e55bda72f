"""Job files: what is read is checked, what is written is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.data.data_sets import Data
from common.errors import InputError
from common.jobs.job_files import (
    base_entries,
    base_job,
    finetune_job,
    read_jobs,
    write_jobs,
)
from common.paths import Paths

PEOPLE = ["ann", "bob", "cyd"]
BASE: dict[str, Any] = {"participants": PEOPLE, "data_path": "data/made", "n_base_participants": 2}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.chdir(tmp_path)
    return Data(Paths(tmp_path))


def test_a_written_job_file_is_read_as_the_same_jobs(data: Data) -> None:
    finetunes = [
        finetune_job({**BASE, "fold": fold, "target_data_pct": 0.5}, "here", data)
        for fold in range(3)
    ]
    bases = [base_job({**BASE, "fold": fold}, "here", data) for fold in range(3)]
    write_jobs(Path("f.json"), [job.values for job in finetunes])
    write_jobs(Path("b.json"), base_entries(bases, finetunes, {job.id: "0" * 16 for job in bases}))
    assert read_jobs(Path("f.json"), "finetune", data) == finetunes
    assert read_jobs(Path("b.json"), "base", data) == bases
    assert [job.needs for job in finetunes] == [job.id for job in bases]
    assert [entry["num_dependent_jobs"] for entry in json.loads(Path("b.json").read_text())] == [
        1,
        1,
        1,
    ]


def test_equal_jobs_are_one_job(data: Data) -> None:
    Path("b.json").write_text(json.dumps([BASE, BASE]))
    assert len(read_jobs(Path("b.json"), "base", data)) == 1


def test_two_jobs_for_one_place_are_refused_by_what_differs(data: Data) -> None:
    Path("f.json").write_text(
        json.dumps([{**BASE, "prefix": "p"}, {**BASE, "prefix": "p", "lr": 0.5, "threads": 2}])
    )
    says = (
        r"f\.json: job 1: writes to the same place as another job \(p/fold0_ann\) with .* \(lr"
        r" 0\.0003 there, 0\.5 here, threads 1 there, 2 here\)"
    )
    with pytest.raises(InputError, match=says):
        read_jobs(Path("f.json"), "finetune", data)


def test_keys_that_begin_with_an_underscore_are_ignored(data: Data) -> None:
    assert base_job({**BASE, "_retrain": True, "_note": {"deep": []}}, "here", data) == base_job(
        BASE, "here", data
    )


def test_a_generated_prefix_depends_on_the_job_alone(data: Data) -> None:
    plain = finetune_job(BASE, "here", data)
    more_people = finetune_job({**BASE, "participants": [*PEOPLE, "dan"]}, "here", data)
    assert (
        plain.id
        == more_people.id
        == f"target_only_fine_tuning_pct1_base2_bs64_{plain.values['prefix'][-8:]}/fold0_ann"
    )
    assert finetune_job({**BASE, "lr": 0.5}, "here", data).id != plain.id
    assert finetune_job({**BASE, "device": "3", "threads": 2}, "here", data).id == plain.id


def test_target_only_needs_no_base(data: Data) -> None:
    job = finetune_job({**BASE, "n_base_participants": 0, "mode": "target_only"}, "here", data)
    assert (job.needs, job.values["base_model_hash"]) == (None, None)


def test_a_job_with_nan_is_refused(data: Data) -> None:
    Path("b.json").write_text(json.dumps([{**BASE, "lr": float("nan")}]))
    with pytest.raises(InputError, match=r"b\.json: NaN is not a JSON number"):
        read_jobs(Path("b.json"), "base", data)


def test_a_job_with_a_key_twice_is_refused(data: Data) -> None:
    Path("b.json").write_text('[{"fold": 0, "fold": 1}]')
    for kind in ("base", "finetune", "script"):
        with pytest.raises(InputError, match=r"b\.json: the key 'fold' is given twice"):
            read_jobs(Path("b.json"), kind, data)


@pytest.mark.parametrize(
    "entry", [{"a": {"b": 1}}, {"a b": 1}, {"-x": 1}, {"": 1}, {"a": [[1]]}, {"a=b": 1}]
)
def test_a_foreign_job_that_cannot_become_flags_is_refused(
    data: Data, entry: dict[str, Any]
) -> None:
    Path("s.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="job 0: "):
        read_jobs(Path("s.json"), "script", data)


def test_foreign_jobs_keep_their_options(data: Data) -> None:
    Path("s.json").write_text(json.dumps([{"a-b": [1, "x", None], "c": False, "_d": 1}, {}]))
    assert [(job.id, job.values) for job in read_jobs(Path("s.json"), "script", data)] == [
        ("job0", {"a-b": [1, "x", None], "c": False}),
        ("job1", {}),
    ]
