"""Heads around brains: brain-extracted pairs set into the skull and scalp of other people's whole heads.

Infants' pairs are published brain-extracted, and what is scanned are heads. Seen from the middle of the brain, the
inside of a skull lies in every direction at some distance, and so does a brain's surface: the head is moved along these
directions until its skull closes around the brain, with fluid between.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from func.errors import BabyAIError
from func.scans.intensity import zero_based_scale
from func.training.augmentation import smooth_noise
from func.training.subjects import Subject

REACH = 24  # voxels around the brain: scalp, neck and the back of the face
SEAM = 2  # voxels inside the brain's edge, which belong to neither

_DIRECTIONS = (90, 180)  # polar and azimuthal angles
_SMOOTHNESS = 2.5  # of a surface over these angles, in steps of 2 degrees
_OPENING = 5  # voxels: what nerves and vessels, but not the brain, pass through
_FLUID = 2.0  # voxels of it around a brain
_TISSUE = 0.1  # of the T1w's range: what is brighter is no air, bone or fluid
_LEAST_AROUND = 0.15  # of the brain's size: skull, scalp and face that a whole head shows besides


@dataclass(frozen=True)
class Head:
    """A whole head, T1w only, in RAS order at 1 mm; ``center`` and ``radii`` tell where the inside of its skull is."""

    t1: np.ndarray
    center: np.ndarray
    radii: np.ndarray


def heads_around(brains: Sequence[Subject], whole_heads: Sequence[Subject], seed: int) -> list[Subject]:
    """Each of the brains in one of the heads, in turn; none where there are no heads."""
    if not whole_heads:
        return []
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(head_of, whole_heads))

        def in_head(number: int) -> Subject:
            return set_into(brains[number], heads[number % len(heads)], np.random.default_rng((seed, number)))

        return list(pool.map(in_head, range(len(brains))))


def head_of(subject: Subject) -> Head:
    """A head to set brains into, from its T1w; the brain that is in it is found by thresholds and morphology.

    Raises:
        BabyAIError: there is no brain in it, or nothing around the brain.
    """
    brain = brain_in(subject.t1)
    cavity = ndimage.binary_dilation(brain, iterations=round(_FLUID))
    around = (subject.t1 > _TISSUE) & ~cavity
    if around.sum() < _LEAST_AROUND * brain.sum() or not brain.any():
        raise BabyAIError(f"{subject.label} does not show a brain in its head; give --heads T1w scans of whole heads.")
    center = np.argwhere(cavity).mean(axis=0)
    return Head(subject.t1, center, surface(cavity, center))


def brain_in(t1: np.ndarray) -> np.ndarray:
    """The brain in the T1w of a whole head, shape (X, Y, Z): what is not dark and hangs together broadly."""
    # The grey level between the dark (bone, fluid, air) and the brain, which is most of what is bright.
    bright = t1 > 0.45 * np.median(t1[t1 > 0.3])
    pieces, count = ndimage.label(ndimage.distance_transform_edt(bright) > _OPENING)
    if not count:
        return np.zeros_like(bright)
    core = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    grown = ndimage.distance_transform_edt(~core) <= _OPENING
    return ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(grown & bright, 8), iterations=6))[8:-8, 8:-8, 8:-8]


def surface(mask: np.ndarray, center: np.ndarray) -> np.ndarray:
    """How far a mask reaches from a point in each direction, in voxels, smoothed: shape of the directions."""
    edge = mask & ~ndimage.binary_erosion(mask)
    polar, azimuth, radius = _spherical(np.argwhere(edge) - center)
    cells = np.floor(_steps(polar, azimuth)).astype(int)
    farthest = np.zeros(_DIRECTIONS)
    np.maximum.at(farthest, tuple(np.minimum(cells, np.array(_DIRECTIONS)[:, None] - 1)), radius)
    # Directions that no voxel of the edge lies in take the mean of those around them.
    sums, weights = _smooth(farthest), _smooth((farthest > 0).astype(float))
    return sums / np.maximum(weights, 1e-6)


def reach_at(surface: np.ndarray, polar: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """What :func:`surface` found, at any directions."""
    padded = np.pad(np.pad(surface, ((1, 1), (0, 0)), "edge"), ((0, 0), (1, 1)), "wrap")
    return ndimage.map_coordinates(padded, _steps(polar, azimuth) + 0.5, order=1)


def _steps(polar: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    return np.stack([polar / np.pi * _DIRECTIONS[0], azimuth / (2 * np.pi) * _DIRECTIONS[1]])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Smooth over the directions, alike in all of them: near the poles a step of the azimuth is a short way."""
    values = ndimage.gaussian_filter1d(values, _SMOOTHNESS, axis=0, mode="nearest")
    polar = (np.arange(_DIRECTIONS[0]) + 0.5) / _DIRECTIONS[0] * np.pi
    rows = zip(values, _SMOOTHNESS / np.sin(polar), strict=True)
    return np.stack([ndimage.gaussian_filter1d(row, sigma, mode="wrap") for row, sigma in rows])


