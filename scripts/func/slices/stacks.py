"""Several stacks of one infant in one frame: what each sees of a common volume, and the volume that agrees with all.

A pixel of a slice is the mean of the volume over the slice profile, at the place where the head lay while that slice
was acquired: ``y = A x``, with a sparse matrix A for each stack, so that its adjoint is exact. The volume nearest to a
first estimate that agrees with the slices of all stacks is found by conjugate gradients: the super-resolution of
Gholipour et al. (IEEE TMI 29(10), 2010) and Ebner et al. (NeuroImage 206, 2020), with a network's estimate in the place
of their smoothness term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage, sparse

from func.processors import threads
from func.slices.geometry import FWHM_PER_SIGMA

_PROFILE_STEP = 0.6  # mm between the samples of a slice profile; a finer step changes nothing that could be seen
_ALIKE = 0.32  # mm: an estimate's errors are alike so near; it gave a still and a moving infant 0.1 dB
_STEPS = 5  # of conjugate gradients; more changed crops of three simulated stacks by less than 0.05 dB
_ENOUGH = 0.02  # of the first gradient: what is left then makes no difference
# Times the noise's variance: of it too little is known beforehand (a truth leaves 1.1 to 1.7 times as much), and an
# estimate's errors are alike farther than that. It gave three still stacks of two infants 0.3 and 0.6 dB, three moving
# ones of the first 0.05; a single moving one lost 0.1.
_CAUTION = 2.0
_MOST_DAMPING = 100.0
# Of the second difference: what linear interpolation misses midway between two voxels. Elsewhere it misses less, but of
# the finest detail more: in simulated stacks of an infant this came within a tenth of what the truth left unexplained.
_BETWEEN_VOXELS = 0.125
_FULL = 0.15  # of the fullest slice's head: slices with less tell too little to be judged
_OUTLYING = 3.0  # times the misfit that is usual among slices


@dataclass(frozen=True)
class Stack:
    """The slices of one stack, and where the head lay while each was acquired.

    Attributes:
        slices: shape (X, Y, count), float32.
        affine: (4, 4), voxel of ``slices`` -> world mm of the stack's own frame.
        thickness: of the slices, mm.
        profile: ``box``, ``gaussian`` or ``point``.
        poses: (count, 4, 4), world mm of the common frame -> world mm of the stack's frame.
        kept: (count,), False for slices that are left out.
    """

    slices: np.ndarray
    affine: np.ndarray
    thickness: float
    profile: str
    poses: np.ndarray
    kept: np.ndarray

    def noise_beside_volume(self, noise: float, voxel: float, head: float) -> float:
        """Standard deviation of what the slices show that no volume can: noise, and detail finer than its voxels.

        Of a volume that is linear between its voxels a pixel sees a little of their neighbours, and the less the
        smaller they are: as the square of their size.

        Args:
            noise: standard deviation of the noise in them.
            voxel: of the volume, mm.
            head: what is brighter is head.
        """
        smooth = slices = self.slices[..., self.kept]
        for axis, pixel in enumerate(voxel_sizes(self.affine)[:2]):
            beside = _BETWEEN_VOXELS * (voxel / pixel) ** 2
            smooth = ndimage.correlate1d(smooth, [beside, 1 - 2 * beside, beside], axis=axis)
        inside = slices > head
        missed = float(np.mean(np.square((slices - smooth)[inside]))) if inside.any() else 0.0
        return float(np.sqrt(noise**2 + missed))


class StackView:
    """What a stack sees of a volume on a grid of the common frame: the operator A, its adjoint, and the values seen.

    Pixels that would see beyond the grid are left out.

    Args:
        stack: its slices and where they lay.
        shape, affine: the volume's grid. The volume is taken to be linear between its voxels, so that these should not
            be larger than the pixels.

    Attributes:
        pixels: which of the stack's pixels count, as indices of the flattened slices, shape (N,).
        values: what the stack shows there, shape (N,).
        slice_of: the slice that each of them belongs to, shape (N,).
    """

    def __init__(self, stack: Stack, shape: tuple[int, int, int], affine: np.ndarray) -> None:
        self.shape, self._blur = tuple(shape), _ALIKE / voxel_sizes(affine)
        offsets, shares = _profile_samples(stack.thickness, stack.profile)
        offsets, count = offsets / voxel_sizes(stack.affine)[2], stack.slices.shape[2]
        plane = np.indices(stack.slices.shape[:2]).reshape(2, -1).T

        def places(index: int, offsets: np.ndarray) -> np.ndarray:
            """Voxels of the grid that a slice's pixels sample, shape (pixels, offsets, 3)."""
            to_grid = np.linalg.inv(affine) @ np.linalg.inv(stack.poses[index]) @ stack.affine
            centers = plane @ to_grid[:3, :2].T + to_grid[:3, 2] * index + to_grid[:3, 3]
            return centers[:, None] + offsets[:, None] * to_grid[:3, 2]

        inside = {}
        for index in np.flatnonzero(stack.kept):
            ends = places(index, offsets[[0, -1]])
            inside[index] = np.flatnonzero(((ends >= 0) & (ends < np.array(shape) - 1)).all(axis=(1, 2)))
        self.pixels = np.concatenate([np.zeros(0, int), *(pixels * count + at for at, pixels in inside.items())])
        # Large: filled in place, since to join pieces would need twice the room.
        columns = np.empty((len(self.pixels), len(offsets), 8), np.int32)
        weights = np.empty(columns.shape, np.float32)
        first = 0
        for index, pixels in inside.items():
            rows = slice(first, first + len(pixels))
            columns[rows], parts = _corners(places(index, offsets)[pixels], self.shape)
            np.multiply(parts, shares[:, None], out=weights[rows], casting="same_kind")
            first = rows.stop
        starts = np.arange(len(self.pixels) + 1) * 8 * len(offsets)
        self._matrix = sparse.csr_matrix(
            (weights.ravel(), columns.ravel(), starts), (len(self.pixels), int(np.prod(shape)))
        )
        self.values = stack.slices.ravel()[self.pixels].astype(np.float32)
        self.slice_of = self.pixels % count

    def see(self, volume: np.ndarray) -> np.ndarray:
        """A x: the pixels, shape (N,), of a volume on the grid."""
        return self._matrix @ volume.ravel()

    def adjoint(self, pixels: np.ndarray) -> np.ndarray:
        """A' y: pixels, shape (N,), spread back over the grid, so that <Ax, y> = <x, A'y>."""
        return (self._matrix.T @ pixels).reshape(self.shape)

    def residual(self, volume: np.ndarray) -> np.ndarray:
        """What the stack shows minus what it would show of the volume, shape (N,)."""
        return self.values - self.see(volume)

    def spread(self, errors: np.ndarray) -> np.ndarray:
        """Errors that are alike in neighbouring voxels, from independent ones; symmetric."""
        return ndimage.gaussian_filter(errors, self._blur)

    @cached_property
    def _seen_of_errors(self) -> float:
        """Mean square of what pixels see of such errors, made of those of variance 1."""
        errors = np.random.default_rng(0).standard_normal(self.shape, dtype=np.float32)
        return float(np.mean(np.square(self.see(self.spread(errors))))) if len(self.pixels) else 0.0

    def damping(self, volume: np.ndarray, noise: float, head: float) -> float:
        """How far to trust an estimate over this stack: noise variance over that of the estimate's error in a voxel.

        Args:
            volume: the estimate.
            noise: standard deviation of what the slices show beside the volume (:meth:`Stack.noise_beside_volume`).
            head: what is brighter is head.
        """
        shown = self.residual(volume)[self.values > head]
        error = max(float(np.mean(np.square(shown))) - noise**2, 1e-8) if shown.size else 1e-8
        return float(np.clip(_CAUTION * noise**2 * self._seen_of_errors / error, 1e-3, _MOST_DAMPING))


