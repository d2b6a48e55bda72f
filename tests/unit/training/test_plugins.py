"""The user's own network and augmentation: what is refused before training, in one line, and what
is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common import artifacts
from common.data.dataset import open_split
from common.errors import InputError, TrainingError
from common.paths import Paths
from common.training import backends, base, finetune, loop
from tests.conftest import ROOT
from tests.scripts.made import PEOPLE, write_data

OPTIONS: dict[str, Any] = {
    "data_path": "data/made",
    "window_size": 40,
    "participants": list(PEOPLE),
    "n_base_participants": 2,
    "batch_size": 16,
    "lr": 0.01,
    "max_epochs": 3,
}
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, samples, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(channels, width, 3), nn.BatchNorm1d(width), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.drop(self.body(x).mean(2)))
"""
JITTER = """
import torch

def jitter(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator, device=generator.device)
"""


def silent(state: object) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_data(tmp_path / "data/made", manifest=True)
    (tmp_path / "own.py").write_text(NET)
    (tmp_path / "turn.py").write_text(JITTER)
    return tmp_path


def train(**changes: Any) -> str:
    result = base.run({**OPTIONS, "model": "own.py:Net", **changes}, silent)
    return str(result["base_model_hash"])


def weights(project: Path, base_hash: str) -> bytes:
    return artifacts.open_base_model(Paths(project), base_hash).weights


def metadata(project: Path, base_hash: str) -> dict[str, Any]:
    return artifacts.read_base_metadata(Paths(project), base_hash)


def changed(before: str, after: str) -> str:
    assert before in NET
    return NET.replace(before, after)


