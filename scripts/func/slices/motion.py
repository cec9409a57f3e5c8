"""How an infant moved while a stack was acquired: a rigid pose for each slice, found from the slices themselves.

A volume of the same head is seen through the slice profile, and each slice is laid where it fits that best, by
Gauss-Newton steps from coarse to fine: slice-to-volume registration, as in Kuklisova-Murgasova et al. (Medical Image
Analysis 16(8), 2012) and Ebner et al. (NeuroImage 206, 2020). The volume may be a T1w, which then takes over the
slices' intensities. Slices that were acquired one after the other lie near each other, but for jumps; that holds
those in place that show little, at the head's ends.

Positions are voxels of a working grid of 1 mm voxels with the slices last (see func.slices.geometry).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations_with_replacement

import nibabel as nib
import numpy as np
import torch
from scipy import linalg, ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional

from func.networks.guidance import profile_width
from func.processors import threads
from func.slices.filters import smooth
from func.slices.geometry import SliceGeometry

# 15 simulated stacks and three raw ones of infants that lay still had a spread of up to 0.2 mm (0.3 in a rough look)
# and kept 0.90 or more of what is unexplained; three adults up to 0.9 mm, but 0.97. Of 15 moving ones 14 had 0.8 to
# 1.9 mm and kept 0.42 to 0.92; one that moved by 0.5 mm has that and 0.93.
LARGEST_STILL = 0.4  # mm, see Motion.spread
LARGEST_UNEXPLAINED = 0.94  # see Motion.unexplained

_RADIUS = 50.0  # mm, half a head: turns radians into the mm that its surface moves
_STRIDE = 2  # voxels between the pixels that are looked at, in-plane
_REACH = 4  # voxels around the head in which pixels count
# In-plane smoothing, mm, and how many steps are made with it, on voxels of 2 and of 1 mm; at each level the T1w takes
# over the slices' intensities anew.
_COARSE = ((3.0, 4), (1.5, 4))
_MIDDLE = ((1.5, 3),)
_FINE = ((1.5, 3), (0.8, 4))
_LARGE = 2  # mm: voxels for a first look, which tells most heads that lay still from those that moved
# Share of the pixels of 1 mm that tell something of their own: what a volume lacks, it lacks over an area, and what a
# T1w does not tell of the slices' contrast it does not tell of all of a tissue. Ten times as much made the errors of
# found places three times as large in six simulated stacks.
_INDEPENDENT_SAME, _INDEPENDENT_T1 = 0.01, 0.005
_STEP = 0.15  # mm that a head moves from one slice to the next, but for jumps
_LOOSE_STEPS = (3.0, 0.5)  # mm, while it is not known when which slice was acquired, and at first when it is
_LONGEST_STEP = 2.0  # mm that a pose changes at once
_INTERLEAVINGS = (1, 2, 3)
_SURELY = 0.8  # of the path in space that of another order must be shorter
_OUTLYING = 4.7  # robust standard deviations beyond which a pixel counts no more (Tukey)
_FAINTEST = 0.05  # of the brightest: what is fainter is air
_BY_CHANCE = 0.1  # of the slices may gain by a motion that was none
_FULL = 0.5  # of the fullest slice's head: slices with less say little about motion
_DARK = 0.02  # of the brightest: what is fainter and reaches the air is air
_MOSTLY = 0.3  # of what a pixel sees: so much of it must be head to tell its intensity
_AROUND = (2.0, 3.0)  # mm, standard deviation: how far a place looks around, at the T1w and for air
_DEGREE = 3  # of the polynomial in these
PLACES = 50_000  # are enough to fit it

Levels = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Motion:
    """Where the head lay while each slice of a stack was acquired.

    Attributes:
        parameters: shape (groups, 6), a pose each in order of acquisition: three turns about ``center`` as a rotation
            vector in mm at 50 mm from there, and three shifts in mm, from the place of acquisition to the volume's.
        groups: shape (count,), the pose of each slice; slices that were acquired together share one.
        center: voxel that the turns are about, shape (3,).
        full: shape (count,), the slices that show enough of the head to tell its motion.
        unexplained: what the volume does not explain of the slices in the places found, over what it does not explain
            of them where they lie: less than 1 if they fit better there.
    """

    parameters: np.ndarray
    groups: np.ndarray
    center: np.ndarray
    full: np.ndarray
    unexplained: float

    @property
    def matrices(self) -> np.ndarray:
        """For each slice, voxel of the volume -> where it lay in the working grid meanwhile, shape (count, 4, 4)."""
        turns = Rotation.from_rotvec(self.parameters[:, :3] / _RADIUS).as_matrix()
        shifts = self.center - turns @ self.center + self.parameters[:, 3:]
        back = [np.linalg.inv(nib.affines.from_matvec(*pose)) for pose in zip(turns, shifts, strict=True)]
        return np.array(back)[self.groups]

    @property
    def spread(self) -> float:
        """How far the full slices lie about their common place, mm: the mean over them, turns at 50 mm included."""
        poses = self.parameters[self.groups[self.full]]
        return float(np.linalg.norm(poses - np.median(poses, axis=0), axis=1).mean()) if len(poses) else 0.0

    @property
    def moved(self) -> bool:
        """Whether the head moved more than a T1w shows of one that lay still, and its slices fit clearly better so."""
        return self.moved_beyond(LARGEST_STILL)

    def moved_beyond(self, still: float) -> bool:
        """Whether the spread is larger than ``still`` mm, and the slices fit clearly better so."""
        return self.spread > still and self.unexplained < LARGEST_UNEXPLAINED

    @property
    def path(self) -> np.ndarray:
        """How far the head lay from its usual place, in order of acquisition, shape (groups, 6).

        Three shifts in mm along the axes of the working grid, and three turns in degrees about them.
        """
        away = np.median(self.parameters[self.groups[self.full]], axis=0) - self.parameters
        return np.column_stack([away[:, 3:], np.degrees(away[:, :3] / _RADIUS)])


def order_of_acquisition(sidecar: dict, count: int) -> np.ndarray | None:
    """Which slices were acquired first, second, ... as BIDS ``SliceTiming`` tells; None where it does not.

    Returns:
        shape (count,), from 0; slices acquired together have the same number.
    """
    timing = sidecar.get("SliceTiming")
    if not isinstance(timing, list) or len(timing) != count or not all(isinstance(t, int | float) for t in timing):
        return None
    backwards = str(sidecar.get("SliceEncodingDirection", "")).endswith("-")
    times = np.array(timing[::-1] if backwards else timing, float)
    return np.unique(np.round(times, 4), return_inverse=True)[1]


def find_motion(
    volume: np.ndarray,
    slices: np.ndarray,
    geometry: SliceGeometry,
    groups: np.ndarray | None = None,
    same_contrast: bool = False,
    start: Motion | None = None,
    only_if_moved: bool = False,
) -> Motion:
    """Find where each slice fits a volume of the same head.

    Args:
        volume: shape (X, Y, Z), in the place where the head lies on the whole; air is 0.
        slices: as measured, shape (X, Y, geometry.count).
        geometry: of the slices in that grid, along axis 2, voxels of 1 mm.
        groups: when each slice was acquired (:func:`order_of_acquisition`); found from the slices where it is None.
            All zero: one pose for the stack.
        same_contrast: the volume has the slices' contrast; else it is a T1w.
        start: only refine this motion.
        only_if_moved: a rough motion will do where the head lay still.
    """
    independent = _INDEPENDENT_SAME if same_contrast else _INDEPENDENT_T1
    features = None if same_contrast else t1_features(volume, halved=True)
    large = _Fit(_halved(volume), _halved(slices, 1), _on_halved(geometry), independent, features, _LARGE)
    rough = _roughly(large, groups, start)
    if only_if_moved and not rough.moved:
        return rough
    if not same_contrast:
        # The weights found in large voxels hold in small ones too.
        volume = large.contrast(rough, _MIDDLE).volume(t1_terms(t1_features(volume)))
    fit = _Fit(volume, slices, geometry, independent)
    return fit.motion(fit.refined(rough.parameters, rough.groups, _FINE), rough.groups, _FINE)


def _roughly(fit: _Fit, groups: np.ndarray | None, start: Motion | None) -> Motion:
    """The motion that large voxels show, and where it is not known the order of acquisition."""
    if start is not None:
        poses, groups = start.parameters, start.groups
    elif groups is not None and not groups.any():
        poses = fit.refined(np.zeros((1, 6)), groups, _COARSE)
    else:
        # Held together from the start, slices would never leave the place of the others.
        count = len(fit.full)
        loose = fit.refined(np.zeros((count, 6)), np.arange(count), _COARSE, _LOOSE_STEPS[0])
        if groups is None:
            groups = _interleaved(_interleaving(loose[fit.full], np.flatnonzero(fit.full)), count)
        poses = np.array([loose[groups == group].mean(axis=0) for group in range(groups.max() + 1)])
        poses = fit.refined(poses, groups, _MIDDLE, _LOOSE_STEPS[1])
    return fit.motion(fit.refined(poses, groups, _MIDDLE), groups, _MIDDLE)


def _halved(volume: np.ndarray, depth: int = _LARGE) -> np.ndarray:
    """Volumes (..., X, Y, Z) in voxels of 2 mm, or slices in pixels of 2 mm: ``depth`` 1."""
    tensor = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
    tensor = functional.avg_pool3d(tensor.reshape(-1, 1, *volume.shape[-3:]), (_LARGE, _LARGE, depth), ceil_mode=True)
    return tensor.reshape(*volume.shape[:-3], *tensor.shape[-3:]).numpy()


def _on_halved(geometry: SliceGeometry) -> SliceGeometry:
    """Where the slices lie among voxels of 2 mm."""
    first = (geometry.first_center - (_LARGE - 1) / 2) / _LARGE
    return replace(
        geometry, thickness=geometry.thickness / _LARGE, spacing=geometry.spacing / _LARGE, first_center=first
    )


def head_of(t1: np.ndarray) -> np.ndarray:
    """Where a T1w shows a head, float32, 0 or 1; what is dark inside of it is head as well."""
    return ndimage.binary_fill_holes(t1 > _DARK * np.percentile(t1[t1 > 0], 99)).astype(np.float32)


def t1_features(t1: np.ndarray, voxel: float = 1.0, halved: bool = False) -> np.ndarray:
    """What a T1w tells of a T2w's intensity: its own, its mean around, and how much around is head, (3, X, Y, Z).

    A T1w alone tells fluid at the brain's edge from white matter badly, in newborns above all.

    Args:
        t1: air is 0.
        voxel: its voxels, mm.
        halved: tell it in voxels twice as large.
    """
    own = t1 / max(float(np.percentile(t1[t1 > 0], 99)), 1e-9) if t1.any() else t1
    told = np.stack([own, head_of(t1)]).astype(np.float32)
    if halved:
        told, voxel = _halved(told), _LARGE * voxel
    around = [smooth(of, [sigma / voxel] * 3) for of, sigma in zip(told, _AROUND, strict=True)]
    return np.stack([told[0], *around])


def t1_terms(features: np.ndarray) -> Iterator[np.ndarray]:
    """The terms of a polynomial in :func:`t1_features`, one after the other, each (X, Y, Z) and 0 in air.

    The first is 1 in the head.
    """
    head = (features[0] > 0).astype(np.float32)
    yield head
    for degree in range(1, _DEGREE + 1):
        for group in combinations_with_replacement(features - 0.5, degree):
            yield reduce(np.multiply, group, head)


@dataclass(frozen=True)
class Contrast:
    """How slices of a T2w come of a T1w: the polynomial in what it tells that comes nearest to them.

    It is fitted as the slices see its terms (:func:`t1_terms`), since the seen polynomial of a T1w is not the
    polynomial of the seen T1w: fluid that is thinner than a slice would be taken for something else.

    Attributes:
        weights: one for each term.
        highest: intensity that the slices show, but for a thousandth.
    """

    weights: np.ndarray
    highest: float

    @classmethod
    def of(cls, seen: np.ndarray, shown: np.ndarray) -> Contrast:
        """Fit what slices see of the terms, shape (terms, N), to what they show of the T2w there, shape (N,)."""
        told = seen[0] > _MOSTLY
        if not told.any():
            return cls(np.zeros(len(seen), np.float32), 0.0)
        seen, shown = seen[:, told], shown[told]
        products = seen @ seen.T
        products += 1e-6 * np.trace(products) / len(products) * np.eye(len(products))
        weights = np.linalg.solve(products, seen @ shown).astype(np.float32)
        return cls(weights, float(np.quantile(shown, 0.999)))

    def volume(self, terms: Iterable[np.ndarray]) -> np.ndarray:
        """A T1w's terms as the T2w that the slices show, float32, shape (X, Y, Z); air is 0.

        What is brighter or darker than they show anywhere is not.
        """
        return np.clip(sum(weight * term for weight, term in zip(self.weights, terms, strict=True)), 0, self.highest)


class _Fit:
    """Slices and a volume of the same head, and the poses that lay the ones where they fit the other.

    Args:
        volume, slices, geometry: see :func:`find_motion`, in voxels of ``size`` mm.
        independent: share of the pixels of 1 mm that tell something of their own.
        features: :func:`t1_features` of the volume where it is a T1w that takes over the slices' contrast, else none.
        size: of the voxels, mm. Poses and centre are those of voxels of 1 mm all the same.
    """

    def __init__(
        self,
        volume: np.ndarray,
        slices: np.ndarray,
        geometry: SliceGeometry,
        independent: float,
        features: np.ndarray | None = None,
        size: int = 1,
    ) -> None:
        self._volume, self._slices, self._size = volume, slices, size
        self._independent, self._smoothed = independent, {}
        self._terms = None if features is None else np.stack(list(t1_terms(features)))
        self._width = profile_width(geometry)
        head = volume > _FAINTEST * np.percentile(volume[volume > 0], 99)
        self.center = self._in_mm(np.array(ndimage.center_of_mass(head)))
        planes = np.clip(np.rint(geometry.centers).astype(int), 0, volume.shape[2] - 1)
        counted = ndimage.binary_dilation(head, iterations=_REACH // size)[::_STRIDE, ::_STRIDE, planes]
        # By slice, so that a slice's pixels lie together.
        which, *pixels = np.nonzero(np.moveaxis(counted, 2, 0))
        self._pixels, self._which = _STRIDE * np.array(pixels), which
        self._points = self._in_mm(np.column_stack([*self._pixels, geometry.centers[which]]))
        self._bounds = np.searchsorted(which, np.arange(geometry.count + 1))
        sizes = head[:, :, planes].sum(axis=(0, 1))
        self.full = sizes > _FULL * sizes.max()

    def _in_mm(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels of this size, shape (..., 3), as voxels of 1 mm."""
        return self._size * voxels + (self._size - 1) / 2

    def motion(self, parameters: np.ndarray, groups: np.ndarray, levels: Levels) -> Motion:
        """Poses as a motion, with how much better the volume explains the slices there, smoothed as on the last level.

        The few slices that gain most by it do not count: one that is spoilt may fit another place by chance.
        """
        shown = self._shown(levels[-1][0])
        found, none = (
            self._unexplained(poses[groups], shown, levels[-1][0]) for poses in (parameters, np.zeros_like(parameters))
        )
        counted = np.flatnonzero(self.full)
        counted = counted[np.argsort((none - found)[counted])][: len(counted) - math.ceil(_BY_CHANCE * len(counted))]
        ratio = found[counted].sum() / max(none[counted].sum(), 1e-6)
        return Motion(parameters, groups, self.center, self.full, float(ratio))

    def _shown(self, sigma: float) -> np.ndarray:
        """The pixels that are looked at, of slices smoothed in-plane, shape (N,)."""
        smoothed = smooth(self._slices, (sigma / self._size, sigma / self._size, 0))
        return smoothed[self._pixels[0], self._pixels[1], self._which]

    def _unexplained(self, poses: np.ndarray, shown: np.ndarray, sigma: float) -> np.ndarray:
        """Of each slice, what the volume seen in these places does not explain in the head: (count,), squares."""
        (seen,) = self._sampled(self._seen(poses, shown, sigma)[None], self._moved(poses))
        head = seen > _FAINTEST * seen.max()
        if head.sum() < 2:
            return np.ones(len(self.full))
        slope, intercept = np.polyfit(seen[head], shown[head], 1)
        missed = np.square(shown[head] - slope * seen[head] - intercept) / np.var(shown[head]) / head.sum()
        return np.bincount(self._which[head], missed, len(self.full))

    def refined(self, parameters: np.ndarray, groups: np.ndarray, levels: Levels, step: float = _STEP) -> np.ndarray:
        """Poses after Gauss-Newton steps on smoothed slices, level by level; ``step``: see :func:`_solved`."""
        for sigma, steps in levels:
            shown = self._shown(sigma)
            seen = self._seen(parameters[groups], shown, sigma)
            maps = np.stack([seen, *np.gradient(seen, self._size)])
            for _ in range(steps):
                parameters = self._stepped(parameters, groups, shown, maps, step)
        return parameters

    def _seen(self, poses: np.ndarray, shown: np.ndarray, sigma: float) -> np.ndarray:
        """The volume in the slices' contrast, seen through their profile."""
        if self._terms is None:
            return smooth(self._volume, self._widths(sigma))
        return np.tensordot(self._contrast(poses, shown, sigma).weights, self._smoothed_terms(sigma), 1)

    def contrast(self, motion: Motion, levels: Levels) -> Contrast:
        """How the slices, in the places found, come of the T1w, smoothed as on the last level."""
        sigma = levels[-1][0]
        return self._contrast(motion.parameters[motion.groups], self._shown(sigma), sigma)

    def _contrast(self, poses: np.ndarray, shown: np.ndarray, sigma: float) -> Contrast:
        some = slice(None, None, len(shown) // PLACES + 1)
        return Contrast.of(self._sampled(self._smoothed_terms(sigma), self._moved(poses)[some]), shown[some])

    def _smoothed_terms(self, sigma: float) -> np.ndarray:
        if sigma not in self._smoothed:
            self._smoothed[sigma] = smooth(self._terms, self._widths(sigma))
        return self._smoothed[sigma]

    def _widths(self, sigma: float) -> tuple[float, float, float]:
        """Standard deviations of what slices smoothed in-plane by ``sigma`` mm see, voxels."""
        return sigma / self._size, sigma / self._size, self._width

    def _sampled(self, volumes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Tri-linear values (C, N) of volumes (C, X, Y, Z) at points (N, 3) in mm; beyond the edge, the edge's."""
        voxels = (points - (self._size - 1) / 2) / self._size
        grid = (2 * voxels / (np.array(volumes.shape[1:]) - 1) - 1)[None, None, None, :, ::-1]
        grid, volumes = (torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for array in (grid, volumes))

        def sampled(part: torch.Tensor) -> torch.Tensor:
            return functional.grid_sample(volumes[None], part, padding_mode="border", align_corners=True)

        # Of one volume torch samples on one processor only.
        with ThreadPoolExecutor(threads()) as pool:
            values = torch.cat(list(pool.map(sampled, grid.tensor_split(threads(), dim=3))), dim=-1)
        return values[0, :, 0, 0].numpy().astype(float)

    def _moved(self, poses: np.ndarray) -> np.ndarray:
        """Where the pixels come to lie in the volume, shape (N, 3), by a pose for each slice."""
        turns = Rotation.from_rotvec(poses[:, :3] / _RADIUS).as_matrix()[self._which]
        shifts = self.center + poses[self._which, 3:]
        return np.einsum("nij,nj->ni", turns, self._points - self.center) + shifts

    def _stepped(
        self, parameters: np.ndarray, groups: np.ndarray, shown: np.ndarray, maps: np.ndarray, step: float
    ) -> np.ndarray:
        moved = self._moved(parameters[groups])
        seen, *slopes = self._sampled(maps, moved)
        slopes = np.stack(slopes, axis=1)
        arms = moved - self.center - parameters[groups][self._which, 3:]
        slopes = np.concatenate([np.cross(arms, slopes) / _RADIUS, slopes], axis=1)
        brightness = np.ones(len(groups))
        for index, part in self._parts():
            power = float(seen[part] @ seen[part])
            brightness[index] = max(float(seen[part] @ shown[part]) / power, 0.1) if power > 0 else 1
        error = shown / brightness[self._which] - seen
        # Where both are air they agree, which tells nothing of how well they do in the head.
        head = (seen > _FAINTEST * seen.max()) | (shown > _FAINTEST * shown.max())
        scale = 1.4826 * float(np.median(np.abs(error[head]))) + 1e-9
        weights = np.square(np.clip(1 - np.square(error / (_OUTLYING * scale)), 0, None))
        weights *= self._independent * self._size**2 / scale**2
        normals, targets = np.zeros((len(parameters), 6, 6)), np.zeros((len(parameters), 6))
        for index, part in self._parts():
            weighted = slopes[part].T * weights[part]
            normals[groups[index]] += weighted @ slopes[part]
            targets[groups[index]] += weighted @ error[part]
        return _solved(parameters, normals, targets, step)

    def _parts(self):
        return ((index, slice(*self._bounds[index : index + 2])) for index in range(len(self._bounds) - 1))


def _solved(parameters: np.ndarray, normals: np.ndarray, targets: np.ndarray, step: float) -> np.ndarray:
    """Poses changed to fit the slices and, in order of acquisition, one another.

    Neighbours in time are held together as if they differed by about ``step`` mm, but less the farther apart they are,
    so that a jump may be (Cauchy weights).
    """
    count, right = len(parameters), targets.copy()
    jumps = parameters[:-1] - parameters[1:]
    weights = 1 / (step**2 + np.square(jumps).sum(axis=1, keepdims=True))
    right[:-1] -= weights * jumps
    right[1:] += weights * jumps
    # The upper bands of the system, the diagonal last, each by pose and parameter.
    bands = np.zeros((7, count, 6))
    for above in range(6):
        bands[6 - above, :, above:] = np.diagonal(normals, above, 1, 2)
    bands[6] += 1e-4
    bands[6, :-1] += weights
    bands[6, 1:] += weights
    bands[0, 1:] = -weights
    change = linalg.solveh_banded(bands.reshape(7, -1), right.ravel()).reshape(count, 6)
    longest = np.maximum(np.abs(change).max(axis=1, keepdims=True), 1e-9)
    return parameters + change * np.minimum(1, _LONGEST_STEP / longest)


def _interleaved(every: int, count: int) -> np.ndarray:
    """When each slice is acquired: first each ``every``-th from the first on, then those beside them: (count,)."""
    return np.argsort(np.concatenate([np.arange(first, count, every) for first in range(every)]))


def _interleaving(poses: np.ndarray, indices: np.ndarray) -> int:
    """The interleaving (:func:`_interleaved`) that makes the path shortest on which the poses of slices lie.

    Args:
        poses: of the slices ``indices``, shape (len(indices), 6).
    """
    if len(indices) < 2:
        return 1

    def path(every: int) -> float:
        # Shifts alone: what a slice tells of its turns is much less sure.
        in_time = poses[np.argsort(_interleaved(every, indices.max() + 1)[indices]), 3:]
        # The median: a path may have jumps.
        return float(np.median(np.linalg.norm(np.diff(in_time, axis=0), axis=1)))

    likeliest = 1
    for every in _INTERLEAVINGS:
        if path(every) < _SURELY * path(likeliest):
            likeliest = every
    return likeliest
