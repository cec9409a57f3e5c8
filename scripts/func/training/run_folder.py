"""The folder of a training run: its settings, its split, and the lock that keeps two jobs from training it at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from func.errors import BabyAIError
from func.scans.files import save_json
from func.training.splits import read_split, write_split

NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


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
    def exists(self) -> bool:
        """Whether it has begun and its folder is still there."""
        return _settings_of(self.folder).exists()

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


def new_run(run: Run) -> Run:
    """Write down the settings and the split of a run that begins.

    Raises:
        BabyAIError: there is such a run, or the folder cannot be written.
    """
    if run.exists:
        raise BabyAIError(f"{run.folder} is there already; resume it with --resume, or give another --name.")
    write_split(run.folder / "split.csv", run.parts)
    # Last, so that a process killed before leaves nothing that looks like a run.
    save_json(_settings_of(run.folder), run.settings)
    return run


def find_run(output_dir: Path, name: str | None) -> Run | None:
    """A run as it was begun; the one begun last where no name is given. None where there is no such run.

    Raises:
        BabyAIError: its settings or its split cannot be read.
    """
    folders = [output_dir / "runs" / name] if name else (output_dir / "runs").glob("*")
    written = [_settings_of(folder) for folder in folders if _settings_of(folder).exists()]
    path = max(written, key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BabyAIError(f"{path} cannot be read; begin another run, with another --name.") from None
    return Run(path.parent.name, output_dir, settings, read_split(path.with_name("split.csv")))


def _settings_of(folder: Path) -> Path:
    return folder / "settings.json"


@contextlib.contextmanager
def alone_on(run: Run) -> Iterator[None]:
    """Keep two jobs from training the same run at once.

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
    """Hold a lock that no other process can hold while the block lasts; the system frees it should this one be killed.

    Where the file system has no locks (some network and cluster ones), this is said and the block runs without.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
            print(f"{path.parent} has no file locks: see to it that no other job writes there.", file=sys.stderr)
        yield
