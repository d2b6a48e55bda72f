"""Nodes looked at, built and cleaned outside a run: --check, --setup-nodes, --clean-nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from common import artifacts
from common.cluster.config import ClusterConfig, Server
from common.cluster.connection import Connection, connect
from common.cluster.node import Needs, check_facts, code_digests, code_files, inventory, probe, result_files, slot_plan
from common.cluster.orchestrate import owner
from common.errors import BaseModelNotFound, CorruptArtifact, InputError, NodeError, ProjectError
from common.paths import BASE_MODELS, CODE_ROOT, EXPERIMENT_METRICS, EXPERIMENTS, Paths
from common.reuse import DataSha256

Say = Callable[[str], None]


def check_nodes(config: ClusterConfig, paths: Paths, files: Sequence[tuple[str, str]], sha256: DataSha256) -> tuple[list[str], bool]:
    """One line a node, and whether all can work. Changes nothing there but an empty project folder."""
    with ThreadPoolExecutor(len(config.servers) or 1) as pool:
        answers = list(pool.map(lambda server: _check_node(server, paths, files, sha256), config.servers))
    return [line for line, _ in answers], all(good for _, good in answers)


def _check_node(server: Server, paths: Paths, files: Sequence[tuple[str, str]], sha256: DataSha256) -> tuple[str, bool]:
    try:
        with connect(server, paths.root) as node:
            facts = probe(node, owner(paths))
            slots = slot_plan(server, facts)
            remarks = [*check_facts(server.name, facts), *slots.left_out]
            devices = ", ".join(f"GPU {gpu['id']} {gpu['name']}" for gpu in facts["gpus"]) or f"{facts['cores']} cores"
            here = code_digests()
            code = "shared" if node.shared else "equal" if all(facts["code"].get(name) == digest for name, digest in here.items()) else "will be sent"
            data = "shared" if node.shared else _check_data(node, files, sha256) if code == "equal" else "will be compared"
    except ProjectError as error:
        return f"{server.name}: CANNOT WORK: {error}", False
    line = (
        f"{server.name}: ok: python {facts['python']}, torch {facts['versions']['torch']}, driver {facts['driver'] or 'none'}, {devices}, "
        f"{len(slots.slots)} slots, {facts['free_bytes'] >> 30} GB free, code {code}, data {data}"
    )
    return "; ".join([line, *remarks]), True


def _check_data(node: Connection, files: Sequence[tuple[str, str]], sha256: DataSha256) -> str:
    needs = Needs((), (), dict.fromkeys(files), (), (), "")
    answer = inventory(node, needs)["data"]
    try:
        differ = sum(there != sha256(*file) for file, there in zip(files, answer, strict=True))
    except InputError:
        return "not on the head"
    return f"{differ} of {len(files)} files will be sent" if differ else "equal"


def setup_nodes(config: ClusterConfig, paths: Paths, say: Say) -> bool:
    """Build each node's environment, `{path}/env`, from requirements.txt. Safe to repeat. Returns whether all have one."""
    with ThreadPoolExecutor(len(config.servers) or 1) as pool:
        return all(list(pool.map(lambda server: _setup_node(server, paths, say), config.servers)))


_SETUP = (
    'set -e; test -x env/bin/python || "${1:-python3}" -m venv env; '
    "env/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt"
)


def _setup_node(server: Server, paths: Paths, say: Say) -> bool:
    try:
        with connect(server, paths.root) as node:
            if not node.shared:
                node.push(code_files(), base=CODE_ROOT)
            say(f"{server.name}: building env/ from requirements.txt")
            done = node.run(["sh", "-c", _SETUP, "sh"], timeout=3600)
            if not done.ok:
                raise NodeError(f"{server.name}: the environment was not built: {done.last_words or 'no answer'}")
            node.refresh()
            facts = probe(node, owner(paths))
            say(f"{server.name}: python {facts['python']}, torch {facts['versions']['torch']}")
            return True
    except ProjectError as error:
        say(f"{server.name}: {error}")
        return False


# -- cleaning -------------------------------------------------------------------------------------------------------------------------

# The names come as arguments; what is not a plain file under the project folder is left alone.
_REMOVE = 'for name; do test -f "$name" && ! test -L "$name" && rm -f -- "$name"; done; exit 0'


def clean_nodes(config: ClusterConfig, paths: Paths, say: Say) -> bool:
    """Remove from nodes only results that are verified on the head. Returns whether all nodes could be cleaned."""
    verified = [*_verified_bases(paths), *_verified_experiments(paths)]
    cleaned = [_clean_node(server, paths, verified, say) for server in config.servers]
    return all(cleaned)


def _verified_bases(paths: Paths) -> list[str]:
    found = []
    for base in artifacts.published_base_hashes(paths):
        try:
            found.append(artifacts.open_base_model(paths, base).hash)
        except (CorruptArtifact, BaseModelNotFound):
            continue
    return found


def _verified_experiments(paths: Paths) -> list[str]:
    found = []
    for metrics in sorted(paths.experiments.glob(f"*/*/{EXPERIMENT_METRICS}")):
        try:
            found.append(str(artifacts.open_experiment(metrics.parent).folder.relative_to(paths.experiments)))
        except (CorruptArtifact, FileNotFoundError):
            continue
    return found


def _clean_node(server: Server, paths: Paths, verified: Sequence[str], say: Say) -> bool:
    try:
        with connect(server, paths.root) as node:
            if node.shared:
                say(f"{server.name}: its project folder is the head's: nothing to clean")
                return True
            names = [name for job in verified for name in result_files(job)]
            # Before and after, so that the number told is what happened there.
            bases = tuple(job for job in verified if "/" not in job)
            asked = Needs((), (), {}, bases, tuple(job for job in verified if "/" in job), owner(paths))
            before = inventory(node, asked)
            for start in range(0, len(names), 500):
                done = node.run(["sh", "-c", _REMOVE, "sh", *names[start : start + 500]], timeout=300)
                if not done.ok:
                    raise NodeError(f"{server.name}: not cleaned: {done.last_words or 'no answer'}")
            after = inventory(node, asked)
            gone = sum(len(before[kind]) - len(after[kind]) for kind in ("bases", "experiments"))
            say(f"{server.name}: {gone} results removed from {BASE_MODELS}/ and {EXPERIMENTS}/, all of them verified here")
            return True
    except ProjectError as error:
        say(f"{server.name}: {error}")
        return False
