"""What moves in a notebook: the slider's pictures and links, and the call to NiiVue."""

import base64
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from func.reports.figures import three_planes
from func.reports.viewer import STEPS, Slider, fading_viewer
from func.scans.nifti import image_of, save_volume


def test_the_slider_goes_from_one_volume_to_the_other_without_a_kernel(small_head):
    dark = image_of(0.2 * np.asarray(small_head.t2.dataobj), small_head.t2.affine)
    slider = Slider(("dark", dark), ("bright", small_head.t2), lambda images: three_planes(images, window=(0, 1600)))
    brightness = [imread(io.BytesIO(picture), "jpeg").mean() for picture in slider.pictures]
    assert len(brightness) == STEPS and (np.diff(brightness) > 0).all()
    names, stack = slider.widget.children
    assert stack.selected_index == STEPS - 1 and len(stack.children) == STEPS
    assert [child.value for child in names.children] == ["dark", STEPS - 1, "bright"]
    bundle = slider._repr_mimebundle_()
    assert base64.b64decode(bundle["image/jpeg"]) == slider.pictures[-1]
    assert "application/vnd.jupyter.widget-view+json" in bundle


class FakeNiiVue:
    def __init__(self, height):
        self.height = height

    def load_volumes(self, volumes):
        self.volumes = [SimpleNamespace(**volume) for volume in volumes]


def test_niivue_fades_the_result_over_its_input(monkeypatch):
    """The call that ipyniivue 2.4 takes, whether it is installed here or not."""
    links = []
    widgets = SimpleNamespace(
        FloatSlider=lambda value, **options: SimpleNamespace(value=value, **options),
        VBox=list,
        jslink=lambda one, other: links.append((one, other)),
    )
    monkeypatch.setitem(sys.modules, "ipyniivue", SimpleNamespace(NiiVue=FakeNiiVue))
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    viewer, slider = fading_viewer(Path("t2.nii.gz"), Path("result.nii.gz"), (0, np.float32(900)))
    assert [volume.path for volume in viewer.volumes] == ["t2.nii.gz", "result.nii.gz"]
    assert {(volume.cal_min, volume.cal_max) for volume in viewer.volumes} == {(0.0, 900.0)}
    assert links == [((slider, "value"), (viewer.volumes[1], "opacity"))]


def test_ipyniivue_takes_that_call(tmp_path, small_head):
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed (pip install ipyniivue)")
    paths = [tmp_path / name for name in ("below.nii.gz", "above.nii.gz")]
    for path in paths:
        save_volume(path, np.asarray(small_head.t2.dataobj), small_head.t2.affine)
    viewer, slider = fading_viewer(*paths, (0, 900)).children
    assert [volume.name for volume in viewer.volumes] == ["below.nii.gz", "above.nii.gz"]
    assert [volume.cal_max for volume in viewer.volumes] == [900, 900] and slider.value == viewer.volumes[1].opacity
