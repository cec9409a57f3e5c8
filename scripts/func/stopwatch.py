"""How long the stages of a job took."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by stage, in the order in which the stages ended; together they make up the whole time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as part of ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now
