"""What is asked of a node: one function a question, each runs one command there."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from common.cli import few
from common.cluster import protocol
from common.cluster.config import ClusterConfig, Gpu, Probe, Server, Slot, SlotPlan, slots
from common.cluster.ssh.payload import code_files
from common.cluster.transport.connection import Connection
from common.cluster.transport.process import Result
from common.data.manifest import file_sha256
from common.errors import NodeError
from common.jobs.inputs import File
from common.paths import BASE_MODELS, CODE_ROOT, SUPERSEDED

MIN_FREE_BYTES = 500 << 20
PROGRESS_A_SECOND = 200  # reports of running trainings that the head takes from all workers
PROBE_TEXT = (CODE_ROOT / "common/cluster/on_node/probe.py").read_text()


def code_digests() -> dict[str, str]:
    """SHA-256 of the head's code, by name."""
    return {name: file_sha256(CODE_ROOT / name) for name in code_files()}


def code_folder(connection: Connection) -> str:
    """Where the code lies on a node: in its project folder; where that is the head's, and the code
    elsewhere, at the same place as on the head.
    """
    elsewhere = connection.shared and connection.project != CODE_ROOT
    return str(CODE_ROOT) if elsewhere else connection.path


def lacking_code(connection: Connection, facts: dict[str, Any]) -> list[str]:
    """Files of the head's code that a node has to be sent; `facts`: what its probe found. Raises
    NodeError where nothing is sent, because the project folder is shared, and the code is not.
    """
    there = facts["code"]
    lacking = [name for name, digest in code_digests().items() if there.get(name) != digest]
    if lacking and connection.shared:
        raise NodeError(
            "its project folder is the head's (a shared file system), but the head's code is not in"
            f" {CODE_ROOT} there ({few(lacking)} missing or different): share that folder too, or"
            " put the code into the project folder",
            node=connection.name,
        )
    return lacking


def send_code(connection: Connection, facts: dict[str, Any], extra: Iterable[str] = ()) -> None:
    """Send the head's code, and `extra` files of the project, to a node. Raises NodeError."""
    connection.push(lacking_code(connection, facts), base=CODE_ROOT)
    connection.push(extra)


_SET_ASIDE = (
    'mkdir -p "$1" && shift && for name; do if test -e "$name"; then mv -f -- "$name"'
    ' "$0/${name##*/}.$$" || exit 1; fi; done'
)


def set_aside(connection: Connection, names: Iterable[str]) -> None:
    """Move files of the node to its superseded/. Raises NodeError."""
    folder = f"{SUPERSEDED}/{BASE_MODELS}"
    done = connection.run(["sh", "-c", _SET_ASIDE, folder, folder, *names])
    if not done.ok:
        raise NodeError(
            f"a damaged base model cannot be set aside: {done.last_words or 'no answer'}",
            node=connection.name,
        )


def probe(connection: Connection, files: Sequence[File] = ()) -> dict[str, Any]:
    """What the node has, SHA-256 of `files` included. Raises NodeError when its Python does not
    answer.
    """
    argv = [connection.python, "-c", PROBE_TEXT, code_folder(connection)]
    result = connection.run(argv, input=json.dumps(files).encode(), timeout=3600 if files else 60)
    try:
        return protocol.node_facts(_answer(result))
    except ValueError:
        raise NodeError(
            f"{connection.python} does not work there"
            f" ({result.last_words or 'no answer'}): run with --setup-nodes",
            node=connection.name,
        ) from None


def _answer(result: Result) -> dict[str, Any]:
    """The JSON object in the last line of a command's output; empty where there is none."""
    with contextlib.suppress(ValueError, IndexError, RecursionError):
        answer = json.loads(result.stdout.splitlines()[-1])
        if result.ok and isinstance(answer, dict):
            return answer
    return {}


def slot_plan(server: Server, facts: dict[str, Any]) -> SlotPlan:
    """The node's slots. Raises NodeError when there is none."""
    gpus = tuple(
        Gpu(str(gpu["id"]), str(gpu["name"]), str(gpu["used_by"])) for gpu in facts["gpus"]
    )
    return slots(server, Probe(int(facts["cores"]), gpus))


