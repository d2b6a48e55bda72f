"""Results on their way to the head: fetched, verified, published, and reported to the scheduler."""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common.cluster.estimates import kind
from common.cluster.scheduler.states import JobState
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import Fetched, Judged, Tell
from common.cluster.ssh.nodes import Node, RunNodes
from common.cluster.ssh.work_threads import WorkThreads
from common.jobs.job_files import Job
from common.jobs.verdicts import State
from common.paths import Paths

PUBLISHING = 4  # threads: each waits for the disk several times a result
SETTLE_SECONDS = 0.001  # for a worker to begin what it was given


class _Due(NamedTuple):
    """A verification that has not begun."""

    since: float
    job: str
    verify: Callable[[], None]


class Arrivals:
    """The results that a run's nodes have made. Files are read and written in a few threads, so
    that no slot waits for that; all results of one job in the same one, and the first is kept.
    """

    def __init__(self, run: RunContext, nodes: RunNodes, tell: Tell) -> None:
        self._run, self._nodes, self._tell = run, nodes, tell
        self._threads = [WorkThreads(f"publish {n}", 1, tell) for n in range(PUBLISHING)]
        self._unjudged: Counter[Path] = Counter()  # results by the folder in which they lie
        self._due: deque[_Due] = deque()
        self._accepted: set[str] = set()  # jobs; each is looked up and added in its own thread
        # base -> (node, experiment found there), to be judged once the base is on the head
        self._found: dict[str, set[tuple[str, str]]] = {}
        self._seconds: dict[str, float] = {}  # of jobs whose results are on their way

    @property
    def due(self) -> bool:
        """Whether a result waits for `verify`."""
        return bool(self._due)

    @property
    def pending(self) -> int:
        """How many results are being verified."""
        return self._unjudged.total()

    def trained(self, now: float, job: Job, node: Node, message: Mapping[str, Any]) -> None:
        """A worker of `node` reports that `job` is done: bring its result here."""
        run, result = self._run, message.get("result") or {}
        if remark := result.get("remark"):
            run.say_once(remark)
        if not result.get("reused") and not result.get("resumed"):
            self._seconds[job.id] = max(float(message.get("seconds", 0)), 1e-3)
            run.scheduler.observe(job.id, node.name, self._seconds[job.id])
        if job.kind == "script":
            self._finished(now, job, node.name)
        elif node.shared:
            self._verify(now, job, node.name, run.paths)
        else:
            node.threads.fetch(job.id, urgent=job.kind == "base")

    def on_fetched(self, now: float, event: Fetched) -> None:
        """Results lie in a folder of this machine, or could not be fetched."""
        run, name, node = self._run, event.node.name, self._nodes.of(event.node)
        if node is not None:
            node.bytes += event.bytes
        self._unjudged[event.root] += 1  # the folder stays until all are looked at
        for job in event.jobs:
            found = job in event.found
            if not event.error:
                self._verify(now, run.jobs[job], name, Paths(event.root), found=found)
            elif not found and name in run.scheduler.copies(job):
                run.scheduler.node_fault(now, job, name, event.error)
        if event.error:
            run.journal.event("fetch", node=name, jobs=list(event.jobs), error=event.error)
            if node is not None:
                node.expected.difference_update(event.jobs)
        self._unjudged[event.root] -= 1
        self._tidy(event.root)

    def _verify(self, now: float, job: Job, node: str, root: Paths, *, found: bool = False) -> None:
        """Verify and publish a result in `root` soon, unless its job is done; Judged follows."""

        def verify() -> None:
            refused = ""
            if job.id not in self._accepted:
                refused = self._run.results.accept(job, root)
            if not refused:
                self._accepted.add(job.id)
            self._tell(Judged(node, job.id, root.root, refused, found))

        self._unjudged[root.root] += 1
        if self._run.scheduler.state(job.id) is JobState.DONE:
            self.on_judged(now, Judged(node, job.id, root.root, ""))
        else:
            self._due.append(_Due(now, job.id, verify))

    def verify(self, now: float) -> None:
        """Begin to verify what has arrived a moment ago. By then free slots work on their next job,
        which it would hold up: one thread of Python runs at a time, and on a small machine it takes
        a core.
        """
        while self._due and self._due[0].since <= now - SETTLE_SECONDS:
            due = self._due.popleft()
            self._threads[hash(due.job) % PUBLISHING].put(due.verify)

    def _tidy(self, root: Path) -> None:
        """Remove a folder of which all results are judged."""
        if self._unjudged[root]:
            return
        del self._unjudged[root]
        if root != self._run.paths.root:
            self._threads[0].put(partial(shutil.rmtree, root, ignore_errors=True))

    def on_judged(self, now: float, event: Judged) -> None:
        """A result was verified: the first good one makes its job done."""
        run, job, node = self._run, self._run.jobs[event.job], self._nodes.get(event.node)
        self._unjudged[event.root] -= 1
        if run.scheduler.state(job.id) is JobState.DONE:
            run.scheduler.finished(now, job.id, event.node)
        elif event.refused:
            self._refuse(now, job, event)
        else:
            self._finished(now, job, event.node)
            if job.kind == "base":
                self._base_is_published(now, job)
        if node is not None:
            node.expected.discard(job.id)
        self._tidy(event.root)

    def _refuse(self, now: float, job: Job, event: Judged) -> None:
        run, node, cause = self._run, event.node, event.refused
        if run.data_are_new():
            return
        # what was found there is not of a copy that runs there now
        if not event.found and node in run.scheduler.copies(job.id):
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
                there.threads.fetch(found, urgent=False, found=True)
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
