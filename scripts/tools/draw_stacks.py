"""Draw docs/stacks.png: what several stacks give, and what is left of motion once it is undone.

    python scripts/tools/draw_stacks.py

A digital newborn of full size is scanned in one stack and in three, with noise, lying still and moving, and
reconstructed each time as ``scripts/inference.py --network fast`` would. Phantoms are plainer than infants: what motion
costs these, docs/accuracy.md tells. It takes four minutes of one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from draw_results import BACKGROUND, DOTS, INK, MARGIN, MARK, add_panel, write
from func.errors import BabyAIError
from func.networks.weights import load_weights
from func.phantom import infant_brain
from func.reconstruction.acquired import RawSettings
from func.reconstruction.reconstructor import Reconstructor
from func.reports.scores import brain_mask, inner_brain, score_brain
from func.scans.case import Case
from func.scans.files import atomic
from func.scans.head import box_around
from func.scans.hub import find_weights
from func.scans.nifti import image_of
from func.scans.resampling import resample
from func.slices.geometry import AXIS_ACROSS
from func.slices.scanner import grid_around, scan

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[2]
OUTPUT = REPO_ROOT / "docs" / "stacks.png"
WEIGHTS = "bundled"

AGE_MONTHS, FIELD = 0, (114, 140, 124)  # a newborn, and the field of view of all scans, mm
PLANES = ("axial", "coronal", "sagittal")
THICKNESS = 4.0  # mm
NOISE = 0.01  # standard deviation, of the 99th percentile
FARTHEST = 2.5  # mm and degrees that the head moves while a stack is acquired
CUT, CORNER, ZOOM = 50, (92, 60), 36  # the sagittal plane drawn, and where the enlarged square lies in it, voxels
WIDTH, HEADING, CAPTION = 12.0, 0.32, 0.42  # inches


def main(argv: list[str] | None = None) -> int:
    """Scan, reconstruct and draw; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        weights = load_weights(find_weights(arguments.weights))
        phantom = infant_brain(FIELD, age_months=AGE_MONTHS)
        figure = draw(reconstructed(phantom, Reconstructor(weights, network="fast")))
        with atomic(arguments.output) as path:
            figure.savefig(path, format="png", dpi=DOTS, facecolor=BACKGROUND)
    except BabyAIError as error:
        print(f"draw_stacks.py: {error}", file=sys.stderr)
        return 1
    print(f"Drew {arguments.output}")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw one stack and three of a digital infant, still and moving.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture, .png (default: %(default)s)")
    parser.add_argument("--weights", default=WEIGHTS, help="bundled or a file (default: %(default)s)")
    return parser.parse_args(argv)


def reconstructed(phantom, reconstructor: Reconstructor) -> dict[str, tuple[np.ndarray, float | None]]:
    """What comes of the stacks and how near it is to the truth: caption to volume and PSNR inside the brain, dB."""
    truth = np.asarray(phantom.t2.dataobj)
    inner = inner_brain(brain_mask(truth))
    t1 = noisy(phantom.t1, np.random.default_rng(len(PLANES)))
    still, moving = (
        [Case.of(t1, scanned(phantom.t2, plane, moves), {"SliceThickness": THICKNESS}) for plane in PLANES]
        for moves in (False, True)
    )

    def result(cases: list[Case], motion: str) -> tuple[np.ndarray, float]:
        settings = RawSettings(motion=motion)
        if len(cases) > 1:
            image = reconstructor.reconstruct_together(cases, settings).image
        else:
            image = reconstructor.reconstruct(cases[0], settings).image
        volume = resample(image, truth.shape, phantom.t2.affine)
        return volume, score_brain(truth, volume, inner).psnr

    return {
        "one stack": result(still[:1], "auto"),
        "three stacks": result(still, "auto"),
        "three that moved,\nas if they had not": result(moving, "off"),
        "three that moved,\nmotion undone": result(moving, "auto"),
        "truth": (truth, None),
    }


