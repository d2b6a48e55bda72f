"""The demo on real smartwatch data: what its results say, that a second run trains nothing, and
that a killed one ends in the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from tests.conftest import ROOT, demo_wheel, wait_until
from tests.scripts.projects import Project

# Set-up runs the whole demo within its first test.
pytestmark = pytest.mark.timeout(600)
# The folds of the run that is killed: enough that it is half-way for a while, few enough to wait
# for.
KILLED_FOLDS = ("p03", "p04", "p08")


def with_data(parent: Path) -> Project:
    """A project as `make demo` finds it, with the recordings that were fetched before where there
    are any.
    """
    wheel = demo_wheel()
    project = Project.create(parent)
    (project.folder / "cache").mkdir()
    shutil.copy(wheel, project.folder / "cache" / wheel.name)
    for name in ("demo_grid.json", "cluster_config.json"):
        shutil.copy(ROOT / name, project.folder)
    project.run("prepare_data.py", "--demo", "--data_path", "data/watch")
    return project


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The whole demo, undisturbed, and what it said."""
    project = with_data(tmp_path_factory.mktemp("demo"))
    project.run("generate_jobs.py", "--grid", "demo_grid.json")
    return project, project.run("run_two_phase_distributed.py", timeout=500).stdout


@pytest.fixture(scope="module")
def scores(demo: tuple[Project, str]) -> dict[str, dict[str, float]]:
    """Test macro F1 by column (base, tuned10, tuned100, scratch10, scratch100), then by person."""
    draws: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in (demo[0].folder / "experiments").glob("*/*/metrics.json"):
        metrics = json.loads(path.read_text())
        kind = "scratch" if metrics["mode"] == "target_only" else "tuned"
        person = metrics["target_participant"]
        draws[f"{kind}{100 * metrics['target_data_pct']:g}"][person].append(
            metrics["test_macro_f1"]
        )
        if kind == "tuned":
            draws["base"][person].append(metrics["base_test_macro_f1"])
    assert {len(values) for values in draws["tuned10"].values()} == {3}
    found = {
        name: {person: fmean(values) for person, values in people.items()}
        for name, people in draws.items()
    }
    assert {name: len(people) for name, people in found.items()} == {
        "base": 10,
        "tuned10": 10,
        "tuned100": 10,
        "scratch10": 10,
        "scratch100": 10,
    }
    return found


def mean(column: dict[str, float]) -> float:
    return fmean(column.values())


def test_fine_tuning_on_everything_beats_the_untouched_base_for_most_and_on_average(
    scores: dict[str, dict[str, float]],
) -> None:
    gains = [scores["tuned100"][person] - scores["base"][person] for person in scores["base"]]
    assert sum(gain > 0 for gain in gains) > len(gains) / 2, gains
    assert fmean(gains) > 0


def test_fine_tuning_on_a_tenth_beats_a_tenth_from_scratch_on_average(
    scores: dict[str, dict[str, float]],
) -> None:
    assert mean(scores["tuned10"]) > mean(scores["scratch10"]), {
        name: mean(column) for name, column in scores.items()
    }


def test_the_closing_table_holds_every_person_and_the_means(
    demo: tuple[Project, str], scores: dict[str, dict[str, float]]
) -> None:
    lines = demo[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("participant"))
    assert [line.split()[0] for line in lines[start + 1 : start + 13]] == [
        *(f"p{number:02d}" for number in range(1, 11)),
        "n",
        "mean",
    ]
    assert f"{mean(scores['base']):.3f}".lstrip("0") in lines[start + 12]
    assert f"{mean(scores['tuned100']):.3f}".lstrip("0") in lines[start + 12]
    assert lines[-1] == "130 done, 0 failed, 0 blocked, 0 left, 0 reused"


def test_a_second_run_trains_nothing_and_says_so(demo: tuple[Project, str]) -> None:
    project, _ = demo
    before, runs = project.published(), project.ran()
    assert (
        "data/watch is up to date"
        in project.run("prepare_data.py", "--demo", "--data_path", "data/watch").stdout
    )
    project.run("generate_jobs.py", "--grid", "demo_grid.json")
    assert (
        project.run("run_two_phase_distributed.py").stdout.splitlines()[-1]
        == "nothing to do: all 130 results are there"
    )
    assert project.ran() == runs
    assert project.published() == before


def test_killed_half_way_and_started_again_it_ends_in_the_same_bytes(
    demo: tuple[Project, str], tmp_path: Path
) -> None:
    project = with_data(tmp_path)
    project.run("generate_jobs.py", "--grid", "demo_grid.json", "--folds", *KILLED_FOLDS)
    number = len(project.jobs("base_training_jobs.json")) + len(project.jobs("finetune_jobs.json"))
    with project.started("run_two_phase_distributed.py") as run:
        wait_until(
            lambda: len(project.events("done")) >= 4 or run.poll() is not None,
            200,
            "the fourth result",
        )
        assert run.poll() is None, project.output
        run.kill()
        run.wait()
        wait_until(lambda: not project.processes(), what="the end of the workers")
    half = len(
        [path for path in project.published() if path.endswith(("metrics.json", "_metadata.json"))]
    )
    assert 0 < half < number
    said = project.run("run_two_phase_distributed.py", timeout=200).stdout
    assert ", 0 failed, 0 blocked, 0 left, " in said
    here, undisturbed = project.published(), demo[0].published()
    assert (
        len([path for path in here if path.endswith(("metrics.json", "_metadata.json"))]) == number
    )
    assert [name for name in here if here[name] != undisturbed.get(name)] == []
    assert not list(project.folder.glob("checkpoints/*"))
