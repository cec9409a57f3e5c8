"""A folder of DICOM files gives the volume that the scanner saw, each slice in its place, and nobody's name."""

import json
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid

from func.errors import BabyAIError, collect_warnings
from func.scans.bids import Pair
from func.scans.case import read_case
from func.scans.dicom import check_scan_is_there, is_dicom, read_scan, source_name
from func.scans.nifti import image_of, read_volume, save_volume
from func.scans.provenance import fingerprint

SHAPE = (20, 24, 11)  # columns, rows, slices
VOXEL = (0.9, 0.8, 4.4)  # mm
ORIGIN = np.array([-30.0, 25.0, -60.0])  # DICOM's world, LPS
AXIAL = np.eye(3)
OBLIQUE = nib.eulerangles.euler2mat(0.3, -0.2, 0.25)
SAGITTAL = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])  # columns: along a row, down a column, across the slices
PERSONAL = {
    "PatientName": "Doe^Jane",
    "PatientID": "19751230-1234",
    "PatientBirthDate": "20231231",
    "PatientAge": "003M",
    "PatientSex": "F",
    "StudyDate": "20240315",
    "AcquisitionDate": "20240315",
    "StudyTime": "101112",
    "AcquisitionTime": "101112.5",
    "ContentTime": "101113",
    "InstitutionName": "St Elsewhere",
    "ReferringPhysicianName": "House^Gregory",
    "DeviceSerialNumber": "45678",
    "StationName": "MRC45678",
    "AccessionNumber": "A99",
    "ProtocolName": "T2 Doe Jane",
    "ImageComments": "Jane moved",
}


def voxels(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 900, shape)


def new_image(sop_class, manufacturer):
    """A 2-D MR image of 12 bits without its pixels."""
    image, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta = meta
    image.Modality, image.Manufacturer, image.MRAcquisitionType = "MR", manufacturer, "2D"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    return image


def write_series(folder, array=None, axes=AXIAL, skip=(), number=5, description="t2_tse", heights=None, **tags):
    """A 2-D series of classic DICOM files, a file for each slice."""
    array = voxels() if array is None else array
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    for k in sorted(set(range(array.shape[2])) - set(skip)):
        image = new_image(MRImageStorage, "Siemens")
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", series
        image.SeriesNumber, image.InstanceNumber, image.SeriesDescription = number, k + 1, description
        image.EchoTime, image.RepetitionTime = 90, 5000
        height = VOXEL[2] * k if heights is None else heights[k]
        image.ImagePositionPatient = [f"{value:.8g}" for value in ORIGIN + axes[:, 2] * height]
        image.ImageOrientationPatient = [f"{value:.8g}" for value in (*axes[:, 0], *axes[:, 1])]
        image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = [VOXEL[1], VOXEL[0]], 4, VOXEL[2]
        image.Columns, image.Rows = array.shape[:2]
        image.PixelData = np.ascontiguousarray(array[..., k].T.astype("<u2")).tobytes()
        for key, value in (PERSONAL | tags).items():
            setattr(image, key, value)
        image.save_as(folder / f"{generate_uid()}.dcm", enforce_file_format=True)
    return folder


def assert_every_voxel_in_its_place(image, array, axes, empty=()):
    """Each voxel of the series is found in the image at its world position, RAS."""
    indices = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1).reshape(-1, 3)
    world = (ORIGIN + (indices * VOXEL) @ axes.T) * [-1, -1, 1]
    found = nib.affines.apply_affine(np.linalg.inv(image.affine), world)
    assert np.abs(found - found.round()).max() < 1e-3
    expected = np.where(np.isin(indices[:, 2], empty), 0, array.reshape(-1))
    np.testing.assert_array_equal(np.asarray(image.dataobj)[tuple(found.round().astype(int).T)], expected)


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE, SAGITTAL, OBLIQUE * [1, 1, -1]])
@pytest.mark.parametrize("missing", [(), (5,), (1, 5, 6), (8, 9)])
def test_every_slice_lies_where_the_scanner_had_it(tmp_path, axes, missing):
    folder = write_series(tmp_path / "DICOM", axes=axes, skip=missing)
    with collect_warnings() as told:
        image, sidecar = read_scan(folder)
    assert image.shape[2] == SHAPE[2]
    assert_every_voxel_in_its_place(image, voxels(), axes, missing)
    empty = [k for k in range(image.shape[2]) if not np.asarray(image.dataobj)[..., k].any()]
    assert sidecar.get("MissingSlices", []) == empty and len(empty) == len(missing)
    assert len(told) == bool(missing) and all(f"lacks {len(missing)} of 11 slices" in line for line in told)
    assert (sidecar["SliceThickness"], sidecar["SpacingBetweenSlices"]) == (4, pytest.approx(4.4))


