"""The interval's calibration: what is known to hold 90 % is found again."""

import numpy as np
import pytest

from func.reconstruction.uncertainty import correlation, coverage, coverage_when_left_out, refit, sampled, stretch

NORMAL_90 = 1.6449  # standard deviations that hold 90 % of a normal distribution


def drawn(constant: float, factor: float, seed: int = 0, count: int = 20_000):
    """Normal errors whose true 90 % half-width is constant + factor * the stated one."""
    rng = np.random.default_rng(seed)
    widths = rng.uniform(0.03, 0.4, count)
    errors = np.abs(rng.standard_normal(count)) * (constant + factor * widths) / NORMAL_90
    return errors, widths


def test_an_interval_that_holds_is_left_alone():
    errors, widths = drawn(0.0, 1.0)
    assert coverage(errors, widths) == pytest.approx(0.9, abs=0.01)
    assert stretch(errors, widths) == pytest.approx(1, abs=0.03)
    constant, factor = refit(errors, widths)
    assert constant == pytest.approx(0, abs=0.005) and factor == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(("constant", "factor"), [(0.02, 1.3), (-0.01, 0.8), (0.0, 2.0)])
@pytest.mark.parametrize("unit", [1.0, 1500.0])
def test_a_wrong_line_is_righted_in_any_unit(constant, factor, unit):
    errors, widths = drawn(constant, factor)
    found = refit(unit * errors, unit * widths)
    assert found[0] / unit == pytest.approx(constant, abs=0.007) and found[1] == pytest.approx(factor, rel=0.05)
    righted = found[0] / unit + found[1] * widths
    for part in (widths < 0.1, widths > 0.3):
        assert coverage(errors[part], righted[part]) == pytest.approx(0.9, abs=0.015)


def test_stretched_half_widths_hold_nine_in_ten():
    errors, widths = drawn(0.02, 1.3)
    assert coverage(errors, stretch(errors, widths) * widths) == pytest.approx(0.9, abs=0.001)


def test_a_subject_unlike_the_others_is_seen_when_left_out():
    subjects = {"01": drawn(0, 1, 1), "02": drawn(0, 1, 2), "03": drawn(0, 2, 3)}
    held = coverage_when_left_out(subjects)
    assert held["03"] < 0.7 and held["01"] > 0.9
    assert coverage_when_left_out({"01": subjects["01"]}) == {}


def test_correlation():
    assert correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)
    assert np.isnan(correlation(np.ones(3), np.arange(3.0)))


def test_samples_are_spread_and_at_the_same_places():
    values = np.arange(100_000)
    np.testing.assert_array_equal(sampled(values, 5), [0, 24999, 49999, 74999, 99999])
    np.testing.assert_array_equal(sampled(2 * values, 50), 2 * sampled(values, 50))
    np.testing.assert_array_equal(sampled(values[:3], 5), values[:3])
