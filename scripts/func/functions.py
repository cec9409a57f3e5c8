"""The helpers in one import, for notebooks: `from func.functions import read_volume, reconstruct, three_planes`."""

from func.acquisition import SliceGeometry, acquire, make_consistent, recover_geometry, upsample
from func.errors import BabyAIError
from func.figures import differences, edges, three_planes, zoom
from func.hub import ATLAS_FILE, DEMO_T1_FILE, DEMO_T2_FILE, fetch, find_weights
from func.intensity import Scale, published_normalise, scale_of
from func.metrics import Scores, brain_mask, nrmse, psnr, score_brain, score_volume, ssim
from func.network import build_network, load_weights, save_weights
from func.phantom import infant_brain
from func.reconstruction import Reconstruction, reconstruct, reconstruct_raw
from func.registration import load_itk_transform, register_rigid, resample, save_itk_transform
from func.volumes import (
    Pair,
    check_atlas_grid,
    check_isotropic,
    check_same_grid,
    find_pairs,
    from_ras,
    image_of,
    read_sidecar,
    read_volume,
    result_path,
    save_json,
    save_result,
    save_volume,
    to_ras,
)

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
