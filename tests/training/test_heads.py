"""Brains set into heads: the brain stays what it was, fluid and a closed skull lie around it, and air around that."""

import numpy as np
import pytest

from func.errors import BabyAIError
from func.training.heads import REACH, brain_in, head_of, heads_around, reach_at, set_into, surface
from func.training.subjects import Subject

BRAIN_RADII = np.array([18, 22, 16])
SHAPE = (44, 52, 40)


def distances(shape, radii=(1, 1, 1)):
    """Of every voxel from the middle, in units of the radii."""
    grid = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return np.sqrt(sum(np.square(part / radius) for part, radius in zip(grid, radii, strict=True)))


@pytest.fixture(scope="module")
def whole_head():
    """Shells on 90 x 90 x 90 voxels: a brain of radius 26, fluid to 28, bone to 32, scalp to 37 voxels."""
    distance = distances((90, 90, 90))
    t1 = np.select([distance <= 26, distance <= 28, distance <= 32, distance <= 37], [0.6, 0.15, 0.04, 1.0], 0)
    return Subject("head", t1.astype(np.float32), t1.astype(np.float32), invented=True)


@pytest.fixture(scope="module")
def head(whole_head):
    return head_of(whole_head)


@pytest.fixture(scope="module")
def brain():
    rng = np.random.default_rng(0)
    inside = distances(SHAPE, BRAIN_RADII) <= 1
    t1, t2 = ((inside * rng.uniform(0.3, 1, SHAPE)).astype(np.float32) for _ in range(2))
    return Subject("01", t1, t2, shape=SHAPE)


def test_the_brain_in_a_head_is_found(whole_head):
    found, truth = brain_in(whole_head.t1), distances((90, 90, 90)) <= 26
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95


@pytest.mark.parametrize("size", [26, 4], ids=["brain-extracted", "no brain"])
def test_what_is_no_whole_head_is_refused(size):
    ball = (distances((64, 64, 64)) <= size).astype(np.float32)
    with pytest.raises(BabyAIError, match=r"sub-x_T1w\.nii\.gz .*whole heads"):
        head_of(Subject("sub-x_T1w.nii.gz", ball, ball))


def test_a_surface_is_as_far_as_the_mask_reaches():
    mask = distances((61, 61, 61), (25, 20, 15)) <= 1
    reach = surface(mask, np.array([30, 30, 30]))
    directions = {"x": (np.pi / 2, 0.0), "y": (np.pi / 2, np.pi / 2), "z": (0.0, 0.3), "-x": (np.pi / 2, np.pi)}
    for name, expected in (("x", 25), ("y", 20), ("z", 15), ("-x", 25)):
        polar, azimuth = (np.array([angle]) for angle in directions[name])
        assert reach_at(reach, polar, azimuth)[0] == pytest.approx(expected, abs=1), name


@pytest.mark.parametrize("seed", range(2))
def test_the_skull_closes_around_the_brain(brain, head, seed):
    set_in = set_into(brain, head, np.random.default_rng(seed))
    t1, t2 = (scan.astype(np.float32) for scan in (set_in.t1, set_in.t2))
    deep = np.pad(distances(SHAPE, BRAIN_RADII) <= 0.7, REACH)
    for own, scan in ((brain.t1, t1), (brain.t2, t2)):
        assert scan.shape == tuple(n + 2 * REACH for n in SHAPE)
        ratio = scan[deep] / np.pad(own, REACH)[deep]
        assert ratio.std() < 0.01 * ratio.mean()
    middle = [n // 2 + REACH for n in SHAPE]
    for axis in range(3):
        line = [*middle]
        line[axis] = slice(middle[axis] + BRAIN_RADII[axis] + 1, None)
        t1_line, t2_line = t1[tuple(line)], t2[tuple(line)]
        assert t2_line[0] > 2 * t1_line[0]  # fluid
        bone = np.argmin(t2_line[:5])
        assert bone > 0 and t2_line[bone] < 0.2 * t2_line[0]
        assert t1_line[bone:].max() > 0.4  # scalp
        assert t2_line[-1] == t1_line[-1] == 0


def test_errors_do_not_count_where_the_brain_was_cut_out(brain, head):
    set_in = set_into(brain, head, np.random.default_rng(0))
    relative = np.pad(distances(SHAPE, BRAIN_RADII), REACH, constant_values=9)
    assert set_in.inner[relative < 0.8].all()
    edge = (relative <= 1) & (relative > 0.97)
    assert not set_in.inner[edge].any()
    assert set_in.inner[(relative > 1.1) & (set_in.t2 > 0.1)].all()


def test_brains_and_heads_go_together_in_turn(brain, whole_head):
    drawn = heads_around([brain, brain], [whole_head], seed=3)
    again = heads_around([brain, brain], [whole_head], seed=3)
    assert [subject.label for subject in drawn] == ["01 in a head"] * 2
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(one.t2, other.t2)
    assert not np.array_equal(drawn[0].t2, drawn[1].t2)
    assert heads_around([brain], [], seed=3) == []
