"""The figure of one case: T1w, cubic interpolation and reconstruction in three planes and a zoom, in one SVG.

The SVG holds a JPEG for each panel, from which the page takes them; it can be looked at by itself.
"""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from PIL import Image, ImageColor
from scipy import ndimage

from func.processors import threads
from func.reports.figures import (
    BESIDE_MIDLINE,
    EDGE_COLOUR,
    PLANES,
    bright_of,
    head_box,
    plane_points,
    sample,
    white_of,
)
from func.scans.files import atomic
from func.slices.geometry import AXIS_ACROSS

ROWS = {
    "t1w": "T1w",
    "overlay": "T1w edges on T2w",
    "cubic": "T2w, cubic",
    "reconstruction": "Reconstruction",
    "uncertainty": "Uncertainty",
}
COLUMNS = (*PLANES, "zoom")
SIDES = {"sagittal": "PA", "coronal": "LR", "axial": "LR"}  # of the head, left and right in a panel
ZOOM = 44.0  # mm
UNCERTAINTY_TOP = 0.25  # of the T2w's 99th percentile, drawn brightest: one scale for all cases, to compare them by

_PIXELS = 256
_RIM = (8.0, 16.0)  # mm below the head's surface, where the middle of a zoom on the cortex lies
_OFF_MIDLINE = 14.0  # mm from it lies the middle of a coronal zoom, at least
_IN_SLAB = 0.9  # of a zoom lies where the T2w was measured, at least
_JPEG_QUALITY = 86
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Scans:
    """What a figure shows.

    Attributes:
        t1: None where there was no T1w.
        t2, result: the scan as it was given, and its reconstruction.
        to_t1, to_t2: shape (4, 4), world mm of the result -> where that lies in the T1w's and in the T2w's world.
        uncertainty: the expected error in the T2w's intensities, in the result's world; None where there is none.
        overlay: whether to show the T1w's edges over the T2w, to check by eye that they show one head.
    """

    t1: nib.Nifti1Image | None
    t2: nib.Nifti1Image
    result: nib.Nifti1Image
    to_t1: np.ndarray
    to_t2: np.ndarray
    uncertainty: nib.Nifti1Image | None = None
    overlay: bool = False


def draw_figure(name: str, scans: Scans) -> ElementTree.Element:
    """The figure of one case as an SVG: a row for each scan; three planes and a zoom on the cortex in columns."""
    panels, zoomed, box = _panels(scans)
    rows = [row for row in ROWS if (row, "axial") in panels]
    left, top, step = 120, 28, _PIXELS + 6
    svg = ElementTree.Element(
        "svg", xmlns=_SVG, viewBox=f"0 0 {left + 4 * step} {top + len(rows) * step}",
        **{"data-zoom": zoomed, "data-box": " ".join(f"{100 * share:.2f}" for share in box)},
    )  # fmt: skip
    ElementTree.SubElement(svg, "title").text = f"{name}: T1w, cubic interpolation and reconstruction"
    ElementTree.SubElement(svg, "rect", width="100%", height="100%")
    label = {"fill": "white", "font-family": "sans-serif", "font-size": "15"}
    for j, column in enumerate(COLUMNS):
        text = ElementTree.SubElement(svg, "text", x=str(left + j * step), y="18", **label)
        text.text = f"{zoomed}, {ZOOM:.0f} mm" if column == "zoom" else column
    titles = {**ROWS, "uncertainty": f"0 to ±{100 * UNCERTAINTY_TOP:.0f} %"}
    for i, row in enumerate(rows):
        ElementTree.SubElement(svg, "text", x="6", y=str(top + i * step + 20), **label).text = titles[row]
        for j, column in enumerate(COLUMNS):
            ElementTree.SubElement(
                svg, "image", id=f"{row}-{column}", x=str(left + j * step), y=str(top + i * step),
                width=str(_PIXELS), height=str(_PIXELS), href=panels[row, column],
            )  # fmt: skip
            for x, letter in zip((4, _PIXELS - 14), SIDES[zoomed if column == "zoom" else column], strict=True):
                where = {"x": str(left + j * step + x), "y": str(top + i * step + _PIXELS - 6)}
                ElementTree.SubElement(svg, "text", **where, **label).text = letter
    x, y, side = (_PIXELS * share for share in box)
    ElementTree.SubElement(
        svg, "rect", id="zoomed", x=f"{left + COLUMNS.index(zoomed) * step + x:.1f}", y=f"{top + y:.1f}",
        width=f"{side:.1f}", height=f"{side:.1f}", fill="none", stroke="white",
    )  # fmt: skip
    return svg


