"""What a notebook calls: wrong arguments are told in a sentence, as wrong options are."""

from pathlib import Path

import numpy as np
import pytest

from func import functions as baby
from func.scans.case import Case
from networks_for_tests import Unchanged, weights_of


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


def test_a_result_must_be_a_nifti_file(tmp_path, small_head):
    with pytest.raises(baby.BabyAIError, match=r"must end in \.nii\.gz or \.nii"):
        baby.save_volume(tmp_path / "result.png", np.ones((2, 2, 2)), np.eye(4))
    with pytest.raises(baby.BabyAIError, match=r"must end in \.nii\.gz or \.nii"):
        baby.save_result(tmp_path / "result", small_head.t2, {})
    assert not list(tmp_path.iterdir())
