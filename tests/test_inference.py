"""The command line of inference.py: what it finds, keeps, refuses and says.

Most of it on a stand-in network; at the end the whole way, on an untrained compact network and a small phantom.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import inference
import stand_in
from func.networks.devices import report_out_of_memory
from func.scans import registration
from func.scans.files import save_json
from func.scans.hub import find_weights
from func.scans.nifti import image_of, save_volume
from func.scans.provenance import digest
from func.scans.sidecars import read_sidecar
from func.slices.geometry import SliceGeometry, acquire, upsample
from stand_in import SHAPE, write_subject

REPO_ROOT = Path(inference.__file__).resolve().parents[1]
AXIAL_4_MM = SliceGeometry(axis=2, thickness=4, spacing=4, first_center=2.0, count=11)


@pytest.fixture(autouse=True)
def heads_may_be_tiny(monkeypatch):
    """The scans of these tests are of a millilitre or less, which a head in cm would be."""
    monkeypatch.setattr(registration, "_HEAD_VOLUME", (0.0, np.inf))


@pytest.fixture
def stand_in_network(monkeypatch):
    stand_in.put_in(monkeypatch, inference)


@pytest.fixture
def data(tmp_path):
    for number in range(1, 6):
        write_subject(tmp_path / "data" / f"sub-{number}", str(number), seed=number)
    return tmp_path / "data"


@pytest.fixture
def infer(data, tmp_path, capsys, stand_in_network):
    """Run on `data`; returns exit code, standard output and standard error."""

    def run(*more):
        code = inference.main(["--data-dir", str(data), "--output-dir", str(tmp_path / "out"), *more])
        return code, *capsys.readouterr()

    return run


def results(folder):
    return sorted(path.name for path in folder.rglob("*.nii.gz"))


def test_each_t2w_gets_its_result_and_sidecar_in_its_own_subfolder(data, tmp_path, infer):
    write_subject(data / "sub-1", "1", acq="acq-axial4mm_")
    code, out, err = infer()
    assert code == 0 and not err and "6 reconstructed, 0 failed" in out
    result = tmp_path / "out" / "sub-1" / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz"
    source = nib.load(data / "sub-1" / "sub-1_acq-axial4mm_T2w.nii.gz")
    image = nib.load(result)
    assert image.shape == SHAPE and image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.affine, source.affine)
    np.testing.assert_array_equal(image.get_fdata(), 2 * source.get_fdata())
    sidecar = json.loads(result.with_name(result.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Sources"] == ["sub-1/sub-1_acq-axial4mm_T2w.nii.gz", "sub-1/sub-1_T1w.nii.gz"]
    assert sidecar["Weights"] == {"Name": "bundled", "SHA256": digest(Path(stand_in.__file__)), "Recipe": "compact"}
    assert {"BABY-AI", "python", "torch", "nibabel"} <= set(sidecar["Versions"])
    expected = {"Network": "auto", "Device": "auto", "Precision": "auto", "Runs": None, "Uncertainty": False}
    assert sidecar["Settings"] == expected
    assert set(sidecar["Inputs"]) == {"T1w", "T2w", "T2wSidecar"}


def test_results_are_kept_unless_overwrite(data, tmp_path, infer):
    infer()
    first = tmp_path / "out" / "sub-1" / "sub-1_desc-isotropic_T2w.nii.gz"
    second = tmp_path / "out" / "sub-2" / "sub-2_desc-isotropic_T2w.nii.gz"
    first.write_bytes(b"mine")
    second.unlink()
    assert "1 reconstructed, 4 already there, 0 failed" in infer()[1]
    assert first.read_bytes() == b"mine" and second.exists()
    assert "5 reconstructed, 0 failed" in infer("--overwrite")[1]
    assert first.read_bytes() != b"mine"


def test_results_made_otherwise_are_not_taken_for_these(data, tmp_path, infer, monkeypatch):
    """Other settings, scans, sidecars or weights: said which, left alone, and made anew with --overwrite."""
    infer()
    result = tmp_path / "out" / "sub-1" / "sub-1_desc-isotropic_T2w.nii.gz"
    before = result.read_bytes()
    code, out, err = infer("--precision", "bfloat16")
    assert code == 1 and "0 reconstructed, 5 failed" in out and err.count("give --overwrite to make it anew") == 5
    assert 'Precision "auto" instead of "bfloat16"' in err and result.read_bytes() == before
    assert 'Network "auto" instead of "fast"' in infer("--network", "fast")[2]
    write_subject(data / "sub-1", "1", seed=99)
    (data / "sub-2" / "sub-2_T2w.json").write_text('{"SliceThickness": 3}')
    code, out, err = infer("--device", "cpu")  # which changes no more than rounding
    assert code == 1 and "3 already there, 2 failed" in out
    assert "another T2w, another T1w" in err and "sub-2" in err and "another T2wSidecar" in err
    assert "2 failed" not in infer("--overwrite")[1] and result.read_bytes() != before
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    monkeypatch.setattr(inference, "find_weights", lambda choice: other)
    code, _, err = infer("--weights", str(other))
    assert code == 1 and err.count("other weights (bundled)") == 5


def test_results_beside_the_data_are_not_taken_for_data(data, infer):
    for expected in ("5 reconstructed, 0 failed", "0 reconstructed, 5 already there"):
        assert expected in infer("--output-dir", str(data))[1]


def test_results_are_written_the_same_way_each_time(data, tmp_path, infer):
    infer()
    infer("--output-dir", str(tmp_path / "again"))
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda image: image.slicer[:, :, 1:], "differ in shape.*preprocessing.py"),
        (lambda image: nib.Nifti1Image(image.get_fdata(), np.diag([1, 1, 4, 1])), "1 x 1 x 4 mm.*preprocessing.py"),
        (
            lambda image: nib.Nifti1Image(image.get_fdata(), nib.affines.from_matvec(np.eye(3), [1, 0, 0])),
            "1.00 mm apart",
        ),
        (lambda image: nib.Nifti1Image(image.get_fdata() * 0, image.affine), "zero everywhere"),
    ],
)
def test_a_bad_scan_is_told_in_one_line_and_the_others_done(data, tmp_path, infer, fault, message):
    path = data / "sub-3" / "sub-3_T2w.nii.gz"
    nib.save(fault(nib.load(path)), path)
    code, out, err = infer()
    assert code == 1 and "4 reconstructed, 1 failed" in out
    assert err.count("\n") == 1 and str(path) in err and re.search(message, err)
    assert results(tmp_path / "out") == [f"sub-{label}_desc-isotropic_T2w.nii.gz" for label in "1245"]


def test_rounded_affines_are_no_error(data, infer):
    for path in (data / "sub-3").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([0.9999, 1.0001, 1, 1])), path)
    assert infer()[0] == 0


def test_an_error_of_ours_fails_one_scan_and_shows_where(data, infer, monkeypatch):
    def faulty(self, case, raw):
        if "sub-2" in case.t2.get_filename():
            raise ZeroDivisionError
        return stand_in.doubled(case, raw)

    monkeypatch.setattr(sys.modules["func.reconstruction.reconstructor"].Reconstructor, "reconstruct", faulty)
    code, out, err = infer()
    assert code == 1 and "4 reconstructed, 1 failed" in out
    assert "Traceback" in err and "FAILED sub-2_T2w met an error in BABY-AI itself (ZeroDivisionError)" in err


def test_too_little_memory_is_told(data, infer, monkeypatch):
    def hungry(*_, **__):
        raise MemoryError

    monkeypatch.setattr(sys.modules["func.reconstruction.reconstructor"].Reconstructor, "reconstruct", hungry)
    monkeypatch.setattr(sys.modules["func.networks.devices"], "report_out_of_memory", report_out_of_memory)
    code, _, err = infer()
    assert code == 1 and err.count("needs more memory") == 5 and "Traceback" not in err


def test_shards_share_the_folder(data, tmp_path, infer):
    counts = []
    for part in ("1/3", "2/3", "3/3"):
        infer("--shard", part)
        counts.append(len(results(tmp_path / "out")))
    assert counts == [2, 4, 5]
    out = infer("--shard", "9/9")[1]
    assert "0 reconstructed, 0 failed" in out and "Part 9 of 9 holds no scan" in out


@pytest.mark.parametrize("task", ["2", ""])
def test_slurm_does_not_decide_what_is_done(data, infer, monkeypatch, task):
    """A job of a scheduler, or a shell that is left over from one, does the whole folder unless --shard says else."""
    for key in ("ID", "MIN", "MAX", "STEP", "COUNT"):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", task)
    assert "5 reconstructed, 0 failed" in infer()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "0/3"], "not a part like"),
        (["--shard", "4/3"], "not a part like"),
        (["--t1", "a.nii.gz"], "needs --t2 and --output"),
        (["--thickness", "4"], "raw scans"),
        (["--space", "t1", "--residual-map", "r.nii"], "one raw infant"),
        (["--space", "t1", "--weights", "babyai"], "atlas grid"),
        (["--t1", "a.nii", "--t2", "b.nii", "--output", "c.img"], "must end in"),
        (["--t1", "a.nii", "--t2", "b.nii", "--output", "."], "is a folder; give a file in it"),
        (["--t1", "a.nii", "--t2", "b.nii", "--output", "./b.nii"], "overwrite an input"),
        (["--t1", "a.nii", "--t2", "b.nii.gz", "--output", "b.nii"], "JSON sidecar would overwrite an input"),
        (["--t1", "a.nii", "--t2", "b.nii", "--output", "c.nii", "--residual-map", "c.nii"], "another output"),
        (["--t1", "a.nii", "--t2", "b.nii", "--output", "c.nii", "--thickness", "-1"], "not a length"),
        (["--t1", "a.nii", "--t2", "b.nii", "--output", "c.nii", "--weights", "babyai"], "atlas grid"),
        (["--weights", "babyai", "--runs", "2"], "once"),
        (["--weights", "babyai", "--network", "fast"], "one network only"),
        (["--uncertainty", "--runs", "2"], "four runs"),
        (["--precision", "float16"], "invalid choice"),
        (["--t2", "a.nii", "b.nii", "--mask", "m.nii", "--output", "c.nii"], "one mask for each --t2"),
        (["--t2", "a.nii", "a.nii", "--output", "c.nii"], "given twice as --t2"),
        (["--t1", "a.nii", "--t2", "./a.nii", "--output", "c.nii"], "given as --t1 and as --t2"),
        (["--min-similarity", "2"], "is not a number from 0 to 1"),
        (["--t2", "a.nii", "b.nii", "--residual-map", "r.nii", "--output", "c.nii"], "one file for each --t2"),
        (["--t2", "a.nii", "b.nii", "--output", "b.nii.gz"], "overwrite an input"),
        (["--stacks", "together"], "raw scans"),
        (["--output-dir", "~nobody-of-that-name/results"], "names a user who has no home folder here"),
        (["--t2", "a.nii", "--output", f"{'a' * 300}.nii"], "aaa.nii cannot be reached (File name too long); check"),
    ],
)
def test_a_wrong_call_is_told(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.main(arguments)
    assert message in capsys.readouterr().err


def test_a_folder_without_pairs_is_a_wrong_call(tmp_path, infer):
    (tmp_path / "empty").mkdir()
    assert infer("--data-dir", str(tmp_path / "empty"))[0] == 2
    code, _, err = infer("--data-dir", str(tmp_path / "absent"))
    assert code == 2 and "does not exist" in err and err.count("\n") == 1


def test_a_raw_pair(data, tmp_path, stand_in_network, monkeypatch, capsys):
    asked = {}

    def reconstruct(self, case, raw):
        asked.update(space=raw.space, sidecar=case.sidecar)
        return stand_in.doubled(case, raw)

    monkeypatch.setattr(sys.modules["func.reconstruction.reconstructor"].Reconstructor, "reconstruct", reconstruct)
    (data / "sub-1" / "sub-1_T2w.json").write_text('{"SliceThickness": 3, "MRAcquisitionType": "2D"}')
    scans = ["--t1", str(data / "sub-1" / "sub-1_T1w.nii.gz"), "--t2", str(data / "sub-1" / "sub-1_T2w.nii.gz")]
    output = tmp_path / "new" / "mine.nii.gz"
    arguments = [*scans, "--output", str(output), "--thickness", "4", "--space", "t1"]
    assert inference.main(arguments) == 0
    assert asked["sidecar"] == {"SliceThickness": 4.0, "MRAcquisitionType": "2D"} and asked["space"] == "t1"
    assert json.loads((tmp_path / "new" / "mine.json").read_text())["Sources"] == [scans[3], scans[1]]
    assert inference.main(arguments) == 0
    assert "0 reconstructed, 1 already there" in capsys.readouterr().out
    output.unlink()
    (data / "sub-1" / "sub-1_T1w.nii.gz").write_bytes(b"no")
    assert inference.main(arguments) == 1
    assert "not a NIfTI file" in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("lacking", ["--t1", "--t2", "--mask"])
def test_a_scan_that_is_not_there_leaves_nothing_behind(tmp_path, stand_in_network, capsys, lacking):
    t2 = write_subject(tmp_path / "data", "1")
    given = {"--t1": t2.with_name("sub-1_T1w.nii.gz"), "--t2": t2, "--mask": t2}
    given[lacking] = tmp_path / "absent.nii.gz"
    out = tmp_path / "out"
    arguments = [str(part) for option in given.items() for part in option]
    assert inference.main([*arguments, "--output", str(out / "result.nii.gz")]) == 2
    told = capsys.readouterr().err
    assert "absent.nii.gz does not exist" in told and told.count("\n") == 1 and not out.exists()


def several_stacks(folder: Path) -> list[str]:
    return [str(write_subject(folder, "1", seed, f"acq-{plane}_")) for seed, plane in enumerate(("axial", "coronal"))]


@pytest.fixture
def put_together(stand_in_network, monkeypatch):
    """The cases, by the names of their files, that were put together, and how."""
    asked = []

    def reconstruct_together(self, cases, raw):
        asked.append(([Path(case.t2.get_filename()).name for case in cases], raw.motion))
        return stand_in.doubled(cases[0], raw)

    reconstructor = sys.modules["func.reconstruction.reconstructor"].Reconstructor
    monkeypatch.setattr(reconstructor, "reconstruct_together", reconstruct_together)
    return asked


def test_several_stacks_give_one_result(tmp_path, put_together, capsys):
    stacks, output = several_stacks(tmp_path), tmp_path / "out.nii.gz"
    t1 = str(tmp_path / "sub-1_T1w.nii.gz")
    mask = np.zeros(SHAPE, np.float32)
    mask[:4] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
    masks = ["--mask", *[str(tmp_path / "mask.nii.gz")] * 2]
    arguments = ["--t1", t1, "--t2", *stacks, *masks, "--motion", "off", "--output", str(output), "--no-report"]
    assert inference.main(arguments) == 0
    assert put_together == [([Path(stack).name for stack in stacks], "off")]
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["Sources"] == [*stacks, t1]
    values = nib.load(output).get_fdata()
    assert np.unique(values[:4]).size > 50 and np.unique(values[8:]).size == 1
    assert inference.main(arguments) == 0
    assert "1 already there" in capsys.readouterr().out
    write_subject(tmp_path, "1", 7, "acq-coronal_")
    assert inference.main(arguments) == 1
    assert "another T2w2" in capsys.readouterr().err


def test_a_mask_of_another_grid_is_told(tmp_path, put_together, capsys):
    stacks = several_stacks(tmp_path)
    nib.save(nib.Nifti1Image(np.eye(6, dtype=np.float32)[..., None].repeat(5, 2), np.eye(4)), tmp_path / "mask.nii.gz")
    arguments = ["--t2", *stacks, "--mask", *[str(tmp_path / "mask.nii.gz")] * 2, "--output", str(tmp_path / "o.nii")]
    assert inference.main(arguments) == 1
    assert "give a --mask for each --t2" in capsys.readouterr().err and not put_together


def test_the_stacks_of_a_session_together(tmp_path, infer, put_together):
    for session in ("1", "2"):
        several_stacks(tmp_path / "raw" / "sub-1" / f"ses-{session}")
    arguments = ["--data-dir", str(tmp_path / "raw"), "--space", "1mm", "--no-report"]
    assert infer(*arguments, "--stacks", "together")[0] == 0
    assert [names for names, _ in put_together] == [["sub-1_acq-axial_T2w.nii.gz", "sub-1_acq-coronal_T2w.nii.gz"]] * 2
    assert results(tmp_path / "out") == ["sub-1_desc-isotropic_T2w.nii.gz"] * 2
    assert infer(*arguments)[0] == 0
    assert len(results(tmp_path / "out")) == 6 and len(put_together) == 2


def test_a_folder_of_raw_scans(data, tmp_path, infer, monkeypatch):
    asked = []

    def reconstruct(self, case, raw):
        asked.append((raw.space, case.sidecar.get("SliceThickness")))
        result = stand_in.doubled(case, raw)
        result.report["Registration"] = {"T1wToT2w": np.eye(4).tolist()}
        return result

    monkeypatch.setattr(sys.modules["func.reconstruction.reconstructor"].Reconstructor, "reconstruct", reconstruct)
    subjects = sorted(folder.name for folder in data.iterdir())
    (data / subjects[0] / f"{subjects[0]}_T2w.json").write_text('{"SliceThickness": 3}')
    (data / subjects[1] / f"{subjects[1]}_T1w.nii.gz").write_bytes(b"no")
    out = tmp_path / "out"
    code, _, err = infer("--data-dir", str(data), "--output-dir", str(out), "--space", "1mm", "--no-report")
    assert code == 1 and "not a NIfTI file" in err
    assert sorted(asked, key=str) == sorted([("1mm", 3)] + [("1mm", None)] * (len(subjects) - 2), key=str)
    sidecar = json.loads(next(out.rglob(f"{subjects[0]}_desc-isotropic_T2w.json")).read_text())
    assert sidecar["SpatialReference"] == sidecar["Sources"][1] == f"{subjects[0]}/{subjects[0]}_T1w.nii.gz"


@pytest.mark.parametrize("folder", [REPO_ROOT, REPO_ROOT / "scripts"])
def test_starts_from_anywhere(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, os.path.relpath(inference.__file__, folder), "--data-dir", str(tmp_path / "absent")],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "absent does not exist" in done.stderr


def test_a_home_folder_that_the_shell_left_and_no_folder_at_all(data, infer, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(data.parent))
    assert "5 reconstructed, 0 failed" in infer("--data-dir=~/data", "--output-dir=~/mine")[1]
    assert len(results(data.parent / "mine")) == 5
    with pytest.raises(SystemExit, match="2"):
        infer("--data-dir", "")
    assert "the path is empty" in capsys.readouterr().err


def test_starts_without_the_slow_libraries():
    slow = "{'torch', 'monai', 'pandas', 'matplotlib', 'skimage', 'nilearn', 'huggingface_hub', 'SimpleITK'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import inference, sys; sys.exit(str({slow} & set(sys.modules) or ''))"],
        cwd=REPO_ROOT / "scripts",
        capture_output=True,
        text=True,
    )
    assert not done.stderr.strip()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A compact network too small to be good and not trained at all: it leaves the up-sampled T2w as it is."""
    torch = pytest.importorskip("torch")
    from func.networks.weights import build_network, save_weights

    torch.manual_seed(0)
    config = {"channels": (8, 8), "blocks": (1, 1)}
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    save_weights(path, "compact", build_network("compact", **config).state_dict(), {}, config)
    return path


