"""Rigid registration of brain scans: any header, any contrast, thick slices.

The similarity is mutual information (Parzen windows, as in Mattes et al., IEEE TMI 2003) and its exact derivative,
climbed by BFGS at 8, 4, 2 and 1 mm. Headers are not trusted: where neither the header's own position nor the centres of
both heads laid upon each other lead to a sharp peak, every orientation is tried, coarsely, and only what aligns best is
refined. On three real infants the whole search takes 2 to 3 s on one core and is as exact as ANTsPy (13 to 46 s) and
greedy (9 to 26 s), which both leave a head that its header turns upside down as it is. SimpleITK (Mattes, regular steps
at 2 and 1 mm), started where the search at 4 mm ends, comes as near to the truth (0.11 to 0.34 mm, this 0.12 to 0.36
mm; seven random starts of one trial), but takes 3 to 5 s for what takes 0.2 to 0.35 s here.

Matrices are 4 x 4 and map world mm (RAS+, as nibabel's affines) of the fixed image to world mm of the moving image:
the direction in which an image is resampled, and ITK's.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError, warn
from func.scans.nifti import name_of
from func.slices.filters import gaussian_matrix
from func.slices.geometry import along

# SciPy's BFGS silences this for itself, but not where two registrations run in threads.
warnings.filterwarnings("ignore", "The line search algorithm did not converge", RuntimeWarning)

_BINS = 32
# Half the diameter of an infant's head in mm: turns radians into the mm that the surface moves.
_HEAD_RADIUS = 50.0
# Voxels this many times as long as they are wide are slices.
_THICK = 1.5
# Samples, by resolution in mm, beyond which the similarity gains nothing in precision.
_MOST_SAMPLES = {8: 3_000, 4: 20_000, 2: 40_000, 1: 40_000}
_FEWEST_PLANES = 4
# ml: fewer would be a head in cm, which has a thousandth of its volume, an adult's 2 to 6; more one of 2 m.
_HEAD_VOLUME = 10.0, 50_000.0
_MARGIN = 8.0  # mm around the head that are sampled too, so that its outline counts
# Standard deviation of the smoothing that leaves nothing but a coil's shading, and how finely that is known, mm.
_SHADING, _SHADING_STEP = 25.0, 4.0
# Measured with scripts/tools/check_same_head.py (docs/same_head.md).
RIGHT, UNSURE, FAILED = "right", "unsure", "failed"
LEAST_SIMILARITY, LEAST_OVERLAP = 0.02, 0.5
LEAST_SHARPNESS, SHARP, VERY_SHARP = 0.08, 0.2, 0.32
LITTLE_MIRRORED, LESS_MIRRORED, MOST_MIRRORED = 0.9, 0.97, 1.06
# A count blurs over the neighbouring bins (Parzen), so that few samples make a smooth histogram.
_WINDOW = np.exp(-(np.subtract.outer(np.arange(_BINS), np.arange(_BINS)) ** 2) / (2 * 0.7**2))
_WINDOW[_WINDOW < 1e-4] = 0
_WINDOW /= _WINDOW.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Registration:
    """How one scan lies against another.

    How much mutual information two scans have depends on their contrast, noise and field of view; whether they lie
    right shows in how sharply it peaks, and in how much less there is when the head is mirrored, as is that of any
    other infant (docs/same_head.md).

    Attributes:
        matrix: shape (4, 4), world mm (RAS+) of the fixed image -> world mm of the moving image.
        similarity: mutual information in and around the head, at 2 mm, over the entropy of the image that was sampled
            (the smaller head, or else the thicker voxels): 0 to 1.
        sharpness: share of the mutual information that 4 mm and 4 degrees of displacement take away, at 4 mm.
        mirrored: mutual information of the mirrored head, laid on as well as it can be, over that of the head.
        overlap: share of the head in the sampled image that lies inside the other image's field of view.
        confirmed: what other scans of the head show there agrees.
    """

    matrix: np.ndarray
    similarity: float
    sharpness: float
    mirrored: float
    overlap: float
    confirmed: bool = False

    @property
    def verdict(self) -> str:
        """``right``, ``failed``, or between the two ``unsure``.

        Right is a sharp peak that fits clearly better than its mirror image; or a very sharp one that fits a little
        better, since some heads are nearly symmetric; or what other scans confirm.
        """
        if self.confirmed:
            return RIGHT
        if (
            self.similarity < LEAST_SIMILARITY
            or self.sharpness < LEAST_SHARPNESS
            or self.mirrored > MOST_MIRRORED
            or self.overlap < LEAST_OVERLAP
        ):
            return FAILED
        sharp = self.sharpness > SHARP and self.mirrored < LITTLE_MIRRORED
        very_sharp = self.sharpness > VERY_SHARP and self.mirrored < LESS_MIRRORED
        return RIGHT if sharp or very_sharp else UNSURE

    def to_sidecar(self) -> dict[str, float | str]:
        """Verdict and measures, for a JSON sidecar."""
        measures = ("similarity", "sharpness", "mirrored", "overlap")
        return {"Verdict": self.verdict} | {name.capitalize(): round(getattr(self, name), 4) for name in measures}


@dataclass(frozen=True)
class _Volume:
    """Array of shape (I, J, K), float32, >= 0, and its affine, voxel -> world mm."""

    array: np.ndarray
    affine: np.ndarray


def register_rigid(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    *,
    start: np.ndarray | None = None,
    scaled: bool = False,
) -> Registration:
    """Find the rigid motion between two scans of a head, brain-extracted or whole, of the same or another contrast.

    Deterministic: the samples are drawn with a fixed seed.

    Args:
        fixed, moving: either may have thick slices, any orientation and any field of view.
        start: only refine this matrix (up to some 10 mm and 15 degrees off) instead of searching.
        scaled: the heads differ in size, as an infant's and an atlas's do: let the size vary meanwhile, and return the
            rigid part that keeps the moving head's centre where it came to lie.

    Raises:
        BabyAIError: an image has hardly any slices, nothing in it, or voxels of no head's size.
    """
    pair = _Pair(fixed, moving, scaled)
    levels = pair.levels
    if start is None:
        matrix = _search(levels, surely=pair.outlined)
    else:
        matrix = levels[4].align(pair.turned(np.asarray(start, float)))
    # The slice profile is left out: it blurs alike to both sides, and seeing the floating volume through it gained
    # nothing (0.12 mm off either way, with 6 mm slices of a real infant).
    matrix = levels[1].align(levels[2].align(matrix))
    registration = pair.judged(matrix)
    if scaled:
        center = _center(pair.reference if pair.swapped else pair.floating)
        registration = replace(registration, matrix=_rigid_part(registration.matrix, center))
    return registration


def judge_placements(
    fixed: nib.Nifti1Image, moving: nib.Nifti1Image, matrices: Iterable[np.ndarray]
) -> list[Registration]:
    """How well each matrix lays two scans upon each other, as it is: as :func:`register_rigid` judges what it found.

    Raises:
        BabyAIError: as :func:`register_rigid`.
    """
    pair = _Pair(fixed, moving)
    return [pair.judged(pair.turned(np.asarray(matrix, float))) for matrix in matrices]


class _Pair:
    """Two scans, ready to be compared: the one that is sampled (``reference``) and the other (``floating``).

    ``levels`` holds them at 8, 4, 2 and 1 mm. ``outlined`` tells whether the reference's outline is one in the floating
    scan as well. Matrices map the reference's world mm to the floating scan's.
    """

    def __init__(self, fixed: nib.Nifti1Image, moving: nib.Nifti1Image, scaled: bool = False) -> None:
        with ThreadPoolExecutor(2) as pool:  # SciPy lets go of Python's lock
            self.reference, self.floating = pool.map(lambda image: _prepared(image, scaled), (fixed, moving))
        self.swapped = _is_better_reference(self.floating, self.reference)
        if self.swapped:
            self.reference, self.floating = self.floating, self.reference
        # A brain's outline is none in a whole head, and would be drawn to the head's.
        self.outlined = not _is_extracted(self.reference) or _is_extracted(self.floating)
        with ThreadPoolExecutor(2) as pool:
            references = pool.submit(_pyramid, self.reference)
            floatings = _pyramid(_padded(_at_spacing(self.floating, 1)))
            references = references.result()
        self.levels = {
            spacing: _Level(references[spacing], floatings[spacing], most, _MARGIN * self.outlined, scaled)
            for spacing, most in _MOST_SAMPLES.items()
        }

    def turned(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix from the fixed to the moving image as one from reference to floating scan, or the reverse."""
        return np.linalg.inv(matrix) if self.swapped else matrix

    def judged(self, matrix: np.ndarray) -> Registration:
        """The matrix, reference to floating scan, as a registration of the fixed and the moving image."""
        information, _, entropy = self.levels[2].evaluate(matrix)
        return Registration(
            matrix=self.turned(matrix),
            similarity=information / entropy,
            sharpness=self.levels[4].sharpness(matrix),
            mirrored=self._similarity_mirrored(matrix) / self.levels[4].similarity(matrix),
            overlap=_overlap(self.reference, self.floating, matrix),
        )

    def _similarity_mirrored(self, matrix: np.ndarray) -> float:
        """Greatest mutual information, at 4 mm, of the reference mirrored: along a world axis, then laid on anew."""
        coarse, level = self.levels[8], self.levels[4]
        mirrors = [np.diag(signs) for signs in 1.0 - 2.0 * np.eye(3)]
        starts = [matrix @ nib.affines.from_matvec(mirror, level.center - mirror @ level.center) for mirror in mirrors]
        (best,) = coarse.best([coarse.align(start) for start in starts], 1)
        return level.similarity(level.align(best))


