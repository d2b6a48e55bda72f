"""Which setting stands for a person: by the validation scores of the others, never the own ones."""

from __future__ import annotations

import math

import pytest

from common.jobs.choosing import choose_settings, reported_base_count, setting_names


def test_a_persons_setting_is_chosen_by_the_scores_of_the_others() -> None:
    scores = {
        "ann": {"a": 0.9, "b": 0.1},
        "bob": {"a": 0.4, "b": 0.5},
        "cem": {"a": 0.3, "b": 0.5},
    }
    choice = choose_settings(scores)
    assert choice.settings == {"ann": "b", "bob": "a", "cem": "a"}
    assert choice.candidates == ["a", "b"]
    assert not choice.undecided
    assert choose_settings(scores, lower_is_better=True).settings["ann"] == "a"


def test_what_differs_between_modes_alone_is_no_setting() -> None:
    tuned, scratch = {"mode": "target_only_fine_tuning"}, {"mode": "target_only"}
    rows = [{**tuned, "max_epochs": 9, "lr": 0.1}, {**scratch, "max_epochs": 3, "lr": 0.1}]
    assert setting_names(rows) == []
    assert setting_names([*rows, {**scratch, "max_epochs": 3, "lr": 0.2}]) == ["lr"]
    # two base models of a person: one of them stands for the untouched base
    other = {"mode": "full_fine_tuning", "max_epochs": 9, "lr": 0.2}
    assert setting_names([*rows, other]) == ["lr"]


def test_only_people_with_every_candidate_vote_and_settings_without_scores_are_no_candidates() -> (
    None
):
    scores = {
        "ann": {"a": 0.1, "b": None, "none": math.nan},
        "bob": {"a": 0.1, "b": 0.2, "none": None},
        "cem": {"none": None},
    }
    choice = choose_settings(scores)
    assert choice.candidates == ["a", "b"]
    # nobody but bob can vote, so bob himself gets the first
    assert choice.settings == {"ann": "b", "bob": "a", "cem": "b"}
    assert choice.undecided


def test_a_setting_that_only_some_people_have_is_no_candidate_while_all_share_another() -> None:
    scores = {
        "ann": {"a": 0.1, "b": 0.2, "old": 0.9},
        "bob": {"a": 0.1, "b": 0.2, "old": 0.9},
        "cem": {"a": 0.1, "b": 0.2},
    }
    choice = choose_settings(scores)
    assert choice.candidates == ["a", "b"]
    assert choice.settings == {"ann": "b", "bob": "b", "cem": "b"}
    assert not choice.undecided
    nothing_shared = {"ann": {"a": 0.1}, "bob": {"b": 0.2}}
    assert choose_settings(nothing_shared).candidates == ["a", "b"]
    assert choose_settings(nothing_shared | {"cem": {"b": 0.1}}).candidates == ["b"]


@pytest.mark.parametrize("score", [None, 0.5])
def test_equal_or_missing_scores_give_the_first_setting_in_order(score: float | None) -> None:
    scores = {person: {"b": score, "a": score} for person in ("ann", "bob")}
    choice = choose_settings(scores)
    assert choice.settings == {"ann": "a", "bob": "a"}
    assert choice.undecided == (score is None)


def test_one_setting_is_no_choice() -> None:
    choice = choose_settings({"ann": {"as given": None}})
    assert choice.settings == {"ann": "as given"}
    assert not choice.undecided


def test_the_most_base_participants_that_half_of_the_people_have() -> None:
    assert reported_base_count({}) is None
    assert reported_base_count({1.0: {"a", "b", "c"}, 2.0: {"a"}}) == 1
    assert reported_base_count({1.0: {"a", "b"}, 2.0: {"a"}}) == 2
    assert reported_base_count({1.0: {"a"}, 2.0: {"b"}, 3.0: {"c"}}) == 3
