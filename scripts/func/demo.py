"""The scans that demo.ipynb shows: the published pair, or those of a digital infant.

A digital infant (func.phantom) is a drawing: its truth is known, and it is plainer than an infant's brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError, warn
from func.phantom import CENTRE, infant_brain
from func.scans.hub import DEMO_T1_FILE, DEMO_T2_FILE, fetch
from func.scans.nifti import array_of, image_of, save_result, save_volume
from func.slices.geometry import AXIS_ACROSS, SliceGeometry, acquire, upsample
from func.slices.scanner import grid_around, scan

AGE_MONTHS = 3
THICKNESS = 4.0  # mm
FIELD = (150, 186, 150)  # mm, of a stack along x, y and z
# Of each stack: how its planes are tilted, and how the infant turned and moved after the T1w scan (degrees, mm).
STACKS = {
    "axial": ((4, -6, 3), (3, -2, 4), (2, -3, 4)),
    "coronal": ((-5, 3, 2), (-2, 3, 3), (-3, 2, 1)),
    "sagittal": ((3, 4, -5), (4, 2, -3), (1, 4, -2)),
}


@dataclass(frozen=True)
class DemoScans:
    """Files of one infant: T1w, T2w (several where they are stacks), the true T2w where it is known, and who it is."""

    t1: Path
    t2s: tuple[Path, ...]
    truth: Path | None
    infant: str


def own_scans(root: Path, t1: str | None, t2: str | list[str], truth: str | None) -> DemoScans:
    """The user's own files, named relative to a folder or absolutely; several T2w are several stacks.

    Raises:
        BabyAIError: there is no T1w.
    """
    if not t1:
        raise BabyAIError("T1W is missing in the first cell; scripts/inference.py does without one.")
    t2s = [t2] if isinstance(t2, str) else t2
    return DemoScans(root / t1, tuple(root / path for path in t2s), truth and root / truth, "your infant")


def demo_scans(kind: str, folder: Path) -> DemoScans:
    """Fetch or make the scans of one infant.

    Args:
        kind: ``hub`` for the published pair, or, where it can't be had, a digital one; else a digital infant's:
            ``pair`` on one grid of 1 mm, ``raw`` as acquired, oblique and moved, or ``stacks``, three of the latter.
        folder: where a digital infant's scans are written.

    Raises:
        BabyAIError: there is no such kind, or a file could not be written.
    """
    if kind not in ("hub", "pair", "raw", "stacks"):
        raise BabyAIError(f"SCANS is '{kind}', but must be hub, pair, raw or stacks.")
    if kind == "hub":
        try:
            return DemoScans(fetch(DEMO_T1_FILE), (fetch(DEMO_T2_FILE),), None, "infant of the published demo pair")
        except BabyAIError as error:
            warn(f"A digital infant takes the demo pair's place: {error}")
    phantom = infant_brain(age_months=AGE_MONTHS)
    t1, truth = folder / "sub-digital_T1w.nii.gz", folder / "sub-digital_T2w.nii.gz"
    for path, image in ((t1, phantom.t1), (truth, phantom.t2)):
        save_volume(path, np.asarray(image.dataobj), image.affine)
    if kind in ("raw", "stacks"):
        t2s = tuple(_scan_stack(plane, phantom.t2, folder) for plane in STACKS if kind == "stacks" or plane == "axial")
    else:
        t2s = (_scan_on_grid(phantom.t2, folder),)
    return DemoScans(t1, t2s, truth, f"digital infant of {AGE_MONTHS} months")


def _scan_on_grid(truth, folder: Path) -> Path:
    """Axial slices, up-sampled to the T1w's own grid."""
    array = np.asarray(truth.dataobj)
    slices = SliceGeometry.fitting(axis=2, length=array.shape[2], thickness=THICKNESS)
    thick = upsample(acquire(array, slices), slices, array.shape[2])
    path = folder / f"sub-digital_acq-axial{THICKNESS:g}mm_T2w.nii.gz"
    save_result(path, image_of(thick, truth.affine), slices.to_sidecar(voxel_size=1.0))
    return path


def _scan_stack(plane: str, head: nib.Nifti1Image, folder: Path) -> Path:
    """Tilted slices as acquired, of the infant who has moved since the T1w scan."""
    tilt, turn, shift = STACKS[plane]
    axis = AXIS_ACROSS[plane]
    sizes = np.where(np.arange(3) == axis, THICKNESS, 1.0)
    shape = tuple(int(mm // size) for mm, size in zip(FIELD, sizes, strict=True))
    stack = scan(head, shape, grid_around(CENTRE, shape, sizes, tilt), axis)
    moved = from_matvec(Rotation.from_rotvec(turn, degrees=True).as_matrix(), shift)
    sidecar = {
        "MRAcquisitionType": "2D",
        "SliceThickness": THICKNESS,
        "SpacingBetweenSlices": THICKNESS,
        "SliceEncodingDirection": "ijk"[axis],
        "SliceProfile": "box",
    }
    path = folder / f"sub-digital_acq-{plane}raw_T2w.nii.gz"
    save_result(path, image_of(array_of(stack), moved @ stack.affine), sidecar)
    return path
