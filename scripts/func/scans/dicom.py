"""Scans that are still folders of DICOM files: one series becomes one volume, converted with dcm2niix.

A name after # chooses a series: ``DICOM#5``, or ``DICOM#5_e2`` for the second echo of series 5.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from func.errors import BabyAIError, warn
from func.scans.files import is_dicom_file
from func.scans.nifti import check_is_there, read_volume
from func.scans.sidecars import read_sidecar

# All that is kept of a converted scan's sidecar: how it was acquired, nothing that could tell of whom, where or when.
_KEPT = (
    "Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "MRAcquisitionType", "ScanningSequence",
    "SequenceVariant", "PulseSequenceType", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle",
    "EchoTrainLength", "SliceThickness", "SpacingBetweenSlices", "SliceTiming", "ConversionSoftware",
    "ConversionSoftwareVersion",
)  # fmt: skip
_TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ImageType", "EchoTime",
    "InstanceNumber", "Rows", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip
_FRAME_TAGS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_EVEN = 0.1  # of the distance between slices: how far one may lie off its place


def read_scan(path: str | Path) -> tuple[nib.Nifti1Image, dict]:
    """A scan and its sidecar, from a NIfTI file or from a folder of DICOM files (or one of these).

    Slices that are missing among the DICOM files are left open: their planes are 0 and are listed as ``MissingSlices``
    (indices from 0 along the third axis) in the sidecar, and a warning tells of them.

    Returns:
        The image as of :func:`func.scans.nifti.read_volume`, and BIDS entries; of a DICOM series none that tells of
        whom, where or when it is.

    Raises:
        BabyAIError: it cannot be read, or the folder holds no series, or several of which none is named.
    """
    path = Path(path)
    if is_dicom(path):
        return _read_dicom(path)
    return read_volume(path), read_sidecar(path)


def is_dicom(path: str | Path) -> bool:
    """Whether a path means DICOM: a folder, a DICOM file, or one of the two with a series' name after #."""
    source, _ = _source_and_name(Path(path))
    return os.path.isdir(source) or (os.path.isfile(source) and is_dicom_file(source))


def check_scan_is_there(path: str | Path) -> None:
    """Refuse a path that leads neither to a file nor to a folder.

    Raises:
        BabyAIError: there is none.
    """
    source, _ = _source_and_name(Path(path))
    if not source.exists():
        source = Path(path)  # as it was given, for the message
    if not source.is_dir():
        check_is_there(source)


def dicom_files(path: str | Path) -> list[Path]:
    """The files of a DICOM folder, whatever they hold, or the DICOM file itself."""
    source, _ = _source_and_name(Path(path))
    return sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]


def source_name(path: str | Path) -> str:
    """What a sidecar may say of where a scan came from: its path, but of DICOM, whose folders are named after patients,
    the series alone."""
    if not is_dicom(path):
        return Path(path).as_posix()
    return f"DICOM series {_source_and_name(Path(path))[1]}".rstrip()


@dataclass(frozen=True)
class _Slice:
    """What the header of one DICOM file says; positions and directions in DICOM's world (mm, LPS+)."""

    path: Path
    series: str
    number: str  # of the series
    description: str
    instance: int  # the image's number within the series
    echo: str
    kind: str  # as magnitude or phase
    directions: tuple  # along a row and down a column, rounded
    spaced: bool  # whether it states how large its pixels are
    position: np.ndarray | None
    normal: np.ndarray | None

    @property
    def height(self) -> float:
        """mm along the direction in which the slices are stacked."""
        return float(self.normal @ self.position)


def _source_and_name(path: Path) -> tuple[Path, str]:
    """The folder or file that a path means, and the name of the series after #, which may stand in its last part."""
    source, _, name = path.name.rpartition("#")
    return (path.with_name(source), name) if source and not os.path.exists(path) else (path, "")


def _read_dicom(path: Path) -> tuple[nib.Nifti1Image, dict]:
    source, name = _source_and_name(path)
    slices = _placed(path, _chosen_series(path, _read_headers(source), name))
    with tempfile.TemporaryDirectory() as folder:
        dicom, converted = Path(folder, "dicom"), Path(folder, "nifti")
        dicom.mkdir()
        converted.mkdir()
        for number, one in enumerate(slices):
            shutil.copyfile(one.path, dicom / f"{number:06d}.dcm")
        filled = _fill_gaps(path, slices, dicom)
        volume = _chosen_volume(path, _convert(path, dicom, converted, slices[0].number), name)
        _check_is_one(path, volume)
        # Warnings are kept in sidecars, so they name the series, not the folder, which may be called after the patient.
        called = f"DICOM series {slices[0].number}"
        try:
            image = read_volume(volume, called)
        except BabyAIError as error:
            raise BabyAIError(str(error).replace(called, str(path))) from None
        sidecar = volume.with_suffix(".json")
        stated = json.loads(sidecar.read_bytes()) if sidecar.is_file() else {}
    entries = {key: stated[key] for key in _KEPT if key in stated}
    echo = 1000 * stated["EchoTime"] if "EchoTime" in stated else None
    missing = [position for time, position in filled if echo is None or time is None or abs(time - echo) < 1e-3]
    if missing:
        entries.pop("SliceTiming", None)
        entries["MissingSlices"] = _left_open(path, image, missing)
    return image, entries


