"""The README's figure of stacks: scans that move as they should, and a column for each result."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from draw_stacks import FARTHEST, THICKNESS, draw, path, scanned
from func.slices.geometry import AXIS_ACROSS


@pytest.fixture
def blob():
    """A smooth image without edges that slices would miss."""
    values = np.zeros((40, 44, 40), np.float32)
    values[14:26, 16:28, 14:26] = 1
    affine = np.eye(4)
    affine[:3, 3] = -20
    return nib.Nifti1Image(ndimage.gaussian_filter(values, 3), affine)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_stack_shows_the_head_where_it_lies(blob, plane):
    still, moving = (scanned(blob, plane, moves) for moves in (False, True))
    assert np.isclose(np.linalg.norm(still.affine[:3, AXIS_ACROSS[plane]]), THICKNESS)
    centers = []
    for image in (blob, still, moving):
        values = np.asarray(image.dataobj)
        centers.append(image.affine[:3] @ [*ndimage.center_of_mass(values), 1])
    np.testing.assert_allclose(centers[1], centers[0], atol=0.1)
    assert 0.1 < np.linalg.norm(centers[2] - centers[0]) < 2 * FARTHEST
    assert np.abs(np.asarray(still.dataobj) - np.asarray(moving.dataobj)).max() > 0.05


def test_a_head_drifts_and_jumps():
    moves = path(30, np.random.default_rng(0))
    steps = np.abs(np.diff(moves, axis=0)).max(axis=1)
    assert moves.shape == (30, 6) and set(np.argsort(steps)[-2:]) == {9, 21}
    assert np.abs(moves).max() < 2 * FARTHEST


def test_each_result_has_a_column_with_its_score():
    volume = np.pad(np.ones((60, 80, 120), np.float32), ((70, 60), (60, 60), (40, 20)))
    figure = draw({"one stack": (0.5 * volume, 21.04), "truth": (volume, None)})
    assert [text.get_text() for text in figure.texts] == ["one stack   21.0 dB", "truth"]
    assert len(figure.axes) == 4
    for panel in figure.axes:
        assert panel.get_position().min.min() >= 0 and panel.get_position().max.max() <= 1
