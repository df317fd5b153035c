"""Compiled loops over item-item matrices. The module imports numba, so import it only where a loop is run.

Each loop handles the rows or columns `first` to `last` and writes into arrays passed in, so that `threads.over_rows`
can spread it over threads. The result of a row does not depend on the other rows.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recotransfer.numerics.compiled import compiled

Float: TypeAlias = NDArray[np.float32]
Int: TypeAlias = NDArray[np.int32]
Long: TypeAlias = NDArray[np.int64]
Compressed: TypeAlias = tuple[Int, Long, Float]  # indices, starts and values, from `sparse.by_line`

_COLUMNS = 4096  # columns of a dense matrix that are summed at a time
_GROUP = 64  # scores that are compared with the least of a list at a time


@compiled(fastmath=True)
def local_ridge_columns(
    gram: Compressed,
    target: Compressed,
    diagonal: Float,
    reg: float,
    exclude_self: bool,
    first: int,
    last: int,
    rows: Int,
    values: Float,
) -> None:  # pragma: no cover - compiled
    """Fill `rows` (n, neighbours), padded with -1, and `values` with the solution of each column; see `local_ridge`.

    `gram` (n, n) is stored by row, `target` (n, n) by column.
    """
    gram_index, gram_start, gram_value = gram
    index, start, value = target
    n, neighbours = rows.shape
    place = np.full(n, -1, np.int32)
    system = np.empty((neighbours, neighbours), np.float64)
    right = np.empty(neighbours, np.float64)

    for j in range(first, last):
        begin, size = start[j], start[j + 1] - start[j]
        loss = np.empty(size, np.float64)  # change of the squared error by each row alone: negative where it helps
        for q in range(size):
            i = index[begin + q]
            is_self = exclude_self and i == j
            loss[q] = 1.0 if is_self else -(value[begin + q] ** 2) / (diagonal[i] + reg)

        best = np.argsort(loss, kind="mergesort")
        m = 0
        while m < min(neighbours, size) and loss[best[m]] < 0:
            m += 1

        for a in range(m):
            place[index[begin + best[a]]] = a

        for a in range(m):
            i = index[begin + best[a]]
            system[a, :m] = 0
            for q in range(gram_start[i], gram_start[i + 1]):
                b = place[gram_index[q]]
                if b >= 0:
                    system[a, b] = gram_value[q]

            system[a, a] = diagonal[i] + reg
            right[a] = value[begin + best[a]]

        for a in range(m):
            place[index[begin + best[a]]] = -1

        for c in range(m):  # Cholesky factorisation, then two triangular solves, all in place
            for r in range(c, m):
                left = system[r, c]
                for q in range(c):
                    left -= system[r, q] * system[c, q]

                system[r, c] = np.sqrt(left) if r == c else left / system[c, c]

        for r in range(m):
            for q in range(r):
                right[r] -= system[r, q] * right[q]

            right[r] /= system[r, r]

        for r in range(m - 1, -1, -1):
            for q in range(r + 1, m):
                right[r] -= system[q, r] * right[q]

            right[r] /= system[r, r]

        for a in range(m):
            rows[j, a] = index[begin + best[a]]
            values[j, a] = right[a]


@compiled()
def _gather(
    total: Float,
    mark: Int,
    stamp: int,
    seen: Int,
    index: Int,
    value: Float,
    first: int,
    last: int,
    factor: float,
    count: int,
) -> int:
    """Add factor * value to `total` at `index`, list positions new under `stamp` in `seen`, and return their count.

    A position counts as new, and its total as zero, until `mark` there is `stamp`: nothing needs clearing between rows.
    """
    for q in range(first, last):
        i = index[q]
        if mark[i] != stamp:
            mark[i] = stamp
            seen[count] = i
            count += 1
            total[i] = 0.0

        total[i] += factor * value[q]

    return count


@compiled()
def _largest(total: Float, seen: Int, count: int, keep: int) -> Int:
    """The `keep` positions in `seen` with the largest magnitudes, ascending; ties go to the lower position."""
    places = np.sort(seen[:count])
    if count <= keep:
        return places

    size = np.empty(count, np.float32)
    for q in range(count):
        size[q] = abs(total[places[q]])

    threshold = np.partition(size, count - keep)[count - keep]
    room = keep
    for q in range(count):
        if size[q] > threshold:
            room -= 1

    out = np.empty(keep, places.dtype)
    n = 0
    for q in range(count):
        if size[q] > threshold:
            out[n] = places[q]
            n += 1
        elif size[q] == threshold and room > 0:
            out[n] = places[q]
            n += 1
            room -= 1

    return out


@compiled()
def smoothed_columns(
    behaviour: Compressed,
    stand_in: Compressed,
    stand_in_rows: Compressed,
    content: Compressed,
    own_column: Float,
    own: Float,
    first: int,
    last: int,
    rows: Int,
    values: Float,
) -> None:  # pragma: no cover - compiled
    """Fill `rows` (m, keep), padded with -1, and `values` with m columns of S B S' + content; see `sparse.smoothed`.

    `behaviour` (n, n), `stand_in` (n, m) and `content` (n, m) are stored by column, `stand_in_rows` (n, n) by row: the
    similar items of all n items. `own_column` (m,) and `own` (n,) are shares of an item's own behaviour.
    """
    n, keep = len(own), rows.shape[1]
    total, blended = np.empty(n, np.float32), np.empty(n, np.float32)
    mark, blend_mark = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    seen, also = np.empty(n, np.int32), np.empty(n, np.int32)
    for j in range(first, last):
        # First B S': the item's own column of B, mixed with the columns of the items that stand in for it.
        count = 0
        if own_column[j] > 0:
            a, z = behaviour[1][j], behaviour[1][j + 1]
            count = _gather(total, mark, j, seen, behaviour[0], behaviour[2], a, z, own_column[j], count)

        if own_column[j] < 1:
            for q in range(stand_in[1][j], stand_in[1][j + 1]):
                k, factor = stand_in[0][q], (1 - own_column[j]) * stand_in[2][q]
                a, z = behaviour[1][k], behaviour[1][k + 1]
                count = _gather(total, mark, j, seen, behaviour[0], behaviour[2], a, z, factor, count)

        # Then S (B S'): each of the largest entries is passed on to the items that its item stands in for.
        number = 0
        for k in _largest(total, seen, count, keep):
            if blend_mark[k] != j:
                blend_mark[k] = j
                also[number] = k
                number += 1
                blended[k] = 0.0

            blended[k] += own[k] * total[k]
            for q in range(stand_in_rows[1][k], stand_in_rows[1][k + 1]):
                i = stand_in_rows[0][q]
                if own[i] < 1:
                    if blend_mark[i] != j:
                        blend_mark[i] = j
                        also[number] = i
                        number += 1
                        blended[i] = 0.0

                    blended[i] += (1 - own[i]) * stand_in_rows[2][q] * total[k]

        a, z = content[1][j], content[1][j + 1]
        number = _gather(blended, blend_mark, j, also, content[0], content[2], a, z, 1.0, number)
        best = _largest(blended, also, number, keep)
        for q in range(len(best)):
            rows[j, q], values[j, q] = best[q], blended[best[q]]


@compiled()
def product_top_k(
    history: Compressed,
    weights: Compressed,
    barred: tuple[Int, Long],
    allowed: NDArray[np.bool_],
    first: int,
    last: int,
    positions: Long,
    scores: Float,
) -> None:  # pragma: no cover - compiled
    """Fill `positions` and `scores` (users, k) with the k largest positive cells of each row of history @ weights.

    They must be filled with -1 and -inf. `history` (users, n) and `weights` (n, n) are stored by row, as is `barred`
    (indices, starts), which has no rows if nothing is excluded; `allowed` (n,) is empty if all items are. Ties go to
    the lower position.
    """
    n = len(weights[1]) - 1
    total = np.empty(n, np.float32)
    mark = np.full(n, -1, np.int32)
    seen = np.empty(n, np.int32)
    for u in range(first, last):
        count = 0
        for q in range(history[1][u], history[1][u + 1]):
            i = history[0][q]
            a, z = weights[1][i], weights[1][i + 1]
            count = _gather(total, mark, u, seen, weights[0], weights[2], a, z, history[2][q], count)

        if len(barred[1]) > 1:
            for q in range(barred[1][u], barred[1][u + 1]):
                total[barred[0][q]] = -1  # also sets positions not gathered, which are never read

        size = 0
        for q in range(count):
            i = seen[q]
            if total[i] > 0 and (len(allowed) == 0 or allowed[i]):
                size = _insert(positions, scores, u, size, i, total[i])


@compiled()
def dense_product_top_k(
    history: Compressed,
    weights: Float,
    barred: tuple[Int, Long],
    allowed: NDArray[np.bool_],
    first: int,
    last: int,
    positions: Long,
    scores: Float,
) -> None:  # pragma: no cover - compiled
    """`product_top_k` with dense `weights` (n, n)."""
    n = weights.shape[1]
    total = np.empty(n, np.float32)
    for u in range(first, last):
        # Sums over a few thousand columns at a time stay in the processor's first cache.
        total[:] = 0
        for start in range(0, n, _COLUMNS):
            sums = total[start : start + _COLUMNS]
            for q in range(history[1][u], history[1][u + 1]):
                factor, row = history[2][q], weights[history[0][q], start : start + _COLUMNS]
                for j in range(len(sums)):
                    sums[j] += factor * row[j]

        if len(barred[1]) > 1:
            for q in range(barred[1][u], barred[1][u + 1]):
                total[barred[0][q]] = -1

        size = 0
        for start in range(0, n, _GROUP):
            # Counting first is a vectorised pass, and most groups turn out to hold nothing better.
            least = scores[u, -1] if size == scores.shape[1] else np.float32(0)
            better = 0
            for i in range(start, min(n, start + _GROUP)):
                better += total[i] > least

            if better:
                for i in range(start, min(n, start + _GROUP)):
                    if total[i] > least and (len(allowed) == 0 or allowed[i]):
                        size = _insert(positions, scores, u, size, i, total[i])


@compiled()
def _insert(positions: Long, scores: Float, u: int, size: int, i: int, score: float) -> int:
    """Insert item i into the first `size` entries of row u, sorted by score, then position; returns the new size."""
    k = positions.shape[1]
    if size == k and (score < scores[u, k - 1] or (score == scores[u, k - 1] and i > positions[u, k - 1])):
        return size

    at = size if size < k else k - 1
    while at > 0 and (scores[u, at - 1] < score or (scores[u, at - 1] == score and positions[u, at - 1] > i)):
        scores[u, at], positions[u, at] = scores[u, at - 1], positions[u, at - 1]
        at -= 1

    scores[u, at], positions[u, at] = score, i

    return size if size == k else size + 1


@compiled()
def largest_of_columns(
    index: Int, start: Long, value: Float, first: int, last: int, rows: Int, values: Float
) -> None:  # pragma: no cover - compiled
    """Fill `rows` (columns, keep), padded with -1, and `values` with each column's largest entries, rows ascending."""
    keep = rows.shape[1]
    for j in range(first, last):
        begin, count = start[j], start[j + 1] - start[j]
        best = _largest(value[begin : begin + count], np.arange(count), count, keep)
        for q in range(len(best)):
            rows[j, q], values[j, q] = index[begin + best[q]], value[begin + best[q]]


