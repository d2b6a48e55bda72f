"""Messages of workers, validated."""

from __future__ import annotations

import math
import time

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


@pytest.mark.parametrize("since", [1e300, -1e300, 2**61, math.inf, "now", None])
def test_since_when_a_slot_is_filled_is_a_date(since: object) -> None:
    waiting = message({"waiting": {"holder": "x", "since": since}}, [])["waiting"]
    assert time.localtime(waiting["since"])


def test_the_loss_of_an_epoch_may_be_of_any_size() -> None:
    said = {"progress": "a", "epoch": 1, "of": 2, "train_loss": 1e30, "val_loss": 2**62}
    assert message(said, ["a"]) == {"progress": "a", "epoch": 1, "of": 2, "train_loss": 1e30}
