"""evaluate.py: reconstructions scored beside cubic interpolation."""

import csv
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import evaluate
import synthesize_anisotropic
from func.commands import Tally
from func.errors import BabyAIError
from func.reports.comparisons import find_truth
from func.reports.scores import brain_mask, inner_brain, score_brain
from func.reports.tables import table, verdict
from func.scans.bids import find_pairs, result_path
from func.scans.files import save_json
from func.scans.nifti import read_volume, save_volume
from func.scans.resampling import resample


@pytest.fixture(scope="module")
def study(tmp_path_factory, small_head) -> Path:
    """Three subjects' truth, their synthesised scans, and results half as far from the truth as those."""
    folder = tmp_path_factory.mktemp("study")
    for subject, noise in (("01", 0), ("02", 30), ("03", 60)):
        rng = np.random.default_rng(0)
        for image, suffix in ((small_head.t1, "T1w"), (small_head.t2, "T2w")):
            array = image.get_fdata(dtype=np.float32)[4:44, 4:44, 4:44]
            array = array + noise * (array > 0) * rng.standard_normal(array.shape)
            save_volume(folder / "data" / f"sub-{subject}_{suffix}.nii.gz", array, image.affine)
    (folder / "data" / "participants.tsv").write_text(
        "participant_id\tage_months\nsub-01\t0.3\nsub-02\t7\nsub-03\tn/a\n"
    )
    arguments = ["--thickness", "2", "4", "--directions", "axial", "sagittal", "--workers", "1"]
    assert synthesize_anisotropic.main(
        ["--data-dir", str(folder / "data"), "--output-dir", str(folder / "synthesised"), *arguments]
    ) == 0  # fmt: skip
    for pair in find_pairs(folder / "synthesised")[0]:
        truth = read_volume(folder / "data" / f"sub-{pair.subject}_T2w.nii.gz")
        result = (truth.get_fdata() + read_volume(pair.t2).get_fdata()) / 2
        save_volume(result_path(pair, folder / "results"), result, truth.affine)
    return folder


def score(study: Path, output: Path, *arguments, results: Path | None = None) -> int:
    folders = {"--reference-dir": study / "data", "--results-dir": results or study / "results", "--output-dir": output}
    return evaluate.main(
        [str(part) for option in folders.items() for part in option] + [*map(str, arguments), "--workers", "1"]
    )


