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
    tilted = augmentation.tilted_stack(scan, geometry, np.eye(3))
    straight = upsample(acquire(scan, geometry), geometry, SHAPE[2])
    # The splines' boundaries differ; they reach a few slices in.
    np.testing.assert_allclose(tilted[..., 15:-15], straight[..., 15:-15], atol=2e-3)


def test_a_tilted_stack_stays_in_place(scan, rng):
    geometry = SliceGeometry.fitting(2, SHAPE[2], 2)
    tilted = augmentation.tilted_stack(scan, geometry, augmentation.random_rotation(10, rng))
    inner = (slice(12, -12),) * 3
    assert np.corrcoef(tilted[inner].flatten(), scan[inner].flatten())[0, 1] > 0.9


def test_rotations_are_small(rng):
    for _ in range(20):
        rotation = augmentation.random_rotation(10, rng)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.rad2deg(np.arccos((np.trace(rotation) - 1) / 2)) <= 10 + 1e-6


def test_new_contrasts_leave_air_alone(scan, rng):
    curves = [augmentation.random_curve(rng) for _ in range(10)]
    values, slopes = (torch.tensor(np.array(part), dtype=torch.float32) for part in zip(*curves, strict=True))
    changed = augmentation.with_contrast(scan.expand(10, *SHAPE), values, slopes)
    assert changed.isfinite().all() and not changed[:, scan == 0].any() and changed.max() < 5


def test_a_new_contrast_is_one_curve_of_the_old(scan, rng):
    """What numpy.interp makes of the curve, over the brightness that all but half a per cent keep below."""
    values, slope = augmentation.random_curve(rng)
    assert values[0] == 0 and len(values) == augmentation.CURVE_POINTS
    bright = 1.4 * scan
    tensors = (torch.tensor(part, dtype=torch.float32)[None] for part in (values, slope))
    changed = augmentation.with_contrast(bright[None], *tensors)[0]
    expected = np.interp(bright, np.linspace(0, 1.2, len(values)), values) + slope * np.maximum(bright.numpy() - 1.2, 0)
    expected *= (scan > 0).numpy()
    scale = float((changed * torch.from_numpy(expected)).sum() / np.square(expected).sum())
    np.testing.assert_allclose(changed, scale * expected, atol=1e-4)
    assert 1 / scale == pytest.approx(max(np.percentile(expected, 99.5), 0.3), rel=0.1)


def test_some_contrasts_rise_and_some_fall(rng):
    ends = [values[[3, -1]] for values, _ in (augmentation.random_curve(rng) for _ in range(60))]
    falling = np.mean([first > last for first, last in ends])
    assert 0.2 < falling < 0.6


def test_bias_fields_are_smooth_and_near_one(rng):
    coefficients = torch.from_numpy(np.stack([augmentation.bias_coefficients(rng) for _ in range(2)]))
    fields = augmentation.bias_fields(coefficients, (20, 24, 28)).numpy()
    assert not np.allclose(*fields)
    for field in fields:
        assert 0.2 < field.min() < 1 < field.max() < 5
        assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.3
        # Second-order: what is left of its logarithm after a fit of these ten polynomials is nothing.
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in field.shape), indexing="ij")).reshape(3, -1)
        basis = legendre.legvander3d(*grid, (2, 2, 2))
        orders = np.add.outer(np.add.outer(np.arange(3), np.arange(3)), np.arange(3)).ravel()
        _, residual, *_ = np.linalg.lstsq(basis[:, orders <= 2], np.log(field).ravel(), rcond=None)
        assert residual < 1e-6


@pytest.mark.parametrize("own", [False, True])
def test_products_along_all_axes(rng, own):
    """The same matrices for all volumes of a batch, or for each its own."""
    volumes = rng.normal(size=(2, 3, 4, 5))
    matrices = [rng.normal(size=(2, m, n) if own else (m, n)) for m, n in ((6, 3), (2, 4), (7, 5))]
    lines = ["bax" if own else "ax", "bcy" if own else "cy", "bez" if own else "ez"]
    expected = np.einsum(f"bxyz,{','.join(lines)}->bace", volumes, *matrices)
    found = augmentation.along_axes(torch.from_numpy(volumes), matrices)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_shifting_there_and_back():
    field = torch.from_numpy(augmentation.smooth_noise(SHAPE, 3, np.random.default_rng(0)))[None]
    moved = field
    for sign in (1, -1):
        offset = sign * np.array([0.4, -0.3, 0.2])
        matrices = [augmentation.shift_matrix(*one) for one in zip(SHAPE, offset, strict=True)]
        moved = augmentation.along_axes(moved, matrices)
    inner = (0, *(slice(4, -4),) * 3)
    np.testing.assert_allclose(moved[inner], field[inner], atol=5e-3)


