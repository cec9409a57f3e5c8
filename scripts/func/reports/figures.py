"""Pictures of volumes: three planes, zooms, edges over a scan, and difference maps.

Every panel shows a plane of world space (RAS, mm), whatever grid an image lies on: anisotropic voxels appear as thick
as they are, and images on different grids appear in the same place at the same size. In the neurological convention
(default) the patient's left is on the left, in the radiological one on the right; each panel says which.

Each function returns a matplotlib Figure; `figure.savefig(path)` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from func.errors import BabyAIError
from func.scans.nifti import array_of
from func.slices.geometry import AXIS_ACROSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLANES = tuple(AXIS_ACROSS)
CONVENTIONS = ("neurological", "radiological")
DIFFERENCE_COLOURS = "RdBu_r"  # tells its two sides apart in all common kinds of colour blindness
EDGE_COLOUR = "#FFB000"
BESIDE_MIDLINE = np.array([5.0, 0, 0])  # mm: between the hemispheres there is little to see
_AIR = 0.05  # of the brightest: what is darker is air
_SPLINE_REACH = 6  # voxels: farther away, what a cubic spline is fitted to no longer matters

Images = Mapping[str, nib.Nifti1Image]


def three_planes(
    images: Images,
    centre: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    convention: str = "neurological",
) -> Figure:
    """Sagittal, coronal and axial plane of each image, one image a row.

    Args:
        images: title to image; the first one sets the field of view.
        centre: the point in world mm through which the planes go; by default beside the middle of the first one's head.
        window: intensities shown black and white; by default 0 and what is bright in the middle of each image's head.
        convention: neurological or radiological.
    """
    view = _View(next(iter(images.values())), centre, None, convention)
    figure, axes = _panels(len(images), 3, [view.size(plane) for plane in PLANES])
    for row, (title, image) in zip(axes, images.items(), strict=True):
        for panel, plane in zip(row, PLANES, strict=True):
            view.show(panel, image, plane, window or _window(image))
        _name_row(row[0], title)
    _name_columns(axes[0], PLANES)
    return figure


def zoom(
    images: Images,
    centre: Sequence[float] | None = None,
    width: float = 44,
    window: tuple[float, float] | None = None,
    planes: Sequence[str] = PLANES,
    convention: str = "neurological",
) -> Figure:
    """The same small square of each image side by side, one plane a row.

    Args:
        images: title to image; the last one sets the window, so put the truth there.
        centre: the middle of the square, world mm; by default the middle of the first image's head.
        width: side of the square, mm.
        window: intensities shown black and white, the same for all images.
        planes: which planes to draw.
        convention: neurological or radiological.
    """
    first, *_, last = [*images.values()] * 2
    view = _View(first, centre, width, convention)
    window = window or _window(last)
    figure, axes = _panels(len(planes), len(images), [(width, width)] * len(images))
    for row, plane in zip(axes, planes, strict=True):
        for panel, image in zip(row, images.values(), strict=True):
            view.show(panel, image, plane, window)
        _name_row(row[0], plane)
    _name_columns(axes[0], images)
    return figure


def edges(
    scan: nib.Nifti1Image,
    other: nib.Nifti1Image,
    centre: Sequence[float] | None = None,
    convention: str = "neurological",
) -> Figure:
    """The edges of one image drawn over another, to check a registration: they must lie on the scan's own edges."""
    view = _View(scan, centre, None, convention)
    figure, axes = _panels(1, 3, [view.size(plane) for plane in PLANES])
    for panel, plane in zip(axes[0], PLANES, strict=True):
        view.show(panel, scan, plane, _window(scan))
        outline = gaussian_filter(view.sample(other, plane, order=1), 1.0 / view.step)
        levels = bright_of(other) * np.array([0.15, 0.55])
        panel.contour(outline, levels=levels, colors=EDGE_COLOUR, linewidths=0.7, extent=view.extent(plane))
    _name_columns(axes[0], PLANES)
    return figure


