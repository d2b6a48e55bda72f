"""Hashes, training keys and experiment identities: what enters, what does not."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from common.jobs import identity
from common.options import FROM_SCRATCH, BaseOptions, FinetuneOptions
from tests.conftest import ROOT

SEVEN = ["tonmoy", "asfik", "alsaad", "anam", "ejaz", "iftakhar", "unk1"]
DOCUMENTED = {
    "n_base_participants": 1,
    "batch_size": 32,
    "use_augmentation": True,
    "participants": SEVEN,
}

# One other value for every option, and whether it changes the hash of DOCUMENTED.
OTHER: dict[str, tuple[Any, bool]] = {
    "fold": (1, True),
    "device": ("3", False),
    "model": ("cnn64", True),
    "base_channels": (16, True),
    "num_blocks": (5, True),
    "data_path": ("data/other", True),
    "window_size": (100, True),
    "participants": ([*SEVEN, "new"], True),
    "n_base_participants": (2, True),
    "base_order_seed": (1, True),
    "batch_size": (64, True),
    "lr": (0.001, True),
    "max_epochs": (3, True),
    "early_stopping_patience": (3, True),
    "early_stopping_metric": ("macro_f1", True),
    "base_selection": ("val", True),
    "normalization": ("train", True),
    "pos_weight": (2.0, True),
    "dropout": (0.5, True),
    "min_steps_per_epoch": (10, True),
    "use_augmentation": (False, True),
    "jitter_std": (0.1, True),
    "magnitude_range": ([0.9, 1.1], True),
    "aug_prob": (0.5, True),
    "time_warp_std": (0.1, True),
    "model_options": ({"width": 3}, True),
    "augmentation": ("own.py:rotate", True),
    "init_weights": ("weights.pt", True),
    "weight_decay": (0.01, True),
    "seed": (1, True),
    "threads": (2, False),
    "compile": ("on", False),
    "prefix": ("other", False),
}


# What must be there for an option to be allowed.
WITH: dict[str, dict[str, Any]] = {"model_options": {"model": "own.py:Net"}}


def base(**changes: Any) -> BaseOptions:
    return BaseOptions.parse({**DOCUMENTED, **changes}, "test", strict=True).resolved(None)


def finetune(**changes: Any) -> FinetuneOptions:
    return FinetuneOptions.parse({**DOCUMENTED, **changes}, "test", strict=True).resolved(None)


def test_the_documented_configuration_has_the_documented_hash() -> None:
    assert identity.base_hash(base()) == "dd8687760fb0bcb2"


def test_every_option_has_a_line_in_the_table() -> None:
    assert set(OTHER) == set(BaseOptions.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "changes"), [(name, *rest) for name, rest in OTHER.items()]
)
def test_an_option_is_in_or_out_of_the_hash(name: str, value: Any, changes: bool) -> None:
    beside = WITH.get(name, {})
    before, after = base(**beside), base(**beside, **{name: value})
    assert (identity.base_hash(after) != identity.base_hash(before)) is changes
    assert beside or identity.base_hash(before) == "dd8687760fb0bcb2"


@pytest.mark.parametrize("name", ["jitter_std", "magnitude_range", "aug_prob", "time_warp_std"])
def test_augmentation_settings_count_only_with_augmentation(name: str) -> None:
    plain = base(use_augmentation=False)
    assert identity.base_hash(
        base(use_augmentation=False, **{name: OTHER[name][0]})
    ) == identity.base_hash(plain)


def test_a_fine_tune_has_the_hash_of_its_base() -> None:
    assert (
        identity.base_hash(finetune(mode="full_fine_tuning", target_data_pct=0.05))
        == "dd8687760fb0bcb2"
    )


def test_all_means_everyone_but_the_target() -> None:
    assert identity.base_hash(base(n_base_participants="all")) == identity.base_hash(
        base(n_base_participants=6)
    )
    assert identity.base_participants(base(n_base_participants="all", fold=2)) == [
        name for name in SEVEN if name != "alsaad"
    ]


def test_folds_that_learn_from_the_same_people_share_one_training() -> None:
    keys = [identity.training_key(base(fold=fold), None) for fold in range(7)]
    assert len(set(keys)) == 2
    assert len({identity.base_hash(base(fold=fold)) for fold in range(7)}) == 7


def test_the_data_that_are_read_enter_the_training_key() -> None:
    assert identity.training_key(base(), {"asfik_train.pt": "1"}) != identity.training_key(
        base(), {"asfik_train.pt": "2"}
    )
    assert identity.base_data_files(base()) == ["asfik_train.pt", "asfik_val.pt", "asfik_test.pt"]


def test_base_order_seed_permutes_who_comes_first() -> None:
    orders = [
        identity.base_participants(base(n_base_participants=6, base_order_seed=seed))
        for seed in range(5)
    ]
    assert all(sorted(order) == sorted(SEVEN[1:]) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders[0] == identity.base_participants(base(n_base_participants=6, base_order_seed=0))


def test_the_prefix_depends_on_the_job_alone() -> None:
    assert identity.experiment_prefix(finetune()) == identity.experiment_prefix(
        finetune(participants=[*SEVEN, "new"], fold=3)
    )
    assert identity.experiment_prefix(finetune()) != identity.experiment_prefix(finetune(lr=0.001))
    assert identity.experiment_prefix(
        finetune(mode="full_fine_tuning", target_data_pct=0.125)
    ).startswith("full_fine_tuning_pct0.125_base1_bs32_")


def test_target_only_does_not_depend_on_what_only_a_base_has() -> None:
    one = finetune(mode="target_only", n_base_participants=0)
    other = finetune(
        mode="target_only", n_base_participants=3, early_stopping_patience=7, base_order_seed=4
    )
    assert identity.experiment_prefix(one) == identity.experiment_prefix(other)


@pytest.mark.parametrize("mode", sorted(FROM_SCRATCH))
def test_without_a_base_the_seed_is_that_of_the_training_whichever_option_gave_it(
    mode: str,
) -> None:
    def prefix(**seeds: int) -> str:
        return identity.experiment_prefix(finetune(mode=mode, **seeds))

    assert prefix(seed=1) == prefix(seed_finetune=1) == prefix(seed=2, seed_finetune=1)
    assert prefix() == prefix(seed=1, seed_finetune=0) != prefix(seed=1)


@pytest.mark.parametrize(
    "change",
    [
        {"target_val": "none"},
        {"target_order": "time"},
        {"seed_finetune": 5},
        {"target_data_pct": 0.5},
        {"dropout": 0.1},
        {"freeze": ["convs.*"]},
        {"weight_decay": 0.1},
        {"augmentation": "own.py:rotate"},
    ],
)
def test_what_shapes_a_fine_tune_changes_its_key(change: dict[str, Any]) -> None:
    assert identity.experiment_key(finetune(**change), "w", {}) != identity.experiment_key(
        finetune(), "w", {}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"device": "1"},
        {"threads": 4},
        {"compile": "on"},
        {"prefix": "p"},
        {"overwrite": True},
        {"seed_finetune": 0},
    ],
)
def test_what_does_not_shape_a_fine_tune_leaves_its_key(change: dict[str, Any]) -> None:
    assert identity.experiment_key(finetune(**change), "w", {}) == identity.experiment_key(
        finetune(), "w", {}
    )


def test_base_weights_and_data_enter_the_experiment_key() -> None:
    keys = {
        identity.experiment_key(finetune(), weights, {"x": data})
        for weights in ("1", "2")
        for data in ("1", "2")
    }
    assert len(keys) == 4


# Imported by trainings, but no number of a result comes from them: names, locks and the form of
# files, who may be reused, what is only provenance.
SHAPE_NO_RESULT = {
    "artifacts.py",
    "errors.py",
    "jobs/job_files.py",
    "cli.py",
    "data/data_sets.py",
    "data/sessions.py",
    "data/manifest.py",
    "paths.py",
    "training/provenance.py",
    "jobs/score_names.py",
    "jobs/verdicts.py",
    "training/stopping.py",
    "validation.py",
}


PACKAGES = ("common", "common.data", "common.jobs", "common.training", "common.training.kernel")
SOURCE = "training/kernel/stack.cpp"  # not imported, built


def imported(name: str) -> set[str]:
    """The files of common/ that one of them imports."""
    froms = [
        node
        for node in ast.walk(ast.parse((ROOT / "common" / name).read_bytes()))
        if isinstance(node, ast.ImportFrom) and node.module
    ]
    modules = [
        f"{node.module}.{alias.name}" if node.module in PACKAGES else str(node.module)
        for node in froms
        for alias in node.names
    ]
    return {
        f"{module.removeprefix('common.').replace('.', '/')}.py"
        for module in modules
        if module.startswith("common.")
    }


def test_all_code_of_a_training_is_fingerprinted_or_named_as_shaping_nothing() -> None:
    found, new = set[str](), {"training/base.py", "training/finetune.py"}
    while new:
        found |= new
        new = set().union(*map(imported, new)) - found
    assert found | {SOURCE} == set(identity.CODE_FILES) | SHAPE_NO_RESULT
    assert not SHAPE_NO_RESULT & set(identity.CODE_FILES)
    assert identity.code_fingerprints().keys() == set(identity.CODE_FILES)


def test_the_hash_of_an_own_network_names_its_file_and_the_key_its_content() -> None:
    own = base(model="./nets/../own.py:Net", init_weights="weights.pt")
    assert own.model == "own.py:Net"
    assert identity.base_data_files(own)[3:] == ["./own.py", "./weights.pt"]
    assert identity.file_location("data/x", "./own.py") == ("", "own.py")
    assert identity.file_location("data/x", "asfik_val.pt") == ("data/x", "asfik_val.pt")
    keys = {identity.training_key(own, {"./own.py": content}) for content in ("1", "2")}
    assert len(keys) == 2
    tuned = finetune(model="own.py:Net", augmentation="more.py:turn", init_weights="weights.pt")
    assert identity.finetune_data_files(tuned, [])[3:] == ["./own.py", "./more.py"]


def test_who_is_held_out_enters_the_experiment_key() -> None:
    assert identity.experiment_key(finetune(fold=1), "w", {}) != identity.experiment_key(
        finetune(fold=2), "w", {}
    )


def test_full_fine_tuning_reads_what_its_base_participants_learn_from_too() -> None:
    assert identity.finetune_data_files(finetune(mode="full_fine_tuning"), ["asfik"]) == [
        *(f"tonmoy_{split}.pt" for split in ("train", "val", "test")),
        *(f"asfik_{split}.pt" for split in ("train", "val")),
    ]
