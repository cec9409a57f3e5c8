"""Scans a head in thick slices, as a scanner does: in any plane, tilted, and while the head moves.

For digital infants and for tests; what is known of slices on a volume's own grid is func.slices.geometry.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from func.scans.head import box_around
from func.scans.nifti import image_of

_SAMPLES = 8  # across a slice
_MARGIN = 4  # voxels around the head beyond which a spline is 0


def grid_around(
    center: Sequence[float], shape: Sequence[int], sizes: Sequence[float], tilt: Sequence[float] = (0, 0, 0)
) -> np.ndarray:
    """The affine of a grid around a point: voxel -> world mm, shape (4, 4).

    Args:
        center: of the grid, world mm.
        shape, sizes: of its voxels, mm.
        tilt: how far it is turned about the world axes, a rotation vector in degrees.
    """
    matrix = Rotation.from_rotvec(tilt, degrees=True).as_matrix() @ np.diag(sizes)
    return from_matvec(matrix, center - matrix @ (np.array(shape) - 1) / 2)


def scan(
    head: nib.Nifti1Image,
    shape: Sequence[int],
    affine: np.ndarray,
    axis: int,
    thickness: float | None = None,
    poses: np.ndarray | None = None,
) -> nib.Nifti1Image:
    """A stack of slices of a head, each the mean over its thickness (a box profile).

    Args:
        head: an isotropic volume of voxels no larger than the slices' pixels, 0 or more.
        shape, affine: the stack's grid.
        axis: of the stack's array, across its slices.
        thickness: mm; by default the spacing, which leaves no gap.
        poses: for each slice, world mm of the head -> where that lies while the slice is acquired, shape
            (shape[axis], 4, 4); by default the head lies still.

    Returns:
        float32, on the stack's grid.
    """
    array = np.asarray(head.dataobj, np.float32)
    box = box_around(array != 0, _MARGIN)
    coefficients = ndimage.spline_filter(array[box], 3, np.float32)
    to_voxels = np.linalg.inv(head.affine @ from_matvec(np.eye(3), [part.start for part in box]))
    spacing = voxel_sizes(affine)[axis]
    # Voxels of the stack: all samples of its first slice.
    samples = np.indices([_SAMPLES, *np.delete(shape, axis)], dtype=float)
    samples[0] = ((samples[0] + 0.5) / _SAMPLES - 0.5) * (thickness or spacing) / spacing
    samples = np.moveaxis(np.insert(samples[1:], axis, samples[0], axis=0), 0, -1)
    slices = []
    for index in range(shape[axis]):
        pose = np.eye(4) if poses is None else np.linalg.inv(poses[index])
        places = apply_affine(to_voxels @ pose @ affine, samples + index * np.eye(3)[axis])
        seen = ndimage.map_coordinates(coefficients, np.moveaxis(places, -1, 0), prefilter=False)
        slices.append(seen.mean(axis=0))
    return image_of(np.maximum(np.stack(slices, axis), 0), affine, head)
