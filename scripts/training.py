"""Train a network on isotropic pairs of T1w and T2w scans, from which thick slices are made on the fly.

    python scripts/training.py --data-dir DATA --output-dir RESULTS
    torchrun --nproc-per-node 4 scripts/training.py --data-dir DATA --output-dir RESULTS
    srun python scripts/training.py --data-dir DATA --output-dir RESULTS --name my-run --resume

RESULTS then holds training_info.csv (one row a run), weights/RUN.pth (for inference.py --weights), tensorboard_logs/RUN
and runs/RUN, with split.csv and the checkpoints. Ctrl-C, SIGTERM and SIGUSR1 end a run with a checkpoint; the same call
with --resume goes on from there, on as many processes as there are then.

Exit code: 0 all done, 1 failed or some subject could not be used, 2 the call was wrong; 130, 143 or 138 stopped by
Ctrl-C, SIGTERM or SIGUSR1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path

# Data workers share the processor with the network, so that each had better keep to one core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from func.commands import script_parser
from func.dataset import (
    PARTS,
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
from func.networks.devices import choose_device
from func.networks.published import kind_and_size, prune, pruned
from func.networks.weights import FOLDED, RECIPES, Weights, build_network, load_weights, save_weights
from func.reconstruction.reconstructor import Reconstructor
from func.reports.scores import score_brain
from func.scans.case import Case as Scans
from func.training.monitoring import Board, Recent, told
from func.training.optimizers import KernelMuon, RunningMean
from func.training.processes import Processes, Stop, Stopped, ignore_signals, process_group, stop_signals
from func.training.runs import (
    Run,
    add_row,
    alone_on,
    check_split,
    find_run,
    last_checkpoint,
    new_run,
    read_split,
    save_checkpoint,
)

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

# What decides the outcome of a run; MEANINGS tells what is what.
SHARED = {
    "recipe": RECIPE,
    "network": {},  # changes to the recipe's network
    "init_weights": None,  # a file, to fine-tune
    "steps": None,  # instead of epochs
    "validate_every": None,  # steps; None: an epoch
    "extra_t1": [],  # T1w scans of whole heads, without a T2w
    "subject_weights": {},  # how often subjects are drawn; 1 for those not named
}
SETTINGS = {
    "compact": {
        "seed": 0,
        "batch_size": 4,
        "epochs": 40,
        "learning_rate": 1e-3,
        "warm_up": 80,
        "floor": 0.1,
        "clip": 1.0,
        "averaging": 0.999,
        "patch": 56,
        "samples_per_subject": 200,
        "phantoms": 4,
        "shapes": 4,
        "invented_share": 0.2,
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

MEANINGS = {
    "seed": "picks the split, the fresh weights and the samples",
    "batch_size": "samples a step, over all processes",
    "epochs": "how often the data are gone through",
    "learning_rate": "the peak",
    "warm_up": "steps until the learning rate is at its peak",
    "floor": "what the learning rate falls to, over its peak",
    "clip": "largest norm of the gradient",
    "averaging": "decay of the running mean of the weights; 0: none",
    "patch": "voxels along a side of a sample, a multiple of 8",
    "samples_per_subject": "in an epoch",
    "phantoms": "digital infants to learn from as well",
    "shapes": "volumes of random shapes to learn from as well",
    "invented_share": "of the samples, from --extra-t1, phantoms and shapes in equal parts",
}
METRICS = ("loss", "psnr", "ssim", "cubic_psnr", "cubic_ssim")


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
            with contextlib.ExitStack() as held:
                processes.agree(lambda: held.enter_context(alone_on(run)))
                return train(run, arguments, processes, stop)
        except BabyAIError as error:
            processes.tell(f"training.py: {error}", file=sys.stderr)
            return failure
        except Stopped as stopped:
            processes.tell(str(stopped), file=sys.stderr)
            return 128 + stopped.signal


def train(run: Run, arguments: argparse.Namespace, processes: Processes, stop: Stop) -> int:
    """Take the run from its last checkpoint, or from the start, to its end; returns the exit code."""
    settings, tell = run.settings, processes.tell
    batch_size = settings["batch_size"]
    if batch_size % processes.count:
        raise BabyAIError(f"A batch of {batch_size} cannot be shared by {processes.count} processes; set --batch-size.")
    device, precision = processes.together(
        lambda: choose_device(processes.device(arguments.device), arguments.precision)
    )
    data = processes.together(lambda: prepare_data(run, arguments.data_dir))
    job = Job(run, data, device, precision, processes, stop)
    for error in data.errors:
        tell(f"FAILED {error}", file=sys.stderr)
    steps_per_epoch = math.ceil(data.epoch / batch_size)
    steps = settings["steps"] or settings["epochs"] * steps_per_epoch
    validate_every = settings["validate_every"] or steps_per_epoch

    torch.manual_seed(settings["seed"])
    network = trainable_network(settings).to(device)
    keep_small_maps_in_float32(network, torch.from_numpy(data.samples[0]["inputs"])[None].to(device))
    mean = RunningMean(network, settings["averaging"])
    optimizers = optimizers_of(network, settings)
    loss_of = LOSSES[settings["recipe"]]
    progress = restored(last_checkpoint(run.folder), network, mean, optimizers)
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
    board = Board(run.logs, first) if processes.rank == 0 else None
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
            # Before validation, which takes its time, so that being killed in it costs nothing.
            recent.check(progress.step)
            content = state(run, progress, network, mean, optimizers)
            processes.agree(partial(save_checkpoint, run.folder, progress.step, content))
        if stopping:
            raise Stopped(stopping, f"at step {progress.step} of {steps}; --resume goes on from there.")
        if validating:
            with recent.paused():
                metrics = validate(job, mean.network, "validation", progress.step, board)
            if metrics is None:
                continue
            progress.record(metrics, settings["recipe"])
            if board:
                board.add_scalars("validation", metrics, progress.step)
            if metrics:
                tell(f"step {progress.step} validation: {told(metrics)}{' (best)' if progress.is_best else ''}")
            if progress.is_best:
                processes.agree(partial(save_best, job, mean.network, progress))
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

    finish(job, mean.network, progress, arguments.data_dir)
    return 1 if data.errors else 0


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
        """Take note of a validation: the published recipe goes by the loss, the compact one by the PSNR."""
        self.validated = self.step
        name, sign = ("loss", -1) if recipe == "babyai" else ("psnr", 1)
        if not self.best or sign * metrics[name] > sign * self.best[name]:
            self.best_step, self.best = self.step, metrics

    @property
    def is_best(self) -> bool:
        """Whether the last validation was the best so far; without any, the last weights are."""
        return self.best_step == self.validated


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
    if module.kernel_size != (3, 3, 3):
        return
    kernel = prune(module.weight.detach(), kind, size).clone()
    if kernel.shape == module.weight.shape:
        return
    module.weight = nn.Parameter(kernel)
    module.kernel_size = tuple(kernel.shape[2:])
    module.padding = (0, 0, 0)
    if kind == "up":
        module.output_padding = (0, 0, 0)


class Float32Conv3d(nn.Conv3d):
    """A convolution that computes in float32 whatever autocast says."""

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def keep_small_maps_in_float32(network: nn.Module, inputs: Tensor) -> None:
    """Have convolutions of maps of one or two voxels, as a pass of the inputs shows them, keep out of bfloat16.

    Their gradient in bfloat16 is NaN now and then on processors (PyTorch 2.13, some AVX-512), for no fault of theirs.
    """
    small = []
    hooks = [
        module.register_forward_pre_hook(lambda module, maps: small.append((module, max(maps[0].shape[2:]))))
        for module in network.modules()
        if type(module) is nn.Conv3d
    ]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    for module, size in small:
        if size <= 2:
            module.__class__ = Float32Conv3d


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


def optimizers_of(network: nn.Module, settings: Mapping) -> list[torch.optim.Optimizer]:
    """The published recipe's Adam; or Muon on the kernels and Adam, at half the rate, on the last layer and biases."""
    rate = settings["learning_rate"]
    if settings["recipe"] == "babyai":
        optimizers = [torch.optim.Adam(network.parameters(), lr=rate)]
    else:
        named = dict(network.named_parameters())
        kernels = {name for name, parameter in named.items() if parameter.dim() == 5 and not name.startswith("head.")}
        optimizers = [
            KernelMuon([named[name] for name in named if name in kernels], rate),
            torch.optim.Adam([named[name] for name in named if name not in kernels], lr=rate / 2, betas=(0.9, 0.99)),
        ]
    for optimizer in optimizers:
        optimizer.param_groups[0]["relative_rate"] = optimizer.param_groups[0]["lr"] / rate
    return optimizers


