"""The report on an output folder: one self-contained page made from the results' sidecars and figures.

Every result has a figure in ``figures/``, an SVG that shows T1w, cubic interpolation and reconstruction side by side.
It is drawn as soon as the result is there, and the page is put together from the figures that a folder holds: results
of earlier runs and of other parts of the same run are in it, and no volume is read twice.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np

from func.errors import BabyAIError
from func.reports.case_figure import COLUMNS, ROWS, UNCERTAINTY_TOP, ZOOM, Scans, draw_figure, read_figure, save_figure
from func.reports.methods import methods, section, stacks_of
from func.scans.bids import RESULT_ENTITY, stem_of
from func.scans.files import atomic, save_json
from func.scans.nifti import read_volume
from func.scans.sidecars import sidecar_path

REPORT = "report.html"
FIGURES = "figures"
WHOLE = "1of1"  # the part of a run that is not shared out

_TRIES = 10
_SHIFT_AND_TURN = (slice(0, 3), slice(3, 6))  # columns of a motion's path


def figure_path(result: Path, output_dir: Path) -> Path:
    """Where the figure of a result belongs: below ``figures/`` as the result below the output folder."""
    return Path(output_dir, FIGURES, result.relative_to(output_dir)).with_name(stem_of(result) + ".svg")


def has_figure(result: Path, output_dir: Path) -> bool:
    """Whether a result has a figure, and one no older than itself."""
    try:
        return figure_path(result, output_dir).stat().st_mtime_ns >= result.stat().st_mtime_ns
    except FileNotFoundError:
        return False


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
        t1: nib.Nifti1Image | Path | None,
        t2: nib.Nifti1Image | Path,
        image: nib.Nifti1Image | Path,
        uncertainty: nib.Nifti1Image | None,
        sidecar: dict,
    ) -> ElementTree.Element | None:
        """The figure of a result, which need not have been written yet; None where it cannot be drawn."""
        with self._spared(f"The figure of {result.name}"):
            return draw_figure(stem_of(result), scans_of(t1, t2, image, uncertainty, sidecar))
        return None

    def add(self, result: Path, figure: ElementTree.Element | None) -> None:
        """Put the figure of a result beside it, once it has been written."""
        with self._spared(f"The figure of {result.name}"):
            if figure is not None:
                save_figure(figure_path(result, self._output_dir), figure)

    def catch_up(self, result: Path, t1: Path | None, t2: Path) -> None:
        """Draw the figure of a result of an earlier run, from the files."""
        self.add(result, self.draw(result, t1, t2, result, None, _read(sidecar_path(result))))

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


def scans_of(
    t1: nib.Nifti1Image | Path | None,
    t2: nib.Nifti1Image | Path,
    result: nib.Nifti1Image | Path,
    uncertainty: nib.Nifti1Image | None,
    sidecar: dict,
) -> Scans:
    """The scans of a case, each where it lies: on one grid, or as the registration in the result's sidecar says.

    A raw result lies in the T1w's world, or in the T2w's where the settings say ``t2``. Files are read.

    Raises:
        BabyAIError: a file cannot be read.
    """
    t1, t2, result = (read_volume(scan) if isinstance(scan, Path) else scan for scan in (t1, t2, result))
    registration = section(sidecar, "Registration")
    t1_to_t2 = np.asarray(registration.get("T1wToT2w", np.eye(4)), float)
    in_t2_world = section(sidecar, "Settings").get("Space") == "t2"
    to_t1, to_t2 = (np.linalg.inv(t1_to_t2), np.eye(4)) if in_t2_world else (np.eye(4), t1_to_t2)
    return Scans(t1, t2, result, to_t1, to_t2, uncertainty, overlay=registration.get("Verdict") == "unsure")


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
        zoom=f"{ZOOM:.0f} mm",
        uncertainty_top=f"{100 * UNCERTAINTY_TOP:.0f} %",
        has_uncertainty=any("uncertainty" in case["panels"] for case in cases),
        methods=methods([case["sidecar"] for case in cases]),
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
    panels, zoomed, box = read_figure(figure) if current else ({}, "", [])
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
        "stacks": _stack_rows(sidecar),
        "motion": _motion(sidecar),
        "sidecar": sidecar,
    }


def _summary(sidecar: dict) -> dict[str, tuple[float | str | None, str]]:
    """The columns of the table: what to sort by, and what to show."""
    quality, checks = section(sidecar, "Quality"), section(sidecar, "Checks")
    seconds = [value for value in section(sidecar, "Seconds").values() if isinstance(value, int | float)]
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
    quality, checks = section(sidecar, "Quality"), section(sidecar, "Checks")
    geometry, registration = section(sidecar, "SliceGeometry"), section(sidecar, "Registration")
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
        ("Head volume", _text(quality.get("HeadVolume"), "{:.0f} ml")),
    ]
    agreement = [
        ("Slice residual, network", _text(_percent(checks.get("SliceResidualBefore")), "{:.2f} %")),
        ("… corrected", _text(_percent(checks.get("SliceResidualAfter")), "{:.2f} %")),
        ("Noise of the slices", _text(_percent(checks.get("NoiseOfSlices")), "{:.2f} %")),
        ("Slice residual, finer voxels", _text(_percent(checks.get("DetailResidualAfter")), "{:.2f} %")),
        ("… noise of the slices there", _text(_percent(checks.get("DetailNoise")), "{:.2f} %")),
        ("Damping", _text(checks.get("Damping"), "{:.3g}")),
        ("Registration similarity", _text(registration.get("Similarity"), "{:.2f}")),
        ("90 % interval, median ±", _text(section(sidecar, "Uncertainty").get("MedianPercent"), "{:.1f} %")),
    ]
    times = [(part, _text(value, "{:.1f} s")) for part, value in section(sidecar, "Seconds").items()]
    groups = {
        "Slices": slices,
        "Input": inputs,
        "Agreement with the slices": agreement,
        "Time": times,
    }
    return {name: [(label, str(text)) for label, text in lines if text is not None] for name, lines in groups.items()}


def _stack_name(stack: dict) -> str:
    return stem_of(str(stack.get("Name", "–")))


def _stack_rows(sidecar: dict) -> list[dict[str, str]]:
    """A row for each of several stacks: what it is, how much it counted, and how its slices agree with the result."""
    return [
        {
            "Stack": _stack_name(stack),
            "Plane": str(stack.get("Plane", "–")),
            "Thickness": _text(section(stack, "SliceGeometry").get("SliceThickness"), "{:.1f} mm") or "–",
            "Slices used": _used_slices(section(stack, "Checks")),
            "Weight": _text(_percent(section(stack, "Checks").get("Weight")), "{:.0f} %") or "–",
            "Brightness": _text(section(stack, "Checks").get("Brightness"), "× {:.2f}") or "–",
            "Residual": _residual_text(section(stack, "Checks")),
            "Mean motion": _motion_text(section(stack, "Motion")),
        }
        for stack in stacks_of(sidecar)
    ]


def _residual_text(checks: dict) -> str:
    """What a stack's slices show beyond the network's estimate, and beyond the result."""
    ends = (_text(_percent(checks.get(f"SliceResidual{when}")), "{:.2f} %") for when in ("Before", "After"))
    return " → ".join(end for end in ends if end) or "–"


def _used_slices(checks: dict) -> str:
    """How many slices of a stack were used, and which were not."""
    count, left_out = checks.get("SliceCount"), checks.get("SlicesLeftOut")
    if not isinstance(count, int) or not isinstance(left_out, list):
        return "–"
    without = f", without {', '.join(map(str, left_out))}" if left_out else ""
    return f"{count - len(left_out)} of {count}{without}"


def _motion_text(motion: dict) -> str:
    """What was found of a stack's motion, in a few words."""
    if not motion.get("Searched"):
        return "not looked for"
    if not motion.get("Found"):
        return "none"
    return _text(motion.get("Spread"), "{:.1f} mm") or "found"


