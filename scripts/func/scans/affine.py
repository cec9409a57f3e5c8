"""The affine of a NIfTI header in mm, and what is told and mended where the header contradicts itself.

The standard (https://nifti.nimh.nih.gov, nifti1.h) knows two affines, the sform and the qform; the sform comes first.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from func.errors import BabyAIError, warn

_VOXEL_SIZES = (0.1, 30.0)  # mm, of any head scan
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # by NIfTI's codes for metre and micrometre
_UNITS = {1000.0: "metres", 10.0: "centimetres", 1.0: "millimetres", 0.001: "micrometres"}
# In so little of a field of view (mm), with voxels so small, there is no head, unless the lengths are centimetres.
_NO_HEAD, _SMALL_VOXELS = 40.0, 0.6


def affine_in_mm(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    """Voxel -> world mm as the header has it, in its sform or else its qform; the header is mended to say the same.

    Raises:
        BabyAIError: neither can be inverted.
    """
    _shorten_quaternion(header)
    codes = int(header["sform_code"]), int(header["qform_code"])
    sform = header.get_sform() if codes[0] > 0 else None
    try:
        qform = header.get_qform() if codes[1] > 0 else None
    except (HeaderDataError, ValueError, ArithmeticError):
        qform = None
    affine = sform if _is_proper(sform) else qform
    if codes[0] <= 0 and codes[1] <= 0:
        affine = header.get_base_affine()
        warn(f"{path} does not say how the head lies in it (sform and qform are 0); check left and right.")
    if not _is_proper(affine):
        raise BabyAIError(
            f"{path} has a damaged affine (sform, qform, pixdim), so that it is unknown how its voxels lie; convert it "
            "again."
        )
    if affine is sform:
        _compare(path, header, sform, qform if _is_proper(qform) else None)
    elif sform is not None:
        warn(f"{path} has an sform that cannot be inverted; its qform is used.")
    factor = _mm_per_unit(path, header, affine)
    affine = np.diag([factor, factor, factor, 1]) @ affine
    if factor != 1 or (codes[0] > 0 and not _is_proper(sform)) or (codes[1] > 0 and not _is_proper(qform)):
        header.set_qform(affine, codes[1])
        header.set_sform(affine, codes[0])
    return affine


def _shorten_quaternion(header: nib.Nifti1Header) -> None:
    """A rotation by half a turn, written with few digits, may have a quaternion a little longer than 1."""
    keys = ("quatern_b", "quatern_c", "quatern_d")
    length = np.linalg.norm([float(header[key]) for key in keys])
    if 1 < length < 1.01:
        for key in keys:
            header[key] /= length


def _is_proper(affine: np.ndarray | None) -> bool:
    """Whether an affine can be inverted, with voxels of a size that any unit of length allows."""
    if affine is None or not np.isfinite(affine).all():
        return False
    sizes = nib.affines.voxel_sizes(affine)
    if not ((sizes > 1e-4).all() and (sizes < 1e4).all() and np.abs(affine).max() < 1e6):
        return False
    return abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3


def _compare(path: Path, header: nib.Nifti1Header, sform: np.ndarray, qform: np.ndarray | None) -> None:
    """Warn where the header contradicts itself on the size or the direction of its voxels."""
    sizes, stated = nib.affines.voxel_sizes(sform), np.abs(header["pixdim"][1:4].astype(float))
    if (np.abs(stated / sizes - 1) > 0.02).any():
        warn(
            f"{path} has voxels of {_mm(sizes)} by its sform and of {_mm(stated)} by its qform (pixdim); the sform is "
            "used. If the result is stretched, correct the header."
        )
    elif qform is not None and (nib.io_orientation(sform) != nib.io_orientation(qform)).any():
        warn(
            f"{path} lies {''.join(nib.aff2axcodes(sform))} by its sform and {''.join(nib.aff2axcodes(qform))} by its "
            "qform; the sform is used. If the result is turned or mirrored, correct the header."
        )


def _mm_per_unit(path: Path, header: nib.Nifti1Header, affine: np.ndarray) -> float:
    """Millimetres per unit of the affine: as stated, unless only another unit makes the voxels those of a head."""
    sizes, stated = nib.affines.voxel_sizes(affine), _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    low, high = _VOXEL_SIZES
    plausible = (
        unit for unit in (stated, 1.0, 1000.0, 0.001) if low <= (sizes * unit).min() <= (sizes * unit).max() <= high
    )
    factor = next(plausible, 1.0)
    if factor == 1 and sizes.max() <= _SMALL_VOXELS and (sizes * header.get_data_shape()[:3]).max() < _NO_HEAD:
        factor = 10.0
    if factor != 1 or stated != 1:
        warn(
            f"{path} has voxels of {_mm(sizes * factor)}, if its lengths are {_UNITS[factor]}, which is how it is read."
        )
    return factor


def _mm(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"
