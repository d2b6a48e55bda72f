"""Nothing is trained twice, and nothing stale is reused: which jobs run again is counted from the
event log. One project, changed step by step.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from common import artifacts
from common.paths import Paths
from tests.scripts.made import PEOPLE, write_person
from tests.scripts.projects import QUICK, Project, made, wait_until

AXES = {"mode": ["target_only_fine_tuning"], "target_data_pct": [0.5], "n_base_participants": [1]}
FIXED = QUICK | {"max_epochs": 2}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Four people, one base participant each: bob, cyd and dan all start from ann's base, ann from
    bob's.
    """
    project = made(tmp_path_factory.mktemp("reuse"))
    project.generate(AXES, FIXED)
    return project


def newly_run(project: Project, *argv: object) -> tuple[Counter[str], str]:
    """How often each job was started by one more run, and what the run said."""
    before = project.ran()
    said = project.run("run_two_phase_distributed.py", *argv).stdout
    return project.ran() - before, said


def bases(ran: Counter[str]) -> int:
    return sum(number for job, number in ran.items() if "/" not in job)


def targets(ran: Counter[str]) -> list[str]:
    return sorted(job.rpartition("_")[2] for job in ran.elements() if "/" in job)


def test_two_hashes_with_one_training_key_are_trained_once(project: Project) -> None:
    jobs = project.jobs("base_training_jobs.json")
    assert len({job["base_model_hash"] for job in jobs}) == 4
    assert len({job["training_key"] for job in jobs}) == 2
    ran, said = newly_run(project)
    assert (bases(ran), targets(ran)) == (2, ["ann", "bob", "cyd", "dan"])
    assert set(ran.values()) == {1}
    assert "4 new; 2 trainings to run" in said
    models = [
        artifacts.open_base_model(Paths(project.folder), job["base_model_hash"]) for job in jobs
    ]
    equal = [model for model in models if model.metadata["base_participants"] == ["ann"]]
    assert len({model.weights for model in equal}) == 1
    assert {model.metadata["provenance"]["trained_as"] for model in equal} == {
        jobs[1]["base_model_hash"]
    }
    assert [model.metadata["target_participant"] for model in models] == list(PEOPLE)


def test_the_same_again_does_nothing_and_says_so(project: Project) -> None:
    ran, said = newly_run(project)
    assert not ran
    assert "nothing to do: all 8 results are there" in said
    listed = project.run("generate_jobs.py", "--grid", "grid.json").stdout
    assert "base models: 4 done" in listed
    assert "fine-tunes:  4 done" in listed


def test_another_grid_value_runs_only_its_own_cells(project: Project) -> None:
    said = project.generate(AXES | {"target_data_pct": [0.5, 1.0]}, FIXED)
    assert "fine-tunes:  4 done, 4 new" in said
    ran, _ = newly_run(project)
    assert (bases(ran), targets(ran)) == (0, ["ann", "bob", "cyd", "dan"])
    assert all("pct1_" in job for job in ran)


def test_one_more_participant_runs_only_that_person(project: Project) -> None:
    """Every hash is another one, as the list of participants is part of it; no training and no
    other person's result is.
    """
    write_person(project.folder / "data/made", "eve")
    said = project.generate(
        AXES | {"target_data_pct": [0.5, 1.0]}, FIXED | {"participants": [*PEOPLE, "eve"]}
    )
    assert "base models: 5 new (5 of them only copied from an equal training)" in said
    ran, said = newly_run(project)
    assert (bases(ran), targets(ran)) == (0, ["eve", "eve"])
    assert len(artifacts.published_base_hashes(Paths(project.folder))) == 9
    assert "nothing to do" in newly_run(project)[1]


def test_changed_data_run_again_exactly_what_read_them(project: Project) -> None:
    """cyd's windows are read by nobody's base model; bob's by ann's."""
    write_person(project.folder / "data/made", "cyd", seed=1)
    listed = project.run("generate_jobs.py", "--grid", "grid.json").stdout
    assert "fine-tunes:  8 done, 2 stale" in listed
    assert "data changed (cyd_test.pt, cyd_train.pt, cyd_val.pt)" in listed
    ran, said = newly_run(project)
    assert (bases(ran), targets(ran)) == (0, ["cyd", "cyd"])
    changed = "data changed (cyd_test.pt, cyd_train.pt, cyd_val.pt)"
    assert f"2 experiments are stale: {changed}: " in said
    assert len(list((project.folder / "superseded/experiments").glob("*/*"))) == 2

    write_person(project.folder / "data/made", "bob", seed=1)
    ran, said = newly_run(project)
    assert (bases(ran), targets(ran)) == (1, ["ann", "ann", "bob", "bob"])
    assert "is stale: data changed (bob_" in said
    assert "nothing to do" in newly_run(project)[1]


