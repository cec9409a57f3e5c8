"""What a training run tells about itself: losses and speed in the log, curves and pictures on the TensorBoard."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from func.dataset import Case
from func.errors import BabyAIError
from func.training.processes import Processes


class Recent:
    """Losses and times since the last report; kept on the device, so that it need not be waited for every step."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._waited, self._since = 0.0, time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take note of a step's loss and of the norm of its gradient."""
        self._losses.append(loss.detach())
        self._norms.append(norm)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in the block is time lost to the data loader."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the block is not counted."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def check(self, step: int) -> None:
        """Stop before a checkpoint is written that nobody could go on from.

        Raises:
            BabyAIError: a loss or gradient was not finite.
        """
        finite = [bool(torch.isfinite(loss + norm)) for loss, norm in zip(self._losses, self._norms, strict=True)]
        if self._processes.any(int(not all(finite))):
            bad = step - len(finite) + 1 + (finite.index(False) if False in finite else 0)
            raise BabyAIError(
                f"The loss or its gradient is not finite (NaN) at step {bad}: the checkpoints and weights from before "
                "it are kept; start another run with --init-weights and a lower --learning-rate."
            )

    def report(self, batch_size: int) -> dict[str, float]:
        """Mean loss over all processes, samples a second, and the share of the time that data were waited for."""
        seconds = time.perf_counter() - self._since
        count = len(self._losses)
        sums = self._processes.add({"loss": float(torch.stack(self._losses).sum())})
        report = {
            "loss": sums["loss"] / count / self._processes.count,
            "gradient_norm": float(self._norms[-1]),
            "samples_per_second": count * batch_size / seconds,
            "waiting_share": self._waited / seconds,
            "seconds": seconds,
        }
        self._losses, self._norms, self._waited, self._since = [], [], 0.0, time.perf_counter()
        return report


class Board:
    """TensorBoard's log of a run; what was logged after the step that a run resumes from is dropped.

    Where it cannot be written (disk full, folder gone), that is told once: curves are not worth a run.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BabyAIError("TensorBoard is missing; pip install -r requirements_training.txt") from None
        self._folder, self._writer = folder, None
        leave_writing_faults_to_the_caller()
        with self._faults_told():
            self._writer = SummaryWriter(folder, purge_step=step + 1)

    def add_scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """A point on each of the curves."""
        if self._writer is None:
            return
        with self._faults_told():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
            self._writer.flush()

    def add_picture(self, group: str, case: Case, result: nib.Nifti1Image, step: int) -> None:
        """Cubic interpolation, the output and the truth beside each other, in the three middle planes."""
        if self._writer is None:
            return
        volumes = [np.asarray(case.t2.dataobj), np.asarray(result.dataobj), case.truth]
        rows = []
        for axis in range(3):
            planes = [np.flipud(volume.take(volume.shape[axis] // 2, axis).T) for volume in volumes]
            rows.append(np.hstack(planes))
        width = max(row.shape[1] for row in rows)
        picture = np.vstack([np.pad(row, [(0, 0), (0, width - row.shape[1])]) for row in rows])
        name = f"{group}/cubic, output, truth: {case.name}"
        with self._faults_told():
            self._writer.add_image(name, picture.clip(0, 1), step, dataformats="HW")
            self._writer.flush()

    @contextlib.contextmanager
    def _faults_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"{self._folder} cannot be written ({error.strerror}); its curves end here.", file=sys.stderr)


def leave_writing_faults_to_the_caller() -> None:
    """TensorBoard writes in a thread and raises that thread's OSError in the next call; one telling is enough."""
    before = threading.excepthook

    def tell_others(fault) -> None:
        if not isinstance(fault.exc_value, OSError):
            before(fault)

    threading.excepthook = tell_others


def told(values: Mapping[str, float]) -> str:
    """Names and numbers for the log."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
