"""The engine over SSH and local slots: see common/cluster/engine.py for its functions."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from common.cluster.config import ClusterConfig, Server
from common.cluster.estimates import Estimates
from common.cluster.journal import Journal, past_events
from common.cluster.request import Prepared, Request, make_room, signals
from common.cluster.scheduler.scheduler import Scheduler
from common.cluster.scheduler.states import Limits
from common.cluster.ssh.context import SEEN_SECONDS, RunContext
from common.cluster.ssh.maintenance import check_nodes, clean_nodes, setup_nodes
from common.cluster.ssh.node_commands import inventory, probe, send_code
from common.cluster.ssh.payload import Needs, extra_files, owner
from common.cluster.ssh.run import Runner
from common.cluster.transport.connection import connect
from common.cluster.work import Outcome, Report, Say, Show
from common.errors import InputError, ProjectError
from common.jobs.inputs import File, all_data_files, found_beside, path_of
from common.paths import Paths

MEASURE_SECONDS = 0.3
check, setup, clean = check_nodes, setup_nodes, clean_nodes


def run(request: Request, prepared: Prepared, say: Report, show: Show) -> Outcome:
    """Run a planned request to its end."""
    paths, work = request.paths, prepared.work
    results = make_room(request, prepared)
    blocked = sorted(prepared.made.missing_base)
    if not work.bases and not work.others:
        return Outcome(blocked=blocked)
    journal = Journal(paths, request.run_id)
    past = list(past_events(paths))
    # Only after an earlier run can nodes have results to report: a first run does not wait for the
    # slowest to answer.
    patience = SEEN_SECONDS if any(event.get("event") == "started" for event in past) else 0.0
    context = RunContext(
        paths,
        request.config_path,
        request.config,
        work,
        _needs(request, prepared),
        results,
        journal,
        Estimates(paths, past),
        Scheduler(_limits(request)),
        say,
        push_all=request.sync and not request.train_bases,
        patience=patience,
    )
    allow_open_files()
    runner = Runner(context, show)
    with signals(_interrupting(runner)):
        outcome = runner.run()
    journal.close()
    outcome.blocked += blocked
    return outcome


def allow_open_files() -> None:
    """Raise this process's own limit of open files as far as it may: a local slot takes four."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _needs(request: Request, prepared: Prepared) -> Needs:
    work = prepared.work
    jobs = (*work.bases, *work.others)
    bases = {job.id for job in work.bases} | {job.needs for job in work.others if job.needs}
    data = {file: prepared.data[file] for file in all_data_files(jobs)}
    return Needs(
        extra_files(request.script),
        data,
        tuple(bases),
        tuple(job.id for job in work.others if job.kind == "finetune"),
        owner(request.paths),
        wait=request.wait_for_slots,
        trusted=not request.sync,
        beside=found_beside(request.paths, jobs) if any(data.values()) else {},
        measure=None if request.script is not None else _measuring(request.config),
    )


def _measuring(config: ClusterConfig) -> float:
    """Seconds: a single node is compared with no other."""
    return MEASURE_SECONDS if len(config.servers) > 1 else 0.0


def _limits(request: Request) -> Limits:
    return Limits(
        suspect_after=request.config.suspect_seconds,
        close_after=request.config.close_seconds,
        max_retries=request.max_retries,
        wait_for_all_bases=request.wait_for_all_bases,
    )


def _interrupting(runner: Runner) -> Callable[[int, FrameType | None], None]:
    """First Ctrl-C: running jobs finish. Second, SIGTERM, SIGHUP: stop now. The handler only
    counts; the runner acts on it and reports.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        runner.interrupts = 2 if number != signal.SIGINT else runner.interrupts + 1

    return on_signal


def data_fingerprints(
    config: ClusterConfig, paths: Paths, files: Sequence[File]
) -> dict[File, str]:
    """SHA-256 of data files that the head lacks, from the nodes. Raises InputError where two nodes
    have different ones.
    """

    def ask(server: Server) -> dict[File, str | None]:
        try:
            with connect(server, paths.root) as node:
                if not node.shared:
                    send_code(node, probe(node))
                    return inventory(node, files, (), ()).data
        # the run itself will say why this node is left out
        except (ProjectError, OSError, EOFError):
            pass
        return {}

    found: dict[File, str] = {}
    with ThreadPoolExecutor(len(config.servers) or 1) as pool:
        for server, answer in zip(config.servers, pool.map(ask, config.servers), strict=True):
            for file, sha256 in answer.items():
                if sha256 and found.setdefault(file, sha256) != sha256:
                    raise InputError(
                        f"{path_of(file)}: {server.name} has another file than the other nodes, and"
                        " the head has none: make them equal first"
                    )
    return found


def cancel(config: ClusterConfig, paths: Paths, say: Say) -> None:
    """Nothing goes on without the head. Raises InputError."""
    raise InputError(
        '--cancel is for "engine": "slurm" in cluster_config.json; a run over SSH is ended with'
        " Ctrl-C"
    )


def queue_lines(paths: Paths) -> list[str]:
    """Nothing beyond the record of the run."""
    return []