def test_data_written_again_with_the_same_content_run_nothing(project: Project) -> None:
    for name in ("ann", "dan"):
        write_person(project.folder / "data/made", name)
    assert "nothing to do" in newly_run(project)[1]


def test_what_is_damaged_or_half_written_is_made_anew_with_the_same_bytes(project: Project) -> None:
    before = project.published()
    jobs = project.jobs("base_training_jobs.json")
    # no other hash of today's list shares ann's base
    trained = next(job["base_model_hash"] for job in jobs if job["fold"] == 0)
    weights = project.folder / f"base_models/{trained}.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    half = (
        project.folder
        / "experiments"
        / project.jobs("finetune_jobs.json")[3]["prefix"]
        / "fold1_bob"
    )
    (half / "metrics.json").unlink()
    ran, said = newly_run(project)
    assert bases(ran) == 1
    assert targets(ran) == ["bob"]  # ann's fine-tunes: their base came back with the same bytes
    assert "its SHA-256 is not that of its metadata" in said
    after = project.published()
    assert [name for name in before if before[name] != after.get(name)] == []


def test_a_damaged_copy_is_copied_again_not_trained(project: Project) -> None:
    shared = [
        job["base_model_hash"]
        for job in project.jobs("base_training_jobs.json")
        if job["fold"] != 0
    ]
    for base_hash in shared[:2]:
        (project.folder / f"base_models/{base_hash}.pt").write_bytes(b"cut")
    ran, _ = newly_run(project)
    assert not ran
    for base_hash in shared:
        artifacts.open_base_model(Paths(project.folder), base_hash)


def test_what_a_killed_head_was_writing_leaves_with_the_next_unless_somebody_writes_there(
    project: Project,
) -> None:
    paths = Paths(project.folder)
    base_hash = project.jobs("base_training_jobs.json")[0]["base_model_hash"]
    half = paths.base_models / f".writing.{base_hash}.pt.x"
    tuned = next(paths.experiments.glob("*/fold*")) / ".writing.config.json.x"
    for path in (half, tuned):
        path.write_text("half")
    with artifacts.lock(
        paths.training_lock(artifacts.read_base_metadata(paths, base_hash)["training_key"]),
        wait=True,
        owner="by hand",
    ):
        assert not newly_run(project)[0]
    assert half.exists()
    assert not tuned.exists()
    newly_run(project)
    assert not half.exists()


def test_results_of_other_code_are_reused_with_a_word_and_made_anew_with_retrain(
    project: Project,
) -> None:
    paths = Paths(project.folder)
    before = project.published()
    # The first is the only one of its training; others of today's code share that of the second.
    base_hash, shared = (
        job["base_model_hash"]
        for job in project.jobs("base_training_jobs.json")
        if job["fold"] in (0, 2)
    )
    for published in (base_hash, shared):
        model = artifacts.open_base_model(paths, published)
        code = {**model.metadata["code_fingerprints"], "training/networks.py": "0" * 64}
        artifacts.publish_base_model(
            paths, published, model.weights, {**model.metadata, "code_fingerprints": code}
        )
    # One whose base is made anew, with the same weights as before, and one whose base is not.
    for fold, name in ((0, "fold0_ann"), (2, "fold2_cyd")):
        job = next(job for job in project.jobs("finetune_jobs.json") if job["fold"] == fold)
        folder = paths.experiment(job["prefix"], name)
        found = artifacts.open_experiment(folder)
        files = {file: (folder / file).read_bytes() for file in found.metrics["files"]}
        files["config.json"] = artifacts.to_json(
            {
                **found.config,
                "code_fingerprints": {
                    **found.config["code_fingerprints"],
                    "training/loop.py": "0" * 64,
                },
            }
        )
        artifacts.publish_experiment(paths, job["prefix"], name, files, found.metrics)

    ran, said = newly_run(project)
    assert not ran
    assert (
        "4 results made by other versions of training/loop.py, training/networks.py are reused;"
        " --retrain makes them again" in said
    )
    dry = project.run("run_two_phase_distributed.py", "--retrain", "--dry-run").stdout
    assert f"would train {base_hash}" in dry
    assert "2 stale; 1 training to run, 1 copied from equal trainings" in dry
    ran, said = newly_run(project, "--retrain")
    assert (bases(ran), targets(ran)) == (1, ["ann", "cyd"])
    assert [name for name, value in project.published().items() if before[name] != value] == []
    assert "nothing to do" in newly_run(project, "--retrain")[1]


