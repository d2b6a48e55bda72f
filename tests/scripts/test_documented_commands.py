"""Every command of the documented workflow, run by bash as it is printed, in a checkout with the
seven documented participants.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.scripts.made import DOCUMENTED_PEOPLE, write_data
from tests.scripts.projects import Project

DOCUMENT = Path(__file__).with_name("documented_commands.md")
BLOCKS = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
# The grid of a run that a test can wait for: two base models (one training), two fine-tunes each.
SMALL = {
    "grid": {
        "n_base_participants": [1],
        "mode": ["full_fine_tuning", "target_only_fine_tuning"],
        "target_data_pct": [0.5],
    },
    "fixed": {
        "participants": list(DOCUMENTED_PEOPLE),
        "data_path": "data/001_60s_window",
        "batch_size": 32,
        "use_augmentation": True,
        "max_epochs": 2,
    },
}
# The configuration of the documented hash; the commands give the rest.
DOCUMENTED_BASE = shlex.split(
    "--fold 0 --n_base_participants 1 --model test --data_path data/001_60s_window --window_size"
    " 3000 --batch_size 32 --lr 0.0003 --early_stopping_patience 50 --use_augmentation --jitter_std"
    " 0.005 --magnitude_range 0.98 1.02 --aug_prob 0.3 --participants"
) + list(DOCUMENTED_PEOPLE)


def block(beginning: str) -> str:
    """The one block that holds the line `beginning`."""
    found = [text for text in BLOCKS if beginning in text]
    assert len(found) == 1, found
    return found[0]


def run_as_printed(project: Project, commands: str) -> str:
    """Run a block in bash, `python3` being the environment's; stop at the first command that
    fails.
    """
    environment = project.environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, (commands, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project folder that is a checkout too, as the document has it."""
    project = Project.create(tmp_path_factory.mktemp("documented"), "ml-customization")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, project.folder)
    shutil.copytree(
        ROOT / "common", project.folder / "common", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "cluster_config.json", project.folder)
    write_data(
        project.folder / "data/001_60s_window",
        DOCUMENTED_PEOPLE,
        samples=3000,
        sizes=(4, 2, 2),
        opposed=True,
    )
    return project


def small_jobs(project: Project) -> None:
    """Job files under the documented names that a test can wait for."""
    project.write("small.json", SMALL)
    project.run("generate_jobs.py", "--grid", "small.json", "--folds", "asfik", "2")


def everything_published(project: Project) -> None:
    """All of the small grid is there and whole, and nothing failed."""
    from common.artifacts import open_base_model, open_experiment
    from common.paths import Paths

    for job in project.jobs("base_training_jobs.json"):
        open_base_model(Paths(project.folder), job["base_model_hash"])
    for job in project.jobs("finetune_jobs.json"):
        open_experiment(
            project.folder
            / "experiments"
            / job["prefix"]
            / f"fold{job['fold']}_{DOCUMENTED_PEOPLE[job['fold']]}"
        )
    assert not project.events("failed")


def test_every_printed_command_is_among_the_tests_below() -> None:
    commands = [re.sub(r"\\\n\s*", "", text) for text in BLOCKS]
    lines = [
        line for text in commands for line in text.splitlines() if line and not line.startswith("#")
    ]
    assert len(BLOCKS) == 9
    assert len(lines) == 15
    assert {line.split()[0] for line in lines} == {"python3", "ls", "rsync"}


def test_the_documented_grid_is_1008_fine_tunes_on_84_bases_and_54_trainings(
    checkout: Project,
) -> None:
    said = run_as_printed(checkout, "python3 generate_jobs.py")
    assert "finetune_jobs.json: 1,008 fine-tunes" in said
    assert "base_training_jobs.json: 84 base models, 12 fine-tunes each" in said
    assert "distinct trainings: 54\n" in said
    assert "base models: 84 new" in said
    bases, finetunes = checkout.jobs("base_training_jobs.json"), checkout.jobs("finetune_jobs.json")
    assert (len(bases), len(finetunes)) == (84, 1008)
    assert {base["num_dependent_jobs"] for base in bases} == {12}
    assert len({base["training_key"] for base in bases}) == 54
    assert {job["base_model_hash"] for job in finetunes} == {
        base["base_model_hash"] for base in bases
    }
    assert "dd8687760fb0bcb2" in {base["base_model_hash"] for base in bases}
    assert len({(job["prefix"], job["fold"]) for job in finetunes}) == 1008
    assert {job["batch_size"] for job in finetunes} == {32, 64}
    assert {job["target_data_pct"] for job in finetunes} == {0.01, 0.05, 0.125, 0.25, 0.5, 1.0}
    assert {job["mode"] for job in finetunes} == {"full_fine_tuning", "target_only_fine_tuning"}
    assert {job["n_base_participants"] for job in finetunes} == {1, 2, 3, 4, 5, 6}
    assert {job["fold"] for job in finetunes} == set(range(7))


def test_without_data_trainings_are_counted_by_configuration_and_it_says_so(tmp_path: Path) -> None:
    said = Project.create(tmp_path).run("generate_jobs.py").stdout
    assert "distinct trainings: 54 (by configuration; the data were not looked at: " in said
    assert "data/001_60s_window" in said


