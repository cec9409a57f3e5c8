"""Read, check, and safely write NIfTI volumes.

Volumes travel as nibabel images: float32 data in memory, in the file's own axis order, with the file's own affine
(voxel indices -> world mm, RAS+). Nothing here resamples; :func:`to_ras` only flips and permutes axes.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from func.errors import BabyAIError, warn
from func.scans.affine import affine_in_mm
from func.scans.files import atomic, write_json
from func.scans.sidecars import sidecar_path
from func.stopwatch import Stopwatch

ATLAS_SHAPE = (182, 218, 182)

_MAX_VOXELS = 2**28  # a 512 x 512 x 1024 volume: larger than any head scan, small enough to be read without harm
_READ_AT_ONCE = 2**18  # voxels, so that little more than the result is held in memory, whatever the type in the file
_MAX_TAIL = 2**16  # bytes that a compressed file may hold after its data
_PREPROCESS = "scripts/preprocessing.py makes it right"
_PREPROCESS_OR_RAW = f"{_PREPROCESS}, and inference.py takes raw scans with --space 1mm"
_SAME_PLACE = 0.1  # mm: affines that were written with four digits differ by less over a head

_silent = logging.getLogger(__name__)
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


def read_volume(path: str | Path, called: str | None = None) -> nib.Nifti1Image:
    """Read one 3-D scan.

    What is unusual but clear is used with a warning: a header that is wrong in one of two places, other units than mm,
    NaN for the air, bytes after the end of the file.

    Args:
        called: what messages, and the image, call the file, if not by its path.

    Returns:
        Image of shape (I, J, K) with float32 data in memory, intensities scaled as the header says, in the file's own
        axis order, with the file's own affine (voxel -> world mm). It knows its file's name: ``image.get_filename()``.

    Raises:
        BabyAIError: missing, unreadable, truncated, not NIfTI, not 3-D, not grey values, not finite, constant, or with
            an affine that cannot be inverted.
    """
    source, path = Path(path), Path(called or path)
    try:
        check_is_there(source)
        _check_content(source)
        with source.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if compressed else raw
            header = _read_header(path, stream)
            array = _read_data(stream, header, _checked_shape(path, header))
            if compressed:
                _check_end(path, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BabyAIError(f"{path} is truncated or damaged; copy or convert it again.") from None
    except OSError as error:
        raise BabyAIError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
    except (HeaderDataError, ValueError, KeyError, ArithmeticError):
        raise BabyAIError(f"{path} has a damaged NIfTI header; convert it again from its source.") from None
    with np.errstate(all="ignore"):
        affine = affine_in_mm(path, header)
    image = type_of_image(header)(_grey_values(path, array), affine, _cleaned(header))
    image.file_map["image"].filename = str(path)
    return image


def type_of_image(header: nib.Nifti1Header) -> type[nib.Nifti1Image]:
    """NIfTI-2 files stay NIfTI-2; ``Nifti2Image`` is a ``Nifti1Image``."""
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def name_of(image: nib.Nifti1Image) -> str:
    """The file that an image came from, for messages."""
    return image.get_filename() or "the volume"


def named_as(image: nib.Nifti1Image, source: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image, which messages now call by the file that ``source`` came from."""
    image.file_map["image"].filename = source.get_filename()
    return image


def check_is_there(path: Path) -> None:
    """Refuse a path that leads to no file, with what to do.

    Raises:
        BabyAIError: there is none.
    """
    if path.is_symlink() and not path.exists():
        raise BabyAIError(f"{path} is a link to a file that is not there; get it first (git-annex or DataLad).")
    if not path.is_file():
        raise BabyAIError(f"{path} does not exist or is not a file; check the path.")


def _check_content(path: Path) -> None:
    # nib-convert and nib-roi come with nibabel.
    if path.name.lower().endswith((".mgz", ".mgh")):
        raise BabyAIError(f"{path} is in FreeSurfer's format; convert it: nib-convert {path.name} {path.stem}.nii.gz")
    if path.name.lower().endswith((".img", ".hdr")):
        raise BabyAIError(
            f"{path} is one half of a .hdr/.img pair; join them: nib-convert {path.stem}.img {path.stem}.nii.gz"
        )
    if path.stat().st_size == 0:
        raise BabyAIError(f"{path} is empty (0 bytes); copy or convert it again.")


def _read_header(path: Path, stream: BinaryIO) -> nib.Nifti1Header:
    """The header without its extensions, which results have no use for and which may name the patient."""
    block = stream.read(nib.Nifti2Header.template_dtype.itemsize)
    sizes = {kind.template_dtype.itemsize: kind for kind in (nib.Nifti1Header, nib.Nifti2Header)}
    kind = next(
        (sizes[size] for order in ("little", "big") if (size := int.from_bytes(block[:4], order)) in sizes), None
    )
    if kind is None:
        raise BabyAIError(f"{path} {_other_format(block)}.")
    if len(block) < kind.template_dtype.itemsize:
        raise EOFError
    header = kind(block[: kind.template_dtype.itemsize], check=False)
    unknown = header["pixdim"] == 0
    header.check_fix(logger=_silent)
    header["pixdim"][unknown] = 0  # which was made 1, as if it were known
    return header


