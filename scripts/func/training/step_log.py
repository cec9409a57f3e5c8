"""Losses and speed of the steps since the last report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from func.errors import BabyAIError
from func.training.distributed import Processes


class StepLog:
    """Collects the steps' losses on the device, so that the processor need not wait for it at every step."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._waited, self._since = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the last report, pauses not counted."""
        return time.perf_counter() - self._since

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take note of a step's loss and of the norm of its gradient."""
        self._losses.append(loss.detach())
        self._norms.append(norm)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in the block as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent in the block."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def check_finite(self, step: int) -> None:
        """Stop before a checkpoint is written that nobody could go on from.

        Raises:
            BabyAIError: a loss or gradient was not finite.
        """
        finite = torch.isfinite(torch.stack(self._losses) + torch.stack(self._norms)).tolist() if self._losses else []
        if self._processes.largest(int(not all(finite))):
            bad = step - len(finite) + 1 + (finite.index(False) if False in finite else 0)
            raise BabyAIError(
                f"The loss or its gradient is not finite (NaN) at step {bad}: the checkpoints and weights from before "
                "it are kept; start another run with --init-weights and a lower --learning-rate."
            )

    def report(self, batch_size: int) -> dict[str, float]:
        """Mean loss over all processes, samples a second, and the share of the time spent waiting; then start anew."""
        seconds = self.seconds
        count = len(self._losses)
        sums = self._processes.sums({"loss": float(torch.stack(self._losses).sum())})
        report = {
            "loss": sums["loss"] / count / self._processes.count,
            "gradient_norm": float(self._norms[-1]),
            "samples_per_second": count * batch_size / seconds,
            "waiting_share": self._waited / seconds,
            "seconds": seconds,
        }
        self._losses, self._norms, self._waited, self._since = [], [], 0.0, time.perf_counter()
        return report


def format_metrics(values: Mapping[str, float]) -> str:
    """Names and numbers in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
