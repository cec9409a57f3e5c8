"""Rigid registration of brain scans: any header, any contrast, thick slices.

The similarity is mutual information (Mattes et al., IEEE TMI 2003), optimised by SimpleITK at 8, 4, 2 and 1 mm. Headers
are not trusted: besides the header's own position, the centres of both heads are laid upon each other in every
orientation, coarsely, and only what aligns best is refined.

Matrices are 4 x 4 and map world mm (RAS+, as nibabel's affines) of the fixed image to world mm of the moving image:
the direction in which an image is resampled, and ITK's. Files hold them in ITK's format, in ITK's LPS+ frame.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError
from func.volumes import atomic, name_of

_BINS = 32
# Half the diameter of an infant's head in mm: turns radians into the mm that the surface moves.
_HEAD_RADIUS = 50.0
# Samples beyond which a level's similarity gains nothing in precision.
_MOST_SAMPLES = 40_000
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Registration:
    """How one scan lies against another.

    Attributes:
        matrix: shape (4, 4), world mm (RAS+) of the fixed image -> world mm of the moving image.
        similarity: mutual information inside the head at about 2 mm, over the entropy of the thicker image: 0 to 1.
        overlap: share of the head in the thicker image that lies inside the other image's field of view.
    """

    matrix: np.ndarray
    similarity: float
    overlap: float


@dataclass(frozen=True)
class _Volume:
    """Array of shape (I, J, K), float32, >= 0, and its affine, voxel -> world mm."""

    array: np.ndarray
    affine: np.ndarray

    def itk(self) -> sitk.Image:
        """The same in ITK, which is told RAS+ coordinates; it does not mind as long as it is told nothing else."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.array.T))
        sizes = voxel_sizes(self.affine)
        image.SetSpacing(sizes.tolist())
        image.SetOrigin(self.affine[:3, 3].tolist())
        image.SetDirection((self.affine[:3, :3] / sizes).ravel().tolist())
        return image


def register_rigid(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    *,
    slice_thickness: float | None = None,
    start: np.ndarray | None = None,
    scaled: bool = False,
) -> Registration:
    """Find the rigid motion between two scans of a head, brain-extracted or whole, of the same or another contrast.

    Deterministic: one thread, a fixed seed.

    Args:
        fixed, moving: either may have thick slices, any orientation and any field of view.
        slice_thickness: of the image with the thicker voxels, in mm, where it is not its voxel size (a gap).
        start: only refine this matrix (up to some 10 mm and 15 degrees off) instead of searching.
        scaled: the heads differ in size, as an infant's and an atlas's do: let the size vary meanwhile, and return the
            rigid part that keeps the moving head's centre where it came to lie.

    Raises:
        BabyAIError: the two heads cannot be laid upon each other.
    """
    # The thicker voxels are averages of many thin ones, never the reverse: they are the samples that are compared.
    swapped = voxel_sizes(moving.affine).max() > voxel_sizes(fixed.affine).max()
    reference, floating = (_prepared(image) for image in ((moving, fixed) if swapped else (fixed, moving)))
    floating = _padded(floating)
    levels = {spacing: _Level(reference, floating, spacing, scaled) for spacing in (8, 4, 2)}
    try:
        if start is None:
            matrix = _search(levels)
        else:
            matrix = levels[4].align(np.linalg.inv(start) if swapped else np.asarray(start, float))
        matrix = _refine(reference, floating, levels[2].align(matrix), slice_thickness, scaled)
    except RuntimeError:
        raise BabyAIError(
            f"{name_of(moving)} could not be laid upon {name_of(fixed)}; check that both show the same head."
        ) from None
    similarity, overlap = levels[2].similarity(matrix) / levels[2].entropy, levels[2].overlap(matrix)
    matrix = np.linalg.inv(matrix) if swapped else matrix
    if scaled:
        matrix = _rigid_part(matrix, _center(reference if swapped else floating))
    return Registration(matrix, similarity, overlap)


def _prepared(image: nib.Nifti1Image) -> _Volume:
    """Intensities from 0, without the few brightest voxels, which would leave the others few histogram bins."""
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = array - min(float(array.min()), 0.0)
    return _Volume(np.minimum(array, np.percentile(array[array > 0], 99.5)), np.asarray(image.affine, float))


def _foreground(array: np.ndarray) -> np.ndarray:
    return array > 0.1 * np.percentile(array[array > 0], 98)


