"""Reconstruct isotropic T2w scans of infants from thick-slice T2w and isotropic T1w scans.

One raw infant, whatever the scans' orientation, voxel size and slice thickness; several T2w stacks give one result:

    python scripts/inference.py --t1 sub-01_T1w.nii.gz --t2 sub-01_T2w.nii.gz --output sub-01_desc-isotropic_T2w.nii.gz

A folder of raw scans, a result for each session (without --space: of pairs on the atlas grid, or any grid of 1 mm):

    python scripts/inference.py --data-dir RAW --output-dir RESULTS --space 1mm --stacks together

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

# NumPy's products of matrices are small: threads of its own wait longer for each other, and spin, than they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tqdm import tqdm

from func.commands import (
    Tally,
    add_overwrite,
    add_t1w_filter,
    importing,
    positive,
    run_to_the_end,
    script_parser,
    similarity,
)
from func.errors import BabyAIError, warn
from func.pipeline import Writer, read_ahead
from func.processors import processors
from func.scans.bids import Pair, find_pairs, find_t2w_alone, put_together, result_path, stem_of
from func.scans.case import Case, check_grids, read_cases
from func.scans.dicom import check_scan_is_there, source_name
from func.scans.files import check_writable
from func.scans.hub import commit_of, find_weights
from func.scans.provenance import differences, digest, fingerprint, inputs_of
from func.stopwatch import Stopwatch, process_start
from func.training.splits import add_split, wanted_subjects
from func.version import own_version

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = REPO_ROOT / "data"  # holds sub-*_T1w.nii.gz and sub-*_T2w.nii.gz, in subfolders or not
OUTPUT_DIR = REPO_ROOT / "results"
WEIGHTS = "bundled"  # bundled, babyai (the published weights, from the Hub), or a file
NETWORK = "auto"  # of the bundled two: large, fast, or auto: large, but fast for whole adult heads without a GPU
RUNS = None  # 1 to 4 runs of the network, on other mirror images each, whose mean counts; None: 1, on a GPU 2
DEVICE = "auto"  # auto, cpu, cuda or mps
PRECISION = "auto"  # auto, float32 or bfloat16
SPACE = None  # 1mm, t1 or t2: DATA_DIR holds raw scans, to be registered; None: pairs on one grid
VOXEL_SIZE = 1.0  # mm, or in-plane for the T2w's own: of the result of raw scans
MIN_SIMILARITY = None  # of registered raw scans; None: only failed registrations are refused
WITHOUT_T1W = False  # reconstruct the T2w in DATA_DIR alone, where there is no T1w to guide it
MOTION = "auto"  # raw scans: auto, on or off: whether each slice gets a place of its own
STACKS = "separate"  # raw scans in DATA_DIR: separate, or together to one result for each session
OVERWRITE = False
REPORT = True  # report.html and figures beside the results
UNCERTAINTY = False  # also write where not to trust each result; four runs of the network
BIDS = False  # lay the results out as a BIDS derivative dataset


def main(argv: list[str] | None = None) -> int:
    """Reconstruct what the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    return run_to_the_end("inference.py", lambda tally: reconstruct_all(arguments, tally), Tally("reconstructed"))


def reconstruct_all(arguments: argparse.Namespace, tally: Tally) -> None:
    """Reconstruct every pair asked for that has no result yet; one that fails costs no other its result.

    Raises:
        BabyAIError: nothing could be started at all.
    """
    results = find_results(arguments, tally)
    todo = [pair for pair, path in results.items() if arguments.overwrite or not path.exists()]
    weights = find_weights(arguments.weights) if results else None
    for pair in [pair for pair in results if pair not in todo]:
        keep(pair, results[pair], made_with(pair, weights, arguments), tally)
    reporter = start_report(arguments)
    if todo:
        reconstruct_pairs({pair: results[pair] for pair in todo}, weights, arguments, tally, reporter)
    # Of one infant that failed there is nothing to show but what the console says.
    if reporter and (not tally.failed if arguments.t2 else results or tally.failed):
        for pair in [pair for pair, path in results.items() if pair not in todo and reporter.lacks(path)]:
            reporter.catch_up(results[pair], pair.t1, pair.t2)
        reporter.finish(tally.sentences)