def _prepared(image: nib.Nifti1Image, scaled: bool = False) -> _Volume:
    """Intensities from 0, without the few brightest voxels, which would leave the others few bins; evenly lit.

    Not where heads of other sizes are laid upon each other, which have little but their broad contrast in common.
    """
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = array - min(float(array.min()), 0.0)
    if min(array.shape) < _FEWEST_PLANES:
        raise BabyAIError(
            f"{name_of(image)} has too few slices to be registered ({min(array.shape)}, of {_FEWEST_PLANES} needed); "
            "give a larger stack."
        )
    check_head_volume(image)
    if not scaled:
        array = _evenly_lit(array, voxel_sizes(image.affine))
    return _Volume(np.minimum(array, np.percentile(array[array > 0], 99.5)), np.asarray(image.affine, float))


def _evenly_lit(array: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The array over the mean of the head within some 5 cm, so that a coil near one side makes no contrast.

    Args:
        sizes: of its voxels, mm.
    """
    steps = np.maximum(1, np.rint(_SHADING_STEP / sizes)).astype(int)
    coarse = array[tuple(slice(None, None, step) for step in steps)]
    inside = _foreground(coarse).astype(np.float32)
    sigma = _SHADING / (sizes * steps)
    mean = ndimage.gaussian_filter(coarse * inside, sigma) / np.maximum(ndimage.gaussian_filter(inside, sigma), 1e-3)
    shading = np.clip(mean / np.median(mean[inside > 0]), 0.2, 5)
    for axis, (length, step) in enumerate(zip(array.shape, steps, strict=True)):
        knots = np.eye(shading.shape[axis], dtype=np.float32)
        weights = np.array([np.interp(np.arange(length) / step, np.arange(len(knots)), knot) for knot in knots])
        shading = along(weights.T, shading, axis)
    return array / shading


def _foreground(array: np.ndarray) -> np.ndarray:
    return array > 0.1 * np.percentile(array[array > 0], 98)


def _is_extracted(volume: _Volume) -> bool:
    """Whether what surrounds the head is exactly 0, as around a brain that was extracted."""
    steps = np.maximum(1, np.rint(2 / voxel_sizes(volume.affine))).astype(int)
    coarse = volume.array[tuple(slice(None, None, step) for step in steps)]
    around = _head(_Volume(coarse, volume.affine @ np.diag([*steps, 1])), _MARGIN) & ~_foreground(coarse)
    return bool(around.any()) and float(np.mean(coarse[around] == 0)) > 0.6


def _is_better_reference(volume: _Volume, other: _Volume) -> bool:
    """Whether to sample this volume and not the other: the clearly smaller head, a brain among heads, else the thicker.

    What surrounds a brain would say little and mislead; thick voxels are averages of many thin ones, never the reverse.
    """
    sizes = [_foreground(v.array).sum() * abs(np.linalg.det(v.affine[:3, :3])) for v in (volume, other)]
    if min(sizes) < 0.7 * max(sizes):
        return sizes[0] < sizes[1]
    return voxel_sizes(volume.affine).max() > voxel_sizes(other.affine).max()


def _padded(volume: _Volume, margin: float = 30.0) -> _Volume:
    """The volume with ``margin`` mm more air beyond every face that shows air, so that leaving it counts as air."""
    inside = _foreground(volume.array)
    steps = np.ceil(margin / voxel_sizes(volume.affine)).astype(int)
    widths = [
        [int(step) if np.take(inside, face, axis).mean() < 0.02 else 0 for face in (0, -1)]
        for axis, step in enumerate(steps)
    ]
    shift = nib.affines.from_matvec(np.eye(3), [-before for before, _ in widths])
    return _Volume(np.pad(volume.array, widths), volume.affine @ shift)


def _at_spacing(volume: _Volume, spacing: float) -> _Volume:
    """Smooth and shrink, linearly, along the axes whose voxels are smaller than ``spacing`` mm."""
    factors = np.maximum(1, spacing / voxel_sizes(volume.affine))
    if factors.max() < 1 + 1e-6:
        return volume
    shape = np.floor((np.array(volume.array.shape) - 1) / factors).astype(int) + 1
    offset = ((np.array(volume.array.shape) - 1) - (shape - 1) * factors) / 2
    array = volume.array
    for axis in np.flatnonzero(factors > 1):
        length = array.shape[axis]
        places = offset[axis] + factors[axis] * np.arange(shape[axis])
        between = np.maximum(1 - np.abs(places[:, None] - np.arange(length)), 0)
        array = along(between @ gaussian_matrix(length, 0.4 * float(factors[axis])), array, axis)
    return _Volume(np.ascontiguousarray(array), volume.affine @ nib.affines.from_matvec(np.diag(factors), offset))


def _pyramid(volume: _Volume) -> dict[int, _Volume]:
    """The volume at 1, 2, 4 and 8 mm, where its voxels are not larger."""
    volumes = {}
    for spacing in (1, 2, 4, 8):
        volumes[spacing] = volume = _at_spacing(volume, spacing)
    return volumes


def _head(volume: _Volume, margin: float) -> np.ndarray:
    """The head and ``margin`` mm of what surrounds it.

    As by a distance transform, in a fifth of the time: along the first axis the head is widened by all that a sphere
    can reach, and these are laid together along the other two.
    """
    head, sizes = _foreground(volume.array), voxel_sizes(volume.affine)
    reach = (margin / sizes + 1e-9).astype(int)
    widened = [head]
    for step in range(1, reach[0] + 1):
        widened.append(widened[-1].copy())
        widened[-1][step:] |= head[:-step]
        widened[-1][:-step] |= head[step:]
    grown = head.copy()
    for steps in itertools.product(*(range(-most, most + 1) for most in reach[1:])):
        left = margin**2 - np.sum(np.square(steps * sizes[1:]))
        if left >= 0:
            there = tuple(slice(max(step, 0), min(step, 0) or None) for step in steps)
            here = tuple(slice(max(-step, 0), min(-step, 0) or None) for step in steps)
            grown[:, *there] |= widened[int(np.sqrt(left) / sizes[0] + 1e-9)][:, *here]
    return grown


def _center(volume: _Volume) -> np.ndarray:
    """Centre of mass of the head, world mm."""
    head = np.where(_foreground(volume.array), volume.array, 0)
    along_axes = (head.sum(axis=tuple(other for other in range(3) if other != axis), dtype=float) for axis in range(3))
    return apply_affine(volume.affine, [np.average(np.arange(len(sums)), weights=sums) for sums in along_axes])


class _Level:
    """Two volumes at one resolution: how similar they are under a motion, and which motion near it is best.

    The similarity is mutual information in nats, over samples of the reference's head. Samples that leave the floating
    volume's field of view tell nothing, and count as that. Matrices map the reference's world mm to the floating
    volume's.
    """

    def __init__(self, reference: _Volume, floating: _Volume, most_samples: int, margin: float, scaled: bool) -> None:
        self._parameters = 7 if scaled else 6
        self._first_step = float(voxel_sizes(floating.affine).max()) / 2  # mm
        self.center, self.floating_center = _center(reference), _center(floating)
        samples = _samples(reference, most_samples, margin)
        values = ndimage.map_coordinates(reference.array, samples.T, order=1, mode="nearest")
        self._points = np.vstack([apply_affine(reference.affine, samples).T, np.ones(len(samples))])
        # Whole bins for the reference; the floating volume's values are shared out between two.
        self._codes = _BINS * np.rint(values * ((_BINS - 1) / reference.array.max())).astype(np.intp)
        self._floating = floating.array * np.float32((_BINS - 1.001) / floating.array.max())
        self._to_voxels = np.linalg.inv(floating.affine)

    def similarity(self, matrix: np.ndarray) -> float:
        """Mutual information in nats."""
        return self.evaluate(matrix)[0]

    def sharpness(self, matrix: np.ndarray) -> float:
        """Share of the mutual information that is lost where the scans are shifted by 4 mm and turned by 4 degrees.

        The mean over 40 directions; 0 or less where the matrix is no peak.
        """
        directions = np.random.default_rng(0).normal(size=(40, 2, 3))
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        steps = (directions * [[np.deg2rad(4) * _HEAD_RADIUS], [4.0]]).reshape(40, 6)
        kept = np.mean([self.similarity(matrix @ motion) for motion in self._motions(steps)])
        return float(1 - kept / self.similarity(matrix))

    def best(self, matrices: list[np.ndarray], count: int | None = None) -> list[np.ndarray]:
        """The ``count`` matrices of greatest similarity, or all, the greatest first."""
        return sorted(matrices, key=self.similarity, reverse=True)[:count]

    def align(self, matrix: np.ndarray, steps: int = 50) -> np.ndarray:
        """The local optimum that quasi-Newton steps (BFGS) reach from ``matrix``, or how far they come."""
        nudges = 1e-3 * np.concatenate([np.eye(self._parameters), -np.eye(self._parameters)])

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            here, *near = self._motions(np.concatenate([parameters[None], parameters + nudges]))
            information, slope, _ = self.evaluate(matrix @ here)
            ahead, behind = np.split(np.array(near), 2)
            change = (ahead - behind)[:, :3] / 2e-3
            return -information, -np.einsum("pij,ij->p", change, matrix[:3, :3].T @ slope)

        start = np.zeros(self._parameters)
        steepness = np.linalg.norm(loss(start)[1])
        first_step = self._first_step / max(steepness, 1e-9) * np.eye(self._parameters)
        options = {"gtol": 1e-3, "maxiter": steps, "hess_inv0": first_step}
        found = optimize.minimize(loss, start, jac=True, method="BFGS", options=options)
        return matrix @ self._motions(found.x[None])[0]

    def _motions(self, parameters: np.ndarray) -> np.ndarray:
        """Motions, shape (N, 4, 4), by three turns, three shifts and perhaps a growth, shape (N, 6 or 7).

        Each parameter is in mm at the surface of a head around the centre.
        """
        turns = Rotation.from_rotvec(parameters[:, :3] / _HEAD_RADIUS).as_matrix()
        turns *= np.exp(parameters[:, 6:].sum(axis=1) / _HEAD_RADIUS)[:, None, None]
        motions = np.tile(np.eye(4), (len(parameters), 1, 1))
        motions[:, :3, :3] = turns
        motions[:, :3, 3] = self.center - turns @ self.center + parameters[:, 3:6]
        return motions

    def evaluate(self, matrix: np.ndarray) -> tuple[float, np.ndarray, float]:
        """Mutual information (nats), its derivative by the matrix's first three rows, and the reference's entropy."""
        voxels, inside = self._voxels(matrix)
        values, gradients = _interpolated(self._floating, voxels)
        information, entropy, gain, codes = self._information(self._codes[inside], values)
        by_count = (_WINDOW @ gain @ _WINDOW.T).ravel() / self._points.shape[1]
        by_position = gradients * (by_count.take(codes + 1) - by_count.take(codes))
        slope = self._to_voxels[:3, :3].T @ (by_position @ self._points[:, inside].T)
        return information, slope, entropy

    def _voxels(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray | slice]:
        """Where the samples lie in the floating volume, voxels, shape (3, N), and which of all these N are."""
        voxels = (self._to_voxels @ matrix)[:3] @ self._points
        inside = ((voxels >= 0) & (voxels <= np.array(self._floating.shape)[:, None] - 1)).all(axis=0)
        return (voxels, slice(None)) if inside.all() else (voxels[:, inside], inside)

    def _information(self, codes: np.ndarray, values: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
        """Mutual information and the reference's entropy (nats), its gain by each bin, and the samples' lower bins."""
        lower = values.astype(np.intp)
        codes, share = codes + lower, values - lower
        counts = np.bincount(codes, 1 - share, _BINS**2) + np.bincount(codes + 1, share, _BINS**2)
        joint = _WINDOW.T @ counts.reshape(_BINS, _BINS) @ _WINDOW / self._points.shape[1]
        rows, columns = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(joint > 0, np.log(joint * joint.sum() / (rows * columns)), 0)
            entropy = -np.sum(rows * np.log(rows / rows.sum()), where=rows > 0)
        # Above 0, so that both can be divided by where the volumes share nothing.
        return max(float((joint * gain).sum()), 1e-9), max(float(entropy), 1e-6), gain, codes


def _samples(reference: _Volume, most: int, margin: float) -> np.ndarray:
    """At most so many positions in and around the reference's head, voxels, shape (N, 3).

    Each lies anywhere within its voxel, but on its slice: were all of them on the grid, those motions would be favoured
    that lay the two grids upon each other, since there interpolation does not blur.
    """
    random = np.random.default_rng(0)
    voxels = np.flatnonzero(_head(reference, margin))
    if len(voxels) > most:
        voxels = voxels[random.choice(len(voxels), most, replace=False)]
    voxels = np.column_stack(np.unravel_index(voxels, reference.array.shape))
    sizes = voxel_sizes(reference.affine)
    return voxels + random.uniform(-0.5, 0.5, voxels.shape) * (sizes < _THICK * np.median(sizes))


def _interpolated(array: np.ndarray, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tri-linear values, shape (N,), and their gradients per voxel, (3, N), at positions inside the array, (3, N)."""
    base = np.minimum(voxels.astype(np.intp), np.array(array.shape)[:, None] - 2)
    x, y, z = (voxels - base).astype(np.float32)
    flat, (_, rows, columns) = array.ravel(), array.shape
    index = (base[0] * rows + base[1]) * columns + base[2]
    edge = {(i, j): flat.take(index + (i * rows + j) * columns) for i, j in np.ndindex(2, 2)}
    by_z = {(i, j): flat.take(index + ((i * rows + j) * columns + 1)) - edge[i, j] for i, j in edge}
    edge = {corner: value + z * by_z[corner] for corner, value in edge.items()}
    by_y = {i: edge[i, 1] - edge[i, 0] for i in (0, 1)}
    face = {i: edge[i, 0] + y * by_y[i] for i in (0, 1)}
    by_z = {i: by_z[i, 0] + y * (by_z[i, 1] - by_z[i, 0]) for i in (0, 1)}
    by_x = face[1] - face[0]
    gradients = np.stack([by_x, by_y[0] + x * (by_y[1] - by_y[0]), by_z[0] + x * (by_z[1] - by_z[0])])
    return face[0] + x * by_x, gradients


def _overlap(reference: _Volume, floating: _Volume, matrix: np.ndarray) -> float:
    """Share of the reference's head inside the floating volume's field of view."""
    head = np.flatnonzero(_foreground(reference.array))[::50]
    head = np.column_stack(np.unravel_index(head, reference.array.shape))
    voxels = apply_affine(np.linalg.inv(floating.affine) @ matrix @ reference.affine, head)
    return float(((voxels > -0.5) & (voxels < np.array(floating.array.shape) - 0.5)).all(axis=1).mean())


def _orientations() -> list[np.ndarray]:
    """360 rotations, none of all rotations far from one: the 24 axis-parallel ones, each tilted 14 ways."""
    faces = np.deg2rad(35) * np.concatenate([np.eye(3), -np.eye(3)])
    corners = np.deg2rad(50) * (np.indices((2, 2, 2)).reshape(3, -1).T * 2 - 1) / np.sqrt(3)
    tilts = Rotation.from_rotvec(np.concatenate([np.zeros((1, 3)), faces, corners]))
    return [(turn * tilt).as_matrix() for turn in Rotation.create_group("O") for tilt in tilts]


def _search(levels: dict[int, _Level], surely: bool) -> np.ndarray:
    """The place that the header or the heads' centres lead to, where it is surely right; else the best of many starts.

    Of these the likeliest are followed at 8 mm for a few steps, those that are most similar at 4 mm to the end, and the
    best few of those at 4 mm.

    Args:
        surely: whether a very sharp peak is right for sure; it need not be of a brain in a whole head.
    """
    coarse, fine = levels[8], levels[4]
    center, target = coarse.center, coarse.floating_center
    stated = [np.eye(4), nib.affines.from_matvec(np.eye(3), target - center)]
    if surely:
        (likeliest,) = fine.best([coarse.align(start) for start in stated], 1)
        likeliest = fine.align(likeliest, steps=20)
        if fine.sharpness(likeliest) > VERY_SHARP:
            return likeliest
    turned = [nib.affines.from_matvec(turn, target - turn @ center) for turn in _orientations()]
    starts = [*stated, *coarse.best(turned, 16)]
    # At 8 mm a brain in a whole head, or a head without its fat, often fits elsewhere better than where it belongs.
    begun = _distinct(fine.best([coarse.align(start, steps=10) for start in starts]), center)[:6]
    found = _distinct(fine.best([*begun, *(coarse.align(matrix) for matrix in begun)]), center)
    best, *others = found[:4]
    best = fine.align(best)
    for other in others:
        # What is right keeps more of its similarity where it is not yet aligned finely.
        if fine.similarity(other) > 0.5 * fine.similarity(best):
            best = fine.best([best, fine.align(other)], 1)[0]
    return best


def _distinct(matrices: list[np.ndarray], center: np.ndarray) -> list[np.ndarray]:
    """Those that move a head around ``center`` otherwise than all that stand before them, by some 5 mm."""
    surface = center + _HEAD_RADIUS * np.concatenate([np.eye(3), -np.eye(3)])
    kept: list[np.ndarray] = []
    for matrix in matrices:
        if all(mean_displacement(matrix, other, surface) > 5 for other in kept):
            kept.append(matrix)
    return kept


def check_head_volume(image: nib.Nifti1Image) -> None:
    """Refuse a scan whose head is far smaller or larger, by its header, than any head.

    Raises:
        BabyAIError: it is; or the scan is empty.
    """
    array = np.asarray(image.dataobj, dtype=np.float32)[::2, ::2, ::2]
    array = array - min(float(array.min()), 0.0)
    if not array.any():
        raise BabyAIError(f"{name_of(image)} shows nothing that could be registered; check the scan.")
    volume = 8 * _foreground(array).sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000
    low, high = _HEAD_VOLUME
    if not low < volume < high:
        raise BabyAIError(
            f"{name_of(image)} shows a head of {volume:,.1f} ml by its header, whose voxel sizes are wrong, or in "
            "another unit than mm; convert the scan again, or correct its pixdim, sform and qform."
        )


def check_same_head(
    registration: Registration, t1: nib.Nifti1Image, t2: nib.Nifti1Image, min_similarity: float | None = None
) -> None:
    """Refuse a registration that failed, and warn of one that may have.

    Args:
        min_similarity: refuse what is less similar than this, and nothing else; None judges the registration itself.

    Raises:
        BabyAIError: the registration failed, or is less similar than ``min_similarity``.
    """
    measured = f"similarity {registration.similarity:.2f}, sharpness {registration.sharpness:.2f}"
    if min_similarity is not None and registration.similarity < min_similarity:
        raise BabyAIError(
            f"{name_of(t2)} is less similar to {name_of(t1)} than --min-similarity asks for ({measured}); check that "
            "they are of the same infant, or lower it."
        )
    if registration.verdict == RIGHT:
        return
    problem, advice = _suspicion(registration)
    sentence = f"{name_of(t2)} {problem} {name_of(t1)} ({measured}): {advice}"
    if registration.verdict == FAILED and min_similarity is None:
        raise BabyAIError(f"{sentence}. If they are known to fit, --min-similarity 0 makes the result anyway.")
    warn(f"{sentence}.")


def _suspicion(registration: Registration) -> tuple[str, str]:
    """What seems wrong between the T2w and the T1w, and what to check."""
    if registration.overlap < LEAST_OVERLAP:
        share = f"shows only {registration.overlap:.0%} of the head that is to be seen in"
        return share, "check that both scans show the whole brain"
    if registration.mirrored > 1 and registration.sharpness > LEAST_SHARPNESS:
        return (
            "fits better mirrored onto",
            "left and right may be exchanged in one of the headers, or it is another infant's scan",
        )
    return (
        "may not fit" if registration.verdict == UNSURE else "could not be aligned with",
        "the usual causes are another infant's scan, only one of the two brain-extracted, much noise or motion, or a "
        "header with wrong voxel sizes or units; look at the edges of one scan on the other",
    )


def _rigid_part(matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The motion without its change of size, the point that comes to lie at ``center`` staying where it is."""
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    origin = apply_affine(np.linalg.inv(matrix), center)
    return nib.affines.from_matvec(u @ vt, center - u @ vt @ origin)


def mean_displacement(matrix_a: np.ndarray, matrix_b: np.ndarray, points: np.ndarray) -> float:
    """Mean distance in mm between where two motions take the points, shape (N, 3), world mm."""
    return float(np.linalg.norm(apply_affine(matrix_a, points) - apply_affine(matrix_b, points), axis=1).mean())
