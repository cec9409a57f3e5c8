"""Score reconstructions against isotropic ground truth, beside cubic interpolation.

    python scripts/evaluate.py --reference-dir DATA --results-dir RESULTS --baseline-dir SYNTHESISED

Every sub-*_desc-isotropic_T2w.nii.gz below RESULTS is compared with the T2w of the same subject, session and run below
DATA, and so is what it was made from, the thick-slice scan below SYNTHESISED. Writes metrics.csv (one row for each
scan, method and region), tissues.csv, summary.md (means with 95 % confidence intervals) and boxplot.png. Where RESULTS
hold the maps of inference.py --uncertainty, uncertainty.csv and the summary tell whether the interval holds 90 % of the
errors, how well it ranks them, and how it had to be changed to hold them.

Scores are PSNR (dB), SSIM, NRMSE and sharpness: in the inner brain (4 mm or more below the edge of the brain mask;
--depth) and in the whole brain, in the scan's own intensities with the truth's 99th percentile as the data range; and
over the whole volume, air included, after the published normalisation. The inner brain counts first: infants that were
brain-extracted with one mask for T1w and T2w show the T2w's outline in the T1w, which no whole head does.

--align first lays every volume on the truth by a small rigid motion: T1w and T2w of one session often lie some tenths
of a millimetre apart, and a result in the T1w's frame then scores worse than it is. Results of raw scans, on another
grid than the truth, need it.

A mean is over subjects, each with the mean of its scans, and so is its interval (Student's t). Ages are read from
participants.tsv and sub-*/sub-*_sessions.tsv in DATA, in the units that the JSON file beside the table states.

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from tqdm import tqdm

from func.commands import Tally, in_processes, processors, run_to_the_end, script_parser
from func.errors import BabyAIError, warn
from func.reconstruction.uncertainty import correlation, coverage, sampled
from func.reports.ages import group_of, read_age_groups
from func.reports.comparisons import Comparison, find_comparisons, weights_of
from func.reports.scores import (
    INNER_DEPTH,
    brain_mask,
    inner_brain,
    score_brain,
    score_volume,
    sharpness,
    tissue_agreement,
)
from func.reports.tables import (
    BASELINE,
    RESULT,
    SCORES,
    draw_boxplot,
    grouped,
    in_table_order,
    summary,
    table,
    verdict,
    with_gain,
    write_csv,
    write_text,
)
from func.scans.bids import entities_of, slicing_of, stem_of
from func.scans.intensity import zero_based_scale
from func.scans.nifti import check_same_grid, read_volume, to_ras
from func.scans.registration import register_rigid, resample
from func.scans.sidecars import read_sidecar

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
REFERENCE_DIR = REPO_ROOT / "data"  # holds the isotropic sub-*_T2w.nii.gz, and participants.tsv if there is one
RESULTS_DIR = REPO_ROOT / "results"  # holds the sub-*_desc-isotropic_T2w.nii.gz
BASELINE_DIR = None  # holds the scans that the results were made from; None: no baseline
OUTPUT_DIR = None  # None: the folder "evaluation" in RESULTS_DIR
DEPTH = INNER_DEPTH  # mm below the edge of the brain mask, where the inner brain begins
ALIGN = False  # lay every volume on the truth by a small rigid motion first
WORKERS = processors()

LARGEST_MOVE = 2.0  # mm: what --align moves farther did not lie where it should, and is named
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of a volume in RAS order, across the slices


def main(argv: list[str] | None = None) -> int:
    """Evaluate what the arguments ask for; returns the exit code."""
    return run_to_the_end("evaluate.py", partial(evaluate_folder, parse_arguments(argv)), Tally("evaluated"))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--reference-dir",
        type=Path,
        default=REFERENCE_DIR,
        help="isotropic T2w scans, the truth (default: %(default)s)",
    )
    parser.add_argument(
        "--results-dir", type=Path, default=RESULTS_DIR, help="reconstructions to score (default: %(default)s)"
    )
    parser.add_argument(
        "--baseline-dir", type=Path, default=BASELINE_DIR, help="scans they were made from (default: none)"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help="for the tables (default: RESULTS_DIR/evaluation)"
    )
    parser.add_argument(
        "--depth", type=float, default=DEPTH, metavar="MM", help="where the inner brain begins (default: %(default)g)"
    )
    parser.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        default=ALIGN,
        help="lay every volume on the truth by a small rigid motion before it is scored",
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error("--workers must be 1 or more")
    if not 0 <= arguments.depth < float("inf"):
        parser.error("--depth must be 0 mm or more")
    arguments.output_dir = arguments.output_dir or arguments.results_dir / "evaluation"
    return arguments


def evaluate_folder(arguments: argparse.Namespace, tally: Tally) -> None:
    """Score every reconstruction of a folder and write the tables; one that fails is told and left out of them.

    Raises:
        BabyAIError: there is nothing to score, or the tables could not be written.
    """
    comparisons, faults, lacking = find_comparisons(
        arguments.reference_dir, arguments.results_dir, arguments.baseline_dir
    )
    for result, error in faults:
        tally.fail(result.name, error)
    for baseline in lacking:
        warn(f"Not evaluated, for want of a result: {baseline}")
    ages = read_age_groups(arguments.reference_dir)
    weights = weights_of(comparison.result for comparison in comparisons)
    made_with = "Results of " + ", ".join(f"{name}: {count}" for name, count in weights.items()) + "."
    if len(weights) > 1:
        made_with += " They were not all made with the same weights, so that the means mix networks."
        warn(f"{made_with} Make the old ones again with inference.py --overwrite.")

    scores, tissues, intervals = [], [], []
    score = partial(score_comparison, depth=arguments.depth, align=arguments.align)
    with tqdm(total=len(comparisons), desc="Scans", unit="scan", disable=None) as bar:
        for comparison, outcome in in_processes(score, comparisons, arguments.workers):
            if isinstance(outcome, BaseException):
                tally.fail(comparison.result.name, outcome)
            else:
                tally.done += 1
                labels = labels_of(comparison.result, ages)
                for rows, found in zip((scores, tissues, intervals), outcome, strict=True):
                    rows += [labels | row for row in found]
            bar.update()
    if not scores:
        return
    scores, tissues, intervals = (in_table_order(pd.DataFrame(rows)) for rows in (scores, tissues, intervals))
    scores = with_gain(scores)
    if arguments.align:
        for line in scores[scores.moved_mm > LARGEST_MOVE].drop_duplicates("name").itertuples():
            warn(f"{line.name} lay {line.moved_mm:.1f} mm off the truth; check what it is.")
    write_csv(arguments.output_dir / "metrics.csv", scores)
    write_csv(arguments.output_dir / "tissues.csv", tissues)
    if not intervals.empty:
        write_csv(arguments.output_dir / "uncertainty.csv", intervals.drop(columns=["errors", "widths"]))
    lines = summary(scores, tissues, intervals, arguments.depth)
    write_text(arguments.output_dir / "summary.md", [*lines, "", made_with])
    draw_boxplot(arguments.output_dir / "boxplot.png", scores)
    print("\n".join([table(grouped(scores[scores.region == "inner"]), SCORES), "", verdict(scores)]))
    print(f"Tables and picture: {arguments.output_dir}")


def labels_of(result: Path, ages: dict[tuple[str, str], str]) -> dict:
    """What tells a scan apart in the tables, by the name of its result: the first columns of each."""
    entities = entities_of(result)
    direction, thickness = slicing_of(result) or ("", None)
    subject, session = entities["sub"], entities.get("ses", "")
    return {
        "name": stem_of(result),
        "subject": subject,
        "session": session,
        "age_group": group_of(ages, subject, session),
        "direction": direction,
        "thickness_mm": thickness,
    }


@dataclass(frozen=True)
class Truth:
    """The isotropic T2w in RAS order: the image, its voxels, and the brain in them, whole and inner."""

    image: nib.Nifti1Image
    array: np.ndarray
    brain: np.ndarray
    inner: np.ndarray

    @classmethod
    def read(cls, path: Path, depth: float) -> Truth:
        image = to_ras(read_volume(path))
        array = image.get_fdata(dtype=np.float32)
        brain = brain_mask(array)
        return cls(image, array, brain, inner_brain(brain, nib.affines.voxel_sizes(image.affine), depth))


def score_comparison(comparison: Comparison, depth: float, align: bool) -> tuple[list[dict], list[dict], list[dict]]:
    """Scores of a reconstruction and of its baseline, in the inner brain, the whole brain and the whole volume.

    Returns:
        The rows of the tables: scores, tissues, and how the stated interval held, if one is stated.

    Raises:
        BabyAIError: a volume is unreadable, or lies on another grid than the truth and is not to be aligned.
    """
    truth = Truth.read(comparison.truth, depth)
    result = read_volume(comparison.result)
    motion = motion_to(truth, result, None, align)
    estimates = {RESULT: on_grid_of(truth.image, result, motion)}
    moved = {RESULT: {"moved_mm": mean_displacement(truth, motion)}} if align else {}
    if comparison.baseline:
        baseline = read_volume(comparison.baseline)
        lies = motion_to(truth, baseline, registration_of(comparison.result), align)
        estimates[BASELINE] = on_grid_of(truth.image, baseline, lies)
    scores, tissues = [], []
    for method, estimate in estimates.items():
        for region, mask in (("inner", truth.inner), ("brain", truth.brain)):
            found = asdict(score_brain(truth.array, estimate, mask))
            found["sharpness"] = sharpness_of(comparison.result, truth, estimate, mask)
            scores.append({"method": method, "region": region} | found | moved.get(method, {}))
        scores.append({"method": method, "region": "volume"} | asdict(score_volume(truth.array, estimate)))
        tissues += [{"method": method} | asdict(t) for t in tissue_agreement(truth.array, estimate, truth.inner)]
    if comparison.uncertainty is None:
        return scores, tissues, []
    scale = zero_based_scale(estimates.get(BASELINE, estimates[RESULT]))
    unit = scale.high - scale.low
    widths = on_grid_of(truth.image, read_volume(comparison.uncertainty), motion) / unit
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


def registration_of(result: Path) -> np.ndarray | None:
    """Where points of a raw result lie in the T2w that it was made from (4 x 4, world mm); None of one on a grid."""
    matrix = read_sidecar(result).get("Registration", {}).get("T1wToT2w")
    return None if matrix is None else np.asarray(matrix, float)


def motion_to(truth: Truth, image: nib.Nifti1Image, known: np.ndarray | None, align: bool) -> np.ndarray | None:
    """Where the truth's points lie in a volume (4 x 4, world mm): as known, refined by a registration to align it."""
    if not align:
        return known
    return register_rigid(truth.image, image, start=np.eye(4) if known is None else known).matrix


