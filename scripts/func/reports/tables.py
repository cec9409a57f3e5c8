"""What an evaluation tells: scores and intervals by thickness, direction and age, in Markdown tables and a boxplot.

Subjects are what is counted: the scans of one are not independent, so that a mean is over subjects, each with the mean
of its scans, and so is its 95 % confidence interval (Student's t).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from func.reconstruction.uncertainty import coverage_when_left_out, refit, stretch
from func.scans.files import atomic

AGE_GROUPS = (
    (1, "newborn"),
    (6, "1 to 5 months"),
    (12, "6 to 11 months"),
    (math.inf, "12 months and older"),
)  # below so many months
METRICS_SHORT = ("psnr", "ssim")
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nrmse": "NRMSE"}
DIGITS = {"psnr": 2, "ssim": 3, "nrmse": 4}
REGIONS = {"brain": "Inside the brain", "volume": "Whole volume"}
RESULT, BASELINE = "BABY-AI", "cubic"


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