def test_local_testing_runs_as_printed(checkout: Project) -> None:
    train, finetune = block("# Train a single base model").split("# Fine-tune using")
    said = run_as_printed(checkout, train)
    on_gpu = torch.cuda.is_available()
    assert ("no GPU 0 on this machine: running on the CPU" in said) is not on_gpu
    (metadata,) = (checkout.folder / "base_models").glob("*_metadata.json")
    device = json.loads(metadata.read_bytes())["provenance"]["device"]
    assert (device == "cpu") is not on_gpu, device
    missing = subprocess.run(
        checkout.command(
            "train_finetune.py",
            *re.sub(r"\\\n", "", finetune.partition("train_finetune.py")[2]).split(),
        ),
        cwd=checkout.folder,
        env=checkout.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert missing.returncode == 2
    assert (
        missing.stderr.splitlines()[-1]
        == "error: Base model not found: base_models/dd8687760fb0bcb2.pt"
    )
    assert (
        "base_models/dd8687760fb0bcb2.pt" in checkout.run("train_base.py", *DOCUMENTED_BASE).stdout
    )
    run_as_printed(checkout, "# Fine-tune using" + finetune)
    metrics = json.loads(
        (checkout.folder / "experiments/test_finetune/fold0_tonmoy/metrics.json").read_text()
    )
    assert metrics["base_model_hash"] == "dd8687760fb0bcb2"
    assert metrics["target_data_pct"] == 0.1


def test_the_complete_workflow_runs_as_printed(checkout: Project) -> None:
    """The printed generate_jobs.py writes 1,008 jobs; smaller files of the same names stand in for
    what is run.
    """
    small_jobs(checkout)
    run_as_printed(
        checkout,
        block("# 2. Run complete two-phase workflow").partition("python3 generate_jobs.py\n")[2],
    )
    everything_published(checkout)
    assert checkout.trainings() == 1
    assert (
        checkout.run("run_two_phase_distributed.py").stdout.splitlines()[-1]
        == "nothing to do: all 6 results are there"
    )


def test_the_manual_workflow_and_the_troubleshooting_run_as_printed(checkout: Project) -> None:
    for folder in ("base_models", "experiments", "runs"):
        shutil.rmtree(checkout.folder / folder, ignore_errors=True)
    small_jobs(checkout)
    steps = block("# 3. Sync base models to all nodes").partition("python3 generate_jobs.py\n")[2]
    base, rest = steps.split("# 3. Sync")
    sync, finetune = rest.split("# OR manually")
    run_as_printed(checkout, base)
    assert checkout.trainings() == 1
    assert not (checkout.folder / "experiments").exists()
    run_as_printed(checkout, "# OR manually" + finetune)
    everything_published(checkout)
    shutil.rmtree(checkout.folder / "experiments")
    run_as_printed(checkout, "# 3. Sync" + sync)
    everything_published(checkout)
    run_as_printed(checkout, block("ls -lh base_models/"))
    assert checkout.trainings() == 1


@pytest.mark.parametrize("flags", ["--skip-base-training\n", "--skip-sync"])
def test_the_advanced_options_run_as_printed(checkout: Project, flags: str) -> None:
    if not (checkout.folder / "base_models").exists():
        small_jobs(checkout)
        checkout.run(
            "run_distributed_training.py",
            "--jobs-config",
            "base_training_jobs.json",
            "--script-path",
            "train_base.py",
        )
    shutil.rmtree(checkout.folder / "experiments", ignore_errors=True)
    before = checkout.trainings()
    matching = [text for text in BLOCKS if text.rstrip().endswith(flags.strip())]
    assert len(matching) == 1
    run_as_printed(checkout, matching[0])
    everything_published(checkout)
    assert checkout.trainings() == before


def test_custom_job_files_run_as_printed(checkout: Project) -> None:
    small_jobs(checkout)
    for name in ("base", "finetune"):
        source = "base_training_jobs.json" if name == "base" else "finetune_jobs.json"
        shutil.copy(checkout.folder / source, checkout.folder / f"my_{name}_jobs.json")
        (checkout.folder / source).write_text("[")  # not looked at
    shutil.rmtree(checkout.folder / "experiments", ignore_errors=True)
    run_as_printed(checkout, block("my_base_jobs.json"))
    small_jobs(checkout)
    everything_published(checkout)


def test_a_fine_tune_whose_base_is_nowhere_says_so_in_the_documented_words(
    checkout: Project,
) -> None:
    small_jobs(checkout)
    shutil.rmtree(checkout.folder / "base_models", ignore_errors=True)
    shutil.rmtree(checkout.folder / "experiments", ignore_errors=True)
    done = checkout.run("run_two_phase_distributed.py", "--skip-base-training", exit_code=2)
    base = checkout.jobs("finetune_jobs.json")[0]["base_model_hash"]
    assert done.stderr == f"error: Base model not found: base_models/{base}.pt\n"
    assert not (checkout.folder / "experiments").exists()
