"""The losses, sample by sample."""

import numpy as np
import pytest
import torch

from func.training.losses import relative_error, squared_error

SIZE = 6


@pytest.fixture
def batch():
    """Two samples without slice geometry, so that the output is the estimate."""
    torch.manual_seed(0)
    return {
        "truth": torch.rand(2, SIZE, SIZE, SIZE),
        "projection": torch.zeros(2, SIZE, SIZE),
        "offset": torch.zeros(2, SIZE, SIZE, SIZE),
        "weight": torch.ones(2, SIZE, SIZE, SIZE),
        "baseline": torch.full((2, 2), 0.1),
    }


def test_an_error_as_large_as_that_of_cubic_interpolation_is_1(batch):
    signs = torch.where(torch.rand(2, SIZE, SIZE, SIZE) > 0.5, 1, -1)
    errors = relative_error((batch["truth"] + 0.1 * signs)[:, None], batch)
    np.testing.assert_allclose(errors, 1, rtol=0.02)


def test_each_sample_is_measured_by_its_own_baseline(batch):
    output = (batch["truth"] + 0.1)[:, None]
    equal = relative_error(output, batch)
    batch["baseline"] = batch["baseline"] * torch.tensor([[1.0], [4.0]])
    easier = relative_error(output, batch)
    assert float(easier[0]) == pytest.approx(float(equal[0]))
    assert float(easier[1]) == pytest.approx(float(equal[1]) / 4, rel=0.02)


def test_voxels_without_weight_do_not_count(batch):
    batch["weight"][..., 4:] = 0
    output = batch["truth"].clone()
    output[..., 4:] += 7
    np.testing.assert_allclose(relative_error(output[:, None], batch), 0, atol=3e-3)
    output[..., :4] += 0.1
    assert (relative_error(output[:, None], batch) > 0.6).all()


def test_what_the_slices_saw_replaces_the_output(batch):
    """With slices of one voxel everything was measured: whatever the network says, the estimate is the truth."""
    batch["projection"] = torch.eye(SIZE).expand(2, -1, -1)
    batch["offset"] = batch["truth"]
    np.testing.assert_allclose(relative_error(torch.rand(2, 1, SIZE, SIZE, SIZE), batch), 0, atol=3e-3)


def test_the_published_loss_is_the_mean_squared_error():
    truth = torch.rand(2, 1, 4, 4, 4)
    offsets = torch.tensor([0.1, 0.3])
    found = squared_error(truth + offsets[:, None, None, None, None], {"truth": truth})
    np.testing.assert_allclose(found, offsets**2, rtol=1e-4)
