"""A user's own code and the library of the kernel, at their worst."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.training.kernel import build
from tests.trust import kernels, own_code


def test_own_networks_that_exit_fork_and_raise(tmp_path: Path) -> None:
    assert own_code.hostile_networks(1, tmp_path, 4) == 4


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_damaged_kernels(tmp_path: Path) -> None:
    assert kernels.damaged_kernels(1, tmp_path, 20) == 20
