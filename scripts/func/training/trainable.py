"""The network as training begins with it: fresh or given weights, and only what training can change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from func.networks.compact import INPUT_CHANNELS
from func.networks.published import kind_and_size, prune, pruned
from func.networks.weights import RECIPES, build_network, load_weights

PUBLISHED_PATCH = 32  # voxels along a side of a sample of the published recipe
SMALL_MAP = 2  # voxels


def trainable_network(settings: Mapping) -> nn.Module:
    """The network of the recipe with fresh or given weights; of ``babyai`` only the taps that a patch's data meet.

    The other taps of its kernels multiply padding alone: their gradient is zero, and training never changes them.
    """
    recipe, start = settings["recipe"], settings["init_weights"]
    network = build_network(recipe, **settings["network"])
    if recipe == "babyai":
        depth = len({**RECIPES[recipe], **settings["network"]}["channels"]) - 1
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                _keep_used_taps(module, *kind_and_size(f"{name}.weight", depth, PUBLISHED_PATCH))
    if start:
        network.load_state_dict(_initial_tensors(start, settings))
    keep_small_maps_in_float32(network, torch.zeros(1, *sample_shape(settings)))
    return network


def sample_shape(settings: Mapping) -> tuple[int, int, int, int]:
    """Channels and voxels of a sample's inputs."""
    if settings["recipe"] == "babyai":
        return (2, *3 * [PUBLISHED_PATCH])
    return (INPUT_CHANNELS, *3 * [settings["patch"]])


def _keep_used_taps(module: nn.Conv3d | nn.ConvTranspose3d, kind: str, size: int) -> None:
    """Shrink a padded convolution of 3^3 taps, on maps of ``size`` voxels, to the taps that ever meet a voxel."""
    if module.kernel_size != (3, 3, 3):
        return
    kernel = prune(module.weight.detach(), kind, size).clone()
    if kernel.shape == module.weight.shape:
        return
    module.weight = nn.Parameter(kernel)
    module.kernel_size = tuple(kernel.shape[2:])
    module.padding = (0, 0, 0)
    if kind == "up":
        module.output_padding = (0, 0, 0)


def _initial_tensors(path: str, settings: Mapping) -> dict[str, Tensor]:
    """The tensors of a weights file of the same recipe (see func.training.settings.network_of)."""
    if settings["recipe"] == "compact":
        return load_weights(path).network.state_dict()
    content = torch.load(path, map_location="cpu", weights_only=True)
    return pruned(content.get("state_dict", content), {**RECIPES["babyai"], **settings["network"]})


class Float32Conv3d(nn.Conv3d):
    """A convolution that computes in float32 whatever autocast says."""

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def keep_small_maps_in_float32(network: nn.Module, inputs: Tensor) -> None:
    """Have convolutions of maps of one or two voxels, as a pass of the inputs shows them, keep out of bfloat16.

    Their gradient in bfloat16 is NaN now and then on processors (PyTorch 2.13, some AVX-512), for no fault of theirs.
    """
    small = []
    hooks = [
        module.register_forward_pre_hook(lambda module, maps: small.append((module, max(maps[0].shape[2:]))))
        for module in network.modules()
        if type(module) is nn.Conv3d
    ]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    for module, size in small:
        if size <= SMALL_MAP:
            module.__class__ = Float32Conv3d
