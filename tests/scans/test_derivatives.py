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
    runs = [Path("raw/sub-01/x/sub-01_T2w.nii.gz"), Path("raw/sub-01/y/sub-01_T2w.nii.gz")]
    with pytest.raises(BabyAIError, match="would share one place in a BIDS dataset; give their names an entity"):
        derivative_paths([Pair("01", None, run, "") for run in runs], "out")


def test_one_label_in_two_datasets_goes_to_two_datasets(tmp_path, monkeypatch, capsys):
    """What the refusal says to do is taken."""
    stand_in.put_in(monkeypatch, inference)
    sites, output = [tmp_path / "raw" / site for site in ("siteA", "siteB")], tmp_path / "out"
    for site in sites:
        write_subject(site / "sub-01" / "anat", "01")
    arguments = ["--output-dir", str(output), "--bids", "--no-report"]
    assert inference.main(["--data-dir", str(tmp_path / "raw"), *arguments]) == 2
    told = capsys.readouterr().err
    assert "--data-dir and an --output-dir of its own" in told and all(str(site) in told for site in sites)
    for site in sites:
        assert inference.main(["--data-dir", str(site), "--output-dir", str(output / site.name), "--bids"]) == 0
        assert (output / site.name / "sub-01" / "anat" / "sub-01_desc-isotropic_T2w.nii.gz").is_file()


def test_a_session_that_only_the_folder_tells(tmp_path, monkeypatch):
    stand_in.put_in(monkeypatch, inference)
    raw, output = tmp_path / "raw", tmp_path / "out"
    for session in ("ses-1", "ses-2"):
        write_subject(raw / "sub-01" / session / "anat", "01")
    assert inference.main(["--data-dir", str(raw), "--output-dir", str(output), "--bids"]) == 0
    for session in ("ses-1", "ses-2"):
        assert (output / "sub-01" / session / "anat" / f"sub-01_{session}_desc-isotropic_T2w.nii.gz").is_file()


def test_an_earlier_desc_gives_way():
    pair = Pair("01", Path("sub-01_T1w.nii.gz"), Path("x/sub-01_desc-preproc_T2w.nii.gz"), "sub-01_desc-preproc_T2w")
    assert derivative_path(pair, "out") == Path("out/sub-01/anat/sub-01_desc-isotropic_T2w.nii.gz")


def test_the_data_are_no_place_for_the_dataset(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.main(["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "x" / ".."), "--bids"])
    assert "other than --data-dir" in capsys.readouterr().err