# -- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NET.replace("class Net", "class Nett"), r"model: own\.py defines no Net, .* Nett\?"),
        ("Net = 3", r"model: own\.py:Net is int, not a network class"),
        ("def Net(channels, samples):\n    return 3", "gives int, not a torch.nn.Module"),
        (changed("channels, samples, width=4", "size"), "unexpected keyword argument 'channels'"),
        (changed("nn.Linear(width, 1)", "nn.Linear(width, 2)"), r"gives \[2, 2\] for two windows"),
        (changed("nn.Linear(width, 1)", "nn.Linear(9, 1)"), r"own\.py, line 13: RuntimeError: "),
        ("import torch\n\n1 / 0", r"own\.py, line 3: ZeroDivisionError: division by zero"),
        ("import torch\nx = (", r"own\.py, line 2: SyntaxError: "),
        ("import nothing_like_it", r"own\.py, line 1: ModuleNotFoundError: "),
        ("raise SystemExit(0)", r"own\.py, line 1: SystemExit: 0"),
        (
            "from torch import nn\nclass Net(nn.Module):\n"
            "    def __init__(self, channels, samples):\n        super().__init__()\n"
            "    def forward(self, x):\n        return x.mean((1, 2))",
            "has no parameters",
        ),
        (changed("self.body(x).mean(2)", "self.body(x).mean(2) / 0"), r"gives \[nan, nan\]|inf"),
        (changed("self.body(x)", "self.body(x + torch.randn_like(x))"), "gives two results"),
        (changed("nn.Linear(width, 1)", "nn.Linear(width, 1).double()"), "Double|float64"),
        (
            NET + "\n    def get_extra_state(self):\n        return {'seen': 3}\n"
            "\n    def set_extra_state(self, state):\n        pass\n",
            r"own\.py:Net keeps more than tensors in its state \(_extra_state\)",
        ),
        (changed("self.head(self", "self.head.weight.sum().detach() + (self"), "for two windows"),
    ],
)
def test_a_bad_network_is_named_before_training(project: Path, text: str, said: str) -> None:
    (project / "own.py").write_text(text)
    with pytest.raises(InputError, match=said) as error:
        train()
    assert "\n" not in str(error.value)
    assert not list(project.glob("base_models/*"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return x[:, :1]", r"turn\.py:jitter returns float32 \[2, 1, 40\] for float32 \[2, 2, 40"),
        ("return None", "returns NoneType"),
        ("return x + torch.randn(x.shape)", "gives two results for one generator"),
        ("return x * float('nan')", "NaN or infinite"),
        ("return x @ x", r"turn\.py, line 5: on two training windows: RuntimeError"),
    ],
)
def test_a_bad_augmentation_is_named_before_training(project: Path, body: str, said: str) -> None:
    (project / "turn.py").write_text(f"import torch\n\n\ndef jitter(x, generator):\n    {body}\n")
    with pytest.raises(InputError, match=said):
        train(use_augmentation=True, augmentation="turn.py:jitter")


def test_code_that_fails_in_an_epoch_is_named_with_its_line(project: Path) -> None:
    late = changed(
        "        return self.head(",
        "        if self.training and len(x) > 2:\n            raise ValueError('not today')\n"
        "        return self.head(",
    )
    (project / "own.py").write_text(late)
    with pytest.raises(TrainingError, match=r"^model: own\.py, line 14: ValueError: not today$"):
        train()


def test_other_arguments_and_missing_files_are_named(project: Path) -> None:
    with pytest.raises(InputError, match="unexpected keyword argument 'depth'"):
        train(model_options={"depth": 3})
    with pytest.raises(InputError, match=r"model: no file gone\.py in the project folder"):
        train(model="gone.py:Net")


def test_freezing_is_checked_and_a_head_is_needed(project: Path) -> None:
    base_hash = train()
    start = {"data_path": "data/made", "base_model_hash": base_hash, "max_epochs": 2}
    with pytest.raises(InputError, match=r"freeze: no parameter is called 'bodyy.*'; there are "):
        finetune.run({**start, "freeze": ["bodyy.*"]}, silent)
    with pytest.raises(InputError, match=r"freeze: .* leaves no parameter to train"):
        finetune.run({**start, "freeze": ["*"]}, silent)
    (project / "own.py").write_text(NET.replace("self.head", "self.last"))
    start["base_model_hash"] = train()
    with pytest.raises(InputError, match="has no attribute head"):
        finetune.run({**start, "mode": "head_only_fine_tuning"}, silent)


# -- what is trained


def test_what_a_result_keeps(project: Path) -> None:
    base_hash = train(model_options={"width": 5}, normalization="train")
    kept = metadata(project, base_hash)
    assert kept["own_code"]["model"]["source"] == NET
    assert kept["input"]["channels"] == ["c0", "c1"]
    assert kept["input"]["sampling_rate_hz"] == 20
    assert kept["parameters"] == 5 * 2 * 3 + 5 + 10 + 6
    start = {"data_path": "data/made", "base_model_hash": base_hash, "max_epochs": 2}
    done = finetune.run(
        {**start, "use_augmentation": True, "augmentation": "turn.py:jitter"}, silent
    )
    folder = project / done["folder"]
    assert (folder / "model.py").read_text() == NET
    assert (folder / "augmentation.py").read_text() == JITTER
    config = json.loads((folder / "config.json").read_text())
    assert config["input"] == kept["input"]
    assert {"./own.py", "./turn.py"} < set(config["data_fingerprints"])
    (folder / "model.py").write_text("other")
    with pytest.raises(Exception, match=r"is not the code that config\.json keeps"):
        artifacts.open_experiment(folder)


def test_the_same_bytes_again_and_from_a_checkpoint(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"use_augmentation": True, "augmentation": "turn.py:jitter", "max_epochs": 6}
    whole = weights(project, train(**options))
    artifacts.supersede_base_model(Paths(project), train(**options))

    class Cut(Exception):
        pass

    def cut(state: dict[str, Any]) -> None:
        if state["epoch"] == 4:
            raise Cut

    settings = base.loop_settings
    monkeypatch.setattr(
        base, "loop_settings", lambda *a, **k: settings(*a, **k, checkpoint_seconds=0.0)
    )
    with pytest.raises(Cut):
        base.run({**OPTIONS, "model": "own.py:Net", **options}, cut)
    result = base.run({**OPTIONS, "model": "own.py:Net", **options}, silent)
    assert result["resumed"]
    assert weights(project, result["base_model_hash"]) == whole


def test_two_versions_of_a_file_in_one_process_never_mix(project: Path) -> None:
    first = train()
    before = weights(project, first)
    (project / "own.py").write_text(changed("width=4", "width=6"))
    assert train() == first  # the hash is of the name, the key of the content
    assert loop.deserialize(weights(project, first))["net.head.weight"].shape == (1, 6)
    assert (project / f"superseded/base_models/{first}.pt.0").read_bytes() == before
    (project / "own.py").write_text(NET)
    train()
    assert weights(project, first) == before


def test_a_changed_file_makes_what_was_made_with_it_stale(project: Path) -> None:
    base_hash = train()
    (project / "own.py").write_text(NET + "# another\n")
    with pytest.raises(InputError, match=r"stale: own file changed \(\./own\.py\)"):
        finetune.run(
            {"data_path": "data/made", "base_model_hash": base_hash, "_by_hand": True}, silent
        )


@pytest.mark.parametrize("affine", [True, False])
def test_a_head_alone_is_trained_and_averages_rest(project: Path, affine: bool) -> None:
    text = changed("nn.BatchNorm1d(width)", f"nn.BatchNorm1d(width, affine={affine})")
    (project / "own.py").write_text(text)
    base_hash = train()
    for freeze in ({"mode": "head_only_fine_tuning"}, {"freeze": ["body.*"]}):
        start = {"data_path": "data/made", "base_model_hash": base_hash, "max_epochs": 2, **freeze}
        done = finetune.run({**start, "target_val": "none"}, silent)
        before = loop.deserialize(weights(project, base_hash))
        after = loop.deserialize((project / done["folder"] / "best_model.pt").read_bytes())
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"net.head.weight", "net.head.bias"}


