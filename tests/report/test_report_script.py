"""report.py as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.report.made import PEOPLE, Made

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_summary_has_a_row_an_experiment_and_missing_a_row_a_gap(report: Path) -> None:
    summary = pd.read_csv(report / "summary.csv")
    assert len(summary) == 56
    assert not summary.duplicated(["folder"]).any()
    assert {
        "lr",
        "test_macro_f1",
        "base_test_macro_f1",
        "train_windows",
        "selection_windows",
        "train_hours",
        "train_seconds",
        "test_event_recall",
        "base_test_event_f1_iou_tuned",
        "test_tp",
    } <= set(summary)
    missing = pd.read_csv(report / "missing.csv")
    assert missing[["prefix", "reason"]].to_numpy().tolist() == [["missing", "never run"]]


def test_every_figure_is_there_at_300_dpi_and_as_svg(report: Path) -> None:
    names = {path.stem for path in (report / "figures").glob("*.png")}
    assert names == {
        "paired",
        "fraction",
        "heat_map",
        "base_participants",
        "gain",
        "reliability",
        "compare_mode",
        "precision_recall",
        "probability",
        "training",
    }
    for name in names:
        image = matplotlib.image.imread(report / "figures" / f"{name}.png")
        assert image.shape[1] in (1050, 2130), name  # 3.5 and 7.1 inches
        assert (report / "figures" / f"{name}.svg").read_text().startswith("<?xml")


def test_axes_name_what_they_show(report: Path) -> None:
    # matplotlib writes each text as a comment before its outlines
    assert "<!-- Median test macro F1 -->" in (report / "figures" / "fraction.svg").read_text()
    probability = (report / "figures" / "probability.svg").read_text()
    assert "<!-- Minutes from the session's start -->" in probability


def test_a_second_report_has_the_same_bytes(report: Path, project: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "report.py"),
            "--compare",
            "mode",
            "--out",
            str(tmp_path / "again"),
        ],
        cwd=project,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0
    files = [path.relative_to(report) for path in report.rglob("*") if path.is_file()]
    assert len(files) == 27
    assert [
        name
        for name in files
        if (report / name).read_bytes() != (tmp_path / "again" / name).read_bytes()
    ] == []


def test_the_latex_table_and_the_macros_hold_the_same_numbers(report: Path) -> None:
    table, numbers = (report / "main_table.tex").read_text(), (report / "numbers.tex").read_text()
    assert r"fine-tuned, target only, 10 \%" in table
    assert table.count(r"\begin{tabular}") == 2  # at 0.5 and tuned
    assert re.findall(r"\\label\{(.*)\}", table) == [
        "tab:personalisation",
        "tab:personalisation-tuned",
    ]
    macros = dict(re.findall(r"\\newcommand\{\\(\w+)\}\{(.*)\}", numbers))
    assert macros["persPrimaryMedian"] == ".85"
    assert macros["persBaseMedian"] == ".80"
    assert macros["persPrimaryBetter"] == "7"
    assert macros["persPrimaryP"] == "p = .016"
    assert macros["persPrimaryWindows"] == "31"
    assert (
        macros["persTargetOnlyFineTuningOneZeroZeroMedian"]
        == macros["persTargetOnlyFineTuningOneZeroZeroMean"]
        == ".90"
    )
    assert all(name.isalpha() for name in macros)
    assert len(macros) == numbers.count("newcommand")
    assert ".85" in table


def test_the_markdown_table_is_a_table(report: Path) -> None:
    lines = (report / "main_table.md").read_text().splitlines()
    assert lines[0].startswith("| Condition | n | Training windows | Selection windows |")
    assert len({line.count(" | ") for line in lines[2:9]}) == 1


def test_contrasts_are_written_with_their_adjusted_p(report: Path) -> None:
    rows = pd.read_csv(report / "contrasts.csv", dtype={"threshold": str})
    assert rows["primary"].sum() == 1
    assert rows.loc[rows["primary"], "p"].item() == pytest.approx(2 / 128)
    assert "mode: full_fine_tuning − target_only_fine_tuning" in set(rows["contrast"])


def test_page_and_main_table_round_p_values_alike(report: Path) -> None:
    page, rows = (
        (report / "index.html").read_text(),
        pd.read_csv(report / "contrasts.csv", dtype={"threshold": str}),
    )
    largest = rows.loc[
        (rows["threshold"] == "0.5") & rows["contrast"].str.endswith("untouched base"), "p_holm"
    ].max()
    assert largest >= 0.1
    # main table and contrasts
    assert page.count(f'<td class="n">{largest:.2f}</td>'.replace("0.", ".")) >= 2
    assert f'<td class="n">{largest:.3f}</td>'.replace("0.", ".") not in page


def test_filters_metric_and_experiment_are_obeyed(project: Path, run: Run, tmp_path: Path) -> None:
    argv = [
        "--filter",
        "n_base_participants=3",
        "--metric",
        "event_recall",
        "--experiment",
        "",
        "--out",
        tmp_path / "out",
    ]
    folder = next(
        path
        for path in (project / "experiments").glob(
            "target_only_fine_tuning_pct0.1_base3*/fold2_carla"
        )
    )
    argv[5] = f"{folder.parent.name}/{folder.name}"
    done = run("report.py", *argv, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "14 experiments" in done.stdout
    assert "changes event recall by" in done.stdout
    assert "carla, fine-tuned, target only, 10 %" in (tmp_path / "out" / "index.html").read_text()


def test_a_filter_on_the_second_of_two_equal_prefixes_reports_it(made: Made, run: Run) -> None:
    for prefix in ("one", "two"):
        for person in PEOPLE:
            made.run(person, prefix=prefix)
    done = run("report.py", "--filter", "prefix=two", cwd=made.root)
    assert done.returncode == 0, done.stderr
    assert "better for 7 of 7 people" in done.stdout
    assert pd.read_csv(made.root / "report" / "summary.csv")["duplicate_of"].isna().all()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--metric", "macro_f"], "--metric macro_f: not among the scores"),
        (["--filter", "fold=99"], "--filter fold=99: no experiment has it; fold is 0, 1, 2"),
        (["--compare", "lr"], "--compare lr: these experiments vary"),
        (["--experiment", "a/b"], "--experiment a/b: no readable experiment of that name"),
        (["nowhere"], "no experiments/ in it"),
        (["--metrics", "loss"], "unknown argument --metrics, did you mean --metric?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    project: Path, run: Run, tmp_path: Path, argv: list[str], message: str
) -> None:
    done = run("report.py", *argv, "--out", tmp_path / "none", cwd=project)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_files_of_the_users_own_are_never_replaced(made: Made, run: Run, tmp_path: Path) -> None:
    made.run("anna")
    (tmp_path / "notes.txt").write_text("mine")
    own = tmp_path / "own"
    own.mkdir()
    (own / "summary.csv").write_text("mine")
    for out, said in (
        (own, "holds summary.csv and no report"),
        (tmp_path / "notes.txt", "is a file"),
    ):
        done = run("report.py", "--out", out, cwd=made.root)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr
    assert (own / "summary.csv").read_text() == "mine"
    (own / "summary.csv").unlink()
    assert run("report.py", "--out", own, cwd=made.root).returncode == 0
    for path in own.glob("*.csv"):  # as of one that was cut short after the page
        path.unlink()
    assert run("report.py", "--out", own, cwd=made.root).returncode == 0
    assert (own / "summary.csv").exists()


def test_todays_job_files_say_which_data_come_first(made: Made, run: Run) -> None:
    for person in PEOPLE:
        for fraction in (0.1, 1.0):
            made.run(person, target_data_pct=fraction, data_path="data/demo")
    made.jobs.clear()
    for person in PEOPLE:
        made.run(person, data_path="data/mine")
    done = run("report.py", cwd=made.root)
    assert done.stdout.startswith("data/demo: ")  # the larger one
    made.write_jobs()
    done = run("report.py", cwd=made.root)
    assert done.stdout.startswith("data/mine: ")
    assert "also on the page: data/demo" in done.stdout


def test_before_the_first_result_there_is_a_page_that_says_so(made: Made, run: Run) -> None:
    made.plan("anna")
    made.write_jobs()
    (made.root / "experiments" / "p" / "fold0_anna").mkdir(parents=True)
    done = run("report.py", cwd=made.root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "No experiment is complete yet."
    assert "left out: project/experiments/p/fold0_anna: empty" in done.stderr
    assert "No experiment is complete yet." in (made.root / "report" / "index.html").read_text()
    assert len(pd.read_csv(made.root / "report" / "missing.csv")) == 1


def test_data_that_were_moved_away_are_named_on_the_terminal_and_the_page(
    made: Made, run: Run
) -> None:
    for person in PEOPLE:
        made.run(person, base=0.7, fine=0.8)
    made.write_jobs()
    shutil.rmtree(made.root / made.data_path, ignore_errors=True)
    done = run("report.py", cwd=made.root)
    assert done.returncode == 0, done.stderr
    said = f"{made.data_path} is not here (moved?): that none of its results is stale cannot be"
    assert said in done.stderr
    assert said in (made.root / "report/index.html").read_text()


def test_one_of_a_thing_is_not_called_by_its_plural(made: Made, run: Run) -> None:
    made.run("anna", base=0.7, fine=0.8)
    made.plan("ben")
    made.write_jobs()
    done = run("report.py", cwd=made.root)
    assert "1 experiment, 1 planned one without a result (missing.csv)" in done.stdout
    page = (made.root / "report/index.html").read_text()
    assert "1 planned experiment without a result (1 never run)" in page
    assert not re.findall(
        r"(?<! of )\b1 [a-z ]*(?:experiments|fine-tunes|folders|conditions)\b", page
    )


@pytest.mark.parametrize("people", [1, 5])
def test_few_participants_give_a_report_without_a_test(made: Made, run: Run, people: int) -> None:
    for person in PEOPLE[:people]:
        made.run(person, target_data_pct=0.1)
    done = run("report.py", cwd=made.root)
    assert done.returncode == 0, done.stderr
    assert f"n = {people} is too small for a test" in done.stdout


def test_only_experiments_from_scratch_give_a_report_too(made: Made, run: Run) -> None:
    for person in PEOPLE:
        made.run(person, mode="target_only")
    done = run("report.py", cwd=made.root)
    assert done.returncode == 0, done.stderr
    assert (
        "There is no participant yet with both a base score and a fine-tuned score." in done.stdout
    )


def test_undefined_scores_everywhere_give_a_report_that_names_them(made: Made, run: Run) -> None:
    for person in PEOPLE:
        made.run(
            person,
            fine=None,
            base=None,
            metrics={"undefined": {"test_macro_f1": "the test windows hold one class only"}},
        )
    done = run("report.py", cwd=made.root)
    assert done.returncode == 0, done.stderr
    assert (
        "the test windows hold one class only" in (made.root / "report" / "index.html").read_text()
    )


def test_two_projects_are_compared(made: Made, run: Run, tmp_path: Path) -> None:
    other = Made(tmp_path / "other")
    for person in PEOPLE:
        made.run(person, target_data_pct=0.1)
        other.run(person, target_data_pct=0.1, fine=0.95)
    done = run("report.py", made.root, other.root, "--out", tmp_path / "both", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "both" / "index.html").read_text()
    assert "Compared: project" in page
    assert (tmp_path / "both" / "figures" / "grid2_paired.png").is_file()
    labels = re.findall(
        r"\\label\{tab:personalisation(.*)\}", (tmp_path / "both" / "main_table.tex").read_text()
    )
    assert labels == ["", "-tuned", "-grid2", "-grid2-tuned"]
    assert set(pd.read_csv(tmp_path / "both" / "summary.csv")["project"]) == {"project", "other"}


def test_projects_with_other_data_are_not_compared_and_it_is_said(
    made: Made, run: Run, tmp_path: Path
) -> None:
    other = Made(tmp_path / "other", data_path="data/other")
    for person in PEOPLE:
        made.run(person)
        other.run(person, fine=0.95)
    done = run("report.py", made.root, other.root, "--out", tmp_path / "both", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "both" / "index.html").read_text()
    assert "Compared: project" not in page
    assert "no two of them have results on the same data" in page


def test_the_report_needs_no_torch() -> None:
    code = "import sys, common.report.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_every_flag_has_help(run: Run) -> None:
    done = run("report.py", "--help")
    assert done.returncode == 0
    for flag in ("--metric", "--compare", "--filter", "--out", "--experiment"):
        assert flag in done.stdout


def test_figures_do_not_depend_on_the_users_matplotlib(made: Made, run: Run) -> None:
    for person in PEOPLE:
        made.run(person)
    assert run("report.py", cwd=made.root).returncode == 0
    plain = (made.root / "report" / "figures" / "gain.svg").read_bytes()
    (made.root / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: black\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "report.py")],
        cwd=made.root,
        env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (made.root / "report" / "figures" / "gain.svg").read_bytes() == plain


def test_rules_of_events_out_of_bounds_are_one_line(made: Made, run: Run) -> None:
    made.run("anna")
    done = run("report.py", "--event_iou", "2", cwd=made.root)
    assert done.returncode == 2
    assert done.stderr == "error: --event_iou 2: a number above 0, at most 1, is needed\n"
