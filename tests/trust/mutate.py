"""The product, broken on purpose: a piece of a module's source replaced, in this process (and in
its forks) or in a copy of the whole tree.
"""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT


@contextmanager
def broken(module: str, function: str, old: str, new: str) -> Iterator[None]:
    """In this block `function` ("name" or "Class.name") of `module` has `new` where its source has
    `old`, for everybody who uses it.
    """
    owner = importlib.import_module(module)
    *outer, name = function.split(".")
    holder = getattr(owner, outer[0]) if outer else owner
    real = vars(holder)[name]
    plain = inspect.unwrap(real.__func__ if isinstance(real, classmethod) else real)
    made = _replaced(plain, old, new, vars(owner), name)
    setattr(holder, name, made)
    others = [
        other
        for other in list(sys.modules.values())
        if other and other.__name__.startswith("common.") and vars(other).get(name) is real
    ]
    for other in others:
        setattr(other, name, made)
    try:
        yield
    finally:
        setattr(holder, name, real)
        for other in others:
            setattr(other, name, real)


def _replaced(function: object, old: str, new: str, scope: dict[str, object], name: str) -> object:
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    assert source.count(old) >= 1, f"{name} has no {old!r} any more: what broke it no longer does"
    found: dict[str, object] = {}
    # annotations stay text
    exec(
        compile(source.replace(old, new), f"<{name}, broken>", "exec", flags=0x1000000),
        scope,
        found,
    )
    return found[name]


def broken_tree(parent: Path, file: str, old: str, new: str) -> Path:
    """A copy of the scripts and of common/, with one piece of one file replaced."""
    tree = parent / "broken tree"
    shutil.copytree(ROOT / "common", tree / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tree)
    source = (tree / file).read_text()
    assert source.count(old) >= 1, f"{file} has no {old!r} any more: what broke it no longer does"
    (tree / file).write_text(source.replace(old, new))
    return tree