def test_an_infant_that_fails_leaves_no_report(tmp_path, weights, capsys):
    t2 = write_subject(tmp_path / "data", "1")
    t2.write_bytes(b"no")
    output = tmp_path / "out" / "result.nii.gz"
    assert inference.main(["--t2", str(t2), "--output", str(output), "--weights", str(weights)]) == 1
    assert "not a NIfTI file" in capsys.readouterr().err and not list(output.parent.iterdir())


@pytest.fixture
def thick(small_head, tmp_path):
    """A folder with the small phantom's T1w and its T2w of 4 mm slices, up-sampled, in the given axis order."""

    def write(codes="RAS"):
        folder = tmp_path / codes
        truth = small_head.t2.get_fdata(dtype=np.float32)
        length = truth.shape[2]
        up_sampled = image_of(upsample(acquire(truth, AXIAL_4_MM), AXIAL_4_MM, length), small_head.t2.affine)
        order = nib.orientations.axcodes2ornt(codes)
        for name, image in (("sub-1_T1w", small_head.t1), ("sub-1_acq-axial4mm_T2w", up_sampled)):
            turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), order))
            save_volume(folder / f"{name}.nii.gz", np.asarray(turned.dataobj), turned.affine)
        axis = next(axis for axis, code in enumerate(codes) if code in "SI")
        geometry = AXIAL_4_MM.on_axis(axis, length if codes[axis] == "I" else None)
        save_json(folder / f"{name}.json", geometry.to_sidecar(1.0))
        return folder

    return write


