"""Data that are prepared again during a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.cluster.ssh.data_watch import DataWatch
from common.paths import Paths

FILE = ("data/x", "ann_train.pt")


def watched(folder: Path) -> tuple[DataWatch, Path]:
    """A watch over one file with content."""
    path = folder / FILE[0] / FILE[1]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"windows")
    digest = hashlib.sha256(b"windows").hexdigest()
    return DataWatch(Paths(folder), {FILE: digest, ("data/there", "only.pt"): None}), path


def test_other_content_is_noticed_the_same_content_again_is_not(tmp_path: Path) -> None:
    watch, path = watched(tmp_path)
    assert watch.changed() is None
    path.with_name("new").write_bytes(b"windows")
    path.with_name("new").replace(path)
    assert watch.changed() is None
    path.write_bytes(b"other!!")
    assert watch.changed() == "data/x"


def test_a_folder_that_is_missing_for_a_moment_is_not_new(tmp_path: Path) -> None:
    watch, path = watched(tmp_path)
    path.rename(path.with_name("aside"))
    assert watch.changed() is None
    path.with_name("aside").rename(path)
    assert watch.changed() is None
    path.unlink()
    assert watch.changed() is None
    assert watch.changed() == "data/x"
