"""Make thick-slice T2w scans from isotropic ones, for training and for evaluation.

Every isotropic T2w below the data folder is sliced in each direction and thickness, and up-sampled with cubic splines
to its own grid, each slice at its true position (or, with --native, left as the thick stack). The T1w scans are copied
beside the results, so that the output folder is what training.py and inference.py take as --data-dir.

    python scripts/synthesize_anisotropic.py --data-dir DATA --output-dir SYNTHESISED
    python scripts/synthesize_anisotropic.py --data-dir DATA --output-dir STACKS --thickness 3 --gap 0.3 --native

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from func.commands import (
    Tally,
    add_overwrite,
    at_least_one,
    in_processes,
    not_negative,
    positive,
    run_to_the_end,
    script_parser,
)
from func.errors import BabyAIError
from func.processors import processors
from func.scans.bids import entities_of, find_scans, is_original, stem_of
from func.scans.files import atomic
from func.scans.nifti import check_isotropic, image_of, read_volume, save_result
from func.scans.sidecars import read_sidecar, sidecar_path
from func.slices.geometry import AXIS_ACROSS, PROFILES, SliceGeometry, acquire, upsample
from func.version import own_version

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = REPO_ROOT / "data"  # holds sub-*_T2w.nii.gz (isotropic) and sub-*_T1w.nii.gz, in subfolders or not
OUTPUT_DIR = REPO_ROOT / "results" / "synthesised"
THICKNESSES = (2.0, 3.0, 4.0, 5.0)  # mm
DIRECTIONS = ("axial", "coronal", "sagittal")
PROFILE = "box"  # box, gaussian or point
GAP = 0.0  # mm between one slice's end and the next one's beginning
OFFSET = 0.0  # mm from the volume's edge to the first slice
NATIVE = False  # thick stacks instead of up-sampled ones
WORKERS = processors()
OVERWRITE = False


@dataclass(frozen=True)
class Slices:
    """How a scan is sliced; lengths in mm."""

    direction: str
    thickness: float
    gap: float
    offset: float
    profile: str
    native: bool

    @property
    def label(self) -> str:
        """The value of the name's acq entity: ``axial4mm``, ``coronal2p5mm``."""
        return f"{self.direction}{self.thickness:g}mm".replace(".", "p")

    def geometry(self, image: nib.Nifti1Image) -> SliceGeometry:
        """Where these slices lie in an image, whatever its axis order and voxel size.

        Raises:
            BabyAIError: the slices are no thicker than the image's planes, or fewer than two fit in.
        """
        axis = int(np.flatnonzero(nib.io_orientation(image.affine)[:, 0] == AXIS_ACROSS[self.direction])[0])
        voxel = float(nib.affines.voxel_sizes(image.affine)[axis])
        thickness, spacing = self.thickness / voxel, (self.thickness + self.gap) / voxel
        if thickness < 1.001:
            raise BabyAIError(
                f"{image.get_filename()} has voxels of {voxel:g} mm, too large to make slices of {self.thickness:g} mm "
                "of; choose a larger --thickness."
            )
        fitting = partial(SliceGeometry.fitting, axis, image.shape[axis], thickness, spacing, profile=self.profile)
        try:
            geometry = fitting()
            if self.offset:
                geometry = fitting(first_center=geometry.first_center + self.offset / voxel)
        except BabyAIError:
            geometry = None
        if geometry is None or geometry.count < 2:
            raise BabyAIError(
                f"{image.get_filename()} has no room for two {self.direction} slices in its "
                f"{image.shape[axis] * voxel:g} mm; choose a smaller --thickness, --gap or --offset."
            )
        return geometry


