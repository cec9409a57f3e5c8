"""What an evaluation tells: scores by slice thickness, direction and age, as Markdown tables and a boxplot.

Tables come from tidy data frames: a row for each scan, method and region (or tissue, or lesion), with the columns
``name``, ``subject``, ``method`` and one for each metric. Subjects are what is counted: the scans of one are not
independent, so that a mean is over subjects, each with the mean of its scans, and so is its 95 % confidence interval
(Student's t).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from func.reconstruction.uncertainty import coverage_when_left_out, refit, stretch
from func.reports.ages import in_order
from func.scans.files import atomic

RESULT, BASELINE = "BABY-AI", "cubic"
METHODS = (BASELINE, RESULT)
REGIONS = {"inner": "Inner brain", "brain": "Whole brain", "volume": "Whole volume"}
# Title and decimals of each metric.
SCORES = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 3),
    "nrmse": ("NRMSE", 4),
    "sharpness": ("sharpness", 2),
    "gain": ("gain (dB)", 2),
}
AGREEMENT = {"dice": ("Dice", 3), "volume_error": ("volume error (%)", 1)}
LESIONS = {"contrast": ("contrast (%)", 0), "size": ("size (%)", 0)}
INTERVALS = {
    "coverage": ("held (%)", 1),
    "correlation": ("correlation", 2),
    "median_width": ("half-width (%)", 2),
}


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame without its index.

    Raises:
        BabyAIError: the file could not be written.
    """
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write lines of Markdown.

    Raises:
        BabyAIError: the file could not be written.
    """
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_table_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by slice thickness, direction and name, the baseline before the result; an empty frame as it is."""
    if frame.empty:
        return frame
    places = frame.assign(place=frame.method.map(METHODS.index))
    return places.sort_values(["thickness_mm", "direction", "name", "place"]).drop(columns="place")


