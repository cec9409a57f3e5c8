"""The report on an output folder: one self-contained page made from the results' sidecars and figures.

Every result has a figure in ``figures/``, an SVG that shows T1w, cubic interpolation and reconstruction side by side.
It is drawn as soon as the result is there, and the page is put together from the figures that a folder holds: results
of earlier runs and of other parts of the same run are in it, and no volume is read twice.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from func.errors import BabyAIError
from func.scans.bids import RESULT_ENTITY, stem_of
from func.scans.files import atomic, save_json
from func.scans.nifti import read_volume
from func.scans.sidecars import read_sidecar, sidecar_path

REPORT = "report.html"
FIGURES = "figures"
WHOLE = "1of1"  # the part of a run that is not shared out

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # and the world axis across each
ROWS = {"t1w": "T1w", "cubic": "T2w, cubic", "reconstruction": "Reconstruction", "uncertainty": "Uncertainty"}
COLUMNS = (*PLANES, "zoom")

_PIXELS = 256
_ZOOM = 44.0  # mm
_MARGIN = 4.0  # mm of air around the head
_RIM = (8.0, 16.0)  # mm below the head's surface, where the middle of a zoom on the cortex lies
_OFF_MIDLINE = 14.0  # mm from it lies the middle of a coronal zoom, at least
_BESIDE_MIDLINE = np.array([5.0, 0, 0])  # in the fissure between the hemispheres there is little to see
_JPEG_QUALITY = 86
UNCERTAINTY_TOP = 0.25  # of the T2w's 99th percentile, drawn brightest: one scale for all cases, to compare them by
_SVG = "http://www.w3.org/2000/svg"
_TRIES = 10


@dataclass(frozen=True)
class Scans:
    """What a figure shows: images in one world frame, but for the T2w.

    ``t1_to_t2`` (4 x 4) takes world points of the T1w and the result to where they lie in the T2w's frame;
    ``uncertainty`` is the expected error in the T2w's intensities.
    """

    t1: nib.Nifti1Image
    t2: nib.Nifti1Image
    result: nib.Nifti1Image
    t1_to_t2: np.ndarray
    uncertainty: nib.Nifti1Image | None = None


def figure_path(result: Path, output_dir: Path) -> Path:
    """Where the figure of a result belongs: below ``figures/`` as the result below the output folder."""
    return Path(output_dir, FIGURES, result.relative_to(output_dir)).with_name(stem_of(result) + ".svg")


def has_figure(result: Path, output_dir: Path) -> bool:
    """Whether a result has a figure, and one no older than itself."""
    try:
        return figure_path(result, output_dir).stat().st_mtime_ns >= result.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def draw_figure(path: Path, scans: Scans) -> None:
    """Write the figure of one case: a row for each scan; three planes and a zoom on the cortex in columns.

    Raises:
        BabyAIError: the figure could not be written.
    """
    panels, zoomed, box = _panels(scans)
    rows = [row for row in ROWS if (row, "axial") in panels]
    left, top, step = 120, 28, _PIXELS + 6
    svg = ElementTree.Element(
        "svg", xmlns=_SVG, viewBox=f"0 0 {left + 4 * step} {top + len(rows) * step}",
        **{"data-zoom": zoomed, "data-box": " ".join(f"{100 * share:.2f}" for share in box)},
    )  # fmt: skip
    ElementTree.SubElement(svg, "title").text = f"{stem_of(path)}: T1w, cubic interpolation and reconstruction"
    ElementTree.SubElement(svg, "rect", width="100%", height="100%")
    label = {"fill": "white", "font-family": "sans-serif", "font-size": "15"}
    for j, column in enumerate(COLUMNS):
        text = ElementTree.SubElement(svg, "text", x=str(left + j * step), y="18", **label)
        text.text = f"{zoomed}, {_ZOOM:.0f} mm" if column == "zoom" else column
    titles = {**ROWS, "uncertainty": f"0 to ±{100 * UNCERTAINTY_TOP:.0f} %"}
    for i, row in enumerate(rows):
        ElementTree.SubElement(svg, "text", x="6", y=str(top + i * step + 20), **label).text = titles[row]
        for j, column in enumerate(COLUMNS):
            ElementTree.SubElement(
                svg, "image", id=f"{row}-{column}", x=str(left + j * step), y=str(top + i * step),
                width=str(_PIXELS), height=str(_PIXELS), href=panels[row, column],
            )  # fmt: skip
    x, y, side = (_PIXELS * share for share in box)
    ElementTree.SubElement(
        svg, "rect", id="zoomed", x=f"{left + COLUMNS.index(zoomed) * step + x:.1f}", y=f"{top + y:.1f}",
        width=f"{side:.1f}", height=f"{side:.1f}", fill="none", stroke="white",
    )  # fmt: skip
    with atomic(path) as temporary:
        ElementTree.ElementTree(svg).write(temporary, encoding="utf-8", xml_declaration=True)


def _panels(scans: Scans) -> tuple[dict[tuple[str, str], str], str, tuple[float, float, float]]:
    """Every panel of a figure, by row and column, as a data URI; and the plane that the zoom shows.

    Last where in that plane: left, top and side of the square, as shares of a panel.
    """
    images = {"t1w": scans.t1, "cubic": scans.t2, "reconstruction": scans.result, "uncertainty": scans.uncertainty}
    frames = {"cubic": scans.t1_to_t2}
    white = {row: _white(image) for row, image in images.items() if image is not None}
    white["cubic"] = white["reconstruction"]
    if "uncertainty" in white:
        white["uncertainty"] = UNCERTAINTY_TOP * _white(scans.result, 99)
    centre, width = _view(scans.result)
    panels = {}
    for plane in PLANES:
        points = _points(plane, centre, width)
        for row, top in white.items():
            panels[row, plane] = _sampled(images[row], points, frames.get(row, np.eye(4))), top
    zoomed, middle = _cortex(panels, scans, centre, width)
    points = _points(zoomed, middle, _ZOOM)
    for row, top in white.items():
        panels[row, "zoom"] = _sampled(images[row], points, frames.get(row, np.eye(4))), top
    colours = {"uncertainty": "inferno"}
    drawn = {key: _jpeg(values, top, colours.get(key[0], "gray")) for key, (values, top) in panels.items()}
    across, up = (axis for axis in range(3) if axis != PLANES[zoomed])
    x, y = (middle - centre)[across] / width, (centre - middle)[up] / width
    side = _ZOOM / width
    return drawn, zoomed, (0.5 + x - side / 2, 0.5 + y - side / 2, side)


def _white(image: nib.Nifti1Image, percentile: float = 99.5) -> float:
    """The intensity shown white: a percentile of what is not air."""
    array = np.asarray(image.dataobj).ravel()
    array = array[:: max(1, array.size // 500_000)]
    bright = array[array > 0]
    return float(np.percentile(bright, percentile)) if bright.size else 1.0


def _view(image: nib.Nifti1Image) -> tuple[np.ndarray, float]:
    """The point that the planes go through, world mm, and the width of the squares that show them, mm."""
    step = tuple(slice(None, None, max(1, length // 96)) for length in image.shape)
    seen = image.slicer[step]
    inside = np.argwhere(np.asarray(seen.dataobj) > 0.1 * _white(image))
    if not len(inside):
        inside = np.argwhere(np.ones(seen.shape, bool))
    world = apply_affine(seen.affine, inside)
    low, high = world.min(axis=0), world.max(axis=0)
    return (low + high) / 2 + _BESIDE_MIDLINE, float((high - low).max() + 2 * _MARGIN)


def _points(plane: str, centre: np.ndarray, width: float) -> np.ndarray:
    """World points of a square of a plane, shape (pixels, pixels, 3), top row first, left and posterior to the left."""
    ticks = ((np.arange(_PIXELS) + 0.5) / _PIXELS - 0.5) * width
    points = np.broadcast_to(centre, (_PIXELS, _PIXELS, 3)).copy()
    across, up = (axis for axis in range(3) if axis != PLANES[plane])
    points[..., across] += ticks
    points[..., up] -= ticks[:, None]
    return points


def _sampled(image: nib.Nifti1Image, points: np.ndarray, to_image: np.ndarray) -> np.ndarray:
    """The image at world points, by cubic splines; zero outside of it."""
    index = apply_affine(np.linalg.inv(image.affine) @ to_image, points)
    # Splines are fitted only around what is shown: eight voxels further away they no longer matter.
    low = np.clip(np.floor(index.min(axis=(0, 1))).astype(int) - 8, 0, np.array(image.shape) - 1)
    high = np.clip(np.ceil(index.max(axis=(0, 1))).astype(int) + 9, low + 1, image.shape)
    part = np.asarray(image.dataobj[tuple(map(slice, low, high))], dtype=np.float32)
    return ndimage.map_coordinates(part, np.moveaxis(index - low, -1, 0), order=3, mode="grid-constant")


def _cortex(panels: dict, scans: Scans, centre: np.ndarray, width: float) -> tuple[str, np.ndarray]:
    """Where to zoom in: across the slices, on the upper convexity, where the reconstruction adds most."""
    plane = "sagittal" if np.argmax(np.abs(_slice_normal(scans.t2))) == 1 else "coronal"
    (values, white), cubic = panels["reconstruction", plane], panels["cubic", plane][0]
    depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(values > 0.1 * white)) * width / _PIXELS
    changed = ndimage.uniform_filter(np.abs(values - cubic), max(3, round(_ZOOM / width * _PIXELS)), mode="constant")
    rim = (depth > _RIM[0]) & (depth < _RIM[1])
    rim[_PIXELS // 2 :] = False
    if plane == "coronal":
        beside = round(_OFF_MIDLINE / width * _PIXELS)
        rim[:, _PIXELS // 2 - beside : _PIXELS // 2 + beside] = False
    if not (changed * rim).any():
        return plane, centre
    row, column = np.unravel_index(int(np.argmax(changed * rim)), changed.shape)
    return plane, _points(plane, centre, width)[row, column]


def _slice_normal(t2: nib.Nifti1Image) -> np.ndarray:
    """Unit vector across the slices of a raw stack; of an isotropic one, upwards."""
    sizes = nib.affines.voxel_sizes(t2.affine)
    if sizes.max() < 1.2 * sizes.min():
        return np.array([0.0, 0, 1])
    axis = int(np.argmax(sizes))
    return t2.affine[:3, axis] / sizes[axis]


def _jpeg(values: np.ndarray, white: float, colours: str) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, values, cmap=colours, vmin=0, vmax=white, format="jpeg", pil_kwargs={"quality": _JPEG_QUALITY})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Reporter:
    """Keeps the report on an output folder up to date during a run; whatever goes wrong with it costs no result.

    Args:
        output_dir: the folder that is reported on.
        part: tells runs apart that share the folder, each with its own failures: ``2of5``, or the name of one result.
        tell: called with a sentence where something goes wrong.
    """

    def __init__(self, output_dir: Path, part: str, tell: Callable[[str], object]):
        self._output_dir, self._part, self._tell = Path(output_dir), part, tell

    def lacks(self, result: Path) -> bool:
        """Whether a result is there without a figure."""
        return result.exists() and not has_figure(result, self._output_dir)

    def draw(
        self,
        result: Path,
        t1: nib.Nifti1Image | Path,
        t2: nib.Nifti1Image | Path,
        image: nib.Nifti1Image | None = None,
        t1_to_t2: np.ndarray | None = None,
        uncertainty: nib.Nifti1Image | None = None,
    ) -> None:
        """Draw the figure of a result that has been written; scans not at hand are read from their files."""
        with self._spared(f"The figure of {result.name}"):
            t1, t2 = (read_volume(scan) if isinstance(scan, Path) else scan for scan in (t1, t2))
            if image is None:
                image = read_volume(result)
                t1_to_t2 = read_sidecar(result).get("Registration", {}).get("T1wToT2w")
            scans = Scans(t1, t2, image, np.eye(4) if t1_to_t2 is None else np.asarray(t1_to_t2), uncertainty)
            draw_figure(figure_path(result, self._output_dir), scans)

    def finish(self, failures: Iterable[str]) -> None:
        """Write the page; ``failures`` are the sentences on the scans that failed in this part."""
        with self._spared("The report"):
            record_failures(self._output_dir, failures, self._part)
            write_report(self._output_dir)

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        try:
            yield
        except BabyAIError as error:
            self._tell(f"{what} is missing: {error}")
        except Exception as error:
            self._tell(f"{what} is missing, because of an error in BABY-AI itself ({type(error).__name__}: {error}).")


def record_failures(output_dir: Path, failures: Iterable[str], part: str = WHOLE) -> None:
    """Keep the sentences on the scans that failed in this part of a run for the report.

    They replace those of the last run of the same part; a run of the whole folder replaces those of all its parts.

    Raises:
        BabyAIError: they could not be written.
    """
    path = Path(output_dir, FIGURES, f"failures-{part}.json")
    for old in path.parent.glob("failures-[0-9]*of[0-9]*.json" if part == WHOLE else path.name):
        old.unlink(missing_ok=True)
    if failures := list(failures):
        save_json(path, {"Failures": failures})


def write_report(output_dir: str | Path) -> Path:
    """Put ``report.html`` together from every figure in a folder; returns its path.

    Several parts of a run may do so at once: each looks again once its page is in place, and writes it anew if a
    figure has come since it began, so that the page that stays holds them all.

    Raises:
        BabyAIError: the page could not be written.
    """
    output_dir = Path(output_dir)
    for _ in range(_TRIES):
        found = _found(output_dir)
        page = _page(output_dir, list(found))
        with atomic(output_dir / REPORT) as temporary:
            temporary.write_text(page, encoding="utf-8")
        if _found(output_dir) == found:
            break
    return output_dir / REPORT


def _found(output_dir: Path) -> dict[Path, int]:
    """Figures and failures in a folder with the times of their writing."""
    files = sorted(path for path in (output_dir / FIGURES).rglob("*") if not path.name.startswith("."))
    times = {}
    for path in files:
        if path.suffix in (".svg", ".json"):
            try:
                times[path] = path.stat().st_mtime_ns
            except OSError:  # another part is just replacing it
                continue
    return times


def _page(output_dir: Path, files: list[Path]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    cases = [case for path in files if path.suffix == ".svg" and (case := _case(path, output_dir))]
    cases.sort(key=lambda case: (-len(case["warnings"]), case["name"]))
    for number, case in enumerate(cases, 1):
        case["anchor"] = f"case-{number}"
    failures = [sentence for path in files if path.suffix == ".json" for sentence in _read(path).get("Failures", [])]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        cases=cases,
        failures=failures,
        columns=COLUMNS,
        rows=ROWS,
        uncertainty_top=f"{100 * UNCERTAINTY_TOP:.0f} %",
        has_uncertainty=any("uncertainty" in case["panels"] for case in cases),
        made_with=sorted({(case["version"], case["weights"]) for case in cases}),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        folder=output_dir.resolve().name,
    )


def _read(path: Path) -> dict:
    """A JSON object from a file; empty where it cannot be read, which must not cost the rest of the report."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _case(figure: Path, output_dir: Path) -> dict | None:
    """What the page says of one result, or None where the result is gone."""
    stem = output_dir / figure.relative_to(output_dir / FIGURES).with_suffix("")
    result = next((path for suffix in (".nii.gz", ".nii") if (path := Path(f"{stem}{suffix}")).is_file()), None)
    if result is None:
        return None
    sidecar = _read(sidecar_path(result))
    current = has_figure(result, output_dir)
    panels, zoomed, box = _read_figure(figure) if current else ({}, "", [])
    return {
        "name": stem_of(result).replace(f"_{RESULT_ENTITY}", ""),
        "link": result.relative_to(output_dir).as_posix(),
        "warnings": [str(warning) for warning in sidecar.get("Warnings", [])],
        "panels": panels,
        "zoomed": zoomed,
        "box": box,
        "summary": _summary(sidecar),
        "facts": _facts(sidecar),
        "origin": _origin(sidecar),
        "version": str(_part(sidecar, "Versions").get("BABY-AI", "unknown")),
        "weights": _weights(sidecar),
    }


