"""What a node has, as JSON on standard output. Its text is given to the node's Python, so it needs
nothing but the standard library.

    python -c "$(cat probe.py)" CODE < list of [data_path, file name] to be compared, as JSON

CODE is the folder where the project's code lies.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata

PACKAGES = ("torch", "numpy", "paramiko", "tqdm", "pydantic", "scikit-learn", "scipy")


def installed() -> dict[str, str | None]:
    """Installed versions; None for what is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def query(what: str, fields: str) -> list[list[str]]:
    """Rows of nvidia-smi; none where there is no working driver."""
    try:
        argv = ["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [
            [part.strip() for part in line.split(",")]
            for line in done.stdout.splitlines()
            if line.strip()
        ]
        if done.returncode == 0
        else []
    )


def workers() -> set[int]:
    """Processes that fill slots of this user. Their GPUs are not in use by others: this project's
    own earlier worker is ended, another project's slot is waited for.
    """
    found = set()
    folder = os.path.join(tempfile.gettempdir(), f"ml-customization-{os.getuid()}")
    for path in glob.glob(os.path.join(folder, "slot-*.lock")):
        try:
            with open(path) as file:
                found.add(json.load(file).get("pid"))
        except (OSError, ValueError, AttributeError):
            continue
    return found


def user_of(pid: int) -> str:
    """Who runs a process."""
    try:
        import pwd

        return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name
    except (OSError, KeyError, ImportError):
        return "unknown"


def gpus() -> list[dict[str, str]]:
    """Every GPU, and which other process computes on it."""
    mine = workers()
    users: dict[str, str] = {}
    for row in query("compute-apps", "gpu_uuid,pid"):
        if len(row) == 2 and row[1].isdigit() and int(row[1]) not in mine:
            users[row[0]] = f"user {user_of(int(row[1]))}, process {row[1]}"
    return [
        {"id": row[0], "name": row[2], "used_by": users.get(row[1], "")}
        for row in query("gpu", "index,uuid,name")
        if len(row) == 3
    ]


def digest_of(path: str) -> str | None:
    """Of a file, or None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def cpu_kernel() -> str:
    """How trainings on the CPU compute here: see common/training/kernel/."""
    wanted = [*shlex.split(os.environ.get("CXX", ""))[:1], "c++", "g++", "clang++"]
    if not any(map(shutil.which, wanted)):
        return "stock operators, no C++ compiler"
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(file.read().split())
    except OSError:
        flags = set()
    lanes = next((f"{name} vectors" for name in ("avx512f", "avx2") if name in flags), "no AVX")
    return f"kernel, {platform.machine()}, {lanes}"


def code() -> dict[str, str | None]:
    """SHA-256 of the project's code here."""
    folder = sys.argv[1]
    kinds = ("*.py", "common/**/*.py", "common/**/*.cpp", "requirements*.txt", "constraints.txt")
    names = [n for kind in kinds for n in glob.glob(kind, root_dir=folder, recursive=True)]
    return {name: digest_of(os.path.join(folder, name)) for name in sorted(names)}


def main() -> None:
    """Print the facts."""
    driver = query("gpu", "driver_version")
    answer = {
        "python": platform.python_version(),
        "versions": installed(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus(),
        "kernel": cpu_kernel(),
        "driver": driver[0][0] if driver else None,
        "free_bytes": shutil.disk_usage(".").free,
        "clock": time.time(),
        "code": code(),
        "data": [digest_of(os.path.join(*file)) for file in json.load(sys.stdin)],
    }
    sys.stdout.write(json.dumps(answer) + "\n")


main()
