"""Operations on sparse matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.numerics.threads import over_rows
from recotransfer.numerics.vectors import Float, read_only

_SORTING = 8  # simple operations to rank one cell, for the estimate of the work


def columns_to_csr(rows: NDArray[np.int32], values: Float, *, height: int) -> sparse.csr_array:
    """(height, n) CSR from up to m entries per column: rows (n, m), padded with -1, and values (n, m)."""
    used = (rows >= 0) & (values != 0)
    indptr = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    out = sparse.csc_array((values[used], rows[used], indptr), shape=(height, len(rows)))
    return out.tocsr()


def keep_largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """The matrix with only the `count` entries of largest magnitude in each column; ties go to the lower row."""
    from recotransfer.numerics._item_loops import largest_of_columns

    columns = sparse.csc_array(matrix)
    columns.sort_indices()
    lines = by_line(columns)
    rows, values = empty_columns(matrix.shape[1], count)
    over_rows(
        lambda first, last: largest_of_columns(*lines, first, last, rows, values), len(rows), _SORTING * columns.nnz
    )

    return columns_to_csr(rows, values, height=matrix.shape[0])


def empty_columns(n: int, most: int) -> tuple[NDArray[np.int32], Float]:
    """Rows (n, most) filled with -1 and values filled with 0, for a loop to fill and `columns_to_csr` to read."""
    return np.full((n, most), -1, np.int32), np.zeros((n, most), np.float32)


def product_top_k(
    history: sparse.csr_array,
    weights: sparse.csr_array | Float,
    k: int,
    exclude: sparse.csr_array | None,
    mask: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], Float]:
    """Positions and scores (users, k) of the k largest positive cells in each row of `history @ weights`.

    Rows with fewer are padded with -1 and -inf. The product itself is never stored. Ties go to the lower position.
    """
    from recotransfer.numerics import _item_loops

    # Empty arrays stand for None, because numba compiles a loop anew for every combination of types.
    lines, excluded = by_line(history), by_line(sparse.csr_array((0, 0)) if exclude is None else exclude)[:2]
    allowed = np.empty(0, np.bool_) if mask is None else mask
    users, n = history.shape
    out = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)

    if isinstance(weights, np.ndarray):
        dense = read_only(np.ascontiguousarray(weights, np.float32))
        over_rows(
            lambda first, last: _item_loops.dense_product_top_k(lines, dense, excluded, allowed, first, last, *out),
            users,
            (history.nnz + users) * n,
        )
    else:
        rows = by_line(weights)
        over_rows(
            lambda first, last: _item_loops.product_top_k(lines, rows, excluded, allowed, first, last, *out),
            users,
            history.nnz * weights.nnz / max(n, 1),
        )

    return out


def smoothed(
    behaviour: sparse.csr_array,
    stand_in: sparse.csr_array,
    own_column: Float,
    lookalikes: sparse.csr_array,
    own: Float,
    content: sparse.csr_array,
    keep: int,
) -> sparse.csr_array:
    """(n, m) columns of S B S' + content for m items, each cut to its `keep` largest entries; see `HybridItems`.

    Args:
        behaviour: (n, n), B: item-item weights from behaviour.
        stand_in: (n, m) similar items that stand in for each of the m items.
        own_column: (m,) share that each of the m items takes from its own behaviour. Where it is above 0, column j of
            `behaviour` must belong to the same item.
        lookalikes: (n, n), W: similar items that stand in for each of the n items.
        own: (n,) share that each of the n items takes from its own behaviour.
        content: (n, m) weights from content.
        keep: entries kept in each column.
    """
    from recotransfer.numerics._item_loops import smoothed_columns

    matrices = (
        by_line(sparse.csc_array(behaviour)),
        by_line(sparse.csc_array(stand_in)),
        by_line(lookalikes),
        by_line(sparse.csc_array(content)),
    )
    n = max(len(own), 1)
    rows, values = empty_columns(len(own_column), keep)

    def task(first: int, last: int) -> None:
        smoothed_columns(*matrices, own_column, own, first, last, rows, values)

    over_rows(task, len(rows), stand_in.nnz * behaviour.nnz / n + len(rows) * keep * lookalikes.nnz / n + content.nnz)

    return columns_to_csr(rows, values, height=len(own))


def by_line(matrix: sparse.csr_array | sparse.csc_array) -> tuple[NDArray[np.int32], NDArray[np.int64], Float]:
    """(indices, indptr, values) of a compressed matrix, as read-only int32, int64 and float32.

    One set of types means that numba compiles each loop once; read-only, because memory-mapped arrays are.
    """
    out = []
    for array, kind in ((matrix.indices, np.int32), (matrix.indptr, np.int64), (matrix.data, np.float32)):
        out.append(read_only(array.astype(kind, copy=False)))

    return out[0], out[1], out[2]


def cell_products(matrix: sparse.csr_array, vectors: Float) -> Float:
    """(cells,) inner product of the vectors (n, dim) of row and column of each cell of the matrix (n, n)."""
    from recotransfer.numerics._item_loops import cell_products as loop

    lines, out = by_line(matrix), np.empty(matrix.nnz, np.float32)

    def task(first: int, last: int) -> None:
        loop(lines, vectors, first, last, out)

    over_rows(task, matrix.shape[0], matrix.nnz * vectors.shape[1])
    return out


def scaled(
    matrix: sparse.csr_array, rows: NDArray[np.number | np.bool_] | None, columns: NDArray[np.number | np.bool_] | None
) -> sparse.csr_array:
    """The matrix with row i multiplied by rows[i] and column j by columns[j]; None leaves that side unscaled."""
    out = matrix
    if rows is not None:
        out = sparse.diags_array(np.asarray(rows, np.float32)).tocsr() @ out

    if columns is not None:
        out = out @ sparse.diags_array(np.asarray(columns, np.float32)).tocsr()

    return sparse.csr_array(out)


def without_diagonal(matrix: Float | sparse.csr_array) -> Float | sparse.csr_array:
    """The square matrix, dense or sparse, with its diagonal set to zero in place: no item may recommend itself."""
    if isinstance(matrix, np.ndarray):
        np.fill_diagonal(matrix, 0)
        return matrix

    matrix.setdiag(0)
    matrix.eliminate_zeros()

    return matrix
