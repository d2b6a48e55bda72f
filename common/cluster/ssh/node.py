"""The threads of one node. Blocking work happens here; the event loop owns all decisions, so that
only the event queue is shared between threads.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Sequence

from common.cluster.config import ClusterConfig, Server, Slot, SlotPlan
from common.cluster.ssh.events import Arrived, Fetched, Joined, Left, Listed, Started, Tell
from common.cluster.ssh.node_commands import (
    check_facts,
    inventory,
    probe,
    send_code,
    set_aside,
    slot_plan,
    worker_argv,
)
from common.cluster.ssh.node_links import NodeLinks
from common.cluster.ssh.payload import Needs, differing
from common.cluster.ssh.work_threads import WorkThreads
from common.cluster.ssh.worker_link import WorkerLink
from common.cluster.transport.connection import Connection, connect
from common.errors import NodeError, ProjectError
from common.jobs.inputs import File, path_of
from common.paths import Paths, published_file, result_files

FULL_BYTES = 1 << 20  # the head's disk counts as full
GATHER_SECONDS = 0.5  # experiments that end within this time are fetched in one copy
COPIES_A_SECOND = 10  # begun at most, by all nodes together: more than five gather for longer
COPYING = 2  # threads of a node that send


class NodeThreads:
    """The threads of one node: one for its workers, and while there is something to do, one that
    joins and starts workers, some that send, one that fetches. They only do what they are asked;
    how it went is reported as events.
    """

    def __init__(
        self, server: Server, paths: Paths, settings: ClusterConfig, needs: Needs, tell: Tell
    ) -> None:
        self.server, self.paths, self.settings, self.needs = server, paths, settings, needs
        self.name = server.name  # as in messages and slots
        self._tell = tell
        self._connection: Connection | None = None
        self._plan = SlotPlan(())
        self._closings = 0
        self._control = WorkThreads(f"control {self.name}", 1, tell)
        self._senders = WorkThreads(f"send {self.name}", COPYING, tell)
        self._fetcher = WorkThreads(f"fetch {self.name}", 1, tell)
        self.links = NodeLinks(self.name, tell)
        self.gather_seconds = max(GATHER_SECONDS, len(settings.servers) / COPIES_A_SECOND)
        self._to_fetch: queue.SimpleQueue[tuple[str, bool, bool]] = queue.SimpleQueue()
        self._numbers = itertools.count()

    def join(self) -> None:
        """Connect, probe, send the code, start the workers. Reports Listed and Joined, or Left."""
        self._control.put(self._join)

    def start_worker(self, slot: Slot) -> None:
        """Start (again) the worker of a slot. Reports Started, or Left."""
        self._control.put(lambda: self._start_worker(slot))

    def send_bases(self, bases: Sequence[str], *, damaged: bool = False) -> None:
        """Copy base models there; a damaged copy there is set aside first. Reports Arrived."""
        self._senders.put(lambda: self._send_bases(tuple(bases), damaged))

    def send_data(self, files: Sequence[File]) -> None:
        """Copy data files there and check them there. Reports Arrived."""
        self._senders.put(lambda: self._send_data(tuple(files)))

    def fetch(self, job: str, *, urgent: bool, found: bool = False) -> None:
        """Copy the results of a job to the head; `found`: no worker of this run has reported them.
        Reports Fetched.
        """
        self._to_fetch.put((job, urgent, found))
        self._fetcher.put(self._gather)

    def tail(self, path: str) -> str:
        """The end of a file there, for a dead worker's log; empty when it cannot be had."""
        connection = self._connection
        if connection is None:
            return ""
        try:
            return connection.run(["tail", "-c", "16384", path], timeout=10).text
        except ProjectError:
            return ""

    def end_left(self, leader: int) -> None:
        """End what a worker that died has left in its group: own code may have forked."""
        if self._connection is not None and leader > 1:
            with contextlib.suppress(ProjectError):
                self._connection.run(["sh", "-c", f"kill -s KILL -- -{leader}"], timeout=10)

    def close(self) -> None:
        """End copies and the connection, and with it the workers; `join` may be called again."""
        self._closings += 1
        connection, self._connection = self._connection, None
        if connection is not None:
            threading.Thread(target=connection.close, daemon=True).start()

    def stop(self) -> None:
        """Close for good."""
        for threads in (self._control, self._senders, self._fetcher):
            threads.stop()
        self.close()

    # -- in the control thread

    def _join(self) -> None:
        closings, connection = self._closings, None
        try:
            connection = connect(self.server, self.paths.root)
            facts = probe(connection)
            plan = slot_plan(self.server, facts)
            notes = [*plan.left_out, *check_facts(self.name, facts)]
            send_code(connection, facts, self.needs.extra)
            self._connection, self._plan = connection, plan
            lacking = self._look(connection, tuple(notes))
        except (ProjectError, OSError, EOFError) as error:
            if connection is not None:
                connection.close()
            self._connection = None
            self._tell(
                Left(self, str(error), getattr(error, "transient", isinstance(error, NodeError)))
            )
            return
        if closings != self._closings:  # the run ended, or the node was removed meanwhile
            self.close()
            return
        self._tell(Joined(self, plan, lacking, connection.shared))
        for slot in plan.slots:
            self._start_worker(slot)

    def _look(self, connection: Connection, notes: tuple[str, ...]) -> tuple[File, ...]:
        """Report what is published there; return the data files that it lacks."""
        if connection.shared:
            self._tell(Listed(self, notes, ()))
            return ()
        there = inventory(
            connection, list(self.needs.files), self.needs.bases, self.needs.experiments
        )
        self._tell(Listed(self, notes, (*there.bases, *there.experiments)))
        return tuple(differing(self.name, self.needs, there.data))

    def _start_worker(self, slot: Slot) -> None:
        connection = self._connection
        if connection is None:
            return
        marker = secrets.token_hex(16)
        argv = worker_argv(
            connection,
            slot,
            self._plan,
            self.settings,
            self.server.jobs_per_gpu,
            self.needs.owner,
            marker,
            wait=self.needs.wait,
            measure=self.needs.measure,
        )
        try:
            process = connection.start(argv)
        except (ProjectError, OSError, EOFError) as error:
            if connection is self._connection:
                self._tell(Left(self, str(error), True))
            return
        if connection is self._connection:
            worker = WorkerLink(self, slot, process, marker, self._tell)
            self._tell(Started(worker))
            worker.begin()
        else:
            process.close()

    # -- in the sending threads

    def _send_bases(self, bases: tuple[str, ...], damaged: bool) -> None:
        names = [name for base in bases for name in result_files(base)]
        try:
            connection = self._connected()
            if damaged:
                set_aside(connection, names)
            moved = connection.push(names).bytes
        except (ProjectError, OSError, EOFError) as error:
            self._tell(Arrived(self, bases, 0, str(error)))
            return
        self._tell(Arrived(self, bases, moved))

    def _send_data(self, files: tuple[File, ...]) -> None:
        try:
            connection = self._connected()
            moved = connection.push(path_of(file) for file in files).bytes
            there = inventory(connection, list(files), (), ())
            if wrong := [file for file in files if there.data[file] != self.needs.files[file]]:
                raise NodeError(
                    f"{path_of(wrong[0])}: checksum mismatch after the copy; was it modified here?",
                    node=self.name,
                )
        except (ProjectError, OSError, EOFError) as error:
            self._tell(Arrived(self, files, 0, str(error)))
            return
        self._tell(Arrived(self, files, moved))

    def _connected(self) -> Connection:
        if self._connection is None:
            raise NodeError("the connection is closed", node=self.name)
        return self._connection

    # -- in the fetching thread

    def _gather(self) -> None:
        """Fetch what waits, and with it what is trained soon after."""
        jobs: dict[str, bool] = {}  # whether its results were only found there
        wait, until = 0.0, time.monotonic() + self.gather_seconds
        with contextlib.suppress(queue.Empty):
            while wait >= 0:
                job, urgent, found = self._to_fetch.get(timeout=wait)
                jobs[job] = jobs.get(job, True) and found
                wait = -1 if urgent else until - time.monotonic()
        if jobs:
            self._fetch(list(jobs), frozenset(job for job in jobs if jobs[job]))

    def _fetch(self, jobs: Sequence[str], found: frozenset[str] = frozenset()) -> None:
        root = self.paths.incoming / self.name / f"{next(self._numbers)}-{secrets.token_hex(4)}"
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            moved = self._connected().pull(
                [name for job in jobs for name in result_files(job)], root
            )
        except (NodeError, EOFError) as error:
            if shutil.disk_usage(self.paths.root).free < FULL_BYTES:  # no node is to blame
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from error
            self._tell(Fetched(self, tuple(jobs), root, 0, str(error), found))
            return
        lacking = [job for job in jobs if published_file(job) in moved.missing]
        for job in lacking:
            error_text = (
                f"{self.name}: {published_file(job)} is not there as a plain file in a plain"
                " folder: results behind links are not taken"
            )
            self._tell(Fetched(self, (job,), root / "nothing", 0, error_text, found))
        rest = tuple(job for job in jobs if job not in lacking)
        self._tell(Fetched(self, rest, moved.root, moved.bytes, found=found))
