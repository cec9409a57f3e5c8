"""Finds the slices of a stack that was turned onto another grid, by a registration say, in the volume it became.

Cubic interpolation of thick slices leaves two traces, whatever the grid. The spectrum lacks fine detail across the
slices, which shows their normal to a degree or two. And on lines along the normal there are cubic polynomials between
the slices' centres, so that only the right normal, spacing and offset make all lines splines on the same knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from func.slices.geometry import slices_last
from func.slices.recovery import search_knots, spline_misfit

_SHELL = (0.3, 0.45)  # cycles a voxel: where slices of 2 voxels and more already lack detail, and anatomy does not
_ORDER = 6  # how much more detail counts the nearer it is to the direction, in the second guess of it
_MOST_ACROSS = 0.22  # of the shell along its weakest direction: of two infants 0.26, of their slices 0.16 at most
_FREQUENCIES = 60_000  # of the shell, to look at
_HEAD = 0.05  # of the brightest voxel
_RING = np.deg2rad(0.8)  # around each guess of the normal, where to look as well
# Lines within so many voxels of the head's centre, of so many voxels to both sides: the wider, the surer the normal.
_WIDENING = ((12, 16), (24, 24), (40, 32), (60, 32))
_LINES = 96
_FEWEST_LINES = 16
_SPACINGS = (1.6, 9.0)  # voxels
_TOLERANCE = 0.04  # of the lines' own variation: noise in the slices does not survive the interpolation whole
_CONTRAST = 0.5  # of the misfit on knots half a slice away


@dataclass(frozen=True)
class ObliqueStack:
    """Slices at an angle to the axes of the volume that they were interpolated to; lengths in voxels.

    Attributes:
        axes: shape (3, 3), its columns unit vectors in voxel coordinates: two in-plane, the last across the slices.
        center: voxel coordinates of a point in the middle of a slice, shape (3,).
        spacing: distance between the centres of neighbouring slices.
    """

    axes: np.ndarray
    center: np.ndarray
    spacing: float


def find_oblique_stack(volume: np.ndarray) -> ObliqueStack | None:
    """The slices behind a volume of cubic voxels, shape (I, J, K), in any direction; or None where none are found.

    Air should be dark. The thickness cannot be seen. Isotropic scans, and volumes that were interpolated otherwise than
    by cubic splines, give None.
    """
    if not (volume > 0).any():
        return None
    normals, across = _directions(volume)
    if across > _MOST_ACROSS:
        return None
    lines = _Lines(volume)
    radius, half = _WIDENING[0]
    guesses = []
    for normal, tilt in product(normals, _ring()):
        axes = _turned(_axes_around(normal), tilt)
        columns = lines.sampled(axes, radius, half)
        if columns is None:
            return None
        spacing, center, misfit = search_knots(columns, _TOLERANCE)
        if np.isfinite(misfit):
            guesses.append((_contrast(columns, spacing, center), axes, np.array([0, 0, spacing, center - half])))
    if not guesses:
        return None
    _, axes, found = min(guesses, key=lambda guess: guess[0])
    for wider in _WIDENING:
        if lines.sampled(_turned(axes, found[:2]), *wider) is None:
            break
        radius, half = wider
        step = np.diag([0.5 / radius, 0.5 / radius, 0.3 * found[2] / half, 0.1 * found[2]])
        options = {"initial_simplex": np.vstack([found, found + step]), "xatol": 1e-4, "fatol": 1e-5, "maxfev": 200}
        found = optimize.minimize(lines.misfit, found, (axes, radius, half), "Nelder-Mead", options=options).x
    axes = _turned(axes, found[:2])
    columns = lines.sampled(axes, radius, half)
    if columns is None or not _SPACINGS[0] < found[2] < _SPACINGS[1]:
        return None
    center = found[3] + half
    if spline_misfit(columns, found[2], center % found[2]) > _TOLERANCE:
        return None
    if _contrast(columns, found[2], center) > _CONTRAST:
        return None
    return ObliqueStack(axes, lines.center + found[3] * axes[:, 2], float(found[2]))


def _contrast(columns: np.ndarray, spacing: float, center: float) -> float:
    """The misfit of splines on these knots over that on knots half a slice away, where real slices fit badly.

    Splines on fine knots fit any smooth columns, and then wherever the knots lie.
    """
    here, away = (spline_misfit(columns, spacing, at % spacing) for at in (center, center + spacing / 2))
    return here / max(away, 1e-9)


def _directions(volume: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Two guesses of the direction along which the volume holds least fine detail, and the first one's share of it.

    The first is the better one for thick slices, which lack detail over a wide angle, the second for thin ones.
    """
    head = np.argwhere(volume > _HEAD * volume.max())
    low, high = head.min(axis=0), head.max(axis=0) + 1
    part = volume[tuple(map(slice, low, high))]
    power = np.square(np.abs(np.fft.rfftn(part)))
    frequencies = np.meshgrid(*map(np.fft.fftfreq, part.shape[:2]), np.fft.rfftfreq(part.shape[2]), indexing="ij")
    radius = np.sqrt(sum(np.square(frequency) for frequency in frequencies))
    shell = (radius > _SHELL[0]) & (radius < _SHELL[1])
    directions = np.stack([frequency[shell] for frequency in frequencies], axis=1) / radius[shell, None]
    # Anatomy's power falls with the frequency; this evens it out.
    weights = power[shell] * radius[shell] ** 2
    weights /= max(weights.sum(), np.finfo(float).tiny)
    shares, vectors = np.linalg.eigh((directions * weights[:, None]).T @ directions)
    axes, every = _axes_around(vectors[:, 0]), max(1, len(weights) // _FREQUENCIES)
    directions, weights = directions[::every], weights[::every]

    def detail(tilt: np.ndarray) -> float:
        return float(weights @ np.abs(directions @ _turned(axes, tilt)[:, 2]) ** _ORDER)

    simplex = [[0, 0], [0.05, 0], [0, 0.05]]
    options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-9}
    tilt = optimize.minimize(detail, [0, 0], method="Nelder-Mead", options=options).x
    return [axes[:, 2], _turned(axes, tilt)[:, 2]], float(shares[0])


