"""Lesions planted into a scan before it is sliced: how much of each does a reconstruction keep, and how much invent?

A lesion is a bright ball in the T2w only, in the T1w only, or in both. Every scan is reconstructed with its lesions and
without, and the difference of the two is what the result shows of them. Of a lesion in the T2w, all of its contrast and
size should be there; of one in the T1w only, nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from func.errors import BabyAIError
from func.reports.figures import zoom
from func.reports.scores import brain_mask, inner_brain
from func.reports.tables import BASELINE, RESULT
from func.scans.case import Case
from func.scans.files import atomic
from func.scans.intensity import zero_based_scale
from func.scans.nifti import array_of, image_of, name_of
from func.slices.geometry import SliceGeometry, acquire, upsample

KINDS = {"T2w only": (False, True), "T1w only": (True, False), "both": (True, True)}  # in the T1w, in the T2w
DIAMETERS = (3.0, 5.0, 10.0)  # mm
LESIONS_MEANING = (
    "Contrast: the mean over the lesion of what the result shows of it, relative to what was planted in the T2w (for a "
    "lesion in the T1w only: to what would have been). Size: the volume brighter than half the contrast, relative to "
    "the lesion's. A lesion in the T2w should keep 100 % of both; one in the T1w only should leave 0 %."
)
CONTRAST = 0.3  # of a scan's 99th percentile
APART = 18.0  # mm between the centres of two lesions, at least: one hardly changes what is made of the other
_AROUND = 4.0  # mm around a lesion, where what is left of it is looked for
_TRIES = 5000


@dataclass(frozen=True)
class Lesion:
    """A ball; ``center`` in voxels, shape (3,), ``diameter`` in mm, ``kind`` one of KINDS."""

    center: tuple[float, float, float]
    diameter: float
    kind: str

    def box(self, sizes: np.ndarray, margin: float = 1.0) -> tuple[slice, ...]:
        """The voxels around the lesion and ``margin`` mm more; ``sizes`` of the voxels, mm."""
        reach = np.ceil((self.diameter / 2 + margin) / sizes)
        return tuple(slice(int(c - r), int(c + r) + 1) for c, r in zip(self.center, reach, strict=True))

    def distance(self, box: tuple[slice, ...], sizes: np.ndarray) -> np.ndarray:
        """How far the voxels of a box lie from the centre, mm."""
        ticks = [
            (np.arange(part.start, part.stop) - middle) * size
            for part, middle, size in zip(box, self.center, sizes, strict=True)
        ]
        return np.sqrt(sum(np.square(axis) for axis in np.ix_(*ticks)))

    def share(self, box: tuple[slice, ...], sizes: np.ndarray) -> np.ndarray:
        """How much of each voxel of a box is lesion, 0 to 1: a ball with an edge one voxel wide."""
        depth = self.diameter / 2 - self.distance(box, sizes)
        return np.clip(depth / sizes.min() + 0.5, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Planted:
    """A pair of scans with lesions, and what each method makes of its slices.

    ``estimates`` and ``plain`` hold, by method, the T2w from slices with lesions and from slices without.
    """

    lesions: list[Lesion]
    contrast: float
    t1: nib.Nifti1Image
    t2: nib.Nifti1Image
    estimates: dict[str, nib.Nifti1Image]
    plain: dict[str, nib.Nifti1Image]

    def scores(self) -> list[dict]:
        """Percent of the contrast and of the size that are left of each lesion, by method.

        Contrast is the mean over the lesion, relative to the contrast planted; of a lesion in the T1w only, relative
        to that of a lesion in the T2w. Size is the volume brighter than half the contrast, relative to the lesion's.
        """
        sizes, found = voxel_sizes(self.t2.affine), []
        for method, lesion in product(self.estimates, self.lesions):
            box = lesion.box(sizes, _AROUND)
            shown = (array_of(self.estimates[method])[box] - array_of(self.plain[method])[box]) / self.contrast
            inside = lesion.share(box, sizes)
            core = inside > 0.5
            around = lesion.distance(box, sizes) < lesion.diameter / 2 + _AROUND
            found.append(
                {
                    "lesion": lesion.kind,
                    "diameter_mm": lesion.diameter,
                    "method": method,
                    "contrast": float(100 * shown[core].mean() / inside[core].mean()),
                    "size": float(100 * (shown[around] > 0.5).sum() / core.sum()),
                }
            )
        return found

    def draw(self, path: Path, lesion: Lesion, plane: str) -> None:
        """A lesion in T1w, truth, and what each method makes of its slices, side by side.

        Raises:
            BabyAIError: the picture could not be written.
        """
        images = {"T1w": self.t1, **self.estimates, "truth": self.t2}
        figure = zoom(images, apply_affine(self.t2.affine, lesion.center), planes=(plane,))
        with atomic(path) as temporary:
            figure.savefig(temporary)


def plant_lesions(
    t1: nib.Nifti1Image,
    t2: nib.Nifti1Image,
    geometry: SliceGeometry,
    reconstruct: Callable[[Case], nib.Nifti1Image],
    seed: int = 0,
) -> Planted:
    """Plant a lesion of each kind and diameter, slice the T2w, and reconstruct it with and without them.

    Args:
        t1, t2: isotropic, on one grid.
        geometry: of the slices, on their axes.
        reconstruct: gives the isotropic T2w of a case whose T2w is up-sampled to the grid of its T1w.
        seed: of the places.

    Raises:
        BabyAIError: the brain is too small, or cannot be reconstructed.
    """
    lesions, sizes = place_lesions(t2, seed), voxel_sizes(t2.affine)
    scans = {"T1w": array_of(t1), "T2w": array_of(t2)}
    contrasts = [CONTRAST * zero_based_scale(scan).high for scan in scans.values()]
    with_lesions = {name: scan.copy() for name, scan in scans.items()}
    for lesion in lesions:
        box = lesion.box(sizes)
        for name, contrast, planted in zip(scans, contrasts, KINDS[lesion.kind], strict=True):
            with_lesions[name][box] += contrast * planted * lesion.share(box, sizes)
    estimates = []
    for arrays in (with_lesions, scans):
        thick = upsample(acquire(arrays["T2w"], geometry), geometry, t2.shape[geometry.axis])
        sidecar = geometry.to_sidecar(float(sizes[geometry.axis]))
        case = Case(image_of(arrays["T1w"], t1.affine, t1), image_of(thick, t2.affine, t2), sidecar)
        estimates.append({BASELINE: case.t2, RESULT: reconstruct(case)})
    t1, t2 = (image_of(with_lesions[name], image.affine, image) for name, image in (("T1w", t1), ("T2w", t2)))
    return Planted(lesions, contrasts[1], t1, t2, *estimates)


def place_lesions(t2: nib.Nifti1Image, seed: int) -> list[Lesion]:
    """One lesion of each kind and diameter at random places, wholly in the inner brain, the largest first.

    Raises:
        BabyAIError: they do not fit.
    """
    sizes, random = voxel_sizes(t2.affine), np.random.default_rng(seed)
    inner = inner_brain(brain_mask(array_of(t2)), sizes)
    lesions: list[Lesion] = []
    for diameter in sorted(DIAMETERS, reverse=True):
        places = np.argwhere(inner_brain(inner, sizes, diameter / 2))
        for kind in KINDS:
            for center in places[random.integers(len(places), size=_TRIES)]:
                if all(np.linalg.norm((center - other.center) * sizes) >= APART for other in lesions):
                    lesions.append(Lesion(tuple(float(index) for index in center), diameter, kind))
                    break
            else:
                raise BabyAIError(f"The brain in {name_of(t2)} is too small for {len(KINDS) * len(DIAMETERS)} lesions.")
    return lesions
