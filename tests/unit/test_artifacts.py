"""Published whole or not at all; every changed bit is noticed before anything is loaded."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common import artifacts
from common.errors import BaseModelNotFound, Conflict, CorruptArtifact, InputError
from common.jobs.verdicts import judge_base
from common.paths import EXPERIMENT_FILES, Paths
from tests.conftest import wait_until

HASH = "0123456789abcdef"
FILES = {
    name: f"bytes of {name}".encode() if name != "config.json" else b'{"fold": 0}\n'
    for name in EXPERIMENT_FILES
}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path)


def test_a_base_model_comes_back_as_it_was_published(paths: Paths) -> None:
    artifacts.publish_base_model(
        paths, HASH, b"weights", {"training_key": "k", "provenance": {"host": "h"}}
    )
    model = artifacts.open_base_model(paths, HASH)
    assert model.weights == b"weights"
    assert model.metadata["training_key"] == "k"
    assert sorted(path.name for path in paths.base_models.iterdir()) == [
        f"{HASH}.pt",
        f"{HASH}_metadata.json",
    ]


def test_a_missing_base_model_is_named_as_documented(paths: Paths) -> None:
    with pytest.raises(BaseModelNotFound, match=f"^Base model not found: base_models/{HASH}.pt$"):
        artifacts.open_base_model(paths, HASH)


def test_weights_without_metadata_are_not_published(paths: Paths) -> None:
    artifacts.write_file(paths.base_weights(HASH), b"weights")
    with pytest.raises(BaseModelNotFound):
        artifacts.open_base_model(paths, HASH)


@pytest.mark.parametrize("which", ["base_weights", "base_metadata"])
def test_every_flipped_bit_of_a_base_model_is_refused(paths: Paths, which: str) -> None:
    artifacts.publish_base_model(paths, HASH, b"some weights", {"provenance": {"host": "h"}})
    path: Path = getattr(paths, which)(HASH)
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptArtifact):
            artifacts.open_base_model(paths, HASH)


@pytest.mark.parametrize("name", [*EXPERIMENT_FILES, "metrics.json"])
def test_truncated_flipped_and_missing_files_of_an_experiment_are_refused(
    paths: Paths, name: str
) -> None:
    folder = artifacts.publish_experiment(paths, "p", "fold0_x", FILES, {"provenance": {}})
    assert artifacts.open_experiment(folder).config == {"fold": 0}
    whole = (folder / name).read_bytes()
    for bad in (whole[:-1], b"", whole[:5] + bytes([whole[5] ^ 16]) + whole[6:]):
        (folder / name).write_bytes(bad)
        with pytest.raises(CorruptArtifact):
            artifacts.open_experiment(folder)
    (folder / name).unlink()
    with pytest.raises((CorruptArtifact, FileNotFoundError)):
        artifacts.open_experiment(folder)


def test_links_and_pipes_in_the_place_of_an_artifact_are_not_followed(
    paths: Paths, tmp_path: Path
) -> None:
    artifacts.publish_base_model(paths, HASH, b"weights", {"provenance": {}})
    elsewhere = tmp_path / "elsewhere"
    os.rename(paths.base_weights(HASH), elsewhere)
    paths.base_weights(HASH).symlink_to(elsewhere)
    with pytest.raises(CorruptArtifact):
        artifacts.open_base_model(paths, HASH)
    paths.base_weights(HASH).unlink()
    os.mkfifo(paths.base_weights(HASH))
    with pytest.raises(CorruptArtifact):
        artifacts.open_base_model(paths, HASH)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "fdopen"])
def test_a_read_error_is_no_damage_and_names_the_path(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    artifacts.publish_base_model(paths, HASH, b"weights", {"provenance": {}})

    def failing(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match=os.strerror(number)) as refused:
            judge_base(paths, HASH, "key", {})
    assert refused.value.filename == str(paths.base_metadata(HASH))
    assert artifacts.open_base_model(paths, HASH).weights == b"weights"


def test_a_folder_or_a_socket_in_place_of_a_file_is_named(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(paths.root)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    (paths.root / "folder").mkdir()
    (paths.root / "file").touch()
    for name in ("socket", "folder", "file/below"):
        with pytest.raises(CorruptArtifact, match=f"/{name}: .*it is not used"):
            artifacts.read_regular(paths.root / name)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(CorruptArtifact):
        artifacts.read_regular(paths.root / "folder")
    assert os.listdir("/proc/self/fd") == descriptors


def test_metadata_of_another_hash_are_refused(paths: Paths) -> None:
    artifacts.publish_base_model(paths, HASH, b"weights", {"provenance": {}})
    other = "f" * 16
    os.rename(paths.base_weights(HASH), paths.base_weights(other))
    os.rename(paths.base_metadata(HASH), paths.base_metadata(other))
    with pytest.raises(CorruptArtifact, match="belongs to base model"):
        artifacts.open_base_model(paths, other)


def test_a_failing_write_names_the_path_and_leaves_the_old_bytes(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = paths.root / "file"
    artifacts.write_file(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*file"):
        artifacts.write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(paths.root) == ["file"]


def test_superseded_things_keep_a_name_of_their_own(paths: Paths) -> None:
    for _ in range(2):
        artifacts.publish_base_model(paths, HASH, b"weights", {"provenance": {}})
        artifacts.supersede_base_model(paths, HASH)
    assert sorted(path.name for path in (paths.superseded / "base_models").iterdir()) == [
        f"{HASH}.pt.0",
        f"{HASH}.pt.1",
        f"{HASH}_metadata.json.0",
        f"{HASH}_metadata.json.1",
    ]


@pytest.fixture
def other_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A project whose base_models/ and experiments/ are links to another disk."""
    paths, far = Paths(tmp_path / "project"), tmp_path / "far"
    paths.root.mkdir()
    for link in (paths.base_models, paths.experiments):
        (far / link.name).mkdir(parents=True)
        link.symlink_to(far / link.name)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        ends = [Path(os.path.realpath(end.parent)).is_relative_to(far) for end in (source, target)]
        if ends[0] != ends[1]:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    return paths


