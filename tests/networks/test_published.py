"""The folded network gives what MONAI's network gives, and does less for it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from func.networks.published import (
    FORMS,
    FoldedUNet,
    Reduced,
    can_fold,
    prune,
    pruned,
    pruned_shapes,
    unet_shapes,
)
from func.networks.weights import RECIPES, build_network

SMALL_PUBLISHED = {**RECIPES["babyai"], "channels": (4, 6, 8, 10, 12, 14), "num_res_units": 3}


def network_of(config, patch, seed=0):
    """MONAI's network with random weights, scaled so that every level has a say in the output."""
    torch.manual_seed(seed)
    network = build_network("babyai", **config).eval()
    depth = len(config["channels"]) - 1
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 5:
            # On maps of one or two voxels most of a kernel's taps meet padding, so that the others must be larger.
            size = max(patch >> (name.count("submodule") + 1), patch >> depth)
            met = min(1.0, (1 + 2 * (size > 1)) / 3) ** 3 if tensor.shape[-1] == 3 else 1
            fan_in = tensor[0].numel() * met
            torch.nn.init.normal_(tensor, std=(1.5 / fan_in) ** 0.5)
        elif tensor.shape != (1,) or "bias" in name:
            torch.nn.init.normal_(tensor, std=0.1)
        else:
            tensor.uniform_(0.05, 0.5)
    return network


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        *((kind, n) for kind in ("same", "up") for n in (1, 2, 3, 4)),
        ("down", 2),
        ("down", 4),
    ],
)
def test_forms_are_exact(kind, n):
    outputs, taps, inputs = (torch.from_numpy(matrix.copy()) for matrix in FORMS[kind](n))
    x, w = torch.randn(1, 1, n, dtype=torch.float64), torch.randn(1, 1, 3, dtype=torch.float64)
    expected = {
        "same": lambda: F.conv1d(x, w, padding=1),
        "down": lambda: F.conv1d(x, w, padding=1, stride=2),
        "up": lambda: F.conv_transpose1d(x, w, padding=1, stride=2, output_padding=1),
    }[kind]()
    factors = (taps @ w[0, 0]).repeat_interleave(len(inputs) // len(taps))
    torch.testing.assert_close(outputs @ (factors * (inputs @ x[0, 0])), expected[0, 0])


def test_forms_take_few_products():
    assert [len(FORMS["same"](n)[1]) for n in (1, 2, 3, 4)] == [1, 3, 5, 6]
    assert [len(FORMS["down"](n)[1]) for n in (2, 4)] == [2, 5]
    assert [len(FORMS["up"](n)[1]) for n in (1, 2)] == [2, 5]


@pytest.mark.parametrize(
    "overrides", [{}, {"channels": (4, 4), "strides": (2,), "num_res_units": 1}, {"channels": (3, 5, 5)}]
)
def test_shapes_are_those_of_monai(overrides):
    config = {**RECIPES["babyai"], **overrides}
    config["strides"] = (2,) * (len(config["channels"]) - 1)
    with torch.device("meta"):
        state_dict = build_network("babyai", **config).state_dict()
    assert unet_shapes(config) == {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


@pytest.mark.parametrize(
    ("overrides", "patch"),
    [
        ({}, 32),
        ({"num_res_units": 10, "channels": (4, 4, 5, 5, 6, 6)}, 32),
        ({"channels": (4, 6, 8, 8), "strides": (2, 2, 2)}, 16),
        ({"channels": (4, 6, 8), "strides": (2, 2)}, 32),
        ({"channels": (4, 6), "strides": (2,), "in_channels": 1, "out_channels": 2}, 16),
        ({"channels": (4, 6, 8, 10), "strides": (2, 2, 2)}, 24),
    ],
)
def test_folded_network_gives_what_monai_gives(overrides, patch):
    config = {**SMALL_PUBLISHED, **overrides}
    plain = network_of(config, patch)
    folded = FoldedUNet(plain.state_dict(), config, patch)
    inputs = torch.rand(3, config["in_channels"], patch, patch, patch)
    with torch.inference_mode():
        before = inputs.clone()
        expected, output = plain(inputs), folded(inputs)
    assert torch.equal(inputs, before)
    assert output.shape == expected.shape
    assert (output - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


def test_the_lowest_level_has_a_say_in_what_the_tests_compare():
    plain = network_of(SMALL_PUBLISHED, 32)
    inputs = torch.rand(2, 2, 32, 32, 32)
    with torch.inference_mode():
        with_bottom = plain(inputs)
        bottom = plain.get_submodule("model" + ".1.submodule" * 5)
        for parameter in bottom.parameters():
            parameter.zero_()
        difference = (with_bottom - plain(inputs)).abs().max()
    assert difference > 0.01 * (with_bottom.max() - with_bottom.min())


def test_most_of_the_published_network_never_meets_data():
    config = RECIPES["babyai"]
    with torch.device("meta"):
        whole = {name: torch.empty(shape) for name, shape in unet_shapes(config).items()}
        kept = pruned(whole, config)
    centre_only = [name for name in kept if whole[name].shape[-3:] == (3, 3, 3) and kept[name].shape[-1] == 1]
    corner_only = [name for name in kept if whole[name].shape[-3:] == (3, 3, 3) and kept[name].shape[-1] == 2]
    assert (len(centre_only), len(corner_only)) == (19, 3)
    assert pruned_shapes(config) == {name: tuple(tensor.shape) for name, tensor in kept.items()}
    assert sum(whole[name].numel() for name in centre_only) == 332_660_736
    assert sum(tensor.numel() for tensor in whole.values()) == 379_053_826
    assert sum(tensor.numel() for tensor in kept.values()) == 46_262_018


def test_pruned_weights_make_the_same_network():
    plain = network_of(SMALL_PUBLISHED, 32)
    once = pruned(plain.state_dict(), SMALL_PUBLISHED)
    twice = pruned(once, SMALL_PUBLISHED)
    inputs = torch.rand(1, 2, 32, 32, 32)
    with torch.inference_mode():
        expected = FoldedUNet(plain.state_dict(), SMALL_PUBLISHED)(inputs)
        assert torch.equal(FoldedUNet(once, SMALL_PUBLISHED)(inputs), expected)
        assert torch.equal(FoldedUNet(twice, SMALL_PUBLISHED)(inputs), expected)
    assert torch.equal(prune(torch.ones(2, 2, 3, 3, 3), "same", 8), torch.ones(2, 2, 3, 3, 3))


def test_the_levels_of_few_voxels_are_folded():
    config = {**SMALL_PUBLISHED, "num_res_units": 10}
    folded = FoldedUNet(network_of(config, 32).state_dict(), config)
    # To 4^3, 2^3 and 1^3 on the way down, 1^3 at the bottom, 2^3 and 4^3 on the way up.
    assert sum(isinstance(module, Reduced) for module in folded.modules()) == 9 + 11 + 11 + 11 + 2 + 2


@pytest.mark.parametrize(
    ("size", "channels", "share"),
    [
        (4, 128, 1 / 6),
        (2, 256, 1 / 7),
        (1, 512, 1 / 27),
    ],
)
def test_folding_saves_operations(size, channels, share):
    weight, bias = torch.zeros(channels, channels, 3, 3, 3), torch.zeros(channels)
    reduced = Reduced("same", size, prune(weight, "same", size), bias)
    maps = torch.zeros(1, channels, size, size, size)
    with FlopCounterMode(display=False) as folded:
        reduced(maps)
    with FlopCounterMode(display=False) as plain:
        F.conv3d(maps, weight, bias, padding=1)
    assert folded.get_total_flops() <= share * plain.get_total_flops()


def test_folded_network_holds_on_to_nothing_of_the_file():
    plain = network_of(SMALL_PUBLISHED, 32)
    storages = {tensor.untyped_storage().data_ptr() for tensor in plain.state_dict().values()}
    folded = FoldedUNet(plain.state_dict(), SMALL_PUBLISHED)
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in folded.state_dict().values()}


def test_bfloat16_stays_close():
    plain = network_of(SMALL_PUBLISHED, 32)
    folded = FoldedUNet(plain.state_dict(), SMALL_PUBLISHED)
    inputs = torch.rand(1, 2, 32, 32, 32)
    with torch.inference_mode():
        expected = folded(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            output = folded(inputs)
    assert (output.float() - expected).abs().max() < 0.05 * (expected.max() - expected.min())


def test_other_networks_are_not_folded():
    assert can_fold(RECIPES["babyai"])
    assert not can_fold({**RECIPES["babyai"], "norm": "instance"})
    assert not can_fold({**RECIPES["babyai"], "strides": (2, 2, 2, 2, 1)})
    assert not can_fold({**RECIPES["babyai"], "dropout": 0.1})
