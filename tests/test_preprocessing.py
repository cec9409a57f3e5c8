"""Preparation of raw scans, and the way back, on a phantom whose place is known exactly."""

import contextlib
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

import preprocessing
from func.phantom import ATLAS_AFFINE, ATLAS_SHAPE, Phantom, infant_brain
from func.scans.nifti import check_atlas_grid, read_volume
from func.scans.transforms import load_itk_transform
from func.version import own_version

HEAD = {"age_months": 0, "size": 0.8}
# World mm of the phantom -> where the header of the T2w says that it is.
MOTION = from_matvec(Rotation.from_euler("xyz", (10, -20, 15), degrees=True).as_matrix(), (12, -20, 8))


def grid(axes: np.ndarray, shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], np.ndarray]:
    """A grid of the given voxel axes (columns, mm) around the phantom's middle."""
    return shape, from_matvec(axes, np.array([0, -14, 14]) - axes @ ((np.array(shape) - 1) / 2))


TURN = Rotation.from_euler("xyz", (6, 9, -12), degrees=True).as_matrix()
T1_GRID = grid(TURN[:, [2, 0, 1]], (96, 100, 120))
T2_GRID = grid(np.diag([-1.0, 1.0, 5.0]), (96, 116, 20))


def saved(path: Path, array, affine, form: str) -> None:
    image = nib.Nifti1Image(np.asarray(array, np.float32), affine)
    image.set_sform(affine, 1 if form == "sform" else 0)
    image.set_qform(affine, 1 if form == "qform" else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def correlation(image: nib.Nifti1Image, other: nib.Nifti1Image) -> float:
    """Inside the other's head."""
    inside = np.asarray(other.dataobj) > 0
    return float(np.corrcoef(np.asarray(image.dataobj)[inside], np.asarray(other.dataobj)[inside])[0, 1])


@pytest.fixture(scope="module")
def atlas() -> Phantom:
    return infant_brain(ATLAS_SHAPE, ATLAS_AFFINE, **HEAD)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, atlas) -> dict[str, Path]:
    """Raw scans of two infants, prepared once; one T2w is fine, the others each have a fault."""
    root = tmp_path_factory.mktemp("preprocessing")
    folders = {name: root / name for name in ("raw", "prepared", "results")}
    nib.save(atlas.t1, root / "atlas.nii.gz")
    raw = folders["raw"] / "sub-01" / "anat"
    saved(raw / "sub-01_T1w.nii", infant_brain(*T1_GRID, **HEAD).t1.dataobj, T1_GRID[1], "sform")
    stack = infant_brain(*T2_GRID, **HEAD).t2.dataobj
    saved(raw / "sub-01_T2w.nii.gz", stack, MOTION @ T2_GRID[1], "qform")
    (raw / "sub-01_T2w.json").write_text('{"SliceThickness": 4.5}')
    saved(raw / "sub-01_acq-wrong_T2w.nii.gz", stack, T2_GRID[1], "sform")
    (raw / "sub-01_acq-wrong_T2w.json").write_text('{"SpacingBetweenSlices": 3.0}')
    rubbish = np.random.default_rng(0).gamma(2, 100, T2_GRID[0])
    saved(raw / "sub-01_acq-other_T2w.nii.gz", rubbish, T2_GRID[1], "sform")
    (folders["raw"] / "sub-02_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    (folders["raw"] / "sub-02_T2w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    return folders | {"atlas": root / "atlas.nii.gz"}


def call(folders: dict[str, Path], *more: str) -> int:
    """Prepare the folder in this process."""
    places = ["--data-dir", folders["raw"], "--output-dir", folders["prepared"], "--atlas", folders["atlas"]]
    return preprocessing.main([*map(str, places), "--workers", "1", *more])


@pytest.fixture(scope="module")
def prepared(folders) -> tuple[Path, str]:
    """The folder of the prepared scans of sub-01, and what was said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert call(folders) == 1
    return folders["prepared"] / "sub-01" / "anat", said.getvalue()


def test_both_scans_lie_on_the_atlas(prepared, atlas):
    folder, _ = prepared
    t1, t2 = (read_volume(folder / f"sub-01_{suffix}.nii.gz") for suffix in ("T1w", "T2w"))
    for scan in (t1, t2):
        check_atlas_grid(scan)
        np.testing.assert_allclose(scan.affine, atlas.t1.affine)
        assert np.asarray(scan.dataobj).min() == 0
    assert correlation(t1, atlas.t1) > 0.97
    assert correlation(t2, atlas.t2) > 0.6
    mirrored = nib.Nifti1Image(np.asarray(t1.dataobj)[::-1], t1.affine)
    assert correlation(mirrored, atlas.t1) < correlation(t1, atlas.t1) - 0.1


def test_landmarks_stay_where_they_were(prepared, atlas):
    folder, _ = prepared
    landmarks = np.array(list(atlas.landmarks().values()))
    for suffix, motion in (("T1w", np.eye(4)), ("T2w", MOTION)):
        found = load_itk_transform(folder / f"sub-01_from-{suffix}_to-atlas_mode-image_xfm.tfm")
        distance = np.linalg.norm(apply_affine(found, landmarks) - apply_affine(motion, landmarks), axis=1)
        assert distance.max() < 0.5


def test_the_sidecar_says_how_it_was_acquired_and_moved(prepared):
    folder, _ = prepared
    sidecar = json.loads((folder / "sub-01_T2w.json").read_text())
    acquired = sidecar["AsAcquired"]
    assert acquired["Shape"] == list(T2_GRID[0])
    np.testing.assert_allclose(acquired["Affine"], MOTION @ T2_GRID[1], atol=1e-4)
    assert (acquired["SliceThickness"], acquired["SliceEncodingDirection"]) == (4.5, "k")
    assert acquired["SpacingBetweenSlices"] == pytest.approx(5)
    assert sidecar["Warnings"] == [] and sidecar["Versions"] == {"BABY-AI": own_version()}
    (warning,) = json.loads((folder / "sub-01_acq-wrong_T2w.json").read_text())["Warnings"]
    assert "SpacingBetweenSlices" in warning and "the header is used" in warning
    assert sidecar["Sources"] == ["sub-01/anat/sub-01_T2w.nii.gz"]
    found = load_itk_transform(folder / "sub-01_from-T2w_to-atlas_mode-image_xfm.tfm")
    np.testing.assert_allclose(sidecar["Registration"]["AtlasToScan"], found, atol=1e-9)
    assert (folder / "sub-01_desc-registration_T1w.png").stat().st_size > 10_000
    assert (folder / "sub-01_desc-registration_T2w.png").stat().st_size > 10_000


def test_faults_are_told_and_cost_nothing_else(prepared, folders):
    folder, said = prepared
    assert "sub-01_acq-wrong_T2w" in said and "WARNING" in said
    assert "--min-similarity 0" in said and "sub-01_acq-other_desc-registration_T2w.png" in said
    assert "sub-02_T1w.nii.gz" in said
    assert "Summary: 2 prepared, 2 failed" in said
    volumes = sorted(path.name for path in folders["prepared"].rglob("*.nii.gz"))
    assert volumes == ["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz", "sub-01_acq-wrong_T2w.nii.gz"]
    assert not list(folder.glob(".part-*"))


def test_what_is_there_is_kept(prepared, folders, capsys):
    before = {path: path.stat().st_mtime_ns for path in folders["prepared"].rglob("*.nii.gz")}
    for path in folders["raw"].rglob("*acq-*"):
        path.unlink()
    assert call(folders) == 1
    assert "0 prepared, 1 already there, 1 failed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folders["prepared"].rglob("*.nii.gz")}


def test_what_was_made_from_other_files_is_not_kept(prepared, folders, atlas, tmp_path, capsys):
    other = np.array(atlas.t1.dataobj)
    other[90, 100, 90] += 1
    nib.save(nib.Nifti1Image(other, atlas.t1.affine), tmp_path / "atlas.nii.gz")
    assert call(folders | {"atlas": tmp_path / "atlas.nii.gz"}) == 1
    assert "sub-01_T1w.nii.gz is there, but was made from another Atlas; give --overwrite" in capsys.readouterr().err
    sidecar = folders["raw"] / "sub-01" / "anat" / "sub-01_T2w.json"
    stated = sidecar.read_text()
    sidecar.write_text('{"SliceThickness": 3}')
    assert call(folders) == 1
    assert "sub-01_T2w.nii.gz is there, but was made from another T2wSidecar" in capsys.readouterr().err
    sidecar.write_text(stated)


@pytest.mark.parametrize("space", ["T1w", "T2w"])
def test_a_reconstruction_goes_back_to_where_the_infant_lay(prepared, folders, atlas, space):
    result = folders["results"] / "sub-01" / "anat" / "sub-01_desc-isotropic_T2w.nii.gz"
    result.parent.mkdir(parents=True, exist_ok=True)
    nib.save(atlas.t2, result)
    where = ["--output-dir", str(folders["prepared"]), "--space", space]
    assert preprocessing.main(["--inverse", str(result), *where]) == 0
    back = read_volume(result.with_name(f"sub-01_space-{space}_desc-isotropic_T2w.nii.gz"))
    if space == "T1w":
        assert back.shape == T1_GRID[0]
        np.testing.assert_allclose(back.affine, T1_GRID[1], atol=1e-5)
        expected = infant_brain(*T1_GRID, **HEAD).t2
    else:
        assert back.shape == (96, 116, 100)
        expected = infant_brain(back.shape, np.linalg.inv(MOTION) @ back.affine, **HEAD).t2
    assert correlation(back, expected) > 0.94
    assert preprocessing.main(["--inverse", str(result), *where]) == 0


def test_a_result_of_unknown_origin_is_refused(folders, atlas, capsys):
    stray = folders["results"] / "sub-09_desc-isotropic_T2w.nii.gz"
    stray.parent.mkdir(parents=True, exist_ok=True)
    nib.save(atlas.t2, stray)
    assert preprocessing.main(["--inverse", str(stray), "--output-dir", str(folders["prepared"])]) == 1
    assert "give the folder that preprocessing.py wrote" in capsys.readouterr().err


@pytest.mark.parametrize("space", ["T1w", "T2w"])
def test_a_sidecar_that_lost_what_leads_back_is_told(prepared, folders, atlas, tmp_path, space, capsys):
    kept = tmp_path / "prepared" / "anat"
    kept.mkdir(parents=True)
    nib.save(atlas.t2, tmp_path / "sub-01_desc-isotropic_T2w.nii.gz")
    sidecar = json.loads((prepared[0] / "sub-01_T2w.json").read_text())
    del sidecar["Registration"]
    (kept / "sub-01_T2w.json").write_text(json.dumps(sidecar))
    nib.save(atlas.t2, kept / "sub-01_T2w.nii.gz")
    arguments = ["--output-dir", str(kept), "--space", space]
    assert preprocessing.main(["--inverse", str(tmp_path / "sub-01_desc-isotropic_T2w.nii.gz"), *arguments]) == 1
    told = capsys.readouterr().err
    assert f"The sidecar of the {space}" in told and "prepare it again with --overwrite" in told


def test_a_transform_that_is_not_what_was_written_is_told(prepared, folders, capsys):
    transform = prepared[0] / "sub-01_from-T1w_to-atlas_mode-image_xfm.tfm"
    result, whole = prepared[0] / "sub-01_T2w.nii.gz", transform.read_text()
    kept = result.rename(result.with_name("kept"))
    transform.write_text("nothing")
    assert call(folders) == 1
    assert "holds no transform, not one AffineTransform; give --overwrite to make it anew" in capsys.readouterr().err
    transform.write_text(whole)
    kept.rename(result)


def test_wrong_calls_are_told_at_once(folders, capsys, tmp_path):
    assert preprocessing.main(["--data-dir", str(folders["raw"]), "--output-dir", str(folders["raw"] / "out")]) == 2
    assert "outside" in capsys.readouterr().err
    small = tmp_path / "small.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(27.0, dtype=np.float32).reshape(3, 3, 3), np.eye(4)), small)
    assert call(folders | {"prepared": tmp_path / "out"}, "--atlas", str(small)) == 2
    told = capsys.readouterr().err
    assert "atlas grid" in told and "give another --atlas" in told and "preprocessing.py makes it right" not in told


def test_the_derivatives_folder_of_a_dataset_takes_results(folders, tmp_path, capsys):
    raw = tmp_path / "raw"
    for suffix in ("T1w", "T2w"):
        saved(raw / "sub-02" / f"sub-02_{suffix}.nii.gz", np.zeros((4, 4, 4)), np.eye(4), "sform")
    assert call(folders | {"raw": raw, "prepared": raw / "derivatives" / "prepared"}) == 1
    assert "is zero everywhere" in capsys.readouterr().err
    assert call(folders | {"raw": raw, "prepared": raw / "other"}) == 2
    assert "derivatives" in capsys.readouterr().err


def test_one_of_several_t1w_can_be_chosen(folders, tmp_path, capsys):
    raw = tmp_path / "raw"
    for name in ("acq-a_T1w", "acq-b_T1w", "T2w"):
        saved(raw / f"sub-02_{name}.nii.gz", np.zeros((4, 4, 4)), np.eye(4), "sform")
    assert call(folders | {"raw": raw, "prepared": tmp_path / "out"}) == 1
    assert "2 T1w candidates" in capsys.readouterr().err
    assert call(folders | {"raw": raw, "prepared": tmp_path / "out"}, "--t1w-filter", "acq-b") == 1
    assert "sub-02_acq-b_T1w.nii.gz is zero everywhere" in capsys.readouterr().err


def test_the_atlas_alone(folders, tmp_path, capsys):
    arguments = ["--atlas-only", str(tmp_path / "new" / "folder"), "--atlas", str(folders["atlas"])]
    assert preprocessing.main(arguments) == 0
    assert (tmp_path / "new" / "folder" / "infant_atlas.nii.gz").read_bytes() == folders["atlas"].read_bytes()
    assert "1 placed" in capsys.readouterr().out
    assert preprocessing.main(arguments) == 0
    assert "1 already there" in capsys.readouterr().out
