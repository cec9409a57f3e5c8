"""The digital head: the same on every grid, anatomically plausible, and of its age."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label, map_coordinates
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError
from func.phantom import ATLAS_AFFINE, ATLAS_SHAPE, LABELS, infant_brain

EXPECTED_AT = {
    "third ventricle": "cerebrospinal fluid",
    "fourth ventricle": "cerebrospinal fluid",
    "left atrium": "cerebrospinal fluid",
    "right atrium": "cerebrospinal fluid",
    "left thalamus": "deep grey matter",
    "right thalamus": "deep grey matter",
    "left caudate head": "deep grey matter",
    "right caudate head": "deep grey matter",
    "left putamen": "deep grey matter",
    "right putamen": "deep grey matter",
    "genu of the corpus callosum": "white matter",
    "splenium of the corpus callosum": "white matter",
    "pons": "brainstem",
}


def mean_of(phantom, image, tissue):
    return np.asarray(image.dataobj)[np.asarray(phantom.labels.dataobj) == LABELS[tissue]].mean()


def test_it_lies_on_the_atlas_grid(head):
    for image in (head.t1, head.t2):
        assert image.shape == ATLAS_SHAPE
        np.testing.assert_array_equal(image.affine, ATLAS_AFFINE)
        assert image.get_data_dtype() == np.float32


def test_it_is_extracted_whole_and_in_one_piece(head):
    brain = np.asarray(head.t2.dataobj) > 0
    _, pieces = label(brain)
    assert pieces == 1
    assert not (brain[[0, -1]].any() or brain[:, [0, -1]].any() or brain[:, :, [0, -1]].any())
    assert 600e3 < brain.sum() < 1300e3  # mm^3 at six months, cerebrospinal fluid included
    assert (np.asarray(head.t1.dataobj)[~brain] == 0).all()


@pytest.mark.parametrize("age", [0, 6, 12])
def test_landmarks_lie_in_their_structures(age):
    landmarks = infant_brain((1, 1, 1), np.eye(4), age).landmarks()
    for name, tissue in EXPECTED_AT.items():
        voxel = infant_brain((1, 1, 1), nib.affines.from_matvec(np.eye(3), landmarks[name]), age)
        assert np.asarray(voxel.labels.dataobj).item() == LABELS[tissue], name


def test_every_tissue_has_its_share(head):
    counts = np.bincount(np.asarray(head.labels.dataobj).ravel(), minlength=len(LABELS))
    share = {name: counts[value] / counts[1:].sum() for name, value in LABELS.items()}
    assert 0.25 < share["cortex"] < 0.55
    assert 0.15 < share["white matter"] < 0.45
    assert 0.08 < share["cerebrospinal fluid"] < 0.35
    assert 0.02 < share["deep grey matter"] < 0.08
    assert 0.04 < share["cerebellar cortex"] + share["cerebellar white matter"] < 0.15


@pytest.mark.parametrize(
    ("age", "t1_order", "t2_order"),
    [(0, "cortex brighter", "white brighter"), (12, "white brighter", "cortex brighter")],
)
def test_contrast_reverses_in_the_first_year(age, t1_order, t2_order):
    phantom = infant_brain((64, 72, 64), age_months=age)
    for image, order in ((phantom.t1, t1_order), (phantom.t2, t2_order)):
        white, cortex = mean_of(phantom, image, "white matter"), mean_of(phantom, image, "cortex")
        brighter, darker = (cortex, white) if order == "cortex brighter" else (white, cortex)
        assert brighter > 1.1 * darker


@pytest.mark.parametrize(("scan", "age"), [("t1", 6), ("t2", 9)])
def test_contrast_is_lost_between_six_and_nine_months(scan, age):
    gap = {}
    for months in (0, age, 12):
        phantom = infant_brain((64, 72, 64), age_months=months)
        image = getattr(phantom, scan)
        gap[months] = abs(mean_of(phantom, image, "white matter") / mean_of(phantom, image, "cortex") - 1)
    assert gap[age] < 0.12 < min(gap[0], gap[12])


def test_fluid_is_bright_on_t2w_and_dark_on_t1w(head):
    assert mean_of(head, head.t2, "cerebrospinal fluid") > 1.4 * mean_of(head, head.t2, "cortex")
    assert mean_of(head, head.t1, "cerebrospinal fluid") < 0.7 * mean_of(head, head.t1, "cortex")


def test_a_flip_is_noticed(head):
    array = np.asarray(head.t2.dataobj)
    lowest = min(np.abs(array - np.roll(array[::-1], shift, axis=0)).mean() for shift in range(-6, 7))
    assert lowest > 0.05 * array[array > 0].mean() * (array > 0).mean()


def test_it_is_deterministic_by_seed():
    one, again, other = (infant_brain((40, 40, 40), seed=seed).t2 for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.dataobj, again.dataobj)
    assert np.abs(np.asarray(one.dataobj) - np.asarray(other.dataobj)).max() > 300


@settings(max_examples=5, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    flip=st.sampled_from([1, -1]),
    order=st.permutations([0, 1, 2]),
    spacing=st.tuples(*[st.sampled_from([0.8, 1.0, 1.3])] * 3),
)
def test_any_grid_samples_the_same_head(angles, flip, order, spacing):
    reference = infant_brain((44, 44, 44), size=0.25)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:, order] * spacing * [flip, 1, 1]
    middle = nib.affines.apply_affine(reference.t2.affine, [21.5] * 3)
    affine = nib.affines.from_matvec(turn, middle - turn @ np.full(3, 23.5))
    sampled = infant_brain((48, 48, 48), affine, size=0.25)
    index = nib.affines.apply_affine(
        np.linalg.inv(affine), nib.affines.apply_affine(reference.t2.affine, voxels((44,) * 3))
    )
    moved = map_coordinates(np.asarray(sampled.t2.dataobj), index.T, order=1).reshape(44, 44, 44)
    truth = np.asarray(reference.t2.dataobj)
    assert np.corrcoef(moved.ravel(), truth.ravel())[0, 1] > 0.97


def voxels(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize("factor", [(1, 1, 4), (2, 1, 1), (1, 3, 1)])
def test_a_thick_voxel_holds_the_mean_over_itself(factor):
    fine = infant_brain((48, 48, 48))
    step = np.diag([*factor, 1.0])
    step[:3, 3] = (np.array(factor) - 1) / 2
    shape = tuple(48 // np.array(factor))
    thick = np.asarray(infant_brain(shape, fine.t2.affine @ step, size=fine.size).t2.dataobj)
    blocks = np.asarray(fine.t2.dataobj).reshape(shape[0], factor[0], shape[1], factor[1], shape[2], factor[2])
    assert np.abs(thick - blocks.mean((1, 3, 5))).max() < 1


def test_edges_are_partial_volumes_not_steps():
    """Half a voxel's shift moves the mean of a sharp edge's voxels, as an average over each voxel must."""
    coarse = infant_brain((48, 48, 48))
    fine = infant_brain((144, 144, 144), coarse.t2.affine @ refined(3), size=coarse.size)
    means = np.asarray(fine.t2.dataobj).reshape(48, 3, 48, 3, 48, 3).mean((1, 3, 5))
    error = np.abs(np.asarray(coarse.t2.dataobj) - means)
    assert error.mean() < 0.01 * means.max()
    assert np.quantile(error, 0.999) < 0.15 * means.max()


def refined(times):
    affine = np.diag([1 / times] * 3 + [1])
    affine[:3, 3] = -(times - 1) / (2 * times)
    return affine


def test_a_small_grid_holds_a_whole_small_head():
    phantom = infant_brain((40, 48, 44), seed=3)
    brain = np.asarray(phantom.t2.dataobj) > 0
    assert brain.mean() > 0.2
    assert not (brain[[0, -1]].any() or brain[:, [0, -1]].any() or brain[:, :, [0, -1]].any())
    np.testing.assert_array_equal(phantom.t1.affine[:3, :3], np.eye(3))


def test_skull_scalp_and_eyes_can_be_switched_on():
    bare = infant_brain((64, 72, 64), size=0.28)
    whole = infant_brain((64, 72, 64), bare.t2.affine, skull=True, size=0.28)
    found = set(np.unique(np.asarray(whole.labels.dataobj)))
    assert {LABELS[name] for name in ("skull", "soft tissue", "eye", "airway")} <= found
    assert np.unique(np.asarray(bare.labels.dataobj)).max() < LABELS["skull"]
    inside = np.isin(np.asarray(bare.labels.dataobj), [LABELS["cortex"], LABELS["white matter"]])
    same = np.asarray(bare.labels.dataobj)[inside] == np.asarray(whole.labels.dataobj)[inside]
    assert same.mean() > 0.999


@pytest.mark.parametrize("age", [-1, 25, float("nan")])
def test_impossible_ages_are_refused(age):
    with pytest.raises(BabyAIError, match="months"):
        infant_brain((8, 8, 8), age_months=age)


def test_a_singular_affine_is_refused():
    with pytest.raises(BabyAIError, match="singular"):
        infant_brain((8, 8, 8), np.diag([1.0, 1, 0, 1]))


def test_a_grid_beside_the_head_is_empty():
    far = nib.affines.from_matvec(np.eye(3), [900, 0, 0])
    assert not np.asarray(infant_brain((8, 8, 8), far).t1.dataobj).any()
