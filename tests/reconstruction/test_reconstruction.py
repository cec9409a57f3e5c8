"""A whole case: intensities, orientation, geometry, windows and consistency around the network."""

import nibabel as nib
import numpy as np
import pytest
import torch

from func.errors import BabyAIError
from func.networks.devices import choose_device
from func.networks.guidance import CHANNELS, network_inputs
from func.networks.weights import Weights, build_network
from func.phantom import infant_brain
from func.reconstruction import acquired
from func.reconstruction import reconstructor as reconstructor_module
from func.reconstruction.acquired import RawSettings, t1_frame
from func.reconstruction.consistency import damping_for, noise_of
from func.reconstruction.reconstructor import Reconstructor
from func.scans.registration import Registration
from func.slices.geometry import SliceGeometry, acquire, upsample
from networks_for_tests import Unchanged, reconstruct, weights_of

SHAPE = (56, 64, 56)
AFFINE = nib.affines.from_matvec(np.eye(3) * 1.0, [-28, -40, -20])


@pytest.fixture(scope="module")
def head():
    """A 2 mm phantom called 1 mm, so that a whole small head fits a small grid."""
    coarse = nib.affines.from_matvec(np.eye(3) * 2.6, np.array([-28, -36, -28]) * 2.6)
    phantom = infant_brain(shape=SHAPE, affine=coarse, age_months=3)
    return tuple(nib.Nifti1Image(np.asarray(x.dataobj, np.float32), AFFINE) for x in (phantom.t1, phantom.t2))


@pytest.fixture(scope="module")
def network():
    """A small random network whose output differs visibly from its input."""
    torch.manual_seed(0)
    net = build_network("compact", channels=(16, 16), blocks=(1, 1))
    for parameter in (net.head.weight, *(block.second.weight for block in net.modules() if hasattr(block, "second"))):
        torch.nn.init.normal_(parameter, std=0.02)
    return net.to(memory_format=torch.channels_last_3d)


def thick(image, axis=2, thickness=4, **settings):
    array = np.asarray(image.dataobj)
    geometry = SliceGeometry.fitting(axis, array.shape[axis], thickness, **settings)
    return nib.Nifti1Image(upsample(acquire(array, geometry), geometry, array.shape[axis]), image.affine), geometry


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_result_agrees_with_the_measured_slices(head, network, axis):
    t1, t2 = head
    low, geometry = thick(t2, axis)
    result = reconstruct(t1, low, weights_of(network), geometry)
    checks = result.report["Checks"]
    assert checks["SliceResidualAfter"] < 0.5 * checks["SliceResidualBefore"]
    assert result.image.shape == SHAPE and result.image.get_data_dtype() == np.float32
    assert result.residuals[0].shape[axis] == geometry.count
    first = nib.affines.apply_affine(result.residuals[0].affine, [0, 0, 0])
    expected = np.zeros(3)
    expected[axis] = geometry.first_center
    np.testing.assert_allclose(first, nib.affines.apply_affine(AFFINE, expected), atol=1e-5)


def test_orientation_of_the_file_does_not_matter(head, network):
    """A left-handed file with permuted axes gives the same voxels in the same place, but for the network's own bias."""
    t1, low = head[0], thick(head[1])[0]
    plain = reconstruct(t1, low, weights_of(Unchanged()))
    codes = nib.orientations.axcodes2ornt("PIR")
    turned = [
        image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), codes)) for image in (t1, low)
    ]
    result = reconstruct(*turned, weights_of(Unchanged()))
    assert result.report["SliceGeometry"]["SliceEncodingDirection"] == "j"
    back = nib.as_closest_canonical(result.image)
    np.testing.assert_allclose(back.affine, AFFINE)
    scale = np.asarray(plain.image.dataobj).max()
    np.testing.assert_allclose(np.asarray(back.dataobj), np.asarray(plain.image.dataobj), atol=2e-3 * scale)


