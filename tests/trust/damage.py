"""Trials: bits flipped, files cut short, pages zeroed, in everything that is published or loaded;
and data changed behind the product's back.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from common import artifacts
from common.data.manifest import Sha256Cache, file_sha256
from common.errors import CorruptArtifact, InputError, TrainingError
from common.options import Options
from common.paths import EXPERIMENT_FILES, Paths
from common.training import base as base_training
from common.training import finetune
from common.training.setup import CheckpointFile, prepare_process
from tests.trust.checker import broken, contents
from tests.trust.disks import checkpoint_every_epoch
from tests.trust.kills import finetune_values, here
from tests.trust.world import BASE, PEOPLE, World, call, opened, write_split

PAGES = (512, 4096)


def harm(content: bytes, rng: random.Random) -> bytes:
    """Other bytes: bits flipped, cut short, pages zeroed, a piece doubled or something behind the
    end.
    """
    data = bytearray(content)
    while bytes(data) == content:
        kind = rng.choice(("flip", "flip", "cut", "zero", "double", "append"))
        place = rng.randrange(len(data)) if data else 0
        if kind == "flip":
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "zero":
            page = rng.choice(PAGES)
            start = place // page * page
            data[start : start + page] = bytes(len(data[start : start + page]))
        elif kind == "double":
            data[place:place] = data[place : place + rng.randint(1, 64)]
        else:
            data += rng.randbytes(rng.randint(1, 16))
    return bytes(data)


@contextmanager
def nothing_loaded() -> Iterator[None]:
    """torch.load is not called in this block: the bytes are refused before."""
    with mock.patch.object(
        torch, "load", side_effect=AssertionError("loaded before it was checked")
    ):
        yield


def refusal(act: Callable[[], object], kind: type[Exception]) -> str:
    """What is said when `act` is refused with an error of this kind; empty when it is not
    refused.
    """
    try:
        act()
    except kind as error:
        return str(error) or kind.__name__
    return ""


@dataclass
class Published:
    """A project with one of everything, and how to do each again."""

    world: World
    base: str
    whole: dict[str, bytes]

    @property
    def paths(self) -> Paths:
        """Its names."""
        return Paths(self.world.folder)

    @property
    def tune(self) -> dict[str, Any]:
        """The fine-tune's options."""
        return finetune_values(self.base)

    def again(self) -> list[dict[str, Any]]:
        """What the next run does."""
        return [
            here(self.world.folder, "base", BASE),
            here(self.world.folder, "finetune", self.tune),
        ]

    def targets(self) -> dict[str, Callable[[], object]]:
        """Published files, and how the product opens each."""
        place = self.world.folder / "experiments/p/fold0_ann"
        openers: dict[str, Callable[[], object]] = {
            name: lambda: artifacts.open_base_model(self.paths, self.base)
            for name in (f"base_models/{self.base}.pt", f"base_models/{self.base}_metadata.json")
        }
        return openers | {
            f"experiments/p/fold0_ann/{name}": lambda: artifacts.open_experiment(place)
            for name in (*EXPERIMENT_FILES, "metrics.json")
        }


def published(world: World) -> Published:
    """A base model and an experiment."""
    base = here(world.folder, "base", BASE)["base_model_hash"]
    here(world.folder, "finetune", finetune_values(base))
    return Published(world, base, contents(world.folder))


def damaged_artifacts(seed: int, parent: Path, trials: int = 400, repair_every: int = 40) -> int:
    """Each refused before it is loaded; now and then the next run makes it anew, to the same bytes,
    and the damaged one is kept aside.
    """
    rng = random.Random(seed)
    with opened(parent, f"damaged {seed}") as world:
        there = published(world)
        for trial in range(trials):
            name, opener = rng.choice(list(there.targets().items()))
            path = world.folder / name
            good = path.read_bytes()
            path.write_bytes(harm(good, rng))
            assert broken(world.folder), f"{name}: the checker sees no harm"
            with nothing_loaded():
                assert str(path.parent) in refusal(opener, CorruptArtifact), name
            if trial % repair_every == 0:
                there.again()
                assert contents(world.folder) == there.whole, f"{name}: not made anew"
                assert list((world.folder / "superseded").rglob("*.0")), (
                    "the damaged one was not kept"
                )
            else:
                path.write_bytes(good)
    return trials


