"""The slice model: what a 2-D acquisition sees of a volume, and what can be inferred back from it.

A thick-slice scan is ``y = A x``: every slice is a weighted mean of the volume's planes around its centre. On a grid
whose planes are parallel to the slices, A acts along one array axis alone, so it is a small matrix (slices x planes),
and so are its adjoint, its regularised inverse and cubic up-sampling. All lengths here are in voxels of that grid,
along that axis, and positions are voxel indices (the centre of the first plane is 0.0).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import nibabel as nib
import numpy as np
from scipy import ndimage, special

from func.errors import BabyAIError, warn
from func.scans.nifti import image_of, name_of, named_as

AXIS_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}  # the world axis, and that of an array in RAS order
PROFILES = ("box", "gaussian", "point")
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))

_SAME_LENGTH = 0.05  # relative difference of a length in a sidecar and in a header that may be rounding
# Thickness over spacing: gaps reach four thicknesses, and scanners interpolate slices to an eighth of their thickness.
_PLAUSIBLE_THICKNESS = (0.2, 8.0)


@dataclass(frozen=True)
class SliceGeometry:
    """Where the slices of a scan lie in a volume.

    Attributes:
        axis: array axis the slices are stacked along (through-plane).
        thickness: slice thickness, in voxels.
        spacing: distance between the centres of neighbouring slices, in voxels; larger than the thickness by the gap.
        first_center: voxel index of the first slice's centre.
        count: number of slices.
        profile: ``box`` (mean over the thickness), ``gaussian`` (FWHM = thickness) or ``point`` (a single plane).
    """

    axis: int
    thickness: float
    spacing: float
    first_center: float
    count: int
    profile: str = "box"

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise BabyAIError(f"The slice profile '{self.profile}' is unknown; use one of {', '.join(PROFILES)}.")
        if self.count < 1 or not (self.thickness > 0 and self.spacing > 0):
            raise BabyAIError(
                f"A stack of {self.count} slices, {self.thickness:g} voxels thick and {self.spacing:g} apart, is "
                "impossible; check SliceThickness and SpacingBetweenSlices."
            )

    @classmethod
    def fitting(
        cls,
        axis: int,
        length: int,
        thickness: float,
        spacing: float | None = None,
        first_center: float | None = None,
        profile: str = "box",
    ) -> SliceGeometry:
        """As many slices as lie wholly inside ``length`` planes; the first begins at the volume's edge by default."""
        spacing = thickness if spacing is None else spacing
        if first_center is None:
            first_center = (thickness - 1) / 2
            if profile == "point":
                first_center = math.floor(first_center)
        count = math.floor((length - 0.5 - thickness / 2 - first_center) / spacing + 1e-6) + 1
        if count < 1:
            raise BabyAIError(f"No slice of {thickness:g} voxels fits into {length} planes; use thinner slices.")
        return cls(axis, float(thickness), float(spacing), float(first_center), count, profile)

    @classmethod
    def from_sidecar(cls, sidecar: dict, image: nib.Nifti1Image) -> SliceGeometry | None:
        """The geometry that the BIDS sidecar of an up-sampled scan states.

        Returns:
            None where the sidecar does not state it all, or (with a warning) states what cannot be.
        """
        keys = ("SliceThickness", "SpacingBetweenSlices", "SliceEncodingDirection", "FirstSliceCenter")
        if any(key not in sidecar for key in keys):
            return None
        axis = _stated_axis(sidecar, image)
        thickness, spacing = (stated_length(sidecar, key, image) for key in keys[:2])
        if axis is None or thickness is None or spacing is None:
            return None
        voxel = float(nib.affines.voxel_sizes(image.affine)[axis])
        length, first = image.shape[axis], _number(sidecar["FirstSliceCenter"])
        if not (spacing <= voxel * length and 0 <= first <= length - 0.5 - thickness / voxel / 2):
            warn(
                f"The sidecar of {name_of(image)} states slices {thickness:g} mm thick, {spacing:g} mm apart, the "
                f"first at voxel {first:g}, which does not fit {length} planes of {voxel:g} mm; it is not used."
            )
            return None
        return cls.fitting(axis, length, thickness / voxel, spacing / voxel, first, stated_profile(sidecar, image))

    def to_sidecar(self, voxel_size: float) -> dict:
        """BIDS sidecar entries; ``voxel_size`` is the size of the grid's voxels along the axis, in mm."""
        return {
            "SliceThickness": round(self.thickness * voxel_size, 6),
            "SpacingBetweenSlices": round(self.spacing * voxel_size, 6),
            "SliceEncodingDirection": "ijk"[self.axis],
            "FirstSliceCenter": round(self.first_center, 6),
            "SliceProfile": self.profile,
        }

    @property
    def centers(self) -> np.ndarray:
        """Voxel indices of the slice centres, shape (count,)."""
        return self.first_center + self.spacing * np.arange(self.count)

    def affine_in(self, affine: np.ndarray) -> np.ndarray:
        """The affine of the stack of slices itself, from that of the grid that this geometry speaks of."""
        steps, origin = np.ones(3), np.zeros(3)
        steps[self.axis], origin[self.axis] = self.spacing, self.first_center
        return affine @ nib.affines.from_matvec(np.diag(steps), origin)

    def on_axis(self, axis: int, length: int | None = None) -> SliceGeometry:
        """The same stack on another array axis; with ``length``, seen from that axis's far end (reversed)."""
        first = self.first_center if length is None else length - 1 - self.centers[-1]
        return replace(self, axis=axis, first_center=float(first))


