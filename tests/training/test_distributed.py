"""Processes that train together: who they are, and what they agree on."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from func.errors import BabyAIError
from func.training import distributed
from func.training.distributed import Processes, gradient_backend, joined_processes, processes_of

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TOGETHER = """
import sys, torch
from types import SimpleNamespace
from func.errors import BabyAIError
from func.training.distributed import joined_processes
from func.training.validation import Validation

def fail(rank):
    if processes.rank == rank:
        raise BabyAIError(f"rank {rank} fails")
    return processes.rank

class Subjects:  # of which the process of rank 1 cannot read one
    def __getitem__(self, part):
        fail(1)
        return []

def validate():
    data, running = SimpleNamespace(subjects=Subjects()), SimpleNamespace(signal=0)
    settings = {"recipe": "compact", "batch_size": 1}
    validation = Validation(settings, data, torch.device("cpu"), "float32", processes, running, None)
    validation.score(torch.nn.Identity(), "test", 0)

with joined_processes() as processes:
    group = processes.gradient_group(torch.device("cpu"))
    results = [processes.on_first(lambda: processes.rank), processes.on_all(lambda: processes.rank)]
    results += [processes.largest(processes.rank), processes.sums({"a": 1.5})["a"], group.size()]
    for call in (lambda: processes.on_first(lambda: fail(0)), lambda: processes.on_all(lambda: fail(1)), validate):
        try:
            call()
        except BabyAIError as error:
            results.append(str(error))
    print(results, flush=True)
"""


def test_processes_are_those_that_torchrun_or_srun_started():
    assert processes_of({}) == Processes(0, 1, 0)
    # In a batch script, outside of srun, the job's tasks are not this process's companions.
    assert processes_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}) == Processes(0, 1, 0)
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    assert processes_of(slurm) == Processes(5, 8, 1)
    assert processes_of(slurm | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == Processes(1, 2, 1)


def test_nccl_averages_gradients_where_each_process_has_its_own_gpu():
    assert gradient_backend(["GPU-1", "GPU-2"]) == "nccl"
    assert gradient_backend(["GPU-1", "GPU-1"]) == "gloo"  # two on one GPU, which NCCL refuses
    assert gradient_backend(["GPU-1", ""]) == gradient_backend(["", ""]) == "gloo"


def test_two_processes_agree_and_leave_without_an_error():
    """What one decides or fails at, both get; and the last barrier is on gloo, the only backend that has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        step = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER],
            env=os.environ | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "PYTHONPATH": str(SCRIPTS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    printed = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    for rank in (0, 1):
        assert printed[rank][0].strip() == f"[0, {rank}, 1, 3.0, 2, 'rank 0 fails', 'rank 1 fails', 'rank 1 fails']"


def test_variables_that_are_left_over_or_no_numbers_join_nobody(monkeypatch):
    assert processes_of({"RANK": "", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}) == Processes()
    assert processes_of({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}) == Processes()
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=1))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "SLURM_JOB_ID": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(BabyAIError, match="unset RANK and WORLD_SIZE"), joined_processes():
        pass


def test_processes_that_cannot_meet_say_so(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BabyAIError, match="set MASTER_ADDR"), joined_processes():
        pass
