"""Bad input: one line on standard error with what, where, why and what to do, exit 2, no traceback,
nothing written.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.conftest import failed_in_one_line
from tests.scripts.made import PEOPLE, write_person
from tests.scripts.projects import QUICK, Project, flags, made

BASE = {**QUICK, "max_epochs": 2}
Spoil = Callable[[Project], object]


@dataclass(frozen=True)
class Case:
    """A script with one thing wrong. `says`: what its line must name. `spoil` acts on the project
    before.
    """

    says: str
    argv: tuple[object, ...]
    spoil: Spoil | None = None
    script: str = "train_base.py"


def base(says: str, spoil: Spoil | None = None, **changes: object) -> Case:
    return Case(says, tuple(flags(BASE | changes)), spoil)


def typed(says: str, *more: str) -> Case:
    """train_base.py with flags that override the good ones."""
    return Case(says, (*flags(BASE), *more))


def finetune(says: str, *more: object, spoil: Spoil | None = None, base_hash: str = "BASE") -> Case:
    return Case(
        says, ("--base_model_hash", base_hash, "--prefix", "p", *more), spoil, "train_finetune.py"
    )


def job_file(says: str, content: str | bytes, *, kind: str = "base") -> Case:
    """run_distributed_training.py on a job file."""

    def write(project: Project) -> None:
        (project.folder / "jobs.json").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )

    script = "train_base.py" if kind == "base" else "train_finetune.py"
    return Case(
        says,
        ("--jobs-config", "jobs.json", "--script-path", script),
        write,
        "run_distributed_training.py",
    )


def job(**changes: object) -> str:
    return json.dumps([BASE | changes])


def file(project: Project, name: str = "bob", split: str = "train") -> Path:
    return project.folder / f"data/made/{name}_{split}.pt"


def spoiled(
    change: Callable[[torch.Tensor, torch.Tensor], object], split: str = "train", name: str = "bob"
) -> Spoil:
    """Change X and y of one file."""

    def act(project: Project) -> None:
        x, y = torch.load(file(project, name, split), weights_only=True)
        torch.save(change(x, y), file(project, name, split))

    return act


def sample(value: float) -> Spoil:
    def change(x: torch.Tensor, y: torch.Tensor) -> object:
        x[3, 1, 7] = value
        return x, y

    return spoiled(change)


def one_class_everywhere(project: Project) -> None:
    for name in PEOPLE:
        spoiled(lambda x, y: (x, y * 0), "test", name)(project)


def three_channels(name: str) -> Spoil:
    return lambda project: write_person(project.folder / "data/made", name, channels=3)


def write_huge(project: Project) -> None:
    os.truncate(project.write("huge.json", []), 20 << 30)


def start(says: str, *argv: object, spoil: Spoil | None = None) -> Case:
    """run_distributed_training.py."""
    return Case(says, argv, spoil, "run_distributed_training.py")


def grid(says: str, content: object) -> Case:
    """generate_jobs.py on a grid file."""
    return Case(
        says,
        ("--grid", "g.json"),
        lambda project: project.write("g.json", content),
        "generate_jobs.py",
    )


class Payload:
    """A pickle that leaves a file behind when somebody executes it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def carry_payload(project: Project) -> None:
    torch.save((torch.zeros(4, 2, 40), Payload()), file(project))


def raw_payload(project: Project) -> None:
    file(project).write_bytes(pickle.dumps(Payload()))


def cut(name: str, *, at: float = 0.5) -> Spoil:
    def act(project: Project) -> None:
        (path,) = project.folder.glob(name)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * at)])

    return act


