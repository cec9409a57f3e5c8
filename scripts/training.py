"""Train a network on isotropic pairs of T1w and T2w scans, from which thick slices are made on the fly.

    python scripts/training.py --data-dir DATA --output-dir RESULTS
    torchrun --nproc-per-node 4 scripts/training.py --data-dir DATA --output-dir RESULTS --name my-run --resume

RESULTS then holds training_info.csv (one row a run), weights/RUN.pth (for inference.py --weights), tensorboard_logs/RUN
and runs/RUN, with split.csv and the checkpoints. Ctrl-C, SIGTERM and SIGUSR1 end a run with a checkpoint; the same call
with --resume goes on from there, on as many processes as there are then.

Exit code: 0 all done, 1 failed or some subject could not be used, 2 the call was wrong; 130, 143 or 138 stopped by
Ctrl-C, SIGTERM or SIGUSR1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from datetime import datetime
from pathlib import Path

# Data workers share the processor with the network, so that each had better keep to one core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from func.commands import script_parser
from func.errors import BabyAIError
from func.networks.devices import choose_device
from func.networks.weights import load_weights
from func.processors import processors
from func.training.batches import training_batches
from func.training.checkpoints import last_checkpoint, restore, save_checkpoint
from func.training.data import prepare_data
from func.training.distributed import Processes, joined_processes
from func.training.losses import LOSSES
from func.training.optimizers import learning_rate_at, make_optimizers, mean_of_weights, set_learning_rate
from func.training.results import add_row, is_complete, row_of, save_best_weights
from func.training.run_folder import Run, alone_on, find_run, new_run
from func.training.settings import add_settings, check_settings, check_values, given_settings, network_of, option
from func.training.signals import Stop, Stopped, stop_signals
from func.training.splits import check_split, read_split, split_subjects
from func.training.step_log import StepLog, format_metrics
from func.training.subjects import find_subjects
from func.training.tensorboard import Board, check_tensorboard
from func.training.trainable import trainable_network
from func.training.validation import Validation

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = REPO_ROOT / "data"  # holds isotropic sub-*_T1w.nii.gz and sub-*_T2w.nii.gz, in subfolders or not
OUTPUT_DIR = REPO_ROOT / "results"
DEVICE = "auto"  # auto, cpu, cuda or mps
PRECISION = "auto"  # auto, float32 or bfloat16
WORKERS = None  # processes that prepare samples; None: as there are cores to spare, 8 at most
LOG_EVERY = 20  # steps
CHECKPOINT_EVERY = 250  # steps

# What decides the outcome of a run (func.training.settings says what each means), of both recipes ...
COMMON = {
    "recipe": "compact",  # compact, or babyai: as the published model was trained
    "network": {},
    "init_weights": None,
    "steps": None,
    "hours": None,
    "validate_every": None,
    "extra_t1": [],
    "heads": [],
    "subject_weights": {},
}
# ... and of each.
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
        "turned": 1,
        "head_share": 0.3,
        "without_t1": 0.1,
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


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments ask for; returns the exit code."""
    arguments = parse_arguments(argv)
    code_of_failure = 2
    with stop_signals() as stop, contextlib.ExitStack() as held:
        processes = Processes()
        try:
            processes = held.enter_context(joined_processes())
            device, precision = processes.on_all(
                lambda: choose_device(processes.device(arguments.device), arguments.precision)
            )
            run = processes.on_first(lambda: begin(arguments, processes.count))
            if processes.on_first(lambda: is_complete(run)):
                processes.print(f"The run {run.name} is complete: {run.weights}")
                return 0
            code_of_failure = 1
            processes.on_first(lambda: held.enter_context(alone_on(run)))
            return train(run, arguments, device, precision, processes, stop)
        except BabyAIError as error:
            processes.print(f"training.py: {error}", file=sys.stderr)
            return code_of_failure
        except torch.OutOfMemoryError:
            print(f"training.py: The memory of {device} is full; give a smaller --batch-size.", file=sys.stderr)
            return 1
        except Stopped as stopped:
            processes.print(str(stopped), file=sys.stderr)
            return 128 + stopped.signal