def slices_last(axis: int) -> list[int]:
    """The order of array axes that puts ``axis`` last and keeps the other two: for ``np.transpose``."""
    return [other for other in range(3) if other != axis] + [axis]


def stack_geometry(t2: nib.Nifti1Image, sidecar: dict) -> tuple[int, float, float]:
    """Slice axis, thickness (mm) and spacing (mm) of a raw stack, from its header and sidecar.

    Where the slices lie is the header's alone to say. The sidecar adds which axis they are stacked along and how thick
    they are. What it says against the header, or in no usable form, is left out with a warning.
    """
    sizes = nib.affines.voxel_sizes(t2.affine)
    stated_spacing = stated_length(sidecar, "SpacingBetweenSlices", t2)
    thickness = stated_length(sidecar, "SliceThickness", t2)
    axis = _slice_axis(sidecar, t2, sizes, stated_spacing or thickness)
    spacing = float(sizes[axis])
    if stated_spacing and abs(stated_spacing / spacing - 1) > _SAME_LENGTH:
        warn(
            f"SpacingBetweenSlices of {name_of(t2)} is stated as {stated_spacing:g} mm, but by its header the slices "
            f"lie {spacing:.4g} mm apart; the header is used. Where the result is squeezed or stretched, give "
            f"inference.py --spacing {stated_spacing:g}."
        )
    low, high = (bound * spacing for bound in _PLAUSIBLE_THICKNESS)
    if thickness and not low <= thickness <= high:
        warn(
            f"SliceThickness of {name_of(t2)} is stated as {thickness:g} mm, which slices {spacing:.4g} mm apart can "
            f"hardly have; {spacing:.4g} mm is used (give another with --thickness)."
        )
        thickness = None
    return axis, thickness or spacing, spacing


def contradicted_spacing(t2: nib.Nifti1Image, sidecar: dict) -> tuple[int, float] | None:
    """The slice axis of a raw stack, and the spacing (mm) that its sidecar states against its header; None if none."""
    stated, sizes = _length(sidecar.get("SpacingBetweenSlices")), nib.affines.voxel_sizes(t2.affine)
    if stated is None or (np.abs(stated / sizes - 1) <= _SAME_LENGTH).any():
        return None
    return _slice_axis(sidecar, t2, sizes, stated), stated


def with_spacing(image: nib.Nifti1Image, axis: int, spacing: float) -> nib.Nifti1Image:
    """The same stack with its slices ``spacing`` mm apart along ``axis``, the first where it was.

    For a header that is wrong, as where a converter took the slice thickness for the spacing.
    """
    steps = np.ones(3)
    steps[axis] = spacing / nib.affines.voxel_sizes(image.affine)[axis]
    return named_as(image_of(image.dataobj, image.affine @ np.diag([*steps, 1]), image), image)


