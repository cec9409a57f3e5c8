"""Reconstructions against their truth: which belongs to which by their BIDS names, and how near each comes."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from func.errors import BabyAIError
from func.reconstruction.uncertainty import correlation, coverage, sampled
from func.reports.scores import brain_mask, inner_brain, score_brain, score_volume, sharpness, tissue_agreement
from func.reports.tables import BASELINE, RESULT
from func.scans.bids import (
    entities_of,
    find_scans,
    is_original,
    is_result,
    own_acquisition,
    result_path,
    slicing_of,
    stem_of,
)
from func.scans.intensity import zero_based_scale
from func.scans.nifti import check_same_grid, read_volume, to_ras
from func.scans.registration import mean_displacement, register_rigid
from func.scans.resampling import resample
from func.scans.sidecars import read_sidecar
from func.slices.geometry import AXIS_ACROSS


@dataclass(frozen=True)
class Comparison:
    """One reconstruction, its truth, the scan that it was made from, and its map of uncertainty.

    Attributes:
        name, subject: what tells it apart in tables; with the dataset's folder where two datasets share a label.
        dataset: the folder of the truth's dataset, with its table of participants.
    """

    name: str
    subject: str
    dataset: Path
    result: Path
    truth: Path
    baseline: Path | None
    uncertainty: Path | None


def find_comparisons(
    reference_dir: Path, results_dir: Path, baseline_dir: Path | None
) -> tuple[list[Comparison], list[tuple[Path, BabyAIError]], list[Path]]:
    """Every reconstruction with its truth and baseline.

    Of datasets in folders of their own, each with a subject of the same label, those in folders of the same name go
    together.

    Returns:
        The comparisons; what could not be paired, and why; and the baselines of known subjects that have no result.

    Raises:
        BabyAIError: a folder is missing, or no reconstruction was found.
    """
    results = [path for path in _find_t2s(results_dir, "--results-dir") if entities_of(path).get("desc") == "isotropic"]
    if not results:
        raise BabyAIError(
            f"No reconstruction was found below {results_dir}; "
            "it needs files named like sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz, as inference.py makes them."
        )
    truths, baselines, datasets = defaultdict(list), defaultdict(list), defaultdict(set)
    for path in _find_t2s(reference_dir, "--reference-dir"):
        if is_original(path):
            truths[_identity(path)].append(path)
            datasets[entities_of(path)["sub"]].add(_dataset(path, reference_dir))
    for path in _find_t2s(baseline_dir, "--baseline-dir") if baseline_dir else []:
        if not is_result(path):
            baselines[result_path(path, "").name].append(path)
    names = Counter(path.name for path in results)

    comparisons, faults = [], []
    for result in results:
        dataset, subject, name = _dataset(result, results_dir), entities_of(result)["sub"], stem_of(result)
        try:
            truth = find_truth(result, _of_dataset(dataset, truths[_identity(result)], reference_dir), reference_dir)
            baseline = _of_dataset(dataset, baselines[result.name], baseline_dir)
            if baseline_dir and len(baseline) != 1:
                found = " and ".join(map(str, baseline)) or "none"
                raise BabyAIError(
                    f"{result} needs one baseline below {baseline_dir}, the scan it was made from: {found}."
                )
            uncertainty = result.with_name(result.name.replace("desc-isotropic", "desc-uncertainty"))
            home = _dataset(truth, reference_dir)
            comparisons.append(
                Comparison(
                    name=f"{dataset}/{name}" if names[result.name] > 1 else name,
                    subject=f"{home}/{subject}" if len(datasets[subject]) > 1 else subject,
                    dataset=reference_dir / home,
                    result=result,
                    truth=truth,
                    baseline=baseline[0] if baseline else None,
                    uncertainty=uncertainty if uncertainty.is_file() else None,
                )
            )
        except BabyAIError as error:
            faults.append((result, error))
    lacking = [path for name, paths in sorted(baselines.items()) if name not in names for path in paths]
    return comparisons, faults, [path for path in lacking if truths[_identity(path)]]


def find_truth(result: Path, candidates: list[Path], folder: Path) -> Path:
    """The one truth of a result; of several, the one with its acq label.

    Raises:
        BabyAIError: there is none, or there are several.
    """
    named = [path for path in candidates if own_acquisition(path) == own_acquisition(result)]
    if len(candidates) == 1 or len(named) == 1:
        return (named or candidates)[0]
    if not candidates:
        raise BabyAIError(
            f"{result} has no isotropic T2w of the same subject, session and run below {folder}; check --reference-dir."
        )
    names = " and ".join(map(str, candidates))
    raise BabyAIError(f"{result} can be compared with {names}; keep one of them.")


def slices_behind(result: Path) -> tuple[str, float, float]:
    """Direction, thickness and spacing (mm) of the slices that a result was made from, by its name or its sidecar.

    Returns:
        An empty direction and nan where they are not known, or where there were several stacks.
    """
    if named := slicing_of(result):
        return *named, named[1]
    with contextlib.suppress(BabyAIError, KeyError, TypeError, ValueError):
        sidecar = read_sidecar(result)
        quality = sidecar["Quality"]
        if quality["Plane"] in AXIS_ACROSS and "Stacks" not in sidecar:
            return quality["Plane"], round(float(quality["SliceThickness"]), 2), float(quality["SpacingBetweenSlices"])
    return "", float("nan"), float("nan")


def weights_of(results: Iterable[Path]) -> Counter[str]:
    """How many of the results were made with which weights, by their sidecars."""
    counts: Counter[str] = Counter()
    for result in results:
        try:
            weights = read_sidecar(result)["Weights"]
            counts[f"{weights['Name']} (SHA-256 {weights['SHA256'][:12]})"] += 1
        except (BabyAIError, KeyError, TypeError):
            counts["unknown weights"] += 1
    return counts


@dataclass(frozen=True)
class _Truth:
    """The isotropic T2w in RAS order: the image, its voxels, and the brain in them, whole and inner."""

    image: nib.Nifti1Image
    array: np.ndarray
    brain: np.ndarray
    inner: np.ndarray

    @classmethod
    def read(cls, path: Path, depth: float) -> _Truth:
        image = to_ras(read_volume(path))
        array = image.get_fdata(dtype=np.float32)
        brain = brain_mask(array)
        return cls(image, array, brain, inner_brain(brain, nib.affines.voxel_sizes(image.affine), depth))

    @property
    def points(self) -> np.ndarray:
        """Some points of the brain, world mm, shape (N, 3)."""
        return apply_affine(self.image.affine, np.argwhere(self.brain)[::97])


def score_comparison(comparison: Comparison, depth: float, align: bool) -> tuple[list[dict], list[dict], list[dict]]:
    """Scores of a reconstruction and of its baseline, in the inner brain, the whole brain and the whole volume.

    Returns:
        The rows of the tables: scores, tissues, and how the stated interval held, if one is stated.

    Raises:
        BabyAIError: a volume is unreadable, or lies on another grid than the truth and is not to be aligned.
    """
    truth = _Truth.read(comparison.truth, depth)
    result = read_volume(comparison.result)
    motion = _motion_to(truth, result, None, align)
    estimates = {RESULT: _on_grid_of(truth.image, result, motion)}
    moved = {RESULT: {"moved_mm": mean_displacement(motion, np.eye(4), truth.points)}} if align else {}
    if comparison.baseline:
        baseline = read_volume(comparison.baseline)
        lies = _motion_to(truth, baseline, _registration_of(comparison.result), align)
        estimates[BASELINE] = _on_grid_of(truth.image, baseline, lies)
    scores, tissues = [], []
    for method, estimate in estimates.items():
        for region, mask in (("inner", truth.inner), ("brain", truth.brain)):
            found = asdict(score_brain(truth.array, estimate, mask))
            found["sharpness"] = _sharpness_of(comparison.result, truth, estimate, mask)
            scores.append({"method": method, "region": region} | found | moved.get(method, {}))
        scores.append({"method": method, "region": "volume"} | asdict(score_volume(truth.array, estimate)))
        tissues += [{"method": method} | asdict(t) for t in tissue_agreement(truth.array, estimate, truth.inner)]
    if comparison.uncertainty is None:
        return scores, tissues, []
    scale = zero_based_scale(estimates.get(BASELINE, estimates[RESULT]))
    unit = scale.high - scale.low
    widths = _on_grid_of(truth.image, read_volume(comparison.uncertainty), motion) / unit
    stated = truth.brain & (widths > 0)
    if not stated.any():
        raise BabyAIError(f"{comparison.uncertainty} states no interval inside the brain; make it again or remove it.")
    errors, widths = np.abs(estimates[RESULT] - truth.array)[stated] / unit, widths[stated]
    interval = {
        "method": RESULT,
        "coverage": coverage(errors, widths),
        "correlation": correlation(errors, widths),
        "median_width": float(np.median(widths)),
        "errors": sampled(errors),
        "widths": sampled(widths),
    }
    return scores, tissues, [interval]


def _registration_of(result: Path) -> np.ndarray | None:
    """Where points of a raw result lie in the T2w that it was made from (4 x 4, world mm); None of one on a grid.

    Raises:
        BabyAIError: its sidecar states something else there.
    """
    registration = read_sidecar(result).get("Registration")
    if registration is None:
        return None
    try:
        return np.asarray(registration["T1wToT2w"], float).reshape(4, 4)
    except (KeyError, TypeError, ValueError):
        raise BabyAIError(f"The sidecar of {result} states no T1wToT2w of 4 x 4 numbers; make it again.") from None


def _motion_to(truth: _Truth, image: nib.Nifti1Image, known: np.ndarray | None, align: bool) -> np.ndarray | None:
    """Where the truth's points lie in a volume (4 x 4, world mm): as known, refined by a registration to align it."""
    if not align:
        return known
    return register_rigid(truth.image, image, start=np.eye(4) if known is None else known).matrix


