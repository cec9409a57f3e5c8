"""The patch-based two-channel data set: the samples that the two recipes draw from subjects read once.

Thick slices are made on the fly from the isotropic T2w; scans that are already there in thick slices (see
scripts/synthesize_anisotropic.py) are used as well. A sample depends on the seed and on its own number alone, so that
it is the same whichever process, worker or resumed run draws it. Samples of the compact recipe are made in PyTorch,
on the processor by worker processes or on the GPU that trains.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from func.networks.guidance import network_inputs
from func.networks.patches import tile_axis
from func.scans.intensity import Scale, scale_of
from func.slices.filters import smooth
from func.slices.geometry import (
    AXIS_ACROSS,
    SliceGeometry,
    acquire,
    along,
    consistency_matrix,
    slice_matrix,
    upsample,
    upsampling_matrix,
)
from func.training.augmentation import (
    bias_field,
    noisy,
    random_contrast,
    random_rotation,
    shifted,
    thick_scan,
    tilted_stack,
    with_lesions,
)
from func.training.subjects import Subject, ThickScan


class ThickSliceSamples(Dataset):
    """What the compact network learns from: random crops, seen in random thick slices.

    Sample ``number`` is a dictionary of float32 tensors, with P = ``patch`` and the slices stacked along the last axis:

        inputs      (7, P, P, P)  what the network is told (func.networks.guidance)
        truth       (P, P, P)     the isotropic T2w
        projection  (P, P)        along the last axis, what the slices see of an estimate, spread over the planes
        offset      (P, P, P)     the same of the measured slices, so that x - projection x + offset agrees with them
        weight      (P, P, P)     how much an error counts: 1 in the inner brain, more in a lesion, less at the rim that
                                  brain extraction left, 0 beyond the slices that lie in the crop
        baseline    (2,)          absolute and root-mean-square error, so weighted, of consistent cubic interpolation

    Where there is no slice geometry, projection and offset are zero, and the slices may be stacked along any axis.

    Args:
        subjects: where the crops come from.
        shares: how often each subject is drawn, in any unit.
        seed: picks the samples, together with their numbers.
        patch: crop size in voxels, a multiple of 8.
        without_t1: share of the samples that have no T1w.
    """

    THICKNESSES = (2.0, 3.0, 4.0, 5.0)
    THICKNESS_RANGE = (2.0, 6.0)
    PROFILES = ("box", "gaussian", "point")
    PROFILE_SHARES = (0.75, 0.1, 0.15)
    LARGEST_TILT = 10  # degrees
    LARGEST_SHIFT = 1.0  # voxels along each axis, of the T1w against the T2w
    SOFTNESS = (0.4, 1.6)  # voxels
    T1_THICKNESS = (2.0, 5.0)  # voxels
    IN_PLANE = (0.4, 0.8)  # voxels, in the slices as acquired
    RIM_WEIGHT = 0.1
    LESION_WEIGHT = 8.0  # a lesion is small, and what a scan is looked at for
    INNER_SHARE = 0.35  # of a crop, that should be inner brain

    # Shares of the samples
    GAP = 0.25
    FROM_FILE = 0.5  # of those of subjects that have thick-slice scans
    NEW_CONTRAST = BIAS = 0.1
    NOISE = 0.15
    T1_NOISE = MISALIGNMENT = 0.1
    SOFT = 0.06
    FINE_IN_PLANE = 0.2
    LESIONS = 0.2
    THICK_T1 = 0.15
    UNKNOWN_GEOMETRY = 0.12
    TILTED = 0.7  # of those with unknown geometry

    def __init__(
        self, subjects: Sequence[Subject], shares: Sequence[float], seed: int, patch: int = 56, without_t1: float = 0.1
    ):
        self._heads = [_Head.of(subject, patch) for subject in subjects]
        self.shares = np.asarray(shares, float) / np.sum(shares)
        self.seed, self.patch, self.without_t1 = seed, patch, without_t1

    def to(self, device: str | torch.device) -> ThickSliceSamples:
        """The same samples, made on another device; noise is drawn there, and so is another one."""
        moved = copy.copy(self)
        moved._heads = [head.to(device) for head in self._heads]
        return moved

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        head = self._heads[rng.choice(len(self._heads), p=self.shares)]
        if rng.random() >= self.UNKNOWN_GEOMETRY:
            return self._with_geometry(head, rng)
        return self._without_geometry(head, rng)

    def batch(self, numbers: Iterable[int]) -> dict[str, Tensor]:
        """Samples stacked along a new first axis."""
        return default_collate([self[number] for number in numbers])

    def _with_geometry(self, head: _Head, rng: np.random.Generator) -> dict[str, Tensor]:
        size = self.patch
        scan = None
        if head.scans and rng.random() < self.FROM_FILE:
            scan = head.scans[rng.integers(len(head.scans))]
        turn = _Turn(int(rng.integers(3)) if scan is None else scan.geometry.axis, rng)
        corner = self._corner(turn.view(head.inner), rng)
        planes = slice(corner[2], corner[2] + size)
        length = turn.view(head.inner).shape[2]
        start, shape = (corner[0], corner[1], 0), (size, size, length)
        t1, t2, inner = (turn.cut(volume, start, shape) for volume in (head.t1, head.t2, head.counts))
        if scan is None:
            places = _places(turn.view(head.inner), start, corner, size)
            t1, t2, weight = self._changed(t1, t2, self._weight(inner), places, head.invented, rng)
            geometry = self._random_geometry(length, rng)
            slices = acquire(t2, geometry)
        else:
            weight = self._weight(inner)
            geometry = scan.geometry.on_axis(2, length if turn.reverses else None)
            slices = turn.cut(scan.array, start, (size, size, geometry.count))
        noise = rng.uniform(0, 0.04) if rng.random() < self.NOISE else 0.0
        slices = noisy(slices, noise, rng)
        upsampled = upsample(slices, geometry, length)
        inputs = network_inputs(self._scanned_t1(t1, rng), upsampled, slices, geometry)
        t2, upsampled, weight = (volume[..., planes] for volume in (t2, upsampled, weight))
        damping = (noise / 0.05) ** 2
        return _sample(inputs[..., planes], t2, upsampled, weight, slices, geometry, planes, damping)

    def _without_geometry(self, head: _Head, rng: np.random.Generator) -> dict[str, Tensor]:
        size = self.patch
        turn = _Turn(int(rng.integers(3)), rng)
        corner = self._corner(turn.view(head.inner), rng)
        tilted = rng.random() < self.TILTED
        # What a tilt, the slices and the splines between them may bring in from beside the crop.
        margin = np.array([12, 12, 20] if tilted else [0, 0, 12])
        start = corner - margin
        t1, t2, inner = (turn.cut(volume, start, size + 2 * margin) for volume in (head.t1, head.t2, head.counts))
        places = _places(turn.view(head.inner), start, corner, size)
        t1, t2, weight = self._changed(t1, t2, self._weight(inner), places, head.invented, rng)
        geometry = self._random_geometry(t2.shape[2], rng)
        noise = rng.uniform(0, 0.04) if rng.random() < self.NOISE else 0.0
        if tilted:
            upsampled = tilted_stack(t2, geometry, random_rotation(self.LARGEST_TILT, rng), noise, rng)
        else:
            upsampled = upsample(noisy(acquire(t2, geometry), noise, rng), geometry, t2.shape[2])
        t1 = self._scanned_t1(t1, rng)
        order = rng.permutation(3).tolist()
        crop = tuple(slice(m, m + size) for m in margin)
        t1, t2, upsampled, weight = (
            None if volume is None else volume[crop].permute(order) for volume in (t1, t2, upsampled, weight)
        )
        return _sample(network_inputs(t1, upsampled), t2, upsampled, weight)

    def _weight(self, inner: Tensor) -> Tensor:
        return torch.where(inner > 0, 1.0, self.RIM_WEIGHT)

    def _corner(self, inner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """First voxel of a crop that is inner brain for the most part, or the fullest of twenty."""
        room = np.array(inner.shape) - self.patch + 1
        fullest = -1.0
        for _ in range(20):
            corner = rng.integers(room)
            share = inner[tuple(slice(at, at + self.patch) for at in corner)].mean()
            if share > fullest:
                best, fullest = corner, share
            if share > self.INNER_SHARE:
                break
        return best

    def _random_geometry(self, length: int, rng: np.random.Generator) -> SliceGeometry:
        thickness = float(rng.choice([*self.THICKNESSES, rng.uniform(*self.THICKNESS_RANGE)]))
        gap = rng.uniform(0, 0.25) * thickness if rng.random() < self.GAP else 0.0
        profile = str(rng.choice(self.PROFILES, p=self.PROFILE_SHARES))
        spacing = thickness + gap
        first = (thickness - 1) / 2 + rng.uniform(0, spacing)
        return SliceGeometry.fitting(2, length, thickness, spacing, first, profile)

    def _changed(
        self, t1: Tensor, t2: Tensor, weight: Tensor, places: np.ndarray, invented: bool, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The head as another scanner might have shown it, or another patient's, with lesions at some of the places.

        Returns:
            T1w, T2w, and how much an error counts there.
        """
        scans = [t1, t2]
        if rng.random() < self.LESIONS and len(places):
            *scans, lesions = with_lesions(t1, t2, places, rng)
            weight = weight + self.LESION_WEIGHT * lesions
        for index in range(2):
            if rng.random() < self.NEW_CONTRAST or (invented and index == 1):
                scans[index] = random_contrast(scans[index], rng)
            if rng.random() < self.BIAS:
                scans[index] = scans[index] * bias_field(scans[index], rng)
            scans[index] = scans[index] * rng.uniform(0.85, 1.15)
        if rng.random() < self.SOFT:
            # Many scans hold less detail than their voxels could, and where there is none, none must be invented.
            softness = rng.uniform(*self.SOFTNESS)
            for index in (0, 1) if rng.random() < 0.5 else (1,):
                scans[index] = smooth(scans[index], [softness] * 3)
        if rng.random() < self.FINE_IN_PLANE:
            softness = in_plane_softness(rng.uniform(*self.IN_PLANE))
            scans[1] = smooth(scans[1], (softness, softness, 0))
        return scans[0], scans[1], weight

    def _scanned_t1(self, t1: Tensor, rng: np.random.Generator) -> Tensor | None:
        """The T1w of that head as it may be: none at all, in thick slices, beside the T2w, or noisy."""
        if rng.random() < self.without_t1:
            return None
        if rng.random() < self.THICK_T1:
            t1 = thick_scan(t1, rng.uniform(*self.T1_THICKNESS), int(rng.integers(3)), rng)
        if rng.random() < self.MISALIGNMENT:
            offset = rng.uniform(-self.LARGEST_SHIFT, self.LARGEST_SHIFT, 3)
            t1 = shifted(t1, offset) * (t1 != 0)
        if rng.random() < self.T1_NOISE:
            t1 = noisy(t1, rng.uniform(0, 0.03), rng)
        return t1


