"""Exact top-k of inner products, dense scores or sparse scores: kernels on plain arrays, without ids or models.

The result is defined the same way everywhere: best score first, ties broken by the lower position. A row has fewer than
k results (padded with position -1 and score -inf) only if fewer items are allowed. Inner products are summed in float64
and rounded to float32, so that a row's result does not depend on the batch, the block or the number of threads.

`top_k` is exact and still faster than a float32 matrix product. Items are divided into groups of neighbouring
positions, and a product in bfloat16 (float32 on processors without it) keeps only the largest approximate score of each
group, so that the full score matrix is never written to memory. The rounding errors, measured while packing, give an
upper bound on each group's exact scores (Cauchy-Schwarz). Groups are then rescored exactly, highest bound first, until
no remaining bound can reach the k-th best exact score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.errors import InputError
from recotransfer.numerics.threads import in_threads, slices, thread_count
from recotransfer.numerics.vectors import read_only

_SMALL = 1 << 20  # multiplications below which a plain matrix product is faster than packing
_AT_ONCE = 8  # multiplications that vector instructions do in the time of one simple operation
_NOT_FINITE = "contain NaN or infinite values; remove or fix those rows, or leave them out with exclude or mask"


class TopK(NamedTuple):
    """Positions (b, k) int64 and scores (b, k) float32, best first; short rows are padded with -1 and -inf."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class PackedItems:
    """Items laid out for `top_k` by `pack_items`; keep them when the same catalogue is searched often.

    `allowed` (m,) holds the packed positions, ascending. Group g is the g-th run of `group` of them; `norms` and
    `errors` (groups,) are upper bounds on the lengths and rounding errors of its items, after division by 2**exponent.
    """

    items: NDArray[np.float32]
    allowed: NDArray[np.int64]
    group: int
    tiles: NDArray[Any]
    norms: NDArray[np.float32]
    errors: NDArray[np.float32]
    largest: float
    exponent: int


def top_k(
    queries: NDArray[np.float32],
    items: NDArray[np.float32] | PackedItems,
    k: int,
    *,
    exclude: sparse.csr_array | None = None,
    mask: NDArray[np.bool_] | None = None,
    block: int | None = None,
) -> TopK:
    """The k items of largest inner product for each query, exactly.

    Args:
        queries: (b, d) float32, finite.
        items: (n, d) float32, finite; or the same packed by `pack_items`.
        k: results per query, at least 1.
        exclude: (b, n) sparse; every stored entry, whatever its value, removes that item from that row.
        mask: (n,) True for the items that any query may return.
        block: queries scored at a time by one thread; memory grows with it, never with b x n.

    Raises:
        InputError: the shapes do not match, values are not finite, or scores could overflow float32.
    """
    packed = items if isinstance(items, PackedItems) else None
    values = packed.items if packed is not None else np.ascontiguousarray(items, np.float32)
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or values.ndim != 2 or queries.shape[1] != values.shape[1]:
        raise InputError(f"queries {queries.shape} and items {values.shape} must be (b, d) and (n, d) with the same d")

    b, n = len(queries), len(values)
    check_filters((b, n), k, exclude, mask)
    if packed is None and b * n * max(1, queries.shape[1]) <= _SMALL:
        return _plain_top_k(queries, values, k, exclude, mask)
    if not b or not n or (mask is not None and not mask.any()):
        return _empty(b, k)

    # Packing an item costs as much as scoring it for about 1,000 queries. A single query is limited by memory reads,
    # which take as long as scoring 40 queries.
    if packed is None or (mask is not None and np.count_nonzero(mask) * (b + 1000) < max(b, 40) * n):
        packed, mask = pack_items(values, mask, k=k), None

    return _search(queries, packed, k, _sorted_rows(exclude), mask, block)