def test_a_thick_scan_has_lost_detail_but_no_brightness(scan, rng):
    thick = torch.from_numpy(augmentation.thick_matrix(SHAPE[2], 4.0, rng)).float()
    seen = scan @ thick.T
    roughness = [float(volume.diff(dim=2).square().mean()) for volume in (scan, seen)]
    assert roughness[1] < 0.3 * roughness[0]
    assert float(seen.sum()) == pytest.approx(float(scan.sum()), rel=0.08)


def test_lesions_are_few_small_and_shown_by_one_scan_or_both(rng):
    shown = set()
    for _ in range(30):
        t1, t2 = torch.full((1, *SHAPE), 0.5), torch.full((1, *SHAPE), 0.55)
        lesion = torch.from_numpy(augmentation.random_lesions(np.array([[20, 24, 20]]), rng))
        *changed, lesions = augmentation.with_lesions(t1, t2, lesion[None])
        extents = []
        for scan, before in zip(changed, (t1, t2), strict=True):
            assert torch.equal(scan[lesions == 0], before[lesions == 0]) and lesions.max() == 1
            places = torch.nonzero((scan - before).abs() > 1e-3)
            extents.append(int((places.max(0).values - places.min(0).values).max()) + 1 if len(places) else 0)
        shown.add((extents[0] > 0, extents[1] > 0))
        assert max(extents) <= 15 and changed[0].min() >= 0.05 - 1e-6
    assert shown == {(True, False), (False, True), (True, True)}
    assert (t1 == 0.5).all() and (t2 == 0.55).all()


def test_lesions_lie_where_they_were_drawn():
    """Each case of a batch has its own; one of radius 0 is none."""
    lesions = torch.zeros(2, 2, 9)
    lesions[1, 0] = torch.tensor([10, 30, 22, 4, 2, 3, float("nan"), 0.9, 0])
    scans = torch.full((2, *SHAPE), 0.5)
    t1, t2, covered = augmentation.with_lesions(scans, scans, lesions)
    assert torch.equal(t1, scans) and torch.equal(t2[0], scans[0]) and not covered[0].any()
    places = torch.nonzero(covered[1] == 1).float()
    assert places.mean(0).tolist() == pytest.approx([10, 30, 22], abs=0.01)
    assert (places.max(0).values - places.min(0).values).tolist() == [6, 2, 4]
    assert t2[1, 10, 30, 22] == pytest.approx(0.9)


def test_tissue_shows_through_half_of_the_lesions(rng):
    places = np.tile([20, 24, 20], (200, 1))
    lesions = torch.from_numpy(augmentation.random_lesions(places, rng))
    added = lesions[:, 8] == 1
    assert 70 < added.sum() < 130
    scan = torch.rand((1, *SHAPE)) * 0.1 + 0.5
    for lesion in lesions[lesions[:, 7].isfinite()]:
        _, shown, covered = augmentation.with_lesions(scan, scan, lesion[None, None])
        inside = covered == 1
        texture = scan[inside] if lesion[8] else torch.zeros_like(scan[inside])
        assert torch.allclose(shown[inside], texture + lesion[7].float(), atol=1e-6)


def test_a_lesion_is_never_air():
    """Else the head would have a hole in it."""
    lesion = torch.tensor([20, 24, 20, 4, 4, 4, -0.4, -0.4, 1])[None, None]
    dim = torch.full((1, *SHAPE), 0.3)
    t1, t2, _ = augmentation.with_lesions(dim, dim, lesion)
    assert t1.min() > 0 and t2.min() > 0


def test_noise_is_as_strong_as_asked_for_and_spares_the_air(scan):
    noise = augmentation.noisy(scan, 0.03, 5) - scan
    assert float(noise[scan > 0].std()) == pytest.approx(0.03, rel=0.02)
    assert not noise[scan == 0].any()
    assert torch.equal(augmentation.noisy(scan, 0.03, 4), augmentation.noisy(scan, 0.03, 4))
