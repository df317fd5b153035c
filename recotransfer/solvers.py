"""Array kernels of the recommenders: histories, ridge systems dense and local, half-steps. No classes with state.

Matrices of item-item weights are written B with `scores = history @ B`: row = the item a user holds, column = the item
it speaks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError

Float = NDArray[np.float32]

_BLOCK = 1024  # users multiplied with a dense matrix at a time


def histories(events: Interactions, decay: float = 1.0) -> sparse.csr_array:
    """(users, items) float32: strength of each pair times `decay` ** age.

    Age counts distinct items from the user's newest (age 0) backwards. Strength is log2(1 + summed weight) of the pair,
    the logarithmic confidence of Hu, Koren and Volinsky (2008): one event of weight 1 counts 1. Pairs whose strength is
    nothing, by a weight of 0 or less or by great age, are not stored.
    """
    item, strength, age, start = sequences(events)
    user = np.repeat(np.arange(len(events.users)), np.diff(start))
    data = strength * (decay**age).astype(np.float32)
    out = sparse.coo_array((data, (user, item)), shape=(len(events.users), len(events.items))).tocsr()
    out.eliminate_zeros()
    return out


def sequences(events: Interactions) -> tuple[NDArray[np.int64], Float, NDArray[np.int64], NDArray[np.int64]]:
    """Each user's distinct items, oldest first: item, strength and age of each, and where each user's begin.

    Strength and age are those of `histories`; the items of user u stand at start[u] : start[u + 1].
    """
    last, total, start = _last_events(events)
    size = np.diff(start)
    age = np.repeat(start[1:], size) - 1 - np.arange(len(last))
    return events.item[last], np.log2(1 + np.maximum(total, 0)).astype(np.float32), age, start


def _last_events(events: Interactions) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Rows of each pair's last event in user and time order, the pair's summed weight, and each user's offset."""
    order = events.order
    pair = events.user[order] * max(len(events.items), 1) + events.item[order]
    unique, first_from_end, inverse = np.unique(pair[::-1], return_index=True, return_inverse=True)
    total = np.bincount(inverse, weights=events.weight[order][::-1], minlength=len(unique)).astype(np.float64)
    place = len(order) - 1 - first_from_end
    by_time = np.argsort(place)
    rows: NDArray[np.int64] = order[place[by_time]]
    start = np.searchsorted(events.user[rows], np.arange(len(events.users) + 1)).astype(np.int64)
    return rows, total[by_time], start


def changed_users(before: Interactions, events: Interactions) -> NDArray[np.int64]:
    """Users who have more events than before; both are sorted by user, over the same users."""
    return np.flatnonzero(np.diff(events.offsets) > np.diff(before.offsets))


def seen_items(events: Interactions) -> sparse.csr_array:
    """(users, items) with a mark where the user has the item, to leave out."""
    shape = (len(events.users), len(events.items))
    return sparse.coo_array((np.ones(len(events), np.float32), (events.user, events.item)), shape=shape).tocsr()