def begin(arguments: argparse.Namespace, processes: int) -> Run:
    """The run to resume, or a new one.

    Raises:
        BabyAIError: the settings, the data, the split, the weights to start from or the run to resume do not fit.
    """
    check_tensorboard()
    check_values(vars(arguments))
    given = given_settings(arguments, SETTINGS, COMMON)
    groups, errors = find_subjects(arguments.data_dir)
    if not groups:
        raise BabyAIError(f"No isotropic pair below {arguments.data_dir} can be used: {errors[0]}")
    run = find_run(arguments.output_dir, arguments.name) if arguments.resume else None
    if run is None:
        settings = COMMON | SETTINGS[given.get("recipe", COMMON["recipe"])] | given
        if settings["init_weights"]:
            settings["network"] = network_of(settings["init_weights"], settings)
        parts = read_split(arguments.split) if arguments.split else split_subjects(groups, settings["seed"])
        check_split(parts, groups)
        check_settings(settings, parts, processes)
        name = arguments.name or f"{settings['recipe']}_{datetime.now():%Y%m%d-%H%M%S}_{os.getpid()}"
        return new_run(Run(name, arguments.output_dir, settings, parts))
    for name, value in given.items():
        if run.settings.get(name) != value:
            raise BabyAIError(
                f"{run.name} was begun with {option(name)} {run.settings.get(name)}, not {value}; resume it as it was "
                "begun, or begin another with --name."
            )
    check_split(run.parts, groups)
    check_settings(run.settings, run.parts, processes)
    last_checkpoint(run.folder)  # so that damaged ones are gone before all processes read it
    return run


