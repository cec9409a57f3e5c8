"""Slices taken away from a stack and predicted: in their places, whatever the grid, and scored in the head."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import evaluate
from func.errors import BabyAIError
from func.reports.held_out import every_second, hold_out_slices
from func.reports.tables import BASELINE, RESULT
from func.scans.case import Case
from func.scans.files import save_json
from func.scans.nifti import image_of, save_volume
from func.slices.geometry import SliceGeometry, acquire

# Slices of 2.5 mm every 3 mm along the second axis of a turned, left-handed grid.
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([-1.0, 1, 1]), [20.0, -30.0, 12.0])
GEOMETRY = SliceGeometry.fitting(1, 48, 2.5, 3.0)


@pytest.fixture(scope="module")
def isotropic(small_head) -> nib.Nifti1Image:
    return image_of(small_head.t2.get_fdata(), AFFINE)


@pytest.fixture(scope="module")
def stack(isotropic) -> nib.Nifti1Image:
    return image_of(acquire(isotropic.get_fdata(dtype=np.float32), GEOMETRY), GEOMETRY.affine_in(AFFINE))


def placed(image: nib.Nifti1Image) -> SimpleNamespace:
    """What a reconstructor gives back: an isotropic T2w in the stack's world; AFFINE takes the T1w's world there."""
    return SimpleNamespace(image=image, report={"Registration": {"T1wToT2w": AFFINE.tolist()}})


@pytest.fixture
def case(small_head, stack) -> Case:
    t1 = image_of(small_head.t1.get_fdata(), np.eye(4))
    return Case(t1, stack, {"SliceThickness": 2.5})


@pytest.mark.parametrize("count", [9, 10])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_slice_stays_where_it_was(count, axis):
    shape = [5, 5, 5]
    shape[axis] = count
    volume = image_of(np.random.default_rng(0).uniform(size=shape), AFFINE @ np.diag([2.0, 1, 3, 1]))
    kept, taken = every_second(volume, axis)
    assert (kept.shape[axis], taken.shape[axis]) == (5, 4)
    for part, first in ((kept, 0), (taken, 1)):
        for place in range(part.shape[axis]):
            index, source = [1, 2, 3], [1, 2, 3]
            index[axis], source[axis] = place, first + 2 * place
            assert part.dataobj[tuple(index)] == volume.dataobj[tuple(source)]
            there = nib.affines.apply_affine(part.affine, index)
            np.testing.assert_allclose(there, nib.affines.apply_affine(volume.affine, source), atol=1e-9)


def test_a_perfect_volume_predicts_the_slices_taken_away(case, isotropic):
    """And is asked for from every second slice, as thick as they were."""
    asked = []
    held_out = hold_out_slices(case, lambda given: asked.append(given) or placed(isotropic))
    assert asked[0].sidecar == {
        "SliceThickness": 2.5, "SpacingBetweenSlices": pytest.approx(6), "SliceEncodingDirection": "j",
        "SliceProfile": "box",
    }  # fmt: skip
    assert asked[0].t2.shape[1] == (case.t2.shape[1] + 1) // 2
    scores = {row["method"]: row for row in held_out.scores()}
    assert held_out.measured.shape[2] == scores[RESULT]["slices"] == (case.t2.shape[1] - 1) // 2
    assert scores[RESULT]["psnr"] > 35 > 25 > scores[BASELINE]["psnr"]
    assert scores[RESULT]["ssim"] > 0.99 > 0.8 > scores[BASELINE]["ssim"]


def test_a_volume_half_a_millimetre_off_is_told_from_one_in_place(case, isotropic):
    shift = nib.affines.from_matvec(np.eye(3), 0.5 * AFFINE[:3, 1])
    in_place, off = (
        hold_out_slices(case, lambda _, affine=affine: placed(image_of(isotropic.get_fdata(), affine))).scores()[1][
            "psnr"
        ]
        for affine in (AFFINE, shift @ AFFINE)
    )
    assert off < in_place - 6


def test_slices_are_as_thick_as_stated(case, isotropic):
    thin = Case(case.t1, case.t2, {"SliceThickness": 1.0})
    thick, thinner = (hold_out_slices(scan, lambda _: placed(isotropic)).scores()[1]["psnr"] for scan in (case, thin))
    assert thinner < thick - 6


def test_only_what_the_t1w_covers_is_scored(case, isotropic):
    """Of a T1w that ends half-way along the slices' direction; a result that is wrong beyond loses nothing."""
    half = Case(case.t1.slicer[:, :26], case.t2, case.sidecar)
    spoilt = isotropic.get_fdata(dtype=np.float32)
    spoilt[:, 34:] = 0
    whole, part = (hold_out_slices(scan, lambda _: placed(image_of(spoilt, AFFINE))).scores() for scan in (case, half))
    assert part[1]["psnr"] > 35 > whole[1]["psnr"] + 5 and part[1]["slices"] < whole[1]["slices"]
    away = Case(image_of(case.t1.get_fdata(), case.t1.affine + 500 * np.eye(4, k=3)), case.t2, case.sidecar)
    with pytest.raises(BabyAIError, match="covers none of the slices"):
        hold_out_slices(away, lambda _: placed(isotropic)).scores()


def test_a_stack_of_few_slices_is_refused(small_head, stack):
    few = Case(small_head.t1, stack.slicer[:, :6], {})
    with pytest.raises(BabyAIError, match=r"\(6, of 7 needed\)"):
        hold_out_slices(few, lambda _: stack)


def test_from_the_command_line(tmp_path, small_head, stack, isotropic, monkeypatch, capsys):
    for number in ("01", "02"):
        save_volume(tmp_path / "raw" / f"sub-{number}_T1w.nii.gz", small_head.t1.get_fdata(), np.eye(4))
        save_volume(tmp_path / "raw" / f"sub-{number}_T2w.nii.gz", stack.get_fdata(), stack.affine)
        save_json(tmp_path / "raw" / f"sub-{number}_T2w.json", {"SliceThickness": 2.5})

    def reconstruct(case, *_):
        if "sub-02" in str(case.t1.get_filename()):
            raise BabyAIError("The two scans do not show one head.")
        return placed(isotropic)

    monkeypatch.setattr(evaluate, "load_reconstructor", lambda _: SimpleNamespace(reconstruct=reconstruct))
    arguments = ["--held-out-slices", "--data-dir", tmp_path / "raw", "--output-dir", tmp_path / "out"]
    assert evaluate.main([*map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert "1 evaluated, 1 failed" in captured.out and "do not show one head" in captured.err
    names = {"held_out_slices.csv", "held_out_slices.md", "sub-01_T2w_held-out-slices.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    text = (tmp_path / "out" / "held_out_slices.md").read_text()
    assert "| sub-01_T2w" in text and "gain (dB)" in text and "figures are pessimistic" in text
