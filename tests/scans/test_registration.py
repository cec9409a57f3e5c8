"""Registration and interpolation, on phantoms whose place is known exactly."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError
from func.phantom import LABELS, infant_brain
from func.scans.nifti import read_volume
from func.scans.registration import (
    Registration,
    check_same_head,
    judge_placements,
    mean_displacement,
    register_rigid,
)

RAW_CASES = {
    "sub-A01": "sub-A01_acq-axial3mm_T2w",
    "sub-B06": "sub-B06_acq-axial4mm_T2w",
    "sub-B12": "sub-B12_acq-sagittal5mm_T2w",
}


def motion(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    """A rigid motion from angles in degrees and a shift in mm."""
    return from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), shift)


# Where a scan lies against what its header says.
STARTS = {
    "as the header says": motion((0, 0, 0), (0, 0, 0)),
    "moved": motion((12, -25, 30), (-30, 18, 25)),
    "far off": motion((-45, 40, 45), (50, -50, 40)),
    "upside down": motion((180, 10, 80), (100, -200, 60)),
}


def drawn_moved(shape, affine, by: np.ndarray, **head) -> nib.Nifti1Image:
    """The phantom's T2w on a grid of its own, whose header then misplaces it."""
    scan = infant_brain(shape, affine, **head).t2
    return nib.Nifti1Image(scan.dataobj, by @ scan.affine)


@dataclass(frozen=True)
class Newborn:
    """An isotropic T1w and a T2w stack of 4 mm slices with 0.4 mm gaps, oblique and left-handed."""

    t1: nib.Nifti1Image
    stack: nib.Nifti1Image
    points: np.ndarray  # in the brain, world mm

    def moved(self, by: np.ndarray) -> nib.Nifti1Image:
        """The stack with a header that is off by a motion."""
        return nib.Nifti1Image(self.stack.dataobj, by @ self.stack.affine)


@pytest.fixture(scope="module")
def newborn() -> Newborn:
    head = {"age_months": 0, "size": 0.8}
    phantom = infant_brain((96, 112, 96), age_months=0, size=0.8)
    points = apply_affine(phantom.t1.affine, np.argwhere(np.asarray(phantom.labels.dataobj) > 0)[::50])
    axes = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([-1.0, 1.0, 4.4])
    shape = np.array([100, 110, 22])
    affine = from_matvec(axes, points.mean(axis=0) - axes @ ((shape - 1) / 2))
    stack = infant_brain(tuple(shape), affine, **head).t2
    random = np.random.default_rng(0)
    noisy = np.maximum(np.asarray(stack.dataobj) + random.normal(0, 30, shape), 0).astype(np.float32)
    return Newborn(phantom.t1, nib.Nifti1Image(noisy, affine), points)


@pytest.mark.parametrize("start", STARTS)
def test_the_motion_is_found_from_any_start(newborn, start):
    registration = register_rigid(newborn.t1, newborn.moved(STARTS[start]))
    assert mean_displacement(registration.matrix, STARTS[start], newborn.points) < 0.2
    assert registration.overlap > 0.99
    np.testing.assert_allclose(registration.matrix[:3, :3] @ registration.matrix[:3, :3].T, np.eye(3), atol=1e-9)


def test_either_image_may_be_the_fixed_one(newborn):
    by = STARTS["moved"]
    registration = register_rigid(newborn.moved(by), newborn.t1, start=np.linalg.inv(by))
    assert mean_displacement(registration.matrix, np.linalg.inv(by), apply_affine(by, newborn.points)) < 0.2


def test_a_given_start_is_refined_and_the_same_is_found_every_time(newborn):
    start = motion((4, -6, 5), (5, -4, 6))
    first, second = (register_rigid(newborn.t1, newborn.stack, start=start) for _ in range(2))
    assert mean_displacement(first.matrix, np.eye(4), newborn.points) < 0.2
    np.testing.assert_array_equal(first.matrix, second.matrix)


def test_whole_heads_are_laid_upon_each_other():
    by, head = motion((-20, 15, 35), (20, -30, 10)), {"age_months": 9, "skull": True, "size": 0.6}
    axes, origin = np.diag([1.6, 1.6, 1.6]), (-58, -80, -75)
    phantom = infant_brain((72, 88, 88), from_matvec(axes, origin), **head)
    stack = drawn_moved((72, 88, 32), from_matvec(axes * [1, 1, 2.8], origin), by, **head)
    registration = register_rigid(phantom.t1, stack)
    inner = np.isin(phantom.labels.dataobj, [LABELS["white matter"], LABELS["cortex"]])
    brain = apply_affine(phantom.t1.affine, np.argwhere(inner))
    assert mean_displacement(registration.matrix, by, brain[::50]) < 0.5


