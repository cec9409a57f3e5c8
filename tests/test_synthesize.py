"""synthesize_anisotropic.py: thick-slice scans from isotropic ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

import synthesize_anisotropic
from func.scans.bids import find_pairs, find_scans
from func.scans.nifti import read_volume, save_volume
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, measured_slices
from func.version import own_version

SCRIPT = Path(synthesize_anisotropic.__file__)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.15, 0.1) @ np.diag([-0.8, 0.8, 0.8])[:, [2, 0, 1]], [10, -20, 30]
)


def ramp(affine: np.ndarray, shape: tuple[int, int, int] = (24, 20, 16)) -> np.ndarray:
    """A volume that holds 500 + each voxel's world height in mm, which slices average and splines keep."""
    heights = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))[..., 2]
    return (500 + heights).astype(np.float32)


def write_subject(folder: Path, subject: str, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    affine = np.eye(4) if affine is None else affine
    save_volume(folder / f"sub-{subject}_T1w.nii.gz", array[::-1], affine)
    save_volume(folder / f"sub-{subject}_T2w.nii.gz", array, affine)


def synthesise(*arguments, workers: int = 1) -> int:
    return synthesize_anisotropic.main([*map(str, arguments), "--workers", str(workers)])


@pytest.fixture
def data(tmp_path, small_head) -> Path:
    """Two subjects, one of them in folders of its own."""
    array = small_head.t2.get_fdata(dtype=np.float32)[8:40, 8:40, 8:40]
    write_subject(tmp_path / "data", "01", array)
    write_subject(tmp_path / "data" / "sub-02" / "ses-1", "02_ses-1", array)
    return tmp_path / "data"


def test_a_folder_gives_twelve_scans_a_subject_that_pair_with_its_t1w(data, tmp_path, capsys):
    assert synthesise("--data-dir", data, "--output-dir", tmp_path / "out") == 0
    assert "24 synthesised, 0 failed" in capsys.readouterr().out
    pairs, errors = find_pairs(tmp_path / "out")
    assert len(pairs) == 24 and not errors
    assert {pair.name for pair in pairs if pair.subject == "01"} == {
        f"sub-01_acq-{direction}{thickness}mm_T2w"
        for direction in ("axial", "coronal", "sagittal")
        for thickness in (2, 3, 4, 5)
    }
    other = next(pair for pair in pairs if pair.subject == "02")
    assert other.t1 == tmp_path / "out" / "sub-02" / "ses-1" / "sub-02_ses-1_T1w.nii.gz"


def test_slices_are_means_at_their_true_positions(data, tmp_path):
    synthesise("--data-dir", data, "--output-dir", tmp_path, "--thickness", 3, "--directions", "coronal")
    truth = read_volume(data / "sub-01_T2w.nii.gz")
    path = tmp_path / "sub-01_acq-coronal3mm_T2w.nii.gz"
    image, sidecar = read_volume(path), read_sidecar(path)
    assert image.shape == truth.shape and np.allclose(image.affine, truth.affine)
    assert {key: sidecar[key] for key in list(sidecar)[2:7]} == {
        "SliceThickness": 3.0,
        "SpacingBetweenSlices": 3.0,
        "SliceEncodingDirection": "j",
        "FirstSliceCenter": 1.0,
        "SliceProfile": "box",
    }
    assert sidecar["Sources"] == ["sub-01_T2w.nii.gz"]
    slices = measured_slices(image.get_fdata(dtype=np.float32), SliceGeometry.from_sidecar(sidecar, image))
    means = truth.get_fdata(dtype=np.float32)[:, :30].reshape(32, 10, 3, 32).mean(axis=2)
    assert np.abs(slices - means).max() < 1e-3 * means.max()


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE], ids=["RAS", "oblique, left-handed, axes exchanged, 0.8 mm"])
@pytest.mark.parametrize("direction", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("native", [False, True])
def test_anatomy_stays_where_it_is(tmp_path, affine, direction, native):
    """A volume that holds its own world height still does, in whatever slices and whatever axis order."""
    write_subject(tmp_path, "01", ramp(affine), affine)
    options = ["--native"] * native + ["--gap", 0.4, "--offset", 0.8]
    synthesise(
        "--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--thickness", 2, "--directions", direction, *options
    )
    path = tmp_path / "out" / f"sub-01_acq-{direction}2mm_T2w.nii.gz"
    image, sidecar = read_volume(path), read_sidecar(path)
    axis = "ijk".index(sidecar["SliceEncodingDirection"])
    stacking = image.affine[:3, axis] / np.linalg.norm(image.affine[:3, axis])
    assert np.abs(stacking).argmax() == {"sagittal": 0, "coronal": 1, "axial": 2}[direction]
    inner = [slice(None)] * 3
    if native:
        assert image.header.get_zooms()[axis] == pytest.approx(2.4)
        assert "FirstSliceCenter" not in sidecar and sidecar["SpacingBetweenSlices"] == pytest.approx(2.4)
    else:
        # Beyond the outermost centres there is nothing to interpolate, and near them the spline's end condition shows.
        inner[axis] = slice(6, -6)
    inner = tuple(inner)
    assert np.allclose(image.get_fdata()[inner], ramp(image.affine, image.shape)[inner], atol=0.05 if native else 0.15)


def test_other_software_sees_native_slices_in_the_same_place(tmp_path):
    write_subject(tmp_path, "01", ramp(OBLIQUE), OBLIQUE)
    synthesise("--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--thickness", 4, "--native")
    path = tmp_path / "out" / "sub-01_acq-axial4mm_T2w.nii.gz"
    point = SimpleITK.ReadImage(str(path)).TransformContinuousIndexToPhysicalPoint((3, 2, 1))
    ours = nib.affines.apply_affine(nib.load(path).affine, (3, 2, 1))
    assert np.allclose(np.array(point) * [-1, -1, 1], ours, atol=1e-3)


def test_a_second_run_keeps_what_is_there_and_completes_what_is_missing(data, tmp_path, capsys):
    arguments = ["--data-dir", data, "--output-dir", tmp_path / "out", "--thickness", 4]
    synthesise(*arguments)
    missing, kept = (tmp_path / "out" / f"sub-01_acq-{direction}4mm_T2w.nii.gz" for direction in ("axial", "coronal"))
    missing.unlink()
    written = kept.stat().st_mtime_ns
    assert synthesise(*arguments) == 0
    assert "1 synthesised, 5 already there, 0 failed" in capsys.readouterr().out
    assert missing.exists() and kept.stat().st_mtime_ns == written
    assert synthesise(*arguments, "--overwrite") == 0
    assert kept.stat().st_mtime_ns > written


def test_results_of_other_settings_are_not_taken_for_these(data, tmp_path, capsys):
    arguments = ["--data-dir", data, "--output-dir", tmp_path / "out", "--thickness", 4, "--directions", "axial"]
    synthesise(*arguments)
    assert synthesise(*arguments, "--profile", "gaussian") == 1
    assert "was made with other settings; use --overwrite" in capsys.readouterr().err


def test_results_among_the_data_are_not_synthesised_from_again(data, capsys):
    arguments = ["--data-dir", data, "--thickness", 4, "--directions", "axial"]
    for output in (data, data / "derived"):
        assert synthesise(*arguments, "--output-dir", output) == 0
        assert synthesise(*arguments, "--output-dir", output) == 0
    assert "0 synthesised, 2 already there" in capsys.readouterr().out
    assert len(find_scans(data)) == 2 * 3 + 2 * 2


def test_maps_of_uncertainty_are_no_originals(data, tmp_path, capsys):
    for name in ("sub-01_desc-isotropic_T2w", "sub-01_desc-uncertainty_T2w", "sub-01_part-phase_T2w"):
        shutil.copy(data / "sub-01_T2w.nii.gz", data / f"{name}.nii.gz")
    arguments = ["--data-dir", data, "--thickness", 4, "--directions", "axial"]
    assert synthesise(*arguments, "--output-dir", tmp_path / "out") == 0
    assert "2 synthesised, 0 failed" in capsys.readouterr().out


def test_what_cannot_be_reached_is_told(data, tmp_path, monkeypatch, capsys):
    """A folder without permission (which root would have), and a T1w that git-annex has not fetched."""
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub-02"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (data / "sub-01_T1w.nii.gz").unlink()
    (data / "sub-01_T1w.nii.gz").symlink_to(data / ".git" / "annex")
    arguments = ["--data-dir", data, "--thickness", 4, "--directions", "axial"]
    assert synthesise(*arguments, "--output-dir", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "1 synthesised, 2 failed" in captured.out
    assert "sub-02 cannot be read (Permission denied)" in captured.err and "sub-01_T1w.nii.gz is a link" in captured.err


def test_names_keep_the_scan_s_own_acquisition():
    slices = synthesize_anisotropic.Slices("sagittal", 2.5, 0, 0, "box", False)
    names = {"sub-1_T2w.nii": "sub-1_acq-sagittal2p5mm_T2w.nii.gz"}
    names["sub-1_ses-2_acq-space_run-1_T2w.nii.gz"] = "sub-1_ses-2_acq-spacesagittal2p5mm_run-1_T2w.nii.gz"
    for name, expected in names.items():
        assert synthesize_anisotropic.synthesised_name(Path(name), slices) == expected


def test_what_cannot_be_sliced_is_told_and_costs_no_other_its_results(data, tmp_path, capsys):
    array = read_volume(data / "sub-01_T2w.nii.gz").get_fdata(dtype=np.float32)
    write_subject(data, "03", array, np.diag([1, 1, 3, 1]))
    write_subject(data, "04", array, np.diag([3, 3, 3, 1]))
    (data / "sub-05_T2w.nii.gz").write_bytes(b"not a scan")
    assert synthesise("--data-dir", data, "--output-dir", tmp_path / "out", "--directions", "axial") == 1
    captured = capsys.readouterr()
    assert "10 synthesised, 4 failed" in captured.out
    lines = [line for line in captured.err.splitlines() if line.startswith("FAILED")]
    for subject, fault in (
        ("03", "1 mm isotropic is needed"),
        ("04", "has voxels of 3 mm, too large to make slices of 2 mm of"),
        ("04", "has voxels of 3 mm, too large to make slices of 3 mm of"),
        ("05", "is not a NIfTI file"),
    ):
        assert sum(f"sub-{subject}_T2w" in line and fault in line for line in lines) == 1


@pytest.mark.parametrize("wrong", [["--offset", "70"], ["--gap", "70"], ["--thickness", "70"]])
def test_slices_that_do_not_fit_are_told_with_what_mends_it(data, tmp_path, wrong, capsys):
    arguments = ["--data-dir", data, "--output-dir", tmp_path / "out", "--directions", "axial", "--thickness", "3"]
    assert synthesise(*arguments, *wrong) == 1
    told = capsys.readouterr().err
    assert "sub-01_T2w.nii.gz has no room for two axial slices in its" in told
    assert "choose a smaller --thickness, --gap or --offset" in told
    assert not list((tmp_path / "out").glob("*acq-*"))


def test_wrong_calls(tmp_path, capsys):
    assert synthesise("--data-dir", tmp_path / "nowhere") == 2
    assert synthesise("--data-dir", tmp_path) == 2
    assert "No isotropic T2w was found" in capsys.readouterr().err
    for wrong in (["--thickness", "0"], ["--directions", "oblique"], ["--gap", "-1"], ["--workers", "0"]):
        with pytest.raises(SystemExit, match="2"):
            synthesise(*wrong)


def test_as_a_command_with_several_processes(data, tmp_path):
    command = [sys.executable, SCRIPT, "--data-dir", data, "--output-dir", tmp_path / "out", "--workers", "2"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert finished.stdout == "Summary: 24 synthesised, 0 failed.\n"
    assert len(find_pairs(tmp_path / "out")[0]) == 24
    sidecar = json.loads((tmp_path / "out" / "sub-01_acq-axial5mm_T2w.json").read_text())
    assert sidecar["SliceThickness"] == 5 and sidecar["Versions"] == {"BABY-AI": own_version()}


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("stop, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_leaves_no_process_and_no_partial_file(tmp_path, small_head, stop, code):
    array = np.tile(small_head.t2.get_fdata(dtype=np.float32), (2, 2, 2))
    for subject in range(3):
        write_subject(tmp_path / "data", f"{subject}", array)
    arguments = ["--data-dir", tmp_path / "data", "--output-dir", tmp_path / "out", "--workers", "2"]
    with subprocess.Popen([sys.executable, SCRIPT, *arguments], stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob("*mm_T2w.nii.gz")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(stop)
        assert "run again to do the rest" in process.communicate(timeout=120)[1]
    assert process.returncode == code
    assert not list((tmp_path / "out").glob(".*"))
    for path in find_scans(tmp_path / "out"):
        read_volume(path)
