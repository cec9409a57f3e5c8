"""Fixtures for every test: small phantom heads, and real infants where the machine has them."""

import os
import signal
from pathlib import Path

import pytest

from func.phantom import Phantom, infant_brain

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Heed Ctrl-C, which jobs in the background of a shell ignore, and with them the scripts that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small_head() -> Phantom:
    """A miniature newborn's brain on 48 x 48 x 48 voxels of 1 mm."""
    return infant_brain((48, 48, 48), age_months=0, seed=1)


@pytest.fixture(scope="session")
def head() -> Phantom:
    """A six-month-old's brain at its full size, on the atlas grid."""
    return infant_brain(age_months=6, seed=0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real infants; the test is skipped where it is absent."""
    folder = Path(os.environ.get("BABYAI_TEST_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set BABYAI_TEST_DATA to its folder)")
    return folder


@pytest.fixture(scope="session")
def gpu() -> str:
    """A CUDA device; the test is skipped where there is none. BABYAI_TEST_GPU=cpu tries such tests without one."""
    import torch

    device = os.environ.get("BABYAI_TEST_GPU", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return device
