"""Memory that is freed stays with the process, unless the user has said otherwise."""

import os
import resource
import sys
from statistics import median

import pytest
import torch
from processes import Child

from nni_sparsevd.training import keep_freed_memory

BLOCK = 64 * 2**20
"""Bytes of a block; glibc maps blocks of this size one by one, whatever it has seen before."""
STEPS = 15
FAULTS_OF_NEW_BLOCKS = 2 * BLOCK // (2 * 2**20)
"""Fewest page faults of a step that maps two blocks, where the kernel hands out pages of 2 MiB; pages of 4 KiB make 512
times as many."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is the C library of Linux that is told")


def _print_faults(is_told: bool) -> None:
    """In a process of its own: print the median of the steps' page faults; a heap may still grow by a block in some."""
    if is_told:
        assert keep_freed_memory()
    print(median(_count_faults() for _ in range(STEPS)))


def _count_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BLOCK // 4).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what this machine says about the C library's memory out of the environment."""
    for name in list(os.environ):
        if name.startswith(("MALLOC_", "GLIBC_")):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("untouched")
def test_later_steps_use_the_pages_of_earlier_ones() -> None:
    """Without the call each step asks the kernel for its pages again."""
    told, not_told = (Child(_print_faults, is_told).wait() for is_told in (True, False))
    assert told[0] == not_told[0] == 0, told[1] + not_told[1]
    assert int(not_told[1]) >= FAULTS_OF_NEW_BLOCKS
    assert int(told[1]) < int(not_told[1]) / 5


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=65536")]
)
def test_what_the_environment_says_stands(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Whoever has set up the C library knows why."""
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
