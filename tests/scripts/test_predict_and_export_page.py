"""Every command of docs/predict_and_export.md, in its order, from two recordings to a picture of a
third and a file for a phone; then the page's lines of Python, where torch cannot be imported.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.scripts.projects import Project
from tests.scripts.test_predict import write_recording

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PAGE = (ROOT / "docs/predict_and_export.md").read_text()
NO_TORCH = "import sys; sys.modules['torch'] = sys.modules['common'] = None\n"


def block(language: str) -> str:
    """The page's one block in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The three recordings that the page begins with."""
    made = Project.create(tmp_path_factory.mktemp("page"))
    columns = ("ax", "ay", "az")
    for number, person in enumerate(("ann", "bob")):
        path = made.folder / f"recordings/{person}/monday.csv"
        write_recording(path, number, seconds=600, rate=50, columns=columns)
    write_recording(made.folder / "third.csv", 2, rate=50, label=False, columns=columns)
    for path, header in re.findall(r"^    (\S+\.csv) +(time\S+)$", PAGE, re.MULTILINE):
        assert (made.folder / path).read_text().splitlines()[0] == header, path
    return made


def test_the_page_goes_from_two_recordings_to_a_file_that_runs_without_torch(
    project: Project,
) -> None:
    base = ""
    lines = [line.partition("  #")[0] for line in block("bash").splitlines()]
    for line in lines:
        script, *argv = shlex.split(line.replace("HASH", base))[1:]
        if script == "-m":  # installs what the tests have
            continue
        said = project.run(script, *argv, timeout=240).stdout
        if script == "train_base.py":
            base = re.findall(r"[0-9a-f]{16}", said)[0]
    predicted = [path for path in project.folder.glob("predicted/**/*") if path.is_file()]
    assert {"windows.csv", "episodes.csv", "timeline.png"} <= {path.name for path in predicted}
    assert {path.name for path in project.folder.glob("exported/*")} == {
        "model.onnx",
        "model_card.json",
    }
    python = block("python")
    assert len(python.splitlines()) <= 12
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + python],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"(positive|negative) 0?\.\d+|1\.0", done.stdout.strip()), done.stdout
