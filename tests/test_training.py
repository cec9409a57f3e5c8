"""training.py: it learns, resumes exactly, shares the work, and loses nothing to signals, kills and NaN."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import training
from func.networks.weights import load_weights
from func.scans.nifti import read_volume
from func.training import data, losses, validation
from func.training.augmentation import random_shapes
from func.training.checkpoints import last_checkpoint
from func.training.results import add_row, read_table
from func.training.run_folder import locked
from func.training.splits import read_split
from func.training.step_log import StepLog
from networks_for_tests import reconstruct

SCRIPTS = Path(training.__file__).parent
NETWORKS = {
    "compact": '{"channels": [4, 4], "blocks": [1, 1]}',
    "babyai": '{"channels": [2, 3, 4, 5, 6, 7], "num_res_units": 2}',
}
DATA = ["--patch", "16", "--phantoms", "0", "--shapes", "0", "--samples-per-subject", "8"]
DATA += ["--warm-up", "1", "--learning-rate", "0.01"]
TINY = {
    recipe: ["--recipe", recipe, "--network", network, *(DATA if recipe == "compact" else [])]
    for recipe, network in NETWORKS.items()
}
STEADY = ["--workers", "0", "--log-every", "1", "--device", "cpu", "--precision", "float32", "--batch-size", "2"]


@pytest.fixture(autouse=True)
def small_validation(monkeypatch):
    monkeypatch.setattr(validation, "SCANS", (("axial", 3.0),))
    monkeypatch.setattr(data, "VALIDATION_SAMPLES", 2)


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory) -> Path:
    """Four subjects of random shapes, 32 voxels wide."""
    folder = tmp_path_factory.mktemp("shapes")
    for number in range(4):
        scans = random_shapes((32, 32, 32), np.random.default_rng(number))
        for suffix, array in zip(("T1w", "T2w"), scans, strict=True):
            nib.save(nib.Nifti1Image(1000 * array, np.eye(4)), folder / f"sub-{number}_{suffix}.nii.gz")
    return folder


@pytest.fixture
def train(shapes_data, tmp_path, capsys):
    """Runs main() with tiny settings; gives the exit code, what was printed, and the folder of the run."""

    def call(run: str, *arguments: str, recipe: str = "compact", output: Path = tmp_path):
        paths = ["--data-dir", str(shapes_data), "--output-dir", str(output), "--name", run]
        code = training.main([*paths, *TINY[recipe], *STEADY, *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err, output / "runs" / run

    return call


def losses_in(printed: str) -> dict[int, str]:
    """Training loss by step."""
    return {int(step): loss for step, loss in re.findall(r"^step (\d+): loss ([^,]+)", printed, re.M)}


def rows_in(output: Path) -> dict[str, dict[str, str]]:
    """The rows of the table of all runs, by run."""
    return {row["run"]: row for row in read_table(output / "training_info.csv").to_dict("records")}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The networks' tensors in the last checkpoint of a run."""
    content = last_checkpoint(folder)
    return {f"{kind}.{name}": tensor for kind in ("network", "averaged") for name, tensor in content[kind].items()}


