"""Processes that train together, as torchrun or srun starts them, and signals that ask them to stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from func.errors import BabyAIError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which of them this is."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def device(self, requested: str) -> str:
        """The device for this process: each on a node takes its own GPU."""
        if self.count > 1 and requested in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return requested

    def tell(self, text: str, file=None) -> None:
        """Print once, not once a process."""
        if self.rank == 0:
            print(text, file=file, flush=True)

    def agree(self, decide: Callable):
        """What the first process decides or writes, or the error it meets, on all of them; none goes on before it."""
        outcome = None
        if self.rank == 0:
            try:
                outcome = decide()
            except BabyAIError as error:
                outcome = error
        if self.count > 1:
            shared = [outcome]
            dist.broadcast_object_list(shared)
            outcome = shared[0]
        if isinstance(outcome, BabyAIError):
            raise outcome
        return outcome

    def together(self, do: Callable):
        """What this process has done, once all have; or the first error that one of them meets, on all of them."""
        outcome = error = None
        try:
            outcome = do()
        except BabyAIError as met:
            error = met
        errors = [error]
        if self.count > 1:
            errors = [None] * self.count
            dist.all_gather_object(errors, error)
        for error in filter(None, errors):
            raise error
        return outcome

    def any(self, flag: int) -> int:
        """The largest of a number over all processes."""
        if self.count == 1:
            return flag
        largest = torch.tensor(flag)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of numbers over all processes."""
        if self.count == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Join the other processes of a `torchrun` or `srun`, if any."""
    processes = processes_of(os.environ)
    if processes.count == 1:
        yield processes
        return
    os.environ.setdefault("MASTER_ADDR", first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")))
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=processes.rank, world_size=processes.count, timeout=timedelta(minutes=60))
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
        if all(name in environment for name in names):
            return Processes(*(int(environment[name]) for name in names))
    return Processes()


def first_host(nodes: str) -> str:
    """The first of a Slurm list of hosts: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,]*)", nodes)
    return "".join(part or "" for part in match.groups())


class Stopped(Exception):
    """A signal has asked the run to end."""

    def __init__(self, number: int, where: str):
        cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"Stopped by {cause} {where}")
        self.signal = int(number)


class Stop:
    """Whether a signal has asked to stop (its number, else 0): at once, or, if `gently`, after the step at hand."""

    def __init__(self):
        self.signal, self.gently = 0, False

    def ask(self, number: int, _) -> None:
        """Handle a signal; a second Ctrl-C does not wait."""
        if not self.gently or (number == signal.SIGINT and self.signal):
            raise Stopped(number, "at once; --resume goes on from the last checkpoint.")
        self.signal = self.signal or number


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """While the block lasts, signals that ask the process to end are taken note of."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(_) -> None:
    """Of a data worker: a scheduler tells the whole job, but it is the training that ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