def repaired_from_a_copy(seed: int, parent: Path, trials: int = 5) -> int:
    """A damaged base model of which an equal training is published is copied from there, not
    trained.
    """
    rng = random.Random(seed)
    with opened(parent, f"copies {seed}") as world:
        # Folds 1 and 2 learn from ann, with one base participant: one training under two hashes.
        values = [{**BASE, "fold": fold} for fold in (1, 2)]
        hashes = [here(world.folder, "base", value)["base_model_hash"] for value in values]
        whole = contents(world.folder)
        for _ in range(trials):
            number = rng.randrange(2)
            path = world.folder / rng.choice(
                (f"base_models/{hashes[number]}.pt", f"base_models/{hashes[number]}_metadata.json")
            )
            path.write_bytes(harm(path.read_bytes(), rng))
            done = here(world.folder, "base", values[number])
            assert hashes[1 - number] in str(done.get("reused")), done
            assert contents(world.folder) == whole
    return trials


def damaged_checkpoints(seed: int, parent: Path, trials: int = 50) -> int:
    """A damaged checkpoint is left aside, and never loaded."""
    rng = random.Random(seed)
    paths = Paths(parent / f"checkpoints {seed}")
    good = rng.randbytes(3000)
    CheckpointFile(paths, "key").save(good)
    (path,) = (paths.root / "checkpoints").glob("*.ckpt")
    raw = path.read_bytes()
    for _ in range(trials):
        path.write_bytes(harm(raw, rng))
        with nothing_loaded():
            assert CheckpointFile(paths, "key").load() is None
    path.write_bytes(raw)
    assert CheckpointFile(paths, "key").load() == good
    return trials


def damaged_cache(seed: int, parent: Path, trials: int = 50) -> int:
    """A damaged cache of SHA-256 is only slower, never wrong."""
    rng = random.Random(seed)
    folder = parent / f"cache {seed}"
    folder.mkdir()
    files = [folder / f"{number}.pt" for number in range(3)]
    for file in files:
        file.write_bytes(rng.randbytes(100))
        os.utime(file, (1e9, 1e9))
    right = [file_sha256(file) for file in files]
    cache = folder / "sha256.json"
    # else files as young as these are not kept
    with mock.patch("common.data.manifest.SETTLED_SECONDS", -1e9):
        assert [Sha256Cache(cache).sha256(file) for file in files] == right
        good = cache.read_bytes()
        assert all(digest in good.decode() for digest in right)
        for _ in range(trials):
            cache.write_bytes(harm(good, rng))
            assert [Sha256Cache(cache).sha256(file) for file in files] == right
    return trials


def damaged_data(seed: int, parent: Path, trials: int = 10) -> int:
    """Data that dataset.json describes and that are damaged are refused by name before anything is
    loaded, and nothing is published from them.
    """
    rng = random.Random(seed)
    with opened(parent, f"damaged data {seed}") as world:
        folder = world.folder / "data/tiny"
        write_manifest(folder)
        read = [f"bob_{split}.pt" for split in ("train", "val", "test")]
        for _ in range(trials):
            path = folder / rng.choice(read)
            good = path.read_bytes()
            path.write_bytes(harm(good, rng))
            with nothing_loaded():
                assert path.name in refusal(lambda: here(world.folder, "base", BASE), InputError)
            path.write_bytes(good)
        assert not contents(world.folder)
        here(world.folder, "base", BASE)
    return trials


def write_manifest(folder: Path) -> None:
    """dataset.json for the tiny data."""
    files = {path.name: file_sha256(path) for path in sorted(folder.glob("*.pt"))}
    counts = {
        name: {split: {"windows": 12, "positives": 6} for split in ("train", "val", "test")}
        for name in PEOPLE
    }
    manifest = {
        "sampling_rate_hz": 8,
        "channels": ["a", "b"],
        "units": ["g", "g"],
        "window_seconds": 2,
        "stride_seconds": 2,
        "window_size": 16,
        "labelling": {},
        "split": {},
        "source": {},
        "participants": counts,
        "files": files,
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))


# -- data changed


