"""Every exception that a user can meet, in one small tree.

    ProjectError                 something that the user is told in one line; exit 1
    |-- InputError               bad options, job files, configuration or data; exit 2, nothing
    changed on disk |   |-- BaseModelNotFound    no published base model under that hash |   `--
    Conflict             the place holds results of another configuration, or somebody else's lock
    |-- CorruptArtifact          a published file whose bytes are not those that were published;
    never loaded; exit 2 |-- TrainingError            the training itself went wrong (a loss that is
    not a number) `-- NodeError                a node's fault, not the job's: connection lost, disk
    full, GPU gone

A message is one line: what, where, why, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ProjectError(Exception):
    """Something to tell the user in one line."""

    exit_code = 1


class InputError(ProjectError):
    """Bad options, job files, configuration or data."""

    exit_code = 2


class BaseModelNotFound(InputError):
    """No published base model under that hash."""


class Conflict(InputError):
    """The place is taken: results of another configuration, or a lock that somebody holds."""


class CorruptArtifact(ProjectError):
    """The bytes on disk are not those that were published."""

    exit_code = 2


class TrainingError(ProjectError):
    """The training itself went wrong."""


class NodeError(ProjectError):
    """A node's fault, not the job's."""


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean X?' for a mistyped name, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""