def _read_figure(path: Path) -> tuple[dict[str, dict[str, str]], str, list[str]]:
    """The panels of a figure by row and column, the plane of its zoom, and where in it, in percent of a panel."""
    try:
        svg = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return {}, "", []
    found = {image.get("id"): image.get("href") for image in svg.iter(f"{{{_SVG}}}image")}
    panels = {row: {column: found[f"{row}-{column}"] for column in COLUMNS} for row in ROWS if f"{row}-zoom" in found}
    return panels, svg.get("data-zoom", ""), svg.get("data-box", "").split()


def _summary(sidecar: dict) -> dict[str, tuple[float | str | None, str]]:
    """The columns of the table: what to sort by, and what to show."""
    quality, checks = _part(sidecar, "Quality"), _part(sidecar, "Checks")
    seconds = [value for value in _part(sidecar, "Seconds").values() if isinstance(value, int | float)]
    return {
        "Plane": (quality.get("Plane"), str(quality.get("Plane") or "–")),
        "Thickness, mm": _number(quality.get("SliceThickness"), "{:.2f}"),
        "Signal / noise": _number(quality.get("SignalToNoise"), "{:.0f}"),
        "Even/odd shift, mm": _number(quality.get("EvenOddShift"), "{:.2f}"),
        "Overlap": _number(_percent(quality.get("Overlap")), "{:.0f} %"),
        "Slice residual": _number(_percent(checks.get("SliceResidualAfter")), "{:.2f} %"),
        "Seconds": _number(sum(seconds) if seconds else None, "{:.0f}"),
    }


