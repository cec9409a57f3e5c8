"""Jobs run beside each other: failures told, stops clean."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from conftest import REPO_ROOT
from func.commands import (
    Tally,
    add_t1w_filter,
    at_least_one,
    in_processes,
    run_to_the_end,
    script_parser,
    similarity,
)
from func.errors import BabyAIError


def work(item: int) -> int:
    """A job: 1 fails as a user may cause it, 2 as only we can, 3 is killed."""
    if item == 1:
        raise BabyAIError("sub-1 is broken; mend it.")
    if item == 2:
        raise ValueError("our own mistake")
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 10


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_fails_costs_no_other_its_result(workers, capsys):
    tally = Tally("done")
    results = {}
    for item, outcome in in_processes(work, [0, 1, 2, 4, 5], workers):
        if isinstance(outcome, BaseException):
            tally.fail(f"sub-{item}", outcome)
        else:
            results[item] = outcome
    assert results == {0: 0, 4: 40, 5: 50}
    lines = capsys.readouterr().err
    assert "FAILED sub-1 is broken; mend it.\n" in lines
    assert "FAILED sub-2 met an error in BABY-AI itself (ValueError); please report the lines above." in lines
    assert "raise ValueError" in lines and "raise BabyAIError" not in lines


def test_a_file_that_may_not_be_read_is_told_in_a_sentence(capsys):
    Tally("done").fail("sub-1", PermissionError(errno.EACCES, "Permission denied", "sub-1/T2w.json"))
    told = capsys.readouterr().err
    assert told == (
        "FAILED sub-1/T2w.json cannot be reached (Permission denied); check the path and its permissions.\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_killed_process_is_told(capsys):
    tally = Tally("done")
    for item, outcome in in_processes(work, [3, 3], workers=2):
        tally.fail(f"sub-{item}", outcome)
    assert tally.failed == 2
    assert capsys.readouterr().err.count("probably because memory ran out; run again with fewer --workers") == 2


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_one_killed_worker_among_survivors(capsys):
    """The workers are reused and the killed one is replaced: every other job is done, before it and after."""
    tally, results = Tally("done"), {}
    for item, outcome in in_processes(work, [0, 4, 3, 5, 6, 3, 7, 8, 9, 10, 11, 12], workers=3):
        if isinstance(outcome, BaseException):
            tally.fail(f"sub-{item}", outcome)
        else:
            results[item] = outcome
    assert results == {item: 10 * item for item in (0, 4, 5, 6, 7, 8, 9, 10, 11, 12)}
    assert tally.failed == 2 and capsys.readouterr().err.count("sub-3 was not finished") == 2


def of_thread_counts(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_workers_compute_on_one_thread_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [outcome for _, outcome in in_processes(of_thread_counts, range(4), 2)] == ["1"] * 4
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [outcome for _, outcome in in_processes(of_thread_counts, range(2), 2)] == ["2"] * 2


def stopped(number: int):
    def job(tally: Tally) -> None:
        tally.done = 3
        os.kill(os.getpid(), number)
        signal.pause()

    return job


def refused(tally: Tally) -> None:
    raise BabyAIError("No such folder; check it.")


def locked(tally: Tally) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/locked/a")


def half_failed(tally: Tally) -> None:
    tally.done, tally.kept, tally.failed = 2, 1, 1


@pytest.mark.parametrize(
    "job, code, said",
    [
        (lambda tally: None, 0, "Summary: 0 made, 0 failed."),
        (half_failed, 1, "Summary: 2 made, 1 already there, 1 failed."),
        (refused, 2, "x.py: No such folder; check it."),
        (locked, 2, "x.py: /locked/a cannot be reached (Permission denied); check the path and its permissions."),
        (stopped(signal.SIGINT), 130, "Stopped by Ctrl-C: 3 made, 0 failed; run again to do the rest."),
        (stopped(signal.SIGTERM), 143, "Stopped by SIGTERM: 3 made, 0 failed; run again to do the rest."),
    ],
)
def test_exit_codes(job, code, said, capsys):
    assert run_to_the_end("x.py", job, Tally("made")) == code
    captured = capsys.readouterr()
    assert (captured.out or captured.err).strip() == said


@pytest.mark.skipif(os.name != "posix", reason="a pipe is closed otherwise there")
def test_a_console_that_cannot_show_a_name_or_is_gone_ends_nothing_in_a_traceback():
    job = (
        "import sys, time; from tqdm import tqdm; from func.commands import Tally, run_to_the_end\n"
        "def work(tally): time.sleep(0.5); tqdm.write('ä赤'); tally.done = 1\n"
        "sys.exit(run_to_the_end('x.py', work, Tally('made')))"
    )
    started = {"args": [sys.executable, "-c", job], "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started |= {"env": os.environ | {"PYTHONIOENCODING": "ascii"}, "cwd": REPO_ROOT / "scripts"}
    plain, cut = subprocess.Popen(**started), subprocess.Popen(**started)
    cut.stdout.close()
    assert plain.communicate() == (b"\\xe4\\u8d64\nSummary: 1 made, 0 failed.\n", b"")
    assert cut.stderr.read() == b"" and (plain.returncode, cut.wait()) == (0, 141)


@pytest.mark.parametrize(("text", "accepted"), [("acq-mprage", True), ("rec-", True), ("mprage", False), ("-x", False)])
def test_t1w_filter(text, accepted, capsys):
    parser = script_parser("A script.")
    add_t1w_filter(parser)
    if accepted:
        assert parser.parse_args(["--t1w-filter", text, "run-2"]).t1w_filter == [text, "run-2"]
    else:
        with pytest.raises(SystemExit):
            parser.parse_args(["--t1w-filter", text])
        assert "--t1w-filter" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x", "", "nan", "-1", "1.5", "inf"])
@pytest.mark.parametrize(
    ("kind", "told"), [(similarity, "is not a number from 0 to 1"), (at_least_one, "is not a number of processes")]
)
def test_a_number_that_cannot_be_is_told_in_words(kind, told, text, capsys):
    parser = script_parser("A script.")
    parser.add_argument("--number", type=kind)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--number={text}"])
    assert f"'{text}' {told}" in capsys.readouterr().err
    assert parser.parse_args(["--number", "1"]).number == 1