def save_figure(path: Path, svg: ElementTree.Element) -> None:
    """Write a figure.

    Raises:
        BabyAIError: it could not be written.
    """
    with atomic(path) as temporary:
        ElementTree.ElementTree(svg).write(temporary, encoding="utf-8", xml_declaration=True)


def read_figure(path: Path) -> tuple[dict[str, dict[str, str]], str, list[str]]:
    """The panels of a figure by row and column, the plane of its zoom, and where in it, in percent of a panel.

    All empty where the figure is missing or damaged.
    """
    try:
        svg = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return {}, "", []
    found = {image.get("id"): image.get("href") for image in svg.iter(f"{{{_SVG}}}image")}
    panels = {row: {column: found[f"{row}-{column}"] for column in COLUMNS} for row in ROWS if f"{row}-zoom" in found}
    return panels, svg.get("data-zoom", ""), svg.get("data-box", "").split()


def _panels(scans: Scans) -> tuple[dict[tuple[str, str], str], str, tuple[float, float, float]]:
    """Every panel of a figure, by row and column, as a data URI; and the plane that the zoom shows.

    Last where in that plane: left, top and side of the square, as shares of a panel.
    """
    low, high = head_box(scans.result)
    centre, width = (low + high) / 2 + BESIDE_MIDLINE, float((high - low).max())
    points = {plane: _square(plane, centre, width) for plane in PLANES}
    # Each by itself: near a plane there is less to fit by a spline than the whole of a scan.
    with ThreadPoolExecutor(threads()) as pool:
        shown = dict(zip(points, pool.map(partial(_sampled, scans), points.values()), strict=True))
    zoomed = "sagittal" if np.argmax(np.abs(_slice_normal(scans.t2))) == 1 else "coronal"
    middle = _place_to_zoom(scans, zoomed, points[zoomed], shown[zoomed], width)
    shown["zoom"] = _sampled(scans, _square(zoomed, middle, ZOOM))
    whites = dict.fromkeys(("cubic", "reconstruction"), white_of(scans.result))
    if scans.t1:
        whites["t1w"] = white_of(scans.t1)
    panels = {}
    for column, values in shown.items():
        for row, white in whites.items():
            panels[row, column] = _jpeg(values[row], white)
        if scans.t1 and scans.overlay:
            panels["overlay", column] = _overlay(values["t1w"] / whites["t1w"], values["cubic"] / whites["cubic"])
        if scans.uncertainty:
            top = UNCERTAINTY_TOP * bright_of(scans.result, 99)
            panels["uncertainty", column] = _jpeg(values["uncertainty"], top, "inferno")
    across, up = (axis for axis in range(3) if axis != AXIS_ACROSS[zoomed])
    x, y, side = (middle - centre)[across] / width, (centre - middle)[up] / width, ZOOM / width
    return panels, zoomed, (0.5 + x - side / 2, 0.5 + y - side / 2, side)


def _sampled(scans: Scans, points: np.ndarray) -> dict[str, np.ndarray]:
    """What each scan shows at points of the result's world, by the row that it is drawn in."""
    values = {"cubic": sample(scans.t2, points, 3, scans.to_t2), "reconstruction": sample(scans.result, points, 3)}
    if scans.t1:
        values["t1w"] = sample(scans.t1, points, 3, scans.to_t1)
    if scans.uncertainty:
        values["uncertainty"] = sample(scans.uncertainty, points, 3)
    return values