def _facts(sidecar: dict) -> dict[str, list[tuple[str, str]]]:
    """Numbers on one case in named groups, as label and text."""
    quality, checks = _part(sidecar, "Quality"), _part(sidecar, "Checks")
    geometry, registration = _part(sidecar, "SliceGeometry"), _part(sidecar, "Registration")
    slices = [
        ("Plane", quality.get("Plane")),
        ("Tilt", _text(quality.get("Obliqueness"), "{:.1f}°")),
        ("Thickness", _text(quality.get("SliceThickness"), "{:.2f} mm")),
        ("Centre to centre", _text(quality.get("SpacingBetweenSlices"), "{:.2f} mm")),
        ("Known from", geometry.get("Source")),
        ("Profile", geometry.get("SliceProfile")),
    ]
    inputs = [
        ("Signal-to-noise ratio", _text(quality.get("SignalToNoise"), "{:.0f}")),
        ("Even against odd slices", _text(quality.get("EvenOddShift"), "{:.2f} mm")),
        ("… in brightness", _text(quality.get("EvenOddIntensity"), "{:.1f} %")),
        ("Slice against neighbours", _text(quality.get("SliceShift"), "{:.2f} mm")),
        ("T1w and T2w overlap", _text(_percent(quality.get("Overlap")), "{:.0f} %")),
        ("T1w off the T2w", _text(quality.get("T1wOffset"), "{:.1f} mm")),
        ("Contrast correlation", _text(quality.get("Correlation"), "{:.2f}")),
        ("T1w, median of brightest", _text(_percent(quality.get("T1wMedian")), "{:.0f} %")),
        ("T2w, median of brightest", _text(_percent(quality.get("T2wMedian")), "{:.0f} %")),
        ("Head volume", _text(quality.get("HeadVolume"), "{:.0f} ml")),
    ]
    agreement = [
        ("Slice residual, network", _text(_percent(checks.get("SliceResidualBefore")), "{:.2f} %")),
        ("… corrected", _text(_percent(checks.get("SliceResidualAfter")), "{:.2f} %")),
        ("Noise of the slices", _text(_percent(checks.get("NoiseOfSlices")), "{:.2f} %")),
        ("Damping", _text(checks.get("Damping"), "{:.3g}")),
        ("Registration similarity", _text(registration.get("Similarity"), "{:.2f}")),
        ("90 % interval, median ±", _text(_part(sidecar, "Uncertainty").get("MedianPercent"), "{:.1f} %")),
    ]
    times = [(part, _text(value, "{:.1f} s")) for part, value in _part(sidecar, "Seconds").items()]
    groups = {"Slices": slices, "Input": inputs, "Agreement with the slices": agreement, "Time": times}
    return {name: [(label, str(text)) for label, text in lines if text is not None] for name, lines in groups.items()}


