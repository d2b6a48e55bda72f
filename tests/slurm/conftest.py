"""One Slurm for a test module; each test finds it without tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.projects import Project, made
from tests.slurm.cluster import SlurmCluster, missing_parts

CONFIG = {"cpus": 1, "time": "30", "jobs_per_task": 12}


@pytest.fixture(scope="module")
def one_slurm(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    """A running Slurm; use `slurm`, which clears it. A module that sets ACCOUNTING gets one with a
    database of ended tasks, where that is installed.
    """
    if reason := missing_parts():
        pytest.skip(f"needs a real Slurm: {reason}")
    wanted = getattr(request.module, "ACCOUNTING", False)
    with SlurmCluster(accounting=wanted and not missing_parts(accounting=True)) as cluster:
        yield cluster


@pytest.fixture
def slurm(one_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Slurm, to which everything that the test starts is pointed."""
    monkeypatch.setenv("SLURM_CONF", str(one_slurm.configuration))
    yield one_slurm
    one_slurm.reset()


def write_config(project: Project, **more: object) -> None:
    """cluster_config.json for Slurm."""
    project.write("cluster_config.json", {"engine": "slurm", "slurm": {**CONFIG, **more}})


@pytest.fixture
def slurm_project(slurm: SlurmCluster, tmp_path: Path) -> Project:
    """A project with the little data set, whose configuration names Slurm; a space in its folder's
    name.
    """
    project = made(tmp_path, "my project")
    write_config(project)
    return project
