"""Find, read, check, and safely write NIfTI volumes.

Volumes travel as nibabel images: float32 data in memory, in the file's own axis order, with the file's own affine
(voxel indices -> world mm, RAS+). Nothing here resamples; :func:`to_ras` only flips and permutes axes.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from func.errors import BabyAIError
from func.scans.files import atomic, write_json
from func.scans.sidecars import sidecar_path

ATLAS_SHAPE = (182, 218, 182)

# A 512 x 512 x 1024 volume: larger than any head scan, small enough to be read without harm.
_MAX_VOXELS = 2**28
# Header extensions lie between the header and the data; real ones take kilobytes.
_MAX_OFFSET = 2**26
# Deflate cannot shrink anything further than this, so a smaller file cannot hold what its header declares.
_MAX_DEFLATE_RATIO = 1032
_READ_AT_ONCE = 2**22  # bytes

_silent = logging.getLogger(__name__)
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


def read_volume(path: str | Path) -> nib.Nifti1Image:
    """Read one 3-D scan.

    Nothing is read before the header has been found sane, and no more is read than it declares, so that neither a
    corrupt header nor a compression bomb can fill the memory.

    Returns:
        Image of shape (I, J, K) with float32 data in memory, intensities scaled as the header says, in the file's own
        axis order, with the file's own affine (voxel -> world mm). It knows its file's name: ``image.get_filename()``.

    Raises:
        BabyAIError: missing, unreadable, truncated, not NIfTI, not 3-D, not grey values, not finite, constant, or with
            an affine that cannot be inverted.
    """
    path = Path(path)
    if not path.is_file():
        raise BabyAIError(f"{path} does not exist or is not a file; check the path.")
    try:
        with _opened(path) as stream:
            header = _read_header(path, stream)
            shape = _checked_shape(path, header)
            array = _read_data(path, stream, header, shape)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BabyAIError(f"{path} is truncated or damaged; copy or convert it again.") from None
    except OSError as error:
        raise BabyAIError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None

    affine = _checked_affine(path, header)
    _check_intensities(path, array)
    image = type_of_image(header)(array, affine, _cleaned(header))
    image.file_map["image"].filename = str(path)
    return image


def type_of_image(header: nib.Nifti1Header) -> type[nib.Nifti1Image]:
    """NIfTI-2 files stay NIfTI-2; ``Nifti2Image`` is a ``Nifti1Image``."""
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def name_of(image: nib.Nifti1Image) -> str:
    """The file that an image came from, for messages."""
    return image.get_filename() or "the volume"


@contextlib.contextmanager
def _opened(path: Path):
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not compressed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream


def _read_header(path: Path, stream) -> nib.Nifti1Header:
    size = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    block = stream.read(540)
    kind = size.get(int.from_bytes(block[:4], "little")) or size.get(int.from_bytes(block[:4], "big"))
    if kind is None:
        raise BabyAIError(f"{path} is not a NIfTI file; convert it to .nii.gz (dcm2niix does so for DICOM).")
    if len(block) < kind.template_dtype.itemsize:
        raise EOFError
    try:
        header = kind(block[: kind.template_dtype.itemsize], check=False)
        header.check_fix(logger=_silent)
        header.get_data_shape()
        header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, ValueError, KeyError, ArithmeticError):
        raise BabyAIError(f"{path} has a damaged NIfTI header; convert it again from its source.") from None
    if not header.is_single:
        raise BabyAIError(f"{path} is one half of a .hdr/.img pair; save it as a single .nii.gz file.")
    return header


def _checked_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    stated = " x ".join(map(str, shape))
    if len(shape) > 3:
        raise BabyAIError(
            f"{path} is {len(shape)}-D ({stated}); extract a single 3-D volume from it, e.g. with fslroi."
        )
    if len(shape) < 3 or min(shape) < 1:
        raise BabyAIError(f"{path} is not a 3-D volume (its shape is {stated or 'empty'}).")
    if np.prod([float(length) for length in shape]) > _MAX_VOXELS:
        raise BabyAIError(f"{path} declares {stated} voxels, more than any head scan; its header is probably damaged.")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise BabyAIError(f"{path} holds colours or complex numbers ({dtype}); save its magnitude as grey values.")
    return shape


def _read_data(path: Path, stream, header: nib.Nifti1Header, shape: tuple[int, int, int]) -> np.ndarray:
    dtype = header.get_data_dtype()
    offset, size = float(header["vox_offset"]), int(np.prod(shape)) * dtype.itemsize
    if not header.template_dtype.itemsize <= offset <= _MAX_OFFSET:
        raise BabyAIError(f"{path} has a damaged NIfTI header (data offset {offset:g}); convert it again.")
    ratio = _MAX_DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else 1
    if path.stat().st_size * ratio < offset + size:
        raise EOFError
    try:
        slope, intercept = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError:
        raise BabyAIError(f"{path} has a damaged intensity scaling in its header; convert it again.") from None
    scaled = slope is not None and (slope, intercept) != (1.0, 0.0)
    stream.seek(int(offset))
    # In slabs, so that little more than the result is held in memory, whatever the type in the file.
    array = np.empty(shape, np.float32)
    plane = size // shape[2]
    step = max(1, _READ_AT_ONCE // plane)
    for first in range(0, shape[2], step):
        part = array[:, :, first : first + step]
        raw = stream.read(part.shape[2] * plane)
        if len(raw) < part.shape[2] * plane:
            raise EOFError
        slab = np.frombuffer(raw, dtype).reshape(part.shape, order="F")
        with np.errstate(all="ignore"):
            part[...] = slab.astype(np.float64) * slope + intercept if scaled else slab
    # Reading on to the end of a compressed stream checks its checksum.
    if isinstance(stream, gzip.GzipFile) and len(stream.read(2**16)) == 2**16:
        raise BabyAIError(f"{path} goes on long after the data that its header declares; convert it again.")
    return array


def _checked_affine(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    with np.errstate(all="ignore"):
        try:
            affine = header.get_best_affine()
        except (nib.spatialimages.HeaderDataError, ValueError, ArithmeticError):
            affine = np.full((4, 4), np.nan)
        sizes = nib.affines.voxel_sizes(affine)
        directions = affine[:3, :3] / sizes
        proper = np.isfinite(affine).all() and (sizes > 1e-4).all() and (sizes < 1e4).all()
        proper = proper and np.abs(affine).max() < 1e6 and abs(np.linalg.det(directions)) > 1e-3
    if not proper:
        raise BabyAIError(
            f"{path} has a damaged affine (sform/qform), so that its orientation is unknown; convert it again."
        )
    return affine


def _check_intensities(path: Path, array: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise BabyAIError(f"{path} holds NaN or infinite values; replace them, e.g. with fslmaths -nan.")
    if low == high:
        fault = "is zero everywhere" if low == 0 else f"has the same value ({low:g}) everywhere"
        raise BabyAIError(f"{path} {fault}; check how it was exported.")


def _cleaned(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """The header for float32 results: orientation and units stay, display range and scaling of the source do not."""
    header = header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1.0, 0.0)
    header["cal_min"] = header["cal_max"] = 0
    if int(header["xyzt_units"]) % 8 not in (1, 2, 3):  # unknown or damaged, not metres, mm or micrometres
        header["xyzt_units"] = 2
    header["vox_offset"] = 0
    return header


def check_same_grid(t1: nib.Nifti1Image, t2: nib.Nifti1Image) -> None:
    """Refuse a pair whose voxels do not coincide: other shape, or corners more than 0.01 mm apart."""
    remedy = "bring both onto one grid with scripts/preprocessing.py"
    if t1.shape != t2.shape:
        raise BabyAIError(
            f"{name_of(t1)} ({_times(t1.shape)}) and {name_of(t2)} ({_times(t2.shape)}) differ in shape; {remedy}."
        )
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in t1.shape])).reshape(3, -1).T
    distance = np.abs(nib.affines.apply_affine(t1.affine - t2.affine, corners)).max()
    if distance > 1e-2:
        raise BabyAIError(
            f"{name_of(t1)} and {name_of(t2)} lie up to {distance:.2f} mm apart in world space; {remedy}."
        )


def check_isotropic(image: nib.Nifti1Image, spacing: float = 1.0) -> None:
    """Refuse voxels that are not cubes of ``spacing`` mm (relative tolerance 0.001), or axes not at right angles."""
    sizes = nib.affines.voxel_sizes(image.affine)
    if np.abs(sizes / spacing - 1).max() > 1e-3:
        stated = " x ".join(f"{size:.4g}" for size in sizes)
        raise BabyAIError(
            f"{name_of(image)} has voxels of {stated} mm where {spacing:g} mm isotropic is needed; "
            "scripts/preprocessing.py makes it right."
        )
    directions = image.affine[:3, :3] / sizes
    if np.abs(directions.T @ directions - np.eye(3)).max() > 2e-3:
        raise BabyAIError(
            f"{name_of(image)} has axes that are not at right angles; scripts/preprocessing.py makes it right."
        )


def check_atlas_grid(image: nib.Nifti1Image) -> None:
    """Refuse anything but 182 x 218 x 182 voxels of 1 mm, counted along RAS axes (any axis order in the file)."""
    check_isotropic(image)
    order = nib.io_orientation(image.affine)[:, 0].argsort()
    shape = tuple(image.shape[axis] for axis in order)
    if shape != ATLAS_SHAPE:
        raise BabyAIError(
            f"{name_of(image)} has {_times(shape)} voxels where the atlas grid of {_times(ATLAS_SHAPE)} is needed; "
            "scripts/preprocessing.py makes it right."
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def to_ras(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels with the axes flipped and permuted to run nearest to right, anterior, superior."""
    canonical = nib.as_closest_canonical(image)
    if canonical is image:
        return image
    array = np.ascontiguousarray(canonical.dataobj)
    turned = type(image)(array, canonical.affine, canonical.header)
    turned.file_map["image"].filename = image.get_filename()
    return turned


