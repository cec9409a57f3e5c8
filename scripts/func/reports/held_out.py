"""A score without a truth: slices taken away from a real stack, and predicted from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, rescale_affine, voxel_sizes
from scipy import ndimage

from func.errors import BabyAIError
from func.reports.scores import bounding_box, brain_mask, psnr, ssim
from func.reports.tables import BASELINE, RESULT
from func.scans.case import Case
from func.scans.files import atomic
from func.scans.nifti import array_of, image_of, name_of, to_ras
from func.scans.resampling import resample
from func.slices.geometry import SliceGeometry, acquire, stack_geometry, stated_profile

FEWEST_SLICES = 7
HELD_OUT_MEANING = (
    "Every second slice was taken away, the others were reconstructed with the T1w, and what the result shows at the "
    "places of the slices taken away was scored against them, inside the head at 1 mm in-plane, beside cubic "
    "interpolation of the others. This tells how well the space between slices is filled on these very scans. The gaps "
    "are twice as wide as in a real run, so that the figures are pessimistic. Slices show no detail finer than "
    "themselves, so that the figures say nothing of sharpness; noise and motion of the slices taken away count as "
    "errors of either method."
)
_ZOOM = 60  # pixels of 1 mm, the side of the enlarged square


@dataclass(frozen=True)
class HeldOut:
    """The slices taken away from a stack: images of 1 mm in-plane, as measured and as predicted by each method."""

    axis: int
    measured: nib.Nifti1Image
    predicted: dict[str, nib.Nifti1Image]

    @property
    def count(self) -> int:
        return self.measured.shape[self.axis]

    def scores(self) -> list[dict]:
        """PSNR (dB) and SSIM of each method inside the head, slice by slice in the plane.

        Raises:
            BabyAIError: the slices hold nothing but air.
        """
        measured = array_of(self.measured)
        head = brain_mask(measured)
        data_range = float(np.percentile(measured[head], 99))
        found = []
        for method, image in self.predicted.items():
            slices = [np.moveaxis(array, self.axis, 0) for array in (measured, array_of(image), head)]
            similarity = [
                (mask.sum(), ssim(truth, estimate, data_range, mask))
                for truth, estimate, mask in zip(*slices, strict=True)
                if mask.any()
            ]
            weights, values = zip(*similarity, strict=True)
            found.append(
                {
                    "method": method,
                    "region": "head",
                    "psnr": psnr(measured, array_of(image), data_range, head),
                    "ssim": float(np.average(values, weights=weights)),
                    "slices": self.count,
                }
            )
        return found


def hold_out_slices(case: Case, reconstruct: Callable[[Case], nib.Nifti1Image]) -> HeldOut:
    """Take every second slice of a case away, and predict them from the others: by cubic splines, and by the network.

    Args:
        case: as acquired.
        reconstruct: gives the isotropic T2w of a case as acquired, in the T2w's own frame.

    Raises:
        BabyAIError: the stack has too few slices, or cannot be reconstructed.
    """
    axis, thickness, spacing = stack_geometry(case.t2, case.sidecar)
    if case.t2.shape[axis] < FEWEST_SLICES:
        raise BabyAIError(
            f"{name_of(case.t2)} has {case.t2.shape[axis]} slices; to take every second one away and predict it, "
            f"{FEWEST_SLICES} are needed."
        )
    kept, taken = every_second(case.t2, axis)
    stated = {
        "SliceThickness": thickness,
        "SpacingBetweenSlices": 2 * spacing,
        "SliceEncodingDirection": "ijk"[axis],
        "SliceProfile": stated_profile(case.sidecar, case.t2),
    }
    isotropic = reconstruct(Case(case.t1, kept, stated))

    sizes = voxel_sizes(taken.affine)
    shape = tuple(n if a == axis else max(1, round(n * sizes[a])) for a, n in enumerate(taken.shape))
    affine = rescale_affine(taken.affine, taken.shape, np.where(np.arange(3) == axis, sizes, 1.0), shape)
    measured, cubic = (resample(_smoothed_in_plane(scan, axis), shape, affine) for scan in (taken, kept))
    seen = _seen_by_slices(isotropic, shape, affine, axis, thickness, stated["SliceProfile"])
    predicted = {BASELINE: image_of(cubic, affine), RESULT: image_of(seen, affine)}
    return HeldOut(axis, image_of(measured, affine), predicted)


def every_second(t2: nib.Nifti1Image, axis: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The first, third, fifth ... slice of a stack, and those between them, each where it lies in the world."""
    last_kept = (t2.shape[axis] - 1) // 2 * 2
    every_other = slice(0, None, 2), slice(1, last_kept, 2)
    return tuple(t2.slicer[tuple(part if a == axis else slice(None) for a in range(3))] for part in every_other)


