"""Memory that a process frees, kept for the next call.

The features of one image are tens of megabytes. glibc gives blocks of this size back to the system
as soon as they are free, which takes the pages away and, for the next image, clears as many anew:
tens of thousands of 4 KiB, a third of the time of a plain `detr_resnet50` on two cores of an AMD
EPYC (Zen 5). An engine whose operations are compiled for the CPU keeps its own, see
`output_memory`.
"""

import ctypes
import os

# How much may stay with the process.
_BYTES = 1 << 30
# Options of glibc's mallopt: the size from which a block is the system's own, and how much may be
# free at the end of the heap. In this order: glibc adapts the first until either is set, and old
# ones refuse to set it as high.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
# Whoever set one of these has decided already.
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Tells glibc to keep up to 1 GiB of freed memory with the process, for whatever needs it next.

    This is for whoever owns the process, as the commands `eval`, `predict` and `verify` do on a
    CPU: it holds for everything in it, and cannot be taken back. Where another C library allocates,
    or the environment sets malloc's thresholds, nothing changes.

    Returns:
        Whether memory is kept now.
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(option, _BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
