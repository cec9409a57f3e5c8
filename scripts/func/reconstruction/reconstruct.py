"""From a T1w and a T2w scan to the isotropic T2w: the whole reconstruction of one case.

Volumes come in and go out as nibabel images in the scan's own intensities. In between the T2w's slices lie along the
last axis: normalise, run the network, agree with the measured slices, undo the normalisation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import voxel_sizes
from scipy import ndimage

from func.errors import BabyAIError
from func.networks.compact import MULTIPLE
from func.networks.guidance import likelier_profile, network_inputs, t1_offset
from func.networks.patches import count_patches, has_fast_bfloat16, run_patches
from func.networks.weights import Weights
from func.scans.intensity import published_normalise, scale_of, zero_based_scale
from func.scans.nifti import from_ras, image_of, to_ras
from func.slices.geometry import (
    SliceGeometry,
    acquire,
    along,
    make_consistent,
    measured_slices,
    slice_matrix,
    slices_last,
    stack_geometry,
    stated_profile,
    upsample,
    upsampling_matrix,
)
from func.slices.oblique import ObliqueStack, find_oblique_stack
from func.slices.recovery import recover_geometry

Progress = Callable[[int, int], object]
LARGEST_T1_OFFSET = 0.8  # voxels: a T1w farther off the T2w is moved; nearer, its outline is worth more where it is
RECOVERED = "recovered from the volume"  # where the slice geometry came from
PLAUSIBLE_THICKNESS = (0.6, 1.05)  # of the recovered spacing; any other was stated of another grid

# The compact network takes up to this many voxels along an axis at once; larger volumes are cut, overlapping.
_WINDOW = 192
_OVERLAP = 48
_RINGING = 2e-3  # of the brightest voxel: a cubic spline's faint ringing in the air around a brain is no anatomy
_FAINT_ERROR = 0.004  # of the T2w's range: what the network gets wrong even where there is nothing to add
_MARGIN = 6  # voxels of air kept around the head
_MIRRORS = ((), (2,), (0,), (1,))  # axes along which the network sees a case mirrored, a run each; the slices' last
# Half-width of the 90 % interval from the spread of mirrored runs (constant and slope), calibrated with evaluate.py on
# 36 scans of three held-out infants (2 to 5 mm, box). Fitted to two of them it held 81 to 93 % of the errors in the
# third; its correlation with their size is 0.50.
_INTERVAL = (0.0028, 8.92)


@dataclass(frozen=True)
class Reconstruction:
    """One reconstructed T2w.

    Attributes:
        image: float32, in the T2w's own intensities.
        report: what was done and found (plain values, for the JSON sidecar).
        residual: measured slices minus those of the result, on the slices' own grid; None without slice geometry.
        uncertainty: where asked for, the half-width of the interval around each voxel that held nine in ten of the
            true values in infants the bundled weights had not seen.
    """

    image: nib.Nifti1Image
    report: dict
    residual: nib.Nifti1Image | None = None
    uncertainty: nib.Nifti1Image | None = None


def reconstruct(
    t1: nib.Nifti1Image,
    t2: nib.Nifti1Image,
    weights: Weights,
    geometry: SliceGeometry | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    uncertainty: bool = False,
    thickness: float | None = None,
) -> Reconstruction:
    """Reconstruct a T2w that was up-sampled to the T1w's grid.

    Args:
        t1, t2: on one grid of 1 mm voxels, in any orientation.
        weights: of any recipe; ``babyai`` runs the published procedure and nothing else.
        geometry: of the slices behind ``t2``, on its own axes; recovered from the volume where it is None.
        device: ``auto``, or as torch names it.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        progress: called with (windows done, windows in all).
        uncertainty: also estimate where not to trust the result, from four runs of the network instead of one or two,
            whose mean the result then is.
        thickness: of the slices in mm, where their geometry must be recovered, which shows only their spacing; the two
            are taken to be equal where it is None or implausible.

    Raises:
        BabyAIError: the device is not there, or the scans hold nothing to scale intensities by.
    """
    device, precision = choose_device(device, precision)
    network = weights.network.to(device)
    if weights.recipe == "babyai":
        return _reconstruct_published(t1, t2, network, device, precision, progress)

    t1_array, t2_array = _array(t1), _array(t2)
    thickness = None if geometry else thickness
    geometry, source = _explaining_geometry(t2_array, geometry)
    stack = None if geometry else find_oblique_stack(t2_array)
    if stack:
        return _reconstruct_oblique(t1, t2, stack, network, device, precision, progress, uncertainty, thickness)
    if source == RECOVERED:
        geometry = _of_thickness(geometry, thickness, float(voxel_sizes(t2.affine)[geometry.axis]))
    axis = geometry.axis if geometry else int(np.argmin(t2_array.shape))
    turn = slices_last(axis)
    t1_turned, t2_turned = np.transpose(t1_array, turn), np.transpose(t2_array, turn)
    turned = replace(geometry, axis=2) if geometry else None
    slices = measured_slices(t2_turned, turned) if turned else None
    if source == RECOVERED:
        scans = (zero_based_scale(scan).apply(scan) for scan in (t1_turned, slices))
        turned = replace(turned, profile=likelier_profile(*scans, turned))
        geometry = replace(geometry, profile=turned.profile)
    result, residual, interval, checks, seconds = _reconstruct_array(
        t1_turned, t2_turned, slices, turned, network, device, precision, progress, uncertainty
    )

    def turned_back(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
        return image_of(np.ascontiguousarray(np.transpose(array, np.argsort(turn))), affine, t2)

    image = turned_back(result, t2.affine)
    stated = geometry.to_sidecar(float(voxel_sizes(t2.affine)[axis])) if geometry else {}
    report = {"SliceGeometry": {"Source": source, **stated}, "Checks": checks, "Seconds": seconds}
    report["Computed"] = _computed(device, precision, uncertainty)
    residual_image = None if residual is None else turned_back(residual, geometry.affine_in(t2.affine))
    interval_image = None if interval is None else turned_back(interval, t2.affine)
    return Reconstruction(image, report, residual_image, interval_image)


def reconstruct_raw(
    t1: nib.Nifti1Image,
    t2: nib.Nifti1Image,
    weights: Weights,
    sidecar: dict | None = None,
    space: str = "1mm",
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    uncertainty: bool = False,
) -> Reconstruction:
    """Reconstruct a T2w stack as it was acquired, in the T1w's frame.

    The T1w is brought to the stack, not the stack to the T1w: there the slices are planes of the grid, the slice model
    is exact, and the measured slices are used as they are. Only the finished volume is turned into the T1w's frame.

    Args:
        t1: isotropic T1w, any orientation and voxel size.
        t2: thick-slice stack, any orientation, moved against the T1w or not.
        sidecar: BIDS entries of the stack: SliceThickness, SpacingBetweenSlices, SliceEncodingDirection, SliceProfile.
        space: ``1mm`` for the T1w's frame at 1 mm, ``t1`` for the T1w's own grid.

    Raises:
        BabyAIError: the sidecar contradicts the header, or the two scans do not show one head.
    """
    from func.scans.registration import check_same_head, register_rigid, resample

    if weights.recipe == "babyai":
        raise BabyAIError(
            "The published weights need the atlas grid; run scripts/preprocessing.py, or --weights bundled."
        )
    device, precision = choose_device(device, precision)
    sidecar = sidecar or {}
    axis, thickness, spacing = stack_geometry(t2, sidecar)
    started = time.perf_counter()
    registration = register_rigid(t1, t2)
    check_same_head(registration, t1, t2)
    registered = time.perf_counter()

    shape, affine, geometry = _working_grid(t2, axis, thickness, spacing, stated_profile(sidecar, t2))
    slice_shape = (*shape[:2], geometry.count)
    slice_affine = geometry.affine_in(affine)
    slices = resample(_smoothed_in_plane(t2, axis), slice_shape, slice_affine)
    t1_array = resample(t1, shape, affine, np.linalg.inv(registration.matrix))
    offset = t1_offset(*(zero_based_scale(scan).apply(scan) for scan in (t1_array, slices)), geometry)
    if np.linalg.norm(offset) > LARGEST_T1_OFFSET:
        correction = nib.affines.from_matvec(np.eye(3), affine[:3, :3] @ offset)
        registration = replace(registration, matrix=correction @ registration.matrix)
        t1_array = resample(t1, shape, affine, np.linalg.inv(registration.matrix))
    t1_array[t1_array < _RINGING * t1_array.max()] = 0
    result, residual, interval, checks, seconds = _reconstruct_array(
        t1_array, upsample(slices, geometry, shape[2]), slices, geometry, weights.network.to(device), device, precision,
        progress, uncertainty,
    )  # fmt: skip
    frame_shape, frame_affine = t1_frame(t1, space)
    moved = resample(image_of(result, affine, t2), frame_shape, frame_affine, registration.matrix)
    report = {
        "SliceGeometry": {
            "Source": "sidecar" if "SliceThickness" in sidecar else "header",
            "SliceThickness": round(thickness, 4),
            "SpacingBetweenSlices": round(spacing, 4),
            "SliceEncodingDirection": "ijk"[axis],
            "SliceProfile": geometry.profile,
        },
        "Registration": {
            "T1wToT2w": np.round(registration.matrix, 8).tolist(),
            "Similarity": round(registration.similarity, 4),
            "Overlap": round(registration.overlap, 4),
        },
        "Checks": checks,
        "Seconds": {"Registration": round(registered - started, 3), **seconds},
        "Computed": _computed(device, precision, uncertainty),
    }
    residual_image, interval_image = image_of(residual.astype(np.float32), slice_affine, t2), None
    if interval is not None:
        interval = resample(image_of(interval, affine, t2), frame_shape, frame_affine, registration.matrix)
        interval_image = image_of(np.maximum(interval, 0), frame_affine, t1)
    return Reconstruction(image_of(moved, frame_affine, t1), report, residual_image, interval_image)


def _reconstruct_oblique(
    t1: nib.Nifti1Image,
    t2: nib.Nifti1Image,
    stack: ObliqueStack,
    network: torch.nn.Module,
    device: torch.device,
    precision: str,
    progress: Progress | None,
    uncertainty: bool,
    thickness: float | None,
) -> Reconstruction:
    """As :func:`reconstruct`, of slices oblique to the grid: computed along them, and only the gain turned back."""
    from func.scans.registration import resample

    shape, affine, geometry = _grid_along(stack, t2)
    voxel = float(voxel_sizes(affine)[2])
    geometry = _of_thickness(geometry, thickness, voxel)
    t1_array, t2_array = resample(t1, shape, affine), resample(t2, shape, affine)
    t1_array[t1_array < _RINGING * t1_array.max()] = 0
    slices = measured_slices(t2_array, geometry)
    scans = (zero_based_scale(scan).apply(scan) for scan in (t1_array, slices))
    geometry = replace(geometry, profile=likelier_profile(*scans, geometry))
    upsampled = upsample(slices, geometry, shape[2])
    result, residual, interval, checks, seconds = _reconstruct_array(
        t1_array, upsampled, slices, geometry, network, device, precision, progress, uncertainty
    )
    # The T2w itself is not interpolated again.
    gain = resample(image_of(result - upsampled, affine, t2), t2.shape, t2.affine)
    moved = _array(t2) + gain
    if np.asarray(t2.dataobj).min() >= 0:
        np.maximum(moved, 0, out=moved)
    slice_affine = geometry.affine_in(affine)
    report = {
        "SliceGeometry": {
            "Source": f"{RECOVERED}, oblique to its grid",
            "SliceThickness": round(geometry.thickness * voxel, 4),
            "SpacingBetweenSlices": round(geometry.spacing * voxel, 4),
            "SliceProfile": geometry.profile,
            "StackAffine": np.round(slice_affine, 6).tolist(),
            "StackShape": [*shape[:2], geometry.count],
        },
        "Checks": checks,
        "Seconds": seconds,
        "Computed": _computed(device, precision, uncertainty),
    }
    interval_image = None
    if interval is not None:
        interval = resample(image_of(interval, affine, t2), t2.shape, t2.affine)
        interval_image = image_of(np.maximum(interval, 0), t2.affine, t2)
    residual_image = image_of(residual.astype(np.float32), slice_affine, t2)
    return Reconstruction(image_of(moved, t2.affine, t2), report, residual_image, interval_image)


def choose_device(device: str, precision: str) -> tuple[torch.device, str]:
    """The device and precision that ``auto`` stands for here.

    Raises:
        BabyAIError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BabyAIError(f"The device '{device}' is not available here; use --device cpu or auto.") from None
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(chosen) else "float32"
    return chosen, precision