def agree_with_stacks(
    estimate: np.ndarray, views: Sequence[StackView], dampings: Sequence[float], steps: int = _STEPS
) -> np.ndarray:
    """The volume x that is near to an estimate and agrees with all stacks, by conjugate gradients.

    It minimises ``|z|^2 + sum over stacks of |A x - y|^2 / damping`` with ``x = estimate + S z``, where S makes errors
    alike in neighbouring voxels (:meth:`StackView.spread`).

    Args:
        estimate: float32, shape of the grid.
        views: of the stacks, on that grid.
        dampings: one for each stack, see :meth:`StackView.damping`.
        steps: at most so many; fewer where the gradient has all but gone.
    """
    spread = views[0].spread
    # SciPy lets go of Python's lock.
    with ThreadPoolExecutor(min(threads(), len(views))) as pool:

        def spread_back(pixels_of: Callable[[StackView], np.ndarray]) -> np.ndarray:
            parts = pool.map(lambda view, damping: view.adjoint(pixels_of(view)) / damping, views, dampings)
            return spread(sum(parts))

        change = np.zeros_like(estimate)
        rest = spread_back(lambda view: view.residual(estimate))
        direction, power = rest, float(np.vdot(rest, rest))
        enough = _ENOUGH**2 * power
        for _ in range(steps):
            if power <= enough:
                break
            step = spread(direction)
            curved = direction + spread_back(lambda view, step=step: view.see(step))
            length = power / float(np.vdot(direction, curved))
            change += length * step
            rest = rest - length * curved
            power, before = float(np.vdot(rest, rest)), power
            direction = rest + power / before * direction
    return estimate + change


