"""Score reconstructions against isotropic ground truth, beside cubic interpolation.

    python scripts/evaluate.py --reference-dir DATA --results-dir RESULTS --baseline-dir SYNTHESISED

Every sub-*_desc-isotropic_T2w.nii.gz below RESULTS is compared with the T2w of the same subject, session and run below
DATA, and so is what it was made from, the up-sampled thick-slice scan below SYNTHESISED. Writes metrics.csv (one row
for each scan, method and region), summary.md (means with 95 % confidence intervals) and boxplot.png. Where RESULTS
hold the maps of inference.py --uncertainty, uncertainty.csv and the summary tell whether the interval holds 90 % of the
errors, how well it ranks them, and how it had to be changed to hold them.

Scores are PSNR (dB), SSIM and NRMSE: inside the brain, in the scan's own intensities with the truth's 99th percentile
as the data range; and over the whole volume, air included, after the published normalisation. A mean is over subjects,
each with the mean of its scans, and so is its interval (Student's t).

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from func.commands import Tally, in_processes, processors, run_to_the_end, script_parser
from func.errors import BabyAIError
from func.reconstruction.uncertainty import correlation, coverage, sampled
from func.reports.scores import brain_mask, score_brain, score_volume
from func.reports.tables import AGE_GROUPS, BASELINE, RESULT, Interval, Row, draw_boxplot, table, verdict, write_summary
from func.scans.bids import SLICING, entities_of, find_scans, result_path, slicing_of, stem_of
from func.scans.files import atomic
from func.scans.intensity import zero_based_scale
from func.scans.nifti import check_same_grid, read_volume, to_ras

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
REFERENCE_DIR = REPO_ROOT / "data"  # holds the isotropic sub-*_T2w.nii.gz, and participants.tsv if there is one
RESULTS_DIR = REPO_ROOT / "results"  # holds the sub-*_desc-isotropic_T2w.nii.gz
BASELINE_DIR = None  # holds the up-sampled scans that the results were made from; None: no baseline
OUTPUT_DIR = None  # None: the folder "evaluation" in RESULTS_DIR
WORKERS = processors()


@dataclass(frozen=True)
class Case:
    """One reconstruction, its truth, the up-sampled scan that it was made from, and its map of uncertainty."""

    result: Path
    truth: Path
    baseline: Path | None
    uncertainty: Path | None
    age_group: str


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
        "--baseline-dir", type=Path, default=BASELINE_DIR, help="up-sampled scans they were made from (default: none)"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help="for the tables (default: RESULTS_DIR/evaluation)"
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error("--workers must be 1 or more")
    arguments.output_dir = arguments.output_dir or arguments.results_dir / "evaluation"
    return arguments


def evaluate_folder(arguments: argparse.Namespace, tally: Tally) -> None:
    """Score every reconstruction of a folder and write the tables; one that fails is told and left out of them.

    Raises:
        BabyAIError: there is nothing to score, or the tables could not be written.
    """
    cases = find_cases(arguments, tally)
    rows: list[Row] = []
    intervals: list[Interval] = []
    with tqdm(total=len(cases), desc="Scans", unit="scan", disable=None) as bar:
        for case, outcome in in_processes(score_case, cases, arguments.workers):
            if isinstance(outcome, BaseException):
                tally.fail(case.result.name, outcome)
            else:
                tally.done += 1
                rows += outcome[0]
                intervals += outcome[1]
            bar.update()
    if not rows:
        return
    rows.sort(key=lambda row: (row.name, row.region, row.method))
    intervals.sort(key=lambda interval: interval.name)
    write_csv(arguments.output_dir / "metrics.csv", Row, rows)
    if intervals:
        write_csv(arguments.output_dir / "uncertainty.csv", Interval, intervals)
    write_summary(arguments.output_dir / "summary.md", rows, intervals)
    draw_boxplot(arguments.output_dir / "boxplot.png", rows)
    print("\n".join([*table([row for row in rows if row.region == "brain"]), "", verdict(rows)]))
    print(f"Tables and picture: {arguments.output_dir}")


def find_cases(arguments: argparse.Namespace, tally: Tally) -> list[Case]:
    """Every reconstruction with its truth and baseline; what cannot be paired is told and counted as failed.

    Raises:
        BabyAIError: a folder is missing, or no reconstruction was found.
    """
    results = [path for path in find_t2s(arguments.results_dir, "--results-dir") if is_reconstruction(path)]
    if not results:
        raise BabyAIError(
            f"No reconstruction was found below {arguments.results_dir}; "
            "it needs files named like sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz, as inference.py makes them."
        )
    truths: dict[tuple, list[Path]] = {}
    for path in find_t2s(arguments.reference_dir, "--reference-dir"):
        if is_original(path) and not slicing_of(path):
            truths.setdefault(identity(path), []).append(path)
    baselines = {}
    if arguments.baseline_dir:
        inputs = find_t2s(arguments.baseline_dir, "--baseline-dir")
        baselines = {result_path(path, "").name: path for path in inputs if is_original(path)}
    ages = read_age_groups(arguments.reference_dir / "participants.tsv")

    cases = []
    for result in results:
        try:
            truth = find_truth(result, truths.get(identity(result), []), arguments.reference_dir)
            baseline = baselines.get(result.name)
            if arguments.baseline_dir and not baseline:
                raise BabyAIError(
                    f"{result} has no baseline below {arguments.baseline_dir}; add the scan it was made from."
                )
            uncertainty = result.with_name(result.name.replace("desc-isotropic", "desc-uncertainty"))
            age = ages.get(entities_of(result)["sub"], "")
            cases.append(Case(result, truth, baseline, uncertainty if uncertainty.is_file() else None, age))
        except BabyAIError as error:
            tally.fail(result.name, error)
    for name in sorted(set(baselines) - {path.name for path in results}):
        if identity(baselines[name]) in truths:
            print(f"Not evaluated, for want of a result: {baselines[name]}", file=sys.stderr)
    return cases


def find_t2s(folder: Path, option: str) -> list[Path]:
    """Every T2w below the folder that an option names."""
    if not folder.is_dir():
        raise BabyAIError(f"The folder {folder} does not exist; check {option}.")
    return [path for path in find_scans(folder) if entities_of(path)["suffix"] == "T2w"]


def is_reconstruction(path: Path) -> bool:
    """Whether a scan is a result of inference.py, by its name."""
    return entities_of(path).get("desc") == "isotropic"


def is_original(path: Path) -> bool:
    """Whether inference.py did not make this scan, by its name."""
    return entities_of(path).get("desc") not in ("isotropic", "uncertainty")


def identity(path: Path) -> tuple:
    """What a scan shares with everything made from it: subject, session and run."""
    entities = entities_of(path)
    return entities["sub"], entities.get("ses"), entities.get("run", "").lstrip("0")


def own_acquisition(path: Path) -> str:
    """The acq label that a scan had before it was synthesised from; empty where it had none."""
    return SLICING.sub("", entities_of(path).get("acq", ""))


def find_truth(result: Path, candidates: list[Path], folder: Path) -> Path:
    """The one truth of a result; of several, the one with its acq label."""
    named = [path for path in candidates if own_acquisition(path) == own_acquisition(result)]
    if len(candidates) == 1 or len(named) == 1:
        return (named or candidates)[0]
    if not candidates:
        raise BabyAIError(
            f"{result} has no isotropic T2w of the same subject, session and run below {folder}; check --reference-dir."
        )
    names = " and ".join(map(str, candidates))
    raise BabyAIError(f"{result} can be compared with {names}; keep one of them.")


def read_age_groups(path: Path) -> dict[str, str]:
    """Age group by subject label, from a BIDS participants.tsv; empty where there is none.

    Read from the column ``age_group``, else ``age_months``, else ``age`` (years, as BIDS has it).

    Raises:
        BabyAIError: the file is there but cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            participants = [row for row in csv.DictReader(file, delimiter="\t") if row.get("participant_id")]
        return {row["participant_id"].removeprefix("sub-"): age_group(row) for row in participants}
    except (OSError, ValueError, csv.Error) as error:
        raise BabyAIError(f"{path} cannot be read ({error}); correct or remove it.") from None


