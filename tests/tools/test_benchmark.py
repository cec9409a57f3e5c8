"""The benchmark runs through and fills its tables; nothing is timed here."""

import re

import pytest
import torch

import benchmark
import training
from func.errors import BabyAIError
from func.networks import weights as network

SMALL = {"channels": (4, 5, 6), "strides": (2, 2), "num_res_units": 2}


@pytest.fixture
def small_benchmark(monkeypatch, small_head):
    """The benchmark on a miniature head, with a miniature of the published network and no subprocess."""
    monkeypatch.setitem(network.RECIPES, "babyai", {**network.RECIPES["babyai"], **SMALL})
    monkeypatch.setattr(benchmark, "infant_brain", lambda age_months: small_head)
    monkeypatch.setattr(benchmark, "run_process", lambda command: (1.0, 2e9))
    monkeypatch.setattr(benchmark, "matrix_product_rate", lambda device, precision="float32": 1e11)
    monkeypatch.setattr(benchmark, "training_rate", understood)
    for constant, value in {"REPEATS": 1, "PATCHES": 3, "BATCH": 2, "SUBJECTS": (1, 2), "SIZES": (16, 24)}.items():
        monkeypatch.setattr(benchmark, constant, value)


def understood(command):
    """Stands for a training that begins: its arguments are read as training.py reads them."""
    assert training.parse_arguments([str(word) for word in command[2:]]).steps == 1000
    return 50.0, 0.01


def rows(text, title):
    """The cells of the table under a title, by the name of their row."""
    lines = text.partition(title)[2].partition("###")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: values for name, *values in cells[2:]}


def test_every_table_is_filled(small_benchmark, tmp_path, capsys):
    output = tmp_path / "benchmark.md"
    assert benchmark.main(["--device", "cpu", "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "nan" not in text
    published, folders = rows(text, "### The published network"), rows(text, "### The bundled weights")
    assert all(re.match(r"[\d.]+", cell) for cells in published.values() for cell in cells)
    assert published["times as fast"][0] == "1.0"
    largest = published["largest difference, of the range"]
    assert float(largest[2]) < 1e-4
    assert float(largest[3]) < 0.1
    assert list(folders) == ["1", "2"]
    assert len(rows(text, "### Training")) == 4
    assert list(rows(text, "### Time and voxels")) == ["16×16×16", "24×24×24"]


def test_the_last_report_of_a_training_counts():
    reports = "; ".join(f"echo step {n}: loss 1, samples per second {n}.5, waiting share 0.25, x 1" for n in (4, 8, 12))
    assert benchmark.training_rate(["sh", "-c", f"{reports}; exec sleep 60"]) == (12.5, 0.25)


def test_patches_with_data_are_found(small_benchmark):
    inputs = torch.zeros(2, 48, 48, 48)
    inputs[1, 0, 0, 0] = 1
    assert benchmark.filled_patches(inputs).shape == (1, 2, 32, 32, 32)


def test_bad_calls_are_told_in_a_sentence(tmp_path, capsys):
    missing = str(tmp_path / "none.nii.gz")
    assert benchmark.main(["--t1", missing, "--t2", missing]) == 2
    assert missing in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--t1", missing])
    assert stopped.value.code == 2
    with pytest.raises(BabyAIError, match="without a report"):
        benchmark.training_rate(["sh", "-c", "exit 3"])
    with pytest.raises(BabyAIError, match="exit code 3"):
        benchmark.run_process(["sh", "-c", "exit 3"])
