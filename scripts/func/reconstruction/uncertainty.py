"""Whether an interval around each voxel holds what it promises, and how it had to be changed to do so.

Errors are absolute, in any unit that the half-widths share. :func:`sampled` takes as many voxels from each scan, so
that a large head counts no more than a small one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

COVERAGE = 0.9  # what the interval promises to hold
SAMPLES = 8000  # voxels of a scan that a fit is made from


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