def test_the_slices_of_a_sagittal_3d_series_stay_its_third_axis(tmp_path):
    image, sidecar = read_scan(write_series(tmp_path / "DICOM", axes=SAGITTAL, skip=(4,), MRAcquisitionType="3D"))
    assert image.shape == SHAPE and len(sidecar["MissingSlices"]) == 1
    assert_every_voxel_in_its_place(image, voxels(), SAGITTAL, (4,))


def test_compressed_files_and_an_intercept(tmp_path):
    folder = write_series(tmp_path / "DICOM", skip=(4,), RescaleSlope=2, RescaleIntercept=-51)
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        image.compress(RLELossless)
        image.save_as(path)
    image, sidecar = read_scan(folder)
    (plane,) = sidecar["MissingSlices"]
    array = np.asarray(image.dataobj)
    assert not array[..., plane].any() and array.min() == -49
    assert_every_voxel_in_its_place(image_of((array + 51) / 2 * (array != 0), image.affine), voxels(), AXIAL, (4,))


def test_slices_missing_at_an_end_are_told_by_their_numbers(tmp_path):
    with collect_warnings() as told:
        read_scan(write_series(tmp_path / "DICOM", skip=(0,)))
    assert len(told) == 1 and "lacks the images 1," in told[0]


def test_uneven_distances_are_refused(tmp_path):
    heights = np.arange(SHAPE[2]) * VOXEL[2]
    heights[6:] += 1.5
    with pytest.raises(BabyAIError, match=r"4\.40 to 5\.90 mm apart"):
        read_scan(write_series(tmp_path / "DICOM", heights=heights))


def test_nobody_s_name_place_or_time_is_kept(tmp_path):
    for name, skip in (("whole", ()), ("gap", (3,)), ("end", (0,))):
        with collect_warnings() as told:
            image, sidecar = read_scan(write_series(tmp_path / "Doe" / name, skip=skip))
        save_volume(tmp_path / f"{name}.nii", image.get_fdata(), image.affine, image)
        kept = json.dumps([sidecar, told, image.get_filename()]) + (tmp_path / f"{name}.nii").read_bytes()[:352].decode(
            "latin-1"
        )
        for value in ("Doe", "Jane", "1975", "2023", "2024", "1011", "10:11", "Elsewhere", "House", "45678", "A99"):
            assert value not in kept
    assert source_name(tmp_path / "Doe" / "whole") == "DICOM series"
    assert source_name(f"{tmp_path / 'Doe' / 'whole'}#5") == "DICOM series 5"
    assert source_name("a/sub-01_T2w.nii.gz") == "a/sub-01_T2w.nii.gz"


def test_of_several_series_one_is_named(tmp_path):
    folder = tmp_path / "DICOM"
    write_series(folder / "a", number=5)
    write_series(folder / "b", voxels((20, 24, 7)), number=12, description="t1_mprage")
    with pytest.raises(BabyAIError, match=r"2 series: 5 \(t2_tse, 11 images\), 12 \(t1_mprage, 7 images\)") as refused:
        read_scan(folder)
    example = str(refused.value).split("as in ")[1].split(",")[0]
    assert read_scan(folder.with_name(example))[0].shape == SHAPE
    image, _ = read_scan(f"{folder}#12")
    assert image.shape[2] == 7 and image.get_filename() == "DICOM series 12"
    with pytest.raises(BabyAIError, match="0 series of that number"):
        read_scan(f"{folder}#7")


