"""The flags of both orchestrator scripts, and what they do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import Parser, number_of
from common.cluster.config import ClusterConfig, load_config
from common.cluster.curves import Curves, add_flag, check_package
from common.cluster.display import Display, closing_table, status_lines
from common.cluster.engine import Engine, load_engine
from common.cluster.journal import latest_status, log_of
from common.cluster.notify import Notifier
from common.cluster.request import (
    AskNodes,
    Request,
    conclude,
    describe,
    lock_data,
    only_orchestrator,
    plan_request,
    without_their_base,
)
from common.data.data_sets import Data
from common.errors import InputError
from common.jobs.inputs import all_data_files
from common.jobs.job_files import Job
from common.paths import CLUSTER_CONFIG, Paths

# Base jobs, the others, and a user's own script.
Read = Callable[[Data], tuple[list[Job], list[Job], Path | None]]


def parser(description: str) -> Parser:
    """The shared flags: how to run, then what to do instead of a run."""
    flags = Parser(description)
    flags.add_argument(
        "--cluster-config",
        type=Path,
        default=Path(CLUSTER_CONFIG),
        help=f"the nodes (default: {CLUSTER_CONFIG})",
    )
    flags.switch(
        "--skip-sync",
        "send nothing before it is missed: trust what the nodes have (SHA-256 is still checked)",
    )
    flags.switch(
        "--no-wait",
        "leave out slots that another project of yours fills, instead of waiting for a turn",
    )
    flags.switch("--dry-run", "print what would run, what is reused and why")
    flags.add_argument(
        "--only",
        metavar="failed|PREFIX",
        help="only jobs that failed last time, or fine-tunes whose prefix begins so",
    )
    flags.switch("--retrain", "make results of other code versions anew")
    flags.add_argument(
        "--max-retries",
        type=int,
        default=2,
        metavar="N",
        help="how often a job is tried again after a node's fault (default: 2)",
    )
    flags.add_argument(
        "--notify-command",
        metavar="CMD",
        help="run at the end and at the first failure, with a line of text as its last argument",
    )
    add_flag(flags)
    flags.switch("--status", "show the latest run of this project folder, from any terminal")
    flags.add_argument(
        "--log", metavar="JOB", help="print the path of a job's log in the latest run that has one"
    )
    flags.switch("--check", "only test the nodes: one line each")
    flags.switch("--setup-nodes", "build each node's environment from requirements.txt")
    flags.switch("--cancel", "Slurm: end this project's waiting and running jobs, and no others")
    flags.switch("--clean-nodes", "remove from the nodes results that are verified here")
    return flags


def execute(
    args: argparse.Namespace,
    read: Read,
    *,
    train_bases: bool = True,
    wait_for_all_bases: bool = False,
) -> int:
    """Do what the flags say. Returns the exit code."""
    paths, display = Paths.here(), Display()
    if args.max_retries < 0:
        raise InputError("--max-retries: a number from 0 up is needed")
    notifier = Notifier(args.notify_command)
    if args.tensorboard:
        check_package()
    if args.status:
        return _status(paths, display)
    if args.log is not None:
        display.say(str(_from_here(paths, log_of(paths, args.log))))
        return 0
    config = load_config(args.cluster_config)
    engine = load_engine(config.engine)
    if args.cancel:
        engine.cancel(config, paths, display.say)
        return 0
    if args.setup_nodes:
        return int(not engine.setup(config, paths, display.say))
    if args.clean_nodes:
        return int(not engine.clean(config, paths, display.say))
    data = Data(paths)
    if args.check:
        return _check(engine, config, paths, data, read, display)
    bases, others, script = read(data)
    request = Request(
        paths,
        args.cluster_config,
        config,
        bases,
        others,
        script,
        train_bases=train_bases,
        sync=not args.skip_sync,
        wait_for_all_bases=wait_for_all_bases,
        wait_for_slots=not args.no_wait,
        retrain=args.retrain,
        only=args.only,
        max_retries=args.max_retries,
    )
    fingerprints = partial(engine.data_fingerprints, config, paths)
    if args.dry_run:
        for line in describe(plan_request(request, data, fingerprints), verbose=True):
            display.say(line)
        return 0
    with only_orchestrator(paths), lock_data(request):
        curves = Curves(paths) if args.tensorboard else None
        return _run(engine, request, data, fingerprints, display, notifier, curves)


def _from_here(paths: Paths, path: Path) -> Path:
    """Relative where it lies in the project folder, which may have been named through a link."""
    inside = (folder for folder in path.parents if folder.samefile(paths.root))
    return next((path.relative_to(folder) for folder in inside), path)


def _run(
    engine: Engine,
    request: Request,
    data: Data,
    fingerprints: AskNodes,
    display: Display,
    notifier: Notifier,
    curves: Curves | None,
) -> int:
    prepared = plan_request(request, data, fingerprints)
    jobs = (*prepared.work.bases, *prepared.work.others)
    for line in describe(prepared):
        display.say(line)
    failures: list[str] = []

    def say(line: str, *, failed: str | None = None) -> None:
        display.say(line)
        if failed is not None and not failures:
            failures.append(failed)
            notifier.tell(line)

    def show(status: dict[str, Any]) -> None:
        display.show(status)
        if curves is not None:
            curves.show(status)

    try:
        outcome = engine.run(request, prepared, say, show)
        if again := without_their_base(request, outcome):
            display.say(
                f"{number_of(len(again.bases), 'base model')} deleted during the run: trained"
                f" again, then {number_of(len(again.others), 'fine-tune')} that need it"
            )
            replanned = plan_request(again, data, fingerprints)
            outcome.add(engine.run(again, replanned, say, show), again.others)
    finally:
        display.close()
        if curves is not None:
            curves.finish(jobs)
    lines = [
        *closing_table(request.paths, request.others),
        *conclude(outcome, prepared.made, request.only),
    ]
    for line in lines:
        display.say(line)
    notifier.tell(lines[-1])
    notifier.wait()
    return outcome.exit_code


def _status(paths: Paths, display: Display) -> int:
    status = latest_status(paths)
    if status is None:
        raise InputError(f"{paths.runs}: no run has been started in this project folder")
    for line in status_lines(status):
        display.say(line)
    for line in load_engine(str(status.get("engine"))).queue_lines(paths):
        display.say(line)
    return 0


def _check(
    engine: Engine, config: ClusterConfig, paths: Paths, data: Data, read: Read, display: Display
) -> int:
    try:
        bases, others, _ = read(data)
        files = all_data_files((*bases, *others))
    except InputError as error:  # nodes can be checked before there are jobs
        display.say(f"data are not compared: {error}")
        files = []
    lines, good = engine.check(config, paths, files, data.sha256)
    for line in lines:
        display.say(line)
    return int(not good)