@compiled()
def candidate_sums(
    start: Long,
    item: Long,
    weight: Float,
    matrix: Compressed,
    candidates: Long,
    columns: Long,
    first: int,
    last: int,
    out: Float,
) -> None:  # pragma: no cover - compiled
    """Fill columns of `out` (users, m, features) with sums over each user's items; see `candidates.add_candidate_sums`.

    `start` (users + 1,) and `item` (n,) hold the users' items, `weight` (n, 3) their weights in the three sums.
    """
    n, m = len(matrix[1]) - 1, candidates.shape[1]
    place = np.full(n, -1, np.int32)
    sums = np.zeros((m, 4), np.float32)
    for u in range(first, last):
        sums[:] = 0
        for c in range(m):
            if candidates[u, c] >= 0:
                place[candidates[u, c]] = c

        for q in range(start[u], start[u + 1]):
            for p in range(matrix[1][item[q]], matrix[1][item[q] + 1]):
                c = place[matrix[0][p]]
                if c < 0:
                    continue

                value = matrix[2][p]
                for t in range(3):
                    sums[c, t] += weight[q, t] * value

                sums[c, 3] += value > 0

        for c in range(m):
            if candidates[u, c] < 0:
                continue

            place[candidates[u, c]] = -1
            for t in range(4):
                if columns[t] >= 0:
                    floor = 1 if t == 3 else 1e-3
                    out[u, c, columns[t]] = np.log(max(sums[c, t], 0) + floor)