def assert_same(folder: Path, other: Path) -> None:
    first, second = tensors(folder), tensors(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def after_step(step: int, act, monkeypatch) -> None:
    """Calls ``act`` as the weights have been updated for the step-th time."""
    update = AveragedModel.update_parameters

    def update_and_act(self, network):
        update(self, network)
        if int(self.n_averaged) == step + 1:  # the first is of the initial weights
            act()

    monkeypatch.setattr(AveragedModel, "update_parameters", update_and_act)


def signalled_at(step: int, number: int, monkeypatch) -> None:
    """Sends this process a signal in the middle of a step."""
    after_step(step, lambda: os.kill(os.getpid(), number), monkeypatch)


def test_a_run_leaves_all_that_the_readme_promises(train, tmp_path):
    code, printed, folder = train("one", "--steps", "4", "--validate-every", "2", "--seed", "3")
    assert code == 0
    assert "effective batch size 2 on 1 x cpu in float32, learning rate 0.01" in printed
    (row,) = rows_in(tmp_path).values()
    assert row["recipe"] == "compact" and row["seed"] == "3" and row["train_subjects"] == "2"
    for name in (
        "training_loss",
        "validation_inner_psnr",
        "validation_cubic_psnr",
        "test_ssim",
        "test_cubic_inner_ssim",
    ):
        assert np.isfinite(float(row[name])), name
    weights = load_weights(tmp_path / row["weights"])
    assert weights.info["step"] == int(row["best_step"])
    assert sorted(weights.info["subjects"]) == ["test", "train", "validation"]
    parts = read_split(folder / "split.csv")
    assert sorted(parts) == ["0", "1", "2", "3"] and set(parts.values()) == {"train", "validation", "test"}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard_logs" / "one")).Reload()
    assert [point.step for point in board.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [point.step for point in board.Scalars("validation/psnr")] == [2, 4]
    assert any(tag.startswith("validation") for tag in board.Tags()["images"])


def test_it_learns(train):
    settings = ["--steps", "24", "--validate-every", "100", "--learning-rate", "0.01"]
    _, printed, _ = train("learning", *settings, recipe="babyai")
    found = [float(loss) for loss in losses_in(printed).values()]
    assert np.mean(found[-6:]) < 0.3 * np.mean(found[:3])


def test_the_published_recipe(train, tmp_path, shapes_data):
    code, printed, _ = train("published", "--steps", "3", "--validate-every", "3", recipe="babyai")
    assert code == 0, printed
    (row,) = rows_in(tmp_path).values()
    assert float(row["learning_rate"]) == 1e-4 and float(row["epochs"]) == 100 and row["clip"] == "inf"
    weights = load_weights(tmp_path / row["weights"])
    assert weights.recipe == "babyai"
    t1, t2 = (read_volume(shapes_data / f"sub-0_{suffix}.nii.gz") for suffix in ("T1w", "T2w"))
    assert np.isfinite(reconstruct(t1, t2, weights, device="cpu").image.get_fdata()).all()

    code, printed, _ = train("finer", "--steps", "1", "--init-weights", str(tmp_path / row["weights"]), recipe="babyai")
    assert code == 0, printed


@pytest.mark.parametrize("number, code", [(signal.SIGUSR1, 138), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_resumes_exactly(train, tmp_path, monkeypatch, number, code):
    settings = ["--steps", "6", "--validate-every", "2", "--checkpoint-every", "100"]
    _, whole, whole_folder = train("whole", *settings)
    with monkeypatch.context() as patched:
        signalled_at(3, number, patched)
        stopped, printed, folder = train("halves", *settings)
    assert stopped == code
    assert printed.strip().splitlines()[-1].startswith("Stopped by") and "step 3 (50% done)" in printed
    finished, rest, _ = train("halves", *settings, "--resume")
    assert finished == 0
    assert losses_in(printed) | losses_in(rest) == losses_in(whole)
    assert_same(whole_folder, folder)
    rows = rows_in(tmp_path)
    names = [name for name in rows["whole"] if name.startswith(("validation", "test", "best"))]
    assert [rows["whole"][name] for name in names] == [rows["halves"][name] for name in names]
    again, printed, _ = train("halves", *settings, "--resume")
    assert again == 0 and "complete" in printed


def test_a_run_by_the_clock_takes_its_hours_and_resumes(train, tmp_path, monkeypatch):
    """Where each step takes 36 s, 0.05 hours are five steps, with the learning rates of five."""
    monkeypatch.setattr(StepLog, "seconds", property(lambda log: 36.0 * len(log._losses)))
    settings = ["--hours", "0.05", "--validate-every", "4", "--checkpoint-every", "100"]
    _, by_steps, steps_folder = train("steps", "--steps", "5", *settings[2:])
    with monkeypatch.context() as patched:
        signalled_at(2, signal.SIGTERM, patched)
        stopped, printed, folder = train("hours", *settings)
    assert stopped == 143 and "step 2 (40% done)" in printed and "steps 0 on, for 0.05 hours" in printed
    finished, rest, _ = train("hours", *settings, "--resume")
    assert finished == 0
    assert losses_in(printed) | losses_in(rest) == losses_in(by_steps)
    assert_same(steps_folder, folder)
    row = rows_in(tmp_path)["hours"]
    assert row["steps_done"] == "5" and row["hours"] == row["training_hours"] == "0.05"


def test_a_signal_reaches_workers_too(train, monkeypatch):
    signalled_at(2, signal.SIGTERM, monkeypatch)
    code, printed, _ = train("workers", "--steps", "6", "--workers", "1")
    assert code == 143 and "step 2 (33% done)" in printed


def test_a_truncated_checkpoint_is_noticed(train, monkeypatch):
    settings = ["--steps", "6", "--validate-every", "100", "--checkpoint-every", "1"]
    _, _, whole = train("whole", *settings)
    with monkeypatch.context() as patched:
        signalled_at(4, signal.SIGTERM, patched)
        _, _, folder = train("cut", *settings)
    last = sorted(folder.glob("checkpoint-*.pt"))
    assert [path.name for path in last] == ["checkpoint-000000003.pt", "checkpoint-000000004.pt"]
    os.truncate(last[-1], last[-1].stat().st_size // 2)
    code, printed, _ = train("cut", *settings, "--resume")
    assert code == 0 and "damaged" in printed and "steps 3 to 6" in printed
    assert_same(whole, folder)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(train, monkeypatch):
    calls = []

    def spoilt(output, batch):
        calls.append(1)
        return losses.relative_error(output, batch) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setitem(losses.LOSSES, "compact", spoilt)
    settings = ["--steps", "9", "--validate-every", "100", "--checkpoint-every", "2", "--log-every", "50"]
    code, printed, folder = train("spoilt", *settings)
    assert code == 1
    assert (
        printed.strip()
        .splitlines()[-1]
        .startswith("training.py: The loss or its gradient is not finite (NaN) at step 4")
    )
    assert last_checkpoint(folder)["progress"]["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors(folder).values())


def command(shapes_data: Path, output: Path, run: str, *arguments: str) -> list[str]:
    paths = ["--data-dir", str(shapes_data), "--output-dir", str(output), "--name", run]
    return [*paths, *TINY["compact"], *STEADY, *arguments]


KILLED_TRAINING = Path(__file__).with_name("killed_training.py")


@pytest.mark.parametrize("where", ["checkpoint", "table"])
def test_a_killed_run_resumes(train, shapes_data, tmp_path, where):
    other = {"run": "earlier", "recipe": "compact"}
    add_row(tmp_path / "training_info.csv", other)
    settings = ["--steps", "4", "--validate-every", "100", "--checkpoint-every", "1"]
    arguments = command(shapes_data, tmp_path, "killed", *settings)
    killed = subprocess.run([sys.executable, KILLED_TRAINING, where, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(rows_in(tmp_path)) == ["earlier"]
    code, printed, folder = train("killed", *settings, "--resume")
    assert code == 0
    assert f"steps {1 if where == 'checkpoint' else 4} to 4" in printed
    assert list(rows_in(tmp_path)) == ["earlier", "killed"]
    assert not list(tmp_path.rglob(".part-*"))
    _, _, whole = train("whole", *settings)
    assert float((tensors(whole)["network.stem.weight"] - tensors(folder)["network.stem.weight"]).abs().max()) < 1e-6


def test_two_processes_do_what_one_does(train, shapes_data, tmp_path, monkeypatch):
    monkeypatch.undo()  # validation as the command has it
    settings = ["--steps", "4", "--validate-every", "2", "--batch-size", "4"]
    _, alone, whole = train("one", *settings)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [SCRIPTS / "training.py", *command(shapes_data, tmp_path, "two", *settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    together = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment)
    assert together.returncode == 0, together.stderr
    assert "on 2 x cpu" in together.stdout and "effective batch size 4" in together.stdout
    shared = losses_in(together.stdout)
    assert shared.keys() == losses_in(alone).keys()
    found, expected = ([float(loss) for loss in each.values()] for each in (shared, losses_in(alone)))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    first, second = tensors(whole), tensors(tmp_path / "runs" / "two")
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-3, rtol=1e-3)
    rows = rows_in(tmp_path)
    assert sorted(rows) == ["one", "two"]
    for name in ("validation_loss", "validation_inner_psnr", "validation_ssim", "validation_cubic_psnr", "test_psnr"):
        assert float(rows["two"][name]) == pytest.approx(float(rows["one"][name]), rel=1e-3), name


def as_srun_does(count: int, *line) -> list[subprocess.Popen]:
    """The processes of a job step, each told its rank as srun tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"SLURM_STEP_NUM_TASKS": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    step |= {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *line],
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def test_a_signal_to_one_of_two_stops_both_at_one_checkpoint(train, shapes_data, tmp_path):
    settings = ["--steps", "100", "--validate-every", "100"]
    arguments = command(shapes_data, tmp_path, "signalled", *settings)
    first, second = as_srun_does(2, SCRIPTS / "training.py", *arguments)
    while not first.stdout.readline().startswith("step 2"):
        assert first.poll() is None, first.stderr.read()
    second.send_signal(signal.SIGUSR1)
    _, told = first.communicate(timeout=100)
    assert second.communicate(timeout=100) == ("", "")
    assert (first.returncode, second.returncode) == (138, 138), told
    assert told.startswith("Stopped by SIGUSR1 at step ") and told.count("\n") == 1
    step = int(re.search(r"step (\d+) \(\d+% done\)", told)[1])
    code, printed, _ = train("signalled", *settings, "--resume")
    assert code == 0 and f"steps {step} to 100" in printed and "on 1 x cpu" in printed


def test_a_full_disk_is_told_once_by_two(shapes_data, tmp_path):
    arguments = command(shapes_data, tmp_path, "full", "--steps", "4", "--checkpoint-every", "1")
    processes = as_srun_does(2, KILLED_TRAINING, "full", *arguments)
    told = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "the disk is full" in told[0] and told[0].count("\n") == 1 and told[1] == ""
    assert not list(tmp_path.rglob("*.pt*")) and not (tmp_path / "training_info.csv").exists()


def test_one_run_is_trained_by_one_job(train, tmp_path):
    settings = ["--steps", "2", "--validate-every", "100"]
    _, _, folder = train("busy", *settings)
    (tmp_path / "training_info.csv").unlink()
    with locked(folder / ".lock"):
        code, printed, _ = train("busy", *settings, "--resume")
    assert code == 1 and "another process" in printed


def test_a_wrong_call_is_told_in_a_sentence(train, tmp_path, shapes_data):
    train("there", "--steps", "1")
    split = tmp_path / "split.csv"
    split.write_text("subject,part\nsub-0,train\nsub-9,test\n")
    for arguments, words in [
        (["--name", "there"], "already"),
        (["--split", str(tmp_path / "none.csv")], "none.csv cannot be read (No such file"),
        (["--split", str(split)], "sub-9"),
        (["--init-weights", str(tmp_path / "none.pth")], "no weights file"),
        (["--data-dir", str(tmp_path / "none")], "does not exist"),
        (["--log-every", "0"], "--log-every is 0"),
        (["--hours", "0"], "--hours is 0"),
        (["--hours", "2"], "leave one of them out"),
        (["--patch", "50"], "--patch is 50"),
        (["--network", '{"chanels": [4, 4]}'], "chanels"),
        (["--subject-weights", '{"9": 2}'], "--subject-weights names 9"),
        (["--device", "cuda:99"], "not available"),
        (["--name", "there", "--resume", "--batch-size", "4"], "begun with --batch-size 2"),
    ]:
        code, printed, _ = train("new", "--steps", "1", *arguments)
        assert code == 2, arguments
        assert words in printed and len(printed.strip().splitlines()) == 1
    for name in ("a/b", "..", str(tmp_path / "elsewhere")):
        with pytest.raises(SystemExit, match="2"):
            train("new", "--steps", "1", "--name", name)
    compact = str(tmp_path / "weights" / "there.pth")
    code, printed, _ = train("new", "--init-weights", compact, recipe="babyai")
    assert code == 2 and "give --recipe compact" in printed
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["there"]
    (tmp_path / "runs" / "there" / "settings.json").write_text("{")
    code, printed, _ = train("there", "--steps", "1", "--resume")
    assert code == 2 and "settings.json cannot be read; begin another run" in printed


def test_a_split_can_be_used_again_without_held_out_subjects(train, tmp_path):
    split = tmp_path / "all.csv"
    split.write_text("subject,part\n" + "".join(f"sub-{number},train\n" for number in range(4)))
    code, _, folder = train("all", "--steps", "2", "--split", str(split))
    assert code == 0
    assert set(read_split(folder / "split.csv").values()) == {"train"}
    assert load_weights(tmp_path / "weights" / "all.pth").info["step"] == 2


def test_an_unusable_subject_costs_no_other(train, tmp_path, shapes_data):
    data = tmp_path / "data"
    shutil.copytree(shapes_data, data)
    (data / "sub-2_T2w.nii.gz").write_bytes(b"no scan")
    split = tmp_path / "split.csv"
    split.write_text("subject,part\nsub-0,train\nsub-1,validation\nsub-2,train\n")
    code, printed, _ = train("broken", "--steps", "1", "--data-dir", str(data), "--split", str(split))
    assert code == 1
    assert "FAILED" in printed and "sub-2_T2w" in printed and "broken is done" in printed


def test_a_full_disk_is_told(train, monkeypatch):
    def full(content, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        code, printed, _ = train("full", "--steps", "2", "--checkpoint-every", "1")
    assert code == 1 and "disk is full" in printed
    code, _, _ = train("full", "--steps", "2", "--checkpoint-every", "1", "--resume")
    assert code == 0


def test_an_output_folder_removed_in_mid_run_is_told(train, tmp_path, monkeypatch):
    settings = ["--steps", "4", "--checkpoint-every", "1"]
    with monkeypatch.context() as patched:
        after_step(3, lambda: shutil.rmtree(tmp_path / "out"), patched)
        code, printed, _ = train("gone", *settings, output=tmp_path / "out")
    assert code == 1
    curves, checkpoint = [line for line in printed.splitlines() if not line.startswith(("gone:", "step "))]
    assert "its curves end here" in curves and "was removed meanwhile" in checkpoint
    assert not (tmp_path / "out").exists()
    code, printed, _ = train("gone", *settings, "--resume", output=tmp_path / "out")
    assert code == 0 and "steps 0 to 4" in printed


def test_a_run_killed_as_it_begins_can_begin_again(train, tmp_path):
    folder = tmp_path / "runs" / "[1] half"
    folder.mkdir(parents=True)
    (folder / "split.csv").write_text("subject,part\n")
    for expected in ("steps 0 to 1", "is complete"):
        code, printed, _ = train("[1] half", "--steps", "1", "--resume")
        assert code == 0 and expected in printed


@pytest.mark.gpu
def test_a_gpu_trains_as_a_processor_does(train, gpu):
    """Convolutions of CUDA have 10 bits of mantissa (TF32) in training."""
    settings = ["--steps", "4", "--validate-every", "100", "--learning-rate", "0.01"]
    runs = [train(device, *settings, "--device", device, recipe="babyai") for device in {"cpu", gpu}]
    found = [[float(loss) for loss in losses_in(printed).values()] for _, printed, _ in runs]
    assert [code for code, _, _ in runs] == [0] * len(runs)
    np.testing.assert_allclose(found[-1], found[0], rtol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, tolerance", [("float32", 0.02), ("bfloat16", 0.1)])
def test_a_run_on_a_gpu_resumes(train, gpu, monkeypatch, precision, tolerance):
    settings = ["--steps", "6", "--validate-every", "3", "--device", gpu, "--precision", precision]
    settings += ["--learning-rate", "0.001"]
    _, whole, _ = train("whole", *settings)
    with monkeypatch.context() as patched:
        signalled_at(3, signal.SIGTERM, patched)
        stopped, printed, _ = train("halves", *settings)
    finished, rest, _ = train("halves", *settings, "--resume")
    assert (stopped, finished) == (143, 0)
    found, expected = losses_in(printed) | losses_in(rest), losses_in(whole)
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert float(found[step]) == pytest.approx(float(loss), rel=tolerance), step


@pytest.mark.gpu
def test_two_processes_share_a_gpu(train, gpu, shapes_data, tmp_path):
    settings = ["--steps", "4", "--validate-every", "2", "--batch-size", "4", "--learning-rate", "0.001"]
    settings += ["--device", gpu]
    _, alone, _ = train("one", *settings)
    together = as_srun_does(2, SCRIPTS / "training.py", *command(shapes_data, tmp_path, "two", *settings))
    printed = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [0, 0], printed
    found, expected = losses_in(printed[0][0]), losses_in(alone)
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert float(found[step]) == pytest.approx(float(loss), rel=0.02), step


def test_the_chain_of_the_readme_runs_without_renaming_a_file(small_head, tmp_path):
    """Synthesise, train, infer, evaluate, as commands."""
    raw, thick, results, reconstructed = (tmp_path / name for name in ("raw", "thick", "results", "reconstructed"))
    raw.mkdir()
    for number in range(3):
        for suffix, scan in (("T1w", small_head.t1), ("T2w", small_head.t2)):
            array = np.roll(np.asarray(scan.dataobj), number - 1, axis=number)
            nib.save(nib.Nifti1Image(array, scan.affine), raw / f"sub-{number}_{suffix}.nii.gz")

    def call(script: str, *arguments) -> None:
        line = [sys.executable, SCRIPTS / script, *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    scans = ["--thickness", 3, "--directions", "axial"]
    call("synthesize_anisotropic.py", "--data-dir", raw, "--output-dir", thick, *scans)
    folders = ["--data-dir", tmp_path / "both", "--output-dir", results]
    shutil.copytree(raw, tmp_path / "both")
    shutil.copytree(thick, tmp_path / "both", dirs_exist_ok=True)
    call("training.py", *folders, *TINY["compact"], *STEADY, "--steps", 2, "--name", "chain")
    for scan in raw.glob("*_T1w.nii.gz"):
        shutil.copy(scan, thick)
    weights, split = results / "weights" / "chain.pth", results / "runs" / "chain" / "split.csv"
    test = ["--split", split, "--part", "test"]
    call("inference.py", "--data-dir", thick, "--output-dir", reconstructed, "--weights", weights, *test)
    call("evaluate.py", "--reference-dir", raw, "--results-dir", reconstructed, "--baseline-dir", thick, *test)
    (tested,) = [label for label, part in read_split(split).items() if part == "test"]
    assert [path.name for path in reconstructed.glob("*.nii.gz")] == [
        f"sub-{tested}_acq-axial3mm_desc-isotropic_T2w.nii.gz"
    ]
    table = pd.read_csv(reconstructed / "evaluation" / "metrics.csv", dtype=str)
    assert set(table["subject"]) == {tested}
