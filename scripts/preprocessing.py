"""Bring raw scans onto the atlas grid: T1w to atlas, T2w to T1w, every image interpolated once.

The output folder is what inference.py takes as --data-dir. Beside each scan lie its transform (ITK), a sidecar that
says how it was acquired and what became of it, and a picture that shows whether the registration is right.

    python scripts/preprocessing.py --data-dir RAW --output-dir PREPARED

and back again, from a reconstruction on the atlas grid to where the infant lay in the scanner:

    python scripts/preprocessing.py --inverse RESULTS/*_desc-isotropic_T2w.nii.gz --output-dir PREPARED --space T2w

or only the atlas, for registration with another tool:

    python scripts/preprocessing.py --atlas-only FOLDER

Exit code: 0 all done, 1 some scan failed, 2 the call was wrong; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# NumPy's own threads would spin while they wait for each other: docs/speed.md.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
from tqdm import tqdm

from func.commands import (
    Tally,
    add_overwrite,
    add_t1w_filter,
    at_least_one,
    in_processes,
    run_to_the_end,
    script_parser,
    similarity,
)
from func.errors import BabyAIError, collect_warnings
from func.processors import processors
from func.scans.bids import RESULT_ENTITY, Pair, find_pairs, is_foreign, stem_of
from func.scans.case import Case, warn_of_voxels
from func.scans.files import atomic
from func.scans.hub import ATLAS_FILE, fetch
from func.scans.nifti import check_atlas_grid, image_of, read_volume, save_result
from func.scans.provenance import fingerprint, inputs_of
from func.scans.registration import Registration, check_same_head, register_rigid
from func.scans.resampling import resample
from func.scans.sidecars import read_sidecar
from func.scans.transforms import load_itk_transform, save_itk_transform
from func.slices.geometry import stack_geometry
from func.version import own_version

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = REPO_ROOT / "data"  # holds raw sub-*_T1w.nii.gz and sub-*_T2w.nii.gz, in subfolders or not
OUTPUT_DIR = REPO_ROOT / "results" / "prepared"
ATLAS = None  # a file; None for the published atlas, from the Hugging Face Hub
SPACE = "T1w"  # where --inverse leads: the T1w's own grid, or 1 mm voxels along the T2w's own axes
MIN_SIMILARITY = None  # of T1w and T2w, 0 to 1; None refuses only a T2w whose registration failed
WORKERS = processors()
OVERWRITE = False


@dataclass(frozen=True)
class Infant:
    """A T1w and the T2w scans of the same infant that share it."""

    t1: Path
    t2s: tuple[Path, ...]


def main(argv: list[str] | None = None) -> int:
    """Prepare, or take back, what the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.atlas_only:
        return run_to_the_end("preprocessing.py", partial(place_atlas, arguments), Tally("placed"))
    if arguments.inverse:
        return run_to_the_end("preprocessing.py", partial(take_back_all, arguments), Tally("taken back"))
    return run_to_the_end("preprocessing.py", partial(prepare_folder, arguments), Tally("prepared"))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    prepare = parser.add_argument_group("raw scans onto the atlas grid")
    prepare.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder with raw scans (default: %(default)s)")
    prepare.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help="folder of the prepared scans (default: %(default)s)"
    )
    prepare.add_argument(
        "--atlas", type=Path, default=ATLAS, help="182 x 218 x 182 voxels of 1 mm (default: from the Hugging Face Hub)"
    )
    add_t1w_filter(prepare)
    prepare.add_argument(
        "--min-similarity",
        type=similarity,
        default=MIN_SIMILARITY,
        metavar="S",
        help="refuse a T2w that is less similar to its T1w than this, 0 to 1, and no other (default: refuse it where "
        "the registration failed)",
    )
    prepare.add_argument("--workers", type=at_least_one, default=WORKERS, help="processes (default: %(default)s)")
    back = parser.add_argument_group("back to the scan's own space")
    back.add_argument(
        "--inverse",
        type=Path,
        nargs="+",
        metavar="RESULT",
        help="reconstructions of scans that were prepared in --output-dir; each gets a copy beside it, with "
        "space-T1w or space-T2w in its name",
    )
    back.add_argument(
        "--space",
        choices=("T1w", "T2w"),
        default=SPACE,
        help="the T1w's own grid, or 1 mm voxels along the T2w's own axes (default: %(default)s)",
    )
    alone = parser.add_argument_group("the atlas alone")
    alone.add_argument("--atlas-only", type=Path, metavar="DIR", help=f"put {ATLAS_FILE} into this folder")
    add_overwrite(parser.add_argument_group("all of these"), OVERWRITE)
    return parser.parse_args(argv)