def t1_frame(t1: nib.Nifti1Image, space: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the result's grid: the T1w's own, or its field of view in voxels of 1 mm."""
    sizes = voxel_sizes(t1.affine)
    if space == "t1" or np.abs(sizes - 1).max() < 1e-3:
        return t1.shape, t1.affine
    shape = np.maximum(1, np.round(np.array(t1.shape) * sizes)).astype(int)
    center = (np.array(t1.shape) - 1) / 2
    affine = t1.affine @ nib.affines.from_matvec(np.diag(1 / sizes), center - (shape - 1) / 2 / sizes)
    return tuple(int(n) for n in shape), affine


def _working_grid(
    t2: nib.Nifti1Image, axis: int, thickness: float, spacing: float, profile: str
) -> tuple[tuple[int, int, int], np.ndarray, SliceGeometry]:
    """A 1 mm grid along the stack's axes, the slices last, that holds every slice whole; and the slices in it."""
    sizes = voxel_sizes(t2.affine)
    turn = slices_last(axis)
    margin = int(np.ceil(thickness)) + 1
    in_plane = [max(1, round(t2.shape[a] * sizes[a])) for a in turn[:2]]
    planes = int(np.ceil((t2.shape[axis] - 1) * spacing)) + 2 * margin + 1
    shape = (in_plane[0], in_plane[1], planes)
    # Voxel (i, j, k) of the grid -> voxel of the stack: in-plane the fields of view share their centres.
    matrix, offset = np.zeros((3, 3)), np.zeros(3)
    for column, a in enumerate(turn):
        matrix[a, column] = 1 / sizes[a]
    for column, a in enumerate(turn[:2]):
        offset[a] = (t2.shape[a] - 1) / 2 - (shape[column] - 1) / 2 / sizes[a]
    offset[axis] = -margin / sizes[axis]
    geometry = SliceGeometry(2, thickness, spacing, float(margin), t2.shape[axis], profile)
    return shape, t2.affine @ nib.affines.from_matvec(matrix, offset), geometry


def _grid_along(stack: ObliqueStack, t2: nib.Nifti1Image) -> tuple[tuple[int, int, int], np.ndarray, SliceGeometry]:
    """A grid along the slices, these last, over all of the T2w's field of view; and the slices in it."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in t2.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    reach = (corners - stack.center) @ stack.axes
    low = np.floor(reach.min(axis=0))
    shape = tuple(int(n) for n in np.ceil(reach.max(axis=0)) - low + 1)
    affine = t2.affine @ nib.affines.from_matvec(stack.axes, stack.center + stack.axes @ low)
    first = -low[2] % stack.spacing
    return shape, affine, SliceGeometry.fitting(2, shape[2], stack.spacing, first_center=first)


def _smoothed_in_plane(t2: nib.Nifti1Image, axis: int) -> nib.Nifti1Image:
    """The stack, low-passed where its in-plane voxels are so small that 1 mm voxels would alias."""
    sizes = voxel_sizes(t2.affine)
    sigma = [0.0 if a == axis or sizes[a] > 0.8 else 0.425 * np.sqrt(1 / sizes[a] ** 2 - 1) for a in range(3)]
    return image_of(ndimage.gaussian_filter(_array(t2), sigma), t2.affine, t2) if any(sigma) else t2


def _array(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj, dtype=np.float32)


def _explaining_geometry(t2: np.ndarray, stated: SliceGeometry | None) -> tuple[SliceGeometry | None, str]:
    """The slice geometry to work with, and where it comes from; a stated one counts only if it explains the volume."""
    if stated is not None and _misfit(t2, stated) < 0.05:
        return stated, "sidecar"
    recovered = recover_geometry(t2)
    if recovered is not None:
        return recovered, RECOVERED
    return None, "unknown" if stated is None else "unknown (the sidecar's does not explain the volume)"


def _of_thickness(geometry: SliceGeometry, thickness: float | None, voxel: float) -> SliceGeometry:
    """Recovered slices, of the thickness stated in mm where that is plausible for slices so far apart."""
    low, high = (bound * geometry.spacing for bound in PLAUSIBLE_THICKNESS)
    stated = thickness is not None and low <= thickness / voxel <= high
    return replace(geometry, thickness=thickness / voxel) if stated else geometry


def _misfit(t2: np.ndarray, geometry: SliceGeometry) -> float:
    """What is left of the volume, relative to it, once it is reduced to slices and up-sampled again."""
    length = t2.shape[geometry.axis]
    matrix = upsampling_matrix(geometry, length)
    rest = np.eye(length) - matrix @ np.linalg.pinv(matrix)
    sample = np.moveaxis(t2, geometry.axis, 0).reshape(length, -1)[:, ::7]
    return float(np.linalg.norm(along(rest, sample, 0)) / np.linalg.norm(sample))


def _reconstruct_published(t1, t2, network, device, precision, progress) -> Reconstruction:
    """The published procedure: RAS, symmetric zero padding, p1/p99 with clipping, 32^3 patches, stride 16, mean."""
    started = time.perf_counter()
    arrays = [_array(to_ras(image)) for image in (t1, t2)]
    scale = scale_of(arrays[1])
    inputs = torch.from_numpy(np.stack([published_normalise(array) for array in arrays]))
    total = count_patches(inputs.shape[1:])
    output = run_patches(network, inputs, precision=precision, device=device, progress=_counted(progress, total))
    result = scale.invert(output.numpy()).astype(np.float32)
    report = {
        "SliceGeometry": {"Source": "not used by the published procedure"},
        "Checks": {},
        "Seconds": {"Network": round(time.perf_counter() - started, 3)},
        "Computed": {"Device": str(device), "Precision": precision},
    }
    return Reconstruction(image_of(from_ras(result, t2), t2.affine, t2), report)


def _reconstruct_array(
    t1: np.ndarray,
    upsampled: np.ndarray,
    slices: np.ndarray | None,
    geometry: SliceGeometry | None,
    network: torch.nn.Module,
    device: torch.device,
    precision: str,
    progress: Progress | None,
    uncertainty: bool = False,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, dict, dict]:
    """The compact procedure on arrays with the slices along the last axis.

    Returns:
        The volume; the residual of the slices after correction; where asked for, the half-width of the 90 % interval;
        the checks; the seconds that each part took.
    """
    started = time.perf_counter()
    t1_scale, t2_scale = zero_based_scale(t1), zero_based_scale(upsampled)
    inner = _head_box(t1, upsampled)
    t1_head = t1_scale.apply(t1[inner]).astype(np.float32)
    t2_head = t2_scale.apply(upsampled[inner]).astype(np.float32)
    slices_head = None if slices is None else t2_scale.apply(slices[inner]).astype(np.float32)
    checks, residual, interval, damping = {}, None, None, 0.0
    if geometry is not None:
        offset = t1_offset(t1_head, slices_head, geometry)
        checks["T1wOffset"] = round(float(np.linalg.norm(offset)), 2)
        if checks["T1wOffset"] > LARGEST_T1_OFFSET:
            t1_head = ndimage.shift(t1_head, offset, order=3)
            t1_head[t1_head < _RINGING * t1_head.max()] = 0
    inputs = network_inputs(t1_head, t2_head, slices_head, geometry)
    prepared = time.perf_counter()
    estimates = _estimates(network, inputs, _runs(precision, uncertainty), device, precision, progress)
    estimate = estimates.mean(axis=0)
    computed = time.perf_counter()

    if geometry is not None:
        head, noise = slices_head > 0.02, noise_of(slices_head)
        before = slices_head - acquire(estimate, geometry)
        damping = damping_for(before[head], noise, geometry, t1.shape[2])
        estimate = make_consistent(estimate, slices_head, geometry, damping)
        cubic = make_consistent(t2_head, slices_head, geometry, damping)
        share = _share_to_keep(slices_head, geometry)
        estimate = cubic + share * (estimate - cubic)
        after = slices_head - acquire(estimate, geometry)
        checks |= {
            "NoiseOfSlices": float(np.round(noise, 5)),
            "Damping": float(np.round(damping, 5)),
            "NetworkShare": round(share, 3),
            "SliceResidualBefore": _rms(before[head]),
            "SliceResidualAfter": _rms(after[head]),
            "SliceResidualUnit": "root mean square in the head over the T2w's 99th percentile",
        }
        residual = np.zeros_like(slices)
        residual[inner] = after * (t2_scale.high - t2_scale.low)
    consistent = time.perf_counter()
    if uncertainty:
        if geometry is not None:
            estimates = np.stack([make_consistent(one, slices_head, geometry, damping) for one in estimates])
        interval = np.zeros_like(upsampled)
        interval[inner] = _interval(estimates, t2_head > 0.02) * (t2_scale.high - t2_scale.low)
    weighed = time.perf_counter()
    result = np.array(upsampled, dtype=np.float32)
    result[inner] = t2_scale.invert(estimate)
    if upsampled.min() >= 0 or slices is None or slices.min() >= 0:
        np.maximum(result, 0, out=result)
    seconds = {
        "Preparation": round(prepared - started, 3),
        "Network": round(computed - prepared, 3),
        "Consistency": round(consistent - computed, 3),
        **({"Uncertainty": round(weighed - consistent, 3)} if uncertainty else {}),
    }
    return result, residual, interval, checks, seconds


def _runs(precision: str, uncertainty: bool) -> int:
    """How often the network runs: where it is fast once more than it must, in a mirror; for the uncertainty in all."""
    return len(_MIRRORS) if uncertainty else 2 if precision == "bfloat16" else 1


def _computed(device: torch.device, precision: str, uncertainty: bool) -> dict:
    """What the compact network's report says of the computation."""
    return {"Device": str(device), "Precision": precision, "NetworkRuns": _runs(precision, uncertainty)}


def _estimates(
    network: torch.nn.Module,
    inputs: np.ndarray,
    runs: int,
    device: torch.device,
    precision: str,
    progress: Progress | None,
) -> np.ndarray:
    """What the network makes of the case as it is and seen in mirrors, mirrored back, shape (runs, X, Y, Z).

    Each is as good a guess as the others, and their mean is better.
    """
    estimates = []
    for run, mirror in enumerate(_MIRRORS[:runs]):
        told = progress and (lambda done, total, run=run: progress(run * total + done, runs * total))
        mirrored = np.ascontiguousarray(np.flip(inputs, [1 + axis for axis in mirror]))
        estimates.append(np.flip(_run_compact(network, mirrored, device, precision, told), mirror))
    return np.stack(estimates)


def _interval(estimates: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Half-width of the 90 % interval in the head, zero in the air, from estimates of shape (count, X, Y, Z)."""
    constant, slope = _INTERVAL
    spread = ndimage.gaussian_filter(estimates.std(axis=0), 1.0)
    return np.where(head, constant + slope * spread, 0).astype(np.float32)


def noise_of(slices: np.ndarray) -> float:
    """Standard deviation of the noise in slices, shape (X, Y, count), seen where the anatomy is plainest.

    The in-plane operator of Immerkaer (Computer Vision and Image Understanding 64(2), 1996), averaged over 7 x 7
    voxels; of these averages inside the head a low percentile, since anatomy can only add to them.
    """
    kernel = np.outer([1, -2, 1], [1, -2, 1])[:, :, None] / 6
    head = ndimage.binary_erosion(slices > 0.05, np.ones((9, 9, 1)))
    if head.sum() < 100:
        return 0.0
    response = np.abs(ndimage.convolve(slices, kernel.astype(slices.dtype)))
    local = ndimage.uniform_filter(response, (7, 7, 1))[head]
    # For Gaussian noise the mean of |response| is 0.798 sigma, and the 5th percentile of its local means 0.715 of that.
    return float(np.percentile(local, 5) / (0.798 * 0.715))


def damping_for(residual: np.ndarray, noise: float, geometry: SliceGeometry, length: int) -> float:
    """How far to trust the slices over the estimate: noise variance over the variance of the estimate's own error.

    ``residual``, measured slices minus the estimate's, inside the head, holds both: the estimate's error as the slices
    see it, and the noise.
    """
    gain = float(np.square(slice_matrix(geometry, length)).sum(axis=1).mean())
    error = max(float(np.mean(np.square(residual))) - noise**2, 1e-8) / gain if residual.size else 1e-8
    return min(noise**2 / error, 100.0)


def _share_to_keep(slices: np.ndarray, geometry: SliceGeometry) -> float:
    """The share to keep of what the network changes: about 1, but less where slicing has hardly taken anything.

    In-plane the slices have kept what they lost across; sliced again in-plane, and interpolated, they lose as much once
    more. Of a scan that is soft itself that is less than the network's own faint errors: Wiener's share of the two.
    """
    head, lost = slices > 0.02, []
    for axis in range(2):
        length = slices.shape[axis]
        if length < 4 * geometry.spacing:
            return 1.0
        across = SliceGeometry.fitting(axis, length, geometry.thickness, geometry.spacing, profile=geometry.profile)
        lost.append((slices - upsample(acquire(slices, across), across, length))[head])
    power = float(np.mean(np.square(lost)))
    return power / (power + _FAINT_ERROR**2)


def _rms(values: np.ndarray) -> float:
    return round(float(np.sqrt(np.mean(np.square(values)))), 6) if values.size else 0.0


def _head_box(t1: np.ndarray, t2: np.ndarray) -> tuple[slice, slice, slice]:
    """Where either scan shows a head, in-plane, with a margin; all planes, since slices need them whole."""
    box = []
    for axis in range(2):
        occupied = np.zeros(t1.shape[axis], bool)
        for scan in (t1, t2):
            others = tuple(other for other in range(3) if other != axis)
            occupied |= (np.abs(scan) > 0.01 * np.abs(scan).max()).any(axis=others)
        inside = np.flatnonzero(occupied)
        box.append(slice(max(int(inside[0]) - _MARGIN, 0), int(inside[-1]) + _MARGIN + 1))
    return box[0], box[1], slice(None)


def _run_compact(
    network: torch.nn.Module, inputs: np.ndarray, device: torch.device, precision: str, progress: Progress | None
) -> np.ndarray:
    """The network on the planes that hold anything, in one window if it fits; elsewhere the T2w stays as it is."""
    occupied = np.flatnonzero((np.abs(inputs[:2]) > 0.01).any(axis=(0, 1, 2)))
    first, last = max(int(occupied[0]) - _MARGIN, 0), int(occupied[-1]) + _MARGIN + 1
    part = torch.from_numpy(np.ascontiguousarray(inputs[..., first:last]))
    patch = [min(-(-n // MULTIPLE) * MULTIPLE, _WINDOW) for n in part.shape[1:]]
    stride = [_WINDOW - _OVERLAP] * 3
    total = count_patches(part.shape[1:], patch, stride, "smooth")
    result = inputs[1].copy()
    result[..., first:last] = run_patches(
        network, part, patch, stride, 1, "smooth", precision, device, _counted(progress, total)
    )
    return result


def _counted(progress: Progress | None, total: int) -> Callable[[int], object] | None:
    """A callback for windows just done, from one for (done, total)."""
    if progress is None:
        return None
    done = 0

    def count(windows: int) -> None:
        nonlocal done
        done += windows
        progress(done, total)

    return count
