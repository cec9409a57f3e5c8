"""What is written for a result: the volume, its JSON sidecar, and the maps beside it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from func.reconstruction.reconstructor import Reconstruction
from func.reconstruction.uncertainty import MEANING
from func.reports.quality import is_stripped, quality_of
from func.scans.bids import stem_of
from func.scans.case import Case
from func.scans.nifti import array_of, save_result
from func.stopwatch import Stopwatch
from func.version import own_version


def describe(case: Case, result: Reconstruction, sources: list[str], made_with: dict) -> dict:
    """The JSON sidecar of a result: how good its input was, and all that is needed to make it again.

    Args:
        case, result: what was reconstructed, and what came of it.
        sources: the T2w stacks, and last the T1w if there is one, as the sidecar should name them.
        made_with: entries on the inputs, the weights and the settings.
    """
    quality, warnings = quality_of(case.t1, case.t2, result.report)
    in_t1_frame = "Registration" in result.report and made_with.get("Settings", {}).get("Space") != "t2"
    return {
        "Description": "Isotropic T2w scan reconstructed by BABY-AI",
        "Sources": sources,
        "SpatialReference": sources[-1 if in_t1_frame else 0],
        "SkullStripped": is_stripped(case.t2),
        "Warnings": [*case.warnings, *result.warnings, *warnings],
        "Quality": quality,
        **made_with,
        "Versions": versions(),
        **result.report,
    }


def save(
    path: Path,
    case: Case,
    result: Reconstruction,
    sidecar: dict,
    residual_maps: Sequence[Path] | None = None,
    stopwatch: Stopwatch | None = None,
) -> None:
    """Write a result, its sidecar and the maps that were asked for: those of residuals one for each stack.

    Args:
        stopwatch: see :func:`func.scans.nifti.save_result`.

    Raises:
        BabyAIError: something could not be written.
    """
    if result.uncertainty is not None:
        sidecar["Uncertainty"] = _save_uncertainty(path, result, sidecar)
    for residual_map, residual in zip(residual_maps or (), result.residuals, strict=False):
        save_result(residual_map, residual, {"Description": "Measured slices minus the result's slices"})
    save_result(path, case.in_file_units(result.image), sidecar, stopwatch)


def _save_uncertainty(path: Path, result: Reconstruction, sidecar: dict) -> dict:
    """Write the uncertainty beside where the result goes; returns what the result's sidecar says of it."""
    stem = stem_of(path)
    renamed = stem.replace("desc-isotropic", "desc-uncertainty") if "desc-isotropic" in stem else f"{stem}_uncertainty"
    beside = path.with_name(renamed + path.name.removeprefix(stem))
    shared = {key: sidecar[key] for key in ("Sources", "SpatialReference", "SkullStripped")}
    save_result(beside, result.uncertainty, {"Description": MEANING} | shared)
    widths, brightness = (array_of(image) for image in (result.uncertainty, result.image))
    median = float(np.median(widths[widths > 0]) / np.percentile(brightness[brightness > 0], 99))
    return {"Map": beside.name, "MedianPercent": round(100 * median, 2)}


@lru_cache
def versions() -> dict[str, str]:
    """Versions of BABY-AI, of Python and of the libraries that compute."""
    libraries = {name: version(name) for name in ("torch", "numpy", "scipy", "nibabel")}
    return {"BABY-AI": own_version(), "python": platform.python_version()} | libraries
