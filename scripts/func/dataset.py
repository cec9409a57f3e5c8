"""The patch-based two-channel data set: the samples that the two recipes draw from subjects read once.

Thick slices are made on the fly from the isotropic T2w; scans that are already there in thick slices (see
scripts/synthesize_anisotropic.py) are used as well. A sample depends on the seed and on its own number alone, so that
it is the same whichever process, worker or resumed run draws it. Samples of the compact recipe are made in PyTorch,
on the processor by worker processes or on the GPU that trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from func.networks.guidance import CHANNELS, Slicing, profile_width, suggested_detail
from func.networks.patches import tile_axis
from func.scans.intensity import Scale, scale_of
from func.slices.filters import gaussian_matrix
from func.slices.geometry import (
    AXIS_ACROSS,
    SliceGeometry,
    along,
    consistency_matrix,
    on_device,
    slice_matrix,
    upsampling_matrix,
)
from func.training.augmentation import (
    along_axes,
    bias_coefficients,
    bias_fields,
    each,
    noisy,
    random_curve,
    random_lesions,
    random_rotation,
    shift_matrix,
    thick_matrix,
    tilted_stack,
    with_contrast,
    with_lesions,
)
from func.training.bank import REACH, BankedHead, BankedScan, HeadBank, Place
from func.training.subjects import Subject

_MOST_LESIONS = 4
_RINGING = 2e-3  # of the brightest voxel


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
    What is random about a sample is drawn first (``draw``), as small arrays; from the draws of a batch all its samples
    are made at once, by few operations (``made_from``), so that worker processes can draw what a GPU makes.

    Args:
        subjects: where the crops come from.
        shares: how often each subject is drawn, in any unit.
        seed: picks the samples, together with their numbers.
        patch: crop size in voxels, a multiple of 8.
        without_t1: share of the samples that have no T1w.
    """

    THICKNESSES = (2.0, 3.0, 4.0, 5.0)
    THICKNESS_RANGE = (2.0, 6.0)
    LARGEST_SPACING = 9.0  # voxels
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
    MARGIN = 12  # voxels: what a tilt may bring in from beside the crop

    # Shares of the samples
    GAP = 0.2  # up to a fourth of the slice thickness
    WIDE_GAP = 0.15  # up to the slice thickness
    FROM_FILE = 0.5  # of those of subjects that have thick-slice scans
    NEW_CONTRAST = BIAS = 0.08
    NOISE = 0.1
    T1_NOISE = MISALIGNMENT = 0.08
    SOFT = 0.06
    FINE_IN_PLANE = 0.2
    LESIONS = 0.35
    THICK_T1 = 0.12
    CUT_T1 = 0.03
    UNKNOWN_GEOMETRY = 0.03
    TILTED = 0.7  # of those with unknown geometry

    def __init__(
        self, subjects: Sequence[Subject], shares: Sequence[float], seed: int, patch: int = 56, without_t1: float = 0.1
    ):
        self._bank = HeadBank(subjects, patch)
        self.shares = np.asarray(shares, float) / np.sum(shares)
        self.seed, self.patch, self.without_t1 = seed, patch, without_t1

    def to(self, device: str | torch.device) -> ThickSliceSamples:
        """The same samples, made on another device; noise is drawn there, and so is another one."""
        moved = copy.copy(self)
        moved._bank = self._bank.to(device)
        return moved

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in self.batch([number]).items()}

    def batch(self, numbers: Iterable[int]) -> dict[str, Tensor]:
        """Samples stacked along a new first axis."""
        return self.made_from(stacked([self.draw(number) for number in numbers]))

    def made_from(self, draws: Draws) -> dict[str, Tensor]:
        """The samples of a batch from what was drawn for them, on the device of these samples."""
        made = []
        if draws.known:
            made.append(self._with_geometry(draws.known))
        if draws.unknown:
            made.append(self._without_geometry(draws.unknown))
        order = on_device(draws.order, made[0]["truth"]).long()
        return {name: torch.cat([part[name] for part in made])[order] for name in made[0]}

    def draws(self) -> Dataset:
        """What :meth:`draw` gives of each number, for worker processes."""
        return _Drawn(self)

    def draw(self, number: int) -> dict[str, np.ndarray]:
        """What is random about a sample."""
        rng = np.random.default_rng((self.seed, number))
        head = self._bank.heads[rng.choice(len(self._bank.heads), p=self.shares)]
        known = rng.random() >= self.UNKNOWN_GEOMETRY
        scan = None
        if known and head.scans and rng.random() < self.FROM_FILE:
            scan = head.scans[rng.integers(len(head.scans))]
        turn = _Turn(head.shape, int(rng.integers(3)) if scan is None else scan.geometry.axis, rng)
        corner = turn.corner(self._corner(head, rng), self.patch)
        if scan:
            inside = turn.slices(scan.geometry, slice(corner[2] - REACH, corner[2] + self.patch + REACH))[1]
            scan = scan if inside.start < inside.stop else None  # None: of another part of the head
        margins = np.array([0, 0, REACH] if known else [self.MARGIN, self.MARGIN, REACH])
        shape = self.patch + 2 * margins
        drawn = {"known": known, "place": turn.place(head.place, corner - margins)}
        drawn |= self._changes(head, turn, corner, margins, shape, scan is None, rng)
        drawn |= self._slices(scan, turn, corner, shape[2], known, rng)
        blurs = self._blurs(scan is None, rng)
        drawn |= _along_axes("t2", shape, _blurring(shape, blurs[1]))
        drawn |= self._t1(shape, _blurring(shape, blurs[0]), rng)
        if not known:
            tilt = self.LARGEST_TILT if rng.random() < self.TILTED else 0
            drawn |= {"rotation": random_rotation(tilt, rng), "order": rng.permutation(3)}
        return drawn

    def _corner(self, head: BankedHead, rng: np.random.Generator) -> np.ndarray:
        """First voxel of a crop that is inner brain for the most part, or the fullest of twenty."""
        room = np.array(head.shape) - self.patch + 1
        fullest = -1.0
        for _ in range(20):
            corner = rng.integers(room)
            share = head.inside(corner, self.patch)
            if share > fullest:
                best, fullest = corner, share
            if share > self.INNER_SHARE:
                break
        return best

    def _changes(
        self,
        head: BankedHead,
        turn: _Turn,
        corner: np.ndarray,
        margins: np.ndarray,
        shape: np.ndarray,
        t2_too: bool,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """The head as another scanner might have shown it, or another patient's, with lesions.

        Where the slices are from a file, ``t2_too`` is false, and only what the slices can be scaled by is changed.
        """
        lesions = np.zeros((_MOST_LESIONS, 9))
        if t2_too and rng.random() < self.LESIONS:
            places = self._places(head, turn, corner, rng.integers(1, _MOST_LESIONS + 1), rng)
            lesions[: len(places)] = random_lesions(places - corner + margins, rng)
        contrasts = rng.random(2) < self.NEW_CONTRAST
        contrasts[1] = t2_too and (contrasts[1] or head.invented)
        curves = [random_curve(rng) for _ in range(2)]
        biased = (rng.random(2) < self.BIAS) & (True, t2_too)
        gains = rng.uniform(0.85, 1.15, 2)
        return {
            "lesions": lesions,
            "contrasts": contrasts,
            "curves": np.stack([values for values, _ in curves]),
            "slopes": np.array([slope for _, slope in curves]),
            "biased": biased,
            "bias": np.stack([bias_coefficients(rng) for _ in range(2)]),
            "gains": gains if t2_too else np.array([gains[0], 1.0]),
        }

    def _places(
        self, head: BankedHead, turn: _Turn, corner: np.ndarray, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Random voxels of the inner brain in the crop, in the turned head: shape (up to count, 3)."""
        candidates = corner + rng.integers(self.patch, size=(16 * count, 3))
        inner = head.inner[tuple(turn.back(candidates).T)]
        return candidates[inner][:count]

    def _slices(
        self,
        scan: BankedScan | None,
        turn: _Turn,
        corner: np.ndarray,
        length: int,
        known: bool,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """How the column of ``length`` planes around the crop is sliced, and what that tells of the crop."""
        noise = rng.uniform(0, 0.04) * (rng.random() < self.NOISE)
        drawn = {"noise": noise, "seeds": rng.integers(2**62, size=2)}
        if scan is None:
            geometry = self._random_geometry(length, rng)
            if not known:
                return drawn | {"geometry": geometry}
            drawn["slices place"] = np.zeros(4, int)
        else:
            first = corner[2] - REACH
            whole, inside = turn.slices(scan.geometry, slice(first, first + length))
            first_center, count = float(whole.centers[inside.start] - first), inside.stop - inside.start
            geometry = replace(whole, first_center=first_center, count=count)
            start = np.array([corner[0], corner[1], inside.start])
            drawn["slices place"] = turn.place(scan.place, start, scan.geometry.count)
        most = length + 1 if self._bank.slices.numel() else length // 2 + 2
        size, crop = self.patch, slice(REACH, REACH + self.patch)
        slicing, upsampling = np.zeros((most, length)), np.zeros((length, most))
        slicing[: geometry.count] = slice_matrix(geometry, length)
        upsampling[:, : geometry.count] = upsampling_matrix(geometry, length)
        planes = (np.arange(size) + REACH - geometry.first_center) / geometry.spacing
        nearest = np.clip(np.round(planes), 0, geometry.count - 1)
        projection, correction, seen = np.zeros((size, size)), np.zeros((size, most)), np.ones(size)
        inside = _slices_inside(geometry, crop)
        if inside.stop > inside.start:
            inner = replace(
                geometry, first_center=float(geometry.centers[inside.start] - REACH), count=inside.stop - inside.start
            )
            correction[:, inside] = consistency_matrix(inner, size, (noise / 0.05) ** 2)
            projection = correction[:, inside] @ slice_matrix(inner, size)
            distance = np.abs(np.subtract.outer(np.arange(size), inner.centers)).min(axis=1)
            seen = distance <= max(geometry.thickness, geometry.spacing) / 2
        return drawn | {
            "slicing": slicing,
            "upsampling": upsampling,
            "projection": projection,
            "correction": correction,
            "seen": seen.astype(float),
            "phase": np.minimum(2 * np.abs(planes - nearest), 2),
            "profile": np.array([profile_width(geometry) / 2, geometry.spacing / 4]),
            "from file": scan is not None,
        }

    def _random_geometry(self, length: int, rng: np.random.Generator) -> SliceGeometry:
        thickness = float(rng.choice([*self.THICKNESSES, rng.uniform(*self.THICKNESS_RANGE)]))
        kind, gap = rng.random(), 0.0
        if kind < self.GAP:
            gap = rng.uniform(0, 0.25) * thickness
        elif kind < self.GAP + self.WIDE_GAP:
            gap = rng.uniform(0.25, 1.0) * thickness
        profile = str(rng.choice(self.PROFILES, p=self.PROFILE_SHARES))
        spacing = min(thickness + gap, self.LARGEST_SPACING)
        first = (thickness - 1) / 2 + rng.uniform(0, spacing)
        return SliceGeometry.fitting(2, length, thickness, spacing, first, profile)

    def _blurs(self, t2_too: bool, rng: np.random.Generator) -> np.ndarray:
        """Standard deviations, in voxels, of the blur of T1w and T2w along the three axes: shape (2, 3)."""
        blurs = np.zeros((2, 3))
        if t2_too and rng.random() < self.SOFT:
            # Many scans hold less detail than their voxels could, and where there is none, none must be invented.
            blurs[0 if rng.random() < 0.5 else 1 :] = rng.uniform(*self.SOFTNESS)
        if t2_too and rng.random() < self.FINE_IN_PLANE:
            blurs[1, :2] = np.hypot(blurs[1, :2], in_plane_softness(rng.uniform(*self.IN_PLANE)))
        return blurs

    def _t1(
        self, shape: np.ndarray, matrices: list[list[np.ndarray]], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The T1w of that head as it may be: none at all, in thick slices, beside the T2w, cut short or noisy."""
        there = rng.random() >= self.without_t1
        if rng.random() < self.THICK_T1:
            axis = rng.integers(3)
            matrices[axis].append(thick_matrix(shape[axis], rng.uniform(*self.T1_THICKNESS), rng))
        if rng.random() < self.MISALIGNMENT:
            for axis, offset in enumerate(rng.uniform(-self.LARGEST_SHIFT, self.LARGEST_SHIFT, 3)):
                matrices[axis].append(shift_matrix(shape[axis], offset))
        if rng.random() < self.CUT_T1:
            axis = rng.integers(3)
            kept = np.arange(shape[axis]) < shape[axis] * rng.uniform(0.3, 0.7)
            matrices[axis].append(np.diag(kept if rng.random() < 0.5 else ~kept).astype(float))
        noise = rng.uniform(0, 0.03) * (rng.random() < self.T1_NOISE)
        return {"t1": there, "t1 noise": noise} | _along_axes("t1", shape, matrices)

    def _with_geometry(self, drawn: dict) -> dict[str, Tensor]:
        size, length = self.patch, self.patch + 2 * REACH
        crop = slice(REACH, REACH + size)
        t1, t2, weight, on = self._scans(drawn, (size, size, length))
        slicing = Slicing(on("slicing"), on("upsampling"))
        slices = slicing.acquire(t2)
        from_file = _picked(drawn["from file"], t2.device)
        if len(from_file):
            read = self._bank.cut_slices(drawn["slices place"].to(t2.device)[from_file], slices.shape[1:])
            slices[from_file] = read * slicing.slicing[from_file].any(-1)[:, None, None]
        _add_noise(slices, drawn["noise"], drawn["seeds"][:, 0])
        upsampled = slicing.upsample(slices)
        suggested, t1_detail = suggested_detail(t1, slices, slicing)
        t1, t2, weight, upsampled, suggested, t1_detail = (
            volume[..., crop] for volume in (t1, t2, weight, upsampled, suggested, t1_detail)
        )
        told = [on("phase")[:, None, None], *(each(value) for value in on("profile").unbind(1))]
        told = [value.expand_as(t2) for value in told]
        inputs = torch.stack([t1, upsampled + suggested, *told, suggested, t1_detail], dim=1)
        offset = (slices.flatten(1, 2) @ on("correction").mT).view_as(t2)
        weight = weight * on("seen")[:, None, None]
        return _samples(inputs, t2, upsampled, weight, on("projection"), offset)

    def _without_geometry(self, drawn: dict) -> dict[str, Tensor]:
        size = self.patch
        margins = self.MARGIN, self.MARGIN, REACH
        t1, t2, weight, _ = self._scans(drawn, [size + 2 * margin for margin in margins])
        stacks = [
            tilted_stack(scan, geometry, rotation.numpy(), noise, seed)
            for scan, geometry, rotation, noise, seed in zip(
                t2, drawn["geometry"], drawn["rotation"], drawn["noise"].tolist(), drawn["seeds"][:, 0].tolist(),
                strict=True,
            )
        ]  # fmt: skip
        crop = (slice(None), *(slice(margin, margin + size) for margin in margins))
        volumes = torch.stack([t1, torch.stack(stacks), t2, weight], dim=1)[:, *crop]
        volumes = [one.permute(0, *(1 + order).tolist()) for one, order in zip(volumes, drawn["order"], strict=True)]
        t1, upsampled, t2, weight = torch.stack(volumes).unbind(1)
        inputs = t2.new_zeros(len(t2), len(CHANNELS), size, size, size)
        inputs[:, 0], inputs[:, 1] = t1, upsampled
        return _samples(inputs, t2, upsampled, weight, t2.new_zeros(len(t2), size, size), torch.zeros_like(t2))

    def _scans(self, drawn: dict, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Callable[[str], Tensor]]:
        """T1w, T2w and how much an error counts, as they were drawn; and what brings other draws to their device."""
        device = self._bank.t1.device

        def on(name: str) -> Tensor:
            return drawn[name].to(device, torch.float32, non_blocking=True)

        *scans, counts = self._bank.cut(drawn["place"].to(device, non_blocking=True), shape)
        weight = torch.where(counts > 0, 1.0, self.RIM_WEIGHT)
        some = _picked(drawn["lesions"][..., 3].any(1), device)
        if len(some):
            *changed, covered = with_lesions(*(scan[some] for scan in scans), on("lesions")[some])
            for scan, part in zip(scans, changed, strict=True):
                scan[some] = part
            weight[some] += self.LESION_WEIGHT * covered
        for index, scan in enumerate(scans):
            some = _picked(drawn["contrasts"][:, index], device)
            if len(some):
                scan[some] = with_contrast(scan[some], on("curves")[some, index], on("slopes")[some, index])
            some = _picked(drawn["biased"][:, index], device)
            if len(some):
                scan[some] *= bias_fields(on("bias")[some, index], shape)
        t1, t2 = (scan * each(gain) for scan, gain in zip(scans, on("gains").unbind(1), strict=True))
        for name, scan in (("t1", t1), ("t2", t2)):
            some = _picked(drawn[f"{name} changes"], device)
            if len(some):
                changed = along_axes(scan[some], [on(f"{name} {axis}")[some] for axis in "xyz"])
                # A spline's faint ringing in the air is no anatomy.
                scan[some] = changed * (changed > _RINGING)
        t1 = t1 * each(on("t1"))
        _add_noise(t1, drawn["t1 noise"] * drawn["t1"], drawn["seeds"][:, 1])
        return t1, t2, weight, on


@dataclass(frozen=True)
class _Drawn(Dataset):
    samples: ThickSliceSamples

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.samples.draw(number)


class Draws(NamedTuple):
    """What was drawn for the samples of a batch with known slice geometry, and for those without, stacked by name.

    ``order`` puts the samples, those with geometry first, into the order of the batch.
    """

    known: dict
    unknown: dict
    order: list[int]


def stacked(draws: Sequence[dict]) -> Draws:
    """The draws of a batch as :meth:`ThickSliceSamples.made_from` takes them."""
    known = [place for place, draw in enumerate(draws) if draw["known"]]
    unknown = [place for place, draw in enumerate(draws) if not draw["known"]]
    parts = ([draws[place] for place in places] for places in (known, unknown))
    return Draws(*(_stacked(part) for part in parts), np.argsort(known + unknown).tolist())


def _stacked(draws: Sequence[dict]) -> dict:
    by_name = {name: [draw[name] for draw in draws] for name in (draws[0] if draws else ())}
    return {name: values if name == "geometry" else _tensor(values) for name, values in by_name.items()}


def _tensor(values: list) -> Tensor:
    tensor = torch.from_numpy(np.stack(values))
    return tensor.float() if tensor.is_floating_point() else tensor


def _blurring(shape: Sequence[int], blurs: Sequence[float]) -> list[list[np.ndarray]]:
    return [[gaussian_matrix(length, blur)] if blur else [] for length, blur in zip(shape, blurs, strict=True)]


def _along_axes(name: str, shape: Sequence[int], matrices: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """For each axis the product of its matrices, the first applied first; and whether there are any."""
    products = {
        f"{name} {axis}": reduce(lambda before, then: then @ before, own, np.eye(length))
        for axis, length, own in zip("xyz", shape, matrices, strict=True)
    }
    return {f"{name} changes": any(map(len, matrices)), **products}


def in_plane_softness(spacing: float) -> float:
    """Standard deviation, in voxels of 1 mm, of what raw mode smooths finer in-plane voxels with."""
    return 0.425 * np.sqrt(1 - spacing**2)


class _Turn:
    """Puts one axis of a head last, and swaps and flips all of them at random."""

    def __init__(self, shape: Sequence[int], axis: int, rng: np.random.Generator):
        in_plane = rng.permutation([other for other in range(3) if other != axis])
        self._order = np.array([*in_plane, axis])
        self._steps = rng.choice([-1, 1], 3)
        self.shape = np.array(shape)[self._order]  # of the turned head

    def corner(self, corner: np.ndarray, size: int) -> np.ndarray:
        """First voxel, in the turned head, of a crop of this size that begins at ``corner`` in the head as it was."""
        corner = corner[self._order]
        return np.where(self._steps > 0, corner, self.shape - size - corner)

    def back(self, voxels: np.ndarray) -> np.ndarray:
        """Where voxels of the turned head, shape (count, 3), lie in the head as it was."""
        voxels = np.where(self._steps > 0, voxels, self.shape - 1 - voxels)
        return voxels[:, np.argsort(self._order)]

    def place(self, place: Place, start: np.ndarray, slices: int | None = None) -> np.ndarray:
        """Where in the bank a crop begins that begins at ``start`` in the turned head, and its strides: shape (4,).

        Args:
            slices: their number, where the volume is a stack of slices.
        """
        strides = np.array(place.strides)[self._order] * self._steps
        shape = self.shape if slices is None else np.array([*self.shape[:2], slices])
        origin = place.first - np.sum(strides * (shape - 1), where=self._steps < 0)
        return np.array([origin + np.sum(strides * start), *strides])

    def slices(self, geometry: SliceGeometry, planes: slice) -> tuple[SliceGeometry, slice]:
        """A stack of the head, turned with it, and the numbers of its slices that lie between these planes."""
        turned = geometry.on_axis(2, self.shape[2] if self._steps[2] < 0 else None)
        return turned, _slices_inside(turned, planes)


def _block(volume: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A part of a volume, with zeros where it reaches beyond."""
    block = np.zeros(tuple(size), volume.dtype)
    spans = [(max(0, a), min(n, a + s)) for a, s, n in zip(start, size, volume.shape, strict=True)]
    if all(first < last for first, last in spans):
        target = tuple(slice(first - a, last - a) for (first, last), a in zip(spans, start, strict=True))
        block[target] = volume[tuple(slice(first, last) for first, last in spans)]
    return block


def _picked(mask: Tensor, device: torch.device) -> Tensor:
    """The numbers of the samples that a mask picks, on the device, without waiting for what that still has to do."""
    numbers = mask.nonzero()[:, 0]
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def _add_noise(scans: Tensor, deviations: Tensor, seeds: Tensor) -> None:
    """Noise in those of the scans, shape (B, X, Y, Z), whose standard deviation of it is not 0."""
    for scan, deviation, seed in zip(scans, deviations.tolist(), seeds.tolist(), strict=True):
        if deviation:
            scan.copy_(noisy(scan, deviation, seed))


def _samples(
    inputs: Tensor, truth: Tensor, upsampled: Tensor, weight: Tensor, projection: Tensor, offset: Tensor
) -> dict[str, Tensor]:
    """Samples from their parts, of shape (B, ...)."""
    error = upsampled - (upsampled.flatten(1, 2) @ projection.mT).view_as(truth) + offset - truth
    baseline = [(weight * error.abs()).mean((1, 2, 3)), (weight * error.square()).mean((1, 2, 3)).sqrt()]
    samples = {
        "inputs": inputs,
        "truth": truth,
        "projection": projection,
        "offset": offset,
        "weight": weight,
        "baseline": torch.stack(baseline, dim=1),
    }
    return {name: tensor.contiguous() for name, tensor in samples.items()}


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
