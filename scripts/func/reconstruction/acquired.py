"""Scans as they were acquired: each with its own grid, moved against each other, in slices as thick as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy import ndimage

from func.errors import BabyAIError, warn
from func.networks.alignment import LARGEST_T1_OFFSET, t1_offset
from func.networks.guidance import with_neighbours
from func.reconstruction.consistency import HEAD, noise_of, rms
from func.reconstruction.working import WorkingCase, silence
from func.scans.case import Case, warn_of_voxels
from func.scans.intensity import zero_based_scale
from func.scans.nifti import array_of, image_of, name_of
from func.scans.registration import check_head_volume, check_same_head, register_rigid
from func.scans.resampling import resample
from func.slices.filters import gaussian_matrix, smooth
from func.slices.geometry import (
    SliceGeometry,
    acquire,
    along,
    make_consistent,
    slices_last,
    stack_geometry,
    stated_profile,
    upsample,
    upsampling_matrix,
)

_SPACES, _MOTIONS = ("1mm", "t1", "t2"), ("auto", "on", "off")

_MOST_VOXELS = 2**27  # of a result
_FINE_ENOUGH = 0.8  # of the voxels wanted: a stack with larger ones in-plane needs no low-pass
_AROUND = 5  # voxels: how far around a voxel its detail is told from noise
_FROM_BORDER, _BORDER_SIGMA = 4, 1.5  # voxels within the T1w's field of view, where it fades out
_MISSED = 0.02  # of what the T2w shows: a T1w that leaves out more is told of


@dataclass(frozen=True)
class RawSettings:
    """How scans as they were acquired are to be reconstructed.

    Attributes:
        space: the result's grid: ``1mm``, the T1w's field of view; ``t1``, the T1w's own grid; ``t2``, the T2w's field
            of view, in which nothing is turned. Without a T1w it is always ``t2``.
        voxel_size: of the result in mm, in the spaces ``1mm`` and ``t2``: a number, or ``in-plane`` for the T2w's own.
            The network works at 1 mm; below that, what the slices hold of finer detail is added afterwards.
        min_similarity: a registration of T1w and T2w with less of it is refused; None for the check's own judgement.
        motion: ``auto`` to look for motion of the slices and undo what is found, ``on`` to undo it however little it
            is, ``off`` to take the head to have lain still.

    Raises:
        BabyAIError: there is no such space, or motion.
    """

    space: str = "1mm"
    voxel_size: float | str = 1.0
    min_similarity: float | None = None
    motion: str = "auto"

    def __post_init__(self) -> None:
        for name, value, values in (("space", self.space, _SPACES), ("motion", self.motion, _MOTIONS)):
            if value not in values:
                raise BabyAIError(f"'{value}' is no {name} of raw scans; use one of {', '.join(values)}.")


@dataclass(frozen=True)
class StackGrid:
    """Cubic voxels along a stack's axes, the slices last, that hold every slice whole; and the slices in them.

    Attributes:
        shape: (X, Y, Z).
        affine: voxel -> world mm of the stack.
        geometry: of the slices, along axis 2, in voxels of this grid.
        voxel: mm.
        axis: the stack's array axis across its slices.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    geometry: SliceGeometry
    voxel: float
    axis: int

    @classmethod
    def around(
        cls, t2: nib.Nifti1Image, axis: int, thickness: float, spacing: float, profile: str, voxel: float = 1.0
    ) -> StackGrid:
        """The grid of ``voxel`` mm around a stack of slices ``thickness`` mm thick and ``spacing`` mm apart."""
        sizes = voxel_sizes(t2.affine) / voxel
        thickness, spacing = thickness / voxel, spacing / voxel
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
        return cls(shape, t2.affine @ from_matvec(matrix, offset), geometry, voxel, axis)

    @property
    def slice_affine(self) -> np.ndarray:
        """Voxel of the slices, shape (X, Y, count) -> world mm of the stack."""
        return self.geometry.affine_in(self.affine)

    def slices_of(self, t2: nib.Nifti1Image) -> np.ndarray:
        """The stack's slices on this grid's in-plane voxels, shape (X, Y, count), low-passed so as not to alias."""
        turn = slices_last(self.axis)
        slices, sizes = np.transpose(array_of(t2), turn), voxel_sizes(t2.affine)[turn] / self.voxel
        nonnegative = slices.min() >= 0
        for axis, size in enumerate(sizes[:2]):
            length, own = self.shape[axis], slices.shape[axis]
            if length == own and abs(size - 1) < 1e-3:
                continue
            # The fields of view share their centres.
            first = (length - 1) / 2 - (own - 1) / 2 * size
            matrix = upsampling_matrix(SliceGeometry(axis, size, size, first, own, "point"), length)
            if size <= _FINE_ENOUGH:
                matrix = matrix @ gaussian_matrix(own, 0.425 * float(np.sqrt(1 / size**2 - 1)))
            slices = along(matrix, slices, axis)
        return silence(np.ascontiguousarray(slices)) if nonnegative else slices

    def within_slices(self, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The planes of a volume on this grid that some slice saw, and their affine."""
        half = max(self.geometry.thickness, self.geometry.spacing) / 2
        first = max(0, int(np.ceil(self.geometry.first_center - half)))
        last = min(self.shape[2] - 1, int(np.floor(self.geometry.centers[-1] + half)))
        return volume[..., first : last + 1], self.affine @ from_matvec(np.eye(3), [0, 0, first])

    def carried_to(self, finer: StackGrid, volume: np.ndarray) -> np.ndarray:
        """A volume on this grid, interpolated by cubic splines on a finer grid around the same stack."""
        ratio = self.voxel / finer.voxel
        for axis in range(3):
            if axis < 2:
                first = (finer.shape[axis] - 1) / 2 - (self.shape[axis] - 1) / 2 * ratio
            else:
                first = finer.geometry.first_center - self.geometry.first_center * ratio
            knots = SliceGeometry(axis, ratio, ratio, first, self.shape[axis], "point")
            volume = along(upsampling_matrix(knots, finer.shape[axis]), volume, axis)
        return volume


class AcquiredCase(WorkingCase):
    """Scans as they were acquired.

    The T1w is brought to the stack, not the stack to the T1w: there the slices are planes of the grid, the slice model
    is exact, and the measured slices are used as they are. Only the finished volume is turned into the T1w's frame.

    Attributes:
        t1_to_t2: shape (4, 4), world mm of the T1w -> where that lies in the T2w's world; the identity without a T1w.
        frame: shape and affine of the result's grid in the T1w's world; None for a result in the T2w's.
    """

    def __init__(self, case: Case, settings: RawSettings) -> None:
        axis, thickness, spacing = stack_geometry(case.t2, case.sidecar)
        stack = case.t2, axis, thickness, spacing, stated_profile(case.sidecar, case.t2)
        self.name = name_of(case.t2)
        if not case.t1:
            check_head_volume(case.t2)
        warn_of_voxels(case.t1, case.t2)
        self._grid = StackGrid.around(*stack)
        self._voxel = self._voxel_size(case.t2, axis, settings)
        self._fine = StackGrid.around(*stack, self._voxel) if self._voxel < 0.99 else None
        self._case, self.affine, self.geometry = case, self._grid.affine, self._grid.geometry
        space = settings.space if case.t1 else "t2"
        self.frame = None if space == "t2" else t1_frame(case.t1, None if space == "t1" else self._voxel)
        self.slices = self._grid.slices_of(case.t2)
        self.t2 = upsample(self.slices, self.geometry, self._grid.shape[2])
        self.report = {
            "SliceGeometry": {
                "Source": "sidecar" if "SliceThickness" in case.sidecar else "header",
                "SliceThickness": round(thickness, 4),
                "SpacingBetweenSlices": round(spacing, 4),
                "SliceEncodingDirection": "ijk"[axis],
                "SliceProfile": self.geometry.profile,
            }
        }
        self.t1, self.t1_to_t2 = None, np.eye(4)
        if case.t1:
            self._register(case, settings.min_similarity)

    def _register(self, case: Case, min_similarity: float | None) -> None:
        """Bring the T1w onto the working grid."""
        registration = case.registration or register_rigid(case.t1, case.t2)
        check_same_head(registration, case.t1, case.t2, min_similarity)
        self.t1 = resample(case.t1, self._grid.shape, self.affine, np.linalg.inv(registration.matrix))
        scaled = (zero_based_scale(scan).apply(scan) for scan in (self.t1, self.slices))
        offset = t1_offset(*scaled, self.geometry)
        if np.linalg.norm(offset) <= LARGEST_T1_OFFSET:
            self.t1_offset = offset
        else:
            correction = from_matvec(np.eye(3), self.affine[:3, :3] @ offset)
            registration = replace(registration, matrix=correction @ registration.matrix)
            self.t1 = resample(case.t1, self._grid.shape, self.affine, np.linalg.inv(registration.matrix))
        silence(self.t1)
        self.t1_to_t2 = registration.matrix
        self.coverage = _coverage(case.t1, self._grid.shape, np.linalg.inv(registration.matrix) @ self.affine)
        bright = self.t2 > HEAD * zero_based_scale(self.t2).high
        if self.coverage is not None and (missed := 1 - self.coverage[bright].mean()) > _MISSED:
            beyond = (
                "there the result is the slices' cubic interpolation"
                if self.frame is None
                else "the result ends with it, and --space t2 keeps all of the T2w"
            )
            warn(
                f"The field of view of {name_of(case.t1)} leaves out {missed:.0%} of what {name_of(case.t2)} shows; "
                f"{beyond}."
            )
        self.report["Registration"] = {
            "T1wToT2w": np.round(registration.matrix, 8).tolist(),
            **registration.to_sidecar(),
        }

    @property
    def axis(self) -> int:
        """The stack's array axis across its slices."""
        return self._grid.axis

    @property
    def result_grid(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """Shape and affine of the image that the user gets."""
        if self.frame is not None:
            return self.frame
        grid = self._fine or self._grid
        part, affine = grid.within_slices(np.broadcast_to(np.float32(0), grid.shape))
        return part.shape, affine

    def finish(self, volume: np.ndarray, left_out: list[int]) -> tuple[nib.Nifti1Image, dict]:
        if not self._fine:
            return self.put_back(volume), {}
        volume, checks = with_in_plane_detail(volume, self._grid, self._fine, self._case.t2, left_out)
        return self._placed(volume, self._fine), checks

    def put_back(self, volume: np.ndarray) -> nib.Nifti1Image:
        return self._placed(volume, self._grid)

    def put_map_back(self, widths: np.ndarray) -> nib.Nifti1Image:
        if self._fine:
            widths = self._grid.carried_to(self._fine, widths)
        placed = self._placed(widths, self._fine or self._grid)
        return image_of(np.maximum(array_of(placed), 0), placed.affine, placed)

    def residual_image(self, residual: np.ndarray) -> nib.Nifti1Image:
        return image_of(residual, self._grid.slice_affine, self._case.t2)

    def _placed(self, volume: np.ndarray, grid: StackGrid) -> nib.Nifti1Image:
        """A volume on a grid around the stack, in the space asked for; beyond the slices there is air."""
        part, affine = grid.within_slices(volume)
        if self.frame is None:
            return image_of(part, affine, self._case.t2)
        shape, frame_affine = self.frame
        moved = resample(image_of(part, affine, self._case.t2), shape, frame_affine, self.t1_to_t2)
        return image_of(moved, frame_affine, self._case.t1)

    @staticmethod
    def _voxel_size(t2: nib.Nifti1Image, axis: int, settings: RawSettings) -> float:
        """The result's voxel size in mm.

        Raises:
            BabyAIError: it is coarser than the slices, or would take more voxels than can be handled.
        """
        sizes = voxel_sizes(t2.affine)
        in_plane = float(np.delete(sizes, axis).min())
        voxel = in_plane if settings.voxel_size == "in-plane" else float(settings.voxel_size)
        if voxel > max(sizes.max(), 1.0):
            raise BabyAIError(
                f"{name_of(t2)} has no voxel side above {sizes.max():.3g} mm, so that voxels of {voxel:.3g} mm are "
                "coarser than its slices; give a smaller --voxel-size, in mm."
            )
        if np.prod(np.array(t2.shape) * sizes / voxel) > _MOST_VOXELS:
            raise BabyAIError(f"{name_of(t2)} at {voxel:.3g} mm is too large a volume; give a larger --voxel-size.")
        return voxel


def _coverage(t1: nib.Nifti1Image, shape: tuple[int, int, int], to_t1: np.ndarray) -> np.ndarray | None:
    """See :attr:`WorkingCase.coverage`; ``to_t1`` maps voxels of the working grid to the T1w's world."""
    to_voxels = np.linalg.inv(t1.affine) @ to_t1
    last = np.array(t1.shape) - 0.5
    corners = apply_affine(to_voxels, np.stack(np.meshgrid(*((0, n - 1) for n in shape)), axis=-1))
    if ((corners >= -0.5) & (corners <= last)).all():
        return None
    x, y, z = (torch.from_numpy(ticks.astype(np.float32)) for ticks in np.ogrid[: shape[0], : shape[1], : shape[2]])
    outside = torch.zeros(shape, dtype=torch.bool)
    for row, end in zip(to_voxels[:3].tolist(), last.tolist(), strict=True):
        place = row[0] * x + row[1] * y + (row[2] * z + row[3])
        outside |= (place < -0.5) | (place > end)
    for _ in range(_FROM_BORDER):
        outside = with_neighbours(outside, beyond=False)
    return smooth((~outside).float(), [_BORDER_SIGMA] * 3).numpy()


def with_in_plane_detail(
    volume: np.ndarray, grid: StackGrid, fine: StackGrid, t2: nib.Nifti1Image, left_out: list[int]
) -> tuple[np.ndarray, dict]:
    """A volume of 1 mm, carried to a finer grid, with the in-plane detail that the slices hold.

    What the slices show beyond the volume is interpolated between them, and the rest of it given back where each slice
    was measured; but where it is no more than the slices' noise it is left out (the local Wiener filter of Lee, IEEE
    TPAMI 2(2), 1980).

    Args:
        volume: on ``grid``, shape (X, Y, Z).
        fine: a finer grid around the same stack.
        t2: the stack.
        left_out: numbers of slices that are not to be agreed with.

    Returns:
        The volume on ``fine``, and how it agrees with the slices, as plain values.
    """
    geometry, length = fine.geometry, fine.shape[2]
    slices = fine.slices_of(t2)
    unit = zero_based_scale(slices).high
    nonnegative = volume.min() >= 0
    volume = grid.carried_to(fine, volume)
    shown = acquire(volume, geometry)
    missing = slices - shown
    missing[..., left_out] = 0
    head, noise = slices > HEAD * unit, noise_of(slices / unit)
    head[..., left_out] = False
    before = rms(missing[head] / unit)
    power = ndimage.uniform_filter(np.square(missing / unit), (_AROUND, _AROUND, 1))
    missing *= np.maximum(power - noise**2, 0) / np.maximum(power, 1e-12)
    trusted = shown + missing
    volume = make_consistent(volume + upsample(missing, geometry, length), trusted, geometry)
    after = rms((slices - acquire(volume, geometry))[head] / unit)
    if nonnegative:
        np.maximum(volume, 0, out=volume)
    checks = {"DetailVoxel": round(fine.voxel, 4), "DetailNoise": round(noise, 5)}
    return volume, checks | {"DetailResidualBefore": before, "DetailResidualAfter": after}


def t1_frame(t1: nib.Nifti1Image, voxel: float | None) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the result's grid: the T1w's own, or its field of view in voxels of ``voxel`` mm."""
    if voxel is None or np.abs(voxel_sizes(t1.affine) / voxel - 1).max() < 1e-3:
        return t1.shape, t1.affine
    sizes = voxel_sizes(t1.affine) / voxel
    shape = np.maximum(1, np.round(np.array(t1.shape) * sizes)).astype(int)
    center = (np.array(t1.shape) - 1) / 2
    affine = t1.affine @ from_matvec(np.diag(1 / sizes), center - (shape - 1) / 2 / sizes)
    return tuple(int(n) for n in shape), affine
