"""A score without a truth: slices taken away from a real stack, and predicted from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from func.errors import BabyAIError
from func.reconstruction.acquired import StackGrid
from func.reconstruction.reconstructor import Reconstruction
from func.reports.scores import brain_mask, psnr, ssim
from func.reports.tables import BASELINE, RESULT
from func.scans.case import Case
from func.scans.files import atomic
from func.scans.head import box_around
from func.scans.nifti import array_of, image_of, name_of, named_as, to_ras
from func.scans.resampling import resample
from func.slices.geometry import acquire, stack_geometry, stated_profile

FEWEST_SLICES = 7
HELD_OUT_MEANING = (
    "Every second slice was taken away, the others were reconstructed with the T1w, and what the result shows at the "
    "places of the slices taken away was scored against them, inside the head where the T1w covers it, at 1 mm "
    "in-plane, beside cubic interpolation of the others. This tells how well the space between slices is filled on "
    "these very scans. The gaps are twice as wide as in a real run, so that the figures are pessimistic. Slices show "
    "no detail finer than themselves, so that the figures say nothing of sharpness; noise and motion of the slices "
    "taken away count as errors of either method."
)
_ZOOM = 60  # pixels of 1 mm, the side of the enlarged square


@dataclass(frozen=True)
class HeldOut:
    """The slices taken away from a stack, at 1 mm in-plane: as measured, and as predicted by each method.

    Attributes:
        affine: voxel -> world mm of the stack; the slices lie along the last axis.
        measured: shape (X, Y, count).
        predicted: method to array of the same shape.
        covered: shape (X, Y, count), where the T1w's field of view reaches; elsewhere nothing is scored.
    """

    affine: np.ndarray
    measured: np.ndarray
    predicted: dict[str, np.ndarray]
    covered: np.ndarray

    def scores(self) -> list[dict]:
        """PSNR (dB) and SSIM of each method inside the head, slice by slice in the plane.

        Raises:
            BabyAIError: the slices hold nothing but air, or the T1w covers none of them.
        """
        head = brain_mask(self.measured) & self.covered
        if not head.any():
            raise BabyAIError("The T1w covers none of the slices taken away; check that both scans show one head.")
        data_range = float(np.percentile(self.measured[head], 99))
        shown = np.flatnonzero(head.any(axis=(0, 1)))
        weights = head.sum(axis=(0, 1))[shown]
        found = []
        for method, predicted in self.predicted.items():
            similarity = [ssim(self.measured[..., k], predicted[..., k], data_range, head[..., k]) for k in shown]
            found.append(
                {
                    "method": method,
                    "region": "head",
                    "psnr": psnr(self.measured, predicted, data_range, head),
                    "ssim": float(np.average(similarity, weights=weights)),
                    "slices": len(shown),
                }
            )
        return found


def hold_out_slices(case: Case, reconstruct: Callable[[Case], Reconstruction]) -> HeldOut:
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
            f"{name_of(case.t2)} has too few slices to take every second one away and predict it "
            f"({case.t2.shape[axis]}, of {FEWEST_SLICES} needed); give a larger stack."
        )
    kept, taken = every_second(case.t2, axis)
    stated = {
        "SliceThickness": thickness,
        "SpacingBetweenSlices": 2 * spacing,
        "SliceEncodingDirection": "ijk"[axis],
        "SliceProfile": stated_profile(case.sidecar, case.t2),
    }
    isotropic = reconstruct(Case(case.t1, kept, stated))
    t1_to_t2 = np.asarray(isotropic.report["Registration"]["T1wToT2w"])

    profile = stated["SliceProfile"]
    kept_grid, grid = (StackGrid.around(stack, axis, thickness, 2 * spacing, profile) for stack in (kept, taken))
    measured = grid.slices_of(taken)
    kept_slices = image_of(kept_grid.slices_of(kept), kept_grid.slice_affine)
    predicted = {
        BASELINE: resample(kept_slices, measured.shape, grid.slice_affine),
        RESULT: acquire(resample(isotropic.image, grid.shape, grid.affine), grid.geometry),
    }
    places = np.moveaxis(np.indices(measured.shape), 0, -1)
    in_t1 = apply_affine(np.linalg.inv(t1_to_t2 @ case.t1.affine) @ grid.slice_affine, places)
    covered = ((in_t1 > -0.5) & (in_t1 < np.array(case.t1.shape) - 0.5)).all(axis=-1)
    return HeldOut(grid.slice_affine, measured, predicted, covered)


def every_second(t2: nib.Nifti1Image, axis: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The first, third, fifth ... slice of a stack, and those between them, each where it lies in the world."""
    last_kept = (t2.shape[axis] - 1) // 2 * 2
    every_other = slice(0, None, 2), slice(1, last_kept, 2)
    return tuple(
        named_as(t2.slicer[tuple(part if a == axis else slice(None) for a in range(3))], t2) for part in every_other
    )


def draw_held_out(path: Path, held_out: HeldOut) -> None:
    """The slice that shows most of the head, as measured and as predicted, whole and enlarged, side by side.

    Raises:
        BabyAIError: the picture could not be written.
    """
    from matplotlib.figure import Figure

    arrays = {"measured slice": held_out.measured, **held_out.predicted}
    images = {title: to_ras(image_of(array, held_out.affine)) for title, array in arrays.items()}
    axis = int(np.argmax(voxel_sizes(images["measured slice"].affine)))
    arrays = {title: np.moveaxis(array_of(image), axis, 0) for title, image in images.items()}
    measured = arrays["measured slice"]
    head = brain_mask(measured)
    fullest = int(head.sum(axis=(1, 2)).argmax())
    box = box_around(head[fullest], margin=4)
    white = float(np.percentile(measured[measured > 0], 99.5))
    middle = [(part.start + min(part.stop, length)) // 2 for part, length in zip(box, head.shape[1:], strict=True)]
    square = tuple(slice(max(centre - _ZOOM // 2, 0), centre + _ZOOM // 2) for centre in middle)
    figure = Figure(figsize=(9, 6.4), dpi=120, layout="constrained", facecolor="black")
    panels = figure.subplots(2, len(arrays), squeeze=False)
    for column, (title, array) in zip(panels.T, arrays.items(), strict=True):
        for panel, part in zip(column, (box, square), strict=True):
            panel.imshow(
                array[fullest][part].T, cmap="gray", vmin=0, vmax=white, origin="lower", interpolation="nearest"
            )
            panel.set_axis_off()
        column[0].set_title(title, color="white", fontsize=10)
    with atomic(path) as temporary:
        figure.savefig(temporary, facecolor="black")
