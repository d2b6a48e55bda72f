"""Where, when and with what a result was made. Recorded, never part of an identity. No torch."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from common.options import Options
from common.paths import CODE_ROOT

if TYPE_CHECKING:
    from common.training.loop import FitResult


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str]:
    """Python and the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Commit of the code, or None outside a git checkout (on a node)."""
    if not (CODE_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(CODE_ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


class Beginning:
    """The moment at which a training begins."""

    def __init__(self) -> None:
        self._started, self._clock = now(), time.monotonic()

    def provenance(self, options: Options, device: str, fitted: FitResult) -> dict[str, Any]:
        """The record that goes into metadata and metrics, once the training has ended. Its backend
        is what computed the gradients; with the kernel its source and the number of vector lanes.
        """
        return {
            "versions": versions(),
            "device": device,
            "host": platform.node(),
            "platform": f"{sys.platform} {platform.machine()}",
            "git_commit": git_commit(),
            "started": self._started,
            "finished": now(),
            "train_seconds": round(time.monotonic() - self._clock, 3),
            "threads": options.threads,
            "compile": options.compile,
            "backend": fitted.backend,
            **({"not_compiled": fitted.not_compiled} if fitted.not_compiled else {}),
        }
