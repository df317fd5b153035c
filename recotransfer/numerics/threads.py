"""Work spread over threads where it pays off, and forked processes kept from hanging in OpenMP.

The compiled loops release the interpreter lock, so Python's own threads are enough. numba's threading layers are not
used: they can fail when several threads call them at once, or after a fork.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from recotransfer.errors import require

# Simple operations, a few milliseconds' worth, below which a thread pool costs more than it saves.
WORTH_THREADS: Final = 1 << 22
_LIMITS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
_OPENMP = {"torch", "faiss", "implicit", "sklearn"}
_T = TypeVar("_T")


def thread_count() -> int:
    """Number of threads to use: the processors of this process, limited by NUMBA_NUM_THREADS and OMP_NUM_THREADS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [int(value) for name in _LIMITS if (value := os.environ.get(name, "")).isdigit()]
    return max(1, min([count, *limits]))


def slices(total: int, size: int) -> list[slice]:
    """0..total divided into slices of `size`; the last one may be shorter."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def in_threads(task: Callable[[slice], _T], parts: list[slice], work: float) -> list[_T]:
    """Results of `task` for each slice, in order.

    Args:
        task: must write only to the outputs of its slice, so that results do not depend on the number of threads.
        parts: slices of the work, one call each.
        work: number of simple operations in all; below `WORTH_THREADS` everything runs in the calling thread.
    """
    threads = min(thread_count(), len(parts))
    if threads < 2 or work < WORTH_THREADS:
        return [task(part) for part in parts]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, parts))


def over_rows(task: Callable[[int, int], None], rows: int, work: float) -> None:
    """Call `task(first, last)` for consecutive ranges that cover all rows; `work` as in `in_threads`.

    There are only a few ranges, because the loops allocate their work arrays once per call.
    """
    pieces = 4 * thread_count() if work >= WORTH_THREADS else 1
    in_threads(lambda part: task(part.start, part.stop), slices(rows, max(1, -(-rows // pieces))), work)


def _limit_openmp_in_child() -> None:
    """Limit OpenMP to one thread in a forked child: its other threads are not forked, and waiting for them hangs."""
    if not _OPENMP & set(sys.modules):
        return

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

    with contextlib.suppress(ImportError):
        require("threadpoolctl").threadpool_limits(1, "openmp")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_limit_openmp_in_child)