def _motion(sidecar: dict) -> list[dict]:
    """The motion found in each stack, as lines to draw over the time of acquisition, all on one scale."""
    found = []
    for stack in stacks_of(sidecar) or [sidecar]:
        try:
            motion = section(stack, "Motion")
            path = np.array(motion["Path"], float).reshape(-1, 6)
            order = np.array(motion.get("Order", range(len(path))), int)
            left_out = [int(order[number]) for number in section(stack, "Checks").get("SlicesLeftOut", [])]
        except (KeyError, ValueError, TypeError, IndexError):
            continue
        if len(path) > 1 and np.isfinite(path).all():
            found.append((_stack_name(stack) if "Name" in stack else "", path, left_out))
    tops = [max([1.0, *(float(np.abs(path[:, part]).max()) for _, path, _ in found)]) for part in _SHIFT_AND_TURN]
    return [
        {
            "stack": name,
            "charts": [
                _chart(title, unit, path[:, part], top)
                for title, unit, part, top in zip(("Shift", "Turn"), ("mm", "°"), _SHIFT_AND_TURN, tops, strict=True)
            ],
            "left_out": [300 * time / (len(path) - 1) for time in left_out],
        }
        for name, path, left_out in found
    ]


def _chart(title: str, unit: str, values: np.ndarray, top: float) -> dict:
    """Values of shape (times, 3) as three SVG lines in a box of 300 x 80, zero in the middle, ``top`` at its edge."""
    across = np.linspace(0, 300, len(values))
    lines = [
        " ".join(f"{x:.1f},{40 - 38 * value / top:.1f}" for x, value in zip(across, column, strict=True))
        for column in values.T
    ]
    return {"title": f"{title}, ± {top:.1f} {unit}", "lines": lines}


def _origin(sidecar: dict) -> list[tuple[str, str]]:
    """How a result was made: sources, weights, settings and versions."""
    computed = section(sidecar, "Computed")
    versions = ", ".join(f"{name} {number}" for name, number in section(sidecar, "Versions").items())
    settings = section(sidecar, "Settings")
    lines = [
        ("Sources", ", ".join(map(str, sidecar.get("Sources", [])))),
        ("Weights", _weights(sidecar)),
        ("Computed on", ", ".join(str(computed[name]) for name in ("Device", "Precision") if name in computed)),
        ("Network", _runs(computed)),
        ("Settings", ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)),
        ("Versions", versions),
    ]
    return [(label, text) for label, text in lines if text]


def _runs(computed: dict) -> str:
    runs, network = computed.get("NetworkRuns"), computed.get("Network")
    named = f"{network} network" if network else "network"
    return f"the {named}, run {'once' if runs == 1 else f'{runs} times in mirrors'}" if runs else ""


def _weights(sidecar: dict) -> str:
    weights = section(sidecar, "Weights")
    return f"{weights.get('Name', '–')} ({weights.get('Recipe', '–')}), SHA-256 {weights.get('SHA256', '–')}"


def _percent(share) -> float | None:
    return 100 * share if isinstance(share, int | float) else None


def _text(value, form: str) -> str | None:
    return form.format(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value, form: str) -> tuple[float | None, str]:
    text = _text(value, form)
    return (None, "–") if text is None else (value, text)
