"""TensorBoard's log of a run: curves, and pictures of whole volumes."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from func.errors import BabyAIError


class Board:
    """Writes a run's curves and pictures; what was logged after the step that a run resumes from is dropped.

    Where they cannot be written (disk full, folder gone), this is said once and training goes on without.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._writer = folder, None
        _silence_writing_threads()
        with self._faults_reported():
            self._writer = _summary_writer()(folder, purge_step=step + 1)

    def add_scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of the curves."""
        if self._writer is None:
            return
        with self._faults_reported():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
            self._writer.flush()

    def add_picture(self, name: str, volumes: list[np.ndarray], step: int) -> None:
        """Show volumes of one shape (X, Y, Z), in RAS order and of about 0 to 1, side by side in the middle planes."""
        if self._writer is None:
            return
        rows = []
        for axis in range(3):
            planes = [np.flipud(volume.take(volume.shape[axis] // 2, axis).T) for volume in volumes]
            rows.append(np.hstack(planes))
        width = max(row.shape[1] for row in rows)
        picture = np.vstack([np.pad(row, [(0, 0), (0, width - row.shape[1])]) for row in rows])
        with self._faults_reported():
            self._writer.add_image(name, picture.clip(0, 1), step, dataformats="HW")
            self._writer.flush()

    @contextlib.contextmanager
    def _faults_reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"{self._folder} cannot be written ({error.strerror}); its curves end here.", file=sys.stderr)


def check_tensorboard() -> None:
    """Find out before any work whether TensorBoard is there.

    Raises:
        BabyAIError: it is not.
    """
    _summary_writer()


def _summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BabyAIError("TensorBoard is missing; pip install -r requirements_training.txt") from None
    return SummaryWriter


def _silence_writing_threads() -> None:
    """TensorBoard writes in a thread and raises that thread's OSError in the next call: once is enough."""
    before = threading.excepthook

    def report_others(fault) -> None:
        if not isinstance(fault.exc_value, OSError):
            before(fault)

    threading.excepthook = report_others
