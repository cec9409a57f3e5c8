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
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.special import stdtrit
from tqdm import tqdm

from func.arguments import script_parser
from func.calibration import correlation, coverage, coverage_when_left_out, refit, sampled, stretch
from func.errors import BabyAIError
from func.intensity import zero_based_scale
from func.metrics import brain_mask, score_brain, score_volume
from func.running import Tally, in_processes, processors, run_to_the_end
from func.volumes import (
    SLICING,
    atomic,
    check_same_grid,
    entities_of,
    find_scans,
    read_volume,
    result_path,
    slicing_of,
    stem_of,
    to_ras,
)

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
REFERENCE_DIR = REPO_ROOT / "data"  # holds the isotropic sub-*_T2w.nii.gz, and participants.tsv if there is one
RESULTS_DIR = REPO_ROOT / "results"  # holds the sub-*_desc-isotropic_T2w.nii.gz
BASELINE_DIR = None  # holds the up-sampled scans that the results were made from; None: no baseline
OUTPUT_DIR = None  # None: the folder "evaluation" in RESULTS_DIR
WORKERS = processors()

AGE_GROUPS = ((1, "newborn"), (6, "1 to 5 months"), (12, "6 to 11 months"), (math.inf, "12 months and older"))
METRICS_SHORT = ("psnr", "ssim")
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nrmse": "NRMSE"}
DIGITS = {"psnr": 2, "ssim": 3, "nrmse": 4}
REGIONS = {"brain": "Inside the brain", "volume": "Whole volume"}
RESULT, BASELINE = "BABY-AI", "cubic"


