"""The exact fast form of MONAI's residual UNet at a fixed patch size.

At 32^3 patches the two lowest levels of the published network see maps of one voxel, where 26 of the 27 taps of every
3^3 kernel only ever meet padding. The folded network keeps the taps that meet data and gives the same output.
"""

import torch
import torch.nn.functional as F
from torch import nn

from func.errors import BabyAIError


def unet_shapes(config):
    """Name and shape of every tensor in the state_dict of MONAI's residual `UNet(**config)`, without building it."""
    channels, inputs, outputs = config["channels"], config["in_channels"], config["out_channels"]
    depth, units = len(channels) - 1, config["num_res_units"]
    shapes = {}
    for level in range(depth + 1):
        prefix = "model." + "1.submodule." * level
        before = channels[level - 1] if level else inputs
        down = prefix + "0." if level < depth else prefix
        kernel = 3 if level < depth else 1
        for unit in range(units):
            name = f"{down}conv.unit{unit}."
            shapes[name + "conv.weight"] = (channels[level], channels[level] if unit else before, 3, 3, 3)
            shapes[name + "conv.bias"] = (channels[level],)
            shapes[name + "adn.A.weight"] = (1,)
        shapes[down + "residual.weight"] = (channels[level], before, kernel, kernel, kernel)
        shapes[down + "residual.bias"] = (channels[level],)
    for level in range(depth):
        prefix = "model." + "1.submodule." * level + "2."
        after = channels[level - 1] if level else outputs
        below = channels[level + 1] if level == depth - 1 else channels[level]
        shapes[prefix + "0.conv.weight"] = (channels[level] + below, after, 3, 3, 3)
        shapes[prefix + "0.conv.bias"] = (after,)
        shapes[prefix + "0.adn.A.weight"] = (1,)
        shapes[prefix + "1.conv.unit0.conv.weight"] = (after, after, 3, 3, 3)
        shapes[prefix + "1.conv.unit0.conv.bias"] = (after,)
        if level:
            shapes[prefix + "1.conv.unit0.adn.A.weight"] = (1,)
    return shapes


class Convolution(nn.Module):
    """One convolution of the network on maps of a known size, with the taps of its kernel that meet data."""

    def __init__(self, source, inputs, outputs, size, kernel=3, stride=1, transposed=False):
        super().__init__()
        self.source, self.size, self.stride, self.transposed = source, size, stride, transposed
        self.pointwise = kernel == 3 and size == 1 and stride == 1
        self.kernel = 1 if self.pointwise else kernel
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(*shape, *(3 * [self.kernel])))
        self.bias = nn.Parameter(torch.empty(outputs))

    def take(self, weight, bias):
        self.weight.data.copy_(weight[..., 1:2, 1:2, 1:2] if self.pointwise else weight)
        self.bias.data.copy_(bias)

    def forward(self, x):
        if self.transposed:
            return F.conv_transpose3d(x, self.weight, self.bias, stride=2, padding=1, output_padding=1)
        return F.conv3d(x, self.weight, self.bias, stride=self.stride, padding=self.kernel // 2)


class ResidualUnit(nn.Module):
    def __init__(self, prefix, inputs, outputs, size, stride, units, last_is_linear=False):
        super().__init__()
        self.units = nn.ModuleList()
        self.slopes = nn.ParameterList()
        self.residual = nn.Identity()
        if stride > 1 or inputs != outputs:
            kernel = 3 if stride > 1 else 1
            self.residual = Convolution(prefix + "residual", inputs, outputs, size, kernel, stride)
        for unit in range(units):
            name = f"{prefix}conv.unit{unit}.conv"
            self.units.append(Convolution(name, inputs, outputs, size, 3, stride))
            inputs, size, stride = outputs, size // stride, 1
            if unit < units - 1 or not last_is_linear:
                self.slopes.append(nn.Parameter(torch.empty(1)))
        self.source = prefix

    def take_slopes(self, state_dict):
        for unit, slope in enumerate(self.slopes):
            slope.data.copy_(state_dict[f"{self.source}conv.unit{unit}.adn.A.weight"])

    def forward(self, x):
        y = x
        for unit, convolution in enumerate(self.units):
            y = convolution(y)
            if unit < len(self.slopes):
                y = F.prelu(y, self.slopes[unit])
        return y + self.residual(x)


class FoldedUNet(nn.Module):
    """MONAI's residual `UNet(**config)` for patches of one size (patch, patch, patch); `fold` gives it its weights."""

    def __init__(self, patch=32, **config):
        super().__init__()
        channels, units = config["channels"], config["num_res_units"]
        depth = len(channels) - 1
        self.config = {**config, "patch": patch}
        self.down, self.up, self.up_slopes, self.up_units = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ParameterList(),
            nn.ModuleList(),
        )
        inputs, size = config["in_channels"], patch
        for level, (outputs, stride) in enumerate(zip(channels, [*config["strides"], 1], strict=True)):
            prefix = "model." + "1.submodule." * level + ("0." if level < depth else "")
            self.down.append(ResidualUnit(prefix, inputs, outputs, size, stride, units))
            inputs, size = outputs, size // stride
        below = channels[-1]
        for level in reversed(range(depth)):
            prefix = "model." + "1.submodule." * level + "2."
            outputs = channels[level - 1] if level else config["out_channels"]
            self.up.append(Convolution(prefix + "0.conv", channels[level] + below, outputs, size, 3, 2, True))
            self.up_slopes.append(nn.Parameter(torch.empty(1)))
            size *= 2
            self.up_units.append(ResidualUnit(prefix + "1.", outputs, outputs, size, 1, 1, level == 0))
            below = outputs

    def forward(self, x):
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        kept.pop()
        for up, slope, unit in zip(self.up, self.up_slopes, self.up_units, strict=True):
            x = unit(F.prelu(up(torch.cat([kept.pop(), x], dim=1)), slope))
        return x


def fold(state_dict, config, patch=32):
    """The network of a published state_dict, with the taps that meet data at this patch size and no others."""
    network = FoldedUNet(patch, **config)
    for module in network.modules():
        if isinstance(module, Convolution):
            module.take(state_dict[module.source + ".weight"], state_dict[module.source + ".bias"])
        elif isinstance(module, ResidualUnit):
            module.take_slopes(state_dict)
    for up, slope in zip(network.up, network.up_slopes, strict=True):
        slope.data.copy_(state_dict[up.source.removesuffix("conv") + "adn.A.weight"])
    return network.to(memory_format=torch.channels_last_3d)
