"""The slices behind a volume that was cubic up-sampled from them: their axis, spacing and offset."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy import optimize
from scipy.interpolate import BSpline

from func.errors import warn
from func.slices.geometry import SliceGeometry, along, upsample, upsampling_matrix

STATED, RECOVERED = "sidecar", "recovered from the volume"  # where a slice geometry came from
_COARSE = 0.04  # of the volume: slices twice as far apart that leave no more may be the true ones
_ROUGHLY = 0.05  # of the volume: a stated geometry that leaves more does not explain it
_EXACT, _ROUGH = {"xatol": 1e-4, "fatol": 1e-6}, {"xatol": 0.03, "fatol": 0.01}
_FAR_OFF = 3  # times the misfit allowed: knots that come no nearer at a rough look are not followed


def explaining_geometry(
    volume: np.ndarray, stated: SliceGeometry | None, name: str = "the T2w"
) -> tuple[SliceGeometry | None, str]:
    """The slice geometry behind an up-sampled volume, and where it comes from.

    Args:
        volume: shape (I, J, K).
        stated: what its sidecar states. What the volume itself shows decides: a stated geometry is used where it
            explains the volume, and no other nearby does as well. One that is refused is warned of.
        name: of the scan, for that warning.
    """
    if stated is not None and _explains(volume, stated):
        return stated, STATED
    recovered = recover_geometry(volume)
    if recovered is not None:
        if stated is not None:
            if _same_slices(stated, recovered):
                return stated, STATED
            warn(
                f"The slices in the sidecar of {name} (every {stated.spacing:.4g} voxels, the first at "
                f"{stated.first_center:.4g}) are not those that it shows (every {recovered.spacing:.4g}, the first at "
                f"{recovered.first_center:.4g}); what it shows is used."
            )
        return recovered, RECOVERED
    if stated is not None and _misfit(volume, stated) < _ROUGHLY:
        return stated, STATED
    if stated is not None:
        warn(f"The slice geometry in the sidecar of {name} does not explain it, and is not used; correct it.")
    return None, "unknown" if stated is None else "unknown (the sidecar's does not explain the volume)"


def _explains(volume: np.ndarray, stated: SliceGeometry) -> bool:
    """Whether a stated geometry explains a volume, and no neighbour, shifted or coarser, does about as well."""
    misfit = _misfit(volume, stated)
    if misfit >= _ROUGHLY:
        return False
    shifted = [replace(stated, first_center=stated.first_center + shift) for shift in (-1.0, -0.5, 0.5, 1.0)]
    # Splines on fine knots contain those on every second or third of them.
    coarser = [
        replace(
            stated,
            spacing=factor * stated.spacing,
            first_center=stated.first_center + skipped * stated.spacing,
            count=(stated.count - skipped - 1) // factor + 1,
        )
        for factor in (2, 3)
        for skipped in range(factor)
        if (stated.count - skipped - 1) // factor >= 3
    ]
    return all(_misfit(volume, rival) > misfit for rival in shifted) and all(
        _misfit(volume, rival) > max(2 * misfit, _COARSE) for rival in coarser
    )


def _same_slices(one: SliceGeometry, other: SliceGeometry) -> bool:
    """Whether two geometries have their slices in the same places, to a tenth of a voxel in the middle."""
    if one.axis != other.axis or abs(one.spacing - other.spacing) > 0.02 * other.spacing:
        return False
    middle = one.centers[one.count // 2]
    return bool(np.abs(other.centers - middle).min() < 0.1)


def _misfit(volume: np.ndarray, geometry: SliceGeometry) -> float:
    """What is left of the volume, relative to it, once it is reduced to slices and up-sampled again."""
    length = volume.shape[geometry.axis]
    matrix = upsampling_matrix(geometry, length)
    rest = np.eye(length) - matrix @ np.linalg.pinv(matrix)
    sample = np.moveaxis(volume, geometry.axis, 0).reshape(length, -1)[:, ::7]
    return float(np.linalg.norm(along(rest, sample, 0)) / np.linalg.norm(sample))


def recover_geometry(volume: np.ndarray, tolerance: float = 2e-3) -> SliceGeometry | None:
    """The axis, spacing and offset of the slices that a volume was cubic-spline up-sampled from.

    Up-sampling from slices ``spacing`` apart leaves cubic polynomials between their centres, so that only the right
    axis, spacing and offset reproduce the volume. The thickness cannot be seen and is taken to equal the spacing.

    Args:
        volume: shape (I, J, K), in any intensity unit.
        tolerance: largest root-mean-square misfit, relative to the volume's own along that axis.

    Returns:
        The geometry, or None where no axis fits: an isotropic scan, a stack rotated before it was up-sampled, another
        kind of interpolation.
    """
    best: tuple[float, SliceGeometry] | None = None
    for axis in range(3):
        found = _inner_columns(volume, axis)
        if found is None:
            continue
        columns, start = found
        spacing, center, misfit = search_knots(columns)
        if misfit < tolerance and (best is None or misfit < best[0]):
            best = misfit, _best_extent(volume, axis, spacing, center + start)
    return best[1] if best else None


def _inner_columns(volume: np.ndarray, axis: int, count: int = 96) -> tuple[np.ndarray, int] | None:
    """Pieces of columns along the axis that hold no air, and the index of their first plane.

    Where there is air, up-sampling may have been clipped at zero, which no spline reproduces. All pieces have the same
    extent, the longest that ``count`` columns reach around the volume's middle: shape (extent, <= count).
    """
    columns = np.moveaxis(volume, axis, 0).reshape(volume.shape[axis], -1)
    inside = columns > 0
    # Beyond the outermost slice centres a volume is flat, which is no spline either.
    inside[: min(6, len(inside) // 8)] = inside[-min(6, len(inside) // 8) :] = False
    middle = int(np.average(np.arange(len(inside)), weights=inside.sum(axis=1) + 1e-9))
    columns, inside = columns[:, inside[middle]], inside[:, inside[middle]]
    above = np.argmin(np.vstack([inside[middle:], np.zeros((1, inside.shape[1]), bool)]), axis=0)
    below = np.argmin(np.vstack([inside[middle::-1], np.zeros((1, inside.shape[1]), bool)]), axis=0)
    reach = np.minimum(above, below)
    deepest = np.argsort(reach, kind="stable")[-4 * count :: 4]
    if len(deepest) < 16 or (extent := int(reach[deepest].min())) < 8:
        return None
    start, stop = middle - extent + 1, middle + extent
    return columns[start:stop, deepest].astype(np.float64), start


def spline_misfit(columns: np.ndarray, spacing: float, center: float) -> float:
    """Relative misfit of the least-squares cubic splines with knots at center + spacing * Z to the columns."""
    frame = _spline_frame(len(columns), spacing, center)
    residual = columns - frame @ (frame.T @ columns)
    # Against what a constant leaves, so that bright flat columns do not make every spacing fit.
    return float(np.linalg.norm(residual) / np.linalg.norm(columns - columns.mean(axis=0)))


@lru_cache(maxsize=512)  # every axis of every scan is tried with the same knots first
def _spline_frame(length: int, spacing: float, center: float) -> np.ndarray:
    """Orthonormal splines with these knots, shape (length, number)."""
    first = center - spacing * (math.ceil(center / spacing) + 4)
    knots = np.arange(first, length - 1 + 5 * spacing, spacing)
    basis = BSpline.design_matrix(np.arange(length, dtype=float), knots, 3).toarray()
    return np.linalg.qr(basis[:, basis.max(axis=0) > 1e-3])[0]


def search_knots(columns: np.ndarray, tolerance: float = 0.02) -> tuple[float, float, float]:
    """Spacing of the knots, one centre, and the misfit; found in a short window, where a wrong spacing cannot drift.

    Columns are of shape (length, count); their misfit is infinite where no spacing keeps it below ``tolerance``.
    """
    window = min(32, len(columns))
    start = (len(columns) - window) // 2
    short = columns[start : start + window]
    # The splines of a finer spacing contain those of its multiples, so the coarsest that fits is the true one.
    for spacing in np.arange(8.0, 1.45, -0.25):
        offsets = np.arange(8) * spacing / 8
        misfits = [spline_misfit(short, spacing, offset) for offset in offsets]
        if min(misfits) > 0.25:
            continue
        found = spacing, offsets[int(np.argmin(misfits))] + start
        # Most are found wrong by a rough look.
        if _refine(short, spacing, found[1] - start, _ROUGH)[2] > _FAR_OFF * tolerance:
            continue
        for span in sorted({min(span, len(columns)) for span in (32, 64, 128, 256)}):
            low = (len(columns) - span) // 2
            *found, misfit = _refine(columns[low : low + span], found[0], found[1] - low)
            found[1] += low
            if misfit > tolerance:
                break
        else:
            return float(found[0]), float(found[1]), misfit
    return 1.0, 0.0, np.inf


def _refine(
    columns: np.ndarray, spacing: float, center: float, accuracy: dict[str, float] = _EXACT
) -> tuple[float, float, float]:
    """Nelder-Mead on spacing and the knot nearest the middle, which hardly depend on each other."""
    start, middle = spacing, center + spacing * round((len(columns) / 2 - center) / spacing)

    def misfit(parameters: np.ndarray) -> float:
        spacing, middle = parameters
        return (
            spline_misfit(columns, spacing, middle % spacing)
            if abs(spacing - start) < 0.3 and spacing > 1.45
            else np.inf
        )

    span = 0.3 * spacing / max(len(columns) / spacing, 4)
    simplex = np.array([[spacing, middle], [spacing + span, middle], [spacing, middle + 0.1 * spacing]])
    found = optimize.minimize(
        misfit,
        simplex[0],
        method="Nelder-Mead",
        options={"initial_simplex": simplex, **accuracy},
    )
    return float(found.x[0]), float(found.x[1]), float(found.fun)


def _best_extent(volume: np.ndarray, axis: int, spacing: float, center: float) -> SliceGeometry:
    """Which knots were slices: the first and last that reproduce the volume's ends best."""
    spacing, center = round(spacing, 3), round(center, 3)
    length = volume.shape[axis]
    columns = np.moveaxis(volume, axis, 0).reshape(length, -1)
    columns = columns[:, :: max(1, columns.shape[1] // 4096)].astype(np.float64)
    first_possible = round(center - spacing * math.floor((center + 0.5) / spacing), 3)
    possible = math.floor((length - 0.5 - first_possible) / spacing) + 1
    scale = np.linalg.norm(columns)
    fits = []
    for skipped in (0, 1):
        for dropped in (0, 1):
            if possible - skipped - dropped < 4:
                continue
            first = round(first_possible + skipped * spacing, 3)
            geometry = SliceGeometry(axis, spacing, spacing, first, possible - skipped - dropped)
            residual = columns - upsample(
                along(np.linalg.pinv(upsampling_matrix(geometry, length)), columns, 0),
                replace(geometry, axis=0),
                length,
            )
            outside = max(0.0, spacing / 2 - 0.5 - first) + max(0.0, geometry.centers[-1] + spacing / 2 - length + 0.5)
            # Ends of air fit any extent: then prefer slices that lie inside the volume, and then more of them.
            misfit = round(float(np.linalg.norm(residual) / scale), 3)
            fits.append((misfit, round(outside, 3), skipped + dropped, geometry))
    return min(fits, key=lambda fit: fit[:3])[3]
