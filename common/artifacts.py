"""Publish and open base models and experiments: verified bytes, moved atomically. No torch.

Everything is written to a temporary name in the same folder, fsynced and renamed; the JSON goes
last and makes the artifact published. It records the SHA-256 of the other files and, in its
provenance, of itself, so that opening notices every changed bit before anything is loaded.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from common.errors import BaseModelNotFound, Conflict, CorruptArtifact, ProjectError
from common.paths import (
    BASE_MODELS,
    EXPERIMENT_CODE,
    EXPERIMENT_FILES,
    EXPERIMENT_LOG,
    EXPERIMENT_METRICS,
    Paths,
)

Json = dict[str, Any]
_TEMPORARY = ".writing."
MAX_JSON_BYTES = 64 << 20
_NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # a link, below a file, a socket


@dataclass(frozen=True)
class BaseModel:
    """A published base model, its bytes verified."""

    hash: str
    metadata: Json
    weights: bytes


@dataclass(frozen=True)
class Experiment:
    """A published experiment, its bytes verified. `contents`: the files of EXPERIMENT_FILES."""

    folder: Path
    config: Json
    metrics: Json
    contents: dict[str, bytes] = field(repr=False)


# -- bytes


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Put `content` under `path` so that at any moment the name holds the old bytes or the new
    ones; where `durable`, also after a power cut.

    Raises:
        OSError: naming the path; whatever stood under the name still stands there.
    """
    write_files(path.parent, {path.name: content}, durable=durable)


