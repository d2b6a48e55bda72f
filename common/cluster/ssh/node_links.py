"""The links to the workers of one node: one thread reads and writes for all of them."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
import weakref

from common.cluster.ssh.events import Broken, Tell
from common.cluster.ssh.worker_link import WorkerLink

ALL_SECONDS = 3.0  # between two looks at all workers of a node, for ends that show in no other way
SOON_SECONDS = 0.05  # until a worker is tried again that took no input, or that said too much


class NodeLinks:
    """The links to the workers of one node, and their thread, which runs while there are any."""

    def __init__(self, name: str, tell: Tell) -> None:
        self._name, self._tell = name, tell
        self._guard = threading.Lock()
        self._links: set[WorkerLink] = set()
        self._is_served = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)

    def add(self, link: WorkerLink) -> None:
        """Read and write for one more."""
        with self._guard:
            self._links.add(link)
            if not self._is_served:
                self._is_served = True
                threading.Thread(target=self._serve, name=f"link {self._name}", daemon=True).start()
        self.wake()

    def wake(self) -> None:
        """There is something to write, or to read."""
        os.eventfd_write(self._bell, 1)

    def current(self) -> set[WorkerLink]:
        """All of them; the thread ends when it sees none."""
        with self._guard:
            self._is_served = bool(self._links)
            return set(self._links)

    def remove(self, link: WorkerLink) -> None:
        """Nothing more will come of it."""
        with self._guard:
            self._links.discard(link)
        threading.Thread(target=link.finish, daemon=True).start()

    def _serve(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._bell, selectors.EVENT_READ)
                _Service(self, self._bell, selector).run()
        except Exception as error:  # noqa: BLE001 - raised again in the runner's thread
            self._tell(Broken(error))


class _Service:
    """What the thread of a node's links does."""

    def __init__(self, links: NodeLinks, bell: int, selector: selectors.BaseSelector) -> None:
        self._links, self._bell, self._selector = links, bell, selector
        self._watched: dict[WorkerLink, int | None] = {}  # its descriptor, None: it rings
        self._full: set[WorkerLink] = set()  # not waited for: they could always be read
        self._all_at = 0.0

    def run(self) -> None:
        """Do what is due for each link when it can be read or something is to be sent, and for all
        links now and then.
        """
        while links := self._links.current():
            for link in links - self._watched.keys():
                self._watched[link] = descriptor = link.notify(self._links.wake)
                self._watch(link, descriptor)
            ready = self._wait()
            for link in links:
                if link.has_unsent:
                    link.write()
                if link in ready or self._watched[link] is None:
                    self._read(link)

    def _wait(self) -> set[WorkerLink]:
        """Wait until something is due; the links that can be read."""
        again = {link for link in self._full if not link.is_full}
        self._full -= again
        for link in again:
            self._watch(link, self._watched[link])
        soon = self._full or any(link.has_unsent for link in self._watched)
        found = self._selector.select(0 if again else SOON_SECONDS if soon else ALL_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        if (now := time.monotonic()) >= self._all_at:
            self._all_at = now + ALL_SECONDS
            return set(self._watched)
        return again | {key.data for key, _ in found if key.data is not None}

    def _read(self, link: WorkerLink) -> None:
        goes_on = link.read()
        if goes_on and not link.is_full:
            return
        if (descriptor := self._watched[link]) is not None and link not in self._full:
            self._selector.unregister(descriptor)
        if goes_on:
            self._full.add(link)
        else:
            self._full.discard(link)
            del self._watched[link]
            self._links.remove(link)

    def _watch(self, link: WorkerLink, descriptor: int | None) -> None:
        if descriptor is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, link)