def outlying_slices(residual: np.ndarray, view: StackView, count: int, head: float) -> np.ndarray:
    """Which of a stack's slices fit a volume that the others agree on far worse than they, shape (count,), bool.

    A signal lost to motion within a slice, or a spike, spoils whole slices (Kuklisova-Murgasova et al., Medical Image
    Analysis 16(8), 2012).

    Args:
        residual: of the view's pixels, shape (N,).
        view: of the stack.
        count: of its slices.
        head: what is brighter is head.
    """
    seen = view.values - residual
    inside = (view.values > head) | (seen > head)
    pixels = np.bincount(view.slice_of[inside], minlength=count)
    misfit = np.sqrt(np.bincount(view.slice_of[inside], residual[inside] ** 2, count) / np.maximum(pixels, 1))
    judged = pixels > _FULL * pixels.max()
    return judged & (misfit > _OUTLYING * np.median(misfit[judged])) if judged.sum() > 4 else np.zeros(count, bool)


def _profile_samples(thickness: float, profile: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions across a slice, mm from its centre, and their shares in it, of sum 1."""
    if profile == "point":
        return np.zeros(1), np.ones(1)
    reach = thickness if profile == "box" else 2 * thickness
    count = int(np.ceil(reach / _PROFILE_STEP))
    offsets = ((np.arange(count) + 0.5) / count - 0.5) * reach
    shares = np.ones(count) if profile == "box" else np.exp(-0.5 * (offsets * FWHM_PER_SIGMA / thickness) ** 2)
    return offsets, shares / shares.sum()


def _corners(points: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The eight voxels around points inside a grid, shape (..., 3), as flat indices, and their tri-linear weights."""
    low = points.astype(np.int32)
    away = (points - low).astype(np.float32)
    strides = np.array([shape[1] * shape[2], shape[2], 1], np.int32)
    corner = np.array(list(np.ndindex(2, 2, 2)), np.int32)
    columns = (low @ strides)[..., None] + corner @ strides
    weights = np.ones(columns.shape, np.float32)
    for axis in range(3):
        part = away[..., axis, None]
        weights *= np.where(corner[:, axis], part, 1 - part)
    return columns, weights
