"""TensorBoard where it is missing or cannot write."""

import sys

import pytest

from func.errors import BabyAIError
from func.training.tensorboard import Board, check_tensorboard


def test_a_missing_tensorboard_is_found_before_any_work(monkeypatch):
    check_tensorboard()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BabyAIError, match="requirements_training"):
        check_tensorboard()


def test_a_folder_that_cannot_be_written_costs_the_curves_alone(tmp_path, capsys):
    (tmp_path / "logs").write_text("a file where the folder should be")
    board = Board(tmp_path / "logs", 0)
    board.add_scalars("training", {"loss": 1.0}, 1)
    assert capsys.readouterr().err.count("its curves end here") == 1