def keep(pair: Pair, result: Path, making: dict, tally: Tally) -> None:
    """Count a result that is there as kept if the same would be made again, as failed if not."""
    if differing := differences(result, making):
        told = f"{result} is there, but was made with {', '.join(differing)}; give --overwrite to make it anew."
        tally.fail(pair.name, BabyAIError(told))
    else:
        tally.kept += 1


def made_with(pair: Pair, weights: Path, arguments: argparse.Namespace) -> dict:
    """Entries of a result's JSON sidecar: all that decides what it is."""
    settings = {"Network": arguments.network, "Device": arguments.device, "Precision": arguments.precision}
    settings |= {"Runs": arguments.runs, "Uncertainty": arguments.uncertainty}
    if arguments.space:
        settings |= {"Space": arguments.space, "VoxelSize": arguments.voxel_size, "Motion": arguments.motion}
        settings |= stated_slices(arguments)
    used = {"Name": str(arguments.weights), "SHA256": digest(weights)}
    if commit := commit_of(weights):
        used["Commit"] = commit
    inputs = inputs_of(pair.t2, pair.t1)
    for number, t2 in enumerate(pair.others, 2):
        inputs |= {f"{name}{number}": value for name, value in inputs_of(t2, None).items()}
    inputs |= {f"Mask{number}": fingerprint(mask) for number, mask in enumerate(pair.masks, 1)}
    return {"Inputs": inputs, "Weights": used, "Settings": settings}


def reconstruct_pairs(
    todo: dict[Pair, Path], weights_path: Path, arguments: argparse.Namespace, tally: Tally, reporter
) -> None:
    """Read each pair, reconstruct it, and write its result; files are read ahead and written behind.

    The first raw scans are registered, or the slices behind the first others found, while torch is imported.
    """
    check_writable(folder_of_results(arguments))
    readings, stopwatch = read_ahead(todo, partial(read, arguments=arguments)), Stopwatch(process_start())
    # Imported here, so that a wrong call is told without waiting for torch.
    with importing():
        from func.networks.devices import report_out_of_memory
        from func.networks.weights import load_weights
        from func.reconstruction.reconstructor import Reconstructor

    weights = load_weights(weights_path)
    if arguments.space and weights.recipe == "babyai":
        raise BabyAIError("The published weights need scans on the atlas grid; run scripts/preprocessing.py.")

    def written(pair: Pair) -> None:
        tally.done += 1
        tqdm.write(f"{pair.name} -> {todo[pair]}")

    def failed(pair: Pair, error: BaseException) -> None:
        tally.fail(pair.name, error)

    # What the first result needs to be written is imported while it is computed.
    needed = ("func.reports.results", *(("jinja2",) if reporter else ()))
    with (
        tqdm(total=len(todo), desc="Scans", unit="scan", disable=None) as scans,
        tqdm(desc="Windows", unit="window", position=1, leave=False, disable=None) as windows,
        Writer(written, failed, needed) as writer,
    ):

        def progress(done: int, total: int) -> None:
            windows.total, windows.n = total, done
            windows.refresh()

        raw = raw_settings(arguments)
        reconstructor = Reconstructor(
            weights,
            arguments.device,
            arguments.precision,
            arguments.uncertainty,
            progress,
            network=arguments.network,
            runs=arguments.runs,
        )
        stopwatch.lap("Start")
        for pair, reading in readings:
            try:
                case, *others = reading.result()
                stopwatch.lap("Reading")
                if weights.recipe == "babyai":
                    check_grids(case, atlas=True)
                with report_out_of_memory(pair.name):
                    if others:
                        result = reconstructor.reconstruct_together([case, *others], raw)
                    else:
                        result = reconstructor.reconstruct(case, raw)
                case = replace(case, warnings=(*case.warnings, *(told for stack in others for told in stack.warnings)))
                making = made_with(pair, weights_path, arguments)
                making["Weights"]["Recipe"] = weights.recipe
                writer.submit(pair, save_result, pair, todo[pair], case, result, making, arguments, reporter, stopwatch)
            except Exception as error:
                failed(pair, error)
            scans.update()
            stopwatch = Stopwatch()