@compiled()
def candidate_sums_by_age(
    start: Long,
    item: Long,
    age: Long,
    weight: Float,
    matrix: Compressed,
    candidates: Long,
    first: int,
    last: int,
    out: Float,
) -> None:  # pragma: no cover - compiled
    """Add to `out` (users, m, ages) the cells of the user's items; see `candidates.sums_by_age`."""
    place = np.full(len(matrix[1]) - 1, -1, np.int32)
    for u in range(first, last):
        for c in range(candidates.shape[1]):
            if candidates[u, c] >= 0:
                place[candidates[u, c]] = c

        for q in range(start[u], start[u + 1]):
            for p in range(matrix[1][item[q]], matrix[1][item[q] + 1]):
                c = place[matrix[0][p]]
                if c >= 0:
                    out[u, c, age[q]] += weight[q] * matrix[2][p]

        for c in range(candidates.shape[1]):
            if candidates[u, c] >= 0:
                place[candidates[u, c]] = -1


@compiled(fastmath=True)
def cell_products(matrix: Compressed, vectors: Float, first: int, last: int, out: Float) -> None:  # pragma: no cover
    """Fill `out` (cells,) with the inner products of the vectors of each cell's row and column."""
    for row in range(first, last):
        for p in range(matrix[1][row], matrix[1][row + 1]):
            total = np.float32(0)
            for d in range(vectors.shape[1]):
                total += vectors[row, d] * vectors[matrix[0][p], d]

            out[p] = total


@compiled(fastmath=True)
def candidate_cosines(
    queries: Float, vectors: Float, candidates: Long, column: int, first: int, last: int, out: Float
) -> None:  # pragma: no cover - compiled
    """Fill a column of `out` (users, m, features) with the inner product of query and candidate; -1 is skipped."""
    for u in range(first, last):
        for c in range(candidates.shape[1]):
            if candidates[u, c] >= 0:
                total = np.float32(0)
                for d in range(queries.shape[1]):
                    total += queries[u, d] * vectors[candidates[u, c], d]

                out[u, c, column] = total


@compiled()
def network_scores(
    features: Float, inner: Float, bias: Float, outer: Float, first: int, last: int, out: Float
) -> None:  # pragma: no cover - compiled
    """Fill `out` (users, m) with relu(features @ inner + bias) @ outer."""
    hidden = np.empty(len(bias), np.float32)
    for u in range(first, last):
        for c in range(features.shape[1]):
            hidden[:] = bias
            for f in range(features.shape[2]):
                for h in range(len(bias)):
                    hidden[h] += features[u, c, f] * inner[f, h]

            total = np.float32(0)
            for h in range(len(bias)):
                total += outer[h] * max(hidden[h], np.float32(0))

            out[u, c] = total
