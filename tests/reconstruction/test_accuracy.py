"""How accurate the bundled weights are on the phantom: a floor in dB, from which no change may fall."""

import numpy as np
import pytest

import inference
from func.networks.weights import load_weights
from func.reports.scores import brain_mask, score_brain
from func.scans.nifti import array_of, image_of
from func.slices.geometry import SliceGeometry, acquire, upsample
from networks_for_tests import reconstruct

BUNDLED = inference.REPO_ROOT / "weights" / "compact.pth"


# The weights of November 2026 gain 9.3 and 6.7 dB.
@pytest.mark.parametrize(("axis", "noise", "floor"), [(2, 0.0, 7.5), (1, 0.02, 5.0)])
def test_the_bundled_weights_gain_on_cubic_interpolation(head, axis, noise, floor):
    part = tuple(slice(n // 2 - 36, n // 2 + 36) for n in head.t2.shape)
    t1, truth = (array_of(scan)[part] for scan in (head.t1, head.t2))
    geometry = SliceGeometry.fitting(axis, 72, 4)
    slices = acquire(truth, geometry)
    slices += np.random.default_rng(0).normal(scale=noise * truth.max(), size=slices.shape).astype(np.float32)
    cubic = np.maximum(upsample(slices, geometry, 72), 0)
    images = image_of(t1, np.eye(4)), image_of(cubic, np.eye(4))
    result = reconstruct(*images, load_weights(BUNDLED), geometry, device="cpu", precision="float32")
    mask = brain_mask(truth)
    gain = score_brain(truth, array_of(result.image), mask).psnr - score_brain(truth, cubic, mask).psnr
    assert gain > floor
