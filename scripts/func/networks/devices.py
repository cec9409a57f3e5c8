"""The device and the precision that a network runs in."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch

from func.errors import BabyAIError

# Parameters of glibc's allocator (mallopt(3)): as they are by default once large blocks have been freed.
_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -4, -3, -1
_BY_DEFAULT = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}


def choose_device(device: str, precision: str) -> tuple[torch.device, str]:
    """The device and precision that ``auto`` stands for here.

    Raises:
        BabyAIError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BabyAIError(f"The device '{device}' is not available here; use --device cpu or auto.") from None
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(chosen) else "float32"
    return chosen, precision


@contextlib.contextmanager
def computing(device: str | torch.device, precision: str = "float32") -> Iterator[None]:
    """Compute in "float32" (IEEE, on GPUs too), in "bfloat16", or in whichever "auto" finds right for the device."""
    device = torch.device(device)
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif precision == "float32":
        # cuDNN would otherwise convolve in TF32, with 10 bits of mantissa.
        operations = torch.backends.cudnn.conv, torch.backends.cuda.matmul
        before = [operation.fp32_precision for operation in operations]
        for operation in operations:
            operation.fp32_precision = "ieee"
        try:
            yield
        finally:
            for operation, precision in zip(operations, before, strict=True):
                operation.fp32_precision = precision
    else:
        raise ValueError(f"precision is 'auto', 'float32' or 'bfloat16', not {precision!r}")


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Memory that is freed in the block serves what comes next in it, and goes back to the system at its end.

    Left to itself, glibc gives back each large tensor that is freed, and the system clears every page of the next: a
    tenth of the network's time on a processor. With another C library the block is left as it is.
    """
    try:
        library = ctypes.CDLL(None)
        set_parameter, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    for parameter, value in _KEEPING.items():
        set_parameter(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _BY_DEFAULT.items():
            set_parameter(parameter, value)
        trim(0)


def has_fast_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether the device computes in bfloat16 natively; where it only emulates it, bfloat16 is slower than float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else ()
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextlib.contextmanager
def report_out_of_memory(name: str) -> Iterator[None]:
    """Turn the several ways in which memory runs out into one sentence about the case called ``name``.

    Raises:
        BabyAIError: the block needed more memory than there is.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "Memory" not in type(error).__name__ and "can't allocate memory" not in str(error):
            raise
        raise BabyAIError(f"{name} needs more memory than there is; use --device cpu, or a larger machine.") from error
