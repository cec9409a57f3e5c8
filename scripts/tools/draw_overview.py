"""Draw overview_model.png: the pipeline in one picture, from volumes that the pipeline itself makes.

    python scripts/tools/draw_overview.py

A digital infant is scanned with thick slices, reconstructed, and shown at every stage.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.errors import BabyAIError
from func.networks.guidance import CHANNELS, network_inputs
from func.networks.weights import load_weights
from func.phantom import infant_brain
from func.reconstruction.reconstructor import Reconstructor
from func.scans.case import Case
from func.scans.files import atomic
from func.scans.head import box_around
from func.scans.hub import find_weights
from func.scans.intensity import zero_based_scale
from func.scans.nifti import image_of
from func.slices.geometry import SliceGeometry, acquire, upsample

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[2]
OUTPUT = REPO_ROOT / "overview_model.png"
WEIGHTS = "bundled"
AGE_MONTHS = 3
THICKNESS = 4.0  # mm, axial slices
CORONAL = 106  # the plane drawn, through the thalami

BACKGROUND, INK, MUTED = "#0f1319", "#f2f4f7", "#93a0b0"
T1_COLOUR, T2_COLOUR, NETWORK_COLOUR, RESULT_COLOUR = "#56b4e9", "#e69f00", "#cc79a7", "#2fc79a"
WIDTH, HEIGHT = 16.0, 6.9  # inches


@dataclass(frozen=True)
class Stages:
    """Every volume of the picture, on one grid of 1 mm voxels in RAS order; intensities 0 to about 1."""

    t1: np.ndarray
    slices: np.ndarray
    cubic: np.ndarray
    detail: np.ndarray
    result: np.ndarray
    truth: np.ndarray
    geometry: SliceGeometry
    channels: tuple[int, ...]

    def stacked(self, slices: np.ndarray) -> np.ndarray:
        """Slices drawn as thick as they are: each plane shows the slice that it lies in."""
        planes = np.arange(self.truth.shape[2])
        nearest = np.rint((planes - self.geometry.first_center) / self.geometry.spacing).astype(int)
        return slices[:, :, np.clip(nearest, 0, self.geometry.count - 1)]


def main(argv: list[str] | None = None) -> int:
    """Make the volumes, draw them, write the picture; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        stages = run_pipeline(arguments.weights)
        with atomic(arguments.output) as path:
            draw(stages).savefig(path, format="png", dpi=140, facecolor=BACKGROUND)
    except BabyAIError as error:
        print(f"draw_overview.py: {error}", file=sys.stderr)
        return 1
    print(f"Drew {arguments.output}")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the pipeline in one picture, from volumes that it makes itself.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture, .png (default: %(default)s)")
    parser.add_argument("--weights", default=WEIGHTS, help="bundled or a file (default: %(default)s)")
    return parser.parse_args(argv)


def run_pipeline(weights_name: str) -> Stages:
    """Scan the phantom with thick slices and reconstruct it."""
    weights = load_weights(find_weights(weights_name))
    if weights.recipe != "compact":
        raise BabyAIError(f"The picture shows the compact network, and '{weights_name}' holds '{weights.recipe}'.")
    phantom = infant_brain(age_months=AGE_MONTHS)
    t1, truth = np.asarray(phantom.t1.dataobj), np.asarray(phantom.t2.dataobj)
    geometry = SliceGeometry.fitting(axis=2, length=truth.shape[2], thickness=THICKNESS)
    slices = acquire(truth, geometry)
    cubic = upsample(slices, geometry, truth.shape[2])
    case = Case(phantom.t1, image_of(cubic, phantom.t2.affine), geometry.to_sidecar(1.0))
    result = Reconstructor(weights).reconstruct(case).image
    result = np.asarray(result.dataobj)
    t1_scale, t2_scale = zero_based_scale(t1), zero_based_scale(truth)
    scaled = [t2_scale.apply(volume) for volume in (slices, cubic, result, truth)]
    inputs = network_inputs(t1_scale.apply(t1), scaled[1], scaled[0], geometry)
    detail = inputs[CHANNELS.index("suggested detail")]
    widths = (weights.network.head.in_channels, *(down.out_channels for down in weights.network.downs))
    return Stages(t1_scale.apply(t1), *scaled[:2], detail, *scaled[2:], geometry, widths)