def check_facts(name: str, facts: dict[str, Any]) -> list[str]:
    """Remarks on node `name`, which can work. Raises NodeError when it cannot."""
    missing = [
        package
        for package in ("torch", "numpy", "pydantic", "scikit-learn")
        if not facts["versions"].get(package)
    ]
    if missing:
        raise NodeError(
            f"{', '.join(missing)} not installed there: run with --setup-nodes", node=name
        )
    if facts["free_bytes"] < MIN_FREE_BYTES:
        raise NodeError(f"only {facts['free_bytes'] >> 20} MB free on its disk", node=name)
    notes = []
    here, there = metadata.version("torch"), str(facts["versions"]["torch"])
    if here != there:
        notes.append(f"torch {there} there, {here} here: results may differ in their last digits")
    if abs(facts["clock"] - time.time()) > 60:
        notes.append(f"its clock differs by {facts['clock'] - time.time():+.0f} s")
    return notes


@dataclass(frozen=True)
class Inventory:
    """What a node has: SHA-256 of data files (None: absent), published base models and
    experiments.
    """

    data: dict[File, str | None]
    bases: tuple[str, ...]
    experiments: tuple[str, ...]


def inventory(
    connection: Connection, files: Sequence[File], bases: Sequence[str], experiments: Sequence[str]
) -> Inventory:
    """What the node has of these. Raises NodeError."""
    found, result = _ask(connection, {"data": files, "bases": bases, "experiments": experiments})
    try:
        digests = [None if digest is None else str(digest) for digest in found["data"]]
        there = set(map(str, (*found["bases"], *found["experiments"])))
        if len(digests) == len(files):
            return Inventory(
                dict(zip(files, digests, strict=True)),
                tuple(b for b in bases if b in there),
                tuple(e for e in experiments if e in there),
            )
    except (KeyError, TypeError):
        pass
    raise NodeError(
        f"its files cannot be listed: {result.last_words or 'no answer'}", node=connection.name
    )


def remove_files(connection: Connection, wanted: Mapping[str, str]) -> int:
    """Remove files of the node that have the given SHA-256. Returns how many. Raises NodeError."""
    found, result = _ask(connection, {"remove": wanted})
    removed = found.get("removed")
    if not isinstance(removed, int) or isinstance(removed, bool):
        raise NodeError(f"not cleaned: {result.last_words or 'no answer'}", node=connection.name)
    return removed


def _ask(connection: Connection, request: Mapping[str, Any]) -> tuple[dict[str, Any], Result]:
    """The answer of on_node/inventory.py, empty where it gave none."""
    argv = [connection.python, "-m", "common.cluster.on_node.inventory"]
    result = connection.run(argv, input=json.dumps(request).encode(), timeout=3600)
    return _answer(result), result


def slot_name(slot: Slot, plan: SlotPlan) -> str:
    """Names the physical place: the n-th share of a GPU, or the n-th core. Locks of two projects
    meet there.
    """
    same = [other.index for other in plan.slots if other.gpu == slot.gpu]
    # as in MIG-GPU-.../1/0; the name becomes a file's
    gpu = None if slot.gpu is None else slot.gpu.replace("/", "_")
    return f"cpu{same.index(slot.index)}" if gpu is None else f"gpu{gpu}-{same.index(slot.index)}"


def worker_argv(
    connection: Connection,
    slot: Slot,
    plan: SlotPlan,
    settings: ClusterConfig,
    jobs_per_gpu: int,
    owner: str,
    marker: str,
    *,
    wait: bool,
    measure: float | None,
) -> list[str]:
    """The command of a worker. It sees its own GPU only."""
    environment = [
        f"CUDA_VISIBLE_DEVICES={slot.gpu or ''}",
        "CUBLAS_WORKSPACE_CONFIG=:4096:8",
        f"JOBS_PER_GPU={jobs_per_gpu}",
    ]
    environment += [f"PYTHONPATH={code_folder(connection)}", "PYTHONUNBUFFERED=1"]
    flags = {
        "project": connection.path,
        "slot": slot_name(slot, plan),
        "owner": owner,
        "marker": marker,
        "device": "cpu" if slot.gpu is None else "0",
    }
    flags |= {"beat": str(settings.heartbeat_seconds), "silence": str(settings.close_seconds)}
    flags |= {"turn": str(settings.turn_seconds)}
    workers = len(settings.servers) * len(plan.slots)  # of the run, if the nodes are alike
    flags |= {"progress": str(max(1.0, workers / PROGRESS_A_SECOND))}
    return [
        "env",
        *environment,
        connection.python,
        "-m",
        "common.cluster.on_node.worker",
        *(f"--{name}={value}" for name, value in flags.items()),
        *(() if wait else ("--no-wait",)),
        *(() if measure is None else (f"--measure={measure}",)),
    ]