def read(pair: Pair, arguments: argparse.Namespace) -> list[Case]:
    """The stacks of a pair, each with its T1w; raw ones are registered to it, behind others their slices are found.

    Raises:
        BabyAIError: one cannot be read, shows too little to be registered, or is not on a grid of 1 mm voxels.
    """
    cases = read_cases(pair)
    if not arguments.space:
        return [on_grid(case, arguments) for case in cases]
    with ThreadPoolExecutor(processors()) as pool:
        return list(pool.map(lambda case: with_stated_slices(case, arguments).registered(), cases))


def on_grid(case: Case, arguments: argparse.Namespace) -> Case:
    """A case on one grid of 1 mm voxels with the slices behind it, which the published procedure has no use for.

    Raises:
        BabyAIError: it is not on such a grid.
    """
    check_grids(case)
    return case if arguments.weights == "babyai" else case.with_slices_behind()


def save_result(
    pair: Pair,
    path: Path,
    case: Case,
    result,
    making: dict,
    arguments: argparse.Namespace,
    reporter,
    stopwatch: Stopwatch,
) -> None:
    """Write all that belongs to a result: the volume with its sidecar, the maps asked for, the figure.

    The figure is drawn while the quality of the input is measured, and added once the result is there.

    Raises:
        BabyAIError: something could not be written.
    """
    from func.reports.results import describe, save

    stopwatch.take(result.report.get("Seconds", {}))
    with ThreadPoolExecutor(1, "drawer") as drawer:
        known = {**result.report, **making}
        drawing = reporter and drawer.submit(
            reporter.draw, path, case.t1, case.t2, result.image, result.uncertainty, known
        )
        sidecar = describe(case, result, named_sources(pair, arguments), making)
        stopwatch.lap("Quality")
    stopwatch.lap("Figure")
    if arguments.uncertainty and arguments.weights != "bundled":
        sidecar["Warnings"].append(
            "The uncertainty was calibrated for the bundled weights; scripts/evaluate.py tells how well it holds."
        )
    for sentence in sidecar["Warnings"][len(case.warnings) + len(result.warnings) :]:
        warn(f"{pair.name}: {sentence}")
    save(path, case, result, sidecar, arguments.residual_map, stopwatch)
    if reporter:
        reporter.add(path, drawing.result())


def find_results(arguments: argparse.Namespace, tally: Tally) -> dict[Pair, Path]:
    """The pairs to reconstruct and where the result of each goes; scans without a partner are told as failed.

    Raises:
        BabyAIError: there is no such folder or scan, nothing in it, or two results would go to one place.
    """
    if arguments.t2:
        for scan in filter(None, [arguments.t1, *arguments.t2, *(arguments.mask or ())]):
            check_scan_is_there(scan)
        first, *others = arguments.t2
        pair = Pair("", arguments.t1, first, stem_of(first), others=tuple(others), masks=tuple(arguments.mask or ()))
        return {pair: arguments.output}
    if arguments.without_t1w:
        pairs, errors = find_t2w_alone(arguments.data_dir)
    else:
        pairs, errors = find_pairs(arguments.data_dir, arguments.t1w_filter)
    wanted = wanted_subjects(arguments.split, arguments.part)
    pairs = [pair for pair in pairs if wanted(pair.subject)]
    if arguments.split and not pairs:
        raise BabyAIError(
            f"None of the subjects of the part {arguments.part} of {arguments.split} has scans below "
            f"{arguments.data_dir}; name another folder, or another part."
        )
    if arguments.stacks == "together":
        pairs = put_together(pairs)
    part, count = arguments.shard
    pairs, errors = pairs[part::count], errors[part::count]
    if not pairs and not errors:
        print(f"Part {part + 1} of {count} holds no scan: there are fewer scans than parts.")
    for error in errors:
        tally.fail("", error)
    if not arguments.bids:
        return {pair: result_path(pair, arguments.output_dir) for pair in pairs}
    from func.scans.derivatives import derivative_paths, describe_dataset

    results = derivative_paths(pairs, arguments.output_dir)
    describe_dataset(arguments.output_dir, arguments.data_dir, own_version())
    return results


