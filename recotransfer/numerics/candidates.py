"""What a second stage knows of each user's candidates: sums over the user's items, cosines, and a network's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recotransfer.numerics.threads import over_rows
from recotransfer.numerics.vectors import Float

if TYPE_CHECKING:
    from recotransfer.numerics._item_loops import Compressed


def add_candidate_sums(
    out: Float,
    users: tuple[NDArray[np.int64], NDArray[np.int64], Float],
    matrix: Compressed,
    candidates: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> None:
    """Fill columns of `out` (users, m, features) with what each user's items say of each candidate.

    Args:
        out: written.
        users: where each user's items begin (users + 1,), the items (n,), and what they count in three sums (n, 3).
        matrix: `sparse.by_line` of an item-item matrix.
        candidates: (users, m) positions, -1 past the end.
        columns: (4,) where the logarithms of the three sums and of 1 + the number of positive cells go, -1 for nowhere.
    """
    from recotransfer.numerics._item_loops import candidate_sums

    start, item, weight = users
    work = candidates.size + len(item) * (len(matrix[0]) / max(len(matrix[1]) - 1, 1))

    def task(first: int, last: int) -> None:
        candidate_sums(start, item, weight, matrix, candidates, columns, first, last, out)

    over_rows(task, len(candidates), work)


def add_candidate_cosines(
    out: Float, queries: Float, vectors: Float, candidates: NDArray[np.int64], column: int
) -> None:
    """Fill a column of `out` (users, m, features) with query . vector of each candidate; -1 is none."""
    from recotransfer.numerics._item_loops import candidate_cosines

    def task(first: int, last: int) -> None:
        candidate_cosines(queries, vectors, candidates, column, first, last, out)

    over_rows(task, len(candidates), candidates.size * queries.shape[1])


def network_scores(features: Float, inner: Float, bias: Float, outer: Float) -> Float:
    """(users, m) relu(features @ inner + bias) @ outer of features (users, m, d), whatever stands beside them."""
    from recotransfer.numerics import _item_loops

    out = np.empty(features.shape[:2], np.float32)

    def task(first: int, last: int) -> None:
        _item_loops.network_scores(features, inner, bias, outer, first, last, out)

    over_rows(task, len(features), features.size * len(bias))
    return out
