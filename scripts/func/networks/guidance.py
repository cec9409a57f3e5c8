"""What the compact network is told about a case: the scans, the detail that the T1w suggests, and the slice geometry.

Volumes here have the slices stacked along their last axis and intensities of about 0 to 1 (see func.scans.intensity).
They are torch tensors, on any device, since training makes its samples on the GPU; NumPy arrays are taken as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from func.slices.filters import smooth
from func.slices.geometry import FWHM_PER_SIGMA, SliceGeometry, acquire, slice_matrix, upsampling_matrix

CHANNELS = ("t1", "t2", "phase", "profile width", "spacing", "suggested detail", "t1 detail")

_NEIGHBOURHOOD = (2.5, 2.5, 0.9)  # Gaussian, voxels in-plane and slices
_NOISE = 0.07  # of the T1w's range: contrast in the T1w below this suggests nothing
_STEEPEST = 2.0
FAINTEST = 0.02  # of the T1w's range: what is fainter is air
_LEAST_SHARE = 0.25  # of a slice's voxel that must be head for its intensity to be taken for the head's own
_PROFILE_SLAB = 60  # voxels, across the head's middle, in which the slice profile is looked for
_RIM_SIGMAS = (2.0, 2.0, 2.0)  # voxels
_RIM_BRIGHTNESS = 0.7  # of the T1w's around it: a voxel at the rim that reaches this is wholly head


class Slicing(NamedTuple):
    """From planes to slices and back, along the last axis: shapes (..., count, planes) and (..., planes, count).

    With a leading axis the matrices of each case of a batch.
    """

    slicing: Tensor
    upsampling: Tensor

    @classmethod
    def of(cls, geometry: SliceGeometry, volume: Tensor) -> Slicing:
        """The slices of one volume, shape (X, Y, Z)."""
        length = volume.shape[-1]
        matrices = slice_matrix(geometry, length), upsampling_matrix(geometry, length)
        return cls(*(volume.new_tensor(matrix) for matrix in matrices))

    def acquire(self, volume: Tensor) -> Tensor:
        """The slices of volumes, (..., X, Y, Z) to (..., X, Y, count)."""
        return _times(volume, self.slicing)

    def upsample(self, slices: Tensor) -> Tensor:
        """Cubic up-sampling of slices, (..., X, Y, count) to (..., X, Y, Z)."""
        return _times(slices, self.upsampling)


def _times(volume: Tensor, matrix: Tensor) -> Tensor:
    lines = volume.flatten(-3, -2) @ matrix.mT
    return lines.unflatten(-2, volume.shape[-3:-1])


def network_inputs(t1, upsampled, slices=None, geometry: SliceGeometry | None = None):
    """The seven input channels of the compact network (see CHANNELS), of NumPy arrays or torch tensors.

    Args:
        t1: T1w, shape (X, Y, Z); None where there is none, which the network sees as air that suggests nothing.
        upsampled: T2w, cubic up-sampled, of the same shape.
        slices: the T2w's measured slices, shape (X, Y, geometry.count); None where they are not known.
        geometry: of these slices, along axis 2.

    Returns:
        float32, shape (7, X, Y, Z). The second is the T2w with the suggested detail already added.
    """
    if isinstance(upsampled, np.ndarray):
        volumes = (None if volume is None else as_tensor(volume) for volume in (t1, upsampled, slices))
        return network_inputs(*volumes, geometry).numpy()
    inputs = upsampled.new_zeros((len(CHANNELS), *upsampled.shape))
    inputs[1] = upsampled
    if t1 is not None:
        inputs[0] = t1
    if geometry is None:
        return inputs
    planes = (np.arange(upsampled.shape[2]) - geometry.first_center) / geometry.spacing
    nearest = np.clip(np.round(planes), 0, geometry.count - 1)
    inputs[2] = inputs.new_tensor(np.minimum(2 * np.abs(planes - nearest), 2))
    inputs[3] = profile_width(geometry) / 2
    inputs[4] = geometry.spacing / 4
    if t1 is not None:
        inputs[5], inputs[6] = suggested_detail(t1, slices, Slicing.of(geometry, t1))
        inputs[1] += inputs[5]
    return inputs


def as_tensor(volume: Tensor | np.ndarray) -> Tensor:
    return volume if isinstance(volume, Tensor) else torch.from_numpy(np.ascontiguousarray(volume, np.float32))


def profile_width(geometry: SliceGeometry) -> float:
    """Standard deviation of the slice profile, in voxels."""
    box, gaussian = geometry.thickness / math.sqrt(12), geometry.thickness / FWHM_PER_SIGMA
    return {"box": box, "gaussian": gaussian, "point": 0.0}[geometry.profile]


def suggested_detail(t1: Tensor, slices: Tensor, slicing: Slicing) -> tuple[Tensor, Tensor]:
    """The through-plane detail that the T2w would have if it followed the T1w as it does, locally, between its slices.

    A guided filter (He et al., IEEE TPAMI 35(6), 2013): T2w = slope x T1w + intercept inside the head, nothing in the
    air. Slope and intercept are fitted where both contrasts are known, on the slices, and applied to what slicing takes
    from the T1w and from the head's outline.

    Args:
        t1: shape (..., X, Y, Z).
        slices: shape (..., X, Y, count).
        slicing: between the two.

    Returns:
        The suggested T2w detail and the T1w detail it was made from, both of the T1w's shape.
    """
    head = head_share(t1)
    t1_slices, share = slicing.acquire(t1), slicing.acquire(head)
    slope, intercept = _fit(t1_slices, share, slices)
    t1_detail = t1 - slicing.upsample(t1_slices)
    outline_detail = head - slicing.upsample(share)
    detail = slicing.upsample(slope) * t1_detail + slicing.upsample(intercept) * outline_detail
    return detail, t1_detail


def likelier_profile(t1: Tensor | np.ndarray, slices: Tensor | np.ndarray, geometry: SliceGeometry) -> str:
    """``box`` or ``point``: whichever lets the T1w, cut into slices alike, explain the T2w's slices better.

    Slices that average over their thickness have softer outlines and contrasts than single planes; the T1w tells how
    soft. In 4 infants x 3 directions x 4 thicknesses this was right for every box, Gaussian and point profile.
    """
    slab = middle(len(t1), _PROFILE_SLAB)
    t1, slices = as_tensor(t1[slab]), as_tensor(slices[slab])
    share = head_share(t1)
    return min(("box", "point"), key=lambda profile: misfit(t1, share, slices, replace(geometry, profile=profile)))


def middle(length: int, wanted: int) -> slice:
    """The middle of an axis, of about so many voxels."""
    spare = max(length - wanted, 0) // 2
    return slice(spare, length - spare)


def misfit(t1: Tensor, share: Tensor, slices: Tensor, geometry: SliceGeometry, where: Tensor | None = None) -> float:
    """What the T1w, cut into slices, leaves unexplained of the T2w's: the sum of squares.

    Args:
        t1: shape (X, Y, Z).
        share: how much of each of its voxels is head (:func:`head_share`).
        slices: shape (X, Y, count).
        geometry: of the slices, along axis 2.
        where: the slices' voxels that count, of their shape; by default all where there is head.
    """
    t1_slices, share = (acquire(volume, geometry) for volume in (t1, share))
    slope, intercept = _fit(t1_slices, share, slices)
    missed = slices - slope * t1_slices - intercept * share
    where = (share > 0) | (slices > FAINTEST) if where is None else where
    return float(missed[where].square().sum(dtype=torch.float64))


def _fit(t1_slices: Tensor, share: Tensor, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Local slope and intercept of T2w = slope x T1w + intercept x share of head, where slices are partly air."""

    def weighed(values: Tensor) -> Tensor:
        return smooth(share * values, _NEIGHBOURHOOD, "constant") / weight

    # The head's own intensities there, weighted by how much of it there is.
    inside = share.clamp(min=_LEAST_SHARE)
    own_t1, own_t2 = t1_slices / inside, slices / inside * (share > 0)
    weight = smooth(share, _NEIGHBOURHOOD, "constant").clamp(min=1e-3)
    mean_t1, mean_t2 = weighed(own_t1), weighed(own_t2)
    variance = (weighed(own_t1.square()) - mean_t1.square()).clamp(min=0)
    covariance = weighed(own_t1 * own_t2) - mean_t1 * mean_t2
    slope = (covariance / (variance + _NOISE**2)).clamp(-_STEEPEST, _STEEPEST)
    return slope, mean_t2 - slope * mean_t1


