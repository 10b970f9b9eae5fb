"""What several test files need: networks whose tests mean something, and the data where it is."""

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

from nni_sparsevd.testing import randomize_ as randomize_

torch.set_num_threads(1)


SLOWEST = ("conformance", "resume", "ranks", "layers_contract", "sweep", "docs", "shrinking_run", "reproduce", "laws")
"""Files that take most of the time, the slowest first: what is left at the end should be short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first, so that no worker has one of them to itself while the others are done."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return SLOWEST.index(name) if name in SLOWEST else len(SLOWEST)

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="module")
def memory_goes_back() -> Iterator[None]:
    """Give the system what a file's networks took: else a worker keeps the most that any file needed."""
    yield
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has another way, or none
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def thin_(model: nn.Module) -> nn.Module:
    """Random weights, and every third channel of every batch norm dead; in evaluation mode."""
    randomize_(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::3] = module.bias[::3] = 0
    return model.eval()
