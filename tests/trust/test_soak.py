"""The soak's own books."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust import soak


def test_trials_add_up_over_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "RESULTS", tmp_path / "RESULTS.md")
    soak.write({"a fault": soak.Tally(1_500, 1, 1.0, (17,)), "not tried": soak.Tally()}, 4)
    soak.write({"a fault": soak.Tally(500), "another": soak.Tally(3)}, 5)
    text = soak.RESULTS.read_text()
    assert "| a fault | 2,000 |  | 1 |" in text
    assert "| another | 3 |  | 0 |" in text
    assert "not tried" not in text
    assert [row[1:] for row in soak.rows(text)] == [
        (4, "a fault", 1500, 1, "17"),
        (5, "a fault", 500, 0, ""),
        (5, "another", 3, 0, ""),
    ]


def test_a_trial_that_fails_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    def fails(seed: int, folder: Path) -> int:
        raise AssertionError("no")

    tally = soak.Tally()
    tally.add(soak.Fault("fails", fails), 9, tmp_path / "1")
    tally.add(soak.Fault("goes", lambda seed, folder: 2), 10, tmp_path / "2")
    assert (tally.trials, tally.failures, tally.failed) == (3, 1, (9,))


def test_next_is_the_fault_that_is_farthest_from_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def fault(name: str, wanted: int) -> soak.Fault:
        def run(seed: int, folder: Path) -> int:
            if len(made) == 4:
                raise KeyboardInterrupt
            made.append(name)
            return 10

        return soak.Fault(name, run, wanted)

    monkeypatch.setattr(soak, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(
        soak, "every_fault", lambda shared, hosts: [fault("near", 100), fault("far", 1_000)]
    )
    monkeypatch.setattr(soak, "missing_parts", lambda: "no hosts")
    soak.write({"near": soak.Tally(50), "far": soak.Tally(480)}, 1)
    tallies: dict[str, soak.Tally] = {}
    with pytest.raises(KeyboardInterrupt):
        soak.soak(1, 1, [], tallies)
    assert made == ["far", "far", "near", "far"]
    assert (tallies["far"].trials, tallies["near"].trials) == (30, 10)
    assert "| near | 50 | 100 | 0 |" in soak.RESULTS.read_text()
