"""Who training learns from: infants read once, whole heads of which there is a T1w only, phantoms and random shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from func.errors import BabyAIError
from func.networks.alignment import laid_upon_t2, t1_offset
from func.phantom import infant_brain
from func.reports.scores import INNER_DEPTH, brain_mask
from func.scans.bids import Pair, entities_of, find_pairs, slicing_of
from func.scans.intensity import Scale, zero_based_scale
from func.scans.nifti import check_isotropic, check_same_grid, name_of, read_volume, to_ras
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, measured_slices
from func.slices.recovery import recover_geometry
from func.training.augmentation import affine_transform, random_rotation, random_shapes

MARGIN = 4  # voxels of air kept around a head
FAINTEST = 0.01  # of the brightest voxel: what is fainter is no head
_LARGEST_TURN = 30  # degrees
_SCALES = (0.88, 1.18)


@dataclass(frozen=True)
class ThickScan:
    """A T2w that was acquired or made in thick slices, on its subject's cropped grid.

    ``array`` holds the measured slices where ``geometry`` is given, and the cubic up-sampled volume where it is None.
    """

    name: str
    array: np.ndarray
    geometry: SliceGeometry | None = None


@dataclass(frozen=True)
class Subject:
    """An isotropic pair in RAS order, cropped to the head, with air at 0 and the 99th percentile at 1.

    Attributes:
        label: BIDS label without ``sub-``; several sessions of an infant share it.
        t1, t2: shape (X, Y, Z), float32, or float16 where there are many.
        start, shape: first voxel of the crop on the whole grid, and the whole grid's shape.
        scans: thick-slice T2w scans of the same head that exist as files.
        invented: the contrasts mean nothing and are to be drawn anew for every sample.
        inner: where the scans show anatomy, not where a brain was cut out of its head; None: everywhere.
    """

    label: str
    t1: np.ndarray
    t2: np.ndarray
    start: tuple[int, int, int] = (0, 0, 0)
    shape: tuple[int, int, int] = (0, 0, 0)
    scans: tuple[ThickScan, ...] = ()
    invented: bool = False
    inner: np.ndarray | None = None


def find_subjects(data_dir: str | Path) -> tuple[dict[str, list[list[Pair]]], list[BabyAIError]]:
    """The isotropic pairs below a folder by subject label, each followed by its scans in thick slices.

    Raises:
        BabyAIError: no such folder, or no scans in it.
    """
    pairs, errors = find_pairs(data_dir)
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        entities = entities_of(pair.t2)
        groups.setdefault((pair.subject, entities.get("ses"), entities.get("run")), []).append(pair)
    subjects: dict[str, list[list[Pair]]] = {}
    for group in groups.values():
        thick = [pair for pair in group if _is_thick(pair)]
        isotropic = [pair for pair in group if pair not in thick]
        if not isotropic:
            errors.append(BabyAIError(f"{thick[0].t2} has no isotropic T2w beside it to learn from; add it."))
        for pair in isotropic:
            subjects.setdefault(pair.subject, []).append([pair, *thick])
    return subjects, errors


def _is_thick(pair: Pair) -> bool:
    return slicing_of(pair.t2) is not None or "FirstSliceCenter" in read_sidecar(pair.t2)


def read_subjects(groups: Sequence[list[Pair]], published: bool) -> tuple[list[Subject], list[BabyAIError]]:
    """Read pairs as :func:`find_subjects` groups them; a pair that cannot be used costs one error and no other pair.

    For the published recipe all that is not zero is kept, and thick-slice scans stay the up-sampled volumes they are;
    otherwise the head alone is kept, and of thick-slice scans the slices.
    """
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda group: _read_group(group, published), groups))
    return [subject for subject, _ in results if subject], [error for _, errors in results for error in errors]


def _read_group(group: list[Pair], published: bool) -> tuple[Subject | None, list[BabyAIError]]:
    pair, *thick = group
    errors: list[BabyAIError] = []
    try:
        images = [read_volume(pair.t1), read_volume(pair.t2)]
        for image in images:
            check_isotropic(image)
        check_same_grid(*images)
        t1, t2 = (np.asarray(to_ras(image).dataobj) for image in images)
        box = _head_box(t1, t2, *((0, 12) if published else (FAINTEST, MARGIN)))
        t2_scale = zero_based_scale(t2)
        t1 = np.ascontiguousarray(zero_based_scale(t1).apply(t1[box]), np.float32)
        start, shape, inner = tuple(part.start for part in box), t2.shape, None if published else _inner(t2[box])
        t2 = np.ascontiguousarray(t2_scale.apply(t2[box]), np.float32)
        if not published:
            # Else the network learns to trust the T1w less than it may, since reconstruction lays it upon the T2w.
            planes = SliceGeometry.fitting(2, t2.shape[2], thickness=1.0)
            t1 = laid_upon_t2(t1, t2, planes, t1_offset(t1, t2, planes))
        subject = Subject(pair.subject, t1, t2, start, shape, inner=inner)
    except BabyAIError as error:
        return None, [error]
    scans = []
    for other in thick:
        try:
            scans.append(_read_thick(other, images[1], box, t2_scale, published))
        except BabyAIError as error:
            errors.append(error)
    return replace(subject, scans=tuple(scans)), errors


def _head_box(
    t1: np.ndarray, t2: np.ndarray, faintest: float = FAINTEST, margin: int = MARGIN
) -> tuple[slice, slice, slice]:
    head = (t1 > faintest * t1.max()) | (t2 > faintest * t2.max())
    first, last = (index(np.argwhere(head), axis=0) for index in (np.min, np.max))
    return tuple(
        slice(max(int(a) - margin, 0), min(int(b) + margin + 1, n))
        for a, b, n in zip(first, last, t1.shape, strict=True)
    )


def _inner(t2: np.ndarray) -> np.ndarray:
    """The brain without its rim: one mask cut both scans out of the head, so that there the T1w gives the T2w away."""
    mask = brain_mask(t2)
    inner = ndimage.distance_transform_edt(mask) >= INNER_DEPTH
    return inner if inner.any() else mask


def _read_thick(
    pair: Pair, isotropic: nib.Nifti1Image, box: tuple[slice, ...], scale: Scale, published: bool
) -> ThickScan:
    image = read_volume(pair.t2)
    check_same_grid(image, isotropic)
    array = np.asarray(to_ras(image).dataobj)
    if published:
        return ThickScan(pair.name, scale.apply(array[box]).astype(np.float32))
    geometry = SliceGeometry.from_sidecar(read_sidecar(pair.t2), image)
    if geometry is None:
        geometry = recover_geometry(array)
    else:
        axis, flip = nib.io_orientation(image.affine)[geometry.axis]
        geometry = geometry.on_axis(int(axis), array.shape[int(axis)] if flip < 0 else None)
    if geometry is None:
        raise BabyAIError(f"{name_of(image)} does not show where its slices lie; write them into its JSON sidecar.")
    slices = measured_slices(array, geometry)
    # Of the slices, those that lie in the box.
    along_axis = box[geometry.axis]
    half = geometry.thickness / 2
    kept = np.flatnonzero(
        (geometry.centers - half >= along_axis.start - 0.5) & (geometry.centers + half <= along_axis.stop - 0.5)
    )
    if len(kept) < 4:
        raise BabyAIError(f"{name_of(image)} has fewer than four slices in the head; leave it out.")
    cut = list(box)
    cut[geometry.axis] = slice(int(kept[0]), int(kept[-1]) + 1)
    inner = replace(
        geometry, first_center=float(geometry.centers[kept[0]] - along_axis.start), count=int(kept[-1] - kept[0] + 1)
    )
    return ThickScan(pair.name, scale.apply(slices[tuple(cut)]).astype(np.float32), inner)


def read_pseudo_pairs(paths: Iterable[str | Path]) -> list[Subject]:
    """Heads of which there is a T1w only, of any voxel size: the T2w is the T1w, to be given a random contrast.

    Raises:
        BabyAIError: a file cannot be read.
    """
    subjects = []
    for path in paths:
        image = to_ras(read_volume(path))
        array = np.asarray(image.dataobj)
        zoom = nib.affines.voxel_sizes(image.affine)
        if np.abs(zoom - 1).max() > 0.05:
            array = np.maximum(ndimage.zoom(array, zoom, order=3, prefilter=True), 0)
        array = np.ascontiguousarray(zero_based_scale(array).apply(array)[_head_box(array, array)], np.float32)
        subjects.append(Subject(Path(path).name, array, array, shape=array.shape, invented=True))
    return subjects


def turned_copies(subjects: Sequence[Subject], count: int, seed: int) -> list[Subject]:
    """``count`` copies of each subject, turned by up to 30 degrees and scaled by 0.88 to 1.18, with cubic splines."""
    jobs = [(subject, (seed, number, copy)) for number, subject in enumerate(subjects) for copy in range(count)]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda job: turned(job[0], np.random.default_rng(job[1])), jobs))


def turned(subject: Subject, rng: np.random.Generator) -> Subject:
    """A copy of a subject in another position and size, so that fewer patches look alike."""
    matrix = random_rotation(_LARGEST_TURN, rng) / rng.uniform(*_SCALES)
    shape = np.array(subject.t2.shape)
    room = np.ceil(np.abs(np.linalg.inv(matrix)) @ shape).astype(int)
    offset = (shape - 1) / 2 - matrix @ ((room - 1) / 2)

    def moved(volume: np.ndarray) -> np.ndarray:
        scan = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
        return affine_transform(scan, matrix, offset, tuple(room.tolist())).numpy()

    mask = moved(subject.t2 > 0) > 0.5
    box = tuple(slice(part.start, part.stop) for part in _head_box(mask, mask))
    t1, t2 = ((np.maximum(moved(scan), 0) * mask)[box].astype(np.float16) for scan in (subject.t1, subject.t2))
    inner = moved(subject.t2 > 0 if subject.inner is None else subject.inner)[box] > 0.9
    return replace(
        subject, label=f"{subject.label} turned", t1=t1, t2=t2, start=(0, 0, 0), shape=t2.shape, scans=(), inner=inner
    )


def phantoms(count: int) -> list[Subject]:
    """Digital infants of different ages, every other one with skull and face."""
    subjects = []
    for number in range(count):
        infant = infant_brain(age_months=(0, 9, 3, 24, 6, 12)[number % 6], skull=number % 2 == 1, seed=1000 + number)
        t1, t2 = (np.asarray(scan.dataobj, np.float32) for scan in (infant.t1, infant.t2))
        box = _head_box(t1, t2)
        t1, t2 = (np.ascontiguousarray(zero_based_scale(scan).apply(scan)[box], np.float32) for scan in (t1, t2))
        subjects.append(Subject(f"phantom {number}", t1, t2, shape=t2.shape))
    return subjects


def shapes(count: int, length: int = 96) -> list[Subject]:
    """Volumes of random smooth shapes."""
    subjects = []
    for number in range(count):
        t1, t2 = random_shapes((length,) * 3, np.random.default_rng((2000, number)))
        subjects.append(Subject(f"shapes {number}", t1, t2, shape=t2.shape, invented=True))
    return subjects