def scanned(t2: nib.Nifti1Image, plane: str, moves: bool) -> nib.Nifti1Image:
    """A tilted stack; odd slices are acquired after even ones, and meanwhile the head drifts and jumps."""
    axis, rng = AXIS_ACROSS[plane], np.random.default_rng(AXIS_ACROSS[plane])
    sizes = np.where(np.arange(3) == axis, THICKNESS, 1.0)
    shape = np.ceil(np.array(t2.shape) / sizes).astype(int)
    center = apply_affine(t2.affine, (np.array(t2.shape) - 1) / 2)
    affine = grid_around(center, shape, sizes, rng.uniform(-8, 8, 3))
    if not moves:
        return noisy(scan(t2, shape, affine, axis), rng)
    moved = path(shape[axis], rng)
    order = [*range(0, shape[axis], 2), *range(1, shape[axis], 2)]
    poses = np.zeros((shape[axis], 4, 4))
    for index, (turn, shift) in zip(order, moved.reshape(-1, 2, 3), strict=True):
        rotation = Rotation.from_rotvec(turn, degrees=True).as_matrix()
        poses[index] = from_matvec(rotation, center - rotation @ center + shift)
    return noisy(scan(t2, shape, affine, axis, poses=poses), rng)


def noisy(image: nib.Nifti1Image, rng: np.random.Generator) -> nib.Nifti1Image:
    """A scan with a magnitude image's (Rician) noise in the head; the air around it is 0, as of an extracted brain."""
    values = np.asarray(image.dataobj)
    real, imaginary = NOISE * np.percentile(values[values > 0], 99) * rng.standard_normal((2, *values.shape))
    return image_of(np.where(values > 0, np.hypot(values + real, imaginary), 0).astype(np.float32), image.affine)


def path(count: int, rng: np.random.Generator) -> np.ndarray:
    """Turns in degrees and shifts in mm in order of acquisition, shape (count, 6): a slow drift and two jumps."""
    drift = ndimage.gaussian_filter1d(rng.standard_normal((count, 6)), count / 6, axis=0)
    drift *= 0.4 * FARTHEST / np.abs(drift).max()
    jumps = np.zeros((count, 6))
    for start in (count // 3, 3 * count // 4):
        jumps[start:] = rng.uniform(-0.6, 0.6, 6) * FARTHEST
    return drift + jumps


def draw(drawn: dict[str, tuple[np.ndarray, float | None]]) -> Figure:
    """Every volume in a column: a sagittal plane, and the square marked in it enlarged."""
    truth = drawn["truth"][0]
    white = float(np.percentile(truth[truth > 0], 99.5))
    planes = {title: volume[CUT].T for title, (volume, _) in drawn.items()}
    rows, columns = box_around(planes["truth"] > 0.05 * planes["truth"].max(), margin=3)
    width = (WIDTH - 2 * MARGIN) / len(drawn)
    height = width * (rows.stop - rows.start) / (columns.stop - columns.start)
    x, y = CORNER
    figure = Figure(figsize=(WIDTH, HEADING + CAPTION + height + width + 2 * MARGIN), facecolor=BACKGROUND)
    top = figure.get_figheight() - MARGIN
    scans = f"slices of {THICKNESS:g} mm, {100 * NOISE:g} % noise"
    heading = f"A digital newborn (a phantom), {scans}; PSNR of the inner brain"
    write(figure, MARGIN, top - HEADING / 2, heading, 12.5, INK, ha="left", weight="bold")
    for index, (title, (_, psnr)) in enumerate(drawn.items()):
        left = MARGIN + index * width
        whole = add_panel(figure, planes[title][rows, columns], (left, MARGIN + width, width, height), white)
        where = x - columns.start - 0.5, y - rows.start - 0.5
        whole.add_patch(Rectangle(where, ZOOM, ZOOM, fill=False, edgecolor=MARK, linewidth=1.2))
        square = planes[title][y : y + ZOOM, x : x + ZOOM]
        add_panel(figure, square, (left, MARGIN, width, width), white, MARK)
        caption = title if psnr is None else f"{title}   {psnr:.1f} dB"
        write(figure, left + width / 2, top - HEADING - CAPTION / 2, caption, 10.5, INK)
    return figure


if __name__ == "__main__":
    sys.exit(main())