def stated_profile(sidecar: dict, image: nib.Nifti1Image) -> str:
    """The slice profile that a sidecar states (``SliceProfile``, which is no BIDS key); a box where it states none."""
    profile = sidecar.get("SliceProfile", "box")
    if profile in PROFILES:
        return profile
    warn(f"SliceProfile of {name_of(image)} is {_shown(profile)}, not one of {', '.join(PROFILES)}; a box is used.")
    return "box"


def _slice_axis(sidecar: dict, image: nib.Nifti1Image, sizes: np.ndarray, length: float | None) -> int:
    """The stated slice axis, unless another is clearly the thick one; ``length`` is a stated spacing or thickness."""
    thickest = int(np.argmax(sizes))
    stated = _stated_axis(sidecar, image)
    if stated is None or sizes[thickest] <= 1.2 * sizes[stated]:
        return thickest if stated is None else stated
    if length and abs(length / sizes[stated] - 1) <= _SAME_LENGTH:
        return stated
    warn(
        f"SliceEncodingDirection of {name_of(image)} is {'ijk'[stated]}, but its voxels are longest along "
        f"{'ijk'[thickest]} ({sizes[thickest]:.4g} mm, not {sizes[stated]:.4g}): the scan was probably reoriented and "
        f"its sidecar was not; {'ijk'[thickest]} is used."
    )
    return thickest


def _stated_axis(sidecar: dict, image: nib.Nifti1Image) -> int | None:
    """The array axis that BIDS calls i, j or k; a minus, for slices counted from the far end, makes no difference."""
    if "SliceEncodingDirection" not in sidecar:
        return None
    direction = sidecar["SliceEncodingDirection"]
    if direction in ("i", "j", "k", "i-", "j-", "k-"):
        return "ijk".index(direction[0])
    warn(f"SliceEncodingDirection of {name_of(image)} is {_shown(direction)}, not i, j or k; it is not used.")
    return None


def stated_length(sidecar: dict, key: str, image: nib.Nifti1Image) -> float | None:
    """A length in mm that a sidecar states, whatever its sign (DICOM has negative spacings); None where it does not."""
    if key not in sidecar:
        return None
    length = _length(sidecar[key])
    if length is None:
        warn(f"{key} of {name_of(image)} is {_shown(sidecar[key])}, not a length in mm; it is not used.")
    return length


def _length(value: object) -> float | None:
    """A sidecar's value as a length in mm, whatever its sign; None where it is none."""
    length = abs(_number(value))
    return length if 0 < length < math.inf else None


