"""Intensity normalisation and its exact inverse.

MRI intensities have no unit of their own, so a network sees them on a scale taken from the scan itself, and its
output goes back to the scan's own numbers afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from func.errors import BabyAIError

# Keeps the denominator from zero; part of the published normalisation.
_EPSILON = 1e-6


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

    Raises:
        BabyAIError: no voxel is above zero.
    """
    return Scale(0.0, float(np.percentile(_foreground(array), percentile)))


def published_normalise(array: np.ndarray) -> np.ndarray:
    """Network input exactly as the published model was trained: scaled by percentiles 1 and 99, clipped to [0, 1].

    Apply it to the padded volume. The clipping flattens whatever is brighter than the 99th percentile.
    """
    return np.clip(scale_of(array).apply(array), 0, 1).astype(np.float32, copy=False)


def _foreground(array: np.ndarray) -> np.ndarray:
    foreground = array[array > 0]
    if foreground.size == 0:
        raise BabyAIError("A volume has no voxel above zero, so that its intensities cannot be scaled; check the scan.")
    return foreground
