"""The report: figures that show what is there, one page from all of them, and that page in a real browser."""

import base64
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from scipy import ndimage

from browser import CHROMIUM, Browser
from func.reports import page as report
from func.reports.case_figure import COLUMNS, Scans, draw_figure, save_figure
from func.reports.page import Reporter, figure_path, record_failures, scans_of, write_report
from func.scans.nifti import image_of, save_result
from func.scans.sidecars import read_sidecar

WARNING = "Slices of 8 mm are <outside> the 2 to 6 mm of the weights' training."


@pytest.fixture(scope="module")
def scans(small_head):
    smooth = small_head.t2.get_fdata(dtype=np.float32)
    smooth = (smooth + np.roll(smooth, 2, 2) + np.roll(smooth, -2, 2)) / 3
    return Scans(small_head.t1, image_of(smooth, small_head.t2.affine), small_head.t2, np.eye(4), np.eye(4))


def sidecar(number, warnings=()):
    return {
        "Sources": [f"sub-{number}_T2w.nii.gz", f"sub-{number}_T1w.nii.gz"],
        "Warnings": list(warnings),
        "Quality": {"Plane": "axial", "SliceThickness": 2.0 + number % 5, "SignalToNoise": 50.0, "Overlap": 0.99},
        "Weights": {"Name": "bundled", "Recipe": "compact", "SHA256": "ab" * 32},
        "Checks": {"SliceResidualBefore": 0.02, "SliceResidualAfter": 0.004},
        "Seconds": {"Reading": 0.5, "Network": 5.0},
        "Computed": {"Device": "cpu", "Precision": "float32", "NetworkRuns": 1, "Network": "large"},
        "Versions": {"BABY-AI": "1", "torch": "2"},
    }


def add_result(folder, number, scans, warnings=(), figure=None):
    """A result with its figure; a figure made before is only copied."""
    path = folder / f"sub-{number:03}" / f"sub-{number:03}_desc-isotropic_T2w.nii.gz"
    save_result(path, nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), sidecar(number, warnings))
    target = figure_path(path, folder)
    if figure is None:
        save_figure(target, draw_figure("x", scans))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(figure)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scans):
    folder = tmp_path_factory.mktemp("results")
    for number, warnings in ((1, ()), (2, (WARNING, "And more.")), (3, (WARNING,))):
        add_result(folder, number, scans, warnings)
    record_failures(folder, ["data/sub-004_T2w.nii.gz is truncated or damaged; copy or convert it again."])
    write_report(folder)
    return folder


def panels_of(path):
    found = re.findall(r'id="(\w+)-(\w+)"[^>]*href="data:image/jpeg;base64,([^"]+)"', path.read_text())
    return {(row, column): imread(io.BytesIO(base64.b64decode(b)), "jpeg") for row, column, b in found}


def test_a_figure_shows_each_scan_in_each_plane(folder):
    panels = panels_of(next((folder / "figures").rglob("sub-001*.svg")))
    assert set(panels) == {(row, column) for row in ("t1w", "cubic", "reconstruction") for column in COLUMNS}
    assert all(panel.shape == (256, 256, 3) and panel.max() > 150 for panel in panels.values())


@pytest.mark.parametrize("space", ["1mm", "t2"])
@pytest.mark.parametrize("at_hand", [True, False])
def test_a_raw_case_is_drawn_with_its_motion(tmp_path, scans, space, at_hand):
    """Drawn at once or later from the files, in the T1w's world or the T2w's: all rows show the same place."""
    motion = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.2), [5, -7, 9])
    moved = image_of(np.asarray(scans.t2.dataobj), motion @ scans.t2.affine)
    result = image_of(np.asarray(scans.result.dataobj), (motion if space == "t2" else np.eye(4)) @ scans.result.affine)
    path = tmp_path / "sub-01_desc-isotropic_T2w.nii.gz"
    save_result(path, result, {"Registration": {"T1wToT2w": motion.tolist()}, "Settings": {"Space": space}})
    files = tmp_path / "t1.nii.gz", tmp_path / "t2.nii.gz"
    for file, image in zip(files, (scans.t1, moved), strict=True):
        nib.save(image, file)
    told = []
    reporter = Reporter(tmp_path, "1of1", told.append)
    if at_hand:
        reporter.add(path, reporter.draw(path, scans.t1, moved, result, None, read_sidecar(path)))
    else:
        reporter.catch_up(path, *files)
    assert not told
    panels = {key: panel[..., 0].astype(float) for key, panel in panels_of(figure_path(path, tmp_path)).items()}
    for column in COLUMNS:
        alike = np.corrcoef(panels["cubic", column].ravel(), panels["reconstruction", column].ravel())[0, 1]
        heads = [panels[row, column] > 25 for row in ("t1w", "reconstruction")]
        assert alike > 0.9 and (heads[0] & heads[1]).sum() > 0.8 * (heads[0] | heads[1]).sum()


