"""The demonstration notebook: clean in git, and it runs from top to bottom, on its own pair and on the user's."""

import base64
import importlib.util

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from conftest import REPO_ROOT
from func.scans.nifti import image_of, read_volume, save_result, save_volume
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, acquire, upsample
from func.version import own_version

SMALL_PHANTOM = """
import func.demo
from functools import partial
func.demo.infant_brain = partial(func.demo.infant_brain, (48, 48, 48))
"""


@pytest.fixture
def notebook():
    return nbformat.read(REPO_ROOT / "demo.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def set_constants(notebook, **constants):
    """Edit the first code cell as a user would."""
    cell = code_cells(notebook)[0]
    lines = []
    for line in cell.source.splitlines():
        name = line.split(" = ")[0]
        lines.append(f"{name} = {str(constants.pop(name))!r}" if name in constants else line)
    assert not constants, f"the first cell has no {constants}"
    cell.source = "\n".join(lines)


def run(notebook, monkeypatch) -> str:
    """Execute a notebook offline from the repository's root; everything that it printed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(REPO_ROOT)}}).execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_it_is_committed_without_outputs(notebook):
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(notebook))


def test_it_begins_with_the_part_to_edit(notebook):
    assert code_cells(notebook)[0].source.startswith("# ---EDIT THIS PART---\n")


def test_it_falls_back_on_a_digital_infant_where_the_hub_cannot_be_reached(notebook, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty-cache"))
    set_constants(notebook, OUTPUT_DIR=tmp_path)
    imports = next(index for index, cell in enumerate(notebook.cells) if "functions as baby" in cell.source)
    notebook.cells.insert(imports + 1, nbformat.v4.new_code_cell(SMALL_PHANTOM))
    printed = run(notebook, monkeypatch)
    assert "digital infant takes the demo pair's place" in printed
    assert printed.index("digital infant of 3 months") < printed.index("dB")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"demo_inputs.png", "demo_result.png", "demo_zoom.png", "demo_differences.png", "demo.txt"} <= names
    t2 = read_volume(tmp_path / "sub-digital_acq-axial4mm_T2w.nii.gz")
    result = read_volume(tmp_path / "sub-digital_acq-axial4mm_desc-isotropic_T2w.nii.gz")
    assert result.shape == t2.shape
    np.testing.assert_allclose(result.affine, t2.affine, atol=1e-6)
    sidecar = read_sidecar(tmp_path / "sub-digital_acq-axial4mm_desc-isotropic_T2w.nii.gz")
    assert sidecar["Weights"]["Name"] == "bundled" and sidecar["Versions"]["BABY-AI"] == own_version()
    rows = [line.split() for line in (tmp_path / "demo.txt").read_text().splitlines()]
    psnr = {row[0]: float(row[1]) for row in rows if row and row[0] in ("cubic", "BABY-AI")}
    assert psnr["BABY-AI"] > psnr["cubic"]


def test_it_reconstructs_the_users_own_pair(notebook, monkeypatch, tmp_path, small_head):
    slices = SliceGeometry.fitting(axis=2, length=48, thickness=3.0)
    thick = upsample(acquire(np.asarray(small_head.t2.dataobj), slices), slices, 48)
    save_volume(tmp_path / "sub-7_T1w.nii.gz", np.asarray(small_head.t1.dataobj), small_head.t1.affine)
    save_result(tmp_path / "sub-7_T2w.nii.gz", image_of(thick, small_head.t2.affine), slices.to_sidecar(1.0))
    results = tmp_path / "mine"
    set_constants(notebook, T1W=tmp_path / "sub-7_T1w.nii.gz", T2W=tmp_path / "sub-7_T2w.nii.gz", OUTPUT_DIR=results)
    printed = run(notebook, monkeypatch)
    assert "your infant" in printed and "No truth to compare with" in printed and "dB" not in printed
    assert (results / "sub-7_desc-isotropic_T2w.nii.gz").exists()
    assert not (results / "demo_differences.png").exists()
    assert ("ipyniivue is not installed" in printed) == (importlib.util.find_spec("ipyniivue") is None)
    (slider,) = (cell for cell in code_cells(notebook) if "baby.Slider" in cell.source)
    (shown,) = (output.data for output in slider.outputs if "data" in output)
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert base64.b64decode(shown["image/jpeg"]).startswith(b"\xff\xd8")
