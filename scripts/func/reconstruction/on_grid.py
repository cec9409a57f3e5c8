"""Scans on one grid of 1 mm voxels: the slices lie along an axis of it, or oblique to it."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, voxel_sizes

from func.networks.guidance import likelier_profile
from func.reconstruction.working import WorkingCase, silence
from func.scans.case import Case, warn_of_thick_t1
from func.scans.intensity import zero_based_scale
from func.scans.nifti import array_of, image_of, name_of
from func.scans.resampling import resample
from func.slices.behind import slices_behind
from func.slices.geometry import SliceGeometry, measured_slices, slices_last, stated_length, upsample
from func.slices.oblique import ObliqueStack
from func.slices.recovery import RECOVERED

PLAUSIBLE_THICKNESS = (0.6, 1.05)  # of the recovered spacing; any other was stated of another grid


def case_on_grid(case: Case) -> WorkingCase:
    """A case whose scans lie on one grid of 1 mm voxels, in any orientation, on its working grid."""
    behind = case.behind or slices_behind(case.t1, case.t2, case.sidecar)
    if behind.t1_spacing:
        warn_of_thick_t1(case.t1, behind.t1_spacing, t2_is_thick=bool(behind.geometry or behind.oblique))
    return ObliqueCase(case, behind.oblique) if behind.oblique else GridCase(case, behind.geometry, behind.source)


class GridCase(WorkingCase):
    """Scans on one grid that the slices lie along: only turned, nothing is interpolated."""

    def __init__(self, case: Case, geometry: SliceGeometry | None, source: str) -> None:
        if source == RECOVERED:
            voxel = float(voxel_sizes(case.t2.affine)[geometry.axis])
            geometry = _of_thickness(geometry, _stated_thickness(case), voxel)
        axis = geometry.axis if geometry else int(np.argmin(case.t2.shape))
        self.name, self._like, self._turn = name_of(case.t2), case.t2, slices_last(axis)
        self.t1 = case.t1 and np.transpose(array_of(case.t1), self._turn)
        self.t2 = np.transpose(array_of(case.t2), self._turn)
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
        self.name, self._like = name_of(case.t2), case.t2
        shape, self.affine, geometry = _grid_along(stack, case.t2)
        voxel = float(voxel_sizes(self.affine)[2])
        geometry = _of_thickness(geometry, _stated_thickness(case), voxel)
        self.t1 = case.t1 and silence(resample(case.t1, shape, self.affine))
        self.slices = measured_slices(resample(case.t2, shape, self.affine), geometry)
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


def _grid_along(stack: ObliqueStack, t2: nib.Nifti1Image) -> tuple[tuple[int, int, int], np.ndarray, SliceGeometry]:
    """A grid along the slices, these last, over all of the T2w's field of view; and the slices in it."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in t2.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    reach = (corners - stack.center) @ stack.axes
    low = np.floor(reach.min(axis=0))
    shape = tuple(int(n) for n in np.ceil(reach.max(axis=0)) - low + 1)
    affine = t2.affine @ from_matvec(stack.axes, stack.center + stack.axes @ low)
    first = -low[2] % stack.spacing
    return shape, affine, SliceGeometry.fitting(2, shape[2], stack.spacing, first_center=first)


def _stated_thickness(case: Case) -> float | None:
    """Slice thickness in mm as the T2w's sidecar states it, or preprocessing.py there of the scan it started from."""
    acquired = case.sidecar.get("AsAcquired")
    stated = case.sidecar | (acquired if isinstance(acquired, dict) else {})
    return stated_length(stated, "SliceThickness", case.t2)


def _of_thickness(geometry: SliceGeometry, thickness: float | None, voxel: float) -> SliceGeometry:
    """Recovered slices, of the thickness stated in mm where that is plausible for slices so far apart."""
    low, high = (bound * geometry.spacing for bound in PLAUSIBLE_THICKNESS)
    stated = thickness is not None and low <= thickness / voxel <= high
    return replace(geometry, thickness=thickness / voxel) if stated else geometry


def _of_likelier_profile(t1: np.ndarray | None, slices: np.ndarray, geometry: SliceGeometry) -> SliceGeometry:
    """Recovered slices, of the profile that lets the T1w explain them better; of a box without a T1w."""
    if t1 is None:
        return geometry
    scaled = (zero_based_scale(scan).apply(scan) for scan in (t1, slices))
    return replace(geometry, profile=likelier_profile(*scaled, geometry))