def main(argv: list[str] | None = None) -> int:
    """Synthesise what the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    return run_to_the_end("synthesize_anisotropic.py", partial(synthesise_folder, arguments), Tally("synthesised"))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    folders = parser.add_argument_group("scans")
    folders.add_argument("--data-dir", type=Path, default=DATA_DIR, help="isotropic scans (default: %(default)s)")
    folders.add_argument("--output-dir", type=Path, default=OUTPUT_DIR, help="where results go (default: %(default)s)")
    folders.add_argument("--workers", type=at_least_one, default=WORKERS, help="processes (default: %(default)s)")
    add_overwrite(folders, OVERWRITE)
    slices = parser.add_argument_group("slices")
    slices.add_argument(
        "--thickness",
        type=positive,
        nargs="+",
        metavar="MM",
        default=THICKNESSES,
        help=f"slice thicknesses (default: {' '.join(f'{thickness:g}' for thickness in THICKNESSES)})",
    )
    slices.add_argument(
        "--directions",
        nargs="+",
        choices=AXIS_ACROSS,
        default=DIRECTIONS,
        help=f"anatomical slice directions (default: {' '.join(DIRECTIONS)})",
    )
    slices.add_argument("--profile", choices=PROFILES, default=PROFILE, help="slice profile (default: %(default)s)")
    slices.add_argument(
        "--gap", type=not_negative, metavar="MM", default=GAP, help="between neighbouring slices (default: %(default)s)"
    )
    slices.add_argument(
        "--offset",
        type=not_negative,
        metavar="MM",
        default=OFFSET,
        help="from the volume's edge to the first slice's (default: %(default)s)",
    )
    slices.add_argument(
        "--native",
        action=argparse.BooleanOptionalAction,
        default=NATIVE,
        help="write the thick stacks themselves, not up-sampled ones",
    )
    return parser.parse_args(argv)


def synthesise_folder(arguments: argparse.Namespace, tally: Tally) -> None:
    """Synthesise from every isotropic T2w of a folder; a scan that fails is told and costs no other its results.

    Raises:
        BabyAIError: no such folder, or no T2w to work on.
    """
    scans, errors = find_originals(arguments.data_dir, arguments.output_dir)
    for error in errors:
        tally.fail("", error)
    t2s = [path for path in scans if entities_of(path)["suffix"] == "T2w"]
    if not t2s and not errors:
        raise BabyAIError(
            f"No isotropic T2w was found below {arguments.data_dir}; it needs scans named like sub-01_T2w.nii.gz."
        )
    for t1 in (path for path in scans if entities_of(path)["suffix"] == "T1w"):
        try:
            copy_with_sidecar(t1, arguments.output_dir / t1.relative_to(arguments.data_dir), arguments.overwrite)
        except BabyAIError as error:
            tally.fail(t1.name, error)

    wanted = [
        Slices(direction, thickness, arguments.gap, arguments.offset, arguments.profile, arguments.native)
        for direction, thickness in itertools.product(
            dict.fromkeys(arguments.directions), sorted({*arguments.thickness})
        )
    ]
    work = partial(synthesise, wanted=wanted, arguments=arguments)
    with tqdm(total=len(t2s) * len(wanted), desc="Scans", unit="scan", disable=None) as bar:
        for t2, outcome in in_processes(work, t2s, arguments.workers):
            if isinstance(outcome, BaseException):
                tally.fail(str(t2.relative_to(arguments.data_dir)), outcome)
            else:
                made, failures = outcome
                tally.done += made
                tally.kept += len(wanted) - made - len(failures)
                for failure in failures:
                    tally.fail(str(t2.relative_to(arguments.data_dir)), failure)
            bar.update(len(wanted))


def find_originals(data_dir: Path, output_dir: Path) -> tuple[list[Path], list[BabyAIError]]:
    """The T1w and T2w below a folder that are neither synthesised nor results, nor copies in the output folder.

    Returns:
        Their paths, and one error for each folder that cannot be read.
    """
    errors: list[BabyAIError] = []
    results = output_dir.absolute()
    nested = results != data_dir.absolute() and results.is_relative_to(data_dir.absolute())
    scans = [path for path in find_scans(data_dir, errors.append) if is_original(path)]
    return [path for path in scans if not (nested and path.absolute().is_relative_to(results))], errors


def copy_with_sidecar(source: Path, target: Path, overwrite: bool) -> None:
    """Copy a scan, and its sidecar if it has one, to where the results are; what is there is kept.

    Raises:
        BabyAIError: the scan is not there (a dead link), or the copy could not be written.
    """
    if not source.is_file():
        raise BabyAIError(f"{source} is a link to a file that is not there; get it first (git-annex or DataLad).")
    for origin, copy in ((sidecar_path(source), sidecar_path(target)), (source, target)):
        if origin.is_file() and origin.resolve() != copy.resolve() and (overwrite or not copy.exists()):
            with atomic(copy) as temporary:
                shutil.copyfile(origin, temporary)


def synthesise(t2: Path, wanted: list[Slices], arguments: argparse.Namespace) -> tuple[int, list[BabyAIError]]:
    """Make those of the wanted scans that are not there yet; returns how many, and why some could not be made.

    Raises:
        BabyAIError: the T2w is unreadable or not isotropic, so that none can be made.
    """
    folder = arguments.output_dir / t2.parent.relative_to(arguments.data_dir)
    paths = {slices: folder / synthesised_name(t2, slices) for slices in wanted}
    missing = [slices for slices in wanted if arguments.overwrite or not paths[slices].exists()]
    failures = [
        BabyAIError(f"{paths[slices]} was made with other settings; use --overwrite, or another --output-dir.")
        for slices in set(wanted).difference(missing)
        if read_sidecar(paths[slices]).get("Simulation") != asdict(slices)
    ]
    if not missing:
        return 0, failures

    image = read_volume(t2)
    spacing = float(np.median(nib.affines.voxel_sizes(image.affine)))
    check_isotropic(image, spacing, mend="give an isotropic scan")
    made = 0
    for slices in missing:
        try:
            simulated, geometry = thick_slices(image, slices)
            sidecar = {
                "Description": "Thick-slice T2w scan simulated by BABY-AI from an isotropic one",
                "Sources": [t2.relative_to(arguments.data_dir).as_posix()],
                **geometry,
                "Simulation": asdict(slices),
                "Versions": {"BABY-AI": own_version()},
            }
            save_result(paths[slices], simulated, sidecar)
            made += 1
        except BabyAIError as failure:
            failures.append(failure)
    return made, failures


def synthesised_name(t2: Path, slices: Slices) -> str:
    """``sub-01_T2w.nii.gz`` -> ``sub-01_acq-axial4mm_T2w.nii.gz``; an acq label of the scan's own stays in front."""
    parts = stem_of(t2).split("_")
    own = [part for part in parts if part.startswith("acq-")]
    parts = [part for part in parts if part not in own]
    position = sum(part.startswith(("sub-", "ses-", "task-")) for part in parts)
    parts.insert(position, (own[0] if own else "acq-") + slices.label)
    return "_".join(parts) + ".nii.gz"


def thick_slices(image: nib.Nifti1Image, slices: Slices) -> tuple[nib.Nifti1Image, dict]:
    """A scan as thick slices show it, and the sidecar entries that say where they lie.

    Returns:
        The stack up-sampled to the image's own grid, or the stack itself on a grid of its own whose planes are the
        slices' centres; float32, in the image's own intensities. Nothing is clipped: cubic splines ring a little
        below zero, and the measured slices can be told from the up-sampled scan only while they may.
    """
    geometry = slices.geometry(image)
    voxel = float(nib.affines.voxel_sizes(image.affine)[geometry.axis])
    array = image.get_fdata(dtype=np.float32)
    stack = acquire(array, geometry)
    entries = geometry.to_sidecar(voxel)
    if not slices.native:
        return image_of(upsample(stack, geometry, array.shape[geometry.axis]), image.affine, image), entries

    # The first slice is the stack's own first plane.
    del entries["FirstSliceCenter"]
    return image_of(stack, geometry.affine_in(image.affine), image), {"MRAcquisitionType": "2D", **entries}


if __name__ == "__main__":
    sys.exit(main())
