"""What every script shares: its parser, the tally of many independent jobs, exit codes, worker processes.

A job that fails costs no other its result, and a stop leaves nothing half made.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from func.errors import BabyAIError
from func.version import own_version

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def script_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser with ``--version``, whose help is the script's docstring: its first line, the options, the rest.

    Options belong into groups with names, which the help shows in the order of their making.
    """
    description, _, epilog = docstring.partition("\n")
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.register("type", Path, _expanded_path)  # for every option of type=Path
    parser.add_argument(
        "--version", action="version", version=f"BABY-AI {own_version()}", help="show the version and exit"
    )
    return parser


def add_overwrite(group: argparse._ArgumentGroup, default: bool) -> None:
    """``--overwrite`` and ``--no-overwrite``."""
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="replace results that are already there (default: keep them)",
    )


def add_t1w_filter(group: argparse._ArgumentGroup) -> None:
    """``--t1w-filter``, for every script that pairs T1w and T2w scans."""
    group.add_argument(
        "--t1w-filter",
        type=entity,
        nargs="+",
        metavar="ENTITY",
        default=[],
        help="of several T1w take the one with these entities in its name, such as acq-mprage; rec- is one without rec "
        "(default: the native one without contrast agent)",
    )


def entity(text: str) -> str:
    """A BIDS entity, such as ``acq-mprage``, or a key alone, such as ``rec-``."""
    if not re.fullmatch(r"[a-zA-Z0-9]+-[a-zA-Z0-9+]*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not an entity like acq-mprage")
    return text


def _expanded_path(text: str) -> Path:
    """A path from the command line, ``~`` for the home folder wherever it stands (a shell leaves ``--output=~/x``)."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        path = Path(text).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}' names a user who has no home folder here") from None
    except OSError as error:  # a folder on the way may not be entered, or a name is too long
        raise argparse.ArgumentTypeError(_refusal(error)) from None
    return path


def _refusal(error: OSError) -> str:
    """A sentence on a file or a folder that the system does not let this process reach."""
    return f"{error.filename} cannot be reached ({error.strerror}); check the path and its permissions."


def at_least_one(text: str) -> int:
    """A number of processes, from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of processes")
    return int(text)


def positive(text: str) -> float:
    """A length in mm, above zero, from the command line."""
    if (length := not_negative(text)) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a length above 0 mm")
    return length


def not_negative(text: str) -> float:
    """A length in mm, from the command line."""
    if not 0 <= (length := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a length in mm")
    return length


def similarity(text: str) -> float:
    """The least similarity of two scans, from the command line."""
    if not 0 <= (share := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return share


def _number(text: str) -> float:
    """The number that a text is; NaN, which no bounds hold, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler or a shutdown asks the process to end."""


@dataclass
class Tally:
    """How many results were made, were there already, or failed, for the summary and the exit code."""

    verb: str
    done: int = 0
    kept: int = 0
    failed: int = 0
    sentences: list[str] = field(default_factory=list)  # on what failed

    def fail(self, name: str, error: BaseException) -> None:
        """Record a failure and print it as one sentence; unexpected errors print a traceback too."""
        self.failed += 1
        if isinstance(error, BabyAIError):
            sentence = str(error) if name in str(error) else f"{name}: {error}"
        elif isinstance(error, (MemoryError, BrokenProcessPool)):
            sentence = f"{name} was not finished, probably because memory ran out; run again with fewer --workers."
        elif isinstance(error, OSError) and error.filename:
            sentence = _refusal(error)
        else:
            tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr, end="")
            sentence = f"{name} met an error in BABY-AI itself ({type(error).__name__}); please report the lines above."
        self.sentences.append(sentence)
        tqdm.write(f"FAILED {sentence}", file=sys.stderr)

    def __str__(self) -> str:
        kept = f", {self.kept} already there" if self.kept else ""
        return f"{self.done} {self.verb}{kept}, {self.failed} failed"


def run_to_the_end(script: str, work: Callable[[Tally], None], tally: Tally) -> int:
    """Do ``work(tally)``, print the summary, and return the script's exit code.

    0: all done; 1: something failed; 2: the call was wrong (``work`` raised BabyAIError, or met a file or folder that
    it may not reach); 130, 141 and 143: stopped by Ctrl-C, by the end of what reads its output, and by SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the console cannot show must not end the run
    try:
        with sigterm_raised():
            work(tally)
        print(f"Summary: {tally}.", flush=True)
    except BabyAIError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python would try once more to print
        return 141
    except OSError as error:
        if not error.filename:
            raise
        print(f"{script}: {_refusal(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        cause, code = ("SIGTERM", 143) if isinstance(stop, Terminated) else ("Ctrl-C", 130)
        print(f"Stopped by {cause}: {tally}; run again to do the rest.", file=sys.stderr)
        return code
    return 1 if tally.failed else 0


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block in which torch is imported: what it is made of is not searched for garbage, now or at the end.

    A process that imports torch and ends takes 6 seconds of one core without this, and 4 with it. A thread that reads
    and registers scans meanwhile waits a tenth as long as usual for its turn in Python. Threads of torch sleep while
    they wait for each other, unless the environment says otherwise: where other processes want the processors, those
    that spin made stages of a reconstruction ten times as slow.
    """
    if "torch" in sys.modules:
        yield
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 10)
    gc.disable()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def sigterm_raised() -> Iterator[None]:
    """While the block lasts, SIGTERM raises :class:`Terminated`, so that everything is left as Ctrl-C leaves it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result | BaseException]]:
    """Each item with what ``work`` returned for it, or the exception that it raised, in the order they finish.

    With one worker everything runs in this process. Several are processes started afresh (which every platform can),
    one thread each; they end with this one, their own files cleaned up. A worker that is killed, as for want of memory,
    costs only the item it was at, and is replaced.
    """
    items = list(items)
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, _attempt(work, item)
        return
    running_before = multiprocessing.active_children()
    waiting, running, pools = deque(items), {}, []

    def start(pool: ProcessPoolExecutor) -> None:
        if waiting:
            item = waiting.popleft()
            with _one_thread_each():
                running[pool.submit(_run, work, item)] = item, pool

    def new_pool() -> ProcessPoolExecutor:
        # Of one process: a larger pool fails as a whole where one of its processes is killed.
        pools.append(ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_prepare_worker))
        return pools[-1]

    try:
        for _ in range(min(workers, len(items))):
            start(new_pool())
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item, pool = running.pop(future)
                start(new_pool() if isinstance(future.exception(), BrokenProcessPool) else pool)
                yield item, future.exception() or future.result()
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in running_before:
                process.terminate()
        raise
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _attempt(work: Callable, item):
    try:
        return work(item)
    except Exception as error:
        return error


def _run(work: Callable, item):
    with contextlib.suppress(SystemExit):
        return work(item)
    # Stopped, and the files of this item cleaned up; the pool would hand the process its next one.
    os._exit(143)


def _prepare_worker() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the parent, who ends the others by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in the block compute on one thread, unless the environment says otherwise."""
    added = [name for name in _THREAD_COUNTS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
