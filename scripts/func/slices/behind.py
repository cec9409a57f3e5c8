"""The slices behind scans on one grid: along an axis of it, oblique to it, or not to be found."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
from nibabel.affines import voxel_sizes

from func.scans.nifti import array_of, name_of
from func.slices.geometry import SliceGeometry
from func.slices.oblique import ObliqueStack, find_oblique_stack
from func.slices.recovery import explaining_geometry, recover_geometry


@dataclass(frozen=True)
class SlicesBehind:
    """What two scans on one grid were up-sampled from.

    Attributes:
        geometry: of the T2w's slices along an axis of the grid; None where there are none.
        source: where that geometry came from.
        oblique: the T2w's slices where they lie oblique to the grid; None where they do not.
        t1_spacing: mm between slices that the T1w was up-sampled from itself; None where there are none.
    """

    geometry: SliceGeometry | None
    source: str
    oblique: ObliqueStack | None
    t1_spacing: float | None


def slices_behind(t1: nib.Nifti1Image | None, t2: nib.Nifti1Image, sidecar: dict) -> SlicesBehind:
    """Find the slices behind a T2w that was up-sampled to its T1w's grid, and behind that T1w, if there is one.

    Args:
        t1, t2: on one grid of 1 mm voxels, in any orientation.
        sidecar: the T2w's BIDS entries; what they state is used where the T2w shows it, else refused with a warning.
    """
    stated = SliceGeometry.from_sidecar(sidecar, t2)
    geometry, source = explaining_geometry(array_of(t2), stated, name_of(t2))
    oblique = None if geometry else find_oblique_stack(array_of(t2))
    behind_t1 = t1 and recover_geometry(array_of(t1))
    t1_spacing = behind_t1 and behind_t1.spacing * float(voxel_sizes(t1.affine)[behind_t1.axis])
    return SlicesBehind(geometry, source, oblique, t1_spacing)
