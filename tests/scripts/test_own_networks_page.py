"""Every command of docs/own_networks.md, in its order, on small data: the examples work as printed,
pretraining included.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import torch

from tests.conftest import ROOT
from tests.scripts.made import write_data
from tests.scripts.projects import Project

PAGE = (ROOT / "docs/own_networks.md").read_text()
# As printed they train for as long as it takes; the tests only want to see them work.
BUDGET = {"train_base.py": ["--max_epochs", "2"], "run_distributed_training.py": []}


def commands() -> list[list[str]]:
    """The `python3 SCRIPT ...` lines, without those that install packages."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"python3 \w+\.py", line)]


def metadata(project: Project, said: str) -> dict[str, object]:
    base_hash = re.findall(r"[0-9a-f]{16}", said)[0]
    path = project.folder / f"base_models/{base_hash}_metadata.json"
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    shutil.copytree(ROOT / "examples", project.folder / "examples")
    people = [f"p{number:02}" for number in range(1, 11)]
    write_data(project.folder / "data/watch", people, manifest=True, samples=100)
    project.write_cluster(slots=1)
    said: dict[str, str] = {}
    for script, *argv in commands():
        line = shlex.join([script, *argv])
        done = project.run(script, *argv, *BUDGET[script], timeout=240)
        said[line] = done.stdout + done.stderr
    assert len(said) == 4, said
    pretrained = torch.load(project.folder / "pretrained/resnet.pt", weights_only=True)
    assert pretrained["head.weight"].shape[0] == 4
    (line,) = (line for line in said if "--init_weights" in line)
    (plain,) = (line for line in said if "--model_options" in line)
    # The page says that what was not taken is named: the head of four classes is another one.
    assert "not set: head.weight, head.bias of the file" in said[line], said[line]
    assert "not set" not in said[plain]
    assert metadata(project, said[line])["init_weights"], said[line]
