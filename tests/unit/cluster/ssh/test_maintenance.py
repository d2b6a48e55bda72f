"""--check, --setup-nodes and --clean-nodes with nodes that answer anything: a line about each, and
the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.cluster import request as requests
from common.cluster.config import ClusterConfig, Server
from common.cluster.ssh import maintenance, start
from common.cluster.ssh.maintenance import (
    check_nodes,
    clean_nodes,
    difference_table,
    setup_nodes,
)
from common.cluster.transport import connection
from common.cluster.transport.process import Result
from common.data.data_sets import Data
from common.errors import InputError
from common.paths import Paths
from tests.unit.cluster.ssh.test_node_facts import facts

FILES = [("data/a", "x.pt"), ("data/a", "y.pt")]
FACTS = facts(host="h", python="3.11", cores=4, gpus=[], code={}, data=[None, None])


class Fake:
    """A node that answers every command in the same way."""

    shared, path, python = False, "/p", "python3"

    def __init__(self, name: str, answer: object) -> None:
        self.name, self._answer = name, answer

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        return Result(
            0, json.dumps(self._answer).encode() if self._answer is not None else b"", b""
        )

    def push(self, *_: object, **__: object) -> None: ...

    def refresh(self) -> None: ...


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ClusterConfig]:
    """Nodes by name with their answer; an exception is raised on connecting. localhost is this
    machine.
    """

    def make(local: dict[str, str] | None = None, **answers: object) -> ClusterConfig:
        @contextmanager
        def connect(server: Server, project: Path) -> Iterator[Any]:
            if server.host == "localhost":
                with connection.connect(server, project) as node:
                    yield node
                return
            answer = answers[server.host]
            if isinstance(answer, Exception):
                raise answer
            yield Fake(server.host, answer)

        for module in (maintenance, start):
            monkeypatch.setattr(module, "connect", connect)
        return ClusterConfig(
            servers=[
                *([Server(host="localhost", **local)] if local else []),
                *(Server(host=name) for name in answers),
            ]
        )

    return make


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "data/a").mkdir(parents=True)
    for _, name in FILES:
        (tmp_path / "data/a" / name).write_text(name)
    return Paths(tmp_path)


def test_check_has_a_line_for_each_node_whatever_one_says(
    answering: Callable[..., ClusterConfig], paths: Paths
) -> None:
    (paths.root / "file").touch()
    local = {"path": str(paths.root / "file/x")}
    config = answering(
        local,
        few={**FACTS, "data": [None]},
        many={**FACTS, "data": [None] * 3},
        gone=ConnectionResetError(104, "reset"),
        good=FACTS,
    )
    lines, good = check_nodes(config, paths, FILES, Data(paths).sha256)
    assert [line.partition(", torch")[0] for line in lines] == [
        f"localhost: CANNOT WORK: no project folder: {paths.root}/file/x: Not a directory",
        "few: CANNOT WORK: it listed 1 data files, 2 were asked for",
        "many: CANNOT WORK: it listed 3 data files, 2 were asked for",
        "gone: CANNOT WORK: [Errno 104] reset",
        "good: ok: python 3.11",
    ]
    assert not good


def test_set_up_and_cleaning_go_on_with_the_other_nodes(
    answering: Callable[..., ClusterConfig], paths: Paths
) -> None:
    said: list[str] = []
    bare = {**FACTS, "versions": {}}
    assert not setup_nodes(
        answering(gone=EOFError("the link ended"), bare=bare, good=FACTS), paths, said.append
    )
    lacking = "torch, numpy, pydantic, scikit-learn not installed there: run with --setup-nodes"
    assert {"gone: the link ended", f"bare: {lacking}"} <= set(said)
    assert any(line.startswith("good: python3: python 3.11, torch 2") for line in said)
    said.clear()
    config = answering(
        silent=FACTS,
        odd={**FACTS, "removed": "\x1b[2J"},
        bare="no object",
        gone=OSError(5, "broken"),
        good={**FACTS, "removed": 3},
    )
    assert not clean_nodes(config, paths, said.append)
    assert said[:4] == [
        "silent: not cleaned: no answer",
        "odd: not cleaned: no answer",
        "bare: python3 does not work there (no answer): run with --setup-nodes",
        "gone: [Errno 5] broken",
    ]
    assert said[4].startswith("good: 3 files removed")


def test_a_node_that_breaks_is_not_asked_for_its_data(
    answering: Callable[..., ClusterConfig], tmp_path: Path
) -> None:
    config = answering(gone=ConnectionResetError(104, "reset"))
    paths = Paths(tmp_path)
    with pytest.raises(InputError, match=r"data/a/x\.pt: neither here nor on any node"):
        requests._data_sha256(
            paths, Data(paths), FILES, partial(start.data_fingerprints, config, paths)
        )


def test_what_differs_between_nodes_is_one_table_with_its_meaning() -> None:
    one = {"python": "3.11.2", "kernel": "kernel, x86_64, avx2 vectors", "gpus": []}
    one |= {"versions": {"torch": "2.13.0"}}
    assert difference_table({"a": one, "b": one}) == []
    assert difference_table({"a": one}) == []
    lines = difference_table({"a": one, "bb": one | {"python": "3.12.1"}})
    assert lines == [
        "what differs between the nodes:",
        "node  Python",
        "a     3.11.2",
        "bb    3.12.1",
        "only the Python differs: the same job gives the same bytes on all of these nodes",
    ]
    other = one | {"versions": {"torch": "2.12.1"}, "kernel": "kernel, x86_64, avx512f vectors"}
    lines = difference_table({"a": one, "b": other})
    assert lines[1:4] == [
        "node  torch   CPU",
        "a     2.13.0  kernel, x86_64, avx2 vectors",
        "b     2.12.1  kernel, x86_64, avx512f vectors",
    ]
    assert lines[4].startswith("the same job may differ in the last digits between these nodes")
    assert "nodes with equal torch, CPU give the same bytes" in lines[4]
