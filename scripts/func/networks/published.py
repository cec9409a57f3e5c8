"""The exact fast form of MONAI's residual UNet for patches of one size.

At 32^3 patches most of the published network's weights meet very little data. A 3^3 kernel on a map of one voxel
multiplies padding with 26 of its 27 taps; on small maps a convolution is a small bilinear form that needs far
fewer products than the direct sum (Toom and Cook's, in signal processing Winograd's, minimal filtering: 3 products
instead of 4 along an axis of two voxels, 6 instead of 10 along one of four). The folded network keeps only the taps
that meet data, computes maps of up to four voxels along an axis in that form and larger ones directly, and gives the
same output up to float32 rounding. It needs no MONAI. Tiles of that form for maps of 8 and 16 voxels saved a seventh of
the time at 70 lines, and were given up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 4  # maps of up to this many voxels along an axis are computed as matrix products

_POINTS = (0, -1, 1, 0.5, -2)  # and infinity: where polynomials are evaluated

Form = tuple[np.ndarray, np.ndarray, np.ndarray]


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the state_dict of MONAI's residual ``UNet(**config)``, without building it."""
    channels, inputs, outputs = config["channels"], config["in_channels"], config["out_channels"]
    depth, units = len(channels) - 1, config["num_res_units"]
    shapes = {}
    for level in range(depth + 1):
        prefix = "model." + "1.submodule." * level
        before = channels[level - 1] if level else inputs
        down = prefix + "0." if level < depth else prefix
        stride = config["strides"][level] if level < depth else 1
        for unit in range(units):
            name = f"{down}conv.unit{unit}."
            shapes[name + "conv.weight"] = (channels[level], channels[level] if unit else before, 3, 3, 3)
            shapes[name + "conv.bias"] = (channels[level],)
            shapes[name + "adn.A.weight"] = (1,)
        if stride > 1 or channels[level] != before:
            shapes[down + "residual.weight"] = (channels[level], before, *(3 * [3 if stride > 1 else 1]))
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


def can_fold(config: Mapping[str, Any]) -> bool:
    """Whether ``UNet(**config)`` is of the kind that ``FoldedUNet`` computes: strides of 2 and no normalisation."""
    known = {"spatial_dims", "in_channels", "out_channels", "channels", "strides", "num_res_units", "norm"}
    plain = config["spatial_dims"] == 3 and config["norm"] is None and config["num_res_units"] > 0
    return set(config) == known and plain and set(config["strides"]) == {2}


def filter_form(n: int) -> Form:
    """Matrices (O, K, T) of a zero-padded 3-tap filter on n points, y = O ((K w) * (T x)), with few products.

    x and y have n points, w 3 taps, y[i] = w[0] x[i - 1] + w[1] x[i] + w[2] x[i + 1]. O is (n, r), K (r, 3) and
    T (r, n); r is 1, 3, 5 and 6 for n = 1, 2, 3 and 4, where the direct sum takes 1, 4, 7 and 10 products.
    Toom and Cook's evaluation at points (Winograd, Arithmetic Complexity of Computations, 1980): the data slide over
    the taps, or, where they are fewer, the taps over the data.
    """
    if n <= 2:
        points = _POINTS[: 2 * n - 2]
        taps = np.zeros((2 * n - 1, 3))
        taps[:, 2 - n : n + 1] = _interpolate(points)
        return _evaluate(points, n).T[::-1], taps, _evaluate(points, n)
    points = _POINTS[: n + 1]
    return _evaluate(points, n).T, _evaluate(points, 3), _interpolate(points)[:, 1:-1]


def _evaluate(points: Sequence[float], terms: int) -> np.ndarray:
    """The matrix that evaluates a polynomial of so many terms at the points and at infinity."""
    return np.vstack([np.vander(points, terms, increasing=True), np.eye(terms)[-1:]])


def _interpolate(points: Sequence[float]) -> np.ndarray:
    """The transpose of what takes values at the points and at infinity to a polynomial's terms."""
    return np.linalg.inv(_evaluate(points, len(points) + 1)).T