def top_k_of_scores(
    scores: NDArray[np.float32],
    k: int,
    *,
    exclude: sparse.csr_array | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> TopK:
    """The k best items of each row of dense, finite scores (b, n), not modified; filters as in `top_k`."""
    scores = np.asarray(scores, np.float32)
    if scores.ndim != 2:
        raise InputError(f"scores have shape {scores.shape}; give one row per user")

    b, n = scores.shape
    check_filters((b, n), k, exclude, mask)
    out = _empty(b, k)
    if scores.size <= _SMALL:
        return _select(scores.copy(), k, exclude, mask)

    from recotransfer.numerics._topk_loops import best_of_scores

    exclude = _sorted_rows(exclude)
    mask_array = read_only(np.empty(0, np.bool_) if mask is None else mask)

    def task(rows: slice) -> bool:
        indptr, indices = _rows_of(exclude, rows)
        block = read_only(np.ascontiguousarray(scores[rows]))
        return best_of_scores(block, indptr, indices, mask_array, out.positions[rows], out.scores[rows])

    if not all(in_threads(task, slices(b, max(1, min(256, -(-b // thread_count())))), scores.size)):
        raise InputError(f"scores {_NOT_FINITE}")

    return out


def top_k_of_sparse(
    scores: sparse.csr_array,
    k: int,
    *,
    exclude: sparse.csr_array | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> TopK:
    """The k best stored entries of each row of (b, n); cells not stored are no candidates. Filters as in `top_k`."""
    b, n = scores.shape
    check_filters((b, n), k, exclude, mask)
    if not scores.has_canonical_format:
        scores = scores.copy()
        scores.sum_duplicates()

    values = np.asarray(scores.data, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"scores {_NOT_FINITE}")

    rows = np.repeat(np.arange(b, dtype=np.int64), np.diff(scores.indptr))
    columns = np.asarray(scores.indices, np.int64)
    keep = np.ones(values.size, np.bool_) if mask is None else mask[columns]
    if exclude is not None:
        excluded_rows = np.repeat(np.arange(b, dtype=np.int64), np.diff(exclude.indptr))
        keep &= ~np.isin(rows * n + columns, excluded_rows * n + exclude.indices)

    return rank_candidates(rows[keep], columns[keep], values[keep], b, k)


def rescore(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    candidates: NDArray[np.int64],
    k: int,
    *,
    exclude: sparse.csr_array | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> TopK:
    """The k best of each query's candidates (b, c), scored as in `top_k`; candidates are distinct positions or -1."""
    b, n = len(queries), len(items)
    check_filters((b, n), k, exclude, mask)
    keep = candidates >= 0
    if mask is not None:
        keep &= mask[candidates]

    rows, place = np.nonzero(keep)
    columns = candidates[rows, place]
    if exclude is not None and exclude.nnz:
        excluded_rows = np.repeat(np.arange(b, dtype=np.int64), np.diff(exclude.indptr))
        keep = ~np.isin(rows * n + columns, excluded_rows * n + exclude.indices)
        rows, columns = rows[keep], columns[keep]

    values = np.empty(rows.size, np.float32)
    for run in slices(rows.size, 1 << 16):
        values[run] = np.einsum("ij,ij->i", queries[rows[run]], items[columns[run]], dtype=np.float64)

    return rank_candidates(rows, columns, values, b, k)


def pack_items(items: NDArray[np.float32], mask: NDArray[np.bool_] | None = None, *, k: int = 10) -> PackedItems:
    """The allowed rows of `items` (n, d) laid out for `top_k`, with a reference to `items` itself.

    The layout is tuned for `k` results per query, but works for any number.

    Raises:
        InputError: no row is allowed, or an allowed row is not finite.
    """
    from recotransfer.numerics._topk_loops import LANES, PAIRS, VECTORS

    items = read_only(np.ascontiguousarray(items, np.float32))
    allowed = np.arange(len(items)) if mask is None else np.flatnonzero(mask)
    if not allowed.size:
        raise InputError("no item is allowed; there is nothing to pack")

    largest = float(_lengths(items, allowed).max())
    if not np.isfinite(largest):
        raise InputError(f"items {_NOT_FINITE}")

    group = int(np.clip(2 ** np.round(np.log2(np.sqrt(allowed.size / (24 * k)))), VECTORS, 64))
    chunks = -(-allowed.size // (group * LANES))
    # Lane l of a chunk's tiles holds the items of group l, so that a group is a run of neighbouring positions.
    grid = np.arange(chunks * LANES * group).reshape(chunks, LANES, group // VECTORS, VECTORS)
    slots = grid.transpose(0, 2, 3, 1).reshape(-1)
    rows = allowed[np.minimum(slots, allowed.size - 1)]  # repeats of the last item fill the last tile; maxima stay
    exponent = int(np.frexp(largest)[1])
    tiles, bounds = _tiles(items, rows, np.full(rows.size, 2.0**-exponent), VECTORS * LANES, PAIRS)
    in_order = np.empty_like(bounds)
    in_order[:, slots] = bounds
    norms, errors = in_order.reshape(2, -1, group).max(axis=2)
    norms = np.where(norms > 0, norms + np.float32(2.0**-100), norms)  # room for products that underflow

    return PackedItems(items, read_only(allowed), group, tiles, norms, errors, largest, exponent)


def _plain_top_k(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    k: int,
    exclude: sparse.csr_array | None,
    mask: NDArray[np.bool_] | None,
) -> TopK:
    """`top_k` by its definition: a full score matrix, which is fastest for small inputs."""
    for name, values in (("queries", queries), ("items", items)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} {_NOT_FINITE}")

    with np.errstate(over="ignore"):
        scores = (queries.astype(np.float64) @ items.astype(np.float64).T).astype(np.float32)

    if not np.isfinite(scores).all():
        raise InputError("inner products overflow float32; scale the vectors down")

    return _select(scores, k, exclude, mask)


def _select(
    scores: NDArray[np.float32], k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
) -> TopK:
    """Top k of one small dense block of scores, which is overwritten."""
    b, n = scores.shape
    if not np.isfinite(scores).all():
        raise InputError(f"scores {_NOT_FINITE}")

    if exclude is not None:
        scores[np.repeat(np.arange(b), np.diff(exclude.indptr)), exclude.indices] = -np.inf

    if mask is not None:
        scores[:, ~mask] = -np.inf

    keep = scores > -np.inf
    if k < n:
        keep &= scores >= np.partition(scores, n - k, axis=1)[:, n - k, None]

    rows, columns = np.nonzero(keep)

    return rank_candidates(rows, columns, scores[rows, columns], b, k)


def rank_candidates(
    rows: NDArray[np.integer], columns: NDArray[np.integer], values: NDArray[np.float32], b: int, k: int
) -> TopK:
    """The k best candidates of each of b rows, by descending value, then ascending column.

    Candidate i is cell (rows[i], columns[i]) with score values[i]; they may come in any order.
    """
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)
    out = _empty(b, k)
    keep = rank < k
    out.positions[rows[keep], rank[keep]] = columns[keep]
    out.scores[rows[keep], rank[keep]] = values[keep]

    return out


def _empty(b: int, k: int) -> TopK:
    return TopK(np.full((b, k), -1, np.int64), np.full((b, k), -np.inf, np.float32))


def check_filters(
    shape: tuple[int, int], k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
) -> None:
    """Raise `InputError` unless k is at least 1 and the filters match `shape`, (queries, items)."""
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 result")
    if exclude is not None and exclude.shape != shape:
        raise InputError(f"exclude has shape {exclude.shape}; it must be {shape}: a row per query, a column per item")
    if mask is not None and ((found := np.asarray(mask)).shape != shape[1:] or found.dtype != np.bool_):
        raise InputError(f"mask has shape {found.shape} and type {found.dtype}; it must be {shape[1:]} booleans")


def _search(
    queries: NDArray[np.float32],
    packed: PackedItems,
    k: int,
    exclude: sparse.csr_array | None,
    mask: NDArray[np.bool_] | None,
    block: int | None,
) -> TopK:
    """`top_k` on packed items. Threads share the blocks of queries, or the items if there are only a few queries."""
    from recotransfer.numerics._topk_loops import LANES, ROWS, VECTORS, best_of_groups, scan

    b, chunks, threads = len(queries), packed.norms.size // LANES, thread_count()
    block = block or min(32 * ROWS, (1 << 20) // chunks)
    block = ROWS * max(1, min(block // ROWS, -(-b // (threads * ROWS))))
    work = b * packed.allowed.size * queries.shape[1] / _AT_ONCE
    out = _empty(b, k)
    mask_array = read_only(np.empty(0, np.bool_) if mask is None else mask)

    def task(rows: slice) -> None:
        block_queries = read_only(queries[rows])
        tiles, bounds, scales = _query_tiles(block_queries, packed)
        best = np.empty((bounds.shape[1], chunks * LANES), np.float32)

        def scan_chunks(run: slice) -> None:
            steps = tiles.size // len(best)
            scan(tiles, packed.tiles, best, steps, packed.group // VECTORS, run.start, run.stop)

        share = chunks if b > ROWS else -(-chunks // threads)
        in_threads(scan_chunks, slices(chunks, share), work)
        indptr, indices = _rows_of(exclude, rows)
        best_of_groups(
            block_queries, bounds, scales, best, packed.items, packed.allowed, packed.group, packed.norms,
            packed.errors, indptr, indices, mask_array, out.positions[rows], out.scores[rows],
        )  # fmt: skip

    in_threads(task, slices(b, block), work)

    return out


class _QueryTiles(NamedTuple):
    tiles: NDArray[Any]
    bounds: NDArray[np.float32]  # (2, rows): upper bounds on length and rounding error of each scaled query
    scales: NDArray[np.float64]  # (rows,): factors that undo the scaling of the products


def _query_tiles(queries: NDArray[np.float32], packed: PackedItems) -> _QueryTiles:
    from recotransfer.numerics._topk_loops import PAIRS, ROWS

    rows = np.minimum(np.arange(-(-len(queries) // ROWS) * ROWS), len(queries) - 1)
    lengths = _lengths(queries, rows)
    if not np.isfinite(lengths).all():
        raise InputError(f"queries {_NOT_FINITE}")
    if lengths.max() * packed.largest > 3e38:
        raise InputError("inner products may overflow float32; scale the vectors down")

    exponents = np.frexp(lengths)[1]
    tiles, bounds = _tiles(queries, rows, np.ldexp(1.0, -exponents), ROWS, PAIRS)

    return _QueryTiles(tiles, bounds, np.ldexp(1.0, exponents + packed.exponent))


def _tiles(
    values: NDArray[np.float32], rows: NDArray[np.int64], scales: NDArray[np.float64], width: int, pairs: bool
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Scaled rows as flat tiles (rows / width, steps, width), with bounds (2, rows) on lengths and rounding errors."""
    from recotransfer.numerics._topk_loops import pack

    steps = (values.shape[1] + 1) // 2 if pairs else values.shape[1]
    out = np.empty((rows.size // width, steps, width), np.uint32)
    bounds = np.empty((2, rows.size), np.float32)

    def task(run: slice) -> None:
        slots = slice(run.start * width, run.stop * width)
        pack(values, rows[slots], scales[slots], pairs, out[run], bounds[:, slots])

    in_threads(task, slices(len(out), max(1, 32768 // width)), rows.size * values.shape[1])

    return out.reshape(-1) if pairs else out.reshape(-1).view(np.float32), bounds


def _lengths(values: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    from recotransfer.numerics._topk_loops import measure

    out = np.empty(rows.size)
    work = rows.size * values.shape[1]
    in_threads(lambda run: measure(values, rows[run], out[run]), slices(rows.size, 1 << 16), work)
    return out


def _sorted_rows(exclude: sparse.csr_array | None) -> sparse.csr_array | None:
    return exclude if exclude is None or exclude.has_sorted_indices else exclude.sorted_indices()


def _rows_of(exclude: sparse.csr_array | None, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row starts (rows + 1,) and columns of the excluded entries of `rows`."""
    if exclude is None:
        return np.zeros(rows.stop - rows.start + 1, np.int64), np.empty(0, np.int64)

    indptr = np.asarray(exclude.indptr[rows.start : rows.stop + 1], np.int64)
    return indptr - indptr[0], np.asarray(exclude.indices[indptr[0] : indptr[-1]], np.int64)
