"""Scripts run to their end in forks of a process that has imported the big libraries before:
hundreds of imports of PyTorch took minutes of every run of the tests.

A fork has arguments, environment, folder and outputs of its own and imports the project's code
anew. It is not a process of its own in one thing: /proc shows the command and the environment of
the process that was forked. What a test stops in mid-run is started anew (`Project.started`).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

LIBRARIES = (
    *("torch", "pandas", "pydantic", "paramiko", "jinja2", "tqdm"),
    *("scipy.stats", "scipy.optimize", "scipy.interpolate", "scipy.signal"),
    *("sklearn.ensemble", "sklearn.metrics", "sklearn.model_selection"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
)
# Read when Python starts: as of other scripts under test, and compiled code is kept for all forks.
SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": ""}


class _Server:
    """The process that is forked, and a line to it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**os.environ, **SETTINGS},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self._end)

    def _end(self) -> None:
        self._line.close()
        self._process.wait()

    def start(self, request: object, *fds: int) -> None:
        socket.send_fds(self._line, [json.dumps(request).encode()], list(fds))


_server = cache(_Server)


def run(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([python, *command], capture_output=True, text=True)` gives.

    command: a script and its arguments.

    Raises:
        subprocess.TimeoutExpired: as it does, the script killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            request = [list(command), str(cwd), dict(env)]
            _server().start(request, out.fileno(), err.fileno(), theirs.fileno())
            theirs.close()
            (pid,) = struct.unpack("i", ours.recv(4))
            ours.settimeout(timeout)
            try:
                (status,) = struct.unpack("i", ours.recv(4))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout) from None
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), *said)


# -- the process that is forked


def _serve(line: socket.socket) -> str:
    """Fork for every request; returns only in a fork: the script that it is to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        data, fds, _, _ = socket.recv_fds(line, 1 << 20, 3)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            line.close()
            return _waited_for(json.loads(data), *fds)
        for fd in fds:
            os.close(fd)


def _waited_for(request: list, out: int, err: int, reply: int) -> str:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.write(reply, struct.pack("i", pid))
        os.write(reply, struct.pack("i", os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.close(reply)
    for fd, place in ((out, 1), (err, 2)):
        os.dup2(fd, place)
        os.close(fd)
    command, cwd, environment = request
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None
    sys.argv[:] = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    return command[0]


def _main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # forks share what was imported
    script = _serve(socket.socket(fileno=int(sys.argv[1])))
    main = types.ModuleType("__main__")
    main.__file__ = script
    sys.modules["__main__"] = main
    os._exit(_exit_code(compile(Path(script).read_bytes(), script, "exec"), main.__dict__))


def _exit_code(code: types.CodeType, names: dict) -> int:
    """Run it as Python runs a script, to the end of its threads and exit functions. What Python
    does after that takes longest, and nobody sees it: a fork copies all memory for it.
    """
    try:
        exec(code, names)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - said as Python says it
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    sys.stderr.flush()
    return status or 0


if __name__ == "__main__":
    _main()
