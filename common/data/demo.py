"""The demo's recordings: real smartwatch data out of the PyPI wheel `seglearn`.

Ten people did sets of 20 repetitions of seven shoulder exercises, left and right, with a watch on
the wrist (accelerometer in g, gyroscope in rad/s, 50 Hz). Source: D. M. Burns, N. Leung, M.
Hardisty, C. M. Whyne, P. Henry, S. McLachlin, "Shoulder physiotherapy exercise
recognition: machine learning the inertial signals from a smartwatch", 2018, arXiv 1802.01489; data
and package under the BSD licence.

Each of the 140 recordings holds one exercise on one side (19 to 52 s) and is one session here. The
demo's positive class, ABD (abduction),
therefore fills two whole sessions of each person and none of the others: split by sessions, one of
the three splits would have no positives. The time split cuts every session into a train, a val and
a test block, so each split has every exercise on both sides. What it tests is the same people going
on with the same sets a few seconds later, not another day.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.data.clock import Clock
from common.data.manifest import file_sha256
from common.data.proof import fingerprint
from common.data.recordings import Reading
from common.data.resampling import make_session
from common.data.sessions import Session
from common.errors import InputError, ProjectError

REQUIREMENT = "seglearn==1.2.5"
WHEEL = "seglearn-1.2.5-py3-none-any.whl"
WHEEL_SHA256 = "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"
MEMBER = "seglearn/data/watch_dataset.npy"
CITATION = "arXiv 1802.01489"
RATE_HZ = 50.0
POSITIVE = "ABD"
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
UNITS = ("g", "g", "g", "rad/s", "rad/s", "rad/s")


class DownloadError(ProjectError):
    """The package index gave nothing: no network, or it has no such file."""


def fetch_wheel(cache: Path) -> Path:
    """The wheel, from the cache or else by pip from the configured index. Only the pinned bytes are
    ever kept.

    Raises:
        DownloadError: it cannot be downloaded.
        ProjectError: it is another file than the pinned one.
    """
    kept = cache / WHEEL
    if kept.is_file() and file_sha256(kept) == WHEEL_SHA256:
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download.") as folder:
        _pip_download(folder, kept)
        fresh = Path(folder) / WHEEL
        if not fresh.is_file() or file_sha256(fresh) != WHEEL_SHA256:
            raise ProjectError(
                f"{REQUIREMENT}: the index sent another file than the pinned one (SHA-256"
                f" {WHEEL_SHA256[:16]}...); nothing was used"
            )
        os.replace(fresh, kept)
    return kept


def _pip_download(folder: str, kept: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        folder,
        REQUIREMENT,
    ]
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(
            f"{REQUIREMENT}: no answer from the package index in 600 s; try again, or put {WHEEL}"
            f" at {kept}"
        ) from None
    if result.returncode != 0:
        said = (result.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise DownloadError(
            f"{REQUIREMENT} could not be downloaded ({said}); try again with a network, or put"
            f" {WHEEL} at {kept}"
        )


class DemoRecordings:
    """The demo as a source of sessions, in the form of `common.data.recordings.Recordings`.

    Raises:
        ProjectError: there is no wheel and none can be downloaded.
    """

    channels = CHANNELS
    labels_from = f"exercise {POSITIVE} against the six others"

    def __init__(self, cache: Path) -> None:
        self._people = load_demo(fetch_wheel(cache))
        self.participants = list(self._people)
        self.notes: list[str] = []

    def sha256(self) -> str:
        return WHEEL_SHA256

    def sessions(self, participant: str) -> Iterator[Reading]:
        """One person's fourteen sessions."""
        for session in self._people[participant]:
            values = session.values[:]
            clock = Clock(0.0, np.arange(len(values)) / RATE_HZ)
            name = f"{participant}/{session.name}"
            digest = hashlib.sha256(values.tobytes()).hexdigest()
            yield Reading(
                session, fingerprint(participant, session.name, name, digest, clock, values)
            )


def load_demo(wheel: Path) -> dict[str, list[Session]]:
    """Sessions by participant (p01 to p10, the data set's own numbers), named {exercise}_{side}, in
    the data set's order.

    Raises:
        InputError: the wheel is damaged or its contents are not what is expected.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = read_object_npy(archive.read(MEMBER))
        columns = (data["X"], data["y"], data["side"], data["subject"])
        people: dict[str, list[Session]] = {
            f"p{number:02d}": [] for number in sorted({int(subject) for subject in data["subject"]})
        }
        for values, exercise, side, subject in zip(*columns, strict=True):
            name = data["y_labels"][int(exercise)]
            people[f"p{int(subject):02d}"].append(
                _session(np.asarray(values, np.float64), name, "right" if side == 1 else "left")
            )
    except (
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(
            f"{wheel}: not the expected smartwatch data ({error}); delete it, the next run fetches"
            " it again"
        ) from None
    return people


def _session(values: Any, exercise: str, side: str) -> Session:
    times = np.arange(len(values)) / RATE_HZ
    bouts = np.array([[0.0, len(values) / RATE_HZ]] if exercise == POSITIVE else []).reshape(-1, 2)
    return make_session(f"{exercise}_{side}", 0.0, times, values, bouts, RATE_HZ)


def read_object_npy(content: bytes) -> Any:
    """The Python object in a .npy file of dtype object, unpickled with nothing allowed but numpy
    arrays.

    Raises:
        pickle.UnpicklingError: it asks for anything else; none of it was run.
        ValueError: it is not such a file.
    """
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError("unknown .npy version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"expected one object, found shape {shape}, dtype {dtype}")
    return _ArraysOnly(file).load().item()


def _latin1(text: str, encoding: str) -> bytes:
    """Protocol 2 writes bytes as text that is encoded back; any other codec (they include
    decompressors) is refused.
    """
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding} is not allowed")
    return text.encode("latin1")


def _arrays_allowed() -> dict[tuple[str, str], Any]:
    # its module has moved between numpy versions; what it pickles as says where it is
    reconstruct = np.array(0).__reduce__()[0]
    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _arrays_allowed()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None