def test_by_hand_the_same_rules_hold(project: Project) -> None:
    from tests.scripts.projects import flags

    again = project.run(
        "train_base.py",
        *flags(FIXED | {"n_base_participants": 1, "fold": 1, "participants": [*PEOPLE, "eve"]}),
    ).stdout
    assert "(already published: nothing to train)" in again
    copied = project.run(
        "train_base.py",
        *flags(
            FIXED | {"n_base_participants": 1, "fold": 1, "participants": ["ann", "eve", "bob"]}
        ),
    ).stdout
    assert "an equal training: nothing to train)" in copied


def test_what_changes_while_it_is_trained_is_not_published(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_base
    from common.errors import TrainingError

    monkeypatch.chdir(project.folder)
    torch.set_num_threads(1)
    before = project.tree("cache", "locks")

    def progress(state: object) -> None:
        write_person(Path("data/made"), "dan", seed=5)

    with pytest.raises(TrainingError, match="the data changed while it was trained"):
        train_base.run(
            FIXED | {"fold": 0, "n_base_participants": 3, "base_order_seed": 3}, progress
        )
    after = project.tree("cache", "locks")
    assert [
        name for name in after if after[name] != before.get(name) and not name.startswith("data/")
    ] == []
    assert json.dumps(sorted(after)) == json.dumps(sorted(before))


def test_a_base_model_that_is_deleted_during_a_run_is_trained_again_in_it(tmp_path: Path) -> None:
    project = made(tmp_path)
    project.generate(AXES, FIXED)
    project.run("run_two_phase_distributed.py")
    base = project.jobs("base_training_jobs.json")[0]["base_model_hash"]
    before = project.ran()
    # long enough that ann's fine-tune is still running when its base model is deleted
    long = {"grid": AXES, "fixed": FIXED, "finetune": {"max_epochs": 300}}
    project.write("grid.json", long)
    said = project.run("generate_jobs.py").stdout
    assert "base models: 4 done" in said
    assert "fine-tunes:  4 new" in said
    with project.started("run_two_phase_distributed.py") as run:
        wait_until(
            lambda: any("_ann" in job for job in project.ran() - before), what="ann's fine-tune"
        )
        for path in (project.folder / "base_models").glob(f"{base}*"):
            path.unlink()
        assert run.wait(120) == 0, project.output
    assert "1 base model deleted during the run" in project.output
    ran = project.ran() - before
    assert [job for job in ran if "/" not in job] == [base]
    assert project.run("run_two_phase_distributed.py").stdout.endswith("8 results are there\n")


def test_data_folders_that_change_names_cost_no_base_training_again(tmp_path: Path) -> None:
    project = made(tmp_path)
    data, axes = project.folder / "data", {**AXES, "data_path": ["data/made", "data/old"]}
    both = {name: value for name, value in FIXED.items() if name != "data_path"}
    project.generate(AXES, FIXED)
    assert bases(newly_run(project)[0]) == 2

    (data / "made").rename(data / "old")
    for name in PEOPLE:
        write_person(data / "made", name, seed=1)
    project.generate(axes, both)
    ran, said = newly_run(project)
    assert "base models: 4 stale, 4 new; 2 trainings to run, 4 copied from equal trainings" in said
    assert bases(ran) == 2
    before = _weights(project)

    for old, new in (("made", "x"), ("old", "made"), ("x", "old")):
        (data / old).rename(data / new)
    project.generate(axes, both)
    ran, said = newly_run(project)
    assert "base models: 8 stale; 0 trainings to run, 8 copied from equal trainings" in said
    assert bases(ran) == 0
    after = _weights(project)
    assert (after["data/made"], after["data/old"]) == (before["data/old"], before["data/made"])
    assert "nothing to do" in newly_run(project)[1]


def _weights(project: Project) -> dict[str, list[bytes]]:
    """By data folder, those of its base models, by fold."""
    found: dict[str, list[bytes]] = {}
    for job in sorted(project.jobs("base_training_jobs.json"), key=lambda job: str(job["fold"])):
        model = artifacts.open_base_model(Paths(project.folder), job["base_model_hash"])
        found.setdefault(job["data_path"], []).append(model.weights)
    return found


def test_only_failed_trains_a_base_model_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    project = made(tmp_path)
    project.generate(AXES, FIXED)
    project.run("run_two_phase_distributed.py")
    job = project.jobs("finetune_jobs.json")[0]
    base, folder = job["base_model_hash"], f"experiments/{job['prefix']}/fold0_ann"
    artifacts.supersede_experiment(Paths(project.folder), project.folder / folder)
    artifacts.supersede_base_model(Paths(project.folder), base)
    failed = {"event": "failed", "job": folder.removeprefix("experiments/"), "error": "x"}
    (events,) = project.folder.glob("runs/*/events.jsonl")
    with events.open("a") as file:
        file.write(json.dumps({"time": 0, **failed}) + "\n")
    before = project.ran()
    project.run("run_two_phase_distributed.py", "--only", "failed")
    assert project.ran() - before == {base: 1, failed["job"]: 1}
