"""Processes that train together, as torchrun or srun starts them, each with its own GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from func.errors import BabyAIError

Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=60)  # a validation or a checkpoint on a slow disk takes its time
MEETING = timedelta(minutes=5)  # for the processes of a step to start, all at once


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which of them this is.

    What they agree on goes over gloo, which is PyTorch's default group here; see ``gradient_group`` for the gradients.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on its machine

    def print(self, text: str, file=None) -> None:
        """Print on rank 0."""
        if self.rank == 0:
            print(text, file=file, flush=True)

    def on_first(self, call: Callable[[], Result]) -> Result:
        """Run on rank 0, and broadcast the result or the BabyAIError; the others wait for it."""
        outcome = _attempt(call) if self.rank == 0 else None
        if self.count > 1:
            shared = [outcome]
            dist.broadcast_object_list(shared)
            outcome = shared[0]
        if isinstance(outcome, BabyAIError):
            raise outcome
        return outcome

    def on_all(self, call: Callable[[], Result]) -> Result:
        """Run on every rank; where one meets a BabyAIError, all raise the first."""
        outcome = _attempt(call)
        errors = [outcome if isinstance(outcome, BabyAIError) else None]
        if self.count > 1:
            errors = [None] * self.count
            dist.all_gather_object(errors, outcome if isinstance(outcome, BabyAIError) else None)
        for error in filter(None, errors):
            raise error
        return outcome

    def largest(self, number: int) -> int:
        """The largest of a number over all processes."""
        if self.count == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of numbers over all processes."""
        if self.count == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def device(self, requested: str) -> str:
        """The device for this process: of several on a machine, each takes its own GPU."""
        if self.count > 1 and requested in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return requested

    def gradient_group(self, device: torch.device) -> dist.ProcessGroup:
        """The group that averages gradients: NCCL where every process has a GPU of its own, otherwise gloo."""
        gpu = torch.cuda.get_device_properties(device).uuid if device.type == "cuda" else None
        gpus = [None] * self.count
        dist.all_gather_object(gpus, str(gpu or ""))
        return dist.new_group(backend=gradient_backend(gpus), timeout=TIMEOUT)


def _attempt(call: Callable[[], Result]) -> Result | BabyAIError:
    try:
        return call()
    except BabyAIError as error:
        return error


def gradient_backend(gpus: Sequence[str]) -> str:
    """The backend for processes on GPUs of these identifiers, empty for one without: NCCL has no two share a GPU."""
    return "nccl" if all(gpus) and len(set(gpus)) == len(gpus) else "gloo"


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the other processes of a ``torchrun`` or ``srun``, if any, while the block lasts.

    Raises:
        BabyAIError: they cannot find each other.
    """
    processes = processes_of(os.environ)
    if processes.count == 1:
        yield processes
        return
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID") or 0) % 20000))
    if os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        os.environ.setdefault("MASTER_ADDR", "localhost")
    who = {"rank": processes.rank, "world_size": processes.count}
    try:
        store, *_ = next(dist.rendezvous("env://", processes.rank, processes.count, timeout=MEETING))
        dist.init_process_group("gloo", store=store, timeout=TIMEOUT, **who)
    except (ValueError, dist.DistError) as error:
        meeting = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise BabyAIError(
            f"The {processes.count} processes could not meet at {meeting} ({str(error).splitlines()[0]}); set "
            "MASTER_ADDR and MASTER_PORT as slurm/training.sbatch does, or for a process "
            "that is alone unset RANK and WORLD_SIZE."
        ) from error
    try:
        yield processes
        # One that leaves while another still sends to it could take that other down with it.
        with contextlib.suppress(RuntimeError):
            dist.monitored_barrier(timeout=timedelta(seconds=10))
    finally:
        dist.destroy_process_group()


def processes_of(environment: Mapping[str, str]) -> Processes:
    """This process among those that torchrun, or else srun, has started."""
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        if all(environment.get(name, "").isdigit() for name in names):
            return Processes(*(int(environment[name]) for name in names))
    return Processes()