def on_grid_of(truth: nib.Nifti1Image, image: nib.Nifti1Image, motion: np.ndarray | None) -> np.ndarray:
    """A volume on the truth's grid, float32; where a motion is given, interpolated there (cubic splines).

    Raises:
        BabyAIError: no motion is given, and the volume lies on another grid.
    """
    if motion is not None:
        return resample(image, truth.shape, truth.affine, motion)
    image = to_ras(image)
    try:
        check_same_grid(truth, image)
    except BabyAIError as error:
        fault = str(error).rpartition(";")[0]
        raise BabyAIError(f"{fault}; --align scores a volume on another grid than the truth's.") from None
    return image.get_fdata(dtype=np.float32)


def mean_displacement(truth: Truth, motion: np.ndarray) -> float:
    """How far a motion takes the points of the brain, mm, on average."""
    points = apply_affine(truth.image.affine, np.argwhere(truth.brain)[::97])
    return float(np.linalg.norm(apply_affine(motion, points) - points, axis=1).mean())


def sharpness_of(result: Path, truth: Truth, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Sharpness across the slices that the result's name states; nan where it states none."""
    direction, thickness = slicing_of(result) or ("", 0)
    if not direction:
        return float("nan")
    axis = AXES[direction]
    return sharpness(truth.array, estimate, mask, axis, thickness, nib.affines.voxel_sizes(truth.image.affine)[axis])


if __name__ == "__main__":
    sys.exit(main())
