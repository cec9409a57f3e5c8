"""The slices behind an up-sampled volume: what it shows decides, whatever its sidecar states."""

from dataclasses import replace

import numpy as np
import pytest

from func.slices.geometry import SliceGeometry, acquire, upsample
from func.slices.recovery import RECOVERED, STATED, explaining_geometry


def volume_of(truth, geometry):
    """The up-sampled volume as a file holds it: no negative values, whole numbers."""
    return np.round(np.maximum(upsample(acquire(truth, geometry), geometry, truth.shape[geometry.axis]), 0))


@pytest.fixture(scope="module")
def truth(small_head):
    return np.asarray(small_head.t2.dataobj, np.float32)


@pytest.mark.parametrize("thickness", [2, 3, 4])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_right_sidecar_is_believed(truth, thickness, axis, capsys):
    geometry = SliceGeometry.fitting(axis, truth.shape[axis], thickness)
    assert explaining_geometry(volume_of(truth, geometry), geometry) == (geometry, STATED)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("shift", [-1.0, -0.5, 0.5, 1.0])
def test_slices_stated_a_voxel_off_are_found_where_they_are(truth, shift, capsys):
    geometry = SliceGeometry.fitting(2, truth.shape[2], 2, first_center=1.5)
    wrong = replace(geometry, first_center=geometry.first_center + shift, count=geometry.count - 1)
    found, source = explaining_geometry(volume_of(truth, geometry), wrong)
    assert source == RECOVERED and "what it shows is used" in capsys.readouterr().err
    offset = (found.first_center - geometry.first_center) / geometry.spacing
    assert found.spacing == pytest.approx(2, abs=0.01) and offset == pytest.approx(round(offset), abs=0.05)


@pytest.mark.parametrize("factor", [2, 3])
def test_slices_stated_thinner_than_they_are_are_found_as_they_are(truth, factor):
    """Splines on every second or third knot are splines on all of them as well."""
    geometry = SliceGeometry.fitting(2, truth.shape[2], 2 * factor, first_center=2.0)
    stated = SliceGeometry.fitting(2, truth.shape[2], 2, first_center=2.0)
    found, source = explaining_geometry(volume_of(truth, geometry), stated)
    assert source == RECOVERED and found.spacing == pytest.approx(2 * factor, abs=0.01)
