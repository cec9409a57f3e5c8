"""Scans as acquired: their frame, their in-plane detail, what lies beyond their slices, and pairs that do not fit."""

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError
from func.reconstruction import acquired
from func.reconstruction.acquired import RawSettings, StackGrid
from func.scans.case import Case
from func.scans.nifti import array_of, image_of
from func.scans.registration import Registration
from func.slices.geometry import SliceGeometry, acquire
from networks_for_tests import Unchanged, reconstruct, weights_of

# World mm of the T1w -> where that lies in the T2w's world.
MOTION = from_matvec(Rotation.from_euler("xyz", [6, -4, 9], degrees=True).as_matrix(), [5, -3, 7])


@pytest.fixture
def registered(monkeypatch):
    """Registration that finds what the test says; registration itself has its own tests."""

    def found(matrix=None, similarity=0.4, sharpness=0.4, mirrored=0.5, overlap=1.0):
        registration = Registration(np.eye(4) if matrix is None else matrix, similarity, sharpness, mirrored, overlap)
        monkeypatch.setattr(acquired, "register_rigid", lambda t1, t2: registration)

    found()
    return found


@pytest.fixture(scope="module")
def stack(small_head):
    """The small head's T2w in 3 mm slices of 1 mm in-plane."""
    truth = array_of(small_head.t2)
    geometry = SliceGeometry.fitting(2, truth.shape[2], 3)
    return image_of(acquire(truth, geometry), geometry.affine_in(small_head.t2.affine))


def fine_stack(voxel=0.5, count=10, thickness=4.0):
    """Slices of ``voxel`` mm with in-plane detail of 1.5 mm, the same through all of them, in a round head."""
    side = int(56 / voxel)
    x, y = (np.indices((side, side)) - (side - 1) / 2) * voxel
    plane = np.where(np.hypot(x, y) < 24, 500 + 200 * np.sin(2 * np.pi * x / 1.5), 0)
    slices = np.repeat(plane[:, :, None], count, axis=2).astype(np.float32)
    slices[..., [0, -1]] = 0
    affine = from_matvec(np.diag([voxel, voxel, thickness]), [-28, -28, -18])
    return image_of(slices, affine), plane


def test_the_result_lies_in_the_frame_asked_for(small_head, stack, registered):
    registered(MOTION)
    moved = image_of(array_of(stack), MOTION @ stack.affine)
    in_t1, in_t2 = (
        reconstruct(small_head.t1, moved, weights_of(Unchanged()), raw=RawSettings(space)).image
        for space in ("1mm", "t2")
    )
    assert in_t1.shape == small_head.t1.shape and np.allclose(in_t1.affine, small_head.t1.affine)
    np.testing.assert_allclose(voxel_sizes(in_t2.affine), 1)
    truth = array_of(small_head.t2)
    middles = [np.average(np.argwhere(a > 0), axis=0, weights=a[a > 0]) for a in map(array_of, (in_t1, in_t2))]
    middle = apply_affine(small_head.t2.affine, np.average(np.argwhere(truth > 0), axis=0, weights=truth[truth > 0]))
    np.testing.assert_allclose(apply_affine(in_t1.affine, middles[0]), middle, atol=0.4)
    np.testing.assert_allclose(apply_affine(in_t2.affine, middles[1]), apply_affine(MOTION, middle), atol=0.4)


def test_without_a_t1w_the_result_lies_where_the_t2w_does(stack):
    result = reconstruct(None, stack, weights_of(Unchanged()), raw=RawSettings("t2"))
    assert "Registration" not in result.report
    assert result.report["Checks"]["SliceResidualAfter"] <= result.report["Checks"]["SliceResidualBefore"]
    np.testing.assert_allclose(voxel_sizes(result.image.affine), 1)


@pytest.mark.parametrize("factor", [0.05, 20])
def test_a_stack_of_no_heads_size_is_refused_without_a_t1w_too(stack, factor):
    wrong = image_of(array_of(stack), np.diag([factor] * 3 + [1]) @ stack.affine)
    with pytest.raises(BabyAIError, match="shows a head of"):
        reconstruct(None, wrong, weights_of(Unchanged()), raw=RawSettings("t2"))