def test_bright_fluid_survives(head):
    """What is brighter than the 99th percentile of the T2w is not clipped."""
    t1, t2 = head
    array = np.asarray(t2.dataobj).copy()
    center = tuple(n // 2 for n in SHAPE)
    array[tuple(slice(c - 3, c + 5) for c in center)] = 3 * array.max()
    low, geometry = thick(nib.Nifti1Image(array, AFFINE))
    result = np.asarray(reconstruct(t1, low, weights_of(Unchanged()), geometry).image.dataobj)
    assert result.max() > 2.5 * np.percentile(array[array > 0], 99)


def test_geometry_is_recovered_where_no_sidecar_tells_it(head):
    t1, t2 = head
    low, geometry = thick(t2, axis=1)
    told = reconstruct(t1, low, weights_of(Unchanged()), geometry)
    found = reconstruct(t1, low, weights_of(Unchanged()))
    assert told.report["SliceGeometry"]["Source"] == "sidecar"
    assert found.report["SliceGeometry"]["Source"] == "recovered from the volume"
    np.testing.assert_allclose(np.asarray(found.image.dataobj), np.asarray(told.image.dataobj), rtol=0, atol=1.0)


@pytest.mark.parametrize(("stated", "taken"), [(3.0, 3.0), (None, 4.0), (1.0, 4.0), (30.0, 4.0), (float("nan"), 4.0)])
def test_a_plausible_thickness_goes_with_the_recovered_spacing(head, stated, taken):
    t1, t2 = head
    array = np.asarray(t2.dataobj)
    gapped = SliceGeometry.fitting(2, SHAPE[2], 3.0, 4.0)
    low = nib.Nifti1Image(upsample(acquire(array, gapped), gapped, SHAPE[2]), AFFINE)
    found = reconstruct(t1, low, weights_of(Unchanged()), sidecar={"SliceThickness": stated} if stated else {}).report[
        "SliceGeometry"
    ]
    assert found["SliceThickness"] == pytest.approx(taken, abs=0.01)
    assert found["SpacingBetweenSlices"] == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize("thickness", [2, 4])
@pytest.mark.parametrize("profile", ["box", "point"])
def test_the_profile_is_recovered_with_the_geometry(head, profile, thickness):
    t1, t2 = head
    array = np.asarray(t2.dataobj)
    geometry = SliceGeometry.fitting(2, SHAPE[2], thickness, first_center=2.0, profile=profile)
    low = nib.Nifti1Image(upsample(acquire(array, geometry), geometry, SHAPE[2]), AFFINE)
    found = reconstruct(t1, low, weights_of(Unchanged())).report["SliceGeometry"]
    assert found["SliceProfile"] == profile and found["SliceThickness"] == pytest.approx(thickness, abs=0.01)


def test_a_wrong_sidecar_is_noticed(head):
    t1, t2 = head
    low, _ = thick(t2, axis=2)
    wrong = SliceGeometry.fitting(0, SHAPE[0], 5)
    report = reconstruct(t1, low, weights_of(Unchanged()), wrong).report
    assert report["SliceGeometry"]["Source"] == "recovered from the volume"


def test_without_geometry_the_network_is_on_its_own(head, network):
    t1, t2 = head
    result = reconstruct(t1, t2, weights_of(network))
    assert result.report["SliceGeometry"]["Source"] == "unknown"
    assert not result.residuals and result.report["Checks"] == {}


def test_seams_are_invisible(head, network):
    """Windows that begin elsewhere change the result by less than half a per cent of the intensity range."""
    t1, low = head[0], thick(head[1])[0]
    inputs = network_inputs(*(np.asarray(image.dataobj) / 1000 for image in (t1, low)))
    # With something in two corners the network sees all of the grid, whose sides it can halve three times.
    inputs[0, 0, 0, 0] = inputs[0, -1, -1, -1] = 0.1
    windows = ({"window": 56, "overlap": 40}, {"window": 48, "overlap": 32})
    results = [
        Reconstructor(weights_of(network), "cpu", "float32", **settings).propose(inputs)[0] for settings in windows
    ]
    assert np.abs(results[0] - results[1]).max() < 0.005 * np.ptp(results[0])


def test_same_bytes_every_time(head, network):
    t1, low = head[0], thick(head[1])[0]
    first, second = (np.asarray(reconstruct(t1, low, weights_of(network)).image.dataobj) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_noise_is_measured():
    noise = np.random.default_rng(0).normal(scale=0.03, size=(64, 64, 12))
    assert noise_of((0.5 + noise).astype(np.float32)) == pytest.approx(0.03, rel=0.15)


def test_damping_follows_the_noise():
    geometry = SliceGeometry.fitting(2, 40, 4)
    residual = np.random.default_rng(0).normal(scale=0.04, size=(20, 20, geometry.count))
    damping = [damping_for(residual, noise, geometry, 40) for noise in (0, 0.01, 0.02, 0.04)]
    assert damping[0] == 0 and damping == sorted(damping) and damping[-1] > 10


def test_inputs_of_the_network(head):
    t1, t2 = (np.asarray(image.dataobj) / 1000 for image in head)
    geometry = SliceGeometry.fitting(2, SHAPE[2], 4)
    slices = acquire(t2, geometry)
    upsampled = upsample(slices, geometry, SHAPE[2])
    inputs = network_inputs(t1, upsampled, slices, geometry)
    assert inputs.shape == (len(CHANNELS), *SHAPE)
    phase = inputs[2, 0, 0]
    assert phase[1] == pytest.approx(0.25) and phase[3] == pytest.approx(0.75)
    unknown = network_inputs(t1, upsampled)
    assert not unknown[2:].any()


def test_detail_is_suggested_where_contrasts_are_related():
    """Where the T2w follows the T1w linearly, the guided detail brings the up-sampled T2w much nearer to the truth."""
    generator = torch.Generator().manual_seed(0)
    t1 = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 40, 40, 40, generator=generator), 3, 1, 1)[0, 0].numpy()
    t1 = 0.5 + 4 * (t1 - 0.5)
    t2 = 1.5 - t1
    geometry = SliceGeometry.fitting(2, 40, 4)
    slices = acquire(t2, geometry)
    upsampled = upsample(slices, geometry, 40)
    guided = network_inputs(t1, upsampled, slices, geometry)[1]
    inner = (slice(8, -8),) * 3
    assert np.std((guided - t2)[inner]) < 0.8 * np.std((upsampled - t2)[inner])


