"""What to compare each reconstruction with: its truth, and the scan it was made from, by their BIDS names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from func.errors import BabyAIError
from func.scans.bids import SLICING, entities_of, find_scans, result_path, slicing_of
from func.scans.sidecars import read_sidecar


@dataclass(frozen=True)
class Comparison:
    """One reconstruction, its truth, the scan that it was made from, and its map of uncertainty."""

    result: Path
    truth: Path
    baseline: Path | None
    uncertainty: Path | None


def find_comparisons(
    reference_dir: Path, results_dir: Path, baseline_dir: Path | None
) -> tuple[list[Comparison], list[tuple[Path, BabyAIError]], list[Path]]:
    """Every reconstruction with its truth and baseline.

    Returns:
        The comparisons; what could not be paired, and why; and the baselines of known subjects that have no result.

    Raises:
        BabyAIError: a folder is missing, or no reconstruction was found.
    """
    results = [path for path in _find_t2s(results_dir, "--results-dir") if _description(path) == "isotropic"]
    if not results:
        raise BabyAIError(
            f"No reconstruction was found below {results_dir}; "
            "it needs files named like sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz, as inference.py makes them."
        )
    truths: dict[tuple, list[Path]] = {}
    for path in _find_originals(reference_dir, "--reference-dir"):
        if not slicing_of(path):
            truths.setdefault(_identity(path), []).append(path)
    baselines = {}
    if baseline_dir:
        baselines = {result_path(path, "").name: path for path in _find_originals(baseline_dir, "--baseline-dir")}

    comparisons, faults = [], []
    for result in results:
        try:
            truth = find_truth(result, truths.get(_identity(result), []), reference_dir)
            baseline = baselines.get(result.name)
            if baseline_dir and not baseline:
                raise BabyAIError(f"{result} has no baseline below {baseline_dir}; add the scan it was made from.")
            uncertainty = result.with_name(result.name.replace("desc-isotropic", "desc-uncertainty"))
            comparisons.append(Comparison(result, truth, baseline, uncertainty if uncertainty.is_file() else None))
        except BabyAIError as error:
            faults.append((result, error))
    lacking = sorted(set(baselines) - {path.name for path in results})
    return comparisons, faults, [baselines[name] for name in lacking if _identity(baselines[name]) in truths]


def find_truth(result: Path, candidates: list[Path], folder: Path) -> Path:
    """The one truth of a result; of several, the one with its acq label.

    Raises:
        BabyAIError: there is none, or there are several.
    """
    named = [path for path in candidates if _own_acquisition(path) == _own_acquisition(result)]
    if len(candidates) == 1 or len(named) == 1:
        return (named or candidates)[0]
    if not candidates:
        raise BabyAIError(
            f"{result} has no isotropic T2w of the same subject, session and run below {folder}; check --reference-dir."
        )
    names = " and ".join(map(str, candidates))
    raise BabyAIError(f"{result} can be compared with {names}; keep one of them.")


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


def _find_t2s(folder: Path, option: str) -> list[Path]:
    """Every T2w below the folder that an option names."""
    if not folder.is_dir():
        raise BabyAIError(f"The folder {folder} does not exist; check {option}.")
    return [path for path in find_scans(folder) if entities_of(path)["suffix"] == "T2w"]


def _find_originals(folder: Path, option: str) -> list[Path]:
    """Every T2w there that inference.py did not make."""
    return [path for path in _find_t2s(folder, option) if _description(path) not in ("isotropic", "uncertainty")]


def _description(path: Path) -> str:
    return entities_of(path).get("desc", "")


def _identity(path: Path) -> tuple:
    """What a scan shares with everything made from it: subject, session and run."""
    entities = entities_of(path)
    return entities["sub"], entities.get("ses"), entities.get("run", "").lstrip("0")


def _own_acquisition(path: Path) -> str:
    """The acq label that a scan had before it was synthesised from; empty where it had none."""
    return SLICING.sub("", entities_of(path).get("acq", ""))
