"""Uncertainty: wider where flipped runs disagree, none in the air, and about as wide as real errors are."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import inference
from func.networks import weights as networks
from func.networks.weights import Weights, load_weights
from func.reports.scores import brain_mask
from func.scans.bids import find_pairs
from func.scans.nifti import image_of, read_volume
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, acquire, upsample
from networks_for_tests import reconstruct, weights_of


class Lopsided(torch.nn.Module):
    """Adds detail on one side of the volume only, so that a flipped run disagrees there and in its mirror image."""

    def forward(self, inputs):
        proposed = inputs[:, 1:2].clone()
        proposed[:, :, :10, :, ::2] *= 1.2
        return proposed


def thick(t2, axis, thickness):
    array = np.asarray(t2.dataobj)
    geometry = SliceGeometry.fitting(axis, array.shape[axis], thickness)
    return image_of(np.maximum(upsample(acquire(array, geometry), geometry, array.shape[axis]), 0), t2.affine), geometry


@pytest.mark.parametrize("axis", [0, 2])
def test_it_is_wider_where_flipped_runs_disagree(small_head, axis):
    t2, geometry = thick(small_head.t2, axis, 3)
    weights = Weights("compact", Lopsided())
    plain = reconstruct(small_head.t1, t2, weights, geometry, precision="float32")
    result = reconstruct(small_head.t1, t2, weights, geometry, precision="float32", uncertainty=True)
    assert plain.uncertainty is None
    width = result.uncertainty.get_fdata()
    assert result.uncertainty.shape == t2.shape and (result.uncertainty.affine == t2.affine).all()
    assert (
        width.min() == 0 and width[0, 0, 0] == 0 and np.ptp(width[width > 0]) > 0.01 * np.ptp(small_head.t2.get_fdata())
    )


@pytest.mark.parametrize(
    ("asked", "runs"),
    [({}, 1), ({"uncertainty": True}, 4), ({"precision": "bfloat16"}, 1), ({"runs": 2}, 2), ({"runs": 4}, 4)],
)
def test_the_result_is_the_mean_of_all_runs(small_head, asked, runs):
    """Each run lets one voxel shine where the mirrors put it; with no slices known, nothing else changes."""
    seen = []

    class Shining(torch.nn.Module):
        def forward(self, inputs):
            proposed = inputs[:, 1:2].clone()
            proposed[:, 0, 9, 9, 9] += 1
            seen.extend(inputs)
            return proposed

    weights = Weights("compact", Shining())
    result = reconstruct(small_head.t1, small_head.t2, weights, **{"device": "cpu", "precision": "float32"} | asked)
    assert result.report["Computed"]["NetworkRuns"] == len(seen) == runs
    truth = small_head.t2.get_fdata()
    gain = result.image.get_fdata() - truth
    shining = gain[np.abs(gain) > 0.01 * truth.max()]
    assert len(shining) == runs
    np.testing.assert_allclose(shining, np.percentile(truth[truth > 0], 99) / runs, rtol=0.1)


def test_the_command_line_writes_it_beside_the_result(small_head, tmp_path, monkeypatch):
    t2, _ = thick(small_head.t2, 2, 3)
    data = tmp_path / "data"
    data.mkdir()
    nib.save(t2, data / "sub-01_T2w.nii.gz")
    nib.save(small_head.t1, data / "sub-01_T1w.nii.gz")
    monkeypatch.setattr(networks, "load_weights", lambda path: weights_of(Lopsided()))
    monkeypatch.setattr(inference, "find_weights", lambda choice: Path(__file__))
    assert inference.main(["--data-dir", str(data), "--output-dir", str(data), "--uncertainty"]) == 0
    width = read_volume(data / "sub-01_desc-uncertainty_T2w.nii.gz")
    assert width.shape == t2.shape
    sidecar = read_sidecar(data / "sub-01_desc-isotropic_T2w.nii.gz")
    stated = sidecar["Uncertainty"]
    assert sidecar["Seconds"]["Uncertainty"] > 0 and "calibrated" not in str(sidecar["Warnings"])
    assert stated["Map"] == "sub-01_desc-uncertainty_T2w.nii.gz" and stated["MedianPercent"] > 0
    assert 'id="uncertainty-axial"' in (data / "figures" / "sub-01_desc-isotropic_T2w.svg").read_text()
    assert "uncertainty, axial" in (data / "report.html").read_text().lower()
    assert len(find_pairs(data)[0]) == 1
    others = [
        "--data-dir",
        str(data),
        "--output-dir",
        str(data),
        "--uncertainty",
        "--overwrite",
        "--weights",
        "own.pth",
    ]
    assert inference.main(others) == 0
    assert "calibrated for the bundled" in str(read_sidecar(data / "sub-01_desc-isotropic_T2w.nii.gz")["Warnings"])


def test_it_covers_real_errors(real_data):
    """A held-out infant: nine in ten errors inside, give or take; and larger where the error is."""
    t1, t2 = (read_volume(real_data / "pairs" / f"sub-B12_{suffix}.nii.gz") for suffix in ("T1w", "T2w"))
    part = (slice(40, 136), slice(60, 156), slice(50, 114))
    t1, t2 = (image_of(np.asarray(image.dataobj)[part], image.affine) for image in (t1, t2))
    given, geometry = thick(t2, 2, 4)
    bundled = load_weights(inference.REPO_ROOT / "weights" / "compact.pth")
    result = reconstruct(t1, given, bundled, geometry, uncertainty=True)
    truth, estimate, width = (image.get_fdata() for image in (t2, result.image, result.uncertainty))
    inside = brain_mask(truth) & (width > 0)
    error = np.abs(truth - estimate)[inside]
    assert 0.8 < (error <= width[inside]).mean() < 0.97
    assert np.corrcoef(error, width[inside])[0, 1] > 0.3