def named_sources(pair: Pair, arguments: argparse.Namespace) -> list[str]:
    """T2w stacks and T1w as a sidecar names them: relative to the data folder, in a BIDS dataset as BIDS URIs."""
    paths = [path for path in (*pair.stacks, pair.t1) if path]
    if arguments.t2:
        return [source_name(path) for path in paths]
    prefix = "bids:raw:" if arguments.bids else ""
    return [prefix + path.relative_to(arguments.data_dir).as_posix() for path in paths]


def stated_slices(arguments: argparse.Namespace) -> dict:
    """Sidecar entries that the command line states."""
    stated = {
        "SliceThickness": arguments.thickness,
        "SpacingBetweenSlices": arguments.spacing,
        "SliceProfile": arguments.profile,
    }
    return {key: value for key, value in stated.items() if value is not None}


def with_stated_slices(case: Case, arguments: argparse.Namespace) -> Case:
    """A raw case with the slices that the command line states; a spacing so given corrects the header."""
    from func.slices.geometry import stack_geometry, with_spacing

    case = replace(case, sidecar=case.sidecar | stated_slices(arguments))
    if not arguments.spacing:
        return case
    direction = {key: value for key, value in case.sidecar.items() if key == "SliceEncodingDirection"}
    axis, *_ = stack_geometry(case.t2, direction)
    return replace(case, t2=with_spacing(case.t2, axis, arguments.spacing))


def raw_settings(arguments: argparse.Namespace):
    """How raw scans are to be reconstructed; None where the scans lie on one grid."""
    if not arguments.space:
        return None
    from func.reconstruction.acquired import RawSettings

    return RawSettings(arguments.space, arguments.voxel_size, arguments.min_similarity, arguments.motion)


def start_report(arguments: argparse.Namespace):
    """What keeps the report on the folder of the results, or None with ``--no-report``."""
    if not arguments.report:
        return None
    from func.reports.page import Reporter

    part, count = arguments.shard
    # Tells runs on one folder apart.
    name = stem_of(arguments.output) if arguments.t2 else f"{part + 1}of{count}"
    return Reporter(folder_of_results(arguments), name, lambda sentence: tqdm.write(sentence, file=sys.stderr))


