"""Measure how well failed registrations are told from good ones: the table in docs/same_head.md.

    python scripts/tools/check_same_head.py --data-dir RAW [--output TABLE.md]

Every T2w below RAW is registered with its T1w: as it is, with noise and shading, reduced to half of its slices and,
with --whole-heads, with either brain roughly extracted. These are one head, and should not be refused. Then it is
placed wrong on purpose, which should be refused, and registered with the T1w of the next subject, which should at least
be warned of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import from_matvec, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.scans.bids import find_pairs
from func.scans.nifti import image_of, read_volume
from func.scans.registration import Registration, judge_placements, register_rigid

Scans = tuple[nib.Nifti1Image, nib.Nifti1Image]


def main(argv: list[str] | None = None) -> int:
    """Register everything and print a row for each registration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with raw scans")
    parser.add_argument("--as-they-are", action="store_true", help="make the scans no worse and place none wrong")
    parser.add_argument("--whole-heads", action="store_true", help="also extract either brain, roughly")
    parser.add_argument("--output", type=Path, help="also write the table there, as Markdown or, named .csv, as CSV")
    arguments = parser.parse_args(argv)
    pairs, _ = find_pairs(arguments.data_dir)
    rows = []
    for index, pair in enumerate(pairs):
        other = next((p for p in pairs[index:] + pairs[:index] if subject(p.t1) != subject(pair.t1)), None)
        scans = read_volume(pair.t1), read_volume(pair.t2)
        other_t1 = read_volume(other.t1) if other else None
        for kind, case, registration in registrations(*scans, other_t1, arguments):
            rows.append({"Scan": pair.t2.name, "Kind": kind, "Case": case} | registration.to_sidecar())
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
) -> Iterator[tuple[str, str, Registration]]:
    """What kind of registration, the case, and the registration, for all that is tried with a pair."""
    found = register_rigid(t1, t2)
    yield "one head", "as it is", found
    if not arguments.as_they_are:
        for case, scans in variants(t1, t2, arguments.whole_heads):
            yield "one head", case, register_rigid(*scans, start=found.matrix)
        wrong = dict(displacements(t1))
        judged = judge_placements(t1, t2, [found.matrix @ displacement for displacement in wrong.values()])
        for case, registration in zip(wrong, judged, strict=True):
            yield "placed wrong", case, registration
        exchanged = image_of(mirrored(t2), t2.affine, t2)
        yield "placed wrong", "left and right exchanged", register_rigid(t1, exchanged, start=found.matrix)
    if other_t1 is not None:
        yield "another subject", "T1w of the next subject", register_rigid(other_t1, t2)


def variants(t1: nib.Nifti1Image, t2: nib.Nifti1Image, whole_heads: bool) -> Iterator[tuple[str, Scans]]:
    """The same two scans, worse."""
    yield "5 % noise, shading, slices 1 mm off", (noisy(t1, 1), noisy(t2, 2, shift=1.0))
    count = t2.shape[thick_axis(t2)]
    yield "middle half of the slices", (t1, slab(t2, count // 4, count - count // 4))
    yield "upper half of the slices", (t1, slab(t2, count // 2, count))
    if whole_heads:
        yield "T1w brain-extracted", (roughly_extracted(t1), t2)
        yield "T2w brain-extracted", (t1, roughly_extracted(t2))


def displacements(t1: nib.Nifti1Image) -> Iterator[tuple[str, np.ndarray]]:
    """Motions that leave the head where it is not, world mm, about the middle of the field of view."""
    middle = t1.affine @ [*((np.array(t1.shape) - 1) / 2), 1]

    def turned(degrees: float, axis: int) -> np.ndarray:
        turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.eye(3)[axis]).as_matrix()
        return from_matvec(turn, middle[:3] - turn @ middle[:3])

    yield "20 mm to the right", from_matvec(np.eye(3), (20, 0, 0))
    yield "20 mm up", from_matvec(np.eye(3), (0, 0, 20))
    yield "nodded by 20 degrees", turned(20, 0)
    yield "turned by 20 degrees", turned(20, 2)
    yield "upside down", turned(180, 1)


def thick_axis(image: nib.Nifti1Image) -> int:
    """The array axis of the largest voxels: across the slices."""
    return int(np.argmax(voxel_sizes(image.affine)))


def noisy(image: nib.Nifti1Image, seed: int, shift: float = 0.0) -> nib.Nifti1Image:
    """Rician noise of 5 % of the brightest, a shading of 30 % across, and slices shifted by some ``shift`` mm."""
    random = np.random.default_rng(seed)
    array = np.asarray(image.dataobj, np.float32).copy()
    axis, sizes = thick_axis(image), voxel_sizes(image.affine)
    if shift:
        for plane in np.moveaxis(array, axis, 0):
            plane[:] = ndimage.shift(plane, random.normal(0, shift, 2) / np.delete(sizes, axis), order=1)
    direction = random.normal(size=3)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in array.shape), indexing="ij"), axis=-1)
    array *= 1 + 0.3 * (places @ (direction / np.linalg.norm(direction)))
    sigma = 0.05 * np.percentile(array[array > 0], 99)
    noise = random.normal(0, sigma, (2, *array.shape))
    return image_of(np.hypot(array + noise[0], noise[1]).astype(np.float32), image.affine, image)


def slab(image: nib.Nifti1Image, first: int, end: int) -> nib.Nifti1Image:
    """The slices from ``first`` to before ``end``, where they lie."""
    axis = thick_axis(image)
    slices = [slice(None)] * 3
    slices[axis] = slice(first, end)
    return image.slicer[tuple(slices)]


def roughly_extracted(image: nib.Nifti1Image, depth: float = 15.0) -> nib.Nifti1Image:
    """What lies ``depth`` mm or more inside the head; all else is 0."""
    array = np.asarray(image.dataobj, np.float32)
    smooth = ndimage.gaussian_filter(array, 1)
    head = ndimage.binary_fill_holes(smooth > 0.15 * np.percentile(array[array > 0], 98))
    inside = ndimage.distance_transform_edt(head, sampling=voxel_sizes(image.affine)) > depth
    return image_of(np.where(inside, array, 0), image.affine, image)


def mirrored(image: nib.Nifti1Image) -> np.ndarray:
    """The array with the axis reversed that runs nearest to left and right."""
    axes = nib.io_orientation(image.affine)[:, 0]
    return np.ascontiguousarray(np.flip(np.asarray(image.dataobj), int(np.flatnonzero(axes == 0)[0])))


if __name__ == "__main__":
    sys.exit(main())