@dataclass(frozen=True)
class Case:
    """One reconstruction, its truth, the up-sampled scan that it was made from, and its map of uncertainty."""

    result: Path
    truth: Path
    baseline: Path | None
    uncertainty: Path | None
    age_group: str


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv."""

    name: str
    subject: str
    session: str
    age_group: str
    direction: str
    thickness_mm: float | None
    method: str
    region: str
    psnr: float
    ssim: float
    nrmse: float


@dataclass(frozen=True)
class Interval:
    """How the stated interval of one scan held inside the brain: one line of uncertainty.csv, and what it is from.

    ``errors`` and ``widths`` are of some of the voxels, as shares of the T2w's 99th percentile.
    """

    name: str
    subject: str
    session: str
    age_group: str
    direction: str
    thickness_mm: float | None
    coverage: float
    correlation: float
    median_width: float
    errors: np.ndarray = field(repr=False)
    widths: np.ndarray = field(repr=False)


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


def write_summary(path: Path, rows: list[Row], intervals: list[Interval]) -> None:
    """Means and intervals as Markdown tables: in short, then one in full for each region, then the uncertainty."""
    lines = ["# Evaluation", "", verdict(rows), "", *in_short([row for row in rows if row.region == "brain"])]
    for region, title in REGIONS.items():
        lines += [f"## {title}", "", *table([row for row in rows if row.region == region]), ""]
    lines += [
        "Means over subjects (each with the mean of its scans) ± the half width of their 95 % confidence interval. "
        "Gain is the paired difference in PSNR."
    ]
    if intervals:
        lines += ["", "## Uncertainty, inside the brain", "", *interval_table(intervals), "", *calibration(intervals)]
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_short(rows: list[Row]) -> list[str]:
    """Small Markdown tables of PSNR and SSIM by slice thickness, by direction, and by age and slice thickness."""
    sliced = [row for row in rows if row.direction]
    if not sliced:
        return []
    lines = ["## In short", "", "Inside the brain, PSNR in dB / SSIM, means over subjects.", ""]
    for title, key in (("slice thickness", thickness_title), ("slice direction", lambda row: row.direction)):
        lines += [f"| {title} {short_table({'': sliced}, key)}", ""]
    ages = sorted({row.age_group for row in sliced if row.age_group}, key=lambda age: in_order((age,)))
    if ages:
        by_age = {}
        for age in ages:
            group = [row for row in sliced if row.age_group == age]
            by_age[f"{age} ({len({row.subject for row in group})}), "] = group
        lines += [f"| age (subjects) {short_table(by_age, thickness_title)}", ""]
    return lines


def thickness_title(row: Row) -> str:
    return f"{row.thickness_mm:g} mm"


def short_table(groups_of_rows: dict[str, list[Row]], key: Callable[[Row], str]) -> str:
    """The rest of a Markdown table whose columns ``key`` tells apart: a line for each group and method."""
    everything = [row for group in groups_of_rows.values() for row in group]
    columns = sorted({key(row) for row in everything}, key=lambda column: in_order((column,)))
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for title, group in groups_of_rows.items():
        for method in (method for method in (BASELINE, RESULT) if any(row.method == method for row in group)):
            cells = []
            for column in columns:
                chosen = [row for row in group if row.method == method and key(row) == column]
                psnr, ssim = (
                    mean_over_subjects((row.subject, getattr(row, m)) for row in chosen) for m in METRICS_SHORT
                )
                cells.append(f"{psnr:.2f} / {ssim:.3f}".replace("/ 0.", "/ .") if chosen else "")
            lines.append(f"| {title}{method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval_table(intervals: list[Interval]) -> list[str]:
    """A Markdown table of how the stated interval held, in the same groups as :func:`table`."""
    columns = {
        "held, %": ("coverage", 100, 1),
        "correlation": ("correlation", 1, 2),
        "half-width, %": ("median_width", 100, 2),
    }
    lines = ["| | " + " | ".join(["scans", "subjects", *columns]) + " |", "|---|" + "---:|" * (len(columns) + 2)]
    for title, belongs in groups(intervals):
        group = [interval for interval in intervals if belongs(interval)]
        cells = [str(len(group)), str(len({interval.subject for interval in group}))]
        for name, unit, digits in columns.values():
            values = ((interval.subject, unit * getattr(interval, name)) for interval in group)
            cells.append(mean_and_interval(values, digits))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def calibration(intervals: list[Interval]) -> list[str]:
    """In words: what the columns mean, and how the interval had to be changed to hold 90 % of the errors."""
    by_subject = {}
    for subject in sorted({interval.subject for interval in intervals}):
        own = [interval for interval in intervals if interval.subject == subject]
        by_subject[subject] = tuple(
            np.concatenate([getattr(interval, part) for interval in own]) for part in ("errors", "widths")
        )
    errors, widths = (np.concatenate(parts) for parts in zip(*by_subject.values(), strict=True))
    constant, factor = refit(errors, widths)
    worst = min(intervals, key=lambda interval: interval.coverage)
    lines = [
        "Held: share of the errors within the stated 90 % interval. Correlation: of the half-width with the size of "
        "the error. Half-width: the median, of the T2w's 99th percentile. "
        f"Least held: {100 * worst.coverage:.1f} % ({worst.name}).",
        "",
        f"All half-widths times {stretch(errors, widths):.3f} would hold 90 % of the errors. To hold as many where it "
        f"is narrow as where it is wide, multiply both constants of the interval in func/reconstruction.py by "
        f"{factor:.3f} and add {constant:+.4f} to the first.",
    ]
    if left_out := coverage_when_left_out(by_subject):
        held = ", ".join(f"sub-{subject} {100 * share:.1f} %" for subject, share in left_out.items())
        lines += ["", f"Such a fit to all other subjects holds of the errors of {held}."]
    return lines


def table(rows: list[Row]) -> list[str]:
    """A Markdown table: all scans, then by thickness, direction, both, and age group."""
    methods = [method for method in (BASELINE, RESULT) if any(row.method == method for row in rows)]
    columns = [(metric, method) for metric in METRICS for method in methods]
    gains = paired_gains(rows)
    heads = [f"{METRICS[metric]} {method}" for metric, method in columns] + ["gain (dB)"] * bool(gains)
    lines = ["| | " + " | ".join(["scans", "subjects", *heads]) + " |", "|---|" + "---:|" * (len(heads) + 2)]
    for title, belongs in groups(rows):
        group = [row for row in rows if belongs(row)]
        cells = [str(len({row.name for row in group})), str(len({row.subject for row in group}))]
        for metric, method in columns:
            values = ((row.subject, getattr(row, metric)) for row in group if row.method == method)
            cells.append(mean_and_interval(values, DIGITS[metric]))
        if gains:
            names = {row.name for row in group}
            cells.append(mean_and_interval(((subject, gain) for name, subject, gain in gains if name in names), 2))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def groups(rows: list[Row] | list[Interval]) -> list[tuple[str, Callable[[Row | Interval], bool]]]:
    """Title and membership of every group that the scans fall into."""
    keys = {
        "all": lambda row: ("all",),
        "thickness": lambda row: (f"{row.thickness_mm:g} mm",) if row.direction else None,
        "direction": lambda row: (row.direction,) if row.direction else None,
        "slicing": lambda row: (f"{row.thickness_mm:g} mm", row.direction) if row.direction else None,
        "age": lambda row: (row.age_group,) if row.age_group else None,
    }
    found = []
    for key in keys.values():
        for value in sorted({key(row) for row in rows} - {None}, key=in_order):
            found.append((" ".join(value), lambda row, key=key, value=value: key(row) == value))
    return found


def in_order(value: tuple[str, ...]) -> tuple:
    """Thicknesses in order of their size, age groups in order of age, the rest by the alphabet."""
    ages = [name for _, name in AGE_GROUPS]
    number = re.match(r"[\d.]+(?= mm)", value[0])
    return float(number[0]) if number else 0.0, ages.index(value[0]) if value[0] in ages else len(ages), value


def paired_gains(rows: list[Row]) -> list[tuple[str, str, float]]:
    """(name, subject, PSNR of the result minus PSNR of its baseline) of every scan that has both."""
    baselines = {(row.name, row.region): row.psnr for row in rows if row.method == BASELINE}
    return [
        (row.name, row.subject, row.psnr - baselines[row.name, row.region])
        for row in rows
        if row.method == RESULT and (row.name, row.region) in baselines
    ]


def mean_and_interval(values: Iterable[tuple[str, float]], digits: int) -> str:
    """Mean over subjects of the means of their scans, ± the half width of its 95 % confidence interval.

    A subject's scans are not independent, so that subjects are what is counted. One alone has no interval.
    """
    means = subject_means(values)
    if not means.size:
        return ""
    text = f"{means.mean():.{digits}f}"
    if means.size > 1 and np.isfinite(means).all():
        half = stdtrit(means.size - 1, 0.975) * means.std(ddof=1) / math.sqrt(means.size)
        text += f" ± {half:.{digits}f}"
    return text


def mean_over_subjects(values: Iterable[tuple[str, float]]) -> float:
    """Mean over subjects of the means of their scans; nan of none."""
    means = subject_means(values)
    return float(means.mean()) if means.size else math.nan


def subject_means(values: Iterable[tuple[str, float]]) -> np.ndarray:
    """Mean of each subject's values, shape (subjects,)."""
    by_subject: dict[str, list[float]] = {}
    for subject, value in values:
        by_subject.setdefault(subject, []).append(value)
    return np.array([np.mean(scores) for scores in by_subject.values()])


