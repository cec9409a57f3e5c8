"""What moves in a notebook: a slider between two pictures, and NiiVue."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from func.scans.nifti import array_of, image_of

STEPS = 11  # of the slider, its two ends included


class Slider:
    """A slider that fades one volume into another, drawn before: it needs no kernel, and saved notebooks keep it.

    Where widgets don't run (GitHub, a text editor) the last picture stands in its place, the second volume alone.

    Args:
        first, second: title and volume, on one grid.
        draw: makes a figure of title to volume, as :func:`func.reports.figures.three_planes`.
    """

    def __init__(
        self,
        first: tuple[str, nib.Nifti1Image],
        second: tuple[str, nib.Nifti1Image],
        draw: Callable[[dict[str, nib.Nifti1Image]], Figure],
    ):
        from ipywidgets import HTML, HBox, Image, IntSlider, Stack, VBox, jslink

        (one, below), (other, above) = first, second
        arrays = array_of(below), array_of(above)
        self.pictures = []
        for share in np.linspace(0, 1, STEPS, dtype=np.float32):
            title = one if share == 0 else other if share == 1 else f"{one} + {other}"
            mixed = image_of((1 - share) * arrays[0] + share * arrays[1], above.affine, above)
            self.pictures.append(_jpeg(draw({title: mixed})))
        shown = Stack([Image(value=picture, format="jpeg") for picture in self.pictures], selected_index=STEPS - 1)
        slider = IntSlider(STEPS - 1, min=0, max=STEPS - 1, readout=False)
        jslink((slider, "value"), (shown, "selected_index"))
        self.widget = VBox([HBox([HTML(one), slider, HTML(other)]), shown])

    def _repr_mimebundle_(self, **_) -> dict:
        """The widget, and a picture for whoever cannot show it: Jupyter takes the best that it knows."""
        return self.widget._repr_mimebundle_() | {"image/jpeg": base64.b64encode(self.pictures[-1]).decode()}


def fading_viewer(below: Path, above: Path, window: tuple[float, float]):
    """NiiVue with one scan file over another in the same greys, and a slider that fades the upper one in and out.

    Raises:
        ImportError: ipyniivue is not installed.
    """
    from ipyniivue import NiiVue
    from ipywidgets import FloatSlider, VBox, jslink

    greys = {"colormap": "gray", "cal_min": float(window[0]), "cal_max": float(window[1])}
    viewer = NiiVue(height=480)
    viewer.load_volumes([{"path": str(path), **greys} for path in (below, above)])
    slider = FloatSlider(1.0, min=0.0, max=1.0, step=0.05, description="upper scan")
    jslink((slider, "value"), (viewer.volumes[1], "opacity"))
    return VBox([viewer, slider])


def _jpeg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    return buffer.getvalue()
