"""What a notebook needs: load a network, reconstruct an infant, look at the result.

Use it as `from func import functions as baby`. All but the two functions below lives in rooms of its own, and is only
brought together here.
"""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib

from func.errors import BabyAIError
from func.networks.weights import Weights, load_weights
from func.phantom import infant_brain
from func.reconstruction.acquired import RawSettings
from func.reconstruction.reconstructor import Progress, Reconstruction, Reconstructor
from func.reports.figures import differences, three_planes, zoom
from func.reports.scores import brain_mask, score_brain
from func.scans.bids import find_pairs, result_path
from func.scans.case import Case, read_case
from func.scans.hub import ATLAS_FILE, DEMO_T1_FILE, DEMO_T2_FILE, fetch, find_weights
from func.scans.nifti import check_isotropic, check_same_grid, image_of, read_volume, save_result, save_volume
from func.scans.registration import register_rigid
from func.scans.resampling import resample
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, acquire, make_consistent, upsample

__all__ = [
    "ATLAS_FILE",
    "DEMO_T1_FILE",
    "DEMO_T2_FILE",
    "BabyAIError",
    "Case",
    "Reconstruction",
    "SliceGeometry",
    "acquire",
    "brain_mask",
    "check_isotropic",
    "check_same_grid",
    "differences",
    "fetch",
    "find_pairs",
    "find_weights",
    "image_of",
    "infant_brain",
    "load_network",
    "make_consistent",
    "read_case",
    "read_sidecar",
    "read_volume",
    "reconstruct",
    "register_rigid",
    "resample",
    "result_path",
    "save_result",
    "save_volume",
    "score_brain",
    "three_planes",
    "upsample",
    "zoom",
]


def load_network(choice: str = "bundled") -> Weights:
    """The network that ``--weights`` of inference.py means.

    Args:
        choice: ``bundled``, ``babyai`` (the published weights, from the Hugging Face Hub) or the path of a file.

    Raises:
        BabyAIError: the file is not there, cannot be had, or holds no weights.
    """
    return load_weights(find_weights(choice))


def reconstruct(
    t1: nib.Nifti1Image | None,
    t2: nib.Nifti1Image,
    weights: Weights,
    sidecar: dict | None = None,
    space: str | None = None,
    progress: Progress | None = None,
    uncertainty: bool = False,
) -> Reconstruction:
    """The isotropic T2w of one infant, as inference.py makes it, on the device that is there.

    Args:
        t1, t2: images as :func:`read_volume` gives them; the T1w may be None.
        weights: as :func:`load_network` gives them.
        sidecar: the BIDS entries of the T2w (:func:`read_sidecar`): slice thickness, spacing and direction.
        space: None for scans on one grid of 1 mm voxels; ``1mm``, ``t1`` or ``t2`` for scans as they were acquired.
        progress: called with (windows done, windows in all).
        uncertainty: also map where not to trust the result.

    Raises:
        BabyAIError: the scans do not go together, or not with the weights; the sentence says what to do.
    """
    case = Case.of(t1, t2, sidecar)
    reconstructor = Reconstructor(weights, uncertainty=uncertainty, progress=progress)
    result = reconstructor.reconstruct(case, RawSettings(space) if space else None)
    return replace(result, image=case.in_file_units(result.image))
