"""Trials: every call to the disk failing once, and every state that a crash leaves between two of
them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from common import artifacts
from common.errors import BaseModelNotFound, CorruptArtifact
from common.jobs.job_files import write_jobs
from common.paths import EXPERIMENT_FILES, Paths
from common.training.setup import CheckpointFile
from tests.trust import crashes
from tests.trust.checker import TEMPORARY, base_bytes, broken, contents, experiment_bytes
from tests.trust.disk import Disk
from tests.trust.kills import finetune_values, here
from tests.trust.world import BASE, World

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
HASH = "0123456789abcdef"
TOPS = ("base_models", "experiments", "superseded", "checkpoints", "jobs.json")


@dataclass(frozen=True)
class Publish:
    """One way to publish something: what stands there before, the act, and what may stand there
    afterwards, told by `read`.
    """

    before: Callable[[Path], None]
    act: Callable[[Path], object]
    read: Callable[[Path], object]  # None: absent. Raises where something is there and not whole.
    old: object
    new: object


def _base(folder: Path, number: int) -> None:
    artifacts.publish_base_model(
        Paths(folder),
        HASH,
        f"weights {number} ".encode() * 20,
        {"training_key": f"k{number}", "provenance": {"host": "h"}},
    )


def _experiment(folder: Path, number: int) -> None:
    files = {name: f"{name} {number} ".encode() * 9 for name in EXPERIMENT_FILES} | {
        "config.json": artifacts.to_json({"fold": number})
    }
    artifacts.publish_experiment(
        Paths(folder), "p", "fold0_x", files, {"test_macro_f1": number, "provenance": {}}, log="log"
    )


def read_base(folder: Path) -> bytes | None:
    """Weights of what counts as a published base model, by the product's eyes, which the checker's
    must confirm.
    """
    try:
        weights = artifacts.open_base_model(Paths(folder), HASH).weights
    except BaseModelNotFound:
        assert not (folder / f"base_models/{HASH}_metadata.json").exists(), (
            "the metadata are there, the weights are not"
        )
        return None
    assert not list(base_bytes(folder / "base_models", HASH))
    return weights


def read_experiment(folder: Path) -> object:
    """The score of what counts as a published experiment."""
    place = folder / "experiments/p/fold0_x"
    try:
        score = artifacts.open_experiment(place).metrics["test_macro_f1"]
    except FileNotFoundError:
        return None
    assert not list(experiment_bytes(place))
    return score


def read_checkpoint(folder: Path) -> bytes | None:
    """What a training would resume from."""
    return CheckpointFile(Paths(folder), "key").load()


def read_file(folder: Path) -> bytes | None:
    """A job file."""
    path = folder / "jobs.json"
    return path.read_bytes() if path.exists() else None


def _nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def _again(
    publish: Callable[[Path, int], None], supersede: Callable[[Path], None]
) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        supersede(folder)
        publish(folder, 2)

    return act


@contextmanager
def another_disk() -> Iterator[None]:
    """superseded/ is on another disk than base_models/ and experiments/."""
    rename = os.rename

    def refuse(source: Any, target: Any) -> None:
        if ("/superseded/" in str(source)) != ("/superseded/" in str(target)):
            error = errno.EXDEV
            raise OSError(error, os.strerror(error), str(source), None, str(target))
        rename(source, target)

    with mock.patch.object(os, "rename", refuse):
        yield


def _from_another_disk(publish: Publish, lost: Sequence[bytes]) -> Publish:
    """As `publish`, which supersedes something; each file of it, `lost`, must stay whole."""

    def act(folder: Path) -> None:
        with another_disk():
            publish.act(folder)

    def read(folder: Path) -> object:
        found = publish.read(folder)
        kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        assert all(content in kept for content in lost), "what was superseded is lost"
        return found

    return replace(publish, act=act, read=read)


def _node(publish: Callable[[Path, int], None]) -> Callable[[Path], None]:
    """A node's copy beside the project, as rsync leaves it."""

    def before(folder: Path) -> None:
        _nothing(folder)
        shutil.rmtree(folder.with_name("node"), ignore_errors=True)
        publish(folder.with_name("node"), 1)

    return before


def _checkpoint(folder: Path, data: bytes) -> None:
    CheckpointFile(Paths(folder), "key").save(data)


