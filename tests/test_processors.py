"""How many processors and threads are used."""

import os

import pytest

from func.processors import processors, threads


def test_some_processor_may_be_used():
    assert 1 <= processors() <= os.cpu_count()


def test_processors_where_affinity_is_unknown(monkeypatch):
    """macOS and Windows have no ``sched_getaffinity``."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert processors() == os.cpu_count()


@pytest.mark.parametrize("stated", ["1", "1000", "0", "", "all"])
def test_no_more_threads_than_the_environment_states(monkeypatch, stated):
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    assert threads() == (1 if stated == "1" else processors())
