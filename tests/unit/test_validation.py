"""Hand-written JSON is read in one place, and each mistake is one line that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import InputError
from common.validation import first_problem, read_json


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1, column 1: not JSON"),
        (b"[", "line 1, column 2: not JSON: .*cut short"),
        (b'{"a": [{"hos', "line 1, column 9: not JSON"),
        (b'{"a": tru', "Expecting value; is it cut short"),
        (b'{"a": [1, 2], \n', "cut short"),
        (b'{"a": 1,}\n', "quotes; is the comma before it one too many"),
        (b'{"a": [1, 2, ]}', "Expecting value; is the comma before it one too many"),
        (b'{"a": 1 "b": 2}', "delimiter$"),
        (b'{"a": 1} x', "Extra data$"),
        (b"\xff\xfe{}", "byte 0: not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"{" + b" " * (1 << 20) + b"}", "larger than 1 MiB: this is not a thing"),
        (b'{"port": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' is given twice"),
        (b'[{"x": {"b\\n": 1, "b\\n": 2}}]', r"the key 'b\\n' is given twice"),
    ],
)
def test_json_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        read_json(path, "a thing", 1 << 20)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.json", "not found; a thing"), (tmp_path, "a directory")):
        with pytest.raises(InputError, match=says):
            read_json(path, "a thing")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, "\xc3\xa9"]}')
    assert read_json(path, "a thing") == {"a": [1, "\u00e9"]}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    number: Annotated[int, Field(ge=1)] | list[int] | Literal["auto"] = 1
    name: str


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    parts: list[Part]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "parts: field required"),
        ({"parts": {}}, "parts: input should be a valid list (got {})"),
        ({"parts": [{"name": "a"}, {"name": 3}]}, "parts[1].name: input should be a valid string"),
        ({"parts": [{}]}, "parts[0].name: field required"),
        ({"parts": [{"name": "a", "number": [1, "x"]}]}, "parts[0].number: "),
        ({"parts": [{"nane": "a"}]}, "parts[0].nane: unknown key, did you mean name?"),
    ],
)
def test_the_first_problem_is_told_with_its_place(data: object, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Whole.model_validate(data)
    told = first_problem(refused.value, data, lambda loc: Part.model_fields, show_value=True)
    assert told.startswith(says.removesuffix(" (got {})"))


def test_a_value_is_only_shown_where_that_is_asked_for() -> None:
    data = {"parts": [{"name": 12345}]}
    with pytest.raises(ValidationError) as refused:
        Whole.model_validate(data)
    assert first_problem(refused.value, data, show_value=True).endswith(" (got 12345)")
    assert "12345" not in first_problem(refused.value, data)
