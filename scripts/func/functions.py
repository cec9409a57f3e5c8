"""What a notebook needs: load a network, read an infant's scans, reconstruct, look at the result, save it.

Use it as `from func import functions as baby`. All but the functions below lives in rooms of its own, and is only
brought together here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from func.demo import demo_scans, own_scans
from func.errors import BabyAIError
from func.networks.weights import Weights, load_weights
from func.phantom import infant_brain
from func.reconstruction.acquired import RawSettings
from func.reconstruction.reconstructor import Progress, Reconstruction, Reconstructor
from func.reports.figures import differences, three_planes, zoom
from func.reports.results import describe
from func.reports.scores import brain_mask, score_brain
from func.reports.viewer import Slider, fading_viewer
from func.scans.bids import Pair, find_pairs, put_together, result_path, stem_of
from func.scans.case import Case, check_grids
from func.scans.case import read_cases as read_unregistered
from func.scans.hub import ATLAS_FILE, DEMO_T1_FILE, DEMO_T2_FILE, fetch, find_weights
from func.scans.nifti import image_of, read_volume, save_result, save_volume
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
    "Slider",
    "acquire",
    "brain_mask",
    "cubic_interpolation",
    "demo_scans",
    "differences",
    "fading_viewer",
    "fetch",
    "find_pairs",
    "find_weights",
    "image_of",
    "infant_brain",
    "load_network",
    "make_consistent",
    "one_infant",
    "own_scans",
    "read_cases",
    "read_sidecar",
    "read_volume",
    "reconstruct",
    "register_rigid",
    "resample",
    "result_path",
    "save",
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


def one_infant(t1: str | Path | None, t2s: str | Path | Sequence[str | Path]) -> Pair:
    """The files of one infant, of which one result is made; :func:`read_cases` reads them.

    Args:
        t1, t2s: NIfTI files or folders of DICOM files, each T2w with its JSON sidecar; the T1w may be None.

    Raises:
        BabyAIError: no T2w is given.
    """
    t2s = [t2s] if isinstance(t2s, str | Path) else t2s
    if not t2s:
        raise BabyAIError("There is no T2w to reconstruct; give one, or several stacks.")
    stacks = [Pair("", t1 and Path(t1), path, stem_of(path)) for path in map(Path, t2s)]
    (pair,) = put_together(stacks)
    return pair if pair.name else replace(pair, name=stacks[0].name)


def read_cases(pair: Pair, space: str | None = None) -> tuple[Case, ...]:
    """The scans of one infant, a case for each T2w stack, as inference.py reads them.

    Args:
        space: as :func:`reconstruct` takes it. Scans as they were acquired are registered to the T1w here, and a T2w
            whose header does not say how the head lies is mirrored where that fits better: what is shown of a case
            beside its result must lie as the result does.

    Raises:
        BabyAIError: a scan cannot be read, or shows too little to be registered.
    """
    cases = read_unregistered(pair)
    return tuple(case.registered() for case in cases) if space else cases


def reconstruct(
    cases: Sequence[Case],
    weights: Weights,
    space: str | None = None,
    progress: Progress | None = None,
    uncertainty: bool = False,
    runs: int | None = None,
) -> Reconstruction:
    """The isotropic T2w of one infant, as inference.py makes it, on the device that is there.

    Args:
        cases: a case for each T2w stack of the infant, as :func:`read_cases` gives them.
        weights: as :func:`load_network` gives them.
        space: None for scans on one grid of 1 mm voxels; ``1mm``, ``t1`` or ``t2`` for scans as they were acquired.
        progress: called with (windows done, windows in all).
        uncertainty: also map where not to trust the result.
        runs: 1 to 4 runs of the network on mirror images, whose mean counts; None: one, on a GPU two.

    Raises:
        BabyAIError: the scans do not go together, or not with the weights; the sentence says what to do.
    """
    if space is None:
        check_grids(cases[0], atlas=weights.recipe == "babyai")
    reconstructor = Reconstructor(weights, uncertainty=uncertainty, progress=progress, runs=runs)
    if len(cases) > 1:
        result = reconstructor.reconstruct_together(cases, RawSettings(space or "1mm"))
    else:
        result = reconstructor.reconstruct(cases[0], RawSettings(space) if space else None)
    return replace(result, image=cases[0].in_file_units(result.image))


def cubic_interpolation(cases: Sequence[Case], result: Reconstruction) -> nib.Nifti1Image:
    """The first T2w on the grid of the result, by cubic splines: what a reconstruction must be better than."""
    t2 = cases[0].in_file_units(cases[0].t2)
    to_t2 = np.array(result.report.get("Registration", {}).get("T1wToT2w", np.eye(4)))
    grid = result.image
    return image_of(resample(t2, grid.shape, grid.affine, to_t2), grid.affine, grid)


def save(path: Path, pair: Pair, cases: Sequence[Case], result: Reconstruction, made_with: dict) -> list[str]:
    """Write a result with its JSON sidecar, which says from what and how it was made.

    Args:
        path: of the result, .nii.gz.
        pair, cases, result: what was read, and what came of it.
        made_with: further entries of the sidecar, on the weights and the settings.

    Returns:
        What is odd about the scans, a sentence each.

    Raises:
        BabyAIError: it could not be written.
    """
    sources = [scan.name for scan in (*pair.stacks, pair.t1) if scan]
    sidecar = describe(cases[0], result, sources, made_with)
    save_result(path, result.image, sidecar)
    return sidecar["Warnings"]