def write_files(folder: Path, contents: Mapping[str, bytes], *, durable: bool = True) -> None:
    """As `write_file`, for several files of one folder, in their order.

    Raises:
        OSError: naming the path.
    """
    path = folder
    try:
        make_folder(folder)
        for name, content in contents.items():
            path = folder / name
            _replace(path, content, durable)
        path = folder
        if durable:
            sync_folder(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _replace(path: Path, content: bytes, durable: bool) -> None:
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f"{_TEMPORARY}{path.name[:40]}."
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Raises OSError, naming it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # the error of a descriptor has no name
        raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(descriptor)


def to_json(value: Any) -> bytes:
    """Canonical JSON: equal values are equal bytes; NaN and infinity raise ValueError."""
    return (
        json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    ).encode()


def to_csv(header: Iterable[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file with a header line and plain line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def seal(record: Mapping[str, Any]) -> Json:
    """`record` with the checksum of all the rest in its provenance."""
    body = _unsealed(record)
    return {**body, "provenance": {**body["provenance"], "checksum": sha256(to_json(body))}}


def _unsealed(record: Mapping[str, Any]) -> Json:
    """`record` without a checksum, and with a provenance."""
    provenance = record.get("provenance", {})
    return {**record, "provenance": {k: v for k, v in provenance.items() if k != "checksum"}}


def read_sealed(path: Path) -> Json:
    """A sealed JSON object.

    Raises:
        FileNotFoundError: there is none.
        CorruptArtifact: it is not whole, or not what was sealed.
        OSError: it cannot be read now.
    """
    raw = read_regular(path, MAX_JSON_BYTES)
    try:
        record = json.loads(raw)
        if (
            isinstance(record, dict)
            and isinstance(record.get("provenance"), dict)
            and _is_sealed(record, raw)
        ):
            return record
    except (ValueError, RecursionError):
        pass
    raise CorruptArtifact(
        f"{path}: damaged, its checksum does not match: it is not used; run the command again to"
        " make it again"
    )


def _is_sealed(record: Json, raw: bytes) -> bool:
    """Whether `raw` is what sealing `record` gives: nearly always all of it but the checksum's line
    is the text that was sealed, and need not be made again.
    """
    checksum = record["provenance"].get("checksum")
    line = f'    "checksum": "{checksum}",\n'.encode()
    if sha256(raw.replace(line, b"", 1)) == checksum:
        # raises ValueError for what JSON cannot hold but Python reads
        json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
        return True
    return to_json(seal(record)) == raw


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file; a symbolic link in its place is not followed.

    Raises:
        FileNotFoundError: there is none.
        CorruptArtifact: it is no regular file, or larger than `limit`.
        OSError: it cannot be read now, which says nothing about its bytes; naming the path.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (limit is not None and status.st_size > limit):
                raise CorruptArtifact(f"{path}: not a file of reasonable size: it is not used")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise CorruptArtifact(
                f"{path}: cannot be read ({error.strerror}): it is not used"
            ) from None
        raise OSError(error.errno, error.strerror, str(path)) from None


# -- base models


def publish_base_model(
    paths: Paths, base_hash: str, weights: bytes, metadata: Mapping[str, Any]
) -> Json:
    """Publish weights and metadata under `base_hash`; the metadata, written last, make it
    published. Returns the metadata as written.
    """
    record = seal({**metadata, "base_model_hash": base_hash, "weights_sha256": sha256(weights)})
    write_file(paths.base_weights(base_hash), weights)
    write_file(paths.base_metadata(base_hash), to_json(record))
    return record


def read_base_metadata(paths: Paths, base_hash: str) -> Json:
    """Metadata of a published base model, weights not looked at.

    Raises:
        BaseModelNotFound: nothing is published under that hash.
        CorruptArtifact: the metadata are damaged or belong to another hash.
    """
    try:
        metadata = read_sealed(paths.base_metadata(base_hash))
    except FileNotFoundError:
        raise BaseModelNotFound(f"Base model not found: {BASE_MODELS}/{base_hash}.pt") from None
    if metadata.get("base_model_hash") != base_hash:
        raise CorruptArtifact(
            f"{paths.base_metadata(base_hash)}: belongs to base model"
            f" {metadata.get('base_model_hash')}: it is not used"
        )
    return metadata


def open_base_model(paths: Paths, base_hash: str) -> BaseModel:
    """A published base model, SHA-256 checked.

    Raises:
        BaseModelNotFound: nothing is published under that hash.
        CorruptArtifact: metadata or weights are not what was published.
    """
    metadata = read_base_metadata(paths, base_hash)
    path = paths.base_weights(base_hash)
    try:
        weights = read_regular(path)
    except FileNotFoundError:
        raise BaseModelNotFound(f"Base model not found: {BASE_MODELS}/{base_hash}.pt") from None
    if sha256(weights) != metadata.get("weights_sha256"):
        raise CorruptArtifact(
            f"{path}: its SHA-256 is not that of its metadata: it is not loaded; run base training"
            " again to replace it"
        )
    return BaseModel(base_hash, metadata, weights)


def published_base_hashes(paths: Paths) -> list[str]:
    """Hashes under which something is published, damaged or not."""
    suffix = "_metadata.json"
    return sorted(
        path.name.removesuffix(suffix)
        for path in paths.base_models.glob(f"*{suffix}")
        if not path.name.startswith(".")
    )


# -- experiments


def publish_experiment(
    paths: Paths,
    prefix: str,
    name: str,
    files: Mapping[str, bytes],
    metrics: Mapping[str, Any],
    log: str = "",
) -> Path:
    """Publish an experiment: `files` (those of EXPERIMENT_FILES), then metrics.json, which makes it
    published. Returns its folder.
    """
    assert sorted(files) == sorted(EXPERIMENT_FILES), files.keys()
    folder = paths.experiment(prefix, name)
    code = _code_files(_config(folder / "config.json", files["config.json"]))
    write_files(folder, {**files, **code, EXPERIMENT_LOG: log.encode()})
    record = seal(
        {**metrics, "files": {file_name: sha256(content) for file_name, content in files.items()}}
    )
    write_file(folder / EXPERIMENT_METRICS, to_json(record))
    return folder


def open_experiment(folder: Path) -> Experiment:
    """A published experiment, the SHA-256 of each file checked.

    Raises:
        FileNotFoundError: nothing is published there.
        CorruptArtifact: a file is missing or is not what was published.
    """
    metrics = read_sealed(folder / EXPERIMENT_METRICS)
    recorded = metrics.get("files")
    if not isinstance(recorded, dict) or sorted(recorded) != sorted(EXPERIMENT_FILES):
        raise CorruptArtifact(
            f"{folder / EXPERIMENT_METRICS}: does not name the experiment's files: it is not used"
        )
    contents: dict[str, bytes] = {}
    for file_name in EXPERIMENT_FILES:
        try:
            contents[file_name] = read_regular(folder / file_name)
        except FileNotFoundError:
            raise CorruptArtifact(
                f"{folder / file_name}: missing from a published experiment: it is not used"
            ) from None
        if sha256(contents[file_name]) != recorded[file_name]:
            raise CorruptArtifact(
                f"{folder / file_name}: its SHA-256 is not that of metrics.json: it is not used"
            )
    config = _config(folder / "config.json", contents["config.json"])
    for file_name, code in _code_files(config).items():
        with contextlib.suppress(FileNotFoundError):
            if read_regular(folder / file_name) != code:
                raise CorruptArtifact(
                    f"{folder / file_name}: is not the code that config.json keeps: it is not used"
                )
    return Experiment(folder, config, metrics, contents)


def _code_files(config: Json) -> dict[str, bytes]:
    """The own code that an experiment was made with, by file name. Raises CorruptArtifact."""
    own = config.get("own_code") or {}
    try:
        return {EXPERIMENT_CODE[kind]: str(kept["source"]).encode() for kind, kept in own.items()}
    except (AttributeError, KeyError, TypeError, UnicodeEncodeError):
        raise CorruptArtifact("own_code in config.json is not of its form: not used") from None


def _config(path: Path, content: bytes) -> Json:
    """A right checksum does not make it a JSON object."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CorruptArtifact(f"{path}: no JSON object: it is not used")
    return config


# -- moving aside, moving in, locks


def supersede(paths: Paths, things: list[Path]) -> None:
    """Move what is no longer current to superseded/, under a name of its own.

    The file that makes it published is moved first, durably, so that a crash cannot leave it
    without the others. What lies on another disk is copied whole before any of it is deleted.
    """
    copied = []
    for thing in sorted(things, key=lambda path: not path.name.endswith(".json")):
        if not os.path.lexists(thing):  # to another disk, rename() fails before it looks for it
            continue
        free = _free_place(paths.superseded / thing.relative_to(paths.root))
        with contextlib.suppress(FileNotFoundError):
            try:
                os.rename(thing, free)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(thing, free)
                copied.append(thing)
            sync_folder(free.parent)
            sync_folder(thing.parent)
    for thing in copied:
        _remove(thing)


def _free_place(place: Path) -> Path:
    """`place` with the first number that is not taken, in a folder that is there."""
    make_folder(place.parent)
    number = 0
    while os.path.lexists(free := place.with_name(f"{place.name}.{number}")):
        number += 1
    return free


def _copy(thing: Path, place: Path) -> None:
    """Copy a file, a link or a folder, durably; `place` is there once all of it is."""
    if thing.is_symlink():
        place.symlink_to(thing.readlink())
    elif thing.is_dir():
        half = place.with_name(f"{_TEMPORARY}{place.name}")
        _remove(half)  # of a killed process
        try:
            make_folder(half)
            for entry in thing.iterdir():
                _copy(entry, half / entry.name)
            sync_folder(half)
            os.rename(half, place)
        except OSError:
            with contextlib.suppress(OSError):
                _remove(half)
            raise
    else:
        write_file(place, read_regular(thing) if thing.is_file() else b"")  # a pipe holds nothing


def _remove(thing: Path) -> None:
    """Delete a file, a link or a folder; first, durably, the file that makes it published."""
    if thing.is_dir() and not thing.is_symlink():
        for entry in sorted(thing.iterdir(), key=lambda path: path.name != EXPERIMENT_METRICS):
            _remove(entry)
        thing.rmdir()
    elif os.path.lexists(thing):
        thing.unlink()
        sync_folder(thing.parent)


def supersede_base_model(paths: Paths, base_hash: str) -> None:
    """Move a base model to superseded/."""
    supersede(paths, [paths.base_metadata(base_hash), paths.base_weights(base_hash)])


def supersede_experiment(paths: Paths, folder: Path) -> None:
    """Move an experiment's folder to superseded/, in one rename."""
    supersede(paths, [folder])


def adopt_base_model(paths: Paths, model: BaseModel) -> None:
    """Publish here, byte for byte, a base model that was opened in another folder; its metadata
    sealed anew, so that they are canonical whatever wrote them there.
    """
    write_file(paths.base_weights(model.hash), model.weights)
    write_file(paths.base_metadata(model.hash), to_json(seal(model.metadata)))


def adopt_experiment(paths: Paths, experiment: Experiment) -> None:
    """Publish here, byte for byte, an experiment that was opened in another folder; its metrics
    sealed anew, as in `adopt_base_model`.
    """
    origin = experiment.folder
    folder = paths.experiment(origin.parent.name, origin.name)
    contents = {**experiment.contents, **_code_files(experiment.config)}
    with contextlib.suppress(FileNotFoundError):
        contents = {**contents, EXPERIMENT_LOG: read_regular(origin / EXPERIMENT_LOG)}
    write_files(folder, contents)
    write_file(folder / EXPERIMENT_METRICS, to_json(seal(experiment.metrics)))


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Delete the temporary files of killed writers, for names that begin with `name`. Only for the
    holder of the lock under which they are written.
    """
    for path in leftovers(folder, name):
        with contextlib.suppress(OSError):
            path.unlink()


def leftovers(folder: Path, name: str = "") -> list[Path]:
    """Temporary files in `folder`, of running or killed writers."""
    return list(folder.glob(f"{_TEMPORARY}{name}*"))


@contextlib.contextmanager
def lock(
    path: Path,
    *,
    wait: bool,
    owner: str,
    shared: bool = False,
    refusal: Callable[[str], str] | None = None,
) -> Iterator[None]:
    """Hold a lock that the kernel releases when the process ends: none is left to remove by hand.

    Several processes may hold it `shared`, none beside one that does not.

    Raises:
        Conflict: another process holds it, and `wait` is off; with its `path` and `holder`.
            `refusal` makes the message of the holder.
    """
    new = not path.exists()
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with _open_locked(path, kind, refusal) as file:
        _write_owner(file, owner)
        try:
            yield
        except ProjectError:
            if new:
                _remove_lock(path, file)
            raise
        finally:
            _write_owner(file, "")


def training_lock(
    paths: Paths, key: str, *, wait: bool = True
) -> contextlib.AbstractContextManager[None]:
    """Hold the lock under which one process at a time makes a result. Raises Conflict."""
    return lock(paths.training_lock(key), wait=wait, owner=f"process {os.getpid()}")


def _open_locked(path: Path, kind: int, refusal: Callable[[str], str] | None) -> IO[bytes]:
    """The file at `path`, locked. It is opened again where a refused command has removed it."""
    while True:
        make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
            file = opened.enter_context(path.open("ab+", buffering=0))
            try:
                fcntl.flock(file, kind)
            except BlockingIOError:
                holder = _read_owner(file)
                message = (
                    refusal(holder)
                    if refusal
                    else f"{path}: held by {holder}: wait for it to end, or stop it"
                )
                raise Conflict(message, path=path, holder=holder) from None
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                opened.pop_all()
                return file


def _remove_lock(path: Path, file: IO[bytes]) -> None:
    """A refused command leaves nothing that it made, unless another process shares the lock."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        path.parent.rmdir()


def _read_owner(file: IO[bytes]) -> str:
    """Lock owner; retry briefly while it is being written."""
    for _ in range(20):
        file.seek(0)
        if owner := file.read().decode(errors="replace").strip():
            return owner
        time.sleep(0.05)
    return "another process"


def _write_owner(file: IO[bytes], owner: str) -> None:
    """For the message of a process that finds the lock taken; a full disk is no reason to fail."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(owner.encode())
