"""One case: a T2w stack and the T1w of the same infant, as read from disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy import ndimage

from func.errors import BabyAIError, collect_warnings, warn
from func.scans.bids import Pair
from func.scans.dicom import read_scan
from func.scans.intensity import FROM_ZERO, Level, level_of, without_spikes
from func.scans.nifti import (
    array_of,
    check_atlas_grid,
    check_isotropic,
    check_same_grid,
    image_of,
    name_of,
    named_as,
)

if TYPE_CHECKING:
    from func.scans.registration import Registration
    from func.slices.behind import SlicesBehind

_RIM = 3.0  # mm around a mask, in-plane
_ISOTROPIC = 1.3  # of the smallest voxel size, and mm: not more, and there are no thick slices
_THICK_T1 = 2.0  # mm
_DARKER = 2.0  # times as far below air as the brightest voxels are above it: the head is darker than air
_ALL_DARKER = 20.0  # the same where the head's own intensities lie about 0
# A spacing that is 10 % off took 18 to 38 % of the similarity of six real pairs (slices 3 to 5 mm apart) away.
_CLEARLY_MORE = 1.1
_FEW_VALUES = 8  # of a mask or a segmentation


@dataclass(frozen=True)
class Case:
    """The scans of one infant that give one result, air at intensity 0.

    Attributes:
        t1: the T1w, any orientation; None where there is none.
        t2: one T2w stack: up-sampled to the T1w's grid, or as it was acquired.
        sidecar: the BIDS entries of the T2w's JSON file.
        level: the intensity of air in the T2w's file and of the darkest tissue above it, taken off here.
        warnings: what was odd about the files, a sentence each.
        registration: of T1w and T2w as acquired; None where it has not been looked for.
        behind: the slices behind scans on one grid; None where they have not been looked for.
    """

    t1: nib.Nifti1Image | None
    t2: nib.Nifti1Image
    sidecar: dict = field(default_factory=dict)
    level: Level = FROM_ZERO
    warnings: tuple[str, ...] = ()
    registration: Registration | None = None
    behind: SlicesBehind | None = None

    @classmethod
    def of(cls, t1: nib.Nifti1Image | None, t2: nib.Nifti1Image, sidecar: dict | None = None) -> Case:
        """A case from images in whatever intensities: air is brought to 0, single far too bright voxels are mended."""
        with collect_warnings() as warnings:
            t1, (t2, level) = t1 and _cleaned(t1)[0], _cleaned(t2)
        return cls(t1, t2, sidecar or {}, level, tuple(warnings))

    def registered(self) -> Case:
        """The case with its T1w registered to its T2w, if it has one.

        What fits better is taken where header and sidecar state different distances between the slices, and of the T2w
        and its mirror image where a header does not say how the head lies.

        Raises:
            BabyAIError: as :func:`func.scans.registration.register_rigid`.
        """
        if not self.t1:
            return self
        from func.scans.registration import register_rigid  # which takes a while to import

        with collect_warnings() as told:
            case = replace(self, registration=register_rigid(self.t1, self.t2))._of_fitting_spacing()._of_fitting_side()
        return replace(case, warnings=(*self.warnings, *told))

    def _of_fitting_spacing(self) -> Case:
        """The registered case, its slices as far apart as its sidecar states if the T1w so fits clearly better."""
        from func.scans.registration import register_rigid
        from func.slices.geometry import contradicted_spacing, with_spacing

        if not (stated := contradicted_spacing(self.t2, self.sidecar)):
            return self
        axis, spacing = stated
        t2 = with_spacing(self.t2, axis, spacing)
        try:
            case = replace(self, t2=t2, registration=register_rigid(self.t1, t2))
        except BabyAIError:  # no head is so large or small
            return self
        found, before = case.registration.similarity, self.registration.similarity
        if found < _CLEARLY_MORE * before:
            return self
        warn(
            f"SpacingBetweenSlices of {name_of(t2)} is stated as {spacing:g} mm, but by its header the slices lie "
            f"{voxel_sizes(self.t2.affine)[axis]:.4g} mm apart; {spacing:g} mm is used, which fits the T1w better "
            f"(similarity {found:.2f}, not {before:.2f})."
        )
        return case

    def _of_fitting_side(self) -> Case:
        """The registered case, mirrored if it so fits better and one of its headers does not say how the head lies."""
        stated = all(image.header["sform_code"] > 0 or image.header["qform_code"] > 0 for image in (self.t1, self.t2))
        if stated or self.registration.mirrored <= 1:
            return self
        mirrored = self.mirrored()
        if mirrored.registration.mirrored >= 1:
            return self
        warn(
            f"{name_of(self.t2)} fits {name_of(self.t1)} only mirrored, as it was used, since one of them does not "
            "say how the head lies in it; check left and right."
        )
        return mirrored

    def mirrored(self) -> Case:
        """The registered case with its T2w's first axis reversed in its header, registered anew from there.

        Raises:
            BabyAIError: as :func:`func.scans.registration.register_rigid`.
        """
        from func.scans.registration import register_rigid

        affine = self.t2.affine @ from_matvec(np.diag([-1.0, 1, 1]), [self.t2.shape[0] - 1, 0, 0])
        t2 = named_as(image_of(array_of(self.t2), affine, self.t2), self.t2)
        # From where the mirror image of the head lay.
        center = apply_affine(self.t1.affine, ndimage.center_of_mass(array_of(self.t1)))[0]
        left_for_right = from_matvec(np.diag([-1.0, 1, 1]), [2 * center, 0, 0])
        start = affine @ np.linalg.inv(self.t2.affine) @ self.registration.matrix @ left_for_right
        return replace(self, t2=t2, registration=register_rigid(self.t1, t2, start=start))

    def with_slices_behind(self) -> Case:
        """The case, its scans on one grid, with the slices looked for that they were up-sampled from."""
        from func.slices.behind import slices_behind  # which takes a while to import

        with collect_warnings() as found:
            behind = slices_behind(self.t1, self.t2, self.sidecar)
        return replace(self, behind=behind, warnings=(*self.warnings, *found))

    def in_file_units(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """A result in the intensities of the T2w's file."""
        return image_of(self.level.restore(array_of(image)), image.affine, image) if any(self.level) else image