@pytest.mark.parametrize("rim", ["sharp", "interpolated"])
def test_the_outline_of_the_head_is_suggested(rim):
    """Of a brain-extracted head the T1w's outline shows where between the slices the T2w's ends."""
    grid = np.linalg.norm(np.indices((40, 40, 40)) - 19.3, axis=0)
    head = ((13 - grid).clip(0, 1) if rim == "interpolated" else grid < 13).astype(np.float32)
    t1, t2 = 0.4 * head, 0.9 * head
    geometry = SliceGeometry.fitting(2, 40, 4)
    slices = acquire(t2, geometry)
    upsampled = upsample(slices, geometry, 40)
    guided = network_inputs(t1, upsampled, slices, geometry)[1]
    assert np.std(guided - t2) < 0.5 * np.std(upsampled - t2)


class TestRawMode:
    @pytest.fixture
    def without_registration(self, monkeypatch):
        """Scans that did not move: registration has its own tests."""
        still = Registration(np.eye(4), 0.5, 0.4, 0.8, 1.0)
        monkeypatch.setattr(acquired, "register_rigid", lambda *args, **kwargs: still)

    @pytest.mark.parametrize("left_handed", [False, True])
    @pytest.mark.parametrize("axis", [0, 2])
    def test_landmarks_stay_where_they_are(self, head, without_registration, left_handed, axis):
        """A native thick stack, oblique to the T1w, comes back in the T1w's frame with every landmark in place."""
        points = nib.affines.apply_affine(AFFINE, [[20, 30, 30], [36, 30, 26], [28, 44, 20]])
        t1 = nib.Nifti1Image(np.asarray(head[0].dataobj) + _stack_of_blobs(points, AFFINE, SHAPE, 2), AFFINE)
        sizes = np.ones(3)
        sizes[axis] = 4
        turn = np.diag([-1.0, 1, 1]) if left_handed else np.eye(3)
        oblique = nib.affines.from_matvec(_rotation(12) @ turn @ np.diag(sizes), [0, 0, 0])
        shape = np.ceil(np.array([76, 76, 76]) / sizes).astype(int)
        center = nib.affines.apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)
        oblique[:3, 3] = center - oblique[:3, :3] @ ((shape - 1) / 2)
        blobs = nib.Nifti1Image(_stack_of_blobs(points, oblique, shape, axis), oblique)
        # The T1w's head tells nothing of how blobs moved.
        result = reconstruct(t1, blobs, weights_of(Unchanged()), raw=RawSettings(motion="off"))
        assert result.image.shape == SHAPE
        np.testing.assert_allclose(result.image.affine, AFFINE)
        found = np.asarray(result.image.dataobj)
        for point in points:
            voxel = nib.affines.apply_affine(np.linalg.inv(AFFINE), point)
            around = tuple(slice(int(v) - 7, int(v) + 8) for v in voxel)
            patch = found[around]
            grid = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in around], indexing="ij"), -1)
            centroid = (grid * patch[..., None]).sum((0, 1, 2)) / patch.sum()
            assert np.linalg.norm(nib.affines.apply_affine(AFFINE, centroid) - point) < 0.5

    def test_a_registration_that_is_a_little_off_is_corrected(self, head, without_registration):
        t1, t2 = head
        geometry = SliceGeometry.fitting(2, SHAPE[2], 4)
        off = nib.affines.from_matvec(np.eye(3), [1.4, 0, -1])
        stack = nib.Nifti1Image(acquire(np.asarray(t2.dataobj), geometry), off @ geometry.affine_in(AFFINE))
        result = reconstruct(t1, stack, weights_of(Unchanged()), raw=RawSettings())
        np.testing.assert_allclose(result.report["Registration"]["T1wToT2w"], off, atol=0.3)
        assert result.report["Checks"]["T1wOffset"] < 0.5

    def test_the_result_lies_in_the_frame_of_the_t1(self):
        affine = nib.affines.from_matvec(_rotation(20) @ np.diag([0.8, 0.8, 0.8]), [3, -4, 5])
        t1 = nib.Nifti1Image(np.zeros((50, 60, 70), np.float32), affine)
        shape, frame = t1_frame(t1, 1.0)
        assert shape == (40, 48, 56)
        np.testing.assert_allclose(nib.affines.voxel_sizes(frame), 1)
        centers = [nib.affines.apply_affine(a, (np.array(n) - 1) / 2) for a, n in ((affine, t1.shape), (frame, shape))]
        np.testing.assert_allclose(*centers, atol=1e-9)
        assert t1_frame(t1, None)[0] == t1.shape and np.array_equal(t1_frame(t1, None)[1], affine)

    def test_published_weights_are_refused(self, head):
        with pytest.raises(BabyAIError, match="atlas grid"):
            reconstruct(*head, Weights("babyai", Unchanged()), raw=RawSettings())