def in_plane_softness(spacing: float) -> float:
    """Standard deviation, in voxels of 1 mm, of what raw mode smooths finer in-plane voxels with."""
    return 0.425 * np.sqrt(1 - spacing**2)


@dataclass(frozen=True)
class _Head:
    """A subject to cut crops from, at least a patch long; the scans, and where errors count fully, on the device."""

    t1: Tensor
    t2: Tensor
    counts: Tensor
    inner: np.ndarray
    invented: bool
    scans: tuple[ThickScan, ...]

    @classmethod
    def of(cls, subject: Subject, patch: int) -> _Head:
        missing = [max(0, patch - n) for n in subject.t2.shape]

        def padded(array: np.ndarray, axis: int | None = None) -> np.ndarray:
            return np.pad(array, [(0, 0 if a == axis else m) for a, m in enumerate(missing)])

        inner = padded(subject.t2 > 0 if subject.inner is None else subject.inner)
        t1, t2, counts = (
            torch.from_numpy(np.ascontiguousarray(array))
            for array in (padded(subject.t1), padded(subject.t2), inner.view(np.uint8))
        )
        scans = tuple(
            replace(scan, array=torch.from_numpy(padded(scan.array, scan.geometry.axis)))
            for scan in subject.scans
            if scan.geometry
        )
        return cls(t1, t2, counts, inner, subject.invented, scans)

    def to(self, device: str | torch.device) -> _Head:
        scans = tuple(replace(scan, array=scan.array.to(device)) for scan in self.scans)
        t1, t2, counts = (volume.to(device) for volume in (self.t1, self.t2, self.counts))
        return replace(self, t1=t1, t2=t2, counts=counts, scans=scans)


