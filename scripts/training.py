"""Train a network on isotropic pairs of T1w and T2w scans, from which thick slices are made on the fly.

    python scripts/training.py --data-dir DATA --output-dir RESULTS
    torchrun --nproc-per-node 4 scripts/training.py --data-dir DATA --output-dir RESULTS
    srun python scripts/training.py --data-dir DATA --output-dir RESULTS --run my-run --resume

RESULTS then holds training_info.csv (one row a run), weights/RUN.pth (for inference.py --weights), tensorboard_logs/RUN
and runs/RUN, with split.csv and the checkpoints. Ctrl-C, SIGTERM and SIGUSR1 end a run with a checkpoint; the same call
with --resume goes on from there, on as many processes as there are then.

Exit code: 0 all done, 1 failed or some subject could not be used, 2 the call was wrong; 130, 143 or 138 stopped by
Ctrl-C, SIGTERM or SIGUSR1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import fcntl
import json
import math
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

# Data workers share the processor with the network, so that each had better keep to one core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from func.dataset import (
    PARTS,
    Case,
    Numbers,
    PublishedPatches,
    Subject,
    ThickSliceSamples,
    find_subjects,
    phantoms,
    published_images,
    read_pseudo_pairs,
    read_subjects,
    shapes,
    split_subjects,
    validation_cases,
)
from func.errors import BabyAIError
from func.folding import kind_and_size, prune, pruned
from func.metrics import score_brain
from func.network import FOLDED, RECIPES, Weights, build_network, load_weights, save_weights
from func.reconstruction import choose_device, reconstruct
from func.volumes import atomic, save_json

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = REPO_ROOT / "data"  # holds isotropic sub-*_T1w.nii.gz and sub-*_T2w.nii.gz, in subfolders or not
OUTPUT_DIR = REPO_ROOT / "results"
RECIPE = "compact"  # compact, or babyai: as the published model was trained
DEVICE = "auto"  # auto, cpu, cuda or mps
PRECISION = "auto"  # auto, float32 or bfloat16
WORKERS = None  # processes that prepare samples; None: as there are cores to spare, 8 at most
LOG_EVERY = 20  # steps
CHECKPOINT_EVERY = 250  # steps
VALIDATION_SCANS = (("axial", 2.0), ("sagittal", 4.0), ("coronal", 5.0))  # direction and thickness in mm
VALIDATION_SUBJECTS = 3  # whose whole volumes are reconstructed at each validation

# What decides the outcome of a run. The learning rate rises over the warm-up, then falls to `floor` times its peak.
SETTINGS = {
    "compact": {
        "seed": 0,
        "batch_size": 4,  # over all processes
        "epochs": 40,
        "learning_rate": 1e-3,
        "warm_up": 80,  # steps
        "floor": 0.1,
        "clip": 1.0,  # largest norm of the gradient
        "averaging": 0.999,  # decay of the running mean of the weights
        "patch": 56,
        "samples_per_subject": 200,  # in an epoch
        "phantoms": 4,
        "shapes": 4,
        "invented_share": 0.2,  # of the samples: from --extra-t1, phantoms and shapes, in equal parts
    },
    "babyai": {
        "seed": 0,
        "batch_size": 32,
        "epochs": 100,
        "learning_rate": 1e-4,
        "warm_up": 0,
        "floor": 1.0,
        "clip": math.inf,
        "averaging": 0.0,
    },
}
VALIDATION_SAMPLES = 32  # of the compact recipe

INFO_NAME = "training_info.csv"
METRICS = ("loss", "psnr", "ssim", "cubic_psnr", "cubic_ssim")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    failure = 2
    with process_group() as processes, stop_signals() as stop:
        try:
            run = processes.agree(lambda: begin(arguments))
            if run.is_complete:
                processes.tell(f"The run {run.name} is complete: {run.weights}")
                return 0
            failure = 1
            with alone_on(run) if processes.rank == 0 else contextlib.nullcontext():
                return train(run, arguments, processes, stop)
        except BabyAIError as error:
            processes.tell(f"training.py: {error}", file=sys.stderr)
            return failure
        except Stopped as stopped:
            processes.tell(str(stopped), file=sys.stderr)
            return 128 + stopped.signal


def train(run: Run, arguments: argparse.Namespace, processes: Processes, stop: Stop) -> int:
    """The run from its last checkpoint, or from the start, to its end; returns the exit code."""
    settings, tell = run.settings, processes.tell
    batch_size = settings["batch_size"]
    if batch_size % processes.count:
        raise BabyAIError(f"A batch of {batch_size} cannot be shared by {processes.count} processes; set --batch-size.")
    device, precision = choose_device(processes.device(arguments.device), arguments.precision)
    data = prepare_data(run, arguments)
    for error in data.errors:
        tell(f"FAILED {error}", file=sys.stderr)
    steps_per_epoch = math.ceil(data.epoch / batch_size)
    steps = settings["steps"] or settings["epochs"] * steps_per_epoch
    validate_every = settings["validate_every"] or steps_per_epoch

    torch.manual_seed(settings["seed"])
    network = trainable_network(settings).to(device)
    mean = RunningMean(network, settings["averaging"])
    optimizers = optimizers_of(network, settings)
    loss_of = LOSSES[settings["recipe"]]
    progress = restore(run.checkpoint, network, mean, optimizers) if run.checkpoint else Progress()
    first = progress.step
    model = DistributedDataParallel(network) if processes.count > 1 else network
    batches = iter(
        DataLoader(
            data.samples,
            batch_size // processes.count,
            sampler=Numbers(first, steps, batch_size, processes.rank, processes.count),
            num_workers=arguments.workers,
            prefetch_factor=4 if arguments.workers else None,
            multiprocessing_context="fork" if arguments.workers else None,
            worker_init_fn=ignore_signals,
            pin_memory=device.type == "cuda",
        )
    )
    board = Board(run, first) if processes.rank == 0 else None
    recent = Recent(processes)
    tell(
        f"{run.name}: {settings['recipe']}, {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, "
        f"{data.description}; steps {first} to {steps}, {steps_per_epoch} an epoch; effective batch size {batch_size} "
        f"on {processes.count} x {device.type} in {precision}, learning rate {settings['learning_rate']:g}"
    )

    stop.gently = True
    while True:
        validating = progress.step > progress.validated and (
            progress.step % validate_every == 0 or progress.step == steps
        )
        stopping = processes.any(stop.signal)
        if progress.step > first and (stopping or validating or progress.step % arguments.checkpoint_every == 0):
            recent.check(progress.step)
            if processes.rank == 0:
                save_checkpoint(run, progress, network, mean, optimizers)
        if stopping:
            raise Stopped(stopping, f"at step {progress.step} of {steps}; --resume goes on from there.")
        if validating:
            metrics = validate(mean.network, data, "validation", run, arguments, processes, stop, board, progress.step)
            if metrics is None:
                continue
            progress.record(metrics, settings["recipe"])
            if metrics:
                tell(f"step {progress.step} validation: {told(metrics)}{' (best)' if progress.is_best else ''}")
            if progress.is_best and processes.rank == 0:
                save_best(run, mean.network, progress, data)
        if progress.step == steps:
            break

        rate = learning_rate_at(progress.step, steps, settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["relative_rate"]
        with recent.waiting():
            batch = next(batches)
        batch = {name: part.to(device, non_blocking=True) for name, part in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(batch["inputs"])
        loss = loss_of(output.float(), batch).mean()
        network.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings["clip"])
        for optimizer in optimizers:
            optimizer.step()
        progress.step += 1
        mean.update(network, progress.step)
        recent.add(loss, norm)

        if progress.step % arguments.log_every == 0:
            recent.check(progress.step)
            report = recent.report(batch_size) | {"learning_rate": rate}
            progress.training_loss = report["loss"]
            progress.seconds += report.pop("seconds")
            tell(f"step {progress.step}: {told(report)}")
            if board:
                board.add_scalars("training", report, progress.step)

    finish(run, data, arguments, processes, stop, progress, mean, sum(p.numel() for p in network.parameters()))
    return 1 if data.errors else 0


def relative_error(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The compact recipe's loss of each sample: 1 where the output, made consistent, is no better than cubic is.

    The mean of the absolute and of the root-mean-square error, each over that of consistent cubic interpolation.
    """
    estimate = output[:, 0]
    seen = torch.einsum("bxyz,bwz->bxyw", estimate, batch["projection"])
    error = (estimate - seen + batch["offset"] - batch["truth"]) * batch["planes"][:, None, None]
    absolute, root_mean_square = error.abs().mean((1, 2, 3)), (error.square().mean((1, 2, 3)) + 1e-7).sqrt()
    cubic = batch["baseline"] + 1e-3
    return (absolute / cubic[:, 0] + root_mean_square / cubic[:, 1]) / 2


