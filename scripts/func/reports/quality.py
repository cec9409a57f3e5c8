"""How good an input is: numbers of a T2w stack and its T1w, and a plain warning for each that is out of range.

Everything is measured on the T2w's own slices, which a cubic up-sampled scan still holds, with the T1w brought to the
same places. The numbers tell whether to look twice; none of them tells that a reconstruction is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from func.networks.alignment import LARGEST_T1_OFFSET
from func.reconstruction.consistency import noise_of
from func.scans.intensity import zero_based_scale
from func.scans.nifti import array_of
from func.slices.filters import smooth
from func.slices.geometry import AXIS_ACROSS, SliceGeometry, acquire, measured_slices, slices_last
from func.slices.recovery import recover_geometry

# The bundled weights were trained on slices like these, in mm.
TRAINED_THICKNESS = (2.0, 6.0)
TRAINED_GAP = 0.25  # of the thickness
MOST_CORRELATED = 0.75  # T1w and T2w of infants in slices of 2 to 6 mm: -0.79 to 0.26
HEAD_VOLUME = (100.0, 6500.0)  # ml: the brain of a preterm infant, and an adult's head with its neck
# Deep in the head cerebrospinal fluid is the dark end of a T1w and the bright end of a T2w. T2w skewness less T1w
# skewness: of eight brains and two whole heads 0.4 to 4, of an average of many infants -1.1; exchanged the negative.
LEAST_SKEWNESS = -1.5
LOWEST_SIGNAL_TO_NOISE = 15.0
# Thick slices differ from their neighbours by anatomy as well: mm, and share of the distance between slices. About
# twice the most that infants lying still gave.
LARGEST_EVEN_ODD_SHIFT = (0.2, 0.06)
LARGEST_EVEN_ODD_INTENSITY = 3.0  # percent
LOWEST_OVERLAP = 0.93
LARGEST_OBLIQUENESS = 20.0  # degrees

_STEP = 2  # voxels in-plane: T1w and T2w are compared at every second
_FOREGROUND = 0.05  # of the 99th percentile, as in func.reports.scores
_DEEP = 15.0  # mm below the surface, or half the way in
_BONE = (2.0, 12.0)  # mm below the surface of a head
_LEAST_BONE = 0.045  # of what lies there: dark voxels, in whole heads 0.07 to 0.1, in brains 0 to 0.03
_SMOOTHING = 2.0  # mm, standard deviation in-plane, of slices that are compared with their neighbours
_FULL_SLICE = 0.5  # slices with less head than this share of the fullest one say little about motion


@dataclass(frozen=True)
class _Stack:
    """A T2w's slices along the last axis, shape (X, Y, count), and the T1w at every second voxel in-plane of them.

    Both are 0 to about 1. ``t1`` is None where there is no T1w, and NaN beyond its field of view; ``matrix`` maps the
    T2w's voxels to world mm; ``thickness`` (mm) is None where the slices are not known, and the planes of the volume
    stand for them.
    """

    t1: np.ndarray | None
    t2: np.ndarray
    matrix: np.ndarray
    thickness: float | None

    @property
    def sizes(self) -> np.ndarray:
        return nib.affines.voxel_sizes(self.matrix)


def quality_of(t1: nib.Nifti1Image | None, t2: nib.Nifti1Image, report: dict) -> tuple[dict, list[str]]:
    """Numbers of a pair's quality, and what is out of range.

    Args:
        t1, t2: as read: on one grid, or raw where ``report`` holds a ``Registration``; ``t1`` None where there is none.
        report: of the reconstruction (:class:`func.reconstruction.Reconstruction`), which knows the slices.

    Returns:
        Plain values for the JSON sidecar (lengths in mm, volumes in ml, intensity differences in percent; None for
        what cannot be measured here), and warnings, each a sentence.
    """
    stated = report.get("SliceGeometry", {})
    if "StackAffine" in stated:
        stack = _oblique_stack(t1, t2, stated)
    elif "Registration" in report or ("SliceEncodingDirection" in stated and "FirstSliceCenter" not in stated):
        stack = _raw_stack(t1, t2, report)
    else:
        stack = _grid_stack(t1, t2, report)
    offset = {"T1wOffset": report.get("Checks", {}).get("T1wOffset")}
    quality = {**_slicing(stack), **_noise_and_motion(stack), **_likeness(stack), **offset}
    quality = {key: round(value, 4) if isinstance(value, float) else value for key, value in quality.items()}
    # Halves that lie apart matter no more once each slice has a place of its own.
    undone = {"EvenOddShift": None} if report.get("Motion", {}).get("Found") else {}
    return quality, warnings_of(quality | undone)


def warnings_of(quality: dict) -> list[str]:
    """A sentence for each number that is out of range; numbers that are missing or None give none."""
    known = {key: value for key, value in quality.items() if value is not None}
    return [*_slice_warnings(known), *_offset_warnings(known), *_motion_warnings(known), *_contrast_warnings(known)]


def is_stripped(image: nib.Nifti1Image) -> bool:
    """Whether a scan shows a brain without skull and scalp.

    The air around it is exactly zero then. It is so in some whole heads as well; but these have dark bone, and air in
    its cavities, below their surface.
    """
    sizes = nib.affines.voxel_sizes(image.affine)
    steps = np.maximum(1, np.round(1.5 / sizes)).astype(int)
    array = np.abs(array_of(image)[tuple(slice(None, None, step) for step in steps)])
    air = array < 0.02 * np.percentile(array, 99.5)
    if not (air.any() and (array[air] == 0).mean() > 0.5):
        return False
    sizes = sizes * steps
    across = int(np.argmax(sizes))
    darkest = 0.1 * np.percentile(array[array > 0], 95)
    head = ndimage.binary_opening(array > darkest)
    head = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(head, across, 0)], axis=across)
    depth = _depth(np.pad(head, 1), sizes)[1:-1, 1:-1, 1:-1]
    below = (depth > _BONE[0]) & (depth < _BONE[1])
    return not below.any() or bool((array[below] < darkest).mean() < _LEAST_BONE)


def _depth(head: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How many mm each voxel lies below the head's surface; what the field of view cuts off is no surface."""
    return ndimage.distance_transform_edt(head, sampling=sizes) if not head.all() else np.full(head.shape, np.inf)