def place_atlas(arguments: argparse.Namespace, tally: Tally) -> None:
    """Copy the atlas to a folder of the user's choice.

    Raises:
        BabyAIError: it cannot be had, or not be written.
    """
    target = arguments.atlas_only / ATLAS_FILE
    if target.exists() and not arguments.overwrite:
        tally.kept += 1
        return
    atlas = find_atlas(arguments)
    with atomic(target) as temporary:
        shutil.copyfile(atlas, temporary)
    tally.done += 1
    print(f"{ATLAS_FILE} -> {target}")


def find_atlas(arguments: argparse.Namespace) -> Path:
    """The file of the atlas: the one asked for, or the published one.

    Raises:
        BabyAIError: it cannot be had, or is no volume on the atlas grid.
    """
    path = arguments.atlas or fetch(ATLAS_FILE)
    check_atlas_grid(read_volume(path), mend="give another --atlas, or none")
    return path


def prepare_folder(arguments: argparse.Namespace, tally: Tally) -> None:
    """Prepare every pair of a folder; a scan that fails is told and costs no other its result.

    Raises:
        BabyAIError: nothing could be started at all.
    """
    data_dir, output_dir = (folder.resolve() for folder in (arguments.data_dir, arguments.output_dir))
    if output_dir.is_relative_to(data_dir) and not is_foreign(output_dir, data_dir):
        raise BabyAIError(
            f"--output-dir {arguments.output_dir} lies in --data-dir; choose a folder outside it, or one in its "
            "derivatives folder."
        )
    pairs, errors = find_pairs(arguments.data_dir, arguments.t1w_filter)
    atlas = find_atlas(arguments)
    for error in errors:
        tally.fail("", error)
    with tqdm(total=len(pairs), desc="Scans", unit="scan", disable=None) as bar:
        work = partial(prepare, atlas_path=atlas, arguments=arguments)
        for infant, outcome in in_processes(work, infants_of(pairs), arguments.workers):
            if isinstance(outcome, BaseException):
                outcome = dict.fromkeys(infant.t2s, outcome)
            for t2, result in outcome.items():
                if isinstance(result, BaseException):
                    tally.fail(t2.name, result)
                elif result is None:
                    tally.kept += 1
                else:
                    tally.done += 1
                    tqdm.write(f"{t2.name} -> {result}")
            bar.update(len(infant.t2s))


def infants_of(pairs: list[Pair]) -> list[Infant]:
    """The pairs, put together by the T1w that they share."""
    shared: dict[Path, list[Path]] = {}
    for pair in pairs:
        shared.setdefault(pair.t1, []).append(pair.t2)
    return [Infant(t1, tuple(t2s)) for t1, t2s in shared.items()]


def prepare(infant: Infant, atlas_path: Path, arguments: argparse.Namespace) -> dict[Path, Path | Exception | None]:
    """Prepare one infant's scans.

    Returns:
        For each T2w the result's path, None where it was there already, or what went wrong.

    Raises:
        BabyAIError: the T1w could not be prepared.
    """
    outcome: dict[Path, Path | Exception | None] = {}
    todo, t1_target = [], target_of(infant.t1, arguments)
    has_t1 = is_kept(t1_target, made_from(infant.t1, atlas_path), arguments.overwrite)
    for t2 in infant.t2s:
        try:
            kept = is_kept(target_of(t2, arguments), made_from(infant.t1, atlas_path, t2), arguments.overwrite)
            outcome[t2] = None
            todo += [] if kept else [t2]
        except BabyAIError as error:
            outcome[t2] = error
    if not todo and has_t1:
        return outcome
    atlas = read_volume(atlas_path)
    with collect_warnings() as warnings:
        t1 = read_volume(infant.t1)
    atlas_to_t1 = prepare_t1(t1, t1_target, atlas, warnings, arguments)
    for t2 in todo:
        try:
            outcome[t2] = target_of(t2, arguments)
            prepare_t2(t2, outcome[t2], t1, t1_target, atlas_to_t1, atlas, arguments)
        except Exception as error:
            outcome[t2] = error
    return outcome


def made_from(t1: Path, atlas: Path, t2: Path | None = None) -> dict:
    """Fingerprints of the files that a prepared T1w, or with ``t2`` a prepared T2w, is made from."""
    return (inputs_of(t2, None) if t2 else {}) | {"T1w": fingerprint(t1), "Atlas": fingerprint(atlas)}


