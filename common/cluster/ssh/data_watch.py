"""Notices that data were prepared again while a run uses them. No threads."""

from __future__ import annotations

from collections.abc import Mapping

from common.data.manifest import file_identity, file_sha256
from common.jobs.inputs import File
from common.paths import Paths


class DataWatch:
    """The head's data files as they were when the run was planned. `data`: their SHA-256, None for
    files that the head does not have.
    """

    def __init__(self, paths: Paths, data: Mapping[File, str | None]) -> None:
        self._paths = paths
        self._sha256 = {file: sha256 for file, sha256 in data.items() if sha256 is not None}
        self._same: dict[File, object] = {}  # identities that were seen with the right content
        self._missing: set[File] = set()

    def changed(self) -> str | None:
        """The first data_path in which a file has other content now, or is missing at two looks in
        a row (a folder that is being replaced is missing for a moment).
        """
        for file in self._sha256:
            if not self._is_same(file):
                return file[0]
        return None

    def _is_same(self, file: File) -> bool:
        path = self._paths.data(file[0]) / file[1]
        try:
            identity = file_identity(path)
            if self._same.get(file) != identity:
                if file_sha256(path) != self._sha256[file]:
                    return False
                self._same[file] = identity
            self._missing.discard(file)
        except OSError:
            if file in self._missing:
                return False
            self._missing.add(file)
        return True
