"""Files of a run in runs/{id}/: event log, logs of jobs, and the status that --status shows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from common.artifacts import write_file
from common.cluster.on_node import processes
from common.errors import InputError, nearest
from common.paths import EXPERIMENT_LOG, EXPERIMENT_METRICS, EXPERIMENTS, Paths

MAX_LOG = 64 << 10  # characters of a job's log


def new_run_id() -> str:
    """Local time, with a fraction of the second: two runs have two ids. Clocks and time zones
    change, so ids do not tell which run is the latest; see `_runs`.
    """
    now = time.time()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now % 1 * 0x10000):04x}"


def events_file(part: str = "") -> str:
    """File name of an event log in a run's folder."""
    return f"events-{part}.jsonl" if part else "events.jsonl"


class Journal:
    """Event log (JSON lines), job logs and status of one run. `part`: names the event log of one of
    several writers, which never share a file.
    """

    def __init__(self, paths: Paths, run_id: str, part: str = "") -> None:
        self.folder = paths.run(run_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run_id = run_id
        self._events: TextIO = (self.folder / events_file(part)).open("a", encoding="utf-8")
        self._started: dict[str, float] = {}  # job -> when it was started last

    def event(self, event: str, **fields: Any) -> None:
        """Append one line, with the time."""
        if event == "started":
            self._started[fields["job"]] = time.monotonic()
        self._events.write(
            json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n"
        )
        self._events.flush()

    def job_log(self, job: str, text: str) -> str:
        """Write the end of a job's output to its log. Returns the path relative to the project
        folder.
        """
        path = self.folder / "logs" / f"{_file_name(job)}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text[-MAX_LOG:], encoding="utf-8", errors="replace")
        return str(path.relative_to(self.folder.parent.parent))

    def status(self, status: dict[str, Any]) -> None:
        """Write what --status shows. Adds to each running job whose start
        is in this event log the seconds since then.
        """
        for node in status["nodes"]:
            for job in node["running"]:
                if job["job"] in self._started:
                    job["seconds"] = time.monotonic() - self._started[job["job"]]
        told = {**status, **_ourselves(), "run": self.run_id, "updated": time.time()}
        write_file(self.folder / "status.json", json.dumps(told).encode(), durable=False)

    def close(self) -> None:
        """Close the event log."""
        self._events.close()


def _ourselves() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "process_began": processes.start_time(pid)}


def is_killed(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this status, on this machine, is gone."""
    began = status.get("process_began")
    return (
        began is not None
        and status["host"] == platform.node()
        and processes.start_time(status["pid"]) != began
    )


def _file_name(job: str) -> str:
    """A file name for a job that no other job has; its id where a file can have that name."""
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "_", job)[:150]
    return (
        plain
        if plain == job
        else f"{plain}-{hashlib.sha256(job.encode(errors='surrogatepass')).hexdigest()[:8]}"
    )


def log_of(paths: Paths, job: str) -> Path:
    """The log of a job: what it printed in the latest run in which it printed something, or the log
    of its training. Of a job that is done, no log of an earlier failure.

    Raises:
        InputError: there is none; names the job most like it.
    """
    job = job.removeprefix(f"{EXPERIMENTS}/").rstrip("/")
    own = paths.experiments / job / EXPERIMENT_LOG
    printed = {folder / "logs" / f"{_file_name(job)}.log": folder for folder in _runs(paths)}
    is_done = _has_succeeded(paths, job)
    logs = [log for log, run in printed.items() if not (is_done and _failed_in(run, job))]
    for path in (*logs, own):
        if path.is_file():
            return path
    if is_done:
        raise InputError(f"{job}: done; no log")
    known = {str(event["job"]) for event in past_events(paths) if "job" in event}
    if job in known:
        raise InputError(f"{job}: has no log: it is running, or it printed nothing")
    raise InputError(
        f"{job}: no run has started such a job{nearest(job, known)}; give its id, such as"
        " PREFIX/fold0_NAME or a base model's hash"
    )


def _has_succeeded(paths: Paths, job: str) -> bool:
    """Whether its result is published, and it has not failed since."""
    failed_at = _event_time(last_failures(paths).get(job, {}))
    for result in (paths.experiments / job / EXPERIMENT_METRICS, paths.base_metadata(job)):
        with contextlib.suppress(OSError):
            return result.stat().st_mtime >= failed_at
    return False


def _failed_in(run: Path, job: str) -> bool:
    """Whether an attempt of the job failed in this run, or its worker died."""
    events = [event for log in run.glob("events*.jsonl") for event in parse_events(log)]
    return any(
        event.get("job") == job and event.get("event") in ("failed", "worker") for event in events
    )


def latest_status(paths: Paths) -> dict[str, Any] | None:
    """The status of the latest run, or None where there was none."""
    for folder in _runs(paths):
        with contextlib.suppress(OSError, ValueError):
            status = json.loads((folder / "status.json").read_bytes())
            if isinstance(status, dict):
                return status
    return None


def _runs(paths: Paths) -> list[Path]:
    """The runs' folders, the latest first."""
    return sorted(paths.runs.glob("*"), key=_began, reverse=True)


def _began(folder: Path) -> tuple[float, str]:
    """Orders runs by their first event, whatever time zone their ids are in; runs without events by
    their folders.
    """
    with contextlib.suppress(OSError):
        # that of the orchestrator first, before those of tasks
        for log in sorted(folder.glob("events*.jsonl"), reverse=True):
            with log.open("rb") as file:
                if events := events_in(file.readline()):
                    return _event_time(events[0]), folder.name
        return folder.stat().st_mtime, folder.name
    return 0.0, folder.name


def past_events(paths: Paths) -> Iterator[dict[str, Any]]:
    """All events of all runs, the oldest run first; incomplete lines are skipped."""
    folders = {path.parent for path in paths.runs.glob("*/events*.jsonl")}
    for folder in sorted(folders, key=_began):
        logs = [parse_events(path) for path in sorted(folder.glob("events*.jsonl"))]
        yield from (
            logs[0]
            if len(logs) == 1
            else sorted((event for log in logs for event in log), key=_event_time)
        )


def parse_events(path: Path) -> list[dict[str, Any]]:
    """The events of one log; empty where it cannot be read."""
    try:
        return events_in(path.read_bytes())
    except OSError:
        return []


def events_in(lines: bytes) -> list[dict[str, Any]]:
    """The events in some lines; lines that a crash or a full disk cut short are skipped."""
    events: list[dict[str, Any]] = []
    for line in lines.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    return events


def _event_time(event: dict[str, Any]) -> float:
    when = event.get("time")
    return float(when) if isinstance(when, (int, float)) else 0.0


def last_failures(paths: Paths) -> dict[str, dict[str, Any]]:
    """The last failure of each job that has not succeeded since."""
    failures: dict[str, dict[str, Any]] = {}
    for event in past_events(paths):
        job = event.get("job")
        if event.get("event") == "failed" and isinstance(job, str):
            failures[job] = event
        elif event.get("event") == "done" and isinstance(job, str):
            failures.pop(job, None)
    return failures