def read_rows(output: Path, name: str = "metrics.csv") -> list[dict]:
    with (output / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read_tables(lines: list[str]) -> dict[str, list[list[str]]]:
    """The cells of every Markdown table, by the heading above it; the rows of several follow one another."""
    tables: dict[str, list[list[str]]] = {}
    for line in lines:
        if line.startswith("#"):
            rows = tables.setdefault(line.strip("# "), [])
        elif line.startswith("|") and not line.startswith("|:"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def test_every_scan_is_scored_beside_its_baseline(study, tmp_path, capsys):
    assert score(study, tmp_path, "--baseline-dir", study / "synthesised") == 0
    rows = read_rows(tmp_path)
    assert len(rows) == 3 * 4 * 2 * 3
    chosen = {
        row["method"]: row
        for row in rows
        if row["name"] == "sub-02_acq-axial4mm_desc-isotropic_T2w" and row["region"] == "brain"
    }
    assert (chosen["BABY-AI"]["direction"], chosen["BABY-AI"]["thickness_mm"]) == ("axial", "4.0")
    assert chosen["BABY-AI"]["age_group"] == "6 to 11 months"
    truth, cubic = (
        read_volume(path).get_fdata(dtype=np.float32)
        for path in (study / "data" / "sub-02_T2w.nii.gz", study / "synthesised" / "sub-02_acq-axial4mm_T2w.nii.gz")
    )
    expected = score_brain(truth, cubic)
    assert float(chosen["cubic"]["psnr"]) == pytest.approx(expected.psnr)
    assert float(chosen["cubic"]["ssim"]) == pytest.approx(expected.ssim)
    # Half the error is 6.02 dB.
    assert float(chosen["BABY-AI"]["gain"]) == pytest.approx(6.02, abs=0.01) and chosen["cubic"]["gain"] == ""
    assert float(chosen["BABY-AI"]["nrmse"]) == pytest.approx(float(chosen["cubic"]["nrmse"]) / 2, rel=1e-3)
    inner = {
        row["method"]: float(row["psnr"])
        for row in rows
        if row["name"] == chosen["cubic"]["name"] and row["region"] == "inner"
    }
    expected = score_brain(truth, cubic, inner_brain(brain_mask(truth)))
    assert inner["BABY-AI"] == pytest.approx(expected.psnr + 6.02, abs=0.01)
    assert float(chosen["cubic"]["sharpness"]) < 0.2 < float(chosen["BABY-AI"]["sharpness"]) < 0.6
    assert (tmp_path / "boxplot.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert "Summary: 12 evaluated, 0 failed." in captured.out
    assert "All 12 scans gain over cubic in the inner brain" in captured.out


def test_the_inner_brain_comes_first_and_begins_where_it_is_told(study, tmp_path):
    assert score(study, tmp_path, "--depth", 6) == 0
    lines = (tmp_path / "summary.md").read_text().splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[:4] == ["## In short", "## Inner brain", "## Whole brain", "## Whole volume"]
    truth, result = (
        read_volume(study / path).get_fdata(dtype=np.float32)
        for path in ("data/sub-01_T2w.nii.gz", "results/sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz")
    )
    expected = score_brain(truth, result, inner_brain(brain_mask(truth), depth=6))
    rows = {(row["name"], row["region"]): row for row in read_rows(tmp_path)}
    scored = rows["sub-01_acq-axial4mm_desc-isotropic_T2w", "inner"]
    assert float(scored["psnr"]) == pytest.approx(expected.psnr)


def test_the_summary_groups_by_thickness_direction_and_age(study, tmp_path):
    score(study, tmp_path, "--baseline-dir", study / "synthesised")
    tables = read_tables((tmp_path / "summary.md").read_text().splitlines())
    head, *rows = tables["Inner brain"]
    titles = [row[0] for row in rows]
    assert titles[:5] == ["all", "2 mm", "4 mm", "axial", "sagittal"]
    assert titles[5:9] == ["2 mm axial", "2 mm sagittal", "4 mm axial", "4 mm sagittal"]
    assert titles[9:] == ["newborn", "6 to 11 months"]
    assert head[:5] == ["", "scans", "subjects", "PSNR (dB) cubic", "PSNR (dB) BABY-AI"]
    assert rows[0][1:3] == ["12", "3"] and rows[0][-1] == "6.02 ± 0.00"
    assert [row[1:3] for row in rows[-2:]] == [["4", "1"], ["4", "1"]]


def test_tissues_agree_better_where_the_error_is_half(study, tmp_path):
    score(study, tmp_path, "--baseline-dir", study / "synthesised")
    rows = pd.DataFrame(read_rows(tmp_path, "tissues.csv")).astype({"dice": float, "volume_error": float})
    assert len(rows) == 3 * 4 * 2 * 3
    dice = rows.pivot(index=["name", "tissue"], columns="method", values="dice")
    assert (dice["BABY-AI"] > dice["cubic"]).mean() > 0.9 and dice["cubic"].between(0.3, 1).all()
    tables = read_tables((tmp_path / "summary.md").read_text().splitlines())
    head, *tissues = tables["Tissues, inner brain"]
    assert [row[0] for row in tissues] == ["dark", "medium", "bright"] and head[3] == "Dice cubic"


def test_short_tables_for_a_readme(study, tmp_path):
    score(study, tmp_path, "--baseline-dir", study / "synthesised")
    rows = read_tables((tmp_path / "summary.md").read_text().splitlines())["In short"]
    assert [rows[0], rows[3], rows[6]] == [
        ["slice thickness", "2 mm", "4 mm"], ["slice direction", "axial", "sagittal"], ["age", "2 mm", "4 mm"]
    ]  # fmt: skip
    scored = [row for row in read_rows(tmp_path) if row["region"] == "inner" and row["method"] == "cubic"]
    thin = [row for row in scored if row["thickness_mm"] == "2.0"]
    psnr, ssim = (np.mean([float(row[metric]) for row in thin]) for metric in ("psnr", "ssim"))
    assert rows[1][:2] == ["cubic", f"{psnr:.2f} / {ssim:.3f} (n = 3)".replace("/ 0.", "/ .")]
    assert [row[0] for row in rows[7:]] == [
        "newborn, cubic", "newborn, BABY-AI", "6 to 11 months, cubic", "6 to 11 months, BABY-AI"
    ]  # fmt: skip
    young = [row for row in thin if row["subject"] == "01"]
    assert rows[7][1].startswith(f"{np.mean([float(row['psnr']) for row in young]):.2f} / ")
    assert rows[7][1].endswith("(n = 1)")


@pytest.fixture
def with_uncertainty(study, tmp_path) -> Path:
    """Results of two thicknesses with maps that state twice the error at every other place and half of it elsewhere."""
    results = tmp_path / "results"
    for path in sorted((study / "results").rglob("sub-0[12]*axial*.nii.gz")):
        image = read_volume(path)
        truth = read_volume(study / "data" / f"{path.name[:6]}_T2w.nii.gz").get_fdata()
        save_volume(results / path.name, image.get_fdata(), image.affine)
        widths = np.abs(image.get_fdata() - truth)
        widths[..., ::2] *= 2
        widths[..., 1::2] *= 0.5
        save_volume(results / path.name.replace("isotropic", "uncertainty"), widths, image.affine)
    return results


def test_the_stated_uncertainty_is_judged(study, with_uncertainty, tmp_path):
    output = tmp_path / "out"
    assert score(study, output, "--baseline-dir", study / "synthesised", results=with_uncertainty) == 0
    judged = read_rows(output, "uncertainty.csv")
    assert [row["name"] for row in judged][:1] == ["sub-01_acq-axial2mm_desc-isotropic_T2w"] and len(judged) == 4
    for row in judged:
        assert float(row["coverage"]) == pytest.approx(0.5, abs=0.05)
        assert 0.5 < float(row["correlation"]) < 0.95 and 0 < float(row["median_width"]) < 0.5
    summary = (output / "summary.md").read_text()
    # Half of the errors are twice as large as stated, and nine in ten are to be held.
    assert "All half-widths times 2.000 would hold 90 % of the errors." in summary
    assert "Such a fit to all other subjects holds of the errors of sub-01 " in summary
    assert len(read_rows(output)) == 4 * 2 * 3


def test_maps_of_uncertainty_are_no_truths_and_no_results(study, with_uncertainty, tmp_path, capsys):
    """Where results lie beside the truth, only the truth is one."""
    for path in (study / "data").glob("sub-0[12]_T2w.nii.gz"):
        image = read_volume(path)
        save_volume(with_uncertainty / path.name, image.get_fdata(), image.affine)
    arguments = ["--reference-dir", with_uncertainty, "--results-dir", with_uncertainty, "--output-dir", tmp_path]
    assert evaluate.main([*map(str, arguments), "--workers", "1"]) == 0
    assert "4 evaluated, 0 failed" in capsys.readouterr().out


def test_a_map_on_another_grid_is_told(study, with_uncertainty, tmp_path, capsys):
    path = with_uncertainty / "sub-01_acq-axial2mm_desc-uncertainty_T2w.nii.gz"
    image = read_volume(path)
    save_volume(path, image.get_fdata()[1:], image.affine)
    assert score(study, tmp_path / "out", results=with_uncertainty) == 1
    assert "desc-uncertainty" in capsys.readouterr().err


def test_intervals_count_subjects_not_scans():
    # Means 1, 2 and 3 of three subjects: t(2) = 4.3027, sd 1, so 4.3027 / sqrt(3).
    scans = [("a", 0.5), ("a", 1.5), ("b", 2.0), ("c", 2.0), ("c", 3.0), ("c", 4.0)]
    frame = pd.DataFrame(scans, columns=["subject", "psnr"]).assign(method="cubic", group="all")
    frame["name"] = range(6)
    metrics = {"psnr": ("PSNR", 3)}
    assert read_tables(["#", *table(frame, metrics).splitlines()])[""][1] == ["all", "6", "3", "2.000 ± 2.484"]
    assert read_tables(["#", *table(frame[:2], metrics).splitlines()])[""][1] == ["all", "2", "1", "1.000"]


def test_without_a_baseline_the_results_are_scored_alone(study, tmp_path):
    assert score(study, tmp_path) == 0
    assert {row["method"] for row in read_rows(tmp_path)} == {"BABY-AI"}
    assert "No baseline was given." in (tmp_path / "summary.md").read_text()


def test_scans_that_lose_to_the_baseline_are_named(study, tmp_path):
    results = tmp_path / "results"
    truth = read_volume(study / "data" / "sub-01_T2w.nii.gz")
    save_volume(results / "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz", 0.5 * truth.get_fdata(), truth.affine)
    assert score(study, tmp_path, "--baseline-dir", study / "synthesised", results=results) == 0
    assert "1 of 1 scans lose to cubic in the inner brain: sub-01_acq-axial2mm" in (tmp_path / "summary.md").read_text()


def test_a_result_in_another_axis_order_scores_the_same(study, tmp_path):
    name = "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz"
    image = read_volume(study / "results" / name)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, 1]]))
    save_volume(tmp_path / "results" / name, turned.get_fdata(), turned.affine)
    assert score(study, tmp_path / "flipped", results=tmp_path / "results") == 0
    assert score(study, tmp_path / "plain") == 0
    plain = next(row for row in read_rows(tmp_path / "plain") if row["name"] == name.removesuffix(".nii.gz"))
    flipped = next(row for row in read_rows(tmp_path / "flipped") if row["region"] == plain["region"])
    assert float(flipped["psnr"]) == pytest.approx(float(plain["psnr"]))
    assert float(flipped["ssim"]) == pytest.approx(float(plain["ssim"]))


