"""What a person sees of a run: one bar while it goes on (plain lines where there is no terminal),
the lines of --status, and the table of scores at the end.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from tqdm import tqdm

from common import artifacts
from common.cli import few, time_span, visible
from common.cluster.folds import Folds
from common.cluster.journal import is_killed
from common.errors import CorruptArtifact
from common.jobs.choosing import CONTEXT, choose_settings, reported_base_count, setting_names
from common.jobs.job_files import Job
from common.options import MODE_WORDS, TARGET_ALONE
from common.paths import EXPERIMENT_METRICS, Paths

PLAIN_SECONDS = 30.0  # between two lines where there is no terminal
SHOWN_SECONDS = 0.5
STATES = ("done", "running", "failed", "blocked")


# -- the status of a run


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """What --status prints: run, nodes, phases, slowest experiment, time left."""
    age = time.time() - status["updated"]
    unwatched = (
        "no command watches it; the jobs go on in Slurm"
        if status.get("engine") == "slurm"
        else "its orchestrator was killed or hangs"
    )
    ended, is_ssh = bool(status.get("ended")), status.get("engine") != "slurm"
    is_dead = not ended and is_ssh and is_killed(status)
    state = (
        "ended"
        if ended
        else "its orchestrator was killed: run the same command again"
        if is_dead
        else ("stopping: running jobs finish" if status.get("stopping") else "running")
        if age < 15
        else f"no news for {time_span(age)}: {unwatched}"
    )
    head = f"run {status['run']}, process {status['pid']}: {state}"
    if ended or is_dead:
        return [head, *_detail_lines(_at_rest(status))]
    return [head, *_detail_lines(status), f"  time left: {time_span(status['time_left'])}"]


def _at_rest(status: Mapping[str, Any]) -> dict[str, Any]:
    """The status of a run that has ended: what was running then waits for the next run."""
    phases = {name: Counter(counts) for name, counts in status["phases"].items()}
    for counts in phases.values():
        counts["waiting"] += counts.pop("running", 0)
    nodes = [{**node, "running": []} for node in status["nodes"]]
    return {**status, "phases": phases, "nodes": nodes}


def _detail_lines(status: Mapping[str, Any]) -> list[str]:
    """A line a node, a line a phase, and the slowest experiment."""
    lines = []
    for node in status["nodes"]:
        rate = f"{node['bytes_per_second'] / 1e6:.1f} MB/s"
        running = "; ".join(f"{job['job']}{_epoch(job)}" for job in node["running"])
        lines.append(
            f"  {node['name']}: {node['state']}, {node['slots']} slots, {node['done']} done,"
            f" {node['failed']} failed, {rate}; {running or 'idle'}"
        )
    lines += [f"  {phase}: {_counts(numbers)}" for phase, numbers in status["phases"].items()]
    return lines + ([f"  {slowest}"] if (slowest := _slowest(status)) else [])


def _epoch(job: Mapping[str, Any]) -> str:
    return f" epoch {job['epoch']}/{job['of']}" if job.get("epoch") else ""


def _slowest(status: Mapping[str, Any]) -> str:
    """The job that has been running longest, or ''."""
    running = [
        (job["seconds"], node["name"], job)
        for node in status["nodes"]
        for job in node["running"]
        if job.get("seconds") is not None
    ]
    if not running:
        return ""
    seconds, node, job = max(running, key=lambda entry: entry[0])
    return f"slowest: {job['job']} for {time_span(seconds)} on {node}{_epoch(job)}"


def _totals(status: Mapping[str, Any]) -> Counter[str]:
    """Jobs by state over all phases."""
    totals: Counter[str] = Counter()
    for counts in status["phases"].values():
        totals.update(counts)
    return totals


def _counts(counts: Mapping[str, int]) -> str:
    waiting = counts.get("waiting", 0) + counts.get("ready", 0)
    return ", ".join(
        [*(f"{counts.get(name, 0):,} {name}" for name in STATES), f"{waiting:,} waiting"]
    )


class Display:
    """One bar for the whole run, in a terminal with the lines of --status below it; elsewhere a
    plain line now and then.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._rows: list[tqdm[Any]] = []
        self._is_terminal = sys.stderr.isatty()
        self._plain_at = self._shown_at = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(visible(line), file=sys.stdout)
        sys.stdout.flush()

    def show(self, status: Mapping[str, Any]) -> None:
        """Update the bar, or print a plain line when one is due."""
        now = time.monotonic()
        if self._is_terminal:
            if self._bar is None or now - self._shown_at >= SHOWN_SECONDS:
                self._shown_at = now
                self._show_bar(status)
        elif now - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = now
            parts = [_counts(_totals(status)), f"{time_span(status['time_left'])} left"]
            self.say(", ".join([*parts, *filter(None, [_slowest(status)])]))

    def _show_bar(self, status: Mapping[str, Any]) -> None:
        totals, size = _totals(status), shutil.get_terminal_size()
        lines = _detail_lines(status)
        if len(lines) > (room := max(1, size.lines - 3)):
            lines = [*lines[: room - 1], f"  and {len(lines) - room + 1} lines more: --status"]
        if self._bar is None:
            self._bar = tqdm(
                total=sum(totals.values()),
                unit=" jobs",
                leave=False,
                bar_format="{l_bar}{bar}| {n}/{total} done{postfix}",
            )
        self._bar.n = totals["done"]
        unfinished = [f"{totals[name]:,} {name}" for name in STATES[1:] if totals[name]]
        self._bar.set_postfix_str(
            ", ".join([*unfinished, f"{time_span(status['time_left'])} left"]), refresh=False
        )
        self._bar.refresh()
        while len(self._rows) < len(lines):
            self._rows.append(
                tqdm(total=0, position=len(self._rows) + 1, leave=False, bar_format="{desc}")
            )
        for number, row in enumerate(self._rows):
            row.set_description_str(
                visible(lines[number])[: size.columns - 1] if number < len(lines) else ""
            )

    def close(self) -> None:
        """Remove the bar."""
        for bar in (*reversed(self._rows), *([self._bar] if self._bar else [])):
            bar.close()
        self._rows, self._bar = [], None


