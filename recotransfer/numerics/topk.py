"""Exact top-k of inner products, dense scores or sparse scores. Pure array kernels; knows nothing of ids or models.

One definition everywhere: best score first, equal scores by lower position; a row is shorter than k (padded with
position -1 and score -inf) only when fewer allowed items exist. An inner product is summed in float64 and rounded to
float32, so a row's answer does not depend on the batch, the block or the number of threads.

How `top_k` is exact and yet faster than the float32 product alone: items stand in groups of neighbours, and a product
in bfloat16 (float32 where the processor lacks it) leaves behind only each group's largest approximate score, so that
the scores are never written to memory. Rounding errors, measured while packing, bound each group's exact scores
(Cauchy-Schwarz). Groups are then rescored, highest bound first, until no bound can reach the k-th best exact score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.errors import InputError
from recotransfer.numerics.threads import in_threads, slices, thread_count

_SMALL = 1 << 20  # multiplications below which a plain product is quicker than packing
_AT_ONCE = 8  # multiplications in the time of one simple operation
_MESSAGE = "hold NaN or infinite values; drop or mend those rows, or leave them out with exclude or mask"


class TopK(NamedTuple):
    """Positions (b, k) int64, -1 past the end, and scores (b, k) float32, -inf past the end; best first."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class PackedItems:
    """Items laid out for `top_k`, made by `pack_items`; worth keeping where the same catalogue is searched often.

    `allowed` (m,) holds the positions packed, rising. Group g is the g-th run of `group` of them; `norms` and
    `errors` (groups,) bound the length and the rounding error of its members, after division by 2**exponent.
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
        exclude: (b, n) whose stored entries, whatever their value, are left out of that row.
        mask: (n,) True where an item is allowed for everyone.
        block: queries scored at a time by one thread; memory grows with it, never with b x n.

    Raises:
        InputError: shapes do not fit, or values are not finite, or scores could pass the range of float32.
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

    # Packing an item costs as much as scoring it for 1,000 queries; one query alone reads items at a 40th of that.
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
    """The k best of each row of dense scores (b, n), finite; `scores` is left as it is. Filters as in `top_k`."""
    scores = np.asarray(scores, np.float32)
    if scores.ndim != 2:
        raise InputError(f"scores have shape {scores.shape}; give one row per user")

    b, n = scores.shape
    check_filters((b, n), k, exclude, mask)
    found = _empty(b, k)
    if scores.size <= _SMALL:
        return _select(scores.copy(), k, exclude, mask)

    from recotransfer.numerics._topk_loops import best_of_scores

    exclude = _sorted_rows(exclude)
    use = _frozen(np.empty(0, np.bool_) if mask is None else mask)

    def task(rows: slice) -> bool:
        indptr, indices = _rows_of(exclude, rows)
        part = _frozen(np.ascontiguousarray(scores[rows]))
        return best_of_scores(part, indptr, indices, use, found.positions[rows], found.scores[rows])

    if not all(in_threads(task, slices(b, max(1, min(256, -(-b // thread_count())))), scores.size)):
        raise InputError(f"scores {_MESSAGE}")

    return found


def top_k_of_sparse(
    scores: sparse.csr_array,
    k: int,
    *,
    exclude: sparse.csr_array | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> TopK:
    """The k best stored entries of each row of (b, n); what is not stored is no candidate. Filters as in `top_k`."""
    b, n = scores.shape
    check_filters((b, n), k, exclude, mask)
    if not scores.has_canonical_format:
        scores = scores.copy()
        scores.sum_duplicates()

    values = np.asarray(scores.data, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"scores {_MESSAGE}")

    rows = np.repeat(np.arange(b, dtype=np.int64), np.diff(scores.indptr))
    columns = np.asarray(scores.indices, np.int64)
    keep = np.ones(values.size, np.bool_) if mask is None else mask[columns]
    if exclude is not None:
        out_rows = np.repeat(np.arange(b, dtype=np.int64), np.diff(exclude.indptr))
        keep &= ~np.isin(rows * n + columns, out_rows * n + exclude.indices)

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
    """The k best of each query's own candidates (b, c), distinct positions or -1, scored exactly as `top_k` does."""
    b, n = len(queries), len(items)
    check_filters((b, n), k, exclude, mask)
    keep = candidates >= 0
    if mask is not None:
        keep &= mask[candidates]

    rows, place = np.nonzero(keep)
    columns = candidates[rows, place]
    if exclude is not None and exclude.nnz:
        out_rows = np.repeat(np.arange(b, dtype=np.int64), np.diff(exclude.indptr))
        keep = ~np.isin(rows * n + columns, out_rows * n + exclude.indices)
        rows, columns = rows[keep], columns[keep]

    values = np.empty(rows.size, np.float32)
    for part in slices(rows.size, 1 << 16):
        values[part] = np.einsum("ij,ij->i", queries[rows[part]], items[columns[part]], dtype=np.float64)

    return rank_candidates(rows, columns, values, b, k)