def _origin(sidecar: dict) -> list[tuple[str, str]]:
    """How a result was made: sources, weights, settings and versions."""
    computed = _part(sidecar, "Computed")
    versions = ", ".join(f"{name} {number}" for name, number in _part(sidecar, "Versions").items())
    lines = [
        ("Sources", ", ".join(map(str, sidecar.get("Sources", [])))),
        ("Weights", _weights(sidecar)),
        ("Computed on", ", ".join(str(value) for value in computed.values())),
        ("Settings", ", ".join(f"{key} {value}" for key, value in _part(sidecar, "Settings").items())),
        ("Versions", versions),
    ]
    return [(label, text) for label, text in lines if text]


def _weights(sidecar: dict) -> str:
    weights = _part(sidecar, "Weights")
    return f"{weights.get('Name', '–')} ({weights.get('Recipe', '–')}), SHA-256 {weights.get('SHA256', '–')}"


def _part(sidecar: dict, key: str) -> dict:
    """A JSON object inside a sidecar; empty where there is none."""
    value = sidecar.get(key)
    return value if isinstance(value, dict) else {}


def _percent(share) -> float | None:
    return 100 * share if isinstance(share, int | float) else None


def _text(value, form: str) -> str | None:
    return form.format(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value, form: str) -> tuple[float | None, str]:
    text = _text(value, form)
    return (None, "–") if text is None else (value, text)
