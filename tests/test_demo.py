"""The notebook's scans: what each kind is made of."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from func import demo
from func.errors import BabyAIError
from func.phantom import infant_brain
from func.scans.nifti import read_volume
from func.scans.sidecars import read_sidecar


def centre(path) -> np.ndarray:
    """The middle of a head's T2w, in world mm."""
    image = read_volume(path)
    return apply_affine(image.affine, center_of_mass(np.asarray(image.dataobj) > 100))


@pytest.fixture
def small(monkeypatch):
    """A head of less than half the size on smaller grids."""

    def small_brain(shape=(80, 96, 80), affine=None, age_months=3):
        placed = from_matvec(np.eye(3), demo.CENTRE - (np.array(shape) - 1) / 2)
        return infant_brain(shape, placed if affine is None else affine, age_months, size=0.45)

    monkeypatch.setattr(demo, "infant_brain", small_brain)
    monkeypatch.setattr(demo, "FIELD", (76, 88, 76))


def test_stacks_lie_where_the_infant_had_moved_to(small, tmp_path):
    scans = demo.demo_scans("stacks", tmp_path)
    assert [path.name.split("_")[1] for path in scans.t2s] == ["acq-axialraw", "acq-coronalraw", "acq-sagittalraw"]
    assert "digital infant" in scans.infant
    for path, (plane, (_, turn, shift)) in zip(scans.t2s, demo.STACKS.items(), strict=True):
        image, sidecar = nib.load(path), read_sidecar(path)
        sizes = nib.affines.voxel_sizes(image.affine)
        axis = demo.AXIS_ACROSS[plane]
        assert np.isclose(sizes[axis], demo.THICKNESS) and np.allclose(np.delete(sizes, axis), 1)
        assert sidecar["SliceThickness"] == demo.THICKNESS and "FirstSliceCenter" not in sidecar
        moved = from_matvec(Rotation.from_rotvec(turn, degrees=True).as_matrix(), shift)
        assert np.abs(centre(path) - apply_affine(moved, centre(scans.truth))).max() < 0.5


def test_a_kind_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BabyAIError, match="hub, pair, raw or stacks"):
        demo.demo_scans("phantom", tmp_path)


def test_own_scans_are_named_from_the_repository_or_absolutely(tmp_path):
    scans = demo.own_scans(tmp_path, "a_T1w.nii.gz", ["b_T2w.nii.gz", "/c_T2w.nii.gz"], None)
    assert scans.t1 == tmp_path / "a_T1w.nii.gz" and scans.truth is None
    assert [str(path) for path in scans.t2s] == [f"{tmp_path}/b_T2w.nii.gz", "/c_T2w.nii.gz"]
    with pytest.raises(BabyAIError, match="T1W is missing"):
        demo.own_scans(tmp_path, None, "b_T2w.nii.gz", None)
