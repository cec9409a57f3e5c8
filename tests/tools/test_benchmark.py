"""The benchmark runs through and fills its tables; nothing is timed here."""

import json
import re
from pathlib import Path

import pytest
import torch

import benchmark
import inference
import training
from func.errors import BabyAIError
from func.networks import weights as network

SMALL = {"channels": (4, 5, 6), "strides": (2, 2), "num_res_units": 2}
CONSTANTS = {"REPEATS": 1, "PATCHES": 3, "BATCH": 2, "SUBJECTS": (1, 3), "IN_PLANE": (2.0,)}
CONSTANTS |= {"INFANT": ((12, 12, 10), (2.0, 2.0, 4.0)), "WHOLE_HEAD": ((24, 24, 10), (1.5, 1.5, 4.0))}


@pytest.fixture
def small_benchmark(monkeypatch, small_head):
    """The benchmark on a miniature head, with a miniature of the published network and no subprocess."""
    monkeypatch.setitem(network.RECIPES, "babyai", {**network.RECIPES["babyai"], **SMALL})
    monkeypatch.setattr(benchmark, "infant_brain", lambda *grid, **look: small_head)
    monkeypatch.setattr(benchmark, "run_process", inference_understood)
    monkeypatch.setattr(benchmark, "processors", lambda: 3)  # too few for the four processes that share a folder
    monkeypatch.setattr(benchmark, "matrix_product_rate", lambda device, precision="float32": 1e11)
    monkeypatch.setattr(benchmark, "training_rate", training_understood)
    for constant, value in CONSTANTS.items():
        monkeypatch.setattr(benchmark, constant, value)


def inference_understood(command, threads):
    """Stands for inference.py: reads the arguments as it does, and leaves a sidecar."""
    assert Path(command[1]).is_file()
    arguments = inference.parse_arguments([str(word) for word in command[2:]])
    results = arguments.output.parent if arguments.t2 else arguments.output_dir
    results.mkdir(parents=True, exist_ok=True)
    part, count = arguments.shard
    assert threads == max(1, benchmark.processors() // count)
    seconds = json.dumps({"Seconds": {"Network": 3.0}})
    (results / f"sub-{part + 1:02d}_desc-isotropic_T2w.json").write_text(seconds)
    return 1.0, (2 + part) * 1e9


def training_understood(command):
    """Stands for a training that begins: its arguments are read as training.py reads them."""
    assert Path(command[1]).is_file()
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
    grid, raw = rows(text, "### Scans on the grid"), rows(text, "### Raw scans")
    assert list(grid) == ["1 on the grid", "3 on the grid", "3 on the grid, 2 processes"]
    assert [cells[2] for cells in grid.values()] == ["3.0", "1.0", "2.0"]
    assert [cells[5] for cells in grid.values()] == ["2.00", "2.00", "3.00"]
    assert list(raw) == [
        "an infant, 12 x 12 x 10 voxels of 2 x 2 x 4 mm",
        "a whole head, 24 x 24 x 10 voxels of 1.5 x 1.5 x 4 mm",
    ]
    stacks, heads = rows(text, "### By the number of stacks"), rows(text, "### By the voxels in-plane")
    assert list(stacks) == ["an infant in 2 stacks", "an infant in 3 stacks"]
    assert list(heads) == [
        "a whole head, 18 x 18 x 10 voxels of 2 x 2 x 4 mm",
        "a whole head, 24 x 24 x 10 voxels of 1.5 x 1.5 x 4 mm, result of 0.5 mm",
    ]
    published = rows(text, "### The published network")
    tables = (grid, raw, stacks, heads, published)
    assert all(re.match(r"[\d.]+|–", cell) for cells in tables for row in cells.values() for cell in row)
    assert published["times as fast"][0] == "1.0"
    assert float(published["largest difference, of the range"][2]) < 1e-4
    assert list(rows(text, "### Training")) == [
        "plain loop",
        "training.py --recipe babyai",
        "training.py --recipe compact",
    ]


def test_the_last_report_of_a_training_counts():
    reports = "; ".join(f"echo step {n}: loss 1, samples per second {n}.5, waiting share 0.25, x 1" for n in (4, 8, 12))
    assert benchmark.training_rate(["sh", "-c", f"{reports}; exec sleep 60"]) == (12.5, 0.25)


def test_patches_with_data_are_found():
    inputs = torch.zeros(2, 48, 48, 48)
    inputs[1, 0, 0, 0] = 1
    assert benchmark.filled_patches(inputs).shape == (1, 2, 32, 32, 32)


def test_what_fails_is_named(tmp_path, capsys):
    assert benchmark.main(["--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
    with pytest.raises(BabyAIError, match="without a report"):
        benchmark.training_rate(["sh", "-c", "exit 3"])
    with pytest.raises(BabyAIError, match="exit code 3"):
        benchmark.run_process(["sh", "-c", "exit 3"], 1)
