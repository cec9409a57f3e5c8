"""Score reconstructions, beside cubic interpolation: against a truth, against slices taken away, on planted lesions.

Results against the isotropic T2w that their inputs were made from:

    python scripts/evaluate.py --reference-dir DATA --results-dir RESULTS --baseline-dir SYNTHESISED

Every sub-*_desc-isotropic_T2w.nii.gz below RESULTS is compared with the T2w of the same subject, session and run below
DATA, and so is what it was made from, the thick-slice scan below SYNTHESISED. Writes metrics.csv (one row for each
scan, method and region), tissues.csv, summary.md (means with 95 % confidence intervals) and boxplot.png. Where RESULTS
hold the maps of inference.py --uncertainty, uncertainty.csv and the summary tell whether the interval holds 90 % of the
errors, how well it ranks them, and how it would have to change to hold them.

Scores are PSNR (dB), SSIM, NRMSE and sharpness: in the inner brain (4 mm or more below the edge of the brain mask;
--depth) and in the whole brain, in the scan's own intensities with the truth's 99th percentile as the data range; and
over the whole volume, air included, after the published normalisation. The inner brain counts first: infants that were
brain-extracted with one mask for T1w and T2w show the T2w's outline in the T1w, which no whole head does.

--align first aligns every volume with the truth by a small rigid motion: T1w and T2w of one session often lie some
tenths of a millimetre apart, and a result in the T1w's frame then scores worse than it is. Results of raw scans, on
another grid than the truth, need it.

A mean is over subjects, each with the mean of its scans, and so is its interval (Student's t). Ages are read from
participants.tsv and sub-*/sub-*_sessions.tsv in DATA, in the units that the JSON file beside the table states.

Real scans, of which there is no truth:

    python scripts/evaluate.py --held-out-slices --data-dir RAW --output-dir OUTPUT

Every second slice of each T2w is taken away, the others are reconstructed with the T1w (thickness as it was, spacing
doubled), and what the result shows at the places of the slices taken away is scored against them, inside the head where
the T1w covers it, at 1 mm in-plane: held_out_slices.csv, held_out_slices.md, and a picture of each scan. It tells how
well the space between slices is filled on your own scans. The gaps are twice as wide as in a real run, so that the
figures are pessimistic; and no slice shows detail finer than itself, so that they say nothing of sharpness.

Lesions, which the network has not learnt and must neither lose nor copy from the T1w:

    python scripts/evaluate.py --lesions --data-dir DATA --output-dir OUTPUT --thickness 4 --directions axial

DATA holds isotropic pairs of 1 mm. Bright lesions of 3, 5 and 10 mm are planted at random places, in the T2w only, the
T1w only, or both, before the T2w is sliced. lesions.csv and lesions.md tell how much of their contrast and size the
result keeps, and how much of a lesion in the T1w only appears in it; pictures show one lesion of each kind.

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

# NumPy's own threads would spin while they wait for each other: docs/speed.md.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from func.commands import Tally, at_least_one, in_processes, run_to_the_end, script_parser
from func.errors import warn
from func.processors import processors
from func.reports.ages import group_of, read_age_groups
from func.reports.comparisons import Comparison, find_comparisons, score_comparison, slices_behind, weights_of
from func.reports.lesions import DIAMETERS, KINDS, LESIONS_MEANING, plant_lesions
from func.reports.scores import INNER_DEPTH
from func.reports.tables import (
    LESIONS,
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
from func.scans.bids import Pair, entities_of, find_pairs
from func.scans.case import check_grids, read_case
from func.scans.files import check_writable
from func.scans.hub import find_weights
from func.scans.nifti import to_ras
from func.slices.geometry import AXIS_ACROSS, SliceGeometry
from func.training.splits import add_split, wanted_subjects

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
REFERENCE_DIR = REPO_ROOT / "data"  # holds the isotropic sub-*_T2w.nii.gz, and participants.tsv if there is one
RESULTS_DIR = REPO_ROOT / "results"  # holds the sub-*_desc-isotropic_T2w.nii.gz
BASELINE_DIR = None  # holds the scans that the results were made from; None: no baseline
OUTPUT_DIR = None  # None: the folder "evaluation" in RESULTS_DIR
DEPTH = INNER_DEPTH  # mm below the edge of the brain mask, where the inner brain begins
ALIGN = False  # lay every volume on the truth by a small rigid motion first
WORKERS = processors()
# Of --held-out-slices and --lesions, which reconstruct by themselves:
DATA_DIR = REPO_ROOT / "data"  # raw pairs, or isotropic pairs of 1 mm
THICKNESSES = (4.0,)  # mm, of the slices that lesions are seen through
DIRECTIONS = ("axial",)
WEIGHTS = "bundled"  # bundled, or a file
DEVICE = "auto"  # auto, cpu, cuda or mps
PRECISION = "auto"  # auto, float32 or bfloat16

LARGEST_MOVE = 2.0  # mm: what --align moves farther did not lie where it should, and is named


def main(argv: list[str] | None = None) -> int:
    """Evaluate what the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.held_out_slices:
        evaluate = evaluate_held_out_slices
    elif arguments.lesions:
        evaluate = evaluate_lesions
    else:
        evaluate = evaluate_results
    return run_to_the_end("evaluate.py", partial(evaluate, arguments), Tally("evaluated"))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    results = parser.add_argument_group("results against a truth")
    results.add_argument(
        "--reference-dir",
        type=Path,
        default=REFERENCE_DIR,
        help="isotropic T2w scans, the truth (default: %(default)s)",
    )
    results.add_argument(
        "--results-dir", type=Path, default=RESULTS_DIR, help="reconstructions to score (default: %(default)s)"
    )
    results.add_argument(
        "--baseline-dir", type=Path, default=BASELINE_DIR, help="scans they were made from (default: none)"
    )
    results.add_argument(
        "--depth", type=float, default=DEPTH, metavar="MM", help="where the inner brain begins (default: %(default)g)"
    )
    results.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        default=ALIGN,
        help="align every volume with the truth by a small rigid motion before it is scored",
    )
    results.add_argument("--workers", type=at_least_one, default=WORKERS, help="processes (default: %(default)s)")
    own = parser.add_argument_group("scans reconstructed here")
    kind = own.add_mutually_exclusive_group()
    kind.add_argument("--held-out-slices", action="store_true", help="score raw scans on slices taken away from them")
    kind.add_argument("--lesions", action="store_true", help="score what is left of lesions planted into scans")
    own.add_argument("--data-dir", type=Path, default=DATA_DIR, help="pairs of T1w and T2w (default: %(default)s)")
    own.add_argument(
        "--thickness",
        type=float,
        nargs="+",
        default=THICKNESSES,
        metavar="MM",
        help=f"of slices, for --lesions (default: {' '.join(f'{thickness:g}' for thickness in THICKNESSES)})",
    )
    own.add_argument(
        "--directions",
        nargs="+",
        choices=AXIS_ACROSS,
        default=DIRECTIONS,
        help=f"of slices, for --lesions (default: {' '.join(DIRECTIONS)})",
    )
    own.add_argument("--weights", default=WEIGHTS, help="bundled, or a file (default: %(default)s)")
    own.add_argument("--device", default=DEVICE, help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    own.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default=PRECISION, help="default: %(default)s"
    )
    both = parser.add_argument_group("either way")
    both.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help="for tables and pictures (default: RESULTS_DIR/evaluation)"
    )
    add_split(both)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.depth < float("inf"):
        parser.error("--depth must be 0 mm or more")
    if not all(1 < thickness < float("inf") for thickness in arguments.thickness):
        parser.error("--thickness must be more than 1 mm")
    arguments.output_dir = arguments.output_dir or arguments.results_dir / "evaluation"
    return arguments


