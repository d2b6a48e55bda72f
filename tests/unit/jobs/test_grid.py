"""A grid becomes jobs, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.data.data_sets import Data
from common.errors import InputError
from common.jobs import identity
from common.jobs.grid import DOCUMENTED_GRID, GridSpec, expand, read_grid
from common.jobs.job_files import Job, read_jobs
from common.paths import Paths

FIXED: dict[str, Any] = {"participants": ["ann", "bob", "cyd"], "data_path": "data/made"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.chdir(tmp_path)
    return Data(Paths(tmp_path))


def grid(axes: dict[str, Any], **fixed: Any) -> GridSpec:
    return GridSpec(axes, FIXED | fixed)


def test_the_documented_grid(data: Data) -> None:
    bases, finetunes = expand(DOCUMENTED_GRID, "here", data)
    assert (len(bases), len(finetunes)) == (84, 1008)
    assert "dd8687760fb0bcb2" in {job.id for job in bases}


def test_each_fold_and_value_once_and_each_base_once(data: Data) -> None:
    bases, finetunes = expand(
        grid({"target_data_pct": [0.5, 1.0, 0.5], "n_base_participants": [1, 2]}), "here", data
    )
    assert (len(bases), len(finetunes)) == (6, 12)
    assert {job.needs for job in finetunes} == {job.id for job in bases}


@pytest.mark.parametrize("folds", [["bob"], ["1"], ["1", "bob"]])
def test_folds_are_numbers_or_names(data: Data, folds: list[str]) -> None:
    bases, finetunes = expand(grid({}), "here", data, folds)
    assert [job.values["fold"] for job in bases] == [1]
    assert [job.values["fold"] for job in finetunes] == [1]


@pytest.mark.parametrize("fold", ["3", "-1", "eve", ""])
def test_a_fold_that_nobody_is_is_refused(data: Data, fold: str) -> None:
    with pytest.raises(InputError, match="--folds"):
        expand(grid({}), "here", data, [fold])


@pytest.mark.parametrize(("axes", "fixed"), [({"fold": [0, 1]}, {}), ({}, {"fold": 1})])
def test_folds_beside_the_grids_own_are_refused(
    data: Data, axes: dict[str, Any], fixed: dict[str, Any]
) -> None:
    assert {job.values["fold"] for job in expand(grid(axes, **fixed), "g.json", data)[1]} == set(
        axes.get("fold", [1])
    )
    with pytest.raises(
        InputError, match=r"--folds: g\.json names its own 'fold': leave one of the two out"
    ):
        expand(grid(axes, **fixed), "g.json", data, ["nobody"])


def test_baselines_add_two_modes_and_target_only_once_a_target(data: Data) -> None:
    axes = {
        "n_base_participants": [1, 2],
        "early_stopping_patience": [5, 6],
        "seed": [0, 1],
        "target_data_pct": [0.5],
    }
    bases, finetunes = expand(grid(axes).with_baselines(), "here", data)
    modes = [job.values["mode"] for job in finetunes]
    assert (modes.count("target_only_fine_tuning"), modes.count("head_only_fine_tuning")) == (
        24,
        24,
    )
    # each target once for each seed, which is the fine-tune's own as well
    assert modes.count("target_only") == 3 * 2
    assert all(job.needs is None for job in finetunes if job.values["mode"] == "target_only")
    assert len(bases) == 24


def test_adding_a_value_keeps_every_earlier_job(data: Data) -> None:
    _, few = expand(grid({"target_data_pct": [0.5]}), "here", data)
    _, more = expand(grid({"target_data_pct": [0.1, 0.5], "lr": [0.0003, 0.1]}), "here", data)
    assert {job.id for job in few} <= {job.id for job in more}


@pytest.mark.parametrize(
    ("axes", "fixed", "differ"),
    [
        ({"target_data_pct": [0.5, 1.0]}, {"prefix": "p"}, "target_data_pct 0.5 there, 1.0 here"),
        ({"threads": [1, 2]}, {}, "threads 1 there, 2 here"),
        ({"jitter_std": [0.1, 0.2]}, {}, "jitter_std 0.1 there, 0.2 here"),
        ({"lr": [0.1, 0.2], "seed": [1, 2]}, {"prefix": "p"}, "seed 1 there, 2 here"),
    ],
)
def test_two_jobs_for_one_place_are_refused_by_what_differs(
    data: Data, axes: dict[str, Any], fixed: dict[str, Any], differ: str
) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"g\.json: job 1: writes to the same place as another job \(.*/fold0_ann\) with other"
            rf" options \(.*{differ}"
        ),
    ):
        expand(grid(axes, **fixed), "g.json", data)


def test_augmentation_settings_are_crossed_only_with_augmentation(data: Data) -> None:
    bases, finetunes = expand(
        grid({"use_augmentation": [False, True], "jitter_std": [0.1, 0.2]}), "here", data, ["ann"]
    )
    assert (
        [job.values["use_augmentation"] for job in bases]
        == [job.values["use_augmentation"] for job in finetunes]
        == [False, True, True]
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "a grid file is an object"),
        ({"gird": {}}, "did you mean grid"),
        ({"grid": []}, "'grid' is an object of option names"),
        ({"grid": {"lr": []}}, "lr: a list of at least one value"),
        ({"grid": {"lr": [1]}, "fixed": {"lr": 1}}, "lr is in 'grid' and in 'fixed'"),
        ({"finetune": {"lrr": 1}}, "finetune: 'lrr' is no option .*, did you mean lr"),
        ({"finetune": {"n_base_participants": 1}}, "finetune: 'n_base_participants' is no option"),
        ({"finetune": {"lr": []}}, "finetune: lr: one value, or a list of values"),
        ({"analysis": {"metrc": "f1"}}, "analysis: unknown key 'metrc', did you mean metric"),
        ({"analysis": {"metric": "macrof1"}}, "metric 'macrof1' is no score .*mean macro_f1"),
        ({"analysis": {"metric": ["f1"]}}, "metric \\['f1'\\] is no score of a report"),
    ],
)
def test_a_grid_file_of_another_form_is_refused(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        read_grid(path)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"lrr": [1]}, "unknown option 'lrr', did you mean lr"),
        ({"lr": [0]}, "lr"),
        ({"participants": [["a", "b"]]}, "fixed"),
    ],
)
def test_options_of_a_grid_are_checked(data: Data, axes: dict[str, Any], says: str) -> None:
    fixed = {} if "participants" in axes else FIXED
    with pytest.raises(InputError, match=says):
        expand(GridSpec(axes, fixed), "g.json", data)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"mod": ["target_only"]}, "unknown option 'mod', did you mean mode"),
        ({"mode": ["target_onl"]}, r"mode: input should be .*\(got 'target_onl'\)"),
        ({}, r"data_path data/001_60s_window: no such folder \(data_path is not given\)"),
    ],
)
def test_a_misspelt_option_is_named_before_data_that_are_not_there(
    data: Data, axes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        expand(GridSpec(axes), "g.json", data)


def test_a_fine_tunes_own_options_leave_the_base_models_as_they_are(data: Data) -> None:
    axes: dict[str, Any] = {"lr": [0.001, 0.0003], "target_data_pct": [0.5, 1.0]}
    plain, few = expand(grid(axes), "here", data)
    own = {"lr": [0.0003, 0.0001], "max_epochs": 20, "use_augmentation": True}
    parts = GridSpec.parse({"grid": axes, "fixed": FIXED, "finetune": own}, "here")
    bases, finetunes = expand(parts, "here", data)
    assert [job.id for job in bases] == [job.id for job in plain]
    assert (len(few), len(finetunes)) == (12, 24)
    assert len({job.id for job in finetunes}) == 24
    for job in finetunes:
        effective = job.finetune.effective()
        assert effective.lr in (0.0003, 0.0001)
        assert (effective.max_epochs, effective.use_augmentation) == (20, True)
        assert identity.base_hash(job.finetune) == job.needs
    assert read_back(finetunes, data) == finetunes


def test_a_fine_tune_may_have_an_augmentation_of_its_own(data: Data) -> None:
    """Two of one file, beside a base model that augments with another or not at all."""
    Path("own.py").write_text("")
    plain, _ = expand(grid({"use_augmentation": [False, True]}), "here", data)
    own = {"augmentation": ["own.py:turn", "own.py:flip"], "use_augmentation": True}
    parts = {"grid": {"use_augmentation": [False, True]}, "fixed": FIXED, "finetune": own}
    bases, finetunes = expand(GridSpec.parse(parts, "here"), "here", data)
    assert [job.id for job in bases] == [job.id for job in plain]
    assert len({job.id for job in finetunes}) == 2 * len(plain)
    for job in finetunes:
        assert identity.base_hash(job.finetune) == job.needs
        assert "./own.py" in job.finetune.own_files()
        assert job.finetune.own_code["augmentation"][1] in ("turn", "flip")
        assert job.finetune.own_code == job.finetune.effective().own_code
    assert read_back(finetunes, data) == finetunes
    assert all(job.base.own_files() == [] for job in bases)
    Path("own.py").unlink()
    with pytest.raises(InputError, match=r"augmentation_finetune: no file own\.py"):
        expand(GridSpec.parse(parts, "here"), "here", data)


def test_an_augmentation_of_a_fine_tune_that_does_not_augment_is_refused(data: Data) -> None:
    parts = GridSpec.parse({"fixed": FIXED, "finetune": {"augmentation": "own.py:turn"}}, "here")
    with pytest.raises(InputError, match="augmentation: is applied only with --use_augmentation"):
        expand(parts, "here", data)


def test_what_the_fine_tune_alone_augments_with_is_part_of_its_name(data: Data) -> None:
    parts = {
        "grid": {"jitter_std": [0.1, 0.2], "use_augmentation": [False]},
        "fixed": FIXED,
        "finetune": {"use_augmentation": True},
    }
    bases, finetunes = expand(GridSpec.parse(parts, "here"), "here", data)
    assert len({job.id for job in finetunes}) == 2 * len(bases)
    assert {job.finetune.effective().jitter_std for job in finetunes} == {0.1, 0.2}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("jitter_std", [0.005, 0.05]),
        ("magnitude_range", [[0.98, 1.02], [0.9, 1.1]]),
        ("aug_prob", [0.3, 0.5]),
        ("time_warp_std", [0.0, 0.2]),
        ("augmentation", [None, "own.py:turn"]),
    ],
)
def test_what_the_base_alone_augments_with_is_part_of_the_fine_tunes_name(
    data: Data, name: str, values: list[Any]
) -> None:
    Path("own.py").touch()

    def jobs(axes: dict[str, Any]) -> tuple[list[Job], list[Job]]:
        parts = {
            "grid": {"mode": ["head_only_fine_tuning", "target_only"], **axes},
            "fixed": {**FIXED, "use_augmentation": True, "n_base_participants": 1},
            "finetune": {"use_augmentation": False},
        }
        return expand(GridSpec.parse(parts, "here"), "here", data)

    Path("own.py").touch()
    bases, finetunes = jobs({name: values})
    assert len(bases) == len({job.id for job in finetunes if job.needs}) == 6
    assert len(finetunes) == 6 + 3  # target_only has no base
    assert {job.id for job in jobs({})[1]} < {job.id for job in finetunes}  # at defaults as before


def read_back(jobs: list[Job], data: Data) -> list[Job]:
    Path("f.json").write_text(json.dumps([job.values for job in jobs]))
    return read_jobs(Path("f.json"), "finetune", data)


def test_an_own_value_that_is_the_bases_is_no_other_cell(data: Data) -> None:
    _, finetunes = expand(
        GridSpec.parse({"fixed": FIXED, "finetune": {"lr": [0.0003]}}, "here"), "here", data
    )
    assert [job.id for job in finetunes] == [job.id for job in expand(grid({}), "here", data)[1]]
    same = finetunes[0].finetune.model_copy(update={"lr_finetune": 0.0003})
    assert identity.experiment_fields(same) == identity.experiment_fields(finetunes[0].finetune)


def test_target_only_takes_the_fine_tunes_own_options_as_its_options(data: Data) -> None:
    parts = {
        "grid": {"mode": ["target_only"], "lr": [0.001, 0.002]},
        "fixed": FIXED,
        "finetune": {"lr": 0.0001, "early_stopping_patience": 7},
    }
    bases, finetunes = expand(GridSpec.parse(parts, "here"), "here", data)
    assert not bases
    assert len(finetunes) == 3
    for job in finetunes:
        assert (job.values["lr"], job.values["lr_finetune"]) == (0.0001, None)
        assert job.values["early_stopping_patience_target"] == 7


def test_a_part_may_not_say_what_another_one_says(data: Data) -> None:
    parts = {"grid": {"target_val": ["full"]}, "fixed": FIXED, "finetune": {"target_val": "none"}}
    with pytest.raises(InputError, match="target_val is in 'finetune' and elsewhere"):
        expand(GridSpec.parse(parts, "here"), "here", data)


def test_an_analysis_names_a_cell_of_the_grid(data: Data) -> None:
    axes = {"target_data_pct": [0.1 + 0.2, 1.0]}
    for pct, fits in ((0.3, True), (0.5, False)):
        parts = {"grid": axes, "fixed": FIXED, "analysis": {"target_data_pct": pct}}
        if fits:
            expand(GridSpec.parse(parts, "here"), "here", data)
        else:
            with pytest.raises(InputError, match=r"target_data_pct is 0.5, which is not .*0\.3"):
                expand(GridSpec.parse(parts, "here"), "here", data)
    for wrong in ({"target_data_pct": 3}, {"mode": "x"}, {"metric": 3}):
        with pytest.raises(InputError, match=f"analysis: {next(iter(wrong))}"):
            GridSpec.parse({"grid": axes, "fixed": FIXED, "analysis": wrong}, "here")


def test_bases_that_stop_on_val_have_other_hashes_and_read_no_test_file(data: Data) -> None:
    bases, _ = expand(grid({"base_selection": ["test", "val"]}), "here", data, ["ann"])
    assert [identity.base_data_files(job.base)[:3] for job in bases] == [
        ["bob_train.pt", "bob_val.pt", "bob_test.pt"],
        ["bob_train.pt", "bob_val.pt", "cyd_train.pt"],
    ]
    assert bases[0].id == expand(grid({}), "here", data, ["ann"])[0][0].id
    assert "base_selection" not in identity.hash_fields(bases[0].base)
    assert identity.hash_fields(bases[1].base)["base_selection"] == "val"


@pytest.mark.parametrize("folds", [["0,bob"], ["0,", "bob"], ["bob,0"]])
def test_commas_work_as_spaces_in_folds(data: Data, folds: list[str]) -> None:
    _, finetunes = expand(grid({}), "here", data, folds)
    assert sorted(job.values["fold"] for job in finetunes) == [0, 1]


def test_a_name_may_hold_a_comma(data: Data) -> None:
    people = ["0,1", "bob", "cyd"]
    _, finetunes = expand(grid({}, participants=people), "here", data, ["0,1"])
    assert [identity.target(job.finetune) for job in finetunes] == ["0,1"]


def test_data_sets_are_one_axis(data: Data) -> None:
    paths = ["data/a", "data/b", "data/c"]
    parts = GridSpec(
        {"data_path": paths, "target_data_pct": [0.5, 1.0]}, {"participants": ["x", "y"]}
    )
    bases, finetunes = expand(parts, "here", data)
    assert (len(bases), len(finetunes)) == (3 * 2, 3 * 2 * 2)
    assert len({job.id for job in finetunes}) == 12


def test_a_number_that_a_program_computed_is_the_same_cell(data: Data) -> None:
    """Two grid files, of which one has 0.1 + 0.2 instead of 0.3."""
    there, here = (
        expand(grid({"target_data_pct": [third, 1.0], "lr": [third / 100]}), "here", data)
        for third in (0.1 + 0.2, 0.3)
    )
    for before, after in zip(there, here, strict=True):
        assert [(job.id, job.values) for job in before] == [(job.id, job.values) for job in after]


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text('{"grid": {"lr": [0.001], "lr": [0.01]}}')
    with pytest.raises(InputError, match=r"g\.json: the key 'lr' is given twice"):
        read_grid(path)


def test_a_fine_tune_alone_may_use_an_own_augmentation_and_its_base_another_or_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.py").touch()
    fixed = {"participants": ["ann", "bob"], "data_path": "d", "augmentation": "own.py:turn"}
    made = {}
    for base, tuned in ((False, True), (True, False), (True, True)):
        spec = {
            "fixed": {**fixed, "use_augmentation": base},
            "finetune": {"use_augmentation": tuned},
        }
        bases, finetunes = expand(
            GridSpec.parse(spec, "grid"), "grid", Data(Paths(tmp_path)), ["0"]
        )
        made[base, tuned] = (
            bases[0].base.own_files(),
            finetunes[0].finetune.own_files(),
            finetunes[0].needs == bases[0].id,
        )
    own = ["./own.py"]
    assert made == {
        (False, True): ([], own, True),
        (True, False): (own, [], True),
        (True, True): (own, own, True),
    }