def _square(plane: str, centre: np.ndarray, width: float) -> np.ndarray:
    """World points of a square of a plane, shape (pixels, pixels, 3), top row first, left and posterior to the left."""
    across, up = (axis for axis in range(3) if axis != AXIS_ACROSS[plane])
    ticks = ((np.arange(_PIXELS) + 0.5) / _PIXELS - 0.5) * width
    return plane_points(plane, centre, centre[across] + ticks, centre[up] - ticks)


def _place_to_zoom(
    scans: Scans, plane: str, there: np.ndarray, shown: dict[str, np.ndarray], width: float
) -> np.ndarray:
    """Middle of the zoom into a plane across the slices: on the upper convexity, where the reconstruction adds most.

    Only where T2w and T1w have a field of view; in a slab that shows no convexity, where most of the head lies in it.

    Args:
        there: world points of the plane, shape (pixels, pixels, 3).
        shown: what the scans show there, by row.
        width: of the plane, mm.
    """
    side = max(3, round(ZOOM / width * _PIXELS))
    values, cubic = shown["reconstruction"], shown["cubic"]
    head = ndimage.binary_fill_holes(values > 0.1 * bright_of(scans.result))
    measured = _seen_by(scans.t2, there, scans.to_t2)
    if scans.t1:
        measured &= _seen_by(scans.t1, there, scans.to_t1)
    depth = ndimage.distance_transform_edt(head) * width / _PIXELS
    rim = (depth > _RIM[0]) & (depth < _RIM[1])
    rim &= ndimage.uniform_filter(measured.astype(float), side, mode="constant") > _IN_SLAB
    rim[_PIXELS // 2 :] = False
    if plane == "coronal":
        beside = round(_OFF_MIDLINE / width * _PIXELS)
        rim[:, _PIXELS // 2 - beside : _PIXELS // 2 + beside] = False
    worth = rim * ndimage.uniform_filter(np.abs(values - cubic), side, mode="constant")
    if not worth.any():
        worth = ndimage.uniform_filter((measured & head).astype(float), side, mode="constant")
    row, column = np.unravel_index(int(np.argmax(worth)), worth.shape)
    return there[row, column] if worth.any() else there.mean(axis=(0, 1))


def _seen_by(image: nib.Nifti1Image, points: np.ndarray, to_image: np.ndarray) -> np.ndarray:
    """Which world points (..., 3) lie in an image's field of view, once brought to its world."""
    index = apply_affine(np.linalg.inv(image.affine) @ to_image, points)
    return ((index > -0.5) & (index < np.array(image.shape) - 0.5)).all(axis=-1)


def _slice_normal(t2: nib.Nifti1Image) -> np.ndarray:
    """Unit vector across the slices of a raw stack; of an isotropic one, upwards."""
    sizes = voxel_sizes(t2.affine)
    if sizes.max() < 1.2 * sizes.min():
        return np.array([0.0, 0, 1])
    axis = int(np.argmax(sizes))
    return t2.affine[:3, axis] / sizes[axis]


def _overlay(t1: np.ndarray, t2: np.ndarray) -> str:
    """The T2w with the edges of the T1w in colour, as a data URI; both shown white at 1."""
    from skimage.feature import canny

    edges, grey = canny(t1, sigma=2.0), np.clip(t2, 0, 1)
    coloured = np.where(edges[..., None], np.array(ImageColor.getrgb(EDGE_COLOUR)) / 255, grey[..., None])
    return _jpeg(coloured, 1.0)


def _jpeg(values: np.ndarray, white: float, colours: str = "gray") -> str:
    """Values, shape (pixels, pixels), in a map of colours, or three colours of each pixel, from 0 to ``white``."""
    shares = np.clip(values / white, 0, 1)
    if colours != "gray":
        from matplotlib import colormaps

        shares = colormaps[colours](shares)[..., :3]
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.uint8(255 * shares + 0.5)).convert("RGB")
    pixels.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
