"""A case on its working grid, where the slices are planes of the last axis, and the way back from there.

Three kinds of cases, one path: scans on one grid whose slices lie along an axis of it; scans on one grid that the
slices are oblique to; and scans as they were acquired, each with a grid of its own. Each becomes a WorkingCase.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, voxel_sizes
from scipy import ndimage

from func.networks.guidance import LARGEST_T1_OFFSET, likelier_profile, t1_offset
from func.scans.case import Case
from func.scans.intensity import zero_based_scale
from func.scans.nifti import array_of, image_of
from func.scans.registration import check_same_head, register_rigid, resample
from func.slices.geometry import SliceGeometry, measured_slices, slices_last, stack_geometry, stated_profile, upsample
from func.slices.oblique import ObliqueStack, find_oblique_stack
from func.slices.recovery import RECOVERED, explaining_geometry

PLAUSIBLE_THICKNESS = (0.6, 1.05)  # of the recovered spacing; any other was stated of another grid
_RINGING = 2e-3  # of the brightest voxel: a cubic spline's faint ringing in the air around a brain is no anatomy


class WorkingCase(ABC):
    """Scans in their own intensities on one grid of about 1 mm, the slices along its last axis.

    Attributes:
        t1: the T1w, shape (X, Y, Z).
        t2: the slices, cubic up-sampled, shape (X, Y, Z).
        slices: the measured slices, shape (X, Y, geometry.count); None where they are not known.
        geometry: of the slices, along axis 2; None where it is not known.
        affine: voxel of the working grid -> world mm of the T2w scan.
        report: what was found on the way here, as plain values for the JSON sidecar.
    """

    t1: np.ndarray
    t2: np.ndarray
    slices: np.ndarray | None
    geometry: SliceGeometry | None
    affine: np.ndarray
    report: dict

    @abstractmethod
    def put_back(self, volume: np.ndarray) -> nib.Nifti1Image:
        """The finished volume, shape (X, Y, Z), as the image that the user gets."""

    @abstractmethod
    def put_map_back(self, widths: np.ndarray) -> nib.Nifti1Image:
        """A map of values from 0, shape (X, Y, Z), on the grid of the image that the user gets."""

    @abstractmethod
    def residual_image(self, residual: np.ndarray) -> nib.Nifti1Image:
        """A residual of the slices, shape (X, Y, count), where they lie in the T2w's world."""


def silence(t1: np.ndarray) -> np.ndarray:
    """Make air of what is only the ringing of an interpolated T1w, in place."""
    t1[t1 < _RINGING * t1.max()] = 0
    return t1


def working_case(case: Case, space: str | None = None) -> WorkingCase:
    """Bring a case onto its working grid.

    Args:
        case: scans on one grid of 1 mm voxels, in any orientation, where ``space`` is None; or else as acquired.
        space: the grid of the result of scans as acquired: ``1mm`` for the T1w's frame at 1 mm, ``t1`` for the T1w's
            own grid.

    Raises:
        BabyAIError: the sidecar contradicts the header, or the two scans do not show one head.
    """
    if space:
        return AcquiredCase(case, space)
    t2 = array_of(case.t2)
    geometry, source = explaining_geometry(t2, SliceGeometry.from_sidecar(case.sidecar, case.t2))
    stack = None if geometry else find_oblique_stack(t2)
    return ObliqueCase(case, stack) if stack else GridCase(case, geometry, source)


