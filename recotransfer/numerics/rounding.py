"""Comparisons of computed numbers that do not depend on rounding errors.

Processors, thread counts and library builds sum in different orders, so the same computation gives slightly different
numbers from one machine to the next. Comparing them with a tolerance makes the same choice everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

DOUBLE = 1e-9  # relative tolerance, well above the error of sums in double precision
SINGLE = 1e-6  # relative tolerance for sums in single precision


def exceeds(value: float, other: float, tolerance: float = DOUBLE) -> bool:
    """Whether `value` exceeds `other` by more than `tolerance` times the larger magnitude; False if either is NaN.

    >>> exceeds(0.1 + 0.2, 0.3), exceeds(0.31, 0.3)
    (False, True)
    """
    if not (np.isfinite(value) and np.isfinite(other)):
        return bool(value > other)

    return bool(value - other > tolerance * max(abs(value), abs(other)))


def first_best(values: ArrayLike, tolerance: float = DOUBLE) -> int:
    """Position of the first value that equals the maximum within `tolerance`; NaN counts as the smallest value.

    >>> first_best([0.2, 0.3, 0.1 + 0.2])
    1
    """
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    best = float(finite.max())
    return next(at for at, value in enumerate(finite.tolist()) if not exceeds(best, value, tolerance))
