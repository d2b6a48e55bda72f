"""The prepared data sets that lie in a project folder: who is in them, and SHA-256 of their files.
No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from common.data.manifest import Manifest, Sha256Cache, read_manifest
from common.errors import InputError, nearest
from common.options import O, Options
from common.paths import Paths, split_file

# (data_path, file name) -> SHA-256; of the head's own files, or as the nodes report theirs
DataSha256 = Callable[[str, str], str]


class Data:
    """The data sets of one project folder, on the head or on a node."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._cache = Sha256Cache(paths.sha256_cache)
        self._manifests: dict[str, Manifest | None] = {}

    def sha256(self, data_path: str, file_name: str) -> str:
        """SHA-256 of one data file.

        Raises:
            InputError: there is none, or dataset.json says that it should be another.
        """
        path = self._paths.data(data_path) / file_name
        found, manifest = self._cache.sha256(path), self._manifest(data_path)
        if manifest and manifest.files.get(file_name, found) != found:
            raise InputError(
                f"{path}: is not the file that dataset.json describes (damaged or edited): make the"
                " data set again with prepare_data.py"
            )
        return found

    def leakage_remark(self, data_path: str) -> str | None:
        """A warning for a data set without dataset.json, whose splits may share samples; None where
        there is one, or the data are not here.
        """
        if not self._paths.data(data_path).is_dir() or self._manifest(data_path):
            return None
        return (
            f"warning: {data_path} has no dataset.json: leakage between its splits cannot be"
            " excluded (prepare_data.py excludes it)"
        )

    def counts(self, data_path: str, participant: str, split: str) -> tuple[int, int] | None:
        """Negative and positive windows of one split; None where no dataset.json says."""
        manifest = self._manifest(data_path)
        found = manifest.participants.get(participant, {}).get(split) if manifest else None
        return (found.windows - found.positives, found.positives) if found else None

    def _manifest(self, data_path: str) -> Manifest | None:
        if data_path not in self._manifests:
            self._manifests[data_path] = read_manifest(self._paths.data(data_path))
        return self._manifests[data_path]

    def _check_own_files(self, options: Options) -> None:
        for option, name in options.files_by_option().items():
            if not (self._paths.root / name).is_file():
                name = os.path.normpath(name)
                raise InputError(f"{option}: no file {name} in the project folder")

    def resolve(self, options: O) -> O:
        """`options` with participants and window size filled in from dataset.json where they were
        not given.

        Raises:
            InputError: no participants are given, or dataset.json says that these options are of
            other data.
        """
        folder, manifest = self._paths.data(options.data_path), self._manifest(options.data_path)
        self._check_own_files(options)
        if manifest:
            if "window_size" not in options.model_fields_set:
                options = options.model_copy(update={"window_size": manifest.window_size})
            _check_described(options, folder, manifest)
        elif options.participants is None and not folder.is_dir():
            there = [
                str(path.relative_to(self._paths.root))
                for path in folder.parent.glob("*/")
                if path.is_relative_to(self._paths.root)
            ]
            default = "" if "data_path" in options.model_fields_set else " (data_path is not given)"
            raise InputError(
                f"data_path {options.data_path}: no such folder{default}"
                f"{nearest(options.data_path, there)}; prepare the data with prepare_data.py"
            )
        return options.resolved(list(manifest.participants) if manifest else None)


def _check_described(options: Options, folder: Path, manifest: Manifest) -> None:
    """Raises InputError where dataset.json contradicts the window size or the participants."""
    if options.window_size != manifest.window_size:
        raise InputError(
            f"window_size is {options.window_size}, but the windows of {options.data_path} have"
            f" {manifest.window_size} samples (dataset.json): leave window_size out"
        )
    missing = [
        name
        for name in options.participants or ()
        if name not in manifest.participants and not (folder / split_file(name, "train")).exists()
    ]
    if missing:
        raise InputError(
            f"participants {', '.join(missing)} are not in {options.data_path}, whose dataset.json"
            f" has {', '.join(manifest.participants)}"
        )