def test_a_reconstruction_agrees_with_its_slices_in_any_axis_order(thick, small_head, weights, tmp_path, capsys):
    found = {}
    for codes in ("RAS", "LPS", "IAL"):
        arguments = ["--data-dir", str(thick(codes)), "--output-dir", str(tmp_path / "out" / codes)]
        assert inference.main([*arguments, "--weights", str(weights), "--device", "cpu"]) == 0, capsys.readouterr().err
        result = tmp_path / "out" / codes / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz"
        source = nib.load(thick(codes) / "sub-1_acq-axial4mm_T2w.nii.gz")
        image, sidecar = nib.load(result), read_sidecar(result)
        assert image.shape == source.shape and "".join(nib.aff2axcodes(image.affine)) == codes
        np.testing.assert_array_equal(image.affine, source.affine)
        assert sidecar["SliceGeometry"]["Source"] == "sidecar"
        assert sidecar["Checks"]["SliceResidualAfter"] < sidecar["Checks"]["SliceResidualBefore"]
        found[codes] = nib.as_closest_canonical(image).get_fdata(dtype=np.float32)
    measured = acquire(small_head.t2.get_fdata(dtype=np.float32), AXIAL_4_MM)
    for result in found.values():
        assert np.abs(acquire(result, AXIAL_4_MM) - measured).max() < 0.1 * measured.max()
        np.testing.assert_allclose(result, found["RAS"], atol=2e-3 * measured.max())


