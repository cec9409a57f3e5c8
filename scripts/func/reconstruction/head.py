"""What the network sees of a case: cut to the head, in network units, the T1w laid upon the T2w."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from func.errors import warn
from func.networks.alignment import laid_upon_t2, t1_offset
from func.reconstruction.consistency import bad_slices
from func.reconstruction.working import WorkingCase
from func.scans.head import box_around
from func.scans.intensity import Scale, zero_based_scale
from func.slices.geometry import SliceGeometry, upsample

MARGIN = 6  # voxels of air kept around the head
_FAR = 10  # voxels from the T2w's head: there the T1w should show air
_NOISY = 0.1  # of the T1w's range, its mean there
_ALIKE = 0.5  # correlation of neighbouring voxels there: less is noise, more is skin and skull


@dataclass(frozen=True)
class Head:
    """The part of a working case around the head, float32, air 0 and the 99th percentile 1.

    Attributes:
        t1, t2: T1w and cubic up-sampled T2w, shape (X, Y, Z); cut in-plane only, since slices need all planes.
        slices: the measured slices, shape (X, Y, geometry.count); None where they are not known.
        geometry: of the slices, along axis 2; None where it is not known.
        box: where this part lies in the working grid.
        scale: from the T2w's own intensities to network units.
        t1_offset: how many voxels the T1w lay off the T2w; None where the slices are not known.
        coverage: how much of each voxel the T1w's field of view covers, shape (X, Y, Z); None where all of it.
        left_out: numbers of slices, counted from 0, that are black or far too dark or bright.
    """

    t1: np.ndarray | None
    t2: np.ndarray
    slices: np.ndarray | None
    geometry: SliceGeometry | None
    box: tuple[slice, slice, slice]
    scale: Scale
    t1_offset: float | None = None
    left_out: tuple[int, ...] = ()
    coverage: np.ndarray | None = None

    @classmethod
    def of(cls, working: WorkingCase) -> Head:
        """The head of a working case; a T1w that lies clearly off the T2w is moved onto it.

        Raises:
            BabyAIError: one of the scans has no voxel above zero.
        """
        scale = zero_based_scale(working.t2)
        scans = [scan for scan in (working.t1, working.t2) if scan is not None]
        occupied = np.any([(np.abs(scan) > 0.01 * np.abs(scan).max()).any(axis=2) for scan in scans], axis=0)
        box = (*box_around(occupied, MARGIN), slice(None))
        t2 = scale.apply(working.t2[box]).astype(np.float32)
        t1 = None
        if working.t1 is not None:
            t1 = zero_based_scale(working.t1).apply(working.t1[box]).astype(np.float32)
            t1 = _without_noise_in_air(t1, t2, working.name)
        if working.geometry is None:
            return cls(t1, t2, None, None, box, scale)
        slices = scale.apply(working.slices[box]).astype(np.float32)
        left_out = bad_slices(slices)
        if left_out:
            mended = _bridged(slices, left_out)
            t2 += upsample(mended - slices, working.geometry, t2.shape[2])
            slices = mended
            numbers = ", ".join(map(str, left_out))
            warn(
                f"Slices {numbers} (counted from 0) of {working.name} are far darker or brighter than their "
                "neighbours, and were left out."
            )
        distance = None
        if t1 is not None:
            offset = t1_offset(t1, slices, working.geometry) if working.t1_offset is None else working.t1_offset
            t1 = laid_upon_t2(t1, slices, working.geometry, offset)
            distance = round(float(np.linalg.norm(offset)), 2)
        coverage = None if working.coverage is None else working.coverage[box]
        return cls(t1, t2, slices, working.geometry, box, scale, distance, tuple(left_out), coverage)

    def guided(self, estimates: np.ndarray, upsampled: np.ndarray) -> np.ndarray:
        """The network's estimates, shape (runs, X, Y, Z), where the T1w covers the head; beyond, the up-sampled slices.

        Where the T1w tells nothing, the network would take its darkness for air.
        """
        return estimates if self.coverage is None else upsampled + self.coverage * (estimates - upsampled)

    def volume(self, values: np.ndarray, working: WorkingCase) -> np.ndarray:
        """The finished volume of the whole working grid, in the T2w's intensities, from its values in the head.

        Args:
            values: shape (X, Y, Z) of this part, in network units.
            working: outside the head its T2w stays as it is; where that has no negative values, the volume has none.
        """
        result = np.array(working.t2, dtype=np.float32)
        result[self.box] = self.scale.invert(values)
        if working.t2.min() >= 0 or working.slices is None or working.slices.min() >= 0:
            np.maximum(result, 0, out=result)
        return result

    def difference(self, values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Differences of intensity, in the T2w's intensities, on all of a grid of ``shape``: zero outside the head."""
        result = np.zeros(shape, np.float32)
        result[self.box] = values * (self.scale.high - self.scale.low)
        return result


def _bridged(slices: np.ndarray, left_out: list[int]) -> np.ndarray:
    """The slices with those left out interpolated linearly between the nearest others."""
    good = np.setdiff1d(np.arange(slices.shape[2]), left_out)
    mended = slices.copy()
    for number in left_out:
        below, above = good[good < number], good[good > number]
        low, high = (below[-1] if len(below) else above[0]), (above[0] if len(above) else below[-1])
        share = (number - low) / (high - low) if high > low else 0.0
        mended[..., number] = (1 - share) * slices[..., low] + share * slices[..., high]
    return mended


def _without_noise_in_air(t1: np.ndarray, t2: np.ndarray, name: str) -> np.ndarray:
    """The T1w without the bright noise that an MP2RAGE scan has where there is no head; any other is left as it is."""
    head = ndimage.binary_fill_holes(ndimage.binary_opening(t2[::2, ::2, ::2] > 0.1))
    far = ndimage.distance_transform_edt(~head) > _FAR / 2 if head.any() else ~head
    noise = t1[::2, ::2, ::2][: far.shape[0], : far.shape[1], : far.shape[2]]
    pairs = far[1:] & far[:-1]
    if pairs.sum() < 1000 or noise[far].mean() < _NOISY:
        return t1
    one, other = noise[1:][pairs], noise[:-1][pairs]
    if one.std() == 0 or np.corrcoef(one, other)[0, 1] > _ALIKE:
        return t1
    warn(f"The T1w is full of noise where {name} shows air, as an MP2RAGE scan is; it was set to 0 there.")
    whole = np.repeat(np.repeat(np.repeat(far, 2, 0), 2, 1), 2, 2)[: t1.shape[0], : t1.shape[1], : t1.shape[2]]
    return np.where(whole, 0, t1).astype(np.float32)
