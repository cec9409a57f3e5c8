"""Draw results_phantoms.png: three digital infants before and after, with the truth beside them.

    python scripts/tools/draw_results.py

Each infant is scanned with thick slices in another direction, reconstructed, and shown whole and enlarged. Phantoms are
among what the bundled weights were trained on and are plainer than infants, so that they gain more: what the weights
reach on real infants, scripts/evaluate.py tells.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.errors import BabyAIError
from func.networks.weights import load_weights
from func.phantom import infant_brain
from func.reconstruction.reconstructor import Reconstructor
from func.reports.scores import score_brain
from func.scans.case import Case
from func.scans.files import atomic
from func.scans.head import box_around
from func.scans.hub import find_weights
from func.scans.nifti import image_of
from func.slices.geometry import AXIS_ACROSS, SliceGeometry, acquire, upsample

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[2]
OUTPUT = REPO_ROOT / "results_phantoms.png"
WEIGHTS = "bundled"
THICKNESS = 4.0  # mm

ZOOM = 40  # mm
WIDTH = 12.0  # inches
DOTS = 110  # an inch
MARGIN, BELOW, ABOVE = 0.1, 0.28, 0.36  # inches: at the edges, for the captions, for the headings
BACKGROUND, INK, MARK = "#000000", "#f2f4f7", "#e69f00"


@dataclass(frozen=True)
class Infant:
    """Whom to scan, and how; `cut` and `corner` say what is drawn of the volumes, in voxels of the atlas grid.

    `cut` is the axis across the drawn plane and the plane's index, `corner` where the enlarged square begins.
    """

    name: str
    age_months: float
    seed: int
    direction: str
    cut: tuple[int, int]
    corner: tuple[int, int]


INFANTS = (
    Infant("newborn", 0, 1, "axial", (1, 112), (99, 62)),
    Infant("6 months", 6, 2, "coronal", (0, 98), (50, 104)),
    Infant("24 months", 24, 3, "sagittal", (2, 93), (86, 148)),
)


@dataclass(frozen=True)
class Drawn:
    """The planes of one infant by column title, their PSNR inside the brain (dB), and the white of all of them."""

    infant: Infant
    planes: dict[str, np.ndarray]
    psnr: dict[str, float]
    white: float


def main(argv: list[str] | None = None) -> int:
    """Scan, reconstruct and draw every infant; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        weights = load_weights(find_weights(arguments.weights))
        figure = draw([run_pipeline(infant, weights) for infant in INFANTS])
        with atomic(arguments.output) as path:
            figure.savefig(path, format="png", dpi=DOTS, facecolor=BACKGROUND)
    except BabyAIError as error:
        print(f"draw_results.py: {error}", file=sys.stderr)
        return 1
    print(f"Drew {arguments.output}")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw three digital infants before and after, beside the truth.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture, .png (default: %(default)s)")
    parser.add_argument("--weights", default=WEIGHTS, help="bundled, babyai or a file (default: %(default)s)")
    return parser.parse_args(argv)


def run_pipeline(infant: Infant, weights) -> Drawn:
    """Scan one infant with thick slices, reconstruct it, and cut out what is drawn."""
    phantom = infant_brain(age_months=infant.age_months, seed=infant.seed)
    truth = np.asarray(phantom.t2.dataobj)
    axis = AXIS_ACROSS[infant.direction]
    geometry = SliceGeometry.fitting(axis=axis, length=truth.shape[axis], thickness=THICKNESS)
    cubic = upsample(acquire(truth, geometry), geometry, truth.shape[axis])
    case = Case(phantom.t1, image_of(cubic, phantom.t2.affine), geometry.to_sidecar(1.0))
    result = Reconstructor(weights).reconstruct(case).image
    volumes = {"input, cubic interpolation": cubic, "reconstruction": np.asarray(result.dataobj), "truth": truth}
    return Drawn(
        infant,
        {title: np.take(volume, infant.cut[1], infant.cut[0]).T for title, volume in volumes.items()},
        {title: score_brain(truth, volume).psnr for title, volume in volumes.items() if title != "truth"},
        float(np.percentile(truth[truth > 0], 99.5)),
    )


def draw(cases: list[Drawn]) -> Figure:
    """A row for each infant: every volume whole, then enlarged, its PSNR below."""
    crops = [box_around(case.planes["truth"] > 0.05 * case.planes["truth"].max(), margin=3) for case in cases]
    shapes = [np.array([columns.stop - columns.start, rows.stop - rows.start]) for rows, columns in crops]
    # Each row fills the width: three times a plane and a square as high as it, with an eighth of that between.
    heights = [(WIDTH - 2 * MARGIN) / (3 * (wide / tall + 1) + 2 * 0.125) for wide, tall in shapes]
    top = sum(heights) + len(cases) * (ABOVE + BELOW) + MARGIN
    figure = Figure(figsize=(WIDTH, top), facecolor=BACKGROUND)
    for case, crop, height in zip(cases, crops, heights, strict=True):
        write(figure, MARGIN, top - ABOVE / 2, heading(case.infant), 12.5, INK, ha="left", weight="bold")
        draw_row(figure, case, crop, top - ABOVE - height, height)
        top -= ABOVE + height + BELOW
    return figure


def draw_row(figure: Figure, case: Drawn, crop: tuple[slice, slice], bottom: float, height: float) -> None:
    """One infant's volumes side by side, from `bottom` on, `height` inches high."""
    rows, columns = crop
    width = height * (columns.stop - columns.start) / (rows.stop - rows.start)
    x, y = case.infant.corner
    square = slice(y, y + ZOOM), slice(x, x + ZOOM)
    for index, (title, plane) in enumerate(case.planes.items()):
        left = MARGIN + index * (width + height + 0.125 * height)
        whole = add_panel(figure, plane[crop], (left, bottom, width, height), case.white)
        where = x - columns.start - 0.5, y - rows.start - 0.5
        whole.add_patch(Rectangle(where, ZOOM, ZOOM, fill=False, edgecolor=MARK, linewidth=1.2))
        add_panel(figure, plane[square], (left + width, bottom, height, height), case.white, MARK)
        score = f"{title}   {case.psnr[title]:.1f} dB" if title in case.psnr else title
        write(figure, left + (width + height) / 2, bottom - BELOW / 2, score, 11, INK)


def heading(infant: Infant) -> str:
    return f"{infant.name}: {THICKNESS:g} mm {infant.direction} slices"


def add_panel(figure: Figure, plane: np.ndarray, box, white: float, frame: str | None = None):
    """A plane in a box (left, bottom, width, height in inches)."""
    size = np.array([figure.get_figwidth(), figure.get_figheight()] * 2)
    panel = figure.add_axes(np.array(box) / size, facecolor=BACKGROUND)
    panel.imshow(plane, cmap="gray", vmin=0, vmax=white, origin="lower", interpolation="nearest", aspect="auto")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(visible=frame is not None, color=frame, linewidth=1.6)
    return panel


def write(figure: Figure, x: float, y: float, text: str, size: float, colour: str, **style) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, fontsize=size, color=colour, **({"ha": "center", "va": "center"} | style))


if __name__ == "__main__":
    sys.exit(main())
