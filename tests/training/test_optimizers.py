"""Optimisers, learning rate and the running mean of the weights."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from func.dataset import ThickSliceSamples
from func.networks.compact import CompactNet
from func.training.augmentation import random_shapes
from func.training.losses import relative_error
from func.training.optimizers import KernelMuon, learning_rate_at, make_optimizers, mean_of_weights, set_learning_rate
from func.training.subjects import Subject


def test_the_learning_rate_warms_up_and_falls():
    settings = {"learning_rate": 2.0, "warm_up": 10, "floor": 0.1}
    rates = [learning_rate_at(step, step / 1000, settings) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2, rel=1e-3)
    assert max(rates) == rates[9] == pytest.approx(2, rel=1e-3)
    assert rates[-1] == pytest.approx(0.2, rel=1e-2)
    assert learning_rate_at(500, 0.5, {"learning_rate": 1e-4, "warm_up": 0, "floor": 1.0}) == 1e-4


def test_the_last_layer_and_the_biases_take_half_the_learning_rate():
    network = CompactNet(channels=(4, 4), blocks=(1, 1))
    optimizers = make_optimizers(network, {"recipe": "compact", "learning_rate": 0.3})
    set_learning_rate(optimizers, 0.1)
    rates = {
        parameter: group["lr"] for each in optimizers for group in each.param_groups for parameter in group["params"]
    }
    named = dict(network.named_parameters())
    assert len(rates) == len(named)
    for name, parameter in named.items():
        kernel = parameter.dim() == 5 and not name.startswith("head.")
        assert rates[parameter] == pytest.approx(0.1 if kernel else 0.05), name


def test_the_compact_network_learns_a_batch_by_heart():
    t1, t2 = random_shapes((32, 32, 32), np.random.default_rng(0))
    samples = ThickSliceSamples([Subject("1", t1, t2, shape=t2.shape)], [1], 0, patch=16)
    batch = default_collate([samples[number] for number in range(2)])
    torch.manual_seed(0)
    network = CompactNet(channels=(8, 8), blocks=(1, 1))
    optimizers = make_optimizers(network, {"recipe": "compact", "learning_rate": 3e-3})
    errors = []
    for _ in range(40):
        error = relative_error(network(batch["inputs"]), batch).mean()
        network.zero_grad()
        error.backward()
        for optimizer in optimizers:
            optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.87 * errors[0]  # 0.81 to 0.83 from three seeds


def test_muon_on_kernels_is_pytorchs_muon_on_matrices():
    torch.manual_seed(0)
    for kernel in (torch.nn.Conv3d(3, 4, 3).weight, torch.nn.Conv3d(2, 64, 2).weight):
        matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
        ours = KernelMuon([kernel], lr=0.1)
        theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0, adjust_lr_fn="match_rms_adamw")
        before = matrix.detach().clone()
        for _ in range(3):
            kernel.grad = torch.randn(kernel.shape)
            matrix.grad = kernel.grad.flatten(1).clone()
            ours.step()
            theirs.step()
        # PyTorch's steps are as exact as bfloat16 is.
        difference = (kernel.detach().flatten(1) - matrix.detach()).norm()
        assert difference < 0.05 * (matrix.detach() - before).norm()


def test_the_mean_of_the_weights_is_exponential_once_it_is_warm():
    """With a decay of 0.9 the first 36 steps are averaged by 4 / (step + 4), the others by 0.1."""
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(5.0)
    averaged = mean_of_weights(network, 0.9)
    expected = 5.0
    for step in range(1, 80):
        network.weight.data.fill_(float(step % 7))
        averaged.update_parameters(network)
        expected += (step % 7 - expected) * max(0.1, 4 / (step + 4))
        assert float(averaged.module.weight) == pytest.approx(expected, rel=1e-5)


def test_without_averaging_the_mean_is_the_network_itself():
    network = torch.nn.Linear(3, 3)
    averaged = mean_of_weights(network, 0.0)
    network.weight.data.normal_()
    averaged.update_parameters(network)
    assert torch.equal(averaged.module.weight, network.weight)
    assert not averaged.module.weight.requires_grad and network.weight.requires_grad
