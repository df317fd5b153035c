"""Features of each user's candidates for a second-stage ranker, and the scores of its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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
    """Fill columns of `out` (users, m, features) with item-item weights summed over each user's items, per candidate.

    Args:
        out: output.
        users: start of each user's items (users + 1,), the items (n,), and their weights in three sums (n, 3).
        matrix: an item-item matrix from `sparse.by_line`.
        candidates: (users, m) positions, padded with -1.
        columns: (4,) columns of `out` for the logarithms of the three sums and of 1 + the number of positive cells; -1
            leaves one out.
    """
    from recotransfer.numerics._item_loops import candidate_sums

    start, item, weight = users
    # Each user's candidates are marked once, and the matrix rows of the user's items are read once.
    work = candidates.size + len(item) * (len(matrix[0]) / max(len(matrix[1]) - 1, 1))

    def task(first: int, last: int) -> None:
        candidate_sums(start, item, weight, matrix, candidates, columns, first, last, out)

    over_rows(task, len(candidates), work)


def sums_by_age(aged: Sequence[sparse.csr_array], matrix: Compressed, candidates: NDArray[np.int64]) -> Float:
    """(users, m, ages) item-item weights summed over each user's items of each age, for each candidate.

    Args:
        aged: (users, items) histories by bucket of age.
        matrix: an item-item matrix from `sparse.by_line`; row = item of the history, column = candidate.
        candidates: (users, m) positions without repeats in a row, padded with -1.
    """
    from recotransfer.numerics._item_loops import candidate_sums_by_age

    joined = sparse.csr_array(sparse.hstack(aged, format="csr"))
    age, item = np.divmod(joined.indices.astype(np.int64), aged[0].shape[1])
    start, weight = joined.indptr.astype(np.int64), joined.data.astype(np.float32)
    out = np.zeros((*candidates.shape, len(aged)), np.float32)

    def task(first: int, last: int) -> None:
        candidate_sums_by_age(start, item, age, weight, matrix, candidates, first, last, out)

    over_rows(task, len(candidates), candidates.size + len(item) * (len(matrix[0]) / max(len(matrix[1]) - 1, 1)))
    return out


def add_candidate_cosines(
    out: Float, queries: Float, vectors: Float, candidates: NDArray[np.int64], column: int
) -> None:
    """Fill a column of `out` (users, m, features) with the inner product of query and candidate; -1 is skipped."""
    from recotransfer.numerics._item_loops import candidate_cosines

    def task(first: int, last: int) -> None:
        candidate_cosines(queries, vectors, candidates, column, first, last, out)

    over_rows(task, len(candidates), candidates.size * queries.shape[1])


def network_scores(features: Float, inner: Float, bias: Float, outer: Float) -> Float:
    """(users, m) scores relu(features @ inner + bias) @ outer of features (users, m, d), each candidate on its own."""
    from recotransfer.numerics import _item_loops

    out = np.empty(features.shape[:2], np.float32)

    def task(first: int, last: int) -> None:
        _item_loops.network_scores(features, inner, bias, outer, first, last, out)

    over_rows(task, len(features), features.size * len(bias))
    return out
