"""Lists what a node has of a run, and removes results that the head has too. JSON in, JSON out; it
runs on the node.

List:   {"data": [[data_path, file name], ...], "bases": [hash, ...], "experiments": [id, ...]}
     -> {"data": [SHA-256 or null, ...], "bases": [those published here], "experiments": [those
        published here]}
Remove: {"remove": {file name: SHA-256, ...}} -> {"removed": number of files}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.data.manifest import Sha256Cache, file_sha256
from common.errors import InputError
from common.paths import EXPERIMENT_METRICS, Paths


def list_files(request: Mapping[str, Any], paths: Paths) -> dict[str, Any]:
    """SHA-256 of the data files asked for, and which of the results are published here."""
    cache = Sha256Cache(paths.sha256_cache)

    def sha256(data_path: str, name: str) -> str | None:
        try:
            return cache.sha256(paths.data(data_path) / name)
        except InputError:
            return None

    return {
        "data": [sha256(data_path, name) for data_path, name in request["data"]],
        "bases": [base for base in request["bases"] if paths.base_metadata(base).is_file()],
        "experiments": [
            job
            for job in request["experiments"]
            if (paths.experiments / job / EXPERIMENT_METRICS).is_file()
        ],
    }


def remove(wanted: Mapping[str, str], root: Path) -> int:
    """Remove files below `root` that have the given SHA-256; what is reached through a symbolic
    link, or has other bytes, is left alone. Returns how many were removed.
    """
    removed, real = 0, root.resolve()
    for name, digest in wanted.items():
        path, place = root / name, Path(os.path.normpath(real / name))
        plain = path.is_file() and path.resolve() == place and place.is_relative_to(real)
        if plain and file_sha256(path) == digest:
            path.unlink()
            removed += 1
            with contextlib.suppress(OSError):  # not empty yet
                _remove_empty(path.parent, root)
    return removed


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove `folder` and those above it, up to `root`, while they are empty. Raises OSError."""
    while folder != root:
        folder.rmdir()
        folder = folder.parent


def main() -> None:
    """Answer one request."""
    request, paths = json.load(sys.stdin), Paths.here()
    if "remove" in request:
        answer: dict[str, Any] = {"removed": remove(request["remove"], paths.root)}
    else:
        answer = list_files(request, paths)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
