"""The decorator of all compiled loops: they start no threads, and their machine code is cached where possible.

numba caches it next to the source, in the user's cache folder, or in NUMBA_CACHE_DIR. If none of these is writable, as
in a container with a read-only root and no home, each process compiles again; set NUMBA_CACHE_DIR to a writable folder
to save those seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def compiled(*, fastmath: bool | set[str] = False) -> Callable[[_Loop], _Loop]:
    """A decorator that compiles a loop with numba; the compiled loop releases the interpreter lock.

    Args:
        fastmath: numba's option: which floating-point rules may be relaxed.
    """

    def decorate(loop: _Loop) -> _Loop:
        try:
            out: _Loop = njit(cache=True, nogil=True, fastmath=fastmath)(loop)
        except RuntimeError as cause:  # numba raises it if no cache folder is writable
            if "cannot cache" not in str(cause):
                raise

            out = njit(nogil=True, fastmath=fastmath)(loop)

        return out

    return decorate
