"""Weights files: what is written comes back, and what does not fit says why in one sentence."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from func.errors import BabyAIError
from func.networks import weights as network
from func.networks.published import FoldedUNet, pruned_shapes
from func.networks.weights import FOLDED, RECIPES, build_network, load_weights, save_folded, save_weights

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = {"channels": (4, 5, 6), "strides": (2, 2), "num_res_units": 2}
COMPACT = {"channels": (8, 8), "blocks": (1, 1)}


@pytest.fixture
def tiny_babyai(monkeypatch):
    """The published recipe, made small: 32^3 patches, three levels."""
    monkeypatch.setitem(network.RECIPES, "babyai", {**network.RECIPES["babyai"], **TINY})
    torch.manual_seed(0)
    return build_network("babyai").eval()


def sentence(path):
    """The one sentence that loading a file ends with; it names the file."""
    with pytest.raises(BabyAIError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_bare_state_dict_is_the_published_network(tmp_path, tiny_babyai):
    path = tmp_path / "pretrained_weights.pth"
    torch.save(tiny_babyai.state_dict(), path)
    weights, plain = load_weights(path), load_weights(path, folded=False)
    assert weights.recipe == plain.recipe == "babyai"
    assert weights.info == {}
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(weights.network, FoldedUNet)
    inputs = torch.rand(2, 2, 32, 32, 32)
    with torch.inference_mode():
        expected = tiny_babyai(inputs)
        torch.testing.assert_close(weights.network(inputs), expected, rtol=0, atol=1e-5)
        assert torch.equal(plain.network(inputs), expected)


def test_ours_carry_recipe_configuration_and_record(tmp_path):
    path = tmp_path / "weights" / "compact.pth"
    trained = build_network("compact", **COMPACT)
    info = {"subjects": ["sub-01", "sub-02"], "psnr": 27.5, "date": "2026-01-01"}
    save_weights(path, "compact", trained.state_dict(), info, COMPACT)
    weights = load_weights(path)
    assert (weights.recipe, weights.info, weights.config) == ("compact", info, COMPACT)
    assert not weights.network.training
    for name, tensor in trained.state_dict().items():
        assert torch.equal(weights.network.state_dict()[name], tensor)


def test_a_file_may_hold_a_second_network(tmp_path):
    path = tmp_path / "two.pth"
    large, small = (build_network("compact", **config) for config in (COMPACT, {"channels": (8, 8, 8)}))
    save_weights(path, "compact", large.state_dict(), {}, COMPACT, (small.state_dict(), {"channels": [8, 8, 8]}))
    weights = load_weights(path)
    for loaded, written in ((weights.network, large), (weights.fast, small)):
        assert not loaded.training
        for name, tensor in written.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    save_weights(path, "compact", large.state_dict(), {}, COMPACT, (small.state_dict(), {"channels": [8, 8, 4]}))
    with pytest.raises(BabyAIError, match="does not fit"):
        load_weights(path)


def test_the_folded_file_makes_the_same_network(tmp_path, tiny_babyai):
    whole, small, again = tmp_path / "whole.pth", tmp_path / "small.pth", tmp_path / "again.pth"
    torch.save(tiny_babyai.state_dict(), whole)
    save_folded(small, whole)
    folded = load_weights(small)
    assert folded.recipe == "babyai"
    assert folded.info["folded_from_sha256"] == load_weights(whole).sha256
    inputs = torch.rand(1, 2, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(folded.network(inputs), load_weights(whole).network(inputs))
    with pytest.raises(BabyAIError, match="only those have a folded form"):
        save_folded(again, small)


def test_babyai_trained_otherwise_is_run_unfolded(tmp_path):
    config = {**TINY, "norm": "instance"}
    path = tmp_path / "normalised.pth"
    save_weights(path, "babyai", build_network("babyai", **config).state_dict(), {}, config)
    assert not isinstance(load_weights(path).network, FoldedUNet)


def test_loading_needs_no_monai(tmp_path, tiny_babyai):
    path = tmp_path / "weights.pth"
    save_weights(path, "babyai", tiny_babyai.state_dict(), {}, TINY)
    code = (
        "import sys; from func.networks.weights import load_weights; load_weights(sys.argv[1]);"
        "print([name for name in ('monai', 'nilearn', 'skimage', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


class Hostile:
    """An object that, unpickled without care, makes the file it is given."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
@pytest.mark.parametrize(
    "wrap", [lambda hostile: hostile, lambda hostile: {"recipe": "compact", "state_dict": hostile}]
)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, save, wrap):
    path, made = tmp_path / "hostile.pth", tmp_path / "made"
    save(wrap(Hostile(made)), path)
    assert "could run code" in sentence(path)
    assert not made.exists()