def differences(
    images: Images,
    truth: nib.Nifti1Image,
    centre: Sequence[float] | None = None,
    limit: float | None = None,
    convention: str = "neurological",
) -> Figure:
    """Each image minus the truth, one image a row: red where it is too bright, blue where too dark.

    Args:
        images: title to image, on the truth's grid.
        truth: what they should be.
        centre: the point in world mm through which the planes go; by default beside the middle of the head.
        limit: the difference drawn in full colour; by default a quarter of what is white in the truth.
        convention: neurological or radiological.

    Raises:
        BabyAIError: an image lies on another grid than the truth.
    """
    view = _View(truth, centre, None, convention)
    limit = limit or _window(truth)[1] / 4
    figure, axes = _panels(len(images), 3, [view.size(plane) for plane in PLANES])
    for row, (title, image) in zip(axes, images.items(), strict=True):
        if image.shape != truth.shape or not np.allclose(image.affine, truth.affine, atol=1e-2):
            raise BabyAIError(
                f"'{title}' lies on another grid than the truth: resample one onto the other's grid first."
            )
        error = nib.Nifti1Image(array_of(image) - array_of(truth), truth.affine)
        for panel, plane in zip(row, PLANES, strict=True):
            drawn = view.show(panel, error, plane, (-limit, limit), DIFFERENCE_COLOURS, ink="black")
        _name_row(row[0], title)
    _name_columns(axes[0], PLANES)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.01)
    bar.ax.tick_params(colors="white", labelsize=8)
    bar.set_label("difference, intensity units", color="white", fontsize=9)
    return figure


class _View:
    """A box of world space, and how planes of it are sampled and drawn."""

    def __init__(self, image: nib.Nifti1Image, centre, width: float | None, convention: str):
        if convention not in CONVENTIONS:
            raise BabyAIError(f"'{convention}' is no display convention: choose {' or '.join(CONVENTIONS)}.")
        self.mirrored = convention == "radiological"
        self.low, self.high = head_box(image)
        self.centre = (self.low + self.high) / 2 + BESIDE_MIDLINE if centre is None else np.asarray(centre, float)
        if width is not None:
            self.low, self.high = self.centre - width / 2, self.centre + width / 2
        self.step = max(0.25, min(nib.affines.voxel_sizes(image.affine)) / (2 if width is None else 4))

    def size(self, plane: str) -> tuple[float, float]:
        """Width and height of a plane, mm."""
        across, up = _axes_of(plane)
        return self.high[across] - self.low[across], self.high[up] - self.low[up]

    def extent(self, plane: str) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of a plane, world mm."""
        across, up = _axes_of(plane)
        return self.low[across], self.high[across], self.low[up], self.high[up]

    def sample(self, image: nib.Nifti1Image, plane: str, order: int = 0) -> np.ndarray:
        """The image's values on a plane, (height, width), bottom row first; zero outside of the image."""
        ticks = [np.arange(self.low[axis] + self.step / 2, self.high[axis], self.step) for axis in _axes_of(plane)]
        return sample(image, plane_points(plane, self.centre, *ticks), order)

    def show(self, panel: Axes, image: nib.Nifti1Image, plane: str, window, colours: str = "gray", ink: str = "white"):
        """Draw a plane of an image in a panel, with its directions."""
        values = self.sample(image, plane)
        low, high = window
        drawn = panel.imshow(
            values,
            cmap=colours,
            vmin=low,
            vmax=high,
            origin="lower",
            extent=self.extent(plane),
            interpolation="nearest",
        )
        left, right = ("P", "A") if plane == "sagittal" else ("L", "R")
        if self.mirrored and plane != "sagittal":
            panel.invert_xaxis()
            left, right = right, left
        for x, letter in ((0.02, left), (0.98, right)):
            panel.text(
                x, 0.5, letter, transform=panel.transAxes, color=ink, fontsize=8, alpha=0.8,
                ha="left" if x < 0.5 else "right", va="center",
            )  # fmt: skip
        return drawn