def test_edges_of_the_t1w_are_drawn_over_the_t2w_where_they_may_not_show_one_head(tmp_path, scans):
    registration = {"T1wToT2w": np.eye(4).tolist(), "Verdict": "unsure"}
    doubtful = scans_of(scans.t1, scans.t2, scans.result, None, {"Registration": registration})
    save_figure(tmp_path / "x.svg", draw_figure("x", doubtful))
    overlay = panels_of(tmp_path / "x.svg")["overlay", "axial"].astype(int)
    coloured = (overlay.max(axis=2) - overlay.min(axis=2)) > 60
    assert 0.005 < coloured.mean() < 0.3
    sure = scans_of(scans.t1, scans.t2, scans.result, None, {"Registration": registration | {"Verdict": "right"}})
    assert not sure.overlay


def test_a_case_without_a_t1w_is_drawn_without_it(tmp_path, scans):
    save_figure(tmp_path / "x.svg", draw_figure("x", scans_of(None, scans.t2, scans.result, None, {})))
    assert {row for row, _ in panels_of(tmp_path / "x.svg")} == {"cubic", "reconstruction"}


def test_stacks_and_their_motion_are_told(tmp_path, scans):
    path = add_result(tmp_path, 1, scans)
    still_then_jump = [[0, 0, 0, 0, 0, 0]] * 5 + [[2.5, 0, -1, 0, 0, 3]] * 5
    stacks = [
        {"Name": "sub-001_acq-axial_T2w.nii.gz", "Plane": "axial",
         "Checks": {"SliceCount": 10, "Weight": 0.25, "SliceResidualBefore": 0.025, "SliceResidualAfter": 0.0123,
                    "SlicesLeftOut": [3, 4]},
         "Motion": {"Searched": True, "Found": True, "Spread": 1.3, "Order": [0, 5, 1, 6, 2, 7, 3, 8, 4, 9],
                    "Path": still_then_jump}},
        {"Name": "sub-001_acq-coronal_T2w.nii.gz",
         "Checks": {"SliceCount": 12, "SliceResidualAfter": 0.0045, "SlicesLeftOut": []},
         "Motion": {"Searched": False}},
    ]  # fmt: skip
    path.with_name("sub-001_desc-isotropic_T2w.json").write_text(json.dumps(sidecar(1) | {"Stacks": stacks}))
    page = write_report(tmp_path).read_text()
    told = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(<td>sub-001_acq.*?)</tr>", page)]
    assert told[0][:5] == ["sub-001_acq-axial_T2w", "axial", "–", "8 of 10, without 3, 4", "25 %"]
    assert told[0][-2:] == ["2.50 % → 1.23 %", "1.3 mm"] and told[1][-2:] == ["0.45 %", "not looked for"]
    assert 'class="left-out" x1="200.0"' in page and 'class="left-out" x1="66.7"' in page
    assert page.count("<polyline") == 6 and "Shift, ± 2.5 mm" in page and "Turn, ± 3.0 °" in page
    first, second, through = re.findall(r'class="line-\d" points="([^"]+)"', page)[:3]
    assert first.startswith("0.0,40.0 ") and first.endswith(" 300.0,2.0") and through.endswith(" 300.0,55.2")
    assert {point.split(",")[1] for point in second.split()} == {"40.0"}


def test_a_sentence_for_the_methods_section(folder):
    page = (folder / "report.html").read_text()
    assert "(n = 3, 1 mm voxels) were reconstructed with BABY-AI 1 (A. Lennartsson; the large network of the" in page
    assert "the large network, run once" in page
    assert "each from 1 T2w stack of 3–5 mm slices and a T1w image of the same infant." in page