def _padded(volume: _Volume, margin: float = 30.0) -> _Volume:
    """The volume with ``margin`` mm more air beyond every face that shows air, so that leaving it counts as air."""
    inside = _foreground(volume.array)
    steps = np.ceil(margin / voxel_sizes(volume.affine)).astype(int)
    widths = [
        [int(step) if np.take(inside, face, axis).mean() < 0.02 else 0 for face in (0, -1)]
        for axis, step in enumerate(steps)
    ]
    shift = nib.affines.from_matvec(np.eye(3), [-before for before, _ in widths])
    return _Volume(np.pad(volume.array, widths), volume.affine @ shift)


def _at_spacing(volume: _Volume, spacing: float) -> _Volume:
    """Smooth and shrink along the axes whose voxels are smaller than ``spacing`` mm."""
    factors = np.maximum(1, spacing / voxel_sizes(volume.affine))
    shape = np.floor((np.array(volume.array.shape) - 1) / factors).astype(int) + 1
    offset = ((np.array(volume.array.shape) - 1) - (shape - 1) * factors) / 2
    smooth = ndimage.gaussian_filter(volume.array, np.where(factors > 1, 0.4 * factors, 0))
    array = ndimage.affine_transform(smooth, factors, offset, output_shape=tuple(shape), order=1)
    return _Volume(array, volume.affine @ nib.affines.from_matvec(np.diag(factors), offset))


def _head(volume: _Volume, margin: float = 8.0) -> np.ndarray:
    """The head and ``margin`` mm of what surrounds it, so that its outline counts."""
    distance = ndimage.distance_transform_edt(~_foreground(volume.array), sampling=voxel_sizes(volume.affine))
    return distance <= margin


def _center(volume: _Volume) -> np.ndarray:
    """Centre of mass of the head, world mm."""
    inside = np.argwhere(_foreground(volume.array))
    return apply_affine(volume.affine, np.average(inside, axis=0, weights=volume.array[tuple(inside.T)]))


