"""--notify-command: calls a user's own command in a background thread."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import threading

from common.errors import InputError

CALL_SECONDS = 60.0  # time limit of one call


class Notifier:
    """Calls the command with one line of text as its last argument, one call at a time. A call that
    fails is ignored.

    Raises:
        InputError: the command cannot be parsed, or its program does not exist.
    """

    def __init__(self, command: str | None) -> None:
        self._argv = _argv(command) if command else []
        self._latest: threading.Thread | None = None

    def tell(self, text: str) -> None:
        """Call the command in a thread, so that the event loop goes on."""
        if self._argv:
            self._latest = threading.Thread(
                target=self._call, args=(self._latest, text), name="notify", daemon=True
            )
            self._latest.start()

    def wait(self) -> None:
        """Wait for the calls, for as long as the last two may take."""
        if self._latest is not None:
            self._latest.join(2 * CALL_SECONDS)

    def _call(self, before: threading.Thread | None, text: str) -> None:
        if before is not None:
            before.join()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
            subprocess.run(
                [*self._argv, text], stdin=subprocess.DEVNULL, timeout=CALL_SECONDS, check=False
            )


def _argv(command: str) -> list[str]:
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--notify-command {command}: {error}: quote it as for a shell") from None
    if not argv or shutil.which(argv[0]) is None:
        raise InputError(
            f"--notify-command {command}: no such program: {argv[0] if argv else 'it names none'}"
        )
    return argv
