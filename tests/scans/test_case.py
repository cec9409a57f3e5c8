"""A case as read: intensities that do not start at 0, single far too bright voxels; results in the file's units."""

import pickle

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes

from func.errors import BabyAIError
from func.reconstruction import on_grid
from func.reconstruction.reconstructor import Reconstructor
from func.scans.bids import Pair
from func.scans.case import Case, read_case, read_cases
from func.scans.intensity import level_of
from func.scans.nifti import array_of, image_of
from func.slices.geometry import SliceGeometry, acquire, upsample
from networks_for_tests import Unchanged, reconstruct, weights_of
from stacks_for_tests import scanned, small_head


def shifted(array):
    return array - 1000


def z_scored(array):
    return (array - array.mean()) / array.std()


def z_scored_in_the_head(array):
    inside = array > 0
    return np.where(inside, (array - array[inside].mean()) / array[inside].std(), 0)


@pytest.fixture(scope="module")
def scans(small_head):
    """The T1w, and the T2w of 3 mm slices up-sampled to its grid, with their sidecar."""
    t2 = array_of(small_head.t2)
    geometry = SliceGeometry.fitting(2, t2.shape[2], 3)
    low = np.maximum(upsample(acquire(t2, geometry), geometry, t2.shape[2]), 0)
    return small_head.t1, image_of(low, small_head.t2.affine), geometry.to_sidecar(1.0)


@pytest.mark.parametrize("change", [shifted, z_scored])
def test_a_scan_whose_air_is_not_0_gives_the_same_result_in_its_own_units(scans, change, capsys):
    t1, t2, sidecar = scans
    plain = reconstruct(t1, t2, weights_of(Unchanged()), sidecar=sidecar)
    changed = image_of(change(array_of(t2).astype(np.float64)), t2.affine)
    case = Case.of(image_of(change(array_of(t1).astype(np.float64)), t1.affine), changed, sidecar)
    assert case.warnings and all("do not start at 0" in sentence for sentence in case.warnings)
    assert "do not start at 0" in capsys.readouterr().err
    result = reconstruct(case.t1, case.t2, weights_of(Unchanged()), sidecar=sidecar)
    in_file_units = array_of(case.in_file_units(result.image))
    scale = np.ptp(array_of(changed)) / np.ptp(array_of(t2))
    expected = array_of(plain.image) * scale + array_of(changed).min()
    np.testing.assert_allclose(in_file_units, expected, rtol=0, atol=1e-3 * np.ptp(expected))


def test_a_scan_that_was_z_scored_inside_the_head_keeps_its_air(scans):
    t1, t2, sidecar = scans
    changed = image_of(z_scored_in_the_head(array_of(t2)), t2.affine)
    case = Case.of(t1, changed, sidecar)
    assert array_of(case.t2).min() == 0 and (array_of(case.t2) == 0).sum() >= (array_of(t2) == 0).sum()
    back = array_of(case.in_file_units(case.t2))
    inside = array_of(t2) > 0.1 * array_of(t2).max()
    np.testing.assert_allclose(back[inside], array_of(changed)[inside], atol=1e-4)
    assert (back[array_of(t2) == 0] == 0).all()


def test_ordinary_scans_are_left_as_they_are(small_head, real_data):
    ringing = array_of(small_head.t2).copy()
    ringing[1, 1, 1] = -0.02 * ringing.max()
    images = [small_head.t1, image_of(ringing, np.eye(4))]
    images += [nib.load(path) for path in sorted((real_data / "real").glob("sub-*_T?w.nii.gz"))]
    for image in images:
        assert level_of(array_of(image)) == (0, 0)
        case = Case.of(None, image)
        assert case.t2 is image and not case.warnings