def test_two_datasets_may_share_a_label(study, tmp_path):
    """siteA's sub-01 is scored against siteA's truth and baseline, and counts as a subject of its own."""
    name = "sub-01_acq-axial2mm"
    places = {
        "data": study / "data" / "sub-01_T2w.nii.gz",
        "raw": study / "synthesised" / f"{name}_T2w.nii.gz",
        "results": study / "results" / f"{name}_desc-isotropic_T2w.nii.gz",
    }
    for folder, source in places.items():
        image = read_volume(source)
        save_volume(tmp_path / folder / "siteA" / source.name, image.get_fdata(), image.affine)
        save_volume(tmp_path / folder / "siteB" / source.name, 2 * image.get_fdata()[::-1], image.affine)
    (tmp_path / "data" / "siteA" / "participants.tsv").write_text("participant_id\tage_months\nsub-01\t0\n")
    folders = ["--reference-dir", tmp_path / "data", "--results-dir", tmp_path / "results"]
    arguments = [*folders, "--baseline-dir", tmp_path / "raw", "--output-dir", tmp_path, "--workers", "1"]
    assert evaluate.main([*map(str, arguments)]) == 0
    rows = [row for row in read_rows(tmp_path) if (row["region"], row["method"]) == ("inner", "BABY-AI")]
    assert [row["name"] for row in rows] == [f"{site}/{name}_desc-isotropic_T2w" for site in ("siteA", "siteB")]
    assert [(row["subject"], row["age_group"]) for row in rows] == [("siteA/01", "newborn"), ("siteB/01", "")]
    assert all(float(row["gain"]) == pytest.approx(6.02, abs=0.01) for row in rows)