def change(path: Path, seed: int) -> bytes:
    """Other windows under the same path, inode, size and times (as far as a program can set them).
    Returns the bytes before.
    """
    before, status = path.read_bytes(), path.stat()
    other = path.parent.parent / "other" / path.name
    write_split(other, 1000 + seed)
    assert len(other.read_bytes()) == len(before)
    _overwrite(path, other.read_bytes())
    other.unlink()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )
    return before


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def restore(path: Path, content: bytes) -> None:
    """The bytes as they were, under the same size and time."""
    status = path.stat()
    _overwrite(path, content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def changed_before(seed: int, parent: Path) -> int:
    """Data changed after the results: both are stale by name, and made anew as a project makes them
    that never saw the old data.
    """
    rng = random.Random(seed)
    # Else files as young as these would be read again in any case.
    settled = mock.patch("common.data.manifest.SETTLED_SECONDS", -1e9)
    with (
        settled,
        opened(parent, f"changed {seed}") as world,
        opened(parent, f"fresh {seed}") as fresh,
    ):
        there = published(world)
        name = rng.choice(("bob_train.pt", "bob_val.pt", "bob_test.pt"))
        change(world.folder / "data/tiny" / name, seed)
        shutil.copytree(world.folder / "data", fresh.folder / "data", dirs_exist_ok=True)
        planned = world.jobs(GRID_OF_ONE)
        code, said, _ = call(world.folder, "run_two_phase_distributed.py", "--dry-run")
        assert code == 0, said
        assert f"base model {there.base} is stale: data changed ({name})" in said, said
        assert set(planned.bases) == {there.base}
        here(world.folder, "base", BASE)
        here(fresh.folder, "base", BASE)
        here(world.folder, "finetune", there.tune)
        here(fresh.folder, "finetune", there.tune)
        assert contents(world.folder) == contents(fresh.folder)
        kept = sorted(path.name for path in (world.folder / "superseded").rglob("*.0"))
        assert f"{there.base}.pt.0" in kept, kept
        assert "fold0_ann.0" in kept, kept
    return 1


GRID_OF_ONE: dict[str, list[Any]] = {
    "fold": [0],
    "mode": ["full_fine_tuning"],
    "target_data_pct": [1.0],
}


def changed_during(seed: int, parent: Path, kind: str) -> int:
    """Data changed while a training reads them: an error by name and nothing published; put back,
    the next run is as if nothing had been.
    """
    rng = random.Random(seed)
    with (
        opened(parent, f"changed during {kind} {seed}") as world,
        opened(parent, f"undisturbed {kind} {seed}") as other,
    ):
        base = here(world.folder, "base", BASE)["base_model_hash"]
        here(other.folder, "base", BASE)
        values = (
            {**BASE, "seed": 1} if kind == "base" else finetune_values(base, seed_finetune=seed)
        )
        files = [
            f"{name}_{split}.pt"
            for name in (["bob"] if kind == "base" else ["ann", "bob"])
            for split in ("train", "val", "test")
        ]
        files = [name for name in files if kind == "base" or name != "bob_test.pt"]
        path = world.folder / "data/tiny" / rng.choice(files)
        epoch, before, kept = rng.randint(0, 3), b"", contents(world.folder)

        def begin(options: Options) -> torch.device:
            progress({"epoch": 0})
            return prepare_process(options)

        def progress(state: dict[str, Any]) -> None:
            nonlocal before
            if state["epoch"] == epoch:
                before = change(path, seed)

        with cold_worker():
            module = base_training if kind == "base" else finetune
            with (
                checkpoint_every_epoch() if rng.random() < 0.5 else nullcontext(),
                mock.patch.object(module, "prepare_process", begin),
            ):
                said = refusal(lambda: _run(world.folder, kind, values, progress), TrainingError)
            assert "data changed while it was trained" in said, (
                f"{path.name} changed in epoch {epoch}: {said}"
            )
            assert contents(world.folder) == kept
            restore(path, before)
            here(world.folder, kind, values)
        with cold_worker():
            here(other.folder, kind, values)
        assert contents(world.folder) == contents(other.folder)
    return 1


@contextmanager
def cold_worker() -> Iterator[None]:
    """A worker that has kept nothing of earlier jobs."""
    with (
        mock.patch.object(finetune, "_untouched", type(finetune._untouched)(32)),
        mock.patch.object(finetune, "_bases", type(finetune._bases)(4)),
    ):
        yield


def _run(
    folder: Path, kind: str, values: dict[str, Any], progress: Callable[[dict[str, Any]], None]
) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        (base_training if kind == "base" else finetune).run(values, progress)
    finally:
        os.chdir(before)
