"""Which cells of the grid have no result, and why: failed, blocked, stale, unreadable or never
run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from common.cli import few
from common.cluster.journal import past_events
from common.data.data_sets import Data
from common.errors import InputError
from common.jobs import identity
from common.jobs.job_files import Job, read_jobs
from common.jobs.verdicts import changed, kind_of_files
from common.options import FinetuneOptions
from common.paths import FINETUNE_JOBS, Paths
from common.report.collect import Collection, Project, Run, mark_versions

MISSING_COLUMNS = (
    "project",
    "prefix",
    "fold",
    "target_participant",
    "mode",
    "target_data_pct",
    "base_model_hash",
    "reason",
    "detail",
    "log",
)
OUTCOMES = ("started", "done", "reused", "failed", "blocked")
Sha256 = Callable[[str, str], str | None]


def mark_stale(collection: Collection) -> None:
    """Add the column `stale`: why a result no longer stands for today's data or base model; None
    where it does. What most others were made with is then told from those that stand.
    """
    reasons: dict[int, str | None] = {}
    for project in collection.projects:
        sha256 = known_sha256(Data(project.paths))
        for index, run in collection.runs.items():
            if collection.table.at[index, "project"] == project.label:
                reasons[index] = _stale(run, project, sha256)
    collection.table["stale"] = [reasons[index] for index in collection.table.index]
    if reasons:
        mark_versions(collection.table, collection.runs)


def known_sha256(data: Data) -> Sha256:
    """SHA-256 of a data file, or None where the data are not on this machine."""

    @cache
    def sha256(data_path: str, name: str) -> str | None:
        try:
            return data.sha256(data_path, name)
        except InputError:
            return None

    return sha256


def _stale(run: Run, project: Project, sha256: Sha256) -> str | None:
    base = project.bases.get(str(run.config.get("base_model_hash")))
    if base and base.get("weights_sha256") != run.config.get("base_weights_sha256"):
        return f"its base model {run.config['base_model_hash']} was trained anew since"
    made_of = [("", run.config)]
    if base:
        made_of.append((f"its base model {run.config['base_model_hash']} is stale: ", base))
    for what, record in made_of:
        recorded = record.get("data_fingerprints", {})
        today = {
            name: sha256(*identity.file_location(run.config["options"]["data_path"], name))
            for name in recorded
        }
        files = changed(recorded, {name: sha for name, sha in today.items() if sha is not None})
        if files:
            return f"{what}{kind_of_files(files)} changed since: {few(files)}"
    return None


def planned_jobs(collection: Collection) -> tuple[dict[str, list[Job]], list[str]]:
    """The fine-tunes of today's job files by project, and what kept us from knowing them."""
    plans: dict[str, list[Job]] = {}
    notes: list[str] = []
    for project in collection.projects:
        path = project.paths.root / FINETUNE_JOBS
        if not path.is_file():
            notes.append(
                f"{project.label}: no {FINETUNE_JOBS}, so it is not known which experiments are"
                " missing"
            )
            continue
        try:
            plans[project.label] = read_jobs(path, "finetune", Data(project.paths))
        except InputError as error:
            notes.append(f"which experiments are missing cannot be said: {error}")
    return plans, notes


def missing_cells(
    collection: Collection, plans: Mapping[str, Sequence[Job]]
) -> list[dict[str, Any]]:
    """The planned experiments without a result."""
    return [
        cell
        for project in collection.projects
        for cell in _missing_of(project, plans.get(project.label, ()), collection)
    ]


def _missing_of(
    project: Project, jobs: Sequence[Job], collection: Collection
) -> list[dict[str, Any]]:
    mine = (
        collection.table[collection.table["project"] == project.label]
        if len(collection.table)
        else collection.table
    )
    done = {
        f"{row.folder}".split("/", 1)[1]: index
        for index, row in zip(mine.index, mine.itertuples(), strict=True)
    }
    unreadable = {
        skip.folder.removeprefix(f"{project.label}/experiments/"): skip.reason
        for skip in collection.skipped
    }
    events = last_events(project.paths)
    cells = []
    for job in jobs:
        if job.id in done:
            index = done[job.id]
            why = collection.table.at[index, "stale"] or _other_configuration(
                collection.runs[index], job.finetune
            )
            found = ("stale", why, "") if why else None
        else:
            found = _reason(job, project, unreadable.get(job.id), events)
        if found:
            cells.append(_cell(project, job, *found))
    return cells


def _other_configuration(run: Run, planned: FinetuneOptions) -> str | None:
    """How a result's options differ from the planned ones, or None."""
    there = identity.experiment_fields(FinetuneOptions.parse(run.config["options"], "config.json"))
    here = identity.experiment_fields(planned)
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if not names:
        return None
    return "results of another configuration: " + ", ".join(
        f"{name} {there.get(name)} there, {here.get(name)} planned" for name in names[:3]
    )


def _reason(
    job: Job, project: Project, unreadable: str | None, events: dict[str, dict[str, Any]]
) -> tuple[str, str, str]:
    """Kind, detail and log of a cell that has no readable result."""
    event = events.get(job.id, {})
    base_event = events.get(job.needs or "", {})
    if event.get("event") == "failed":
        return "failed", str(event.get("error", "")), str(event.get("log", ""))
    if job.needs and job.needs not in project.bases and base_event.get("event") == "failed":
        return (
            "blocked",
            f"its base model {job.needs} failed: {base_event.get('error', '')}",
            str(base_event.get("log", "")),
        )
    if event.get("event") == "blocked":
        return "blocked", str(event.get("error", "")), ""
    if unreadable:
        return "unreadable", unreadable, ""
    if job.needs and job.needs not in project.bases:
        return "never run", f"waits for its base model {job.needs}", ""
    return "never run", "started, not finished" if event else "", str(event.get("log", ""))


def _cell(project: Project, job: Job, reason: str, detail: str, log: str) -> dict[str, Any]:
    values = job.values
    cell = {
        "project": project.label,
        "prefix": values["prefix"],
        "fold": values["fold"],
        "target_participant": values["participants"][values["fold"]],
    }
    cell |= {key: values[key] for key in ("mode", "target_data_pct", "base_model_hash")}
    return cell | {"reason": reason, "detail": detail, "log": log}


def last_events(paths: Paths) -> dict[str, dict[str, Any]]:
    """What last became of each job, over all runs."""
    last: dict[str, dict[str, Any]] = {}
    for event in past_events(paths):
        if event.get("event") in OUTCOMES and isinstance(event.get("job"), str):
            last[event["job"]] = event
    return last
