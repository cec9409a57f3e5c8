"""Slices oblique to the grid: their normal, spacing and place are found, and what is no such stack is let be."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

import inference
from func.networks import weights
from func.networks.weights import Weights
from func.reports.quality import quality_of
from func.reports.scores import brain_mask, score_brain
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry
from func.slices.oblique import find_oblique_stack
from func.training.augmentation import tilted_stack
from networks_for_tests import reconstruct


class SuggestedDetail(torch.nn.Module):
    """A network that proposes the T2w with the detail that the T1w suggests, as its input has it."""

    def forward(self, inputs):
        return inputs[:, 1:2]


WEIGHTS = Weights("compact", SuggestedDetail().eval())
TURN = Rotation.from_rotvec(np.deg2rad([4.0, -5.0, 3.0])).as_matrix()


@pytest.fixture(scope="module")
def scans(head):
    """T1w and T2w of a whole infant as arrays, cropped to the brain."""
    t1, t2 = (np.asarray(scan.dataobj, np.float32) for scan in (head.t1, head.t2))
    inside = np.argwhere(t2 > 0)
    box = tuple(slice(low - 4, high + 5) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
    return t1[box], t2[box] / np.percentile(t2[t2 > 0], 99)


def turned_stack(volume, axis, spacing, noise=0.0):
    """The volume as slices across one of its axes, turned by TURN against it, show it; and the slices' geometry."""
    order = [other for other in range(3) if other != axis] + [axis]
    volume = volume.transpose(order)
    geometry = SliceGeometry.fitting(2, volume.shape[2], spacing)
    scan = torch.from_numpy(np.ascontiguousarray(volume))
    stack = tilted_stack(scan, geometry, TURN, noise).numpy()
    return np.maximum(stack, 0).transpose(np.argsort(order)), geometry, order


@pytest.mark.parametrize(("axis", "spacing", "noise"), [(0, 4.0, 0.0), (1, 2.0, 0.0), (2, 3.3, 0.0), (2, 4.0, 0.01)])
def test_a_turned_stack_is_found(scans, axis, spacing, noise):
    volume, geometry, order = turned_stack(scans[1], axis, spacing, noise)
    found = find_oblique_stack(volume)
    normal = TURN[:, 2][np.argsort(order)]
    assert np.rad2deg(np.arccos(min(1, abs(found.axes[:, 2] @ normal)))) < 0.15
    assert found.spacing == pytest.approx(spacing, rel=2e-3)
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(3), atol=1e-9)
    # The point that was found lies in the middle of a slice.
    middle = (np.array(volume.shape)[order] - 1) / 2
    height = (TURN.T @ (found.center[order] - middle) + middle)[2]
    slices = (height - geometry.first_center) / spacing
    assert abs(slices - round(slices)) * spacing < 0.15


def test_what_is_no_such_stack_is_let_be(scans):
    isotropic = scans[1]
    assert find_oblique_stack(isotropic) is None
    assert find_oblique_stack(ndimage.gaussian_filter(isotropic, 1.0)) is None
    assert find_oblique_stack(ndimage.gaussian_filter(isotropic, (0, 0, 2.0))) is None
    assert find_oblique_stack(np.random.default_rng(0).random((64, 64, 64))) is None
    assert find_oblique_stack(np.zeros((16, 16, 16), np.float32)) is None
    assert find_oblique_stack(np.pad(np.ones((2, 3, 4), np.float32), 3)) is None


def test_it_is_reconstructed_along_its_slices(scans):
    t1, truth = scans
    volume, *_ = turned_stack(truth, 2, 4.0)
    # A file with its axes in another order, one of them reversed.
    axes = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]])
    turn = nib.orientations.io_orientation(nib.affines.from_matvec(axes, np.zeros(3)))
    affine = nib.affines.from_matvec(np.eye(3), [10, -20, 30])
    t1_image, t2_image, truth_image = (
        nib.Nifti1Image(array.astype(np.float32), affine).as_reoriented(turn) for array in (t1, volume, truth)
    )
    result = reconstruct(t1_image, t2_image, WEIGHTS)
    assert result.report["SliceGeometry"]["Source"] == "recovered from the volume, oblique to its grid"
    assert result.report["SliceGeometry"]["SpacingBetweenSlices"] == pytest.approx(4, rel=2e-3)
    np.testing.assert_array_equal(result.image.affine, t2_image.affine)
    truth = np.asarray(truth_image.dataobj)
    mask = brain_mask(truth)
    cubic, gained = (score_brain(truth, np.asarray(scan.dataobj), mask) for scan in (t2_image, result.image))
    assert gained.psnr > cubic.psnr + 1 and gained.ssim > cubic.ssim
    quality, _ = quality_of(t1_image, t2_image, result.report)
    assert quality["Obliqueness"] == pytest.approx(np.rad2deg(np.arccos(TURN[2, 2])), abs=0.2)
    assert quality["SliceThickness"] == pytest.approx(4, rel=2e-3)
    stated = reconstruct(t1_image, t2_image, WEIGHTS, sidecar={"SliceThickness": 3.0}).report["SliceGeometry"]
    assert stated["SliceThickness"] == 3 and stated["SpacingBetweenSlices"] == pytest.approx(4, rel=2e-3)
    # The residual lies where the slices do.
    seen = nib.affines.apply_affine(result.residuals[0].affine, [[0, 0, 0], [0, 0, 1]])
    assert np.linalg.norm(seen[1] - seen[0]) == pytest.approx(4, rel=2e-3)


def test_the_command_line_tells_of_it(scans, tmp_path, monkeypatch):
    t1, truth = scans
    volume, *_ = turned_stack(truth, 1, 3.0)
    for name, array in (("T1w", t1), ("T2w", volume)):
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / f"sub-01_{name}.nii.gz")
    monkeypatch.setattr(weights, "load_weights", lambda path: WEIGHTS)
    assert inference.main(["--data-dir", str(tmp_path), "--output-dir", str(tmp_path), "--uncertainty"]) == 0
    sidecar = read_sidecar(tmp_path / "sub-01_desc-isotropic_T2w.nii.gz")
    assert "oblique" in sidecar["SliceGeometry"]["Source"] and sidecar["Quality"]["Plane"] == "coronal"
    assert (tmp_path / "sub-01_desc-uncertainty_T2w.nii.gz").exists()
    assert "oblique" in (tmp_path / "report.html").read_text()