def folder_of_results(arguments: argparse.Namespace) -> Path:
    """The folder that results and report go to."""
    return arguments.output.parent if arguments.t2 else arguments.output_dir


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    add_one_infant(parser.add_argument_group("one raw infant"))
    add_folder(parser.add_argument_group("a folder of scans"))
    add_raw(parser.add_argument_group("raw scans: one infant, or a folder with --space"))
    add = parser.add_argument_group("network").add_argument
    add("--weights", default=WEIGHTS, help="bundled, babyai (published, from the Hub) or a file (default: %(default)s)")
    add(
        "--network",
        choices=("auto", "large", "fast"),
        default=NETWORK,
        help="which of the two bundled networks; auto: large, but fast for an adult's whole head without a GPU "
        "(default: %(default)s)",
    )
    add(
        "--runs",
        type=int,
        choices=(1, 2, 3, 4),
        default=RUNS,
        help="runs of the network on mirror images, which are averaged: more accurate, slower (default: 1, on a GPU 2)",
    )
    add("--device", default=DEVICE, help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    add("--precision", choices=("auto", "float32", "bfloat16"), default=PRECISION, help="default: %(default)s")
    add_outputs(parser.add_argument_group("what is written"))
    arguments = parser.parse_args(argv)
    if arguments.t2:
        arguments.space = arguments.space or ("1mm" if arguments.t1 else "t2")
    check_arguments(parser, arguments)
    return arguments


def add_one_infant(group: argparse._ArgumentGroup) -> None:
    """Options that name the scans of one infant."""
    add = group.add_argument
    add("--t1", type=Path, metavar="T1W", help="a NIfTI file or a folder of DICOM files; leave it out if there is none")
    add(
        "--t2",
        type=Path,
        nargs="+",
        metavar="T2W",
        help="thick slices: a NIfTI file, its JSON sidecar beside it if there is one, or a folder of DICOM files "
        "(DICOM#5: its series 5); of several stacks, in any planes, one result is made, in the first one's intensities",
    )
    add("--output", type=Path, metavar="FILE", help="the result, .nii.gz or .nii")
    add(
        "--mask",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="masks of the head, one for each T2W, as for a fetus; the rest is taken for air",
    )
    add("--residual-map", type=Path, nargs="+", metavar="FILE", help="also write how far the result is off each T2W")


def add_folder(group: argparse._ArgumentGroup) -> None:
    """Options for all scans of a folder."""
    add = group.add_argument
    add("--data-dir", type=Path, metavar="DIR", default=DATA_DIR, help="folder with the scans (default: %(default)s)")
    add("--output-dir", type=Path, metavar="DIR", default=OUTPUT_DIR, help="for results (default: %(default)s)")
    add_t1w_filter(group)
    add(
        "--without-t1w",
        action=argparse.BooleanOptionalAction,
        default=WITHOUT_T1W,
        help="reconstruct every T2w alone, whether there is a T1w or not: less accurate",
    )
    add_split(group)
    add("--shard", type=parse_shard, default=(0, 1), metavar="I/N", help="only the I-th of N parts (default: 1/1)")
    add(
        "--bids",
        action=argparse.BooleanOptionalAction,
        default=BIDS,
        help="make the output folder a BIDS derivative dataset",
    )


def add_raw(group: argparse._ArgumentGroup) -> None:
    """Options for scans as they were acquired."""
    add = group.add_argument
    add(
        "--space",
        choices=("1mm", "t1", "t2"),
        default=SPACE,
        help="frame of the result: the T1w's at --voxel-size, the T1w's own grid, or the T2w's (default: 1mm for one "
        "infant; the scans of a folder are taken to lie on one grid)",
    )
    add(
        "--voxel-size",
        type=voxel_size,
        default=VOXEL_SIZE,
        metavar="MM|in-plane",
        help="of the result; below 1 mm it keeps the finer detail that the slices hold in-plane (default: %(default)s)",
    )
    add(
        "--stacks",
        choices=("separate", "together"),
        default=STACKS,
        help="in a folder: one result for each T2w stack, or one for all stacks of a session (default: %(default)s)",
    )
    add(
        "--motion",
        choices=("auto", "on", "off"),
        default=MOTION,
        help="whether to correct motion between slices; auto: where the head clearly moved (default: %(default)s)",
    )
    add(
        "--min-similarity",
        type=similarity,
        default=MIN_SIMILARITY,
        metavar="S",
        help="refuse T1w and T2w that are less similar once registered (default: refuse only failed registrations)",
    )
    add("--thickness", type=positive, metavar="MM", help="slice thickness (default: sidecar, then header)")
    add("--spacing", type=positive, metavar="MM", help="distance of slice centres (default: header)")
    add("--profile", choices=("box", "gaussian", "point"), help="slice profile (default: sidecar, then box)")


def add_outputs(group: argparse._ArgumentGroup) -> None:
    """Options on what is written, and over what."""
    add_overwrite(group, OVERWRITE)
    group.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=REPORT,
        help="draw each result, and gather all of them in report.html",
    )
    group.add_argument(
        "--uncertainty",
        action=argparse.BooleanOptionalAction,
        default=UNCERTAINTY,
        help="also map how far the result may be off (half of a 90 %% interval), from four runs of the network",
    )


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with code 2 and one sentence where the arguments contradict each other."""
    one = [arguments.t2, arguments.output]
    if any([arguments.t1, *one]) and not all(one):
        parser.error("a raw infant needs --t2 and --output, and --t1 where there is a T1w")
    if arguments.without_t1w and arguments.space not in (None, "t2"):
        parser.error(f"--space {arguments.space} is the T1w's; with --without-t1w give --space t2, or none")
    if arguments.without_t1w and (arguments.t1 or arguments.weights == "babyai"):
        parser.error("--without-t1w goes with a folder and with weights other than babyai, and not with --t1")
    if arguments.t2 and not arguments.t1 and arguments.space != "t2":
        parser.error(f"--space {arguments.space} is the T1w's, and there is none; leave it out, or give --t1")
    if arguments.space == "t1" and arguments.voxel_size != VOXEL_SIZE:
        parser.error("--voxel-size is for --space 1mm and t2; --space t1 has the T1w's own voxels")
    if not arguments.space and arguments.voxel_size != VOXEL_SIZE:
        parser.error("--voxel-size is for raw scans (--t2 and --output, or --space)")
    if arguments.uncertainty and arguments.weights == "babyai":
        parser.error("--uncertainty was calibrated for the bundled weights, not for the published ones")
    if arguments.uncertainty and arguments.runs not in (None, 4):
        parser.error("--uncertainty takes four runs; leave --runs out")
    if arguments.weights == "babyai" and arguments.runs not in (None, 1):
        parser.error("the published procedure runs its network once; leave --runs out")
    if arguments.weights == "babyai" and arguments.network != "auto":
        parser.error("the published weights hold one network only; leave --network out")
    if arguments.space and arguments.weights == "babyai":
        parser.error("the published weights need scans on the atlas grid (scripts/preprocessing.py), not raw ones")
    stacks = [path.resolve() for path in arguments.t2 or ()]
    twice = [path for path, stack in zip(arguments.t2 or (), stacks, strict=True) if stacks.count(stack) > 1]
    if twice:
        parser.error(f"{twice[0]} is given twice as --t2, which adds nothing; give each stack once")
    if arguments.t1 and arguments.t1.resolve() in stacks:
        parser.error(f"{arguments.t1} is given as --t1 and as --t2; without a T1w leave --t1 out")
    if arguments.mask and len(arguments.mask) != len(arguments.t2 or ()):
        parser.error("--mask needs one mask for each --t2, in the same order")
    if arguments.stacks == "together" and not arguments.space:
        parser.error("--stacks together is for raw scans; give --space as well")
    if not arguments.space and any((arguments.thickness, arguments.spacing, arguments.profile)):
        parser.error("--thickness, --spacing and --profile are for raw scans (--t2 and --output, or --space)")
    if arguments.residual_map and not all(one):
        parser.error("--residual-map is for one raw infant (--t2, --output)")
    if arguments.residual_map and len(arguments.residual_map) != len(arguments.t2):
        parser.error("--residual-map needs one file for each --t2, in the same order")
    if arguments.bids and not any(one) and arguments.output_dir.resolve() == arguments.data_dir.resolve():
        parser.error("--bids makes a dataset of its own, which needs an --output-dir other than --data-dir")
    inputs = [arguments.t1, *(arguments.t2 or ()), *(arguments.mask or ())]
    check_outputs(parser, inputs, [arguments.output, *(arguments.residual_map or ())])


def check_outputs(parser: argparse.ArgumentParser, inputs: list[Path | None], outputs: list[Path | None]) -> None:
    """Exit with code 2 where a file to be written is no NIfTI file, or it or its sidecar would replace another."""
    taken = {(path.resolve().parent, stem_of(path)): "an input" for path in inputs if path}
    for path in filter(None, outputs):
        if path.is_dir():
            parser.error(f"{path} is a folder; give a file in it, as {path / 'sub-01_desc-isotropic_T2w.nii.gz'}")
        if not path.name.endswith((".nii", ".nii.gz")):
            parser.error(f"{path} must end in .nii.gz or .nii")
        key = path.resolve().parent, stem_of(path)
        if key in taken:
            parser.error(f"{path} or its JSON sidecar would overwrite {taken[key]}; choose another name")
        taken[key] = "another output"


def parse_shard(text: str) -> tuple[int, int]:
    """``2/5`` -> (1, 5): the part's index from 0, and the number of parts."""
    part, _, count = text.partition("/")
    if not (part.isdigit() and count.isdigit() and 1 <= int(part) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part like 1/4")
    return int(part) - 1, int(count)


def voxel_size(text: str) -> float | str:
    """A voxel size in mm, or ``in-plane``."""
    return text if text == "in-plane" else positive(text)


if __name__ == "__main__":
    sys.exit(main())