def _number(value: object) -> float:
    """A sidecar's value as a number, also where it was written as text or in a list; NaN for all else."""
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    if isinstance(value, str):
        value = value.strip().removesuffix("mm")
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _shown(value: object) -> str:
    """A sidecar's value as it stands in the file, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


@lru_cache(maxsize=64)
def slice_matrix(geometry: SliceGeometry, length: int) -> np.ndarray:
    """The forward operator A along the axis: shape (count, length), float64, rows summing to 1."""
    centers, planes = geometry.centers[:, None], np.arange(length)[None, :]
    if geometry.profile == "box":
        half = geometry.thickness / 2
        weights = np.minimum(planes + 0.5, centers + half) - np.maximum(planes - 0.5, centers - half)
    elif geometry.profile == "gaussian":
        scale = FWHM_PER_SIGMA / geometry.thickness / math.sqrt(2)
        weights = special.erf((planes + 0.5 - centers) * scale) - special.erf((planes - 0.5 - centers) * scale)
    else:
        weights = 1 - np.abs(planes - centers)
    weights = np.maximum(weights, 0.0)
    sums = weights.sum(axis=1, keepdims=True)
    if (sums < 1e-9).any():
        raise BabyAIError(f"Some slices lie outside the volume's {length} planes; check the slice geometry.")
    return _frozen(weights / sums)


@lru_cache(maxsize=64)
def upsampling_matrix(geometry: SliceGeometry, length: int) -> np.ndarray:
    """Cubic-spline interpolation from slices, at their true positions, to planes: shape (length, count), float64.

    The B-spline has mirror boundaries, as in ITK and SciPy; beyond the outermost slice centres their values are kept.
    Between fewer than four slices it is linear.
    """
    count = geometry.count
    positions = np.clip((np.arange(length) - geometry.first_center) / geometry.spacing, 0, count - 1)[:, None]
    if count < 4:
        return _frozen(np.maximum(1 - np.abs(positions - np.arange(count)), 0))
    distance = np.abs(positions - np.arange(-1, count + 1))
    near, rest = 2 / 3 - distance * distance * (1 - distance / 2), np.maximum(2 - distance, 0)
    coefficients = ndimage.spline_filter1d(np.eye(count), axis=0, mode="mirror")
    weights = np.where(distance < 1, near, rest * rest * rest / 6)
    return _frozen(weights @ np.pad(coefficients, ((1, 1), (0, 0)), "reflect"))


@lru_cache(maxsize=64)
def consistency_matrix(geometry: SliceGeometry, length: int, damping: float = 0.0) -> np.ndarray:
    """A'(AA' + damping I)^-1, the least change of the planes that explains a residual of the slices: (length, count).

    ``damping`` is in units of AA', whose diagonal is about 1 / thickness for a box profile: 0 where the slices are
    free of noise, noise variance over the variance of the reconstruction's own error otherwise (Tikhonov).
    """
    forward = slice_matrix(geometry, length)
    gram = forward @ forward.T
    # Overlapping profiles make AA' nearly singular; this much keeps its inverse from amplifying rounding.
    floor = 1e-3 * np.trace(gram) / len(gram)
    return _frozen(
        np.linalg.solve(gram + max(damping, floor if _overlapping(geometry) else 0) * np.eye(len(gram)), forward).T
    )


def _overlapping(geometry: SliceGeometry) -> bool:
    return geometry.profile == "gaussian" or geometry.thickness > geometry.spacing + 1e-6


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix.flags.writeable = False
    return matrix


def along(matrix, volume, axis: int):
    """Product of a matrix (m, n) with a volume's axis of length n, for a NumPy array or a torch tensor.

    Negative axes count from the end, so that leading batch and channel axes may be present. Keeps the volume's dtype.
    """
    axis %= volume.ndim
    if isinstance(volume, np.ndarray):
        matrix = matrix.astype(volume.dtype, copy=False)
        if axis == volume.ndim - 1:
            return (volume.reshape(-1, volume.shape[axis]) @ matrix.T).reshape(*volume.shape[:axis], len(matrix))
        return np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
    operator = on_device(matrix, volume)
    if axis == volume.ndim - 1:
        return volume @ operator.mT
    return (operator @ volume.flatten(axis + 1)).unflatten(-1, volume.shape[axis + 1 :])


def on_device(array, like):
    """A NumPy array as a torch tensor of the dtype and on the device of another one; a tensor there is left as it is.

    Without waiting for what a GPU still has to do.
    """
    import torch

    if isinstance(array, torch.Tensor):
        return array.to(like)
    tensor = torch.tensor(array, dtype=like.dtype)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor.to(like.device)


def acquire(volume, geometry: SliceGeometry):
    """The slices y = A x that a scan with this geometry measures of a volume."""
    return along(slice_matrix(geometry, volume.shape[geometry.axis]), volume, geometry.axis)


def adjoint(slices, geometry: SliceGeometry, length: int):
    """A' y: the slices spread back over ``length`` planes, so that <Ax, y> = <x, A'y>."""
    return along(slice_matrix(geometry, length).T, slices, geometry.axis)


def upsample(slices, geometry: SliceGeometry, length: int):
    """Cubic-spline up-sampling of the slices to ``length`` planes, each slice at its true position."""
    return along(upsampling_matrix(geometry, length), slices, geometry.axis)


def measured_slices(upsampled, geometry: SliceGeometry):
    """The slices that a cubic up-sampled volume was made from: the left inverse of :func:`upsample`."""
    length = upsampled.shape[geometry.axis]
    return along(np.linalg.pinv(upsampling_matrix(geometry, length)), upsampled, geometry.axis)


def make_consistent(volume, slices, geometry: SliceGeometry, damping: float = 0.0):
    """The volume nearest to ``volume`` that agrees with the measured slices: x + A'(AA' + damping I)^-1 (y - A x)."""
    length = volume.shape[geometry.axis]
    correction = consistency_matrix(geometry, length, damping)
    return volume + along(correction, slices - acquire(volume, geometry), geometry.axis)