def age_group(participant: dict[str, str]) -> str:
    """The age group of one line of participants.tsv; empty where the line has no age."""
    if stated := participant.get("age_group"):
        return "" if stated == "n/a" else stated
    for column, months in (("age_months", 1), ("age", 12)):
        age = participant.get(column) or "n/a"
        if age != "n/a":
            return next(name for limit, name in AGE_GROUPS if float(age) * months < limit)
    return ""


def score_case(case: Case) -> tuple[list[Row], list[Interval]]:
    """Scores of a reconstruction and of its baseline, inside the brain and over the whole volume.

    Returns:
        The scores, and how the stated interval held, if one is stated.

    Raises:
        BabyAIError: a volume is unreadable, or lies on another grid than the truth.
    """
    truth_image = to_ras(read_volume(case.truth))
    truth = truth_image.get_fdata(dtype=np.float32)
    brain = brain_mask(truth)
    entities = entities_of(case.result)
    direction, thickness = slicing_of(case.result) or ("", None)
    labels = stem_of(case.result), entities["sub"], entities.get("ses", ""), case.age_group, direction, thickness
    rows, seen = [], {}
    for method, path in ((RESULT, case.result), (BASELINE, case.baseline)):
        if path is None:
            continue
        estimate = seen[method] = read_on_grid(path, truth_image)
        scores = {"brain": score_brain(truth, estimate, brain), "volume": score_volume(truth, estimate)}
        rows += [Row(*labels, method, region, **asdict(scored)) for region, scored in scores.items()]
    if case.uncertainty is None:
        return rows, []
    scale = zero_based_scale(seen.get(BASELINE, seen[RESULT]))
    widths = read_on_grid(case.uncertainty, truth_image) / (scale.high - scale.low)
    stated = brain & (widths > 0)
    if not stated.any():
        raise BabyAIError(f"{case.uncertainty} states no interval inside the brain; make it again or remove it.")
    errors = np.abs(seen[RESULT] - truth)[stated] / (scale.high - scale.low)
    widths = widths[stated]
    found = coverage(errors, widths), correlation(errors, widths), float(np.median(widths))
    return rows, [Interval(*labels, *found, sampled(errors), sampled(widths))]


def read_on_grid(path: Path, truth: nib.Nifti1Image) -> np.ndarray:
    """A volume in RAS order, float32, which must lie on the truth's grid."""
    image = to_ras(read_volume(path))
    check_same_grid(truth, image)
    return image.get_fdata(dtype=np.float32)


def write_csv(path: Path, kind: type, lines: list) -> None:
    """One line for each scan, method and region, or whatever ``kind`` of dataclass the lines are."""
    columns = [column.name for column in fields(kind) if column.repr]
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({column: getattr(line, column) for column in columns} for line in lines)


if __name__ == "__main__":
    sys.exit(main())
