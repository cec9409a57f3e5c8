"""Intensity normalisation and its exact inverse.

MRI intensities have no unit of their own, so a network sees them on a scale taken from the scan itself, and its
output goes back to the scan's own numbers afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from func.errors import BabyAIError

# Keeps the denominator from zero; part of the published normalisation.
_EPSILON = 1e-6
_ROUNDING = 1e-6  # of the brightest voxel
_MANY = 0.1  # of the voxels: so many of one value are air
_PEAK = 0.05  # of the voxels: so many in a hundredth of the range are a peak
_SOME = 0.02  # of the voxels: so many darker than air are tissue
_NEAR_ZERO = 0.03  # of the range of intensities
_SPIKE = 10.0  # times the 99.9th percentile: brighter than anything in a head
_MOST_SPIKES = 1e-4  # of the voxels


@dataclass(frozen=True)
class Scale:
    """The linear map that takes ``low`` to 0 and ``high`` to 1; works on NumPy arrays and torch tensors."""

    low: float
    high: float

    def apply(self, array):
        """Intensities in the scan's own units -> network units. Nothing is clipped."""
        return (array - self.low) / (self.high - self.low)

    def invert(self, array):
        """Network units -> intensities in the scan's own units."""
        return array * (self.high - self.low) + self.low


def scale_of(array: np.ndarray, percentiles: tuple[float, float] = (1, 99)) -> Scale:
    """The scale of the published normalisation: two percentiles of the voxels above zero.

    Raises:
        BabyAIError: no voxel is above zero.
    """
    low, high = np.percentile(_foreground(array), percentiles)
    return Scale(float(low), float(high) + _EPSILON)


def zero_based_scale(array: np.ndarray, percentile: float = 99) -> Scale:
    """Zero stays zero, so that air needs no clipping; a percentile of the voxels above zero goes to 1.

    What interpolation's rounding left in the air does not count.

    Raises:
        BabyAIError: no voxel is above zero.
    """
    foreground = _foreground(array)
    return Scale(0.0, float(np.percentile(foreground[foreground > _ROUNDING * foreground.max()], percentile)))


def published_normalise(array: np.ndarray) -> np.ndarray:
    """Network input exactly as the published model was trained: scaled by percentiles 1 and 99, clipped to [0, 1].

    Apply it to the padded volume. The clipping flattens whatever is brighter than the 99th percentile.
    """
    return np.clip(scale_of(array).apply(array), 0, 1).astype(np.float32, copy=False)


class Level(NamedTuple):
    """Where the intensities of a scan start.

    Attributes:
        air: the intensity of air.
        darkest: how much darker than air the darkest tissue is, where only the head was z-scored; 0 or negative.
    """

    air: float = 0.0
    darkest: float = 0.0

    def remove(self, array: np.ndarray) -> np.ndarray:
        """Bring air to 0 and tissue above it."""
        lifted = array - np.float32(self.air)
        return np.where(lifted == 0, 0, lifted - np.float32(self.darkest)) if self.darkest else lifted

    def restore(self, array: np.ndarray) -> np.ndarray:
        """The inverse; what is about as dark as air becomes air."""
        if self.darkest:
            array = np.where(array < _NEAR_ZERO * -self.darkest, 0, array + np.float32(self.darkest))
        return array + np.float32(self.air)

    def __str__(self) -> str:
        tissue = f", tissue goes down to {self.air + self.darkest:.4g}" if self.darkest else ""
        return f"air has {self.air:.4g}{tissue}"


FROM_ZERO = Level()


def level_of(array: np.ndarray) -> Level:
    """Where the intensities of a scan start: at 0 in most, but not in one that was z-scored or shifted.

    Air is the most frequent value where many voxels share it, as around an extracted brain; else the peak at the low
    end of the histogram. Noise around 0, and a spline's ringing below it, are no other level.
    """
    sample = array[::2, ::2, ::2].ravel()
    low, high = (float(value) for value in np.percentile(sample, [0.1, 99.5]))
    near = _NEAR_ZERO * (high - low)
    values, counts = np.unique(sample, return_counts=True)
    commonest = int(np.argmax(counts))
    many = counts[commonest] > _MANY * sample.size
    if many:
        air = float(values[commonest])
    else:
        counts, edges = np.histogram(sample, 100, (low, high))
        peak = int(np.argmax(counts))
        air = float(edges[peak : peak + 2].mean())
        if abs(low) < near or counts[peak] < _PEAK * sample.size or (sample < air - 2 * near).mean() > _SOME:
            return Level()
    air = 0.0 if abs(air) < near else air
    below = sample < air - near
    return Level(air, float(array.min()) - air if many and below.mean() > _SOME else 0.0)


def without_spikes(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The scan with voxels far brighter than all others set to the median around them, and how many those were.

    Args:
        array: shape (I, J, K), air at 0.
    """
    # Where so many are brighter than a tenth of the brightest, so is the percentile, which takes longer to find.
    if (array > array.max() / _SPIKE).sum() > 0.002 * array.size:
        return array, 0
    top = _SPIKE * np.percentile(array, 99.9)
    spikes = np.argwhere(array > top) if array.max() > top > 0 else np.empty((0, 3), int)
    if not 0 < len(spikes) < _MOST_SPIKES * array.size:
        return array, 0
    mended = array.copy()
    for spike in spikes:
        around = array[tuple(slice(max(at - 2, 0), at + 3) for at in spike)]
        mended[tuple(spike)] = np.median(around[around <= top]) if (around <= top).any() else 0
    return mended, len(spikes)


def _foreground(array: np.ndarray) -> np.ndarray:
    foreground = array[array > 0]
    if foreground.size == 0:
        raise BabyAIError("A volume has no voxel above zero, so that its intensities cannot be scaled; check the scan.")
    return foreground
