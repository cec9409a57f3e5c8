"""The numbers on an input's quality: each sees the fault it is for, on a phantom made so, and says so in words."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from func.phantom import infant_brain
from func.reports.quality import is_stripped, quality_of, slice_jumps
from func.scans.nifti import image_of, read_volume
from func.slices.geometry import SliceGeometry, acquire, upsample

GEOMETRY = SliceGeometry.fitting(2, 48, 3.0)
REPORT = {"SliceGeometry": {"Source": "sidecar", **GEOMETRY.to_sidecar(1.0)}}


@pytest.fixture(scope="module")
def slices(small_head):
    return acquire(small_head.t2.get_fdata(dtype=np.float32), GEOMETRY)


def judged(t1, slices, report=REPORT):
    """Quality and warnings of slices, up-sampled, beside a T1w; the head is too small to be an infant's."""
    quality, warnings = quality_of(t1, image_of(upsample(slices, GEOMETRY, 48), t1.affine), report)
    return quality, [warning for warning in warnings if "The head fills" not in warning]


def odd_slices_changed(slices, change):
    changed = slices.copy()
    changed[..., 1::2] = change(slices[..., 1::2])
    return changed


def test_a_good_input_gives_no_warning(small_head, slices):
    quality, warnings = judged(small_head.t1, slices)
    assert warnings == []
    assert (quality["Plane"], quality["SliceThickness"], quality["SpacingBetweenSlices"]) == ("axial", 3, 3)
    assert quality["Obliqueness"] == 0 and quality["Overlap"] > 0.9
    assert quality["EvenOddShift"] < 0.3 and quality["EvenOddIntensity"] < 2


def test_slices_thicker_than_they_are_apart(small_head, slices):
    report = {"SliceGeometry": REPORT["SliceGeometry"] | {"SliceThickness": 4}}
    told = judged(small_head.t1, slices, report)[1]
    assert any("Slices of 4 mm lie 3 mm apart, so that each shows a part of the next" in warning for warning in told)


def test_movement_between_the_halves_of_an_interleaved_scan(small_head, slices):
    moved = odd_slices_changed(slices, lambda odd: np.roll(odd, 2, axis=1))
    quality, warnings = judged(small_head.t1, moved)
    assert quality["EvenOddShift"] == pytest.approx(2, abs=0.7)
    assert any("Even and odd slices lie" in warning for warning in warnings)


def test_movement_that_was_undone_is_no_fault_of_the_result(small_head):
    slices = image_of(small_head.t2.get_fdata()[..., ::3], small_head.t2.affine @ np.diag([1, 1, 3, 1]))
    moved = image_of(odd_slices_changed(slices.get_fdata(), lambda odd: np.roll(odd, 2, axis=1)), slices.affine)
    report = {"SliceGeometry": {"SliceThickness": 3, "SpacingBetweenSlices": 3, "SliceEncodingDirection": "k"}}
    told = [quality_of(None, moved, report | {"Motion": {"Found": found}})[1] for found in (False, True)]
    assert [any("Even and odd slices lie" in warning for warning in warnings) for warnings in told] == [True, False]


def test_a_turn_between_the_halves(small_head, slices):
    """Three degrees about the middle of the slices, which displace nothing on the whole."""
    turned = odd_slices_changed(slices, lambda odd: ndimage.rotate(odd, 3, axes=(0, 1), reshape=False, order=1))
    still, moved = (judged(small_head.t1, stack)[0]["EvenOddShift"] for stack in (slices, turned))
    inside = np.argwhere(slices.max(axis=2) > 0.05 * slices.max())
    radius = np.sqrt(inside.var(axis=0).sum())
    assert moved == pytest.approx(np.radians(3) * radius, abs=0.3) and moved > still + 0.3


def test_brightness_of_the_halves(small_head, slices):
    quality, warnings = judged(small_head.t1, odd_slices_changed(slices, lambda odd: 1.1 * odd))
    assert quality["EvenOddIntensity"] == pytest.approx(10, abs=2)
    assert any("differ in brightness" in warning for warning in warnings)