def halving_form(n: int) -> Form:
    """As ``filter_form`` for a filter of stride 2, y[i] = w[0] x[2i - 1] + w[1] x[2i] + w[2] x[2i + 1]."""
    return _direct_form(n // 2, n, [(i, tap, 2 * i + tap - 1) for i in range(n // 2) for tap in range(3)])


def doubling_form(n: int) -> Form:
    """As ``filter_form`` for a transposed filter of stride 2: y[2j + tap - 1] collects w[tap] x[j]; y has 2n points."""
    return _direct_form(2 * n, n, [(2 * j + tap - 1, tap, j) for j in range(n) for tap in range(3)])


def _direct_form(outputs: int, inputs: int, terms: list[tuple[int, int, int]]) -> Form:
    """The matrices of a plain sum of products, terms (output, tap, input); those outside the map are left out."""
    terms = [(y, tap, x) for y, tap, x in terms if 0 <= y < outputs and 0 <= x < inputs]
    y, tap, x = zip(*terms, strict=True)
    return np.eye(outputs)[:, y], np.eye(3)[list(tap)], np.eye(inputs)[list(x)]


FORMS = {"same": filter_form, "down": halving_form, "up": doubling_form}


def kind_and_size(name: str, depth: int, patch: int) -> tuple[str, int]:
    """What the convolution of this name does to its maps ("same", "down" or "up") and their size before it."""
    level = name.count("submodule")
    part = name.removeprefix("model." + "1.submodule." * level)
    if level == depth:
        return "same", patch >> depth
    if part.startswith("0."):
        first = "unit0" in part or "residual" in part
        return ("down", patch >> level) if first else ("same", patch >> (level + 1))
    return ("up", patch >> (level + 1)) if part.startswith("2.0") else ("same", patch >> level)


def taps_that_meet_data(kind: str, size: int) -> slice:
    """The taps of a 3-tap filter that ever meet data on an axis of ``size`` voxels, as a slice; others see padding."""
    met = np.flatnonzero(FORMS[kind](min(size, SMALL))[1].any(axis=0))
    return slice(int(met[0]), int(met[-1]) + 1)


def prune(weight: Tensor, kind: str, size: int) -> Tensor:
    """The taps of a 3^3 kernel that meet data, from a 3^3 one, a 1^3 one (its centre) or an already pruned one."""
    taps = taps_that_meet_data(kind, size)
    count = taps.stop - taps.start
    if weight.shape[-1] == 1 < count:
        weight = F.pad(weight, [1] * 6)
    return weight if weight.shape[-1] == count else weight[..., taps, taps, taps]


def pruned_shapes(config: Mapping[str, Any], patch: int = 32) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that ``pruned`` makes of the state_dict of MONAI's ``UNet(**config)``."""
    depth = len(config["channels"]) - 1
    # Tensors on the meta device would do, too, but the first of them has PyTorch import SymPy, which takes seconds.
    whole = {name: torch.empty(1).expand(shape) for name, shape in unet_shapes(config).items()}
    return {
        name: tuple((prune(tensor, *kind_and_size(name, depth, patch)) if tensor.dim() == 5 else tensor).shape)
        for name, tensor in whole.items()
    }


def pruned(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], patch: int = 32) -> dict[str, Tensor]:
    """The state_dict with only the taps that meet data in patches of this size: what a folded file holds."""
    depth = len(config["channels"]) - 1
    return {
        name: prune(tensor, *kind_and_size(name, depth, patch)).clone() if tensor.dim() == 5 else tensor.clone()
        for name, tensor in state_dict.items()
    }