def evaluate_results(arguments: argparse.Namespace, tally: Tally) -> None:
    """Score every reconstruction of a folder and write the tables; one that fails is told and left out of them.

    Raises:
        BabyAIError: there is nothing to score, or the tables could not be written.
    """
    comparisons, faults, lacking = find_comparisons(
        arguments.reference_dir, arguments.results_dir, arguments.baseline_dir
    )
    check_writable(arguments.output_dir)
    wanted = wanted_subjects(arguments.split, arguments.part)
    comparisons = [comparison for comparison in comparisons if wanted(entities_of(comparison.result)["sub"])]
    for result, error in faults:
        if wanted(entities_of(result)["sub"]):
            tally.fail(result.name, error)
    for baseline in (path for path in lacking if wanted(entities_of(path)["sub"])):
        warn(f"Not evaluated, since it has no result: {baseline}")
    whole = read_age_groups(arguments.reference_dir)
    ages = {arguments.reference_dir: whole}
    for dataset in {comparison.dataset for comparison in comparisons} - ages.keys():
        ages[dataset] = whole | read_age_groups(dataset)
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
                labels = labels_of(comparison, ages[comparison.dataset])
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


def labels_of(comparison: Comparison, ages: dict[tuple[str, str], str]) -> dict:
    """What tells a scan apart in the tables: the first columns of each."""
    entities = entities_of(comparison.result)
    session = entities.get("ses", "")
    direction, thickness, _ = slices_behind(comparison.result)
    return {
        "name": comparison.name,
        "subject": comparison.subject,
        "session": session,
        "age_group": group_of(ages, entities["sub"], session),
        "direction": direction,
        "thickness_mm": thickness,
    }


