"""Files are read ahead of the work and written behind it, so that neither waits for the disk."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

from func.processors import processors

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], read: Callable[[Item], object]) -> Iterator[tuple[Item, Future]]:
    """Each item with the future of its reading, which begins while the item before is being worked on.

    The first is read from now on, in a process of its own if torch has yet to be imported: an import holds Python's
    lock, and a thread would wait for it most of the time.
    """
    pool, items = ThreadPoolExecutor(1, "reader"), iter(items)
    begin = _begin_in_own_process if _may_fork() else partial
    begun = [(item, pool.submit(begin(read, item))) for item in islice(items, 1)]

    def each() -> Iterator[tuple[Item, Future]]:
        with pool:
            for item in items:
                begun.append((item, pool.submit(read, item)))
                yield begun.pop(0)
            yield from begun

    return each()


def _may_fork() -> bool:
    """Whether a copy of this process can be made at once, and would have a processor to run on.

    Only while no other thread runs: what it holds locked would stay so in the copy.
    """
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return sys.platform == "linux" and alone and processors() > 1


def _begin_in_own_process(read: Callable[[Item], object], item: Item) -> Callable[[], object]:
    """Begin to ``read(item)`` in a copy of this process; what is returned waits for the result, or its exception."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sending, read, item), daemon=True)
    try:
        process.start()
    except OSError:  # no room for another one
        return partial(read, item)
    sending.close()

    def result() -> object:
        with receiving:
            try:
                value, error = receiving.recv()
            except EOFError:  # it was killed
                return read(item)
        process.join()
        if error:
            raise error
        return value

    return result


def _send_result(sending: Connection, read: Callable[[Item], object], item: Item) -> None:
    try:
        outcome = read(item), None
    except BaseException as error:
        # Where it was raised is lost on the way; a note arrives.
        error.add_note("".join(traceback.format_exception(error)))
        outcome = None, error
    sending.send(outcome)


class Writer:
    """Writes each result in the background while the next one is computed; waits for the last on exit.

    Args:
        done: called with the key of a result once it is written.
        failed: called with its key and the exception where it could not be written.
        modules: what writing needs, imported in the background first.
    """

    def __init__(
        self,
        done: Callable[[object], object],
        failed: Callable[[object, BaseException], object],
        modules: Iterable[str] = (),
    ):
        self._done, self._failed = done, failed
        self._pool = ThreadPoolExecutor(1, "writer")
        for module in modules:
            self._pool.submit(importlib.import_module, module)
        self._writing: tuple[object, Future] | None = None

    def submit(self, key: object, write: Callable[..., object], *arguments: object) -> None:
        """Begin to ``write(*arguments)`` the result called ``key``.

        First waits for the result before, so that no more than one is held in memory.
        """
        self._settle()
        self._writing = key, self._pool.submit(write, *arguments)

    def _settle(self) -> None:
        if self._writing is None:
            return
        key, future = self._writing
        wait([future])
        self._writing = None
        if error := future.exception():
            self._failed(key, error)
        else:
            self._done(key)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self._settle()
        self._pool.shutdown()
