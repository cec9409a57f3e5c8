"""Score reconstructions against isotropic ground truth, beside cubic interpolation.

    python scripts/evaluate.py --reference-dir DATA --results-dir RESULTS --baseline-dir SYNTHESISED

Every sub-*_desc-isotropic_T2w.nii.gz below RESULTS is compared with the T2w of the same subject, session and run below
DATA, and so is what it was made from, the up-sampled thick-slice scan below SYNTHESISED. Writes metrics.csv (one row
for each scan, method and region), summary.md (means with 95 % confidence intervals) and boxplot.png.

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
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import stdtrit
from tqdm import tqdm

from func.arguments import script_parser
from func.errors import BabyAIError
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
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nrmse": "NRMSE"}
DIGITS = {"psnr": 2, "ssim": 3, "nrmse": 4}
REGIONS = {"brain": "Inside the brain", "volume": "Whole volume"}
RESULT, BASELINE = "BABY-AI", "cubic"


@dataclass(frozen=True)
class Case:
    """One reconstruction, its truth, and the up-sampled scan that it was made from."""

    result: Path
    truth: Path
    baseline: Path | None
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
    with tqdm(total=len(cases), desc="Scans", unit="scan", disable=None) as bar:
        for case, outcome in in_processes(score_case, cases, arguments.workers):
            if isinstance(outcome, BaseException):
                tally.fail(case.result.name, outcome)
            else:
                tally.done += 1
                rows += outcome
            bar.update()
    if not rows:
        return
    rows.sort(key=lambda row: (row.name, row.region, row.method))
    write_csv(arguments.output_dir / "metrics.csv", rows)
    write_summary(arguments.output_dir / "summary.md", rows)
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
        if not is_reconstruction(path) and not slicing_of(path):
            truths.setdefault(identity(path), []).append(path)
    baselines = {}
    if arguments.baseline_dir:
        inputs = find_t2s(arguments.baseline_dir, "--baseline-dir")
        baselines = {result_path(path, "").name: path for path in inputs if not is_reconstruction(path)}
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
            cases.append(Case(result, truth, baseline, ages.get(entities_of(result)["sub"], "")))
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


def score_case(case: Case) -> list[Row]:
    """Scores of a reconstruction and of its baseline, inside the brain and over the whole volume.

    Raises:
        BabyAIError: a volume is unreadable, or lies on another grid than the truth.
    """
    truth_image = to_ras(read_volume(case.truth))
    truth = truth_image.get_fdata(dtype=np.float32)
    brain = brain_mask(truth)
    entities = entities_of(case.result)
    direction, thickness = slicing_of(case.result) or ("", None)
    labels = stem_of(case.result), entities["sub"], entities.get("ses", ""), case.age_group, direction, thickness
    rows = []
    for method, path in ((RESULT, case.result), (BASELINE, case.baseline)):
        if path is None:
            continue
        image = to_ras(read_volume(path))
        check_same_grid(truth_image, image)
        estimate = image.get_fdata(dtype=np.float32)
        scores = {"brain": score_brain(truth, estimate, brain), "volume": score_volume(truth, estimate)}
        rows += [Row(*labels, method, region, **asdict(scored)) for region, scored in scores.items()]
    return rows


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line for each scan, method and region."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def write_summary(path: Path, rows: list[Row]) -> None:
    """Means and intervals as Markdown tables, one for each region."""
    lines = ["# Evaluation", "", verdict(rows), ""]
    for region, title in REGIONS.items():
        lines += [f"## {title}", "", *table([row for row in rows if row.region == region]), ""]
    lines += [
        "Means over subjects (each with the mean of its scans) ± the half width of their 95 % confidence interval. "
        "Gain is the paired difference in PSNR."
    ]
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def groups(rows: list[Row]) -> list[tuple[str, Callable[[Row], bool]]]:
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
    by_subject: dict[str, list[float]] = {}
    for subject, value in values:
        by_subject.setdefault(subject, []).append(value)
    means = np.array([np.mean(scores) for scores in by_subject.values()])
    if not means.size:
        return ""
    text = f"{means.mean():.{digits}f}"
    if means.size > 1 and np.isfinite(means).all():
        half = stdtrit(means.size - 1, 0.975) * means.std(ddof=1) / math.sqrt(means.size)
        text += f" ± {half:.{digits}f}"
    return text


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
