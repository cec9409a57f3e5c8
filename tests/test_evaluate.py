"""evaluate.py: reconstructions scored beside cubic interpolation."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
import synthesize_anisotropic
from func.reports.scores import score_brain
from func.reports.tables import mean_and_interval
from func.scans.bids import find_pairs, result_path
from func.scans.nifti import read_volume, save_volume


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


def read_rows(output: Path) -> list[dict]:
    with (output / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_scan_is_scored_beside_its_baseline(study, tmp_path, capsys):
    assert score(study, tmp_path, "--baseline-dir", study / "synthesised") == 0
    rows = read_rows(tmp_path)
    assert len(rows) == 3 * 4 * 2 * 2
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
    assert float(chosen["BABY-AI"]["psnr"]) - float(chosen["cubic"]["psnr"]) == pytest.approx(6.02, abs=0.01)
    assert float(chosen["BABY-AI"]["nrmse"]) == pytest.approx(float(chosen["cubic"]["nrmse"]) / 2, rel=1e-3)
    assert (tmp_path / "boxplot.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert "Summary: 12 evaluated, 0 failed." in captured.out
    assert "All 12 scans gain over cubic inside the brain" in captured.out


def test_the_summary_groups_by_thickness_direction_and_age(study, tmp_path):
    score(study, tmp_path, "--baseline-dir", study / "synthesised")
    lines = (tmp_path / "summary.md").read_text().splitlines()
    brain = lines[lines.index("## Inside the brain") : lines.index("## Whole volume")]
    titles = [line.split(" | ")[0].removeprefix("| ") for line in brain if line.startswith("| ")][1:]
    assert titles[:5] == ["all", "2 mm", "4 mm", "axial", "sagittal"]
    assert titles[5:9] == ["2 mm axial", "2 mm sagittal", "4 mm axial", "4 mm sagittal"]
    assert titles[9:] == ["newborn", "6 to 11 months"]
    everything = next(line for line in brain if line.startswith("| all"))
    assert everything.startswith("| all | 12 | 3 | ") and everything.endswith("| 6.02 ± 0.00 |")


def test_short_tables_for_a_readme(study, tmp_path):
    score(study, tmp_path, "--baseline-dir", study / "synthesised")
    lines = (tmp_path / "summary.md").read_text().splitlines()
    short = lines[lines.index("## In short") : lines.index("## Inside the brain")]
    heads = [line for line in short if line.startswith("| ") and "cubic" not in line and "BABY-AI" not in line]
    assert heads == [
        "| slice thickness | 2 mm | 4 mm |",
        "| slice direction | axial | sagittal |",
        "| age (subjects) | 2 mm | 4 mm |",
    ]
    rows = [row for row in read_rows(tmp_path) if row["region"] == "brain" and row["method"] == "cubic"]
    thin = [row for row in rows if row["thickness_mm"] == "2.0"]
    psnr, ssim = (np.mean([float(row[metric]) for row in thin]) for metric in ("psnr", "ssim"))
    cubic = short[short.index(heads[0]) + 2]
    assert cubic.startswith(f"| cubic | {psnr:.2f} / {ssim:.3f} | ".replace("/ 0.", "/ ."))
    by_age = short[short.index(heads[2]) + 2 :]
    assert [line.split(" | ")[0] for line in by_age if line] == [
        "| newborn (1), cubic", "| newborn (1), BABY-AI", "| 6 to 11 months (1), cubic", "| 6 to 11 months (1), BABY-AI"
    ]  # fmt: skip
    young = [row for row in thin if row["subject"] == "01"]
    assert f"{np.mean([float(row['psnr']) for row in young]):.2f} / " in by_age[0]


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
    with (output / "uncertainty.csv").open(newline="") as file:
        judged = list(csv.DictReader(file))
    assert [row["name"] for row in judged][:1] == ["sub-01_acq-axial2mm_desc-isotropic_T2w"] and len(judged) == 4
    for row in judged:
        assert float(row["coverage"]) == pytest.approx(0.5, abs=0.05)
        assert 0.5 < float(row["correlation"]) < 0.95 and 0 < float(row["median_width"]) < 0.5
    summary = (output / "summary.md").read_text()
    # Half of the errors are twice as large as stated, and nine in ten are to be held.
    assert "All half-widths times 2.000 would hold 90 % of the errors." in summary
    assert "Such a fit to all other subjects holds of the errors of sub-01 " in summary
    assert len(read_rows(output)) == 4 * 2 * 2


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
    values = [("a", 0.5), ("a", 1.5), ("b", 2.0), ("c", 2.0), ("c", 3.0), ("c", 4.0)]
    assert mean_and_interval(values, 3) == "2.000 ± 2.484"
    assert mean_and_interval(values[:2], 3) == "1.000"


def test_without_a_baseline_the_results_are_scored_alone(study, tmp_path):
    assert score(study, tmp_path) == 0
    assert {row["method"] for row in read_rows(tmp_path)} == {"BABY-AI"}
    assert "No baseline was given." in (tmp_path / "summary.md").read_text()


def test_scans_that_lose_to_the_baseline_are_named(study, tmp_path):
    results = tmp_path / "results"
    truth = read_volume(study / "data" / "sub-01_T2w.nii.gz")
    save_volume(results / "sub-01_acq-axial2mm_desc-isotropic_T2w.nii.gz", 0.5 * truth.get_fdata(), truth.affine)
    assert score(study, tmp_path, "--baseline-dir", study / "synthesised", results=results) == 0
    assert "1 of 1 scans lose to cubic inside the brain: sub-01_acq-axial2mm" in (tmp_path / "summary.md").read_text()


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


def test_of_several_truths_the_one_with_the_result_s_own_label_is_taken(tmp_path):
    truths = [tmp_path / "sub-01_T2w.nii.gz", tmp_path / "sub-01_acq-space_T2w.nii.gz"]
    find = evaluate.find_truth
    assert find(tmp_path / "sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz", truths, tmp_path) == truths[0]
    assert find(tmp_path / "sub-01_acq-spaceaxial4mm_desc-isotropic_T2w.nii.gz", truths, tmp_path) == truths[1]
    assert find(tmp_path / "sub-01_acq-tse_desc-isotropic_T2w.nii.gz", truths[:1], tmp_path) == truths[0]
    with pytest.raises(evaluate.BabyAIError, match="keep one of them"):
        find(tmp_path / "sub-01_acq-tse_desc-isotropic_T2w.nii.gz", truths, tmp_path)


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
    for fault in ("differ in shape", "no isotropic T2w of the same subject", "is truncated or damaged"):
        assert fault in captured.err
    assert captured.err.count("Not evaluated, for want of a result") == 8
    assert len(read_rows(tmp_path / "out")) == 2 * 2 * 2


def test_wrong_calls(study, tmp_path, capsys):
    assert score(study, tmp_path, "--baseline-dir", tmp_path / "nowhere") == 2
    assert "check --baseline-dir" in capsys.readouterr().err
    assert score(study, tmp_path, results=study / "data") == 2
    assert "No reconstruction was found" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--workers", "0"])


@pytest.mark.parametrize(
    "participant, group",
    [
        ({"age_months": "0.9"}, "newborn"),
        ({"age_months": "6"}, "6 to 11 months"),
        ({"age": "0.25"}, "1 to 5 months"),
        ({"age": "2"}, "12 months and older"),
        ({"age_group": "preterm", "age": "0"}, "preterm"),
        ({"age": "n/a"}, ""),
        ({"sex": "F"}, ""),
    ],
)
def test_age_groups(participant, group):
    assert evaluate.age_group(participant) == group


def test_a_damaged_participants_table_is_told(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\tyoung\n")
    with pytest.raises(evaluate.BabyAIError, match=r"participants\.tsv cannot be read"):
        evaluate.read_age_groups(tmp_path / "participants.tsv")


def test_as_a_command(study, tmp_path):
    command = [sys.executable, evaluate.__file__, "--reference-dir", study / "data", "--workers", "2"]
    command += ["--results-dir", study / "results", "--output-dir", tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.endswith("Summary: 12 evaluated, 0 failed.\n")
    assert len(read_rows(tmp_path)) == 12 * 2