def test_what_is_not_there_needs_no_place_in_superseded(other_disk: Paths) -> None:
    artifacts.supersede_base_model(other_disk, HASH)
    assert not other_disk.superseded.exists()


def test_results_on_another_disk_are_superseded_whole(other_disk: Paths) -> None:
    artifacts.publish_base_model(other_disk, HASH, b"weights", {"provenance": {}})
    folder = artifacts.publish_experiment(other_disk, "p", "fold0_x", FILES, {"provenance": {}})
    (folder / "own").mkdir()
    (folder / "own/note").write_text("by hand")
    (folder / "own/link").symlink_to("note")
    os.mkfifo(folder / "own/pipe")
    artifacts.supersede_base_model(other_disk, HASH)
    artifacts.supersede_experiment(other_disk, folder)
    kept = other_disk.superseded
    assert (kept / f"base_models/{HASH}.pt.0").read_bytes() == b"weights"
    assert (kept / f"base_models/{HASH}_metadata.json.0").exists()
    assert artifacts.open_experiment(kept / "experiments/p/fold0_x.0").contents == FILES
    assert (kept / "experiments/p/fold0_x.0/own/link").read_text() == "by hand"
    assert (kept / "experiments/p/fold0_x.0/own/link").is_symlink()
    assert list(other_disk.base_models.iterdir()) == []
    assert list((other_disk.experiments / "p").iterdir()) == []