def _other_format(block: bytes) -> str:
    """What a file is that is not NIfTI, and what to do."""
    if block[128:132] == b"DICM":
        return "is a DICOM file; convert its folder to .nii.gz with dcm2niix"
    if block.startswith(b"\x1f\x8b"):
        return "was compressed twice; uncompress it once (gunzip)"
    if block.startswith((b"version https://git-lfs", b"/annex/objects", b"../.git/annex")):
        return "is only a pointer to the scan; get the scan itself (git lfs pull, or datalad get)"
    return "is not a NIfTI file; convert it to .nii.gz (dcm2niix does so for DICOM)"


def _checked_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    stated = _times(shape)
    if len(shape) == 4 and shape[2] == 1:
        raise BabyAIError(
            f"{path} holds {shape[3]} single slices ({stated}), not a stack; convert it again (dcm2niix)."
        )
    if len(shape) > 3:
        raise BabyAIError(
            f"{path} is {len(shape)}-D ({stated}); take a volume out of it: nib-roi -t 0:1 {path.name} one_{path.name}"
        )
    if len(shape) < 3 or min(shape) < 1:
        raise BabyAIError(
            f"{path} is not a 3-D volume (its shape is {stated or 'empty'}); convert the whole series again (dcm2niix)."
        )
    if np.prod([float(length) for length in shape]) > _MAX_VOXELS:
        raise BabyAIError(f"{path} declares {stated} voxels, more than any head scan; its header is probably damaged.")
    dtype = header.get_data_dtype()
    if dtype.kind == "c":
        raise BabyAIError(f"{path} holds complex numbers; save their magnitude, or export the magnitude image.")
    if dtype.kind not in "iuf":
        raise BabyAIError(f"{path} holds colours, as a picture made of a scan does; export the scan itself.")
    return shape


def _read_data(stream: BinaryIO, header: nib.Nifti1Header, shape: tuple[int, int, int]) -> np.ndarray:
    slope, intercept = header.get_slope_inter()
    scaling = (1.0, 0.0) if slope is None else (slope, intercept)
    offset = header.get_data_offset() or header.single_vox_offset  # 0 is not set: as near as it may be
    source = ArrayProxy(stream, (shape, header.get_data_dtype(), offset, *scaling), mmap=False)
    array = np.empty(shape, np.float32)
    step = max(1, _READ_AT_ONCE // (shape[0] * shape[1]))
    try:
        for first in range(0, shape[2], step):
            with np.errstate(all="ignore"):
                array[..., first : first + step] = source[..., first : first + step]
    except (ValueError, OSError) as error:
        # This is how nibabel says that the file is too short.
        raise error if getattr(error, "errno", None) else EOFError from None
    return array


def _check_end(path: Path, stream: gzip.GzipFile) -> None:
    """Read a compressed stream to its end, which checks its checksum."""
    try:
        rest = stream.read(_MAX_TAIL)
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):
            raise
        warn(f"{path} has bytes of something else after its end; they are left out.")
        return
    if len(rest) == _MAX_TAIL:
        raise BabyAIError(f"{path} goes on long after the data that its header declares; convert it again.")


def _grey_values(path: Path, array: np.ndarray) -> np.ndarray:
    """The values of a scan, with air for NaN and infinity outside the head, and the nearest value for a few within.

    Raises:
        BabyAIError: some are not finite within the head, or all are the same.
    """
    finite = np.isfinite(array)
    if not finite.any():
        raise BabyAIError(f"{path} holds no finite value; check how it was exported.")
    if not finite.all():
        head = ndimage.binary_closing(np.pad(finite, 2), iterations=2)[2:-2, 2:-2, 2:-2] | finite
        if (ndimage.binary_fill_holes(head) & ~finite).sum() > 0.05 * finite.sum():
            raise BabyAIError(
                f"{path} holds NaN or infinite values within the head, more than could be filled in; export it again."
            )
        within = ndimage.binary_fill_holes(finite) & ~finite
        air = min(0, array[finite].min())
        nearest = ndimage.distance_transform_edt(~finite, return_distances=False, return_indices=True)
        array = np.where(finite, array, np.where(within, array[tuple(nearest)], air))
        filled = f", and the {within.sum()} within the head for what lies beside them" if within.any() else ""
        warn(
            f"{path} holds NaN or infinite values in {1 - finite.mean():.0%} of its voxels; they are taken for "
            f"air{filled}."
        )
    low, high = float(array.min()), float(array.max())
    if low == high:
        fault = "is zero everywhere" if low == 0 else f"has the same value ({low:g}) everywhere"
        raise BabyAIError(f"{path} {fault}; check how it was exported.")
    return array


def _cleaned(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """The header for float32 results in mm: orientation codes stay, the source's scaling and free text do not."""
    header = header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1.0, 0.0)
    header["cal_min"] = header["cal_max"] = 0
    header["xyzt_units"] = 2
    header["vox_offset"] = 0
    for text in ("descrip", "aux_file", "intent_name"):  # dcm2niix notes the time of day there
        header[text] = b""
    return header


