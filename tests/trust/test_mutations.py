"""The product broken on purpose, and which trial says so: a check that cannot fail is no check."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until
from tests.trust import (
    checker,
    damage,
    disks,
    endurance,
    kills,
    mutants,
    mutate,
    names,
    payloads,
)
from tests.trust.world import opened

Trial = Callable[[Path], object]


@dataclass(frozen=True)
class Break:
    """A piece of the product replaced, and the trial that must fail then."""

    what: str
    module: str
    function: str
    old: str
    new: str
    trial: Trial


def payload_in_base_model(folder: Path) -> object:
    """One place is enough."""
    with opened(folder, "payload") as world:
        return payloads.nothing_runs(damage.published(world), "base model", folder / "mark")


A = "common.artifacts"
WEIGHTS, METADATA = (
    "write_file(paths.base_weights(base_hash), weights)",
    "write_file(paths.base_metadata(base_hash), to_json(record))",
)
BREAKS = (
    Break(
        "a file's content is not synced",
        A,
        "_replace",
        "os.fsync(file.fileno())",
        "pass",
        lambda f: disks.every_crash("a base model", f),
    ),
    Break(
        "a file's name is not synced",
        A,
        "write_files",
        "sync_folder(folder)",
        "pass",
        lambda f: disks.every_crash("an experiment", f),
    ),
    Break(
        "a file is written in place",
        A,
        "_replace",
        "os.fsync(file.fileno())\n        os.replace(temporary, path)",
        "os.fsync(file.fileno())\n        path.write_bytes(content)",
        lambda f: disks.every_crash("a job file", f),
    ),
    Break(
        "a new folder is not synced",
        A,
        "make_folder",
        "sync_folder(folder.parent)",
        "pass",
        lambda f: disks.every_crash("a checkpoint", f),
    ),
    Break(
        "metadata before weights",
        A,
        "publish_base_model",
        f"{WEIGHTS}\n    {METADATA}",
        f"{METADATA}\n    {WEIGHTS}",
        lambda f: disks.every_crash("a base model", f),
    ),
    Break(
        "the stale metadata leave last",
        A,
        "supersede",
        "not path.name.endswith",
        "path.name.endswith",
        lambda f: disks.every_crash("a base model instead of a stale one", f),
    ),
    Break(
        "what was superseded is not synced",
        A,
        "supersede",
        "sync_folder(thing.parent)",
        "pass",
        lambda f: disks.every_crash("a base model instead of a stale one", f),
    ),
    Break(
        "an error names no path",
        A,
        "write_files",
        "error.strerror, str(path))",
        "error.strerror)",
        lambda f: disks.every_failure("a base model", f),
    ),
    Break(
        "half-written files stay",
        A,
        "_replace",
        "os.unlink(temporary)",
        "pass",
        lambda f: disks.every_failure("a base model", f),
    ),
    Break(
        "the weights' SHA-256 is not checked",
        A,
        "open_base_model",
        'sha256(weights) != metadata.get("weights_sha256")',
        "False",
        lambda f: damage.damaged_artifacts(1, f, 100),
    ),
    Break(
        "an experiment's SHA-256 are not checked",
        A,
        "open_experiment",
        "sha256(contents[file_name]) != recorded[file_name]",
        "False",
        lambda f: damage.damaged_artifacts(1, f, 100),
    ),
    Break(
        "a document's checksum is not checked",
        A,
        "read_sealed",
        "and _is_sealed(record, raw)",
        "",
        lambda f: damage.damaged_artifacts(2, f, 200),
    ),
    Break(
        "a checkpoint's checksum is not checked",
        "common.training.setup",
        "CheckpointFile.load",
        'checksum.decode(errors="replace") == sha256(data)',
        "True",
        lambda f: damage.damaged_checkpoints(1, f),
    ),
    Break(
        "the lock is forgotten",
        A,
        "_open_locked",
        "fcntl.flock(file, kind)",
        "pass",
        lambda f: kills.two_trainings(1, f),
    ),
    Break(
        "a stale base is reused",
        "common.jobs.verdicts",
        "judge_base_model",
        'model.metadata.get("training_key") != key',
        "False",
        lambda f: damage.changed_before(1, f),
    ),
    Break(
        "changed data are not noticed at the end",
        "common.jobs.verdicts",
        "check_unchanged",
        "now != before",
        "False",
        lambda f: damage.changed_during(1, f, "base"),
    ),
    Break(
        "a file is known by size and time",
        "common.data.manifest",
        "file_identity",
        ", stat.st_ctime_ns]",
        ", 0]",
        lambda f: damage.changed_before(1, f),
    ),
    Break(
        "dataset.json is not compared",
        "common.jobs.verdicts",
        "Data.sha256",
        "manifest.files.get(file_name, found) != found",
        "False",
        lambda f: damage.damaged_data(1, f),
    ),
    Break(
        "pickles are loaded",
        "common.data.dataset",
        "load_plain",
        "weights_only=True",
        "weights_only=False",
        payload_in_base_model,
    ),
    Break(
        "errors are printed as they are",
        "common.cli",
        "one_line",
        'visible(str(text).strip().replace("\\n", "; "))',
        "str(text)",
        lambda f: names.hostile_flags(1, f, 200),
    ),
)


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.what)
def test_a_broken_product_is_caught(broken: Break, tmp_path: Path) -> None:
    with (
        mutate.broken(broken.module, broken.function, broken.old, broken.new),
        pytest.raises(AssertionError),
    ):
        broken.trial(tmp_path)


def test_heads_without_their_lock_are_caught(tmp_path: Path) -> None:
    tree = mutate.broken_tree(
        tmp_path,
        "common/artifacts.py",
        "fcntl.flock(file, kind)",
        "pass",
    )
    with pytest.raises(AssertionError):
        kills.two_heads(1, tmp_path, code=tree)


def test_workers_that_grow_are_caught(tmp_path: Path) -> None:
    script = endurance.TINY_SCRIPT.replace(
        "    progress(",
        "    import sys; sys.kept = getattr(sys, 'kept', []) + [bytearray(50_000)]\n    progress(",
    )
    with pytest.raises(AssertionError, match=r"worker: .* kB"):
        endurance.tiny_jobs(tmp_path, 1_200, script=script)


def test_printed_secrets_are_caught(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("token: " + "ab" * 16)
    assert endurance.files_with(tmp_path, "ab" * 16) == [str(tmp_path / "log")]


def test_a_secret_on_a_command_line_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a secret in"):
        show("c0ffee" * 4)


def show(secret: str) -> None:
    """A process with the secret in its command line, until the watch has seen it."""
    argv = [sys.executable, "-c", "import sys; sys.stdin.read()", secret]
    with (
        endurance.watched(secret) as watch,
        subprocess.Popen(argv, stdin=subprocess.PIPE) as process,
    ):
        wait_until(lambda: watch.found, 30, "the watch to see it")
        process.kill()


# -- mutants


def test_every_mutant_can_be_made() -> None:
    every = mutants.table()
    assert len(every) >= 100
    assert len({mutant.what for mutant in every}) == len(every)
    assert mutants.stale(every) == []


def test_a_sample_of_the_mutants_is_killed() -> None:
    chosen = mutants.sample(mutants.table())
    verdicts = [f"{mutant.what}: {verdict}" for mutant, verdict in mutants.tried(chosen)]
    assert [one for one in verdicts if not one.endswith(": killed")] == []
    assert len(verdicts) == 10


def test_a_mutant_counts_as_killed_only_by_its_test_with_its_words() -> None:
    mutant = mutants.Mutant("x", "common/cli.py", "import", "", "test.py::one", "4 == 5")
    passed, failed = mutants.Outcome("passed"), mutants.Outcome("failed", "assert 4 == 5")
    for control, found, verdict in (
        (passed, failed, "killed"),
        (passed, passed, "SURVIVED"),
        (passed, mutants.Outcome("failed", "NameError"), "OTHER WORDS"),
        (passed, mutants.Outcome("error", "assert 4 == 5"), "OTHER WORDS"),
        (failed, failed, "NO CONTROL"),
        (mutants.Outcome("skipped"), failed, "NO CONTROL"),
        (None, failed, "NO CONTROL"),
    ):
        assert mutants.judged(mutant, control, {mutant.test: found}).startswith(verdict)
    number = (ROOT / mutant.file).read_text().count(mutant.old)
    assert f"its old text is {number} times in" in mutants.stale([mutant])[0]


# -- the checker

META, METRICS = "base_models/{}_metadata.json", "experiments/p/fold0_ann/metrics.json"


def reseal(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change a document, and make its checksum right again."""
    record = json.loads(path.read_bytes())
    change(record)
    record["provenance"].pop("checksum")
    record["provenance"]["checksum"] = checker.sha256(checker._canonical(record))
    path.write_bytes(checker._canonical(record))


