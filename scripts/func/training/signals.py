"""Signals that ask a training run to stop: Ctrl-C, SIGTERM, and SIGUSR1, which Slurm sends before the time is up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """A signal has asked the run to end."""

    def __init__(self, number: int, where: str):
        cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"Stopped by {cause} {where}")
        self.signal = int(number)


class Stop:
    """The signal that has asked to stop (0: none). While ``gently`` it is only noted, otherwise it raises Stopped."""

    def __init__(self):
        self.signal, self.gently = 0, False

    def handle(self, number: int, _) -> None:
        """The signal handler; a second Ctrl-C stops at once."""
        if not self.gently or (number == signal.SIGINT and self.signal):
            raise Stopped(number, "at once; --resume goes on from the last checkpoint.")
        self.signal = self.signal or number


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Handle the stop signals while the block lasts."""
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(_) -> None:
    """For data workers: Ctrl-C and SIGUSR1 reach every process of a job, and training itself ends its workers.

    It does so by SIGTERM, should nothing else help.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
