"""What users are told: the one exception they see, and the one way to warn them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from tqdm import tqdm

_collected: ContextVar[list[str] | None] = ContextVar("collected warnings", default=None)


class BabyAIError(Exception):
    """A problem the user can mend, told in one sentence: which file, what is wrong, what to do."""


def warn(sentence: str) -> None:
    """Show ``WARNING sentence`` on the console (standard error, above any progress bar).

    For input that is odd but used all the same. A block of :func:`collect_warnings` also keeps the sentence, and shows
    it once only, as of a T1w that serves several stacks.
    """
    if (collected := _collected.get()) is not None:
        if sentence in collected:
            return
        collected.append(sentence)
    tqdm.write(f"WARNING {sentence}", file=sys.stderr)


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yields a list that fills with the warnings given in the block, by this thread, for a sidecar and a report."""
    token = _collected.set([])
    try:
        yield _collected.get()
    finally:
        _collected.reset(token)
