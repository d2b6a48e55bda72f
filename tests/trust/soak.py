"""The long size: trials of every fault, from new seeds, for as long as is asked. What was tried
adds up in RESULTS.md.

    python -m tests.trust.soak --minutes 60
    python -m tests.trust.soak --minutes 10 --only "nodes" --only "rsync" --seed 7

Next is always the fault that is farthest from the trials wanted of it. Several soaks may run at
once. Exit code 1 when a trial failed; its seed repeats it.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import Hosts, missing_parts
from tests.trust import (
    damage,
    disks,
    endurance,
    hostile,
    kernels,
    kills,
    mutants,
    names,
    nodes,
    own_code,
    payloads,
    predicted,
)
from tests.trust.world import opened

RESULTS = Path(__file__).with_name("RESULTS.md")
ROW = re.compile(
    r"^\| (?P<when>[0-9 :-]+) \| (?P<seed>\d+) \| (?P<fault>[^|]+) \| (?P<trials>\d+) \|"
    r" (?P<failures>\d+) \| (?P<seeds>[^|]*) \|$"
)
HEAD = """# Trust: what was tried, in all

Written by `make soak MINUTES=60`, which adds to it. A trial is one fault: one kill, one damaged
file, one crash state, one hostile configuration. The small size, which `make test` runs, is not
counted here. A failure is repeated by `python -m tests.trust.soak --only FAULT --trial SEED`.

"""


@dataclass(frozen=True)
class Fault:
    """One kind of trial: from a seed and a folder, how many trials were made. `wanted`: in all,
    over all soaks. `remote`: needs the three hosts.
    """

    name: str
    run: Callable[[int, Path], int]
    wanted: int = 1_000
    remote: bool = False


def every_fault(shared: Path, hosts: Hosts | None) -> list[Fault]:
    """All of them; the remote ones work only with hosts."""
    return [*_killing(shared), *_harming(), *_deceiving(), *_remote(shared, hosts)]


def _killing(shared: Path) -> list[Fault]:
    """What runs is ended, or there are two of it."""
    return [
        Fault(
            "kill -9 of the head, local", lambda seed, folder: kills.head_killed(seed, shared), 500
        ),
        Fault("kill -9 of a worker", lambda seed, folder: kills.worker_killed(seed, shared), 300),
        Fault(
            "kill -9 of a training",
            lambda seed, folder: kills.training_killed(seed, folder, 40),
            400,
        ),
        Fault("two heads at once", kills.two_heads, 250),
        Fault(
            "two equal trainings at once",
            kills.two_trainings,
            50,
        ),
    ]


def _harming() -> list[Fault]:
    """Disks that fail or lose power, files that are damaged or changed."""
    return [
        Fault(
            "every call failing once, publishing",
            lambda seed, folder: _all_publishes(disks.every_failure, seed, folder),
            2_000,
        ),
        Fault("every call failing once, training", _failing_training, 500),
        Fault(
            "crash states, publishing",
            lambda seed, folder: _all_publishes(disks.every_crash, seed, folder),
            2_000,
        ),
        Fault("crash states, training", _crashed_training, 4_000),
        Fault(
            "damaged artifacts",
            lambda seed, folder: damage.damaged_artifacts(seed, folder, 1000),
            10_000,
        ),
        Fault("damaged checkpoints, caches, data", _other_damage, 5_000),
        Fault("payloads", _payloads, 2_000),
        Fault(
            "data changed before a run",
            damage.changed_before,
            80,
        ),
        Fault(
            "data changed during a run",
            lambda seed, folder: damage.changed_during(
                seed, folder, ("base", "finetune")[seed % 2]
            ),
            120,
        ),
    ]


def _deceiving() -> list[Fault]:
    """Names, nodes, results and users' code of any form; a product that is broken on purpose."""
    return [
        Fault("hostile names and configurations", _names, 10_000),
        Fault("hostile nodes", _hostile, 10_000),
        Fault(
            "own networks that exit, fork, flood, hang, raise",
            lambda seed, folder: own_code.hostile_networks(seed, folder, 6, slow=seed % 4 == 0),
            300,
        ),
        Fault(
            "damaged kernel libraries",
            lambda seed, folder: kernels.damaged_kernels(seed, folder, 200),
            2_000,
        ),
        Fault(
            "hostile names of recordings",
            lambda seed, folder: predicted.hostile_recordings(seed, folder, 40),
            1_000,
        ),
        Fault(
            "damaged and lying results, predicted with",
            lambda seed, folder: predicted.damaged_results(seed, folder, 200),
            5_000,
        ),
        Fault("mutants", lambda seed, folder: mutants.all_killed(), 1_000),
        Fault("tiny jobs", lambda seed, folder: endurance.tiny_jobs(folder, 4_000, seed), 20_000),
        Fault("planted secrets", endurance.planted_secrets, 20),
    ]


