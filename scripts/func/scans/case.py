"""One case: a T2w stack and the T1w of the same infant, as read from disk."""

from __future__ import annotations

from dataclasses import dataclass, field

import nibabel as nib

from func.scans.bids import Pair
from func.scans.nifti import check_atlas_grid, check_isotropic, check_same_grid, read_volume
from func.scans.sidecars import read_sidecar


@dataclass(frozen=True)
class Case:
    """The scans of one infant that give one result.

    Attributes:
        t1: the T1w, any orientation.
        t2: one T2w stack: up-sampled to the T1w's grid, or as it was acquired.
        sidecar: the BIDS entries of the T2w's JSON file.
    """

    t1: nib.Nifti1Image
    t2: nib.Nifti1Image
    sidecar: dict = field(default_factory=dict)


def read_case(pair: Pair) -> Case:
    """Read the two scans of a pair and the T2w's sidecar.

    Raises:
        BabyAIError: one of the three cannot be read.
    """
    return Case(read_volume(pair.t1), read_volume(pair.t2), read_sidecar(pair.t2))


def check_grids(case: Case, atlas: bool = False) -> None:
    """Refuse scans that are not on one grid of 1 mm voxels, or, with ``atlas``, not on the atlas's.

    Raises:
        BabyAIError: with what is wrong, and the script that mends it.
    """
    for image in (case.t2, case.t1):
        check_atlas_grid(image) if atlas else check_isotropic(image)
    check_same_grid(case.t1, case.t2)
