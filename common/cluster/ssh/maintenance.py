"""Check, set up and clean nodes outside a run: --check, --setup-nodes, --clean-nodes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import artifacts
from common.cluster.config import ClusterConfig, Server
from common.cluster.ssh.node_commands import (
    check_facts,
    code_folder,
    lacking_code,
    probe,
    remove_files,
    send_code,
    slot_plan,
)
from common.cluster.ssh.payload import code_files
from common.cluster.transport.connection import BUILT_FROM, HALF_BUILT, connect
from common.cluster.work import Say
from common.data.data_sets import DataSha256
from common.data.manifest import file_sha256
from common.errors import BaseModelNotFound, CorruptArtifact, InputError, NodeError, ProjectError
from common.jobs.inputs import File
from common.paths import (
    BASE_MODELS,
    CODE_ROOT,
    EXPERIMENT_METRICS,
    EXPERIMENTS,
    Paths,
    result_files,
)

OF_ONE_NODE = (ProjectError, OSError, EOFError)  # shown in its line; the others go on


def _cause(error: BaseException) -> str:
    """Without the name of the node, with which its line begins."""
    return error.message if isinstance(error, ProjectError) else str(error)


def check_nodes(
    config: ClusterConfig, paths: Paths, files: Sequence[File], sha256: DataSha256
) -> tuple[list[str], bool]:
    """One line a node, a table of what differs between them, and whether all can work. Changes
    nothing there but an empty project folder.
    """
    with ThreadPoolExecutor(len(config.servers) or 1) as pool:
        answers = list(
            pool.map(lambda server: _check_node(server, paths, files, sha256), config.servers)
        )
    named = zip((server.name for server in config.servers), answers, strict=True)
    working = {name: facts for name, (_, facts) in named if facts is not None}
    lines = [line for line, _ in answers]
    return lines + difference_table(working), len(working) == len(answers)


# What is compared between nodes: its title, and how it is read from a probe's facts.
_COMPARED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "torch": lambda facts: str(facts["versions"].get("torch")),
    "CPU": lambda facts: str(facts["kernel"]),
    "GPUs": lambda facts: ", ".join(sorted({gpu["name"] for gpu in facts["gpus"]})) or "none",
    "Python": lambda facts: str(facts["python"]),
}


def difference_table(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table of what differs between nodes, by their facts, and what that means for the
    bytes of results; empty where nothing differs.
    """
    cells = {title: [read(facts) for facts in nodes.values()] for title, read in _COMPARED.items()}
    differing = {title: values for title, values in cells.items() if len(set(values)) > 1}
    if not differing:
        return []
    columns = [["node", *nodes], *([title, *values] for title, values in differing.items())]
    widths = [max(map(len, column)) for column in columns]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    meaning = (
        "only the Python differs: the same job gives the same bytes on all of these nodes"
        if list(differing) == ["Python"]
        else "the same job may differ in the last digits between these nodes; nodes with equal"
        f" {', '.join(title for title in differing if title != 'Python')} give the same bytes"
    )
    return ["what differs between the nodes:", *rows, meaning]


def _check_node(
    server: Server, paths: Paths, files: Sequence[File], sha256: DataSha256
) -> tuple[str, dict[str, Any] | None]:
    """The line of a node, and its facts; None where it cannot work."""
    try:
        with connect(server, paths.root) as node:
            facts = probe(node, () if node.shared else files)
            slots = slot_plan(server, facts)
            remarks = [*check_facts(server.name, facts), *slots.left_out]
            missing = lacking_code(node, facts)
            code = (
                "shared"
                if node.shared
                else f"{len(missing)} files will be sent"
                if missing
                else "equal"
            )
            data = "shared" if node.shared else _compare(files, facts["data"], sha256)
    except OF_ONE_NODE as error:
        return f"{server.name}: CANNOT WORK: {_cause(error)}", None
    devices = (
        ", ".join(f"GPU {gpu['id']} {gpu['name']}" for gpu in facts["gpus"])
        or f"{facts['cores']} cores"
    )
    line = (
        f"{server.name}: ok: python {facts['python']}, torch {facts['versions']['torch']}, driver"
        f" {facts['driver'] or 'none'}, {devices}, {len(slots.slots)} slots,"
        f" {facts['free_bytes'] / 1e9:.0f} GB free, clock {int(facts['clock'] - time.time()):+d} s,"
        f" code {code}, data {data}"
    )
    return "; ".join([line, *remarks]), facts


def _compare(files: Sequence[File], there: Sequence[str | None], sha256: DataSha256) -> str:
    """How the node's data files stand to the head's."""
    if not files:
        return "not compared"
    if len(there) != len(files):
        raise NodeError(f"it listed {len(there)} data files, {len(files)} were asked for")
    try:
        differ = sum(found != sha256(*file) for file, found in zip(files, there, strict=True))
    except InputError:
        missing = sum(found is None for found in there)
        return (
            f"not on the head, {missing} of {len(files)} files missing here"
            if missing
            else "not on the head, all here"
        )
    return f"{differ} of {len(files)} files will be sent" if differ else "equal"


