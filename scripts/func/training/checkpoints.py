"""Checkpoints: all that a run needs to go on exactly, written whole or not at all."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from func.errors import BabyAIError
from func.scans.files import atomic
from func.training.run_folder import Run

KEPT = 2  # the last checkpoint, and the one before should that be damaged


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    validated: int = 0  # the step of the last validation
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # the metrics of the best validation
    training_loss: float = math.nan
    seconds: float = 0.0

    def record(self, metrics: dict[str, float], recipe: str) -> None:
        """Take note of a validation: the published recipe goes by the loss, the compact one by the inner brain's PSNR.

        Near its edge a brain says little: T1w and T2w of public infants were brain-extracted with one mask, so that the
        T1w gives the T2w's outline away, which no whole head does.
        """
        self.validated = self.step
        name, sign = ("loss", -1) if recipe == "babyai" else ("inner_psnr", 1)
        if not self.best or sign * metrics[name] > sign * self.best[name]:
            self.best_step, self.best = self.step, metrics

    @property
    def is_best(self) -> bool:
        """Whether the last validation was the best so far; without validation subjects, the last weights are."""
        return self.best_step == self.validated


def save_checkpoint(
    run: Run,
    progress: Progress,
    network: nn.Module,
    averaged: AveragedModel,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Write a checkpoint, and keep it and the one before. Which samples come next follows from the step.

    Raises:
        BabyAIError: it could not be written.
    """
    if not run.exists:
        raise BabyAIError(f"{run.folder} was removed meanwhile, so that nothing could be resumed from it; run again.")
    content = {
        "progress": asdict(progress),
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
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
    for old in _checkpoints(run.folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def last_checkpoint(folder: Path) -> dict | None:
    """What the last whole checkpoint holds, on the CPU; damaged ones after it are reported and renamed."""
    for path in reversed(_checkpoints(folder)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
            # Not deleted: it may be the memory that failed, not the file.
            aside = path.replace(path.with_suffix(".damaged"))
            print(f"{path} is damaged, and set aside as {aside.name}; going back to the checkpoint before it.")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"))


def restore(
    content: dict | None,
    network: nn.Module,
    averaged: AveragedModel,
    optimizers: Sequence[torch.optim.Optimizer],
) -> Progress:
    """Put everything back to where a checkpoint was written; without one the run is at its beginning.

    Raises:
        BabyAIError: another version wrote the checkpoint.
    """
    if content is None:
        return Progress()
    if "averaged" not in content:
        raise BabyAIError("The checkpoint is of another version of BABY-AI; begin another run, with --init-weights.")
    network.load_state_dict(content["network"])
    averaged.load_state_dict(content["averaged"])
    for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(content["random_state"])
    return Progress(**content["progress"])