def _ring() -> list[np.ndarray]:
    """Small tilts about the two in-plane axes, radians: none, and six around it."""
    angles = np.arange(6) * np.pi / 3
    return [np.zeros(2), *(_RING * np.stack([np.cos(angles), np.sin(angles)], axis=1))]


def _axes_around(normal: np.ndarray) -> np.ndarray:
    """The volume's own axes, turned as little as need be to have the nearest one lie along the normal, and it last."""
    axis = int(np.argmax(np.abs(normal)))
    normal = normal * np.sign(normal[axis])
    turn = np.cross(np.eye(3)[axis], normal)
    angle = np.arccos(min(1.0, normal[axis]))
    rotation = Rotation.from_rotvec(angle * turn / max(np.linalg.norm(turn), 1e-12)).as_matrix()
    return rotation[:, slices_last(axis)]


def _turned(axes: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    return axes @ Rotation.from_rotvec([tilt[0], tilt[1], 0]).as_matrix()


class _Lines:
    """Samples a volume along parallel lines inside the head."""

    def __init__(self, volume: np.ndarray):
        head = volume > _HEAD * volume.max()
        self.center = np.array(ndimage.center_of_mass(head))
        self._inside = ndimage.binary_erosion(head)
        self._coefficients = ndimage.spline_filter(volume.astype(np.float32), 3, output=np.float32)

    def sampled(self, axes: np.ndarray, radius: int, half: int) -> np.ndarray | None:
        """Values along lines through a disc around the centre, shape (2 half + 1, lines); None where few lie inside."""
        ticks = np.arange(-radius, radius + 1, max(2, radius // 8))
        first, second = (grid.ravel() for grid in np.meshgrid(ticks, ticks))
        disc = first**2 + second**2 <= radius**2
        starts = self.center + np.stack([first[disc], second[disc]], axis=1) @ axes[:, :2].T
        points = starts + np.arange(-half, half + 1)[:, None, None] * axes[:, 2]
        inside = ndimage.map_coordinates(self._inside, np.moveaxis(points, -1, 0), order=0).all(axis=0)
        if inside.sum() < _FEWEST_LINES:
            return None
        points = points[:, inside][:, :: max(1, int(inside.sum()) // _LINES)]
        values = ndimage.map_coordinates(self._coefficients, np.moveaxis(points, -1, 0), order=3, prefilter=False)
        return values.astype(np.float64)

    def misfit(self, parameters: np.ndarray, axes: np.ndarray, radius: int, half: int) -> float:
        """How far the lines are from splines on common knots, for two tilts (radians), spacing and offset."""
        spacing, offset = parameters[2:]
        columns = self.sampled(_turned(axes, parameters[:2]), radius, half)
        if columns is None or not _SPACINGS[0] < spacing < _SPACINGS[1]:
            return 1.0
        return spline_misfit(columns, spacing, (offset + half) % spacing)
