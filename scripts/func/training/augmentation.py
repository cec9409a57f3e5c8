"""Random changes to scans, so that a network trained on few infants meets many scanners, ages and faults.

Scans are torch tensors of shape (X, Y, Z), on any device. What is done to them is drawn from the NumPy generator that
is handed in, and from nothing else. Intensities are about 0 to 1, and air is 0 (see
func.scans.intensity.zero_based_scale).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import torch
from numpy.polynomial import legendre
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from func.slices.geometry import SliceGeometry, acquire, along, upsample

_SPLINE_REACH = 12  # voxels beyond a border, as SciPy takes it
_RINGING = 2e-3  # of the brightest voxel: a spline's faint ringing in the air is no anatomy


def random_contrast(scan: Tensor, rng: np.random.Generator) -> Tensor:
    """Another contrast of the same anatomy: intensities through a random curve, rising or not. Air stays air."""
    knots = np.linspace(0, 1.2, rng.integers(3, 7))
    values = rng.uniform(0, 1.2, knots.size)
    if rng.random() < 0.7:
        values.sort()
    # One in three loses all likeness to the old contrast.
    values = 0.5 * values + 0.5 * knots * (rng.random() < 2 / 3)
    values[0] = 0
    changed = _curve(scan, values, knots[-1]) + rng.random() * (scan - knots[-1]).clamp(min=0)
    brightest = changed.flatten().kthvalue(round(0.995 * changed.numel())).values.clamp(min=0.3)
    return changed / brightest * (scan > 0)


def _curve(scan: Tensor, values: np.ndarray, last: float) -> Tensor:
    """Linear interpolation between ``values`` at equal steps from 0 to ``last``; beyond, the outermost are kept."""
    places = (scan * ((len(values) - 1) / last)).clamp(0, len(values) - 1)
    below = places.floor().clamp(max=len(values) - 2)
    table = torch.tensor(values, dtype=scan.dtype, device=scan.device)
    return torch.lerp(table[below.long()], table[below.long() + 1], places - below)


def bias_field(scan: Tensor, rng: np.random.Generator, strength: float = 0.15) -> Tensor:
    """A smooth, positive field of about 1, of the scan's shape, that multiplies it.

    It is the exponential of a random polynomial of order 2.
    """
    order = np.add.outer(np.add.outer(np.arange(3), np.arange(3)), np.arange(3))
    coefficients = rng.normal(0, strength, (3, 3, 3)) * ((order > 0) & (order <= 2))
    field = torch.tensor(coefficients, dtype=scan.dtype, device=scan.device)
    for axis, length in enumerate(scan.shape):
        field = along(legendre.legvander(np.linspace(-1, 1, length), 2), field, axis)
    return field.exp()


def shifted(scan: Tensor, offset: np.ndarray) -> Tensor:
    """The scan moved by a part of a voxel along each axis, with cubic splines."""
    for axis, distance in enumerate(offset):
        unit = np.eye(scan.shape[axis])
        scan = along(ndimage.shift(unit, (distance, 0), order=3, mode="nearest"), scan, axis)
    return scan


def random_rotation(largest: float, rng: np.random.Generator) -> np.ndarray:
    """A rotation by up to ``largest`` degrees about a random axis, shape (3, 3)."""
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(-largest, largest))
    return Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()


def tilted_stack(
    scan: Tensor, geometry: SliceGeometry, rotation: np.ndarray, noise: float, rng: np.random.Generator
) -> Tensor:
    """What becomes of a scan acquired in slices oblique to its grid, once they are cubic up-sampled to the grid.

    Args:
        scan: shape (X, Y, Z).
        geometry: of the slices, along the third axis of the rotated head.
        rotation: of the head in the scanner, shape (3, 3).
        noise: standard deviation of the noise in the slices.
    """
    center = (np.array(scan.shape) - 1) / 2
    turned = affine_transform(scan, rotation, center - rotation @ center, scan.shape)
    slices = noisy(acquire(turned, geometry), noise, rng)
    to_slices = np.diag([1, 1, 1 / geometry.spacing])
    first = np.array([0, 0, geometry.first_center])
    back = to_slices @ rotation.T
    return affine_transform(slices, back, to_slices @ (center - first) - back @ center, scan.shape, edge=True)


def affine_transform(
    scan: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int], edge: bool = False
) -> Tensor:
    """``scipy.ndimage.affine_transform`` with cubic splines, on any device.

    Args:
        matrix, offset: voxel o of the result shows ``scan`` at matrix @ o + offset.
        shape: of the result.
        edge: beyond the scan lie the values at its borders, not zeros.
    """
    if scan.device.type != "cpu":
        return spline_transform(scan, matrix, offset, shape, edge)
    # On a processor SciPy's own takes a fifth of the time.
    mode = "nearest" if edge else "constant"
    return torch.from_numpy(ndimage.affine_transform(scan.numpy(), matrix, offset, tuple(shape), order=3, mode=mode))


def spline_transform(
    scan: Tensor, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int], edge: bool = False
) -> Tensor:
    """:func:`affine_transform` in PyTorch."""
    pad = _SPLINE_REACH if edge else 0
    coefficients = functional.pad(scan[None, None], [pad] * 6, "replicate")[0, 0] if edge else scan
    for axis, length in enumerate(coefficients.shape):
        coefficients = along(_spline_filter(length), coefficients, axis)
    lengths = coefficients.new_tensor(coefficients.shape)[:, None, None, None] - 1
    axes = [torch.arange(n, dtype=scan.dtype, device=scan.device) for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    places = torch.tensordot(coefficients.new_tensor(matrix), grid, dims=1)
    places += coefficients.new_tensor(offset + pad)[:, None, None, None]
    outside = ((places < 0) | (places > lengths)).any(dim=0)
    if edge:
        places = torch.minimum(places.clamp(min=0), lengths)
    base = places.floor()
    weights = _spline_weights(places - base)
    # Beyond the borders the coefficients are their own mirror image.
    steps = torch.arange(-1, 3, device=scan.device)[:, None, None, None, None]
    indices = (base.long() + steps).abs()
    indices = torch.minimum(indices, 2 * lengths.long() - indices).clamp(min=0)
    _, width, depth = coefficients.shape
    flat = coefficients.flatten()
    result = torch.zeros(tuple(shape), dtype=scan.dtype, device=scan.device)
    for i, j in product(range(4), repeat=2):
        row = (indices[i, 0] * width + indices[j, 1]) * depth
        line = torch.zeros_like(result)
        for k in range(4):
            line.addcmul_(weights[k, 2], flat[row + indices[k, 2]])
        result.addcmul_(weights[i, 0] * weights[j, 1], line)
    return result if edge else result.masked_fill(outside, 0)


def _spline_weights(fraction: Tensor) -> Tensor:
    """Cubic B-spline weights of the four knots around places this far beyond the second: shape (4, ...)."""
    rest = 1 - fraction
    return torch.stack(
        [
            rest**3 / 6,
            (4 - 6 * fraction**2 + 3 * fraction**3) / 6,
            (4 - 6 * rest**2 + 3 * rest**3) / 6,
            fraction**3 / 6,
        ]
    )


@lru_cache(maxsize=64)
def _spline_filter(length: int) -> np.ndarray:
    """From samples to cubic B-spline coefficients, mirrored at the borders: shape (length, length)."""
    return ndimage.spline_filter1d(np.eye(length), 3, axis=0, mode="mirror")


def thick_scan(scan: Tensor, thickness: float, axis: int, rng: np.random.Generator) -> Tensor:
    """The scan as slices of this many voxels along an axis show it, cubic up-sampled to its grid again."""
    length = scan.shape[axis]
    first = (thickness - 1) / 2 + rng.uniform(-0.5, 0.5) * thickness
    geometry = SliceGeometry.fitting(axis, length, thickness, first_center=first)
    thick = upsample(acquire(scan, geometry), geometry, length)
    return thick * (thick > _RINGING * thick.max())


def with_lesions(t1: Tensor, t2: Tensor, places: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One to four lesions of 3 to 10 voxels, mostly bright in the T2w, that one scan shows or both.

    Args:
        t1, t2: shape (X, Y, Z).
        places: where their centres may lie, voxel indices of shape (count, 3).

    Returns:
        The two scans, and the share of each voxel that is lesion in either.
    """
    t1, t2, lesions = t1.clone(), t2.clone(), torch.zeros_like(t2)
    for center in places[rng.integers(len(places), size=rng.integers(1, 5))]:
        radii = rng.uniform(3, 10) / 2 * np.exp(rng.uniform(-0.25, 0.25, 3))
        shown = rng.choice(3, p=(0.45, 0.25, 0.3))  # in the T2w alone, in the T1w alone, in both
        if shown != 1:
            _paint(t2, rng.uniform(0.6, 1.2) if rng.random() < 0.8 else rng.uniform(0.05, 0.3), center, radii)
        if shown != 0:
            _paint(t1, rng.uniform(0.1, 1.1), center, radii)
        _paint(lesions, 1.0, center, radii)
    return t1, t2, lesions


def _paint(scan: Tensor, intensity: float, center: np.ndarray, radii: np.ndarray) -> None:
    """Paint an ellipsoid into the scan, with an edge one voxel wide."""
    box, offsets = [], []
    for middle, radius, length in zip(center, radii, scan.shape, strict=True):
        first, last = max(int(middle - radius) - 1, 0), min(int(middle + radius) + 3, length)
        box.append(slice(first, last))
        offsets.append((np.arange(first, last) - middle) / radius)
    x, y, z = np.meshgrid(*offsets, indexing="ij")
    distance = (np.sqrt(x**2 + y**2 + z**2) - 1) * radii.min()
    share = torch.tensor(np.clip(0.5 - distance, 0, 1), dtype=scan.dtype, device=scan.device)
    scan[tuple(box)].lerp_(torch.full_like(share, intensity), share)


def noisy(scan: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    """The scan with Gaussian noise of this standard deviation wherever it is not air."""
    if not deviation:
        return scan
    generator = torch.Generator(scan.device).manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(scan.shape, generator=generator, dtype=scan.dtype, device=scan.device)
    return scan + deviation * noise * (scan > 0)


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
