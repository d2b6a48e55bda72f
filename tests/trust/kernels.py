"""Trials: the kernel's library damaged on disk between builds and uses."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
from pathlib import Path

from common.training.kernel import build, stack
from tests.conftest import ROOT
from tests.trust.damage import harm
from tests.trust.kills import fork

COMPILER = '#!/bin/sh\nexec cp "${0%/*}/good.so" "$(echo "$*" | sed "s/.* -o //")"\n'


def damaged_kernels(seed: int, parent: Path, trials: int = 100) -> int:
    """Each is built again before it is loaded, and computes what it did. The compiler is played:
    it copies a library that was built.
    """
    rng, argv = random.Random(seed), build.compiler()
    assert argv, "no C++ compiler"
    good = build.built(argv, ROOT / "cache").read_bytes()
    (parent / "good.so").write_bytes(good)
    compiler = parent / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    path = build.built([str(compiler)], parent / "cache")
    expected = _loaded(path, parent)
    for _ in range(trials):
        kind = rng.choice(("library", "library", "its SHA-256", "both", "no library", "neither"))
        for one in (path, path.with_suffix(".sha256")):
            if kind in ("both", "library" if one == path else "its SHA-256"):
                other = harm(one.read_bytes(), rng)
                one.unlink()  # as a disk does it: what is loaded stays as it was
                one.write_bytes(other)
            elif kind == "neither" or (kind == "no library" and one == path):
                one.unlink()
        assert build.built([str(compiler)], parent / "cache") == path
        assert path.read_bytes() == good, kind
        assert _loaded(path, parent) == expected, kind
    return trials


def _loaded(path: Path, parent: Path) -> str:
    """What the library computes, in a process of its own."""
    said = parent / "said"
    _, status = os.waitpid(fork(lambda: _noise(path), said), 0)
    assert status == 0, f"it ended with {status}"
    return str(json.loads(said.read_text()))


def _noise(path: Path) -> str:
    library, rows, length = stack.load_kernel(path), 3, 40
    values = (ctypes.c_float * (rows * length))(*range(rows * length))
    factors, spreads = ((ctypes.c_float * rows)(*each) for each in ((1, 2, 3), (0, 1, 2)))
    library.stack_augment(values, rows, 1, length, factors, spreads, 7)
    return hashlib.sha256(bytes(values)).hexdigest()
