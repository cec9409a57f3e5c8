"""Batches: whose samples they are, and that they come whatever becomes of the workers."""

import itertools
import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from func.dataset import ThickSliceSamples, stacked
from func.errors import BabyAIError
from func.training import batches
from func.training.augmentation import random_shapes
from func.training.batches import SampleNumbers, made_on_device, training_batches
from func.training.distributed import Processes
from func.training.subjects import Subject

CPU = torch.device("cpu")


class Numbered(Dataset):
    """Samples that hold their number; the worker that makes one of those given is killed, so many times."""

    def __init__(self, folder, fatal=(), times=1):
        self.folder, self.fatal, self.times = folder, fatal, times

    def __getitem__(self, number):
        marks = [self.folder / f"{number}-{time}" for time in range(self.times)]
        for mark in marks if number in self.fatal else []:
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"number": np.int64(number)}


def numbers_of(samples, steps=range(3, 9), workers=0, processes=None):
    made = training_batches(samples, steps, 4, workers, processes or Processes(), CPU)
    return [batch["number"].tolist() for batch in made]


def test_processes_share_each_step():
    whole = list(SampleNumbers(3, 6, 8))
    parts = [list(SampleNumbers(3, 6, 8, rank, 2)) for rank in range(2)]
    assert whole == list(range(24, 48))
    for step in range(3):
        shared = [number for part in parts for number in part[4 * step : 4 * step + 4]]
        assert shared == whole[8 * step : 8 * step + 8]


def test_each_process_gets_its_part_of_a_batch(tmp_path):
    assert numbers_of(Numbered(tmp_path), range(2, 4)) == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert numbers_of(Numbered(tmp_path), range(2, 4), processes=Processes(1, 2)) == [[10, 11], [14, 15]]


def test_a_killed_worker_costs_no_sample(tmp_path, capfd):
    expected = np.arange(12, 36).reshape(6, 4).tolist()
    assert numbers_of(Numbered(tmp_path, fatal={18, 29}), workers=2) == expected
    assert "was killed; new ones go on from step 3" in capfd.readouterr().err


def test_workers_that_are_killed_every_time_end_the_run_in_a_sentence(tmp_path):
    made = training_batches(Numbered(tmp_path, fatal={18}, times=9), range(3, 9), 4, 2, Processes(), CPU)
    with pytest.raises(BabyAIError, match="fewer --workers"):
        list(itertools.islice(made, 6))


def test_workers_that_are_not_forked_make_the_same_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "START_METHOD", "spawn")
    assert numbers_of(Numbered(tmp_path), range(2), workers=1) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("at_once", [1, 4])
def test_batches_of_the_device_are_those_of_the_workers(at_once):
    """Made here by the thread that makes them on a GPU: in order, all of them, each as the workers make it."""
    shapes = random_shapes((24, 26, 30), np.random.default_rng(0))
    samples = ThickSliceSamples([Subject("01", *shapes, shape=shapes[0].shape)], [1], seed=0, patch=16)
    steps = range(2, 8)
    by_workers = training_batches(samples, steps, 2, 0, Processes(), CPU)
    numbers = SampleNumbers(steps.start, steps.stop, 2)
    draws = iter(DataLoader(samples.draws(), 2 * at_once, sampler=numbers, collate_fn=stacked))
    on_device = made_on_device(draws, 2, samples.to(CPU), CPU)
    pairs = list(zip(by_workers, on_device, strict=True))
    assert len(pairs) == len(steps)
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=0)


def test_what_fails_on_the_device_is_not_lost():
    samples = ThickSliceSamples([], [1], seed=0)
    with pytest.raises(ValueError):
        list(made_on_device(map(samples.draw, range(4)), 2, samples, CPU))
