"""Separable filters of volumes as products with small matrices: SciPy's results, also for torch tensors on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from func.slices.geometry import along


def smooth(volume, sigmas: Sequence[float], mode: str = "reflect"):
    """``scipy.ndimage.gaussian_filter`` of a NumPy array or a torch tensor, shape (..., X, Y, Z).

    Args:
        sigmas: standard deviations along the last three axes, in voxels; 0 leaves an axis as it is.
        mode: what lies beyond the borders: ``reflect`` (the volume's mirror image), ``constant`` (zeros).
    """
    for axis, sigma in zip((-3, -2, -1), sigmas, strict=True):
        if sigma:
            volume = along(gaussian_matrix(volume.shape[axis], float(sigma), mode), volume, axis)
    return volume


@lru_cache(maxsize=64)
def gaussian_matrix(length: int, sigma: float, mode: str = "reflect") -> np.ndarray:
    """``scipy.ndimage.gaussian_filter1d`` of as many values, shape (length, length)."""
    return ndimage.gaussian_filter1d(np.eye(length), sigma, axis=0, mode=mode)
