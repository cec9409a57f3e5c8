"""A GPU gives what a processor gives: samples, networks and whole reconstructions. `make gpu` runs these tests."""

import numpy as np
import pytest
import torch

from func.dataset import ThickSliceSamples
from func.networks.devices import computing
from func.networks.published import FoldedUNet
from func.networks.weights import RECIPES, build_network, load_weights
from func.scans.hub import find_weights
from func.scans.nifti import array_of, image_of
from func.slices.geometry import SliceGeometry, acquire, upsample
from func.training.augmentation import random_shapes
from func.training.subjects import Subject
from networks_for_tests import reconstruct

pytestmark = pytest.mark.gpu

SMALL = {"channels": (4, 6, 8, 10, 12, 14), "num_res_units": 2}


@pytest.fixture(scope="module")
def thick(small_head):
    """The small head's T2w in axial slices of 4 mm, up-sampled, and their geometry."""
    array = array_of(small_head.t2)
    geometry = SliceGeometry.fitting(2, array.shape[2], 4.0)
    return image_of(upsample(acquire(array, geometry), geometry, array.shape[2]), small_head.t2.affine), geometry


@pytest.mark.parametrize("precision, largest, mean", [("float32", 1e-4, 1e-5), ("bfloat16", 0.05, 3e-3)])
def test_reconstructions_agree(gpu, small_head, thick, precision, largest, mean):
    """The bundled weights, in as many runs (--uncertainty); differences over the T2w's 99th percentile."""
    t2, geometry = thick
    weights = load_weights(find_weights("bundled"))
    results = [
        array_of(reconstruct(small_head.t1, t2, weights, geometry, uncertainty=True, **where).image)
        for where in ({"device": "cpu", "precision": "float32"}, {"device": gpu, "precision": precision})
    ]
    difference = np.abs(results[1] - results[0]) / np.percentile(results[0][results[0] > 0], 99)
    assert difference.max() < largest and difference.mean() < mean


@pytest.mark.parametrize("precision, largest", [("float32", 1e-4), ("bfloat16", 0.1)])
def test_the_folded_network_is_the_published_one(gpu, precision, largest):
    torch.manual_seed(0)
    plain = build_network("babyai", **SMALL).eval()
    folded = FoldedUNet(plain.state_dict(), {**RECIPES["babyai"], **SMALL}).eval()
    patches = torch.rand(5, 2, 32, 32, 32)
    with torch.inference_mode():
        expected = plain(patches)
        with computing(gpu, precision):
            found = [network.to(gpu)(patches.to(gpu)).float().cpu() for network in (plain, folded)]
    scale = float(expected.max() - expected.min())
    for output in found:
        assert float((output - expected).abs().max()) < largest * scale


def test_samples_made_on_the_device_are_those_of_a_processor(gpu):
    """All but the noise, which each device draws for itself."""
    t1, t2 = random_shapes((44, 48, 40), np.random.default_rng(0))
    samples = ThickSliceSamples([Subject("01", t1, t2, shape=t2.shape)], [1], 0, patch=24)
    samples.NOISE = samples.T1_NOISE = 0
    numbers = range(8)
    expected, found = samples.batch(numbers), samples.to(gpu).batch(numbers)
    for name, part in expected.items():
        assert found[name].device.type == torch.device(gpu).type
        torch.testing.assert_close(
            found[name].cpu(), part, atol=2e-3, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )
