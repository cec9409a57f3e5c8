"""Measure how well failed registrations are told from good ones: the table in docs/same_head.md.

    python scripts/tools/check_same_head.py --data-dir RAW [--output TABLE.md]

Every T2w below RAW is registered with its T1w: as it is, made worse in many ways (noise, shading, a field of view that
cuts the head, few slices, a T1w of thick slices or of other angles; with --whole-heads also fat suppression and either
brain extracted), and with a header that is wrong. These are one head, and should not be refused. Then it is placed
wrong on purpose, which should be refused, and registered with the T1w of the next subject, as it is and worse, which
should at least be warned of. A T2w that is isotropic is first cut into 4 mm slices, 40 degrees oblique.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.scans.bids import find_pairs
from func.scans.nifti import array_of, image_of, read_volume
from func.scans.registration import Registration, judge_placements, mean_displacement, register_rigid
from func.scans.resampling import resample

Scans = tuple[nib.Nifti1Image, nib.Nifti1Image]


def main(argv: list[str] | None = None) -> int:
    """Register everything and print a row for each registration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with raw scans")
    parser.add_argument("--as-they-are", action="store_true", help="make the scans no worse and place none wrong")
    parser.add_argument("--whole-heads", action="store_true", help="also extract either brain and suppress either fat")
    parser.add_argument("--output", type=Path, help="also write the table there, as Markdown or, named .csv, as CSV")
    arguments = parser.parse_args(argv)
    pairs, _ = find_pairs(arguments.data_dir)
    rows = []
    for index, pair in enumerate(pairs):
        other = next((p for p in pairs[index:] + pairs[:index] if subject(p.t1) != subject(pair.t1)), None)
        t1, t2 = read_volume(pair.t1), read_volume(pair.t2)
        if np.ptp(voxel_sizes(t2.affine)) < 0.1:
            t2 = cut_anew(t2, 40, (0.8, 0.8, 4.0))
        other_t1 = read_volume(other.t1) if other else None
        for kind, case, off, registration in registrations(t1, t2, other_t1, arguments):
            rows.append({"Scan": pair.t2.name, "Kind": kind, "Case": case} | registration.to_sidecar())
            rows[-1]["Off (mm)"] = round(off, 2)
            print(" ".join(map(str, rows[-1].values())), flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby("Kind", sort=False)["Verdict"].value_counts().unstack(fill_value=0).to_string())
    if arguments.output:
        csv = arguments.output.suffix == ".csv"
        arguments.output.write_text(table.to_csv(index=False) if csv else table.to_markdown(index=False))
    return 0


def subject(path: Path) -> str:
    """``sub-01`` of ``sub-01_ses-2_T1w.nii.gz``."""
    return path.name.split("_")[0]


def registrations(
    t1: nib.Nifti1Image, t2: nib.Nifti1Image, other_t1: nib.Nifti1Image | None, arguments: argparse.Namespace
) -> Iterator[tuple[str, str, float, Registration]]:
    """What kind of registration, the case, how far it is off, and the registration, for all that is tried with a pair.

    Off is the mean displacement of the T1w's head, in mm, from where the pair as it is was laid.
    """
    found = register_rigid(t1, t2)
    head = head_points(t1)

    def off(registration: Registration, by: np.ndarray | None = None) -> float:
        return mean_displacement(registration.matrix, found.matrix if by is None else by @ found.matrix, head)

    yield "one head", "as it is", 0.0, found
    if not arguments.as_they_are:
        for case, scans in variants(t1, t2, arguments.whole_heads):
            registration = register_rigid(*scans)
            yield "one head", case, off(registration), registration
        for case, by in displacements(t2):
            registration = register_rigid(t1, image_of(array_of(t2), by @ t2.affine, t2))
            yield "wrong header", case, off(registration, by), registration
        wrong = dict(displacements(t1))
        judged = judge_placements(t1, t2, [found.matrix @ displacement for displacement in wrong.values()])
        for case, registration in zip(wrong, judged, strict=True):
            yield "placed wrong", case, off(registration), registration
        exchanged = image_of(mirrored(t2), t2.affine, t2)
        yield "placed wrong", "left and right exchanged", np.nan, register_rigid(t1, exchanged)
    if other_t1 is not None:
        yield "another subject", "as it is", np.nan, register_rigid(other_t1, t2)
        if not arguments.as_they_are:
            for case, scans in worse(other_t1, t2):
                yield "another subject", case, np.nan, register_rigid(*scans)


