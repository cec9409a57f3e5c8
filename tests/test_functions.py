"""What a notebook calls: wrong arguments are told in a sentence, as wrong options are."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from func import functions as baby
from func.scans.case import Case
from networks_for_tests import Unchanged, weights_of
from stacks_for_tests import scanned
from stacks_for_tests import small_head as brain


def test_one_t2w_need_not_be_in_a_list():
    for t2s in ("t2.nii.gz", Path("t2.nii.gz"), ["t2.nii.gz"]):
        assert baby.one_infant("t1.nii.gz", t2s).stacks == (Path("t2.nii.gz"),)
    with pytest.raises(baby.BabyAIError, match="There is no T2w"):
        baby.one_infant("t1.nii.gz", [])


@pytest.mark.parametrize(("wrong", "told"), [({"space": "mni"}, "'mni' is no space"), ({"runs": 9}, "from 1 to 4")])
def test_a_wrong_argument_is_told_not_taken_for_another(small_head, wrong, told):
    cases = [Case.of(small_head.t1, small_head.t2)]
    with pytest.raises(baby.BabyAIError, match=told):
        baby.reconstruct(cases, weights_of(Unchanged()), **wrong)


def test_a_notebook_reads_scans_as_inference_does(tmp_path):
    t1, t2 = brain()
    nib.save(t1, tmp_path / "t1.nii")
    # Without a place in the header, which nibabel takes to run to the left; this one runs to the right.
    unplaced = nib.Nifti1Image(np.asarray(scanned(t2, 2, 4.0, 20).dataobj), None)
    unplaced.header.set_zooms((1, 1, 4))
    nib.save(unplaced, tmp_path / "t2.nii")
    pair = baby.one_infant(tmp_path / "t1.nii", tmp_path / "t2.nii")
    (on_grid,), (raw,) = baby.read_cases(pair), baby.read_cases(pair, "1mm")
    assert on_grid.registration is None and not any("only mirrored" in told for told in on_grid.warnings)
    assert raw.registration and any("only mirrored" in told for told in raw.warnings)
    assert np.linalg.det(raw.t2.affine) > 0 > np.linalg.det(on_grid.t2.affine)


def test_a_result_must_be_a_nifti_file(tmp_path, small_head):
    with pytest.raises(baby.BabyAIError, match=r"must end in \.nii\.gz or \.nii"):
        baby.save_volume(tmp_path / "result.png", np.ones((2, 2, 2)), np.eye(4))
    with pytest.raises(baby.BabyAIError, match=r"must end in \.nii\.gz or \.nii"):
        baby.save_result(tmp_path / "result", small_head.t2, {})
    assert not list(tmp_path.iterdir())