class _Level:
    """Two volumes at one resolution: how similar they are under a motion, and which motion near it is best.

    Only the reference's head is sampled. Matrices map the reference's world mm to the floating volume's.
    """

    def __init__(self, reference: _Volume, floating: _Volume, spacing: float, scaled: bool) -> None:
        self.spacing, self._scaled = spacing, scaled
        self._reference, self._floating = _at_spacing(reference, spacing), _at_spacing(floating, spacing)
        self.center, self.floating_center = _center(self._reference), _center(self._floating)
        head = _head(self._reference)
        voxels = np.argwhere(head)
        self._share = min(1.0, _MOST_SAMPLES / len(voxels))
        voxels = voxels[:: math.ceil(1 / self._share)]
        self._points = apply_affine(self._reference.affine, voxels)
        self._codes = _binned(self._reference.array[tuple(voxels.T)], self._reference.array.max())
        self._images = self._reference.itk(), self._floating.itk()
        self._mask = sitk.Cast(_Volume(head.astype(np.float32), self._reference.affine).itk(), sitk.sitkUInt8)

    def similarity(self, matrix: np.ndarray) -> float:
        """Mutual information in nats, where voxels outside the floating volume's field of view tell nothing."""
        voxels, inside = self._voxels(matrix)
        if inside.sum() < 64:
            return 0.0
        array = self._floating.array
        values = ndimage.map_coordinates(array, voxels[inside].T, order=1, mode="nearest")
        codes = self._codes[inside] * _BINS + _binned(values, array.max())
        joint = np.bincount(codes, minlength=_BINS**2).reshape(_BINS, _BINS)
        joint = ndimage.gaussian_filter(joint.astype(float), 0.7, mode="nearest") / len(codes)
        gain = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1)) - _entropy(joint)
        return gain * float(inside.mean())

    def best(self, matrices: list[np.ndarray], count: int) -> list[np.ndarray]:
        """The ``count`` matrices of greatest similarity, the greatest first."""
        return sorted(matrices, key=self.similarity, reverse=True)[:count]

    @property
    def entropy(self) -> float:
        """Entropy of the reference's voxels in nats: as much as another image can tell of them."""
        return _entropy(np.bincount(self._codes, minlength=_BINS) / len(self._codes))

    def overlap(self, matrix: np.ndarray) -> float:
        """Share of the reference's head inside the floating volume's field of view."""
        return float(self._voxels(matrix)[1].mean())

    def _voxels(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        voxels = apply_affine(np.linalg.inv(self._floating.affine) @ matrix, self._points)
        return voxels, ((voxels > -0.5) & (voxels < np.array(self._floating.array.shape) - 0.5)).all(axis=1)

    def align(self, matrix: np.ndarray) -> np.ndarray:
        """The local optimum that gradient descent reaches from ``matrix``.

        Raises:
            RuntimeError: too few voxels overlap (from ITK).
        """
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(_BINS)
        method.SetMetricFixedMask(self._mask)
        method.SetMetricUseMovingImageGradientFilter(False)
        if self._share < 1:
            method.SetMetricSamplingStrategy(method.REGULAR)
            method.SetMetricSamplingPercentage(self._share, 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            self.spacing / 2, self.spacing / 200, 100, gradientMagnitudeTolerance=1e-10
        )
        motion = sitk.Similarity3DTransform() if self._scaled else sitk.Euler3DTransform()
        # Steps are in mm: a parameter weighs as much as it moves the head's surface.
        rotation = 2 * _HEAD_RADIUS if self._scaled else _HEAD_RADIUS
        scales = [rotation**2] * 3 + [1.0] * 3 + [_HEAD_RADIUS**2] * self._scaled
        method.SetOptimizerScales(scales)
        motion.SetCenter(self.center.tolist())
        method.SetMovingInitialTransform(_to_itk(matrix))
        method.SetInitialTransform(motion, inPlace=True)
        method.Execute(*self._images)
        return matrix @ _from_itk(motion)


def _binned(values: np.ndarray, highest: float) -> np.ndarray:
    return np.minimum((values * (_BINS / highest)).astype(np.intp), _BINS - 1)


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _to_itk(matrix: np.ndarray) -> sitk.AffineTransform:
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def _from_itk(transform: sitk.Transform) -> np.ndarray:
    corners = np.array([transform.TransformPoint(point) for point in [(0.0, 0.0, 0.0), *np.eye(3).tolist()]])
    return nib.affines.from_matvec((corners[1:] - corners[0]).T, corners[0])


def _orientations() -> list[np.ndarray]:
    """360 rotations, none of all rotations far from one: the 24 axis-parallel ones, each tilted 14 ways."""
    faces = np.deg2rad(35) * np.concatenate([np.eye(3), -np.eye(3)])
    corners = np.deg2rad(50) * (np.indices((2, 2, 2)).reshape(3, -1).T * 2 - 1) / np.sqrt(3)
    tilts = Rotation.from_rotvec(np.concatenate([np.zeros((1, 3)), faces, corners]))
    return [(turn * tilt).as_matrix() for turn in Rotation.create_group("O") for tilt in tilts]


def _search(levels: dict[int, _Level]) -> np.ndarray:
    """The best of many starts: the likeliest are followed at 8 mm, the best few of those at 4 mm."""
    coarse = levels[8]
    center, target = coarse.center, coarse.floating_center
    turned = [nib.affines.from_matvec(turn, target - turn @ center) for turn in _orientations()]
    starts = [np.eye(4), nib.affines.from_matvec(np.eye(3), target - center), *coarse.best(turned, 16)]
    found = coarse.best(_followed(coarse, starts), len(starts))
    return levels[4].best(_followed(levels[4], _distinct(found, center)[:4]), 1)[0]


def _followed(level: _Level, starts: list[np.ndarray]) -> list[np.ndarray]:
    """What the starts lead to, but for those that put the heads apart.

    Raises:
        RuntimeError: all of them do.
    """
    found = []
    for start in starts:
        with contextlib.suppress(RuntimeError):
            found.append(level.align(start))
    if not found:
        raise RuntimeError
    return found


def _distinct(matrices: list[np.ndarray], center: np.ndarray) -> list[np.ndarray]:
    """Those that move a head around ``center`` otherwise than all that stand before them, by some 5 mm."""
    surface = center + _HEAD_RADIUS * np.concatenate([np.eye(3), -np.eye(3)])
    kept: list[np.ndarray] = []
    for matrix in matrices:
        if all(mean_displacement(matrix, other, surface) > 5 for other in kept):
            kept.append(matrix)
    return kept


def _refine(
    reference: _Volume, floating: _Volume, matrix: np.ndarray, slice_thickness: float | None, scaled: bool
) -> np.ndarray:
    """The last millimetre: at 1 mm, the floating volume seen through the reference's slice profile."""
    sizes = voxel_sizes(reference.affine)
    axis = int(sizes.argmax())
    if sizes[axis] < 1.5 * np.median(sizes):
        return _Level(reference, floating, 1, scaled).align(matrix)
    fine = _at_spacing(floating, 1)
    for _ in range(2):
        seen = _seen_in_slices(reference, fine, matrix, axis, slice_thickness or sizes[axis])
        matrix = matrix @ _Level(reference, seen, 1, scaled).align(np.eye(4))
    return matrix


def _seen_in_slices(reference: _Volume, floating: _Volume, matrix: np.ndarray, axis: int, thickness: float) -> _Volume:
    """The floating volume moved upon the reference's axes, 1 mm voxels, averaged over the slice thickness."""
    sizes = voxel_sizes(reference.affine)
    margin = np.ceil(thickness + 4)
    extent = (np.array(reference.array.shape) - 1) * sizes + 2 * margin
    affine = reference.affine @ nib.affines.from_matvec(np.diag(1 / sizes), -margin / sizes)
    to_voxels = np.linalg.inv(floating.affine) @ matrix @ affine
    shape = tuple(np.ceil(extent).astype(int) + 1)
    array = ndimage.affine_transform(floating.array, to_voxels[:3, :3], to_voxels[:3, 3], output_shape=shape, order=1)
    reach = math.ceil((thickness - 1) / 2)
    box = np.clip(thickness / 2 + 0.5 - np.abs(np.arange(-reach, reach + 1)), 0, 1)
    return _Volume(ndimage.correlate1d(array, box / box.sum(), axis=axis, mode="nearest"), affine)


def _rigid_part(matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The motion without its change of size, the point that comes to lie at ``center`` staying where it is."""
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    origin = apply_affine(np.linalg.inv(matrix), center)
    return nib.affines.from_matvec(u @ vt, center - u @ vt @ origin)


def mean_displacement(matrix_a: np.ndarray, matrix_b: np.ndarray, points: np.ndarray) -> float:
    """Mean distance in mm between where two motions take the points, shape (N, 3), world mm."""
    return float(np.linalg.norm(apply_affine(matrix_a, points) - apply_affine(matrix_b, points), axis=1).mean())


def resample(
    image: nib.Nifti1Image,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    matrix: np.ndarray | None = None,
    order: int = 3,
) -> np.ndarray:
    """Interpolate an image, once, on another grid, under a motion.

    The spline has mirror boundaries; half a voxel around the outermost voxel centres still belongs to the image and
    takes their values, beyond that there is 0. Where the image has no negative values, the result has none either.

    Args:
        image: any grid.
        shape, affine: the grid wanted.
        matrix: world mm of that grid -> world mm of the image; none by default.
        order: 3 cubic spline, 1 linear, 0 nearest neighbour (labels).

    Returns:
        float32 array of shape ``shape``.
    """
    array = np.asarray(image.dataobj, dtype=np.float32)
    coefficients = ndimage.spline_filter(array, order, output=np.float32, mode="mirror") if order > 1 else array
    last = np.array(array.shape)[:, None, None] - 1
    to_voxels = np.linalg.inv(image.affine) @ (np.eye(4) if matrix is None else matrix) @ affine
    result = np.empty(shape, np.float32)
    plane = np.moveaxis(np.indices((1, *shape[1:]), dtype=float)[:, 0], 0, -1)
    for index in range(shape[0]):
        voxels = np.moveaxis(apply_affine(to_voxels, plane + np.array([index, 0, 0])), -1, 0)
        inside = ((voxels >= -0.5 - 1e-4) & (voxels <= last + 0.5 + 1e-4)).all(axis=0)
        result[index] = 0
        if inside.any():
            result[index][inside] = ndimage.map_coordinates(
                coefficients, np.clip(voxels, 0, last)[:, inside], order=order, mode="mirror", prefilter=False
            )
    return np.maximum(result, 0, out=result) if array.min() >= 0 else result


def save_itk_transform(path: str | Path, matrix: np.ndarray) -> None:
    """Write a motion as an ITK transform file (``.tfm``), which ITK, ANTs, 3D Slicer and SimpleITK read.

    ``antsApplyTransforms -i moving -r fixed -t FILE`` or ``sitk.Resample(moving, fixed, transform)`` then lay the
    moving image upon the fixed one.

    Args:
        path: should end in ``.tfm``.
        matrix: world mm (RAS+) of the fixed image -> world mm of the moving image.

    Raises:
        BabyAIError: the file could not be written.
    """
    with atomic(path) as temporary:
        sitk.WriteTransform(_to_itk(_LPS @ matrix @ _LPS), str(temporary))


def load_itk_transform(path: str | Path) -> np.ndarray:
    """Read a rigid or affine ITK transform file as a matrix, world mm (RAS+) of the fixed image -> of the moving image.

    Raises:
        BabyAIError: missing, not a transform file, or not linear.
    """
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise BabyAIError(f"{path} is missing or is not an ITK transform file; check the path.") from None
    if not transform.IsLinear():
        raise BabyAIError(f"{path} holds a non-linear transform; give a rigid or affine one.")
    return _LPS @ _from_itk(transform) @ _LPS