def test_a_brain_is_laid_upon_a_larger_head_in_its_own_size():
    axes, origin = np.diag([1.6, 1.6, 1.6]), (-58, -80, -75)
    atlas = infant_brain((72, 88, 88), from_matvec(axes, origin), age_months=9, skull=True, size=0.6).t1
    newborn = infant_brain((52, 64, 52), age_months=0, size=0.45).t1
    by = motion((10, -170, 20), (40, -20, 30))
    registration = register_rigid(atlas, nib.Nifti1Image(newborn.dataobj, by @ newborn.affine), scaled=True)
    found = np.linalg.inv(by) @ registration.matrix
    angle = np.rad2deg(np.linalg.norm(Rotation.from_matrix(found[:3, :3]).as_rotvec()))
    assert angle < 8
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.norm(apply_affine(found, [0, -4, 7]) - [0, -4, 7]) < 8


def test_the_t2w_of_another_infant_resembles_less(newborn):
    other = infant_brain((96, 112, 96), age_months=0, size=0.8, seed=5).t1
    own, others = (register_rigid(t1, newborn.stack, start=np.eye(4)) for t1 in (newborn.t1, other))
    assert own.verdict == "right"
    assert others.similarity < 0.9 * own.similarity


PLACED_WRONG = {
    "aside": motion((0, 0, 0), (20, 0, 0)),
    "up": motion((0, 0, 0), (0, 0, 20)),
    "nodded": motion((20, 0, 0), (0, 0, 0)),
    "turned": motion((0, 0, 20), (0, 0, 0)),
    "upside down": motion((180, 0, 0), (0, 0, 0)),
}


def test_a_wrong_placement_has_failed(newborn):
    center = newborn.points.mean(axis=0)
    there, back = from_matvec(np.eye(3), center), from_matvec(np.eye(3), -center)
    wrong = [there @ displacement @ back for displacement in PLACED_WRONG.values()]
    right, *failed = judge_placements(newborn.t1, newborn.stack, [np.eye(4), *wrong])
    assert right.verdict == "right"
    assert [registration.verdict for registration in failed] == ["failed"] * len(wrong)
    (reversed_,) = judge_placements(newborn.stack, newborn.t1, [np.linalg.inv(wrong[0])])
    assert reversed_.sharpness == pytest.approx(failed[0].sharpness)


def test_scans_that_share_nothing_have_failed(newborn):
    (apart,) = judge_placements(newborn.t1, newborn.stack, [motion((0, 0, 0), (1000, 0, 0))])
    assert apart.verdict == "failed" and apart.overlap == 0
    even = nib.Nifti1Image(np.ones(newborn.stack.shape, np.float32), newborn.stack.affine)
    assert register_rigid(newborn.t1, even, start=np.eye(4)).verdict == "failed"


def test_left_and_right_exchanged_is_told(newborn, capsys):
    """Even of a phantom, whose two sides differ in their folds only."""
    exchanged = nib.Nifti1Image(np.asarray(newborn.stack.dataobj)[::-1], newborn.stack.affine)
    registration = register_rigid(newborn.t1, exchanged, start=np.eye(4))
    assert registration.verdict != "right"
    check_same_head(registration, newborn.t1, exchanged)
    assert "fits better mirrored" in capsys.readouterr().err


def measured(**measures: float) -> Registration:
    """A registration that is right but for what is given."""
    return Registration(
        np.eye(4), **({"similarity": 0.4, "sharpness": 0.35, "mirrored": 0.85, "overlap": 1} | measures)
    )


def test_only_what_failed_is_refused_and_what_is_unsure_is_warned_of(newborn, capsys):
    check_same_head(measured(similarity=0.06), newborn.t1, newborn.stack)
    assert "WARNING" not in capsys.readouterr().err
    for unsure in (measured(sharpness=0.25, mirrored=0.98), measured(sharpness=0.15)):
        check_same_head(unsure, newborn.t1, newborn.stack)
        assert "WARNING" in (said := capsys.readouterr().err) and "may not fit" in said
    for failed, sentence in (
        (measured(similarity=0.01), "could not be aligned with"),
        (measured(sharpness=0.05), "could not be aligned with"),
        (measured(mirrored=1.15), "fits better mirrored"),
        (measured(overlap=0.3), "only 30% of the head"),
    ):
        with pytest.raises(BabyAIError, match=f"{sentence}.*--min-similarity 0"):
            check_same_head(failed, newborn.t1, newborn.stack)
        check_same_head(failed, newborn.t1, newborn.stack, min_similarity=0)
        assert sentence in capsys.readouterr().err
    with pytest.raises(BabyAIError, match="than --min-similarity asks for"):
        check_same_head(measured(), newborn.t1, newborn.stack, min_similarity=0.5)


