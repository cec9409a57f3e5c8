"""Find, read, check, and safely write NIfTI volumes.

Volumes travel as nibabel images: float32 data in memory, in the file's own axis order, with the file's own affine
(voxel indices -> world mm, RAS+). Nothing here resamples; :func:`to_ras` only flips and permutes axes.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import logging
import os
import re
import secrets
import socket
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from func.errors import BabyAIError

ATLAS_SHAPE = (182, 218, 182)
RESULT_ENTITY = "desc-isotropic"
_OWN_RESULTS = ("isotropic", "uncertainty")  # values of desc that are no inputs

# A 512 x 512 x 1024 volume: larger than any head scan, small enough to be read without harm.
_MAX_VOXELS = 2**28
# Header extensions lie between the header and the data; real ones take kilobytes.
_MAX_OFFSET = 2**26
# Deflate cannot shrink anything further than this, so a smaller file cannot hold what its header declares.
_MAX_DEFLATE_RATIO = 1032
_READ_AT_ONCE = 2**22  # bytes
_MAX_SIDECAR_BYTES = 2**24
_BIDS_NAME = re.compile(r"(?P<entities>sub-[^_]+(?:_[a-zA-Z0-9]+-[^_]+)*)_(?P<suffix>T[12]w)\.nii(?:\.gz)?")
# How an acq label says what scripts/synthesize_anisotropic.py made: axial4mm, coronal2p5mm.
SLICING = re.compile(r"(?P<direction>axial|coronal|sagittal)(?P<thickness>\d+(p\d+)?)mm$")
# Where BIDS keeps what is not this dataset's own raw or preprocessed scans.
_FOREIGN_FOLDERS = {"derivatives", "sourcedata"}

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


def entities_of(path: str | Path) -> dict[str, str]:
    """BIDS entities of a T1w or T2w file by its name, plus ``suffix``; empty for any other file.

    ``sub-01_acq-axial4mm_T2w.nii.gz`` -> ``{"sub": "01", "acq": "axial4mm", "suffix": "T2w"}``
    """
    match = _BIDS_NAME.fullmatch(Path(path).name)
    if match is None:
        return {}
    entities = dict(entity.split("-", 1) for entity in match["entities"].split("_"))
    return entities | {"suffix": match["suffix"]}


def slicing_of(path: str | Path) -> tuple[str, float] | None:
    """Direction and thickness (mm) of the slices of a synthesised scan, by its name; None for any other scan.

    ``sub-01_acq-axial4mm_T2w.nii.gz`` -> ``("axial", 4.0)``; also of a reconstruction made from one
    """
    match = SLICING.search(entities_of(path).get("acq", ""))
    return (match["direction"], float(match["thickness"].replace("p", "."))) if match else None


def stem_of(path: str | Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


def sidecar_path(path: str | Path) -> Path:
    """The JSON file that belongs to a NIfTI file."""
    return Path(path).with_name(stem_of(path) + ".json")


def find_scans(data_dir: str | Path) -> list[Path]:
    """Every T1w and T2w file with a BIDS name below a folder, sorted; hidden and foreign folders are left out.

    Links to folders are followed (once each); a dataset's ``derivatives`` and ``sourcedata`` are not entered.

    Raises:
        BabyAIError: no such folder.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise BabyAIError(f"The data folder {data_dir} does not exist; check --data-dir.")
    found, visited = [], {os.path.realpath(data_dir)}
    for folder, subfolders, files in os.walk(data_dir, followlinks=True):
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".")
            and name not in _FOREIGN_FOLDERS
            and not _seen(os.path.join(folder, name), visited)
        ]
        found += [Path(folder, name) for name in files if entities_of(name)]
    return sorted(found)


def _seen(folder: str, visited: set[str]) -> bool:
    real = os.path.realpath(folder)
    if real in visited:
        return True
    visited.add(real)
    return False


@dataclass(frozen=True)
class Pair:
    """A thick-slice (or up-sampled) T2w scan and the T1w scan of the same infant.

    Attributes:
        subject: BIDS label without ``sub-``.
        t1, t2: the two files.
        name: the T2w file's name without extension.
        folder: the T2w file's folder, relative to the folder that was searched.
    """

    subject: str
    t1: Path
    t2: Path
    name: str
    folder: Path = Path()


def find_pairs(data_dir: str | Path) -> tuple[list[Pair], list[BabyAIError]]:
    """Pair every T2w below a folder with its T1w by their entities sub, ses and run.

    A T1w fits unless one of the three contradicts; the one sharing most of them is taken. Several T2w may share a
    T1w. Reconstructions (``desc-isotropic``) are left out.

    Returns:
        The pairs, sorted by path, and one error for each file that could not be paired.

    Raises:
        BabyAIError: no such folder, or nothing in it with a BIDS name.
    """
    data_dir = Path(data_dir)
    scans = [(path, entities_of(path)) for path in find_scans(data_dir)]
    scans = [(path, entities) for path, entities in scans if entities.get("desc") not in _OWN_RESULTS]
    if not scans:
        raise BabyAIError(
            f"No scans were found below {data_dir}; it needs pairs named like sub-01_T1w.nii.gz and sub-01_T2w.nii.gz."
        )
    t1s, t2s = (_by_subject(scans, suffix) for suffix in ("T1w", "T2w"))
    pairs, errors, sources = [], [], {}
    for subject, candidates in t2s.items():
        for t2, entities in candidates:
            try:
                t1 = _matching_t1(t2, entities, t1s.get(subject, []))
                pair = Pair(subject, t1, t2, stem_of(t2), t2.parent.relative_to(data_dir))
                other = sources.setdefault(result_path(pair, data_dir), t2)
                if other != t2:
                    raise BabyAIError(f"{t2} and {other} would give the same result; keep one of them.")
                pairs.append(pair)
            except BabyAIError as error:
                errors.append(error)
    for subject, candidates in t1s.items():
        for t1, entities in candidates:
            if not any(_agreement(entities, other, ("sub", "ses")) for _, other in t2s.get(subject, [])):
                errors.append(BabyAIError(f"{t1} has no T2w; add one named like sub-{subject}_T2w.nii.gz."))
    return pairs, errors


