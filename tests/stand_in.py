"""inference.py with a reconstruction that takes no time, doubles the T2w, and stops where a test wants it to.

    python tests/stand_in.py WHERE NAME inference-arguments ...

At WHERE (reading, computing, writing) of the scan NAME the process kills itself with SIGKILL; `waiting` makes it print
"computing" and wait for a signal instead; `removing` deletes the output folder in mid-run; `nowhere` does none of it.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import inference
from func.scans import nifti

SHAPE = (10, 11, 12)


def write_subject(folder: Path, label: str, seed: int = 0, acq: str = "") -> Path:
    """Write a pair of tiny volumes of noise in air; returns the T2w, in whose name `acq` goes (`acq-axial4mm_`)."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    t1, t2 = folder / f"sub-{label}_T1w.nii.gz", folder / f"sub-{label}_{acq}T2w.nii.gz"
    for path in (t1, t2):
        array = np.zeros(SHAPE, np.float32)
        array[2:-2, 2:-2, 2:-2] = random.uniform(1, 500, [length - 4 for length in SHAPE])
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return t2


def doubled(case, raw=None):
    """What `Reconstructor.reconstruct` gives back, with the T2w doubled for a reconstruction."""
    image = nifti.image_of(2 * nifti.array_of(case.t2), case.t2.affine, case.t2)
    return SimpleNamespace(image=image, report={}, warnings=(), residuals=(), uncertainty=None)


def stand_in_modules(reconstruct=doubled) -> dict[str, ModuleType]:
    """Modules to put into `sys.modules`, so that neither torch nor weights are needed."""

    class Reconstructor:
        def __init__(self, weights, device, precision, uncertainty, progress, network, runs):
            self._progress = progress

        def reconstruct(self, case, raw=None):
            self._progress(1, 1)
            return reconstruct(case, raw)

        def reconstruct_together(self, cases, raw):
            return reconstruct(cases[0], raw)

    names = ("networks.devices", "networks.weights", "reconstruction.reconstructor", "reports.quality", "reports.page")
    modules = {f"func.{name}": ModuleType(f"func.{name}") for name in names}
    devices, weights, reconstruction, quality, page = modules.values()
    devices.report_out_of_memory = contextlib.nullcontext
    weights.load_weights = lambda path: SimpleNamespace(recipe="compact")
    reconstruction.Reconstructor, reconstruction.Reconstruction = Reconstructor, SimpleNamespace
    quality.quality_of, quality.is_stripped = lambda t1, t2, report: ({}, []), lambda image: True
    page.Reporter = lambda *_: None
    return modules


def put_in(monkeypatch, inference: ModuleType, reconstruct=doubled) -> None:
    """Let a script in this process run on the stand-ins, until the test is over."""
    for name, module in stand_in_modules(reconstruct).items():
        monkeypatch.setitem(sys.modules, name, module)
    # Imported anew in the test and after it, since it keeps what it imported.
    monkeypatch.setitem(sys.modules, "func.reports.results", None)
    del sys.modules["func.reports.results"]
    monkeypatch.setattr(inference, "find_weights", lambda choice: Path(__file__))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_at(where: str, name: str, arguments: list[str]) -> None:
    """Put the fault in its place."""
    read_header, write = nifti._read_header, nifti._write

    def read_and_die(path, stream):
        header = read_header(path, stream)
        if name in path.name:
            kill()
        return header

    def write_half_and_die(path, image):
        write(path, image)
        if name in path.name:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    def reconstruct(case, raw):
        if name in case.t2.get_filename():
            if where == "computing":
                kill()
            elif where == "waiting":
                print("computing", flush=True)
                for _ in range(600):
                    time.sleep(0.05)
            elif where == "removing":
                shutil.rmtree(arguments[arguments.index("--output-dir") + 1], ignore_errors=True)
        return doubled(case, raw)

    if where == "reading":
        nifti._read_header = read_and_die
    elif where == "writing":
        nifti._write = write_half_and_die
    sys.modules.update(stand_in_modules(reconstruct))


if __name__ == "__main__":
    # A shell that runs the tests in the background has Ctrl-C ignored in all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    where, name, *arguments = sys.argv[1:]
    stop_at(where, name, arguments)
    inference.find_weights = lambda choice: Path(__file__)
    sys.exit(inference.main(arguments))
