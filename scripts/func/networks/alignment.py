"""Whether the T1w lies where the T2w does, and how it is laid upon it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from func.networks.guidance import FAINTEST, as_tensor, head_share, middle, misfit, with_cubes
from func.processors import threads
from func.slices.geometry import SliceGeometry, acquire, upsample

LARGEST_T1_OFFSET = 0.8  # voxels: a T1w farther off the T2w is told, and of raw scans its registration corrected

# Voxels by which an offset is found wrong where the misfit doubles within a voxel; where it is flatter, more. In an
# infant whose scans fit 0.25 were found where it rose by an eighth.
_ERROR = 0.09
_CLEARLY = 0.9  # of the misfit: a whole step is taken, and the outline moved, only where that is what it leaves
_OUTLINE = 1  # voxels at the T1w's edge
_WIDTH = 60  # voxels in-plane, around the head's middle, in which the T1w is looked for
_FARTHEST = 3  # voxels that it is looked for
_SLAB = 24  # voxels, across the head's middle, in which its outline is judged
_DEEP = 3  # voxels of head around a voxel that counts
_WHOLLY = 0.99  # of a slice's voxel
_FEW = 1000  # of such voxels tell nothing


def t1_offset(t1: np.ndarray, slices: np.ndarray, geometry: SliceGeometry) -> np.ndarray:
    """How far the T1w has to move to fit the T2w best, in voxels along each axis, shape (3,).

    The place where the T1w, cut into slices alike, explains the T2w's slices best: the lowest of whole steps along each
    axis, then of a parabola through its neighbours. Only the inside of the head counts: scans that were extracted with
    one mask share their outlines wherever they lie within them. Of each axis as much is returned as is sure: an offset
    the size of its own error is none, of larger ones nearly all is (James and Stein, Proc. 4th Berkeley Symp. Math.
    Statist. Probab. 1, 1961).

    Args:
        t1: shape (X, Y, Z).
        slices: shape (X, Y, geometry.count).
        geometry: of the slices, along axis 2.
    """
    # The middle of both axes in-plane, alike however the file is turned, and what is moved into it.
    block = middle(t1.shape[0], _WIDTH), middle(t1.shape[1], _WIDTH)
    reach = _FARTHEST + 1
    rows, columns = (
        np.arange(part.start - reach, part.stop + reach) % length for part, length in zip(block, t1.shape, strict=False)
    )
    slices, t1 = as_tensor(slices[block]), as_tensor(t1[np.ix_(rows, columns)])
    share = head_share(t1)
    deep = _deep_slices(t1[reach:-reach, reach:-reach], geometry)
    if deep.sum() < _FEW:
        return np.zeros(3)
    both, seen = torch.stack([t1, share]), {}

    def misfit_at(step: np.ndarray) -> float:
        key = tuple(step.tolist())
        if key not in seen:
            x, y = reach - key[0], reach - key[1]
            moved = both[:, x : x + slices.shape[0], y : y + slices.shape[1]].roll(key[2], 3)
            seen[key] = misfit(*moved, slices, geometry, deep)
        return seen[key]

    best = np.zeros(3, int)
    # These are always needed, and on their own too little work for several processors.
    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(misfit_at, np.concatenate([[best], np.eye(3, dtype=int), -np.eye(3, dtype=int)])))
    for axis in range(3):
        unit = np.eye(3, dtype=int)[axis]
        nearer = min((best + unit, best - unit), key=misfit_at)
        while misfit_at(nearer) < misfit_at(best) and np.abs(best).max() < _FARTHEST:
            best, nearer = nearer, 2 * nearer - best
    if misfit_at(best) > _CLEARLY * misfit_at(np.zeros(3, int)):
        best = np.zeros(3, int)
    offset = np.zeros(3)
    for axis in range(3):
        unit = np.eye(3, dtype=int)[axis]
        before, here, after = (misfit_at(best + sign * unit) for sign in (-1, 0, 1))
        rise = before + after - 2 * here
        if rise > 0:
            found = best[axis] + np.clip((before - after) / (2 * rise), -0.5, 0.5)
            error = _ERROR * math.sqrt(2 * here / rise)
            offset[axis] = found * max(0, 1 - (error / found) ** 2) if found else 0
    return offset


def laid_upon_t2(t1: np.ndarray, slices: np.ndarray, geometry: SliceGeometry, offset: np.ndarray) -> np.ndarray:
    """The T1w moved onto the T2w by the offset that :func:`t1_offset` found, by cubic splines.

    Along each axis its outline moves too only where that fits the T2w clearly better: scans that were extracted with
    one mask share it, however they lie within.
    """
    if not offset.any():
        return t1
    moved, head = _moved(t1, offset), (t1 > 0).astype(np.float32)

    def outlined(by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The head's mask and the T1w, both moved by another offset."""
        return _moved(head, by) > 0.5, _moved(t1, by)

    def rim_misfit(by: np.ndarray, axis: int) -> float:
        """Of the moved T1w within its outline, moved by another offset, in planes along which ``axis`` shows."""
        across = 1 if axis == 0 else 0
        slab = (slice(None),) * across + (middle(t1.shape[across], _SLAB),)
        mask, rest = outlined(by)
        candidate = as_tensor(np.where(mask, np.where(moved > FAINTEST, moved, rest), 0)[slab])
        rim = ~_deep_slices(t1[slab], geometry)
        return misfit(candidate, head_share(candidate), as_tensor(slices[slab]), geometry, rim)

    outline_offset = np.zeros(3)
    for axis in np.flatnonzero(offset):
        further = outline_offset.copy()
        further[axis] = offset[axis]
        if rim_misfit(further, axis) < _CLEARLY * rim_misfit(outline_offset, axis):
            outline_offset = further
    mask, rest = outlined(outline_offset)
    return np.where(_inside(torch.from_numpy(mask), _OUTLINE).numpy(), moved, rest)


def _moved(volume: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A volume moved by so many voxels along each axis, by cubic splines."""
    for axis in np.flatnonzero(offset):
        length = volume.shape[axis]
        volume = upsample(volume, SliceGeometry(int(axis), 1.0, 1.0, float(offset[axis]), length, "point"), length)
    return volume


def _deep_slices(t1: np.ndarray | Tensor, geometry: SliceGeometry) -> Tensor:
    """Which voxels of the slices lie wholly inside the head, below its outline: shape (X, Y, count)."""
    return acquire(_inside(as_tensor(t1) > FAINTEST, _DEEP).float(), geometry) > _WHOLLY


def _inside(mask: Tensor, depth: int) -> Tensor:
    """Which voxels of a mask have nothing but the mask around them, so many voxels far."""
    outside = ~mask
    for _ in range(depth):
        outside = with_cubes(outside)
    return ~outside