def test_of_several_truths_the_one_with_the_result_s_own_label_is_taken(tmp_path):
    truths = [tmp_path / "sub-01_T2w.nii.gz", tmp_path / "sub-01_acq-space_T2w.nii.gz"]
    assert find_truth(tmp_path / "sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz", truths, tmp_path) == truths[0]
    assert find_truth(tmp_path / "sub-01_acq-spaceaxial4mm_desc-isotropic_T2w.nii.gz", truths, tmp_path) == truths[1]
    assert find_truth(tmp_path / "sub-01_acq-tse_desc-isotropic_T2w.nii.gz", truths[:1], tmp_path) == truths[0]
    with pytest.raises(BabyAIError, match="keep one of them"):
        find_truth(tmp_path / "sub-01_acq-tse_desc-isotropic_T2w.nii.gz", truths, tmp_path)


def test_what_cannot_be_scored_is_told_and_the_rest_is_scored(study, tmp_path, capsys):
    results = tmp_path / "results"
    for pair in find_pairs(study / "synthesised")[0][:2]:
        source = result_path(pair, study / "results")
        (results / source.name).parent.mkdir(exist_ok=True)
        (results / source.name).write_bytes(source.read_bytes())
    image = read_volume(source)
    save_volume(results / "sub-03_acq-axial2mm_desc-isotropic_T2w.nii.gz", image.get_fdata()[1:], image.affine)
    save_volume(results / "sub-09_acq-axial2mm_desc-isotropic_T2w.nii.gz", image.get_fdata(), image.affine)
    (results / "sub-03_acq-axial4mm_desc-isotropic_T2w.nii.gz").write_bytes(source.read_bytes()[:1000])
    assert score(study, tmp_path / "out", "--baseline-dir", study / "synthesised", results=results) == 1
    captured = capsys.readouterr()
    assert "2 evaluated, 3 failed" in captured.out
    for fault in ("differ in shape; --align scores", "no isotropic T2w of the same subject", "is truncated or damaged"):
        assert fault in captured.err
    assert captured.err.count("Not evaluated, since it has no result") == 8
    assert len(read_rows(tmp_path / "out")) == 2 * 2 * 3