def verdict(rows: list[Row]) -> str:
    """In a sentence: which scans lost to their baseline inside the brain."""
    gains = paired_gains([row for row in rows if row.region == "brain"])
    if not gains:
        return "No baseline was given."
    lost = [f"{name} ({gain:+.2f} dB)" for name, _, gain in gains if gain < 0]
    if not lost:
        least, name = min((gain, name) for name, _, gain in gains)
        return f"All {len(gains)} scans gain over {BASELINE} inside the brain, {least:+.2f} dB at least ({name})."
    return f"{len(lost)} of {len(gains)} scans lose to {BASELINE} inside the brain: {', '.join(lost)}."


def draw_boxplot(path: Path, rows: list[Row]) -> None:
    """PSNR and SSIM inside the brain by thickness, one panel for each direction."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.region == "brain"]
    directions = sorted({row.direction for row in rows})
    methods = [method for method in (BASELINE, RESULT) if any(row.method == method for row in rows)]
    colours = {BASELINE: ("#C4C4C4", "#5A5A5A"), RESULT: ("#86B6DD", "#1B5687")}
    figure = Figure(figsize=(1.5 + 3 * len(directions), 6), layout="constrained")
    axes = figure.subplots(2, len(directions), sharex="col", sharey="row", squeeze=False)
    for (i, metric), (j, direction) in product(enumerate(("psnr", "ssim")), enumerate(directions)):
        panel = axes[i, j]
        thicknesses = sorted({row.thickness_mm for row in rows if row.direction == direction}, key=lambda mm: mm or 0)
        for shift, method in zip(np.linspace(-0.18, 0.18, len(methods)), methods, strict=True):
            scores = [
                [
                    getattr(row, metric)
                    for row in rows
                    if (row.direction, row.thickness_mm, row.method) == (direction, thickness, method)
                ]
                for thickness in thicknesses
            ]
            fill, line = colours[method]
            panel.boxplot(
                scores,
                positions=np.arange(len(thicknesses)) + shift,
                widths=0.3,
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": fill, "edgecolor": line},
                medianprops={"color": line, "linewidth": 2},
                whiskerprops={"color": line},
                capprops={"color": line},
                flierprops={"markeredgecolor": line, "markersize": 3},
                label=method,
            )
        panel.set_xticks(range(len(thicknesses)), [f"{thickness:g}" if thickness else "" for thickness in thicknesses])
        panel.grid(axis="y", alpha=0.3)
    for panel, direction in zip(axes[0], directions, strict=True):
        panel.set_title(direction or "slices not stated")
    for panel in axes[1]:
        panel.set_xlabel("slice thickness (mm)")
    axes[0, 0].set_ylabel("PSNR (dB)")
    axes[1, 0].set_ylabel("SSIM")
    axes[0, -1].legend(loc="best")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