def _slice_warnings(known: dict) -> list[str]:
    if known.get("SliceThickness") is None:
        return [
            "The slices behind this T2w are not known, so that the result could not be made to agree with them; give "
            "SliceThickness, SpacingBetweenSlices, SliceEncodingDirection and FirstSliceCenter in its sidecar, or "
            "reconstruct the scan as it was acquired."
        ]
    found = []
    thickness, spacing = known["SliceThickness"], known["SpacingBetweenSlices"]
    low, high = TRAINED_THICKNESS
    if not 0.9 * low <= thickness <= 1.05 * high:
        found.append(
            f"Slices of {thickness:.3g} mm are outside the {low:g} to {high:g} mm that the weights were trained on; "
            "check the thickness, and look twice at fine structures."
        )
    if spacing > (1.05 + TRAINED_GAP) * thickness:
        found.append(
            f"Between slices of {thickness:.3g} mm lie gaps of {spacing - thickness:.3g} mm: what is in them was never "
            "measured but inferred from the T1w; look twice at small structures there."
        )
    if thickness > 1.05 * spacing:
        found.append(
            f"Slices of {thickness:.3g} mm lie {spacing:.3g} mm apart, so that each shows a part of the next; where "
            "they were not acquired so, correct SliceThickness."
        )
    if known["Obliqueness"] > LARGEST_OBLIQUENESS:
        found.append(
            f"The slices are tilted by {known['Obliqueness']:.0f} degrees against the {known['Plane']} plane; check "
            "the orientation of the scan."
        )
    return found


def _offset_warnings(known: dict) -> list[str]:
    if known.get("T1wOffset", 0) <= LARGEST_T1_OFFSET:
        return []
    return [
        f"The T1w lay {known['T1wOffset']:.1f} mm off the T2w and was moved onto it for the reconstruction; register "
        "the two scans more exactly, and check in the figure that their edges agree."
    ]


