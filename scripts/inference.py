"""Reconstruct isotropic T2w scans of infants from thick-slice T2w and isotropic T1w scans.

A folder of pairs on the atlas grid (or, with the bundled weights, any grid of 1 mm voxels):

    python scripts/inference.py --data-dir DATA --output-dir RESULTS

raw scans, whatever their orientation, voxel size and slice thickness, to the T1w's frame: one pair, or a folder

    python scripts/inference.py --t1 sub-01_T1w.nii.gz --t2 sub-01_T2w.nii.gz --output sub-01_desc-isotropic_T2w.nii.gz
    python scripts/inference.py --data-dir RAW --output-dir RESULTS --space 1mm

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from func.commands import Tally, add_overwrite, run_to_the_end, script_parser
from func.errors import BabyAIError
from func.scans.bids import Pair, find_pairs, result_path, stem_of
from func.scans.hub import find_weights
from func.scans.nifti import check_atlas_grid, check_isotropic, check_same_grid, read_volume, save_result
from func.scans.sidecars import read_sidecar

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = REPO_ROOT / "data"  # holds sub-*_T1w.nii.gz and sub-*_T2w.nii.gz, in subfolders or not
OUTPUT_DIR = REPO_ROOT / "results"
WEIGHTS = "bundled"  # bundled, babyai (the published weights, from the Hugging Face Hub), or a file
DEVICE = "auto"  # auto, cpu, cuda or mps
PRECISION = "auto"  # auto, float32 or bfloat16
SPACE = None  # 1mm or t1: DATA_DIR holds raw scans, to be registered; None: pairs on one grid
OVERWRITE = False
REPORT = True  # report.html and figures beside the results
UNCERTAINTY = False  # also write where not to trust each result; four runs of the network
BIDS = False  # lay the results out as a BIDS derivative dataset


def main(argv: list[str] | None = None) -> int:
    """Reconstruct what the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    reconstruct_all = reconstruct_raw_pair if arguments.t1 else reconstruct_folder
    return run_to_the_end("inference.py", lambda tally: reconstruct_all(arguments, tally), Tally("reconstructed"))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    folder = parser.add_argument_group("a folder of pairs")
    folder.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder with the scans (default: %(default)s)")
    folder.add_argument("--output-dir", type=Path, default=OUTPUT_DIR, help="where results go (default: %(default)s)")
    folder.add_argument(
        "--shard",
        type=parse_shard,
        metavar="I/N",
        help="do only the I-th of N parts of the folder, I from 1 to N; in a Slurm job array the part is taken from "
        "SLURM_ARRAY_TASK_ID, _MIN, _MAX, _STEP and _COUNT unless this is given (--shard 1/1 does everything)",
    )
    folder.add_argument(
        "--bids",
        action=argparse.BooleanOptionalAction,
        default=BIDS,
        help="make the output folder a BIDS derivative dataset, with results in sub-*/[ses-*/]anat",
    )
    one = parser.add_argument_group("one raw pair")
    one.add_argument("--t1", type=Path, help="isotropic T1w scan")
    one.add_argument("--t2", type=Path, help="thick-slice T2w scan, with its JSON sidecar beside it if there is one")
    one.add_argument("--output", type=Path, help="the result, .nii.gz or .nii")
    one.add_argument("--residual-map", type=Path, help="also write how far the result's slices miss the measured ones")
    raw = parser.add_argument_group("raw scans, one pair or a folder of them")
    raw.add_argument(
        "--space",
        choices=("1mm", "t1"),
        default=SPACE,
        help="the scans are raw: register them, and give the result in the T1w's frame at 1 mm, or on the T1w's own "
        "grid (default: 1mm for one pair; the scans of a folder lie on one grid)",
    )
    raw.add_argument("--thickness", type=positive, metavar="MM", help="slice thickness (default: sidecar, then header)")
    raw.add_argument("--spacing", type=positive, metavar="MM", help="distance of slice centres (default: header)")
    raw.add_argument(
        "--profile", choices=("box", "gaussian", "point"), help="slice profile (default: sidecar, then box)"
    )
    parser.add_argument(
        "--weights",
        default=WEIGHTS,
        help="bundled, babyai (the published weights, from the Hugging Face Hub) or a file (default: %(default)s)",
    )
    parser.add_argument("--device", default=DEVICE, help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default=PRECISION, help="default: %(default)s"
    )
    add_overwrite(parser, OVERWRITE)
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=REPORT,
        help="draw a figure of each result and put them together in report.html beside the results",
    )
    parser.add_argument(
        "--uncertainty",
        action=argparse.BooleanOptionalAction,
        default=UNCERTAINTY,
        help="also map (desc-uncertainty) how far the result may be off (the half-width of a 90 %% interval), "
        "from four runs of the network, whose mean the result then is",
    )
    arguments = parser.parse_args(argv)
    arguments.shard = arguments.shard or slurm_shard(os.environ)
    if arguments.t1:
        arguments.space = arguments.space or "1mm"
    check_arguments(parser, arguments)
    return arguments


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with code 2 and one sentence where the arguments contradict each other."""
    if arguments.shard is None:
        parser.error("this Slurm job array is no regular range, so that its parts are unknown; give --shard I/N")
    one = [arguments.t1, arguments.t2, arguments.output]
    if any(one) and not all(one):
        parser.error("a raw pair needs all three of --t1, --t2 and --output")
    if arguments.uncertainty and arguments.weights == "babyai":
        parser.error("--uncertainty was calibrated for the bundled weights, not for the published ones")
    if arguments.space and arguments.weights == "babyai":
        parser.error("the published weights need scans on the atlas grid (scripts/preprocessing.py), not raw ones")
    if not arguments.space and any((arguments.thickness, arguments.spacing, arguments.profile)):
        parser.error("--thickness, --spacing and --profile are for raw scans (--t1, --t2 and --output, or --space)")
    if arguments.residual_map and not all(one):
        parser.error("--residual-map is for one raw pair (--t1, --t2, --output)")
    if arguments.bids and not any(one) and arguments.output_dir.resolve() == arguments.data_dir.resolve():
        parser.error("--bids makes a dataset of its own, which needs an --output-dir other than --data-dir")
    for path in (arguments.output, arguments.residual_map):
        if path is None:
            continue
        if not path.name.endswith((".nii", ".nii.gz")):
            parser.error(f"{path} must end in .nii.gz or .nii")
        if path.resolve() in (arguments.t1.resolve(), arguments.t2.resolve()):
            parser.error(f"{path} is an input, and would be overwritten; choose another name")


def parse_shard(text: str) -> tuple[int, int]:
    """``2/5`` -> (1, 5): the part's index from 0, and the number of parts."""
    part, _, count = text.partition("/")
    if not (part.isdigit() and count.isdigit() and 1 <= int(part) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part like 1/4")
    return int(part) - 1, int(count)


def slurm_shard(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """The part of the folder for this task of a Slurm job array: all of it outside of one, None for a gappy array."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    number = {key: int(environment.get(f"SLURM_ARRAY_TASK_{key}", 1)) for key in ("ID", "MIN", "MAX", "STEP", "COUNT")}
    # Only 0-9, 1-10, 0-90:10 and the like tell which part of the whole a task is; 1,4,7 given as a list does not.
    if (number["MAX"] - number["MIN"]) // number["STEP"] + 1 != number["COUNT"]:
        return None
    return (number["ID"] - number["MIN"]) // number["STEP"], number["COUNT"]


def positive(text: str) -> float:
    """A length in mm."""
    length = float(text)
    if not 0 < length < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a length in mm")
    return length


def reconstruct_folder(arguments: argparse.Namespace, tally: Tally) -> None:
    """Reconstruct every pair of a folder; a scan that fails is told and costs no other its result.

    Raises:
        BabyAIError: nothing could be started at all.
    """
    pairs, errors = find_pairs(arguments.data_dir)
    part, count = arguments.shard
    pairs, errors = pairs[part::count], errors[part::count]
    for error in errors:
        tally.fail("", error)
    results = places(pairs, arguments)
    todo = {pair: path for pair, path in results.items() if arguments.overwrite or not path.exists()}
    tally.kept = len(pairs) - len(todo)
    reporter = reporter_on(arguments.output_dir, f"{part + 1}of{count}", arguments)
    if todo:
        check_writable(arguments.output_dir)
        reconstruct_pairs(todo, arguments, tally, reporter)
    if reporter and (pairs or errors):
        for pair in [pair for pair, path in results.items() if pair not in todo and reporter.lacks(path)]:
            reporter.draw(results[pair], pair.t1, pair.t2)
        reporter.finish(tally.sentences)


def reconstruct_raw_pair(arguments: argparse.Namespace, tally: Tally) -> None:
    """Reconstruct one raw pair to the file asked for.

    Raises:
        BabyAIError: nothing could be started at all.
    """
    if arguments.output.exists() and not arguments.overwrite:
        tally.kept = 1
        return
    check_writable(arguments.output.parent)
    pair = Pair("", arguments.t1, arguments.t2, stem_of(arguments.t2))
    reporter = reporter_on(arguments.output.parent, stem_of(arguments.output), arguments)
    reconstruct_pairs({pair: arguments.output}, arguments, tally, reporter)
    if reporter:
        reporter.finish(tally.sentences)


def places(pairs: list[Pair], arguments: argparse.Namespace) -> dict[Pair, Path]:
    """Where the result of each pair goes; with ``--bids`` the output folder is made a BIDS derivative dataset.

    Raises:
        BabyAIError: two results would go to one place, or the folder is not writable.
    """
    if not arguments.bids:
        return {pair: result_path(pair, arguments.output_dir) for pair in pairs}
    from func.scans.derivatives import derivative_paths, describe_dataset

    results = derivative_paths(pairs, arguments.output_dir)
    describe_dataset(arguments.output_dir, arguments.data_dir, versions()["BABY-AI"])
    return results


def reporter_on(output_dir: Path, part: str, arguments: argparse.Namespace):
    """What keeps the report on a folder, or None with ``--no-report``; ``part`` tells runs on one folder apart."""
    if not arguments.report:
        return None
    from func.reports.page import Reporter

    return Reporter(output_dir, part, lambda sentence: tqdm.write(sentence, file=sys.stderr))


def reconstruct_pairs(todo: dict[Pair, Path], arguments: argparse.Namespace, tally: Tally, reporter) -> None:
    """Reconstruct pairs to their places, reading ahead and writing behind."""
    weights = load(arguments)
    # What the first result needs to be written is imported while it is computed.
    needed = ("func.reports.quality", *(("matplotlib.image",) if reporter else ()))
    with (
        Writer(tally, needed) as writer,
        tqdm(total=len(todo), desc="Scans", unit="scan", disable=None) as scans,
    ):
        for pair, reading in read_ahead(todo, read_case):
            try:
                case, path = reading.result(), todo[pair]
                with memory_told(pair.name), volume_bar(pair.name) as progress:
                    result = reconstruct_case(case, weights, arguments, progress)
                writer.submit(
                    pair.name, path, partial(save_case, pair, case, path, result, weights, arguments, reporter)
                )
            except Exception as error:
                tally.fail(pair.name, error)
            scans.update()


def reconstruct_case(case: Case, weights, arguments: argparse.Namespace, progress: Callable[[int, int], None]):
    """The reconstruction of one pair: raw scans in the T1w's frame, scans on one grid on that grid.

    Raises:
        BabyAIError: the scans do not go together, or not with the weights.
    """
    from func.reconstruction.reconstruct import reconstruct, reconstruct_raw

    running = {
        "device": arguments.device,
        "precision": arguments.precision,
        "progress": progress,
        "uncertainty": arguments.uncertainty,
    }
    if arguments.space:
        sidecar = case.sidecar | overridden(arguments)
        return reconstruct_raw(case.t1, case.t2, weights, sidecar, space=arguments.space, **running)
    check_case(case, weights.recipe)
    geometry, thickness = stated_geometry(case), stated_thickness(case)
    return reconstruct(case.t1, case.t2, weights, geometry=geometry, thickness=thickness, **running)


def save_case(pair: Pair, case: Case, path: Path, result, weights, arguments: argparse.Namespace, reporter) -> None:
    """Write all that belongs to a result: the volume with its sidecar, the maps asked for, the figure.

    Raises:
        BabyAIError: something could not be written.
    """
    sidecar = described(pair, weights, arguments, case, result.report)
    if arguments.uncertainty:
        sidecar["Uncertainty"] = save_uncertainty(path, result, sidecar)
        if arguments.weights != "bundled":
            sidecar["Warnings"].append(
                "The uncertainty was calibrated for the bundled weights; scripts/evaluate.py tells how well it holds."
            )
    if arguments.residual_map:
        meaning = "Measured slices minus the result's slices"
        save_result(arguments.residual_map, result.residual, {"Description": meaning})
    save_result(path, result.image, sidecar)
    if reporter:
        moved = result.report.get("Registration", {}).get("T1wToT2w")
        reporter.draw(path, case.t1, case.t2, result.image, moved, result.uncertainty)


def save_uncertainty(path: Path, result, sidecar: dict) -> dict:
    """Write the uncertainty of a result beside where the result goes; returns what the result's sidecar says of it.

    ``sidecar`` is the result's; what BIDS asks of every derivative is taken from it.
    """
    stem = stem_of(path)
    renamed = stem.replace("desc-isotropic", "desc-uncertainty") if "desc-isotropic" in stem else f"{stem}_uncertainty"
    beside = path.with_name(renamed + path.name.removeprefix(stem))
    meaning = "Half-width of the interval that held nine in ten of the true values in infants not trained on"
    shared = {key: sidecar[key] for key in ("Sources", "SpatialReference", "SkullStripped")}
    save_result(beside, result.uncertainty, {"Description": meaning} | shared)
    widths, brightness = (image.get_fdata(dtype="float32") for image in (result.uncertainty, result.image))
    median = float(np.median(widths[widths > 0]) / np.percentile(brightness[brightness > 0], 99))
    return {"Map": beside.name, "MedianPercent": round(100 * median, 2)}


def finish(tally: Tally, name: str, result: Path) -> None:
    """Count a result and tell where it is."""
    tally.done += 1
    tqdm.write(f"{name} -> {result}")


def overridden(arguments: argparse.Namespace) -> dict:
    """Sidecar entries that the command line states."""
    stated = {
        "SliceThickness": arguments.thickness,
        "SpacingBetweenSlices": arguments.spacing,
        "SliceProfile": arguments.profile,
    }
    return {key: value for key, value in stated.items() if value is not None}


def check_writable(folder: Path) -> None:
    """Refuse a folder that no result could be written to, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BabyAIError(f"The output folder {folder} is not writable ({error.strerror}); choose another.") from error


def load(arguments: argparse.Namespace):
    """The weights, for a device that is there; torch is imported here, so that a wrong call is told without waiting."""
    from func.networks.weights import load_weights
    from func.reconstruction.reconstruct import choose_device

    path = find_weights(arguments.weights)
    choose_device(arguments.device, arguments.precision)
    return load_weights(path)


@dataclass(frozen=True)
class Case:
    """One pair as read from disk; ``seconds`` is what reading took."""

    t1: nib.Nifti1Image
    t2: nib.Nifti1Image
    sidecar: dict
    seconds: float


def read_case(pair: Pair) -> Case:
    """Read the two scans of a pair and the T2w's sidecar."""
    started = time.perf_counter()
    t1, t2, sidecar = read_volume(pair.t1), read_volume(pair.t2), read_sidecar(pair.t2)
    return Case(t1, t2, sidecar, time.perf_counter() - started)


def check_case(case: Case, recipe: str) -> None:
    """Refuse grids that the recipe cannot work on."""
    for image in (case.t2, case.t1):
        if recipe == "babyai":
            check_atlas_grid(image)
        else:
            check_isotropic(image)
    check_same_grid(case.t1, case.t2)


def stated_geometry(case: Case):
    """The slice geometry that the T2w's sidecar states, or None."""
    from func.slices.geometry import SliceGeometry

    return SliceGeometry.from_sidecar(case.sidecar, case.t2)


def stated_thickness(case: Case) -> float | None:
    """Slice thickness in mm as the T2w's sidecar states it, or preprocessing.py there of the scan it started from."""
    acquired = case.sidecar.get("AsAcquired")
    stated = (case.sidecar | (acquired if isinstance(acquired, dict) else {})).get("SliceThickness")
    return float(stated) if isinstance(stated, int | float) else None


def described(pair: Pair, weights, arguments: argparse.Namespace, case: Case, report: dict) -> dict:
    """The JSON sidecar of a result: how good its input was, and all that is needed to make it again."""
    from func.reports.quality import is_stripped, quality_of

    t2, t1 = pair.t2.as_posix(), pair.t1.as_posix()
    if not arguments.t1:
        prefix = "bids:raw:" if arguments.bids else ""
        t2, t1 = (prefix + path.relative_to(arguments.data_dir).as_posix() for path in (pair.t2, pair.t1))
    quality, warnings = quality_of(case.t1, case.t2, report)
    return {
        "Description": "Isotropic T2w scan reconstructed by BABY-AI",
        "Sources": [t2, t1],
        "SpatialReference": t1 if arguments.space else t2,
        "SkullStripped": is_stripped(case.t2),
        "Warnings": warnings,
        "Quality": quality,
        "Weights": {"Name": str(arguments.weights), "Recipe": weights.recipe, "SHA256": weights.sha256},
        "Settings": {"Device": arguments.device, "Precision": arguments.precision},
        "Versions": versions(),
        **report,
        "Seconds": {"Reading": round(case.seconds, 3), **report.get("Seconds", {})},
    }


@lru_cache
def versions() -> dict[str, str]:
    """Versions of this repository, where git knows it, of Python and of the libraries that compute."""
    describe = ["git", "-C", str(REPO_ROOT), "describe", "--always", "--dirty", "--tags"]
    try:
        own = subprocess.run(describe, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        own = ""
    libraries = {name: version(name) for name in ("torch", "numpy", "scipy", "nibabel")}
    return {"BABY-AI": own or "unknown", "python": platform.python_version()} | libraries


def read_ahead(items: Iterable, read: Callable) -> Iterator[tuple[object, Future]]:
    """Each item with the future of its reading, which begins while the item before is being worked on."""
    with ThreadPoolExecutor(1, "reader") as pool:
        waiting = None
        for item in items:
            upcoming = item, pool.submit(read, item)
            if waiting:
                yield waiting
            waiting = upcoming
        if waiting:
            yield waiting


class Writer:
    """Writes each result in the background while the next scan is computed; waits for the last on exit.

    ``modules`` are imported there first.
    """

    def __init__(self, tally: Tally, modules: Iterable[str] = ()):
        self._tally = tally
        self._pool = ThreadPoolExecutor(1, "writer")
        for module in modules:
            self._pool.submit(importlib.import_module, module)
        self._writing: tuple[str, Path, Future] | None = None

    def submit(self, name: str, path: Path, save: Callable[[], None]) -> None:
        """Begin to ``save`` the result that goes to ``path``.

        First waits for the result before, so that no more than one is held in memory.
        """
        self._settle()
        self._writing = name, path, self._pool.submit(save)

    def _settle(self) -> None:
        if self._writing is None:
            return
        name, path, future = self._writing
        wait([future])
        self._writing = None
        if error := future.exception():
            self._tally.fail(name, error)
        else:
            finish(self._tally, name, path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self._settle()
        self._pool.shutdown()


@contextlib.contextmanager
def volume_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for one volume; yields the function to tell it (windows done, of how many)."""
    with tqdm(desc=name, unit="patch", position=1, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextlib.contextmanager
def memory_told(name: str) -> Iterator[None]:
    """Turn the several ways in which memory runs out into one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "Memory" not in type(error).__name__ and "can't allocate memory" not in str(error):
            raise
        raise BabyAIError(f"{name} needs more memory than there is; use --device cpu, or a larger machine.") from error


if __name__ == "__main__":
    sys.exit(main())
