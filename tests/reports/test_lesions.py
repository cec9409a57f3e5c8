"""Planted lesions: where they should be, and how much of them is told to be left."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import evaluate
from func.errors import BabyAIError
from func.reports import lesions as module
from func.reports.lesions import KINDS, Lesion, place_lesions, plant_lesions
from func.reports.scores import brain_mask, inner_brain
from func.scans.nifti import array_of, image_of, save_volume
from func.slices.geometry import SliceGeometry

AS_THIN_AS_VOXELS = SliceGeometry.fitting(2, 48, 1.0)


@pytest.fixture(autouse=True)
def small_lesions(monkeypatch):
    """Lesions that fit into a miniature head."""
    monkeypatch.setattr(module, "DIAMETERS", (3.0, 5.0))
    monkeypatch.setattr(evaluate, "DIAMETERS", (3.0, 5.0))
    monkeypatch.setattr(module, "APART", 9.0)
    monkeypatch.setattr(module, "_AROUND", 2.0)


def left(planted, method):
    """Contrast and size left of each kind, in percent, mean over the diameters."""
    frame = pd.DataFrame(planted.scores())
    return frame[frame.method == method].groupby("lesion")[["contrast", "size"]].mean()


def test_lesions_lie_apart_in_the_inner_brain(small_head):
    found = place_lesions(small_head.t2, seed=3)
    assert [(lesion.kind, lesion.diameter) for lesion in found] == [(kind, mm) for mm in (5.0, 3.0) for kind in KINDS]
    inner = inner_brain(brain_mask(array_of(small_head.t2)))
    for number, lesion in enumerate(found):
        box = lesion.box(np.ones(3))
        assert inner[box][lesion.share(box, np.ones(3)) > 0.5].all()
        for other in found[:number]:
            assert np.linalg.norm(np.subtract(lesion.center, other.center)) >= 9
    assert place_lesions(small_head.t2, seed=4) != found


def test_a_lesion_is_a_ball_of_its_diameter():
    sizes = np.array([0.5, 0.5, 0.5])
    lesion = Lesion((20.0, 21.0, 22.0), 6.0, "both")
    share = lesion.share(lesion.box(sizes), sizes)
    assert share.sum() * 0.125 == pytest.approx(4 / 3 * np.pi * 27, rel=0.02)


def test_slices_as_thin_as_voxels_keep_lesions_whole_and_invent_none(small_head):
    planted = plant_lesions(small_head.t1, small_head.t2, AS_THIN_AS_VOXELS, lambda case: case.t2)
    for method in ("cubic", "BABY-AI"):
        found = left(planted, method)
        for kind in ("T2w only", "both"):
            assert found.contrast[kind] == pytest.approx(100, abs=1) and found["size"][kind] == pytest.approx(
                100, abs=8
            )
        assert abs(found.contrast["T1w only"]) < 1 and found["size"]["T1w only"] == 0


def test_thick_slices_lose_contrast(small_head):
    thick = SliceGeometry.fitting(2, 48, 4.0)
    found = left(plant_lesions(small_head.t1, small_head.t2, thick, lambda case: case.t2), "cubic")
    assert 25 < found.contrast["T2w only"] < 85 and abs(found.contrast["T1w only"]) < 1


def test_a_result_that_copies_the_t1w_is_found_out(small_head):
    """It shows what is in the T1w only, and misses what is in the T2w only."""
    scale = np.percentile(array_of(small_head.t2)[array_of(small_head.t2) > 0], 99)
    scale /= np.percentile(array_of(small_head.t1)[array_of(small_head.t1) > 0], 99)

    def copy(case):
        return image_of(scale * array_of(case.t1), case.t1.affine)

    found = left(plant_lesions(small_head.t1, small_head.t2, AS_THIN_AS_VOXELS, copy), "BABY-AI")
    assert found.contrast["T1w only"] == pytest.approx(100, abs=1) and found["size"]["T1w only"] > 90
    assert abs(found.contrast["T2w only"]) < 1


def test_a_brain_too_small_is_told(small_head, monkeypatch):
    monkeypatch.setattr(module, "APART", 40.0)
    with pytest.raises(BabyAIError, match="too small for 6 lesions"):
        place_lesions(small_head.t2, seed=0)


def test_from_the_command_line(tmp_path, small_head, monkeypatch, capsys):
    turned = small_head.t2.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    t1 = small_head.t1.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    save_volume(tmp_path / "data" / "sub-01_T1w.nii.gz", t1.get_fdata(), t1.affine)
    save_volume(tmp_path / "data" / "sub-01_T2w.nii.gz", turned.get_fdata(), turned.affine)
    seen = []

    def reconstruct(case):
        seen.append((nib.aff2axcodes(case.t2.affine), case.sidecar["SliceEncodingDirection"]))
        return SimpleNamespace(image=case.t2)

    monkeypatch.setattr(evaluate, "load_reconstructor", lambda _: SimpleNamespace(reconstruct=reconstruct))
    arguments = ["--lesions", "--data-dir", tmp_path / "data", "--output-dir", tmp_path / "out"]
    assert evaluate.main([*map(str, arguments), "--thickness", "3", "--directions", "axial", "sagittal"]) == 0
    assert seen == [(("R", "A", "S"), "k")] * 2 + [(("R", "A", "S"), "i")] * 2
    rows = pd.read_csv(tmp_path / "out" / "lesions.csv")
    assert len(rows) == 2 * 2 * 3 * 2 and set(rows.thickness_mm) == {3.0}
    assert "T2w only, 3 mm" in (tmp_path / "out" / "lesions.md").read_text()
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert "sub-01_T2w_acq-axial3mm_lesion-T1w-only.png" in pictures and len(pictures) == 6
    assert "1 evaluated, 0 failed" in capsys.readouterr().out