def setup_nodes(config: ClusterConfig, paths: Paths, say: Say) -> bool:
    """Build each node's environment, `{path}/env`, from requirements.txt, with the Python that the
    configuration names. Safe to repeat. Returns whether all nodes can work.
    """
    with ThreadPoolExecutor(len(config.servers) or 1) as pool:
        return all(list(pool.map(lambda server: _setup_node(server, paths, say), config.servers)))


# $1: folder of requirements.txt; $2: the Python to build from, as the configuration names it.
# A set-up that a lost link left at work is waited for; what an interrupted one left is built again.
# An environment that was made in another way, from another Python, is left alone.
_SETUP = f"""set -e
case "$2" in "") python=python3;; "~/"*) python=$HOME/${{2#"~/"}};; *) python=$2;; esac
mkdir -p locks
exec 9>>locks/env.lock
"$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || :
built=$(cat {BUILT_FROM} 2>/dev/null) || built=
if test -e {HALF_BUILT} || ! env/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf env
elif test -n "$2" && test "$built" != "$2"; then
    if test -n "$built"; then
        rm -rf env
    elif test "$(env/bin/python -c "$3")" != "$("$python" -c "$3")"; then
        echo "env/ is there, built from another Python than $2: remove it, or name no python" >&2
        exit 1
    fi
fi
mkdir -p env
: > {HALF_BUILT}
test -x env/bin/python || "$python" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \\
    -r "$1/requirements.txt" -c "$1/constraints.txt"
printf %s "$2" > {BUILT_FROM}
rm {HALF_BUILT}
"""
_WHICH_PYTHON = "import sys; print(sys.base_prefix, sys.version_info[:2])"


def _setup_node(server: Server, paths: Paths, say: Say) -> bool:
    try:
        with connect(server, paths.root) as node:
            node.push(() if node.shared else code_files(), base=CODE_ROOT)
            say(f"{server.name}: building env/ from requirements.txt")
            named = "" if server.python == "env/bin/python" else server.python or ""
            argv = ["sh", "-c", _SETUP, "sh", code_folder(node), named, _WHICH_PYTHON]
            done = node.run(argv, timeout=3600)
            if not done.ok:
                raise NodeError(
                    f"the environment was not built: {done.last_words or 'no answer'}",
                    node=server.name,
                )
            node.refresh()
            facts = probe(node)
            torch = facts["versions"].get("torch")
            say(f"{server.name}: {node.python}: python {facts['python']}, torch {torch}")
            for remark in check_facts(server.name, facts):
                say(f"{server.name}: {remark}")
            slot_plan(server, facts)
            return True
    except OF_ONE_NODE as error:
        say(f"{server.name}: {_cause(error)}")
        return False


# -- cleaning


def clean_nodes(config: ClusterConfig, paths: Paths, say: Say) -> bool:
    """Remove from nodes only results that are verified on the head, byte for byte. Returns whether
    all nodes could be cleaned.
    """
    jobs = [*_verified_bases(paths), *_verified_experiments(paths)]
    verified = {
        name: file_sha256(paths.root / name) for job in jobs for name in published_files(paths, job)
    }
    cleaned = [_clean_node(server, paths, verified, say) for server in config.servers]
    return all(cleaned)


def _verified_bases(paths: Paths) -> list[str]:
    found = []
    for base in artifacts.published_base_hashes(paths):
        with contextlib.suppress(CorruptArtifact, BaseModelNotFound):
            found.append(artifacts.open_base_model(paths, base).hash)
    return found


def _verified_experiments(paths: Paths) -> list[str]:
    found = []
    for metrics in sorted(paths.experiments.glob(f"*/*/{EXPERIMENT_METRICS}")):
        with contextlib.suppress(CorruptArtifact, FileNotFoundError):
            folder = artifacts.open_experiment(metrics.parent).folder
            found.append(str(folder.relative_to(paths.experiments)))
    return found


def published_files(paths: Paths, job: str) -> list[str]:
    """The files of a published result; the one that makes it published comes first, so that half a
    removal leaves nothing that counts.
    """
    return sorted(
        (name for name in result_files(job) if (paths.root / name).is_file()),
        key=lambda name: not name.endswith(".json"),
    )


def _clean_node(server: Server, paths: Paths, verified: Mapping[str, str], say: Say) -> bool:
    try:
        with connect(server, paths.root) as node:
            if node.shared:
                say(f"{server.name}: its project folder is the head's: nothing to clean")
                return True
            send_code(node, probe(node))
            removed = remove_files(node, verified)
            say(
                f"{server.name}: {removed} files removed from {BASE_MODELS}/ and {EXPERIMENTS}/,"
                " each of them verified here"
            )
            return True
    except OF_ONE_NODE as error:
        say(f"{server.name}: {_cause(error)}")
        return False
