"""What all parts of one run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.cluster.config import ClusterConfig
from common.cluster.estimates import Estimates
from common.cluster.journal import Journal
from common.cluster.results import Results
from common.cluster.scheduler.scheduler import Scheduler
from common.cluster.ssh.data_watch import DataWatch
from common.cluster.ssh.payload import Needs
from common.cluster.work import Report, Work, once
from common.jobs.job_files import Job
from common.paths import Paths

SEEN_SECONDS = 30.0  # how long the first jobs wait to hear what all nodes have already published


@dataclass
class RunContext:
    """One run. `say` takes lines for a person."""

    paths: Paths
    config_path: Path
    config: ClusterConfig
    work: Work
    needs: Needs
    results: Results
    journal: Journal
    estimates: Estimates
    scheduler: Scheduler
    say: Report
    push_all: bool = False  # send every node all published base models
    patience: float = SEEN_SECONDS
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)  # by running job
    logs: dict[str, str] = field(default_factory=dict)  # by job
    jobs: dict[str, Job] = field(init=False)
    new_data: str = ""  # a data_path that was prepared again: the run cannot go on

    def __post_init__(self) -> None:
        self.say_once = once(self.say)
        self._watch = DataWatch(self.paths, self.needs.data)
        self.jobs = {job.id: job for job in (*self.work.bases, *self.work.others)}

    def data_are_new(self) -> bool:
        """Whether data were prepared again since the run was planned. Asked now and then, and
        before a failure is put down to a job or a node.
        """
        self.new_data = self.new_data or self._watch.changed() or ""
        return bool(self.new_data)

    def keep_log(self, job: str, message: Mapping[str, Any]) -> None:
        """Keep the end of a job's log, where a worker's message has it."""
        if text := str(message.get("log") or ""):
            self.logs[job] = self.journal.job_log(job, text)

    def published_bases(self) -> list[str]:
        """The base models of this run's fine-tunes that the head has."""
        return [
            base
            for base in {job.needs for job in self.work.others if job.needs}
            if self.paths.base_metadata(base).is_file()
        ]
