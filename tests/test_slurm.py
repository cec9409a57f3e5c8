"""The Slurm batch scripts, run with stubs of srun and scontrol in a faked job."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import inference
import training

REPO_ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["training.sbatch", "inference.sbatch"]
JOB = {
    "SLURM_SUBMIT_DIR": str(REPO_ROOT),
    "SLURM_JOB_ID": "70123",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_ARRAY_JOB_ID": "70120",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "8",
    "SLURM_ARRAY_TASK_STEP": "1",
    "SLURM_ARRAY_TASK_COUNT": "8",
}
STUBS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" != show ] || printf "gpu07\\ngpu08\\n"',
    "python": 'printf "%s\\n" "$@" > "$LOG.arguments"; env > "$LOG.environment"; exit "${EXIT_CODE:-0}"',
}


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Run a batch script's body as Slurm would; Slurm's commands, and Python itself, write down what they are told."""
    for name, body in STUBS.items():
        stub = tmp_path / name
        stub.write_text(f"#!/bin/bash\n{body}\n")
        stub.chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    settings |= {"LOG": str(tmp_path / "log"), "DATA_DIR": "/data/of ours", "OUTPUT_DIR": str(tmp_path / "out")}

    def submitted(script: str, *arguments: str, **environment: str) -> "Submitted":
        path = tmp_path / "slurm_script"  # Slurm runs a copy, somewhere else
        shutil.copyfile(REPO_ROOT / "slurm" / script, path)
        command = ["bash", str(path), *arguments]
        finished = subprocess.run(command, env=JOB | settings | environment, cwd=tmp_path, check=False)
        return Submitted(finished.returncode, tmp_path / "log")

    return submitted


class Submitted:
    """What a batch script did."""

    def __init__(self, code: int, log: Path):
        self.code = code
        self.arguments = Path(f"{log}.arguments").read_text().splitlines()
        self.environment = dict(
            line.split("=", 1) for line in Path(f"{log}.environment").read_text().splitlines() if "=" in line
        )
        self.requeued = [line for line in (log.read_text() if log.exists() else "").splitlines() if "requeue" in line]


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_read_it(script):
    subprocess.run(["bash", "-n", REPO_ROOT / "slurm" / script], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    subprocess.run(["shellcheck", REPO_ROOT / "slurm" / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_time_limit_is_signalled_before_it_is_reached(script):
    lines = (REPO_ROOT / "slurm" / script).read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    # A signal to the steps, not to the batch shell alone (B:), which the scripts themselves answer.
    assert {"--signal=USR1@300" if script == "training.sbatch" else "--signal=TERM@60", "--requeue"} <= options


def test_training_gets_its_name_and_what_torch_needs(submit):
    job = submit("training.sbatch", "--recipe", "babyai")
    assert job.code == 0 and not job.requeued
    assert job.arguments[0] == "scripts/training.py"
    arguments = training.parse_arguments(job.arguments[1:])
    assert str(arguments.data_dir) == "/data/of ours"
    assert (arguments.name, arguments.resume, arguments.recipe) == ("job-70123", True, "babyai")
    assert job.environment["MASTER_ADDR"] == "gpu07"
    assert 1024 < int(job.environment["MASTER_PORT"]) < 65536
    assert job.environment["SRUN_CPUS_PER_TASK"] == job.environment["OMP_NUM_THREADS"] == "8"
    assert job.environment["PWD"] == str(REPO_ROOT)


def test_inference_gets_its_part_of_the_folder(submit):
    job = submit("inference.sbatch", "--overwrite")
    assert job.code == 0 and not job.requeued
    arguments = inference.parse_arguments(job.arguments[1:])
    assert str(arguments.data_dir) == "/data/of ours"
    assert arguments.shard == (2, 8) and arguments.overwrite


@pytest.mark.parametrize(
    "script, code, requeued",
    [
        ("training.sbatch", 138, ["scontrol requeue 70123"]),
        ("training.sbatch", 143, []),  # cancelled or preempted: that is Slurm's to requeue
        ("training.sbatch", 1, []),
        ("inference.sbatch", 143, ["scontrol requeue 70120_3"]),
        ("inference.sbatch", 1, []),
    ],
)
def test_only_a_job_out_of_time_requeues_itself(submit, script, code, requeued):
    job = submit(script, EXIT_CODE=str(code))
    assert job.code == code and job.requeued == requeued
