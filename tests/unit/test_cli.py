"""The edge of every script: one line and the right exit code for whatever goes wrong, never a
traceback.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.cli import Parser, number_of, one_line, run_script
from common.errors import (
    BaseModelNotFound,
    Conflict,
    CorruptArtifact,
    InputError,
    NodeError,
    ProjectError,
    TrainingError,
    nearest,
)


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a: b"), 2),
        (BaseModelNotFound("a: b"), 2),
        (Conflict("a: b"), 2),
        (CorruptArtifact("a: b"), 2),
        (TrainingError("a: b"), 1),
        (NodeError("a: b"), 1),
        (ProjectError("a: b"), 1),
    ],
)
def test_an_error_is_one_line_and_its_own_exit_code(
    error: ProjectError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(raising(error))
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: a: b\n"


def test_a_disk_error_names_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(raising(OSError(errno.ENOSPC, "No space left on device", "/p/x.pt")))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: /p/x.pt: No space left on device; ")


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(raising(KeyboardInterrupt()))
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("place", "raised", "code"),
    [
        ("script.py", "KeyboardInterrupt", 130),
        ("script.py", "ZeroDivisionError", 1),
        ("elsewhere/script.py", "KeyboardInterrupt", -2),
    ],
)
def test_ctrl_c_while_a_script_imports(tmp_path: Path, place: str, raised: str, code: int) -> None:
    (tmp_path / "common").symlink_to(Path("common").absolute())
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / place
    script.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport common\nraise {raised}\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert (ended.stderr == "interrupted\n") == (code == 130)
    assert ("Traceback" in ended.stderr) == (code != 130)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_the_output_cannot_hold_is_escaped(encoding: str) -> None:
    script = (
        "import sys\n"
        "from common.cli import run_script\n"
        "from common.errors import InputError\n"
        "def main():\n"
        "    sys.stdout.write('g\\u00e9 \\udce9\\n')\n"
        "    raise InputError('g\\u00e9 \\udce9')\n"
        "run_script(main)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    shown = r"g\xe9 \udce9" if encoding == "ascii" else "gé \\udce9"
    assert (ended.returncode, ended.stdout) == (2, f"{shown}\n")
    assert ended.stderr.startswith("error: g")
    assert ended.stderr.endswith("\\udce9\n")


@pytest.mark.parametrize("code", [0, 1, 130])
def test_what_main_returns_is_the_exit_code(code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: code)
    assert ended.value.code == code


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_script(raising(ZeroDivisionError()))


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x1b[31mb", "a\u2028b", "a\x00b", "\na\n"])
def test_no_text_can_fake_a_second_line(text: str) -> None:
    assert len(one_line(text).splitlines()) == 1
    assert one_line(text).isprintable()


def test_an_unknown_flag_is_refused_with_the_nearest() -> None:
    flags = Parser("what it does")
    flags.add_argument("--batch_size")
    with pytest.raises(
        InputError, match="unknown argument --batch_sise, did you mean --batch_size"
    ):
        flags.parse(["--batch_sise=3"])
    with pytest.raises(InputError, match="unknown argument --batch"):
        # no abbreviations: a new flag must not change what an old command means
        flags.parse(["--batch", "3"])
    with pytest.raises(InputError, match="expected one argument"):
        flags.parse(["--batch_size"])


def test_help_keeps_the_lines_of_its_examples() -> None:
    assert (
        "\n    python3 a.py\n    python3 b.py\n"
        in Parser("What it does.\n\n    python3 a.py\n    python3 b.py\n").format_help()
    )


def test_one_thing_is_not_many() -> None:
    said = [number_of(count, "fine-tune") for count in (0, 1, 1008)]
    assert said == ["0 fine-tunes", "1 fine-tune", "1,008 fine-tunes"]


def test_names_of_other_programs_are_known() -> None:
    options = ["lr", "max_epochs", "early_stopping_patience", "weight_decay", "leakage"]
    assert nearest("learning_rate", options) == ", did you mean lr?"
    assert nearest("--learning-rate", [f"--{name}" for name in options]) == ", did you mean --lr?"
    assert nearest("epochs", options) == ", did you mean max_epochs?"
    assert nearest("learning_rate", ["learning_rat"]) == ", did you mean learning_rat?"


def test_nearest_is_silent_where_nothing_is_near() -> None:
    assert nearest("zzz", ["lr", "fold"]) == ""
