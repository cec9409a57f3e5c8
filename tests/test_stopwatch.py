"""Stages add up to the time that passed, also where another stopwatch measured some of them."""

import subprocess
import sys
import time
from pathlib import Path

from func.stopwatch import Stopwatch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_stages_add_up():
    began = time.perf_counter()
    whole, part = Stopwatch(since=began), Stopwatch()
    time.sleep(0.02)
    part.lap("Inner")
    time.sleep(0.02)
    part.lap("Inner")
    whole.take(part.seconds)
    time.sleep(0.02)
    whole.lap("Rest")
    assert list(whole.seconds) == ["Inner", "Rest"]
    assert 0.058 < sum(whole.seconds.values()) < time.perf_counter() - began + 0.002  # rounded to milliseconds


def test_a_process_began_before_its_first_import():
    code = (
        "import time; time.sleep(0.5); from func.stopwatch import process_start as p; print(time.perf_counter() - p())"
    )
    began = time.perf_counter()
    age = float(subprocess.check_output([sys.executable, "-c", code], cwd=SCRIPTS))
    # The clock of processes ticks a hundred times a second.
    assert age <= time.perf_counter() - began + 0.02
    assert age > 0.48 or not Path("/proc/self/stat").exists()