def _on_grid_of(truth: nib.Nifti1Image, image: nib.Nifti1Image, motion: np.ndarray | None) -> np.ndarray:
    """A volume on the truth's grid, float32; where a motion is given, interpolated there (cubic splines).

    Raises:
        BabyAIError: no motion is given, and the volume lies on another grid.
    """
    if motion is not None:
        return resample(image, truth.shape, truth.affine, motion)
    image = to_ras(image)
    check_same_grid(truth, image, mend="--align scores a volume on another grid than the truth's")
    return image.get_fdata(dtype=np.float32)


def _sharpness_of(result: Path, truth: _Truth, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Sharpness across the slices behind a result; nan where they are not known."""
    direction, _, spacing = slices_behind(result)
    if not direction:
        return float("nan")
    axis = AXIS_ACROSS[direction]
    return sharpness(truth.array, estimate, mask, axis, spacing, nib.affines.voxel_sizes(truth.image.affine)[axis])


def _find_t2s(folder: Path, option: str) -> list[Path]:
    """Every T2w below the folder that an option names."""
    if not folder.is_dir():
        raise BabyAIError(f"The folder {folder} does not exist; check {option}.")
    return [path for path in find_scans(folder) if entities_of(path)["suffix"] == "T2w"]


def _dataset(path: Path, root: Path) -> str:
    """The folder of a scan's dataset, relative to the one that was searched; empty where that is the dataset."""
    return "/".join(takewhile(lambda part: not part.startswith("sub-"), path.relative_to(root).parent.parts))


def _of_dataset(dataset: str, paths: list[Path], root: Path | None) -> list[Path]:
    """Those of the paths below ``root`` that lie in a dataset; all of them where none does."""
    return [path for path in paths if _dataset(path, root) == dataset] or paths


def _identity(path: Path) -> tuple:
    """What a scan shares with everything made from it: subject, session and run."""
    entities = entities_of(path)
    return entities["sub"], entities.get("ses"), entities.get("run", "").lstrip("0")
