"""Which weights are the best."""

import pytest

from func.training.checkpoints import Progress


def best_of(recipe, name, values):
    progress = Progress()
    for step, value in enumerate(values, 1):
        progress.step = step
        progress.record({name: value}, recipe)
        assert progress.is_best == (progress.best_step == step)
    return progress.best_step, progress.best


@pytest.mark.parametrize("recipe, name, best", [("compact", "inner_psnr", 30.0), ("babyai", "loss", 0.1)])
def test_the_best_weights_are_those_of_the_best_score(recipe, name, best):
    values = [25.0, 30.0, 28.0, 30.0] if recipe == "compact" else [0.5, 0.1, 0.3, 0.1]
    assert best_of(recipe, name, values) == (2, {name: best})


def test_without_validation_subjects_the_last_weights_are_the_best():
    progress = Progress()
    for step in (1, 2):
        progress.step = step
        progress.record({}, "compact")
        assert progress.is_best
