"""Random changes to scans, so that a network trained on few infants meets many scanners, ages and faults.

What is drawn, from the NumPy generator that is handed in and from nothing else, are numbers, curves and matrices. Scans
are torch tensors on any device, several of them at a time, shape (B, X, Y, Z). Intensities are about 0 to 1, and air is
0 (see func.scans.intensity.zero_based_scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import legendre
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from func.slices.geometry import SliceGeometry, acquire, along, on_device, slice_matrix, upsampling_matrix

_SPLINE_REACH = 12  # voxels beyond a border, as SciPy takes it
CURVE_POINTS = 25
_BRIGHTEST = 1.2  # of a scan, but for a few voxels
_FAINTEST_LESION = 0.05


def random_curve(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Another contrast of the same anatomy: where a random curve takes intensities of 0 to 1.2.

    It rises, or falls as from a T1w to a T2w, or does neither.

    Returns:
        Its values at CURVE_POINTS equal steps, the first of them 0, so that air stays air; its slope beyond.
    """
    knots = np.linspace(0, _BRIGHTEST, rng.integers(3, 7))
    values = rng.uniform(0, _BRIGHTEST, knots.size)
    kind = rng.random()
    if kind < 0.5:
        values = 0.5 * np.sort(values) + 0.5 * knots
    elif kind < 0.8:
        values[::-1].sort()
    values[0] = 0
    return np.interp(np.linspace(0, _BRIGHTEST, CURVE_POINTS), knots, values), rng.random()