def test_a_few_far_too_bright_voxels_are_mended_and_told(small_head, capsys):
    array = array_of(small_head.t2).copy()
    places = [(24, 24, 24), (20, 30, 22), (5, 5, 5)]
    for place in places:
        array[place] = 600 * array.max() if place == places[0] else 300 * np.percentile(array, 99.9)
    case = Case.of(small_head.t1, image_of(array, small_head.t2.affine))
    assert "3 voxels" in capsys.readouterr().err
    truth, mended = array_of(small_head.t2), array_of(case.t2)
    assert all(abs(mended[place] - truth[place]) < 0.3 * truth.max() for place in places)
    untouched = np.ones(array.shape, bool)
    untouched[tuple(np.array(places).T)] = False
    np.testing.assert_array_equal(mended[untouched], truth[untouched])


def test_a_t1w_that_serves_several_stacks_is_read_and_told_of_once(tmp_path, small_head, capsys):
    paths = [tmp_path / f"sub-01_{name}.nii.gz" for name in ("T1w", "run-1_T2w", "run-2_T2w")]
    for path, image in zip(paths, (small_head.t1, small_head.t2, small_head.t2), strict=True):
        array = array_of(image) + (100 * array_of(image).max() if image is small_head.t1 else 0)
        nib.save(image_of(array, image.affine), path)
    t1, first, second = paths
    one, other = read_cases(Pair("sub-01", t1, first, "sub-01_T2w", others=(second,)))
    assert one.t1 is other.t1
    assert len(one.warnings) == 1 and str(t1) in one.warnings[0] and not other.warnings
    assert capsys.readouterr().err.count(str(t1)) == 1


def test_a_registered_case_holds_what_lays_its_t1w_upon_its_t2w(small_head):
    shift = np.eye(4)
    shift[:3, 3] = (4, -3, 2)
    moved = image_of(array_of(small_head.t2), shift @ small_head.t2.affine)
    found = Case.of(small_head.t1, moved).registered().registration.matrix
    assert np.abs(found - shift).max() < 0.4
    assert Case.of(None, moved).registered().registration is None


def test_slices_looked_for_while_reading_are_not_looked_for_again(scans, monkeypatch, capsys):
    """What they are warned of goes with the case, and the result is the same."""
    t1, t2, sidecar = scans
    wrong = sidecar | {"FirstSliceCenter": sidecar["FirstSliceCenter"] + 1}
    plain = Reconstructor(weights_of(Unchanged())).reconstruct(Case.of(t1, t2, wrong))
    case = Case.of(t1, t2, wrong).with_slices_behind()
    assert [sentence for sentence in case.warnings if "what it shows is used" in sentence] == list(plain.warnings)
    monkeypatch.setattr(on_grid, "slices_behind", None)
    result = Reconstructor(weights_of(Unchanged())).reconstruct(case)
    assert not result.warnings and result.report["SliceGeometry"] == plain.report["SliceGeometry"]
    np.testing.assert_array_equal(array_of(result.image), array_of(plain.image))


@pytest.mark.parametrize("noise", [0, 5])
def test_a_head_that_is_darker_than_air_is_refused(scans, noise):
    t1, t2, _ = scans
    inverted = np.random.default_rng(0).normal(0, noise, t2.shape) - array_of(t2)
    with pytest.raises(BabyAIError, match="darker than air"):
        Case.of(t1, image_of(inverted, t2.affine))


def test_a_mask_in_place_of_a_scan_is_told(scans):
    t1, t2, sidecar = scans
    assert not Case.of(t1, t2, sidecar).warnings
    case = Case.of(image_of(array_of(t1) > 0, t1.affine), t2, sidecar)
    assert case.warnings == ("the volume has 2 different values only, as a mask has; check the file.",)


def test_a_mask_that_shows_nothing_is_told(scans, tmp_path):
    nib.save(scans[1], tmp_path / "t2.nii.gz")
    nib.save(image_of(-(array_of(scans[1]) > 0).astype(int), scans[1].affine), tmp_path / "mask.nii.gz")
    pair = Pair("1", None, tmp_path / "t2.nii.gz", "t2", masks=(tmp_path / "mask.nii.gz",))
    with pytest.raises(BabyAIError, match="has no voxel above 0"):
        read_cases(pair)


