"""How long the stages of a job took."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED = time.perf_counter()


class Stopwatch:
    """Seconds by stage, in the order in which the stages ended; together they make up the whole time.

    Args:
        since: where the first stage began, on the clock of ``time.perf_counter``; now by default.
    """

    def __init__(self, since: float | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter() if since is None else since

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as part of ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now

    def take(self, seconds: dict[str, float]) -> None:
        """Count the stages that another stopwatch has measured since the last lap."""
        self.seconds |= seconds
        self._last = time.perf_counter()


def process_start() -> float:
    """When this process began, on the clock of ``time.perf_counter``; where the system does not tell, a little later.

    On Linux /proc tells, in clock ticks since the machine was started (proc_pid_stat(5), field 22).
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return _IMPORTED
    return time.perf_counter() - age
