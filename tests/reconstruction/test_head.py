"""What the network sees of a case."""

import numpy as np
import pytest
from scipy import ndimage

from func.reconstruction.head import Head
from func.reconstruction.on_grid import case_on_grid
from func.scans.case import Case
from func.scans.nifti import image_of
from func.slices.geometry import SliceGeometry, acquire, upsample


@pytest.mark.parametrize(("off", "moves"), [(0.0, False), (0.5, True), (1.0, True)])
def test_a_t1w_that_lies_a_little_off_is_moved_inside_its_outline(head, off, moves):
    """Both scans were extracted with one mask, but the T1w lies up to a voxel to the side within it."""
    t1, t2 = (np.asarray(scan.dataobj, np.float32) for scan in (head.t1, head.t2))
    mask = (t1 > 0) & (t2 > 0)
    given = np.where(mask, np.maximum(ndimage.shift(t1, (off, 0, 0), order=3), 1), 0)
    geometry = SliceGeometry.fitting(2, t2.shape[2], 4.0)
    thick = upsample(acquire(np.where(mask, t2, 0), geometry), geometry, t2.shape[2])
    case = Case.of(image_of(given, head.t1.affine), image_of(thick, head.t2.affine), geometry.to_sidecar(1.0))
    found = Head.of(case_on_grid(case))
    assert found.t1_offset == pytest.approx(off, abs=0.15)
    same = mask[found.box]
    np.testing.assert_array_equal(found.t1 > 0, given[found.box] > 0)
    inside = ndimage.binary_erosion(same, iterations=4)
    # Of the true T1w and the given one, which it is like.
    fits = [np.corrcoef(found.t1[inside], truth[found.box][inside])[0, 1] for truth in (t1, given)]
    assert (fits[0] > fits[1]) == moves


def test_a_t1w_that_lies_off_with_its_outline_is_moved_with_it(head):
    t1, t2 = (np.asarray(scan.dataobj, np.float32) for scan in (head.t1, head.t2))
    mask = t2 > 0
    given = np.where(ndimage.shift(mask, (0, 1, 0), order=0), ndimage.shift(t1, (0, 1, 0), order=0), 0)
    geometry = SliceGeometry.fitting(2, t2.shape[2], 4.0)
    thick = upsample(acquire(t2, geometry), geometry, t2.shape[2])
    case = Case.of(image_of(given, head.t1.affine), image_of(thick, head.t2.affine), geometry.to_sidecar(1.0))
    found = Head.of(case_on_grid(case))
    shown, true, wrong = (scan > 0.02 * scan.max() for scan in (found.t1, t1[found.box], given[found.box]))
    assert (shown != true).sum() < 0.2 * (wrong != true).sum()
