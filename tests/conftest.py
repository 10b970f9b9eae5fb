"""What several test files need: networks whose tests mean something, and the data where it is."""

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import pytest
import torch
from torch import nn

from nni_sparsevd.testing import randomize_ as randomize_

torch.set_num_threads(1)
os.fsync = lambda file: None  # thousands of files are written, and no test cuts the power


SLOWEST = (
    "ranks", "budget_run", "sweep", "resume", "docs", "int8", "conformance", "layers_contract", "rivals",
    "speedup_repairs", "reproduce", "training", "shrinking_run", "examples", "regularizing_pruner", "bench", "export",
    "shrink", "laws", "table_of_pruners", "shrink_learning", "interrupt", "bad_inputs", "imports",
)  # fmt: skip
"""Files that take most of the time, the slowest first: what is left at the end should be short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first, so that no worker has one of them to itself while the others are done."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return SLOWEST.index(name) if name in SLOWEST else len(SLOWEST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let the collector of cyclic garbage pass over what the imports have left.

    These are millions of objects that stay to the end.  A full collection looks at each of them, which takes longer
    than most tests; afterwards it looks only at what the tests make.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


PROCESS = psutil.Process()
ROOM = 250 * 2**20
"""Bytes by which a worker may grow before what its tests have left behind is collected."""


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return PROCESS.memory_info().rss


def give_memory_back() -> None:
    """Free networks that nobody uses, and give their memory back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has another way, or none
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def held_by_earlier_files() -> Iterator[list[int]]:
    """The memory that was held when the file began, or when memory was last given back: one number, to be changed."""
    yield [resident_bytes()]
    give_memory_back()


@pytest.fixture(autouse=True)
def memory_goes_back(held_by_earlier_files: list[int]) -> Iterator[None]:
    """Collect where a test has left much behind.

    A traced network and its graph refer to each other, so they stay until Python looks for such circles.  It does so
    after so many new objects, however large these are.
    """
    yield
    if resident_bytes() > held_by_earlier_files[0] + ROOM:
        give_memory_back()
        held_by_earlier_files[0] = resident_bytes()


def thin_(model: nn.Module) -> nn.Module:
    """Random weights, and every third channel of every batch norm dead; in evaluation mode."""
    randomize_(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::3] = module.bias[::3] = 0
    return model.eval()