# -- the table of scores


TITLE = (
    "test macro F1 at threshold 0.5 (fractions count training windows; stopping uses the selection"
    " windows too)"
)


class Column(NamedTuple):
    """A mode, the fraction of the target's training windows, and how they were limited else."""

    mode: str
    fraction: float = 0.0
    budget: str = ""

    @property
    def title(self) -> str:
        """As the head of the column."""
        if self == BASE:
            return self.mode
        share = f" {100 * self.fraction:g} %" if self.fraction else ""
        return f"{MODE_WORDS[self.mode].short}{share}{self.budget}"


BASE = Column("base")
Scores = dict[str, float | None]  # by participant


class _Result(NamedTuple):
    """Scores of one model on one participant's windows; None where they are undefined."""

    column: Column
    setting: str
    person: str
    model: str  # a base counts once, however many fine-tunes started from it
    val: float | None
    test: float | None


def closing_table(paths: Paths, jobs: Iterable[Job]) -> list[str]:
    """Lines of the table that ends a run: macro F1 on the test windows, by participant, of the
    untouched base and of each mode and fraction; a table for each data set, and one for the data
    sets of one --split_folds.

    Repeats (seeds) are averaged; of several settings the one is shown that the report chooses.
    Empty without results.
    """
    folds = Folds(paths)
    tables: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        if job.kind == "finetune":
            whole = job.values | {"data_path": folds.whole(str(job.values.get("data_path")))}
            tables.setdefault(tuple(whole.get(name) for name in CONTEXT), []).append(job)
    lines = []
    for (data_path, *_), mine in tables.items():
        about = [str(data_path)] if len(tables) > 1 else []
        if columns := _columns(_results(paths, mine, about, folds)):
            lines += ["; ".join([TITLE, *about]), *_table(columns)]
    return lines