def plane_points(plane: str, centre: np.ndarray, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Points of a plane through ``centre``, in world mm, at these positions across and up it: (up, across, 3)."""
    points = np.empty((len(up), len(across), 3))
    points[...] = centre
    first, second = _axes_of(plane)
    points[..., first], points[..., second] = across, up[:, None]
    return points


def sample(image: nib.Nifti1Image, points: np.ndarray, order: int, to_image: np.ndarray | None = None) -> np.ndarray:
    """An image's values at points (..., 3) in world mm, by splines of an order; zero outside of the image.

    ``to_image`` (4 x 4) takes the points to where they lie in the image's world.
    """
    matrix = np.linalg.inv(image.affine) @ (np.eye(4) if to_image is None else to_image)
    index, last = nib.affines.apply_affine(matrix, points).reshape(-1, 3), np.array(image.shape) - 1
    low = np.clip(np.floor(index.min(axis=0)).astype(int) - _SPLINE_REACH, 0, last)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + _SPLINE_REACH + 1, low + 1, image.shape)
    part = np.asarray(image.dataobj[tuple(map(slice, low, high))], dtype=np.float32)
    if order > 1:
        part = spline_filter(part, order, np.float32, "mirror")
    values = map_coordinates(part, (np.clip(index, 0, last) - low).T, order=order, mode="mirror", prefilter=False)
    values[((index < -0.5) | (index > last + 0.5)).any(axis=1)] = 0
    return values.reshape(points.shape[:-1])


def bright_of(image: nib.Nifti1Image, percentile: float = 99.5) -> float:
    """A percentile of what is brighter than zero; 1 where nothing is."""
    array = array_of(image).ravel()
    return _percentile(array[:: max(1, array.size // 500_000)], percentile) or 1.0


def white_of(image: nib.Nifti1Image) -> float:
    """The intensity shown white: the 99.5th percentile in the middle of the head.

    There is the brain; the fat of the scalp is so bright in a T1w that it would leave the brain dark.
    """
    coarse = array_of(_coarse(image))
    head = np.argwhere(coarse > _AIR * bright_of(image))
    if not len(head):
        return bright_of(image)
    low, high = head.min(axis=0), head.max(axis=0)
    middle = tuple(map(slice, low + (high - low) // 4, high - (high - low) // 4 + 1))
    return _percentile(coarse[middle], 99.5) or bright_of(image)


def _percentile(array: np.ndarray, percentile: float) -> float:
    """Of what is brighter than zero; 0 where nothing is."""
    bright = array[array > 0]
    return float(np.percentile(bright, percentile)) if bright.size else 0.0


def head_box(image: nib.Nifti1Image, margin: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinates of the head in an image, mm, with a margin; of the whole image if empty."""
    coarse = _coarse(image)
    inside = np.argwhere(array_of(coarse) > _AIR * bright_of(image))
    if not len(inside):
        inside = np.argwhere(np.ones(coarse.shape, bool))
    world = nib.affines.apply_affine(coarse.affine, inside)
    return world.min(axis=0) - margin, world.max(axis=0) + margin


def _coarse(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Every second, third ... voxel of a large image, so that some 96 are left along each axis."""
    return image.slicer[tuple(slice(None, None, max(1, length // 96)) for length in image.shape)]


def _axes_of(plane: str) -> tuple[int, int]:
    """The world axes that run across and up a plane."""
    return tuple(axis for axis in range(3) if axis != AXIS_ACROSS[plane])


def _window(image: nib.Nifti1Image) -> tuple[float, float]:
    """Black at zero, white as :func:`white_of` has it; a scan with much below zero starts there."""
    high, low = white_of(image), float(np.percentile(array_of(image)[::2, ::2, ::2], 0.5))
    return (low if low < -0.1 * high else 0.0), high


def _panels(rows: int, columns: int, sizes: Sequence[tuple[float, float]]) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns panels whose columns have the given sizes (mm)."""
    from matplotlib.figure import Figure

    widths, height = [size[0] for size in sizes], max(size[1] for size in sizes)
    inches = 8.0 / sum(widths) if columns > 1 else 4.0 / sum(widths)
    figure = Figure(figsize=(sum(widths) * inches + 0.4, rows * height * inches + 0.45), dpi=120, layout="constrained")
    figure.set_facecolor("black")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[], facecolor="black")
        panel.spines[:].set_visible(False)
    return figure, axes


def _name_row(panel: Axes, name: str) -> None:
    panel.set_ylabel(name, fontsize=9, color="white")


def _name_columns(panels: Sequence[Axes], names) -> None:
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, fontsize=9, pad=3, color="white")
