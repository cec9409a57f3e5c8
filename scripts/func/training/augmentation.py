"""Random changes to scans, so that a network trained on few infants meets many scanners, ages and faults.

Everything is drawn from the generator that is handed in, and from nothing else. Intensities are about 0 to 1, and air
is 0 (see func.scans.intensity.zero_based_scale).
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre
from scipy import ndimage
from scipy.spatial.transform import Rotation

from func.slices.geometry import SliceGeometry, acquire, along, upsample


def random_contrast(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another contrast of the same anatomy: intensities through a random curve, rising or not. Air stays air."""
    knots = np.linspace(0, 1.2, rng.integers(3, 7))
    values = rng.uniform(0, 1.2, knots.size)
    if rng.random() < 0.7:
        values.sort()
    # One in three loses all likeness to the old contrast.
    values = 0.5 * values + 0.5 * knots * (rng.random() < 2 / 3)
    values[0] = 0
    changed = np.interp(volume, knots, values) + rng.random() * np.maximum(volume - knots[-1], 0)
    brightest = max(np.percentile(changed, 99.5), 0.3)
    return (changed / brightest * (volume > 0)).astype(np.float32)


def bias_field(shape: tuple[int, int, int], rng: np.random.Generator, strength: float = 0.15) -> np.ndarray:
    """A smooth, positive field of about 1 that multiplies a scan: the exponential of a random polynomial of order 2."""
    order = np.add.outer(np.add.outer(np.arange(3), np.arange(3)), np.arange(3))
    coefficients = rng.normal(0, strength, (3, 3, 3)) * ((order > 0) & (order <= 2))
    positions = [np.linspace(-1, 1, length) for length in shape]
    return np.exp(legendre.leggrid3d(*positions, coefficients)).astype(np.float32)


def shifted(volume: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The volume moved by a part of a voxel along each axis, with cubic splines."""
    for axis, distance in enumerate(offset):
        unit = np.eye(volume.shape[axis])
        volume = along(ndimage.shift(unit, (distance, 0), order=3, mode="nearest"), volume, axis)
    return volume


def random_rotation(largest: float, rng: np.random.Generator) -> np.ndarray:
    """A rotation by up to ``largest`` degrees about a random axis, shape (3, 3)."""
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(-largest, largest))
    return Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()


def tilted_stack(
    volume: np.ndarray, geometry: SliceGeometry, rotation: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """What becomes of a volume scanned in slices oblique to its grid, once they are cubic up-sampled to the grid.

    Args:
        volume: shape (X, Y, Z).
        geometry: of the slices, along the third axis of the rotated head.
        rotation: of the head in the scanner, shape (3, 3).
        noise: standard deviation of the noise in the slices.
    """
    center = (np.array(volume.shape) - 1) / 2
    turned = ndimage.affine_transform(volume, rotation, center - rotation @ center, order=3)
    slices = noisy(acquire(turned, geometry), noise, rng)
    to_slices = np.diag([1, 1, 1 / geometry.spacing])
    first = np.array([0, 0, geometry.first_center])
    back = to_slices @ rotation.T
    return ndimage.affine_transform(
        slices, back, to_slices @ (center - first) - back @ center, volume.shape, order=3, mode="nearest"
    )


def thick_scan(volume: np.ndarray, thickness: float, axis: int, rng: np.random.Generator) -> np.ndarray:
    """The volume as slices of this many voxels along an axis show it, cubic up-sampled to its grid again."""
    length = volume.shape[axis]
    first = (thickness - 1) / 2 + rng.uniform(-0.5, 0.5) * thickness
    geometry = SliceGeometry.fitting(axis, length, thickness, first_center=first)
    thick = np.maximum(upsample(acquire(volume, geometry), geometry, length), 0)
    # As raw mode does: a spline's faint ringing in the air is no anatomy.
    thick[thick < 2e-3 * thick.max()] = 0
    return thick


def with_lesions(
    t1: np.ndarray, t2: np.ndarray, places: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One to four lesions of 3 to 10 voxels, mostly bright in the T2w, that one scan shows or both.

    Args:
        t1, t2: shape (X, Y, Z).
        places: where their centres may lie, voxel indices of shape (count, 3).
    """
    t1, t2 = t1.copy(), t2.copy()
    for center in places[rng.integers(len(places), size=rng.integers(1, 5))]:
        radii = rng.uniform(3, 10) / 2 * np.exp(rng.uniform(-0.25, 0.25, 3))
        shown = rng.choice(3, p=(0.45, 0.25, 0.3))  # in the T2w alone, in the T1w alone, in both
        if shown != 1:
            _blend(t2, rng.uniform(0.6, 1.2) if rng.random() < 0.8 else rng.uniform(0.05, 0.3), center, radii)
        if shown != 0:
            _blend(t1, rng.uniform(0.1, 1.1), center, radii)
    return t1, t2


def _blend(volume: np.ndarray, intensity: float, center: np.ndarray, radii: np.ndarray) -> None:
    """Paint an ellipsoid into the volume, with an edge one voxel wide."""
    box = tuple(slice(max(int(c - r) - 1, 0), int(c + r) + 3) for c, r in zip(center, radii, strict=True))
    offsets = [
        np.arange(part.start, min(part.stop, n)) - c for part, n, c in zip(box, volume.shape, center, strict=True)
    ]
    grid = np.meshgrid(*(offset / radius for offset, radius in zip(offsets, radii, strict=True)), indexing="ij")
    distance = (np.sqrt(sum(np.square(part) for part in grid)) - 1) * radii.min()
    share = np.clip(0.5 - distance, 0, 1).astype(volume.dtype)
    volume[box] += share * (np.float32(intensity) - volume[box])


def noisy(scan: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """The scan with Gaussian noise of this standard deviation wherever it is not air."""
    if not deviation:
        return scan
    return scan + deviation * rng.standard_normal(scan.shape, np.float32) * (scan > 0)


def random_shapes(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, sheets and shells that are no anatomy, in a T1w and a T2w that share some of their borders, not all."""
    inside = smooth_noise(shape, shape[0] / 6, rng) > -0.5
    shared, own_t1, own_t2 = (smooth_noise(shape, rng.uniform(2, 8), rng) for _ in range(3))
    return _painted(shared, own_t1, inside, rng), _painted(shared, own_t2, inside, rng)


def _painted(shared: np.ndarray, own: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Regions between random levels of two fields, each of its own intensity, over a little texture."""
    regions = np.digitize(shared, np.sort(rng.normal(size=4))) + 5 * (own > rng.uniform(0.5, 1.5))
    texture = 0.05 * smooth_noise(own.shape, 1.5, rng)
    painted = rng.uniform(0.1, 1, 10)[regions] + texture
    return (np.maximum(ndimage.gaussian_filter(painted, 0.5), 0.02) * inside).astype(np.float32)


def smooth_noise(shape: tuple[int, int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian random field of mean 0 and variance 1, smooth over ``sigma`` voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma)
    return (field - field.mean()) / field.std()
