"""What dataset.json says of a prepared data set, and the SHA-256 of files, cached by their identity. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import InputError

MANIFEST = "dataset.json"


class SplitCounts(BaseModel):
    """Windows and positive windows of one participant's split."""

    model_config = ConfigDict(extra="forbid")
    windows: int = Field(ge=0)
    positives: int = Field(ge=0)


class Manifest(BaseModel):
    """dataset.json: how a data set was made and what is in it."""

    model_config = ConfigDict(extra="forbid")
    sampling_rate_hz: float = Field(gt=0)
    channels: list[str]
    units: list[str]
    window_seconds: float = Field(gt=0)
    stride_seconds: float = Field(gt=0)
    window_size: int = Field(ge=1, description="samples in a window")
    labelling: dict[str, Any]
    split: dict[str, Any]
    source: dict[str, Any]
    participants: dict[str, dict[str, SplitCounts]]
    files: dict[str, str] = Field(description="SHA-256 by file name")


def read_manifest(folder: Path) -> Manifest | None:
    """dataset.json of a data folder, or None where there is none.

    Raises:
        InputError: the file is not a readable dataset.json.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"{path}: {where}: {first['msg']}; make the data set again with prepare_data.py") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read whole."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


class Sha256Cache:
    """SHA-256 by path, trusted while inode, size, mtime_ns and ctime_ns are the same.

    ctime cannot be set back by a program, so a file changed at equal size and mtime is noticed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        # A cache that cannot be read is only slower, never wrong.
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_bytes())
            self._known = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        """Digest of `path`, computed only when its identity is new.

        Raises:
            InputError: the file is not there or cannot be read.
        """
        try:
            key, identity = str(path.absolute()), _identity(path)
            entry = self._known.get(key)
            if isinstance(entry, list) and len(entry) == 2 and entry[0] == identity:
                return str(entry[1])
            digest = file_sha256(path)
            while identity != (identity := _identity(path)):  # it changed while it was read
                digest = file_sha256(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; prepare the data with prepare_data.py or correct --data_path") from None
        self._known[key] = [identity, digest]
        self._save()
        return digest

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".sha256.")
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._known, file)
            os.replace(name, self._path)
