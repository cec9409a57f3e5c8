"""The README's figure: three infants, each with input, reconstruction and truth, whole and enlarged."""

from dataclasses import replace

import pytest

import draw_results
from draw_results import INFANTS, Drawn, Infant


@pytest.fixture
def small_infants(small_head, monkeypatch) -> list[Infant]:
    """A miniature head in place of each infant's, and where to cut it."""
    monkeypatch.setattr(draw_results, "infant_brain", lambda age_months, seed: small_head)
    monkeypatch.setattr(draw_results, "ZOOM", 12)
    small = [replace(infant, cut=(infant.cut[0], 26), corner=(14, 20)) for infant in INFANTS]
    monkeypatch.setattr(draw_results, "INFANTS", small)
    return small


def test_the_figure_shows_each_infant_before_and_after(small_infants, tmp_path, monkeypatch):
    drawn, draw = [], draw_results.draw
    monkeypatch.setattr(draw_results, "draw", lambda cases: drawn.append((cases, draw(cases))) or drawn[-1][1])
    assert draw_results.main(["--output", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    (cases, figure), *_ = drawn
    texts = [text.get_text() for text in figure.texts]
    assert "newborn: 4 mm axial slices" in texts and "24 months: 4 mm sagittal slices" in texts
    assert len(figure.axes) == 3 * 3 * 2
    for case in cases:
        assert case.psnr["reconstruction"] > case.psnr["input, cubic interpolation"]
        for title, psnr in case.psnr.items():
            assert f"{title}   {psnr:.1f} dB" in texts


def test_panels_lie_in_the_figure_and_squares_show_what_is_enlarged(small_infants, small_head):
    planes = {title: small_head.t2.get_fdata()[:, 26].T for title in ("input", "reconstruction", "truth")}
    figure = draw_results.draw([Drawn(infant, planes, {"input": 20.0}, 1600) for infant in small_infants])
    for panel in figure.axes:
        assert panel.get_position().min.min() >= 0 and panel.get_position().max.max() <= 1
    whole, enlarged = figure.axes[:2]
    x, y = (round(place + 0.5) for place in whole.patches[0].get_xy())
    shown = whole.images[0].get_array()[y : y + 12, x : x + 12]
    assert (shown == enlarged.images[0].get_array()).all() and shown.any()


@pytest.mark.parametrize("infant", INFANTS, ids=lambda infant: infant.name)
def test_the_plane_drawn_shows_the_slices_from_their_side(infant):
    assert infant.cut[0] != draw_results.AXIS_ACROSS[infant.direction]


def test_the_figure_in_the_repository_is_small():
    assert draw_results.OUTPUT.stat().st_size < 400_000


def test_weights_that_are_not_there_are_told(tmp_path, capsys):
    assert draw_results.main(["--weights", str(tmp_path / "none.pth"), "--output", str(tmp_path / "x.png")]) == 1
    assert "draw_results.py: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
