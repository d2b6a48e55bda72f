"""Read what people write by hand, JSON files and option values, and describe the first mistake in
one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from common.errors import InputError, nearest

MAX_JSON_BYTES = 512 << 20
MAX_SHOWN = 200


def read_json(path: Path, what: str, limit: int = MAX_JSON_BYTES) -> Any:
    """The JSON value in a file that a person may have edited; `what` names the kind of file.

    Raises:
        InputError: the file cannot be read, is larger than `limit` bytes, or is not JSON (see
        `parse_json`).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(min(os.fstat(file.fileno()).st_size or limit, limit) + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {what} is needed", path=path) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: {what} cannot be read", path=path) from None
    if len(raw) > limit:
        raise InputError(f"{path}: larger than {limit >> 20} MiB: this is not {what}", path=path)
    return parse_json(raw, str(path))


def parse_json(raw: bytes, where: str) -> Any:
    """The JSON value in `raw`, UTF-8 with or without a byte order mark.

    Raises:
        InputError: beginning with `where`: not UTF-8, not JSON, a key given twice in one object, a
        number that JSON does not know (NaN), nested too deeply.
    """
    try:
        return json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_each_key_once, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
            f"{_json_hint(error)}"
        ) from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    except ValueError as error:  # a key given twice, NaN, a number of 5,000 digits
        raise InputError(f"{where}: {str(error).partition(';')[0][:MAX_SHOWN]}") from None


def _json_hint(error: json.JSONDecodeError) -> str:
    """What is probably wrong: the text ends too early, or a comma has nothing behind it."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    if error.msg.startswith("Extra data"):
        return ""
    if error.msg.startswith("Unterminated") or not rest or rest.isalnum():
        return "; is it cut short?"
    return (
        "; is the comma before it one too many?" if before.endswith(",") and rest[0] in "}]" else ""
    )


def _each_key_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in result if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} is given twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def kind_of(value: object) -> str:
    """What a JSON value is, for a message: 'a list', 'text'."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "something else")


def first_problem(
    error: ValidationError,
    data: object,
    known_keys: Callable[[Sequence[int | str]], Iterable[str]] | None = None,
    *,
    show_value: bool = False,
) -> str:
    """'servers[1].port: what is wrong' for the first problem in `data`, an unknown key before
    others.

    `known_keys` lists the keys that are allowed at a place, for 'did you mean'; `show_value` adds
    the wrong value (never where it may be a secret).
    """
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    place = _place(problem["loc"], data, missing=problem["type"] == "missing")
    if problem["type"] == "extra_forbidden":
        close = nearest(str(problem["loc"][-1]), known_keys(problem["loc"])) if known_keys else ""
        return f"{place}: unknown key{close}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if show_value and not isinstance(problem["input"], (dict, BaseModel)):
        message += f" (got {repr(problem['input'])[:MAX_SHOWN]})"
    return f"{place}: {message}" if place else message


def _place(loc: Sequence[int | str], data: object, *, missing: bool) -> str:
    """('servers', 1, 'gpus', 'int') -> 'servers[1].gpus'. What does not lead on in `data` is a name
    that pydantic gives to a member of a union.
    """
    text = ""
    for number, part in enumerate(loc):
        if isinstance(part, int) and isinstance(data, (list, tuple)):
            data, text = data[part], f"{text}[{part}]"
        elif isinstance(data, dict) and (part in data or (missing and number == len(loc) - 1)):
            data, text = data.get(part), f"{text}.{str(part)[:80]}" if text else str(part)[:80]
    return text