def _motion_warnings(known: dict) -> list[str]:
    found = []
    if known.get("SignalToNoise", np.inf) < LOWEST_SIGNAL_TO_NOISE:
        found.append(
            f"The T2w is noisy (signal-to-noise ratio {known['SignalToNoise']:.0f}), so that fine detail is uncertain; "
            "--uncertainty maps where."
        )
    fixed, share = LARGEST_EVEN_ODD_SHIFT
    if known.get("EvenOddShift", 0) > fixed + share * known.get("SpacingBetweenSlices", 0):
        found.append(
            f"Even and odd slices lie {known['EvenOddShift']:.2g} mm apart, turns included: the infant probably moved "
            "between the two halves of an interleaved scan; look for jagged edges across the slices."
        )
    if known.get("EvenOddIntensity", 0) > LARGEST_EVEN_ODD_INTENSITY:
        found.append(
            f"Even and odd slices differ in brightness by {known['EvenOddIntensity']:.2g} %, as after too short a "
            "repetition time; look for stripes across the slices."
        )
    return found


def _contrast_warnings(known: dict) -> list[str]:
    found = []
    if known.get("Overlap", 1) < LOWEST_OVERLAP:
        found.append(
            f"T1w and T2w overlap by only {100 * known['Overlap']:.0f} %: they are not aligned, one of them does not "
            "cover the head, or only one of them was brain-extracted; check in the figure that their edges agree."
        )
    if known.get("Correlation", 0) > MOST_CORRELATED:
        found.append(
            f"T1w and T2w look alike ({known['Correlation']:.2f} correlated); check that they are not the same scan, "
            "or of the same contrast."
        )
    if known.get("T2wSkewness", 0) - known.get("T1wSkewness", 0) < LEAST_SKEWNESS:
        found.append(
            "T1w and T2w seem to be exchanged: deep in the head the T1w has bright spots and the T2w dark ones, where "
            "cerebrospinal fluid should be dark in the T1w and bright in the T2w; check which is which."
        )
    low, high = HEAD_VOLUME
    if not low <= known.get("HeadVolume", low) <= high:
        found.append(
            f"The head fills {known['HeadVolume']:.0f} ml, unlike any infant's or adult's; check the voxel sizes."
        )
    return found


def _grid_stack(t1: nib.Nifti1Image | None, t2: nib.Nifti1Image, report: dict) -> _Stack:
    """From scans on one grid: the slices behind the T2w, and the T1w seen through them."""
    t1_array, t2_array = t1 and array_of(t1), array_of(t2)
    stated = report.get("SliceGeometry", {})
    geometry = SliceGeometry.from_sidecar(stated, t2)
    if geometry is None and str(stated.get("Source", "")).startswith("not used"):
        geometry = recover_geometry(t2_array)
    sizes = nib.affines.voxel_sizes(t2.affine)
    if geometry is None:
        axis = int(np.argmin(t2.shape))
        return _scaled(_every_second(t1_array, axis), t2_array, t2.affine, axis, None)
    slices, thickness = measured_slices(t2_array, geometry), geometry.thickness * sizes[geometry.axis]
    t1_seen = None if t1 is None else _every_second(acquire(t1_array, geometry), geometry.axis)
    return _scaled(t1_seen, slices, geometry.affine_in(t2.affine), geometry.axis, thickness)


