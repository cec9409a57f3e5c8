"""Files are read ahead of the work and written behind it, so that neither waits for the disk."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], read: Callable[[Item], object]) -> Iterator[tuple[Item, Future]]:
    """Each item with the future of its reading, which begins while the item before is being worked on.

    The first is read from now on.
    """
    pool, items = ThreadPoolExecutor(1, "reader"), iter(items)
    begun = [(item, pool.submit(read, item)) for item in islice(items, 1)]

    def each() -> Iterator[tuple[Item, Future]]:
        with pool:
            for item in items:
                begun.append((item, pool.submit(read, item)))
                yield begun.pop(0)
            yield from begun

    return each()


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
