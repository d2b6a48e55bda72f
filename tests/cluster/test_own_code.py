"""The example networks over SSH nodes: their files travel, and results are those of a local run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.project import FIXED, TWO_PHASE, Project, opened
from tests.conftest import ROOT
from tests.scripts.curves import check_curves

pytestmark = pytest.mark.root
NETWORKS = [f"examples/networks.py:{name}" for name in ("ResNet", "GRU", "Transformer")]
AXES = {
    "model": NETWORKS,
    "mode": ["target_only_fine_tuning", "head_only_fine_tuning"],
    "n_base_participants": [1],
}


def prepare(project: Project) -> None:
    """Jobs of the three example networks with the example augmentation."""
    shutil.copytree(ROOT / "examples", project.folder / "examples")
    fixed = {
        key: value for key, value in FIXED.items() if key not in ("base_channels", "num_blocks")
    }
    fixed |= {"use_augmentation": True, "augmentation": "examples/augmentation.py:rotate"}
    (project.folder / "grid.json").write_text(
        json.dumps({"grid": {**AXES, "fold": [0, 1]}, "fixed": fixed})
    )
    project.run("generate_jobs.py", "--grid", "grid.json")


def test_each_example_network_over_two_nodes_is_byte_identical_to_local(
    hosts: Hosts, tmp_path: Path
) -> None:
    with opened(tmp_path / "local") as local, opened(tmp_path / "head", data=False) as project:
        (project.folder / "data").symlink_to(local.folder / "data")
        prepare(local)
        local.config([{"host": "localhost", "cpu_slots": 2}])
        local.run(TWO_PHASE)
        prepare(project)
        project.config(hosts.servers()[:2], ssh_config=str(hosts.ssh_config))
        project.run(TWO_PHASE, "--tensorboard")
        assert check_curves(project.folder) == 18
        assert {event["node"] for event in project.found(event="done")} == {"h1", "h2"}
        assert project.results() == local.results()
        assert sum(name.endswith("/model.py") for name in project.results()) == 12
        # one file for the nodes and the head: a changed copy there is replaced, not used
        (hosts["h1"].project / "examples/networks.py").write_text(
            "raise SystemExit('not this one')"
        )
        shutil.rmtree(project.folder / "experiments")
        project.run(TWO_PHASE)
        assert project.results() == local.results()
