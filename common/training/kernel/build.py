"""Build the kernel on first use: one shared library in cache/ for each source, compiler, flags and
CPU, with its SHA-256 beside it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common import artifacts
from common.paths import CODE_ROOT
from common.training.kernel import stack

SOURCE = Path(__file__).with_name("stack.cpp")
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math, and no fused operations but those of the source: equal bytes from all compilers.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w")
TARGETS = ("-march=native", "-mcpu=native")  # the second for compilers without the first
SECONDS = 120


@dataclass(frozen=True)
class Kernel:
    """The loaded library, or None and the reason why there is none. name: for the provenance; what
    the bytes of results depend on.
    """

    library: ctypes.CDLL | None
    name: str
    reason: str = ""


@cache
def kernel() -> Kernel:
    """The kernel of this machine; the first process builds it while others wait. Never raises."""
    argv = compiler()
    if argv is None:
        return _none("no C++ compiler: install g++ or clang++, or name one in CXX")
    try:
        library = stack.load_kernel(built(argv, CODE_ROOT / "cache"))
    except (OSError, subprocess.SubprocessError) as error:
        return _none("the kernel cannot be built or loaded: " + " ".join(str(error).split()))
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    return Kernel(library, f"kernel {source}, {library.stack_lanes()} lanes")


def _none(reason: str) -> Kernel:
    return Kernel(None, "stock operators", reason)


def compiler() -> list[str] | None:
    """The first compiler that is there: $CXX, c++, g++, clang++."""
    wanted = [shlex.split(os.environ.get("CXX", "")), *([name] for name in COMPILERS)]
    return next((argv for argv in wanted if argv and shutil.which(argv[0])), None)


def built(argv: list[str], folder: Path) -> Path:
    """The library for this machine in `folder`, built unless it is there and whole.

    Raises:
        OSError: the folder. SubprocessError: the compiler, with its first complaint.
    """
    path = folder / f"kernel-{_key(argv)}.so"
    if not _is_whole(path):
        with artifacts.lock(path.with_suffix(".lock"), wait=True, owner=f"process {os.getpid()}"):
            if not _is_whole(path):
                _build(argv, path)
    return path


def _is_whole(path: Path) -> bool:
    """Whether the library is as it was built: one damaged on disk may crash or compute anything."""
    try:
        return path.with_suffix(".sha256").read_bytes() == _sha256(path)
    except OSError:
        return False


def _sha256(path: Path) -> bytes:
    return artifacts.sha256(path.read_bytes()).encode()


def _key(argv: list[str]) -> str:
    found = Path(shutil.which(argv[0]) or argv[0]).resolve()
    stat = found.stat()
    parts = [SOURCE.read_text(), argv, str(found), stat.st_size, stat.st_mtime_ns, FLAGS, _cpu()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """What -march=native looks at; a project folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    named = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(sorted({x for x in lines if x.startswith(named)}))


def _build(argv: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".kernel.") as folder:
        out = Path(folder) / path.name
        for target in (*TARGETS, None):
            flags = [*FLAGS, *([target] if target else [])]
            done = compiled([*argv, *flags], out)
            if done.returncode == 0:
                artifacts.write_file(path.with_suffix(".sha256"), _sha256(out))
                os.replace(out, path)
                return
    said = (done.stderr.strip().splitlines() or [f"{argv[0]} ended with {done.returncode}"])[0]
    raise subprocess.SubprocessError(said)


def compiled(command: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Compile the source with `command` into `out`."""
    return subprocess.run(
        [*command, str(SOURCE), "-o", str(out)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