def _read_headers(source: Path) -> list[_Slice]:
    """The images among the files below a folder, by their headers; other files, and copies, are left out."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    found: dict[tuple, _Slice] = {}
    for path in dicom_files(source):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        except (InvalidDicomError, OSError, ValueError, AttributeError, NotImplementedError):
            continue
        if "Rows" not in header or "SeriesInstanceUID" not in header:
            continue
        position, directions = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
        placed = position is not None and directions is not None
        directions = np.array(directions, float) if placed else np.zeros(6)
        number = int(header.get("InstanceNumber") or 0)
        # Some tools that take names out give every image the same identity.
        identity = str(header.get("SOPInstanceUID", path)), number, str(position)
        found[identity] = _Slice(
            path,
            str(header.SeriesInstanceUID),
            str(header.get("SeriesNumber") or 1),
            str(header.get("SeriesDescription", "")),
            number,
            str(header.get("EchoTime")),
            str(header.get("ImageType")),
            tuple(directions.round(3)),
            header.get("PixelSpacing") is not None,
            np.array(position, float) if placed else None,
            np.cross(directions[:3], directions[3:]) if placed else None,
        )
    return list(found.values())


def _chosen_series(path: Path, slices: list[_Slice], name: str) -> list[_Slice]:
    """The images of the only series, or of the one that is named.

    Raises:
        BabyAIError: there is none, or several of which none is named.
    """
    if not slices:
        raise BabyAIError(f"{path} holds no DICOM images; check the folder.")
    series: dict[str, list[_Slice]] = {}
    for one in slices:
        series.setdefault(one.series, []).append(one)
    chosen = [own for own in series.values() if not name or own[0].number == name.partition("_")[0]]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(f"{own[0].number} ({own[0].description}, {len(own)} images)" for own in series.values())
    fault = f"holds {len(series)} series" if not name else f"holds {len(chosen)} series of that number"
    example = _source_and_name(path)[0].name + "#" + next(iter(series.values()))[0].number
    raise BabyAIError(f"{path} {fault}: {listed}; name one, as in {example}, or give a folder that holds one series.")


def _placed(path: Path, slices: list[_Slice]) -> list[_Slice]:
    """The slices of a series but those that do not say where they lie, if others do.

    Raises:
        BabyAIError: pixels are of unknown size, or a file of many frames lacks some, which a conversion closes up.
    """
    placed = [one for one in slices if one.position is not None]
    if not all(one.spaced for one in placed):
        raise BabyAIError(f"{path} does not say how large its pixels are (PixelSpacing); export the series again.")
    if placed:
        return placed
    for one in slices:
        if any(_is_uneven(heights) for heights in _heights_of_frames(one.path)):
            raise BabyAIError(
                f"{path} lacks slices whose places could not be kept open; export the whole series again."
            )
    return slices


def _heights_of_frames(path: Path) -> list[list[float]]:
    """How high the frames of an enhanced DICOM file lie along their normal, mm, those of each direction together."""
    from pydicom import dcmread

    header = dcmread(path, stop_before_pixels=True, specific_tags=list(_FRAME_TAGS))
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), {})
    stacks: dict[tuple, list[float]] = {}
    for frame in header.get("PerFrameFunctionalGroupsSequence") or ():
        oriented = frame if "PlaneOrientationSequence" in frame else shared
        if "PlanePositionSequence" not in frame or "PlaneOrientationSequence" not in oriented:
            return []
        directions = np.array(oriented.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        height = float(np.cross(directions[:3], directions[3:]) @ position)
        stacks.setdefault(tuple(directions.round(3)), []).append(height)
    return list(stacks.values())


def _is_uneven(heights: list[float]) -> bool:
    """Whether slices, of which several may lie in one place, lie at different distances."""
    steps = np.diff(np.sort(heights))
    steps = steps[steps > 0.01]
    return len(steps) > 1 and bool(steps.max() > (1 + _EVEN) * np.median(steps))


def _stacks(slices: list[_Slice]) -> list[list[_Slice]]:
    """The slices of each stack: of one echo and direction, and of one kind where kinds lie in the same places."""
    stacks: dict[tuple, list[_Slice]] = {}
    for one in slices:
        stacks.setdefault((one.echo, one.directions), []).append(one)
    found = []
    for stack in stacks.values():
        places = {tuple(one.position.round(2)) for one in stack if one.position is not None}
        kinds: dict[str, list[_Slice]] = {}
        for one in stack:
            kinds.setdefault(one.kind if len(places) < len(stack) else "", []).append(one)
        found += kinds.values()
    return found


def _fill_gaps(path: Path, slices: list[_Slice], folder: Path) -> list[tuple[float | None, np.ndarray]]:
    """Put an empty image into each gap, since a conversion closes gaps up and so shifts all that lies beyond.

    Returns:
        The echo time (ms) and the position of each empty image.

    Raises:
        BabyAIError: the slices lie at irregular distances that no missing slice explains.
    """
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    filled, stacks = [], _stacks(slices)
    for stack in stacks:
        if len(stack) < 3 or any(one.position is None for one in stack):
            continue
        stack = sorted(stack, key=lambda one: one.height)
        heights = np.array([one.height for one in stack])
        distance = float(np.median(np.diff(heights)))
        if distance < 0.01 or np.diff(heights).min() < 0.01:  # several images in one place
            continue
        places = (heights - heights[0]) / distance
        if np.abs(places - places.round()).max() > _EVEN:
            raise BabyAIError(
                f"The slices of {path} lie {np.diff(heights).min():.2f} to {np.diff(heights).max():.2f} mm apart; they "
                "are no single stack."
            )
        missing = sorted({*range(round(places[-1]) + 1)} - {*places.round().astype(int).tolist()})
        for place in missing:
            below = stack[int(np.searchsorted(places, place)) - 1]
            position = below.position + below.normal * (heights[0] + place * distance - below.height)
            image = dcmread(below.path)
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.ImagePositionPatient = [f"{value:.10g}" for value in position]
            image.PixelData = bytes(image.Rows * image.Columns * image.SamplesPerPixel * image.BitsAllocated // 8)
            image["PixelData"].VR = "OW"
            image.save_as(folder / f"empty-{len(filled):06d}.dcm", enforce_file_format=True)
            filled.append((image.get("EchoTime"), position))
    if len(stacks) == 1 and not filled:
        _check_ends(slices)
    return filled


def _check_ends(slices: list[_Slice]) -> None:
    """Warn where the images' numbers, but not their places, tell that some are missing: at an end of the stack."""
    numbers = {one.instance for one in slices}
    lacking = sorted({*range(1, max(numbers) + 1)} - numbers)
    if 0 < len(lacking) <= len(slices) // 4:
        listed = ", ".join(map(str, lacking))
        warn(
            f"DICOM series {slices[0].number} lacks the images {listed}, probably slices at an end of the stack; "
            "export them again."
        )


