"""Agreement with the measured slices: how noisy they are, how far to trust them, and the correction.

Arrays have the slices stacked along the last axis, in network units (air 0, the T2w's 99th percentile 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from func.scans.head import box_around
from func.slices.geometry import SliceGeometry, acquire, make_consistent, slice_matrix, upsample

HEAD = 0.02  # what is brighter is head
_DARK = 0.05  # what is brighter is head for sure
_LEAST_AREA = 1500  # voxels of head in the largest slice: in less the slices of a head may differ by anything
_BRIGHTNESS = 0.55  # of that of the slices beside it: what is darker is no anatomy
_FAINT_ERROR = 0.004  # what the network gets wrong even where there is nothing to add


@dataclass(frozen=True)
class Agreement:
    """How a volume was made to agree with measured slices.

    Attributes:
        noise: standard deviation of the noise in the slices.
        damping: noise variance over the variance of the network's error, see :func:`damping_for`.
        share: how much of what the network changes was kept, see :func:`share_to_keep`.
        before, after: measured slices minus those of the volume, shape (X, Y, count), before and after the correction.
        head: where the slices show a head, same shape.
    """

    noise: float
    damping: float
    share: float
    before: np.ndarray
    after: np.ndarray
    head: np.ndarray

    def checks(self) -> dict:
        """Plain values for the JSON sidecar."""
        return {
            "NoiseOfSlices": round(self.noise, 5),
            "Damping": round(self.damping, 5),
            "NetworkShare": round(self.share, 3),
            "SliceResidualBefore": rms(self.before[self.head]),
            "SliceResidualAfter": rms(self.after[self.head]),
            "SliceResidualUnit": "root mean square in the head over the T2w's 99th percentile",
        }


def agree_with_slices(
    estimate: np.ndarray,
    upsampled: np.ndarray,
    slices: np.ndarray,
    geometry: SliceGeometry,
    left_out: Sequence[int] = (),
) -> tuple[np.ndarray, Agreement]:
    """The network's estimate, made to agree with the measured slices as far as their noise allows.

    Args:
        estimate: what the network proposes, shape (X, Y, Z).
        upsampled: the slices, cubic up-sampled to the same grid: what is kept where the network has nothing to add.
        slices: the measured slices, shape (X, Y, geometry.count).
        geometry: of the slices, along axis 2.
        left_out: numbers of slices that are not to be agreed with.

    Returns:
        The volume, shape (X, Y, Z), and how it agrees.
    """
    if left_out:
        # What the estimate shows there already asks for no correction.
        slices = slices.copy()
        slices[..., list(left_out)] = acquire(estimate, geometry)[..., list(left_out)]
    head, noise = slices > HEAD, noise_of(slices)
    before = slices - acquire(estimate, geometry)
    damping = damping_for(before[head], noise, geometry, estimate.shape[2])
    share = share_to_keep(slices, geometry)
    estimate, cubic = (make_consistent(volume, slices, geometry, damping) for volume in (estimate, upsampled))
    volume = cubic + share * (estimate - cubic)
    return volume, Agreement(noise, damping, share, before, slices - acquire(volume, geometry), head)


def noise_of(slices: np.ndarray) -> float:
    """Standard deviation of the noise in slices, shape (X, Y, count), seen where the anatomy is plainest.

    The in-plane operator of Immerkaer (Computer Vision and Image Understanding 64(2), 1996), averaged over 7 x 7
    voxels; of these averages inside the head a low percentile, since anatomy can only add to them.
    """
    bright = slices > _DARK
    # Only where there is a head; what lies around its box does not count.
    box = box_around(bright)
    bright, slices = bright[box], slices[box]
    # What binary_erosion gives, in a fifth of the time.
    head = ndimage.minimum_filter(bright.astype(np.uint8), (9, 9, 1), mode="constant").astype(bool)
    if head.sum() < 100:
        return 0.0
    response = slices / 6
    for axis in range(2):
        response = ndimage.correlate1d(response, [1, -2, 1], axis)
    response = np.abs(response)
    local = ndimage.uniform_filter(response, (7, 7, 1))[head]
    # For Gaussian noise the mean of |response| is 0.798 sigma, and the 5th percentile of its local means 0.715 of that.
    return float(np.percentile(local, 5) / (0.798 * 0.715))


def bad_slices(slices: np.ndarray) -> list[int]:
    """Numbers, from 0, of slices that are black, or far darker or brighter than the slices to both sides of them.

    What is compared is the mean over where slices to both sides show a head, of two slices to each side, so that two
    dark neighbours are found as well. Where that is less than a tenth of the largest slice, nothing is judged.

    Args:
        slices: shape (X, Y, count), in voxels of about 1 mm.
    """
    slices = np.ascontiguousarray(np.moveaxis(slices, 2, 0))
    heads = slices > _DARK
    areas, found = heads.sum(axis=(1, 2)), []
    if areas.max() < _LEAST_AREA:
        return found
    for number in range(1, len(slices) - 1):
        below, above = slice(max(number - 2, 0), number), slice(number + 1, number + 3)
        head = heads[below].any(axis=0) & heads[above].any(axis=0)
        if head.sum() < 0.1 * areas.max():
            continue
        own, *sides = (slices[part][..., head].mean(axis=-1) for part in (number, below, above))
        darker, brighter = sorted(side.max() for side in sides)
        if own < _BRIGHTNESS * darker or own > brighter / _BRIGHTNESS:
            found.append(number)
    return found


def damping_for(residual: np.ndarray, noise: float, geometry: SliceGeometry, length: int) -> float:
    """How far to trust the slices over the estimate: noise variance over the variance of the estimate's own error.

    Args:
        residual: measured slices minus the estimate's, inside the head, shape (voxels,). It holds both: the estimate's
            error as the slices see it, and the noise.
        noise: standard deviation of the noise in the slices.
        geometry: of the slices.
        length: number of planes of the estimate's grid.
    """
    gain = float(np.square(slice_matrix(geometry, length)).sum(axis=1).mean())
    error = max(float(np.mean(np.square(residual))) - noise**2, 1e-8) / gain if residual.size else 1e-8
    return min(noise**2 / error, 100.0)


def share_to_keep(slices: np.ndarray, geometry: SliceGeometry) -> float:
    """The share to keep of what the network changes: about 1, but less where slicing has hardly taken anything.

    In-plane the slices have kept what they lost across; sliced again in-plane, and interpolated, they lose as much once
    more. Of a scan that is soft itself that is less than the network's own faint errors: Wiener's share of the two.
    """
    head, lost = slices > HEAD, []
    for axis in range(2):
        length = slices.shape[axis]
        if length < 4 * geometry.spacing:
            return 1.0
        across = SliceGeometry.fitting(axis, length, geometry.thickness, geometry.spacing, profile=geometry.profile)
        lost.append((slices - upsample(acquire(slices, across), across, length))[head])
    power = float(np.mean(np.square(lost)))
    return power / (power + _FAINT_ERROR**2)


def rms(values: np.ndarray) -> float:
    """Root mean square of values of any shape, to six digits; 0 of none."""
    return round(float(np.sqrt(np.mean(np.square(values)))), 6) if values.size else 0.0
