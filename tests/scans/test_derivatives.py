"""The output folder as a BIDS derivative dataset, by the BIDS validator where it is installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inference
import stand_in
from func.errors import BabyAIError
from func.scans.bids import Pair
from func.scans.derivatives import derivative_path, derivative_paths
from stand_in import write_subject

VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
    "bids-validator-deno"
)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Raw data of two infants, one in sessions and one in no BIDS folder, and what --bids makes of them."""
    stand_in.put_in(monkeypatch, inference)
    raw, output = tmp_path / "raw", tmp_path / "derivatives" / "baby-ai"
    write_subject(raw / "sub-01" / "ses-1" / "anat", "01_ses-1", acq="acq-axial4mm_")
    write_subject(raw, "02", seed=1)
    assert inference.main(["--data-dir", str(raw), "--output-dir", str(output), "--bids"]) == 0
    return output


def test_places_and_sidecars(dataset):
    names = sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*.nii.gz"))
    assert names == [
        "sub-01/ses-1/anat/sub-01_ses-1_acq-axial4mm_desc-isotropic_T2w.nii.gz",
        "sub-02/anat/sub-02_desc-isotropic_T2w.nii.gz",
    ]
    sidecar = json.loads((dataset / names[0].replace(".nii.gz", ".json")).read_text())
    t2 = "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_acq-axial4mm_T2w.nii.gz"
    assert sidecar["Sources"] == [t2, "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"]
    assert sidecar["SpatialReference"] == t2 and sidecar["SkullStripped"] is True
    description = json.loads((dataset / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "BABY-AI"
    assert (dataset / description["DatasetLinks"]["raw"] / "sub-02_T1w.nii.gz").is_file()


def test_the_validator_finds_no_error(dataset):
    if VALIDATOR is None:
        pytest.skip("bids-validator-deno is not installed (pip install bids-validator-deno)")
    (dataset / "report.html").write_text("")
    (dataset / "figures" / "sub-02" / "anat").mkdir(parents=True)
    (dataset / "figures" / "sub-02" / "anat" / "sub-02_desc-isotropic_T2w.svg").write_text("<svg/>")
    assert errors_of(dataset) == []


def test_with_maps_of_uncertainty_too(tmp_path, monkeypatch):
    if VALIDATOR is None:
        pytest.skip("bids-validator-deno is not installed (pip install bids-validator-deno)")

    def reconstruct(case, raw):
        result = stand_in.doubled(case, raw)
        result.uncertainty = case.t2
        return result

    stand_in.put_in(monkeypatch, inference, reconstruct)
    write_subject(tmp_path / "raw", "02")
    output = tmp_path / "derivatives"
    arguments = ["--data-dir", str(tmp_path / "raw"), "--output-dir", str(output), "--bids", "--uncertainty"]
    assert inference.main(arguments) == 0
    assert (output / "sub-02" / "anat" / "sub-02_desc-uncertainty_T2w.nii.gz").is_file()
    assert errors_of(output) == []


def errors_of(dataset: Path) -> list[dict]:
    """What the BIDS validator calls an error."""
    done = subprocess.run([VALIDATOR, "--json", str(dataset)], capture_output=True, text=True, timeout=120)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


def test_what_the_folder_has_already_is_kept(dataset, tmp_path):
    (dataset / "dataset_description.json").write_text('{"Name": "mine"}')
    arguments = ["--data-dir", str(tmp_path / "raw"), "--output-dir", str(dataset), "--bids"]
    assert inference.main(arguments) == 0
    assert (dataset / "dataset_description.json").read_text() == '{"Name": "mine"}'


def test_one_place_for_two_results_is_refused():
    pairs = [Pair("01", Path(f"{site}/sub-01_T1w.nii.gz"), Path(f"{site}/sub-01_T2w.nii.gz"), "") for site in "ab"]
    with pytest.raises(
        BabyAIError, match=r"would share one place in a BIDS dataset; run them into separate folders\.$"
    ):
        derivative_paths(pairs, "out")


def test_an_earlier_desc_gives_way():
    pair = Pair("01", Path("sub-01_T1w.nii.gz"), Path("x/sub-01_desc-preproc_T2w.nii.gz"), "sub-01_desc-preproc_T2w")
    assert derivative_path(pair, "out") == Path("out/sub-01/anat/sub-01_desc-isotropic_T2w.nii.gz")


def test_the_data_are_no_place_for_the_dataset(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.main(["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "x" / ".."), "--bids"])
    assert "other than --data-dir" in capsys.readouterr().err
