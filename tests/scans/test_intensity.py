"""Normalisation is the published one, has an exact inverse, and keeps what is brightest."""

import numpy as np
import pytest

from func.errors import BabyAIError
from func.scans.intensity import Scale, published_normalise, scale_of, zero_based_scale


@pytest.fixture
def scan():
    array = np.random.default_rng(0).gamma(2.0, 200.0, (24, 24, 24)).astype(np.float32)
    array[:6] = 0
    array[12:14, 12:14, 12:14] = 9000  # bright CSF
    return array


def test_published_normalisation_follows_its_definition(scan):
    low, high = np.percentile(scan[scan > 0], (1, 99))
    expected = np.clip((scan - low) / (high - low + 1e-6), 0, 1)
    np.testing.assert_allclose(published_normalise(scan), expected, atol=1e-6)
    assert published_normalise(scan).dtype == np.float32


def test_padding_with_zeros_does_not_change_the_scale(scan):
    assert scale_of(np.pad(scan, 5)) == scale_of(scan)


@pytest.mark.parametrize("choose", [scale_of, zero_based_scale])
def test_scale_and_its_inverse_return_the_scan(scan, choose):
    scale = choose(scan)
    np.testing.assert_allclose(scale.invert(scale.apply(scan)), scan, rtol=1e-5, atol=1e-3)


def test_csf_above_the_99th_percentile_survives_the_zero_based_scale(scan):
    scale = zero_based_scale(scan)
    normalised = scale.apply(scan)
    assert normalised.min() == 0 and normalised.max() > 1
    np.testing.assert_allclose(scale.invert(normalised).max(), 9000, rtol=1e-5)
    assert scale_of(scan).invert(published_normalise(scan)).max() < 5000  # the published one flattens it


def test_rounding_in_the_air_does_not_change_the_zero_based_scale(scan):
    air = np.abs(np.random.default_rng(0).normal(0, 1e-10, (40, *scan.shape[1:]))).astype(np.float32)
    assert zero_based_scale(np.concatenate([scan, air])) == zero_based_scale(scan)


def test_scale_serves_torch_tensors(scan):
    torch = pytest.importorskip("torch")
    scale = Scale(10.0, 110.0)
    np.testing.assert_allclose(scale.apply(torch.from_numpy(scan)).numpy(), scale.apply(scan))


@pytest.mark.parametrize("normalise", [published_normalise, zero_based_scale])
def test_a_volume_without_signal_is_refused(normalise):
    with pytest.raises(BabyAIError, match="no voxel above zero"):
        normalise(-np.ones((4, 4, 4), np.float32))
