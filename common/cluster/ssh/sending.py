"""Base models and data on their way to the nodes, and the jobs that wait for them."""

from __future__ import annotations

from common.cluster.scheduler.states import Assignment, SlotId
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import Arrived
from common.cluster.ssh.nodes import Item, Node, RunNodes, WaitingJob
from common.cluster.ssh.workers import Workers
from common.cluster.transport.rsync import manual_rsync_command
from common.jobs.inputs import beside_files, data_files, path_of
from common.paths import BASE_MODELS


class Sending:
    """Starts each assigned job as soon as its node has what the job reads."""

    def __init__(self, run: RunContext, nodes: RunNodes, workers: Workers) -> None:
        self._run, self._nodes, self._workers = run, nodes, workers

    @property
    def pending(self) -> bool:
        """Whether anything is on its way to a node."""
        return any(node.coming for node in self._nodes)

    def dispatch(self, now: float, assignment: Assignment) -> None:
        """Start a job, once its node has its base model and its data."""
        name, slot, base = assignment
        node, job = self._nodes.get(slot.node), self._run.jobs[name]
        if node is None:
            return
        items: list[Item] = [base] if base else []
        if node.lacking:
            items += [f for f in (*data_files(job), *beside_files(job)) if f in node.lacking]
        if not items:
            self._workers.start(now, name, slot)
            return
        new = node.wait(name, slot.number, items)
        if bases := [item for item in new if isinstance(item, str)]:
            node.threads.send_bases(bases)
        if files := [item for item in new if not isinstance(item, str)]:
            node.threads.send_data(files)

    def on_arrived(self, now: float, event: Arrived) -> None:
        """Files are on a node, or could not be brought there."""
        run, node = self._run, self._nodes.of(event.node)
        if node is None or (event.error and run.data_are_new()):
            return
        node.bytes += event.bytes
        how = {"error": event.error} if event.error else {"bytes": event.bytes}
        bases = [item for item in event.items if isinstance(item, str)]
        for base in bases:
            run.journal.event("sync", node=node.name, base=base, **how)
        if files := [path_of(item) for item in event.items if not isinstance(item, str)]:
            run.journal.event("data", node=node.name, files=files, **how)
        if event.error:
            folder = BASE_MODELS if bases else event.items[0][0]
            run.say(f"{event.error}; by hand: {manual_rsync_command(node.server, folder)}")
        else:
            self._nodes.note_arrival(node, event.items)
        for waiting in node.arrived(event.items, failed=bool(event.error)):
            self._go_on(now, node, waiting, event.error)

    def _go_on(self, now: float, node: Node, waiting: WaitingJob, error: str) -> None:
        worker = node.workers.get(waiting.slot)
        if worker is None:  # its end is reported next
            return
        if error:
            self._run.scheduler.node_fault(now, waiting.job, node.name, error)
            self._workers.free(now, worker)
        else:
            self._workers.start(now, waiting.job, SlotId(node.name, waiting.slot))
