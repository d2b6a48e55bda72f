"""The building blocks of the scripts. Nothing in here prints."""

import importlib.util
import sys

_NEEDED = ("torch", "numpy", "paramiko", "tqdm", "pydantic", "sklearn")

# Every script imports from here first, so this is the one place that can answer a missing
# environment in a line.
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    sys.stderr.write(
        f"error: {sys.executable} lacks the packages {', '.join(_missing)}: "
        "build the environment with `make env`, then `. env/bin/activate`\n"
    )
    sys.exit(2)
