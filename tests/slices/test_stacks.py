"""What stacks see of a common volume, and the volume that agrees with them."""

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial.transform import Rotation

from func.slices.stacks import Stack, StackView, agree_with_stacks, outlying_slices
from stacks_for_tests import rigid, stack_affine

GRID = (24, 30, 27)
GRID_AFFINE = from_matvec(Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix() @ np.diag([-1.1, 0.9, 1.3]), [8, -16, -15])


def moving(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.array([rigid(random.normal(0, 4, 3), random.normal(0, 2, 3)) for _ in range(count)])


def some_stack(profile="box", poses=None, left_handed=True, count=5) -> Stack:
    """An oblique stack of 12 x 14 pixels, 3 mm thick and 3.6 mm apart, around the origin."""
    shape, affine = stack_affine(2, 3.6, count, (10, -20, 5), left_handed, shape=(12, 14))
    slices = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    poses = np.repeat(np.eye(4)[None], count, axis=0) if poses is None else poses
    return Stack(slices, affine, 3.0, profile, poses, np.ones(count, bool))


@pytest.mark.parametrize("profile", ["box", "gaussian", "point"])
@pytest.mark.parametrize("poses", [None, moving(5)], ids=["still", "moving"])
def test_the_adjoint_is_exact(profile, poses):
    """<Ax, y> = <x, A'y> on an oblique, left-handed, anisotropic grid."""
    view = StackView(some_stack(profile, poses), GRID, GRID_AFFINE)
    random = np.random.default_rng(2)
    x, y = random.normal(size=GRID), random.normal(size=len(view.values))
    assert len(y) > 400
    assert np.vdot(view.see(x), y) == pytest.approx(np.vdot(x, view.adjoint(y)), rel=1e-4)


@pytest.mark.parametrize("profile", ["box", "gaussian", "point"])
def test_a_pixel_shows_what_lay_there(profile):
    """Of a volume that is linear in world mm a pixel shows the value at its centre, where the head then lay."""
    poses = moving(5)
    stack = some_stack(profile, poses)
    view = StackView(stack, GRID, GRID_AFFINE)
    slope = np.array([0.3, -0.7, 0.5])
    volume = apply_affine(GRID_AFFINE, np.stack(np.indices(GRID), axis=-1)) @ slope
    pixels = np.stack(np.unravel_index(view.pixels, stack.slices.shape), axis=-1)
    lay = [
        apply_affine(np.linalg.inv(poses[k]) @ stack.affine, pixel)
        for k, pixel in zip(view.slice_of, pixels, strict=True)
    ]
    np.testing.assert_allclose(view.see(volume), np.array(lay) @ slope, atol=2e-4)
    np.testing.assert_array_equal(view.values, stack.slices.ravel()[view.pixels])


@pytest.mark.parametrize("voxel", [1.0, 0.5])
def test_what_slices_show_beside_a_volume_of_such_voxels_is_known_beforehand(voxel):
    """It is what a volume misses that is right at its voxels and linear between them, and noise."""
    random = np.random.default_rng(5)
    anatomy = ndimage.gaussian_filter(random.normal(size=(90, 90)), 0.8)

    def at(x, y):
        return 1 + ndimage.map_coordinates(anatomy, np.meshgrid(x, y, indexing="ij"))

    nodes = np.arange(15, 75, voxel)
    linear = RegularGridInterpolator((nodes, nodes), at(nodes, nodes))
    pixels = [np.arange(20, 60) + random.uniform(0, 1, (2, 1)) for _ in range(12)]
    slices = np.stack([at(*places) for places in pixels], axis=-1)
    missed = slices - np.stack([linear(tuple(np.meshgrid(*places, indexing="ij"))) for places in pixels], axis=-1)
    stack = Stack(slices, np.diag([1.0, 1, 3, 1]), 3.0, "box", np.repeat(np.eye(4)[None], 12, 0), np.ones(12, bool))
    told = stack.noise_beside_volume(0.0, voxel, 0.02)
    assert told == pytest.approx(np.std(missed), rel=0.4)
    assert stack.noise_beside_volume(0.05, voxel, 0.02) == pytest.approx(np.hypot(told, 0.05))


def test_slices_left_out_are_not_seen():
    stack = some_stack()
    stack.kept[2] = False
    assert set(StackView(stack, GRID, GRID_AFFINE).slice_of) == {0, 1, 3, 4}


def test_a_volume_is_made_to_agree_as_far_as_damping_lets_it():
    """Against the same problem solved with dense matrices."""
    views = [
        StackView(some_stack(profile, poses, count=3), GRID, GRID_AFFINE)
        for profile, poses in (("box", None), ("point", moving(3)))
    ]
    start = np.random.default_rng(3).uniform(0, 1, GRID).astype(np.float32)
    dampings = (0.5, 2.0)
    found = agree_with_stacks(start, views, dampings, steps=200)
    rows = np.concatenate([view._matrix.toarray() / np.sqrt(d) for view, d in zip(views, dampings, strict=True)])
    # S is symmetric, so that it turns each row of A into one of A S.
    spread = views[0].spread
    rows = np.stack([spread(row.reshape(GRID)).ravel() for row in rows.astype(np.float32)])
    rest = np.concatenate([view.residual(start) / np.sqrt(d) for view, d in zip(views, dampings, strict=True)])
    errors = rows.T @ np.linalg.solve(rows @ rows.T + np.eye(len(rows)), rest)
    change = spread(errors.reshape(GRID).astype(np.float32))
    np.testing.assert_allclose(found - start, change, atol=0.01 * np.abs(change).max())


def test_a_slice_that_fits_nowhere_is_told():
    stack = some_stack(count=9)
    view = StackView(stack, (24, 30, 60), GRID_AFFINE @ from_matvec(np.eye(3), [0, 0, -16]))
    residual = np.random.default_rng(4).normal(0, 0.05, len(view.values))
    residual[view.slice_of == 6] *= 6
    assert np.flatnonzero(outlying_slices(residual, view, 9, 0.02)).tolist() == [6]
    residual[view.slice_of == 6] /= 6
    assert not outlying_slices(residual, view, 9, 0.02).any()
