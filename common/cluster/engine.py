"""The interface of the two engines. An engine is a module with the functions of `Engine`:
ssh/start.py and slurm/start.py. Only the one that is used is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from common.cluster.config import ClusterConfig
from common.cluster.request import Prepared, Request
from common.cluster.work import Outcome, Report, Say, Show
from common.data.data_sets import DataSha256
from common.jobs.inputs import File
from common.paths import Paths


class Engine(Protocol):
    """Runs jobs on the machines of a configuration. What makes no sense for an engine raises
    InputError with the reason.
    """

    def run(self, request: Request, prepared: Prepared, say: Report, show: Show) -> Outcome:
        """Run a planned request to its end, or until the user leaves."""

    def data_fingerprints(
        self, config: ClusterConfig, paths: Paths, files: Sequence[File]
    ) -> dict[File, str]:
        """SHA-256 of data files that the head lacks, as far as the nodes have them. Raises
        InputError where two nodes have different ones.
        """

    def check(
        self, config: ClusterConfig, paths: Paths, files: Sequence[File], sha256: DataSha256
    ) -> tuple[list[str], bool]:
        """Lines for --check, and whether everything can work. Starts no job."""

    def setup(self, config: ClusterConfig, paths: Paths, say: Say) -> bool:
        """--setup-nodes. Returns whether all nodes can work."""

    def clean(self, config: ClusterConfig, paths: Paths, say: Say) -> bool:
        """--clean-nodes. Returns whether all nodes were cleaned."""

    def cancel(self, config: ClusterConfig, paths: Paths, say: Say) -> None:
        """--cancel: end this project's jobs that go on without the head."""

    def queue_lines(self, paths: Paths) -> list[str]:
        """What --status adds to the record of the run."""


def load_engine(name: str) -> Engine:
    """The engine that the configuration calls `name`, "ssh" or "slurm"."""
    if name == "slurm":
        from common.cluster.slurm import start as slurm

        return slurm
    from common.cluster.ssh import start as ssh

    return ssh
