"""Measure on this machine how fast reconstruction and training are, and how near that is to what it could do.

    python scripts/tools/benchmark.py --output benchmark.md
    python scripts/tools/benchmark.py --device cuda --sections published training

Prints Markdown tables: whole processes of inference.py, from start to end (``grid``: folders of scans on the grid, by
one process and by several; ``raw``: an infant and a whole head; ``stacks`` and ``in-plane``: how time grows with their
number and with the voxels of a slice); the published network as published, one patch after the other, against its
folded form; patches a second in training, and how busy that keeps a GPU.
Ratios carry over between machines, seconds do not. Scans are those of a digital infant and the published weights are
random numbers (--weights: a file), neither of which changes the cost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.commands import script_parser
from func.errors import BabyAIError
from func.networks.devices import choose_device, computing, has_fast_bfloat16
from func.networks.patches import BATCH_SIZE, count_patches, run_patches
from func.networks.weights import build_network, load_weights, save_folded
from func.phantom import infant_brain
from func.processors import processors
from func.scans.intensity import published_normalise
from func.scans.nifti import array_of, image_of, save_result
from func.slices.geometry import SliceGeometry, acquire, upsample
from func.slices.scanner import grid_around

# Edit these, or override them on the command line.
DEVICE = "auto"  # auto, cpu, cuda or mps
PATCHES = 48  # patches timed, of the 1,573 of a volume
BATCH = 32  # patches of a plain training step
REPEATS = 3  # the fastest of so many runs counts
THICKNESS = 4.0  # mm, axial slices of the scans on the grid
SUBJECTS = (1, 4)  # scans in a folder
SHARDS = (2, 4)  # processes that share the larger folder, where there are so many processors
INFANT = ((160, 192, 40), (0.8, 0.8, 3.3))  # voxels and mm of a raw stack
WHOLE_HEAD = ((384, 512, 56), (0.43, 0.43, 2.5))
STACKS = ("axial", "coronal", "sagittal")  # of a raw infant, one more each time (of one: INFANT)
IN_PLANE = (1.0, 0.7)  # mm, of whole heads (finer: WHOLE_HEAD)
FINE_RESULT = 0.5  # mm, voxels of a result of WHOLE_HEAD
TRAINING = {"babyai": 32, "compact": 56}  # recipe: voxels along a side of a patch
REPORTS = 3  # of training.py, of which the last counts

SCRIPTS = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Measure what the arguments ask for and print the tables; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        device, _ = choose_device(arguments.device, "auto")
        sections = [machine(device)]
        print(sections[0])
        with tempfile.TemporaryDirectory() as folder:
            for name in arguments.sections:
                sections.append(SECTIONS[name](device, Path(folder) / name, arguments.weights))
                print(f"\n{sections[-1]}", flush=True)
    except BabyAIError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        arguments.output.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The constants above, overridden by the command line."""
    parser = script_parser(__doc__)
    parser.add_argument("--weights", type=Path, help="file of published weights (default: random numbers)")
    parser.add_argument("--device", default=DEVICE, help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--output", type=Path, help="Markdown file to write the tables to as well")
    return parser.parse_args(argv)


def machine(device: torch.device) -> str:
    """One paragraph: where the numbers come from, and what its matrix product reaches."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
        name = f"{name}, {torch.get_num_threads()} threads"
        name = f"{name} ({torch.backends.cpu.get_cpu_capability()}, {'' if has_fast_bfloat16() else 'no '}bfloat16)"
    precisions = ("float32", "bfloat16") if has_fast_bfloat16(device) else ("float32",)
    rates = {precision: matrix_product_rate(device, precision) / 1e9 for precision in precisions}
    return (
        f"{name}; {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}. "
        f"A matrix product reaches {' and '.join(f'{rate:.0f} GFLOP/s in {name}' for name, rate in rates.items())}."
    )


# Whole processes of inference.py


HEADER = [
    "scans",
    "s, whole process",
    "s a result",
    "of it network",
    "told in the sidecar",
    "processors busy",
    "peak, GB",
]


def grid(device: torch.device, folder: Path, weights: Path | None) -> str:
    """Folders of scans on the grid, by one process and by several at a time."""
    rows = {}
    for count in SUBJECTS:
        scans = folder / f"{count}"
        write_grid_scans(scans, count)
        rows[f"{count} on the grid"] = inference_cells(scans, ["--data-dir", scans], device=device, results=count)
    for shards in (shards for shards in SHARDS if shards <= processors()):
        parts = [["--data-dir", scans, "--shard", f"{part}/{shards}"] for part in range(1, shards + 1)]
        shutil.rmtree(scans / "results", ignore_errors=True)
        rows[f"{count} on the grid, {shards} processes"] = inference_cells(scans, *parts, device=device, results=count)
    starting, _ = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True), device)
    return f"### Scans on the grid\n\n{table(HEADER, rows)}\n\n`import torch` alone takes {starting:.1f} s."


def raw(device: torch.device, folder: Path, weights: Path | None) -> str:
    """A raw infant and a raw whole head."""
    rows = {
        f"{name}, {voxels_of(*scan)}": raw_cells(folder / name, *scan, STACKS[:1], device)
        for name, scan in (("an infant", INFANT), ("a whole head", WHOLE_HEAD))
    }
    return f"### Raw scans\n\n{table(HEADER, rows)}"


def stacks(device: torch.device, folder: Path, weights: Path | None) -> str:
    """A raw infant in more and more stacks."""
    rows = {}
    for count in range(2, len(STACKS) + 1):
        cells = raw_cells(folder / f"{count}", *INFANT, STACKS[:count], device)
        rows[f"an infant in {count} stacks"] = cells
    return f"### By the number of stacks\n\n{table(HEADER, rows)}"


def in_plane(device: torch.device, folder: Path, weights: Path | None) -> str:
    """Raw whole heads of finer and finer voxels in-plane, and a result of fine voxels."""
    shape, sizes = WHOLE_HEAD
    rows = {}
    for voxel in IN_PLANE:
        finer = tuple(round(n * mm / voxel) for n, mm in zip(shape[:2], sizes[:2], strict=True))
        scan = (*finer, shape[2]), (voxel, voxel, sizes[2])
        rows[f"a whole head, {voxels_of(*scan)}"] = raw_cells(folder / f"{voxel}", *scan, STACKS[:1], device)
    name = f"a whole head, {voxels_of(*WHOLE_HEAD)}, result of {FINE_RESULT:g} mm"
    options = ["--voxel-size", FINE_RESULT]
    rows[name] = raw_cells(folder / "fine", *WHOLE_HEAD, STACKS[:1], device, options)
    return f"### By the voxels in-plane\n\n{table(HEADER, rows)}"


def voxels_of(shape: tuple, sizes: tuple) -> str:
    """A stack's grid in words."""
    return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{size:g}' for size in sizes)} mm"


def write_grid_scans(folder: Path, count: int) -> None:
    """Pairs on the atlas grid, the T2w as axial slices show it, up-sampled."""
    head = infant_brain(age_months=6)
    array = array_of(head.t2)
    geometry = SliceGeometry.fitting(2, array.shape[2], THICKNESS)
    # Up-sampling overshoots to both sides of the background's zero; a brain-extracted scan stays zero there.
    thick = upsample(acquire(array, geometry), geometry, array.shape[2]) * (array_of(head.t1) > 0)
    t2 = image_of(thick.astype(np.float32), head.t2.affine, head.t2)
    for subject in range(1, count + 1):
        save_result(folder / f"sub-{subject:02d}_T1w.nii.gz", head.t1, {})
        save_result(folder / f"sub-{subject:02d}_acq-axial4mm_T2w.nii.gz", t2, geometry.to_sidecar(1.0))


def raw_cells(
    folder: Path, shape: tuple, sizes: tuple, planes: tuple[str, ...], device: torch.device, options: Sequence = ()
) -> list[str]:
    """Write a T1w and stacks of one infant, with skull unless it is INFANT's stack, and reconstruct them."""
    skull = shape != INFANT[0]
    t1 = infant_brain(age_months=6, skull=skull).t1
    save_result(folder / "sub-01_T1w.nii.gz", t1, {})
    centre = nib.affines.apply_affine(t1.affine, (np.array(t1.shape) - 1) / 2)
    stacks = []
    for plane in planes:
        order = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (2, 0, 1)}[plane]
        stack_shape, stack_sizes = (tuple(values[axis] for axis in order) for values in (shape, sizes))
        affine = grid_around(centre, stack_shape, stack_sizes)
        stacks.append(folder / f"sub-01_acq-{plane}_T2w.nii.gz")
        save_result(stacks[-1], infant_brain(stack_shape, affine, 6, skull).t2, {"SliceThickness": max(sizes)})
    output = folder / "results" / "sub-01_desc-isotropic_T2w.nii.gz"
    scans = ["--t1", folder / "sub-01_T1w.nii.gz", "--t2", *stacks, "--output", output, *options]
    return inference_cells(folder, scans, device=device, results=1)