def test_of_two_echoes_one_is_named(tmp_path):
    folder = tmp_path / "DICOM"
    series = generate_uid()
    for echo, time in ((1, 20), (2, 90)):
        tags = {"EchoTime": time, "EchoNumbers": echo, "SeriesInstanceUID": series}
        write_series(folder, voxels() + echo, skip=(3,) if echo == 2 else (), **tags)
    with pytest.raises(BabyAIError, match=r"2 volumes: 5_e1, 5_e2; name one, as in DICOM#5_e1"):
        read_scan(folder)
    image, sidecar = read_scan(f"{folder}#5_e2")
    assert_every_voxel_in_its_place(image, voxels() + 2, AXIAL, (3,))
    assert len(sidecar["MissingSlices"]) == 1 and sidecar["EchoTime"] == pytest.approx(0.09)
    whole, sidecar = read_scan(f"{folder}#5_e1")
    assert_every_voxel_in_its_place(whole, voxels() + 1, AXIAL)
    assert "MissingSlices" not in sidecar


def changed(folder, change):
    """A series after ``change`` of each image, by its number from 0."""
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        change(image, image.InstanceNumber - 1)
        image.save_as(path)
    return folder


def test_images_that_share_an_identity_or_not_their_kind_are_one_stack(tmp_path):
    """As where a tool that takes names out gave all the same number, or one slice was filtered and the others not."""

    def one_identity(image, number):
        image.SOPInstanceUID = "1.2.3.4"

    def another_kind(image, number):
        image.ImageType = [*image.ImageType, *(["NORM"] if number == 4 else [])]

    for change in (one_identity, another_kind):
        folder = changed(write_series(tmp_path / change.__name__), change)
        with collect_warnings() as told:
            image, _ = read_scan(folder)
        assert not told
        assert_every_voxel_in_its_place(image, voxels(), AXIAL)


def test_an_image_that_does_not_say_where_it_lies_is_missing(tmp_path):
    def lost(image, number):
        if number == 3:
            del image.ImagePositionPatient

    image, sidecar = read_scan(changed(write_series(tmp_path / "DICOM"), lost))
    assert_every_voxel_in_its_place(image, voxels(), AXIAL, (3,))
    assert len(sidecar["MissingSlices"]) == 1


def test_a_series_that_does_not_say_where_it_lies_is_named_in_the_warning(tmp_path):
    def lost(image, number):
        image.ImagePositionPatient = None

    with collect_warnings() as told:
        read_scan(changed(write_series(tmp_path / "DICOM"), lost))
    assert len(told) == 1 and told[0].startswith("DICOM series 5 does not say how the head lies")


def test_pixels_of_unknown_size_are_refused(tmp_path):
    def lost(image, number):
        del image.PixelSpacing

    with pytest.raises(BabyAIError, match="PixelSpacing"):
        read_scan(changed(write_series(tmp_path / "DICOM"), lost))


def test_a_dynamic_series_and_a_volume_that_is_not_there(tmp_path):
    folder, series = tmp_path / "DICOM", generate_uid()
    write_series(folder, SeriesInstanceUID=series)
    with pytest.raises(BabyAIError, match=r"holds 1 volumes: 5; name one, as in DICOM#5\."):
        read_scan(f"{folder}#5_e2")
    write_series(folder, SeriesInstanceUID=series, AcquisitionNumber=2)
    with pytest.raises(BabyAIError, match="DICOM holds 2 volumes in one place"):
        read_scan(folder)


def test_other_files_and_copies_do_no_harm(tmp_path):
    folder = write_series(tmp_path / "DICOM")
    shutil.copytree(folder, folder / "again")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "notes.txt").write_text("Jane slept.")
    (folder / "empty").touch()
    (folder / "gone").symlink_to(folder / "nothing")
    assert_every_voxel_in_its_place(read_scan(folder)[0], voxels(), AXIAL)