def _by_subject(scans: list[tuple[Path, dict]], suffix: str) -> dict[str, list[tuple[Path, dict]]]:
    grouped: dict[str, list[tuple[Path, dict]]] = {}
    for path, entities in scans:
        if entities["suffix"] == suffix:
            grouped.setdefault(entities["sub"], []).append((path, entities))
    return grouped


def _matching_t1(t2: Path, entities: dict[str, str], candidates: list[tuple[Path, dict]]) -> Path:
    """The T1w that agrees with a T2w in most entities and contradicts it in none."""
    agreements = {t1: _agreement(entities, other) for t1, other in candidates}
    best = [t1 for t1, shared in agreements.items() if shared and shared == max(agreements.values())]
    if not best:
        raise BabyAIError(f"{t2} has no T1w; add one named like sub-{entities['sub']}_T1w.nii.gz.")
    if len(best) > 1:
        names = " and ".join(str(t1) for t1 in best)
        raise BabyAIError(f"{t2} has {len(best)} T1w candidates, {names}; keep one of them.")
    return best[0]


def _agreement(entities: dict[str, str], other: dict[str, str], keys: tuple[str, ...] = ("sub", "ses", "run")) -> int:
    """How many of the entities two scans share; 0 where one contradicts."""
    shared = [key for key in keys if key in entities and key in other]
    # BIDS counts runs, with or without leading zeros.
    same = all(
        entities[key] == other[key] or (key == "run" and entities[key].lstrip("0") == other[key].lstrip("0"))
        for key in shared
    )
    return len(shared) if same else 0


def result_path(source: Pair | str | Path, output_dir: str | Path) -> Path:
    """Where the reconstruction of a T2w goes: ``desc-isotropic`` before the suffix, the pair's own subfolder kept."""
    folder = source.folder if isinstance(source, Pair) else Path()
    stem = stem_of(source.t2 if isinstance(source, Pair) else source)
    parts = [part for part in stem.split("_") if not part.startswith("desc-")]
    return Path(output_dir, folder, "_".join([*parts[:-1], RESULT_ENTITY, parts[-1]]) + ".nii.gz")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it once the block has written it whole and the disk holds it.

    Whatever interrupts the block, nothing partial is left under the final name; leftovers of killed processes are
    removed when the same file is written again. The folder is made if need be.

    Raises:
        BabyAIError: the file could not be written (disk full, no permission, folder gone).
    """
    path = Path(path)
    # The whole file name stays at the end, since nibabel goes by the extension.
    temporary = path.with_name(f".part-{os.getpid()}-{socket.gethostname()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BabyAIError(f"{path} could not be written: {_write_fault(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_fault(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder is not writable; choose another one."
    if error.errno == errno.ENOENT:
        return "its folder was removed meanwhile; run again."
    return f"{error.strerror or error}; check the output folder."


def _remove_leftovers(path: Path) -> None:
    """Delete temporaries of the same file whose process, on this host, is no more."""
    for leftover in path.parent.glob(f".part-*-{_glob_escaped(socket.gethostname())}-*-{_glob_escaped(path.name)}"):
        if not _is_alive(leftover.name.split("-")[1]):
            leftover.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    if os.name != "posix" or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _glob_escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def save_volume(path: str | Path, array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None = None) -> None:
    """Write a float32 volume atomically; ``like`` lends its header (orientation codes, units).

    Raises:
        BabyAIError: the file could not be written.
    """
    image = image_of(array, affine, like)
    with atomic(path) as temporary:
        nib.save(image, temporary)


def image_of(array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None = None) -> nib.Nifti1Image:
    """A float32 image in memory; ``like`` lends its header (orientation codes, units)."""
    array = np.asarray(array, dtype=np.float32)
    if like is None:
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        return image
    return type(like)(array, affine, _cleaned(like.header))


def save_json(path: str | Path, content: dict) -> None:
    """Write a JSON file atomically.

    Raises:
        BabyAIError: the file could not be written.
    """
    with atomic(path) as temporary:
        _write_json(temporary, content)


def save_result(path: str | Path, image: nib.Nifti1Image, sidecar: dict) -> None:
    """Write a volume and its JSON sidecar, the volume last: where it is there, both are there and whole.

    Raises:
        BabyAIError: one of them could not be written.
    """
    with atomic(path) as volume_file, atomic(sidecar_path(path)) as json_file:
        nib.save(image, volume_file)
        _write_json(json_file, sidecar)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_sidecar(path: str | Path) -> dict:
    """The JSON sidecar of a NIfTI file, empty where there is none.

    Raises:
        BabyAIError: the sidecar is there but is not a JSON object.
    """
    path = sidecar_path(path)
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    except OSError as error:
        raise BabyAIError(f"{path} cannot be read ({error.strerror}); check the file.") from None
    if not isinstance(content, dict):
        raise BabyAIError(f"{path} is not a JSON object; correct or remove it.")
    return content