def _results(paths: Paths, jobs: Sequence[Job], about: list[str], folds: Folds) -> list[_Result]:
    """What has been published of `jobs`, with one number of base participants, which is added to
    `about` where the jobs have several.
    """
    there = []
    for job in jobs:
        with contextlib.suppress(OSError, CorruptArtifact):
            path = paths.experiments / job.id / EXPERIMENT_METRICS
            there.append((job, artifacts.read_sealed(path)))
    there, lacking = folds.pooled(there)
    if lacking:
        about.append(f"tests of {few(lacking, 5)} lacking")
    people: dict[float, set[str]] = {}
    for job, metrics in there:
        if (count := _base_count(job)) is not None:
            people.setdefault(count, set()).add(str(metrics["target_participant"]))
    if len(people) > 1:
        reported = reported_base_count(people)
        about.append(f"with {reported:g} base participants")
        there = [(job, metrics) for job, metrics in there if _base_count(job) in (None, reported)]
    names = setting_names([job.values for job, _ in there])
    return [result for job, metrics in there for result in _scores(job, metrics, names)]


def _base_count(job: Job) -> float | None:
    """None where there is no base model."""
    count = job.values.get("n_base_participants")
    return None if job.values["mode"] in TARGET_ALONE or not isinstance(count, int) else count


def _scores(job: Job, metrics: Mapping[str, Any], names: Sequence[str]) -> list[_Result]:
    """The scores of an experiment, and those of the base that it started from."""
    setting = ", ".join(f"{name} {job.values.get(name)}" for name in names)
    options = job.finetune
    fraction = 0.0 if options.mode == "forest_base" else options.target_data_pct
    budget = "".join(
        f" {value}"
        for value, usual in ((options.target_val, "full"), (options.target_order, "random"))
        if value != usual
    )
    return [
        _Result(
            column,
            setting,
            str(metrics["target_participant"]),
            model,
            metrics.get(f"{side}val_macro_f1"),
            metrics.get(f"{side}test_macro_f1"),
        )
        for column, side, model in (
            (BASE, "base_", str(job.needs)),
            (Column(options.mode, fraction, budget), "", job.id),
        )
        if column != BASE or job.needs
    ]


def _columns(results: Iterable[_Result]) -> dict[Column, Scores]:
    """By column the score of each person at the chosen setting."""
    cells: dict[Column, dict[str, dict[str, dict[str, _Result]]]] = {}
    for result in results:
        people = cells.setdefault(result.column, {})
        models = people.setdefault(result.person, {}).setdefault(result.setting, {})
        models[result.model] = result
    columns = {}
    for column in sorted(cells, key=lambda column: (column != BASE, column)):
        people = cells[column]
        val = {
            person: {setting: _mean([r.val for r in m.values()]) for setting, m in own.items()}
            for person, own in people.items()
        }
        chosen = choose_settings(val).settings
        columns[column] = {
            person: _mean([r.test for r in own[chosen[person]].values()])
            for person, own in people.items()
            if chosen[person] in own
        }
    return columns


def _mean(values: Iterable[float | None]) -> float | None:
    """None where there is no value."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _table(columns: Mapping[Column, Scores]) -> list[str]:
    """A row a participant, the number of people in each column, and the mean over those who have
    all columns; who is not in the mean is said below.
    """
    people = list(dict.fromkeys(person for scores in columns.values() for person in scores))
    lacks = {
        person: [column.title for column, scores in columns.items() if scores.get(person) is None]
        for person in people
    }
    whole = [person for person in people if not lacks[person]]
    rows = [("participant", [column.title for column in columns])]
    for person in people:
        rows.append((person, [_number(scores.get(person)) for scores in columns.values()]))
    counts = [sum(score is not None for score in scores.values()) for scores in columns.values()]
    means = [_mean(scores[person] for person in whole) for scores in columns.values()]
    rows += [("n", [str(count) for count in counts])]
    rows += [(f"mean of {len(whole)}", [_number(mean) for mean in means])] if whole else []
    first = max(len(name) for name, _ in rows)
    widths = [max(5, len(title)) for title in rows[0][1]]
    lines = ["  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, cells in rows]
    left = "; ".join(
        f"{person} (no {', '.join(lacks[person])})" for person in people if lacks[person]
    )
    return [*lines, f"not in the mean: {left}"] if left else lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".lstrip("0") if value < 1 else "1.00"