def test_the_page_tells_everything_and_needs_nothing(folder):
    page = re.sub(r'"data:image/jpeg;base64,[^"]+"', '"data:"', (folder / "report.html").read_text())
    assert page.index('id="case-1"') < page.index("sub-002_T2w</h2>") < page.index("sub-003_T2w</h2>")
    assert page.index("sub-003_T2w</h2>") < page.index("sub-001_T2w</h2>")
    assert (
        "truncated or damaged" in page and "ab" * 32 in page and "&lt;outside&gt;" in page and "<outside>" not in page
    )
    assert not re.findall(r'(?:src|href)="(?!data:|#|sub-)', page)
    assert "@import" not in page and "url(" not in page and "http" not in page.replace("http-equiv", "")


def test_a_result_without_a_current_figure_is_in_it_all_the_same(tmp_path, scans):
    path = add_result(tmp_path, 1, scans)
    os.utime(path, ns=(2**62, 2**62))
    assert "No pictures" in write_report(tmp_path).read_text()
    figure_path(path, tmp_path).write_text("<svg")
    os.utime(figure_path(path, tmp_path), ns=(2**62, 2**62))
    assert "No pictures" in write_report(tmp_path).read_text()
    path.unlink()
    assert "No reconstruction is in this folder yet" in write_report(tmp_path).read_text()


def test_an_empty_or_odd_sidecar_costs_nothing(tmp_path, scans):
    path = add_result(tmp_path, 1, scans)
    for content in ("{}", "[1]", "{", '{"Quality": 3, "Seconds": {"Network": "soon"}, "Warnings": [1]}'):
        path.with_name("sub-001_desc-isotropic_T2w.json").write_text(content)
        assert "sub-001_T2w" in write_report(tmp_path).read_text()


def test_failures_are_told_until_the_part_runs_again(tmp_path):
    record_failures(tmp_path, ["one is bad."], "1of2")
    record_failures(tmp_path, ["two is bad."], "2of2")
    page = write_report(tmp_path).read_text()
    assert "one is bad." in page and "two is bad." in page
    record_failures(tmp_path, [], "2of2")
    page = write_report(tmp_path).read_text()
    assert "one is bad." in page and "two is bad." not in page
    record_failures(tmp_path, [])
    assert "is bad" not in write_report(tmp_path).read_text()


def test_parts_that_finish_together_leave_one_whole_page(tmp_path, scans, folder):
    figure = next((folder / "figures").rglob("sub-001*.svg")).read_text()

    def part(index):
        for number in range(index, 24, 6):
            add_result(tmp_path, number, scans, figure=figure)
        write_report(tmp_path)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(part, range(6)))
    assert (tmp_path / "report.html").read_text().count('<article class="sheet card"') == 24


def test_what_goes_wrong_with_the_report_is_told_and_spares_the_run(tmp_path, scans, monkeypatch):
    told = []
    reporter = Reporter(tmp_path, "1of1", told.append)
    monkeypatch.setattr(report, "draw_figure", lambda name, scans: 1 / 0)
    path = tmp_path / "x_T2w.nii.gz"
    reporter.add(path, reporter.draw(path, scans.t1, scans.t2, scans.result, None, {}))
    (tmp_path / "report.html").mkdir()
    reporter.finish([])
    assert len(told) == 2 and "ZeroDivisionError" in told[0] and told[1].startswith("The report is missing: ")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH (on Debian: apt-get install chromium)")
    with Browser() as browser:
        yield browser


def shown(browser):
    """From where on, in percent of its width, the first card's reconstruction is shown over the interpolation."""
    style = browser.run("getComputedStyle(document.querySelector('.reconstruction .panel')).clipPath")
    return float(re.search(r"([\d.]+)%\)", style)[1])


