"""Memory of the network's maps: kept while they are computed, given back afterwards."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from func.networks.devices import keeping_memory


def megabytes_after_a_map() -> float:
    """Resident memory once a map of 256 MB is made and gone."""
    torch.ones(2**26)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_is_kept_in_the_block_and_no_longer():
    before = megabytes_after_a_map()
    with keeping_memory():
        assert megabytes_after_a_map() > before + 200
    assert megabytes_after_a_map() < before + 50
