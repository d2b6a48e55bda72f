"""Trials: a node that lies. Its results are sealed with right checksums and tell something else;
its messages and facts have any form.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from common.cluster import protocol
from common.cluster.display import closing_table
from common.cluster.results import Results
from common.data.data_sets import Data
from common.jobs.job_files import Job, base_job, finetune_job
from common.paths import Paths
from tests.trust.checker import Checker, contents, sha256
from tests.trust.damage import published
from tests.trust.kills import here
from tests.trust.names import HOSTILE, many, values
from tests.trust.world import BASE, World, call, opened

LIES: tuple[Any, ...] = (
    *HOSTILE,
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    [],
    {},
    [[]],
    {"a": []},
    "../../../etc/passwd",
    "cem",
    "\x1b]0;title\x07",
    "<script>",
)
Place = tuple[str | int, ...]


class Pair:
    """A head without results, and a node that has them; the three jobs, as the head knows them."""

    def __init__(self, node: World, head: World) -> None:
        self.node, self.head = node, head
        there = published(node)
        data = Data(Paths(head.folder))
        self.base: Job = base_job(dict(BASE), "x", data)
        tune = {
            **BASE,
            "early_stopping_patience_target": 50,
            "mode": "full_fine_tuning",
            "prefix": "p",
            "base_model_hash": there.base,
        }
        self.tune: Job = finetune_job(tune, "x", data)
        alone = {**tune, "mode": "target_only", "prefix": "alone", "base_model_hash": None}
        here(node.folder, "finetune", alone)
        self.alone: Job = finetune_job(alone, "x", data)
        self.results = Results(Paths(head.folder), data.sha256, {})

    def documents(self, job: Job) -> list[Path]:
        """What the node says of a result."""
        if job.kind == "base":
            return [self.node.folder / f"base_models/{job.id}_metadata.json"]
        return [
            self.node.folder / f"experiments/{job.id}/{name}"
            for name in ("config.json", "metrics.json")
        ]

    def accept(self, job: Job) -> str:
        """The head takes it, or says why not."""
        return self.results.accept(job, Paths(self.node.folder))


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    """Places in a document."""
    yield place
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*place, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*place, 0))


def put(record: Any, place: Place, lie: Any) -> Any:
    """A copy with one value replaced, or removed."""
    record = copy.deepcopy(record)
    if not place:
        return lie
    inner = record
    for step in place[:-1]:
        inner = inner[step]
    if lie is put:
        del inner[place[-1]]
    else:
        inner[place[-1]] = lie
    return record


def write_sealed(path: Path, record: Any) -> None:
    """With a right checksum where there can be one: a liar computes it too."""
    if isinstance(record, dict) and isinstance(record.get("provenance"), dict):
        record["provenance"].pop("checksum", None)
        record["provenance"]["checksum"] = sha256(_bytes(record))
    path.write_bytes(_bytes(record))


def _bytes(record: Any) -> bytes:
    return (
        json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False).encode(
            errors="surrogatepass"
        )
        + b"\n"
    )


def reseal_metrics(folder: Path) -> None:
    """metrics.json names the files' SHA-256 anew."""
    record = json.loads((folder / "metrics.json").read_bytes())
    for name in record["files"]:
        record["files"][name] = sha256((folder / name).read_bytes())
    write_sealed(folder / "metrics.json", record)


def lying_records(seed: int, parent: Path, trials: int = 200) -> int:
    """One value of a record is a lie: refused in one line with nothing published, or it changes
    nothing that the head goes by.
    """
    rng = random.Random(seed)
    with opened(parent, f"node {seed}") as node, opened(parent, f"head {seed}") as head:
        pair = Pair(node, head)
        assert pair.accept(pair.base) == ""
        for number in range(trials):
            job = rng.choice((pair.base, pair.tune, pair.alone))
            path = rng.choice(pair.documents(job))
            kept = {other: other.read_bytes() for other in pair.documents(job)}
            record = json.loads(kept[path])
            place, lie = rng.choice(list(leaves(record))), rng.choice((*LIES, put))
            write_sealed(path, put(record, place, lie if place else rng.choice(([], "x", 7))))
            if path.name == "config.json":
                reseal_metrics(path.parent)
            shutil.rmtree(
                head.folder / ("base_models" if job.kind == "base" else "experiments"),
                ignore_errors=True,
            )
            said = pair.accept(job)
            where = f"{path.name} {place} = {lie!r}"
            assert all(c.isprintable() for c in said), f"{where}: {said!r}"
            there = contents(head.folder)
            mine = [
                name
                for name in there
                if name.startswith("base_models" if job.kind == "base" else "experiments")
            ]
            assert not (said and mine), f"{where}: refused ({said}) and published {mine}"
            if not said:
                problems = Checker(head.folder).check(complete=False)
                assert not [problem for problem in problems if "test_macro_f1" not in problem], (
                    f"{where}: {problems}"
                )
                closing_table(Paths(head.folder), [pair.tune, pair.alone])
                if number % 10 == 0:
                    code, out, err = call(head.folder, "report.py")
                    assert code in (0, 1, 2), f"{where}: {err}"
                    assert "Traceback" not in out + err, f"{where}: {err}"
            for other, content in kept.items():
                other.write_bytes(content)
            if job.kind == "base":
                shutil.rmtree(head.folder / "base_models", ignore_errors=True)
                assert pair.accept(pair.base) == ""
        assert pair.accept(pair.tune) == pair.accept(pair.alone) == ""
    return trials


def lying_messages(seed: int, examples: int = 500) -> int:
    """Messages of workers, in any form: known keys of known types, or ValueError."""
    keys = st.sampled_from(
        [
            "hello",
            "progress",
            "done",
            "failed",
            "result",
            "seconds",
            "log",
            "cause",
            "error",
            "epoch",
            "of",
            "refused",
            "beat",
        ]
    )
    said = st.one_of(
        values,
        st.dictionaries(keys, st.one_of(values, st.just("mine"), st.just("other")), max_size=5),
    )

    def test(message: Any) -> None:
        try:
            known = protocol.message(message, {"mine"})
        except ValueError:
            return
        assert all(known.get(what, "mine") == "mine" for what in ("progress", "done", "failed"))
        if "done" in known or "failed" in known:
            assert 0 <= known["seconds"] <= 1e9
            assert isinstance(known["log"], str)
        json.dumps(known, allow_nan=False)

    return many(examples, seed, test, said)


def lying_facts(seed: int, examples: int = 300) -> int:
    """What a probe tells, in any form."""
    good = {
        "python": "3.11",
        "versions": {"torch": "2"},
        "cores": 4,
        "gpus": [{"id": "0", "name": "n", "used_by": ""}],
        "kernel": "kernel, x86_64, 8 lanes",
        "driver": None,
        "free_bytes": 10,
        "clock": 1.0,
        "code": {"a.py": "0"},
        "data": [None],
    }
    assert protocol.node_facts(good)["cores"] == 4

    def test(key: str, value: Any) -> None:
        try:
            known = protocol.node_facts({**good, key: value})
        except ValueError:
            return
        assert known.keys() == good.keys()
        assert all(c.isprintable() for c in known["python"] + known["kernel"])

    return many(examples, seed, test, st.sampled_from(sorted(good)), values)
