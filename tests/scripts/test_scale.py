"""Many nodes at a time, in the short form of benchmarks/scale.py."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import scale

SILENCE = {"heartbeat_seconds": 0.5, "suspect_seconds": 1.5, "close_seconds": 3}


def test_two_of_ten_nodes_die_every_job_is_done_once_and_a_node_costs_few_threads(
    tmp_path: Path,
) -> None:
    project, names = tmp_path / "project", [f"local{number}" for number in range(10)]
    scale.make_project(project, 140)
    scale.make_nodes(project, names, 2.0, 4, **SILENCE)
    # it insists on exit code 0, and on each job done and published once
    found = scale.run(project, 40, settle=0.5, steady=0.5, dead=2, away=4.0)
    assert found.lost == 2
    assert found.again > 0
    assert found.threads[1] < 60
