"""Scans of a volume in thick slices: what each slice shows, wherever it lies and the head moves."""

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy.spatial.transform import Rotation

from func.scans.nifti import image_of
from func.slices.scanner import grid_around, scan

AFFINE = grid_around((3, -2, 5), (40, 44, 42), (1, 1, 1), (10, 20, -15))


def blob(center, width=5.0):
    """A Gaussian around a point in world mm."""
    places = apply_affine(AFFINE, np.moveaxis(np.indices((40, 44, 42)), 0, -1))
    return image_of(np.exp(-0.5 * np.square((places - center) / width).sum(axis=-1)), AFFINE)


def center_of(image):
    values = np.asarray(image.dataobj, float)
    places = apply_affine(image.affine, np.argwhere(values > 0))
    return np.average(places, axis=0, weights=values[values > 0])


def test_a_grid_lies_around_its_center():
    affine = grid_around((3, -2, 5), (9, 11, 5), (1, -2, 4), (10, 20, -15))
    np.testing.assert_allclose(apply_affine(affine, (4, 5, 2)), (3, -2, 5))
    np.testing.assert_allclose(voxel_sizes(affine), (1, 2, 4))
    assert np.linalg.det(affine) < 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_shows_the_head_where_it_lay(axis):
    sizes = np.where(np.arange(3) == axis, 4.0, 1.0)
    shape = np.where(np.arange(3) == axis, 10, 40)
    affine = grid_around((2, -1, 6), shape, sizes, (-5, 8, 3))
    moved = from_matvec(Rotation.from_rotvec((3, -4, 5), degrees=True).as_matrix(), (2, -3, 1))
    head = blob((4, 0, 7))
    still, moving = scan(head, shape, affine, axis), scan(head, shape, affine, axis, poses=np.repeat([moved], 10, 0))
    assert still.shape == tuple(shape)
    np.testing.assert_allclose(still.affine, affine)
    np.testing.assert_allclose(center_of(still), (4, 0, 7), atol=0.1)
    np.testing.assert_allclose(center_of(moving), apply_affine(moved, (4, 0, 7)), atol=0.1)


@pytest.mark.parametrize("thickness", [2.0, None])
def test_a_slice_is_the_mean_over_its_thickness(thickness):
    """Across its slices a Gaussian of 2 mm has the variance of the box added."""
    affine = grid_around((4, 0, 7), (40, 40, 15), (1, 1, 3), (10, 20, -15))
    profile = np.asarray(scan(blob((4, 0, 7), 2.0), (40, 40, 15), affine, 2, thickness).dataobj, float).sum(axis=(0, 1))
    places = 3.0 * (np.arange(15) - 7)
    variance = np.average(np.square(places), weights=profile)
    assert np.isclose(variance, 4 + (thickness or 3) ** 2 / 12, rtol=0.02)
