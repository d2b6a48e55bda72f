"""Removes results from a node that the head has, byte for byte. Its text is given to the node's
Python; standard library only.

In: {file name: SHA-256}. Out: how many files were removed. What is not a plain file inside the
project folder, or has other bytes, is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys


def inside(name: str) -> bool:
    """A plain file, reached without a symbolic link, below the project folder."""
    return os.path.isfile(name) and os.path.realpath(name) == os.path.join(
        os.path.realpath("."), os.path.normpath(name)
    )


def same(name: str, digest: str) -> bool:
    """Whether the file has these bytes."""
    with open(name, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() == digest


removed = 0
for wanted, sha256 in json.load(sys.stdin).items():
    if inside(wanted) and same(wanted, sha256):
        os.unlink(wanted)
        removed += 1
        with contextlib.suppress(OSError):  # not empty yet
            os.removedirs(os.path.dirname(wanted))
sys.stdout.write(f"{removed}\n")
