"""Messages of workers, validated."""

from __future__ import annotations

import math

import pytest

from common.cluster.protocol import message


def test_a_measured_speed_is_kept() -> None:
    assert message({"hello": {"log": "x", "speed": 2.5e7}}, []) == {
        "hello": {"log": "x", "speed": 2.5e7}
    }


def test_a_remark_is_one_line_of_text() -> None:
    said = {"done": "a", "result": {"remark": "one\n\x1b[2J two", "else": 1}, "seconds": 1.0}
    result = message(said, ["a"])["result"]
    assert result == {"reused": False, "resumed": False, "remark": "one; \\x1b[2J two"}
    assert "remark" not in message({**said, "result": {}}, ["a"])["result"]


@pytest.mark.parametrize("speed", [0, -1.0, math.inf, math.nan, 1e300, True, "fast", None, [1]])
def test_a_speed_that_cannot_be_one_is_left_out(speed: object) -> None:
    assert message({"hello": {"log": "x", "speed": speed}}, []) == {"hello": {"log": "x"}}
