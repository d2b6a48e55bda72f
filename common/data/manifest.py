"""What dataset.json says of a prepared data set, and the SHA-256 of files, cached by their
identity. No torch.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.artifacts import read_sealed, seal, to_json, write_file
from common.errors import CorruptArtifact, InputError
from common.paths import bouts_file, windows_file
from common.validation import first_problem, read_json

MANIFEST = "dataset.json"
SETTLED_SECONDS = 2.0
SAVE_SECONDS = 1.0  # between two savings of the cache: a killed process loses what came since
KeptBout = tuple[str, float, float, str]  # session, start and end second, split


@dataclass(frozen=True)
class Fold:
    """Data set `number` of the `of` that --split_folds made from `whole`: each session or block is
    tested in one of them.
    """

    number: int
    of: int
    whole: str


class SplitCounts(BaseModel):
    """Windows and positive windows of one participant's split."""

    model_config = ConfigDict(extra="forbid")
    windows: int = Field(ge=0)
    positives: int = Field(ge=0)


class WindowForm(BaseModel):
    """All that a recording must be to be understood by a model of these data."""

    model_config = ConfigDict(extra="forbid")
    sampling_rate_hz: float = Field(gt=0, le=1e9)
    channels: list[str]
    units: list[str]
    window_seconds: float = Field(gt=0, le=1e9)
    stride_seconds: float = Field(gt=0, le=1e9)
    window_size: int = Field(ge=1, description="samples in a window")
    labelling: dict[str, Any]


class Manifest(WindowForm):
    """dataset.json: how a data set was made and what is in it."""

    split: dict[str, Any]
    source: dict[str, Any]
    participants: dict[str, dict[str, SplitCounts]]
    clock_repairs: dict[str, dict[str, dict[str, int]]] = Field(
        default_factory=dict,
        description="mended stamps, rows or packets by participant, session and kind",
    )
    files: dict[str, str] = Field(description="SHA-256 by file name")

    @property
    def fold(self) -> Fold | None:
        """Which part of a data set prepared with --split_folds is tested here."""
        number, of, whole = (self.split.get(key) for key in ("fold", "folds", "fold_of"))
        if isinstance(number, int) and isinstance(of, int) and isinstance(whole, str):
            return Fold(number, of, whole)
        return None


def listed_windows(folder: Path, participant: str, split: str) -> list[tuple[str, str]]:
    """Session and start second of each window, as written beside the data; empty where no such list
    can be read.
    """
    try:
        with (folder / windows_file(participant, split)).open(newline="", encoding="utf-8") as file:
            return [(row["session"], row["start_s"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error):
        return []


def require_one_clock(folder: Path, participant: str, split: str) -> None:
    """Raise InputError where the clocks of a split's sessions do not say which windows are the
    earliest. Nothing is said of a data set without lists of windows.
    """
    latest, before = float("-inf"), ""
    for session, start_s in listed_windows(folder, participant, split):
        if float(start_s) < latest and session != before:
            raise InputError(
                f"target_order time: session {session} of {participant} does not come after"
                f" {before} by its clock (each starts at its own zero?), so that it is not known"
                " which windows are the earliest; take target_order block or random, or record"
                " sessions on one clock"
            )
        latest, before = max(latest, float(start_s)), session


def listed_bouts(folder: Path, participant: str) -> list[KeptBout] | None:
    """Each annotation (see `bouts.annotated_bouts`), or None where the data set keeps none: made by
    hand, or by an earlier version.
    """
    try:
        with (folder / bouts_file(participant)).open(newline="", encoding="utf-8") as file:
            return [
                (row["session"], float(row["start_s"]), float(row["end_s"]), row["split"])
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        return None


def read_manifest(folder: Path) -> Manifest | None:
    """dataset.json of a data folder, or None where there is none.

    Raises:
        InputError: the file is not a readable dataset.json.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    described = read_json(path, "dataset.json")
    try:
        return Manifest.model_validate(described)
    except ValidationError as error:
        raise InputError(
            f"{path}: {first_problem(error, described)}; make the data set again with"
            " prepare_data.py",
            path=path,
        ) from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read whole."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_identity(path: Path) -> list[int]:
    """What changes when a file does: inode, size, mtime_ns and ctime_ns. ctime cannot be set back
    by a program.
    """
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def is_settled(mtime_ns: int, ctime_ns: int) -> bool:
    """Whether a later change would show in a file's times: one within the same tick of the clock
    would not, on some file systems a second long.
    """
    return max(mtime_ns, ctime_ns) / 1e9 < time.time() - SETTLED_SECONDS


class Sha256Cache:
    """SHA-256 by path, trusted while inode, size, mtime_ns and ctime_ns are the same; kept in a
    file that carries its own checksum.
    """

    def __init__(self, path: Path) -> None:
        self._kept = _Kept(path)
        weakref.finalize(self, self._kept.save)  # when nothing uses it any more, at exit at latest

    def sha256(self, path: Path) -> str:
        """Digest of `path`, computed only when its identity is new.

        Raises:
            InputError: the file is not there or cannot be read.
        """
        try:
            key, identity = _key(path), file_identity(path)
            entry = self._kept.entries.get(key)
            if isinstance(entry, list) and len(entry) == 2 and entry[0] == identity:
                return str(entry[1])
            digest = file_sha256(path)
            while identity != (identity := file_identity(path)):  # it changed while it was read
                digest = file_sha256(path)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}; prepare the data with prepare_data.py or correct"
                " --data_path"
            ) from None
        if is_settled(*identity[2:]):
            self._kept.add(key, [identity, digest])
        return digest


class _Kept:
    """What a Sha256Cache knows, and its file: written whole, so not for every entry."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: float | None = None  # when
        self._unsaved = False
        self.entries: dict[str, Any] = {}
        # A cache that cannot be read, or is not what was written, is only slower, never wrong.
        with contextlib.suppress(OSError, CorruptArtifact):
            known = read_sealed(path).get("files")
            self.entries = known if isinstance(known, dict) else {}

    def add(self, key: str, entry: list[Any]) -> None:
        self.entries[key] = entry
        self._unsaved = True
        if self._saved is None or time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is new. A file that is gone since stays so: a refused command leaves none."""
        gone = self._saved is not None and not self._path.exists()
        if self._unsaved and not gone:
            with contextlib.suppress(OSError):
                write_file(self._path, to_json(seal({"files": self.entries})), durable=False)
            self._unsaved, self._saved = False, time.monotonic()


def _key(path: Path) -> str:
    """The path as text that JSON can hold, whatever bytes are in it."""
    return str(path.absolute()).encode(errors="backslashreplace").decode()