def check_same_grid(
    t1: nib.Nifti1Image,
    t2: nib.Nifti1Image,
    mend: str = "bring both onto one grid with scripts/preprocessing.py",
) -> None:
    """Refuse a pair whose voxels do not coincide: other shape, or corners more than 0.1 mm apart.

    Args:
        mend: what the message tells to do.
    """
    if t1.shape != t2.shape:
        raise BabyAIError(
            f"{name_of(t1)} ({_times(t1.shape)}) and {name_of(t2)} ({_times(t2.shape)}) differ in shape; {mend}."
        )
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in t1.shape])).reshape(3, -1).T
    distance = np.abs(nib.affines.apply_affine(t1.affine - t2.affine, corners)).max()
    if distance > _SAME_PLACE:
        raise BabyAIError(f"{name_of(t1)} and {name_of(t2)} lie up to {distance:.2f} mm apart in world space; {mend}.")


def check_isotropic(image: nib.Nifti1Image, spacing: float = 1.0, mend: str = _PREPROCESS_OR_RAW) -> None:
    """Refuse voxels that are not cubes of ``spacing`` mm (relative tolerance 0.001), or axes not at right angles.

    Args:
        mend: what the message tells to do.
    """
    sizes = nib.affines.voxel_sizes(image.affine)
    if np.abs(sizes / spacing - 1).max() > 1e-3:
        stated = " x ".join(f"{size:.4g}" for size in sizes)
        raise BabyAIError(
            f"{name_of(image)} has voxels of {stated} mm where {spacing:g} mm isotropic is needed; {mend}."
        )
    directions = image.affine[:3, :3] / sizes
    if np.abs(directions.T @ directions - np.eye(3)).max() > 2e-3:
        raise BabyAIError(f"{name_of(image)} has axes that are not at right angles; {mend}.")


def check_atlas_grid(image: nib.Nifti1Image, mend: str = _PREPROCESS) -> None:
    """Refuse anything but 182 x 218 x 182 voxels of 1 mm, counted along RAS axes (any axis order in the file).

    Args:
        mend: what the message tells to do.
    """
    check_isotropic(image, mend=mend)
    order = nib.io_orientation(image.affine)[:, 0].argsort()
    shape = tuple(image.shape[axis] for axis in order)
    if shape != ATLAS_SHAPE:
        raise BabyAIError(
            f"{name_of(image)} has {_times(shape)} voxels where the atlas grid of {_times(ATLAS_SHAPE)} is needed; "
            f"{mend}."
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def to_ras(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels with the axes flipped and permuted to run nearest to right, anterior, superior."""
    canonical = nib.as_closest_canonical(image)
    if canonical is image:
        return image
    array = np.ascontiguousarray(canonical.dataobj)
    return named_as(type(image)(array, canonical.affine, canonical.header), image)


def from_ras(array: np.ndarray, like: nib.Nifti1Image) -> np.ndarray:
    """Turn an array on ``to_ras(like)``'s axes back to the axis order of ``like``."""
    identity = np.array([[0, 1], [1, 1], [2, 1]])
    back = nib.orientations.ornt_transform(identity, nib.io_orientation(like.affine))
    return np.ascontiguousarray(nib.apply_orientation(array, back))


def save_volume(path: str | Path, array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None = None) -> None:
    """Write a float32 volume atomically; ``like`` lends its header (orientation codes, units).

    Raises:
        BabyAIError: the file could not be written, or has no NIfTI file's name.
    """
    _check_name(path)
    image = image_of(array, affine, like)
    with atomic(path) as temporary:
        _write(temporary, image)


def _check_name(path: str | Path) -> None:
    if not Path(path).name.endswith((".nii", ".nii.gz")):
        raise BabyAIError(f"{path} must end in .nii.gz or .nii; choose another name.")


def _write(path: Path, image: nib.Nifti1Image) -> None:
    """Write an image; ISA-L compresses it no less than nibabel's zlib, in a sixth of the time."""
    if not path.name.endswith(".gz"):
        nib.save(image, path)
        return
    with path.open("wb") as raw, igzip.IGzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
        image.to_stream(stream)


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


def save_result(path: str | Path, image: nib.Nifti1Image, sidecar: dict, stopwatch: Stopwatch | None = None) -> None:
    """Write a volume and its JSON sidecar, the volume last: where it is there, both are there and whole.

    Args:
        stopwatch: what it measured goes into the sidecar as ``Seconds``, writing the volume included.

    Raises:
        BabyAIError: one of them could not be written, or the volume has no NIfTI file's name.
    """
    _check_name(path)
    with atomic(path) as volume_file, atomic(sidecar_path(path)) as json_file:
        _write(volume_file, image)
        if stopwatch:
            stopwatch.lap("Writing")
            sidecar = sidecar | {"Seconds": stopwatch.seconds}
        write_json(json_file, sidecar)
