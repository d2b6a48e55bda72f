"""A node that lies is refused in words, and never brings the head down."""

from __future__ import annotations

from pathlib import Path

from tests.trust import hostile


def test_records_that_lie_are_refused_or_change_nothing(tmp_path: Path) -> None:
    assert hostile.lying_records(1, tmp_path) == 200


def test_messages_of_any_form_are_brought_into_a_known_one(tmp_path: Path) -> None:
    assert hostile.lying_messages(1) >= 500


def test_facts_of_any_form_are_brought_into_a_known_one(tmp_path: Path) -> None:
    assert hostile.lying_facts(1) >= 300
