"""What the C library does with memory that a training step frees."""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Names of glibc's malloc.h, see mallopt(3)."""
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocation. Returns whether the C library can.

    A training step takes and frees the same large tensors again and again. By itself glibc gives many of them back to
    the kernel, which hands them out anew page by page, zeroed: up to a third of a step on a CPU. The process then never
    shrinks, which one that only trains can bear.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library: another system
        return False
    return all([mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, LARGEST), mallopt(TOP_PAD, 64 * 2**20)])
