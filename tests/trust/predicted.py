"""Trials: predict.py on recordings with hostile names, and with results that are damaged or lie."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from common.paths import EXPERIMENT_FILES
from tests.scripts.made import write_data
from tests.trust.damage import harm
from tests.trust.hostile import LIES, leaves, put, reseal_metrics, write_sealed
from tests.trust.kills import here
from tests.trust.names import HOSTILE, MARK
from tests.trust.payloads import payloads
from tests.trust.world import World, call, opened

PEOPLE = ("ann", "bob", "cyd")
NAMES = (
    *(name for name in HOSTILE if "/" not in name),
    "...",
    "a$b_{$",
    "$\\frac{",
    "-",
    "nul\udcff",
    "x" * 240,
    "å",
    "a\u030a",
    "A",
    "a",
)
LYING = (*LIES, 1e-300, -5, 10**12, "0.5", [1, 2], ["c0"], ["c1", "c0"], {"c0": 1})


@dataclass
class Model:
    """A project with a base model and an experiment, and predict.py called in it."""

    world: World
    base: str
    folder: Path  # of the experiment

    def predict(self, model: str, sessions: str, out: str = "out") -> tuple[int, str, str]:
        """predict.py, judged: done, or refused in one line; nothing else happened."""
        before = self.outside()
        code, said, err = call(
            self.world.folder, "predict.py", model, f"--sessions={sessions}", f"--out={out}"
        )
        what = f"{model} on {sessions!r}"
        assert code in (0, 1, 2), f"{what}: exit code {code}: {err}"
        assert "Traceback" not in said + err, f"{what}: {err}"
        assert code != 2 or len(err.splitlines()) == 1, f"{what}: {err!r}"
        assert code != 2 or err.startswith("error: "), f"{what}: {err!r}"
        assert all(c.isprintable() or c == "\n" for c in said + err), f"{what}: {said + err!r}"
        assert max(map(len, [*err.splitlines(), ""])) < 3000, f"{what}: {err!r}"
        assert not list(self.world.folder.parent.rglob(MARK)), f"{what}: it ran"
        assert self.outside() == before, f"{what}: {self.outside() ^ before}"
        return code, said, err

    def outside(self) -> set[Path]:
        """What lies anywhere but where predictions go."""
        out = self.world.folder / "out"
        every = self.world.folder.parent.rglob("*")
        return {path for path in every if path != out and not path.is_relative_to(out)}


@contextmanager
def trained(parent: Path, name: str) -> Iterator[Model]:
    """A base model and a fine-tune whose data set says what recordings must be."""
    with opened(parent, name, data=False) as world:
        write_data(world.folder / "data/made", PEOPLE, manifest=True)
        options = {
            "data_path": "data/made",
            "participants": list(PEOPLE),
            "n_base_participants": 1,
            "base_channels": 2,
            "num_blocks": 2,
            "max_epochs": 2,
        }
        base = here(world.folder, "base", options)["base_model_hash"]
        tune = {"base_model_hash": base, "mode": "full_fine_tuning", "prefix": "p", "max_epochs": 2}
        done = here(world.folder, "finetune", tune)
        yield Model(world, base, world.folder / done["folder"])


def write_recording(path: Path, seconds: int = 10) -> None:
    """Two channels at the rate of the model."""
    t = np.arange(seconds * 20) / 20
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time", "c0", "c1"])
        rows.writerows(np.stack([t, np.sin(t), np.cos(3 * t)], axis=1).tolist())


def hostile_recordings(seed: int, parent: Path, trials: int = 30) -> int:
    """Recordings with such names, alone or some in a folder: each has predictions of its own below
    --out, or all are refused.
    """
    rng = random.Random(seed)
    with trained(parent, f"recordings {seed}") as model:
        experiment = str(model.folder.relative_to(model.world.folder))
        for trial in range(trials):
            folder = model.world.folder / f"given {trial}"
            folder.mkdir()
            names = rng.sample(list(dict.fromkeys(NAMES)), rng.choice((1, 1, 2, 4)))
            there = [folder / f"{name}.csv" for name in names if _writable(folder / f"{name}.csv")]
            shown = [path for path in there if not path.name.startswith(".")]
            alone = len(there) == 1 and rng.random() < 0.7
            asked = f"given {trial}" + (f"/{there[0].name}" if alone else "")
            code, said, _ = model.predict(experiment, asked)
            made = list((model.world.folder / "out").glob("*/windows.csv"))
            expected = len(there) if alone else len(shown)
            assert code == 2 or len(made) == expected == len(said.splitlines()), (names, made)
            shutil.rmtree(model.world.folder / "out", ignore_errors=True)
            shutil.rmtree(folder)
    return trials


def _writable(path: Path) -> bool:
    """Whether there can be such a file."""
    try:
        write_recording(path)
    except (OSError, ValueError):
        return False
    return True


def damaged_results(seed: int, parent: Path, trials: int = 60) -> int:
    """A result whose bytes are damaged is refused; one that lies, with right checksums, is refused
    or does what it says; nothing in it runs.
    """
    rng = random.Random(seed)
    with trained(parent, f"results {seed}") as model:
        root, experiment = model.world.folder, str(model.folder.relative_to(model.world.folder))
        write_recording(root / "new.csv")
        kept = {path: path.read_bytes() for path in root.glob("*/**/*") if path.is_file()}
        loads = list(payloads(str(root / MARK)).values())
        with mock.patch("common.use.timeline.timeline_png", return_value=b""):
            for _ in range(trials):
                name, must = _harmed(rng, model, loads)
                code, _, err = model.predict(rng.choice(name), "new.csv")
                assert code == 2 or not must, f"{name}: {must}: {err}"
                shutil.rmtree(root / "out", ignore_errors=True)
                for path, content in kept.items():
                    path.write_bytes(content)
            assert model.predict(experiment, "new.csv")[0] == 0
    return trials


def _harmed(rng: random.Random, model: Model, loads: list[bytes]) -> tuple[tuple[str, ...], str]:
    """Harm a result. Returns names of the model that was harmed, and why it must be refused."""
    root, folder = model.world.folder, model.folder
    place = str(folder.relative_to(root))
    base = root / f"base_models/{model.base}_metadata.json"
    kind = rng.choice(("damaged", "payload", "lie", "lie", "lie", "base lies", "damaged base"))
    if kind == "damaged":
        path = folder / rng.choice((*EXPERIMENT_FILES, "metrics.json"))
        path.write_bytes(harm(path.read_bytes(), rng))
        return (place,), f"{path.name} is damaged"
    if kind == "damaged base":
        path = rng.choice((base, root / f"base_models/{model.base}.pt"))
        path.write_bytes(harm(path.read_bytes(), rng))
        return (model.base, f"base_models/{model.base}.pt"), f"{path.name} is damaged"
    if kind == "payload":
        (folder / "best_model.pt").write_bytes(rng.choice(loads))
        reseal_metrics(folder)
        return (place,), "a pickle as weights"
    path = base if kind == "base lies" else folder / rng.choice(("config.json", "metrics.json"))
    record = json.loads(path.read_bytes())
    where = rng.choice([one for one in leaves(record) if one and one[0] != "own_code"])
    write_sealed(path, put(record, where, rng.choice((*LYING, put))))
    if path.name == "config.json":
        reseal_metrics(folder)
    return ((model.base,) if path is base else (place,)), ""
