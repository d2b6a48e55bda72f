"""dataset.json, and SHA-256 that is computed once for a file that stays as it is."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from common.data import manifest
from common.data.manifest import Sha256Cache, is_settled, read_manifest
from common.errors import InputError
from tests.scripts.made import PEOPLE, write_data


def old(path: Path, content: bytes) -> str:
    """Write a file that has been there for a while; its SHA-256."""
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this moment count as old ones."""
    monkeypatch.setattr(manifest, "is_settled", lambda *_: True)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    reads: list[Path] = []
    plain = manifest.file_sha256

    def counting(path: Path) -> str:
        reads.append(path)
        return plain(path)

    monkeypatch.setattr(manifest, "file_sha256", counting)
    return reads


def test_an_unchanged_file_is_read_once_also_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    expected = old(tmp_path / "x", b"one")
    first = Sha256Cache(tmp_path / "cache/sha256.json")
    assert [first.sha256(tmp_path / "x") for _ in range(3)] == [expected] * 3
    assert Sha256Cache(tmp_path / "cache/sha256.json").sha256(tmp_path / "x") == expected
    assert len(reads) == 1


def test_a_change_at_equal_size_and_time_is_noticed(tmp_path: Path) -> None:
    old(tmp_path / "x", b"one")
    cache = Sha256Cache(tmp_path / "cache/sha256.json")
    cache.sha256(tmp_path / "x")
    before = (tmp_path / "x").stat()
    expected = old(tmp_path / "x", b"two")
    os.utime(tmp_path / "x", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.sha256(tmp_path / "x") == expected


def test_a_file_that_has_just_changed_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "is_settled", lambda *_: False)
    reads = count_reads(monkeypatch)
    old(tmp_path / "x", b"one")
    cache = Sha256Cache(tmp_path / "cache/sha256.json")
    cache.sha256(tmp_path / "x")
    cache.sha256(tmp_path / "x")
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b'{"files": {}}', b"[]", b"\xff"])
def test_a_damaged_cache_is_slower_and_never_wrong(tmp_path: Path, damage: bytes) -> None:
    expected = old(tmp_path / "x", b"one")
    Sha256Cache(tmp_path / "cache.json").sha256(tmp_path / "x")
    (tmp_path / "cache.json").write_bytes(damage)
    assert Sha256Cache(tmp_path / "cache.json").sha256(tmp_path / "x") == expected


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    expected = old(tmp_path / "x", b"one")
    (tmp_path / "cache").write_text("a file in the way")
    assert Sha256Cache(tmp_path / "cache/sha256.json").sha256(tmp_path / "x") == expected


def test_many_new_files_are_saved_once_a_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = [0.0], list[int]()
    plain = manifest.write_file

    def counting(path: Path, content: bytes, *, durable: bool) -> None:
        saved.append(content.count(b"/file"))
        plain(path, content, durable=durable)

    monkeypatch.setattr(manifest, "write_file", counting)
    monkeypatch.setattr(manifest.time, "monotonic", lambda: now[0])
    cache = Sha256Cache(tmp_path / "cache.json")
    for number in range(100):
        old(tmp_path / f"file{number}", b"x")
        cache.sha256(tmp_path / f"file{number}")
        now[0] += 1 / 32
    assert saved == [1, 33, 65, 97]
    del cache
    assert saved[4:] == [100]
    reads = count_reads(monkeypatch)
    again = Sha256Cache(tmp_path / "cache.json")
    for number in range(100):
        again.sha256(tmp_path / f"file{number}")
    del again
    assert (reads, len(saved)) == ([], 5)


def test_a_cache_that_a_refused_command_removed_is_not_made_again(tmp_path: Path) -> None:
    cache = Sha256Cache(tmp_path / "cache.json")
    for name in "xy":
        old(tmp_path / name, b"one")
        cache.sha256(tmp_path / name)
    (tmp_path / "cache.json").unlink()
    del cache
    assert not (tmp_path / "cache.json").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nobody_train\.pt: No such file"):
        Sha256Cache(tmp_path / "c.json").sha256(tmp_path / "nobody_train.pt")


def test_a_manifest_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    write_data(tmp_path, manifest=True)
    found = read_manifest(tmp_path)
    assert found is not None
    assert list(found.participants) == list(PEOPLE)
    assert found.participants["ann"]["train"].positives == 12
    (tmp_path / "dataset.json").write_text('{"channels": 3}')
    with pytest.raises(InputError, match=r"dataset.json: sampling_rate_hz: .*prepare_data.py"):
        read_manifest(tmp_path)


def test_only_what_was_written_a_while_ago_is_settled() -> None:
    now = time.time()
    for ages, settled in (((1, 1), False), ((60, 1), False), ((1, 60), False), ((60, 60), True)):
        assert is_settled(*(int((now - age) * 1e9) for age in ages)) is settled