def test_the_checker_sees_whatever_is_wrong(tmp_path: Path) -> None:
    with opened(tmp_path) as world:
        there = damage.published(world)
        folder, meta = world.folder, META.format(there.base)
        planned = checker.Planned({there.base: {}}, {"p/fold0_ann": {}})
        assert checker.Checker(folder).check(planned) == []
        harms: dict[str, Callable[[], object]] = {
            "base_model_hash is": lambda: reseal(
                folder / meta, lambda r: r.update(base_model_hash="0" * 16)
            ),
            "weights_sha256 is": lambda: reseal(
                folder / meta, lambda r: r.update(weights_sha256="0" * 64)
            ),
            "the hash of its configuration": lambda: reseal(
                folder / meta, lambda r: r["config"].update(lr=1.0)
            ),
            "base_participants is": lambda: reseal(
                folder / meta, lambda r: r.update(base_participants=["cem"])
            ),
            "training_key is": lambda: reseal(
                folder / meta, lambda r: r.update(training_key="0" * 16)
            ),
            "its checksum": (
                lambda: (folder / meta).write_bytes(
                    (folder / meta).read_bytes().replace(b'"updates": ', b'"updates": 1')
                )
            ),
            "test_macro_f1 is": lambda: reseal(
                folder / METRICS, lambda r: r.update(test_macro_f1=0.123)
            ),
            "mode in metrics.json": lambda: reseal(
                folder / METRICS, lambda r: r.update(mode="target_only")
            ),
            "files is": lambda: (folder / METRICS).with_name("losses.json").write_text("{}"),
            "data_fingerprints is": lambda: (folder / "data/tiny/bob_val.pt").write_bytes(b"other"),
            "nobody asked": (
                lambda: (folder / "base_models/ffffffffffffffff_metadata.json").write_text("{}")
            ),
            "left over": lambda: (folder / "experiments/p/.writing.x").write_text(""),
            "weights without metadata": lambda: (folder / meta).unlink(),
            "is missing": lambda: (folder / METRICS).unlink(),
            "is not published": lambda: (folder / meta).unlink(),
        }
        for words, harm in harms.items():
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            harm()
            problems = checker.Checker(folder).check(planned)
            assert any(words in problem for problem in problems), (words, problems)
            for path in [
                path for path in folder.rglob("*") if path.is_file() and path not in before
            ]:
                path.unlink()
            for path, content in before.items():
                path.write_bytes(content)
        told = checker.Planned(planned.bases, planned.experiments, frozenset({there.base}))
        assert any("told as failed" in problem for problem in checker.Checker(folder).check(told))


def test_a_result_made_twice_is_caught(tmp_path: Path) -> None:
    with opened(tmp_path) as world:
        there = damage.published(world)
        kept = checker.whole(world.folder)
        assert len(kept) == 2 + 6
        reseal(
            world.folder / META.format(there.base),
            lambda r: r["provenance"].update(finished="later"),
        )
        with pytest.raises(AssertionError, match="made again or lost"):
            kills.not_made_again(world, kept)
