"""Reading ahead: by whom, in what order, and what becomes of errors. Processes without torch, as scripts begin."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
BEGINNING = """
import os, signal, sys, threading
from func import pipeline
from func.errors import BabyAIError
pipeline.processors = lambda: 2
here = os.getpid()
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes copies of a process safely")


def printed(code):
    """What a fresh process prints that runs this code."""
    code = BEGINNING + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.split()


@linux_only
def test_the_first_is_read_by_another_process_and_the_rest_by_this_one():
    code = """
    for item, reading in pipeline.read_ahead("abc", lambda item: (item, os.getpid() == here)):
        print(item, *reading.result())
    """
    assert printed(code) == ["a", "a", "False", "b", "b", "True", "c", "c", "True"]


@linux_only
@pytest.mark.parametrize(
    "busy",
    [
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "sys.modules['torch'] = None",
        "pipeline.processors = lambda: 1",
        "os.fork = lambda: os.open('/no/such/file', os.O_RDONLY)",
    ],
)
def test_this_process_reads_where_a_copy_could_hang_or_gain_nothing(busy):
    code = f"""
    {busy}
    for _, reading in pipeline.read_ahead("a", lambda item: os.getpid() == here):
        print(reading.result())
    """
    assert printed(code) == ["True"]


@linux_only
def test_an_error_comes_from_the_other_process_as_it_is():
    code = """
    def read(item):
        raise BabyAIError(f"{item} is-empty")
    for _, reading in pipeline.read_ahead("ab", read):
        print(repr(reading.exception()).replace(" ", "_"))
    """
    assert printed(code) == ["BabyAIError('a_is-empty')", "BabyAIError('b_is-empty')"]


@linux_only
def test_it_is_told_where_in_the_other_process_an_error_arose():
    code = """
    import traceback
    def somewhere():
        raise ValueError
    for _, reading in pipeline.read_ahead("a", lambda item: somewhere()):
        print("somewhere" in "".join(traceback.format_exception(reading.exception())))
    """
    assert printed(code) == ["True"]


@linux_only
def test_what_a_killed_process_was_to_read_is_read_by_this_one():
    code = """
    def read(item):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return item, "here"
    for _, reading in pipeline.read_ahead("a", read):
        print(*reading.result())
    """
    assert printed(code) == ["a", "here"]
