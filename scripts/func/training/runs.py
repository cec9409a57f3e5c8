"""A training run on the disk: settings, split, checkpoints, and its row in the table of all runs.

Everything is written atomically, so that a process may be killed at any moment: what is there under its final name is
whole, or, should the disk itself have lost some of it, noticed to be damaged.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from func.dataset import PARTS
from func.errors import BabyAIError
from func.scans.files import atomic, save_json


@dataclass(frozen=True)
class Run:
    """One training run below an output folder; ``parts`` holds the part of each subject."""

    name: str
    output_dir: Path
    settings: dict
    parts: dict[str, str]

    @property
    def folder(self) -> Path:
        """Where its settings, split and checkpoints are."""
        return self.output_dir / "runs" / self.name

    @property
    def weights(self) -> Path:
        """Its best weights."""
        return self.output_dir / "weights" / f"{self.name}.pth"

    @property
    def logs(self) -> Path:
        """Its TensorBoard logs."""
        return self.output_dir / "tensorboard_logs" / self.name

    @property
    def table(self) -> Path:
        """The table of all runs."""
        return self.output_dir / "training_info.csv"

    @property
    def is_complete(self) -> bool:
        """Whether it has come to its end, which its row in the table tells."""
        return any(row["run"] == self.name for row in read_rows(self.table))


def new_run(run: Run) -> Run:
    """Write down the settings and the split of a run that begins.

    Raises:
        BabyAIError: there is such a run, or the folder cannot be written.
    """
    if _settings_of(run.folder).exists():
        raise BabyAIError(f"{run.folder} is there already; resume it with --resume, or give another --name.")
    with atomic(run.folder / "split.csv") as unfinished:
        lines = ["subject,part", *(f"sub-{label},{part}" for label, part in run.parts.items())]
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Last, so that a process killed before leaves nothing that looks like a run.
    save_json(_settings_of(run.folder), run.settings)
    return run


def find_run(output_dir: Path, name: str | None) -> Run | None:
    """A run as it was begun; the one begun last where no name is given. None where there is no such run."""
    folders = [output_dir / "runs" / name] if name else (output_dir / "runs").glob("*")
    written = [_settings_of(folder) for folder in folders if _settings_of(folder).exists()]
    path = max(written, key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    return Run(path.parent.name, output_dir, settings, read_split(path.with_name("split.csv")))


def _settings_of(folder: Path) -> Path:
    return folder / "settings.json"


def read_split(path: Path) -> dict[str, str]:
    """The part of each subject, from a table with the columns subject and part.

    Raises:
        BabyAIError: the file is missing or is no split.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            parts = {row["subject"].removeprefix("sub-"): row["part"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise BabyAIError(
            f"{path} is no split: it needs the columns subject and part, as runs/RUN/split.csv has."
        ) from None
    if unknown := set(parts.values()) - set(PARTS):
        raise BabyAIError(f"{path} names a part '{min(map(str, unknown))}'; use {', '.join(PARTS)}.")
    if "train" not in parts.values():
        raise BabyAIError(f"{path} has no training subject; edit the split.")
    return parts


def check_split(parts: Mapping[str, str], labels: Iterable[str]) -> None:
    """Refuse a split that names subjects who are not there."""
    if absent := set(parts) - set(labels):
        raise BabyAIError(f"The split names sub-{min(absent)}, of whom there is no isotropic pair; add or remove it.")


def save_checkpoint(folder: Path, step: int, content: dict) -> None:
    """Write a checkpoint, and keep it and the one before.

    Raises:
        BabyAIError: it could not be written.
    """
    if not _settings_of(folder).exists():
        raise BabyAIError(f"{folder} was removed meanwhile, so that nothing could be resumed from it; run again.")
    path = folder / f"checkpoint-{step:09d}.pt"
    with atomic(path) as unfinished:
        try:
            torch.save(content, unfinished)
        except RuntimeError as error:  # PyTorch's own writer does not raise OSError
            raise BabyAIError(f"{path} could not be written: is the disk full, or the folder gone?") from error
    for old in _checkpoints(folder)[:-2]:
        old.unlink(missing_ok=True)


def last_checkpoint(folder: Path) -> dict | None:
    """What the last whole checkpoint holds, on the CPU; damaged ones after it are told of and set aside."""
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


def add_row(path: Path, row: Mapping) -> None:
    """Add a run to the table of all runs, or replace its row."""
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
    """The rows of the table of all runs, none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def alone_on(run: Run) -> Iterator[None]:
    """Keeps two jobs from training the same run at once.

    Raises:
        BabyAIError: another process is training it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run.folder / ".lock", wait=False))
        except BlockingIOError:
            raise BabyAIError(
                f"{run.name} is being trained by another process; wait for it, or give another --name."
            ) from None
        yield


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """While the block lasts, no other process holds the same lock; the system frees it whatever becomes of this one.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