def test_wrong_calls(study, tmp_path, capsys):
    assert score(study, tmp_path, "--baseline-dir", tmp_path / "nowhere") == 2
    assert "check --baseline-dir" in capsys.readouterr().err
    assert score(study, tmp_path, results=study / "data") == 2
    assert "No reconstruction was found" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--workers", "0"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--depth", "-1"])
    assert score(study, tmp_path, "--depth", 40) == 1
    assert "choose a smaller --depth" in capsys.readouterr().err


def test_align_takes_a_small_motion_out_of_the_score(study, tmp_path):
    """A result on another grid, turned and shifted by what T1w and T2w may lie apart, scores as in its place."""
    name = "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz"
    image = read_volume(study / "results" / name)
    motion = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.01, -0.008, 0.012), [0.3, -0.2, 0.25])
    grid = image.affine @ nib.affines.from_matvec(np.diag([0.9, 0.9, 0.9]), [-1, -1, -1])
    # A point p of the truth lies at motion @ p in what is scored.
    moved = resample(image, (48, 48, 48), grid, np.linalg.inv(motion))
    save_volume(tmp_path / "results" / name, moved, grid)
    assert score(study, tmp_path / "a", results=tmp_path / "results") == 1
    assert score(study, tmp_path / "a", "--align", results=tmp_path / "results") == 0
    aligned = next(row for row in read_rows(tmp_path / "a") if row["region"] == "inner")
    truth = read_volume(study / "data" / "sub-01_T2w.nii.gz")
    back = resample(read_volume(tmp_path / "results" / name), truth.shape, truth.affine, motion)
    array = truth.get_fdata(dtype=np.float32)
    in_place = score_brain(array, back, inner_brain(brain_mask(array))).psnr
    assert float(aligned["psnr"]) == pytest.approx(in_place, abs=0.2)
    assert float(aligned["moved_mm"]) == pytest.approx(np.linalg.norm([0.3, -0.2, 0.25]), abs=0.15)


def test_a_raw_scan_as_baseline_is_brought_to_the_truth(study, tmp_path):
    """As acquired it lies on its own grid, where the registration in the result's sidecar says."""
    name = "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz"
    image = read_volume(study / "results" / name)
    motion = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, -0.1), [5, -4, 3])
    truth = read_volume(study / "data" / "sub-01_T2w.nii.gz")
    save_volume(tmp_path / "results" / name, image.get_fdata(), image.affine)
    save_json(tmp_path / "results" / name.replace(".nii.gz", ".json"), {"Registration": {"T1wToT2w": motion.tolist()}})
    save_volume(tmp_path / "raw" / "sub-01_acq-axial2mm_T2w.nii.gz", truth.get_fdata(), motion @ truth.affine)
    assert score(study, tmp_path, "--baseline-dir", tmp_path / "raw", results=tmp_path / "results") == 0
    cubic = next(row for row in read_rows(tmp_path) if (row["region"], row["method"]) == ("inner", "cubic"))
    assert float(cubic["psnr"]) > 60


@pytest.mark.parametrize("registration", [5, {}, {"T1wToT2w": [[1, 2]]}])
def test_a_sidecar_that_does_not_tell_how_the_scan_lay(study, tmp_path, registration, capsys):
    name = "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz"
    image = read_volume(study / "results" / name)
    save_volume(tmp_path / "results" / name, image.get_fdata(), image.affine)
    save_json(tmp_path / "results" / name.replace(".nii.gz", ".json"), {"Registration": registration})
    assert score(study, tmp_path, "--baseline-dir", study / "synthesised", results=tmp_path / "results") == 1
    assert "states no T1wToT2w of 4 x 4 numbers; make it again" in capsys.readouterr().err


