"""What a node sends home holds the head's own code, or is not used."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from common import artifacts
from common.cluster import protocol
from common.data.data_sets import Data
from common.errors import CorruptArtifact
from common.jobs.job_files import base_job
from common.jobs.verdicts import base_fingerprints
from common.paths import Paths
from common.training import base
from tests.scripts.made import PEOPLE, write_data

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, channels, samples):
        super().__init__(nn.Flatten(), nn.Linear(channels * samples, 1))
"""
ENTRY = {
    "data_path": "data/made",
    "window_size": 40,
    "participants": list(PEOPLE),
    "n_base_participants": 1,
    "max_epochs": 1,
}


def test_code_in_a_record_is_the_heads_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_data(tmp_path / "data/made")
    (tmp_path / "own.py").write_text(NET)
    paths = Paths(tmp_path)
    job = base_job({**ENTRY, "model": "own.py:Net"}, "test", Data(paths))
    base.run({**ENTRY, "model": "own.py:Net"}, lambda state: None)
    record = artifacts.read_base_metadata(paths, job.id)
    data = base_fingerprints(job.base, Data(paths).sha256)
    protocol.base_record(job, record, data)

    def refused(change: Any) -> None:
        lying = copy.deepcopy(record)
        change(lying)
        with pytest.raises(CorruptArtifact, match="the code that its record keeps"):
            protocol.base_record(job, lying, data)

    refused(lambda record: record["own_code"]["model"].update(source="import os"))
    refused(lambda record: record["own_code"]["model"].update(name="Other"))
    refused(lambda record: record["own_code"]["model"].update(source=None))
    refused(lambda record: record["own_code"].update(augmentation=record["own_code"]["model"]))
    refused(lambda record: record.pop("own_code"))
    refused(lambda record: record.update(own_code=[]))

    builtin = base_job(ENTRY, "test", Data(paths))
    base.run(ENTRY, lambda state: None)
    plain = artifacts.read_base_metadata(paths, builtin.id)
    data = base_fingerprints(builtin.base, Data(paths).sha256)
    protocol.base_record(builtin, plain, data)
    with pytest.raises(CorruptArtifact, match="the code that its record keeps"):
        protocol.base_record(builtin, plain | {"own_code": record["own_code"]}, data)