@pytest.mark.parametrize("finer", [1, 3])
@pytest.mark.parametrize("shift", [(0.6, 0.0), (0.0, -1.2)])
def test_jumps_are_in_millimetres(shift, finer):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 40 * finer)] * 2, np.linspace(-1, 1, 9), indexing="ij")
    blobs = np.exp(-4 * ((x - 0.1 * z) ** 2 + 2 * y**2)) + 0.5 * np.exp(-30 * ((x - 0.4) ** 2 + (y + 0.3) ** 2))
    sizes = np.array([0.8, 1.5]) / finer
    blobs[..., 4] = ndimage.shift(blobs[..., 4], np.array(shift) / sizes, order=3, mode="nearest")
    shifts, brightness = slice_jumps(blobs, sizes)
    np.testing.assert_allclose(shifts[3], [*shift, 0], atol=0.15)
    assert abs(shifts[[0, 1, 5, 6]]).max() < 0.1 and abs(brightness).max() < 0.05


def test_noise(small_head, slices):
    quiet = judged(small_head.t1, slices)[0]["SignalToNoise"]
    noise = np.random.default_rng(0).normal(0, 0.08 * np.percentile(slices[slices > 0], 99), slices.shape)
    quality, warnings = judged(small_head.t1, slices + noise.astype(np.float32))
    assert quality["SignalToNoise"] < min(quiet / 1.5, 15)
    assert any("noisy" in warning for warning in warnings)


def test_a_t1_that_is_not_in_place_or_no_t1(small_head, slices):
    away = image_of(np.roll(small_head.t1.get_fdata(), 14, axis=0), small_head.t1.affine)
    assert any("overlap by only" in warning for warning in judged(away, slices)[1])
    assert any("look alike" in warning for warning in judged(small_head.t2, slices)[1])


def test_without_a_t1w_the_t2w_alone_is_judged(small_head, slices):
    with_t1, _ = judged(small_head.t1, slices)
    upsampled = image_of(upsample(slices, GEOMETRY, 48), small_head.t2.affine)
    raw = image_of(slices, GEOMETRY.affine_in(small_head.t2.affine))
    stated = {"SliceThickness": 3.0, "SpacingBetweenSlices": 3.0, "SliceEncodingDirection": "k"}
    for t2, report in ((upsampled, REPORT), (raw, {"SliceGeometry": stated})):
        quality, warnings = quality_of(None, t2, report)
        assert quality["Overlap"] is quality["Correlation"] is quality["T1wSkewness"] is None
        for key in ("SliceThickness", "SignalToNoise", "EvenOddShift", "HeadVolume"):
            assert quality[key] == pytest.approx(with_t1[key], rel=0.01)
        assert not [warning for warning in warnings if "The head fills" not in warning]


def test_thickness_gap_and_tilt(small_head, slices):
    stated = REPORT["SliceGeometry"]
    thin = {"SliceGeometry": {**stated, "SliceThickness": 1.2}}
    _, warnings = judged(small_head.t1, slices, thin)
    assert any("Slices of 1.2 mm are outside the 2 to 6 mm" in warning for warning in warnings)
    assert any("gaps of 1.8 mm" in warning for warning in warnings)
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(x=np.radians(30)))
    t1 = image_of(small_head.t1.get_fdata(), turn @ small_head.t1.affine)
    quality, warnings = judged(t1, slices)
    assert quality["Obliqueness"] == pytest.approx(30, abs=0.1)
    assert any("tilted by 30 degrees against the axial plane" in warning for warning in warnings)


def test_unknown_slices(small_head, slices):
    quality, warnings = judged(small_head.t1, slices, {"SliceGeometry": {"Source": "unknown"}})
    assert quality["SliceThickness"] is None and quality["EvenOddShift"] is None
    assert warnings[0].startswith("The slices behind this T2w are not known")


def test_the_published_procedure_gets_its_slices_recovered(small_head, slices):
    quality, _ = judged(small_head.t1, slices, {"SliceGeometry": {"Source": "not used by the published procedure"}})
    assert quality["SliceThickness"] == pytest.approx(3, abs=0.05)