def _remote(shared: Path, hosts: Hosts | None) -> list[Fault]:
    """What needs the three hosts."""
    return [
        Fault(
            "kill -9 of the head, three nodes",
            lambda seed, folder: nodes.head_killed(seed, shared, _there(hosts)),
            500,
            remote=True,
        ),
        Fault(
            "kill -9 of rsync",
            lambda seed, folder: nodes.rsync_killed(seed, shared, _there(hosts)),
            300,
            remote=True,
        ),
        Fault(
            "nodes cut, frozen, rebooted",
            lambda seed, folder: nodes.node_harmed(seed, shared, _there(hosts)),
            200,
            remote=True,
        ),
    ]


def _there(hosts: Hosts | None) -> Hosts:
    assert hosts is not None
    return hosts


def _all_publishes(trial: Callable[[str, Path], int], seed: int, folder: Path) -> int:
    name = sorted(disks.PUBLISHES)[seed % len(disks.PUBLISHES)]
    return (
        disks.every_crash(name, folder, seed) if trial is disks.every_crash else trial(name, folder)
    )


def _failing_training(seed: int, folder: Path) -> int:
    training = disks.trainings(folder)[seed % 2]
    return disks.every_failure_of_a_training(training, folder, every=7, first=seed % 7)


def _crashed_training(seed: int, folder: Path) -> int:
    training = disks.trainings(folder)[seed % 2]
    return disks.every_crash_of_a_training(training, folder, seed, every=20, first=seed % 20)


def _other_damage(seed: int, folder: Path) -> int:
    trials = (
        damage.damaged_checkpoints(seed, folder, 100)
        + damage.damaged_cache(seed, folder, 100)
        + damage.damaged_data(seed, folder, 50)
    )
    return trials + damage.repaired_from_a_copy(seed, folder, 10)


def _payloads(seed: int, folder: Path) -> int:
    with opened(folder, "payloads") as world:
        there = damage.published(world)
        places = list(payloads.PLACES)
        return payloads.nothing_runs(there, places[seed % len(places)], folder / "mark")


def _names(seed: int, folder: Path) -> int:
    trials = (
        names.hostile_job_files,
        names.hostile_grids,
        names.hostile_clusters,
        names.hostile_flags,
        names.literal_names,
    )
    trial = trials[seed % len(trials)]
    return trial(seed, folder, 50 if trial is names.literal_names else 300)


def _hostile(seed: int, folder: Path) -> int:
    return (
        hostile.lying_records(seed, folder, 200)
        + hostile.lying_messages(seed, 300)
        + hostile.lying_facts(seed, 200)
    )


@dataclass
class Tally:
    """What came of one fault in this run."""

    trials: int = 0
    failures: int = 0
    seconds: float = 0.0
    failed: tuple[int, ...] = ()

    def add(self, fault: Fault, seed: int, folder: Path) -> None:
        """One more go from this seed."""
        began = time.monotonic()
        folder.mkdir()
        try:
            self.trials += fault.run(seed, folder)
            shutil.rmtree(folder, ignore_errors=True)
        except Exception:  # noqa: BLE001 - the trial failed; it is reported, the others go on
            self.trials, self.failures, self.failed = (
                self.trials + 1,
                self.failures + 1,
                (*self.failed, seed),
            )
            sys.stderr.write(
                f"FAILED: {fault.name}, seed {seed}, in {folder}\n{traceback.format_exc()}\n"
            )
        self.seconds += time.monotonic() - began