def state(
    run: Run, progress: Progress, network: nn.Module, mean: RunningMean, optimizers: list[torch.optim.Optimizer]
) -> dict:
    """All that is needed to go on exactly; which samples come next follows from the step."""
    return {
        "progress": asdict(progress),
        "next_sample": progress.step * run.settings["batch_size"],
        "network": network.state_dict(),
        "mean": mean.network.state_dict() if mean.network is not network else {},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random_state": torch.get_rng_state(),
        "settings": run.settings,
        "parts": run.parts,
    }


def restored(
    content: dict | None, network: nn.Module, mean: RunningMean, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Put everything back to where a checkpoint was written; without one the run is at its beginning."""
    if content is None:
        return Progress()
    network.load_state_dict(content["network"])
    if content["mean"]:
        mean.network.load_state_dict(content["mean"])
    for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
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


def prepare_data(run: Run, data_dir: Path) -> Data:
    """Read every subject of the split once, and make the samples of the recipe.

    Raises:
        BabyAIError: no training subject can be used.
    """
    settings = run.settings
    published = settings["recipe"] == "babyai"
    groups, errors = find_subjects(data_dir)
    subjects = {}
    for part in PARTS:
        wanted = [group for label in sorted(groups) for group in groups[label] if run.parts.get(label) == part]
        subjects[part], faults = read_subjects(wanted, published)
        errors += faults
    train, validation = subjects["train"], subjects["validation"]
    if not train:
        raise BabyAIError(f"No training subject below {data_dir} can be used: {errors[0] if errors else ''}")
    make = published_data if published else compact_data
    return Data(*make(train, validation, settings), subjects, errors)


def published_data(train: list[Subject], validation: list[Subject], settings: Mapping) -> tuple:
    """Every patch of every image is a sample, and validation takes all of them too."""
    samples, checks = (PublishedPatches(published_images(part), settings["seed"]) for part in (train, validation))
    return samples, len(samples), checks, len(checks)


def compact_data(train: list[Subject], validation: list[Subject], settings: Mapping) -> tuple:
    """Random crops in random slices; of the subjects, and of what is invented besides."""
    sources = read_pseudo_pairs(settings["extra_t1"]), phantoms(settings["phantoms"]), shapes(settings["shapes"])
    invented = [source for source in sources if source]
    share = settings["invented_share"] if invented else 0
    weights = np.array([settings["subject_weights"].get(subject.label, 1.0) for subject in train])
    shares = [*((1 - share) * weights / weights.sum())]
    for source in invented:
        shares += [share / len(invented) / len(source)] * len(source)
    seed, patch = settings["seed"], settings["patch"]
    samples = ThickSliceSamples([*train, *chain.from_iterable(invented)], shares, seed, patch)
    checks = ThickSliceSamples(validation, np.ones(len(validation)), seed + 1, patch)
    return samples, settings["samples_per_subject"] * len(train), checks, VALIDATION_SAMPLES if validation else 0


@dataclass(frozen=True)
class Job:
    """What stays the same while a process trains."""

    run: Run
    data: Data
    device: torch.device
    precision: str
    processes: Processes
    stop: Stop


def validate(job: Job, network: nn.Module, part: str, step: int, board: Board | None = None) -> dict[str, float] | None:
    """Loss over the validation samples, and PSNR and SSIM of whole volumes beside those of cubic interpolation.

    Inside the brain, on average over VALIDATION_SCANS of some subjects of the part. The processes share the work.

    Returns:
        The metrics, empty where the part has no subjects, or None where a signal asks to stop.
    """
    settings, data, processes, stop = job.run.settings, job.data, job.processes, job.stop
    sums = dict.fromkeys((*METRICS, "samples", "volumes"), 0.0)
    numbers = range(processes.rank, data.validation_samples if part == "validation" else 0, processes.count)
    loader = DataLoader(data.validation, settings["batch_size"], sampler=numbers)
    network.eval()
    with torch.inference_mode():
        for batch in loader:
            if stop.signal:
                break
            batch = {name: array.to(job.device) for name, array in batch.items()}
            with torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
                output = network(batch["inputs"])
            losses = LOSSES[settings["recipe"]](output.float(), batch)
            sums["loss"] += losses.sum().item()
            sums["samples"] += len(losses)
    reconstructor = Reconstructor(Weights(settings["recipe"], network), str(job.device), job.precision)
    cases = validation_cases(data.subjects[part][:VALIDATION_SUBJECTS], VALIDATION_SCANS)
    for number, case in enumerate(islice(cases, processes.rank, None, processes.count)):
        if stop.signal:
            break
        result = reconstructor.reconstruct(Scans(case.t1, case.t2, case.geometry.to_sidecar(1.0))).image
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
    counts = {name: sums["samples" if name == "loss" else "volumes"] for name in METRICS}
    return {name: sums[name] / count for name, count in counts.items() if count}


def save_best(job: Job, network: nn.Module, progress: Progress) -> None:
    """Write the weights for inference.py, with how they came to be."""
    run, settings = job.run, job.run.settings
    recipe, config, tensors = settings["recipe"], settings["network"], network.state_dict()
    if recipe == "babyai":
        recipe, config = FOLDED, {**RECIPES["babyai"], **config}
        tensors = pruned(tensors, config)
    info = {
        "run": run.name,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": settings,
        "subjects": {part: [subject.label for subject in job.data.subjects[part]] for part in PARTS},
        "step": progress.step,
        "validation": progress.best,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }
    save_weights(run.weights, recipe, tensors, info, config)


def finish(job: Job, network: nn.Module, progress: Progress, data_dir: Path) -> None:
    """Score the best weights on the test subjects, and add the run to the table of all runs."""
    run, data, processes = job.run, job.data, job.processes
    best = load_weights(run.weights).network.to(job.device)
    test = validate(job, best, "test", progress.step)
    if test is None:
        raise Stopped(processes.any(job.stop.signal), "in the last test; --resume does it again.")
    if processes.rank:
        return
    row = {
        "run": run.name,
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "training_hours": round(progress.seconds / 3600, 3),
        **run.settings,
        "processes": processes.count,
        "device": torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else job.device.type,
        "precision": job.precision,
        "data_dir": data_dir,
        **{f"{part}_subjects": len(data.subjects[part]) for part in PARTS},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps_done": progress.step,
        "best_step": progress.best_step,
        "best_epoch": math.ceil(progress.best_step * run.settings["batch_size"] / data.epoch),
        "training_loss": progress.training_loss,
        **{f"validation_{name}": value for name, value in progress.best.items()},
        **{f"test_{name}": value for name, value in test.items()},
        "weights": run.weights.relative_to(run.output_dir),
    }
    add_row(run.table, row)
    if test:
        processes.tell(f"test: {told(test)}")
    processes.tell(f"{run.name} is done: {run.weights}")


def begin(arguments: argparse.Namespace) -> Run:
    """The run to resume, or a new one.

    Raises:
        BabyAIError: the data, the split, the weights to start from or the run to resume do not fit.
    """
    groups, errors = find_subjects(arguments.data_dir)
    if not groups:
        raise BabyAIError(f"No isotropic pair below {arguments.data_dir} can be used: {errors[0]}")
    given = given_settings(arguments)
    run = find_run(arguments.output_dir, arguments.name) if arguments.resume else None
    if run is None:
        settings = SHARED | SETTINGS[given.get("recipe", RECIPE)] | given
        if settings["init_weights"]:
            settings["network"] = dict(load_weights(settings["init_weights"]).config)
        name = arguments.name or f"{settings['recipe']}_{datetime.now():%Y%m%d-%H%M%S}_{os.getpid()}"
        parts = read_split(arguments.split) if arguments.split else split_subjects(groups, settings["seed"])
        check_split(parts, groups)
        return new_run(Run(name, arguments.output_dir, settings, parts))
    for name, value in given.items():
        if run.settings.get(name) != value:
            raise BabyAIError(
                f"{run.name} was begun with {option(name)} {run.settings.get(name)}, not {value}; resume it as it was "
                "begun, or begin another with --name."
            )
    check_split(run.parts, groups)
    last_checkpoint(run.folder)  # so that damaged ones are gone before all processes read it
    return run


def given_settings(arguments: argparse.Namespace) -> dict:
    """The settings that the command line states."""
    names = {name for settings in (SHARED, *SETTINGS.values()) for name in settings}
    return {name: value for name, value in vars(arguments).items() if name in names and value is not None}


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, default=DATA_DIR, help="folder with the isotropic pairs (default: %(default)s)")
    add("--output-dir", type=Path, default=OUTPUT_DIR, help="where results go (default: %(default)s)")
    add("--name", help="name of the run (default: recipe, date and time)")
    add(
        "--resume",
        action="store_true",
        help="go on with --name, or with the run begun last; begin one if there is none",
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
    add(
        "--subject-weights",
        type=json.loads,
        metavar="JSON",
        help='how often subjects are drawn, as {"B06": 6} (default: 1)',
    )
    add("--extra-t1", nargs="+", metavar="FILE", help="whole heads of which there is a T1w only, for pseudo-pairs")
    for name, meaning in MEANINGS.items():
        defaults = {recipe: settings[name] for recipe, settings in SETTINGS.items() if name in settings}
        shown = ", ".join(f"{recipe} {value:g}" for recipe, value in defaults.items())
        kind = type(next(iter(defaults.values())))
        add(option(name), type=kind, metavar="N", help=f"{meaning} (default: {shown})")
    arguments = parser.parse_args(argv)
    recipe = arguments.recipe or RECIPE
    for name in MEANINGS:
        if getattr(arguments, name) is not None and name not in SETTINGS[recipe]:
            parser.error(f"{option(name)} is not for the recipe {recipe}")
    if arguments.workers is None:
        spare = len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) - 1
        arguments.workers = max(1, min(8, spare))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
