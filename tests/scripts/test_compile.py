"""--compile on with own networks: one that PyTorch compiles, and one that it cannot, which is
trained eagerly after a word.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.scripts.projects import QUICK, Project, flags, made

NETWORKS = """
import numpy as np
from torch import nn


class Plain(nn.Module):
    def __init__(self, channels, samples):
        super().__init__()
        self.head = nn.Linear(channels, 1)

    def forward(self, x):
        return self.head(x.mean(dim=2))


class Leaves(Plain):
    def forward(self, x):
        size = float(np.abs(x.detach().numpy()).max())
        return super().forward(x / (size if size > 1 else 1))
"""


def backends(project: Project) -> dict[str, dict[str, str]]:
    """By network, what the provenance of all its results says of how it was computed."""
    found: dict[str, dict[str, str]] = {}
    for path in project.folder.glob("base_models/*_metadata.json"):
        record = json.loads(path.read_text())
        found[record["config"]["model"]] = record["provenance"]
    for path in project.folder.glob("experiments/*/*/metrics.json"):
        model = json.loads((path.parent / "config.json").read_text())["options"]["model"]
        assert json.loads(path.read_text())["provenance"]["backend"] == found[model]["backend"]
    return found


def test_a_network_that_cannot_be_compiled_is_trained_eagerly_and_that_is_said_once(
    tmp_path: Path,
) -> None:
    project = made(tmp_path)
    (project.folder / "nets.py").write_text(NETWORKS)
    networks = ["nets.py:Plain", "nets.py:Leaves"]
    project.generate(
        {"model": networks, "n_base_participants": [1], "fold": [0]}, {**QUICK, "compile": "on"}
    )
    said = project.run("run_two_phase_distributed.py", timeout=300).stdout
    assert said.count("nets.py:Leaves cannot be compiled (") == 1, said
    assert "nets.py:Plain" not in said
    found = backends(project)
    assert found["nets.py:Plain"]["backend"] == "autograd compiled cpu"
    assert "not_compiled" not in found["nets.py:Plain"]
    assert found["nets.py:Leaves"]["backend"] == "autograd eager cpu"
    assert found["nets.py:Leaves"]["not_compiled"] in said

    options = {**QUICK, "compile": "on", "model": "nets.py:Leaves", "seed": 1}
    done = project.run("train_base.py", *flags(options))
    assert "nets.py:Leaves cannot be compiled (" in done.stderr
    assert "Traceback" not in done.stderr
