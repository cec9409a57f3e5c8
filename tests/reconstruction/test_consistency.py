"""Agreement with the slices: noise is damped, a soft scan keeps its softness, bad slices are left out."""

import numpy as np
import pytest

from func.reconstruction.consistency import agree_with_slices, bad_slices, share_to_keep
from func.scans.nifti import array_of, image_of
from func.slices.geometry import SliceGeometry, acquire, measured_slices, upsample
from networks_for_tests import Unchanged, reconstruct, weights_of

SHAPE = (64, 64, 40)
GEOMETRY = SliceGeometry.fitting(2, SHAPE[2], 4)


@pytest.fixture(scope="module")
def textured():
    """A ball with detail of 3 voxels in all directions, 0 to about 1."""
    x, y, z = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    inside = (x / 28) ** 2 + (y / 28) ** 2 + (z / 19) ** 2 < 1
    detail = np.random.default_rng(0).normal(size=SHAPE)
    for axis in range(3):
        detail = (np.roll(detail, 1, axis) + detail + np.roll(detail, -1, axis)) / 3
    return np.where(inside, 0.6 + 0.5 * detail / detail.std() * 0.2, 0).clip(0).astype(np.float32)


def test_noise_in_the_slices_is_damped(textured):
    """Where the network is right and the slices are noisy, their noise does not come through whole."""
    slices = acquire(textured, GEOMETRY)
    noise = np.random.default_rng(1).normal(scale=0.05, size=slices.shape).astype(np.float32)
    noisy = slices + noise
    volume, agreement = agree_with_slices(textured, upsample(noisy, GEOMETRY, SHAPE[2]), noisy, GEOMETRY)
    assert agreement.damping > 1 and agreement.noise == pytest.approx(0.05, rel=0.3)
    head = slices > 0.3
    assert np.std((acquire(volume, GEOMETRY) - slices)[head]) < 0.4 * np.std(noise[head])


def test_without_noise_the_slices_are_met(textured):
    slices = acquire(textured, GEOMETRY)
    wrong = textured * 1.1
    checks = agree_with_slices(wrong, upsample(slices, GEOMETRY, SHAPE[2]), slices, GEOMETRY)[1].checks()
    assert checks["SliceResidualAfter"] < 0.3 * checks["SliceResidualBefore"]


def test_of_a_soft_scan_less_of_the_networks_changes_is_kept(textured):
    x, y, _ = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    soft = np.exp(-(x**2 + y**2) / (2 * 18.0**2)).astype(np.float32)
    thin = SliceGeometry.fitting(2, SHAPE[2], 2)
    share = share_to_keep(acquire(soft, thin), thin)
    assert share < 0.3 and share_to_keep(acquire(textured, GEOMETRY), GEOMETRY) > 0.95
    slices, cubic = acquire(soft, thin), upsample(acquire(soft, thin), thin, SHAPE[2])
    # A change that the slices cannot see.
    change = 0.05 * np.where(np.arange(SHAPE[2]) % 2, 1, -1).astype(np.float32) * (soft > 0.2)
    volume, agreement = agree_with_slices(cubic + change, cubic, slices, thin)
    kept = ((volume - cubic) * change).sum() / np.square(change).sum()
    assert agreement.share == share and kept == pytest.approx(share, abs=0.05)


def scan_of(textured, factors):
    slices = acquire(textured, GEOMETRY)
    for number, factor in factors.items():
        slices[..., number] *= factor
    return slices


@pytest.mark.parametrize(("factors", "expected"), [
    ({}, []), ({5: 0}, [5]), ({3: 1 / 3}, [3]), ({4: 0.3, 5: 0.3}, [4, 5]), ({6: 3}, [6]), ({5: 0.8}, []),
])  # fmt: skip
def test_dark_and_bright_slices_are_found(textured, factors, expected):
    assert bad_slices(scan_of(textured, factors)) == expected


def test_no_slice_of_a_real_scan_is_called_bad(real_data):
    for path in sorted((real_data / "raw").glob("*_acq-axial*_T2w.nii.gz")):
        import nibabel as nib

        slices = array_of(nib.load(path))
        assert bad_slices(slices / np.percentile(slices[slices > 0], 99)) == []


def test_bad_slices_are_named_and_left_out(textured, capsys):
    affine = np.eye(4)
    t1 = image_of(1.2 * (textured > 0) - 0.5 * textured, affine)
    whole, spoilt = (
        image_of(np.maximum(upsample(scan_of(textured, factors), GEOMETRY, SHAPE[2]), 0), affine)
        for factors in ({}, {5: 0.3})
    )
    results = [reconstruct(t1, t2, weights_of(Unchanged()), GEOMETRY) for t2 in (whole, spoilt)]
    assert results[1].report["Checks"]["SlicesLeftOut"] == [5]
    assert "Slices 5 (counted from 0)" in capsys.readouterr().err and "Slices 5" in results[1].warnings[0]
    assert results[0].report["Checks"]["SlicesLeftOut"] == []
    middle = (slice(20, 44), slice(20, 44), slice(20, 24))
    errors = [np.abs(array_of(result.image) - textured)[middle].mean() for result in results]
    spoilt_error = np.abs(array_of(spoilt) - textured)[middle].mean()
    assert errors[1] < 2.5 * errors[0] < spoilt_error


def test_the_residual_map_is_what_the_slices_measured_less_what_the_result_shows(textured):
    noise = np.random.default_rng(2).normal(scale=0.05, size=(*SHAPE[:2], GEOMETRY.count)).astype(np.float32)
    t2 = upsample(700 * (acquire(textured, GEOMETRY) + noise).clip(0), GEOMETRY, SHAPE[2])
    t1 = image_of(1.2 * (textured > 0) - 0.5 * textured, np.eye(4))
    result = reconstruct(t1, image_of(t2, np.eye(4)), weights_of(Unchanged()), GEOMETRY)
    shown = measured_slices(t2, GEOMETRY) - acquire(array_of(result.image), GEOMETRY)
    residual, head = array_of(result.residuals[0]), acquire(textured, GEOMETRY) > 0.3
    assert np.std(residual[head]) > 7  # of the noise's 35
    np.testing.assert_allclose(residual[head], shown[head], atol=2)