def test_what_is_no_series_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BabyAIError, match="holds no DICOM images"):
        read_scan(tmp_path / "empty")
    for path in write_series(tmp_path / "damaged").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BabyAIError, match=str(tmp_path / "damaged")):
        read_scan(tmp_path / "damaged")
    with pytest.raises(BabyAIError, match="does not exist"):
        read_scan(tmp_path / "absent#5")
    (tmp_path / "a").mkdir()
    (tmp_path / "a#1").mkdir()
    with pytest.raises(BabyAIError, match=r"a#1/absent\.nii does not exist"):
        read_scan(tmp_path / "a#1" / "absent.nii")
    with pytest.raises(BabyAIError, match="absent#5 does not exist"):
        check_scan_is_there(tmp_path / "absent#5")


def test_a_result_is_of_these_files(tmp_path):
    folder = write_series(tmp_path / "DICOM")
    before = fingerprint(folder)
    assert before == fingerprint(shutil.copytree(folder, tmp_path / "copy")) != fingerprint(folder.with_name("DICOM#5"))
    next(folder.iterdir()).unlink()
    assert fingerprint(folder) not in (before, None)


def test_a_case_may_be_half_dicom(tmp_path):
    save_volume(tmp_path / "t1.nii.gz", voxels(), np.eye(4))
    pair = Pair("", tmp_path / "t1.nii.gz", write_series(tmp_path / "DICOM"), "x")
    case = read_case(pair)
    assert case.sidecar["SliceThickness"] == 4 and case.t2.shape == SHAPE
    np.testing.assert_array_equal(case.t1.dataobj, read_volume(pair.t1).dataobj)
    assert [is_dicom(path) for path in (pair.t1, pair.t2, next(pair.t2.iterdir()))] == [False, True, True]


def write_enhanced(folder, axes, order):
    """The same series as one file of the enhanced format, its frames in any order."""
    array = voxels()
    folder.mkdir(parents=True)
    image = new_image(EnhancedMRImageStorage, "Philips")
    image.ImageType = ["ORIGINAL", "PRIMARY", "T2", "NONE"]
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", generate_uid()
    image.SeriesNumber, image.InstanceNumber, image.SeriesDescription = 5, 1, "t2_tse"
    image.Columns, image.Rows, image.NumberOfFrames = *SHAPE[:2], len(order)

    def group(**values):
        item = Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        return Sequence([item])

    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[*axes[:, 0], *axes[:, 1]])
    shared.PixelMeasuresSequence = group(
        PixelSpacing=[VOXEL[1], VOXEL[0]], SliceThickness=4, SpacingBetweenSlices=VOXEL[2]
    )
    shared.MREchoSequence = group(EffectiveEchoTime=90.0)
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        frame = Dataset()
        frame.FrameContentSequence = group(DimensionIndexValues=[1, k + 1], StackID="1", InStackPositionNumber=k + 1)
        frame.PlanePositionSequence = group(ImagePositionPatient=list(ORIGIN + axes[:, 2] * VOXEL[2] * k))
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    image.PixelData = b"".join(np.ascontiguousarray(array[..., k].T.astype("<u2")).tobytes() for k in order)
    for key in ("PatientName", "PatientID", "PatientBirthDate"):
        setattr(image, key, PERSONAL[key])
    image.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("order", [range(SHAPE[2]), [*range(0, SHAPE[2], 2), *range(1, SHAPE[2], 2)]])
def test_one_file_of_many_frames(tmp_path, order):
    """The enhanced format gives the same volume as a file for each slice, whatever the order of its frames."""
    classic, _ = read_scan(write_series(tmp_path / "classic", axes=OBLIQUE))
    enhanced, sidecar = read_scan(write_enhanced(tmp_path / "enhanced", OBLIQUE, order))
    np.testing.assert_array_equal(enhanced.get_fdata(), classic.get_fdata())
    np.testing.assert_allclose(enhanced.affine, classic.affine, atol=1e-3)
    assert sidecar["SliceThickness"] == 4


def test_a_file_that_lacks_frames_is_refused(tmp_path):
    """A conversion would close the gap up, and shift all that lies beyond."""
    with pytest.raises(BabyAIError, match="enhanced lacks slices"):
        read_scan(write_enhanced(tmp_path / "enhanced", OBLIQUE, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]))
    image, _ = read_scan(write_enhanced(tmp_path / "end", OBLIQUE, range(1, SHAPE[2])))
    assert image.shape[2] == SHAPE[2] - 1
