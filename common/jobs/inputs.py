"""The files that a job reads. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from common.data.manifest import MANIFEST, Sha256Cache
from common.jobs import identity
from common.jobs.job_files import Job
from common.paths import SPLITS, Paths, windows_file

File = tuple[str, str]  # data_path, file name


def data_files(job: Job) -> list[File]:
    """The files that a job reads: its data, and the user's own code and initial weights."""
    if job.kind == "base":
        names = identity.base_data_files(job.base)
        return [identity.file_location(job.base.data_path, name) for name in names]
    if job.kind == "finetune":
        people = identity.base_participants(job.finetune) if job.needs else []
        return [
            identity.file_location(job.finetune.data_path, name)
            for name in identity.finetune_data_files(job.finetune, people)
        ]
    return []


def own_files(job: Job) -> list[File]:
    """Those of `data_files` that are not of a data set."""
    if job.kind == "script":
        return []
    options = job.base if job.kind == "base" else job.finetune
    return [identity.file_location("", name) for name in options.own_files()]


def all_data_files(jobs: Iterable[Job]) -> list[File]:
    """The data files that these jobs read, each once."""
    return list(dict.fromkeys(file for job in jobs for file in data_files(job)))


def beside_files(job: Job) -> list[File]:
    """Files that a job reads beside its data where they exist: dataset.json, and for a fine-tune
    the lists of its target's windows.
    """
    if job.kind == "script":
        return []
    data_path = str(job.values["data_path"])
    names = (
        [windows_file(identity.target(job.finetune), split) for split in SPLITS]
        if job.kind == "finetune"
        else []
    )
    return [(data_path, name) for name in (MANIFEST, *names)]


def found_beside(paths: Paths, jobs: Iterable[Job]) -> dict[File, str]:
    """SHA-256 of those files of `beside_files` that exist in this project folder."""
    cache, found = Sha256Cache(paths.sha256_cache), dict[File, str]()
    for data_path, name in dict.fromkeys(file for job in jobs for file in beside_files(job)):
        if (paths.data(data_path) / name).is_file():
            found[data_path, name] = cache.sha256(paths.data(data_path) / name)
    return found


def path_of(file: File) -> str:
    """The file's path: relative to the project folder, or absolute."""
    return f"{file[0]}/{file[1]}" if file[0] else file[1]