def with_contrast(scans: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Scans, shape (B, X, Y, Z), through a curve each (:func:`random_curve`), scaled to about 0 to 1 again.

    Args:
        values: shape (B, CURVE_POINTS).
        slopes: shape (B,).
    """
    places = (scans * ((CURVE_POINTS - 1) / _BRIGHTEST)).clamp(0, CURVE_POINTS - 1)
    below = places.floor().clamp(max=CURVE_POINTS - 2)
    index = below.flatten(1).long()
    ends = (values.gather(1, index + step).view_as(scans) for step in (0, 1))
    changed = torch.lerp(*ends, places - below) + each(slopes) * (scans - _BRIGHTEST).clamp(min=0)
    # Every third voxel along each axis tells the brightness well enough.
    sparse = changed[:, ::3, ::3, ::3].flatten(1)
    brightest = sparse.kthvalue(round(0.995 * sparse.shape[1]), dim=1).values.clamp(min=0.3)
    return changed / each(brightest)


def each(values: Tensor) -> Tensor:
    """Values, shape (B,), to multiply volumes with, shape (B, X, Y, Z)."""
    return values[:, None, None, None]


def bias_coefficients(rng: np.random.Generator, strength: float = 0.15) -> np.ndarray:
    """Of a random polynomial of order 2, whose exponential is a smooth field of about 1: shape (3, 3, 3)."""
    order = np.add.outer(np.add.outer(np.arange(3), np.arange(3)), np.arange(3))
    return rng.normal(0, strength, (3, 3, 3)) * ((order > 0) & (order <= 2))


def bias_fields(coefficients: Tensor, shape: Sequence[int]) -> Tensor:
    """The positive fields of this shape, to multiply scans with, of coefficients of shape (B, 3, 3, 3)."""
    return along_axes(coefficients, [legendre.legvander(np.linspace(-1, 1, length), 2) for length in shape]).exp()


def along_axes(volumes: Tensor, matrices: Sequence[Tensor | np.ndarray]) -> Tensor:
    """Products of the last three axes of volumes, shape (B, X, Y, Z), with a matrix each.

    Args:
        matrices: of shape (m, n), or (B, m, n): one for each volume.
    """
    for axis, matrix in zip((1, 2, 3), matrices, strict=True):
        operator = on_device(matrix, volumes)
        if axis == 1:
            volumes = (operator @ volumes.flatten(2)).unflatten(2, volumes.shape[2:])
        elif axis == 2:
            volumes = (operator[:, None] if operator.dim() == 3 else operator) @ volumes
        else:
            volumes = (volumes.flatten(1, 2) @ operator.mT).unflatten(1, volumes.shape[1:3])
    return volumes


def shift_matrix(length: int, distance: float) -> np.ndarray:
    """Moves a scan by a part of a voxel along an axis, with cubic splines: shape (length, length)."""
    return ndimage.shift(np.eye(length), (distance, 0), order=3, mode="nearest")


def thick_matrix(length: int, thickness: float, rng: np.random.Generator) -> np.ndarray:
    """What slices of this many voxels leave along an axis, cubic up-sampled again: shape (length, length)."""
    first = (thickness - 1) / 2 + rng.uniform(-0.5, 0.5) * thickness
    geometry = SliceGeometry.fitting(2, length, thickness, first_center=first)
    return upsampling_matrix(geometry, length) @ slice_matrix(geometry, length)


def random_rotation(largest: float, rng: np.random.Generator) -> np.ndarray:
    """A rotation by up to ``largest`` degrees about a random axis, shape (3, 3)."""
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(-largest, largest))
    return Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()


def tilted_stack(
    scan: Tensor, geometry: SliceGeometry, rotation: np.ndarray, noise: float = 0, seed: int = 0
) -> Tensor:
    """What becomes of a scan acquired in slices oblique to its grid, once they are cubic up-sampled to the grid.

    Args:
        scan: shape (X, Y, Z).
        geometry: of the slices, along the third axis of the rotated head.
        rotation: of the head in the scanner, shape (3, 3).
        noise: standard deviation of the noise in the slices, which ``seed`` draws.
    """
    center = (np.array(scan.shape) - 1) / 2
    turned = affine_transform(scan, rotation, center - rotation @ center, scan.shape)
    slices = acquire(turned, geometry)
    if noise:
        slices = noisy(slices, noise, seed)
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
    lengths = on_device(coefficients.shape, scan)[:, None, None, None] - 1
    axes = [torch.arange(n, dtype=scan.dtype, device=scan.device) for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    places = torch.tensordot(on_device(matrix, scan), grid, dims=1)
    places += on_device(offset + pad, scan)[:, None, None, None]
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
    # A GPU takes the sixteen knots of a plane at once: it would wait for so many small operations.
    for plane, weight in zip(indices[:, 0], weights[:, 0], strict=True):
        rows = (plane * width + indices[:, 1]) * depth
        knots = flat[rows[:, None] + indices[:, 2]]
        lines = (knots * weights[:, 2]).sum(1)
        result += weight * (lines * weights[:, 1]).sum(0)
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


def random_lesions(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lesions of 3 to 10 voxels, mostly bright in the T2w, that one scan shows or both.

    Half of them hide what was there, as a cyst does; through the others it still shows, as through an oedema.

    Args:
        places: their centres, in voxels, shape (count, 3).

    Returns:
        Shape (count, 9): centre, radii, the intensities in T1w and T2w, NaN where the scan does not show it, and 1
        where these are added to what is there, 0 where they replace it.
    """
    lesions = np.full((len(places), 9), np.nan)
    for lesion, center in zip(lesions, places, strict=True):
        lesion[:3] = center
        lesion[3:6] = rng.uniform(3, 10) / 2 * np.exp(rng.uniform(-0.25, 0.25, 3))
        shown = rng.choice(3, p=(0.45, 0.25, 0.3))  # in the T2w alone, in the T1w alone, in both
        lesion[8] = added = rng.random() < 0.5
        if shown != 0:
            lesion[6] = rng.uniform(0.1, 0.4) * rng.choice((-1, 1)) if added else rng.uniform(0.1, 1.1)
        if shown != 1:
            bright = rng.random() < 0.8
            if added:
                lesion[7] = rng.uniform(0.15, 0.6) if bright else -rng.uniform(0.1, 0.4)
            else:
                lesion[7] = rng.uniform(0.6, 1.2) if bright else rng.uniform(0.05, 0.3)
    return lesions


def with_lesions(t1: Tensor, t2: Tensor, lesions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scans, shape (B, X, Y, Z), with ellipsoids in them, whose edge is one voxel wide.

    Args:
        lesions: shape (B, count, 9), as :func:`random_lesions` draws them; a radius of 0 makes none.

    Returns:
        The T1w, the T2w, and the share of each voxel that is lesion in either.
    """
    covered = torch.zeros_like(t2)
    for lesion in lesions.to(t2).unbind(1):
        distance = 0
        for axis, length in enumerate(t2.shape[1:]):
            steps = torch.arange(length, device=t2.device, dtype=t2.dtype) - lesion[:, axis, None]
            steps = steps / lesion[:, 3 + axis, None].clamp(min=1e-3)
            distance = distance + steps.square().reshape(-1, *(length if a == axis else 1 for a in range(3)))
        smallest = each(lesion[:, 3:6].amin(1))
        share = (0.5 - (distance.sqrt() - 1) * smallest).clamp(0, 1) * (smallest > 0)
        t1, t2 = (
            torch.lerp(scan, _in_lesion(scan, value, lesion[:, 8]), share * each(value.isfinite()))
            for scan, value in ((t1, lesion[:, 6]), (t2, lesion[:, 7]))
        )
        covered = torch.maximum(covered, share)
    return t1, t2, covered


def _in_lesion(scan: Tensor, value: Tensor, added: Tensor) -> Tensor:
    """What scans show where they are all lesion; never air."""
    return (each(added) * scan + each(value.nan_to_num())).clamp(min=_FAINTEST_LESION)


def noisy(scan: Tensor, deviation: float, seed: int) -> Tensor:
    """The scan with Gaussian noise of this standard deviation wherever it is not air."""
    generator = torch.Generator(scan.device).manual_seed(seed)
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