class _Turn:
    """Puts one axis last, and swaps and flips all of them at random, always the same way."""

    def __init__(self, axis: int, rng: np.random.Generator):
        in_plane = rng.permutation([other for other in range(3) if other != axis])
        self._order = (*in_plane.tolist(), axis)
        self._steps = rng.choice([-1, 1], 3)
        self.reverses = self._steps[2] < 0  # the axis that comes last

    def view(self, array: np.ndarray) -> np.ndarray:
        """The turned array, which shares its memory."""
        return array.transpose(self._order)[tuple(slice(None, None, step) for step in self._steps)]

    def cut(self, volume: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
        """A part of the turned volume, float32, with zeros where it reaches beyond."""
        turned = volume.permute(self._order)
        part, padding, flips = [], [], []
        for axis, (first, size, step) in enumerate(zip(start, shape, self._steps, strict=True)):
            length = turned.shape[axis]
            if step < 0:
                first = length - first - size
                flips.append(axis)
            before, after = max(0, -first), max(0, first + size - length)
            part.append(slice(first + before, first + size - after))
            padding = [before, after, *padding]
        return functional.pad(turned[tuple(part)].float(), [int(n) for n in padding]).flip(flips)


def _places(inner: np.ndarray, start: Sequence[int], corner: Sequence[int], size: int) -> np.ndarray:
    """Voxels of the inner brain in the crop at ``corner``, counted from ``start``: shape (count, 3)."""
    crop = inner[tuple(slice(at, at + size) for at in corner)]
    return np.argwhere(crop) + (np.asarray(corner) - start)


def _block(volume: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A part of a volume, with zeros where it reaches beyond."""
    block = np.zeros(tuple(size), volume.dtype)
    spans = [(max(0, a), min(n, a + s)) for a, s, n in zip(start, size, volume.shape, strict=True)]
    if all(first < last for first, last in spans):
        target = tuple(slice(first - a, last - a) for (first, last), a in zip(spans, start, strict=True))
        block[target] = volume[tuple(slice(first, last) for first, last in spans)]
    return block


def _sample(
    inputs: Tensor,
    truth: Tensor,
    upsampled: Tensor,
    weight: Tensor,
    slices: Tensor | None = None,
    geometry: SliceGeometry | None = None,
    crop: slice = slice(0, 0),
    damping: float = 0.0,
) -> dict[str, Tensor]:
    """A sample from crops; ``slices`` and ``geometry`` are of the whole columns, of which ``crop`` are the planes."""
    size = truth.shape[2]
    projection, offset = truth.new_zeros(size, size), torch.zeros_like(truth)
    inside = slice(0, 0) if geometry is None else _slices_inside(geometry, crop)
    if inside.stop > inside.start:
        inner = replace(
            geometry,
            first_center=float(geometry.centers[inside.start] - crop.start),
            count=inside.stop - inside.start,
        )
        correction = consistency_matrix(inner, size, damping)
        projection = truth.new_tensor(correction @ slice_matrix(inner, size))
        offset = along(correction, slices[..., inside], 2)
        distance = np.abs(np.subtract.outer(np.arange(size), inner.centers)).min(axis=1)
        weight = weight * truth.new_tensor(distance <= max(geometry.thickness, geometry.spacing) / 2)
    error = upsampled - upsampled @ projection.T + offset - truth
    baseline = [(weight * error.abs()).mean(), (weight * error.square()).mean().sqrt()]
    sample = {
        "inputs": inputs,
        "truth": truth,
        "projection": projection,
        "offset": offset,
        "weight": weight,
        "baseline": torch.stack(baseline),
    }
    return {name: tensor.contiguous() for name, tensor in sample.items()}


def _slices_inside(geometry: SliceGeometry, crop: slice) -> slice:
    """The slices that see (almost) nothing but the planes of the crop."""
    reach = {"box": 0.5, "gaussian": 1.4, "point": 0.0}[geometry.profile] * geometry.thickness
    first = np.ceil((crop.start - 0.5 + reach - geometry.first_center) / geometry.spacing - 1e-6)
    last = np.floor((crop.stop - 0.5 - reach - geometry.first_center) / geometry.spacing + 1e-6)
    first, last = max(int(first), 0), min(int(last), geometry.count - 1)
    return slice(first, max(last + 1, first))


@dataclass(frozen=True)
class PublishedImage:
    """A T2w in thick slices, the truth behind it and the T1w, each normalised the published way when a patch is cut.

    ``operator`` (whole grid x crop) makes the thick slices, cubic up-sampled, from the truth along ``axis``; where the
    scan exists as a file, ``upsampled`` holds it instead.
    """

    subject: Subject
    scales: tuple[Scale, Scale, Scale]  # of the T1w, the thick-slice T2w and the truth
    operator: np.ndarray | None = None
    axis: int = 0
    upsampled: np.ndarray | None = None

    def patch(self, corner: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
        """Network input (2, size, size, size) and truth (1, size, size, size), the corner on the whole grid."""
        subject = self.subject
        start = [at - first for at, first in zip(corner, subject.start, strict=True)]
        t1, truth = (_block(scan, start, (size,) * 3) for scan in (subject.t1, subject.t2))
        if self.upsampled is not None:
            t2 = _block(self.upsampled, start, (size,) * 3)
        else:
            length = subject.t2.shape[self.axis]
            column_start, column_size = list(start), [size] * 3
            column_start[self.axis], column_size[self.axis] = 0, length
            rows = _block(self.operator, (corner[self.axis], 0), (size, length))
            t2 = along(rows, _block(subject.t2, column_start, column_size), self.axis)
        inputs, truth = (
            [np.clip(scale.apply(part), 0, 1) for scale, part in zip(self.scales[:2], (t1, t2), strict=True)],
            np.clip(self.scales[2].apply(truth), 0, 1),
        )
        return np.stack(inputs).astype(np.float32), truth[None].astype(np.float32)


def published_images(subjects: Sequence[Subject], thicknesses: Sequence[float] = (2, 3, 4, 5)) -> list[PublishedImage]:
    """Each subject's thick-slice scans: those that exist as files, else every thickness in every direction."""
    with ThreadPoolExecutor(4) as pool:
        return [
            image for images in pool.map(lambda subject: _images_of(subject, thicknesses), subjects) for image in images
        ]


def _images_of(subject: Subject, thicknesses: Sequence[float]) -> list[PublishedImage]:
    t1_scale, truth_scale = scale_of(subject.t1), scale_of(subject.t2)
    if subject.scans:
        return [
            PublishedImage(subject, (t1_scale, scale_of(scan.array), truth_scale), upsampled=scan.array)
            for scan in subject.scans
        ]
    images = []
    for axis in AXIS_ACROSS.values():
        for thickness in thicknesses:
            operator = _upsampled_slices(thickness, subject.shape[axis], subject.start[axis], subject.t2.shape[axis])
            scale = scale_of(along(operator, subject.t2, axis))
            images.append(PublishedImage(subject, (t1_scale, scale, truth_scale), operator, axis))
    return images


@lru_cache(maxsize=256)
def _upsampled_slices(thickness: float, whole: int, start: int, length: int) -> np.ndarray:
    """From the planes of a crop to thick slices and back to the whole grid by cubic splines: shape (whole, length)."""
    geometry = SliceGeometry.fitting(0, whole, thickness)
    operator = upsampling_matrix(geometry, whole) @ slice_matrix(geometry, whole)
    return operator[:, start : start + length].astype(np.float32)


class PublishedPatches(Dataset):
    """Every patch of every image, as the published model was trained: 32^3 voxels, 16 apart, in a new order each epoch.

    An item holds the ``inputs`` (2, 32, 32, 32) and the ``truth`` (1, 32, 32, 32). Numbers go on beyond an epoch:
    number ``len(self)`` is the first of the second epoch.
    """

    def __init__(self, images: Sequence[PublishedImage], seed: int, patch: int = 32, stride: int = 16):
        self.images, self.seed, self.patch = images, seed, patch
        self._corners = [_corners(image.subject.shape, patch, stride) for image in images]
        self._ends = np.cumsum([len(corners) for corners in self._corners])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.images else 0

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(number, len(self))
        index = self._order(epoch)[place]
        image = int(np.searchsorted(self._ends, index, side="right"))
        corner = self._corners[image][index - self._ends[image]]
        inputs, truth = self.images[image].patch(corner, self.patch)
        return {"inputs": inputs, "truth": truth}

    def _order(self, epoch: int) -> np.ndarray:
        return _permutation(self.seed, epoch, len(self))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@lru_cache(maxsize=16)
def _corners(shape: tuple[int, int, int], patch: int, stride: int) -> np.ndarray:
    """First voxels of all patches over a volume padded as in the published procedure; shape (patches, 3)."""
    axes = [tile_axis(n, patch, stride) for n in shape]
    starts = [np.array(axis.starts) - axis.before for axis in axes]
    return np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3)
