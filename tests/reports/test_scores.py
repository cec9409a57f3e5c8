"""Scores of a volume against the truth."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_fill_holes
from skimage.metrics import structural_similarity

from func.errors import BabyAIError
from func.reports.scores import (
    SSIM_WINDOW,
    brain_mask,
    inner_brain,
    nrmse,
    psnr,
    score_brain,
    score_volume,
    sharpness,
    ssim,
)
from func.slices.geometry import SliceGeometry, acquire, upsample


@pytest.fixture(scope="module")
def truth(small_head) -> np.ndarray:
    return small_head.t2.get_fdata(dtype=np.float32)


@pytest.fixture(scope="module")
def blurred(truth) -> np.ndarray:
    geometry = SliceGeometry.fitting(axis=2, length=truth.shape[2], thickness=3)
    return upsample(acquire(truth, geometry), geometry, truth.shape[2])


def test_equal_volumes_score_best(truth):
    assert psnr(truth, truth, 1000) == np.inf
    assert ssim(truth, truth, 1000) == pytest.approx(1, abs=1e-6)
    assert nrmse(truth, truth) == 0


def test_ssim_is_that_of_wang_and_others(truth, blurred):
    """In one window, by the formula of the paper; the mask picks the window."""
    centre = (24, 22, 25)
    mask = np.zeros(truth.shape, bool)
    mask[centre] = True
    window = tuple(slice(i - SSIM_WINDOW // 2, i + SSIM_WINDOW // 2 + 1) for i in centre)
    x, y = (array[window].astype(np.float64).ravel() for array in (truth, blurred))
    c1, c2 = (0.01 * 1600) ** 2, (0.03 * 1600) ** 2
    luminance = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    structure = (2 * np.cov(x, y)[0, 1] + c2) / (x.var(ddof=1) + y.var(ddof=1) + c2)
    assert ssim(truth, blurred, 1600, mask) == pytest.approx(luminance * structure, abs=1e-5)


def test_ssim_inside_a_mask_is_the_mean_of_the_map_there(truth, blurred):
    mask = brain_mask(truth)
    _, similarity = structural_similarity(truth, blurred, data_range=1600, full=True)
    assert ssim(truth, blurred, 1600, mask) == pytest.approx(similarity[mask].mean(), abs=1e-5)


def test_psnr_and_nrmse_of_a_known_error():
    truth = np.full((8, 8, 8), 100.0)
    estimate = truth + 10
    assert psnr(truth, estimate, data_range=100) == pytest.approx(20)
    assert nrmse(truth, estimate) == pytest.approx(0.1)
    mask = np.zeros(truth.shape, bool)
    mask[:4] = True
    estimate[4:] = -1000
    assert psnr(truth, estimate, data_range=100, mask=mask) == pytest.approx(20)


@pytest.mark.parametrize("factor", [1e-3, 30])
def test_brain_scores_do_not_depend_on_the_unit(truth, blurred, factor):
    plain, scaled = score_brain(truth, blurred), score_brain(factor * truth, factor * blurred)
    assert scaled.psnr == pytest.approx(plain.psnr, abs=1e-3)
    assert scaled.ssim == pytest.approx(plain.ssim, abs=1e-4)
    assert scaled.nrmse == pytest.approx(plain.nrmse, abs=1e-4)


def test_air_counts_in_the_whole_volume_only(truth, blurred):
    spoilt = blurred.copy()
    spoilt[~brain_mask(truth)] = 1000
    assert score_brain(truth, spoilt).psnr == pytest.approx(score_brain(truth, blurred).psnr)
    assert score_volume(truth, spoilt).psnr < score_volume(truth, blurred).psnr - 3


def test_a_wrong_scale_is_an_error(truth):
    assert score_volume(truth, 0.8 * truth).psnr < 30
    assert score_brain(truth, 0.8 * truth).psnr < 25


def test_the_brain_mask_covers_the_brain_and_nothing_else(small_head, truth):
    brain = small_head.labels.get_fdata() > 0
    mask = brain_mask(truth)
    assert (mask & brain).sum() > 0.97 * brain.sum()
    assert not (mask & ~binary_dilation(binary_fill_holes(brain))).any()


@pytest.mark.parametrize("air", [0, 400, 3000])
def test_the_brain_mask_is_the_same_with_bright_air(truth, air):
    """Air of any intensity; where it is as bright as tissue, the holes it makes inside the brain are filled."""
    mask = brain_mask(truth)
    other = brain_mask(np.where(mask, truth, air))
    assert (mask ^ other).sum() < 0.03 * mask.sum()


def test_specks_far_from_the_head_are_not_brain(truth):
    speckled = truth.copy()
    speckled[1, 1, 1:4] = truth.max()
    assert not brain_mask(speckled)[1, 1].any()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.8, 1.2, 2.5)])
def test_the_inner_brain_begins_so_many_mm_below_the_edge(sizes):
    """In a ball of 20 mm radius, whatever the voxels; its edge lies half a voxel before the nearest voxel outside."""
    axes = [np.arange(-25, 25, size) for size in sizes]
    radius = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")))
    ball = radius < 20
    inner = inner_brain(ball, sizes, depth=5)
    assert 15 - max(sizes) < radius[inner].max() < 15 + max(sizes)
    assert inner[radius < 15 - max(sizes)].all()
    assert (inner_brain(ball, sizes, depth=0) == ball).all()


def test_where_the_field_of_view_ends_the_brain_has_no_edge():
    slab = np.ones((12, 30, 30), bool)
    slab[:, :2], slab[:, -2:], slab[:, :, :2], slab[:, :, -2:] = False, False, False, False
    inner = inner_brain(slab, depth=4)
    assert inner[0, 15, 15] and inner[-1, 15, 15] and not inner[:, 4].any() and inner[:, 5, 15].all()


def test_sharpness_counts_only_what_slices_cannot_carry(truth):
    """Half of a wave too fast for slices of 4 mm is a quarter of its energy; a slow wave counts for nothing."""
    z = np.arange(48)
    fast, slow = 100 * np.cos(2 * np.pi * z / 5), 500 * np.cos(2 * np.pi * z / 20)
    mask = np.zeros((20, 20, 48), bool)
    mask[4:16, 4:16, 12:36] = True
    volume = np.ones((20, 20, 1)) * (fast + slow)
    assert sharpness(volume, np.ones((20, 20, 1)) * (fast / 2 + slow), mask, 2, 4.0) == pytest.approx(0.25, abs=0.01)
    assert sharpness(volume, np.ones((20, 20, 1)) * slow, mask, 2, 4.0) < 0.01
    turned = np.moveaxis(volume, 2, 0)
    assert sharpness(turned, 1.1 * turned, np.moveaxis(mask, 2, 0), 0, 4.0) == pytest.approx(1.21, abs=0.01)
    assert np.isnan(sharpness(volume, volume, mask, 2, 1.0))


def test_slices_of_a_head_have_lost_their_sharpness(truth, blurred):
    inner = inner_brain(brain_mask(truth))
    assert sharpness(truth, blurred, inner, 2, 3.0) < 0.25
    assert sharpness(truth, truth, inner, 2, 3.0) == 1


def test_nothing_to_score_is_told(truth):
    with pytest.raises(BabyAIError, match="nothing but air"):
        brain_mask(np.zeros((8, 8, 8)))
    with pytest.raises(BabyAIError, match="mask is empty"):
        score_brain(truth, truth, np.zeros(truth.shape, bool))
    with pytest.raises(BabyAIError, match="choose a smaller --depth"):
        inner_brain(brain_mask(truth), depth=60)


def test_cubic_interpolation_of_real_infants_scores_as_published(real_data):
    """The design's table has, for cubic interpolation of other infants, 26.6 to 28.0 dB and .931 to .953 at 2 mm."""
    from func.scans.nifti import read_volume

    truth = read_volume(real_data / "pairs" / "sub-B12_T2w.nii.gz").get_fdata(dtype=np.float32)
    geometry = SliceGeometry.fitting(axis=2, length=truth.shape[2], thickness=2)
    scores = score_brain(truth, upsample(acquire(truth, geometry), geometry, truth.shape[2]))
    assert scores.psnr == pytest.approx(27.7, abs=0.1)
    assert scores.ssim == pytest.approx(0.932, abs=0.003)