def test_unknown_devices_are_refused():
    with pytest.raises(BabyAIError, match="not available"):
        choose_device("cuda:99" if torch.cuda.is_available() else "cuda", "auto")


def _rotation(degrees):
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", [degrees, -degrees / 2, degrees / 3], degrees=True).as_matrix()


def _stack_of_blobs(points, affine, shape, axis, sigma=3.0):
    """Gaussian blobs in world mm, averaged over each slice's thickness as a scanner would."""
    voxels = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"), -1)
    total = np.zeros(shape)
    for offset in np.linspace(-0.375, 0.375, 4):
        shifted = voxels.copy()
        shifted[..., axis] += offset
        world = nib.affines.apply_affine(affine, shifted)
        for point in points:
            total += np.exp(-((world - point) ** 2).sum(-1) / (2 * sigma**2)) / 4
    return (1000 * total).astype(np.float32)


class Counting(torch.nn.Module):
    """Proposes the T2w it is given, and counts how often."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, inputs):
        self.runs += 1
        return inputs[:, 1:2]


@pytest.mark.parametrize(
    ("choice", "limit", "used"),
    [("auto", 10**6, "large"), ("auto", 1000, "fast"), ("large", 1000, "large"), ("fast", 10**6, "fast")],
)
def test_large_volumes_take_the_fast_network_on_a_processor(small_head, monkeypatch, choice, limit, used):
    monkeypatch.setattr(reconstructor_module, "_LARGEST_ON_PROCESSORS", limit)
    networks = {"large": Counting(), "fast": Counting()}
    weights = Weights("compact", networks["large"], fast=networks["fast"])
    result = reconstruct(small_head.t1, small_head.t2, weights, device="cpu", network=choice)
    assert result.report["Computed"]["Network"] == used
    assert {name: network.runs > 0 for name, network in networks.items()} == {name: name == used for name in networks}


def test_what_the_network_makes_of_a_mirror_is_mirrored_back():
    volumes = np.random.default_rng(0).random((7, 16, 24, 16)).astype(np.float32)
    estimates = Reconstructor(weights_of(Counting()), device="cpu", uncertainty=True).propose(volumes)
    assert len(estimates) == 4
    for estimate in estimates:
        np.testing.assert_allclose(estimate, volumes[1], atol=1e-6)