def soak(
    minutes: float,
    seed: int,
    only: Sequence[str],
    tallies: dict[str, Tally],
    trial: int | None = None,
) -> None:
    """Trials, counted in `tallies`, until the time is over."""
    before = totals(rows(RESULTS.read_text()) if RESULTS.exists() else [])
    rng, deadline = random.Random(seed), time.monotonic() + 60 * minutes
    folder = Path(tempfile.mkdtemp(prefix="trust soak "))
    with ExitStack() as stack:
        shared = folder / "shared"
        shared.mkdir()
        hosts: Hosts | None = None
        if (
            any(fault.remote for fault in _chosen(every_fault(shared, None), only))
            and not missing_parts()
        ):
            hosts = stack.enter_context(Hosts(folder))
        faults = [
            fault
            for fault in _chosen(every_fault(shared, hosts), only)
            if hosts or not fault.remote
        ]
        tallies |= {fault.name: Tally() for fault in faults}
        number = 0
        while faults and (trial is None or number == 0) and time.monotonic() < deadline:
            fault = min(
                faults,
                key=lambda fault: (
                    (before.get(fault.name, (0, 0))[0] + tallies[fault.name].trials) / fault.wanted
                ),
            )
            number += 1
            tallies[fault.name].add(
                fault, rng.randrange(2**31) if trial is None else trial, folder / f"trial {number}"
            )
            told = tallies[fault.name]
            sys.stdout.write(
                f"{fault.name}: {told.trials:,} trials, {told.failures} failures,"
                f" {told.seconds:.0f} s\n"
            )
            sys.stdout.flush()
    if not any(tally.failures for tally in tallies.values()):
        shutil.rmtree(folder, ignore_errors=True)


def _chosen(faults: Sequence[Fault], only: Sequence[str]) -> list[Fault]:
    return [fault for fault in faults if not only or any(word in fault.name for word in only)]


# -- RESULTS.md


def rows(text: str) -> Iterator[tuple[str, int, str, int, int, str]]:
    """When, seed, fault, trials, failures and their seeds, of every run so far."""
    for line in text.splitlines():
        if found := ROW.match(line):
            yield (
                found["when"].strip(),
                int(found["seed"]),
                found["fault"].strip(),
                int(found["trials"]),
                int(found["failures"]),
                found["seeds"].strip(),
            )


def totals(done: Iterable[tuple[str, int, str, int, int, str]]) -> dict[str, tuple[int, int]]:
    """By fault: trials and failures of all soaks."""
    sums: dict[str, tuple[int, int]] = {}
    for _, _, fault, trials, failures, _ in done:
        so_far = sums.get(fault, (0, 0))
        sums[fault] = so_far[0] + trials, so_far[1] + failures
    return sums


def page(done: Sequence[tuple[str, int, str, int, int, str]]) -> str:
    """RESULTS.md."""
    wanted = {fault.name: f"{fault.wanted:,}" for fault in every_fault(Path(), None)}
    lines = ["| fault | trials in all | wanted | failures in all |", "|---|---|---|---|"]
    lines += [
        f"| {fault} | {t:,} | {wanted.get(fault, '')} | {f:,} |"
        for fault, (t, f) in sorted(totals(done).items())
    ]
    lines += [
        "",
        "## Runs",
        "",
        "| when (UTC) | seed | fault | trials | failures | seeds that failed |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {when} | {seed} | {fault} | {trials} | {failures} | {seeds} |"
        for when, seed, fault, trials, failures, seeds in done
    ]
    return HEAD + "\n".join(lines) + "\n"


def write(tallies: dict[str, Tally], seed: int) -> None:
    """Add a run to RESULTS.md."""
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")
    with RESULTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        done = list(rows(file.read()))
        done += [
            (when, seed, name, tally.trials, tally.failures, " ".join(map(str, tally.failed)))
            for name, tally in tallies.items()
            if tally.trials
        ]
        file.truncate(0)
        file.write(page(done))


def main() -> int:
    """Soak, write, tell."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="how long (default: 60); the trial under way is finished",
    )
    flags.add_argument(
        "--seed", type=int, default=None, help="of the choice of trials (default: a new one)"
    )
    flags.add_argument("--only", action="append", default=[], help="faults whose name holds this")
    flags.add_argument(
        "--trial",
        type=int,
        default=None,
        help="one trial from this seed, with --only; nothing is written",
    )
    args = flags.parse_args()
    seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    tallies: dict[str, Tally] = {}
    try:
        soak(args.minutes, seed, args.only, tallies, args.trial)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the trials made so far count\n")
    finally:
        if args.trial is None:
            write(tallies, seed)
    return int(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