def test_a_t1w_that_is_thick_on_the_grid_and_one_that_is_the_t2w(thick, small_head, weights, tmp_path, capsys):
    """Up-sampled from 4 mm slices as the T2w is; then T1w and T2w exchanged, thick or not."""
    folder = thick()
    truth = small_head.t1.get_fdata(dtype=np.float32)
    save_volume(folder / "sub-1_T1w.nii.gz", upsample(acquire(truth, AXIAL_4_MM), AXIAL_4_MM, 48), small_head.t1.affine)
    arguments = ["--data-dir", str(folder), "--weights", str(weights), "--no-report", "--overwrite"]
    assert inference.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "sub-1_T1w.nii.gz has slices of 4 mm itself" in told and "wrong way round" not in told
    t1, t2 = folder / "sub-1_T1w.nii.gz", folder / "sub-1_acq-axial4mm_T2w.nii.gz"
    t2.with_name("sub-1_acq-axial4mm_T2w.json").unlink()
    save_volume(t1, nib.load(t2).get_fdata(), small_head.t1.affine)
    save_volume(t2, truth, small_head.t1.affine)
    assert inference.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "Were T1w and T2w given the wrong way round?" in told and "seem to be exchanged" in told
    save_volume(t1, small_head.t2.get_fdata(), small_head.t1.affine)
    assert inference.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "seem to be exchanged" in told and "slices of 4 mm itself" not in told


