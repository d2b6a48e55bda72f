"""export.py: a result folder becomes a file that runs without torch, and a card that says what to
feed it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.artifacts import sha256
from tests.conftest import ROOT, failed_in_one_line
from tests.scripts.made import write_data
from tests.scripts.projects import QUICK, Project, flags

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLES = [f"examples/networks.py:{name}" for name in ("ResNet", "GRU", "Transformer")]
# Run in a process of its own: what a reader copies from docs/predict_and_export.md.
WITHOUT_TORCH = """
import json, sys
import numpy as np
import onnxruntime
folder, windows, out = sys.argv[1:]
card = json.load(open(folder + "/model_card.json"))
session = onnxruntime.InferenceSession(folder + "/" + card["file"])
np.save(out, session.run(None, {"samples": np.load(windows)})[0])
assert not any(name.split(".")[0] in ("torch", "common") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a base model of a built-in network, and of each own one in examples/."""
    made = Project.create(tmp_path_factory.mktemp("export"))
    write_data(made.folder / "data/made", manifest=True)
    shutil.copytree(ROOT / "examples", made.folder / "examples")
    base = {**QUICK, "n_base_participants": 2, "normalization": "train"}
    for own in ({"dropout": 0.3}, *({"model": model} for model in EXAMPLES)):
        made.run("train_base.py", *flags({**base, **own}))
    return made


def base_hash(project: Project, model: str) -> str:
    """The base model of a network."""
    for path in project.folder.glob("base_models/*_metadata.json"):
        record = json.loads(path.read_text())
        if record["config"]["model"] == model:
            return str(record["base_model_hash"])
    raise AssertionError(model)


@pytest.mark.parametrize("model", ["test", *EXAMPLES])
def test_a_copied_result_folder_becomes_a_file_that_runs_without_torch(
    project: Project, tmp_path: Path, model: str
) -> None:
    project.run(
        "train_finetune.py",
        "--base_model_hash",
        base_hash(project, model),
        "--max_epochs",
        2,
        "--prefix",
        f"tuned {model[-4:]}",
    )
    copied = tmp_path / "elsewhere"
    shutil.copytree(project.folder / "experiments" / f"tuned {model[-4:]}" / "fold0_ann", copied)
    alone = Project.create(tmp_path, "alone")
    done = alone.run("export.py", copied, "--out", "out")
    assert "checked on 256 random windows, since its data are not here" in done.stdout
    card = json.loads((alone.folder / "out/model_card.json").read_text())
    assert card["input"]["channels"] == ["c0", "c1"]
    assert card["input"]["shape"] == ["batch", 2, 40]
    assert card["threshold"]["tuned"] is not None
    assert not {"ann", "bob", "fold0_ann"} & set(json.dumps(card).split('"'))

    x, _ = torch.load(project.folder / "data/made/ann_test.pt", weights_only=True)
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, "-c", WITHOUT_TORCH, str(alone.folder / "out")]
    subprocess.run([*command, str(tmp_path / "x.npy"), str(tmp_path / "p.npy")], check=True)
    rows = [line.split(",") for line in (copied / "predictions.csv").read_text().splitlines()]
    place = rows[0].index("p_finetuned")
    expected = [float(row[place]) for row in rows[1:] if row[0] == "test"]
    assert np.abs(np.load(tmp_path / "p.npy") - expected).max() < 1e-5


@pytest.mark.parametrize("model", EXAMPLES)
def test_eight_bits(project: Project, model: str) -> None:
    out = model[-4:]
    done = project.run("export.py", base_hash(project, model), "--out", out, "--quantize", "int8")
    assert "checked on 24 of its test windows" in done.stdout
    assert "macro F1 on 24 validation windows" in done.stdout
    card = json.loads((project.folder / out / "model_card.json").read_text())
    small = project.folder / out / "model_int8.onnx"
    assert small.stat().st_size == card["quantized"]["bytes"]
    assert card["quantized"]["bytes"] < card["bytes"] or "GRU" in model  # too small to gain
    x, _ = torch.load(project.folder / "data/made/ann_val.pt", weights_only=True)
    eight, whole = (
        onnxruntime.InferenceSession(path).run(None, {"samples": x.numpy()})[0]
        for path in (small, small.with_name("model.onnx"))
    )
    assert eight.shape == (len(x),)
    assert np.abs(eight - whole).max() < 0.2


def test_the_torch_format(project: Project) -> None:
    project.run("export.py", base_hash(project, "test"), "--out", "pt2", "--format", "torch")
    program = torch.export.load(project.folder / "pt2/model.pt2").module()
    assert program(torch.zeros(7, 2, 40)).shape == (7,)


def test_the_card_names_every_file_of_the_model(project: Project) -> None:
    """Also what an export of the same format without --quantize leaves as it is."""
    name, out = base_hash(project, EXAMPLES[0]), project.folder / "formats"

    def card(*argv: object) -> dict[str, Any]:
        project.run("export.py", name, "--out", "formats", *argv)
        read: dict[str, Any] = json.loads((out / "model_card.json").read_text())
        return read

    first = card("--quantize", "int8")
    assert "other_files" not in first
    again = card()
    assert (again["quantized"], "other_files" in again) == (first["quantized"], False)
    second = card("--format", "torch")
    (other,) = second["other_files"]
    assert (second["file"], other["file"]) == ("model.pt2", "model.onnx")
    assert other["quantized"]["file"] == "model_int8.onnx"
    for entry in (second, other, other["quantized"]):
        assert sha256((out / entry["file"]).read_bytes()) == entry["sha256"]
    assert set(first) - set(second) == {"quantized"}
    third = card()
    assert (third["file"], third["quantized"]) == ("model.onnx", first["quantized"])
    assert [entry["file"] for entry in third["other_files"]] == ["model.pt2"]
    (out / "model.pt2").write_bytes(b"something else")
    assert "other_files" not in card()


def test_the_folder_of_another_model_is_refused(project: Project) -> None:
    project.run("export.py", base_hash(project, "test"), "--out", "taken", "--format", "torch")
    other = ("export.py", base_hash(project, EXAMPLES[0]), "--out", "taken")
    for content in (None, "{}"):
        if content:
            (project.folder / "taken/model_card.json").write_text(content)
        before = project.tree("cache")
        said = failed_in_one_line(project.run(*other, exit_code=None))
        assert "taken/model_card.json: is the card of another model (" in said
        assert "give another --out" in said
        assert project.tree("cache") == before


def test_what_is_refused(project: Project) -> None:
    def refused(*argv: object) -> str:
        return failed_in_one_line(project.run("export.py", *argv, "--out", "no", exit_code=None))

    assert "neither the folder of an experiment" in refused("nothing")
    assert "Base model not found: base_models/0123456789abcdef.pt" in refused("0123456789abcdef")
    assert "no metrics.json in it" in refused("data")
    assert "--quantize int8 is for --format onnx" in refused(
        base_hash(project, "test"), "--format", "torch", "--quantize", "int8"
    )
    assert not (project.folder / "no").exists()


def test_a_file_that_gives_other_probabilities_is_not_written(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from common.errors import TrainingError
    from common.paths import Paths
    from common.use import export
    from common.use.model import open_model

    model = open_model(base_hash(project, "test"), Paths(project.folder))
    monkeypatch.setitem(
        export._RUN, "torch", lambda content: lambda x: np.full(len(x), 0.3, np.float32)
    )
    with pytest.raises(TrainingError, match="gives other probabilities"):
        export.export(model, tmp_path / "out", "torch", project.folder, quantize=False)
    assert not (tmp_path / "out").exists()