def head_share(t1: Tensor) -> Tensor:
    """How much of each voxel is head, not air: 0 to 1; at the head's rim as the T1w's brightness there tells."""
    # Zero is what brain extraction leaves; a voxel that is merely dark is no air by itself.
    head = ~((t1 == 0) | _opened(t1 <= FAINTEST))
    deep = ~with_cubes(~head)
    weight = smooth(deep.to(t1.dtype), _RIM_SIGMAS)
    around = smooth(t1 * deep, _RIM_SIGMAS) / weight.clamp(min=1e-3)
    share = (t1 / (_RIM_BRIGHTNESS * around).clamp(min=1e-3)).clamp(0, 1)
    return torch.where(deep | (weight < 1e-3), head.to(t1.dtype), head * share)


def _opened(mask: Tensor) -> Tensor:
    """Morphological opening by a voxel and its six neighbours: what is left of the mask without its thin parts."""
    return with_neighbours(~with_neighbours(~mask, beyond=True), beyond=False)


def with_neighbours(mask: Tensor, beyond: bool) -> Tensor:
    """The mask and all neighbours of its voxels; ``beyond`` tells whether the voxels beyond the borders are in it."""
    grown = mask.clone()
    for axis in (-3, -2, -1):
        inner, length = mask.movedim(axis, 0), mask.shape[axis]
        outer = grown.movedim(axis, 0)
        outer[: length - 1] |= inner[1:]
        outer[1:] |= inner[:-1]
        if beyond:
            outer[0] = outer[-1] = True
    return grown


def with_cubes(mask: Tensor) -> Tensor:
    """The mask and the 3 x 3 x 3 voxels around each of its voxels."""
    for axis in (-3, -2, -1):
        inner, grown = mask.movedim(axis, 0), mask.clone()
        outer = grown.movedim(axis, 0)
        outer[:-1] |= inner[1:]
        outer[1:] |= inner[:-1]
        mask = grown
    return mask