def read_case(pair: Pair) -> Case:
    """Read the two scans of a pair, NIfTI files or folders of DICOM files, and the T2w's sidecar.

    Raises:
        BabyAIError: one of the three cannot be read.
    """
    return read_cases(replace(pair, others=(), masks=()))[0]


def read_cases(pair: Pair) -> tuple[Case, ...]:
    """As :func:`read_case`, for each T2w stack of a pair; what lies beyond a stack's mask is made air.

    Raises:
        BabyAIError: one of the files cannot be read, or a mask is not on its stack's grid.
    """
    with collect_warnings() as warnings:
        t1 = _cleaned(read_scan(pair.t1)[0])[0] if pair.t1 else None
    cases = []
    for path in pair.stacks:
        with collect_warnings() as found:
            t2, sidecar = read_scan(path)
            t2, level = _cleaned(t2)
        # What was odd about the T1w is told once.
        cases.append(Case(t1, t2, sidecar, level, tuple(found) if cases else (*warnings, *found)))
    if pair.masks:
        cases = [replace(case, t2=_masked(case.t2, mask)) for case, mask in zip(cases, pair.masks, strict=True)]
    return tuple(cases)


def _masked(t2: nib.Nifti1Image, path: Path) -> nib.Nifti1Image:
    """A stack with air beyond its mask and a rim of it, in which the head may have moved."""
    mask, _ = read_scan(path)
    if mask.shape != t2.shape or np.abs(mask.affine - t2.affine).max() > 0.01:
        raise BabyAIError(
            f"The mask {path} is not on the grid of {name_of(t2)}; give a --mask for each --t2, in the same order."
        )
    if not (array_of(mask) > 0).any():
        raise BabyAIError(f"The mask {path} has no voxel above 0; give one that is above 0 where the head is.")
    sizes = voxel_sizes(t2.affine)
    across = sizes > 1.2 * sizes.min()
    away = ndimage.distance_transform_edt(array_of(mask) <= 0, sampling=np.where(across, 1e6, sizes))
    return named_as(image_of(np.where(away <= _RIM, array_of(t2), 0), t2.affine, t2), t2)


def warn_of_voxels(t1: nib.Nifti1Image | None, t2: nib.Nifti1Image) -> None:
    """Tell of raw scans that have other voxels than such a pair should."""
    sizes = voxel_sizes(t2.affine)
    isotropic = sizes.max() < _ISOTROPIC * max(sizes.min(), 1.0)
    if isotropic:
        warn(f"{name_of(t2)} has no thick slices: its voxels are isotropic already ({sizes.max():.3g} mm).")
    if t1 and (sizes := voxel_sizes(t1.affine)).max() > 1.5 * sizes.min():
        warn_of_thick_t1(t1, sizes.max(), t2_is_thick=not isotropic)


def warn_of_thick_t1(t1: nib.Nifti1Image, thickness: float, t2_is_thick: bool) -> None:
    """Tell of a T1w that has thick slices itself (mm), and where the T2w has none that the two may be exchanged."""
    if thickness > _THICK_T1:
        exchanged = "" if t2_is_thick else " Were T1w and T2w given the wrong way round?"
        warn(
            f"{name_of(t1)} has slices of {thickness:.3g} mm itself, so that it adds little detail across them."
            f"{exchanged}"
        )


def check_grids(case: Case, atlas: bool = False) -> None:
    """Refuse scans that are not on one grid of 1 mm voxels, or, with ``atlas``, not on the atlas's.

    Raises:
        BabyAIError: with what is wrong, and the script that mends it.
    """
    for image in filter(None, (case.t2, case.t1)):
        check_atlas_grid(image) if atlas else check_isotropic(image)
    if case.t1:
        check_same_grid(case.t1, case.t2)


def _cleaned(image: nib.Nifti1Image) -> tuple[nib.Nifti1Image, Level]:
    """A scan with its air at 0 and no spikes, and the intensity that its air had.

    Raises:
        BabyAIError: the head is darker than air.
    """
    array = array_of(image)
    level, sample = level_of(array), array[::2, ::2, ::2]
    darkest, brightest = np.percentile(sample - level.air, [0.5, 99.5])
    # Where only the head was z-scored, some of it lies above air.
    if -darkest > (_ALL_DARKER if level.darkest else _DARKER) * max(brightest, 0):
        raise BabyAIError(
            f"{name_of(image)} shows a head that is darker than air (by {-darkest:.4g}, and brighter by "
            f"{max(brightest, 0):.4g} at most); multiply it by -1 if it is inverted (docs/troubleshooting.md tells "
            "how), or export it again."
        )
    if any(level):
        warn(f"The intensities of {name_of(image)} do not start at 0 ({level}); it is worked on from 0 upwards.")
        array = level.remove(array)
    if len(np.unique(sample)) <= _FEW_VALUES:
        warn(f"{name_of(image)} has {len(np.unique(sample))} different values only, as a mask has; check the file.")
    array, spikes = without_spikes(array)
    if spikes:
        warn(f"{spikes} voxels of {name_of(image)} are far brighter than all others, and were replaced by the median "
             "around them; check how it was exported.")  # fmt: skip
    if not any(level) and not spikes:
        return image, level
    return named_as(image_of(array, image.affine, image), image), level
