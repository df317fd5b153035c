"""The decorator of all compiled loops: they start no threads, and their machine code is kept where there is room.

numba keeps it beside the source, in the user's cache folder, or in NUMBA_CACHE_DIR. Where none of them can be written,
as in a container with a read-only root and without a home, each process compiles anew; set NUMBA_CACHE_DIR to a folder
that can be written to, to save it those seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def compiled(*, fastmath: bool | set[str] = False) -> Callable[[_Loop], _Loop]:
    """A decorator that compiles a loop, which then releases the interpreter lock.

    Args:
        fastmath: as numba's; which rules of floating point may be broken.
    """

    def decorate(loop: _Loop) -> _Loop:
        try:
            out: _Loop = njit(cache=True, nogil=True, fastmath=fastmath)(loop)
        except RuntimeError as cause:
            if "cannot cache" not in str(cause):
                raise

            out = njit(nogil=True, fastmath=fastmath)(loop)

        return out

    return decorate
