"""All heads that samples are cut from, one after the other in memory, so that a whole batch is cut out at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from func.slices.geometry import SliceGeometry
from func.training.subjects import Subject

REACH = 20  # voxels of air around each head: what is cut may reach that far beyond it
_STEP = 4  # voxels: how finely it is known where a head's inside lies


@dataclass(frozen=True)
class Place:
    """Where a volume lies in the bank: the index of its first voxel, and those from voxel to voxel along each axis."""

    first: int
    strides: tuple[int, int, int]


@dataclass(frozen=True)
class BankedScan:
    """Thick slices of a head that exist as a file."""

    geometry: SliceGeometry
    place: Place


@dataclass(frozen=True)
class BankedHead:
    """A head in the bank, at least a patch long; ``inner`` is where errors count fully, shape (X, Y, Z)."""

    shape: tuple[int, int, int]
    place: Place
    inner: np.ndarray
    invented: bool
    scans: tuple[BankedScan, ...]

    def inside(self, corner: np.ndarray, patch: int) -> float:
        """The share of a crop that is inner brain, roughly."""
        return float(self.inner[tuple(slice(at, at + patch, _STEP) for at in corner)].mean())


class HeadBank:
    """T1w, T2w and where errors count, of all heads, in flat memory on one device."""

    def __init__(self, subjects: Sequence[Subject], patch: int):
        volumes: list[list[np.ndarray]] = [[], [], []]
        slices: list[np.ndarray] = []
        self.heads: list[BankedHead] = []
        first, first_slice = 0, 0
        for subject in subjects:
            missing = [max(0, patch - n) for n in subject.t2.shape]
            inner = subject.t2 > 0 if subject.inner is None else subject.inner
            inner = np.pad(inner, [(0, m) for m in missing])
            around = [(REACH, m + REACH) for m in missing]
            padded = [np.pad(scan.astype(np.float16), around) for scan in (subject.t1, subject.t2)]
            padded.append(np.pad(inner.view(np.uint8), REACH))
            for parts, volume in zip(volumes, padded, strict=True):
                parts.append(volume.ravel())
            scans = []
            for scan in subject.scans:
                if scan.geometry:
                    axis = scan.geometry.axis
                    array = np.pad(scan.array, [(0, 0 if a == axis else m) for a, m in enumerate(missing)])
                    # Slices beyond the last are read too, and then weigh nothing.
                    room = np.zeros(patch * max(_strides(array.shape)), np.float32)
                    slices += [room, array.astype(np.float32).ravel(), room]
                    scans.append(BankedScan(scan.geometry, Place(first_slice + room.size, _strides(array.shape))))
                    first_slice += array.size + 2 * room.size
            strides = _strides(padded[0].shape)
            place = Place(first + REACH * sum(strides), strides)
            self.heads.append(BankedHead(inner.shape, place, inner, subject.invented, tuple(scans)))
            first += padded[0].size
        flat = [torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0) for parts in (*volumes, slices)]
        self.t1, self.t2, self.counts, self.slices = flat

    def to(self, device: str | torch.device) -> HeadBank:
        """The same on another device."""
        moved = copy.copy(self)
        moved.t1, moved.t2, moved.counts, moved.slices = (
            flat.to(device) for flat in (self.t1, self.t2, self.counts, self.slices)
        )
        return moved

    def cut(self, places: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """T1w, T2w and where errors count, of crops of one shape: float32, shape (B, *shape).

        Args:
            places: shape (B, 4): first voxel and strides of each crop.
        """
        indices = _indices(places, shape)
        return tuple(flat[indices].float() for flat in (self.t1, self.t2, self.counts))

    def cut_slices(self, places: Tensor, shape: Sequence[int]) -> Tensor:
        """The same of thick slices from files."""
        return self.slices[_indices(places, shape)]


def _strides(shape: Sequence[int]) -> tuple[int, int, int]:
    return shape[1] * shape[2], shape[2], 1


def _indices(places: Tensor, shape: Sequence[int]) -> Tensor:
    first, *strides = (place[:, None, None, None] for place in places.unbind(1))
    for axis, (stride, length) in enumerate(zip(strides, shape, strict=True)):
        steps = torch.arange(length, device=places.device)
        first = first + stride * steps.reshape([-1 if a == axis else 1 for a in range(3)])
    return first