class Reduced(nn.Module):
    """A convolution of small maps as matrix products, on maps laid out (voxels, batch, channels).

    Always in float32: the sums of data and of taps that ``filter_form`` multiplies lose too much in bfloat16.
    """

    def __init__(self, kind: str, size: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        scatter, taps, gather = (torch.from_numpy(matrix.astype(np.float32)) for matrix in FORMS[kind](size))
        taps = taps[:, taps_that_meet_data(kind, size)]
        by_tap = weight.flatten(2).permute(2, 0, 1) if kind == "up" else weight.flatten(2).permute(2, 1, 0)
        self.register_buffer("gather", gather)
        self.register_buffer("weight", _along_axes(taps, by_tap.contiguous()))
        self.register_buffer("scatter", scatter)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = _along_axes(self.gather, as_voxels(x).float())
            x = torch.bmm(x, self.weight)
            return _along_axes(self.scatter, x).add_(self.bias)


class Direct(nn.Module):
    """A convolution of large maps by the library's own kernel, on maps laid out (batch, channels, x, y, z)."""

    def __init__(self, kind: str, size: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("weight", weight.clone(memory_format=torch.channels_last_3d))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        x = as_maps(x)
        if self.kind == "up":
            return F.conv_transpose3d(x, self.weight, self.bias, stride=2, padding=1, output_padding=1)
        return F.conv3d(x, self.weight, self.bias, stride=2 if self.kind == "down" else 1, padding=1)


class SingleChannel(nn.Module):
    """A convolution of one channel to one: the planes along x serve as the channels of a convolution in y and z."""

    def __init__(self, kind: str, size: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        shifted = torch.stack([torch.diag(torch.ones(size - abs(shift)), shift) for shift in (-1, 0, 1)])
        self.register_buffer("weight", torch.einsum("toi,tyz->oiyz", shifted, weight[0, 0]))
        self.register_buffer("bias", bias.expand(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(as_maps(x)[:, 0], self.weight, self.bias, padding=1)[:, None]


class SingleOutput(nn.Module):
    """A transposed convolution to one channel: every tap of every voxel in one product, then the sums of those."""

    def __init__(self, kind: str, size: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight[:, 0].flatten(1).t().contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        x = as_maps(x)
        batch, channels, *size = x.shape
        voxels = x.permute(0, 2, 3, 4, 1).reshape(-1, channels)
        y = (self.weight @ voxels.t()).view(3, 3, 3, batch, *size)
        for axis in (-3, -2, -1):
            # voxel j adds its first tap to 2j - 1, its second to 2j and its third to 2j + 1
            first, second, third = y
            third.narrow(axis, 0, size[axis] - 1).add_(first.narrow(axis, 1, size[axis] - 1))
            y = torch.stack([second, third], dim=axis).flatten(axis - 1, axis)
        return y[:, None].add_(self.bias)


def form_for(kind: str, size: int, weight: Tensor) -> type[nn.Module]:
    """The class that computes a convolution with this weight on maps of this size fastest."""
    if size * (2 if kind == "up" else 1) <= SMALL:
        return Reduced
    if kind == "up" and weight.shape[1] == 1:
        return SingleOutput
    if kind == "same" and weight.shape[:2] == (1, 1):
        return SingleChannel
    return Direct


class Chain(nn.Module):
    """Convolutions one after the other, each followed by its leaky slope, or by nothing where that is None."""

    def __init__(self, convolutions: Sequence[nn.Module], slopes: Sequence[float | None]) -> None:
        super().__init__()
        self.convolutions, self.slopes = nn.ModuleList(convolutions), slopes

    def forward(self, x: Tensor) -> Tensor:
        for convolution, slope in zip(self.convolutions, self.slopes, strict=True):
            x = convolution(x)
            if slope is not None:
                F.leaky_relu_(x, slope)
        return x


class ResidualUnit(Chain):
    """A chain whose input, or a convolution of it, is added to its output."""

    def __init__(self, convolutions: Sequence[nn.Module], slopes: Sequence[float | None], residual: nn.Module) -> None:
        super().__init__(convolutions, slopes)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        residual = self.residual(x)
        return y.add_(LAYOUTS[y.dim()](residual))


class FoldedUNet(nn.Module):
    """The fast form of the ``UNet(**config)`` that a state_dict belongs to, for patches (B, C, patch, patch, patch).

    The state_dict may be whole or ``pruned``. For inference only: what it holds is made from the weights, in float32.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], config: Mapping[str, Any], patch: int = 32) -> None:
        super().__init__()
        depth = len(config["channels"]) - 1
        levels = ["model." + "1.submodule." * level for level in range(depth + 1)]

        def convolution(name: str) -> nn.Module:
            kind, size = kind_and_size(name, depth, patch)
            weight = prune(state_dict[f"{name}.weight"], kind, size).detach().float()
            bias = state_dict[f"{name}.bias"].detach().float().clone()
            return form_for(kind, size, weight)(kind, size, weight, bias)

        def slope(name: str) -> float | None:
            return float(state_dict[f"{name}.adn.A.weight"]) if f"{name}.adn.A.weight" in state_dict else None

        def residual_unit(prefix: str, units: int) -> ResidualUnit:
            names = [f"{prefix}conv.unit{unit}" for unit in range(units)]
            residual = convolution(f"{prefix}residual") if f"{prefix}residual.weight" in state_dict else nn.Identity()
            return ResidualUnit(
                [convolution(f"{name}.conv") for name in names], [slope(name) for name in names], residual
            )

        def up(prefix: str) -> Chain:
            return Chain([convolution(f"{prefix}0.conv")], [slope(f"{prefix}0")])

        units = config["num_res_units"]
        self.down = nn.ModuleList(residual_unit(f"{level}0.", units) for level in levels[:-1])
        self.bottom = residual_unit(levels[-1], units)
        self.up = nn.ModuleList(
            nn.Sequential(up(f"{level}2."), residual_unit(f"{level}2.1.", 1)) for level in reversed(levels[:-1])
        )

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for down in self.down:
            x = down(x)
            skipped.append(x)
        x = self.bottom(x)
        for up in self.up:
            x = up(torch.cat([LAYOUTS[x.dim()](skipped.pop()), x], dim=1 if x.dim() == 5 else -1))
        return as_maps(x)


def as_voxels(x: Tensor) -> Tensor:
    """Cubic maps laid out (voxels, batch, channels), from any layout."""
    return x if x.dim() == 3 else as_maps(x).permute(2, 3, 4, 0, 1).flatten(0, 2).contiguous()


def as_maps(x: Tensor) -> Tensor:
    """Cubic maps laid out (batch, channels, x, y, z), channels last in memory, from any layout."""
    if x.dim() == 5:
        return x
    size = round(len(x) ** (1 / 3))
    maps = x.unflatten(0, (size, size, size)).permute(3, 4, 0, 1, 2)
    return maps.contiguous(memory_format=torch.channels_last_3d)


LAYOUTS = {3: as_voxels, 5: as_maps}  # by the number of dimensions


def _along_axes(matrix: Tensor, x: Tensor) -> Tensor:
    """New voxels as linear combinations of the old along each axis, by a matrix (n', n): (n^3, B, C) to (n'^3, …)."""
    if matrix.shape == (1, 1):
        return x
    after, before = matrix.shape
    y = x
    for axis in range(3):
        y = torch.matmul(matrix, y.reshape(after**axis, before, -1))
    return y.view(-1, *x.shape[1:])
