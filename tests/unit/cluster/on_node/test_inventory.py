"""What a node removes: plain files of the given content, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.cluster.on_node.inventory import remove

DIGEST = hashlib.sha256(b"result").hexdigest()


def test_only_plain_files_of_that_content_are_removed(tmp_path: Path) -> None:
    root, outside = tmp_path / "project", tmp_path / "outside.pt"
    folder = root / "experiments/p/fold0_x"
    folder.mkdir(parents=True)
    for path in (outside, folder / "same.pt"):
        path.write_bytes(b"result")
    (folder / "other.pt").write_bytes(b"edited")
    (folder / "link.pt").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)
    names = ["same.pt", "other.pt", "link.pt", "absent.pt"]
    wanted = {f"experiments/p/fold0_x/{name}": DIGEST for name in names}
    wanted |= {"linked/outside.pt": DIGEST, "../outside.pt": DIGEST, str(outside): DIGEST}
    assert remove(wanted, root) == 1
    assert outside.read_bytes() == b"result"
    assert sorted(path.name for path in folder.iterdir()) == ["link.pt", "other.pt"]


def test_folders_that_have_become_empty_go_too_but_not_the_project(tmp_path: Path) -> None:
    (tmp_path / "base_models").mkdir()
    (tmp_path / "base_models/a.pt").write_bytes(b"result")
    assert remove({"base_models/a.pt": DIGEST}, tmp_path) == 1
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []
