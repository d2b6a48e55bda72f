"""What is done, stale and new, decided from what is published; no torch, no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import artifacts
from common.data.data_sets import Data
from common.errors import InputError
from common.jobs import identity
from common.jobs.job_files import Job, base_job, finetune_job
from common.jobs.plan import Plan, code_notice, counted, plan, reasons
from common.jobs.verdicts import State, Verdict
from common.paths import Paths

PEOPLE = ["ann", "bob", "cyd", "dan"]
VALUES: dict[str, Any] = {
    "participants": PEOPLE,
    "data_path": "data/made",
    "n_base_participants": 1,
}


class World:
    """A project whose data are words: the SHA-256 of each file is what a test says it is."""

    def __init__(self, root: Path) -> None:
        self.paths, self.data = Paths(root), Data(Paths(root))
        self.content: dict[str, str] = {}
        self.bases = [base_job({**VALUES, "fold": fold}, "here", self.data) for fold in range(4)]
        self.finetunes = [
            finetune_job({**VALUES, "fold": fold, "target_data_pct": pct}, "here", self.data)
            for fold in range(4)
            for pct in (0.5, 1.0)
        ]

    def sha256(self, data_path: str, name: str) -> str:
        return self.content.get(name, name)

    def plan(self, **more: bool) -> Plan:
        return plan(self.paths, self.bases, self.finetunes, self.sha256, **more)

    def publish_base(self, job: Job, **changes: Any) -> None:
        data = identity.fingerprints(
            identity.base_data_files(job.base), lambda name: self.sha256("", name)
        )
        record = {
            "training_key": identity.training_key(job.base, data),
            "base_participants": identity.base_participants(job.base),
            "data_fingerprints": data,
            "code_fingerprints": identity.code_fingerprints(),
        }
        artifacts.publish_base_model(
            self.paths, job.id, record["training_key"].encode(), record | changes
        )

    def publish(self, job: Job, **changes: Any) -> None:
        assert job.needs
        base = artifacts.open_base_model(self.paths, job.needs)
        options = job.finetune
        data = identity.fingerprints(
            identity.finetune_data_files(options, base.metadata["base_participants"]),
            lambda name: self.sha256("", name),
        )
        config = {
            "experiment_key": identity.experiment_key(
                options, base.metadata["weights_sha256"], data
            ),
            "experiment_fields": identity.experiment_fields(options),
            "target_participant": identity.target(options),
            "base_weights_sha256": base.metadata["weights_sha256"],
            "data_fingerprints": data,
            "code_fingerprints": identity.code_fingerprints(),
        }
        files = {
            "best_model.pt": b"w",
            "losses.json": b"{}",
            "predictions.csv": b"",
            "config.json": artifacts.to_json(config | changes),
        }
        prefix, _, name = job.id.partition("/")
        artifacts.publish_experiment(self.paths, prefix, name, files, {})

    def publish_all(self) -> None:
        for job in self.bases:
            self.publish_base(job)
        for job in self.finetunes:
            self.publish(job)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path)


def states(verdicts: dict[str, Verdict], *wanted: State) -> list[str]:
    """Whose verdict is one of `wanted`: targets of fine-tunes, hashes of bases."""
    return sorted(
        job.rpartition("_")[2] for job, verdict in verdicts.items() if verdict.state in wanted
    )


def test_at_first_all_is_new_and_fine_tunes_wait(world: World) -> None:
    made = world.plan()
    assert (counted(made.bases), counted(made.finetunes)) == ("4 new", "8 new")
    assert made.trainings() == 2  # bob, cyd and dan all start from ann
    assert len(made.waiting) == 8
    assert not made.copies


def test_when_all_is_published_all_is_done(world: World) -> None:
    world.publish_all()
    made = world.plan()
    assert (counted(made.bases), counted(made.finetunes)) == ("4 done", "8 done")
    assert not made.waiting


def test_a_new_hash_of_a_published_training_is_a_copy_and_its_fine_tunes_are_judged_at_once(
    world: World,
) -> None:
    world.publish_all()
    artifacts.supersede_base_model(world.paths, world.bases[2].id)
    made = world.plan()
    assert made.copies == {world.bases[2].id: min(world.bases[1].id, world.bases[3].id)}
    assert counted(made.finetunes) == "8 done"


def test_changed_data_make_stale_exactly_what_read_them(world: World) -> None:
    world.publish_all()
    world.content["cyd_test.pt"] = "another"
    made = world.plan()
    assert counted(made.bases) == "4 done"
    assert states(made.finetunes, State.STALE) == ["cyd", "cyd"]
    world.content = {"bob_val.pt": "another"}
    made = world.plan()
    assert states(made.bases, State.STALE) == [world.bases[0].id]
    assert states(made.finetunes, State.STALE) == ["bob", "bob"]
    assert {job.rpartition("_")[2] for job in made.waiting} == {"ann"}
    stale = [verdict.reason for verdict in made.bases.values() if verdict.state is State.STALE]
    assert stale == [f"base model {world.bases[0].id} is stale: data changed (bob_val.pt)"]
    assert states(made.finetunes, State.STALE_BASE) == ["ann", "ann"]
    assert counted(made.finetunes) == "4 done, 2 stale, 2 stale (their base)"


def test_what_is_stale_for_one_cause_is_one_line_with_a_few_names(world: World) -> None:
    world.publish_all()
    world.content = {"cyd_test.pt": "another", "bob_val.pt": "another"}
    made = world.plan()
    mine = {name: [job.id for job in world.finetunes if name in job.id] for name in ("bob", "cyd")}
    assert reasons(made) == [
        made.bases[world.bases[0].id].reason,
        f"2 experiments are stale: data changed (bob_val.pt): {', '.join(mine['bob'])}",
        f"2 experiments are stale: data changed (cyd_test.pt): {', '.join(mine['cyd'])}",
    ]


def test_a_checkpoint_of_a_training_that_is_to_run_is_seen(world: World) -> None:
    world.publish_all()
    world.content = {"bob_val.pt": "another"}
    key = world.plan().keys[world.bases[0].id]
    checkpoint = world.paths.checkpoint(identity.checkpoint_name(str(key)))
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert world.plan().begun == {world.bases[0].id}
    world.content = {}
    assert world.plan().begun == set()


def test_a_changed_test_file_of_a_base_participant_says_what_reads_it(world: World) -> None:
    world.publish_all()
    world.content["bob_test.pt"] = "another"
    assert world.plan().bases[world.bases[0].id].reason == (
        f"base model {world.bases[0].id} is stale: data changed (bob_test.pt; its early stopping"
        " reads bob_test.pt)"
    )


def test_a_base_with_other_weights_makes_its_fine_tunes_stale(world: World) -> None:
    world.publish_all()
    job = world.bases[0]
    metadata = artifacts.open_base_model(world.paths, job.id).metadata
    artifacts.publish_base_model(world.paths, job.id, b"other weights", metadata)
    made = world.plan()
    assert states(made.finetunes, State.STALE) == ["ann", "ann"]
    assert all(
        "its base model changed" in made.finetunes[job].reason
        for job in made.finetunes
        if made.finetunes[job].state is State.STALE
    )


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()]
)
def test_damaged_or_half_written_results_are_not_done(
    world: World, damage: Callable[[Path], None]
) -> None:
    world.publish_all()
    damage(world.paths.base_weights(world.bases[0].id))
    damage(world.paths.experiments / world.finetunes[-1].id / "losses.json")
    made = world.plan()
    assert made.bases[world.bases[0].id].state in (State.DAMAGED, State.NEW)
    assert made.finetunes[world.finetunes[-1].id].state is State.DAMAGED


def test_a_damaged_base_is_no_source_of_copies(world: World) -> None:
    for job in world.bases[1:3]:
        world.publish_base(job)
        world.paths.base_weights(job.id).write_bytes(b"x")
    made = world.plan()
    assert made.copies == {}
    assert counted(made.bases) == "2 damaged, 2 new"


def test_another_configuration_in_the_place_is_a_conflict(world: World) -> None:
    world.publish_all()
    fields = identity.experiment_fields(world.finetunes[0].finetune) | {"lr": 5}
    world.publish(world.finetunes[0], experiment_key="0" * 16, experiment_fields=fields)
    verdict = world.plan().finetunes[world.finetunes[0].id]
    assert verdict.state is State.CONFLICT
    assert (
        "holds results of another configuration (lr 5 there, 0.0003 here): give another --prefix,"
        " or --overwrite" in verdict.reason
    )


def test_another_configuration_in_the_place_is_seen_while_the_base_is_still_to_be_trained(
    world: World,
) -> None:
    world.publish_all()
    taken, stale = world.finetunes[0], world.finetunes[1]
    fields = identity.experiment_fields(taken.finetune)
    for job, changes in (
        (taken, {"experiment_key": "k", "experiment_fields": {**fields, "lr": 1}}),
        (stale, {"experiment_key": "k"}),
    ):
        artifacts.supersede_experiment(world.paths, world.paths.experiments / job.id)
        world.publish(job, **changes)
    artifacts.supersede_base_model(world.paths, str(taken.needs))
    world.content["bob_train.pt"] = "other"
    made = world.plan()
    assert taken.id in made.waiting
    assert made.finetunes[taken.id].state is State.CONFLICT
    assert "lr 1 there" in made.finetunes[taken.id].reason
    assert made.finetunes[stale.id] == Verdict(State.NEW, "waits for its base model")


def test_other_code_is_announced_and_redone_only_with_retrain(world: World) -> None:
    world.publish_all()
    world.publish_base(
        world.bases[0],
        code_fingerprints=dict(identity.code_fingerprints()) | {"training/networks.py": "0"},
    )
    made = world.plan()
    assert counted(made.bases) == "4 done"
    assert code_notice(made) == (
        "1 results made by other versions of training/networks.py are reused;"
        " --retrain makes them again"
    )
    made = world.plan(retrain=True)
    assert states(made.bases, State.STALE) == [world.bases[0].id]
    assert not made.copies


def test_retrain_copies_an_equal_training_that_todays_code_made(world: World) -> None:
    """bob, cyd and dan all start from ann."""
    world.publish_all()
    bob, cyd, dan = world.bases[1:]
    artifacts.supersede_base_model(world.paths, bob.id)
    other = dict(identity.code_fingerprints()) | {"training/networks.py": "0"}
    world.publish_base(cyd, code_fingerprints=other)
    assert world.plan(retrain=True).copies == {bob.id: dan.id, cyd.id: dan.id}
    world.publish_base(dan, code_fingerprints=other)
    assert world.plan(retrain=True).copies == {}


def test_without_bases_fine_tunes_name_what_is_missing(world: World) -> None:
    world.bases = []
    made = world.plan()
    assert len(made.missing_base) == 8
    assert {verdict.reason for verdict in made.finetunes.values()} == {
        f"Base model not found: base_models/{job.needs}.pt" for job in world.finetunes
    }


def test_a_stale_base_that_nobody_trains_is_as_good_as_missing(world: World) -> None:
    """ann's base learnt from bob, the three others' from ann."""
    world.publish_all()
    world.content["bob_val.pt"] = "another"
    world.bases = world.bases[1:]
    made = world.plan()
    ann = [job for job in world.finetunes if job.id.endswith("_ann")]
    assert made.missing_base == {job.id: job.needs for job in ann}
    assert {made.finetunes[job.id].reason for job in ann} == {
        f"base model {ann[0].needs} is stale: data changed (bob_val.pt): run base training again"
    }
    assert {made.finetunes[job.id].state for job in ann} == {State.NEW}
    # bob's own fine-tunes read bob's data
    assert states(made.finetunes, State.DONE) == ["cyd", "cyd", "dan", "dan"]


def test_a_base_whose_data_are_not_here_is_taken_as_it_is(world: World) -> None:
    def only_ann(data_path: str, name: str) -> str:
        if not name.startswith("ann"):
            raise InputError("not here")
        return name

    world.publish_all()
    made = plan(world.paths, [], world.finetunes[:2], only_ann)
    assert (counted(made.finetunes), made.missing_base) == ("2 done", {})
    damaged = world.paths.data("data/made") / "bob_val.pt"  # here, but refused by dataset.json
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"edited")
    assert len(plan(world.paths, [], world.finetunes[:2], only_ann).missing_base) == 2


def test_without_data_trainings_are_counted_by_configuration(world: World) -> None:
    def missing(data_path: str, name: str) -> str:
        raise InputError("no data")

    made = plan(world.paths, world.bases, world.finetunes, missing)
    assert made.unseen == "no data"
    assert made.trainings() == 2
    assert counted(made.bases) == "4 not known"
