"""What the same-head check is tried on lies where it should: a part of a scan, and a scan cut anew."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy.spatial.transform import Rotation

from check_same_head import cut_anew, displacements, mirrored, part
from func.scans.nifti import array_of, image_of

AFFINE = from_matvec(
    Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([-1, 1.2, 3]), [9, -4, 2]
)


def brightness(points: np.ndarray) -> np.ndarray:
    """One that tells every place in the world from every other along its gradient."""
    return 500 + points @ [2.0, -3.0, 5.0]


@pytest.fixture(scope="module")
def scan() -> nib.Nifti1Image:
    places = np.moveaxis(np.indices((30, 26, 12)), 0, -1)
    return image_of(brightness(apply_affine(AFFINE, places)), AFFINE)


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (0.8, 0.8, 4.0), (5.0, 1.0, 1.0), (2.5, 2.5, 2.5)])
@pytest.mark.parametrize("degrees", [0, 40])
def test_a_scan_cut_anew_shows_the_same_places(scan, degrees, sizes):
    cut = cut_anew(scan, degrees, sizes)
    np.testing.assert_allclose(voxel_sizes(cut.affine), sizes)
    middle = np.array(cut.shape) // 2  # far from where the scan ends
    corner = np.maximum(1, (3 / np.array(sizes)).astype(int))
    inner = tuple(slice(m - c, m + c + 1) for m, c in zip(middle, corner, strict=True))
    places = np.moveaxis(np.indices(cut.shape), 0, -1)[inner]
    np.testing.assert_allclose(array_of(cut)[inner], brightness(apply_affine(cut.affine, places)), atol=0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_stays_where_it_lies(scan, axis):
    upper = part(scan, axis, 1 / 3, 1)
    assert upper.shape[axis] == round(scan.shape[axis] * 2 / 3)
    places = np.moveaxis(np.indices(upper.shape), 0, -1)
    np.testing.assert_allclose(array_of(upper), brightness(apply_affine(upper.affine, places)), atol=0.01)


def test_what_is_placed_wrong_is_moved_rigidly_and_far(scan):
    middle = apply_affine(scan.affine, (np.array(scan.shape) - 1) / 2)
    moved = {case: apply_affine(by, middle) - middle for case, by in displacements(scan)}
    assert moved["20 mm to the right"] == pytest.approx([20, 0, 0]) and moved["20 mm up"] == pytest.approx([0, 0, 20])
    assert all(moved[case] == pytest.approx([0, 0, 0]) for case in moved if "mm" not in case)
    assert np.array_equal(mirrored(scan), array_of(scan)[::-1])  # whose first axis runs to the left
