"""A case on its working grid, where the slices are planes of the last axis, and the way back from there.

Three kinds of cases, one path. Scans on one grid whose slices lie along an axis of it, or oblique to it, are in
``on_grid.py``; scans as they were acquired, each with a grid of its own, in ``acquired.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import nibabel as nib
import numpy as np

from func.slices.geometry import SliceGeometry

_RINGING = 2e-3  # of the brightest voxel: a cubic spline's faint ringing in the air around a brain is no anatomy


class WorkingCase(ABC):
    """Scans in their own intensities on one grid of about 1 mm, the slices along its last axis.

    Attributes:
        name: the T2w's file, for messages.
        t1: the T1w, shape (X, Y, Z); None where there is none.
        t2: the slices, cubic up-sampled, shape (X, Y, Z).
        slices: the measured slices, shape (X, Y, geometry.count); None where they are not known.
        geometry: of the slices, along axis 2; None where it is not known.
        affine: voxel of the working grid -> world mm of the T2w scan.
        t1_offset: how far the T1w would have to move to fit the T2w best, in voxels along each axis, shape (3,); None
            where that has not been measured.
        coverage: how much of each voxel the T1w's field of view covers, shape (X, Y, Z), 0 to 1, falling off inside its
            border; None where it covers everything.
        report: what was found on the way here, as plain values for the JSON sidecar.
    """

    name: str
    t1: np.ndarray | None
    t2: np.ndarray
    slices: np.ndarray | None
    geometry: SliceGeometry | None
    affine: np.ndarray
    report: dict
    t1_offset: np.ndarray | None = None
    coverage: np.ndarray | None = None

    @abstractmethod
    def put_back(self, volume: np.ndarray) -> nib.Nifti1Image:
        """The finished volume, shape (X, Y, Z), as the image that the user gets."""

    @abstractmethod
    def put_map_back(self, widths: np.ndarray) -> nib.Nifti1Image:
        """A map of values from 0, shape (X, Y, Z), on the grid of the image that the user gets."""

    def finish(self, volume: np.ndarray, left_out: list[int]) -> tuple[nib.Nifti1Image, dict]:
        """The image that the user gets of the finished volume, and what was found on the way, for the checks.

        Args:
            volume: shape (X, Y, Z).
            left_out: numbers of slices that are not to be agreed with.
        """
        return self.put_back(volume), {}

    @abstractmethod
    def residual_image(self, residual: np.ndarray) -> nib.Nifti1Image:
        """A residual of the slices, shape (X, Y, count), where they lie in the T2w's world."""


def silence(scan: np.ndarray) -> np.ndarray:
    """Make air of what is only the ringing of an interpolated scan, in place."""
    scan[scan < _RINGING * scan.max()] = 0
    return scan