def with_gain(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with a column ``gain``: PSNR of a result minus that of its baseline, in its row; nan elsewhere."""
    psnr = scores.pivot(index=["name", "region"], columns="method", values="psnr").reindex(columns=METHODS)
    gains = (psnr[RESULT] - psnr[BASELINE]).rename("gain").reset_index().assign(method=RESULT)
    return scores.merge(gains, how="left", on=["name", "region", "method"])


def summary(scores: pd.DataFrame, tissues: pd.DataFrame, intervals: pd.DataFrame, depth: float) -> list[str]:
    """The whole evaluation in Markdown: in short, then in full for each region, tissues, and the uncertainty.

    Args:
        scores: with the columns of SCORES (see :func:`with_gain`), ``region`` and the labels of the scans.
        tissues: with the columns of AGREEMENT and ``tissue``; may be empty.
        intervals: with the columns of INTERVALS, ``errors`` and ``widths``; may be empty.
        depth: of the inner brain below the edge of the brain mask, mm.
    """
    lines = ["# Evaluation", "", verdict(scores), "", *in_short(scores[scores.region == "inner"])]
    for region, title in REGIONS.items():
        lines += [f"## {title}", "", table(grouped(scores[scores.region == region]), SCORES), ""]
    lines += [
        f"The inner brain lies {depth:g} mm or more below the edge of the brain mask. It counts first: where T1w and "
        "T2w were brain-extracted with one mask, the T1w gives the T2w's outline away, which no whole head does.",
        "",
        "Means over subjects (each with the mean of its scans) ± the half-width of their 95 % confidence interval. "
        "Gain is the paired difference in PSNR. Sharpness is the energy of the detail that slices cannot carry (above "
        "their Nyquist frequency, through-plane), of the truth's.",
    ]
    if not tissues.empty:
        lines += [
            "",
            "## Tissues, inner brain",
            "",
            table(tissues.assign(group=tissues.tissue, volume_error=tissues.volume_error.abs()), AGREEMENT),
            "",
            "Three classes of T2w intensity (Otsu's thresholds of each volume), against those of the truth; the bright "
            "one is mostly cerebrospinal fluid. From 6 to 12 months grey and white matter hardly differ on T2w.",
        ]
    if not intervals.empty:
        judged = intervals.assign(coverage=100 * intervals.coverage, median_width=100 * intervals.median_width)
        lines += ["", "## Uncertainty, inside the brain", "", table(grouped(judged), INTERVALS), ""]
        lines += calibration(intervals)
    return lines


def verdict(scores: pd.DataFrame) -> str:
    """In a sentence: which scans lost to their baseline in the inner brain."""
    gains = scores[scores.region == "inner"].dropna(subset="gain").sort_values("gain")
    if gains.empty:
        return "No baseline was given."
    lost = gains[gains.gain < 0]
    if lost.empty:
        least = gains.iloc[0]
        if len(gains) == 1:
            return f"The only scan gains over {BASELINE} in the inner brain, {least.gain:+.2f} dB."
        return (
            f"All {len(gains)} scans gain over {BASELINE} in the inner brain, {least.gain:+.2f} dB at least "
            f"({least['name']})."
        )
    named = ", ".join(f"{row['name']} ({row.gain:+.2f} dB)" for _, row in lost.iterrows())
    return f"{len(lost)} of {len(gains)} scans lose to {BASELINE} in the inner brain: {named}."


def in_short(scores: pd.DataFrame) -> list[str]:
    """Small tables of PSNR and SSIM by slice thickness, by direction, and by age and slice thickness."""
    sliced = scores[scores.thickness_mm.notna()]
    if sliced.empty:
        return []
    thickness = sliced.thickness_mm.map("{:g} mm".format)
    lines = ["## In short", "", "Inner brain, PSNR in dB / SSIM, means over n subjects.", ""]
    lines += [short_table(sliced, "slice thickness", thickness, sliced.method), ""]
    lines += [short_table(sliced, "slice direction", sliced.direction, sliced.method), ""]
    aged = sliced[sliced.age_group != ""].sort_values("age_group", key=in_order, kind="stable")
    if not aged.empty:
        lines += [short_table(aged, "age", thickness[aged.index], aged.age_group + ", " + aged.method), ""]
    return lines


def short_table(scores: pd.DataFrame, corner: str, columns: pd.Series, rows: pd.Series) -> str:
    """PSNR / SSIM (n) in Markdown, by two labels of each row of ``scores``; both keep the order of the rows."""
    by = {"row": pd.Categorical(rows, rows.unique()), "column": pd.Categorical(columns, columns.unique())}
    subjects = scores.assign(**by).groupby(["row", "column", "subject"], observed=True)[["psnr", "ssim"]].mean()
    means = subjects.groupby(["row", "column"], observed=True).agg(["mean", "count"])
    cells = [
        f"{psnr:.2f} / {ssim:.3f} (n = {count})".replace("/ 0.", "/ .")
        for psnr, ssim, count in zip(
            means[("psnr", "mean")], means[("ssim", "mean")], means[("psnr", "count")], strict=True
        )
    ]
    return markdown(pd.Series(cells, means.index).unstack("column").rename_axis(corner))


def grouped(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows once in each ``group`` that their scan is in: all, its thickness, direction, both, and age group."""
    sliced = frame.dropna(subset="thickness_mm")
    thickness = sliced.thickness_mm.map("{:g} mm".format).astype(str)
    aged = frame[frame.age_group != ""].sort_values("age_group", key=in_order)
    labels = [
        pd.Series("all", frame.index),
        thickness,
        sliced.direction.sort_values(),
        thickness + " " + sliced.direction,
        aged.age_group,
    ]
    parts = [frame.loc[label.index].assign(group=label) for label in labels if not label.empty]
    return pd.concat(parts)


def table(frame: pd.DataFrame, metrics: dict[str, tuple[str, int]]) -> str:
    """Means over subjects in Markdown: a row for each ``group``, a column for each metric and method that has any.

    Args:
        frame: with the columns ``group``, ``name``, ``subject``, ``method`` and one for each metric.
        metrics: title and decimals of each metric.
    """
    frame = frame.assign(group=pd.Categorical(frame.group, frame.group.unique()))
    counts = frame.groupby("group", observed=True).agg(scans=("name", "nunique"), subjects=("subject", "nunique"))
    subjects = frame.groupby(["group", "method", "subject"], observed=True)[list(metrics)].mean()
    by_group = subjects.groupby(["group", "method"], observed=True)
    means, half_widths = by_group.mean(), by_group.sem() * stats.t.ppf(0.975, by_group.count() - 1)
    columns = {}
    for metric, (title, digits) in metrics.items():
        texts = [
            "" if np.isnan(mean) else f"{mean:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")
            for mean, half in zip(means[metric], half_widths[metric], strict=True)
        ]
        by_method = pd.Series(texts, means.index).unstack("method", fill_value="")
        shown = [method for method in by_method if by_method[method].any()]
        for method in sorted(shown, key=METHODS.index):
            columns[title if metric == "gain" else f"{title} {method}"] = by_method[method]
    return markdown(counts.join(pd.DataFrame(columns)).rename_axis(""))


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, its index in the first column."""
    return frame.fillna("").to_markdown(tablefmt="pipe", disable_numparse=True, stralign="left")


def calibration(intervals: pd.DataFrame) -> list[str]:
    """In words: what the columns mean, and how the interval had to be changed to hold 90 % of the errors."""
    by_subject = {
        subject: (np.concatenate([*own.errors]), np.concatenate([*own.widths]))
        for subject, own in intervals.groupby("subject")
    }
    errors, widths = (np.concatenate(parts) for parts in zip(*by_subject.values(), strict=True))
    constant, factor = refit(errors, widths)
    worst = intervals.loc[intervals.coverage.idxmin()]
    lines = [
        "Held: share of the errors within the stated 90 % interval. Correlation: of the half-width with the size of "
        "the error. Half-width: the median, of the T2w's 99th percentile. "
        f"Least held: {100 * worst.coverage:.1f} % ({worst['name']}).",
        "",
        f"All half-widths times {stretch(errors, widths):.3f} would hold 90 % of the errors. To hold as many where it "
        "is narrow as where it is wide, multiply both constants of the interval in func/reconstruction/uncertainty.py "
        f"by {factor:.3f} and add {constant:+.4f} to the first.",
    ]
    if left_out := coverage_when_left_out(by_subject):
        held = ", ".join(f"sub-{subject} {100 * share:.1f} %" for subject, share in left_out.items())
        lines += ["", f"Such a fit to all other subjects holds of the errors of {held}."]
    return lines


def draw_boxplot(path: Path, scores: pd.DataFrame) -> None:
    """PSNR and SSIM in the inner brain by thickness, one panel for each direction.

    Raises:
        BabyAIError: the picture could not be written.
    """
    from matplotlib.figure import Figure

    scores = scores[scores.region == "inner"].fillna({"thickness_mm": 0})
    directions = sorted(scores.direction.unique())
    methods = [method for method in METHODS if (scores.method == method).any()]
    colours = {BASELINE: ("#C4C4C4", "#5A5A5A"), RESULT: ("#86B6DD", "#1B5687")}
    figure = Figure(figsize=(1.5 + 3 * len(directions), 6), layout="constrained")
    axes = figure.subplots(2, len(directions), sharex="col", sharey="row", squeeze=False)
    for (row, metric), (column, direction) in (
        (one, other) for one in enumerate(("psnr", "ssim")) for other in enumerate(directions)
    ):
        panel, part = axes[row, column], scores[scores.direction == direction]
        thicknesses = sorted(part.thickness_mm.unique())
        for shift, method in zip(np.linspace(-0.18, 0.18, len(methods)), methods, strict=True):
            own = part[part.method == method].groupby("thickness_mm")[metric].apply(list).reindex(thicknesses)
            fill, line = colours[method]
            panel.boxplot(
                [values if isinstance(values, list) else [] for values in own],
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
    axes[0, 0].set_ylabel("PSNR (dB), inner brain")
    axes[1, 0].set_ylabel("SSIM, inner brain")
    axes[0, -1].legend(loc="best")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)
