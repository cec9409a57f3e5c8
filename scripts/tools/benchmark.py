"""Measure on this machine how fast reconstruction is, and how far that is from what the machine could do.

    python scripts/tools/benchmark.py --output benchmark.md

Prints Markdown tables: the published network as published, one patch after the other, against its folded form; the
bundled weights, a whole process of inference.py from start to saved file; how time grows with voxels and subjects; and
patches a second in training.
Ratios carry over between machines, seconds do not. Without --t1 and --t2 (an isotropic pair on the atlas grid) the
built-in phantom serves, and without --weights random numbers: neither changes the cost.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.commands import script_parser
from func.errors import BabyAIError
from func.networks.devices import choose_device, computing, has_fast_bfloat16
from func.networks.patches import BATCH_SIZE, count_patches, run_patches
from func.networks.weights import build_network, load_weights, save_folded
from func.phantom import infant_brain
from func.reconstruction.reconstructor import Reconstructor
from func.scans.case import Case
from func.scans.hub import find_weights
from func.scans.intensity import published_normalise
from func.scans.nifti import check_atlas_grid, check_same_grid, image_of, read_volume, save_result, to_ras
from func.slices.geometry import SliceGeometry, acquire, upsample

# Edit these, or override them on the command line.
DEVICE = "auto"  # auto, cpu, cuda or mps
PATCHES = 48  # patches timed, of the 1,573 of a volume
PRECISIONS = ("float32", "bfloat16")  # of the folded network
BATCH = 32  # patches of a plain training step
REPEATS = 3  # the fastest of so many runs counts
THICKNESS = 4.0  # mm, axial slices
SUBJECTS = (1, 2, 4)  # sizes of the folders that inference.py is timed on
SIZES = (64, 96, 128, 160)  # edges of the cubes that time per voxel is taken from

SCRIPTS = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Measure what the arguments ask for and print the tables; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        device, _ = choose_device(arguments.device, "auto")
        t1, t2 = thick_slice_pair(arguments.t1, arguments.t2)
        sections = [machine(device)]
        with tempfile.TemporaryDirectory() as folder:
            if "published" in arguments.sections:
                sections.append(published(t1, t2, arguments.weights, device, Path(folder)))
            if "bundled" in arguments.sections:
                sections.append(bundled(t1, t2, device, Path(folder)))
            if "growth" in arguments.sections:
                sections.append(growth(t1, t2, device))
            if "training" in arguments.sections:
                sections.append(training(t1, t2, device, Path(folder)))
    except BabyAIError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    text = "\n\n".join(sections) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line; exits with code 2 where that makes no sense."""
    parser = script_parser(__doc__)
    parser.add_argument("--t1", type=Path, help="isotropic T1w scan on the atlas grid (default: the phantom's)")
    parser.add_argument("--t2", type=Path, help="isotropic T2w scan of the same head (default: the phantom's)")
    parser.add_argument("--weights", type=Path, help="file of published weights (default: random numbers)")
    parser.add_argument("--device", default=DEVICE, help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--output", type=Path, help="Markdown file to write the tables to as well")
    arguments = parser.parse_args(argv)
    if (arguments.t1 is None) != (arguments.t2 is None):
        parser.error("--t1 and --t2 go together")
    return arguments


def thick_slice_pair(t1_path: Path | None, t2_path: Path | None) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A T1w, and the T2w as axial slices would show it, up-sampled to the T1w's grid; both in RAS order."""
    if t1_path is None:
        head = infant_brain(age_months=6)
        t1, t2 = head.t1, head.t2
    else:
        t1, t2 = (to_ras(read_volume(path)) for path in (t1_path, t2_path))
        check_atlas_grid(t1)
        check_same_grid(t1, t2)
    array = t2.get_fdata(dtype=np.float32)
    geometry = SliceGeometry.fitting(2, array.shape[2], THICKNESS)
    # Up-sampling overshoots to both sides of the background's zero; a brain-extracted scan stays zero there.
    thick = upsample(acquire(array, geometry), geometry, array.shape[2]) * (t1.get_fdata(dtype=np.float32) > 0)
    return t1, image_of(thick.astype(np.float32), t2.affine, t2)


def machine(device: torch.device) -> str:
    """One paragraph: where the numbers come from, and what its matrix product reaches."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
        name = f"{name}, {torch.get_num_threads()} threads"
    rates = {precision: matrix_product_rate(device, precision) / 1e9 for precision in precisions_of(device)}
    return (
        f"{name}; {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}. "
        f"A matrix product reaches {' and '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in rates.items())}."
    )


def precisions_of(device: torch.device) -> tuple[str, ...]:
    """The precisions that the device computes in natively."""
    return PRECISIONS if has_fast_bfloat16(device) else PRECISIONS[:1]


@dataclass
class Way:
    """One way to run the published network, and what was measured of it."""

    name: str
    per_patch: float  # seconds
    outputs: Tensor  # of the sample of patches
    operations: int  # floating-point, for one patch
    volume: float  # seconds for this volume
    rate: float  # of a matrix product in the same precision, operations a second
    memory: float  # bytes resident at most


def published(
    t1: nib.Nifti1Image, t2: nib.Nifti1Image, weights: Path | None, device: torch.device, folder: Path
) -> str:
    """The published network: MONAI's, one patch after the other, against its folded form on the patches with data."""
    weights = weights or random_published_weights(folder / "published.pth")
    save_folded(folder / "folded.pth", weights)
    inputs = torch.from_numpy(np.stack([published_normalise(image.get_fdata(dtype=np.float32)) for image in (t1, t2)]))
    every, filled = count_patches(inputs.shape[1:]), filled_patches(inputs)
    sample = filled[:: -(-len(filled) // PATCHES)].to(device)
    count = len(filled)
    del filled

    folding, folded = timed(lambda: load_weights(weights).network, device)
    del folded
    loading, folded = timed(lambda: load_weights(folder / "folded.pth").network, device)
    ways = [folded_way(folded.to(device), precision, inputs, count, sample, device) for precision in PRECISIONS]
    del folded
    ways = [*plain_ways(load_weights(weights, folded=False).network.to(device), sample, every, device), *ways]

    loop = ways[0]
    scale = float(loop.outputs.max() - loop.outputs.min())
    rows = {
        "ms a patch": [f"{1e3 * way.per_patch:.1f}" for way in ways],
        f"s a volume of {every} patches, none empty": [f"{every * way.per_patch:.1f}" for way in ways],
        "times as fast": [f"{loop.per_patch / way.per_patch:.1f}" for way in ways],
        f"s this volume ({count} patches with data)": [f"{way.volume:.1f}" for way in ways],
        "times as fast ": [f"{loop.volume / way.volume:.1f}" for way in ways],
        "GFLOP a patch": [f"{way.operations / 1e9:.2f}" for way in ways],
        "of the matrix product's rate": [f"{way.operations / way.per_patch / way.rate:.0%}" for way in ways],
        "peak memory, GB": [f"{way.memory / 1e9:.2f}" for way in ways],
        "largest difference, of the range": [f"{difference(way, loop) / scale:.1e}" for way in ways],
    }
    return (
        "### The published network\n\n"
        + table(["", *(way.name for way in ways)], rows)
        + f"\n\nReading the published file and folding it takes {folding:.1f} s, the folded file {loading:.1f} s."
    )


def difference(way: Way, loop: Way) -> float:
    """The largest difference between the outputs of two ways, over the patches that both have run."""
    return float((way.outputs - loop.outputs[: len(way.outputs)]).abs().max())


def folded_way(
    network: torch.nn.Module, precision: str, inputs: Tensor, count: int, sample: Tensor, device: torch.device
) -> Way:
    """Measure the folded network, on the whole volume too; where the precision is only emulated, on two patches."""
    emulated = precision == "bfloat16" and not has_fast_bfloat16(device)
    sample = sample[:2] if emulated else sample
    with torch.inference_mode(), computing(device, precision):
        seconds, outputs = fastest(lambda: torch.cat([network(batch) for batch in sample.split(BATCH_SIZE)]), device)
    forget_peak_memory(device)
    volume = count * seconds / len(sample)
    if not emulated:
        volume, _ = timed(lambda: run_patches(network, inputs, precision=precision, device=device)[0], device)
    memory = peak_memory(device)
    with computing(device, precision):
        operations = operations_of(network, sample[:1])
    rate = matrix_product_rate(device, precision)
    return Way(f"folded, {precision}", seconds / len(sample), outputs.float(), operations, volume, rate, memory)


def plain_ways(network: torch.nn.Module, sample: Tensor, every: int, device: torch.device) -> list[Way]:
    """Measure MONAI's network on the sample; all the patches of a volume take as much each."""
    ways = []
    for name, size in (("one at a time", 1), ("batches of 32", 32)):
        forget_peak_memory(device)
        with torch.inference_mode(), computing(device):
            seconds, outputs = fastest(lambda n=size: torch.cat([network(batch) for batch in sample.split(n)]), device)
        memory = peak_memory(device)
        per_patch, operations = seconds / len(sample), operations_of(network, sample[:1])
        ways.append(Way(name, per_patch, outputs, operations, every * per_patch, matrix_product_rate(device), memory))
    return ways


def random_published_weights(path: Path) -> Path:
    """A file of the published configuration that holds random numbers."""
    torch.manual_seed(0)
    state_dict = build_network("babyai").state_dict()
    for tensor in state_dict.values():
        if tensor.dim() == 5:
            torch.nn.init.kaiming_normal_(tensor, a=0.25)
    torch.save(state_dict, path)
    return path


def filled_patches(inputs: Tensor) -> Tensor:
    """Every patch (N, C, 32, 32, 32) of the volume that holds data."""
    seen = []

    def record(batch: Tensor) -> Tensor:
        if batch.any():
            seen.append(batch.clone())
        return batch[:, :1]

    run_patches(record, inputs)
    return torch.cat(seen)


def bundled(t1: nib.Nifti1Image, t2: nib.Nifti1Image, device: torch.device, folder: Path) -> str:
    """The bundled weights: inference.py as users run it, from its start to the last saved file."""
    starting, _ = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True), device)
    geometry = SliceGeometry.fitting(2, t2.shape[2], THICKNESS)
    rows = {}
    for count in SUBJECTS:
        data = folder / f"{count}-subjects"
        for subject in range(1, count + 1):
            name = f"sub-{subject:02d}"
            save_result(data / f"{name}_T1w.nii.gz", t1, {})
            save_result(data / f"{name}_acq-axial4mm_T2w.nii.gz", t2, geometry.to_sidecar(1.0))
        command = [sys.executable, SCRIPTS / "inference.py", "--data-dir", data, "--output-dir", data / "results"]
        seconds, (busy, memory) = timed(lambda c=[*command, "--device", str(device)]: run_process(c), device)
        rows[f"{count}"] = [
            f"{seconds:.1f}",
            f"{seconds / count:.1f}",
            f"{busy / seconds / os.cpu_count():.0%}",
            f"{memory / 1e9:.2f}",
        ]
    header = ["subjects", "s, whole process", "s a subject", "processor busy", "peak memory, GB"]
    return f"### The bundled weights\n\n{table(header, rows)}\n\n`import torch` alone takes {starting:.1f} s."


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def run_process(command: list) -> tuple[float, int]:
    """Processor seconds and peak resident bytes of a command and all it starts.

    Raises:
        BabyAIError: the command failed.
    """
    # A process begins with the peak of the one that starts it: a small one between the two keeps ours out of it.
    words = [sys.executable, "-c", MEASURED, *map(str, command)]
    measured = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    code, seconds, memory = measured.split()
    if int(code):
        raise BabyAIError(f"{command[1]} ended with exit code {code}: run it by itself to see why.")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(seconds), int(memory) * unit


def growth(t1: nib.Nifti1Image, t2: nib.Nifti1Image, device: torch.device) -> str:
    """How the bundled network's time grows with the volume: cubes from the middle of the head."""
    reconstructor = Reconstructor(load_weights(find_weights("bundled")), str(device))
    geometry = SliceGeometry.fitting(2, t2.shape[2], THICKNESS)
    rows = {}
    for size in SIZES:
        corner = [max(0, int(n - size) // 2 // int(THICKNESS) * int(THICKNESS)) for n in t2.shape]
        cube = tuple(slice(at, at + size) for at in corner)
        small_t1, small_t2 = t1.slicer[cube], t2.slicer[cube]
        inside = replace(geometry, count=small_t2.shape[2] // int(THICKNESS))
        case = Case(small_t1, small_t2, inside.to_sidecar(1.0))
        seconds, _ = fastest(lambda case=case: reconstructor.reconstruct(case), device)
        voxels = np.prod(small_t2.shape)
        rows["×".join(map(str, small_t2.shape))] = [f"{seconds:.2f}", f"{1e6 * seconds / voxels:.2f}"]
    return "### Time and voxels, bundled weights\n\n" + table(["voxels", "s", "µs a voxel"], rows)


def training(t1: nib.Nifti1Image, t2: nib.Nifti1Image, device: torch.device, folder: Path) -> str:
    """Patches a second of training.py, against a plain loop that reads and normalises again when the image changes."""
    data = folder / "pairs"
    for subject in range(1, 5):
        save_result(data / f"sub-{subject:02d}_T1w.nii.gz", t1, {})
        save_result(data / f"sub-{subject:02d}_T2w.nii.gz", t2, {})
    step, reading = plain_training_seconds(data, device)
    every = count_patches(t2.shape)
    rates = {
        "plain loop, a new image each patch": (BATCH / (step + BATCH * reading), 32, 0.0),
        f"plain loop, a new image each {every} patches": (BATCH / (step + BATCH * reading / every), 32, 0.0),
    }
    for recipe, patch in (("babyai", 32), ("compact", 56)):
        command = [SCRIPTS / "training.py", "--data-dir", data, "--output-dir", folder, "--recipe", recipe]
        command += ["--name", recipe, "--device", device, "--steps", 1000, "--log-every", 4]
        rate, waiting = training_rate([sys.executable, *command])
        rates[f"training.py --recipe {recipe}"] = (rate, patch, waiting)
    plain = next(iter(rates.values()))[0] * 32**3
    rows = {
        name: [f"{patch}³", f"{rate:.2f}", f"{rate * patch**3 / plain:.1f}", f"{waiting:.0%}"]
        for name, (rate, patch, waiting) in rates.items()
    }
    header = ["", "patch", "patches a second", "times the voxels", "waiting for data"]
    return "### Training\n\n" + table(header, rows)


def plain_training_seconds(data: Path, device: torch.device) -> tuple[float, float]:
    """Seconds of a plain training step, float32, and of reading and normalising one pair."""
    network = build_network("babyai").to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    inputs, truth = torch.rand(BATCH, 2, 32, 32, 32, device=device), torch.rand(BATCH, 1, 32, 32, 32, device=device)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(inputs), truth).backward()
        optimizer.step()

    def read() -> None:
        for path in sorted(data.glob("sub-01_T?w.nii.gz")):
            published_normalise(read_volume(path).get_fdata(dtype=np.float32))

    return fastest(step, device)[0], fastest(read, torch.device("cpu"))[0]


def training_rate(command: list) -> tuple[float, float]:
    """Samples a second of a training, and the share of its time spent waiting for them, once it is under way.

    Raises:
        BabyAIError: the training ended before it said so.
    """
    words = [str(word) for word in command]
    reports = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            reports += re.findall(r"samples per second ([\d.e+-]+), waiting share ([\d.e+-]+)", line)
            if len(reports) == 3:
                process.terminate()
                break
        process.stdout.read()
    if not reports:
        raise BabyAIError(f"{words[1]} ended without a report: run it by itself to see why.")
    rate, waiting = reports[-1]
    return float(rate), float(waiting)


SECTIONS = {"published": published, "bundled": bundled, "growth": growth, "training": training}


def table(header: list[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table; the first column is the rows' names."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that a call takes, with all the work it gives a GPU, and what it returns."""
    finish(device)
    start = time.perf_counter()
    result = call()
    finish(device)
    return time.perf_counter() - start, result


def fastest(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """As ``timed``, for the fastest of some calls after one to warm up."""
    call()
    runs = [timed(call, device) for _ in range(REPEATS)]
    return min(seconds for seconds, _ in runs), runs[-1][1]


def finish(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_product_rate(device: torch.device, precision: str = "float32") -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(size, size, device=device)
    with computing(device, precision):
        seconds, _ = fastest(lambda: matrix @ matrix, device)
    return 2 * size**3 / seconds


def operations_of(network: torch.nn.Module, patch: Tensor) -> int:
    """Floating-point operations of a network for one patch, those on padding included."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(patch)
    return counter.get_total_flops()


def forget_peak_memory(device: torch.device) -> None:
    """Start ``peak_memory`` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Bytes held at most since ``forget_peak_memory``, of the GPU or of this process; nan where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith("VmHWM")), float("nan"))


if __name__ == "__main__":
    sys.exit(main())