WEIGHTS_1, WEIGHTS_2 = b"weights 1 " * 20, b"weights 2 " * 20
JOBS_1, JOBS_2 = artifacts.to_json([{"a": 1}]), artifacts.to_json([{"a": 2}])
PUBLISHES: dict[str, Publish] = {
    "a base model": Publish(_nothing, lambda folder: _base(folder, 1), read_base, None, WEIGHTS_1),
    "a base model over half of one": Publish(
        lambda folder: artifacts.write_file(Paths(folder).base_weights(HASH), b"half"),
        lambda folder: _base(folder, 1),
        read_base,
        None,
        WEIGHTS_1,
    ),
    "a base model instead of a stale one": Publish(
        lambda folder: _base(folder, 1),
        _again(_base, lambda folder: artifacts.supersede_base_model(Paths(folder), HASH)),
        read_base,
        WEIGHTS_1,
        WEIGHTS_2,
    ),
    "a base model from a node": Publish(
        _node(_base),
        lambda folder: artifacts.adopt_base_model(
            Paths(folder), artifacts.open_base_model(Paths(folder.with_name("node")), HASH)
        ),
        read_base,
        None,
        WEIGHTS_1,
    ),
    "an experiment": Publish(
        _nothing, lambda folder: _experiment(folder, 1), read_experiment, None, 1
    ),
    "an experiment instead of a stale one": Publish(
        lambda folder: _experiment(folder, 1),
        _again(
            _experiment,
            lambda folder: artifacts.supersede_experiment(
                Paths(folder), folder / "experiments/p/fold0_x"
            ),
        ),
        read_experiment,
        1,
        2,
    ),
    "an experiment from a node": Publish(
        _node(_experiment),
        lambda folder: artifacts.adopt_experiment(
            Paths(folder),
            artifacts.open_experiment(folder.with_name("node") / "experiments/p/fold0_x"),
        ),
        read_experiment,
        None,
        1,
    ),
    "a checkpoint": Publish(
        _nothing,
        lambda folder: _checkpoint(folder, b"one" * 30),
        read_checkpoint,
        None,
        b"one" * 30,
    ),
    "a later checkpoint": Publish(
        lambda folder: _checkpoint(folder, b"one" * 30),
        lambda folder: _checkpoint(folder, b"two" * 30),
        read_checkpoint,
        b"one" * 30,
        b"two" * 30,
    ),
    "a job file": Publish(
        lambda folder: write_jobs(folder / "jobs.json", [{"a": 1}]),
        lambda folder: write_jobs(folder / "jobs.json", [{"a": 2}]),
        read_file,
        JOBS_1,
        JOBS_2,
    ),
}
PUBLISHES["a base model instead of a stale one on another disk"] = _from_another_disk(
    PUBLISHES["a base model instead of a stale one"], [WEIGHTS_1]
)
PUBLISHES["an experiment instead of a stale one on another disk"] = _from_another_disk(
    PUBLISHES["an experiment instead of a stale one"],
    [f"{name} 1 ".encode() * 9 for name in EXPERIMENT_FILES if name != "config.json"],
)


def record(publish: Publish, folder: Path) -> tuple[crashes.Tree, Disk]:
    """The tree before, and the trace of one undisturbed publish."""
    publish.before(folder)
    before = crashes.read_tree(folder)
    with Disk(folder) as disk:
        publish.act(folder)
    assert publish.read(folder) == publish.new
    return before, disk


