"""Stacks whose registration to the T1w is in doubt, judged by the stacks that surely fit it.

A T1w tells a head from its mirror image, or where a slab belongs, less surely than another T2w does, which has the same
contrast. So a stack in doubt is compared with the others. Where it fits them it is right. Where its mirror image fits
them clearly better, left and right are exchanged in its header, and are exchanged back. Where neither fits, it is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from func.errors import warn
from func.reconstruction.acquired import t1_frame
from func.scans.case import Case
from func.scans.nifti import array_of, image_of, name_of
from func.scans.registration import FAILED, RIGHT
from func.scans.resampling import resample

_SPARSE = 2.0  # mm between the voxels that are compared
_SMOOTH = 1.0  # mm, standard deviation
_BRIGHT = 0.1  # of the 99th percentile: what is brighter is head
_ENOUGH = 200  # voxels in common: with fewer nothing can be told
# Correlation of stacks that fit: two of a moving infant 0.81, but a slab of ten slices 0.53; other infants' up to 0.24.
FITS = 0.4
# Of what another's correlation misses to 1: what misses less fits clearly better. Right over mirrored: 0.3 to 0.8.
_CLEARLY = 0.7


def settled(cases: Sequence[Case]) -> list[tuple[Case, bool]]:
    """Several stacks of an infant, registered, each with whether it is to be used.

    Where no stack surely fits the T1w, that which does best is taken to, unless its mirror image fits better.

    Args:
        cases: with the same T1w.
    """
    cases = [case if case.registration else case.registered() for case in cases]
    best = min(cases, key=lambda case: case.registration.mirrored)
    trusted = [case for case in cases if case.registration.verdict == RIGHT]
    if not trusted and best.registration.verdict != FAILED and best.registration.mirrored < 1:
        trusted = [best]
    if not trusted or len(trusted) == len(cases):
        return [(case, True) for case in cases]
    shown = [_shown(case) for case in trusted]
    known = np.sum(shown, axis=0) / np.maximum(np.sum([one > 0 for one in shown], axis=0), 1)
    return [(case, True) if any(case is one for one in trusted) else _judged(case, known) for case in cases]


def _judged(case: Case, known: np.ndarray) -> tuple[Case, bool]:
    """A stack in doubt: confirmed, mirrored back or not to be used."""
    name, fits = name_of(case.t2), likeness(_shown(case), known)
    mirrored = case.mirrored()
    fits_mirrored = likeness(_shown(mirrored), known)
    if fits_mirrored > FITS and 1 - fits_mirrored < _CLEARLY * (1 - fits):
        warn(
            f"{name} fits the other stacks mirrored (correlation {fits_mirrored:.2f}, as it is {fits:.2f}): left and "
            "right, or the order of the slices, seem exchanged in its header, and were exchanged back. Look twice."
        )
        return replace(mirrored, registration=replace(mirrored.registration, confirmed=True)), True
    if fits > FITS:
        return replace(case, registration=replace(case.registration, confirmed=True)), True
    warn(f"{name} fits neither the T1w nor the other stacks (correlation {fits:.2f}), and was left out.")
    return case, False


def _shown(case: Case) -> np.ndarray:
    """What a stack shows in the T1w's frame, smooth, on sparse voxels: its 99th percentile is 1."""
    sizes = voxel_sizes(case.t2.affine)
    array = ndimage.gaussian_filter(array_of(case.t2).astype(np.float32), np.where(sizes < _SPARSE, _SMOOTH / sizes, 0))
    shape, affine = t1_frame(case.t1, _SPARSE)
    shown = resample(image_of(array, case.t2.affine, case.t2), shape, affine, case.registration.matrix)
    return shown / max(float(np.percentile(array[array > 0], 99)), 1e-9) if array.any() else shown


def shared(shown: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where two scans, each over about its 99th percentile, both show a head; nowhere if that is next to nowhere."""
    both = (shown > _BRIGHT) & (known > _BRIGHT)
    return both & (both.sum() >= _ENOUGH)


def likeness(shown: np.ndarray, known: np.ndarray) -> float:
    """Correlation of what two scans show where both show a head (:func:`shared`); 0 where they share none."""
    both = shared(shown, known)
    return float(np.corrcoef(shown[both], known[both])[0, 1]) if both.any() else 0.0
