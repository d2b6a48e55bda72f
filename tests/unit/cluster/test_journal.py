"""What a run leaves behind, and in which order the next one reads it."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from common.cluster import command
from common.cluster.journal import (
    MAX_LOG,
    Journal,
    last_failures,
    latest_status,
    log_of,
    new_run_id,
)
from common.errors import InputError
from common.paths import Paths


def test_runs_within_one_second_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path)
    for moment, event in (
        (1_800_000_000.2, "failed"),
        (1_800_000_000.3, "done"),
        (1_800_000_000.4, "failed"),
        (1_800_000_000.5, "done"),
    ):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        journal = Journal(paths, new_run_id())
        journal.event(event, job="a")
        journal.event("failed", job=f"b{moment}")
        journal.close()
    assert len(last_failures(paths)) == 4
    assert "a" not in last_failures(paths)


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [("Asia/Tokyo", "America/New_York", 60), ("Europe/Berlin", "Europe/Berlin", 3600 - 60)],
    ids=["another time zone", "the hour that summer time repeats"],
)
def test_the_latest_run_is_the_last_that_began_whatever_the_clock_on_the_wall_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, seconds: int
) -> None:
    paths, moment = Paths(tmp_path), 1_824_944_100.0  # 31 October 2027, 02:55 in Berlin
    ids = []
    with pytest.MonkeyPatch.context() as zone:
        for tz, now in ((first, moment), (second, moment + seconds)):
            zone.setenv("TZ", tz)
            time.tzset()
            monkeypatch.setattr(time, "time", lambda now=now: now)
            ids.append(new_run_id())
            with closing(Journal(paths, ids[-1])) as journal:
                journal.event("done" if len(ids) == 2 else "failed", job="a")
                journal.job_log("a", ids[-1])
                journal.status({"nodes": []})
    time.tzset()
    assert ids[1] < ids[0]
    latest = latest_status(paths)
    assert latest is not None
    assert latest["run"] == ids[1]
    assert log_of(paths, "a").read_text() == ids[1]
    assert last_failures(paths) == {}


def test_of_a_log_the_end_is_kept(tmp_path: Path) -> None:
    with closing(Journal(Paths(tmp_path), "run")) as journal:
        kept = journal.job_log("job0", "x" * MAX_LOG + "the end")
    text = (tmp_path / kept).read_text()
    assert (len(text), text[-8:]) == (MAX_LOG, "xthe end")


def test_no_two_jobs_share_a_log(tmp_path: Path) -> None:
    jobs = ["a b", "a_b", "a/b", "a\udcffb", "x" * 200, "x" * 201, "job0"]
    with closing(Journal(Paths(tmp_path), "run")) as journal:
        kept = [journal.job_log(job, str(number)) for number, job in enumerate(jobs)]
    assert [(tmp_path / path).read_text() for path in kept] == [
        str(number) for number in range(len(jobs))
    ]
    assert [kept[1], kept[-1]] == ["runs/run/logs/a_b.log", "runs/run/logs/job0.log"]


def test_the_log_of_a_job_is_that_of_the_latest_run_that_kept_one(tmp_path: Path) -> None:
    paths, job = Paths(tmp_path), "p/fold0_ann"
    for run in ("1", "2", "3"):
        with closing(Journal(paths, run)) as journal:
            journal.event("started", job=job)
            if run != "3":
                kept = journal.job_log(job, run)
    assert log_of(paths, job) == log_of(paths, f"experiments/{job}/") == tmp_path / kept
    assert log_of(paths, job).read_text() == "2"
    quiet = paths.experiments / "p/fold1_bob" / "train.log"
    quiet.parent.mkdir(parents=True)
    quiet.touch()
    assert log_of(paths, "p/fold1_bob") == quiet
    with pytest.raises(InputError, match=r"did you mean p/fold0_ann\?"):
        log_of(paths, "p/fold0_an")


@pytest.mark.parametrize("event", ["failed", "worker"])
def test_of_a_job_that_failed_and_is_done_since_the_failure_is_not_its_log(
    tmp_path: Path, event: str
) -> None:
    paths, job, base = Paths(tmp_path), "p/fold0_ann", "0123456789abcdef"
    with closing(Journal(paths, "1")) as journal:
        for name in (job, base):
            journal.event(event, job=name)
            journal.job_log(name, "the failure")
    assert log_of(paths, job).read_text() == log_of(paths, base).read_text() == "the failure"
    own = paths.experiments / job
    own.mkdir(parents=True)
    paths.base_models.mkdir()
    for result in (own / "train.log", own / "metrics.json", paths.base_metadata(base)):
        result.write_text("the result")
    assert log_of(paths, job) == own / "train.log"
    with pytest.raises(InputError, match="done; no log"):
        log_of(paths, base)
    with closing(Journal(paths, "2")) as journal:
        printed = journal.job_log(job, "printed")
    assert log_of(paths, job) == tmp_path / printed


def test_the_status_says_how_long_a_job_has_been_running(tmp_path: Path) -> None:
    with closing(Journal(Paths(tmp_path), "run")) as journal:
        journal.event("started", job="a")
        running = [{"job": "a"}, {"job": "b"}]
        journal.status({"nodes": [{"running": running}]})
    assert running[0].keys() == {"job", "seconds"}
    assert running[1].keys() == {"job"}


def test_the_path_of_a_log_is_said_relative_where_it_lies_in_the_project_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, link = tmp_path / "project", tmp_path / "link"
    for folder in (project / "experiments/p/fold0_ann", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "train.log").touch()
    link.symlink_to(project)
    monkeypatch.chdir(link)

    def said(job: object) -> str:
        args = command.parser("").parse(["--log", str(job)])
        assert command.execute(args, lambda data: ([], [], None)) == 0
        return capsys.readouterr().out.strip()

    inside = "experiments/p/fold0_ann/train.log"
    assert said("p/fold0_ann") == said(link / "experiments/p/fold0_ann/") == inside
    assert said(tmp_path / "elsewhere") == f"{tmp_path}/elsewhere/train.log"