def evaluate_held_out_slices(arguments: argparse.Namespace, tally: Tally) -> None:
    """Take every second slice of each raw T2w away, predict it, and write the scores.

    Raises:
        BabyAIError: there is no scan, or the tables could not be written.
    """
    # Imported here, so that scoring results needs no torch.
    from func.reconstruction.acquired import RawSettings
    from func.reports.held_out import HELD_OUT_MEANING, draw_held_out, hold_out_slices

    reconstructor = load_reconstructor(arguments)

    def score(pair: Pair) -> list[dict]:
        held_out = hold_out_slices(read_case(pair), lambda kept: reconstructor.reconstruct(kept, RawSettings("t2")))
        draw_held_out(arguments.output_dir / f"{pair.name}_held-out-slices.png", held_out)
        labels = {"name": pair.name, "subject": pair.subject}
        return [labels | row for row in held_out.scores()]

    rows = over_pairs(score, arguments, tally)
    if not rows:
        return
    scores = with_gain(pd.DataFrame(rows))
    write_csv(arguments.output_dir / "held_out_slices.csv", scores)
    groups = pd.concat([scores.assign(group=scores["name"]), scores.assign(group="all")])
    shown = table(groups, {metric: SCORES[metric] for metric in ("psnr", "ssim", "gain")})
    write_text(arguments.output_dir / "held_out_slices.md", ["# Slices taken away", "", shown, "", HELD_OUT_MEANING])
    print(shown)
    print(f"Table and pictures: {arguments.output_dir}")


def evaluate_lesions(arguments: argparse.Namespace, tally: Tally) -> None:
    """Plant lesions into each isotropic pair, slice and reconstruct it, and write what is left of them.

    Raises:
        BabyAIError: there is no scan, or the tables could not be written.
    """
    reconstructor = load_reconstructor(arguments)

    def score(pair: Pair) -> list[dict]:
        case, rows = read_case(pair), []
        check_grids(case)
        t1, t2 = to_ras(case.t1), to_ras(case.t2)
        for seed, (thickness, direction) in enumerate(product(arguments.thickness, arguments.directions)):
            axis = AXIS_ACROSS[direction]
            geometry = SliceGeometry.fitting(axis, t2.shape[axis], thickness / voxel_sizes(t2.affine)[axis])
            planted = plant_lesions(t1, t2, geometry, lambda thick: reconstructor.reconstruct(thick).image, seed)
            scan = f"{pair.name}_acq-{direction}{thickness:g}mm"
            labels = {"name": scan, "subject": pair.subject, "direction": direction, "thickness_mm": thickness}
            rows += [labels | row for row in planted.scores()]
            for lesion in (lesion for lesion in planted.lesions if lesion.diameter == DIAMETERS[1]):
                picture = arguments.output_dir / f"{scan}_lesion-{lesion.kind.replace(' ', '-')}.png"
                planted.draw(picture, lesion, "sagittal" if direction == "coronal" else "coronal")
        return rows

    rows = over_pairs(score, arguments, tally)
    if not rows:
        return
    lesions = pd.DataFrame(rows)
    write_csv(arguments.output_dir / "lesions.csv", lesions)
    lesions = lesions.assign(lesion=pd.Categorical(lesions.lesion, KINDS)).sort_values(["lesion", "diameter_mm"])
    lesions["group"] = lesions.lesion.astype(str) + ", " + lesions.diameter_mm.map("{:g} mm".format)
    shown = table(lesions, LESIONS)
    write_text(arguments.output_dir / "lesions.md", ["# Planted lesions", "", shown, "", LESIONS_MEANING])
    print(shown)
    print(f"Table and pictures: {arguments.output_dir}")


def load_reconstructor(arguments: argparse.Namespace):
    """The network asked for.

    Raises:
        BabyAIError: the weights or the device are not there.
    """
    from func.networks.weights import load_weights
    from func.reconstruction.reconstructor import Reconstructor

    return Reconstructor(load_weights(find_weights(arguments.weights)), arguments.device, arguments.precision)


def over_pairs(score: Callable[[Pair], list[dict]], arguments: argparse.Namespace, tally: Tally) -> list[dict]:
    """The rows of every pair in the data folder; one that fails is told and left out.

    Of pairs in several folders that share a name, each is called by its folder too.

    Raises:
        BabyAIError: the folder holds no pair, or the output folder is not writable.
    """
    pairs, errors = find_pairs(arguments.data_dir)
    check_writable(arguments.output_dir)
    wanted = wanted_subjects(arguments.split, arguments.part)
    names = Counter(pair.name for pair in pairs)
    pairs = [
        pair if names[pair.name] == 1 else replace(pair, name=(pair.folder / pair.name).as_posix())
        for pair in pairs
        if wanted(pair.subject)
    ]
    for error in errors:
        tally.fail("", error)
    rows = []
    for pair in tqdm(pairs, desc="Scans", unit="scan", disable=None):
        try:
            rows += score(pair)
            tally.done += 1
        except Exception as error:
            tally.fail(pair.name, error)
    return rows


if __name__ == "__main__":
    sys.exit(main())