@contextmanager
def nothing_synced() -> Iterator[None]:
    """Outside a Disk too, for speed: these trials pull no plug."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


@nothing_synced()
def every_crash(name: str, parent: Path, seed: int = 0) -> int:
    """All states that a crash during this publish may leave: what was there, what is new, or
    nothing; and what is new once it has returned.
    """
    publish, folder, count = PUBLISHES[name], parent / "recorded", 0
    before, disk = record(publish, folder)
    for number, tree in crashes.states(before, disk.operations, folder, seed):
        state = parent / f"state {count}"
        state.mkdir()
        crashes.build(tree, state)
        where = (
            f"{name}: crash before call {number} of {len(disk.operations)}:"
            f" {disk.operations[number : number + 1]}, left {sorted(tree)}"
        )
        try:
            found = publish.read(state)
        except (CorruptArtifact, AssertionError) as error:
            raise AssertionError(f"{where}: neither whole nor absent: {error}") from None
        assert found in (publish.old, publish.new) or (found is None and "stale" in name), (
            f"{where}: {found!r}"
        )
        assert number < len(disk.operations) or found == publish.new, (
            f"{where}: it had returned, and is lost"
        )
        shutil.rmtree(state)
        count += 1
    return count


@nothing_synced()
def every_failure(name: str, parent: Path) -> int:
    """Every call of this publish failing once, with each error: an error that names a path, nothing
    half-published, and done when tried again.
    """
    publish, count = PUBLISHES[name], 0
    _, disk = record(publish, parent / "recorded")
    for number, operation in enumerate(disk.operations):
        for error in ERRORS:
            folder = parent / f"failure {count}" / "project"
            folder.parent.mkdir()
            publish.before(folder)
            where = (
                f"{name}: call {number}, {operation.call} {Path(operation.path).name},"
                f" {errno.errorcode[error]}"
            )
            with Disk(folder, number, error):
                must_name_the_path(lambda folder=folder: publish.act(folder), error, folder, where)
            assert publish.read(folder) in (publish.old, publish.new, None), where
            assert not broken(folder), where
            publish.act(folder)
            assert publish.read(folder) == publish.new, where
            assert operation.call == "unlink" or not list(folder.rglob(f"{TEMPORARY}*")), (
                f"{where}: left over"
            )
            shutil.rmtree(folder.parent)
            count += 1
    return count


def must_name_the_path(act: Callable[[], object], error: int, folder: Path, where: str) -> None:
    """Do it; the only error that it may raise is the injected one, with a path of the project."""
    raised: OSError | None = None
    try:
        act()
    except OSError as said:
        raised = said
    if raised is not None:
        assert raised.errno == error, f"{where}: {raised!r}"
        assert str(raised.filename).startswith(str(folder)), (
            f"{where}: {raised!r} names no path of the project"
        )


# -- whole trainings


@contextmanager
def checkpoint_every_epoch() -> Iterator[None]:
    """Trainings of milliseconds write checkpoints too."""
    from common.training import base, finetune

    def often(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: replace(real(*args, **more), checkpoint_seconds=0.0)

    with (
        mock.patch.object(base, "loop_settings", often(base.loop_settings)),
        mock.patch.object(finetune, "loop_settings", often(finetune.loop_settings)),
    ):
        yield


@dataclass(frozen=True)
class Training:
    """A training in a project of its own, ready to be done: its kind, its options, and what it must
    leave.
    """

    kind: str
    values: Mapping[str, Any]
    template: Path
    result: Mapping[str, bytes]

    def copy(self, folder: Path) -> None:
        """The project as it is before the training."""
        shutil.copytree(self.template, folder)

    def run(self, folder: Path) -> None:
        """The training in such a project."""
        here(folder, self.kind, self.values)


def trainings(parent: Path) -> list[Training]:
    """A base training, and a fine-tune on the base model that it leaves."""
    world = World(parent, "template")
    made = []
    values: Mapping[str, Any] = BASE
    for kind in ("base", "finetune"):
        template = parent / f"before {kind}"
        shutil.copytree(world.folder, template)
        done = here(world.folder, kind, values)
        made.append(Training(kind, values, template, contents(world.folder)))
        if kind == "base":
            values = finetune_values(done["base_model_hash"])
    return made


@nothing_synced()
def every_failure_of_a_training(
    training: Training,
    parent: Path,
    errors: tuple[int, ...] = ERRORS,
    every: int = 1,
    first: int = 0,
) -> int:
    """As every_failure, for a whole training with checkpoints; `every` n-th call from `first`
    on.
    """
    count = 0
    with checkpoint_every_epoch():
        counted = parent / "counted"
        training.copy(counted)
        with Disk(counted) as disk:
            training.run(counted)
        for number, operation in list(enumerate(disk.operations))[first::every]:
            for error in errors:
                folder = parent / f"failure {count}"
                training.copy(folder)
                where = (
                    f"{training.kind}: call {number}, {operation.call}"
                    f" {os.path.relpath(operation.path, counted)}, {errno.errorcode[error]}"
                )
                with Disk(folder, number, error):
                    must_name_the_path(
                        lambda folder=folder: training.run(folder), error, folder, where
                    )
                assert not broken(folder), f"{where}: {broken(folder)}"
                training.run(folder)
                assert contents(folder) == training.result, where
                left = [str(path) for path in folder.rglob(f"{TEMPORARY}*")]
                assert not left or operation.call == "unlink", f"{where}: left over: {left}"
                shutil.rmtree(folder)
                count += 1
    return count


@nothing_synced()
def every_crash_of_a_training(
    training: Training, parent: Path, seed: int = 0, every: int = 1, first: int = 0
) -> int:
    """As every_crash, for a whole training with checkpoints: nothing is half-published. Of `every`
    n-th state the training is done again, to the same bytes.
    """
    count = 0
    recorded = parent / "recorded"
    training.copy(recorded)
    before = {
        path: content
        for path, content in crashes.read_tree(recorded).items()
        if path.startswith(TOPS)
    }
    with checkpoint_every_epoch(), Disk(recorded) as disk:
        training.run(recorded)
    operations = [
        operation
        for operation in disk.operations
        if os.path.relpath(operation.path, recorded).startswith(TOPS)
    ]
    for number, tree in crashes.states(before, operations, recorded, seed):
        state = parent / f"state {count}"
        training.copy(state)
        for top in TOPS:
            shutil.rmtree(state / top, ignore_errors=True)
        crashes.build(tree, state)
        assert not broken(state), f"{training.kind}: crash before call {number}: {broken(state)}"
        if count % every == first % every:
            training.run(state)
            assert contents(state) == training.result, (
                f"{training.kind}: crash before call {number}: other bytes when done again"
            )
        shutil.rmtree(state)
        count += 1
    return count