def test_the_square_shows_where_the_zoom_is(browser, folder):
    """What the browser draws around in the plane of the zoom looks like the zoom."""
    figure = next((folder / "figures").rglob("sub-001*.svg"))
    plane = re.search(r'data-zoom="(\w+)"', figure.read_text())[1]
    left, top, side = (float(share) / 100 for share in re.search(r'data-box="([^"]+)"', figure.read_text())[1].split())
    panels = panels_of(figure)
    ticks = np.linspace(0, 255, 256) / 255 * side * 256
    rows, columns = np.meshgrid(top * 256 + ticks, left * 256 + ticks, indexing="ij")
    whole, zoomed = (panels["t1w", column][..., 0].astype(float) for column in (plane, "zoom"))
    enlarged = ndimage.map_coordinates(whole, [rows, columns], order=1)
    assert np.corrcoef(enlarged.ravel(), zoomed.ravel())[0, 1] > 0.95

    browser.open(folder / "report.html")
    drawn = browser.run("(b => [b.left, b.top, b.width].map(parseFloat))(getComputedStyle("
                        f"document.querySelector('#case-3 .panel.{plane} .zoomed'), '::after'))")  # fmt: skip
    width = browser.run(f"document.querySelector('#case-3 .panel.{plane}').getBoundingClientRect().width")
    np.testing.assert_allclose(drawn, width * np.array([left, top, side]), atol=1)


def test_the_page_works_in_a_browser(browser, folder):
    browser.open(folder / "report.html")
    assert browser.run("[...document.images].every(image => image.naturalWidth === 256)")
    assert shown(browser) == 50
    before = browser.screenshot()

    x, y = browser.middle("input[type=range]")
    browser.mouse("mousePressed", x, y)
    far, _ = browser.middle("input[type=range]", 0.9)
    browser.mouse("mouseMoved", far, y, held=True)
    browser.mouse("mouseReleased", far, y)
    assert shown(browser) > 80
    browser.mouse("mouseMoved", *browser.middle(".compare .axial", 0.25))
    assert shown(browser) == pytest.approx(25, abs=1)
    assert browser.screenshot() != before

    browser.press("input[type=range]", "ArrowRight")
    assert shown(browser) == pytest.approx(26, abs=1)
    browser.press("input[type=range]", "Home")
    assert shown(browser) == 0

    browser.click(".flicker")
    assert shown(browser) in (0, 100)
    browser.click(".flicker")
    assert shown(browser) == 50

    names = "[...document.querySelectorAll('#summary tbody tr:not([hidden])')].map(row => row.cells[0].innerText)"
    assert browser.run(names) == ["sub-002_T2w", "sub-003_T2w", "sub-001_T2w"]
    browser.click("th:first-child button")
    assert browser.run(names) == ["sub-001_T2w", "sub-002_T2w", "sub-003_T2w"]
    browser.click("th:first-child button")
    assert browser.run(names) == ["sub-003_T2w", "sub-002_T2w", "sub-001_T2w"]
    browser.click("#only-flagged")
    assert browser.run(names) == ["sub-003_T2w", "sub-002_T2w"]
    browser.click("#radiological")
    assert (
        browser.run("getComputedStyle(document.querySelector('.axial img')).transform") == "matrix(-1, 0, 0, 1, 0, 0)"
    )
    assert browser.run("getComputedStyle(document.querySelector('.sagittal img')).transform") == "none"
    assert not browser.errors
    assert all(url.startswith(("file:", "data:", "about:")) for url in browser.requests)


def test_it_prints_both_images_and_no_controls(browser, folder):
    browser.open(folder / "report.html")
    # The table, and a page for each of three scans; the last lines may need one more.
    assert len(re.findall(rb"/Type\s*/Page\b", browser.pdf())) in (4, 5)
    assert browser.run("[...document.querySelectorAll('details')].every(details => details.open)")
    browser.call("Emulation.setEmulatedMedia", media="print")
    tops = "['cubic', 'reconstruction'].map(row => document.querySelector('.row.' + row).getBoundingClientRect().top)"
    cubic, reconstruction = browser.run(tops)
    assert reconstruction > cubic + 50
    assert browser.run("getComputedStyle(document.querySelector('.slider')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_two_hundred_scans_stay_usable(browser, tmp_path, scans, folder):
    figure = next((folder / "figures").rglob("sub-001*.svg")).read_text()
    for number in range(200):
        add_result(tmp_path, number, scans, figure=figure)
    assert browser.open(write_report(tmp_path)) < 60
    assert browser.run("document.querySelectorAll('.card').length") == 200
    browser.mouse("mouseMoved", *browser.middle("#case-200 .compare .axial", 0.75))
    assert browser.run("document.querySelector('#case-200 .compare').style.getPropertyValue('--split')") == "75%"
    assert browser.run("document.querySelector('#case-200 img').decode().then(() => true)")
    assert len(json.dumps(browser.errors)) == 2