def inference_cells(folder: Path, *calls: list, device: torch.device, results: int) -> list[str]:
    """Run inference.py as users do, once or in several processes at a time, and fill a row of the table.

    Results go below ``folder``; the peak memory is that of the process that needs most.
    """
    commands = [[sys.executable, SCRIPTS / "inference.py", *call, "--device", device] for call in calls]
    if "--output" not in calls[0]:
        commands = [[*command, "--output-dir", folder / "results"] for command in commands]
    with ThreadPoolExecutor(len(commands)) as pool:
        threads = max(1, processors() // len(commands))
        seconds, used = timed(lambda: list(pool.map(lambda command: run_process(command, threads), commands)), device)
    busy, memory = sum(processor for processor, _ in used), max(peak for _, peak in used)
    sidecars = [json.loads(path.read_text()) for path in (folder / "results").rglob("*desc-isotropic*.json")]
    stages = [sidecar.get("Seconds", {}) for sidecar in sidecars]
    told = sum(sum(stage.values()) for stage in stages)
    return [
        f"{seconds:.1f}",
        f"{seconds / results:.1f}",
        f"{sum(stage.get('Network', 0) for stage in stages) / results:.1f}",
        f"{told / seconds:.0%}" if results == 1 else "–",
        f"{busy / seconds / processors():.0%}",
        f"{memory / 1e9:.2f}",
    ]


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def run_process(command: list, threads: int) -> tuple[float, int]:
    """Processor seconds and peak resident bytes of a command, which computes in so many threads, and all it starts.

    Raises:
        BabyAIError: the command failed.
    """
    # A process begins with the peak of the one that starts it: a small one between the two keeps ours out of it.
    words = [sys.executable, "-c", MEASURED, *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    measured = subprocess.check_output(words, stderr=subprocess.DEVNULL, text=True, env=environment)
    code, seconds, memory = measured.split()
    if int(code):
        raise BabyAIError(f"{' '.join(words[3:])} ended with exit code {code}: run it by itself to see why.")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(seconds), int(memory) * unit


# The published network


def published(device: torch.device, folder: Path, weights: Path | None) -> str:
    """The published network: MONAI's, one patch after the other, against its folded form on the patches with data."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights or random_published_weights(folder / "published.pth")
    save_folded(folder / "folded.pth", weights)
    head = infant_brain(age_months=6)
    inputs = torch.from_numpy(np.stack([published_normalise(array_of(scan)) for scan in (head.t1, head.t2)]))
    every, filled = count_patches(inputs.shape[1:]), filled_patches(inputs)
    count, sample = len(filled), filled[:: -(-len(filled) // PATCHES)].to(device)
    del filled
    folding, folded = timed(lambda: load_weights(weights).network, device)
    loading, _ = timed(lambda: load_weights(folder / "folded.pth"), device)
    plain = load_weights(weights, folded=False).network
    ways = {
        "one patch at a time": (plain, 1, "float32", every),
        "batches of 32": (plain, 32, "float32", every),
        "folded, float32": (folded, BATCH_SIZE, "float32", count),
        "folded, bfloat16": (folded, BATCH_SIZE, "bfloat16", count),
    }
    if not has_fast_bfloat16(device):
        del ways["folded, bfloat16"]
    columns, exact, slowest = [], None, None
    for network, size, precision, patches in ways.values():
        seconds, outputs, operations = measured_way(network.to(device), sample, size, precision, device)
        exact = outputs if exact is None else exact
        slowest = slowest or patches * seconds
        scale = float(exact.max() - exact.min())
        columns.append(
            {
                "ms a patch": f"{1e3 * seconds:.2f}",
                f"s a volume ({every} patches, {count} of them with data)": f"{patches * seconds:.1f}",
                "times as fast": f"{slowest / (patches * seconds):.1f}",
                "GFLOP a patch": f"{operations / 1e9:.2f}",
                "of the matrix product's rate": f"{operations / seconds / matrix_product_rate(device, precision):.0%}",
                "largest difference, of the range": f"{float((outputs - exact).abs().max()) / scale:.1e}",
            }
        )
    rows = {name: [column[name] for column in columns] for name in columns[0]}
    return (
        f"### The published network\n\n{table(['', *ways], rows)}\n\n"
        f"Reading the published file and folding it takes {folding:.1f} s, the folded file {loading:.1f} s."
    )


def measured_way(
    network: nn.Module, sample: Tensor, batch_size: int, precision: str, device: torch.device
) -> tuple[float, Tensor, int]:
    """Seconds a patch, the outputs (on the CPU) and the operations a patch of a network in batches of one size."""
    with torch.inference_mode(), computing(device, precision):
        batches = sample.split(batch_size)
        seconds, outputs = fastest(lambda: torch.cat([network(batch) for batch in batches]), device)
        with FlopCounterMode(display=False) as counter:
            network(sample[:1])
    return seconds / len(sample), outputs.float().cpu(), counter.get_total_flops()


def random_published_weights(path: Path) -> Path:
    """A file of the published configuration that holds random numbers."""
    torch.manual_seed(0)
    state_dict = build_network("babyai").state_dict()
    for tensor in state_dict.values():
        if tensor.dim() == 5:
            nn.init.kaiming_normal_(tensor, a=0.25)
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


# Training


def training(device: torch.device, folder: Path, weights: Path | None) -> str:
    """Patches a second of training.py, against a plain loop that reads and normalises a volume for each patch."""
    head = infant_brain(age_months=6)
    for subject in range(1, 5):
        save_result(folder / "pairs" / f"sub-{subject:02d}_T1w.nii.gz", head.t1, {})
        save_result(folder / "pairs" / f"sub-{subject:02d}_T2w.nii.gz", head.t2, {})
    plain = 1 / (plain_step_seconds(device) / BATCH + reading_seconds(head))
    rows = {"plain loop": ["32³", f"{plain:.2f}", "1.0", "", ""]}
    for recipe, patch in TRAINING.items():
        command = [sys.executable, SCRIPTS / "training.py", "--data-dir", folder / "pairs", "--output-dir", folder]
        command += ["--recipe", recipe, "--name", recipe, "--device", device, "--steps", 1000, "--log-every", 4]
        with gpu_load(device) as load:
            rate, waiting = training_rate(command)
        times = rate * patch**3 / (plain * 32**3)
        busy = f"{np.mean(load[len(load) // 2 :]):.0f}%" if load else ""
        rows[f"training.py --recipe {recipe}"] = [f"{patch}³", f"{rate:.2f}", f"{times:.1f}", f"{waiting:.0%}", busy]
    header = ["", "patch", "patches a second", "times the voxels", "waiting for data", "GPU busy"]
    return "### Training\n\n" + table(header, rows)


def plain_step_seconds(device: torch.device) -> float:
    """Seconds of a plain float32 step of the published network."""
    network = build_network("babyai").to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    inputs, truth = torch.rand(BATCH, 2, 32, 32, 32, device=device), torch.rand(BATCH, 1, 32, 32, 32, device=device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(network(inputs), truth).backward()
        optimizer.step()

    return fastest(step, device)[0]


def reading_seconds(head: Any) -> float:
    """Seconds to read and normalise a pair, as its files would hold it."""
    files = [scan.to_bytes() for scan in (head.t1, head.t2)]

    def read() -> None:
        for content in files:
            published_normalise(nib.Nifti1Image.from_bytes(content).get_fdata(dtype=np.float32))

    return fastest(read, torch.device("cpu"))[0]


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
            if len(reports) == REPORTS:
                process.terminate()
                break
        process.stdout.read()
    if not reports:
        raise BabyAIError(f"{words[1]} ended without a report: run it by itself to see why.")
    rate, waiting = reports[-1]
    return float(rate), float(waiting)


@contextlib.contextmanager
def gpu_load(device: torch.device) -> Iterator[list[float]]:
    """A list that nvidia-smi fills with percent of time a kernel ran, five times a second; empty without such a GPU."""
    load: list[float] = []
    if device.type != "cuda":
        yield load
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    query += ["-i", str(device.index or 0)]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        yield load
        process.terminate()
        load += [float(line) for line in process.stdout.read().split()]


# Tables and clocks


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


SECTIONS = {
    "grid": grid,
    "raw": raw,
    "stacks": stacks,
    "in-plane": in_plane,
    "published": published,
    "training": training,
}

if __name__ == "__main__":
    sys.exit(main())