def _raw_stack(t1: nib.Nifti1Image | None, t2: nib.Nifti1Image, report: dict) -> _Stack:
    """From scans as acquired: the stack as it is, and the T1w at its voxels."""
    stated, t1_seen = report["SliceGeometry"], None
    axis = "ijk".index(stated["SliceEncodingDirection"][0])
    if t1:
        to_t1 = np.linalg.inv(np.array(report["Registration"]["T1wToT2w"]) @ t1.affine) @ t2.affine
        steps = _steps(axis)
        shape = tuple(-(-np.array(t2.shape) // steps))
        place = to_t1[:3, :3] * steps, to_t1[:3, 3]
        t1_seen = ndimage.affine_transform(array_of(t1), *place, shape, order=1, cval=np.nan)
    return _scaled(t1_seen, array_of(t2), t2.affine, axis, stated["SliceThickness"])


def _oblique_stack(t1: nib.Nifti1Image | None, t2: nib.Nifti1Image, stated: dict) -> _Stack:
    """From scans on one grid that the slices are oblique to: both scans where the slices lie."""
    matrix = np.array(stated["StackAffine"])
    to_grid = np.linalg.inv(t2.affine) @ matrix
    t1_seen, t2_seen = (
        image
        and ndimage.affine_transform(array_of(image), to_grid[:3, :3], to_grid[:3, 3], stated["StackShape"], order=3)
        for image in (t1, t2)
    )
    return _scaled(_every_second(t1_seen, 2), t2_seen, matrix, 2, stated["SliceThickness"])


def _steps(axis: int) -> np.ndarray:
    """How many voxels T1w and T2w are compared at, along each array axis: one in so many; slices along ``axis``."""
    return np.where(np.arange(3) == axis, 1, _STEP)


def _every_second(t1: np.ndarray | None, axis: int) -> np.ndarray | None:
    return None if t1 is None else t1[tuple(slice(None, None, step) for step in _steps(axis))]


def _scaled(t1: np.ndarray | None, t2: np.ndarray, matrix: np.ndarray, axis: int, thickness: float | None) -> _Stack:
    turn = slices_last(axis)
    if t1 is not None:
        t1 = np.transpose(t1, turn)
        # A T1w that misses the T2w altogether has nothing to be scaled by; the overlap tells.
        t1 = zero_based_scale(t1).apply(t1) if (t1 > 0).any() else t1
    t2 = np.transpose(t2, turn)
    return _Stack(t1, zero_based_scale(t2).apply(t2), matrix[:, [*turn, 3]], thickness)


def _slicing(stack: _Stack) -> dict:
    """Plane, tilt (degrees) and, where they are known, thickness and spacing of the slices (mm)."""
    normal = stack.matrix[:3, 2] / stack.sizes[2]
    across = int(np.argmax(np.abs(normal)))
    if stack.thickness is None:
        return {"Plane": None, "Obliqueness": None, "SliceThickness": None, "SpacingBetweenSlices": None}
    return {
        "Plane": list(AXIS_ACROSS)[across],
        "Obliqueness": float(np.degrees(np.arccos(min(1.0, abs(normal[across]))))),
        "SliceThickness": float(stack.thickness),
        "SpacingBetweenSlices": float(stack.sizes[2]),
    }


def _noise_and_motion(stack: _Stack) -> dict:
    """Signal-to-noise ratio, and what tells even from odd slices."""
    head = stack.t2 > _FOREGROUND
    noise = noise_of(stack.t2)
    found = {"SignalToNoise": float(np.median(stack.t2[head]) / noise) if noise > 0 else None}
    found |= {"EvenOddShift": None, "EvenOddIntensity": None, "SliceShift": None}
    if stack.thickness is None:
        return found
    full = np.flatnonzero(head.sum(axis=(0, 1)) > _FULL_SLICE * head.sum(axis=(0, 1)).max())
    if len(full) < 8 or min(head.shape[:2]) < 8:
        return found
    slices = stack.t2[..., full[0] : full[-1] + 1]
    shifts, brightness = slice_jumps(slices, stack.sizes[:2])
    signs = (-1.0) ** np.arange(len(shifts))
    found["EvenOddShift"] = float(np.linalg.norm(np.median(signs[:, None] * shifts, axis=0)))
    found["EvenOddIntensity"] = float(100 * abs(np.median(signs * brightness)))
    found["SliceShift"] = float(np.percentile(np.linalg.norm(shifts, axis=1), 95))
    return found


def slice_jumps(slices: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How each inner slice is moved in-plane, and how much brighter it is, against its two neighbours' mean.

    One Gauss-Newton step of rigid image registration (Lucas and Kanade, IJCAI 1981) on smoothed slices. Movement
    through the plane is not seen, but for what it changes in the outline.

    Args:
        slices: shape (X, Y, count), count at least 3.
        sizes: in-plane voxel sizes, mm.

    Returns:
        Movements in mm, shape (count - 2, 3): displacement along the two axes, and how far the turn about the head's
        middle moves a voxel, root mean square over the head. And differences of log intensity, shape (count - 2,).
    """
    smoothed = smooth(slices, [_SMOOTHING / sizes[0], _SMOOTHING / sizes[1], 0])
    # So smooth a slice is known by far fewer pixels.
    steps = np.maximum(1, np.rint(_SMOOTHING / 2 / sizes).astype(int))
    smoothed, sizes = smoothed[:: steps[0], :: steps[1]], sizes * steps
    middle, beside = smoothed[..., 1:-1], (smoothed[..., :-2] + smoothed[..., 2:]) / 2
    inside = (beside > _FOREGROUND) & (middle > _FOREGROUND)
    counts = np.maximum(inside.sum(axis=(0, 1)), 1)
    brightness = np.log((middle * inside).sum(axis=(0, 1)) / counts + 1e-6)
    brightness -= np.log((beside * inside).sum(axis=(0, 1)) / counts + 1e-6)
    along_x, along_y = np.gradient(beside, *sizes, axis=(0, 1))
    x, y, radius = _around_the_middle(inside.any(axis=2), sizes)
    slopes = np.stack([along_x, along_y, (x * along_y - y * along_x) / radius])
    normal = np.einsum("axyn,bxyn->nab", slopes, slopes) + 1e-6 * np.eye(3)
    target = np.einsum("axyn,xyn->na", slopes, beside * np.exp(brightness) - middle)
    return np.linalg.solve(normal, target[..., None])[..., 0], brightness


def _around_the_middle(head: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """In-plane positions against the middle of a head's outline, mm, and the root mean square distance from it."""
    x, y = (ticks * size for ticks, size in zip(np.indices(head.shape), sizes, strict=True))
    x, y = (ticks - ticks[head].mean() if head.any() else ticks for ticks in (x, y))
    distance = float(np.sqrt(np.mean((x**2 + y**2)[head]))) if head.any() else 1.0
    return x[..., None], y[..., None], max(distance, 1e-3)


def _likeness(stack: _Stack) -> dict:
    """Overlap (Dice) of the two heads, their contrast, and the T2w head's volume (ml)."""
    t2 = stack.t2[::_STEP, ::_STEP]
    t2_head = ndimage.binary_fill_holes(t2 > _FOREGROUND)
    found = dict.fromkeys(("Overlap", "Correlation", "T1wSkewness", "T2wSkewness"))
    found |= {"HeadVolume": float(t2_head.sum() * _STEP**2 * np.prod(stack.sizes) / 1000)}
    if stack.t1 is None:
        return found
    t2_head &= np.isfinite(stack.t1)  # what the T1w does not cover says nothing of how the two lie
    t1 = np.nan_to_num(stack.t1)
    t1_head = ndimage.binary_fill_holes(t1 > _FOREGROUND)
    both = t1_head & t2_head
    found["Overlap"] = float(2 * both.sum() / max(1, t1_head.sum() + t2_head.sum()))
    if both.sum() < 100:
        return found
    # At the rim both scans fade into the air together, whatever their contrast; deeper in a head come fat and bone.
    inner = ndimage.binary_erosion(both, np.ones((5, 5, 1)))
    inner = inner if inner.sum() > 100 else both
    if t1[inner].std() > 0 and t2[inner].std() > 0:
        found["Correlation"] = float(np.corrcoef(t1[inner], t2[inner])[0, 1])
    coarse = (slice(None, None, 2), slice(None, None, 2))
    depth = _depth(both[coarse], stack.sizes * [2 * _STEP, 2 * _STEP, 1])
    deep = depth > min(_DEEP, depth.max() / 2)
    return found | {"T1wSkewness": _skewness(t1[coarse][deep]), "T2wSkewness": _skewness(t2[coarse][deep])}


def _skewness(values: np.ndarray) -> float | None:
    """Above 0 where there are few bright values, below 0 where there are few dark ones."""
    values = np.clip(values, 0, 1.5)
    return float(((values - values.mean()) ** 3).mean() / values.std() ** 3) if values.std() > 0 else None