def subset(events: Interactions, users: NDArray[np.int64]) -> Interactions:
    """The events of some distinct users, numbered in the order asked; `events` are sorted by user."""
    start = events.offsets
    sizes = start[users + 1] - start[users]
    offsets = np.repeat(start[users] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    rows = np.arange(int(sizes.sum())) + offsets
    return Interactions(
        IdMap(events.users.take(users)),
        events.items,
        np.repeat(np.arange(len(users)), sizes),
        events.item[rows],
        events.weight[rows],
        None if events.time is None else events.time[rows],
    )


def transitions(
    events: Interactions, past: float, future: float, horizon: int = 50
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Pasts and futures, both (splits, items): every user's sequence cut before each of its events but the first.

    The past weighs `past` ** age, the future `future` ** gap; both reach at most `horizon` events far. This is the
    directed item-item regression of sessions: Choi et al., "Session-aware linear item-item models" (SLIST, 2021).
    """
    last, _, start = _last_events(events)
    item, length = events.item[last], np.diff(start)
    cuts = np.maximum(length - 1, 0)
    owner = np.repeat(np.arange(len(length)), cuts)
    cut = np.arange(len(owner)) - np.repeat(np.cumsum(cuts) - cuts, cuts) + 1
    back = np.minimum(cut, horizon)
    ahead = np.minimum(length[owner] - cut, horizon)
    shape = (len(owner), len(events.items))

    def side(width: NDArray[np.int64], step: int, first: NDArray[np.int64], decay: float) -> sparse.csr_array:
        indptr = np.concatenate([[0], np.cumsum(width)])
        gap = np.arange(indptr[-1]) - np.repeat(indptr[:-1], width)
        at = np.repeat(start[owner] + first, width) + step * gap
        return sparse.csr_array(((decay**gap).astype(np.float32), item[at], indptr), shape=shape)

    return side(back, -1, cut - 1, past), side(ahead, 1, cut, future)


def ease(gram: Float, reg: float) -> Float:
    """(n, n) weights of EASE: argmin |X - XB|^2 + reg |B|^2 with zero diagonal, from gram = X'X.

    Steck, "Embarrassingly shallow autoencoders for sparse data" (2019).
    """
    system = _regularised(gram, reg)
    potrf, potri = linalg.get_lapack_funcs(("potrf", "potri"), (system,))
    factor, fault = potrf(system, lower=True, overwrite_a=True, clean=True)
    if fault:
        raise _not_definite(reg)
    lower, _ = potri(factor, lower=True, overwrite_c=True)
    inverse = np.tril(lower) + np.tril(lower, -1).T
    out = inverse / -np.diag(inverse)
    np.fill_diagonal(out, 0)
    return np.asarray(out, np.float32)


def ease_updated(weights: Float, before: sparse.csr_array, after: sparse.csr_array, reg: float) -> Float:
    """(n, n) weights of EASE on the histories `after` (users, n) from those on `before` (users, n), by changed users.

    `weights` (m, m) know the first m items; the others have no cell in `before`. The diagonal of the inverse of
    X'X + reg I, and with it the inverse, is had back from the weights: its product with the system has a diagonal of
    ones. The matrix inversion lemma changes it by 2 rows for each changed user, in n^2 per row instead of n^3.
    """
    n, m = after.shape[1], len(weights)
    old = sparse.csr_array(before[:, :m])
    power, explained = old.power(2).sum(axis=0), np.zeros(m)
    for first in range(0, old.shape[0], _BLOCK):
        block = old[first : first + _BLOCK]
        explained += np.asarray(block.multiply(block @ weights).sum(axis=0))
    inverse = np.zeros((n, n), _precision(n), order="F")
    inverse[:m, :m] = weights
    inverse[:m, :m] /= explained - power - reg
    inverse[np.arange(n), np.arange(n)] = 1 / reg
    inverse[np.arange(m), np.arange(m)] = 1 / (power + reg - explained)
    rows = np.flatnonzero(np.diff(_nonzero(after - before).indptr))
    changed = sparse.csr_array(sparse.vstack([after[rows], before[rows]]), dtype=inverse.dtype)
    sign = np.repeat([1.0, -1.0], len(rows))[np.diff(changed.indptr) > 0]
    changed = changed[np.diff(changed.indptr) > 0]
    through = np.asarray(changed @ inverse)
    system = np.asarray(changed @ through.T, np.float64) + np.diag(sign)
    inverse -= through.T @ np.linalg.solve(system, through).astype(inverse.dtype)
    out = np.divide(inverse, -np.diag(inverse), out=inverse)
    np.fill_diagonal(out, 0)
    return np.asarray(out, np.float32)


def _nonzero(matrix: Any) -> sparse.csr_array:
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
    """A Fortran-ordered copy of gram + reg I; double precision where that is cheap."""
    _check_reg(reg)
    system: NDArray[Any] = np.array(gram, dtype=_precision(len(gram)), order="F")
    system[np.diag_indices_from(system)] += reg
    return system


def _precision(n: int) -> type[np.floating[Any]]:
    return np.float64 if n <= 4096 else np.float32


def _check_reg(reg: float) -> None:
    if not reg > 0:
        raise InputError(f"reg must be positive, got {reg}")


def _not_definite(reg: float) -> InputError:
    return InputError(f"the item-item matrix is not positive definite at reg {reg}; take a larger reg")


def unobserved_metric(factors: Float, reg: float, unobserved: float) -> Float:
    """(dim, dim) inverse of unobserved * F'F + reg I: what a user who did nothing is measured with in `half_step`."""
    _check_reg(reg)
    gram = unobserved * (factors.T @ factors).astype(np.float64) + reg * np.eye(factors.shape[1])
    return np.asarray(np.linalg.inv(gram), np.float32)


def half_step(history: sparse.csr_array, factors: Float, metric: Float) -> sparse.csr_array:
    """(users, n) weights W, sparse like `history`, such that the user vectors are W @ factors @ metric.

    Each user's vector x minimises unobserved * |F x|^2 + sum over own items i of s_i (1 - f_i.x)^2 + reg |x|^2: the
    user half-step of implicit ALS (Hu, Koren and Volinsky, 2008) with the item factors held. The matrix inversion lemma
    solves it in the space of the user's own items, one small system each, so that every weight belongs to one of them.
    `metric` comes from `unobserved_metric`.
    """
    dim = factors.shape[1]
    root = np.linalg.cholesky(metric.astype(np.float64)).astype(np.float32)
    out = sparse.csr_array(history, dtype=np.float32, copy=True)
    sizes = np.diff(history.indptr)
    for size in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == size)
        step = max(1, int(2e7 // (size * (size + dim))))
        for s in range(0, len(rows), step):
            at = history.indptr[rows[s : s + step], None] + np.arange(size)
            strength = history.data[at].astype(np.float64)
            mapped = factors[history.indices[at]] @ root
            system = (mapped @ mapped.transpose(0, 2, 1)).astype(np.float64)
            system[:, np.arange(size), np.arange(size)] += 1 / strength
            out.data[at] = np.linalg.solve(system, np.ones((len(at), size, 1)))[..., 0]
    return out


def local_ridge(
    gram: sparse.csr_array, target: sparse.csr_array, reg: float, neighbours: int, exclude_self: bool = True
) -> sparse.csr_array:
    """(n, n) sparse weights whose column j solves the ridge system on the `neighbours` rows most telling of j.

    Rows are picked by their own drop in squared error, target_ij^2 / (gram_ii + reg). With exclude_self the diagonal
    stays zero. With gram = target = X'X and all rows this is EASE; with few it is SLIM with feature selection (Ning and
    Karypis, 2011) in closed form: n systems of `neighbours` unknowns instead of one of n, so memory grows with n.
    """
    _check_reg(reg)
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1, got {neighbours}")
    gram, columns = sparse.csr_array(gram), sparse.csc_array(target)
    from numba import get_num_threads

    from recotransfer.kernels import local_ridge_columns

    rows, values = local_ridge_columns(
        *by_line(gram),
        *by_line(columns),
        gram.diagonal().astype(np.float32),
        neighbours,
        reg,
        exclude_self,
        get_num_threads(),
    )
    return columns_to_csr(rows, values, height=gram.shape[0])


def columns_to_csr(rows: NDArray[np.int32], values: Float, *, height: int) -> sparse.csr_array:
    """(height, n) CSR from up to m entries per column: rows (n, m) with -1 past the end, values (n, m)."""
    used = (rows >= 0) & (values != 0)
    indptr = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    out = sparse.csc_array((values[used], rows[used], indptr), shape=(height, len(rows)))
    return out.tocsr()


def keep_largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """The matrix with only the `count` largest magnitudes of each column; ties go to the lower row."""
    from numba import get_num_threads

    from recotransfer.kernels import largest_of_columns

    columns = sparse.csc_array(matrix)
    columns.sort_indices()
    found = largest_of_columns(*by_line(columns), count, get_num_threads())
    return columns_to_csr(*found, height=matrix.shape[0])


def product_top_k(
    history: sparse.csr_array,
    weights: sparse.csr_array,
    k: int,
    exclude: sparse.csr_array | None,
    mask: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], Float]:
    """Positions and scores (users, k) of the k greatest positive cells of `history @ weights`.

    Rows with fewer end in -1 and -inf. The product is never held: memory is users x k. Ties go to the lower position.
    """
    from numba import get_num_threads

    from recotransfer import kernels

    barred = by_line(sparse.csr_array((0, 0)) if exclude is None else exclude)[:2]
    allowed = np.empty(0, np.bool_) if mask is None else mask
    positions, scores = kernels.product_top_k(by_line(history), by_line(weights), barred, allowed, k, get_num_threads())
    return positions, scores


def smoothed(
    behaviour: sparse.csr_array,
    stand_in: sparse.csr_array,
    own_column: Float,
    lookalikes: sparse.csr_array,
    own: Float,
    content: sparse.csr_array,
    keep: int,
) -> sparse.csr_array:
    """(n, m) columns of S B S' + content, the `keep` largest of each, for m items; see `HybridItems`.

    behaviour B (n, n); stand_in (n, m) and own_column (m,) of the m items; lookalikes W (n, n) and own (n,) of all;
    content (n, m). A column with own_column > 0 must stand at its own place in behaviour.
    """
    from numba import get_num_threads

    from recotransfer.kernels import smoothed_columns

    found = smoothed_columns(
        by_line(sparse.csc_array(behaviour)),
        by_line(sparse.csc_array(stand_in)),
        by_line(lookalikes),
        by_line(sparse.csc_array(content)),
        own_column,
        own,
        keep,
        get_num_threads(),
    )
    return columns_to_csr(*found, height=len(own))


def by_line(matrix: sparse.csr_array | sparse.csc_array) -> tuple[NDArray[np.int32], NDArray[np.int64], Float]:
    """(indices, indptr, values) of a compressed matrix, all read-only and of one type each.

    The compiled loops are compiled anew for every combination of types, and memory-mapped arrays are read-only.
    """
    out = []
    for array, kind in ((matrix.indices, np.int32), (matrix.indptr, np.int64), (matrix.data, np.float32)):
        view = array.astype(kind, copy=False).view()
        view.flags.writeable = False
        out.append(view)
    return out[0], out[1], out[2]


def scaled(matrix: sparse.csr_array, rows: NDArray[Any] | None, columns: NDArray[Any] | None) -> sparse.csr_array:
    """The matrix with row i times rows[i] and column j times columns[j]."""
    out = matrix
    if rows is not None:
        out = sparse.diags_array(np.asarray(rows, np.float32)).tocsr() @ out
    if columns is not None:
        out = out @ sparse.diags_array(np.asarray(columns, np.float32)).tocsr()
    return sparse.csr_array(out)


def without_diagonal(matrix: Any) -> Any:
    """The square matrix, dense or sparse, with a zero diagonal; it is changed in place.

    An item does not speak for itself.
    """
    if isinstance(matrix, np.ndarray):
        np.fill_diagonal(matrix, 0)
        return matrix
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    return matrix


def gaussian_kernel(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(n, n) kernel exp(-d^2 / 2 s^2) of points (n, dim), s^2 the median squared distance d^2; its diagonal is zero."""
    centred = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    square = (centred**2).sum(axis=1)
    apart = np.maximum(square[:, None] + square - 2 * centred @ centred.T, 0)
    width = np.median(apart[np.triu_indices(len(apart), 1)])
    kernel: NDArray[np.float64] = np.exp(-apart / (2 * width)) if width > 0 else (apart == 0).astype(np.float64)
    np.fill_diagonal(kernel, 0)
    return kernel


def reciprocal(values: NDArray[Any]) -> NDArray[np.float64]:
    """1 / values, and 0 where a value is not positive."""
    real: NDArray[np.float64] = np.asarray(values, np.float64)
    return np.divide(1.0, real, out=np.zeros_like(real), where=real > 0)


def unit_rows(vectors: Float) -> Float:
    """The rows scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors * reciprocal(lengths), np.float32)
