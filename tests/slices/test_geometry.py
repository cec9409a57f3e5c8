"""The slice model: its operators by their properties, its positions, and the recovery of geometry from a volume."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from func.errors import BabyAIError, collect_warnings
from func.slices.geometry import (
    PROFILES,
    SliceGeometry,
    acquire,
    adjoint,
    along,
    consistency_matrix,
    make_consistent,
    measured_slices,
    slice_matrix,
    stack_geometry,
    stated_profile,
    upsample,
    with_spacing,
)
from func.slices.recovery import recover_geometry

SHAPE = (20, 24, 28)


def geometries():
    for profile in PROFILES:
        for axis, thickness, spacing, first in [(2, 4, 4, None), (0, 2, 2.5, 1.2), (1, 3.3, 3.3, 2.0)]:
            yield SliceGeometry.fitting(axis, SHAPE[axis], thickness, spacing, first, profile)


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(size=SHAPE)


@pytest.mark.parametrize("geometry", list(geometries()), ids=str)
class TestOperators:
    def test_adjoint(self, geometry, volume):
        slices = np.random.default_rng(1).normal(size=acquire(volume, geometry).shape)
        left = np.vdot(acquire(volume, geometry), slices)
        right = np.vdot(volume, adjoint(slices, geometry, SHAPE[geometry.axis]))
        assert left == pytest.approx(right, rel=1e-12)

    def test_a_constant_volume_stays_constant(self, geometry):
        ones = np.ones(SHAPE)
        np.testing.assert_allclose(acquire(ones, geometry), 1, atol=1e-12)
        np.testing.assert_allclose(upsample(acquire(ones, geometry), geometry, SHAPE[geometry.axis]), 1, atol=1e-9)

    def test_a_ramp_is_seen_at_the_slice_centres(self, geometry):
        ramp = np.broadcast_to(np.arange(SHAPE[geometry.axis]), (2, 2, SHAPE[geometry.axis]))
        seen = acquire(ramp.astype(float), replace(geometry, axis=2))[0, 0]
        inner = slice(1, -1)
        np.testing.assert_allclose(seen[inner], geometry.centers[inner], atol=0.05)

    def test_up_sampling_puts_each_slice_at_its_centre(self, geometry, volume):
        """At the knots a cubic spline is the slice itself, wherever a slice centre falls on a plane."""
        slices = acquire(volume, geometry)
        upsampled = upsample(slices, geometry, SHAPE[geometry.axis])
        for index, center in enumerate(geometry.centers):
            if abs(center - round(center)) < 1e-9:
                plane = np.take(upsampled, round(center), geometry.axis)
                np.testing.assert_allclose(plane, np.take(slices, index, geometry.axis), atol=1e-9)

    def test_measured_slices_undo_up_sampling(self, geometry, volume):
        slices = acquire(volume, geometry)
        again = measured_slices(upsample(slices, geometry, SHAPE[geometry.axis]), geometry)
        np.testing.assert_allclose(again, slices, atol=1e-8)

    def test_torch_gives_the_same(self, geometry, volume):
        slices = acquire(volume, geometry)
        np.testing.assert_allclose(acquire(torch.from_numpy(volume), geometry).numpy(), slices, atol=1e-12)

    def test_consistency(self, geometry, volume):
        guess = np.random.default_rng(2).normal(size=SHAPE)
        slices = acquire(volume, geometry)
        corrected = make_consistent(guess, slices, geometry)
        before, after = (np.abs(slices - acquire(x, geometry)).max() for x in (guess, corrected))
        assert after < 0.02 * before
        assert np.linalg.norm(corrected - volume) < np.linalg.norm(guess - volume)
        np.testing.assert_allclose(make_consistent(volume, slices, geometry), volume, atol=1e-9)

    def test_damping_lets_the_slices_count_for_less(self, geometry, volume):
        corrections = [np.abs(consistency_matrix(geometry, SHAPE[geometry.axis], d)).sum() for d in (0, 0.1, 1, 10)]
        assert corrections == sorted(corrections, reverse=True)


@pytest.mark.parametrize("values", [[3.0], [1.0, 5.0], [1.0, 5.0, 2.0]])
def test_few_slices_are_interpolated_linearly(values):
    geometry = SliceGeometry(0, 4.0, 4.0, 2.5, len(values), "box")
    expected = np.interp(np.arange(16), geometry.centers, values)
    np.testing.assert_allclose(upsample(np.array(values), geometry, 16), expected, atol=1e-12)


def test_up_sampling_is_scipys_cubic_spline():
    """With mirror boundaries; beyond the outermost slice centres their values are kept."""
    geometry = SliceGeometry(0, 3.0, 3.7, 1.3, 6, "box")
    slices = np.random.default_rng(2).normal(size=6)
    places = np.clip((np.arange(24) - 1.3) / 3.7, 0, 5)
    expected = ndimage.map_coordinates(slices, places[None], order=3, mode="mirror")
    np.testing.assert_allclose(upsample(slices, geometry, 24), expected, atol=1e-12)


def test_adjoining_box_slices_get_their_residual_back_on_their_planes():
    geometry = SliceGeometry.fitting(2, 24, 4)
    slices = np.random.default_rng(0).normal(size=(3, 3, geometry.count))
    corrected = make_consistent(np.zeros((3, 3, 24)), slices, geometry)
    np.testing.assert_allclose(corrected, np.repeat(slices, 4, axis=2), atol=1e-9)


def test_box_averages_its_planes_and_point_picks_one(volume):
    box = SliceGeometry.fitting(2, 28, 4)
    np.testing.assert_allclose(acquire(volume, box)[..., 1], volume[..., 4:8].mean(axis=2))
    point = SliceGeometry.fitting(2, 28, 4, profile="point")
    np.testing.assert_allclose(acquire(volume, point)[..., 1], volume[..., 5])


def test_gaussian_has_half_its_height_at_half_its_thickness():
    geometry = SliceGeometry(2, 6, 6, 30, 1, "gaussian")
    weights = slice_matrix(geometry, 61)[0]
    assert weights[33] / weights[30] == pytest.approx(0.5, abs=0.02)


def test_fitting_counts_the_slices_that_lie_inside():
    assert SliceGeometry.fitting(2, 182, 4).count == 45
    assert SliceGeometry.fitting(2, 182, 2).count == 91
    gapped = SliceGeometry.fitting(2, 182, 4, 5)
    assert gapped.count == 36 and gapped.centers[-1] + 2 <= 181.5


@pytest.mark.parametrize(("thickness", "spacing", "count"), [(0, 4, 5), (4, -1, 5), (4, 4, 0), (float("nan"), 4, 5)])
def test_impossible_stacks_are_refused(thickness, spacing, count):
    with pytest.raises(BabyAIError, match="is impossible"):
        SliceGeometry(2, thickness, spacing, 0, count)


def test_sidecar_round_trip():
    image = nib.Nifti1Image(np.zeros((20, 24, 30), np.float32), np.diag([1, 1, 0.8, 1]))
    geometry = SliceGeometry.fitting(2, 30, 5, 6.25, 3.0, "gaussian")
    sidecar = geometry.to_sidecar(0.8)
    assert sidecar["SliceThickness"] == 4 and sidecar["SpacingBetweenSlices"] == 5
    again = SliceGeometry.from_sidecar(sidecar, image)
    assert (again.axis, again.count, again.profile) == (2, geometry.count, "gaussian")
    np.testing.assert_allclose(again.centers, geometry.centers)
    assert SliceGeometry.from_sidecar({"SliceThickness": 4}, image) is None


@pytest.mark.parametrize(
    "change",
    [
        {"SliceEncodingDirection": "x"},
        {"SliceEncodingDirection": None},
        {"SliceThickness": "thick"},
        {"SliceThickness": 0},
        {"SpacingBetweenSlices": 900},
        {"SpacingBetweenSlices": [4, 5]},
        {"FirstSliceCenter": -7},
        {"FirstSliceCenter": 29.9},
        {"FirstSliceCenter": None},
    ],
)
def test_a_sidecar_of_an_up_sampled_scan_that_cannot_be_is_left_out_with_a_warning(change, capsys):
    image = nib.Nifti1Image(np.zeros((20, 24, 30), np.float32), np.eye(4))
    assert SliceGeometry.from_sidecar(SliceGeometry.fitting(2, 30, 4).to_sidecar(1.0) | change, image) is None
    told = capsys.readouterr().err
    assert told.startswith("WARNING ") and told.count("\n") == 1


class TestRawStacks:
    """Where the slices lie is the header's to say; a sidecar that contradicts it is told and left out."""

    def stack(self, sizes=(1, 1, 4.4)):
        return nib.Nifti1Image(np.zeros((40, 50, 12), np.float32), np.diag([*sizes, 1]))

    @pytest.mark.parametrize(
        ("sidecar", "expected"),
        [
            ({}, (2, 4.4, 4.4)),
            ({"SliceThickness": 4, "SpacingBetweenSlices": 4.4}, (2, 4, 4.4)),
            ({"SliceThickness": "4", "SpacingBetweenSlices": "4.40", "SliceEncodingDirection": "k-"}, (2, 4, 4.4)),
            ({"SliceThickness": "4 mm", "SpacingBetweenSlices": [4.4, 4.4]}, (2, 4, 4.4)),
            ({"SliceThickness": 4, "SpacingBetweenSlices": -4.4}, (2, 4, 4.4)),
            ({"SliceThickness": 8.9}, (2, 8.9, 4.4)),  # overlapping, a rounded header
            ({"SliceThickness": 20}, (2, 20, 4.4)),  # interpolated by the scanner
        ],
    )
    def test_what_agrees_is_used_without_a_word(self, sidecar, expected, capsys):
        assert stack_geometry(self.stack(), sidecar) == pytest.approx(expected)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("sidecar", "thickness"),
        [
            ({"SpacingBetweenSlices": 6}, 4.4),
            ({"SpacingBetweenSlices": 0, "SliceThickness": 4}, 4),
            ({"SpacingBetweenSlices": None, "SliceThickness": 4}, 4),
            ({"SpacingBetweenSlices": "wide", "SliceThickness": 4}, 4),
            ({"SpacingBetweenSlices": [4.4, 4], "SliceThickness": 4}, 4),
            ({"SpacingBetweenSlices": float("nan"), "SliceThickness": 4}, 4),
            ({"SliceThickness": 40}, 4.4),
            ({"SliceThickness": 0.004}, 4.4),
            ({"SliceThickness": 10**400}, 4.4),
            ({"SliceThickness": True}, 4.4),
            ({"SliceThickness": "four mm"}, 4.4),
            ({"SliceEncodingDirection": "z", "SliceThickness": 4}, 4),
            ({"SliceEncodingDirection": 2, "SliceThickness": 4}, 4),
            ({"SliceEncodingDirection": "i", "SliceThickness": 4}, 4),
        ],
    )
    def test_the_header_decides_and_the_contradiction_is_told(self, sidecar, thickness, capsys):
        with collect_warnings() as collected:
            assert stack_geometry(self.stack(), sidecar) == pytest.approx((2, thickness, 4.4))
        assert len(collected) == 1 and next(iter(sidecar)) in collected[0]
        assert capsys.readouterr().err == f"WARNING {collected[0]}\n"

    @pytest.mark.parametrize(
        ("sizes", "sidecar", "axis"),
        [
            ((4.4, 0.8, 0.8), {"SliceEncodingDirection": "k"}, 0),
            ((4.4, 0.8, 0.8), {"SliceEncodingDirection": "k", "SliceThickness": 4, "SpacingBetweenSlices": 4.4}, 0),
            ((0.8, 4.4, 0.8), {"SliceEncodingDirection": "k-"}, 1),
            ((1.1, 1.1, 1), {"SliceEncodingDirection": "k"}, 2),  # nearly isotropic: only the sidecar knows
            ((1.5, 1.5, 1), {"SliceEncodingDirection": "k", "SliceThickness": 1}, 2),  # slices finer than the rest
        ],
    )
    def test_a_direction_left_over_from_before_a_reorientation(self, sizes, sidecar, axis, capsys):
        assert stack_geometry(self.stack(sizes), sidecar)[::2] == (axis, sizes[axis])
        assert ("reoriented" in capsys.readouterr().err) == (axis != 2)

    def test_a_spacing_given_by_the_user_moves_the_slices(self):
        affine = nib.affines.from_matvec(
            nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-0.8, 0.8, 3.0]), [10, -20, 30]
        )
        stack = nib.Nifti1Image(np.zeros((40, 50, 12), np.float32), affine)
        spaced = with_spacing(stack, 2, 3.3)
        assert stack_geometry(spaced, {"SpacingBetweenSlices": 3.3, "SliceThickness": 3}) == pytest.approx((2, 3, 3.3))
        np.testing.assert_allclose(spaced.affine[:, [0, 1, 3]], affine[:, [0, 1, 3]])
        step = nib.affines.apply_affine(spaced.affine, [0, 0, 11]) - nib.affines.apply_affine(affine, [0, 0, 0])
        np.testing.assert_allclose(step, affine[:3, 2] / 3.0 * 3.3 * 11)

    @pytest.mark.parametrize(
        ("stated", "used"), [("gaussian", "gaussian"), ("sinc", "box"), (None, "box"), ([], "box")]
    )
    def test_an_unknown_profile_is_told(self, stated, used, capsys):
        assert stated_profile({"SliceProfile": stated}, self.stack()) == used
        assert ("WARNING" in capsys.readouterr().err) == (stated != used)


