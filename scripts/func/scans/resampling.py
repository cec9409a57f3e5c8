"""Interpolation of a scan on another grid, under a motion: once, on every processor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
from scipy import ndimage

from func.processors import threads
from func.scans.head import box_around

_AIR = 0.005  # of the 99th percentile: what is fainter is no head


def resample(
    image: nib.Nifti1Image,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    matrix: np.ndarray | None = None,
    order: int = 3,
) -> np.ndarray:
    """Interpolate an image, once, on another grid, under a motion.

    The spline has mirror boundaries; half a voxel around the outermost voxel centres still belongs to the image and
    takes their values, beyond that there is 0. Where the image has no negative values, the result has none either. Its
    air is interpolated linearly, which is faster, and leaves air that is exactly 0, as around an extracted brain,
    without the spline's faint ringing.

    Args:
        image: any grid.
        shape, affine: the grid wanted.
        matrix: world mm of that grid -> world mm of the image; none by default.
        order: 3 cubic spline, 1 linear, 0 nearest neighbour (labels).

    Returns:
        float32 array of shape ``shape``.
    """
    array = np.asarray(image.dataobj, dtype=np.float32)
    to_voxels = np.linalg.inv(image.affine) @ (np.eye(4) if matrix is None else matrix) @ affine
    last = np.array(array.shape)[:, None] - 1
    first_not_zero, last_not_zero = np.zeros((3, 1), int), last
    has_air = order > 1 and array.min() >= 0
    if has_air and array.any():
        box = box_around(array != 0)
        first_not_zero = np.array([[part.start] for part in box])
        last_not_zero = np.array([[part.stop - 1] for part in box])
        sparse = array[::2, ::2, ::2]
        air = _AIR * np.percentile(sparse[sparse > 0], 99) if sparse.any() else 0
    low = np.maximum(-0.5 - 1e-4, first_not_zero - 1)
    high = np.minimum(last + 0.5 + 1e-4, last_not_zero + 1)
    result = np.zeros(shape, np.float32)
    # Each plane lies as the first does, but for a shift.
    plane = to_voxels[:3, 1:3] @ np.indices(shape[1:], dtype=float).reshape(2, -1)

    def interpolate(index: int) -> None:
        shift = (to_voxels[:3, 3] + index * to_voxels[:3, 0])[:, None]
        inside = np.flatnonzero(((plane >= low - shift) & (plane <= high - shift)).all(axis=0))
        voxels, values = np.clip(plane.take(inside, axis=1) + shift, 0, last), result[index].reshape(-1)
        if has_air:
            values[inside] = linear = ndimage.map_coordinates(array, voxels, order=1, mode="mirror")
            head = np.flatnonzero(linear > air)
            inside, voxels = inside.take(head), voxels.take(head, axis=1)
        spline = ndimage.map_coordinates(coefficients, voxels, order=order, mode="mirror", prefilter=False)
        values[inside] = np.maximum(spline, 0) if has_air else spline

    with ThreadPoolExecutor(threads()) as pool:
        coefficients = _spline_coefficients(array, order, pool) if order > 1 else array
        list(pool.map(interpolate, range(shape[0])))
    return result


def _spline_coefficients(array: np.ndarray, order: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """As scipy.ndimage.spline_filter with mirror boundaries, in all threads."""
    coefficients = array.copy()
    for axis in range(3):
        blocks = np.array_split(coefficients, threads(), axis=(axis + 1) % 3)

        def filter_block(block: np.ndarray, axis: int = axis) -> None:
            if block.size:
                ndimage.spline_filter1d(block, order, axis, output=block, mode="mirror")

        list(pool.map(filter_block, blocks))
    return coefficients
