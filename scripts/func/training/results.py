"""What a training run leaves: its best weights, and its row in the table of all runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from func.networks.published import pruned
from func.networks.weights import FOLDED, RECIPES, save_weights
from func.scans.files import atomic
from func.training.checkpoints import Progress
from func.training.data import TrainingData
from func.training.run_folder import Run, locked
from func.training.splits import PARTS


def save_best_weights(run: Run, network: nn.Module, progress: Progress, data: TrainingData) -> None:
    """Write the weights for inference.py, with how they came to be.

    Raises:
        BabyAIError: they could not be written.
    """
    recipe, config, tensors = run.settings["recipe"], run.settings["network"], network.state_dict()
    if recipe == "babyai":
        recipe, config = FOLDED, {**RECIPES["babyai"], **config}
        tensors = pruned(tensors, config)
    info = {
        "run": run.name,
        "date": _now(),
        "settings": run.settings,
        "subjects": {part: [subject.label for subject in data.subjects[part]] for part in PARTS},
        "step": progress.step,
        "validation": progress.best,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }
    save_weights(run.weights, recipe, tensors, info, config)


def row_of(run: Run, progress: Progress, data: TrainingData, test: Mapping[str, float]) -> dict:
    """A finished run's row in the table of all runs; ``test`` holds the metrics of its best weights."""
    return {
        "run": run.name,
        "finished": _now(),
        "training_hours": round(progress.seconds / 3600, 3),
        **run.settings,
        **{f"{part}_subjects": len(data.subjects[part]) for part in PARTS},
        "steps_done": progress.step,
        "best_step": progress.best_step,
        "best_epoch": math.ceil(progress.best_step * run.settings["batch_size"] / data.epoch),
        "training_loss": progress.training_loss,
        **{f"validation_{name}": value for name, value in progress.best.items()},
        **{f"test_{name}": value for name, value in test.items()},
        "weights": run.weights.relative_to(run.output_dir),
    }


def add_row(path: Path, row: Mapping) -> None:
    """Add a run to the table of all runs, or replace its row.

    Raises:
        BabyAIError: the table could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        table = read_table(path)
        others = table[table["run"] != row["run"]]
        written = pd.DataFrame([{name: str(value) for name, value in row.items()}])
        with atomic(path) as unfinished:
            pd.concat([others, written]).to_csv(unfinished, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """The table of all runs, every cell as it is written; empty where there is no such file."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=["run"])


def is_complete(run: Run) -> bool:
    """Whether a run has come to its end: then it has its row in the table."""
    return run.name in read_table(run.table)["run"].to_numpy()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
