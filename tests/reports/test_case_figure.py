"""The figure of one case: the right side, the right place, and nothing shown that was not measured."""

import base64
import io
import re

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from func.reports.case_figure import Scans, draw_figure, save_figure
from func.reports.figures import white_of
from func.scans.nifti import image_of


@pytest.fixture(scope="module")
def scans(small_head) -> Scans:
    smooth = small_head.t2.get_fdata(dtype=np.float32)
    smooth = (smooth + np.roll(smooth, 2, 2) + np.roll(smooth, -2, 2)) / 3
    return Scans(small_head.t1, image_of(smooth, small_head.t2.affine), small_head.t2, np.eye(4), np.eye(4))


def panels_of(path):
    found = re.findall(r'id="(\w+)-(\w+)"[^>]*href="data:image/jpeg;base64,([^"]+)"', path.read_text())
    return {(row, column): imread(io.BytesIO(base64.b64decode(b)), "jpeg") for row, column, b in found}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_left_is_left_and_up_is_up(tmp_path, axes):
    """In a cube that brightens towards the patient's left, front and top, however it is stored."""
    x, y, z = np.meshgrid(*[np.arange(-20.0, 20)] * 3, indexing="ij")
    array = np.where(np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 16, 100 - x + y + z, 0).astype(np.float32)
    image = nib.Nifti1Image(array, nib.affines.from_matvec(np.eye(3), [-20, -20, -20]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    save_figure(tmp_path / "x.svg", draw_figure("x", Scans(image, image, image, np.eye(4), np.eye(4))))
    panels = {column: panel[..., 0] for (row, column), panel in panels_of(tmp_path / "x.svg").items() if row == "t1w"}
    middle = {column: panel[108:148, 108:148].astype(float) for column, panel in panels.items()}
    upwards = {column: panel[:20].mean() - panel[20:].mean() for column, panel in middle.items()}
    leftwards = {column: panel[:, :20].mean() - panel[:, 20:].mean() for column, panel in middle.items()}
    assert min(upwards.values()) > 2
    assert leftwards["coronal"] > 2 and leftwards["axial"] > 2 and leftwards["sagittal"] < -2
    letters = re.findall(r">([LRPA])</text>", (tmp_path / "x.svg").read_text())
    assert letters[:8] == [*"PALRLR", *"LR"]  # sagittal, coronal, axial, and the zoom into the coronal plane


def test_the_brain_is_bright_whatever_the_scalp(small_head):
    """As in a T1w of a whole head, whose fat is several times as bright as its white matter."""
    t1 = small_head.t1.get_fdata(dtype=np.float32)
    radius = np.linalg.norm(np.indices(t1.shape) - 23.5, axis=0)
    shown = white_of(image_of(np.where((radius > 20) & (t1 == 0), 5 * t1.max(), t1), small_head.t1.affine))
    assert np.percentile(t1[t1 > 0], 98) < shown < 1.2 * t1.max()


def test_the_t2w_is_brought_into_the_frame_of_the_result(tmp_path, scans):
    shift = np.eye(4)
    shift[:3, 3] = [5, -7, 9]
    moved = image_of(np.asarray(scans.t2.dataobj), shift @ scans.t2.affine)
    save_figure(tmp_path / "a.svg", draw_figure("x", scans))
    save_figure(tmp_path / "b.svg", draw_figure("x", Scans(scans.t1, moved, scans.result, np.eye(4), shift)))
    straight, back = panels_of(tmp_path / "a.svg"), panels_of(tmp_path / "b.svg")
    for key in straight:
        assert np.abs(straight[key].astype(int) - back[key]).mean() < 1


@pytest.mark.parametrize("planes", [(8, 22), (17, 30), (30, 44)])
def test_the_zoom_lies_where_the_t2w_was_measured(tmp_path, scans, planes, monkeypatch):
    """In a slab of some of the planes, though the reconstruction shows the whole head."""
    monkeypatch.setattr("func.reports.case_figure.ZOOM", 10.0)
    slab = scans.t2.slicer[:, :, slice(*planes)]
    save_figure(tmp_path / "x.svg", draw_figure("x", Scans(scans.t1, slab, scans.result, np.eye(4), np.eye(4))))
    zoomed = panels_of(tmp_path / "x.svg")["cubic", "zoom"][..., 0]
    assert (zoomed > 20).mean() > 0.7