def pack_items(items: NDArray[np.float32], mask: NDArray[np.bool_] | None = None, *, k: int = 10) -> PackedItems:
    """The allowed rows of `items` (n, d), laid out for `top_k`; `items` itself is kept by reference.

    `k` is the number of results to tune the layout for; any other number is answered too.

    Raises:
        InputError: an allowed row is not finite.
    """
    from recotransfer.numerics._topk_loops import LANES, PAIRS, VECTORS

    items = _frozen(np.ascontiguousarray(items, np.float32))
    allowed = np.arange(len(items)) if mask is None else np.flatnonzero(mask)
    if not allowed.size:
        raise InputError("no item is allowed; there is nothing to pack")

    largest = float(_lengths(items, allowed).max())
    if not np.isfinite(largest):
        raise InputError(f"items {_MESSAGE}")

    group = int(np.clip(2 ** np.round(np.log2(np.sqrt(allowed.size / (24 * k)))), VECTORS, 64))
    chunks = -(-allowed.size // (group * LANES))
    # Lane l of the chunk's tiles runs through group l, so that a group is a run of neighbours.
    grid = np.arange(chunks * LANES * group).reshape(chunks, LANES, group // VECTORS, VECTORS)
    slots = grid.transpose(0, 2, 3, 1).reshape(-1)
    rows = allowed[np.minimum(slots, allowed.size - 1)]  # the last item fills the last tile: no new maximum
    exponent = int(np.frexp(largest)[1])
    tiles, bounds = _tiles(items, rows, np.full(rows.size, 2.0**-exponent), VECTORS * LANES, PAIRS)
    in_order = np.empty_like(bounds)
    in_order[:, slots] = bounds
    norms, errors = in_order.reshape(2, -1, group).max(axis=2)
    norms = np.where(norms > 0, norms + np.float32(2.0**-100), norms)  # room for products below the smallest normal

    return PackedItems(items, _frozen(allowed), group, tiles, norms, errors, largest, exponent)


def _plain_top_k(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    k: int,
    exclude: sparse.csr_array | None,
    mask: NDArray[np.bool_] | None,
) -> TopK:
    """The definition of `top_k`, written out: for small inputs, where it is also the quickest."""
    for name, values in (("queries", queries), ("items", items)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} {_MESSAGE}")

    with np.errstate(over="ignore"):
        scores = (queries.astype(np.float64) @ items.astype(np.float64).T).astype(np.float32)

    if not np.isfinite(scores).all():
        raise InputError("inner products pass the range of float32; scale the vectors down")

    return _select(scores, k, exclude, mask)


def _select(
    scores: NDArray[np.float32], k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
) -> TopK:
    """Top k of one small dense block, which is overwritten."""
    b, n = scores.shape
    if not np.isfinite(scores).all():
        raise InputError(f"scores {_MESSAGE}")

    if exclude is not None:
        scores[np.repeat(np.arange(b), np.diff(exclude.indptr)), exclude.indices] = -np.inf

    if mask is not None:
        scores[:, ~mask] = -np.inf

    keep = scores > -np.inf
    if k < n:
        keep &= scores >= np.partition(scores, n - k, axis=1)[:, n - k, None]

    rows, columns = np.nonzero(keep)

    return rank_candidates(rows, columns, scores[rows, columns], b, k)


def rank_candidates(rows: NDArray[Any], columns: NDArray[Any], values: NDArray[np.float32], b: int, k: int) -> TopK:
    """Candidates as lists, turned into padded rows in order of falling value, then rising column."""
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)
    found = _empty(b, k)
    keep = rank < k
    found.positions[rows[keep], rank[keep]] = columns[keep]
    found.scores[rows[keep], rank[keep]] = values[keep]

    return found


def _empty(b: int, k: int) -> TopK:
    return TopK(np.full((b, k), -1, np.int64), np.full((b, k), -np.inf, np.float32))


def check_filters(
    shape: tuple[int, int], k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
) -> None:
    """Raise `InputError` unless k and the filters suit (queries, items) of this shape."""
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
    """Blocks of queries over the threads; where there are but a few queries, the threads share the items instead."""
    from recotransfer.numerics._topk_loops import LANES, ROWS, VECTORS, best_of_groups, scan

    b, chunks, threads = len(queries), packed.norms.size // LANES, thread_count()
    block = block or min(32 * ROWS, (1 << 20) // chunks)
    block = ROWS * max(1, min(block // ROWS, -(-b // (threads * ROWS))))
    work = b * packed.allowed.size * queries.shape[1] / _AT_ONCE
    found = _empty(b, k)
    use = _frozen(np.empty(0, np.bool_) if mask is None else mask)

    def task(rows: slice) -> None:
        part = _frozen(queries[rows])
        tiles, bounds, scales = _query_tiles(part, packed)
        best = np.empty((bounds.shape[1], chunks * LANES), np.float32)

        def scan_some(some: slice) -> None:
            steps = tiles.size // len(best)
            scan(tiles, packed.tiles, best, steps, packed.group // VECTORS, some.start, some.stop)

        share = chunks if b > ROWS else -(-chunks // threads)
        in_threads(scan_some, slices(chunks, share), work)
        indptr, indices = _rows_of(exclude, rows)
        best_of_groups(
            part, bounds, scales, best, packed.items, packed.allowed, packed.group, packed.norms, packed.errors,
            indptr, indices, use, found.positions[rows], found.scores[rows],
        )  # fmt: skip

    in_threads(task, slices(b, block), work)

    return found


class _QueryTiles(NamedTuple):
    tiles: NDArray[Any]
    bounds: NDArray[np.float32]  # (2, rows): length and rounding error of each scaled query
    scales: NDArray[np.float64]  # (rows,): turns scaled products into true ones


def _query_tiles(queries: NDArray[np.float32], packed: PackedItems) -> _QueryTiles:
    from recotransfer.numerics._topk_loops import PAIRS, ROWS

    rows = np.minimum(np.arange(-(-len(queries) // ROWS) * ROWS), len(queries) - 1)
    lengths = _lengths(queries, rows)
    if not np.isfinite(lengths).all():
        raise InputError(f"queries {_MESSAGE}")
    if lengths.max() * packed.largest > 3e38:
        raise InputError("inner products may pass the range of float32; scale the vectors down")

    exponents = np.frexp(lengths)[1]
    tiles, bounds = _tiles(queries, rows, np.ldexp(1.0, -exponents), ROWS, PAIRS)

    return _QueryTiles(tiles, bounds, np.ldexp(1.0, exponents + packed.exponent))


def _tiles(
    values: NDArray[np.float32], rows: NDArray[np.int64], scales: NDArray[np.float64], width: int, pairs: bool
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Scaled rows as flat tiles (rows / width, steps, width), and bounds (2, rows) on their lengths and errors."""
    from recotransfer.numerics._topk_loops import pack

    steps = (values.shape[1] + 1) // 2 if pairs else values.shape[1]
    out = np.empty((rows.size // width, steps, width), np.uint32)
    bounds = np.empty((2, rows.size), np.float32)

    def task(some: slice) -> None:
        own = slice(some.start * width, some.stop * width)
        pack(values, rows[own], scales[own], pairs, out[some], bounds[:, own])

    in_threads(task, slices(len(out), max(1, 32768 // width)), rows.size * values.shape[1])

    return out.reshape(-1) if pairs else out.reshape(-1).view(np.float32), bounds


def _lengths(values: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    from recotransfer.numerics._topk_loops import measure

    out = np.empty(rows.size)
    work = rows.size * values.shape[1]
    in_threads(lambda some: measure(values, rows[some], out[some]), slices(rows.size, 1 << 16), work)
    return out


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view, so that the compiled loops meet one kind of array whoever owns it."""
    view = np.asarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def _sorted_rows(exclude: sparse.csr_array | None) -> sparse.csr_array | None:
    return exclude if exclude is None or exclude.has_sorted_indices else exclude.sorted_indices()


def _rows_of(exclude: sparse.csr_array | None, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row starts (rows + 1,) and columns of the excluded entries of `rows`."""
    if exclude is None:
        return np.zeros(rows.stop - rows.start + 1, np.int64), np.empty(0, np.int64)

    indptr = np.asarray(exclude.indptr[rows.start : rows.stop + 1], np.int64)
    return indptr - indptr[0], np.asarray(exclude.indices[indptr[0] : indptr[-1]], np.int64)
