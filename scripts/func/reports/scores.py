"""How near a reconstruction comes to the truth: PSNR, SSIM, NRMSE and sharpness, with data range and mask stated.

Three regions are scored. The inner brain (:func:`inner_brain`) counts first: T1w and T2w of the public infants were
brain-extracted with one mask, so that near its edge the T1w gives the T2w's outline away, which no whole head does. The
whole brain (:func:`brain_mask`) is scored alike, in the scan's own intensities with the truth's 99th percentile inside
the mask as the data range. :func:`score_volume` counts every voxel, background included, after the published
normalisation, which flatters: most voxels are air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal
from skimage.filters import threshold_multiotsu
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from func.errors import BabyAIError
from func.scans.head import box_around
from func.scans.intensity import scale_of

INNER_DEPTH = 4.0  # mm below the edge of the brain mask, where the inner brain begins
TISSUES = ("dark", "medium", "bright")  # classes of T2w intensity; the bright one is mostly cerebrospinal fluid
SSIM_WINDOW = 7  # voxels; a cube of equal weights, scikit-image's default

# Of the 99th percentile: what is fainter than this is air or the halo that interpolation leaves around a head.
_FOREGROUND = 0.05


@dataclass(frozen=True)
class TissueAgreement:
    """Dice overlap of one tissue in two volumes (1 where equal), and by how many percent its volume differs."""

    tissue: str
    dice: float
    volume_error: float


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
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(_inside(truth, mask), _inside(estimate, mask), data_range=data_range))


def nrmse(truth: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root-mean-square error over the truth's root mean square; nan where the truth is zero everywhere."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(normalized_root_mse(_inside(truth, mask), _inside(estimate, mask), normalization="euclidean"))


def ssim(truth: np.ndarray, estimate: np.ndarray, data_range: float, mask: np.ndarray | None = None) -> float:
    """Mean structural similarity (Wang et al., IEEE Trans. Image Process. 13(4), 2004).

    In windows of 7 voxels along every axis, seven planes deep in a volume.

    Args:
        truth, estimate: of one shape, of at least 7 voxels along every axis.
        data_range: the intensity range, in the images' own unit.
        mask: of that shape; the mean is over the windows centred in it. By default over all that lie in the image.
    """
    if mask is None:
        return float(structural_similarity(truth, estimate, data_range=data_range))
    box = box_around(mask, margin=SSIM_WINDOW)
    _, similarity = structural_similarity(truth[box], estimate[box], data_range=data_range, full=True)
    return float(similarity[mask[box]].mean(dtype=np.float64))


def sharpness(
    truth: np.ndarray, estimate: np.ndarray, mask: np.ndarray, axis: int, spacing: float, voxel_size: float = 1.0
) -> float:
    """Energy of the detail that slices cannot carry, in the estimate over that in the truth.

    Detail is what varies across the slices faster than their Nyquist frequency, 1 / (2 spacing), taken by a zero-phase
    Butterworth filter of order 4. 0 is as blurred as the slices, 1 as sharp as the truth; more is noise or invention.

    Args:
        truth, estimate: shape (I, J, K).
        mask: shape (I, J, K); where the energy is counted.
        axis: array axis across the slices.
        spacing: distance between the centres of neighbouring slices, mm.
        voxel_size: of the volumes along that axis, mm.

    Returns:
        The ratio; nan where the slices are no farther apart than the voxels.
    """
    cutoff = voxel_size / spacing  # of the grid's own Nyquist frequency
    if cutoff >= 1:
        return float("nan")
    high_pass = signal.butter(4, cutoff, "highpass", output="sos")
    box = box_around(mask, margin=16)
    energy = [
        np.square(signal.sosfiltfilt(high_pass, array[box], axis=axis)[mask[box]]).sum() for array in (estimate, truth)
    ]
    return float(energy[0] / energy[1]) if energy[1] else float("nan")


def tissue_agreement(truth: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> list[TissueAgreement]:
    """How alike truth and estimate are segmented: three classes of intensity, each volume by thresholds of its own.

    The thresholds are Otsu's for three classes (Liao et al., J. Inf. Sci. Eng. 17(5), 2001). A mixture of Gaussians
    instead put one class into both tails of another where grey and white matter differ little, at 6 months.

    Args:
        truth, estimate: shape (I, J, K).
        mask: shape (I, J, K); where they are segmented.

    Returns:
        One for each of TISSUES; nan for a class that the truth does not have.

    Raises:
        BabyAIError: a volume holds fewer than three intensities inside the mask.
    """
    try:
        classes = [np.digitize(array[mask], threshold_multiotsu(array[mask])) for array in (truth, estimate)]
    except ValueError:
        raise BabyAIError("A volume is too plain to tell tissues apart in it; check the scan.") from None
    found = []
    for number, tissue in enumerate(TISSUES):
        true, estimated = (segmented == number for segmented in classes)
        dice = 2 * (true & estimated).sum() / (true.sum() + estimated.sum())
        found.append(TissueAgreement(tissue, float(dice), float(100 * (estimated.sum() / true.sum() - 1))))
    return found


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
    box = box_around(head)
    pieces, _ = ndimage.label(head[box])
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    mask = np.zeros(truth.shape, bool)
    mask[box] = ndimage.binary_fill_holes(pieces == sizes.argmax())
    return mask


def inner_brain(
    mask: np.ndarray, voxel_sizes: Sequence[float] = (1.0, 1.0, 1.0), depth: float = INNER_DEPTH
) -> np.ndarray:
    """The part of a brain mask that lies ``depth`` mm or more from its edge.

    Where the mask is cut off by the field of view there is no edge of the brain.

    Args:
        mask: shape (I, J, K), from :func:`brain_mask`.
        voxel_sizes: mm, along the three axes.
        depth: mm from the nearest voxel outside the mask; 0 gives the mask itself.

    Returns:
        Boolean array of the same shape.

    Raises:
        BabyAIError: nothing lies so deep.
    """
    if mask.all():
        return mask.copy()
    inner = np.zeros_like(mask)
    if mask.any():
        box = box_around(mask, margin=1)
        inner[box] = mask[box] & (ndimage.distance_transform_edt(mask[box], sampling=voxel_sizes) >= depth)
    if not inner.any():
        raise BabyAIError(f"No part of the brain lies {depth:g} mm or more below its edge; choose a smaller --depth.")
    return inner


def _air(volume: np.ndarray) -> float:
    faces = [np.take(volume, index, axis).ravel() for axis in range(3) for index in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def _inside(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return (array if mask is None else array[mask]).astype(np.float64)
