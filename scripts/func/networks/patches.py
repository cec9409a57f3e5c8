"""Cut a volume into overlapping patches, run a network on each, and blend the outputs back into one volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from func.networks.devices import computing, keeping_memory

# Inputs lie between 0 and 1, where float32 tells numbers no closer than this apart. A cubic spline rings on for many
# slices beyond the head, fainter each time: without this bound that ringing would fill most of the empty windows.
NEGLIGIBLE = 1e-7
BATCH_SIZE = 24  # of the published network: the fastest on CPUs that keeps a run's memory at about 1 GB


@dataclass(frozen=True)
class AxisTiling:
    """How windows of one length cover one axis: zeros added on its two sides, where windows start, and their taper.

    ``taper`` is the weight of an output by its place in the window, shape (patch,), between 0 and 1.
    """

    before: int
    after: int
    starts: tuple[int, ...]
    taper: Tensor

    def coverage(self, length: int) -> Tensor:
        """The sum of the tapers over each of the ``length`` voxels of the padded axis."""
        total = torch.zeros(length)
        for start in self.starts:
            total[start : start + len(self.taper)] += self.taper
        return total


def tile_axis(length: int, patch: int, stride: int, weighting: str = "equal") -> AxisTiling:
    """Cover an axis of ``length`` voxels with windows of ``patch`` voxels, ``stride`` apart.

    "equal", the published way, pads both sides with zeros until the windows fit, and weighs every voxel of a window
    the same. "smooth" pads only up to one window, moves the last window inwards instead, and lets a window's weight
    fall to zero at its borders (a squared sine), so that no seam shows.
    """
    if weighting == "equal":
        padded = patch + max(0, math.ceil((length - patch) / stride)) * stride
        starts = range(0, padded - patch + 1, stride)
        taper = torch.ones(patch)
    elif weighting == "smooth":
        padded = max(length, patch)
        starts = [*range(0, padded - patch, stride), padded - patch]
        taper = torch.sin(math.pi * (torch.arange(patch, dtype=torch.float32) + 0.5) / patch) ** 2
    else:
        raise ValueError(f"weighting is 'equal' or 'smooth', not {weighting!r}")
    before = (padded - length) // 2
    return AxisTiling(before, padded - length - before, tuple(starts), taper)


def count_patches(
    shape: Sequence[int],
    patch: Sequence[int] = (32, 32, 32),
    stride: Sequence[int] = (16, 16, 16),
    weighting: str = "equal",
) -> int:
    """The number of windows that ``run_patches`` lays over a volume of ``shape``, empty ones included."""
    axes = zip(shape, patch, stride, strict=True)
    return math.prod(len(tile_axis(*axis, weighting).starts) for axis in axes)


def run_patches(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    patch: Sequence[int] = (32, 32, 32),
    stride: Sequence[int] = (16, 16, 16),
    batch_size: int = BATCH_SIZE,
    weighting: str = "equal",
    precision: str = "float32",
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
    channels: int = 1,
) -> Tensor:
    """Run ``network`` on every window of ``inputs`` (C, X, Y, Z) and blend its outputs into one volume.

    The network takes (B, C, *patch), gives (B, ``channels``, *patch), and is already on ``device``; the result,
    (``channels``, X, Y, Z), comes back on the CPU, float32, cropped to the size of the inputs. Windows and
    ``weighting`` are those of ``tile_axis``.

    Windows whose inputs are all zero, or ``NEGLIGIBLE``, are computed once, as zeros. Outputs are added up in a fixed
    order: the same call gives the same bits. ``progress`` is called with the number of windows just done, of all that
    ``count_patches`` counts.
    """
    axes = [tile_axis(*axis, weighting) for axis in zip(inputs.shape[1:], patch, stride, strict=True)]
    margins = [(axis.before, axis.after) for axis in axes]
    volume = F.pad(inputs.to(device, torch.float32), [margin for pair in reversed(margins) for margin in pair])
    corners = list(itertools.product(*(axis.starts for axis in axes)))
    windows = [tuple(slice(at, at + n) for at, n in zip(corner, patch, strict=True)) for corner in corners]
    taper = _outer(axis.taper for axis in axes).to(device)
    total = volume.new_zeros(channels, *volume.shape[1:])
    done = progress or (lambda count: None)

    with torch.inference_mode(), computing(device, precision), keeping_memory():
        occupied = _occupied(volume, axes)
        empty = list(itertools.compress(windows, (not some for some in occupied)))
        if empty:
            background = network(volume.new_zeros(1, len(volume), *patch))[0].float() * taper
            for window in empty:
                total[:, *window] += background
            done(len(empty))
        filled = list(itertools.compress(windows, occupied))
        for first in range(0, len(filled), batch_size):
            batch = filled[first : first + batch_size]
            cut = [volume[:, *window] for window in batch]
            # A window that is nearly the whole volume is not copied.
            outputs = network(torch.stack(cut) if len(cut) > 1 else cut[0][None])
            for window, output in zip(batch, outputs, strict=True):
                total[:, *window] += output.float() * taper
            done(len(batch))
    shape = volume.shape[1:]
    coverage = _outer(axis.coverage(n) for axis, n in zip(axes, shape, strict=True)).to(device)
    crop = tuple(slice(axis.before, n - axis.after) for axis, n in zip(axes, shape, strict=True))
    return total.div_(coverage)[:, *crop].cpu()


def _occupied(volume: Tensor, axes: Sequence[AxisTiling]) -> list[bool]:
    """Which windows over a volume (C, X, Y, Z) hold more than negligible values, one axis after the other."""
    occupied = (volume > NEGLIGIBLE).logical_or_(volume < -NEGLIGIBLE).any(dim=0)
    for dim, axis in enumerate(axes):
        spans = [occupied.narrow(dim, start, len(axis.taper)).any(dim) for start in axis.starts]
        occupied = torch.stack(spans, dim)
    return occupied.flatten().tolist()


def _outer(vectors: Iterable[Tensor]) -> Tensor:
    """The outer product of three vectors, shape (X, Y, Z)."""
    x, y, z = vectors
    return x[:, None, None] * y[:, None] * z
