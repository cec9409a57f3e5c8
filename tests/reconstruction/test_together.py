"""Several stacks, or one that moved, as one volume: on a small head, with a network that proposes what it is given."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from func.reconstruction.acquired import RawSettings
from func.reconstruction.reconstructor import Reconstructor
from func.reconstruction.together import PlacedStack, Together
from func.scans.case import Case
from func.scans.registration import Registration
from func.scans.resampling import resample
from networks_for_tests import Unchanged, weights_of
from stacks_for_tests import rigid, scanned, small_head

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
COUNTS = (20, 23, 20)
THICKNESS = 4.0
# T1w and T2w share a world here, so that registration takes no time.
FITS = Registration(np.eye(4), similarity=0.5, sharpness=0.5, mirrored=0.5, overlap=1.0)
ORDER = np.argsort(np.concatenate([np.arange(0, 20, 2), np.arange(1, 20, 2)]))


@pytest.fixture(scope="module")
def head():
    return small_head()


@pytest.fixture(scope="module")
def alone(head):
    """What comes of one axial stack of a head that lay still."""
    return together(head, [stack(head, "axial")])


def stack(head, plane, **how) -> nib.Nifti1Image:
    axis = PLANES[plane]
    return scanned(head[1], axis, THICKNESS, COUNTS[axis], **how)


def case_of(head, stack, registration=FITS) -> Case:
    return replace(Case.of(head[0], stack, {"SliceThickness": THICKNESS}), registration=registration)


def together(head, stacks, t1=True, uncertainty=False, **settings):
    cases = [case_of(head, one) if t1 else Case.of(None, one, {"SliceThickness": THICKNESS}) for one in stacks]
    reconstructor = Reconstructor(weights_of(Unchanged()), uncertainty=uncertainty)
    raw = RawSettings(**settings)
    if len(cases) == 1:
        return reconstructor.reconstruct(cases[0], raw)
    return reconstructor.reconstruct_together(cases, raw)


def error(result, head) -> float:
    """Root-mean-square error 3 mm or more inside the head, over the brightest of the truth."""
    truth = resample(head[1], result.image.shape, result.image.affine)
    inside = ndimage.binary_erosion(truth > 0.05 * truth.max(), iterations=3)
    return float(np.sqrt(np.mean(np.square(np.asarray(result.image.dataobj) - truth)[inside])) / truth.max())


def left_out(result) -> list:
    return [entry["Checks"]["SlicesLeftOut"] for entry in result.report["Stacks"]]


def test_two_planes_are_better_than_one_however_bright_each_is(head, alone):
    axial, coronal = stack(head, "axial", tilt=(8, -5, 3)), stack(head, "coronal", left_handed=True)
    both = together(head, [axial, nib.Nifti1Image(3 * coronal.get_fdata(dtype=np.float32), coronal.affine)])
    assert error(both, head) < 0.85 * error(alone, head)
    checks = [entry["Checks"] for entry in both.report["Stacks"]]
    assert checks[1]["Brightness"] == pytest.approx(3, rel=0.1)
    # A volume of 0.8 mm voxels, in which the slices' places are found, would leave half of it.
    assert all(check["SliceResidualAfter"] < 0.35 * check["SliceResidualBefore"] for check in checks)


@pytest.mark.parametrize(("most_voxels", "voxel"), [(3e7, 0.5), (2e6, 0.67), (1e4, 0.8)])
def test_on_the_finer_grid_a_volume_shows_what_it_showed_where_it_was(head, monkeypatch, most_voxels, voxel):
    """Of a T1w that lies oblique; a large head gets voxels as fine as memory allows."""
    monkeypatch.setattr("func.reconstruction.together._MOST_VOXELS", most_voxels)
    turned = nib.Nifti1Image(np.asarray(head[0].dataobj), rigid((10, -20, 5), (3, -8, 4)) @ head[0].affine)
    placed = PlacedStack.of(case_of((turned,), stack(head, "coronal")), RawSettings(motion="off", min_similarity=0.0))
    joined = Together([placed], RawSettings())
    smooth = nib.Nifti1Image(ndimage.gaussian_filter(head[1].get_fdata(dtype=np.float32), 2), turned.affine)
    before = nib.Nifti1Image(resample(smooth, joined.shape, joined.affine), joined.affine)
    (fine,) = joined.on_finer_grid(np.asarray(before.dataobj)[None])
    assert fine.shape == joined.shape and joined.voxel == pytest.approx(voxel, abs=0.02)
    there = resample(before, joined.shape, joined.affine)
    inside = (slice(20, -20),) * 3
    assert np.abs(fine - there)[inside].max() < 0.01 * there.max()


def test_a_slab_helps_where_it_is_and_harms_nowhere(head, alone):
    both = together(head, [stack(head, "axial"), scanned(head[1], 1, THICKNESS, 8)])
    truth = head[1].get_fdata()
    errors = [np.square(resample(result.image, truth.shape, head[1].affine) - truth) for result in (alone, both)]
    inside = ndimage.binary_erosion(truth > 0.05 * truth.max(), iterations=3)
    middle = np.zeros(truth.shape, bool)
    middle[:, 34:58] = True
    assert errors[1][inside & middle].mean() < 0.75 * errors[0][inside & middle].mean()
    assert errors[1][inside & ~middle].mean() < 1.05 * errors[0][inside & ~middle].mean()


def test_a_slice_that_fits_nowhere_is_left_out_and_named(head):
    stacks = [stack(head, plane) for plane in PLANES]
    clean = error(together(head, stacks, motion="off"), head)
    spoilt = stacks[2].get_fdata(dtype=np.float32)
    spoilt[..., 9] = np.roll(spoilt[..., 9], 14, axis=0)
    result = together(head, [*stacks[:2], nib.Nifti1Image(spoilt, stacks[2].affine)], motion="off")
    assert left_out(result) == [[], [], [9]]
    assert any("9 (counted from 0)" in warning for warning in result.warnings)
    assert error(result, head) < 1.3 * clean


def test_a_jump_in_mid_stack_is_undone(head, alone):
    jump = rigid((2, -3, 2.5), (1.5, -1.0, 2.0))
    poses = np.array([jump if time >= 12 else np.eye(4) for time in ORDER])
    moved = stack(head, "axial", poses=poses)
    off, auto = (together(head, [moved], motion=motion) for motion in ("off", "auto"))
    assert auto.report["Motion"]["Found"]
    assert np.array(auto.report["Motion"]["Poses"]).shape == (20, 4, 4)
    assert auto.residuals[0].shape == moved.shape
    assert error(auto, head) < 0.6 * error(off, head)
    assert error(auto, head) < 1.5 * error(alone, head)


@pytest.mark.parametrize("size", [1, 0.15])
def test_motion_that_the_t1_did_not_show_is_found_upon_the_other_stacks(head, size):
    """The smaller one is less than would be taken for motion upon a T1w."""
    jump = rigid(size * np.array([2, -3, 2.5]), size * np.array([1.5, -1.0, 2.0]))
    poses = np.array([jump if time >= 12 else np.eye(4) for time in ORDER])
    stacks = [stack(head, "coronal"), stack(head, "axial", poses=poses)]
    placed = [PlacedStack.of(case_of(head, one), RawSettings(motion="off")) for one in stacks]
    joined = Together(placed, RawSettings())
    joined.first_volume()
    still, moved = joined.stacks
    assert still.motion is None and moved.motion is not None
    # Slice 10 was acquired before the jump, slice 11 after it.
    found = moved.poses[11] @ np.linalg.inv(moved.poses[10])
    assert np.linalg.norm(apply_affine(found, np.zeros(3)) - jump[:3, 3]) < 0.3 * np.linalg.norm(jump[:3, 3])


def test_a_head_that_lay_still_is_reconstructed_as_if_motion_were_not_looked_for(head, alone):
    off = together(head, [stack(head, "axial")], motion="off")
    assert alone.report["Motion"]["Searched"] and not alone.report["Motion"]["Found"]
    np.testing.assert_array_equal(np.asarray(off.image.dataobj), np.asarray(alone.image.dataobj))


def test_a_motion_that_the_slices_fit_no_better_with_is_not_undone_even_if_asked_for(head, alone):
    on = together(head, [stack(head, "axial")], motion="on")
    assert on.report["Motion"]["Unexplained"] >= 1 and not on.report["Motion"]["Found"]
    assert any("fit best where they lie" in warning for warning in on.warnings)
    np.testing.assert_array_equal(np.asarray(on.image.dataobj), np.asarray(alone.image.dataobj))


def test_stacks_are_joined_without_a_t1(head):
    """One of them moved as a whole: it is registered to the first."""
    whole = rigid((3, 2, -4), (3, -2, 4))
    stacks = [stack(head, "axial"), stack(head, "coronal", poses=np.repeat(whole[None], COUNTS[1], axis=0))]
    result, alone = (together(head, some, t1=False, motion="off") for some in (stacks, stacks[:1]))
    assert any("nothing was inferred" in warning for warning in result.warnings)
    assert error(result, head) < 0.75 * error(alone, head)


def test_each_stack_has_a_map_of_what_the_result_misses_and_the_result_an_uncertainty(head):
    """The maps are in the intensities of the stack, the uncertainty in those of the first."""
    axial, coronal = stack(head, "axial"), stack(head, "coronal")
    coronal = nib.Nifti1Image(3 * coronal.get_fdata(dtype=np.float32), coronal.affine)
    result = together(head, [axial, coronal], uncertainty=True, motion="off")
    checks = [entry["Checks"] for entry in result.report["Stacks"]]
    for scan, axis, residual, check in zip((axial, coronal), (2, 1), result.residuals, checks, strict=True):
        values = np.moveaxis(scan.get_fdata(), axis, 2)
        assert residual.shape == values.shape
        corner = np.insert([5, 7], axis, 9)
        np.testing.assert_allclose(apply_affine(residual.affine, [5, 7, 9]), apply_affine(scan.affine, corner))
        missed = np.asarray(residual.dataobj)[values > 0.05 * values.max()]
        assert np.sqrt(np.mean(missed**2)) < 2 * check["SliceResidualAfter"] * np.percentile(values[values > 0], 99)
        assert 0 < np.abs(missed).max() < 0.5 * values.max()
    width, image = (np.asarray(one.dataobj) for one in (result.uncertainty, result.image))
    assert width.shape == image.shape and (width[image > 0.2 * image.max()] > 0).all()


def test_slices_that_moved_find_their_places_without_a_t1(head):
    jump = rigid((2, -3, 2.5), (1.5, -1.0, 2.0))
    poses = np.array([jump if time >= 12 else np.eye(4) for time in ORDER])
    stacks = [stack(head, "coronal"), stack(head, "axial", poses=poses)]
    off, auto = (together(head, stacks, t1=False, motion=motion) for motion in ("off", "auto"))
    assert [entry["Motion"].get("Found") for entry in auto.report["Stacks"]] == [False, True]
    assert error(auto, head) < 0.8 * error(off, head)


def test_the_result_without_a_t1_holds_what_only_another_stack_shows(head):
    """The first stack is a slab; the second reaches beyond it."""
    slab = scanned(head[1], 2, THICKNESS, 8)
    result = together(head, [slab, stack(head, "coronal")], t1=False, motion="off")
    low, high = apply_affine(result.image.affine, [[0, 0, 0], np.array(result.image.shape) - 1])
    assert low[2] < -30 and high[2] > 30
    truth = resample(head[1], result.image.shape, result.image.affine)
    beyond = np.abs(apply_affine(result.image.affine, np.argwhere(truth > 0))[:, 2]) > 20
    shown = np.asarray(result.image.dataobj)[truth > 0][beyond]
    assert np.corrcoef(shown, truth[truth > 0][beyond])[0, 1] > 0.8


def test_a_stack_that_lies_elsewhere_is_left_out(head, alone):
    coronal, axial = stack(head, "coronal"), stack(head, "axial")
    other = nib.Nifti1Image(np.roll(np.asarray(coronal.dataobj), 25, axis=0), coronal.affine)
    result = together(head, [axial, other], motion="off")
    assert any("another head than the stacks before it" in warning for warning in result.warnings)
    first, second = (one["Checks"] for one in result.report["Stacks"])
    assert not first["SlicesLeftOut"] and len(second["SlicesLeftOut"]) == second["SliceCount"]
    assert first["Weight"] == 1
    assert error(result, head) == pytest.approx(error(alone, head), rel=0.2)
