"""A hand-made set of experiments whose statistics are worked out in the tests."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from common.errors import InputError
from common.options import FinetuneOptions
from common.report.analysis import contrasts, draws, main_lines, sensitivity
from common.report.build import chosen_run
from common.report.collect import Collection, collect, mark_versions
from common.report.comparisons import compare, groups_to_compare
from common.report.conditions import BASE, Condition
from common.report.drawing import LOOKS
from common.report.figures import heat_map
from common.report.grids import Analysis, Grid, filter_rows, split_grids
from common.report.methods import _pairs, warnings
from common.report.missing import mark_stale
from common.report.wording import (
    beside_headline,
    fixed_words,
    headline,
    people_words,
    score_text,
    sensitivity_words,
    settings_words,
    time_text,
)
from tests.report.made import Made

TUNED_BASE = Condition("base_tuned", 0.0)
BASES = [0.80, 0.82, 0.84, 0.86, 0.88, 0.90, 0.70]
GAINS = [0.10, 0.08, 0.06, 0.04, 0.02, -0.01, 0.20]
TENTH, FULL = Condition("target_only_fine_tuning", 0.1), Condition("target_only_fine_tuning", 1.0)


def test_every_mode_and_budget_of_the_options_has_words_and_a_place_of_its_own() -> None:
    values = [
        get_args(FinetuneOptions.model_fields[name].annotation)
        for name in ("mode", "target_val", "target_order")
    ]
    conditions = [Condition(mode, 0.1, val, order) for mode, val, order in product(*values)]
    assert len({condition.words for condition in conditions}) == len(conditions)
    assert len({condition.place for condition in conditions}) == len(conditions)
    assert LOOKS.keys() >= {condition.mode for condition in conditions}


def read(*roots: Path) -> Collection:
    """The table as report.py makes it."""
    collection = collect(list(roots))
    mark_stale(collection)
    return collection


def grid_of(made: Made, metric: str = "macro_f1") -> Grid:
    """The one grid of a folder."""
    (grid,) = split_grids(read(made.root).table, metric)
    return grid


def seven(made: Made) -> Made:
    """Seven people at 10 and 100 %."""
    for person, base, gain in zip(made.people, BASES, GAINS, strict=True):
        made.run(person, base=base, fine=base + gain, target_data_pct=0.1, windows=31)
        made.run(person, base=base, fine=base + 2 * abs(gain), target_data_pct=1.0, windows=310)
    return made


def test_known_scores_give_the_known_main_table(made: Made) -> None:
    grid = grid_of(seven(made))
    base, recalibrated, tenth, full = main_lines(grid)
    assert (base.condition, tenth.condition, full.condition) == (BASE, TENTH, FULL)
    assert recalibrated.condition == TUNED_BASE
    assert recalibrated.median.value == pytest.approx(0.85)
    assert base.median.value == pytest.approx(0.84)
    assert base.mean == pytest.approx(sum(BASES) / 7)
    assert tenth.median.value == pytest.approx(0.90)
    assert tenth.gain is not None
    assert tenth.gain.median == pytest.approx(0.06)
    assert tenth.gain.estimate.value == pytest.approx(pairwise(GAINS, [1.0] * 7))
    assert (tenth.gain.n, tenth.gain.better, tenth.gain.worse, tenth.gain.zeros) == (7, 6, 1, 0)
    assert tenth.gain.p == pytest.approx(4 / 128)
    assert tenth.counts["train_windows"] == 31
    assert tenth.counts["selection_windows"] == 40


def test_shares_are_median_pairwise_ratios(made: Made) -> None:
    *_, tenth, full = main_lines(grid_of(seven(made)))
    assert tenth.share is not None
    assert tenth.share.value == pytest.approx(pairwise(GAINS, [1 - base for base in BASES]))
    assert tenth.share_of_full is not None
    assert tenth.share_of_full.value == pytest.approx(pairwise(GAINS, [2 * abs(g) for g in GAINS]))
    assert full.share_of_full is None


def pairwise(parts: list[float], wholes: list[float]) -> float:
    """Median over all pairs, each with itself too, of the ratio of sums."""
    return statistics.median(
        (parts[i] + parts[j]) / (wholes[i] + wholes[j])
        for i in range(len(parts))
        for j in range(i + 1)
    )


def test_the_headline_says_windows_scores_people_and_p(made: Made) -> None:
    grid = grid_of(seven(made))
    text = headline(grid, main_lines(grid))
    assert (
        text
        == "Fine-tuning on a median of 31 labelled training windows (1 min 02 s) improves macro F1"
        " by +.060 [+.015, +.140] (medians .84 to .90), better for 6 of 7 people, p = .031."
    )
    assert "a median of 40 labelled windows (1 min 20 s) chose the epoch" in beside_headline(
        grid, main_lines(grid)
    )


def test_a_difference_that_chance_explains_lifts_nothing(made: Made) -> None:
    for person, gain in zip(made.people, [0.1, -0.1, 0.05, -0.06, 0.02, -0.03, 0.01], strict=True):
        made.run(person, base=0.8, fine=0.8 + gain, target_data_pct=0.1)
    grid = grid_of(made)
    assert "improves" not in headline(grid, main_lines(grid))
    assert headline(grid, main_lines(grid)).endswith("no reliable difference.")


def test_the_primary_contrast_is_not_adjusted_and_the_others_are(made: Made) -> None:
    found = contrasts(grid_of(seven(made)))
    assert [contrast.primary for contrast in found] == [True, False, False, False, False]
    assert found[0].name == "fine-tuned, target only, 10 % − untouched base"
    assert found[0].p_holm is None
    assert [contrast.name for contrast in found[1:]] == [
        "base, threshold tuned − untouched base",
        "fine-tuned, target only, 100 % − untouched base",
        "fine-tuned, target only, 10 % − base, threshold tuned",
        "fine-tuned, target only, 100 % − base, threshold tuned",
    ]
    adjusted = [contrast.p_holm or 0 for contrast in found[1:]]
    assert min(adjusted) == pytest.approx(4 * min(c.result.p or 1 for c in found[1:]))


def test_an_exploratory_score_has_no_primary_contrast_and_says_so(made: Made) -> None:
    grid = grid_of(seven(made), "f1")
    assert not any(contrast.primary for contrast in contrasts(grid))
    assert all(contrast.p_holm is not None for contrast in contrasts(grid))
    assert headline(grid, main_lines(grid)).startswith("Exploratory: fine-tuning on")
    assert "the score fixed beforehand is macro F1" in fixed_words(grid)


def test_the_analysis_of_the_job_files_fixes_what_is_primary(made: Made) -> None:
    table = read(seven(made).root).table
    fixed = Analysis("f1", "target_only_fine_tuning", 1.0)
    (grid,) = split_grids(table, "f1", {"project": fixed})
    assert grid.primary == FULL
    assert not grid.exploratory
    assert "written into the job files before anything ran" in fixed_words(grid)
    (other,) = split_grids(table, "macro_f1", {"project": fixed})
    assert other.exploratory
    (absent,) = split_grids(table, "f1", {"project": Analysis(target_data_pct=0.5)})
    assert absent.primary is None
    assert "no result" in absent.notes[0]


def test_labelling_budgets_have_rows_of_their_own_and_choose_nothing(made: Made) -> None:
    for person in made.people:
        for fraction in (0.1, 1.0):
            made.run(person, target_data_pct=fraction, fine=0.80, val=0.80)
            made.run(person, target_data_pct=fraction, target_val="matched", fine=0.9, val=0.99)
            made.run(person, target_data_pct=fraction, target_order="time", fine=0.7, val=0.99)
    grid = grid_of(made)
    assert grid.settings == []
    assert grid.primary == TENTH
    matched = TENTH._replace(val="matched")
    assert grid.scores()[matched].tolist() == pytest.approx([0.9] * 7)
    assert grid.scores()[TENTH].tolist() == pytest.approx([0.8] * 7)
    assert grid.scores()[TENTH._replace(order="time")].tolist() == pytest.approx([0.7] * 7)
    assert matched.words == "fine-tuned, target only, 10 %, matched selection"
    assert grid.recalibrated(matched) == Condition("base_tuned", 0.1, "matched")
    assert grid.recalibrated(TENTH) == TUNED_BASE


def test_gains_are_over_the_own_base_whatever_setting_the_base_row_shows(made: Made) -> None:
    for person in made.people:  # the base does best at 64, the fine-tune at 32
        made.run(person, batch_size=32, val=0.9, fine=0.85, base_val=0.6, base=0.60)
        made.run(person, batch_size=64, val=0.8, fine=0.80, base_val=0.7, base=0.75)
    grid = grid_of(made)
    base, _, tuned = main_lines(grid)
    assert base.median.value == pytest.approx(0.75)
    assert tuned.median.value == pytest.approx(0.85)
    assert tuned.gain is not None
    assert tuned.gain.estimate.value == pytest.approx(0.25)
    assert "(medians .60 to .85)" in headline(grid, main_lines(grid))


def test_the_base_with_its_threshold_tuned_is_compared_with_at_0_5(made: Made) -> None:
    *_, tuned = main_lines(grid_of(seven(made)))
    assert tuned.over_tuned is not None
    wanted = [2 * abs(gain) - 0.01 for gain in GAINS]
    assert tuned.over_tuned.estimate.value == pytest.approx(pairwise(wanted, [1.0] * 7))


def test_draws_of_the_windows_are_told_from_differences_between_people(made: Made) -> None:
    for place, person in enumerate(made.people):
        for draw in (0, 1, 2):
            fine = 0.7 + 0.02 * place + 0.01 * draw
            made.run(person, fine=fine, target_data_pct=0.1, seed_finetune=draw)
    collection = read(made.root)
    (grid,) = split_grids(collection.table, "macro_f1")
    found = draws(grid)
    assert found is not None
    assert found.within == pytest.approx(0.01)
    assert found.between == pytest.approx(0.02 * statistics.stdev(range(7)))
    assert not any("one draw" in text for text in warnings(collection, [grid], [], []))


def test_one_draw_of_the_windows_is_warned_of(made: Made) -> None:
    collection = read(seven(made).root)
    (grid,) = split_grids(collection.table, "macro_f1")
    assert draws(grid) is None
    assert any("are one draw" in text for text in warnings(collection, [grid], [], []))


def test_sensitivity_is_in_units_of_the_gains_seen(made: Made) -> None:
    found = sensitivity(grid_of(seven(made)))
    assert found is not None
    assert found.sd == pytest.approx(statistics.stdev(GAINS))
    assert 1.2 * found.sd < found.gain < 1.6 * found.sd


def test_the_tuned_threshold_stands_beside_and_is_all_adjusted(made: Made) -> None:
    grid = grid_of(seven(made))
    lines = main_lines(grid, "_tuned")
    assert lines[0].median.value == pytest.approx(0.85)
    assert [contrast.primary for contrast in contrasts(grid, "_tuned")] == [False, False]


def test_every_contrast_is_in_the_family(made: Made) -> None:
    for person, base in zip(made.people, BASES, strict=True):
        for fraction in (0.1, 1.0):
            made.run(person, base=base, fine=base + 0.05, target_data_pct=fraction)
            made.run(person, fine=base - 0.05, mode="target_only", target_data_pct=fraction)
    names = [contrast.name for contrast in contrasts(grid_of(made))]
    assert len(names) == 11  # 5 over the base, 4 over the tuned base, 2 between modes
    assert "fine-tuned, target only, 100 % − from scratch, 100 %" in names


def test_seeds_are_averaged_within_a_person_and_add_no_participants(made: Made) -> None:
    for place, person in enumerate(made.people):
        made.run(person, base=0.8, fine=0.85 + 0.01 * place, seed_finetune=0)
        made.run(person, base=0.8, fine=0.95 + 0.01 * place, seed_finetune=1)
    grid = grid_of(made)
    line = main_lines(grid)[-1]
    assert line.gain is not None
    assert line.gain.n == 7
    assert grid.scores()[FULL].tolist() == pytest.approx(
        [0.90 + 0.01 * place for place in range(7)]
    )


def test_a_base_counts_once_however_many_seeds_were_fine_tuned_from_it(made: Made) -> None:
    for person in made.people:
        for seed_finetune in (0, 1, 2):
            made.run(person, base=0.6, seed=0, seed_finetune=seed_finetune)
        made.run(person, base=0.8, seed=1, seed_finetune=0)
    assert grid_of(made).scores()[BASE].tolist() == pytest.approx([0.7] * 7)


def test_settings_are_chosen_by_the_validation_scores_of_the_others_never_by_test(
    made: Made,
) -> None:
    # anna alone would choose 64; all the others, and anna's test score, speak otherwise each.
    for person in made.people:
        first = person == "anna"
        made.run(person, batch_size=32, val=0.50 if first else 0.91, fine=0.70)
        made.run(person, batch_size=64, val=0.99 if first else 0.90, fine=0.95)
    grid = grid_of(made)
    assert grid.settings == ["batch_size"]
    chosen = grid.choices[FULL]
    assert chosen["anna"] == "batch_size 32"
    # For ben, anna is one of the others and her .99 against .50 outweighs five times .01.
    assert chosen["ben"] == "batch_size 64"
    assert grid.scores()[FULL]["anna"] == pytest.approx(0.70)
    assert (
        "batch_size was chosen by the mean validation macro F1 over the other participants"
        in settings_words(grid)
    )


def test_an_option_of_base_training_does_not_vary_because_there_is_none_from_scratch(
    made: Made,
) -> None:
    for person in made.people:
        made.run(person, early_stopping_patience=20)
        made.run(person, mode="target_only")  # keeps the default, 50
    assert grid_of(made).settings == []
    made.run("anna", early_stopping_patience=30)
    assert grid_of(made).settings == ["early_stopping_patience"]


NO_VAL = {f"{side}val_macro_f1": None for side in ("", "base_")}


def test_a_setting_without_validation_scores_is_not_chosen_and_keeps_no_other_from_it(
    made: Made,
) -> None:
    for person in made.people:
        made.run(person, batch_size=32, val=0.8, fine=0.7)
        made.run(person, batch_size=64, val=0.9, fine=0.8)
        made.run(person, batch_size=16, fine=0.99, metrics=NO_VAL)
    grid = grid_of(made)
    assert set(grid.choices[FULL]) == {"batch_size 64"}
    assert grid.notes == [
        "Not chosen, for want of validation scores: “batch_size 16”; --filter reports such a"
        " setting by itself."
    ]


def test_a_setting_that_only_some_people_have_drops_nobody(made: Made) -> None:
    for person in made.people:
        made.run(person, prefix="new", lr=0.003, metrics={"val_macro_f1": 0.5})
    for person in made.people[:5]:
        made.run(person, prefix="old", lr=0.0003, metrics={"val_macro_f1": 0.9})
    grid = grid_of(made)
    assert grid.participants == made.people
    assert set(grid.choices[FULL]) == {"lr 0.003"}
    assert (
        "Not chosen, because fewer people have results of it: “lr 0.0003”; --filter reports"
        " such a setting by itself."
    ) in grid.notes


def test_whoever_lacks_the_setting_that_was_chosen_is_left_out_by_its_name(made: Made) -> None:
    for person in made.people[1:]:
        made.run(person, prefix="new", lr=0.003, metrics={"val_macro_f1": 0.5})
        if person != made.people[-1]:
            made.run(person, prefix="old", lr=0.0003, metrics={"val_macro_f1": 0.1})
    made.run(made.people[0], prefix="old", lr=0.0003, metrics={"val_macro_f1": 0.1})
    text = people_words(grid_of(made))
    assert f"Left out: {made.people[0]} (no result at lr 0.003 for " in text


def test_where_no_setting_has_validation_scores_the_first_is_taken_and_nothing_is_awaited(
    made: Made,
) -> None:
    for person in made.people:
        for batch_size in (32, 64):
            made.run(person, batch_size=batch_size, target_val="none", metrics=NO_VAL)
    grid = grid_of(made)
    assert set(grid.choices[FULL._replace(val="none")]) == {"batch_size 32"}
    assert "no setting has a validation score" in grid.notes[0]
    assert not any("yet" in note for note in grid.notes)


def test_the_rows_behind_a_score_are_those_of_the_chosen_setting(made: Made) -> None:
    for person in made.people:
        for seed in (0, 1):
            made.run(person, batch_size=32, val=0.8, fine=0.7, seed_finetune=seed)
            made.run(person, batch_size=64, val=0.9, fine=0.8, seed_finetune=seed)
        made.run(person, batch_size=64, n_base_participants=3, fine=0.6)
    grid = grid_of(made)
    rows = grid.behind("carla", FULL)
    assert rows[["batch_size", "seed_finetune", "n_base_participants"]].to_numpy().tolist() == [
        [64, 0, 6],
        [64, 1, 6],
    ]
    # the fourth of seven equal ones
    assert chosen_run(read(made.root), [grid], None) == grid.behind("dora", FULL).index[0]


def test_a_filter_fixes_a_setting_instead(made: Made) -> None:
    for person in made.people:
        made.run(person, batch_size=32, val=0.9, fine=0.70)
        made.run(person, batch_size=64, val=0.8, fine=0.95)
    table = filter_rows(read(made.root).table, ["batch_size=64"])
    (grid,) = split_grids(table, "macro_f1")
    assert grid.settings == []
    assert grid.scores()[FULL].tolist() == pytest.approx([0.95] * 7)


def test_for_a_loss_lower_is_better(made: Made) -> None:
    grid = grid_of(seven(made), "loss")
    tenth = main_lines(grid)[-2]
    assert tenth.gain is not None
    assert tenth.gain.median == pytest.approx(0.06)
    assert tenth.share is not None
    assert tenth.share.value == pytest.approx(pairwise(GAINS, [1 - base for base in BASES]))
    assert "improves loss by +0.060 [+0.015, +0.140] (medians 0.16 to 0.10)" in headline(
        grid, main_lines(grid)
    )


@pytest.mark.parametrize("metric", ["macro_f1", "loss"])
def test_rows_of_the_heat_map_are_in_the_order_that_its_caption_says(
    made: Made, metric: str
) -> None:
    drawn = heat_map(grid_of(seven(made), metric))
    assert drawn is not None
    rows = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert rows == [person for _, person in sorted(zip(BASES, made.people, strict=True))]
    assert drawn[3].endswith("Worst base score first.")


def test_without_a_base_the_heat_map_claims_no_order(made: Made) -> None:
    for person in made.people:
        made.run(person, mode="target_only")
    drawn = heat_map(grid_of(made))
    assert drawn is not None
    assert drawn[3].endswith("repeats averaged.")


def test_only_participants_with_every_condition_count_and_the_others_are_named(made: Made) -> None:
    seven(made)
    made.people.append("hugo")
    made.people.append("ivo")
    other = Made(made.root, made.people)
    for person in made.people:
        reason = (
            {"test_macro_f1": "one class only; the other was not recorded"}
            if person == "hugo"
            else {}
        )
        other.run(
            person,
            base=0.8,
            fine=None if person == "hugo" else 0.9,
            prefix="nine",
            target_data_pct=0.1,
            metrics={"undefined": reason},
        )
        if person != "ivo":
            other.run(person, base=0.8, fine=0.95, prefix="nine_full", target_data_pct=1.0)
    grid = next(
        grid for grid in split_grids(read(made.root).table, "macro_f1") if len(grid.excluded)
    )
    assert grid.participants == made.people[:7]
    text = people_words(grid)
    assert "7 of 9 participants" in text
    assert "hugo (test_macro_f1: one class only; the other was not recorded)" in text
    assert "ivo (no result yet for fine-tuned, target only, 100 %)" in text


def test_a_condition_that_has_hardly_begun_is_left_out_and_said(made: Made) -> None:
    for person in made.people:
        made.run(person, target_data_pct=0.1)
    made.run("anna", target_data_pct=1.0)
    grid = grid_of(made)
    assert grid.left_out == [FULL]
    assert len(grid.participants) == 7
    assert any("Too few results yet" in text for text in warnings(read(made.root), [grid], [], []))


def test_the_primary_fraction_is_the_nearest_to_ten_percent_whatever_the_scores(made: Made) -> None:
    for person in made.people:
        for fraction, fine in ((0.05, 0.99), (0.125, 0.5), (0.25, 0.99)):
            made.run(person, target_data_pct=fraction, fine=fine, mode="full_fine_tuning")
            made.run(person, target_data_pct=fraction, fine=fine)
    assert grid_of(made).primary == Condition("target_only_fine_tuning", 0.125)


def test_most_base_participants_are_reported_and_confounding_is_said(made: Made) -> None:
    for person in made.people:
        for number in (1, 6):
            made.run(person, n_base_participants=number, base=0.7 + 0.02 * number, fine=0.95)
    collection = read(made.root)
    (grid,) = split_grids(collection.table, "macro_f1")
    assert grid.scores()[BASE].tolist() == pytest.approx([0.82] * 7)
    assert any("confounded" in text for text in warnings(collection, [grid], [], []))
    assert compare([grid], "n_base_participants").base["1"].tolist() == pytest.approx([0.72] * 7)


def test_compare_puts_the_values_of_an_option_side_by_side(made: Made) -> None:
    for place, person in enumerate(made.people):
        made.run(person, normalization="none", fine=0.80)
        made.run(person, normalization="train", fine=0.81 + 0.01 * place)
    found = compare([grid_of(made)], "normalization")
    assert found.values == ["none", "train"]
    (contrast,) = found.contrasts
    assert contrast.name == "normalization: train − none"
    assert (contrast.result.n, contrast.result.better) == (7, 7)
    assert contrast.result.median == pytest.approx(0.04)
    assert contrast.result.p == pytest.approx(2 / 128)
    (of_losses,) = compare([grid_of(made, "loss")], "normalization").contrasts
    assert (of_losses.result.better, of_losses.result.median) == (7, pytest.approx(0.04))


def test_an_option_that_was_left_out_is_a_value_of_its_own(made: Made) -> None:
    for place, person in enumerate(made.people):
        for blocks in (None, 2, 3):
            made.run(person, num_blocks=blocks, fine=0.80 + 0.01 * place * (blocks or 0))
    found = compare([grid_of(made)], "num_blocks")
    assert found.values == ["unset", "2", "3"]
    assert [one.name for one in found.contrasts] == [
        "num_blocks: 2 − unset",
        "num_blocks: 3 − unset",
    ]


def test_what_has_no_effect_in_a_mode_is_no_value_of_it(made: Made) -> None:
    for person in made.people:
        made.run(person, mode="target_only", fine=0.7)
        for order_seed in (1, 2):
            made.run(person, base_order_seed=order_seed, fine=0.8 + order_seed / 100)
    assert compare([grid_of(made)], "base_order_seed").values == ["1", "2"]


def test_comparing_what_does_not_vary_names_what_does(made: Made) -> None:
    for person in made.people:
        made.run(person, batch_size=32)
        made.run(person, batch_size=64)
    with pytest.raises(InputError, match="these experiments vary batch_size"):
        compare([grid_of(made)], "lr")


def test_two_projects_are_two_grids_and_never_pooled(made: Made, tmp_path: Path) -> None:
    other = Made(tmp_path / "other")
    for person in made.people:
        made.run(person, fine=0.90)
        other.run(person, fine=0.80)
    grids = split_grids(read(made.root, other.root).table, "macro_f1")
    assert sorted(grid.name for grid in grids) == ["other", "project"]
    found = compare(grids, "project")
    assert found.contrasts[0].result.better == 7  # project against other


def test_projects_are_compared_on_the_same_data_only(made: Made, tmp_path: Path) -> None:
    other = Made(tmp_path / "other")
    for person in made.people:
        for number in (3, 6):
            made.run(person, fine=0.60, data_path="data/easy", n_base_participants=number)
        made.run(person, fine=0.90)
        other.run(person, fine=0.90)
    grids = split_grids(read(made.root, other.root).table, "macro_f1")
    assert [grid.name for grid in grids] == [
        "project, data/easy",
        "other, data/made",
        "project, data/made",
    ]
    (group,) = groups_to_compare(grids, "project")
    assert [grid.name for grid in group] == ["other, data/made", "project, data/made"]
    assert compare(group, "project").contrasts[0].result.zeros == 7


def test_windows_of_one_length_from_two_data_sets_are_not_compared_with_others(made: Made) -> None:
    for person in made.people:
        for data_path, size in (("data/a", 100), ("data/b", 100), ("data/c", 200)):
            made.run(person, data_path=data_path, window_size=size)
    grids = split_grids(read(made.root).table, "macro_f1")
    (group,) = groups_to_compare(grids, "data_path")
    assert compare(group, "data_path").values == ["data/a", "data/b", "data/c"]
    with pytest.raises(InputError, match="100 stands for several data sets"):
        compare(groups_to_compare(grids, "window_size")[0], "window_size")


def test_other_options_are_compared_with_equally_many_base_participants(made: Made) -> None:
    for person in made.people:
        for batch_size, number, fine in ((32, 3, 0.5), (64, 3, 0.5), (32, 6, 0.9)):
            made.run(person, batch_size=batch_size, n_base_participants=number, fine=fine)
    with pytest.raises(InputError, match="these experiments vary no option"):
        compare([grid_of(made)], "batch_size")


def lists_warning(collection: Collection, grid: Grid) -> str:
    """What is said of lists of participants that differ."""
    return " ".join(
        text for text in warnings(collection, [grid], [], []) if "lists of participants" in text
    )


def test_somebody_who_was_added_joins_the_experiments_that_are_there(made: Made) -> None:
    for person in made.people:
        made.run(person, n_base_participants=3)
    assert lists_warning(read(made.root), grid_of(made)) == ""
    Made(made.root, [*made.people, "hugo"]).run("hugo", n_base_participants=3)
    grid = grid_of(made)
    assert grid.participants == [*made.people, "hugo"]
    assert "2 lists of participants (7, 1 experiments)" in lists_warning(read(made.root), grid)


def test_all_base_participants_are_one_more_once_half_of_the_people_have_such_results(
    made: Made,
) -> None:
    for person in made.people:
        made.run(person, fine=0.9)
    grown = Made(made.root, [*made.people, "hugo"])
    for person in grown.people[:3]:
        grown.run(person, fine=0.8)
    grid = grid_of(made)
    assert (grid.n_base, grid.participants) == (6, made.people)
    assert grid.notes == [
        "With 7 base participants 3 of 7 people have results yet, so those with 6 are reported."
    ]
    for person in grown.people[3:]:
        grown.run(person, fine=0.8)
    grid = grid_of(made)
    assert (grid.n_base, grid.participants, grid.notes) == (7, grown.people, [])
    assert grid.scores()[FULL].tolist() == pytest.approx([0.8] * 8)


def test_mixed_data_code_and_versions_are_flagged_by_name(made: Made) -> None:
    for person in made.people:
        odd = person == "dora"
        made.run(
            person,
            data={"dora_train.pt": "e" * 64} if odd else None,
            code={"training.py": "f" * 64} if odd else None,
            versions={"torch": "2.14.0", "python": "3.11"} if odd else None,
        )
    made.run("dora", prefix="again", seed_finetune=1)
    made.run("dora", prefix="again2", seed_finetune=2)
    collection = read(made.root)
    text = " ".join(warnings(collection, split_grids(collection.table, "macro_f1"), [], []))
    assert "Mixed data files: 1 of 9 experiments" in text
    assert "data/made/dora_train.pt" in text
    assert "Mixed code: 1 of 9" in text
    assert "training.py" in text
    assert "Mixed library versions: 1 of 9" in text


def test_stale_experiments_neither_count_as_mixed_nor_as_most_others(made: Made) -> None:
    for lr in (0.1, 0.2):
        made.run("dora", prefix=f"old{lr}", lr=lr, data={"dora_train.pt": "e" * 64})
    for person in made.people:
        made.run(person, prefix="new")
    collection = read(made.root)
    collection.table["stale"] = None
    mark_versions(collection.table, collection.runs)
    assert "Mixed data files: 1 of 9" in " ".join(warnings(collection, [], [], []))
    old = collection.table["folder"].str.contains("old")
    collection.table["stale"] = old.map({True: "data changed since", False: None})
    mark_versions(collection.table, collection.runs)
    assert "Mixed" not in " ".join(warnings(collection, [], [], []))


def test_a_share_that_does_not_exist_is_not_mentioned_and_a_small_sd_has_digits(
    made: Made,
) -> None:
    for person in made.people:
        made.run(person, base=1.0, fine=0.996 if person == "dora" else 1.0)
    grid = grid_of(made)
    lines = main_lines(grid)
    assert "what lay between" not in beside_headline(grid, lines)
    assert "an SD of the gains of .002," in sensitivity_words(grid, sensitivity(grid))


def test_settings_of_the_data_are_plain_words() -> None:
    values = {
        "rule": "session",
        "fractions": {"train": 0.6, "test": 0.4},
        "clock": False,
        "channels": None,
        "columns": ["x", "y"],
        "settings": {"units": None},
    }
    words = "rule session, fractions (train 0.6, test 0.4), clock no, columns x and y"
    assert _pairs(values) == words


def test_runs_that_hit_max_epochs_are_flagged_but_not_those_that_were_meant_to(made: Made) -> None:
    for person in made.people:
        made.run(person, metrics={"stopped_by": "max_epochs"}, base_stopped_by="max_epochs")
        made.run(person, target_val="none", metrics={"stopped_by": "max_epochs"})
    collection = read(made.root)
    text = " ".join(warnings(collection, split_grids(collection.table, "macro_f1"), [], []))
    assert "7 of 14 fine-tunes and 7 base models stopped at max_epochs" in text


def test_the_same_experiment_under_two_prefixes_counts_once(made: Made) -> None:
    for person in made.people:
        made.run(person, prefix="one")
        made.run(person, prefix="two")
    table = read(made.root).table
    assert table["duplicate_of"].notna().sum() == 7
    assert len(grid_of(made).rows) == 7


def test_an_unknown_metric_names_the_nearest(made: Made) -> None:
    made.run("anna")
    with pytest.raises(InputError, match="did you mean macro_f1"):
        grid_of(made, "macro_f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize=32", "did you mean batch_size"),
        ("batch_size=7", "batch_size is 64"),
        ("batch_size", "give key=value"),
    ],
)
def test_a_filter_that_fits_nothing_says_what_there_is(made: Made, text: str, message: str) -> None:
    made.run("anna")
    with pytest.raises(InputError, match=message):
        filter_rows(read(made.root).table, [text])


def test_filters_take_several_values_and_numbers_in_any_form() -> None:
    table = pd.DataFrame({"target_data_pct": [0.1, 0.5, 1.0], "mode": ["a", "b", "c"]})
    assert filter_rows(table, ["target_data_pct=.1,1"])["mode"].tolist() == ["a", "c"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.84, ".84"),
        (0.999, "1.00"),
        (None, "–"),
        (float("nan"), "–"),
        (-0.0001, ".00"),
        (-0.004, ".00"),
    ],
)
def test_scores_are_printed_without_the_zero(value: float | None, text: str) -> None:
    assert score_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0714, "+.071"), (-0.02, "−.020"), (0.0, ".000")])
def test_differences_have_a_sign_and_a_digit_more(value: float, text: str) -> None:
    assert score_text(value, signed=True) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (31 * 2 / 3600, "1 min 02 s"),
        (40 / 3600, "40 s"),
        (2.5, "2 h 30 min"),
        (0.5, "30 min 00 s"),
        (None, "–"),
    ],
)
def test_durations_are_those_of_a_run(hours: float | None, text: str) -> None:
    assert time_text(hours) == text
