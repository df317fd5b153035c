"""Compiled loops over item-item matrices. Importing this imports numba, so it is imported where a loop is run.

Each works on the rows or columns `first` to `last` and writes into arrays that it is given, so that callers may spread
it over threads; see `threads.over_rows`. What a row gives does not depend on the others.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recotransfer.numerics.compiled import compiled

Float: TypeAlias = NDArray[np.float32]
Int: TypeAlias = NDArray[np.int32]
Long: TypeAlias = NDArray[np.int64]
Compressed: TypeAlias = tuple[Int, Long, Float]  # indices, starts and values of a sparse matrix, as `sparse.by_line`


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
    """Fill `rows` (n, neighbours), -1 past the end, and `values` of each column's ridge system; see `local_ridge`.

    gram comes by row, the target by column, both (n, n).
    """
    gram_index, gram_start, gram_value = gram
    index, start, value = target
    n, neighbours = rows.shape
    place = np.full(n, -1, np.int32)
    system = np.empty((neighbours, neighbours), np.float64)
    right = np.empty(neighbours, np.float64)

    for j in range(first, last):
        begin, size = start[j], start[j + 1] - start[j]
        gain = np.empty(size, np.float64)
        for q in range(size):
            i = index[begin + q]
            own = exclude_self and i == j
            gain[q] = 1.0 if own else -(value[begin + q] ** 2) / (diagonal[i] + reg)

        best = np.argsort(gain, kind="mergesort")
        m = 0
        while m < min(neighbours, size) and gain[best[m]] < 0:
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

        for c in range(m):  # Cholesky, then two triangular solves, in place
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
    """Add factor * value to `total` at `index`; places met for the first time under `stamp` are listed in `seen`."""
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
    """The `keep` listed positions of largest magnitude, in ascending order; ties go to the lower position."""
    places = np.sort(seen[:count])
    if count <= keep:
        return places

    size = np.empty(count, np.float32)
    for q in range(count):
        size[q] = abs(total[places[q]])

    bar = np.partition(size, count - keep)[count - keep]
    room = keep
    for q in range(count):
        if size[q] > bar:
            room -= 1

    out = np.empty(keep, places.dtype)
    n = 0
    for q in range(count):
        if size[q] > bar:
            out[n] = places[q]
            n += 1
        elif size[q] == bar and room > 0:
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
    """Fill `rows` (m, keep), -1 past the end, and `values` of m columns of S B S' + content; see `HybridItems`.

    behaviour (n, n) by column, stand_in (n, m) by column, stand_in_rows the (n, n) matrix W of the fitted items by row,
    content (n, m) by column; own_column (m,), own (n,) shares of own behaviour. A column with its own behaviour must be
    a column of `behaviour` at the same place.
    """
    n, keep = len(own), rows.shape[1]
    total, blended = np.empty(n, np.float32), np.empty(n, np.float32)
    mark, blend_mark = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    seen, also = np.empty(n, np.int32), np.empty(n, np.int32)
    for j in range(first, last):
        count = 0
        if own_column[j] > 0:
            a, z = behaviour[1][j], behaviour[1][j + 1]
            count = _gather(total, mark, j, seen, behaviour[0], behaviour[2], a, z, own_column[j], count)

        if own_column[j] < 1:
            for q in range(stand_in[1][j], stand_in[1][j + 1]):
                k, factor = stand_in[0][q], (1 - own_column[j]) * stand_in[2][q]
                a, z = behaviour[1][k], behaviour[1][k + 1]
                count = _gather(total, mark, j, seen, behaviour[0], behaviour[2], a, z, factor, count)

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
    """Fill positions (users, k) and scores of the k greatest positive cells of each row of a product.

    They come holding -1 and -inf. history (users, n) and weights (n, n) by row; barred (indices, starts) by row,
    without rows where nothing is barred; allowed (n,), or empty where all are. Ties go to the lower position.
    """
    n, k = len(weights[1]) - 1, positions.shape[1]
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
                total[barred[0][q]] = -1  # places that were not reached are never read

        size = 0
        for q in range(count):
            i = seen[q]
            score = total[i]
            if score <= 0 or (len(allowed) and not allowed[i]):
                continue
            if size == k and (score < scores[u, k - 1] or (score == scores[u, k - 1] and i > positions[u, k - 1])):
                continue

            at = size if size < k else k - 1
            while at > 0 and (scores[u, at - 1] < score or (scores[u, at - 1] == score and positions[u, at - 1] > i)):
                scores[u, at], positions[u, at] = scores[u, at - 1], positions[u, at - 1]
                at -= 1

            scores[u, at], positions[u, at] = score, i
            size = min(size + 1, k)


@compiled()
def largest_of_columns(
    index: Int, start: Long, value: Float, first: int, last: int, rows: Int, values: Float
) -> None:  # pragma: no cover - compiled
    """Fill `rows` (columns, keep), -1 past the end, and `values`: each column's largest magnitudes, rows ascending."""
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
    """Fill columns of `out` (users, m, features) with what each user's items say of each candidate.

    start (users + 1,), item (n,): users' items; weight (n, 3): what they count in three sums; matrix by row; candidates
    (users, m), -1 past the end. columns (4,): where the logarithms of the three sums and of 1 + the number of positive
    cells go, -1 for nowhere.
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


@compiled(fastmath=True)
def candidate_cosines(
    queries: Float, vectors: Float, candidates: Long, column: int, first: int, last: int, out: Float
) -> None:  # pragma: no cover - compiled
    """Fill a column of `out` (users, m, features) with query . vector of each candidate; -1 is none."""
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
    """Fill `out` (users, m) with relu(features @ inner + bias) @ outer, each candidate alone."""
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