class GridCase(WorkingCase):
    """Scans on one grid that the slices lie along: only turned, nothing is interpolated."""

    def __init__(self, case: Case, geometry: SliceGeometry | None, source: str) -> None:
        if source == RECOVERED:
            voxel = float(voxel_sizes(case.t2.affine)[geometry.axis])
            geometry = _of_thickness(geometry, _stated_thickness(case.sidecar), voxel)
        axis = geometry.axis if geometry else int(np.argmin(case.t2.shape))
        self._like, self._turn = case.t2, slices_last(axis)
        self.t1, self.t2 = (np.transpose(array_of(scan), self._turn) for scan in (case.t1, case.t2))
        self.affine = case.t2.affine[:, [*self._turn, 3]]
        self.geometry = replace(geometry, axis=2) if geometry else None
        self.slices = measured_slices(self.t2, self.geometry) if geometry else None
        if source == RECOVERED:
            self.geometry = _of_likelier_profile(self.t1, self.slices, self.geometry)
        self.report = {"SliceGeometry": {"Source": source}}
        if geometry:
            voxel = float(voxel_sizes(self.affine)[2])
            self.report["SliceGeometry"] |= replace(self.geometry, axis=axis).to_sidecar(voxel)

    def put_back(self, volume: np.ndarray) -> nib.Nifti1Image:
        return self._turned_back(volume, self._like.affine)

    put_map_back = put_back

    def residual_image(self, residual: np.ndarray) -> nib.Nifti1Image:
        affine = replace(self.geometry, axis=self._turn[2]).affine_in(self._like.affine)
        return self._turned_back(residual, affine)

    def _turned_back(self, array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
        return image_of(np.ascontiguousarray(np.transpose(array, np.argsort(self._turn))), affine, self._like)


class ObliqueCase(WorkingCase):
    """Scans on one grid that the slices are oblique to: worked on along the slices, and only the gain turned back."""

    def __init__(self, case: Case, stack: ObliqueStack) -> None:
        self._like = case.t2
        shape, self.affine, geometry = _grid_along(stack, case.t2)
        voxel = float(voxel_sizes(self.affine)[2])
        geometry = _of_thickness(geometry, _stated_thickness(case.sidecar), voxel)
        self.t1, t2 = (resample(scan, shape, self.affine) for scan in (case.t1, case.t2))
        silence(self.t1)
        self.slices = measured_slices(t2, geometry)
        self.geometry = geometry = _of_likelier_profile(self.t1, self.slices, geometry)
        self.t2 = upsample(self.slices, geometry, shape[2])
        self.report = {
            "SliceGeometry": {
                "Source": f"{RECOVERED}, oblique to its grid",
                "SliceThickness": round(geometry.thickness * voxel, 4),
                "SpacingBetweenSlices": round(geometry.spacing * voxel, 4),
                "SliceProfile": geometry.profile,
                "StackAffine": np.round(geometry.affine_in(self.affine), 6).tolist(),
                "StackShape": [*shape[:2], geometry.count],
            }
        }

    def put_back(self, volume: np.ndarray) -> nib.Nifti1Image:
        # The T2w itself is not interpolated again.
        gain = resample(image_of(volume - self.t2, self.affine, self._like), self._like.shape, self._like.affine)
        result = array_of(self._like) + gain
        if array_of(self._like).min() >= 0:
            np.maximum(result, 0, out=result)
        return image_of(result, self._like.affine, self._like)

    def put_map_back(self, widths: np.ndarray) -> nib.Nifti1Image:
        turned = resample(image_of(widths, self.affine, self._like), self._like.shape, self._like.affine)
        return image_of(np.maximum(turned, 0), self._like.affine, self._like)

    def residual_image(self, residual: np.ndarray) -> nib.Nifti1Image:
        return image_of(residual, self.geometry.affine_in(self.affine), self._like)


class AcquiredCase(WorkingCase):
    """Scans as they were acquired.

    The T1w is brought to the stack, not the stack to the T1w: there the slices are planes of the grid, the slice model
    is exact, and the measured slices are used as they are. Only the finished volume is turned into the T1w's frame.
    """

    def __init__(self, case: Case, space: str) -> None:
        axis, thickness, spacing = stack_geometry(case.t2, case.sidecar)
        registration = register_rigid(case.t1, case.t2)
        check_same_head(registration, case.t1, case.t2)
        profile = stated_profile(case.sidecar, case.t2)
        shape, self.affine, geometry = _grid_around(case.t2, axis, thickness, spacing, profile)
        slice_affine = geometry.affine_in(self.affine)
        self.slices = resample(_smoothed_in_plane(case.t2, axis), (*shape[:2], geometry.count), slice_affine)
        self.t1 = resample(case.t1, shape, self.affine, np.linalg.inv(registration.matrix))
        scaled = (zero_based_scale(scan).apply(scan) for scan in (self.t1, self.slices))
        offset = t1_offset(*scaled, geometry)
        if np.linalg.norm(offset) > LARGEST_T1_OFFSET:
            correction = from_matvec(np.eye(3), self.affine[:3, :3] @ offset)
            registration = replace(registration, matrix=correction @ registration.matrix)
            self.t1 = resample(case.t1, shape, self.affine, np.linalg.inv(registration.matrix))
        silence(self.t1)
        self.t2 = upsample(self.slices, geometry, shape[2])
        self.geometry = geometry
        self._like_t1, self._like_t2 = case.t1, case.t2
        self._frame, self._t1_to_t2 = t1_frame(case.t1, space), registration.matrix
        self.report = {
            "SliceGeometry": {
                "Source": "sidecar" if "SliceThickness" in case.sidecar else "header",
                "SliceThickness": round(thickness, 4),
                "SpacingBetweenSlices": round(spacing, 4),
                "SliceEncodingDirection": "ijk"[axis],
                "SliceProfile": geometry.profile,
            },
            "Registration": {
                "T1wToT2w": np.round(registration.matrix, 8).tolist(),
                "Similarity": round(registration.similarity, 4),
                "Overlap": round(registration.overlap, 4),
            },
        }

    def put_back(self, volume: np.ndarray) -> nib.Nifti1Image:
        shape, affine = self._frame
        moved = resample(image_of(volume, self.affine, self._like_t2), shape, affine, self._t1_to_t2)
        return image_of(moved, affine, self._like_t1)

    def put_map_back(self, widths: np.ndarray) -> nib.Nifti1Image:
        moved = self.put_back(widths)
        return image_of(np.maximum(array_of(moved), 0), moved.affine, self._like_t1)

    def residual_image(self, residual: np.ndarray) -> nib.Nifti1Image:
        return image_of(residual, self.geometry.affine_in(self.affine), self._like_t2)


def t1_frame(t1: nib.Nifti1Image, space: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the result's grid: the T1w's own, or its field of view in voxels of 1 mm."""
    sizes = voxel_sizes(t1.affine)
    if space == "t1" or np.abs(sizes - 1).max() < 1e-3:
        return t1.shape, t1.affine
    shape = np.maximum(1, np.round(np.array(t1.shape) * sizes)).astype(int)
    center = (np.array(t1.shape) - 1) / 2
    affine = t1.affine @ from_matvec(np.diag(1 / sizes), center - (shape - 1) / 2 / sizes)
    return tuple(int(n) for n in shape), affine


def _grid_around(
    t2: nib.Nifti1Image, axis: int, thickness: float, spacing: float, profile: str
) -> tuple[tuple[int, int, int], np.ndarray, SliceGeometry]:
    """A 1 mm grid along the stack's axes, the slices last, that holds every slice whole; and the slices in it."""
    sizes = voxel_sizes(t2.affine)
    turn = slices_last(axis)
    margin = int(np.ceil(thickness)) + 1
    in_plane = [max(1, round(t2.shape[a] * sizes[a])) for a in turn[:2]]
    planes = int(np.ceil((t2.shape[axis] - 1) * spacing)) + 2 * margin + 1
    shape = (in_plane[0], in_plane[1], planes)
    # Voxel (i, j, k) of the grid -> voxel of the stack: in-plane the fields of view share their centres.
    matrix, offset = np.zeros((3, 3)), np.zeros(3)
    for column, a in enumerate(turn):
        matrix[a, column] = 1 / sizes[a]
    for column, a in enumerate(turn[:2]):
        offset[a] = (t2.shape[a] - 1) / 2 - (shape[column] - 1) / 2 / sizes[a]
    offset[axis] = -margin / sizes[axis]
    geometry = SliceGeometry(2, thickness, spacing, float(margin), t2.shape[axis], profile)
    return shape, t2.affine @ from_matvec(matrix, offset), geometry


def _grid_along(stack: ObliqueStack, t2: nib.Nifti1Image) -> tuple[tuple[int, int, int], np.ndarray, SliceGeometry]:
    """A grid along the slices, these last, over all of the T2w's field of view; and the slices in it."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in t2.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    reach = (corners - stack.center) @ stack.axes
    low = np.floor(reach.min(axis=0))
    shape = tuple(int(n) for n in np.ceil(reach.max(axis=0)) - low + 1)
    affine = t2.affine @ from_matvec(stack.axes, stack.center + stack.axes @ low)
    first = -low[2] % stack.spacing
    return shape, affine, SliceGeometry.fitting(2, shape[2], stack.spacing, first_center=first)


def _smoothed_in_plane(t2: nib.Nifti1Image, axis: int) -> nib.Nifti1Image:
    """The stack, low-passed where its in-plane voxels are so small that 1 mm voxels would alias."""
    sizes = voxel_sizes(t2.affine)
    sigma = [0.0 if a == axis or sizes[a] > 0.8 else 0.425 * np.sqrt(1 / sizes[a] ** 2 - 1) for a in range(3)]
    return image_of(ndimage.gaussian_filter(array_of(t2), sigma), t2.affine, t2) if any(sigma) else t2


def _stated_thickness(sidecar: dict) -> float | None:
    """Slice thickness in mm as the T2w's sidecar states it, or preprocessing.py there of the scan it started from."""
    acquired = sidecar.get("AsAcquired")
    stated = (sidecar | (acquired if isinstance(acquired, dict) else {})).get("SliceThickness")
    return float(stated) if isinstance(stated, int | float) else None


def _of_thickness(geometry: SliceGeometry, thickness: float | None, voxel: float) -> SliceGeometry:
    """Recovered slices, of the thickness stated in mm where that is plausible for slices so far apart."""
    low, high = (bound * geometry.spacing for bound in PLAUSIBLE_THICKNESS)
    stated = thickness is not None and low <= thickness / voxel <= high
    return replace(geometry, thickness=thickness / voxel) if stated else geometry


def _of_likelier_profile(t1: np.ndarray, slices: np.ndarray, geometry: SliceGeometry) -> SliceGeometry:
    """Recovered slices, of the profile that lets the T1w explain them better."""
    scaled = (zero_based_scale(scan).apply(scan) for scan in (t1, slices))
    return replace(geometry, profile=likelier_profile(*scaled, geometry))
