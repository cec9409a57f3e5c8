"""Stacks of a small head, scanned in any plane, with any motion of its slices."""

from functools import cache

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from func.phantom import infant_brain
from func.slices.scanner import grid_around, scan

SHAPE = (80, 92, 80)
AFFINE = from_matvec(np.eye(3), -(np.array(SHAPE) - 1) / 2)
_SHRUNK = 1.7


@cache
def small_head() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A T2w of a phantom of 1.7 mm voxels called 1 mm, so that a whole head fits a small grid, and a T1w.

    The T1w is the T2w in opposite contrast, as an adult's is nearly.
    """
    center = np.array([0, -4, 7])
    affine = from_matvec(_SHRUNK * np.eye(3), _SHRUNK * AFFINE[:3, 3] + center)
    phantom = infant_brain(shape=SHAPE, affine=affine, age_months=3)
    t2 = np.asarray(phantom.t2.dataobj, np.float32)
    t1 = np.where(t2 > 0, 1000 * (1.3 - np.minimum(t2 / t2.max(), 1)) ** 1.5, 0).astype(np.float32)
    return nib.Nifti1Image(t1, AFFINE), nib.Nifti1Image(t2, AFFINE)


def rigid(turn: tuple = (0, 0, 0), shift: tuple = (0, 0, 0)) -> np.ndarray:
    """A motion: turns about the axes (degrees), then shifts (mm)."""
    return from_matvec(Rotation.from_rotvec(np.deg2rad(turn)).as_matrix(), shift)


def stack_affine(axis: int, spacing: float, count: int, tilt=(0, 0, 0), left_handed: bool = False, shape=None):
    """Shape and affine of a stack of 1 mm pixels around the origin, tilted by degrees about the axes.

    ``shape``: of its slices; those of the head by default.
    """
    sizes = np.ones(3)
    sizes[axis] = spacing
    if left_handed:
        sizes[(axis + 1) % 3] *= -1
    shape = np.insert(np.delete(SHAPE, axis) if shape is None else np.array(shape), axis, count)
    return tuple(int(n) for n in shape), grid_around(np.zeros(3), shape, sizes, tilt)


def scanned(image, axis: int, thickness: float, count: int, spacing: float | None = None, poses=None, **grid):
    """A stack of an image; see :func:`stack_affine` for the grid, :func:`func.slices.scanner.scan` for the poses."""
    shape, affine = stack_affine(axis, spacing or thickness, count, **grid)
    return scan(image, shape, affine, axis, thickness, poses)
