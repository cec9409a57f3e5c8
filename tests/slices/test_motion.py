"""Motion is found from the slices, and none where there is none."""

import numpy as np
import pytest
from nibabel.affines import apply_affine

from func.slices.filters import smooth
from func.slices.geometry import SliceGeometry
from func.slices.motion import Contrast, find_motion, order_of_acquisition, t1_features, t1_terms
from stacks_for_tests import AFFINE, SHAPE, rigid, scanned, small_head

COUNT, THICKNESS = 20, 3.5
ORDER = np.argsort(np.concatenate([np.arange(0, COUNT, 2), np.arange(1, COUNT, 2)]))  # odd slices after even ones
GEOMETRY = SliceGeometry(2, THICKNESS, THICKNESS, (SHAPE[2] - 1) / 2 - (COUNT - 1) / 2 * THICKNESS, COUNT)


@pytest.fixture(scope="module")
def head():
    return small_head()


def measured(t2, poses=None):
    return np.asarray(scanned(t2, 2, THICKNESS, COUNT, poses=poses).dataobj)


def jumping() -> np.ndarray:
    """A head that jumps while the fifth of the odd slices is acquired, after all of the even ones."""
    jump = rigid((2, -3, 2.5), (1.5, -1.0, 2.0))
    return np.array([jump if time >= 14 else np.eye(4) for time in ORDER])


def errors(motion, poses, t1) -> np.ndarray:
    """How far off the places are that were found, mm: the mean over the head, for each slice that shows enough."""
    points = apply_affine(AFFINE, np.argwhere(np.asarray(t1.dataobj) > 0)[::97])
    found = AFFINE @ motion.matrices @ np.linalg.inv(AFFINE)
    away = [apply_affine(np.linalg.inv(true) @ one, points) - points for true, one in zip(poses, found, strict=True)]
    return np.linalg.norm(away, axis=2).mean(axis=1)[motion.full]


def test_a_jump_in_mid_stack_is_found_with_the_t1(head):
    """And so is the order of acquisition, and with it the place of slices that show little."""
    t1, t2 = head
    poses = jumping()
    motion = find_motion(np.asarray(t1.dataobj), measured(t2, poses), GEOMETRY)
    assert motion.moved
    np.testing.assert_array_equal(motion.groups, ORDER)
    before = errors(find_motion(np.asarray(t1.dataobj), measured(t2), GEOMETRY), poses, t1)
    assert before.max() > 3
    assert np.quantile(errors(motion, poses, t1), 0.9) < 0.6
    jumped = np.linalg.norm(motion.path[-1, :3] - motion.path[0, :3])
    assert jumped == pytest.approx(np.linalg.norm([1.5, -1, 2]), abs=0.6)


def test_a_jump_is_found_with_a_t1_that_does_not_tell_fluid_from_white_matter(head):
    """As a newborn's: only what lies around a place tells which it is."""
    t1, t2 = (np.asarray(image.dataobj) for image in head)
    fluid = t2 > np.quantile(t2[t2 > 0], 0.85)
    alike = np.where(fluid, np.quantile(t1[t1 > 0], 0.7), t1).astype(np.float32)
    poses = jumping()
    motion = find_motion(alike, measured(head[1], poses), GEOMETRY)
    assert motion.moved
    assert np.quantile(errors(motion, poses, head[0]), 0.9) < 1


def test_a_t1_takes_on_the_intensities_that_its_surroundings_tell(head):
    """Though slices see them blurred, so that no place shows what thin fluid is like."""
    features = t1_features(np.asarray(head[0].dataobj))
    t2 = np.where(features[0] > 0, 0.3 + features[1] ** 2 - 0.4 * features[0] * features[2], 0)
    places = np.random.default_rng(0).integers(0, SHAPE, (20_000, 3)).T
    seen = [smooth(term, (2, 2, 2))[*places] for term in t1_terms(features)]
    shown = smooth(t2, (2, 2, 2))[*places]
    like_t2 = Contrast.of(np.array(seen), shown).volume(t1_terms(features))
    inside = features[2] > 0.9
    assert np.abs(like_t2 - t2)[inside].mean() < 0.03 * t2[inside].std()
    assert not like_t2[features[0] == 0].any()


def test_the_same_contrast_refines(head):
    t1, t2 = head
    poses = jumping()
    slices = measured(t2, poses)
    rough = find_motion(np.asarray(t1.dataobj), slices, GEOMETRY)
    fine = find_motion(np.asarray(t2.dataobj), slices, GEOMETRY, same_contrast=True, start=rough)
    assert errors(fine, poses, t1).mean() < errors(rough, poses, t1).mean()
    assert errors(fine, poses, t1).max() < 0.3


def test_a_head_that_lay_still_has_not_moved(head):
    t1, t2 = head
    motion = find_motion(np.asarray(t1.dataobj), measured(t2), GEOMETRY)
    assert not motion.moved and motion.spread < 0.3


def test_places_where_the_slices_fit_no_better_are_no_motion(head):
    """A T1w that explains little of the T2w leads astray; then the head is taken to have lain still."""
    t2 = head[1]
    noise = np.random.default_rng(0).uniform(0.5, 1, SHAPE).astype(np.float32) * (np.asarray(t2.dataobj) > 0)
    assert not find_motion(noise, measured(t2), GEOMETRY).moved


def test_a_stack_can_be_moved_as_a_whole(head):
    t1, t2 = head
    pose = rigid((0, 2, -1), (0.5, 1.0, -1.0))
    slices = measured(t2, np.repeat(pose[None], COUNT, axis=0))
    motion = find_motion(np.asarray(t2.dataobj), slices, GEOMETRY, np.zeros(COUNT, int), same_contrast=True)
    assert len(motion.parameters) == 1
    assert errors(motion, np.repeat(pose[None], COUNT, axis=0), t1).max() < 0.15


def test_the_order_of_acquisition_is_read_from_the_sidecar():
    timing = {"SliceTiming": [0.0, 1.5, 0.5, 2.0, 1.0, 2.5]}
    np.testing.assert_array_equal(order_of_acquisition(timing, 6), [0, 3, 1, 4, 2, 5])
    backwards = timing | {"SliceEncodingDirection": "k-"}
    np.testing.assert_array_equal(order_of_acquisition(backwards, 6), [5, 2, 4, 1, 3, 0])
    together = {"SliceTiming": [0, 1, 2, 0, 1, 2]}
    np.testing.assert_array_equal(order_of_acquisition(together, 6), [0, 1, 2, 0, 1, 2])
    for bad in ({}, {"SliceTiming": [0, 1]}, {"SliceTiming": "none"}, {"SliceTiming": [0, None, 1, 2, 3, 4]}):
        assert order_of_acquisition(bad, 6) is None


def test_larger_voxels_tell_how_much_of_them_is_head(head):
    """A first look in voxels of 2 mm knows the outline as finely as one in voxels of 1 mm."""
    t1 = np.asarray(head[0].dataobj)
    pairs = [side for n in t1.shape for side in (n // 2, 2)]
    means = [feature.reshape(pairs).mean(axis=(1, 3, 5)) for feature in t1_features(t1)]
    assert np.abs(t1_features(t1, halved=True) - means).max() < 0.05
