"""The interval around each voxel that should hold nine in ten of the true values, and whether it does.

The network sees a case as it is and in three mirrors; where the four runs disagree, the interval is wide. How wide was
calibrated on scans with a truth. Errors are absolute, in any unit that the half-widths share. :func:`sampled` takes as
many voxels from each scan, so that a large head counts no more than a small one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

MEANING = "Half-width of the interval that held nine in ten of the true values in infants not trained on"
COVERAGE = 0.9  # what the interval promises to hold
# Half-width from the spread of mirrored runs (constant and slope), calibrated with evaluate.py on 36 scans of three
# held-out infants (2 to 5 mm, box) and earlier weights. Of the large network it holds 93 to 99 % of the errors of 15
# scans. A fit to these would be 0.71 times as wide and, with the infant of 12 months left out, hold 83 % of that
# infant's: so it stays wide.
_INTERVAL = (0.0028, 8.92)
SAMPLES = 8000  # voxels of a scan that a fit is made from


def half_width(estimates: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Half-width of the 90 % interval in the head, zero in the air.

    Args:
        estimates: the volume that each run of the network gave, shape (runs, X, Y, Z), in network units.
        head: where the head is, shape (X, Y, Z).

    Returns:
        float32 array of shape (X, Y, Z), in network units.
    """
    constant, slope = _INTERVAL
    spread = ndimage.gaussian_filter(estimates.std(axis=0), 1.0)
    return np.where(head, constant + slope * spread, 0).astype(np.float32)


def coverage(errors: np.ndarray, widths: np.ndarray) -> float:
    """Share of the errors that lie within their half-widths; both of shape (voxels,)."""
    return float(np.mean(errors <= widths))


def correlation(errors: np.ndarray, widths: np.ndarray) -> float:
    """Pearson's correlation of errors and half-widths, both of shape (voxels,); nan where either never varies."""
    if np.ptp(errors) == 0 or np.ptp(widths) == 0:
        return float("nan")
    return float(np.corrcoef(errors, widths)[0, 1])


def sampled(values: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """``count`` of the values, shape (voxels,), evenly spread; of arrays of one length, those at the same places."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)]


def stretch(errors: np.ndarray, widths: np.ndarray) -> float:
    """By which factor all half-widths had to be multiplied to hold 90 % of the errors; half-widths are above zero."""
    return float(np.quantile(errors / widths, COVERAGE))


def refit(errors: np.ndarray, widths: np.ndarray) -> tuple[float, float]:
    """The line (constant, factor) for which constant + factor * width holds 90 % of the errors, narrow and wide alike.

    Linear quantile regression (Koenker and Bassett, Econometrica 46(1), 1978): the least pinball loss.
    """
    unit = float(np.median(widths))
    scaled_errors, scaled_widths = errors / unit, widths / unit

    def loss(line: np.ndarray) -> float:
        outside = scaled_errors - line[0] - line[1] * scaled_widths
        return float(np.mean(np.maximum(COVERAGE * outside, (COVERAGE - 1) * outside)))

    start = np.array([0.0, stretch(errors, widths)])
    simplex = start + np.array([[0, 0], [0.2, 0], [0, 0.3]])
    best = minimize(
        loss, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7, "initial_simplex": simplex}
    )
    return float(best.x[0] * unit), float(best.x[1])


def coverage_when_left_out(by_subject: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Coverage in each subject of the line that was fitted to all the others.

    Args:
        by_subject: errors and half-widths of each subject, both of shape (voxels,).

    Returns:
        Share of errors held by subject; empty where there is only one subject.
    """
    found = {}
    for left_out, (errors, widths) in by_subject.items():
        others = [pair for subject, pair in by_subject.items() if subject != left_out]
        if others:
            constant, factor = refit(*(np.concatenate(parts) for parts in zip(*others, strict=True)))
            found[left_out] = coverage(errors, constant + factor * widths)
    return found
