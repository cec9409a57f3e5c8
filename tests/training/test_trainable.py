"""The network as training begins with it."""

import copy

import torch

from func.networks.weights import build_network
from func.training.losses import squared_error
from func.training.optimizers import make_optimizers
from func.training.trainable import Float32Conv3d, keep_small_maps_in_float32, trainable_network


def test_taps_that_meet_only_padding_are_never_trained():
    """Training the shrunken kernels of the published network is training the network itself."""
    settings = {"recipe": "babyai", "network": {"channels": (2, 3, 4, 5, 6, 7), "num_res_units": 2}}
    settings |= {"init_weights": None, "learning_rate": 1e-2}
    networks = []
    for build in (lambda: build_network("babyai", **settings["network"]), lambda: trainable_network(settings)):
        torch.manual_seed(0)
        networks.append(build())
    plain, shrunken = networks
    assert sum(p.numel() for p in shrunken.parameters()) < 0.7 * sum(p.numel() for p in plain.parameters())
    inputs, truth = torch.rand(2, 2, 32, 32, 32), torch.rand(2, 1, 32, 32, 32)
    for network in networks:
        (optimizer,) = make_optimizers(network, settings)
        for _ in range(3):
            network.zero_grad()
            squared_error(network(inputs), {"truth": truth}).mean().backward()
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(shrunken(inputs), plain(inputs), atol=2e-5, rtol=1e-4)


def test_small_maps_are_kept_out_of_bfloat16():
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3, padding=1), torch.nn.Conv3d(3, 3, 2, stride=2))
    network.append(torch.nn.Conv3d(3, 3, 3, padding=1))
    inputs = torch.rand(1, 2, 4, 4, 4)
    expected = network(inputs)
    keep_small_maps_in_float32(network, inputs)
    kinds = [type(module) for module in network]
    assert kinds == [torch.nn.Conv3d, torch.nn.Conv3d, Float32Conv3d]
    torch.testing.assert_close(network(inputs), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(inputs).dtype == torch.float32
        assert copy.deepcopy(network)[:2](inputs).dtype == torch.bfloat16
