"""The commands of README and docs/, taken from them, run in their order on small data."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.scripts.made import write_data
from tests.scripts.projects import Project

README = (ROOT / "README.md").read_text()
PAGES = ("data", "grids", "clusters", "slurm", "report")
TEXT = README + "".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)
# They build environments: the first is tested where nodes are, in tests/cluster/test_upkeep.py, the
# second is part of `make test`.
ELSEWHERE = {
    "python3 run_two_phase_distributed.py --setup-nodes",
    "python3 -m pip install -r requirements-slurm.txt",
    "python3 -m pip install -r requirements-export.txt -c constraints.txt",
    # They are run in test_predict.py and test_export.py.
    "python3 predict.py experiments/PREFIX/fold0_tonmoy --sessions new_recordings --out predicted",
    "python3 export.py experiments/PREFIX/fold0_tonmoy --out exported",
}


def commands() -> list[str]:
    """Every `python3 ...` line of the shell blocks, without its remark."""
    blocks = re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python3 ")]


def write_recordings(folder: Path) -> None:
    """Three sessions of ten minutes for three people, at 25 Hz, with a bout of two minutes in
    each.
    """
    rng = np.random.default_rng(0)
    bouts = ["participant,session,start,end"]
    for person in ("ann", "bob", "cyd"):
        (folder / person).mkdir(parents=True)
        for session in ("monday", "tuesday", "friday"):
            time = np.arange(0, 600_000, 40)
            rows = np.column_stack([time, rng.normal(size=(len(time), 3)).round(4)])
            lines = [f"{int(row[0])},{row[1]},{row[2]},{row[3]}" for row in rows]
            (folder / person / f"{session}.csv").write_text(
                "\n".join(["time,ax,ay,az", *lines]) + "\n"
            )
            bouts.append(f"{person},{session},120000,240000")
    (folder / "bouts.csv").write_text("\n".join(bouts) + "\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What README takes for granted: recordings, the demo's data (small here), this machine as the
    one node.
    """
    made = Project.create(tmp_path_factory.mktemp("readme"))
    write_recordings(made.folder / "recordings")
    write_data(
        made.folder / "data" / "watch",
        [f"p{number:02}" for number in range(1, 11)],
        manifest=True,
        samples=100,
    )
    (mine,) = re.findall(r'^```json\n(\{"grid.*?)^```', README, re.DOTALL | re.MULTILINE)
    (made.folder / "my_grid.json").write_text(mine)
    grid = json.loads((ROOT / "demo_grid.json").read_text())
    grid["fixed"]["max_epochs"] = 2
    grid["grid"]["seed_finetune"] = [0]
    (made.folder / "demo_grid.json").write_text(json.dumps(grid))
    (made.folder / "cluster_config.json").write_text((ROOT / "cluster_config.json").read_text())
    return made


def test_every_command_of_the_readme_runs(project: Project) -> None:
    said: dict[str, str] = {}
    base = ""
    # The documented grid needs days, one's own hours: the runs in this test have the demo's grid.
    own = "python3 generate_jobs.py --grid my_grid.json"
    first = "python3 generate_jobs.py --grid demo_grid.json --with-baselines --folds 0 1 2"
    for line in [commands()[0], "python3 generate_jobs.py", own, first, *commands()[1:]]:
        if line in said or line in ELSEWHERE:
            continue
        script, *argv = shlex.split(line.replace("HASH", base))[1:]
        if "../other_grid" in argv:  # another project: a copy of this one
            for name in ("experiments", "base_models"):
                shutil.copytree(project.folder / name, project.folder.parent / "other_grid" / name)
        said[line] = project.run(script, *argv, timeout=240).stdout
        if script == "train_base.py":
            base = re.findall(r"[0-9a-f]{16}", said[line])[0]
    assert "72 fine-tunes" in said[own]
    assert "not looked at" not in said[own]
    assert "1,008 fine-tunes" in said["python3 generate_jobs.py"]
    assert "18 done" not in said[first]
    assert "macro F1" in said["python3 run_two_phase_distributed.py"]
    assert "localhost: ok" in said["python3 run_two_phase_distributed.py --check"]
    assert (project.folder / "report" / "index.html").is_file()
    assert (project.folder / "report_b32" / "index.html").is_file()


def test_the_readme_says_what_else_a_command_needs() -> None:
    using = README.split("## Using a model")[1].split("## ")[0]
    install = "pip install -r requirements-export.txt -c constraints.txt"
    assert 0 < using.find(install) < using.find("python3 export.py")
    assert "into which you copy `cluster_config.json`" in README


def test_the_readme_names_every_script_and_make_target() -> None:
    for script in ROOT.glob("*.py"):
        assert script.name in README, script.name
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in set(targets) - {"env", "dev", "alone", "lint", "types", "clean"}:
        assert f"make {target}" in README, target