def test_a_folder_without_t1w_scans(thick, weights, tmp_path, capsys):
    folder = thick()
    (folder / "sub-1_T1w.nii.gz").unlink()
    arguments = ["--data-dir", str(folder), "--output-dir", str(tmp_path / "out"), "--weights", str(weights)]
    assert inference.main(arguments) == 1 and "has no T1w" in capsys.readouterr().err
    assert inference.main([*arguments, "--without-t1w"]) == 0
    result = tmp_path / "out" / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz"
    assert read_sidecar(result)["Sources"] == ["sub-1_acq-axial4mm_T2w.nii.gz"]
    assert nib.load(result).shape == (48, 48, 48) and (tmp_path / "out" / "report.html").is_file()
    assert "T1w" not in read_sidecar(result)["Inputs"]


@pytest.mark.parametrize(("asked", "used"), [("auto", "large"), ("fast", "fast")])
def test_the_bundled_network_asked_for_is_used_and_told(thick, tmp_path, asked, used):
    folder = thick()
    arguments = ["--data-dir", str(folder), "--output-dir", str(tmp_path / "out"), "--device", "cpu", "--no-report"]
    assert inference.main([*arguments, "--network", asked]) == 0
    sidecar = read_sidecar(tmp_path / "out" / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz")
    assert sidecar["Computed"]["Network"] == used and sidecar["Computed"]["NetworkRuns"] == 1
    assert sidecar["Weights"] == {"Name": "bundled", "SHA256": digest(find_weights("bundled")), "Recipe": "compact"}


def test_a_result_of_another_number_of_runs_is_another_result(thick, weights, tmp_path, capsys):
    arguments = ["--data-dir", str(thick()), "--output-dir", str(tmp_path / "out"), "--weights", str(weights)]
    arguments += ["--device", "cpu"]
    assert inference.main([*arguments, "--runs", "2"]) == 0
    result = tmp_path / "out" / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz"
    assert read_sidecar(result)["Computed"]["NetworkRuns"] == 2
    assert "mean of 2 runs" in (tmp_path / "out" / "report.html").read_text()
    assert inference.main([*arguments, "--runs", "2"]) == 0
    assert inference.main(arguments) == 1 and "Runs 2 instead of null" in capsys.readouterr().err
    assert inference.main([*arguments, "--overwrite"]) == 0
    assert read_sidecar(result)["Computed"]["NetworkRuns"] == 1


def test_weights_of_one_network_have_no_fast_one(thick, weights, tmp_path, capsys):
    arguments = ["--data-dir", str(thick()), "--output-dir", str(tmp_path / "out"), "--weights", str(weights)]
    assert inference.main([*arguments, "--network", "fast"]) != 0
    assert "leave --network out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "thickness"),
    [
        ({"SliceThickness": 3.5}, 3.5),
        ({"SliceThickness": "3.5 mm"}, 3.5),
        ({"AsAcquired": {"SliceThickness": 3.5}}, 3.5),
        ({"AsAcquired": "long ago"}, 4.0),
    ],
)
def test_a_sidecar_that_tells_only_the_thickness_is_heeded(thick, weights, tmp_path, told, thickness):
    folder = thick()
    save_json(folder / "sub-1_acq-axial4mm_T2w.json", told)
    arguments = ["--data-dir", str(folder), "--output-dir", str(tmp_path / "out"), "--weights", str(weights)]
    assert inference.main(arguments) == 0
    found = read_sidecar(tmp_path / "out" / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz")["SliceGeometry"]
    assert found["Source"] == "recovered from the volume"
    assert found["SliceThickness"] == pytest.approx(thickness, abs=0.01)


def test_the_same_case_gives_the_same_bytes(thick, weights, tmp_path):
    written = []
    for name in ("first", "second"):
        arguments = ["--data-dir", str(thick()), "--output-dir", str(tmp_path / name), "--weights", str(weights)]
        assert inference.main([*arguments, "--device", "cpu"]) == 0
        written.append((tmp_path / name / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz").read_bytes())
    assert written[0] == written[1]


def test_the_sidecar_tells_where_the_time_went(thick, weights, tmp_path):
    """Its seconds add up to what a user waits, but for the page and the end of the process."""
    arguments = ["--data-dir", thick(), "--output-dir", tmp_path / "out", "--weights", weights, "--device", "cpu"]
    began = time.perf_counter()
    subprocess.run([sys.executable, inference.__file__, *map(str, arguments)], check=True, capture_output=True)
    waited = time.perf_counter() - began
    seconds = read_sidecar(tmp_path / "out" / "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz")["Seconds"]
    assert list(seconds)[:2] == ["Start", "Reading"] and list(seconds)[-3:] == ["Quality", "Figure", "Writing"]
    assert 0.85 * waited < sum(seconds.values()) < waited


def test_a_network_that_cannot_be_used_is_a_wrong_call(thick, weights, tmp_path, capsys):
    (tmp_path / "text.pth").write_text("not weights")
    arguments = ["--data-dir", str(thick()), "--output-dir", str(tmp_path / "out")]
    for more, message in (
        (["--weights", str(tmp_path / "text.pth")], "text.pth"),
        (["--weights", str(tmp_path / "absent.pth")], "absent.pth"),
        (["--weights", str(weights), "--device", "cuda:99"], "is not available"),
        (["--weights", str(weights), "--device", "toaster"], "is not available"),
    ):
        assert inference.main([*arguments, *more]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert not results(tmp_path / "out")


def test_a_raw_stack_ends_in_the_frame_of_the_t1w(small_head, weights, tmp_path, capsys):
    truth = small_head.t2.get_fdata(dtype=np.float32)
    geometry = SliceGeometry.fitting(2, truth.shape[2], 3)
    turn = Rotation.from_euler("xyz", [8, -5, 6], degrees=True).as_matrix()
    motion = nib.affines.from_matvec(turn, [4, -6, 3])
    save_volume(tmp_path / "t2.nii.gz", acquire(truth, geometry), motion @ geometry.affine_in(small_head.t2.affine))
    save_volume(tmp_path / "t1.nii.gz", small_head.t1.get_fdata(), small_head.t1.affine)
    scans = ["--t1", str(tmp_path / "t1.nii.gz"), "--t2", str(tmp_path / "t2.nii.gz")]
    output, residual = tmp_path / "result.nii.gz", tmp_path / "residual.nii.gz"
    outputs = ["--output", str(output), "--residual-map", str(residual)]
    code = inference.main([*scans, *outputs, "--weights", str(weights), "--device", "cpu"])
    assert code == 0, capsys.readouterr().err
    image = nib.load(output)
    assert image.shape == small_head.t1.shape and nib.load(residual).shape[2] == geometry.count
    np.testing.assert_allclose(image.affine, small_head.t1.affine)
    assert np.corrcoef(image.get_fdata().ravel(), truth.ravel())[0, 1] > 0.9
    sidecar = read_sidecar(output)
    assert sidecar["SliceGeometry"]["SliceThickness"] == 3
    head = np.argwhere(truth > 0)
    found = np.array(sidecar["Registration"]["T1wToT2w"])
    world = nib.affines.apply_affine(small_head.t2.affine, head)
    off = nib.affines.apply_affine(found, world) - nib.affines.apply_affine(motion, world)
    assert np.linalg.norm(off, axis=1).mean() < 0.6
