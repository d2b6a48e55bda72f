"""Options are declared once; flags, job files and models say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import Parser
from common.errors import InputError
from common.options import (
    BaseOptions,
    FinetuneOptions,
    Mode,
    add_arguments,
    from_flags,
    to_flags,
)

NAMES = st.text(
    st.characters(blacklist_categories=("C", "Z"), blacklist_characters="/\\"),
    min_size=1,
    max_size=20,
).filter(
    lambda name: (
        name[0] not in "-.,"
        and name[-1] != ","  # on the command line these separate names
        and ".." not in name
        and len(name.encode()) <= 100
        and name.isprintable()
    )
)
SOME: dict[str, st.SearchStrategy[Any]] = {
    "use_augmentation": st.booleans(),
    "participants": st.none() | st.lists(NAMES, min_size=2, max_size=4, unique=True),
    "n_base_participants": st.just("all") | st.just(1),
    "magnitude_range": st.tuples(st.floats(0.5, 1), st.floats(1, 2)).map(list),
    "pos_weight": st.just("balanced") | st.floats(0.1, 10),
    "seed_finetune": st.none() | st.integers(0, 2**62),
    "base_channels": st.none() | st.integers(1, 64),
    "freeze": st.lists(st.text("abc.*", min_size=1), max_size=3),
    "weight_decay": st.floats(0, 1),
    "lr": st.floats(1e-9, 1),
    "overwrite": st.booleans(),
    "mode": st.sampled_from(get_args(Mode)),
    "prefix": st.none() | NAMES,
    "device": st.sampled_from(["auto", "cpu", "0", "3"]),
}


def parsed(model: type[Any], argv: list[str]) -> Any:
    parser = Parser("")
    add_arguments(parser, model)
    return from_flags(parser.parse(argv), model)


@given(st.fixed_dictionaries({}, optional=SOME))
def test_options_survive_the_way_through_flags(values: dict[str, Any]) -> None:
    options = FinetuneOptions.parse(values, "test", strict=True)
    assert parsed(FinetuneOptions, to_flags(options.model_dump())) == options


@pytest.mark.parametrize("model", [BaseOptions, FinetuneOptions])
def test_every_flag_has_help(model: type[Any]) -> None:
    parser = Parser("")
    add_arguments(parser, model)
    for action in parser._actions:
        assert action.help, action.option_strings


def test_what_was_not_given_stays_unset() -> None:
    assert parsed(FinetuneOptions, ["--fold", "2"]).model_fields_set == {"fold"}


def test_commas_work_as_spaces_in_participants() -> None:
    unquoted = (["P01,", "P02"], ["P01", ",P02"], ["P01", ",", "P02"], ["P01, P02"])
    for argv in (["P01,P02"], ["P01,P02,"], ["P01", "P02"], *unquoted):
        assert parsed(BaseOptions, ["--participants", *argv]).participants == ["P01", "P02"]
    assert parsed(BaseOptions, ["--participants", "a,b", "c"]).participants == ["a,b", "c"]
    with pytest.raises(InputError, match="participants: "):
        parsed(BaseOptions, ["--participants", "P01"])


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"--batchsize, did you mean --batch_size\?"):
        parsed(BaseOptions, ["--batchsize", "3"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batchsize": 3}, "unknown option 'batchsize', did you mean batch_size"),
        ({"batch_size": "32"}, "batch_size: .*integer"),
        ({"batch_size": True}, "batch_size: .*integer"),
        ({"batch_size": 0}, "batch_size: .*greater"),
        ({"lr": float("nan")}, "lr: .*finite"),
        ({"fold": 9, "participants": ["a", "b"]}, "fold: 9 is out of range"),
        ({"fold": -1}, "fold: "),
        ({"participants": ["a", "a"]}, "a given twice"),
        ({"participants": ["../x", "b"]}, "file name"),
        ({"participants": ["a/b", "b"]}, "file name"),
        ({"participants": ["-a", "b"]}, "file name"),
        ({"participants": ["a\nb", "b"]}, "file name"),
        ({"participants": ["a" * 101, "b"]}, "longer than 100"),
        ({"prefix": ".."}, "prefix: .*file name"),
        ({"target_data_pct": 0}, "target_data_pct: .*greater than 0"),
        ({"target_data_pct": 1.01}, "target_data_pct: .*less than or equal to 1"),
        (
            {"n_base_participants": 2, "participants": ["a", "b"]},
            "n_base_participants: 2 asked for",
        ),
        ({"n_base_participants": 0}, "only for mode target_only"),
        ({"mode": "target_only", "base_model_hash": "0" * 16}, "from scratch"),
        ({"mode": "forest_base", "base_model_hash": "0" * 16}, "from scratch"),
        ({"mode": "forest_base", "n_base_participants": 0}, "only for mode target_only"),
        ({"base_model_hash": "xyz"}, "base_model_hash: 16 hex digits are needed"),
        ({"magnitude_range": [1.1, 0.9]}, "lowest factor comes first"),
        ({"data_path": "../elsewhere"}, "leaves the project folder"),
        ({"device": -1}, "device"),
        ({"pos_weight": "heavy"}, "pos_weight"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        FinetuneOptions.parse(values, "job 3", strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_numbers_are_rounded_to_12_significant_digits(strict: bool) -> None:
    """0.1 + 0.2 is 0.30000000000000004 in every language."""
    given = {
        "target_data_pct": 0.1 + 0.2,
        "lr": 3e-4 * (1 + 1e-14),
        "magnitude_range": [1 - 1e-15, 1.1 + 2.2e-16],
        "pos_weight": 0.1 * 3,
        "jitter_std": 1e-3 + 1e-18,
        "aug_prob": 1.0000000000000002,
        "dropout": 0.1 * 3,
        "time_warp_std": 0.1 * 3,
    }
    options = FinetuneOptions.parse(given, "test", strict=strict)
    assert options.model_dump(include=set(given)) == {
        "target_data_pct": 0.3,
        "lr": 3e-4,
        "magnitude_range": [1.0, 1.1],
        "pos_weight": 0.3,
        "jitter_std": 1e-3,
        "aug_prob": 1.0,
        "dropout": 0.3,
        "time_warp_std": 0.3,
    }
    assert parsed(FinetuneOptions, to_flags(given)) == options


def test_every_option_that_takes_a_fraction_of_a_number_is_rounded() -> None:
    for name, field in FinetuneOptions.model_fields.items():
        if "float" in str(field.annotation) or isinstance(field.default, float):
            assert "_rounded" in str((field.annotation, field.metadata)), name


def test_keys_that_begin_with_an_underscore_are_ignored() -> None:
    assert FinetuneOptions.parse({"_note": "x", "fold": 1}, "job", strict=True).fold == 1


def test_equal_places_of_data_are_one_path() -> None:
    spellings = ["data/x", "./data/x", "data/x/", "data//x"]
    assert {FinetuneOptions.parse({"data_path": text}, "job").data_path for text in spellings} == {
        "data/x"
    }


def test_a_path_through_a_link_to_the_project_folder_is_one_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell's $PWD keeps the link by which the folder was reached; data/ may itself be a link
    to another disk.
    """
    project, disk, link = tmp_path / "project", tmp_path / "disk", tmp_path / "link"
    for folder in (project, disk / "x"):
        folder.mkdir(parents=True)
    link.symlink_to(project)
    (project / "data").symlink_to(disk)
    monkeypatch.chdir(link)
    found = {
        str(path): FinetuneOptions.parse({"data_path": str(path)}, "job").data_path
        for path in (project / "data/x", link / "data/x", disk / "x", link)
    }
    assert found == {
        f"{project}/data/x": "data/x",
        f"{link}/data/x": "data/x",
        f"{disk}/x": f"{disk}/x",
        str(link): ".",
    }