def test_a_whole_pickled_network_is_refused(tmp_path, tiny_babyai):
    path = tmp_path / "network.pth"
    torch.save(tiny_babyai, path)
    assert "state_dict()" in sentence(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1516292486\n",
        b"<html><body>404</body></html>",
        b"PK\x03\x04 and then nothing",
        bytes(range(256)) * 40,
        b"\x80\x02}q\x00.",
    ],
)
def test_other_files_are_no_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    sentence(path)


@pytest.mark.parametrize("part", ["config", "info"])
def test_a_part_that_is_no_dictionary_is_told(tmp_path, part):
    torch.save({"recipe": "compact", "state_dict": {"a": torch.ones(1)}, part: "large"}, tmp_path / "weights.pth")
    assert "no dictionary" in sentence(tmp_path / "weights.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_told_as_such(tmp_path, tiny_babyai, share, zipped):
    path = tmp_path / "weights.pth"
    torch.save(tiny_babyai.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "only part of one" in sentence(path)


def test_a_damaged_file_is_told_as_such(tmp_path, tiny_babyai):
    path = tmp_path / "weights.pth"
    torch.save(tiny_babyai.state_dict(), path)
    content = bytearray(path.read_bytes())
    at = content.index(b"data.pkl") + 8
    content[at : at + 2000] = bytes(2000)
    path.write_bytes(content)
    sentence(path)


def test_missing_files_and_folders(tmp_path):
    assert "There is no weights file" in sentence(tmp_path / "none.pth")
    assert "There is no weights file" in sentence(tmp_path)


def test_weights_that_are_not_finite(tmp_path):
    path = tmp_path / "diverged.pth"
    state_dict = build_network("compact", **COMPACT).state_dict()
    next(iter(state_dict.values())).view(-1)[0] = float("nan")
    save_weights(path, "compact", state_dict, {}, COMPACT)
    assert "not finite" in sentence(path)


def test_a_file_that_does_not_fit_says_what_differs(tmp_path, tiny_babyai):
    path = tmp_path / "weights.pth"
    state_dict = tiny_babyai.state_dict()

    torch.save({f"module.{name}": tensor for name, tensor in state_dict.items()}, path)
    assert "model.module.state_dict()" in sentence(path)

    name, *_ = state_dict
    torch.save({key: tensor for key, tensor in state_dict.items() if key != name}, path)
    assert "1 are missing" in sentence(path) and name in sentence(path)

    torch.save({**state_dict, "head.weight": torch.zeros(1)}, path)
    assert "1 others" in sentence(path) and "head.weight" in sentence(path)

    torch.save({**state_dict, name: torch.zeros(4, 2, 5, 5, 5)}, path)
    assert "(4, 2, 5, 5, 5)" in sentence(path)

    torch.save(build_network("compact").state_dict(), path)
    assert "does not fit the recipe babyai but compact" in sentence(path)

    save_weights(path, "compact", state_dict, {})
    assert "does not fit the recipe compact but babyai" in sentence(path)

    torch.save({"epoch": 3, "state_dict": state_dict}, path)
    assert "no state_dict" in sentence(path)

    torch.save([1, 2, 3], path)
    assert "no state_dict" in sentence(path)

    save_weights(path, "next-year", state_dict, {})
    assert "'next-year'" in sentence(path)

    save_weights(path, "compact", {}, {}, {"colour": "red"})
    assert "configuration" in sentence(path)

    save_weights(path, "babyai", state_dict, {}, {"channels": 7})
    assert "configuration" in sentence(path)


def test_there_are_two_recipes():
    with pytest.raises(BabyAIError, match="babyai or compact"):
        build_network("resnet")


def test_weights_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    save_weights(path, "compact", {}, {"epoch": 1})
    before = path.read_bytes()

    def full_disk(content, stream):
        Path(stream).write_bytes(b"PK")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(BabyAIError, match="could not be written"):
        save_weights(path, "compact", {}, {"epoch": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


RUNS_A_BATCH = """
import sys
from pathlib import Path
import torch
from func.networks.weights import load_weights
network = load_weights(sys.argv[1]).network
Path("/proc/self/clear_refs").write_text("5")
with torch.inference_mode():
    network(torch.rand(16, 2, 32, 32, 32))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(1024 * int(peak.split()[1]), "sympy" in sys.modules, "monai" in sys.modules)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux forgets a peak of memory")
def test_the_published_network_runs_in_a_gigabyte_and_imports_nothing_slow(tmp_path):
    shapes = pruned_shapes(RECIPES["babyai"])
    save_weights(tmp_path / "folded.pth", FOLDED, {n: torch.zeros(1).expand(shape) for n, shape in shapes.items()}, {})
    command = [sys.executable, "-c", RUNS_A_BATCH, tmp_path / "folded.pth"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak, sympy, monai = run.stdout.split()
    assert int(peak) < 1e9
    assert (sympy, monai) == ("False", "False")