def is_kept(target: Path, inputs: dict, overwrite: bool) -> bool:
    """Whether a prepared scan is there and need not be made again.

    Raises:
        BabyAIError: it is there, but was made from other files.
    """
    if overwrite or not target.exists():
        return False
    before = read_sidecar(target).get("Inputs") or {}
    if others := [key for key, value in inputs.items() if before.get(key) != value]:
        raise BabyAIError(
            f"{target} is there, but was made from another {', another '.join(others)}; give --overwrite to make it "
            "anew, or another --output-dir."
        )
    return True


def target_of(scan: Path, arguments: argparse.Namespace) -> Path:
    """Where the prepared scan goes: the same name below the output folder, as .nii.gz."""
    return arguments.output_dir / scan.parent.relative_to(arguments.data_dir) / f"{stem_of(scan)}.nii.gz"


def prepare_t1(
    t1: nib.Nifti1Image, target: Path, atlas: nib.Nifti1Image, warnings: list[str], arguments: argparse.Namespace
) -> np.ndarray:
    """Lay a T1w upon the atlas, or find how it was laid there before.

    Returns:
        Shape (4, 4), world mm (RAS+) of the atlas -> world mm of the T1w.
    """
    if target.exists() and not arguments.overwrite:
        return load_itk_transform(transform_path(target, "atlas"), mend="give --overwrite to make it anew")
    # The heads of infant and atlas differ in size; only place and direction are taken over.
    registration = register_rigid(atlas, t1, scaled=True)
    array = resample(t1, atlas.shape, atlas.affine, registration.matrix)
    image = image_of(array, atlas.affine, atlas)
    save_picture(target, image, atlas)
    save_itk_transform(transform_path(target, "atlas"), registration.matrix)
    sidecar = described(t1, target, atlas, registration.matrix, registration, arguments)
    sidecar |= {"Inputs": made_from(Path(t1.get_filename()), Path(atlas.get_filename())), "Warnings": warnings}
    save_result(target, image, sidecar)
    return registration.matrix


def prepare_t2(
    path: Path,
    target: Path,
    t1: nib.Nifti1Image,
    t1_target: Path,
    atlas_to_t1: np.ndarray,
    atlas: nib.Nifti1Image,
    arguments: argparse.Namespace,
) -> None:
    """Lay a T2w upon its T1w and interpolate it, once, on the atlas grid.

    Raises:
        BabyAIError: the T2w or its sidecar is unreadable, or it does not fit the T1w.
    """
    with collect_warnings() as warnings:
        case = Case(t1, read_volume(path), read_sidecar(path)).registered()
        t2, registration = case.t2, case.registration
        warn_of_voxels(t1, t2)
        axis, thickness, spacing = stack_geometry(t2, case.sidecar)
        matrix = registration.matrix @ atlas_to_t1
        image = image_of(resample(t2, atlas.shape, atlas.affine, matrix), atlas.affine, atlas)
        picture = save_picture(target, image, read_volume(t1_target))
        try:
            check_same_head(registration, t1, t2, arguments.min_similarity)
        except BabyAIError as error:
            raise BabyAIError(f"{error} Their edges: {picture}") from None
    save_itk_transform(transform_path(target, "T1w"), registration.matrix)
    save_itk_transform(transform_path(target, "atlas"), matrix)
    sidecar = described(t2, target, atlas, matrix, registration, arguments)
    sidecar["AsAcquired"] |= {
        "SliceThickness": thickness,
        "SpacingBetweenSlices": spacing,
        "SliceEncodingDirection": "ijk"[axis],
    }
    sidecar["Registration"]["T1wToScan"] = registration.matrix.tolist()
    sidecar["Inputs"] = made_from(Path(t1.get_filename()), Path(atlas.get_filename()), path)
    sidecar["Warnings"] = [*case.warnings, *warnings]
    sidecar["T1w"] = t1_target.relative_to(arguments.output_dir).as_posix()
    save_result(target, image, sidecar)


