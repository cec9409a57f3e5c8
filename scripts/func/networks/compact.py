"""The compact network: reconstructs the isotropic T2w from what is known of its slices.

Plain PyTorch, since importing MONAI alone takes longer than reconstructing a volume. Everything heavy happens on
half-size maps: 2 x 2 x 2 voxels become eight channels at the entrance (space to depth) and voxels again at the exit,
which loses nothing and keeps the convolutions wide enough for a processor's vector units.
"""

from __future__ import annotations

from itertools import pairwise, product

from torch import Tensor, nn
from torch.nn import functional

from func.networks.guidance import CHANNELS

INPUT_CHANNELS = len(CHANNELS)
FACTOR = 2  # space to depth
MULTIPLE = 8  # input sizes must be multiples of this


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions added to their input; starts as the identity, so that depth does no harm at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, maps: Tensor) -> Tensor:
        return self.second(functional.relu(self.first(maps), inplace=True)).add_(maps)


class CompactNet(nn.Module):
    """A residual U-Net between space-to-depth and its inverse; predicts what to add to the up-sampled T2w.

    Args:
        channels: feature maps at one half, one quarter and one eighth of the resolution.
        blocks: residual blocks on the way down at each of these; as many on the way up, but at the bottom.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96), blocks: tuple[int, ...] = (2, 3, 3)) -> None:
        super().__init__()
        self.stem = nn.Conv3d(INPUT_CHANNELS * FACTOR**3, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(_sequence(width, n) for width, n in zip(channels, blocks, strict=True))
        self.up_blocks = nn.ModuleList(_sequence(width, n) for width, n in zip(channels[:-1], blocks[:-1], strict=True))
        pairs = list(pairwise(channels))
        self.downs = nn.ModuleList(nn.Conv3d(wide, deep, 2, stride=2) for wide, deep in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose3d(deep, wide, 2, stride=2) for wide, deep in pairs)
        self.head = nn.Conv3d(channels[0], FACTOR**3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Reconstruct patches.

        Args:
            inputs: shape (B, 7, X, Y, Z), sizes multiples of 8, the slices stacked along Z (func.networks.guidance).

        Returns:
            The T2w, shape (B, 1, X, Y, Z), in the scale of the input's T2w.
        """
        maps = self.stem(_space_to_depth(inputs))
        skips = []
        for blocks, down in zip(self.down_blocks[:-1], self.downs, strict=True):
            maps = blocks(maps)
            skips.append(maps)
            maps = down(maps)
        maps = self.down_blocks[-1](maps)
        for blocks, up in reversed(list(zip(self.up_blocks, self.ups, strict=True))):
            maps = blocks(up(maps).add_(skips.pop()))
        return inputs[:, 1:2] + _depth_to_space(self.head(maps))


def _sequence(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def _space_to_depth(volume: Tensor) -> Tensor:
    b, c, x, y, z = volume.shape
    # The channels lie innermost in memory, the layout in which 3-D convolutions are fastest.
    cells = volume.new_empty(b, x // 2, y // 2, z // 2, c, 2, 2, 2)
    for i, j, k in product(range(2), repeat=3):
        cells[..., i, j, k] = volume[:, :, i::2, j::2, k::2].permute(0, 2, 3, 4, 1)
    return cells.flatten(4).permute(0, 4, 1, 2, 3)


def _depth_to_space(maps: Tensor) -> Tensor:
    b, _, x, y, z = maps.shape
    cells = maps.permute(0, 2, 3, 4, 1).reshape(b, x, y, z, 2, 2, 2)
    return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, 1, 2 * x, 2 * y, 2 * z)
