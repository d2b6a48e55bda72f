"""Results on their way to the head: fetched, verified one at a time, published, and reported to the
scheduler.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from common.cluster.estimates import kind
from common.cluster.scheduler.states import JobState
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import Fetched
from common.cluster.ssh.nodes import Node, RunNodes
from common.jobs.job_files import Job
from common.jobs.verdicts import State
from common.paths import Paths


class Arrivals:
    """The results that a run's nodes have made."""

    def __init__(self, run: RunContext, nodes: RunNodes) -> None:
        self._run, self._nodes = run, nodes
        self._todo: deque[Callable[[], object]] = deque()
        # base -> (node, experiment found there), to be judged once the base is on the head
        self._found: dict[str, set[tuple[str, str]]] = {}
        self._seconds: dict[str, float] = {}  # of jobs whose results are on their way

    @property
    def pending(self) -> int:
        """How many steps wait for `take_one`."""
        return len(self._todo)

    def take_one(self) -> None:
        """Verify one result. One at a time: a slot that has become free does not wait for the head
        to read files.
        """
        if self._todo:
            self._todo.popleft()()

    def trained(self, now: float, job: Job, node: Node, message: Mapping[str, Any]) -> None:
        """A worker of `node` reports that `job` is done: bring its result here."""
        run, result = self._run, message.get("result") or {}
        run.remark(result.get("remark"))
        if not result.get("reused") and not result.get("resumed"):
            self._seconds[job.id] = max(float(message.get("seconds", 0)), 1e-3)
            run.scheduler.observe(job.id, node.name, self._seconds[job.id])
        if job.kind == "script":
            self._finished(now, job, node.name)
        elif node.shared:
            self._todo.append(partial(self._accept, job, node.name, run.paths))
        else:
            node.threads.fetch(job.id, urgent=job.kind == "base")

    def on_fetched(self, now: float, event: Fetched) -> None:
        """Results lie in a folder of this machine, or could not be fetched."""
        run, name, node = self._run, event.node.name, self._nodes.of(event.node)
        if node is not None:
            node.bytes += event.bytes
        for job in event.jobs:
            if not event.error:
                self._todo.append(partial(self._accept, run.jobs[job], name, Paths(event.root)))
            elif name in run.scheduler.copies(job):
                run.scheduler.node_fault(now, job, name, event.error)
        if event.error:
            run.journal.event("fetch", node=name, jobs=list(event.jobs), error=event.error)
        if event.root != run.paths.root:
            self._todo.append(partial(shutil.rmtree, event.root, ignore_errors=True))
        if node is not None:
            self._todo.append(partial(node.expected.difference_update, event.jobs))

    def _accept(self, job: Job, node: str, root: Paths) -> None:
        run, now = self._run, time.monotonic()
        if run.scheduler.state(job.id) is JobState.DONE:
            run.scheduler.finished(now, job.id, node)
        elif refused := run.results.accept(job, root):
            self._refuse(now, job, node, refused)
        else:
            self._finished(now, job, node)
            if job.kind == "base":
                self._base_is_published(now, job)

    def _refuse(self, now: float, job: Job, node: str, cause: str) -> None:
        run = self._run
        if run.data_are_new():
            return
        if node in run.scheduler.copies(job.id):
            run.journal.event("refused", job=job.id, node=node, cause=cause)
            # results of another configuration: no node can help that
            in_the_way = run.results.judge(job, run.paths).state is State.CONFLICT
            fault = run.scheduler.job_error if in_the_way else run.scheduler.node_fault
            fault(now, job.id, node, cause)
        elif job.needs and not run.paths.base_metadata(job.needs).is_file():
            self._found.setdefault(job.needs, set()).add((node, job.id))

    def _finished(self, now: float, job: Job, name: str) -> None:
        run, node = self._run, self._nodes.get(name)
        ran_there = name in run.scheduler.copies(job.id)
        if run.scheduler.finished(now, job.id, name):
            if node is not None:
                node.done += 1
            seconds = self._seconds.pop(job.id, None) if ran_there else None
            run.journal.event(
                "done",
                job=job.id,
                node=name,
                kind=kind(job),
                seconds=seconds,
                work=run.estimates.work(job),
            )

    def _base_is_published(self, now: float, job: Job) -> None:
        run = self._run
        hashes = [job.id, *(sibling.id for sibling in run.work.siblings.get(job.id, ()))]
        for node in self._nodes:
            if node.shared:
                self._nodes.note_arrival(node, hashes)
        for name, found in {pair for base in hashes for pair in self._found.pop(base, ())}:
            if (there := self._nodes.get(name)) is not None:
                there.expected.add(found)
                there.threads.fetch(found, urgent=False)
        for other in run.work.others:
            if other.needs in hashes and other.id in run.work.waiting and self._is_current(other):
                run.scheduler.finished(now, other.id, "head")
                run.journal.event("reused", job=other.id)

    def _is_current(self, job: Job) -> bool:
        """Whether a fine-tune that waited for its base is done already: the base may have come out
        as it was before.
        """
        verdict = self._run.results.judge(job, self._run.paths)
        return verdict.state is State.DONE and not (self._run.work.retrain and verdict.other_code)
