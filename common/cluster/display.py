"""The status of a run, for people: one bar while it goes, plain lines where there is no terminal,
and what --status shows.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from common.cli import visible

PLAIN_SECONDS = 30.0
SHOWN_SECONDS = 0.5


def duration(seconds: float | None) -> str:
    """'1 h 05 min', '3 min 10 s', '12 s', or '?'."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {rest:02} s"
        if minutes
        else f"{rest} s"
    )


def totals(status: Mapping[str, Any]) -> dict[str, int]:
    """Jobs by state over all phases."""
    summed: dict[str, int] = {}
    for counts in status["phases"].values():
        for state, number in counts.items():
            summed[state] = summed.get(state, 0) + number
    return summed


def _numbers(counts: Mapping[str, int]) -> str:
    waiting = counts.get("waiting", 0) + counts.get("ready", 0)
    return (
        ", ".join(
            f"{counts.get(name, 0):,} {name}" for name in ("done", "running", "failed", "blocked")
        )
        + f", {waiting:,} waiting"
    )


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """What --status prints: a line a node, a line a phase, the time left."""
    age = time.time() - status["updated"]
    silent = (
        "nobody watches; the jobs go on in Slurm"
        if status.get("engine") == "slurm"
        else "its orchestrator was killed or hangs"
    )
    state = (
        "ended"
        if status.get("ended")
        else "running"
        if age < 15
        else f"no news for {duration(age)}: {silent}"
    )
    lines = [f"run {status['run']}, process {status['pid']}: {state}"]
    return [*lines, *detail_lines(status), f"  time left: {duration(status['time_left'])}"]


def detail_lines(status: Mapping[str, Any]) -> list[str]:
    """A line a node, a line a phase."""
    lines = []
    for node in status["nodes"]:
        rate = f"{node['bytes_per_second'] / 1e6:.1f} MB/s"
        running = "; ".join(
            f"{job['job']}" + (f" epoch {job['epoch']}/{job['of']}" if job.get("epoch") else "")
            for job in node["running"]
        )
        lines.append(
            f"  {node['name']}: {node['state']}, {node['slots']} slots, {node['done']} done,"
            f" {node['failed']} failed, {rate}; {running or 'idle'}"
        )
    return lines + [f"  {phase}: {_numbers(counts)}" for phase, counts in status["phases"].items()]


class Display:
    """One bar for the whole run; in a terminal with what --status shows under it, elsewhere now and
    then a plain line.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._rows: list[tqdm[Any]] = []
        self._watched = sys.stderr.isatty()
        self._plain_at = self._shown_at = time.monotonic()

    def say(self, line: str) -> None:
        """A line, above the bar."""
        tqdm.write(visible(line), file=sys.stdout)
        sys.stdout.flush()

    def show(self, status: Mapping[str, Any]) -> None:
        """Bring the bar up to date, or write a plain line when it is time for one."""
        now = time.monotonic()
        if self._watched:
            if self._bar is None or now - self._shown_at >= SHOWN_SECONDS:
                self._shown_at = now
                self._show_bar(status)
        elif now - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = now
            self.say(f"{_numbers(totals(status))}, {duration(status['time_left'])} left")

    def _show_bar(self, status: Mapping[str, Any]) -> None:
        counts, size = totals(status), shutil.get_terminal_size()
        lines = detail_lines(status)
        if len(lines) > (room := max(1, size.lines - 3)):
            lines = [*lines[: room - 1], f"  and {len(lines) - room + 1} lines more: --status"]
        if self._bar is None:
            self._bar = tqdm(
                total=sum(counts.values()),
                unit=" jobs",
                leave=False,
                bar_format="{l_bar}{bar}| {n}/{total} {postfix}",
            )
        self._bar.n = counts.get("done", 0) + counts.get("failed", 0) + counts.get("blocked", 0)
        working = f"{counts.get('running', 0)} running, {counts.get('failed', 0)} failed"
        self._bar.set_postfix_str(f"{working}, {duration(status['time_left'])} left", refresh=False)
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
        """Take the bar away."""
        for bar in (*reversed(self._rows), *([self._bar] if self._bar else [])):
            bar.close()
        self._rows, self._bar = [], None
