"""Work spread over threads, where it is worth it; and children that a fork leaves without threads.

The compiled loops release the interpreter lock and start no threads, so that plain threads suffice: no layer of numba's
to choose, nothing that breaks when several threads ask at once or when the process forks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from recotransfer.errors import require

WORTH_THREADS: Final = 1 << 22  # simple operations, some milliseconds: below them a pool costs more than it saves
_LIMITS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
_OPENMP = {"torch", "faiss", "implicit", "sklearn"}
_T = TypeVar("_T")


def thread_count() -> int:
    """Threads to work with: the processors this process may use, or fewer by NUMBA_NUM_THREADS or OMP_NUM_THREADS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [int(value) for name in _LIMITS if (value := os.environ.get(name, "")).isdigit()]
    return max(1, min([count, *limits]))


def slices(total: int, size: int) -> list[slice]:
    """0..total in runs of `size`, the last one shorter."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def in_threads(task: Callable[[slice], _T], parts: list[slice], work: float) -> list[_T]:
    """Results of `task` for each part, in order.

    Args:
        task: writes into a place of its own, so that results do not depend on the number of threads.
        parts: slices of the work, one task each.
        work: simple operations in all; below `WORTH_THREADS` the caller's thread does them.
    """
    threads = min(thread_count(), len(parts))
    if threads < 2 or work < WORTH_THREADS:
        return [task(part) for part in parts]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, parts))


def over_rows(task: Callable[[int, int], None], rows: int, work: float) -> None:
    """Call `task(first, last)` for runs of rows that together are all of them; `work` as in `in_threads`.

    There are few runs, for loops that allocate as much for one row as for many.
    """
    pieces = 4 * thread_count() if work >= WORTH_THREADS else 1
    in_threads(lambda part: task(part.start, part.stop), slices(rows, max(1, -(-rows // pieces))), work)


def _do_without_openmp() -> None:
    """Keep a forked child from waiting for OpenMP's threads, which are not forked: it would hang for ever."""
    if not _OPENMP & set(sys.modules):
        return

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

    with contextlib.suppress(ImportError):
        require("threadpoolctl").threadpool_limits(1, "openmp")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_do_without_openmp)