def described(
    scan: nib.Nifti1Image,
    target: Path,
    atlas: nib.Nifti1Image,
    matrix: np.ndarray,
    registration: Registration,
    arguments: argparse.Namespace,
) -> dict:
    """The sidecar of a prepared scan: how it was acquired, and by which motion it came to lie on the atlas grid."""
    return {
        "Description": "Scan on the atlas grid, interpolated once with cubic splines by BABY-AI",
        "Sources": [Path(scan.get_filename()).relative_to(arguments.data_dir).as_posix()],
        "SpatialReference": Path(atlas.get_filename()).name,
        "Registration": {
            "AtlasToScan": matrix.tolist(),
            "Transform": transform_path(target, "atlas").name,
            **registration.to_sidecar(),
        },
        "AsAcquired": {"Shape": list(scan.shape), "Affine": scan.affine.tolist()},
        "Versions": {"BABY-AI": own_version()},
    }


def transform_path(target: Path, space: str) -> Path:
    """``sub-01_T2w.nii.gz`` -> ``sub-01_from-T2w_to-atlas_mode-image_xfm.tfm``."""
    entities, suffix = stem_of(target).rsplit("_", 1)
    return target.with_name(f"{entities}_from-{suffix}_to-{space}_mode-image_xfm.tfm")


def save_picture(target: Path, image: nib.Nifti1Image, other: nib.Nifti1Image) -> Path:
    """Draw the edges of another image over a prepared scan, in three planes; returns the picture's path."""
    from func.reports.figures import edges

    entities, suffix = stem_of(target).rsplit("_", 1)
    path = target.with_name(f"{entities}_desc-registration_{suffix}.png")
    with atomic(path) as temporary:
        edges(image, other).savefig(temporary, format="png", dpi=150)
    return path


def take_back_all(arguments: argparse.Namespace, tally: Tally) -> None:
    """Take every reconstruction back to its scan's space; one that fails is told and costs no other its result."""
    for path in arguments.inverse:
        try:
            target = path.with_name(
                path.name.replace(f"_{RESULT_ENTITY}_", f"_space-{arguments.space}_{RESULT_ENTITY}_")
            )
            if target == path:
                raise BabyAIError(f"{path} is no reconstruction: {RESULT_ENTITY} is missing in its name.")
            if target.exists() and not arguments.overwrite:
                tally.kept += 1
                continue
            take_back(path, target, arguments.output_dir, arguments.space)
            tally.done += 1
            tqdm.write(f"{path.name} -> {target}")
        except Exception as error:
            tally.fail(path.name, error)


def take_back(path: Path, target: Path, prepared_dir: Path, space: str) -> None:
    """Write a reconstruction on the grid of the T1w (``space`` T1w), or at 1 mm along the axes of the T2w (T2w).

    Raises:
        BabyAIError: the scan's sidecar is not found or damaged, or the result cannot be read or written.
    """
    result = read_volume(path)
    sidecar = sidecar_of_prepared(path, prepared_dir)
    try:
        if space == "T1w":
            sidecar = read_sidecar(prepared_dir / sidecar["T1w"])
        shape, affine = sidecar["AsAcquired"]["Shape"], np.array(sidecar["AsAcquired"]["Affine"])
        atlas_to_scan, source = np.array(sidecar["Registration"]["AtlasToScan"]), sidecar["Sources"][0]
    except (KeyError, TypeError):
        raise BabyAIError(
            f"The sidecar of the {space} that {path} was made from does not say how it was aligned with the atlas; "
            "prepare it again with --overwrite."
        ) from None
    if space == "T2w":
        fine = np.maximum(1, np.round(nib.affines.voxel_sizes(affine) * shape)).astype(int)
        affine, shape = nib.affines.rescale_affine(affine, shape, 1.0, fine), fine
    array = resample(result, tuple(shape), affine, np.linalg.inv(atlas_to_scan))
    description = {
        "Description": f"Reconstruction in the space of the {space} as it was scanned",
        "Sources": [path.name],
        "SpatialReference": source,
    }
    save_result(target, image_of(array, affine, result), read_sidecar(path) | description)


def sidecar_of_prepared(result: Path, prepared_dir: Path) -> dict:
    """The sidecar of the prepared T2w that a reconstruction was made from, found by its name.

    Raises:
        BabyAIError: there is none, or more than one.
    """
    name = stem_of(result).replace(f"_{RESULT_ENTITY}", "") + ".nii.gz"
    found = [path for path in sorted(prepared_dir.rglob(name)) if "AsAcquired" in read_sidecar(path)]
    if len(found) != 1:
        raise BabyAIError(
            f"{result} was made from {name}, of which there are {len(found)} below {prepared_dir}; give the folder "
            "that preprocessing.py wrote as --output-dir."
        )
    return read_sidecar(found[0])


if __name__ == "__main__":
    sys.exit(main())
