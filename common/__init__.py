"""The building blocks of the scripts. Nothing in here prints."""

import importlib.util
import os
import sys
from types import TracebackType

_NEEDED = ("torch", "numpy", "paramiko", "tqdm", "pydantic", "sklearn")


def _interrupted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C while a script is still importing: one line and 130, as run_script does later."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


# Only for the scripts that lie beside this package, not for whoever else imports it.
if os.path.dirname(os.path.abspath(sys.argv[0])) == os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))
):
    sys.excepthook = _interrupted

# Every script imports from here first, so this is the one place that can answer a missing
# environment in a line.
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    sys.stderr.write(
        f"error: {sys.executable} lacks the packages {', '.join(_missing)}: "
        "build the environment with `make env`, then `. env/bin/activate`\n"
    )
    sys.exit(2)
