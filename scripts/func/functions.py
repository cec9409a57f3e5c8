"""The helpers in one import, for notebooks: `from func.functions import read_volume, reconstruct, three_planes`."""

from func.errors import BabyAIError
from func.networks.weights import build_network, load_weights, save_weights
from func.phantom import infant_brain
from func.reconstruction.reconstruct import Reconstruction, reconstruct, reconstruct_raw
from func.reports.figures import differences, edges, three_planes, zoom
from func.reports.scores import Scores, brain_mask, nrmse, psnr, score_brain, score_volume, ssim
from func.scans.bids import Pair, find_pairs, result_path
from func.scans.files import save_json
from func.scans.hub import ATLAS_FILE, DEMO_T1_FILE, DEMO_T2_FILE, fetch, find_weights
from func.scans.intensity import Scale, published_normalise, scale_of
from func.scans.nifti import (
    check_atlas_grid,
    check_isotropic,
    check_same_grid,
    from_ras,
    image_of,
    read_volume,
    save_result,
    save_volume,
    to_ras,
)
from func.scans.registration import load_itk_transform, register_rigid, resample, save_itk_transform
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, acquire, make_consistent, upsample
from func.slices.recovery import recover_geometry

__all__ = [
    "ATLAS_FILE",
    "DEMO_T1_FILE",
    "DEMO_T2_FILE",
    "BabyAIError",
    "Pair",
    "Reconstruction",
    "Scale",
    "Scores",
    "SliceGeometry",
    "acquire",
    "brain_mask",
    "build_network",
    "check_atlas_grid",
    "check_isotropic",
    "check_same_grid",
    "differences",
    "edges",
    "fetch",
    "find_pairs",
    "find_weights",
    "from_ras",
    "image_of",
    "infant_brain",
    "load_itk_transform",
    "load_weights",
    "make_consistent",
    "nrmse",
    "psnr",
    "published_normalise",
    "read_sidecar",
    "read_volume",
    "reconstruct",
    "reconstruct_raw",
    "recover_geometry",
    "register_rigid",
    "resample",
    "result_path",
    "save_itk_transform",
    "save_json",
    "save_result",
    "save_volume",
    "save_weights",
    "scale_of",
    "score_brain",
    "score_volume",
    "ssim",
    "three_planes",
    "to_ras",
    "upsample",
    "zoom",
]