def _seen_by_slices(
    isotropic: nib.Nifti1Image, shape: tuple[int, ...], affine: np.ndarray, axis: int, thickness: float, profile: str
) -> np.ndarray:
    """What slices with these centres, and as thick as they were, see of an isotropic volume: A x."""
    spacing = float(voxel_sizes(affine)[axis])
    planes = max(1, round(spacing))  # of about 1 mm, from one centre to the next
    margin = int(np.ceil(thickness / spacing * planes))
    geometry = SliceGeometry(axis, thickness / spacing * planes, planes, margin, shape[axis], profile)
    steps, origin = np.ones(3), np.zeros(3)
    steps[axis], origin[axis] = 1 / planes, -margin / planes
    finer = list(shape)
    finer[axis] = (shape[axis] - 1) * planes + 2 * margin + 1
    return acquire(resample(isotropic, tuple(finer), affine @ from_matvec(np.diag(steps), origin)), geometry)


def _smoothed_in_plane(t2: nib.Nifti1Image, axis: int) -> nib.Nifti1Image:
    """The stack, low-passed in-plane so that pixels of 1 mm do not alias."""
    sizes = voxel_sizes(t2.affine)
    sigma = [0.0 if a == axis or sizes[a] > 0.8 else 0.425 * np.sqrt(1 / sizes[a] ** 2 - 1) for a in range(3)]
    return image_of(ndimage.gaussian_filter(array_of(t2), sigma), t2.affine, t2)


def draw_held_out(path: Path, held_out: HeldOut) -> None:
    """The slice that shows most of the head, as measured and as predicted, whole and enlarged, side by side.

    Raises:
        BabyAIError: the picture could not be written.
    """
    from matplotlib.figure import Figure

    images = {"measured slice": held_out.measured, **held_out.predicted}
    arrays = {title: array_of(to_ras(image)) for title, image in images.items()}
    axis = int(np.argmax(voxel_sizes(to_ras(held_out.measured).affine)))
    measured = arrays["measured slice"]
    head = np.moveaxis(brain_mask(measured), axis, 0)
    fullest = int(head.sum(axis=(1, 2)).argmax())
    box = bounding_box(head[fullest], margin=4)
    white = float(np.percentile(measured[measured > 0], 99.5))
    middle = [(part.start + min(part.stop, length)) // 2 for part, length in zip(box, head.shape[1:], strict=True)]
    square = tuple(slice(max(centre - _ZOOM // 2, 0), centre + _ZOOM // 2) for centre in middle)
    figure = Figure(figsize=(9, 6.4), dpi=120, layout="constrained", facecolor="black")
    panels = figure.subplots(2, len(arrays), squeeze=False)
    for column, (title, array) in zip(panels.T, arrays.items(), strict=True):
        plane = np.take(array, fullest, axis)
        for panel, part in zip(column, (box, square), strict=True):
            panel.imshow(plane[part].T, cmap="gray", vmin=0, vmax=white, origin="lower", interpolation="nearest")
            panel.set_axis_off()
        column[0].set_title(title, color="white", fontsize=10)
    with atomic(path) as temporary:
        figure.savefig(temporary, facecolor="black")