def draw(stages: Stages) -> Figure:
    """The picture: inputs, what is derived from them, the network, the slices' last word, the result."""
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=BACKGROUND)
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    canvas.axis("off")
    crop = coronal_crop(stages.truth)
    thick = stages.stacked(stages.slices)

    write(canvas, 0.45, 6.45, "BABY-AI", 21, INK, weight="bold", ha="left")
    write(
        canvas,
        2.25,
        6.45,
        "from thick-slice T2w, of one stack or several, and isotropic T1w to isotropic T2w",
        14,
        MUTED,
        ha="left",
    )
    for x, title in ((1.65, "scans"), (4.75, "what is known"), (7.95, "network"), (10.95, "slices keep the last word")):
        write(canvas, x, 5.82, title, 12.5, MUTED)
    write(canvas, 14.1, 5.82, "isotropic T2w", 12.5, MUTED)

    put(figure, crop(stages.t1), (0.45, 3.35, 2.4, 2.2), T1_COLOUR, "T1w, 1 mm")
    put(figure, crop(thick), (0.45, 0.75, 2.4, 2.2), T2_COLOUR, f"T2w, {stages.geometry.thickness:g} mm slices")
    put(figure, crop(stages.detail), (3.55, 3.35, 2.4, 2.2), T1_COLOUR, "detail that the T1w suggests", (-0.35, 0.35))
    put(figure, crop(stages.cubic), (3.55, 0.75, 2.4, 2.2), T2_COLOUR, "slices at their true positions, cubic")
    for y, colour in ((4.45, T1_COLOUR), (1.85, T2_COLOUR)):
        arrow(canvas, (2.9, y), (3.5, y), colour)
    arrow(canvas, (2.9, 2.3), (3.5, 3.7), T2_COLOUR)
    arrow(canvas, (6.0, 4.2), (6.6, 3.6), T1_COLOUR)
    arrow(canvas, (6.0, 2.1), (6.6, 2.7), T2_COLOUR)

    draw_network(canvas, stages.channels)
    arrow(canvas, (9.3, 3.15), (9.72, 3.15), NETWORK_COLOUR)

    again = stages.stacked(acquire(stages.result, stages.geometry))
    put(figure, coronal_square(thick), (9.8, 3.55, 2.3, 2.0), T2_COLOUR, "measured slices  y")
    put(figure, coronal_square(again), (9.8, 0.95, 2.3, 2.0), RESULT_COLOUR, "slices of the result  Ax")
    write(canvas, 10.95, 3.19, "=", 17, INK, weight="bold")
    write(canvas, 10.95, 0.42, "x + A′(AA′)⁻¹(y − Ax)", 13, INK)
    write(canvas, 10.95, 0.14, "each slice where it lay, the head's motion included", 10.5, MUTED)
    arrow(canvas, (12.15, 3.15), (12.55, 3.15), RESULT_COLOUR)

    put(figure, crop(stages.result), (12.65, 1.9, 2.95, 2.7), RESULT_COLOUR, "")
    write(canvas, 14.12, 1.6, "1 mm in every direction", 10.5, INK)
    write(canvas, 14.12, 1.25, f"here a digital infant of {AGE_MONTHS} months", 10.5, MUTED)
    return figure


def coronal_crop(volume: np.ndarray):
    """A function that takes any of the volumes to its coronal plane, cropped to the head in `volume`."""
    across, _, up = box_around(volume > 0.05, margin=3)
    return lambda other: other[across, CORONAL, up].T


def coronal_square(volume: np.ndarray) -> np.ndarray:
    """A small part of the coronal plane, where cortex, white matter and the lateral ventricle meet."""
    return volume[95:141, CORONAL, 78:118].T


def put(figure: Figure, plane: np.ndarray, box, colour: str, caption: str, window=(0.0, 1.05)) -> None:
    """A plane in a frame (left, bottom, width, height in inches), a caption below."""
    left, bottom, width, height = box
    zero = max(0.0, -window[0]) / (window[1] - window[0])  # the grey of a value of zero, as around the brain
    panel = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT), facecolor=str(zero))
    panel.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", interpolation="nearest")
    panel.set(xticks=[], yticks=[], anchor="C", adjustable="datalim", aspect="equal")
    panel.spines[:].set(color=colour, linewidth=1.8)
    panel.set_xlabel(caption, color=INK, fontsize=10.5, labelpad=4)


def draw_network(canvas, channels: tuple[int, ...]) -> None:
    """The residual U-Net as boxes: as high as their maps are fine, as wide as they are many."""
    levels = [*range(len(channels)), *reversed(range(len(channels) - 1))]
    heights = [2.6 / 2**level for level in levels]
    widths = [0.10 + channels[level] / 480 for level in levels]
    gap = 0.14
    left = 7.95 - (sum(widths) + gap * (len(levels) - 1)) / 2
    tops = {}
    for index, (level, height, width) in enumerate(zip(levels, heights, widths, strict=True)):
        box = FancyBboxPatch(
            (left, 3.15 - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=NETWORK_COLOUR, edgecolor="none", alpha=0.55 + 0.2 * level,
        )  # fmt: skip
        canvas.add_patch(box)
        write(canvas, left + width / 2, 3.15 - height / 2 - 0.2, str(channels[level]), 9.5, MUTED)
        middle = left + width / 2
        if index >= len(channels):
            start, y = tops[level]
            skip = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.1, "connectionstyle": "arc3,rad=-0.35"}
            canvas.annotate("", xy=(middle, y + 0.05), xytext=(start, y + 0.05), arrowprops=skip)
        tops[level] = middle, 3.15 + height / 2
        left += width + gap
    write(canvas, 7.95, 1.25, "residual U-Net", 11.5, INK)
    write(canvas, 7.95, 0.95, "adds to the T2w what the slices lost,", 10.5, MUTED)
    write(canvas, 7.95, 0.68, "for each stack", 10.5, MUTED)


def arrow(canvas, start, end, colour: str) -> None:
    style = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "color": colour, "linewidth": 2.2}
    canvas.annotate("", xy=end, xytext=start, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})


def write(canvas, x: float, y: float, text: str, size: float, colour: str, **style) -> None:
    canvas.text(x, y, text, fontsize=size, color=colour, **({"ha": "center", "va": "center"} | style))


if __name__ == "__main__":
    sys.exit(main())