def test_an_odd_age_is_told_once(study, tmp_path, capsys):
    for scan in (study / "data").glob("sub-01_*"):
        save_volume(tmp_path / "data" / scan.name, read_volume(scan).get_fdata(), read_volume(scan).affine)
    (tmp_path / "data" / "participants.tsv").write_text("participant_id\tage_months\nsub-01\tfour\n")
    score(study, tmp_path, "--reference-dir", tmp_path / "data")
    assert capsys.readouterr().err.count("'four', is no number") == 1


@pytest.mark.parametrize("known", [True, False])
def test_slices_that_the_name_does_not_tell_are_taken_from_the_sidecar(study, tmp_path, known):
    source = study / "results" / "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz"
    result = tmp_path / "results" / "sub-01_desc-isotropic_T2w.nii.gz"
    image = read_volume(source)
    save_volume(result, image.get_fdata(), image.affine)
    if known:
        quality = {"Plane": "axial", "SliceThickness": 2.0, "SpacingBetweenSlices": 2.5}
        save_json(tmp_path / "results" / "sub-01_desc-isotropic_T2w.json", {"Quality": quality})
    assert score(study, tmp_path, results=tmp_path / "results") == 0
    row = read_rows(tmp_path)[0]
    assert (row["direction"], row["thickness_mm"]) == (("axial", "2.0") if known else ("", ""))
    assert bool(row["sharpness"]) == known
    groups = [cells[0] for cells in read_tables((tmp_path / "summary.md").read_text().splitlines())["Inner brain"]]
    assert groups == ["", "all", *(["2 mm", "axial", "2 mm axial"] if known else []), "newborn"]


def test_results_of_several_weights_are_told(study, tmp_path, capsys):
    results = tmp_path / "results"
    for number, source in enumerate(sorted((study / "results").rglob("sub-01*axial*.nii.gz"))):
        image = read_volume(source)
        save_volume(results / source.name, image.get_fdata(), image.affine)
        weights = {"Name": "bundled", "SHA256": str(number) * 64}
        save_json(results / source.name.replace(".nii.gz", ".json"), {"Weights": weights})
    assert score(study, tmp_path / "out", results=results) == 0
    told = (
        "Results of bundled (SHA-256 000000000000): 1, bundled (SHA-256 111111111111): 1. They were not all made with"
    )
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "out" / "summary.md").read_text()


def test_scans_of_two_folders_that_share_a_name_are_told_apart(tmp_path):
    for name in ("a/sub-1_T1w", "a/sub-1_T2w", "b/sub-1_T1w", "b/sub-1_T2w", "sub-2_T1w", "sub-2_T2w"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii").touch()
    arguments = evaluate.parse_arguments(["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")])
    tally = Tally("evaluated")
    rows = evaluate.over_pairs(lambda pair: [{"name": pair.name}], arguments, tally)
    assert [row["name"] for row in rows] == ["a/sub-1_T2w", "b/sub-1_T2w", "sub-2_T2w"] and tally.done == 3


def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "in_processes", None)
    (tmp_path / "file").touch()
    assert score(study, tmp_path / "file") == 2
    assert "file is not writable (File exists); choose another" in capsys.readouterr().err


def test_as_a_command(study, tmp_path):
    command = [sys.executable, evaluate.__file__, "--reference-dir", study / "data", "--workers", "2"]
    command += ["--results-dir", study / "results", "--output-dir", tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.endswith("Summary: 12 evaluated, 0 failed.\n")
    assert len(read_rows(tmp_path)) == 12 * 3


def test_of_one_scan_there_is_no_least_gain():
    scores = pd.DataFrame({"region": "inner", "gain": [1.5, 1.25], "name": ["sub-1", "sub-2"]})
    assert verdict(scores[:1]) == "The only scan gains over cubic in the inner brain, +1.50 dB."
    assert verdict(scores) == "All 2 scans gain over cubic in the inner brain, +1.25 dB at least (sub-2)."
