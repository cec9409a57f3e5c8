"""The README's picture of a report: what a browser shows of the page, or a sentence why not."""

import pytest
from matplotlib.image import imread

import draw_report
from browser import CHROMIUM


@pytest.fixture
def small_page(monkeypatch):
    """A page in place of the infant's."""

    def page(folder, weights):
        (folder / "report.html").write_text("<body style='background: #00f'>")
        return folder / "report.html"

    monkeypatch.setattr(draw_report, "make_report", page)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_is_drawn(small_page, tmp_path):
    assert draw_report.main(["--output", str(tmp_path / "report.png")]) == 0
    picture = imread(tmp_path / "report.png")
    width, height = map(int, draw_report.SIZE.split(","))
    assert picture.shape[:2] == (height, width) and picture[..., 2].min() == 1 and picture[..., 0].max() == 0


def test_without_a_browser_nothing_is_left(small_page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_report.shutil, "which", lambda name: None)
    assert draw_report.main(["--output", str(tmp_path / "report.png")]) == 1
    assert "Chromium is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
