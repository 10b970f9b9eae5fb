"""Memory that a training step has freed stays with the process, for the next step to use."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
"""Parameters of glibc's `mallopt`, as malloc.h numbers them."""


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, instead of giving it back to the system; it does so for the whole process.

    glibc asks the kernel for every large block anew, and gives it back when it is freed. PyTorch's tensors lie in such
    blocks, so that on a CPU each step begins with pages that the kernel has to find and clear; processes side by side
    slow each other down by that. Kept blocks are used again. In return the process holds its peak of memory until it
    ends.

    Nothing is done where the environment already says what is wanted (`MALLOC_...`, `GLIBC_TUNABLES`), or where the C
    library is another one.

    Returns:
        Whether the C library was told.
    """
    if sys.platform != "linux" or _is_set_by_user():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    no_block_of_its_own = mallopt(M_MMAP_MAX, 0)
    heap_never_shrinks = mallopt(M_TRIM_THRESHOLD, -1)  # read as a size, -1 is the largest there is
    return bool(no_block_of_its_own and heap_never_shrinks)


def _is_set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in os.environ)
