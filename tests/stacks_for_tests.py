"""Stacks of a small head, scanned in any plane, with any motion of its slices."""

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from func.phantom import infant_brain

SHAPE = (80, 92, 80)
AFFINE = from_matvec(np.eye(3), -(np.array(SHAPE) - 1) / 2)
_SHRUNK = 1.7


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
    shape = np.insert(np.delete(SHAPE, axis) if shape is None else np.array(shape), axis, count)
    matrix = Rotation.from_rotvec(np.deg2rad(tilt)).as_matrix() @ np.diag(sizes)
    if left_handed:
        matrix[:, (axis + 1) % 3] *= -1
    return tuple(int(n) for n in shape), from_matvec(matrix, -matrix @ (shape - 1) / 2)


def scanned(image, axis: int, thickness: float, count: int, spacing: float | None = None, poses=None, **grid):
    """A stack of an image: each slice the mean over its thickness, at the place that ``poses`` say.

    ``poses``: world mm of the image -> where that lay while each slice was acquired, shape (count, 4, 4).
    """
    shape, affine = stack_affine(axis, spacing or thickness, count, **grid)
    poses = np.repeat(np.eye(4)[None], count, axis=0) if poses is None else poses
    coefficients = ndimage.spline_filter(image.get_fdata(), 3)
    normal = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    slices = np.zeros(shape, np.float32)
    pixels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    offsets = (np.arange(9) + 0.5) / 9 - 0.5
    for index in range(count):
        plane = tuple(index if other == axis else slice(None) for other in range(3))
        points = apply_affine(affine, pixels[plane])[..., None, :] + thickness * offsets[:, None] * normal
        voxels = apply_affine(np.linalg.inv(image.affine) @ np.linalg.inv(poses[index]), points)
        slices[plane] = ndimage.map_coordinates(
            coefficients, np.moveaxis(voxels, -1, 0), order=3, prefilter=False
        ).mean(-1)
    return nib.Nifti1Image(np.maximum(slices, 0), affine)
