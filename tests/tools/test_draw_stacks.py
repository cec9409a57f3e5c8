"""The README's figure of stacks: scans that move as they should, and a column for each result."""

import numpy as np

from draw_stacks import FARTHEST, draw, path


def test_a_head_drifts_and_jumps():
    moves = path(30, np.random.default_rng(0))
    steps = np.abs(np.diff(moves, axis=0)).max(axis=1)
    assert moves.shape == (30, 6) and set(np.argsort(steps)[-2:]) == {9, 21}
    assert np.abs(moves).max() < 2 * FARTHEST


def test_each_result_has_a_column_with_its_score():
    volume = np.pad(np.ones((60, 80, 120), np.float32), ((70, 60), (60, 60), (40, 20)))
    figure = draw({"one stack": (0.5 * volume, 21.04), "truth": (volume, None)})
    heading, *captions = [text.get_text() for text in figure.texts]
    assert "phantom" in heading and captions == ["one stack   21.0 dB", "truth"]
    assert len(figure.axes) == 4
    for panel in figure.axes:
        assert panel.get_position().min.min() >= 0 and panel.get_position().max.max() <= 1
