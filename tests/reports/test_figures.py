"""Figures: the right aspect, the right side, the right place."""

import nibabel as nib
import numpy as np
import pytest

from func.errors import BabyAIError
from func.reports.figures import differences, edges, three_planes, zoom


def block(shape=(20, 24, 28), affine=None, corner=(4, 4, 4)):
    """A dim box with one bright block at the low end of each axis."""
    array = np.zeros(shape, np.float32)
    array[2:-2, 2:-2, 2:-2] = 1
    array[tuple(slice(c, c + 4) for c in corner)] = 3
    return nib.Nifti1Image(array, np.eye(4) if affine is None else affine)


def panels(figure):
    return [axes for axes in figure.axes if axes.images]


def pixels(panel):
    return np.asarray(panel.images[0].get_array())


def letters(panel):
    """The directions at a panel's left and right edge."""
    marks = sorted((text.get_position()[0], text.get_text()) for text in panel.texts)
    return tuple(text for _, text in marks)


def test_each_image_gets_a_row_of_three_planes():
    figure = three_planes({"one": block(), "two": block()})
    assert len(panels(figure)) == 6
    assert [panel.get_title() for panel in panels(figure)[:3]] == ["sagittal", "coronal", "axial"]
    assert [panel.get_ylabel() for panel in panels(figure)[::3]] == ["one", "two"]


def test_a_figure_can_be_saved(tmp_path):
    zoom({"one": block()}, width=12).savefig(tmp_path / "zoom.png")
    assert (tmp_path / "zoom.png").stat().st_size > 1000


def test_planes_are_drawn_in_millimetres_whatever_the_voxels():
    stretched = block((20, 24, 7), np.diag([1.0, 1, 4, 1]), corner=(4, 4, 2))
    for panel in panels(three_planes({"thick": stretched})):
        left, right, bottom, top = panel.images[0].get_extent()
        height, width = pixels(panel).shape
        assert panel.get_aspect() == 1
        assert width / (right - left) == pytest.approx(height / (top - bottom), rel=0.05)
    coronal = panels(three_planes({"thick": stretched}))[1]
    inside = np.ptp(np.flatnonzero((pixels(coronal) > 0).any(axis=1)) + 1) * 0.5
    assert inside == pytest.approx((7 - 4) * 4, abs=1)


@pytest.mark.parametrize(("convention", "sides"), [("neurological", ("L", "R")), ("radiological", ("R", "L"))])
def test_sides_are_named_and_drawn_as_named(convention, sides):
    for panel in panels(three_planes({"scan": block()}, centre=(5.5, 5.5, 5.5), convention=convention))[1:]:
        assert letters(panel) == sides
        bright = np.argwhere(pixels(panel) > 2)[:, 1].mean() / pixels(panel).shape[1]
        assert bright < 0.5  # in the array, the patient's left comes first
        assert panel.xaxis_inverted() == (convention == "radiological")


def test_the_sagittal_plane_has_no_sides():
    panel = panels(three_planes({"scan": block()}, convention="radiological"))[0]
    assert letters(panel) == ("P", "A")
    assert not panel.xaxis_inverted()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_the_same_head_looks_the_same_in_any_axis_order(order, flips):
    image = block()
    orientation = np.array([order, flips]).T
    other = image.as_reoriented(orientation)
    for one, two in zip(panels(three_planes({"a": image})), panels(three_planes({"a": other})), strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(two))


def test_images_on_different_grids_show_the_same_place():
    fine = block()
    means = np.asarray(fine.dataobj).reshape(10, 2, 12, 2, 14, 2).mean((1, 3, 5))
    coarse = nib.Nifti1Image(means, nib.affines.from_matvec(2 * np.eye(3), [0.5, 0.5, 0.5]))
    rows = zoom({"fine": fine, "coarse": coarse}, centre=(6, 6, 6), width=14)
    one, two = panels(rows)[:2]
    assert one.images[0].get_extent() == two.images[0].get_extent()
    assert np.abs((pixels(one) > 2).mean() - (pixels(two) > 2).mean()) < 0.1


def test_a_zoom_gives_every_image_the_same_window():
    bright = nib.Nifti1Image(np.asarray(block().dataobj) * 5, np.eye(4))
    limits = {panel.images[0].get_clim() for panel in panels(zoom({"dim": block(), "bright": bright}, width=10))}
    assert len(limits) == 1


def test_edges_follow_the_other_image():
    shifted = nib.Nifti1Image(np.asarray(block().dataobj), np.eye(4) + np.eye(4, k=3) * 3.0)
    axial = edges(block(), shifted, centre=(10, 12, 14)).axes[2]
    vertices = np.concatenate([path.vertices for path in axial.collections[0].get_paths()])
    assert vertices[:, 0].min() == pytest.approx(2 - 0.5 + 3, abs=1.0)


def test_differences_are_signed_and_symmetric():
    truth, dark = block(), nib.Nifti1Image(np.asarray(block().dataobj) - 0.5, np.eye(4))
    panel = panels(differences({"dark": dark}, truth))[0]
    low, high = panel.images[0].get_clim()
    assert low == -high
    assert pixels(panel).min() == pytest.approx(-0.5)


def test_differences_refuse_another_grid():
    with pytest.raises(BabyAIError, match="another grid"):
        differences({"moved": block(affine=np.diag([1.1, 1, 1, 1]))}, block())


def test_an_unknown_convention_is_refused():
    with pytest.raises(BabyAIError, match="neurological or radiological"):
        three_planes({"scan": block()}, convention="clinical")


def test_an_empty_image_can_be_drawn():
    empty = nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4))
    assert len(panels(three_planes({"empty": empty}))) == 3
