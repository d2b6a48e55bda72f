"""Known numbers in, known numbers out. The expected values are worked out here by hand or by brute
force.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from common.report.statistics import (
    holm,
    median_interval,
    p_text,
    paired,
    ratio_of_means,
    wilcoxon_exact,
)


def brute_force(differences: list[float]) -> float:
    """Two-sided p over all sign patterns of the ranks, counted one by one."""
    sizes = np.array([d for d in differences if d != 0])
    ranks = stats.rankdata(np.abs(sizes))
    observed = ranks[sizes > 0].sum()
    sums = [
        ranks[np.array(signs)].sum()
        for signs in itertools.product([False, True], repeat=len(ranks))
    ]
    below, above = (
        np.mean(np.array(sums) <= observed + 1e-9),
        np.mean(np.array(sums) >= observed - 1e-9),
    )
    return float(min(1.0, 2 * min(below, above)))


def test_ten_gains_of_ten_give_two_in_1024() -> None:
    assert wilcoxon_exact([0.01 * i for i in range(1, 11)]) == pytest.approx(2 / 1024)


def test_one_small_loss_among_seven_gives_four_in_128() -> None:
    # Rank sums of the losses that are at most 1: no loss at all, or the smallest alone.
    assert wilcoxon_exact([0.10, 0.08, 0.06, 0.04, 0.02, -0.01, 0.20]) == pytest.approx(4 / 128)


@pytest.mark.parametrize("seed", range(6))
def test_ties_and_zeros_agree_with_counting_every_sign_pattern(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-3, 5, size=9).astype(float).tolist()
    assert wilcoxon_exact(differences) == pytest.approx(brute_force(differences))


def test_sizes_that_differ_only_by_rounding_are_ties() -> None:
    differences = [0.92 - 0.84, 0.32 - 0.24, -(0.52 - 0.44), 0.3, 0.4, 0.5]
    assert wilcoxon_exact(differences) == pytest.approx(
        brute_force([round(d, 6) for d in differences])
    )


def test_below_six_participants_there_is_no_p() -> None:
    assert wilcoxon_exact([0.1, 0.2, 0.3, 0.4, 0.5]) is None
    assert p_text(None) == "n too small"


def test_without_any_difference_p_is_one() -> None:
    assert wilcoxon_exact([0.0] * 8) == 1.0


def test_holm_steps_down_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_tests_that_could_not_be_made_do_not_count_in_holm() -> None:
    assert holm([None, 0.02, 0.9]) == [None, pytest.approx(0.04), pytest.approx(0.9)]


def test_paired_counts_better_worse_and_unchanged() -> None:
    result = paired([0.1, 0.2, 0.0, -0.1, 0.3, 0.0, 0.4])
    assert (result.n, result.better, result.worse, result.zeros, result.median) == (7, 4, 1, 2, 0.1)
    assert result.low <= result.median <= result.high


def test_the_interval_of_two_participants_is_their_range() -> None:
    middle, low, high = median_interval(np.array([0.4, 0.8]))
    assert (middle, low, high) == pytest.approx((0.6, 0.4, 0.8))


def test_intervals_are_the_same_every_time_and_absent_for_one_participant() -> None:
    values = np.random.default_rng(0).normal(size=9)
    assert median_interval(values) == median_interval(values)
    assert np.isnan(median_interval(values[:1])[1:]).all()


def test_the_interval_covers_95_of_100_medians_of_normal_data() -> None:
    random = np.random.default_rng(3)
    covered = [
        low <= 0 <= high
        for _, low, high in (median_interval(random.normal(size=15)) for _ in range(200))
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_a_share_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    share, low, high = ratio_of_means(np.array([0.1, 0.1]), np.array([0.1, 0.3]))
    assert share == pytest.approx(0.5)  # the mean of the ratios would be .667
    assert low <= share <= high


def test_a_share_of_nothing_is_undefined() -> None:
    assert np.isnan(ratio_of_means(np.array([0.1]), np.array([0.0]))[0])


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "< .001"), (0.002, ".002"), (0.0313, ".031"), (0.25, ".25"), (1.0, "1.00")],
)
def test_p_values_are_printed_as_in_papers(p: float, text: str) -> None:
    assert p_text(p) == text