def worse(t1: nib.Nifti1Image, t2: nib.Nifti1Image) -> Iterator[tuple[str, Scans]]:
    """The same two scans, noisy, shaded or of few slices."""
    yield "5 % noise, shading, slices 1 mm off", (noisy(shaded(t1, 1), 0.05), noisy(shaded(shaken(t2, 1.0), 2), 0.05))
    yield "15 % noise", (noisy(t1, 0.15), noisy(t2, 0.15))
    yield "one side five times as bright", (shaded(t1, 1, 5.0), shaded(t2, 2, 5.0))
    thick = int(np.argmax(voxel_sizes(t2.affine)))
    few = 5 / t2.shape[thick]
    yield "upper half of the slices", (t1, part(t2, thick, 0.5, 1))
    yield "10 slices of the middle", (t1, part(t2, thick, 0.5 - few, 0.5 + few))


def variants(t1: nib.Nifti1Image, t2: nib.Nifti1Image, whole_heads: bool) -> Iterator[tuple[str, Scans]]:
    """The same two scans, worse in every way."""
    yield from worse(t1, t2)
    thick = int(np.argmax(voxel_sizes(t2.affine)))
    for axis in {0, 1, 2} - {thick}:
        yield f"T2w without a third of its axis {axis}", (t1, part(t2, axis, 1 / 3, 1))
    yield "T1w without a third of its last axis", (part(t1, 2, 1 / 3, 1), t2)
    yield "T1w turned by 40 degrees", (cut_anew(t1, 40, (1, 1, 1)), t2)
    yield "T1w of 5 mm slices", (cut_anew(t1, 0, (5, 1, 1)), t2)
    yield "T1w of 2.5 mm", (cut_anew(t1, 0, (2.5, 2.5, 2.5)), t2)
    if whole_heads:
        yield "T1w brain-extracted", (roughly_extracted(t1), t2)
        yield "T2w brain-extracted", (t1, roughly_extracted(t2))
        yield "T1w without its fat", (fat_suppressed(t1), t2)
        yield "T2w without its fat", (t1, fat_suppressed(t2))


def displacements(image: nib.Nifti1Image) -> Iterator[tuple[str, np.ndarray]]:
    """Motions that leave the head where it is not, world mm, about the middle of the field of view."""
    middle = apply_affine(image.affine, (np.array(image.shape) - 1) / 2)

    def turned(degrees: float, axis: int) -> np.ndarray:
        turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.eye(3)[axis]).as_matrix()
        return from_matvec(turn, middle - turn @ middle)

    yield "20 mm to the right", from_matvec(np.eye(3), (20, 0, 0))
    yield "20 mm up", from_matvec(np.eye(3), (0, 0, 20))
    yield "nodded by 20 degrees", turned(20, 0)
    yield "turned by 20 degrees", turned(20, 2)
    yield "upside down", turned(180, 1)


def head_points(image: nib.Nifti1Image) -> np.ndarray:
    """Some points of the head, world mm, shape (N, 3)."""
    array = array_of(image)
    return apply_affine(image.affine, np.argwhere(array > 0.2 * np.percentile(array[array > 0], 98))[::500])


