"""Closed-form ridge solves: EASE, sparse local ridge, ALS half-steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from recotransfer.errors import InputError
from recotransfer.numerics.sparse import by_line, columns_to_csr, empty_columns
from recotransfer.numerics.threads import in_threads, one_blas_thread, over_rows, slices
from recotransfer.numerics.vectors import Float

_BLOCK = 1024  # rows multiplied with a dense matrix at a time
_AT_ONCE = 8  # multiplications that BLAS does in the time of one simple operation


def ease(gram: Float, reg: float) -> Float:
    """(n, n) weights of EASE: argmin |X - XB|^2 + reg |B|^2 with zero diagonal, from gram = X'X.

    Steck, "Embarrassingly shallow autoencoders for sparse data" (2019).
    """
    # Cholesky factorisation and inversion overwrite the system, which saves memory and time over a general inverse.
    system = _regularised(gram, reg)
    potrf, potri = linalg.get_lapack_funcs(("potrf", "potri"), (system,))
    factor, fault = potrf(system, lower=True, overwrite_a=True, clean=True)
    if fault:
        raise _not_definite(reg)

    lower, _ = potri(factor, lower=True, overwrite_c=True)
    inverse = np.tril(lower) + np.tril(lower, -1).T

    # The closed form of the constrained problem: minus the inverse, each column divided by its diagonal entry.
    out = inverse / -np.diag(inverse)
    np.fill_diagonal(out, 0)

    return np.asarray(out, np.float32)


def ease_updated(weights: Float, before: sparse.csr_array, after: sparse.csr_array, reg: float) -> Float:
    """(n, n) weights of EASE on the histories `after` (users, n), updated from `weights` (m, m) fitted on `before`.

    `weights` covers the first m items; the others have no events in `before` (users, n). The inverse of X'X + reg I is
    recovered from the weights: they are the inverse with each column divided by minus its diagonal entry, which follows
    because the inverse times the system has ones on its diagonal. The matrix inversion lemma then updates the inverse
    by two rows for each changed user, at a cost of n^2 per row instead of n^3 for a new inversion.
    """
    n, m = after.shape[1], len(weights)
    old = sparse.csr_array(before[:, :m])
    power, explained = old.power(2).sum(axis=0), np.zeros(m)  # of each item: diagonals of X'X and of X'X @ weights

    for first in range(0, old.shape[0], _BLOCK):
        block = old[first : first + _BLOCK]
        explained += np.asarray(block.multiply(block @ weights).sum(axis=0))

    # The inverse of the old system; items without events have only reg on their diagonal.
    inverse = np.zeros((n, n), _precision(n))
    inverse[:m, :m] = weights
    inverse[:m, :m] /= explained - power - reg
    inverse[np.arange(n), np.arange(n)] = 1 / reg
    inverse[np.arange(m), np.arange(m)] = 1 / (power + reg - explained)

    # The new histories of the changed users are added, and their old ones subtracted.
    rows = np.flatnonzero(np.diff(_nonzero(after - before).indptr))
    changed = sparse.csr_array(sparse.vstack([after[rows], before[rows]]), dtype=inverse.dtype)
    sign = np.repeat([1.0, -1.0], len(rows))[np.diff(changed.indptr) > 0]
    changed = changed[np.diff(changed.indptr) > 0]
    projected = np.asarray(changed @ inverse)
    system = np.asarray(changed @ projected.T, np.float64) + np.diag(sign)
    inverse -= projected.T @ np.linalg.solve(system, projected).astype(inverse.dtype)

    out = np.divide(inverse, -np.diag(inverse), out=inverse)
    np.fill_diagonal(out, 0)

    return np.asarray(out, np.float32)


def _nonzero(matrix: sparse.csr_array) -> sparse.csr_array:
    """The matrix without stored zeros."""
    out = sparse.csr_array(matrix)
    out.eliminate_zeros()
    return out


def ridge(gram: Float, target: Float, reg: float) -> Float:
    """(n, m) weights W with (gram + reg I) W = target."""
    system = _regularised(gram, reg)
    try:
        factor = linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:
        raise _not_definite(reg) from None

    return np.asarray(linalg.cho_solve(factor, target.astype(system.dtype), check_finite=False), np.float32)


def _regularised(gram: Float, reg: float) -> NDArray[Any]:
    """A Fortran-ordered copy of gram + reg I, in float64 for small matrices."""
    _check_reg(reg)
    system: NDArray[Any] = np.array(gram, dtype=_precision(len(gram)), order="F")
    system[np.diag_indices_from(system)] += reg
    return system


def _precision(n: int) -> type[np.floating[Any]]:
    """float64 for small systems; float32 halves the memory and time of large ones."""
    return np.float64 if n <= 4096 else np.float32


def _check_reg(reg: float) -> None:
    if not reg > 0:
        raise InputError(f"reg must be positive, got {reg}")


def _not_definite(reg: float) -> InputError:
    return InputError(f"the item-item matrix is not positive definite at reg {reg}; use a larger reg")


def unobserved_metric(factors: Float, reg: float, unobserved: float) -> Float:
    """(dim, dim) inverse of unobserved * F'F + reg I, the part of `half_step` that all users share."""
    _check_reg(reg)
    gram = unobserved * (factors.T @ factors).astype(np.float64) + reg * np.eye(factors.shape[1])
    return np.asarray(np.linalg.inv(gram), np.float32)


