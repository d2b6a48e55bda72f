"""One name, one meaning: a class or a public function is defined once in common/, or its reason
stands here.
"""

from __future__ import annotations

import ast
from collections import defaultdict

from common.paths import CODE_ROOT

# The functions of an engine: ssh/start.py and slurm/start.py, see common/cluster/engine.py.
ENGINE = {"run", "check", "setup", "clean", "cancel", "data_fingerprints", "queue_lines"}
ALLOWED = {
    "main": "the entry of a script or of a module that is started by itself",
    "run": "also what a training script defines for its worker: run(options, progress)",
    **dict.fromkeys(ENGINE - {"run"}, "two engines behind one interface"),
}


def definitions() -> dict[str, list[str]]:
    """The modules in which each class and public function stands, by name."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((CODE_ROOT / "common").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if public or isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(CODE_ROOT)))
    return found


def test_a_name_has_one_meaning() -> None:
    twice = {name: places for name, places in definitions().items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in ALLOWED} == {}


def test_no_reason_is_given_for_a_name_that_is_defined_once() -> None:
    found = definitions()
    functions = set(ALLOWED) - {"check", "setup", "clean"}  # in ssh/start.py these are assigned
    assert [name for name in sorted(functions) if len(found[name]) < 2] == []