def noisy(image: nib.Nifti1Image, share: float) -> nib.Nifti1Image:
    """Rician noise of a share of the brightest."""
    array = array_of(image)
    sigma = share * np.percentile(array[array > 0], 99)
    noise = np.random.default_rng(0).normal(0, sigma, (2, *array.shape))
    return image_of(np.hypot(array + noise[0], noise[1]), image.affine, image)


def shaded(image: nib.Nifti1Image, seed: int, ratio: float = 1.8) -> nib.Nifti1Image:
    """One side brighter than the other by a ratio, in a direction drawn by the seed."""
    direction = np.random.default_rng(seed).normal(size=3)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij"), axis=-1)
    across = places @ (direction / np.linalg.norm(direction))
    return image_of(array_of(image) * np.sqrt(ratio) ** np.clip(across, -1, 1), image.affine, image)


def shaken(image: nib.Nifti1Image, sigma: float) -> nib.Nifti1Image:
    """Each slice shifted in its plane by a normal deviate of ``sigma`` mm."""
    random, array, sizes = np.random.default_rng(0), array_of(image).copy(), voxel_sizes(image.affine)
    thick = int(np.argmax(sizes))
    for plane in np.moveaxis(array, thick, 0):
        plane[:] = ndimage.shift(plane, random.normal(0, sigma, 2) / np.delete(sizes, thick), order=1)
    return image_of(array, image.affine, image)


def part(image: nib.Nifti1Image, axis: int, first: float, end: float) -> nib.Nifti1Image:
    """The planes across an axis between two shares of its length, where they lie."""
    length = image.shape[axis]
    planes = slice(max(0, round(first * length)), min(length, round(end * length)))
    return image.slicer[tuple(planes if a == axis else slice(None) for a in range(3))]


def cut_anew(image: nib.Nifti1Image, degrees: float, sizes: tuple[float, float, float]) -> nib.Nifti1Image:
    """The scan on a grid turned against its own, with voxels of these sizes in mm, each the mean over its extent."""
    own = image.affine[:3, :3] / voxel_sizes(image.affine)
    axes = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([2, 2, 1]) / 3).as_matrix() @ own
    fine = [max(1, round(size)) for size in sizes]  # samples across a voxel
    extent = np.array(image.shape) * voxel_sizes(image.affine)
    shape = np.ceil(extent / sizes).astype(int)
    middle = apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    samples = axes * np.array(sizes) / fine
    affine = from_matvec(samples, middle - samples @ ((shape * fine - 1) / 2))
    array = resample(image, tuple(shape * fine), affine, order=1)
    blocks = array.reshape(shape[0], fine[0], shape[1], fine[1], shape[2], fine[2])
    to_sample = from_matvec(np.diag(np.array(fine, float)), (np.array(fine) - 1) / 2)
    return image_of(blocks.mean(axis=(1, 3, 5)), affine @ to_sample, image)


def depth_in_head(image: nib.Nifti1Image) -> np.ndarray:
    """How far each voxel lies below the head's surface, mm; 0 in the air."""
    array = array_of(image)
    smooth = ndimage.gaussian_filter(array, 1)
    head = ndimage.binary_fill_holes(smooth > 0.15 * np.percentile(array[array > 0], 98))
    return ndimage.distance_transform_edt(head, sampling=voxel_sizes(image.affine))


def roughly_extracted(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """What lies 15 mm or more inside the head; all else is 0."""
    return image_of(np.where(depth_in_head(image) > 15, array_of(image), 0), image.affine, image)


def fat_suppressed(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The outermost 8 mm of the head at a tenth of their brightness."""
    return image_of(np.where(depth_in_head(image) > 8, 1, 0.1) * array_of(image), image.affine, image)


def mirrored(image: nib.Nifti1Image) -> np.ndarray:
    """The array with the axis reversed that runs nearest to left and right."""
    axes = nib.io_orientation(image.affine)[:, 0]
    return np.ascontiguousarray(np.flip(array_of(image), int(np.flatnonzero(axes == 0)[0])))


if __name__ == "__main__":
    sys.exit(main())
