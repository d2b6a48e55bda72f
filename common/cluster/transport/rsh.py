"""The remote shell that rsync is given: ssh, with everything dropped that a login file prints
before rsync's own first byte.

Called by rsync as `rsh.py COUNT SSH... HOST COMMAND...`, COUNT being the number of words of SSH. It
runs without the project's packages.
"""

import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

CHUNK = 1 << 20
WATCH_SECONDS = 2


def main(argv: list[str]) -> int:
    """Run rsync's own command on the node; its exit code."""
    count = int(argv[0])
    ssh, host, command = argv[1 : count + 1], argv[count + 1], argv[count + 2 :]
    threading.Thread(target=_end_with_the_head, daemon=True).start()
    marker = secrets.token_hex(16).encode()
    remote = shlex.join(["/bin/sh", "-c", 'printf %s "$0" && exec "$@"', marker.decode(), *command])
    with subprocess.Popen([*ssh, "--", host, remote], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        _copy_after(marker, process.stdout.fileno())
        process.stdout.close()
        return process.wait()


def _end_with_the_head() -> None:
    """End the copy, here and so on the node, when the process that started rsync has ended: it may
    have been killed.
    """
    head = _parent(os.getppid())
    while not threading.Event().wait(WATCH_SECONDS):
        if _parent(os.getppid()) != head:
            os.killpg(0, signal.SIGKILL)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _copy_after(marker: bytes, source: int) -> None:
    """Copy `source` to standard output from behind the marker on; the window kept before it is no
    larger than a chunk and a marker.
    """
    os.set_blocking(1, True)  # rsync hands it over non-blocking, as ssh itself would like it
    seen, started = b"", False
    while data := os.read(source, CHUNK):
        if not started:
            seen = seen[-len(marker) :] + data
            _, started_with, data = seen.partition(marker)
            if not started_with:
                continue
            started = True
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # rsync ended first and says why
        sys.exit(255)