def from_ras(array: np.ndarray, like: nib.Nifti1Image) -> np.ndarray:
    """Turn an array on ``to_ras(like)``'s axes back to the axis order of ``like``."""
    identity = np.array([[0, 1], [1, 1], [2, 1]])
    back = nib.orientations.ornt_transform(identity, nib.io_orientation(like.affine))
    return np.ascontiguousarray(nib.apply_orientation(array, back))


def save_volume(path: str | Path, array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None = None) -> None:
    """Write a float32 volume atomically; ``like`` lends its header (orientation codes, units).

    Raises:
        BabyAIError: the file could not be written.
    """
    image = image_of(array, affine, like)
    with atomic(path) as temporary:
        nib.save(image, temporary)


def array_of(image: nib.Nifti1Image) -> np.ndarray:
    """The voxels of an image as a float32 array, shape (I, J, K); not a copy where they are in memory as such."""
    return np.asarray(image.dataobj, dtype=np.float32)


def image_of(array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None = None) -> nib.Nifti1Image:
    """A float32 image in memory; ``like`` lends its header (orientation codes, units)."""
    array = np.asarray(array, dtype=np.float32)
    if like is None:
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        return image
    return type(like)(array, affine, _cleaned(like.header))


def save_result(path: str | Path, image: nib.Nifti1Image, sidecar: dict) -> None:
    """Write a volume and its JSON sidecar, the volume last: where it is there, both are there and whole.

    Raises:
        BabyAIError: one of them could not be written.
    """
    with atomic(path) as volume_file, atomic(sidecar_path(path)) as json_file:
        nib.save(image, volume_file)
        write_json(json_file, sidecar)
