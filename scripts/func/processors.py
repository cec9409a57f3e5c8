"""How many processors and threads there are to work with."""

from __future__ import annotations

import os


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads to work with: SciPy lets go of Python's lock. A worker process is given one by its environment."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), int(stated)) if stated.isdigit() and int(stated) else processors()