def half_step(history: sparse.csr_array, factors: Float, metric: Float) -> sparse.csr_array:
    """(users, n) weights W, sparse like `history`, such that the user vectors are W @ factors @ metric.

    Each user's vector x minimises unobserved * |F x|^2 + sum over the user's items i of s_i (1 - f_i.x)^2 + reg |x|^2:
    the user half-step of implicit ALS (Hu, Koren and Volinsky, 2008) with item factors fixed. By the matrix inversion
    lemma it is one small system per user with one unknown per item, so that every weight belongs to one item.
    `metric` comes from `unobserved_metric`.
    """
    out = sparse.csr_array(history, dtype=np.float32, copy=True)
    sizes, dim = np.diff(history.indptr), factors.shape[1]
    used, place = np.unique(history.indices, return_inverse=True)
    mapped = np.empty((len(used), dim), np.float32)

    # Users with equally long histories are solved together, as many at a time as fit in some 30 MB.
    groups = []
    for size in np.unique(sizes[sizes > 0])[::-1]:
        rows = np.flatnonzero(sizes == size)
        groups += [rows[part] for part in slices(len(rows), max(1, int(4e6 // (size * (size + dim)))))]

    def project(part: slice) -> None:
        np.matmul(factors[used[part]], metric, out=mapped[part])

    def solve(part: slice) -> None:
        for rows in groups[part]:
            size = sizes[rows[0]]
            at = history.indptr[rows, None] + np.arange(size)
            system = mapped[place[at]] @ factors[history.indices[at]].transpose(0, 2, 1)
            system = system.astype(np.float64)
            system[:, np.arange(size), np.arange(size)] += 1 / history.data[at].astype(np.float64)
            out.data[at] = np.linalg.solve(system, np.ones((len(at), size, 1)))[..., 0]

    # Multiplications, of which BLAS does several at once: the projections, the systems and their solutions.
    wide = sizes.astype(np.float64)
    work = (len(used) * dim**2 + (wide**2 * dim + wide**3).sum()) / _AT_ONCE
    with one_blas_thread():
        in_threads(project, slices(len(used), _BLOCK), work)
        in_threads(solve, slices(len(groups), 1), work)

    return out


def local_ridge(
    gram: sparse.csr_array, target: sparse.csr_array, reg: float, neighbours: int, exclude_self: bool = True
) -> sparse.csr_array:
    """(n, n) sparse weights whose column j solves the ridge system on the `neighbours` most predictive rows for j.

    Rows are selected by how much each alone lowers the squared error, target_ij^2 / (gram_ii + reg). With exclude_self
    the diagonal stays zero. With gram = target = X'X and all rows this is EASE; with few rows it is SLIM with feature
    selection (Ning and Karypis, 2011) in closed form: n systems of `neighbours` unknowns instead of one system of n
    unknowns, so that memory grows linearly with n.
    """
    from recotransfer.numerics._item_loops import local_ridge_columns

    _check_reg(reg)
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")

    gram, columns = sparse.csr_array(gram), sparse.csc_array(target)
    n = gram.shape[0]
    systems, targets, diagonal = by_line(gram), by_line(columns), gram.diagonal().astype(np.float32)
    rows, values = empty_columns(n, neighbours)

    def task(first: int, last: int) -> None:
        # As a float: the loop would be compiled once more for a whole number.
        local_ridge_columns(systems, targets, diagonal, float(reg), exclude_self, first, last, rows, values)

    # Work per column: a Cholesky factorisation, and a pass over the rows of gram from which the system is read.
    each = min(neighbours, columns.nnz / max(n, 1))
    over_rows(task, n, n * (each**3 / 3 + each * gram.nnz / max(n, 1)))

    return columns_to_csr(rows, values, height=n)
