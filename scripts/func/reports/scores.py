"""How near a reconstruction comes to the truth: PSNR, SSIM and NRMSE, with data range and mask stated.

Two ways of scoring a volume are in use here. :func:`score_brain` counts what lies inside the brain, in the scan's own
intensities, with the truth's 99th percentile there as the data range. :func:`score_volume` counts every voxel,
background included, after the published normalisation, which flatters: most voxels are air.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from func.errors import BabyAIError
from func.scans.intensity import scale_of

SSIM_WINDOW = 7  # voxels; a cube of equal weights, as scikit-image takes it by default
_K1, _K2 = 0.01, 0.03  # Wang et al., IEEE Trans. Image Process. 13(4), 2004

# Of the 99th percentile: what is fainter than this is air or the halo that interpolation leaves around a head.
_FOREGROUND = 0.05


@dataclass(frozen=True)
class Scores:
    """PSNR in dB, mean SSIM (1 where equal) and NRMSE (0 where equal) of one volume."""

    psnr: float
    ssim: float
    nrmse: float


def score_brain(truth: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None) -> Scores:
    """Scores inside the brain (or whatever mask is given), in the scan's own intensities.

    The data range is the 99th percentile of the truth inside the mask, so that a few bright voxels of fat or vessel do
    not raise the PSNR.

    Raises:
        BabyAIError: the truth holds no head, or the mask no voxel.
    """
    mask = brain_mask(truth) if mask is None else mask
    if not mask.any():
        raise BabyAIError("The brain mask is empty; check the mask.")
    return _scores(truth, estimate, float(np.percentile(truth[mask], 99)), mask)


def score_volume(truth: np.ndarray, estimate: np.ndarray) -> Scores:
    """Scores over the whole volume, with the published normalisation and a data range of 1.

    Both volumes go through the truth's percentiles, so that a wrong scale counts as an error. To give each its own
    would mostly compare the faint ringing in the air around the head, which half doubles the voxels above zero.

    Raises:
        BabyAIError: the truth has no voxel above zero.
    """
    scale = scale_of(truth)
    truth, estimate = (np.clip(scale.apply(array), 0, 1) for array in (truth, estimate))
    return _scores(truth, estimate, 1.0, None)


def _scores(truth: np.ndarray, estimate: np.ndarray, data_range: float, mask: np.ndarray | None) -> Scores:
    return Scores(
        psnr(truth, estimate, data_range, mask), ssim(truth, estimate, data_range, mask), nrmse(truth, estimate, mask)
    )


def psnr(truth: np.ndarray, estimate: np.ndarray, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB; infinite where the two agree."""
    error = _mean_square(_inside(estimate, mask) - _inside(truth, mask))
    return float(10 * np.log10(data_range**2 / error)) if error else float("inf")


def nrmse(truth: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root-mean-square error over the truth's root mean square."""
    error, signal = _mean_square(_inside(estimate, mask) - _inside(truth, mask)), _mean_square(_inside(truth, mask))
    return float(np.sqrt(error / signal)) if signal else float("nan")


def ssim(truth: np.ndarray, estimate: np.ndarray, data_range: float, mask: np.ndarray | None = None) -> float:
    """Mean structural similarity (Wang et al., 2004) in 3-D windows of 7 x 7 x 7 voxels.

    The same numbers as scikit-image's ``structural_similarity(truth, estimate, data_range=data_range)``, from a
    fraction of its memory.

    Args:
        truth, estimate: volumes of shape (I, J, K).
        data_range: the intensity range, in the volumes' own unit.
        mask: shape (I, J, K); the mean is over the windows centred in it. By default over all that lie in the volume.
    """
    radius = SSIM_WINDOW // 2
    if mask is None:
        mask = np.zeros(truth.shape, bool)
        mask[radius:-radius, radius:-radius, radius:-radius] = True
    box = _bounding_box(mask, margin=radius)
    similarity = _ssim_map(*(np.float32(array[box] / data_range) for array in (truth, estimate)))
    return float(similarity[mask[box]].mean(dtype=np.float64))


def _ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SSIM at every voxel, for volumes whose data range is 1."""
    samples = SSIM_WINDOW**3
    unbiased = samples / (samples - 1)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    covariance = unbiased * (_window_mean(x * y) - product)
    variances = unbiased * (_window_mean(x * x + y * y) - squares)
    return (2 * product + _K1**2) * (2 * covariance + _K2**2) / ((squares + _K1**2) * (variances + _K2**2))


def _window_mean(array: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(array, SSIM_WINDOW)


def brain_mask(truth: np.ndarray) -> np.ndarray:
    """The head in a volume, without the air around it: of a brain-extracted scan, the brain.

    The air may have any intensity; it is taken from the volume's six faces. What differs from it by more than a
    twentieth of the 99th percentile is head, of which the largest piece is kept and its holes are filled.

    Args:
        truth: shape (I, J, K), in any intensity unit.

    Returns:
        Boolean array of the same shape.

    Raises:
        BabyAIError: the volume holds nothing but air.
    """
    contrast = np.abs(truth - _air(truth))
    if not contrast.any():
        raise BabyAIError("A volume holds nothing but air, so that there is no brain to score; check the scan.")
    head = contrast > _FOREGROUND * np.percentile(contrast[contrast > 0], 99)
    box = _bounding_box(head, margin=0)
    pieces, _ = ndimage.label(head[box])
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    mask = np.zeros(truth.shape, bool)
    mask[box] = ndimage.binary_fill_holes(pieces == sizes.argmax())
    return mask


def _air(volume: np.ndarray) -> float:
    faces = [np.take(volume, index, axis).ravel() for axis in range(3) for index in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def _bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices around a mask, with a margin where the volume has room for it."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(occupied[0] - margin, 0), occupied[-1] + margin + 1))
    return tuple(box)


def _inside(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return (array if mask is None else array[mask]).astype(np.float64)


def _mean_square(array: np.ndarray) -> float:
    return float(np.mean(np.square(array)))
