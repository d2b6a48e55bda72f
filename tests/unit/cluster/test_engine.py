"""The two engines are siblings: what one needs is not imported for the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import CODE_ROOT

SET_UP = """
import sys
from pathlib import Path
from common.cluster.config import load_config
from common.cluster.engine import load_engine
engine = load_engine(load_config(Path(sys.argv[1])).engine)
print(engine.__name__, *sys.modules)
"""
SSH_ROOMS = ("paramiko", "common.cluster.ssh", "common.cluster.transport")


def modules_of_head(config: Path) -> list[str]:
    """The engine's name, and the modules in a process that has loaded it for `config`."""
    run = subprocess.run(
        [sys.executable, "-c", SET_UP, str(config)],
        cwd=CODE_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split()


@pytest.mark.parametrize(
    ("config", "engine", "absent"),
    [
        (
            {"engine": "slurm", "slurm": {"partition": "main"}},
            "common.cluster.slurm.start",
            SSH_ROOMS,
        ),
        (
            {"servers": [{"host": "localhost"}]},
            "common.cluster.ssh.start",
            ("submitit", "common.cluster.slurm"),
        ),
    ],
)
def test_only_the_engine_that_is_used_is_imported(
    tmp_path: Path, config: dict[str, object], engine: str, absent: tuple[str, ...]
) -> None:
    path = tmp_path / "cluster_config.json"
    path.write_text(json.dumps(config))
    name, *modules = modules_of_head(path)
    assert name == engine
    wrong = [module for module in modules if module.startswith((*absent, "torch"))]
    assert wrong == []
