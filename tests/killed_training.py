"""training.py that meets a fault: killed as it writes its second checkpoint or the table of all runs, or a full disk.

python tests/killed_training.py checkpoint|table|full training-arguments ...
"""

import errno
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import pandas as pd
import torch

import training


def die_writing_checkpoint() -> None:
    save, saved = torch.save, []

    def save_half(content, path):
        save(content, path)
        if "checkpoint" in str(path):
            saved.append(path)
        if len(saved) == 2:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half


def die_writing_table() -> None:
    def write_half(table, path, **_):
        Path(path).write_text("half a row")
        os.kill(os.getpid(), signal.SIGKILL)

    pd.DataFrame.to_csv = write_half


def fill_disk() -> None:
    def full(content, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    torch.save = full


FAULTS = {"checkpoint": die_writing_checkpoint, "table": die_writing_table, "full": fill_disk}

if __name__ == "__main__":
    where, *arguments = sys.argv[1:]
    FAULTS[where]()
    sys.exit(training.main(arguments))