def _convert(path: Path, dicom: Path, converted: Path, name: str) -> list[Path]:
    """Convert a series with dcm2niix, the slices along the third axis; returns the volumes that it gives."""
    import dcm2niix

    options = ["-b", "y", "-ba", "y", "-z", "n", "-x", "i", "-f", name, "-o", str(converted)]
    done = subprocess.run([dcm2niix.bin, *options, str(dicom)], capture_output=True, text=True, errors="replace")
    if volumes := sorted(converted.glob("*.nii")):
        return volumes
    told = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
    raise BabyAIError(f"dcm2niix makes no volume of {path} ({told[-1]}); check the export of the series.")


def _chosen_volume(path: Path, volumes: list[Path], name: str) -> Path:
    """The only volume of a series, or the one that is named.

    Raises:
        BabyAIError: there are several, none of them named.
    """
    named = [volume for volume in volumes if volume.stem == name or "_" not in name]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(volume.stem for volume in volumes)
    example = _source_and_name(path)[0].name + "#" + volumes[0].stem
    raise BabyAIError(f"The series of {path} holds {len(volumes)} volumes: {listed}; name one, as in {example}.")


def _check_is_one(path: Path, volume: Path) -> None:
    """Refuse a converted file that holds a series of volumes, as of a dynamic scan.

    Raises:
        BabyAIError: it does.
    """
    with volume.open("rb") as stream:
        shape = nib.Nifti1Header(stream.read(nib.Nifti1Header.template_dtype.itemsize), check=False).get_data_shape()
    if len(shape) > 3 and shape[3] > 1:
        raise BabyAIError(
            f"{path} holds {shape[3]} volumes in one place, as a dynamic scan does; convert it (dcm2niix), and take "
            "one out (nib-roi -t 0:1 IN OUT)."
        )


def _left_open(path: Path, image: nib.Nifti1Image, positions: list[np.ndarray]) -> list[int]:
    """The planes along the third axis that hold nothing but these positions (mm, LPS+); they are made 0 and told.

    Raises:
        BabyAIError: they are not where the positions are, so that the conversion cannot be trusted.
    """
    array = np.asarray(image.dataobj)
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), np.array(positions) * [-1, -1, 1])
    planes = sorted(np.round(voxels[:, 2]).astype(int).tolist())
    if planes[0] < 0 or planes[-1] >= array.shape[2] or np.ptp(array[..., planes], axis=(0, 1)).any():
        raise BabyAIError(f"{path} lacks slices whose places could not be kept open; export the whole series again.")
    array[..., planes] = 0
    listed = ", ".join(map(str, planes))
    warn(
        f"{image.get_filename()} lacks {len(planes)} of {array.shape[2]} slices; their places are left "
        f"open (planes {listed}, from 0). Export the series again if the scanner has them."
    )
    return planes