@pytest.mark.parametrize("extracted", ["T1w", "T2w"])
def test_a_brain_fits_its_own_whole_head_through_noise(extracted):
    axes, origin, head = np.diag([1.6, 1.6, 1.6]), (-58, -80, -75), {"age_months": 9, "size": 0.6}
    t1 = infant_brain((72, 88, 88), from_matvec(axes, origin), skull=extracted != "T1w", **head).t1
    affine = from_matvec(axes * [1, 1, 2.8], origin)
    t2 = np.asarray(infant_brain((72, 88, 32), affine, skull=extracted != "T2w", **head).t2.dataobj)
    shaded = t2 * np.linspace(0.7, 1.3, 72)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 0.05 * np.percentile(t2[t2 > 0], 99), (2, *t2.shape))
    noisy = nib.Nifti1Image(np.hypot(shaded + noise[0], noise[1]).astype(np.float32), affine)
    registration = register_rigid(t1, noisy, start=motion((4, -6, 5), (5, -4, 6)))
    assert registration.verdict != "failed"
    assert mean_displacement(registration.matrix, np.eye(4), np.array(list(np.ndindex(2, 2, 2))) * 60 - 30) < 1


def test_a_coil_near_one_side_makes_no_contrast(newborn):
    """The T1w five times as bright on the left as on the right, the T2w five times as bright in front as behind."""
    t1, t2 = newborn.t1.get_fdata(dtype=np.float32), newborn.stack.get_fdata(dtype=np.float32)
    t1 *= np.geomspace(1, 5, t1.shape[0], dtype=np.float32)[:, None, None]
    t2 *= np.geomspace(5, 1, t2.shape[1], dtype=np.float32)[None, :, None]
    shaded = nib.Nifti1Image(t1, newborn.t1.affine), nib.Nifti1Image(t2, newborn.stack.affine)
    registration = register_rigid(*shaded, start=motion((4, -6, 5), (5, -4, 6)))
    assert mean_displacement(registration.matrix, np.eye(4), newborn.points) < 0.3
    assert registration.verdict != "failed"


# With 0.24 the newborn's head has the volume of an adult's in cm.
@pytest.mark.parametrize("unit", [0.1, 0.24, 10])
@pytest.mark.parametrize("both", [False, True])
def test_a_header_in_another_unit_is_told_as_that(newborn, unit, both):
    scans = [newborn.stack, newborn.t1]
    for index in range(1 + both):
        scans[index] = nib.Nifti1Image(scans[index].dataobj, np.diag([unit, unit, unit, 1]) @ scans[index].affine)
    with pytest.raises(BabyAIError, match=r"the volume shows a head of .* ml by its header.* correct its pixdim"):
        register_rigid(*scans)


def test_too_few_slices_are_refused(newborn):
    image = nib.Nifti1Image(np.asarray(newborn.t1.dataobj)[:, :, 40:42], newborn.t1.affine)
    with pytest.raises(BabyAIError, match=r"too few slices to be registered \(2, of 4 needed\)"):
        register_rigid(newborn.t1, image)


@pytest.mark.parametrize("case", RAW_CASES)
@pytest.mark.parametrize("by", [motion((0, 0, 0), (0, 0, 0)), motion((-28, 22, 30), (30, -25, 20))], ids=["", "moved"])
def test_real_scans_are_laid_upon_each_other(real_data, case, by):
    t1 = read_volume(real_data / "raw" / f"{case}_T1w.nii.gz")
    t2 = read_volume(real_data / "raw" / f"{RAW_CASES[case]}.nii.gz")
    truth = by @ np.loadtxt(real_data / "raw" / "truth" / f"{case}_motion.txt")
    brain = apply_affine(t1.affine, np.argwhere(np.asarray(t1.dataobj) > 0)[::50])
    registration = register_rigid(t1, nib.Nifti1Image(t2.dataobj, by @ t2.affine))
    assert mean_displacement(registration.matrix, truth, brain) < 0.5


def test_of_real_scans_one_head_is_right_and_another_infant_is_not(real_data, capsys):
    clinical = [read_volume(real_data / "real" / f"sub-MS03s2_{suffix}.nii.gz") for suffix in ("T1w", "T2w")]
    check_same_head(register_rigid(*clinical, start=np.eye(4)), *clinical)
    assert "WARNING" not in capsys.readouterr().err
    t1, t2 = (read_volume(real_data / "pairs" / f"sub-{name}.nii.gz") for name in ("A07_T1w", "A12_T2w"))
    check_same_head(register_rigid(t1, t2, start=np.eye(4)), t1, t2)
    assert "WARNING" in capsys.readouterr().err
