"""What is done to scans in training: the numbers SciPy and NumPy give, and nothing beyond what is meant."""

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre
from scipy import ndimage

from func.slices.filters import smooth
from func.slices.geometry import SliceGeometry, acquire, upsample
from func.training import augmentation

SHAPE = (44, 48, 40)


@pytest.fixture(scope="module")
def scan():
    """Random shapes in air."""
    shapes = augmentation.random_shapes(SHAPE, np.random.default_rng(5))[1]
    head = np.zeros(SHAPE, np.float32)
    head[6:-6, 6:-6, 6:-6] = 1
    return torch.from_numpy(shapes * head)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("edge", "mode"), [(False, "constant"), (True, "nearest")])
def test_splines_are_scipys(scan, rng, edge, mode):
    rotation, shape = augmentation.random_rotation(20, rng), (30, 50, 45)
    offset = np.array([3.2, -4.1, 2.7])
    expected = ndimage.affine_transform(scan.numpy(), rotation, offset, shape, order=3, mode=mode)
    for transform in (augmentation.spline_transform, augmentation.affine_transform):
        np.testing.assert_allclose(transform(scan, rotation, offset, shape, edge).numpy(), expected, atol=5e-5)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_smoothing_is_scipys(scan, mode):
    sigmas = (0.7, 2.0, 0)
    expected = ndimage.gaussian_filter(scan.numpy(), sigmas, mode=mode)
    np.testing.assert_allclose(smooth(scan, sigmas, mode).numpy(), expected, atol=1e-5)


def test_a_tilt_of_nothing_is_no_tilt(scan, rng):
    geometry = SliceGeometry.fitting(2, SHAPE[2], 4)
    tilted = augmentation.tilted_stack(scan, geometry, np.eye(3), 0.0, rng)
    straight = upsample(acquire(scan, geometry), geometry, SHAPE[2])
    # The splines' boundaries differ; they reach a few slices in.
    np.testing.assert_allclose(tilted[..., 15:-15], straight[..., 15:-15], atol=2e-3)


def test_a_tilted_stack_stays_in_place(scan, rng):
    geometry = SliceGeometry.fitting(2, SHAPE[2], 2)
    tilted = augmentation.tilted_stack(scan, geometry, augmentation.random_rotation(10, rng), 0.0, rng)
    inner = (slice(12, -12),) * 3
    assert np.corrcoef(tilted[inner].flatten(), scan[inner].flatten())[0, 1] > 0.9


def test_rotations_are_small(rng):
    for _ in range(20):
        rotation = augmentation.random_rotation(10, rng)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.rad2deg(np.arccos((np.trace(rotation) - 1) / 2)) <= 10 + 1e-6


def test_new_contrasts_leave_air_alone(scan, rng):
    for _ in range(10):
        changed = augmentation.random_contrast(scan, rng)
        assert changed.isfinite().all() and not changed[scan == 0].any() and changed.max() < 5


def test_a_new_contrast_is_one_curve_of_the_old(scan):
    """What numpy.interp makes of the knots, over the brightness that all but half a per cent keep below."""
    changed = augmentation.random_contrast(scan, np.random.default_rng(3)).numpy()
    rng = np.random.default_rng(3)
    knots = np.linspace(0, 1.2, rng.integers(3, 7))
    values = rng.uniform(0, 1.2, knots.size)
    if rng.random() < 0.7:
        values.sort()
    values = 0.5 * values + 0.5 * knots * (rng.random() < 2 / 3)
    values[0] = 0
    expected = np.interp(scan.numpy(), knots, values) + rng.random() * np.maximum(scan.numpy() - 1.2, 0)
    expected /= max(np.percentile(expected, 99.5), 0.3)
    np.testing.assert_allclose(changed, expected * (scan.numpy() > 0), atol=2e-3)


def test_bias_fields_are_smooth_and_near_one(rng):
    field = augmentation.bias_field(torch.zeros(20, 24, 28), rng).numpy()
    assert 0.2 < field.min() < 1 < field.max() < 5
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.3
    # Second-order: what is left of its logarithm after a fit of these ten polynomials is nothing.
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in field.shape), indexing="ij")).reshape(3, -1)
    basis = legendre.legvander3d(*grid, (2, 2, 2))
    orders = np.add.outer(np.add.outer(np.arange(3), np.arange(3)), np.arange(3)).ravel()
    _, residual, *_ = np.linalg.lstsq(basis[:, orders <= 2], np.log(field).ravel(), rcond=None)
    assert residual < 1e-6


def test_shifting_there_and_back():
    offset = np.array([0.4, -0.3, 0.2])
    field = torch.from_numpy(augmentation.smooth_noise(SHAPE, 3, np.random.default_rng(0)))
    back = augmentation.shifted(augmentation.shifted(field, offset), -offset)
    np.testing.assert_allclose(back[4:-4, 4:-4, 4:-4], field[4:-4, 4:-4, 4:-4], atol=5e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_thick_scan_loses_detail_along_its_axis_alone(scan, rng, axis):
    thick = augmentation.thick_scan(scan, 4.0, axis, rng)
    roughness = [[float(volume.diff(dim=dim).square().mean()) for dim in range(3)] for volume in (scan, thick)]
    ratios = np.divide(roughness[1], roughness[0])
    assert ratios[axis] < 0.3 and all(ratios[dim] > 1.5 * ratios[axis] for dim in range(3) if dim != axis)
    assert thick.min() >= 0
    assert float(thick.sum()) == pytest.approx(float(scan.sum()), rel=0.08)


def test_lesions_are_few_small_and_shown_by_one_scan_or_both(rng):
    shown = set()
    for _ in range(30):
        t1, t2 = torch.full(SHAPE, 0.5), torch.full(SHAPE, 0.55)
        *changed, lesions = augmentation.with_lesions(t1, t2, np.array([[20, 24, 20]]), rng)
        extents = []
        for scan, before in zip(changed, (t1, t2), strict=True):
            assert torch.equal(scan[lesions == 0], before[lesions == 0]) and lesions.max() == 1
            places = torch.nonzero((scan - before).abs() > 1e-3)
            extents.append(int((places.max(0).values - places.min(0).values).max()) + 1 if len(places) else 0)
        shown.add((extents[0] > 0, extents[1] > 0))
        assert max(extents) <= 15 and changed[0].min() >= 0.1 - 1e-6
    assert shown == {(True, False), (False, True), (True, True)}
    assert (t1 == 0.5).all() and (t2 == 0.55).all()


def test_noise_is_as_strong_as_asked_for_and_spares_the_air(scan, rng):
    noise = augmentation.noisy(scan, 0.03, rng) - scan
    assert float(noise[scan > 0].std()) == pytest.approx(0.03, rel=0.02)
    assert not noise[scan == 0].any()
    assert torch.equal(
        augmentation.noisy(scan, 0.03, np.random.default_rng(4)),
        augmentation.noisy(scan, 0.03, np.random.default_rng(4)),
    )