@pytest.mark.parametrize("reversed_in_file", [False, True])
def test_a_stack_whose_header_does_not_say_how_the_head_lies_is_used_as_it_fits(tmp_path, reversed_in_file):
    t1, t2 = small_head()
    stack = scanned(t2, 2, 4.0, 20)
    nib.save(t1, tmp_path / "t1.nii")
    values = np.asarray(stack.dataobj)[::-1] if reversed_in_file else np.asarray(stack.dataobj)
    unplaced = nib.Nifti1Image(values, None)
    unplaced.header.set_zooms((1, 1, 4))
    nib.save(unplaced, tmp_path / "t2.nii")
    (case,) = read_cases(Pair("1", tmp_path / "t1.nii", tmp_path / "t2.nii", "t2"))
    case = case.registered()
    # nibabel takes the first axis of such a file to run to the left.
    assert any("only mirrored" in told for told in case.warnings) == (not reversed_in_file)
    assert case.t2.get_filename() == str(tmp_path / "t2.nii")
    for voxel in ([20, 60, 5], [60, 30, 15]):
        in_file = [len(values) - 1 - voxel[0], *voxel[1:]] if reversed_in_file else voxel
        shown = apply_affine(np.linalg.inv(case.registration.matrix) @ case.t2.affine, in_file)
        assert np.linalg.norm(shown - apply_affine(stack.affine, voxel)) < 1.5


@pytest.mark.parametrize(("in_header", "stated"), [(True, 4), (True, 4000), (False, 5)])
def test_of_two_spacings_the_one_counts_that_fits_the_t1w(tmp_path, in_header, stated):
    """A converter that took the thickness of slices with gaps for their spacing, and a sidecar that is wrong."""
    t1, t2 = small_head()
    stack = scanned(t2, 2, 5.0, 17)
    affine = stack.affine if in_header else stack.affine @ np.diag([1, 1, 0.8, 1])
    nib.save(t1, tmp_path / "t1.nii")
    nib.save(nib.Nifti1Image(np.asarray(stack.dataobj), affine), tmp_path / "t2.nii")
    (tmp_path / "t2.json").write_text(f'{{"SpacingBetweenSlices": {stated}}}')
    case = read_case(Pair("1", tmp_path / "t1.nii", tmp_path / "t2.nii", "t2")).registered()
    assert voxel_sizes(case.t2.affine)[2] == pytest.approx(5)
    assert any("5 mm is used" in told for told in case.warnings) != in_header
    for voxel in ([20, 60, 4], [60, 30, 12]):
        shown = apply_affine(np.linalg.inv(case.registration.matrix) @ case.t2.affine, voxel)
        assert np.linalg.norm(shown - apply_affine(stack.affine, voxel)) < 1.5


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_case_goes_from_process_to_process_as_it_is(tmp_path, kind):
    affine = np.array([[0, -0.8, 0.1, 3], [0.9, 0, 0, -4], [0, 0.1, 3.3, 5], [0, 0, 0, 1]])
    array = np.random.default_rng(1).gamma(2, 100, (8, 9, 5)).astype(np.float32)
    array[0] = 0
    image = kind(array, affine)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    nib.save(image, tmp_path / "sub-1_T2w.nii")
    (case,) = read_cases(Pair("", None, tmp_path / "sub-1_T2w.nii", "sub-1"))
    arrived = pickle.loads(pickle.dumps(case))
    np.testing.assert_array_equal(arrived.t2.get_fdata(), case.t2.get_fdata())
    np.testing.assert_array_equal(arrived.t2.affine, case.t2.affine)
    assert arrived.t2.get_filename() == case.t2.get_filename()
    assert type(arrived.t2) is type(case.t2)
    assert arrived.t2.header == case.t2.header
    assert arrived.warnings == case.warnings
