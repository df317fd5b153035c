"""Work spread over threads where it pays off, and forked processes kept from hanging in OpenMP.

The compiled loops release the interpreter lock, so Python's own threads are enough. numba's threading layers are not
used: they can fail when several threads call them at once, or after a fork.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from recotransfer.errors import require

# Simple operations, a few milliseconds' worth, below which a thread pool costs more than it saves.
WORTH_THREADS: Final = 1 << 22
_LIMITS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
_VARIABLES = (*_LIMITS, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OPENMP = {"torch", "faiss", "implicit", "sklearn"}
_T = TypeVar("_T")


def thread_count() -> int:
    """Number of threads to use: the processors of this process, limited by NUMBA_NUM_THREADS and OMP_NUM_THREADS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [int(value) for name in _LIMITS if (value := os.environ.get(name, "")).isdigit()]
    return max(1, min([count, *limits]))


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Use at most `count` threads within the block, in this package and in the libraries that it calls.

    Libraries that are loaded by then are limited themselves; those loaded later, and processes started in the block,
    read the limit from the environment.
    """
    wanted = {**dict.fromkeys(_VARIABLES, str(count)), "OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            stack.enter_context(require("threadpoolctl").threadpool_limits(count))

        try:
            if torch:
                torch.set_num_threads(count)

            yield
        finally:
            if torch:
                torch.set_num_threads(threads)

            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


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


class _BlasLimit:
    """BLAS limited to one thread from the first `enter` to the last `leave`, in whatever threads they are called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._found: Any = None  # the libraries that were loaded when there were `_modules` modules
        self._modules = 0
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                with contextlib.suppress(ImportError):
                    self._limit = self._libraries().limit(limits=1, user_api="blas")

            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._limit is not None:
                self._limit.restore_original_limits()
                self._limit = None

    def _libraries(self) -> Any:
        """The thread pools loaded by now. Finding them takes milliseconds, so it is done again only after an import."""
        if self._found is None or self._modules != len(sys.modules):
            self._found = require("threadpoolctl").ThreadpoolController()
            self._modules = len(sys.modules)

        return self._found


_blas = _BlasLimit()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread, for many small matrices and for BLAS called in threads of our own.

    On small matrices, threads of BLAS wait for one another far longer than they work. The limit holds for the whole
    process; blocks may overlap in several threads, and the former limit returns after the last one. Nothing is limited
    if threadpoolctl is not installed.
    """
    blas = _blas
    blas.enter()
    try:
        yield
    finally:
        blas.leave()


def _limit_openmp_in_child() -> None:
    """Limit OpenMP to one thread in a forked child: its other threads are not forked, and waiting for them hangs."""
    global _blas
    _blas = _BlasLimit()  # another thread of the parent may have held the lock
    if not _OPENMP & set(sys.modules):
        return

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)

    with contextlib.suppress(ImportError):
        require("threadpoolctl").threadpool_limits(1, "openmp")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_limit_openmp_in_child)
