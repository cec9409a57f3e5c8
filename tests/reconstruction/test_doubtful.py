"""Stacks whose registration is in doubt: mirrored in their header, of another head, or slabs that are right."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from func.errors import collect_warnings
from func.reconstruction.acquired import RawSettings
from func.reconstruction.doubtful import settled
from func.reconstruction.reconstructor import Reconstructor
from func.scans.case import Case
from func.scans.nifti import image_of
from func.scans.registration import RIGHT, UNSURE, Registration
from networks_for_tests import Unchanged, weights_of
from stacks_for_tests import scanned, small_head

FITS = Registration(np.eye(4), similarity=0.5, sharpness=0.5, mirrored=0.5, overlap=1.0)
IN_DOUBT = replace(FITS, mirrored=1.03)


@pytest.fixture(scope="module")
def head():
    return small_head()


@pytest.fixture(scope="module")
def axial(head):
    return scanned(head[1], 2, 4.0, 20)


@pytest.fixture(scope="module")
def coronal(head):
    return scanned(head[1], 1, 4.0, 23, tilt=(5, 3, -4))


def case_of(head, stack, registration, name="sub-01_T2w.nii.gz") -> Case:
    stack = image_of(np.asarray(stack.dataobj), stack.affine, stack)
    stack.set_filename(name)
    return replace(Case.of(head[0], stack, {"SliceThickness": 4.0}), registration=registration)


def judged(head, axial, doubtful):
    with collect_warnings() as warnings:
        (_, used), judged = settled(
            [case_of(head, axial, FITS), case_of(head, doubtful, IN_DOUBT, "sub-01_acq-other_T2w.nii.gz")]
        )
    assert used
    return *judged, list(warnings)


def test_a_registration_of_its_own_leaves_these_in_doubt():
    assert FITS.verdict == RIGHT and IN_DOUBT.verdict == UNSURE


def test_a_stack_that_its_header_mirrors_is_mirrored_back(head, axial, coronal):
    mirrored = nib.Nifti1Image(np.ascontiguousarray(np.asarray(coronal.dataobj)[::-1]), coronal.affine)
    case, used, warnings = judged(head, axial, mirrored)
    assert used and case.registration.verdict == RIGHT
    assert len(warnings) == 1 and "sub-01_acq-other_T2w" in warnings[0] and "exchanged back" in warnings[0]
    # What is shown at a voxel lies where it was acquired, to within what a registration may be off.
    last = coronal.shape[0] - 1
    for voxel in ([20, 5, 30], [60, 15, 50]):
        there = apply_affine(coronal.affine, voxel)
        shown = apply_affine(case.t2.affine, [last - voxel[0], *voxel[1:]])
        assert np.linalg.norm(apply_affine(np.linalg.inv(case.registration.matrix), shown) - there) < 1.5


def test_a_slab_in_doubt_that_fits_the_others_is_right(head, axial, coronal):
    slab = nib.Nifti1Image(
        np.asarray(coronal.dataobj)[20:60, 4:15], coronal.affine @ from_matvec(np.eye(3), [20, 4, 0])
    )
    case, used, warnings = judged(head, axial, slab)
    assert used and case.registration.verdict == RIGHT and not warnings
    np.testing.assert_array_equal(case.t2.affine, slab.affine)


def test_a_stack_that_fits_nothing_is_left_out_even_if_it_comes_first(head, axial, coronal):
    values = np.asarray(coronal.dataobj)
    other = nib.Nifti1Image(np.where(values > 0, 1.1 * values.max() - values, 0), coronal.affine)
    cases = [case_of(head, other, IN_DOUBT, "sub-02_T2w.nii.gz"), case_of(head, axial, FITS)]
    reconstructor, raw = Reconstructor(weights_of(Unchanged())), RawSettings(motion="off")
    result = reconstructor.reconstruct_together(cases, raw)
    assert any("sub-02_T2w" in warning and "was left out" in warning for warning in result.warnings)
    first, second = (one["Checks"] for one in result.report["Stacks"])
    assert len(first["SlicesLeftOut"]) == first["SliceCount"] and not second["SlicesLeftOut"]
    alone = reconstructor.reconstruct_together(cases[1:], raw)
    np.testing.assert_allclose(np.asarray(result.image.dataobj), np.asarray(alone.image.dataobj), atol=1e-3)


def test_all_are_used_where_none_is_sure(head, axial, coronal):
    cases = [case_of(head, stack, IN_DOUBT) for stack in (axial, coronal)]
    assert [used for _, used in settled(cases)] == [True, True]