def flip(name: str) -> Spoil:
    """One bit in the middle of a file."""

    def act(project: Project) -> None:
        (path,) = project.folder.glob(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(bytes(content))

    return act


def replaced_base(project: Project) -> None:
    (path,) = project.folder.glob("base_models/*.pt")
    torch.save({"weight": Payload()}, path)


def with_manifest(then: Spoil) -> Spoil:
    def act(project: Project) -> None:
        from tests.scripts.made import write_manifest

        write_manifest(project.folder / "data/made", PEOPLE)
        then(project)

    return act


def changed_base(*fine_tune_jobs: str) -> Spoil:
    """The data of a base participant are another's now; fine-tunes that start from the published
    base, as job files.
    """

    def act(project: Project) -> None:
        spoiled(lambda x, y: (x * 2, y))(project)
        for name in fine_tune_jobs:
            project.write(name, [{**BASE, "prefix": "p"}])

    return act


STALE = (
    r"^error: base model [0-9a-f]{16} is stale: data changed \(bob_train.pt\): run base training"
    r" again$"
)
TWICE = json.dumps([{**BASE, "prefix": "p"}, {**BASE, "prefix": "p", "seed_finetune": 1}])
CASES: dict[str, Case] = {
    # data
    "missing data folder": base("no such file|data/none", data_path="data/none"),
    "participant without files": base(
        "data/made/eve_train.pt", participants=["ann", "bob", "cyd", "eve"]
    ),
    "wrong window size": base(
        "data/made/bob_train.pt: windows have 40 samples, window_size is 41", window_size=41
    ),
    "wrong channel count": base(
        "cyd_train.pt: windows have 3 channels where 2 are needed", three_channels("cyd")
    ),
    "X and y of different length": base(
        "bob_train.pt: X has 24 windows and y has 23 labels", spoiled(lambda x, y: (x, y[1:]))
    ),
    "a label 2": base(
        "bob_val.pt: labels other than 0 and 1: 2", spoiled(lambda x, y: (x, y * 2), "val")
    ),
    "NaN samples": base(
        "bob_train.pt: NaN or infinite samples, first in window 3", sample(float("nan"))
    ),
    "infinite samples": base(
        "bob_train.pt: NaN or infinite samples, first in window 3", sample(float("-inf"))
    ),
    "an empty split": base(
        "bob_test.pt: the split is empty", spoiled(lambda x, y: (x[:0], y[:0]), "test")
    ),
    "one class, where macro F1 stops": base(
        "one class only", one_class_everywhere, early_stopping_metric="macro_f1"
    ),
    "not a pair of tensors": base(
        "bob_train.pt: holds list, not a tuple", spoiled(lambda x, y: [x, y, y])
    ),
    "a truncated data file": base(
        "bob_train.pt: truncated, damaged", cut("data/made/bob_train.pt")
    ),
    "a text in place of a data file": base("bob_train.pt", lambda p: file(p).write_text("hello")),
    "a data file with a payload": base(
        "bob_train.pt: refused, it holds more than plain tensors; nothing of it was run",
        carry_payload,
    ),
    "a bare pickle": base("bob_train.pt", raw_payload),
    "a bit flip that dataset.json notices": base(
        "bob_train.pt: is not the file that dataset.json describes",
        with_manifest(flip("data/made/bob_train.pt")),
    ),
    "a damaged dataset.json": base(
        "data/made/dataset.json: ", with_manifest(cut("data/made/dataset.json"))
    ),
    "a data folder that is a file": base(
        "data/made",
        lambda p: (shutil.rmtree(p.folder / "data/made"), (p.folder / "data/made").write_text("")),
    ),
    "own code that lacks what is named": base(
        "model: net.py defines no Net",
        lambda project: (project.folder / "net.py").write_text("import torch"),
        model="net.py:Net",
    ),
    # options
    "fold out of range": base("fold: 4 is out of range, there are 4 participants", fold=4),
    "duplicate participants": base(
        "participants: bob given twice", participants=["ann", "bob", "bob", "cyd"]
    ),
    "more base participants than there are": base(
        "n_base_participants: 4 asked for, but without the target there are 3",
        n_base_participants=4,
    ),
    "no base participants": base("n_base_participants", n_base_participants=0),
    "a name with a slash": base(
        r"participants\[1\]: 'x/y' cannot be part of a file name", participants=["ann", "x/y"]
    ),
    "a name with dots": base("'\\.\\.' cannot be part of a file name", participants=["ann", ".."]),
    "a name with a leading dash": typed(
        "prefix: '-x' cannot be part of a file name", "--prefix=-x"
    ),
    "a name with a line break": base(
        r"participants\[1\]: 'b.nd' cannot be part of a file name", participants=["ann", "b\nd"]
    ),
    "a prefix that leaves": typed(
        "prefix: '../x' cannot be part of a file name", "--prefix", "../x"
    ),
    "a data path that leaves": base(
        "data_path: '../made' leaves the project folder", data_path="../made"
    ),
    "an unknown network": base("model.*tset.*test", model="tset"),
    "a mistyped flag": typed(
        "unknown argument --batch_sise, did you mean --batch_size", "--batch_sise", "3"
    ),
    "a number that is none": typed("lr: .*number", "--lr", "fast"),
    "a learning rate of 0": base("lr: ", lr=0),
    "NaN as a learning rate": base("lr: ", lr="nan"),
    "a device that is none": base("device: ", device="cuda"),
    # fine-tunes
    "a fraction of 0": finetune("target_data_pct: .*greater than 0", "--target_data_pct", "0"),
    "a fraction above 1": finetune(
        "target_data_pct: .*less than or equal to 1", "--target_data_pct", "1.5"
    ),
    "a fraction that is NaN": finetune("target_data_pct", "--target_data_pct", "nan"),
    "a prefix with a slash": finetune(
        "prefix: 'a/b' cannot be part of a file name", "--prefix", "a/b"
    ),
    "a base model that is not there": finetune(
        "^error: Base model not found: base_models/0123456789abcdef.pt$",
        base_hash="0123456789abcdef",
    ),
    "a hash that is none": finetune("base_model_hash: ", base_hash="../../etc"),
    "no hash": Case(
        "base_model_hash: mode target_only_fine_tuning starts from a base model",
        ("--prefix", "p"),
        None,
        "train_finetune.py",
    ),
    "target among the base participants": finetune(
        "target bob is among the base participants of [0-9a-f]{16}", "--fold", "1"
    ),
    "contradicting base participants": finetune(
        "n_base_participants: 1 was given, but base model [0-9a-f]{16} has 3",
        "--n_base_participants",
        "1",
    ),
    "contradicting window size": finetune(
        "window_size: 50 was given, but base model [0-9a-f]{16} has 40", "--window_size", "50"
    ),
    "contradicting network": finetune(
        "model: cnn64 was given, but base model [0-9a-f]{16} has test", "--model", "cnn64"
    ),
    "contradicting normalisation": finetune(
        "normalization: train was given, but base model", "--normalization", "train"
    ),
    "truncated base weights": finetune(
        "base_models/[0-9a-f]{16}.pt: its SHA-256 is not that of its metadata",
        spoil=cut("base_models/*.pt"),
    ),
    "a bit flip in base weights": finetune(
        "base_models/[0-9a-f]{16}.pt: its SHA-256 is not that of its metadata",
        spoil=flip("base_models/*.pt"),
    ),
    "base weights with a payload": finetune(
        "base_models/[0-9a-f]{16}.pt: its SHA-256 is not that of its metadata", spoil=replaced_base
    ),
    "a bit flip in base metadata": finetune(
        "_metadata.json: damaged", spoil=flip("base_models/*_metadata.json")
    ),
    "truncated base metadata": finetune(
        "_metadata.json: damaged", spoil=cut("base_models/*_metadata.json")
    ),
    "a stale base model": finetune(STALE, spoil=changed_base()),
    "a run of fine-tunes on a stale base model": Case(
        STALE,
        ("--jobs-config", "jobs.json", "--script-path", "train_finetune.py"),
        changed_base("jobs.json"),
        "run_distributed_training.py",
    ),
    "a run without base training on a stale base model": Case(
        STALE,
        ("--skip-base-training",),
        changed_base("finetune_jobs.json"),
        "run_two_phase_distributed.py",
    ),
    "NaN in the target's data": finetune(
        "ann_train.pt: NaN or infinite",
        spoil=spoiled(lambda x, y: (x * float("nan"), y), name="ann"),
    ),
    "target with other channels": finetune(
        "ann_train.pt: windows have 3 channels where 2 are needed", spoil=three_channels("ann")
    ),
    "an empty target split": finetune(
        "ann_test.pt: the split is empty", spoil=spoiled(lambda x, y: (x[:0], y[:0]), "test", "ann")
    ),
    # job files
    "an unknown option in a job file": job_file(
        "jobs.json: job 0: unknown option 'batch_sise', did you mean batch_size", job(batch_sise=3)
    ),
    "an option of the wrong kind in a job file": job_file(
        "jobs.json: job 0: batch_size: .*'16'", job(batch_size="16")
    ),
    "a job file that is no list": job_file(
        "jobs.json: a job file is a list of jobs, this is an object", "{}"
    ),
    "a job that is no object": job_file("jobs.json: job 0: a job is an object", "[[]]"),
    "a truncated job file": job_file("jobs.json: line 1, column .*cut short", job()[:-40]),
    "an empty job file": job_file("jobs.json: line 1, column 1", ""),
    "a deeply nested job file": job_file("jobs.json: nested too deeply", "[" * 200_000),
    "a job file in another alphabet": job_file("jobs.json: byte 0: not UTF-8", b"\xff\xfe\x00"),
    "a number that no number is": job_file("jobs.json: .*", '[{"fold": 1' + "0" * 5000 + "}]"),
    "a hash that is not the options'": job_file(
        "base_model_hash is '0{16}', but its options have [0-9a-f]{16}: regenerate",
        job(base_model_hash="0" * 16),
    ),
    "a name that leaves in a job file": job_file(
        "prefix: '../p' cannot be part", json.dumps([{**BASE, "prefix": "../p"}]), kind="finetune"
    ),
    "a fraction above 1 in a job file": job_file(
        "job 0: target_data_pct", json.dumps([{**BASE, "target_data_pct": 2}]), kind="finetune"
    ),
    "two jobs for one place": job_file("job 1: writes to the same place", TWICE, kind="finetune"),
    "a missing job file": start(
        "none.json: not found", "--jobs-config", "none.json", "--script-path", "train_base.py"
    ),
    "a huge job file": start(
        "huge.json: larger than",
        "--jobs-config",
        "huge.json",
        "--script-path",
        "train_base.py",
        spoil=write_huge,
    ),
    "a script that is not there": start(
        "none.py: not found", "--jobs-config", "x.json", "--script-path", "none.py"
    ),
    "a script elsewhere": start(
        "must lie in the project folder", "--jobs-config", "x.json", "--script-path", "/bin/true"
    ),
    "no data for the jobs": job_file("data/none", job(data_path="data/none")),
    "a participant without files in a job": job_file(
        "eve_train.pt", job(participants=["ann", "bob", "cyd", "eve"])
    ),
    # grids
    "a grid that is no object": grid("g.json: a grid file is an object", []),
    "an unknown key of a grid": grid("unknown key 'gird', did you mean grid", {"gird": {}}),
    "an unknown option of a grid": grid(
        "unknown option 'target_data_pc', did you mean target_data_pct",
        {"grid": {"target_data_pc": [1]}, "fixed": QUICK},
    ),
    "a grid value that is no list": grid("grid: lr: a list", {"grid": {"lr": 1}}),
    "a fold that nobody is": Case(
        "--folds: 'tonmy' is neither a participant, did you mean tonmoy",
        ("--folds", "tonmy"),
        None,
        "generate_jobs.py",
    ),
    "a run before any job file": Case(
        "base_training_jobs.json: not found", (), None, "run_two_phase_distributed.py"
    ),
    "a negative number of retries": Case(
        "--max-retries", ("--max-retries", "-1"), None, "run_two_phase_distributed.py"
    ),
    "no status yet": Case(
        "no run has been started", ("--status",), None, "run_two_phase_distributed.py"
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Data and one base model: target ann, learnt from the three others."""
    project = made(tmp_path_factory.mktemp("good"))
    project.run("train_base.py", *flags(BASE))
    shutil.rmtree(project.folder / "locks")
    shutil.rmtree(project.folder / "cache", ignore_errors=True)  # files just made are not in it
    return project


@dataclass(frozen=True)
class Refusal:
    done: subprocess.CompletedProcess[str]
    before: dict[str, bytes]
    after: dict[str, bytes]


def attempt(case: Case, project: Project) -> Refusal:
    before = project.tree("huge.json")
    (published,) = (project.folder / "base_models").glob("*.pt")
    argv = [published.stem if word == "BASE" else word for word in case.argv]
    done = project.run(case.script, *argv, exit_code=None)
    assert not [
        path for path in project.folder.iterdir() if path.name in ("cache", "locks", "runs")
    ]
    return Refusal(done, before, project.tree("huge.json"))


@pytest.fixture(scope="module")
def refusals(
    good: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Refusal]]]:
    """Every case in a copy of the good project, two at a time."""
    parent = tmp_path_factory.mktemp("refused")
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(refuse, case, good, parent / str(number))
            for number, (name, case) in enumerate(CASES.items())
        }
        pool.shutdown(cancel_futures=True)


def refuse(case: Case, good: Project, parent: Path) -> Refusal:
    project = Project.create(parent)
    shutil.copytree(good.folder, project.folder, dirs_exist_ok=True)
    if case.spoil:
        case.spoil(project)
    return attempt(case, project)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_line_and_nothing_is_written(
    refusals: dict[str, Future[Refusal]], name: str
) -> None:
    refusal = refusals[name].result()
    line = failed_in_one_line(refusal.done)
    assert re.search(CASES[name].says, line, flags=re.IGNORECASE | re.MULTILINE), line
    assert refusal.done.stdout == ""
    assert refusal.after == refusal.before


# -- the payload, the disk, and what only shows while training


def test_a_payload_would_have_run_if_anybody_had_unpickled_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two cases above prove nothing otherwise."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "executed").is_dir()


@pytest.fixture
def project(good: Project, tmp_path: Path) -> Project:
    """A copy of the good project to do anything with."""
    copy = Project.create(tmp_path)
    shutil.copytree(good.folder, copy.folder, dirs_exist_ok=True)
    return copy


def hash_of(project: Project) -> str:
    (path,) = (project.folder / "base_models").glob("*.pt")
    return path.stem


def test_a_loss_that_is_no_number_fails_the_training_at_its_epoch_and_leaves_nothing(
    project: Project,
) -> None:
    before = project.tree()
    done = project.run("train_base.py", *flags(BASE | {"lr": 1e30}), exit_code=1)
    assert re.fullmatch(
        r"error: the (training|validation) loss became (nan|inf) in epoch [12]; .*\n", done.stderr
    )
    done = project.run(
        "train_finetune.py",
        "--base_model_hash",
        hash_of(project),
        "--prefix",
        "p",
        "--lr",
        "1e30",
        exit_code=1,
    )
    assert re.fullmatch(
        r"error: the (training|validation) loss became (nan|inf) in epoch \d+; .*\n", done.stderr
    )
    assert project.tree("cache", "locks") == before


def test_in_a_run_such_a_job_fails_by_name_and_the_others_are_done(project: Project) -> None:
    project.write(
        "jobs.json",
        [{**BASE, "lr": 1e30}, {**BASE, "n_base_participants": 1}, {**BASE, "window_size": 41}],
    )
    done = project.run(
        "run_distributed_training.py",
        "--jobs-config",
        "jobs.json",
        "--script-path",
        "train_base.py",
        exit_code=1,
    )
    failures = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2, done.stdout
    assert any(re.search(r"loss became (nan|inf) in epoch \d", line) for line in failures)
    assert any("windows have 40 samples, window_size is 41" in line for line in failures)
    for line in failures:
        log = re.search(r"\(log: (.*)\)$", line)
        assert log is not None
        assert (project.folder / log[1]).is_file()
    assert done.stdout.splitlines()[-1] == "1 done, 2 failed, 0 blocked, 0 left, 0 reused"
    assert len(list((project.folder / "base_models").glob("*.pt"))) == 2
    assert not list(project.folder.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("split", "scores"),
    [
        ("val", ("val_macro_f1", "val_roc_auc", "test_macro_f1_tuned")),
        ("test", ("test_macro_f1", "test_roc_auc")),
        ("train", ()),
    ],
)
def test_a_target_with_one_class_is_fine_tuned_and_undefined_scores_are_null_with_the_reason(
    project: Project, split: str, scores: tuple[str, ...]
) -> None:
    spoiled(lambda x, y: (x, y * 0), split, "ann")(project)
    project.run(
        "train_finetune.py",
        "--base_model_hash",
        hash_of(project),
        "--prefix",
        "p",
        "--max_epochs",
        "1",
    )
    metrics = json.loads((project.folder / "experiments/p/fold0_ann/metrics.json").read_text())
    for name in scores:
        assert metrics[name] is None
        assert metrics["undefined"][name]
    others = {
        name
        for name in metrics["undefined"]
        if not name.replace("base_", "").startswith(split) and not name.endswith("tuned")
    }
    assert not others
    assert metrics["val_loss"] is not None
    assert metrics["test_loss"] is not None


def test_another_configurations_results_are_refused_and_overwritten_only_when_asked(
    project: Project,
) -> None:
    argv = (
        "train_finetune.py",
        "--base_model_hash",
        hash_of(project),
        "--prefix",
        "p",
        "--max_epochs",
        "1",
    )
    project.run(*argv)
    before = project.tree("cache", "locks")
    done = project.run(*argv, "--lr", "0.02", exit_code=2)
    assert (
        "experiments/p/fold0_ann holds results of another configuration (lr 0.0003 there, 0.02"
        " here): give another --prefix, or --overwrite" in done.stderr
    )
    assert "already published: nothing to train" in project.run(*argv).stdout
    assert project.tree("cache", "locks") == before
    project.run(*argv, "--lr", "0.02", "--overwrite")
    assert (
        json.loads((project.folder / "experiments/p/fold0_ann/config.json").read_text())["options"][
            "lr"
        ]
        == 0.02
    )
    kept = project.folder / "superseded/experiments/p/fold0_ann.0/config.json"
    assert kept.read_bytes() == before["experiments/p/fold0_ann/config.json"]


def test_a_run_refuses_them_before_anything_starts(project: Project) -> None:
    job = {**BASE, "prefix": "p", "base_model_hash": hash_of(project)}
    project.run("train_finetune.py", *flags(job))
    project.write("jobs.json", [job | {"lr": 0.02, "base_model_hash": None, "mode": "target_only"}])
    before = project.tree("cache", "locks")
    done = project.run(
        "run_distributed_training.py",
        "--jobs-config",
        "jobs.json",
        "--script-path",
        "train_finetune.py",
        exit_code=2,
    )
    assert "holds results of another configuration" in failed_in_one_line(done)
    assert project.tree("cache", "locks") == before


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Another file system in the place of `folder`."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(
        ["mount", *options, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_is_told_in_one_line_and_nothing_half_written_counts(project: Project) -> None:
    base_hash = hash_of(project)
    (project.folder / "experiments").mkdir()
    argv = (
        "train_finetune.py",
        "--base_model_hash",
        base_hash,
        "--prefix",
        "p",
        "--max_epochs",
        "1",
    )
    with mounted(project.folder / "experiments", "-t", "tmpfs", "-o", "size=24k", "tmpfs"):
        line = failed_in_one_line(project.run(*argv, exit_code=2))
        assert "experiments/p/fold0_ann/" in line
        assert "No space left on device" in line
        left = [path.name for path in (project.folder / "experiments").rglob("*") if path.is_file()]
        assert "metrics.json" not in left
        assert not [name for name in left if name.startswith(".writing.")]
    project.run(*argv)
    assert (project.folder / "experiments/p/fold0_ann/metrics.json").is_file()


@pytest.mark.root
@pytest.mark.parametrize(
    "script", ["train_base.py", "generate_jobs.py", "run_two_phase_distributed.py"]
)
def test_no_permission_is_told_in_one_line(project: Project, script: str) -> None:
    project.generate({"n_base_participants": [1]})
    argv = {
        "train_base.py": flags(BASE | {"n_base_participants": 1}),
        "generate_jobs.py": ["--grid", "grid.json"],
    }.get(script, [])
    shutil.rmtree(project.folder / "cache", ignore_errors=True)
    with mounted(project.folder, "--bind", "-o", "ro", str(project.folder)):
        line = failed_in_one_line(project.run(script, *argv, exit_code=2))
    assert "Read-only file system" in line
    assert re.search(r"(locks|base_training_jobs)", line), line


def test_data_that_nobody_vouches_for_are_used_with_one_line_of_warning(project: Project) -> None:
    """Not before all is well: a refusal stays one line."""
    project.write("g.json", {"grid": {}, "fixed": BASE})
    commands = (
        ("generate_jobs.py", "--grid", "g.json"),
        ("train_base.py", *flags(BASE)),
        (
            "train_finetune.py",
            "--base_model_hash",
            hash_of(project),
            "--prefix",
            "p",
            "--max_epochs",
            "1",
        ),
    )
    warning = (
        "warning: data/made has no dataset.json: leakage between its splits cannot be excluded"
        " (prepare_data.py excludes it)\n"
    )
    assert [project.run(*command).stderr for command in commands] == [warning] * 3
    with_manifest(lambda project: None)(project)
    assert [project.run(*command).stderr for command in commands] == [""] * 3
    shutil.rmtree(project.folder / "data")
    assert project.run(*commands[0]).stderr == ""


def test_a_grid_whose_name_job_files_cannot_record_is_refused(project: Project) -> None:
    name = os.fsdecode(b"g\xe9.json")
    project.write(name, {"grid": {}, "fixed": BASE})
    done = project.run("generate_jobs.py", "--grid", name, exit_code=2)
    assert r"argument --grid: 'g\udce9.json' is not UTF-8 text" in failed_in_one_line(done)
    assert not (project.folder / "finetune_jobs.json").exists()
