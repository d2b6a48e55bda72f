"""Timed samples onto a regular grid."""

import numpy as np
import pytest

from common.data.resampling import make_session
from tests.unit.data.made_sessions import NO_BOUTS, RATE


def test_a_regular_recording_at_the_grid_rate_is_unchanged():
    values = np.random.default_rng(0).normal(size=(200, 3))
    made = make_session("s", 0.0, np.arange(200) / 50, values, NO_BOUTS, 50.0)
    np.testing.assert_array_equal(made.values, values.astype(np.float32))
    assert made.pieces == ((0, 200),)


def test_uneven_times_are_put_on_the_grid_linearly():
    times = np.arange(100) / RATE + np.random.default_rng(1).uniform(-0.04, 0.04, 100)
    times -= times[0]
    made = make_session(
        "s", 0.0, times, np.stack([3 * times + 1], axis=1), NO_BOUTS, RATE, max_gap_s=1.0
    )
    np.testing.assert_allclose(
        made.values[:, 0], 3 * np.arange(len(made.values)) / RATE + 1, rtol=1e-6
    )


def test_what_was_sampled_faster_is_low_passed_before_it_is_thinned():
    times = np.arange(2000) / 200
    # at 50 Hz, 47 Hz would look like 3 Hz
    slow, fast = np.sin(2 * np.pi * 2 * times), np.sin(2 * np.pi * 47 * times)
    kept = make_session("s", 0.0, times, slow[:, None], NO_BOUTS, 50.0).values[50:-50, 0]
    gone = make_session("s", 0.0, times, fast[:, None], NO_BOUTS, 50.0).values[50:-50, 0]
    np.testing.assert_allclose(kept, slow[::4][50:-50], atol=0.01)
    assert np.abs(gone).max() < 0.01


@pytest.mark.parametrize("times_faster", [1.1, 2, 100, 9999])
def test_the_low_pass_keeps_slow_signals_at_any_ratio(times_faster):
    times = np.arange(int(8 * RATE * times_faster)) / (RATE * times_faster)
    made = make_session("s", 0.0, times, np.sin(2 * np.pi * 0.5 * times)[:, None], NO_BOUTS, RATE)
    np.testing.assert_allclose(
        made.values[5:-5, 0],
        np.sin(2 * np.pi * 0.5 * np.arange(len(made.values)) / RATE)[5:-5],
        atol=0.02,
    )


def test_a_pause_shorter_than_the_given_gap_is_bridged():
    times = np.concatenate([np.arange(50), np.arange(60, 100)]) / RATE
    assert (
        len(make_session("s", 0.0, times, times[:, None], NO_BOUTS, RATE, max_gap_s=2.0).pieces)
        == 1
    )
    assert (
        len(make_session("s", 0.0, times, times[:, None], NO_BOUTS, RATE, max_gap_s=0.5).pieces)
        == 2
    )


def through(rate, frequency, level=9.0, pause=None, seconds=30.0):
    """A sine, clipped at `level`, sampled at `rate` and put on a grid of 50 Hz: (made, truth)."""
    times = np.arange(round(seconds * rate)) / rate
    if pause:
        times = times[(times < pause[0]) | (times > pause[1])]

    def truth(t):
        return np.clip(np.sin(2 * np.pi * frequency * t + 0.7), -level, level)

    made = make_session("s", 0.0, times, truth(times)[:, None], NO_BOUTS, 50.0)
    return made, truth(np.arange(len(made.values)) / 50)


@pytest.mark.parametrize("rate", [31.25, 49.5, 52, 100, 128])
def test_a_component_of_10_hz_keeps_98_percent(rate):
    made, _ = through(rate, 10)
    at = np.arange(len(made.values))[50:-50] / 50
    basis = np.stack([np.sin(20 * np.pi * at), np.cos(20 * np.pi * at)], axis=1)
    parts = np.linalg.lstsq(basis, made.values[50:-50, 0].astype(float), rcond=None)[0]
    assert np.hypot(*parts) > 0.98


@pytest.mark.parametrize("rate", [25, 31.25, 49.5, 100, 1000])
@pytest.mark.parametrize("frequency", [0.5, 2, 5])
def test_nothing_overshoots_where_a_signal_is_clipped_or_has_a_gap(rate, frequency):
    made, truth = through(rate, frequency, level=0.8)
    assert np.abs(made.values).max() <= 0.8 * 1.01
    assert np.abs(made.values[:, 0] - truth)[25:-25].max() < 0.15
    made, truth = through(rate, frequency, pause=(10, 13))
    assert len(made.pieces) == 2
    assert np.nanmax(np.abs(made.values)) <= 1.01
    for begin, end in made.pieces:
        error = np.abs(made.values[begin:end, 0] - truth[begin:end])
        assert error[12:-12].max() < 0.01


def test_long_recordings_are_worked_through_in_blocks_that_cannot_be_seen(monkeypatch):
    times = np.arange(6000) / 80
    values = np.random.default_rng(0).normal(size=(6000, 2)).cumsum(axis=0)
    whole = make_session("s", 0.0, times, values, NO_BOUTS, 50.0).values
    monkeypatch.setattr("common.data.resampling.BLOCK_SAMPLES", 700)
    np.testing.assert_allclose(
        make_session("s", 0.0, times, values, NO_BOUTS, 50.0).values, whole, atol=1e-4
    )


def test_a_regular_clock_in_epoch_seconds_is_exact():
    times = 1_700_000_000.0 + np.arange(500) / 50
    values = np.random.default_rng(0).normal(size=(500, 1))
    made = make_session("s", times[0], times - times[0], values, NO_BOUTS, 50.0)
    np.testing.assert_array_equal(made.values, values.astype(np.float32))


def test_stretches_that_a_clock_does_not_join_stay_apart():
    times = np.arange(100) / RATE
    made = make_session("s", 0.0, times, times[:, None], NO_BOUTS, RATE, joints=(40,))
    assert made.pieces == ((0, 40), (40, 100))


def test_bouts_are_put_on_the_grid_and_their_annotations_kept_apart():
    times = np.arange(100) / RATE
    bouts = np.array([[1.0, 2.0], [2.0, 3.5]])
    made = make_session("s", 0.0, times, times[:, None], bouts, RATE)
    assert made.bouts.tolist() == [[10, 35]]
    assert made.annotations.tolist() == [[10, 20], [20, 35]]
