"""Threads for work that blocks, of which there are only as many as there is work for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from common.cluster.ssh.events import Broken, Tell


class WorkThreads:
    """Do one thing after the other, in `number` daemon threads at most, which end when there is
    nothing to do; unexpected exceptions become Broken events.
    """

    def __init__(self, name: str, number: int, tell: Tell) -> None:
        self._name, self._number, self._tell = name, number, tell
        self._guard = threading.Lock()
        self._todo: deque[Callable[[], object]] = deque()
        self._running = 0
        self._stopped = False

    def put(self, do: Callable[[], object]) -> None:
        """Do this next."""
        with self._guard:
            self._todo.append(do)
            if self._running < self._number:
                self._running += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    def _work(self) -> None:
        while (do := self._next()) is not None:
            try:
                do()
            except Exception as error:  # noqa: BLE001 - raised again in the runner's thread
                self._tell(Broken(error))

    def _next(self) -> Callable[[], object] | None:
        with self._guard:
            if self._todo and not self._stopped:
                return self._todo.popleft()
            self._running -= 1
            return None
