"""Known numbers in, known numbers out. The expected values are worked out here by hand or by brute
force.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from common.report.statistics import (
    detectable_shift,
    hodges_lehmann,
    holm,
    median_interval,
    median_level,
    p_text,
    paired,
    pairwise_share,
    rank_biserial,
    signed_rank_level,
    wilcoxon_exact,
)


def brute_force(differences: list[float]) -> tuple[float, float]:
    """One-sided p values (upper, lower) over all sign patterns, counted one by one; zeros are
    ranked, then left out (Pratt).
    """
    values = np.array(differences)
    ranks = stats.rankdata(np.abs(values))[values != 0]
    observed = ranks[values[values != 0] > 0].sum()
    patterns = itertools.product([False, True], repeat=len(ranks))
    sums = np.array([ranks[np.array(signs, dtype=bool)].sum() for signs in patterns])
    return float(np.mean(sums >= observed - 1e-9)), float(np.mean(sums <= observed + 1e-9))


def two_sided(differences: list[float]) -> float:
    """Twice the smaller tail."""
    return min(1.0, 2 * min(brute_force(differences)))


def test_ten_gains_of_ten_give_two_in_1024() -> None:
    assert wilcoxon_exact([0.01 * i for i in range(1, 11)]) == pytest.approx(2 / 1024)


def test_one_small_loss_among_seven_gives_four_in_128() -> None:
    # Rank sums of the losses that are at most 1: no loss at all, or the smallest alone.
    assert wilcoxon_exact([0.10, 0.08, 0.06, 0.04, 0.02, -0.01, 0.20]) == pytest.approx(4 / 128)


@pytest.mark.parametrize("seed", range(6))
def test_ties_and_zeros_agree_with_counting_every_sign_pattern(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-3, 5, size=9).astype(float).tolist()
    assert wilcoxon_exact(differences) == pytest.approx(two_sided(differences))


def test_sizes_that_differ_only_by_rounding_are_ties() -> None:
    differences = [0.92 - 0.84, 0.32 - 0.24, -(0.52 - 0.44), 0.3, 0.4, 0.5]
    assert wilcoxon_exact(differences) == pytest.approx(
        two_sided([round(d, 6) for d in differences])
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
    assert result.estimate.low <= result.estimate.value <= result.estimate.high


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_holds_exactly_the_shifts_that_the_test_does_not_reject(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.normal(0.4, 1, size=8).round(1) * random.integers(0, 2, size=8)).tolist()
    found = hodges_lehmann(values)
    for shift in np.arange(-3, 3, 0.05).round(4):
        kept = two_sided([round(value - shift, 6) for value in values]) > 0.05
        above = shift > found.low + 1e-9 or (shift > found.low - 1e-9 and not found.low_open)
        below = shift < found.high - 1e-9 or (shift < found.high + 1e-9 and not found.high_open)
        assert kept == (above and below), (values, shift, found)


def test_without_ties_the_interval_ends_at_ordered_pairwise_means() -> None:
    values = np.random.default_rng(1).normal(size=12)
    means = np.sort([(a + b) / 2 for i, a in enumerate(values) for b in values[: i + 1]])
    found = hodges_lehmann(values)
    # 14: the critical value of the signed-rank table at n = 12, two-sided .05
    assert (found.low, found.high) == pytest.approx((means[13], means[-14]), abs=1e-9)
    assert found.value == pytest.approx(np.median(means))
    assert found.level == pytest.approx(1 - 2 * 0.02124, abs=1e-5)


def test_four_unchanged_of_ten_leave_zero_out_where_the_test_rejects_it() -> None:
    result = paired([0, 0, 0, 0, 0.1, 0.2, 0.3, 0.05, 0.15, 0.25])
    assert result.p == pytest.approx(2 / 64)
    assert (result.estimate.low, result.estimate.low_open) == (0, True)


def test_the_median_interval_is_a_pair_of_ordered_values_with_its_true_level() -> None:
    values = np.random.default_rng(2).permutation(np.arange(1.0, 16.0))
    found = median_interval(values)
    assert (found.value, found.low, found.high) == (8, 4, 12)
    # both ends miss with the probability of at most 3 heads in 15 throws
    heads = sum(math.comb(15, k) for k in range(4)) / 2**15
    assert found.level == pytest.approx(1 - 2 * heads)
    assert median_level(6) == pytest.approx(1 - 2 / 64)


@pytest.mark.parametrize("n", range(6, 31))
def test_levels_are_at_least_95_percent(n: int) -> None:
    assert 0.95 <= median_level(n) <= 1
    assert 0.95 <= signed_rank_level(n) <= 1


def test_below_six_there_is_no_interval() -> None:
    five = np.arange(5.0)
    for estimate in (median_interval(five), hodges_lehmann(five), pairwise_share(five, five + 1)):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()
    assert np.isnan(median_interval(np.array([])).value)


def test_a_share_is_no_mean_of_ratios() -> None:
    found = pairwise_share(np.array([0.1, 0.1]), np.array([0.1, 0.3]))
    assert found.value == pytest.approx(0.5)  # of 1, .5 and 1/3; the mean of the ratios is .667
    ones = np.ones(9)
    values = np.random.default_rng(4).normal(size=9).round(3)
    same, plain = pairwise_share(values, ones), hodges_lehmann(values)
    assert (same.value, same.low, same.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_a_share_of_nothing_is_undefined() -> None:
    assert np.isnan(pairwise_share(np.array([0.1]), np.array([0.0])).value)


def test_the_effect_size_is_the_favourable_less_the_unfavourable_rank_sum() -> None:
    assert rank_biserial([1, 2, 3]) == 1
    assert rank_biserial([3, -1, -2]) == 0
    assert rank_biserial([0.0, 0.0]) == 0


@pytest.mark.parametrize("n", [6, 12, 20])
def test_a_detectable_shift_is_found_in_four_of_five_samples(n: int) -> None:
    samples = np.random.default_rng(n).normal(detectable_shift(n), 1, size=(600, n))
    found = [stats.wilcoxon(sample, method="exact").pvalue < 0.05 for sample in samples]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "< .001"), (0.002, ".002"), (0.0313, ".031"), (0.25, ".25"), (1.0, "1.00")],
)
def test_p_values_are_printed_as_in_papers(p: float, text: str) -> None:
    assert p_text(p) == text
