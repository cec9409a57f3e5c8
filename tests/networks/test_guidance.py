"""What the T1w tells of a stack: its detail, its profile, and whether it lies where the T2w does."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from func.networks.alignment import t1_offset
from func.networks.guidance import Slicing, head_share, likelier_profile, network_inputs, suggested_detail
from func.reports.quality import quality_of
from func.reports.scores import brain_mask, score_brain
from func.slices.geometry import SliceGeometry, acquire, upsample
from networks_for_tests import Unchanged, reconstruct, weights_of


@pytest.fixture(scope="module")
def scans(head):
    """T1w and T2w of an infant in slices along the last axis, cropped to the brain, 0 to about 1."""
    inside = np.argwhere(np.asarray(head.t2.dataobj) > 0)
    box = tuple(slice(low - 6, high + 7) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
    t1, t2 = (np.asarray(scan.dataobj, np.float32)[box] for scan in (head.t1, head.t2))
    return t1 / np.percentile(t1[t1 > 0], 99), t2 / np.percentile(t2[t2 > 0], 99)


def sliced(volume, thickness, profile="box"):
    geometry = SliceGeometry.fitting(2, volume.shape[2], thickness, profile=profile)
    return acquire(volume, geometry), geometry


@pytest.mark.parametrize("thickness", [2.0, 4.0])
@pytest.mark.parametrize("offset", [(0, 0, 0), (0, 1, 0), (-1.5, 0, 0.6), (0, 0, -2)])
def test_a_moved_t1w_is_noticed(scans, thickness, offset):
    t1, t2 = scans
    slices, geometry = sliced(t2, thickness)
    found = t1_offset(ndimage.shift(t1, offset, order=1), slices, geometry)
    np.testing.assert_allclose(found, -np.array(offset), atol=0.25)


def test_a_t1w_of_something_else_stays_where_it_is(scans):
    t1, t2 = scans
    slices, geometry = sliced(t2, 3.0)
    other = np.random.default_rng(0).random(t1.shape).astype(np.float32) * (t1 > 0)
    assert np.abs(t1_offset(other, slices, geometry)).max() <= 0.5


@pytest.mark.parametrize("profile", ["box", "point"])
def test_the_profile_is_told_apart(scans, profile):
    t1, t2 = scans
    slices, geometry = sliced(t2, 4.0, profile)
    assert likelier_profile(t1, slices, geometry) == profile


def test_the_suggested_detail_is_nearer_the_truth(scans):
    t1, t2 = scans
    slices, geometry = sliced(t2, 4.0)
    cubic = upsample(slices, geometry, t2.shape[2])
    scans = [torch.from_numpy(scan) for scan in (t1, slices)]
    detail, t1_detail = (part.numpy() for part in suggested_detail(*scans, Slicing.of(geometry, scans[0])))
    assert np.square(cubic + detail - t2).mean() < 0.7 * np.square(cubic - t2).mean()
    np.testing.assert_allclose(acquire(t1_detail, geometry), acquire(t1, geometry) * 0, atol=0.2)


def test_without_a_t1w_nothing_is_suggested(scans):
    t1, t2 = scans
    slices, geometry = sliced(t2, 3.0)
    cubic = upsample(slices, geometry, t2.shape[2])
    told, alone = (network_inputs(scan, cubic, slices, geometry) for scan in (t1, None))
    np.testing.assert_array_equal(alone[2:5], told[2:5])
    np.testing.assert_array_equal(alone[1], cubic)
    assert not alone[0].any() and not alone[5:].any()
    assert np.abs(told[1] - cubic).max() > 0.1


def test_the_head_is_what_is_not_air():
    """As SciPy's morphology tells it: specks of dark inside are head, the dark outside and what is zero are air."""
    rng = np.random.default_rng(0)
    distance = np.linalg.norm(np.indices((30, 32, 34)) - 16, axis=0)
    t1 = np.where(distance < 11, 0.5, 0).astype(np.float32)
    t1[(distance < 8) & (rng.random(t1.shape) < 0.1)] = 0.01
    t1[12:18, 12:18, 12:18] = 0.01
    t1[16, 16, 16] = 0
    share = head_share(torch.from_numpy(t1)).numpy()
    dark = t1 <= 0.02
    head = ~((t1 == 0) | ndimage.binary_opening(dark))
    deep = ndimage.binary_erosion(head, np.ones((3, 3, 3)), border_value=1)
    assert (share[deep] == 1).all() and (share[~head] == 0).all()
    assert (head & dark).any() and not head[13:17, 13:17, 13:17].any() and not (head & (distance > 11)).any()


def test_a_t1w_off_the_t2w_costs_little_and_is_warned_of(scans):
    t1, t2 = scans
    slices, geometry = sliced(t2, 4.0)
    cubic = upsample(slices, geometry, t2.shape[2])
    moved = ndimage.shift(t1, (0, 0, 1.5), order=1)
    there, off, low = (nib.Nifti1Image(array, np.eye(4)) for array in (t1, moved, cubic))
    gains = {}
    for name, scan in (("there", there), ("off", off)):
        result = reconstruct(scan, low, weights_of(Unchanged()), geometry)
        gains[name] = score_brain(t2, np.asarray(result.image.dataobj), brain_mask(t2)).psnr
        quality, warnings = quality_of(scan, low, result.report)
        assert any("mm off the T2w" in warning for warning in warnings) == (name == "off")
        assert quality["T1wOffset"] == pytest.approx(1.5 if name == "off" else 0, abs=0.3)
    assert gains["off"] > gains["there"] - 1
    assert gains["off"] > score_brain(t2, cubic, brain_mask(t2)).psnr
