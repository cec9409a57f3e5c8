"""Interpolation on another grid: landmarks stay where they are in world mm."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from func.phantom import infant_brain
from func.scans.nifti import read_volume
from func.scans.resampling import resample


@pytest.fixture(scope="module")
def brain() -> nib.Nifti1Image:
    """A newborn's T1w on an isotropic grid."""
    return infant_brain((64, 72, 64), age_months=0).t1


def blob(shape, affine, center, sigma=3.0) -> nib.Nifti1Image:
    """A Gaussian around a point in world mm."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    distance = np.linalg.norm(world - np.asarray(center), axis=-1)
    return nib.Nifti1Image((100 * np.exp(-((distance / sigma) ** 2) / 2)).astype(np.float32), affine)


def center_of_mass(array, affine) -> np.ndarray:
    return apply_affine(affine, np.average(np.indices(array.shape).reshape(3, -1).T, axis=0, weights=array.ravel()))


TURN = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix()
GRIDS = {
    "oblique": TURN @ np.diag([1.1, 0.9, 1.0]),
    "left-handed": np.diag([-1.0, 1.0, 1.0]),
    "axes permuted": np.diag([1.0, 1.2, 0.8])[:, [2, 0, 1]],
    "five-fold thick": TURN @ np.diag([1.0, 1.0, 5.0]),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_a_landmark_stays_where_it_was(tmp_path, grid, form, extension):
    landmark, shape = np.array([-9.0, 5.0, 3.0]), np.array([44, 44, 44])
    if grid == "five-fold thick":
        shape[2] = 11
    affine = from_matvec(GRIDS[grid], -GRIDS[grid] @ ((shape - 1) / 2))
    image = blob(tuple(shape), affine, landmark, sigma=5.0 if shape[2] == 11 else 3.0)
    image.set_sform(affine, 2 if form == "sform" else 0)
    image.set_qform(affine if form == "qform" else None, 1 if form == "qform" else 0)
    nib.save(image, tmp_path / f"scan{extension}")
    by = from_matvec(Rotation.from_euler("xyz", (10, 20, -5), degrees=True).as_matrix(), (2, -3, 1))
    target = from_matvec(np.eye(3), (-24, -24, -24))
    array = resample(read_volume(tmp_path / f"scan{extension}"), (48, 48, 48), target, by)
    expected = apply_affine(np.linalg.inv(by), landmark)
    assert np.linalg.norm(center_of_mass(array, target) - expected) < 0.2
    assert array.dtype == np.float32 and array.min() >= 0


def test_left_stays_left(brain):
    affine = from_matvec(np.diag([-1.0, 1.0, 1.0]), apply_affine(brain.affine, [63, 0, 0]))
    flipped = resample(brain, brain.shape, affine)
    np.testing.assert_allclose(flipped[::-1], brain.get_fdata(), atol=1e-2)


def test_the_own_grid_gives_the_own_values(brain):
    for order in (0, 1, 3):
        result = resample(brain, brain.shape, brain.affine, order=order)
        np.testing.assert_allclose(result, brain.get_fdata(), atol=1e-2)


def test_half_a_slice_beyond_the_outermost_centre_belongs_to_the_scan():
    image = nib.Nifti1Image(np.full((8, 8, 6), 7.0, np.float32), np.diag([1.0, 1, 4, 1]))
    column = resample(image, (1, 1, 32), from_matvec(np.eye(3), (4, 4, -4)))[0, 0]
    inside = (np.arange(32) - 4 >= -2) & (np.arange(32) - 4 <= 22)
    np.testing.assert_allclose(column[inside], 7.0, rtol=1e-5)
    assert not column[~inside].any()


def test_air_that_is_zero_stays_zero():
    array = np.zeros((20, 20, 20), np.float32)
    array[8:12, 8:12, 8:12] = 100
    result = resample(nib.Nifti1Image(array, np.eye(4)), (20, 20, 20), from_matvec(np.eye(3), (0.4, 0.4, 0.4)))
    assert not result[:6].any() and not result[13:].any() and result[9, 9, 9] > 50


def test_negative_values_are_kept_where_the_scan_has_them():
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32), np.eye(4))
    assert resample(image, (9, 9, 9), np.eye(4)).min() < 0


@pytest.mark.parametrize("threads", ["1", "4"])
def test_threads_change_nothing_and_air_is_linear(brain, monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    axes = Rotation.from_euler("xyz", (25, -10, 15), degrees=True).as_matrix() @ np.diag([1, -1.1, 2.5])
    affine = from_matvec(axes, apply_affine(brain.affine, [32, 36, 32]) - axes @ [34, 30, 14])
    array, to_voxels = np.asarray(brain.dataobj), np.linalg.inv(brain.affine) @ affine
    voxels = apply_affine(to_voxels, np.moveaxis(np.indices((68, 60, 28)), 0, -1))
    inside = ((voxels >= -0.5) & (voxels <= np.array(array.shape) - 0.5)).all(axis=-1)
    places = np.moveaxis(np.clip(voxels, 0, np.array(array.shape) - 1), -1, 0)
    cubic, linear = (inside * ndimage.map_coordinates(array, places, order=order, mode="mirror") for order in (3, 1))
    cubic, result = np.maximum(cubic, 0), resample(brain, (68, 60, 28), affine)
    head, tolerance = linear > 0.01 * cubic.max(), 1e-3 * cubic.max()
    assert cubic.max() > 100 and head.any()
    np.testing.assert_allclose(result[head], cubic[head], atol=tolerance)
    missed = np.minimum(np.abs(result - cubic), np.abs(result - linear))
    assert missed[~head].max() < tolerance and not result[linear == 0].any()
