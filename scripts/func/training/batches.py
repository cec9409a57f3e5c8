"""The batches of a run, one for each step, on the device.

Worker processes make them, and training outlives these. Of the compact recipe they only draw what is random about a
sample where a CUDA device trains, which makes the samples itself, since no processor keeps up with it.
"""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from func.dataset import Draws, ThickSliceSamples, stacked
from func.errors import BabyAIError
from func.training.distributed import Processes
from func.training.signals import ignore_signals

# A forked worker shares the scans with its parent. macOS's own libraries do not survive a fork.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# A GPU makes the samples of several small steps at once: most of its time goes to starting operations, not to samples.
SAMPLES_AT_ONCE = 128
MADE_AHEAD = 2  # so many samples, so often, before they are needed


class SampleNumbers(Sampler):
    """The numbers of the samples that one of several processes draws, from the first step it has still to do.

    Each step takes ``batch_size`` consecutive numbers, of which every process gets its equal part, so that the
    samples of a step do not depend on how many processes there are.
    """

    def __init__(self, first_step: int, last_step: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self._steps = range(first_step, last_step)
        self._batch_size = batch_size
        self._part = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __iter__(self) -> Iterator[int]:
        return (step * self._batch_size + place for step in self._steps for place in self._part)

    def __len__(self) -> int:
        return len(self._steps) * len(self._part)


def training_batches(
    samples: Dataset,
    steps: range,
    batch_size: int,
    workers: int,
    processes: Processes,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """This process's part of the batch of each step, by name, on the device.

    With CUDA, samples of the compact recipe are made on the device. Should a worker be killed (often for want of
    memory), this is said and new ones begin at the step they were at.

    Raises:
        BabyAIError: the new ones were killed too, before they had made a batch.
    """
    on_device = samples.to(device) if isinstance(samples, ThickSliceSamples) and device.type == "cuda" else None
    own_size = batch_size // processes.count
    step, failures = steps.start, 0
    while step < steps.stop:
        loader = DataLoader(
            samples.draws() if on_device else samples,
            own_size * max(1, SAMPLES_AT_ONCE // own_size) if on_device else own_size,
            sampler=SampleNumbers(step, steps.stop, batch_size, processes.rank, processes.count),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context=START_METHOD if workers else None,
            worker_init_fn=ignore_signals,
            collate_fn=stacked if on_device else None,
            pin_memory=device.type == "cuda",
        )
        batches = iter(loader)
        # PyTorch's own handler would raise the death of a worker anywhere, in the middle of an optimiser's step too.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in made_on_device(batches, own_size, on_device, device) if on_device else batches:
                yield {name: part.to(device, non_blocking=True) for name, part in batch.items()}
                step, failures = step + 1, 0
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            failures += 1
            if failures == 2:
                raise BabyAIError(
                    f"The workers that make samples were killed twice at step {step}, probably because memory ran out; "
                    "go on with --resume and fewer --workers."
                ) from error
            print(f"A worker that makes samples was killed; new ones go on from step {step}.", file=sys.stderr)


def made_on_device(
    draws: Iterator[Draws], batch_size: int, samples: ThickSliceSamples, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """The batches of what was drawn, which a thread makes on the device, ahead of the steps that take them.

    Args:
        draws: of one batch or of several at a time, which are made together.
    """
    # Of high priority: these many small operations would else each wait for the network's large ones.
    stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def make() -> tuple[dict[str, Tensor], torch.cuda.Event | None] | None:
        drawn = next(draws, None)
        if drawn is None:
            return None
        with torch.cuda.stream(stream):
            return samples.made_from(drawn), stream and stream.record_event()

    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(make) for _ in range(MADE_AHEAD))
        while made := pending.popleft().result():
            pending.append(thread.submit(make))
            batches, event = made
            if event:
                event.wait()
                for part in batches.values():
                    part.record_stream(torch.cuda.current_stream(device))
            split = {name: part.split(batch_size) for name, part in batches.items()}
            for parts in zip(*split.values(), strict=True):
                yield dict(zip(split, parts, strict=True))
