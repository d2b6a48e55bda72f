"""Augmentation: what changes, by how much, and from the generator alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from common.training.augment import KNOTS, Augment, warp_times


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_windows(count: int = 400) -> torch.Tensor:
    return torch.randn(count, 3, 50, generator=seeded(9))


def changed(augment: Augment, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment(x.clone(), seeded(seed))


NOTHING = {"jitter_std": 0.0, "magnitude_range": (1.0, 1.0), "time_warp_std": 0.0}


@pytest.mark.parametrize(
    "one", [{"jitter_std": 0.1}, {"magnitude_range": (0.5, 0.9)}, {"time_warp_std": 0.3}]
)
def test_each_changes_about_the_share_of_windows_asked_for(one):
    x = some_windows()
    touched = (changed(Augment(**{**NOTHING, **one}, aug_prob=0.3), x) != x).flatten(1).any(dim=1)
    assert 80 < touched.sum() < 160
    assert torch.equal(changed(Augment(**{**NOTHING, **one}, aug_prob=0.0), x), x)


def test_the_generator_alone_decides():
    x = some_windows(20)
    torch.manual_seed(1)
    first = changed(Augment(), x)
    torch.manual_seed(2)
    assert torch.equal(first, changed(Augment(), x))
    assert not torch.equal(first, changed(Augment(), x, seed=1))


def test_jitter_has_the_asked_spread():
    x = some_windows()
    noise = changed(Augment(**{**NOTHING, "jitter_std": 0.25}, aug_prob=1.0), x) - x
    assert abs(float(noise.std()) - 0.25) < 0.01


@pytest.mark.parametrize("with_kernel", [True, False])
def test_jitter_is_relative_to_each_channels_sd_where_it_is_given(with_kernel, monkeypatch):
    if not with_kernel:
        monkeypatch.setattr("common.training.augment.kernel", lambda: SimpleNamespace(library=None))
    x, sd = some_windows(), torch.tensor([1.0, 10.0, 0.1])
    augment = Augment(**{**NOTHING, "jitter_std": 0.25}, aug_prob=1.0).relative_to(sd)
    noise = changed(augment, x) - x
    assert (noise.std(dim=(0, 2)) / sd).tolist() == pytest.approx([0.25] * 3, rel=0.05)


def test_jitter_is_normal_and_white():
    x = torch.zeros(300, 3, 101)
    noise = changed(Augment(**{**NOTHING, "jitter_std": 1.0}, aug_prob=1.0), x).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    assert abs(stats.kurtosis(noise.ravel())) < 0.1
    for one, other in (
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[1:], noise[:-1]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015


def test_neighbouring_samples_get_independent_noise():
    x = torch.zeros(300, 3, 100)
    noise = changed(Augment(**{**NOTHING, "jitter_std": 1.0}, aug_prob=1.0), x).double().numpy()
    tenths = np.floor(stats.norm.cdf(noise) * 10).astype(int)
    for first in (0, 1):  # pairs that are drawn together, and others
        one, other = tenths[..., first:-1:2].ravel(), tenths[..., first + 1 :: 2].ravel()
        together = np.bincount(10 * one + other, minlength=100)
        assert stats.chisquare(together).pvalue > 0.01


def test_magnitude_is_one_factor_a_window_within_the_range():
    x = some_windows()
    factor = changed(Augment(**{**NOTHING, "magnitude_range": (0.5, 0.9)}, aug_prob=1.0), x) / x
    assert 0.5 <= factor.min() < 0.55
    assert 0.85 < factor.max() <= 0.9001
    assert torch.allclose(factor, factor[:, :1, :1].expand_as(factor), atol=1e-5)


def test_a_time_warp_is_the_same_for_all_channels_and_keeps_the_ends():
    ramp = torch.linspace(0, 1, 50).expand(30, 3, 50).clone()
    warped = changed(Augment(**{**NOTHING, "time_warp_std": 0.3}, aug_prob=1.0), ramp)
    assert torch.equal(warped, warped[:, :1].expand_as(warped))
    torch.testing.assert_close(warped[..., 0], ramp[..., 0])
    torch.testing.assert_close(warped[..., -1], ramp[..., -1])
    assert (warped.diff(dim=2) > 0).all()
    assert (warped - ramp).abs().max() > 0.02


def test_warped_time_runs_forward_even_for_wild_knots():
    time = warp_times(torch.randn(200, KNOTS + 2, generator=seeded()) * 3, 77)
    assert (time.diff(dim=1) > 0).all()
    assert (time[:, 0] == 0).all()
    torch.testing.assert_close(time[:, -1], torch.full((200,), 76.0))


def test_equal_knots_do_not_warp():
    torch.testing.assert_close(
        warp_times(torch.ones(1, KNOTS + 2), 31)[0], torch.arange(31.0), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_shortest_windows_pass(samples):
    x = torch.randn(5, 2, samples)
    assert torch.isfinite(changed(Augment(aug_prob=1.0), x)).all()


def test_the_layout_in_memory_does_not_matter():
    x = some_windows(20)
    other = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(Augment(aug_prob=0.6)(other, seeded()), changed(Augment(aug_prob=0.6), x))


def test_each_of_the_three_chooses_its_own_windows():
    x = some_windows()
    both = Augment(**{**NOTHING, "magnitude_range": (0.5, 0.9), "time_warp_std": 0.3}, aug_prob=0.5)
    touched = (changed(both, x) != x).flatten(1).any(dim=1)
    assert 0.65 < touched.float().mean() < 0.85