def train(
    run: Run, arguments: argparse.Namespace, device: torch.device, precision: str, processes: Processes, stop: Stop
) -> int:
    """Take the run from its last checkpoint, or from the start, to its end; returns the exit code."""
    settings, recipe, batch_size = run.settings, run.settings["recipe"], run.settings["batch_size"]
    data = processes.on_all(lambda: prepare_data(run, arguments.data_dir))
    for error in data.errors:
        processes.print(f"FAILED {error}", file=sys.stderr)
    steps_per_epoch = math.ceil(data.epoch / batch_size)
    hours = settings.get("hours")
    steps = settings["steps"] or settings["epochs"] * steps_per_epoch
    last = sys.maxsize // batch_size if hours else steps
    validate_every = settings["validate_every"] or steps_per_epoch

    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        torch.backends.cudnn.benchmark = True  # all batches have one shape
    torch.manual_seed(settings["seed"])
    network = trainable_network(settings).to(device)
    averaged = mean_of_weights(network, settings["averaging"])
    optimizers = make_optimizers(network, settings)
    loss_of = LOSSES[recipe]
    progress = processes.on_all(lambda: restore(last_checkpoint(run.folder), network, averaged, optimizers))
    first = progress.step
    model = network
    if processes.count > 1:
        model = DistributedDataParallel(network, process_group=processes.gradient_group(device))
    batches = training_batches(data.samples, range(first, last), batch_size, arguments.workers, processes, device)
    board = Board(run.logs, first) if processes.rank == 0 else None
    validation = Validation(settings, data, device, precision, processes, stop, board)
    log = StepLog(processes)
    length = f"on, for {hours:g} hours" if hours else f"to {steps}"
    processes.print(
        f"{run.name}: {recipe}, {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, "
        f"{data.description}; steps {first} {length}, {steps_per_epoch} an epoch; effective batch size {batch_size} "
        f"on {processes.count} x {device.type} in {precision}, learning rate {settings['learning_rate']:g}"
    )

    stop.gently = True
    while True:
        done = progress.step / steps
        if hours:
            # In millionths, of the process that is ahead, so that all of them end with the same step.
            done = processes.largest(round(1e6 * (progress.seconds + log.seconds) / 3600 / hours)) / 1e6
        ending = progress.step > 0 and done >= 1
        validating = progress.step > progress.validated and (progress.step % validate_every == 0 or ending)
        stopping = processes.largest(stop.signal)
        if progress.step > first and (stopping or validating or progress.step % arguments.checkpoint_every == 0):
            # Before validation, which takes its time, so that being killed in it costs nothing.
            log.check_finite(progress.step)
            processes.on_first(lambda: save_checkpoint(run, progress, network, averaged, optimizers))
        if stopping:
            raise Stopped(stopping, f"at step {progress.step} ({done:.0%} done); --resume goes on from there.")
        if validating:
            with log.paused():
                metrics = validation.score(averaged.module, "validation", progress.step)
            if metrics is None:
                continue
            progress.record(metrics, recipe)
            if board:
                board.add_scalars("validation", metrics, progress.step)
            if metrics:
                best = " (best)" if progress.is_best else ""
                processes.print(f"step {progress.step} validation: {format_metrics(metrics)}{best}")
            if progress.is_best:
                processes.on_first(lambda: save_best_weights(run, averaged.module, progress, data))
        if ending:
            break

        rate = learning_rate_at(progress.step, done, settings)
        set_learning_rate(optimizers, rate)
        with log.waiting():
            batch = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(batch["inputs"])
        loss = loss_of(output.float(), batch).mean()
        network.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings["clip"])
        for optimizer in optimizers:
            optimizer.step()
        averaged.update_parameters(network)
        progress.step += 1
        log.add(loss, norm)

        if progress.step % arguments.log_every == 0:
            log.check_finite(progress.step)
            report = log.report(batch_size) | {"learning_rate": rate}
            progress.training_loss = report["loss"]
            progress.seconds += report.pop("seconds")
            processes.print(f"step {progress.step}: {format_metrics(report)}")
            if board:
                board.add_scalars("training", report, progress.step)

    best = processes.on_all(lambda: load_weights(run.weights)).network.to(device)
    test = validation.score(best, "test", progress.step)
    if test is None:
        raise Stopped(processes.largest(stop.signal), "in the last test; --resume does it again.")
    used = {
        "processes": processes.count,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "data_dir": arguments.data_dir,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    processes.on_first(lambda: add_row(run.table, row_of(run, progress, data, test) | used))
    if test:
        processes.print(f"test: {format_metrics(test)}")
    processes.print(f"{run.name} is done: {run.weights}")
    return 1 if data.errors else 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line."""
    parser = script_parser(__doc__)
    add = parser.add_argument_group("data and results").add_argument
    add("--data-dir", type=Path, default=DATA_DIR, help="folder with the isotropic pairs (default: %(default)s)")
    add("--output-dir", type=Path, default=OUTPUT_DIR, help="where results go (default: %(default)s)")
    add("--split", type=Path, metavar="FILE", help="CSV of subject and part, as runs/RUN/split.csv (default: 70/15/15)")
    add("--name", type=run_name, help="name of the run (default: recipe, date and time)")
    add("--resume", action="store_true", help="go on with --name, or the run begun last; begin it if there is none")
    add = parser.add_argument_group("how it runs (may change when a run is resumed)").add_argument
    add("--device", default=DEVICE, help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    add("--precision", choices=("auto", "float32", "bfloat16"), default=PRECISION, help="default: %(default)s")
    add("--workers", type=int, default=WORKERS, help="processes that prepare samples (default: as cores are to spare)")
    add("--log-every", type=int, default=LOG_EVERY, metavar="STEPS", help="default: %(default)s")
    add("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, metavar="STEPS", help="default: %(default)s")
    add_settings(parser, COMMON["recipe"], SETTINGS)
    arguments = parser.parse_args(argv)
    if arguments.workers is None:
        here = os.environ.get("LOCAL_WORLD_SIZE", "")
        spare = processors() // max(1, int(here) if here.isdigit() else 1) - 1
        arguments.workers = max(1, min(8, spare))
    return arguments


def run_name(text: str) -> str:
    """A name that a folder can have, from the command line."""
    if Path(text).name != text or text == "..":
        raise argparse.ArgumentTypeError(f"'{text}' is a path; give a name, and the folder with --output-dir")
    return text


if __name__ == "__main__":
    sys.exit(main())