@pytest.mark.parametrize(
    ("axis", "spacing", "first"), [(0, 2, None), (1, 3, None), (2, 4, None), (2, 4.4, 3.1), (1, 2.5, None)]
)
@pytest.mark.parametrize("stored_as", ["float", "rounded and clipped"])
def test_an_up_sampled_volume_betrays_its_slices(smooth_head, axis, spacing, first, stored_as):
    length = smooth_head.shape[axis]
    geometry = SliceGeometry.fitting(axis, length, spacing, first_center=first)
    upsampled = upsample(acquire(smooth_head, geometry), geometry, length)
    if stored_as != "float":
        upsampled = np.maximum(np.round(upsampled), 0)
    recovered = recover_geometry(upsampled.astype(np.float32))
    assert recovered is not None and recovered.axis == axis
    assert recovered.spacing == pytest.approx(spacing, abs=0.01)
    offset = (recovered.first_center - geometry.first_center) / spacing
    assert offset == pytest.approx(round(offset), abs=0.02)


def test_an_isotropic_volume_betrays_none(smooth_head):
    assert recover_geometry(smooth_head) is None


@pytest.fixture(scope="module")
def smooth_head():
    """A head-sized blob of structure on a 64^3 grid, air around it, intensities as a scanner's."""
    generator = np.random.default_rng(3)
    noise = torch.from_numpy(generator.normal(size=(1, 1, 64, 64, 64)))
    fine = torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[0, 0].numpy()
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 64)] * 3, indexing="ij"))
    inside = np.linalg.norm(grid, axis=0) < 0.85
    return np.where(inside, 600 + 900 * fine, 0).clip(0).astype(np.float32)


def test_along_keeps_the_type():
    matrix = np.eye(5)[:3]
    assert along(matrix, np.zeros((2, 5), np.float32), 1).dtype == np.float32
    assert along(matrix, torch.zeros(1, 1, 5, 2), -2).shape == (1, 1, 3, 2)
