"""Comparisons of computed numbers whose outcome does not depend on the last bits.

Processors, thread counts and library builds add up in different orders, so two runs of the same computation differ by
rounding. A choice between two such numbers needs a tolerance, or it would differ too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

DOUBLE = 1e-9  # relative error that sums in double precision stay far below
SINGLE = 1e-6  # relative error of sums in single precision


def exceeds(value: float, other: float, tolerance: float = DOUBLE) -> bool:
    """Whether `value` is greater than `other` by more than `tolerance` of the larger magnitude; NaN never is.

    >>> exceeds(0.1 + 0.2, 0.3), exceeds(0.31, 0.3)
    (False, True)
    """
    if not (np.isfinite(value) and np.isfinite(other)):
        return bool(value > other)

    return bool(value - other > tolerance * max(abs(value), abs(other)))


def first_best(values: ArrayLike, tolerance: float = DOUBLE) -> int:
    """Position of the first value that no other exceeds by more than `tolerance`; NaN counts as the worst.

    >>> first_best([0.2, 0.3, 0.1 + 0.2])
    1
    """
    known = np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    best = float(known.max())
    return next(at for at, value in enumerate(known.tolist()) if not exceeds(best, value, tolerance))