def test_a_network_that_changes_its_input_leaves_the_data_as_they_are(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are read in the mapped file itself, which all trainings of a process share."""
    (project / "own.py").write_text(changed("self.body(x)", "self.body(x.clamp_(min=0.0))"))
    monkeypatch.setattr("common.data.manifest.SETTLED_SECONDS", -1e9)  # such files stay open
    train(n_base_participants=1, max_epochs=1)
    for name in PEOPLE:
        seen = open_split(project / "data/made", name, "test", window_size=40).x
        assert torch.equal(seen, torch.load(project / f"data/made/{name}_test.pt")[0])


def test_initial_weights_are_taken_by_name_and_shape(project: Path) -> None:
    torch.manual_seed(3)
    state = {"body.0.weight": torch.randn(4, 2, 3), "head.weight": torch.zeros(4, 4)}
    torch.save(state, project / "start.pt")
    kept = metadata(project, train(init_weights="start.pt", lr=1e-9, max_epochs=1))
    assert kept["init_weights"]["taken"] == ["body.0.weight"]
    assert kept["init_weights"]["not_taken"] == ["head.weight"]
    got = loop.deserialize(weights(project, kept["base_model_hash"]))["net.body.0.weight"]
    assert torch.allclose(got, state["body.0.weight"], atol=1e-6)
    torch.save({"head.weight": torch.zeros(4, 4)}, project / "start.pt")
    with pytest.raises(InputError, match=r"head\.weight is \[4, 4\] there and \[1, 4\] in the net"):
        train(init_weights="start.pt")
    torch.save([1], project / "start.pt")
    with pytest.raises(InputError, match="holds list, not a state dict"):
        train(init_weights="start.pt")


def test_weight_decay_pulls_weights_towards_zero(project: Path) -> None:
    norms = [
        sum(
            float(value.norm())
            for name, value in loop.deserialize(weights(project, base_hash)).items()
            if name.endswith("weight")
        )
        for base_hash in (train(max_epochs=20), train(max_epochs=20, weight_decay=3.0))
    ]
    assert norms[1] < 0.8 * norms[0]


def test_a_last_batch_of_one_window_joins_the_one_before() -> None:
    generator = torch.Generator().manual_seed(0)
    assert loop.epoch_batches(9, 4, 0, generator, 2)[1] == [4, 5]
    assert loop.epoch_batches(9, 4, 0, generator)[1] == [4, 4, 1]
    assert loop.epoch_batches(1, 4, 0, generator, 2)[1] == [1]


def test_the_examples_learn(project: Path) -> None:
    (project / "examples").symlink_to(ROOT / "examples")
    for name in ("ResNet", "GRU", "Transformer"):
        kept = metadata(project, train(model=f"examples/networks.py:{name}", max_epochs=8))
        assert kept["losses"]["train"][-1] < kept["losses"]["train"][0]


def test_batch_normalisation_sees_whole_batches_however_small_the_caches(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(project, train())
    artifacts.supersede_base_model(Paths(project), train())
    monkeypatch.setattr(backends, "CACHED_BYTES", 1)
    pieces = loop.deserialize(weights(project, train()))
    for name, value in loop.deserialize(whole).items():
        assert torch.allclose(pieces[name].float(), value.float(), atol=1e-5), name
