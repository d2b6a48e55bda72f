"""What a node has of this run: SHA-256 of its data files, published base models and experiments.
JSON in, JSON out; it runs on the node.

In:  {"data": [[data_path, file name], ...], "bases": [hash, ...], "experiments": [id, ...]}
Out: {"data": [SHA-256 or null, ...], "bases": [those published here], "experiments": [those
published here]}
"""

from __future__ import annotations

import json
import sys
from typing import Any

from common.data.manifest import Sha256Cache
from common.errors import InputError
from common.paths import EXPERIMENT_METRICS, Paths


def take(request: dict[str, Any], paths: Paths) -> dict[str, Any]:
    """The answer to a request."""
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


if __name__ == "__main__":
    sys.stdout.write(json.dumps(take(json.load(sys.stdin), Paths.here())) + "\n")