def squared_error(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The published loss of each patch."""
    return (output - batch["truth"]).square().mean((1, 2, 3, 4))


LOSSES = {"compact": relative_error, "babyai": squared_error}


def learning_rate_at(step: int, steps: int, settings: Mapping) -> float:
    """Linear warm-up, then half a cosine from the peak to the floor."""
    warm_up = min(1.0, (step + 1) / max(settings["warm_up"], 1))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return settings["learning_rate"] * warm_up * (settings["floor"] + (1 - settings["floor"]) * cosine)


def trainable_network(settings: Mapping) -> nn.Module:
    """The network of the recipe with fresh or given weights; of ``babyai`` only the taps that a patch's data meet.

    The other taps of its kernels multiply padding alone: their gradient is zero, and training never changes them.
    """
    recipe, start = settings["recipe"], settings["init_weights"]
    network = build_network(recipe, **settings["network"])
    if recipe == "babyai":
        depth = len({**RECIPES[recipe], **settings["network"]}["channels"]) - 1
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                keep_used_taps(module, *kind_and_size(f"{name}.weight", depth, 32))
    if start:
        network.load_state_dict(initial_tensors(start, settings))
    return network


def keep_used_taps(module: nn.Conv3d | nn.ConvTranspose3d, kind: str, size: int) -> None:
    """Shrink a padded convolution of 3^3 taps, on maps of ``size`` voxels, to the taps that ever meet a voxel."""
    kernel = prune(module.weight.detach(), kind, size).clone()
    if kernel.shape == module.weight.shape:
        return
    module.weight = nn.Parameter(kernel)
    module.kernel_size = tuple(kernel.shape[2:])
    module.padding = (0, 0, 0)
    if kind == "up":
        module.output_padding = (0, 0, 0)


def initial_tensors(path: str, settings: Mapping) -> dict[str, Tensor]:
    """The tensors of a weights file, which must be of the same recipe."""
    weights = load_weights(path)
    if weights.recipe != settings["recipe"]:
        raise BabyAIError(
            f"{path} holds weights of {weights.recipe}; give --recipe {weights.recipe}, or other weights."
        )
    if weights.recipe == "compact":
        return weights.network.state_dict()
    content = torch.load(path, map_location="cpu", weights_only=True)
    return pruned(content.get("state_dict", content), {**RECIPES["babyai"], **settings["network"]})


class KernelMuon(torch.optim.Muon):
    """Muon on convolution kernels, each seen as the matrix (first axis x all others) that it multiplies by."""

    def __init__(self, kernels: list[nn.Parameter], **settings):
        self._kernels = kernels
        # The matrices share the kernels' memory.
        super().__init__([nn.Parameter(kernel.data.view(len(kernel), -1)) for kernel in kernels], **settings)

    def step(self, closure=None):
        for kernel, matrix in zip(self._kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = kernel.grad.flatten(1)
        return super().step(closure)


def optimizers_of(network: nn.Module, settings: Mapping) -> list[torch.optim.Optimizer]:
    """The published recipe's Adam; or Muon on the kernels and Adam, at half the rate, on the last layer and biases."""
    rate = settings["learning_rate"]
    if settings["recipe"] == "babyai":
        optimizers = [torch.optim.Adam(network.parameters(), lr=rate)]
    else:
        named = dict(network.named_parameters())
        kernels = {name for name, parameter in named.items() if parameter.dim() == 5 and not name.startswith("head.")}
        optimizers = [
            KernelMuon(
                [named[name] for name in named if name in kernels],
                lr=rate,
                weight_decay=0,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.Adam([named[name] for name in named if name not in kernels], lr=rate / 2, betas=(0.9, 0.99)),
        ]
    for optimizer in optimizers:
        optimizer.param_groups[0]["relative_rate"] = optimizer.param_groups[0]["lr"] / rate
    return optimizers


class RunningMean:
    """A network whose weights are the exponential running mean of another's; with no decay, that other network."""

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).requires_grad_(False) if decay else network
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network's weights after this many steps; at first the mean is over a fourth of the steps."""
        if self._decay:
            weight = max(1 - self._decay, 4 / (step + 4))
            torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it."""

    step: int = 0
    validated: int = 0  # the last step that was
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    training_loss: float = math.nan
    seconds: float = 0.0

    def record(self, metrics: dict[str, float], recipe: str) -> None:
        """Take note of a validation; the published recipe keeps the best loss, the other the best PSNR."""
        self.validated = self.step
        better = not metrics or not self.best
        if not better and (recipe == "babyai" or "psnr" not in metrics):
            better = metrics["loss"] < self.best["loss"]
        elif not better:
            better = metrics["psnr"] > self.best["psnr"]
        if better:
            self.best_step, self.best = self.step, metrics

    @property
    def is_best(self) -> bool:
        """Whether the last validation was the best so far; without any, the last weights are."""
        return self.best_step == self.validated


def save_checkpoint(
    run: Run, progress: Progress, network: nn.Module, mean: RunningMean, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write all that is needed to go on exactly, and keep the two last such files."""
    content = {
        "progress": asdict(progress),
        "samples": progress.step * run.settings["batch_size"],
        "network": network.state_dict(),
        "mean": mean.network.state_dict() if mean.network is not network else {},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random_state": torch.get_rng_state(),
        "settings": run.settings,
        "parts": run.parts,
    }
    path = run.folder / f"checkpoint-{progress.step:09d}.pt"
    with atomic(path) as unfinished:
        try:
            torch.save(content, unfinished)
        except RuntimeError as error:  # PyTorch's own writer does not raise OSError
            raise BabyAIError(f"{path} could not be written: is the disk full, or the folder gone?") from error
    for old in checkpoints_of(run.folder)[:-2]:
        old.unlink(missing_ok=True)


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def read_checkpoint(path: Path) -> dict | None:
    """What a checkpoint holds, or None where it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if content["progress"]["step"] >= 0 else None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, TypeError, ValueError):
        return None


def restore(path: Path, network: nn.Module, mean: RunningMean, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Put everything back to where a checkpoint was written."""
    content = read_checkpoint(path)
    if content is None:
        raise BabyAIError(f"{path} is damaged; run again with --resume.")
    network.load_state_dict(content["network"])
    if content["mean"]:
        mean.network.load_state_dict(content["mean"])
    for optimizer, state in zip(optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    torch.set_rng_state(content["random_state"])
    return Progress(**content["progress"])


@dataclass(frozen=True)
class Data:
    """What a run learns from and is checked with; ``epoch`` is the number of samples in one."""

    samples: Dataset
    epoch: int
    validation: Dataset
    validation_samples: int
    subjects: dict[str, list[Subject]]
    errors: list[BabyAIError]

    @property
    def description(self) -> str:
        return ", ".join(f"{len(self.subjects[part])} for {part}" for part in PARTS)


def prepare_data(run: Run, arguments: argparse.Namespace) -> Data:
    """Read every subject of the split once, and make the samples of the recipe.

    Raises:
        BabyAIError: no training subject can be used.
    """
    settings = run.settings
    published = settings["recipe"] == "babyai"
    groups, errors = find_subjects(arguments.data_dir)
    subjects = {}
    for part in PARTS:
        wanted = [group for label in sorted(groups) for group in groups[label] if run.parts.get(label) == part]
        subjects[part], faults = read_subjects(wanted, published)
        errors += faults
    train, validation = subjects["train"], subjects["validation"]
    if not train:
        raise BabyAIError(f"No training subject below {arguments.data_dir} can be used: {errors[0] if errors else ''}")
    if published:
        samples, checks = (PublishedPatches(published_images(part), settings["seed"]) for part in (train, validation))
        return Data(samples, len(samples), checks, len(checks), subjects, errors)
    weights = dict(settings["weights"])
    invented = [
        source
        for source in (
            read_pseudo_pairs(settings["extra_t1"]),
            phantoms(settings["phantoms"]),
            shapes(settings["shapes"]),
        )
        if source
    ]
    real_share = 1 - settings["invented_share"] if invented else 1
    real = np.array([weights.get(subject.label, 1.0) for subject in train])
    shares = [*(real_share * real / real.sum())]
    for source in invented:
        shares += [settings["invented_share"] / len(invented) / len(source)] * len(source)
    everything = train + [subject for source in invented for subject in source]
    samples = ThickSliceSamples(everything, shares, settings["seed"], settings["patch"])
    checks = ThickSliceSamples(validation, np.ones(len(validation)), settings["seed"] + 1, settings["patch"])
    epoch = settings["samples_per_subject"] * len(train)
    return Data(samples, epoch, checks, VALIDATION_SAMPLES if validation else 0, subjects, errors)


def validate(
    network: nn.Module,
    data: Data,
    part: str,
    run: Run,
    arguments: argparse.Namespace,
    processes: Processes,
    stop: Stop,
    board: Board | None,
    step: int,
) -> dict[str, float] | None:
    """Loss over the validation samples, and PSNR and SSIM of whole volumes beside those of cubic interpolation.

    Inside the brain, on average over VALIDATION_SCANS of some subjects of the part. The processes share the work.

    Returns:
        The metrics, empty where the part has no subjects, or None where a signal asks to stop.
    """
    settings = run.settings
    device, precision = choose_device(processes.device(arguments.device), arguments.precision)
    sums = dict.fromkeys(METRICS, 0.0) | {"samples": 0.0, "volumes": 0.0}
    numbers = range(processes.rank, data.validation_samples if part == "validation" else 0, processes.count)
    loader = DataLoader(data.validation, settings["batch_size"], sampler=numbers)
    network.eval()
    with torch.inference_mode():
        for batch in loader:
            if stop.signal:
                break
            batch = {name: part.to(device) for name, part in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                output = network(batch["inputs"])
            losses = LOSSES[settings["recipe"]](output.float(), batch)
            sums["loss"] += losses.sum().item()
            sums["samples"] += len(losses)
    weights = Weights(settings["recipe"], network)
    cases = validation_cases(data.subjects[part][:VALIDATION_SUBJECTS], VALIDATION_SCANS)
    for number, case in enumerate(islice(cases, processes.rank, None, processes.count)):
        if stop.signal:
            break
        result = reconstruct(case.t1, case.t2, weights, case.geometry, str(device), precision).image
        for prefix, image in (("", result), ("cubic_", case.t2)):
            scores = score_brain(case.truth, np.asarray(image.dataobj), case.mask)
            sums[f"{prefix}psnr"] += scores.psnr
            sums[f"{prefix}ssim"] += scores.ssim
        sums["volumes"] += 1
        if number == 0 and board:
            board.add_picture(part, case, result, step)
    network.train()
    if processes.any(stop.signal):
        return None
    sums = processes.add(sums)
    return {
        name: sums[name] / sums["samples" if name == "loss" else "volumes"]
        for name in METRICS
        if sums["samples" if name == "loss" else "volumes"]
    }


def told(values: Mapping[str, float]) -> str:
    """Names and numbers for the log."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())


def save_best(run: Run, network: nn.Module, progress: Progress, data: Data) -> None:
    """Write the weights for inference.py, with how they came to be."""
    settings = run.settings
    recipe, config = settings["recipe"], settings["network"]
    if recipe == "babyai":
        recipe, config = FOLDED, {**RECIPES["babyai"], **config}
    info = {
        "run": run.name,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": settings,
        "subjects": {part: [subject.label for subject in data.subjects[part]] for part in PARTS},
        "step": progress.step,
        "validation": progress.best,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    save_weights(run.weights, recipe, network.state_dict(), info, config)


def finish(
    run: Run,
    data: Data,
    arguments: argparse.Namespace,
    processes: Processes,
    stop: Stop,
    progress: Progress,
    mean: RunningMean,
    parameters: int,
) -> None:
    """Score the best weights on the test subjects, and add the run to training_info.csv."""
    best = load_weights(run.weights).network.to(next(mean.network.parameters()).device)
    test = validate(best, data, "test", run, arguments, processes, stop, None, progress.step)
    if test is None:
        raise Stopped(stop.signal or signal.SIGTERM, "in the last test; --resume does it again.")
    if processes.rank:
        return
    row = {
        "run": run.name,
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "training_hours": round(progress.seconds / 3600, 3),
        **run.settings,
        "processes": processes.count,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "data_dir": arguments.data_dir,
        **{f"{part}_subjects": len(data.subjects[part]) for part in PARTS},
        "parameters": parameters,
        "steps_done": progress.step,
        "best_step": progress.best_step,
        "best_epoch": math.ceil(progress.best_step * run.settings["batch_size"] / data.epoch),
        "training_loss": progress.training_loss,
        **{f"validation_{name}": value for name, value in progress.best.items()},
        **{f"test_{name}": value for name, value in test.items()},
        "weights": run.weights.relative_to(run.output_dir),
    }
    add_row(run.output_dir / INFO_NAME, row)
    if test:
        processes.tell(f"test: {told(test)}")
    processes.tell(f"{run.name} is done: {run.weights}")


def add_row(path: Path, row: Mapping) -> None:
    """Add a run to the table, or replace its row; whatever happens, the table on the disk is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        rows = [other for other in read_rows(path) if other["run"] != row["run"]]
        rows.append({name: str(value) for name, value in row.items()})
        names = list(dict.fromkeys(name for other in rows for name in other))
        with atomic(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of training_info.csv, none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """While the block lasts, no other process holds the same lock; the system frees it whatever becomes of this one.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextlib.contextmanager
def alone_on(run: Run) -> Iterator[None]:
    """Keeps two jobs from training the same run at once."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run.folder / ".lock", wait=False))
        except BlockingIOError:
            raise BabyAIError(
                f"{run.name} is being trained by another process; wait for it, or start another run."
            ) from None
        yield


class Recent:
    """Losses and times since the last report; kept on the device, so that it need not be waited for every step."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._waited, self._since = 0.0, time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take note of a step's loss and of the norm of its gradient."""
        self._losses.append(loss.detach())
        self._norms.append(norm)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in the block is time lost to the data loader."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def check(self, step: int) -> None:
        """Stop before a checkpoint is written that nobody could go on from.

        Raises:
            BabyAIError: a loss or gradient was not finite.
        """
        finite = [bool(torch.isfinite(loss + norm)) for loss, norm in zip(self._losses, self._norms, strict=True)]
        if self._processes.any(int(not all(finite))):
            bad = step - len(finite) + 1 + (finite.index(False) if False in finite else 0)
            raise BabyAIError(
                f"The loss or its gradient is not finite (NaN) at step {bad}: the checkpoints and weights from before "
                "it are kept; start another run with --init-weights and a lower --learning-rate."
            )

    def report(self, batch_size: int) -> dict[str, float]:
        """Mean loss over all processes, samples a second, and the share of the time that data were waited for."""
        seconds = time.perf_counter() - self._since
        count = len(self._losses)
        sums = self._processes.add({"loss": float(torch.stack(self._losses).sum())})
        report = {
            "loss": sums["loss"] / count / self._processes.count,
            "gradient_norm": float(self._norms[-1]),
            "samples_per_second": count * batch_size / seconds,
            "waiting_share": self._waited / seconds,
            "seconds": seconds,
        }
        self._losses, self._norms, self._waited, self._since = [], [], 0.0, time.perf_counter()
        return report


class Board:
    """TensorBoard's log of a run; what was logged after the step that a run resumes from is dropped."""

    def __init__(self, run: Run, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BabyAIError("TensorBoard is missing; pip install -r requirements_training.txt") from None
        self._writer = SummaryWriter(run.output_dir / "tensorboard_logs" / run.name, purge_step=step + 1)

    def add_scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """A point on each of the curves."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()

    def add_picture(self, group: str, case: Case, result: nib.Nifti1Image, step: int) -> None:
        """Cubic interpolation, the output and the truth beside each other, in the three middle planes."""
        volumes = [np.asarray(case.t2.dataobj), np.asarray(result.dataobj), case.truth]
        rows = []
        for axis in range(3):
            planes = [np.flipud(volume.take(volume.shape[axis] // 2, axis).T) for volume in volumes]
            rows.append(np.hstack(planes))
        width = max(row.shape[1] for row in rows)
        picture = np.vstack([np.pad(row, [(0, 0), (0, width - row.shape[1])]) for row in rows])
        self._writer.add_image(f"{group}/cubic, output, truth: {case.name}", picture.clip(0, 1), step, dataformats="HW")


@dataclass(frozen=True)
class Run:
    """One training run: its settings, the part of each subject, and where it goes on from."""

    name: str
    output_dir: Path
    settings: dict
    parts: dict[str, str]
    checkpoint: Path | None = None
    is_complete: bool = False

    @property
    def folder(self) -> Path:
        return self.output_dir / "runs" / self.name

    @property
    def weights(self) -> Path:
        return self.output_dir / "weights" / f"{self.name}.pth"


def begin(arguments: argparse.Namespace) -> Run:
    """The run to resume, or a new one with its settings and its split written down.

    Raises:
        BabyAIError: the data, the split, the weights to start from or the run to resume do not fit.
    """
    groups, errors = find_subjects(arguments.data_dir)
    if not groups:
        raise BabyAIError(f"No isotropic pair below {arguments.data_dir} can be used: {errors[0]}")
    name = arguments.run
    if arguments.resume and (name or newest_run(arguments.output_dir)):
        name = name or newest_run(arguments.output_dir)
        if (arguments.output_dir / "runs" / name / "settings.json").exists():
            return resumed(name, arguments, groups)
    if arguments.resume:
        print("There is no run to resume yet; starting one.")
    settings = chosen_settings(arguments)
    if settings["init_weights"]:
        settings["network"] = dict(load_weights(settings["init_weights"]).config)
    name = name or f"{settings['recipe']}_{datetime.now():%Y%m%d-%H%M%S}_{os.getpid()}"
    parts = read_split(arguments.split, groups) if arguments.split else split_subjects(groups, settings["seed"])
    run = Run(name, arguments.output_dir, settings, parts)
    if run.folder.exists():
        raise BabyAIError(f"{run.folder} is there already; resume it with --resume, or give --run another name.")
    with atomic(run.folder / "split.csv") as unfinished:
        write_split(unfinished, parts)
    save_json(run.folder / "settings.json", settings)
    return run


def newest_run(output_dir: Path) -> str | None:
    """The run that was begun last."""
    runs = sorted((output_dir / "runs").glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
    return runs[-1].parent.name if runs else None


def resumed(name: str, arguments: argparse.Namespace, groups: Mapping) -> Run:
    """A run as it was begun, from its last whole checkpoint."""
    run = Run(name, arguments.output_dir, {}, {})
    settings = json.loads((run.folder / "settings.json").read_text(encoding="utf-8"))
    for key, value in given_settings(arguments).items():
        if settings.get(key) != value:
            raise BabyAIError(
                f"{name} was begun with {option(key)} {settings.get(key)}, not {value}; resume it as it was begun, or "
                "begin another with --run."
            )
    checkpoint = None
    for path in reversed(checkpoints_of(run.folder)):
        if read_checkpoint(path):
            checkpoint = path
            break
        print(f"{path} is damaged, and removed; going back to the checkpoint before.")
        path.unlink()
    done = {row["run"] for row in read_rows(run.output_dir / INFO_NAME)}
    return replace(
        run,
        settings=settings,
        parts=read_split(run.folder / "split.csv", groups),
        checkpoint=checkpoint,
        is_complete=name in done,
    )


def chosen_settings(arguments: argparse.Namespace) -> dict:
    """All that decides the outcome of a run: the recipe's own settings, overridden by the command line."""
    shared = {"recipe": arguments.recipe or RECIPE, "network": {}, "steps": None, "validate_every": None}
    shared |= {"init_weights": None, "extra_t1": [], "weights": {}}
    return shared | SETTINGS[shared["recipe"]] | given_settings(arguments)


def given_settings(arguments: argparse.Namespace) -> dict:
    """The settings that the command line states."""
    names = {name for settings in SETTINGS.values() for name in settings}
    names |= {"recipe", "network", "steps", "validate_every", "init_weights", "extra_t1", "weights"}
    return {name: value for name, value in vars(arguments).items() if name in names and value is not None}


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_split(path: Path, groups: Mapping) -> dict[str, str]:
    """The part of each subject from a split file.

    Raises:
        BabyAIError: the file is missing or is no split of these subjects.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            parts = {row["subject"].removeprefix("sub-"): row["part"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise BabyAIError(
            f"{path} is no split: it needs the columns subject and part, as split.csv of a run has."
        ) from None
    if unknown := set(parts.values()) - set(PARTS):
        raise BabyAIError(f"{path} names a part '{min(unknown)}'; use {', '.join(PARTS)}.")
    if absent := set(parts) - set(groups):
        raise BabyAIError(
            f"{path} names sub-{min(absent)}, of whom there is no isotropic pair; add it, or edit the split."
        )
    if "train" not in parts.values():
        raise BabyAIError(f"{path} has no training subject; edit the split.")
    return parts


def write_split(path: Path, parts: Mapping[str, str]) -> None:
    """The part of each subject as a table."""
    lines = ["subject,part", *(f"sub-{label},{part}" for label, part in parts.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Stopped(Exception):
    """A signal has asked the run to end."""

    def __init__(self, number: int, where: str):
        cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"Stopped by {cause} {where}")
        self.signal = int(number)


class Stop:
    """Whether a signal has asked to stop (its number, else 0): at once, or, if `gently`, after the step at hand."""

    def __init__(self):
        self.signal, self.gently = 0, False

    def ask(self, number: int, _) -> None:
        """Handle a signal; a second Ctrl-C does not wait."""
        if not self.gently or (number == signal.SIGINT and self.signal):
            raise Stopped(number, "before the next checkpoint.")
        self.signal = self.signal or number


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """While the block lasts, signals that ask the process to end are taken note of."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(_) -> None:
    """Of a data worker: a scheduler tells the whole job, but it is the training that ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which of them this is."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def device(self, requested: str) -> str:
        """The device for this process: each on a node takes its own GPU."""
        if self.count > 1 and requested in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return requested

    def tell(self, text: str, file=None) -> None:
        """Print once, not once a process."""
        if self.rank == 0:
            print(text, file=file, flush=True)

    def agree(self, decide: Callable):
        """What the first process decides, or the error it meets, on all of them."""
        outcome = None
        if self.rank == 0:
            try:
                outcome = decide()
            except BabyAIError as error:
                outcome = error
        if self.count > 1:
            shared = [outcome]
            dist.broadcast_object_list(shared)
            outcome = shared[0]
        if isinstance(outcome, BabyAIError):
            raise outcome
        return outcome

    def any(self, flag: int) -> int:
        """The largest of a number over all processes."""
        if self.count == 1:
            return flag
        largest = torch.tensor(flag)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of numbers over all processes."""
        if self.count == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Join the other processes of a `torchrun` or `srun`, if any."""
    processes = processes_of(os.environ)
    if processes.count == 1:
        yield processes
        return
    os.environ.setdefault("MASTER_ADDR", first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")))
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=processes.rank, world_size=processes.count, timeout=timedelta(minutes=60))
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def processes_of(environment: Mapping[str, str]) -> Processes:
    """This process among those that torchrun, or else srun, has started."""
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        if all(name in environment for name in names):
            return Processes(*(int(environment[name]) for name in names))
    return Processes()


def first_host(nodes: str) -> str:
    """The first of a Slurm list of hosts: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,]*)", nodes)
    return "".join(part or "" for part in match.groups())


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    description, _, epilog = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=DATA_DIR, help="folder with the isotropic pairs (default: %(default)s)")
    add("--output-dir", type=Path, default=OUTPUT_DIR, help="where results go (default: %(default)s)")
    add("--run", help="name of the run (default: recipe, date and time)")
    add(
        "--resume", action="store_true", help="go on with --run, or with the run begun last; begin one if there is none"
    )
    add("--split", type=Path, metavar="FILE", help="CSV of subject and part, as runs/RUN/split.csv (default: 70/15/15)")
    add("--device", default=DEVICE, help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    add("--precision", choices=("auto", "float32", "bfloat16"), default=PRECISION, help="default: %(default)s")
    add("--workers", type=int, default=WORKERS, help="processes that prepare samples (default: as cores are to spare)")
    add("--log-every", type=int, default=LOG_EVERY, metavar="STEPS", help="default: %(default)s")
    add("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, metavar="STEPS", help="default: %(default)s")

    outcome = parser.add_argument_group("what decides the outcome, and is kept when a run is resumed")
    add = outcome.add_argument
    add("--recipe", choices=tuple(SETTINGS), help=f"default: {RECIPE}")
    add("--network", type=json.loads, metavar="JSON", help='changes to the network, as {"channels": [16, 32, 48]}')
    add("--init-weights", metavar="FILE", help="weights to start from, of the same recipe (fine-tuning)")
    add("--steps", type=int, help="number of steps, instead of epochs")
    add("--validate-every", type=int, metavar="STEPS", help="default: an epoch")
    add("--weights", type=json.loads, metavar="JSON", help='how often subjects are drawn, as {"B06": 6} (default: 1)')
    add("--extra-t1", nargs="+", metavar="FILE", help="whole heads of which there is a T1w only, for pseudo-pairs")
    for name, default in (SETTINGS["babyai"] | SETTINGS["compact"]).items():
        values = [settings[name] for settings in SETTINGS.values() if name in settings]
        shown = " or ".join(dict.fromkeys(f"{value:g}" for value in values))
        add(option(name), type=type(default), metavar="N", help=f"default: {shown}")
    arguments = parser.parse_args(argv)
    if arguments.workers is None:
        spare = len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) - 1
        arguments.workers = max(1, min(8, spare))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