@pytest.mark.parametrize(("voxel_size", "expected"), [("in-plane", 0.5), (0.7, 0.7), (1.0, 1.0)])
def test_detail_that_the_slices_hold_in_plane_is_kept(voxel_size, expected):
    t2, plane = fine_stack()
    result = reconstruct(None, t2, weights_of(Unchanged()), raw=RawSettings("t2", voxel_size))
    np.testing.assert_allclose(voxel_sizes(result.image.affine), expected, atol=1e-6)
    array = array_of(result.image)
    middle = array[:, array.shape[1] // 2, array.shape[2] // 2]
    seen = np.std(middle[np.abs(np.arange(len(middle)) - (len(middle) - 1) / 2) * expected < 18])
    truth = np.std(plane[plane > 0])
    if expected == 1.0:
        assert seen < 0.3 * truth  # low-passed, not aliased
        assert "DetailVoxel" not in result.report["Checks"]
    else:
        assert seen > (0.9 if expected == 0.5 else 0.5) * truth
        checks = result.report["Checks"]
        assert checks["DetailResidualAfter"] < 0.3 * checks["DetailResidualBefore"]


@pytest.mark.parametrize(("voxel_size", "told"), [(500, "coarser than its slices"), (0.01, "too large a volume")])
def test_voxel_sizes_that_make_no_sense(voxel_size, told):
    with pytest.raises(BabyAIError, match=told):
        reconstruct(None, fine_stack()[0], weights_of(Unchanged()), raw=RawSettings("t2", voxel_size))


def test_noise_is_no_detail():
    """In one half of the head there is detail, in the other nothing but noise, which is not given back."""
    t2, plane = fine_stack()
    clean = array_of(t2).copy()
    clean[56:] = 500.0 * (clean[56:] > 0)
    noise = np.random.default_rng(0).normal(0, 14, clean.shape).astype(np.float32)
    noisy = image_of(np.maximum(clean + noise * (clean > 0), 0), t2.affine)
    result = reconstruct(None, noisy, weights_of(Unchanged()), raw=RawSettings("t2", 0.5))
    checks = result.report["Checks"]
    assert 0.5 * checks["DetailNoise"] < checks["DetailResidualAfter"] < 1.2 * checks["DetailNoise"]
    array = array_of(result.image)
    middle = array[:, 46:66, array.shape[2] // 2]
    assert middle[64:90].std() < 0.6 * noise.std()
    assert middle[24:48].std() > 0.9 * np.std(plane[plane > 0])


def test_voxels_of_1_mm_do_not_alias_what_finer_ones_show():
    t2, _ = fine_stack(voxel=0.4)
    stripes = array_of(t2).copy()
    stripes *= 1 + 0.5 * (-1.0) ** np.arange(stripes.shape[0])[:, None, None]
    grid = StackGrid.around(t2, 2, 4.0, 4.0, "box")
    slices = grid.slices_of(image_of(stripes, t2.affine))[14:42, 14:42, 5]
    assert slices.std() < 0.1 * slices.mean()


def test_beyond_the_slices_there_is_air(small_head, stack, registered):
    """A slab that covers the middle of the head: what no slice saw is not shown as reconstructed."""
    slab = stack.slicer[:, :, 5:11]
    result = array_of(reconstruct(small_head.t1, slab, weights_of(Unchanged()), raw=RawSettings()).image)
    first, last = 15, 32  # planes of slices 5 to 10
    assert not result[..., : first - 1].any() and not result[..., last + 2 :].any()
    assert all(result[..., plane].any() for plane in range(first + 1, last))


def test_where_the_t1w_has_no_field_of_view_the_slices_are_interpolated(small_head, stack, registered, capsys):
    """A network that takes the T1w's darkness for air does no harm where there is no T1w."""

    class Trusting(torch.nn.Module):
        def forward(self, inputs):
            return inputs[:, 1:2] * (inputs[:, :1] > 0.01)

    half = small_head.t1.slicer[:, :, :24]
    plain = array_of(reconstruct(None, stack, weights_of(Unchanged()), raw=RawSettings("t2")).image)
    result = array_of(reconstruct(half, stack, weights_of(Trusting()), raw=RawSettings("t2")).image)
    assert "leaves out" in capsys.readouterr().err
    far = plain[..., 30:]
    assert np.abs(result[..., 30:] - far).max() < 0.1 * far.max()


@pytest.mark.parametrize(
    ("found", "settings"),
    [
        ({"similarity": 0.02, "sharpness": 0.0, "mirrored": 1.5, "overlap": 0.1}, RawSettings()),
        ({"similarity": 0.3}, RawSettings(min_similarity=0.35)),
    ],
)
def test_scans_that_do_not_fit_are_refused(small_head, stack, registered, found, settings):
    registered(**found)
    with pytest.raises(BabyAIError):
        reconstruct(small_head.t1, stack, weights_of(Unchanged()), raw=settings)


def test_scans_with_other_voxels_than_such_a_pair_are_told(small_head, stack, registered, capsys):
    isotropic, thick = small_head.t2, image_of(array_of(small_head.t1)[:, :, 2::5], np.diag([1.0, 1, 5, 1]))
    reconstruct(small_head.t1, isotropic, weights_of(Unchanged()), raw=RawSettings())
    assert "isotropic already" in capsys.readouterr().err
    result = reconstruct(thick, stack, weights_of(Unchanged()), raw=RawSettings("t2"))
    assert "has slices of 5 mm itself" in capsys.readouterr().err and "5 mm" in result.warnings[0]
    reconstruct(thick, isotropic, weights_of(Unchanged()), raw=RawSettings("t2"))
    assert "the wrong way round" in capsys.readouterr().err


def test_noise_around_the_head_in_a_t1w_is_named_and_silenced(small_head, stack, registered, capsys):
    """As in an MP2RAGE scan's uniform image: as bright as the brain where there is only air."""
    random = np.random.default_rng(0)
    wide, shift = np.zeros((80, 80, 80), np.float32), from_matvec(np.eye(3), [-16, -16, -16])
    wide[16:64, 16:64, 16:64] = array_of(small_head.t1)
    clean = image_of(wide, small_head.t1.affine @ shift)
    noisy = image_of(np.where(wide > 0, wide, random.uniform(0, wide.max(), wide.shape)), clean.affine)
    big = np.zeros((80, 80, 18), np.float32)
    big[16:64, 16:64, 1:17] = array_of(stack)
    t2 = image_of(big, stack.affine @ from_matvec(np.eye(3), [-16, -16, -1]))
    results = [
        array_of(reconstruct(t1, t2, weights_of(Unchanged()), raw=RawSettings("t2", motion="off")).image)
        for t1 in (clean, noisy)
    ]
    assert "MP2RAGE" in capsys.readouterr().err
    error = np.sqrt(np.mean(np.square(results[0] - results[1])))
    assert error < 0.05 * np.percentile(results[0], 99)


class Doubtful(torch.nn.Module):
    """Shifts the T1w's detail along an axis: in a mirror it goes the other way, and the runs disagree there."""

    def forward(self, inputs):
        return inputs[:, 1:2] + 0.5 * (inputs[:, :1] - inputs[:, :1].roll(1, dims=4)) * (inputs[:, :1] > 0.8)


@pytest.mark.parametrize("raw", [False, True])
def test_the_uncertainty_is_wide_where_the_runs_disagree(raw, registered):
    """A bright spot in the T1w, off the middle along every axis, in the T1w's own frame."""
    shape, spot = (48, 48, 48), np.array([32, 18, 29])
    place = np.linalg.norm(np.indices(shape) - 23.5 * np.ones((3, 1, 1, 1)), axis=0)
    near = np.linalg.norm(np.indices(shape) - spot[:, None, None, None], axis=0)
    head = np.where(place < 20, 400, 0)
    t1 = image_of(np.where(near < 3, 1000, head), np.eye(4))
    geometry = SliceGeometry.fitting(2, 48, 3)
    slices = acquire(head.astype(np.float32), geometry)
    if raw:
        registered(MOTION)
        case = t1, image_of(slices, MOTION @ geometry.affine_in(np.eye(4)))
        result = reconstruct(*case, weights_of(Doubtful()), raw=RawSettings(), uncertainty=True)
    else:
        from func.slices.geometry import upsample

        t2 = image_of(np.maximum(upsample(slices, geometry, 48), 0), np.eye(4))
        result = reconstruct(t1, t2, weights_of(Doubtful()), geometry, uncertainty=True)
    width = array_of(result.uncertainty)
    assert result.uncertainty.shape == result.image.shape
    np.testing.assert_allclose(result.uncertainty.affine, result.image.affine)
    wide = np.argwhere(width > 0.6 * width.max()).mean(axis=0)
    assert np.linalg.norm(apply_affine(result.uncertainty.affine, wide) - spot) < 3


def test_a_volume_too_large_to_hold_is_refused_before_any_work(stack):
    with pytest.raises(BabyAIError, match="larger --voxel-size"):
        reconstruct(None, stack, weights_of(Unchanged()), raw=RawSettings("t2", 0.05))


def test_a_case_keeps_its_own_images(small_head, stack):
    before = array_of(stack).copy()
    reconstruct(None, stack, weights_of(Unchanged()), raw=RawSettings("t2"))
    np.testing.assert_array_equal(array_of(stack), before)
    assert isinstance(Case.of(None, stack).t2, nib.Nifti1Image)