def _spherical(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polar angle (0 to pi, from the third axis), azimuth (0 to 2 pi) and length of vectors of shape (count, 3)."""
    radius = np.maximum(np.linalg.norm(offsets, axis=1), 1e-6)
    polar = np.arccos(np.clip(offsets[:, 2] / radius, -1, 1))
    return polar, np.arctan2(offsets[:, 1], offsets[:, 0]) % (2 * np.pi), radius


def set_into(brain: Subject, head: Head, rng: np.random.Generator) -> Subject:
    """The brain in that head, whose tissues get random contrasts: bone dark, fluid and fat bright in the T2w.

    Errors count fully but where the brain was cut out of its own head (``Subject.inner``).
    """
    t1, t2 = (np.pad(scan, REACH) for scan in (brain.t1, brain.t2))
    mask = ndimage.binary_fill_holes((t1 > 0) & (t2 > 0))
    center = np.argwhere(mask).mean(axis=0)
    radii = surface(mask, center) + rng.uniform(0.5, 1.5) * _FLUID

    outside = np.argwhere(~mask).astype(np.float32)
    polar, azimuth, radius = _spherical(outside - center)
    inside, skull = (reach_at(surface, polar, azimuth) for surface in (radii, head.radii))
    # An infant's skull and scalp are thinner than those of the older heads.
    depth = (radius - inside) * rng.uniform(1.0, 1.8)
    there = head.center + (outside - center) / radius[:, None] * (skull + depth)[:, None]
    tissue = ndimage.map_coordinates(head.t1, there.T, order=1)
    surroundings = [
        (rng.uniform(0.1, 0.35), tissue * rng.uniform(0.6, 1.3)),
        (rng.uniform(0.8, 1.3), _t2_of(tissue, rng)),
    ]
    share = ndimage.gaussian_filter(mask.astype(np.float32), 0.6) * mask
    scans = []
    for own, (fluid, tissue) in zip((t1, t2), surroundings, strict=True):
        new = np.full(own.shape, fluid, np.float32)
        new[~mask] = np.where(depth < 0, fluid, tissue)
        new *= 1 + 0.03 * smooth_noise(own.shape, 1.0, rng)
        scan = np.maximum(share * own + (1 - share) * new, 0)
        scans.append(zero_based_scale(scan).apply(scan).astype(np.float16))

    seam = mask & (ndimage.distance_transform_edt(mask) <= SEAM)
    valid = (scans[1] > 0) & ~seam
    return replace(brain, label=f"{brain.label} in a head", t1=scans[0], t2=scans[1], inner=valid, scans=())


def _t2_of(t1: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """T2w intensities of skull, muscle and fat from their T1w ones, by a random curve."""
    values = [0, rng.uniform(0, 0.15), rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.6), rng.uniform(0.4, 1.1)]
    return np.interp(t1, [0, 0.15, 0.4, 0.7, 1.0], values)