def test_a_raw_stack_is_judged_as_it_is(small_head, slices):
    affine = small_head.t2.affine @ nib.affines.from_matvec(np.diag([1, 1, 3]), [0, 0, GEOMETRY.first_center])
    motion = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.3), [4, 5, -6])
    report = {
        "SliceGeometry": {"SliceThickness": 3.0, "SpacingBetweenSlices": 3.0, "SliceEncodingDirection": "k"},
        "Registration": {"T1wToT2w": motion.tolist()},
    }
    raw, _ = quality_of(small_head.t1, image_of(slices, motion @ affine), report)
    grid, _ = judged(small_head.t1, slices)
    for key in ("SliceThickness", "SignalToNoise", "EvenOddShift", "HeadVolume"):
        assert raw[key] == pytest.approx(grid[key], rel=0.05)
    assert raw["Overlap"] > 0.9 and raw["Plane"] == "axial"
    # A T1w that ends in the middle of the head lies right all the same.
    half, warnings = quality_of(small_head.t1.slicer[:, :, 20:], image_of(slices, motion @ affine), report)
    assert half["Overlap"] == pytest.approx(raw["Overlap"], abs=0.03) and half["HeadVolume"] == raw["HeadVolume"]
    assert not any("overlap" in warning for warning in warnings)


@pytest.mark.parametrize("t1", [0.0, -1.0, 1.0])
@pytest.mark.parametrize("source", [REPORT, {}, {"SliceGeometry": {"Source": "not used by the published procedure"}}])
def test_odd_volumes_are_no_error(t1, source):
    random = np.random.default_rng(0)
    for t2 in (random.uniform(0, 1, (9, 10, 48)), np.eye(48)[None].repeat(3, 0), random.normal(0, 1, (9, 1, 48))):
        images = [nib.Nifti1Image(np.float32(array), np.eye(4)) for array in (np.full(t2.shape, t1), t2)]
        quality, warnings = quality_of(*images, source)
        assert all(value is None or value == value for value in quality.values())
        assert all(warning.endswith((".", "?")) for warning in warnings)


def test_a_brain_alone_and_a_head(small_head):
    assert is_stripped(small_head.t2)
    noise = np.random.default_rng(0).rayleigh(1, small_head.t2.shape)
    assert not is_stripped(image_of(small_head.t2.get_fdata() + noise, small_head.t2.affine))


@pytest.mark.parametrize("age", [0, 6, 18])
def test_a_head_whose_air_was_set_to_zero_is_no_brain_alone(age):
    affine = nib.affines.from_matvec(np.diag([2.0, 2.0, 4.0]), [-80, -100, -100])
    assert not is_stripped(infant_brain((80, 100, 50), affine, age, skull=True).t2)


def test_scans_that_change_places(small_head):
    swapped = acquire(small_head.t1.get_fdata(dtype=np.float32), GEOMETRY)
    assert any("seem to be exchanged" in warning for warning in judged(small_head.t2, swapped)[1])


@pytest.mark.parametrize("label", ["MS01s1", "MS03s2"])
def test_real_heads_give_no_warning(real_data, label):
    t2 = read_volume(real_data / "real" / f"sub-{label}_T2w.nii.gz")
    stated = {"SliceThickness": nib.affines.voxel_sizes(t2.affine)[2], "SliceEncodingDirection": "k"}
    assert quality_of(None, t2, {"SliceGeometry": stated})[1] == [] and not is_stripped(t2)


@pytest.mark.parametrize(("label", "axis", "thickness"), [("A03", 2, 4), ("A12", 1, 6), ("B06", 2, 6), ("B12", 2, 2)])
def test_real_infants_give_no_warning(real_data, label, axis, thickness):
    t1, t2 = (read_volume(real_data / "pairs" / f"sub-{label}_{suffix}.nii.gz") for suffix in ("T1w", "T2w"))
    array = np.asarray(t2.dataobj)
    geometry = SliceGeometry.fitting(axis, array.shape[axis], thickness)
    thick = np.maximum(upsample(acquire(array, geometry), geometry, array.shape[axis]), 0)
    quality, warnings = quality_of(t1, image_of(thick, t2.affine), {"SliceGeometry": geometry.to_sidecar(1.0)})
    assert warnings == [], quality
    assert is_stripped(t2)
