"""What all scripts share: the argument parser, and the conversion of an exception into one line on
standard error and an exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from common.errors import InputError, ProjectError, nearest
from common.paths import Paths


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError instead of printing its usage, and names the flag nearest to
    an unknown one.
    """

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")

    def switch(self, flag: str, text: str) -> None:
        """A flag that is given or not."""
        self.add_argument(flag, action="store_true", help=text)

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parse, or raise InputError."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            flags = [name for action in self._actions for name in action.option_strings]
            raise InputError(f"unknown argument {flag}{nearest(flag, flags)}; see --help")
        return known


def text_path(text: str) -> Path:
    """A path that is written into a file, as an argparse type."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not UTF-8 text, as which it is written into files: give it another name"
        ) from None
    return Path(text)


def visible(text: str) -> str:
    """`text` with control characters escaped, so that a name cannot add a line or control the
    terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: object) -> str:
    """`text` in one line, control characters escaped."""
    return visible(str(text).strip().replace("\n", "; "))


def few(texts: Iterable[str], most: int = 3) -> str:
    """The first of some texts, and how many more there are."""
    every = list(texts)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def number_of(count: int, thing: str) -> str:
    """'1 fine-tune', '1,008 fine-tunes'."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def number_are(count: int, thing: str) -> str:
    """'1 fine-tune is', '1,008 fine-tunes are'."""
    return f"{number_of(count, thing)} {'is' if count == 1 else 'are'}"


def time_span(seconds: float | None) -> str:
    """'1 h 05 min', '3 min 10 s', '12 s', or '?'."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit: its return value, an error's own code with one line on stderr, or 130
    when interrupted.
    """
    # No script opens a window, and a notebook's backend may not be installed where it runs.
    os.environ["MPLBACKEND"] = "agg"
    paths = Paths(Path())
    new = not paths.sha256_cache.parent.exists()
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except ProjectError as error:
        code = error.exit_code
        sys.stderr.write(f"error: {one_line(error)}\n")
        if new and code == InputError.exit_code:  # a refused command leaves nothing that it made
            _remove_cache(paths)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # standard output was closed (`| head`)
            sys.stdout = None
            sys.exit(128 + signal.SIGPIPE)
        code = 2
        where = f"{error.filename}: " if error.filename else ""
        what = one_line(f"{where}{error.strerror or error}")
        sys.stderr.write(f"error: {what}; partial results are ignored; fix this and run again\n")
    except KeyboardInterrupt:
        code = 130
        sys.stderr.write("interrupted\n")
    sys.exit(code)


def _remove_cache(paths: Paths) -> None:
    """Not a kernel that was built meanwhile; a copy of own code is not needed once it is read."""
    with contextlib.suppress(OSError):
        paths.sha256_cache.unlink(missing_ok=True)
        shutil.rmtree(paths.code_copies, ignore_errors=True)
        paths.sha256_cache.parent.rmdir()


class Spinner:
    """Progress bar of one training: epoch and losses. Shown on a terminal only."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(desc=title, unit=" epochs", disable=not sys.stderr.isatty(), leave=False)

    def __enter__(self) -> Spinner:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, state: Mapping[str, Any]) -> None:
        """Show the progress that the training loop reports."""
        self._bar.total = state["of"]
        self._bar.n = state["epoch"]
        shown = {
            name: f"{state[name]:.4f}"
            for name in ("train_loss", "val_loss")
            if isinstance(state.get(name), float)
        }
        self._bar.set_postfix(shown)