def test_half_a_copy_of_a_killed_process_is_made_anew(
    other_disk: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artifacts.publish_experiment(other_disk, "p", "fold0_x", FILES, {"provenance": {}})
    write_file = artifacts.write_file

    def killed(path: Path, content: bytes) -> None:
        if path.name == "losses.json":
            raise KeyboardInterrupt
        write_file(path, content)

    monkeypatch.setattr(artifacts, "write_file", killed)
    with pytest.raises(KeyboardInterrupt):
        artifacts.supersede_experiment(other_disk, folder)
    monkeypatch.setattr(artifacts, "write_file", write_file)
    assert artifacts.open_experiment(folder).contents == FILES
    artifacts.supersede_experiment(other_disk, folder)
    assert [path.name for path in (other_disk.superseded / "experiments/p").iterdir()] == [
        "fold0_x.0"
    ]


def test_only_whole_copies_are_adopted(paths: Paths, tmp_path: Path) -> None:
    node = Paths(tmp_path / "node")
    artifacts.publish_base_model(node, HASH, b"weights", {"provenance": {}})
    node.base_weights(HASH).write_bytes(b"weightz")
    with pytest.raises(CorruptArtifact):
        artifacts.adopt_base_model(paths, artifacts.open_base_model(node, HASH))
    assert not paths.base_metadata(HASH).exists()
    node.base_weights(HASH).write_bytes(b"weights")
    artifacts.adopt_base_model(paths, artifacts.open_base_model(node, HASH))
    assert artifacts.open_base_model(paths, HASH).weights == b"weights"


def test_a_lock_that_was_taken_only_now_says_by_whom_too(paths: Paths) -> None:
    place = paths.training_lock("k")
    place.parent.mkdir()
    with place.open("wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.2, file.write, (b"process 8",))
        timer.start()
        with (
            pytest.raises(Conflict, match="held by process 8"),
            artifacts.lock(place, wait=False, owner="me"),
        ):
            pass
        timer.join()


def test_a_lock_is_refused_in_the_words_of_its_caller(paths: Paths) -> None:
    place = paths.training_lock("k")
    with (
        artifacts.lock(place, wait=False, owner="process 7"),
        pytest.raises(Conflict, match=r"^busy: process 7$") as refused,
        artifacts.lock(place, wait=False, owner="me", refusal="busy: {}".format),
    ):
        pass
    assert (refused.value.path, refused.value.holder) == (place, "process 7")


def test_a_refused_command_leaves_no_lock_that_it_made(paths: Paths) -> None:
    place = paths.training_lock("k")

    def refused(shared: bool = False) -> None:
        with (
            pytest.raises(InputError),
            artifacts.lock(place, wait=False, owner="me", shared=shared),
        ):
            raise InputError("x")

    refused()
    assert not place.parent.exists()
    with artifacts.lock(place, wait=False, owner="another"):
        pass
    refused()
    assert place.exists()  # it was there before


def test_a_lock_that_another_waits_for_is_one_lock_though_its_file_was_removed(
    paths: Paths,
) -> None:
    place = paths.training_lock("k")

    def wait() -> None:
        with artifacts.lock(place, wait=True, owner="second"):
            assert place.read_text() == "second"  # not of the file that the first removed

    with ThreadPoolExecutor() as pool:

        def refused() -> None:
            with artifacts.lock(place, wait=False, owner="first"):
                waiting.append(pool.submit(wait))
                wait_until(lambda: waits_for(place), what="the second to wait")
                raise InputError("x")

        waiting: list[Future[None]] = []
        with pytest.raises(InputError):
            refused()
        waiting[0].result(30)


def test_a_lock_that_another_shares_stays(paths: Paths) -> None:
    place = paths.data_lock("data/x")
    with ExitStack() as held:

        def refused() -> None:
            with artifacts.lock(place, wait=False, owner="first", shared=True):
                held.enter_context(artifacts.lock(place, wait=False, owner="second", shared=True))
                raise InputError("x")

        with pytest.raises(InputError):
            refused()
        with pytest.raises(Conflict), artifacts.lock(place, wait=False, owner="third"):
            pass


def waits_for(place: Path) -> bool:
    """Whether somebody waits for the lock on this file."""
    inode = place.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in lines)


def test_a_lock_that_is_held_says_by_whom(paths: Paths) -> None:
    place = paths.training_lock("k")
    with (
        artifacts.lock(place, wait=False, owner="process 7"),
        pytest.raises(Conflict, match="held by process 7") as refused,
        artifacts.lock(place, wait=False, owner="other"),
    ):
        raise AssertionError("two holders")
    assert (refused.value.path, refused.value.holder) == (place, "process 7")
    with artifacts.lock(place, wait=False, owner="next"):
        assert place.read_text() == "next"


def test_what_makes_a_result_published_is_written_last(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    replace = artifacts._replace

    def recorded(path: Path, content: bytes, durable: bool) -> None:
        written.append(path.name)
        replace(path, content, durable)

    monkeypatch.setattr(artifacts, "_replace", recorded)
    head = Paths(tmp_path / "head")
    artifacts.publish_base_model(paths, HASH, b"weights", {"provenance": {}})
    artifacts.adopt_base_model(head, artifacts.open_base_model(paths, HASH))
    assert written == [f"{HASH}.pt", f"{HASH}_metadata.json"] * 2
    written.clear()
    folder = artifacts.publish_experiment(paths, "p", "fold0_ann", FILES, {"provenance": {}})
    half = len(written)
    artifacts.adopt_experiment(head, artifacts.open_experiment(folder))
    assert written[half - 1] == written[-1] == "metrics.json"
    assert written.count("metrics.json") == 2


def test_own_code_that_was_edited_beside_its_result_is_not_believed(paths: Paths) -> None:
    config = b'{"own_code": {"model": {"source": "class Net: ..."}}}'
    files = {**FILES, "config.json": config}
    folder = artifacts.publish_experiment(paths, "p", "fold0_ann", files, {"provenance": {}})
    assert artifacts.open_experiment(folder).config
    (folder / "model.py").write_text("class Net: pass")
    with pytest.raises(CorruptArtifact, match=r"model.py: is not the code that config.json keeps"):
        artifacts.open_experiment(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_numbers_only(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.to_json({"score": value})


@pytest.mark.parametrize(
    "provenance",
    [{}, {"a": 1}, {"z": 1}, {"a": 1, "z": 1}, {"a": {"checksum": "x"}, "z": [{"checksum": 1}]}],
    ids=["alone", "last", "first", "between", "not the only one"],
)
def test_a_sealed_document_is_read_wherever_its_checksum_stands_and_no_byte_may_change(
    tmp_path: Path, provenance: dict[str, Any]
) -> None:
    path = tmp_path / "document.json"
    record = artifacts.seal({"name": "x", "provenance": provenance})
    raw = artifacts.to_json(record)
    path.write_bytes(raw)
    assert artifacts.read_sealed(path) == record
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(CorruptArtifact):
            artifacts.read_sealed(path)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
def test_a_sealed_document_that_json_cannot_hold_is_refused(tmp_path: Path, value: str) -> None:
    text = artifacts.to_json({"a": 7, "provenance": {"z": 1}}).replace(b"7", value.encode())
    line = f'    "checksum": "{artifacts.sha256(text)}",\n'.encode()
    path = tmp_path / "document.json"
    path.write_bytes(text.replace(b'    "z"', line + b'    "z"'))
    with pytest.raises(CorruptArtifact):
        artifacts.read_sealed(path)
