"""--notify-command: the user's own command hears of a run. It runs beside the run, which does not
wait for it before its own end.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import threading

from common.errors import InputError

SECONDS = 60.0  # that one call may take


class Notifier:
    """The command with one line of text as its last argument, one call after the other. Its failure
    is not ours.

    Raises:
        InputError: the command cannot be taken apart, or its program is not there.
    """

    def __init__(self, command: str | None) -> None:
        self._argv = _argv(command) if command else []
        self._latest: threading.Thread | None = None

    def tell(self, text: str) -> None:
        """Call it, in a thread: a run whose only thread waited would send no heartbeat
        meanwhile.
        """
        if self._argv:
            self._latest = threading.Thread(
                target=self._call, args=(self._latest, text), name="notify", daemon=True
            )
            self._latest.start()

    def wait(self) -> None:
        """Until it has heard all, if that takes no longer than the last two calls may."""
        if self._latest is not None:
            self._latest.join(2 * SECONDS)

    def _call(self, before: threading.Thread | None, text: str) -> None:
        if before is not None:
            before.join()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
            subprocess.run(
                [*self._argv, text], stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
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