def test_own_code_survives_the_way_through_flags() -> None:
    values = {
        "model": "nets/own.py:Net",
        "model_options": {"width": 3, "names": ["a", 'b"']},
        "augmentation": "own.py:turn",
        "use_augmentation": True,
    }
    options = FinetuneOptions.parse(values, "test", strict=True)
    assert parsed(FinetuneOptions, to_flags(options.model_dump())) == options


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "own.py"}, r"model: 'own.py': FILE.py:NAME is needed"),
        ({"model": "own.py:3"}, "FILE.py:NAME is needed"),
        ({"model": "../own.py:Net"}, "leaves the project folder"),
        ({"model": "/tmp/own.py:Net"}, "copy the file into it"),
        ({"augmentation": "jitter", "use_augmentation": True}, "augmentation: .*FILE.py:NAME"),
        ({"augmentation": "own.py:f"}, "augmentation: is applied only with --use_augmentation"),
        ({"model_options": {"a": 1}}, "model_options: model test is built in"),
        ({"model_options": "{"}, "model_options: a JSON object is needed"),
        ({"model_options": '{"a": 1, "a": 2}'}, "model_options: a given twice"),
        ({"model_options": '{"a": Infinity}'}, "model_options: holds what JSON cannot"),
        ({"model_options": '{"a": [1e400]}'}, "model_options: holds what JSON cannot"),
        ({"model_options": {"a": float("nan")}}, "model_options: holds what JSON cannot"),
        ({"model_options": {"a": {"\ud800": 1}}}, "model_options: holds what JSON cannot"),
        ({"freeze": ["a", "\ud800"]}, "freeze: holds what JSON cannot"),
        ({"model": "own.py:Net", "dropout": 0.1}, "dropout: is for the built-in networks"),
        ({"weight_decay": -1}, "weight_decay: .*greater than or equal to 0"),
    ],
)
def test_bad_own_code_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        FinetuneOptions.parse(values, "job 3", strict=True)
