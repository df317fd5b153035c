"""Compiled loops behind `solvers.py`. Importing this imports numba, so it is imported where a loop is run, not before.

The machine code is cached on disk beside the package (or in the user's cache folder where that is read-only).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


@numba.njit(parallel=True, cache=True, fastmath=True)  # type: ignore[untyped-decorator]
def local_ridge_columns(
    gram_index: Any,
    gram_start: Any,
    gram_value: Any,
    index: Any,
    start: Any,
    value: Any,
    diagonal: Any,
    neighbours: int,
    reg: float,
    exclude_self: bool,
    workers: int,
) -> Any:  # pragma: no cover - compiled
    """Rows (n, neighbours), -1 past the end, and weights of each column's ridge system; see `solvers.local_ridge`.

    gram comes as CSR, the target as CSC, both (n, n).
    """
    n = len(start) - 1
    out_rows = np.full((n, neighbours), -1, np.int32)
    out_values = np.zeros((n, neighbours), np.float32)

    for worker in numba.prange(workers):
        place = np.full(n, -1, np.int32)
        system = np.empty((neighbours, neighbours), np.float64)
        right = np.empty(neighbours, np.float64)
        for j in range(worker, n, workers):
            first, size = start[j], start[j + 1] - start[j]
            gain = np.empty(size, np.float64)
            for q in range(size):
                i = index[first + q]
                own = exclude_self and i == j
                gain[q] = 1.0 if own else -(value[first + q] ** 2) / (diagonal[i] + reg)

            best = np.argsort(gain, kind="mergesort")
            m = 0
            while m < min(neighbours, size) and gain[best[m]] < 0:
                m += 1

            for a in range(m):
                place[index[first + best[a]]] = a

            for a in range(m):
                i = index[first + best[a]]
                system[a, :m] = 0
                for q in range(gram_start[i], gram_start[i + 1]):
                    b = place[gram_index[q]]
                    if b >= 0:
                        system[a, b] = gram_value[q]

                system[a, a] = diagonal[i] + reg
                right[a] = value[first + best[a]]

            for a in range(m):
                place[index[first + best[a]]] = -1

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
                out_rows[j, a] = index[first + best[a]]
                out_values[j, a] = right[a]

    return out_rows, out_values


@numba.njit  # type: ignore[untyped-decorator]
def _gather(
    total: Any,
    mark: Any,
    stamp: int,
    seen: Any,
    index: Any,
    value: Any,
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


@numba.njit  # type: ignore[untyped-decorator]
def _largest(total: Any, seen: Any, count: int, keep: int) -> Any:
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


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def smoothed_columns(
    behaviour: Any, stand_in: Any, stand_in_rows: Any, content: Any, own_column: Any, own: Any, keep: int, workers: int
) -> Any:  # pragma: no cover - compiled
    """Rows (m, keep), -1 past the end, and values of m columns of S B S' + content; see `hybrid.HybridItems`.

    Matrices are (index, start, value): behaviour (n, n) by column, stand_in (n, m) by column, stand_in_rows the (n, n)
    matrix W of the fitted items by row, content (n, m) by column; own_column (m,), own (n,) shares of own behaviour.
    A column with its own behaviour must be a column of `behaviour` at the same place.
    """
    n, m = len(own), len(own_column)
    rows = np.full((m, keep), -1, np.int32)
    values = np.zeros((m, keep), np.float32)

    for worker in numba.prange(workers):
        total, blended = np.empty(n, np.float32), np.empty(n, np.float32)
        mark, blend_mark = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
        seen, also = np.empty(n, np.int32), np.empty(n, np.int32)
        for j in range(worker, m, workers):
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
            number = _gather(blended, blend_mark, j, also, content[0], content[2], a, z, np.float32(1), number)
            best = _largest(blended, also, number, keep)
            for q in range(len(best)):
                rows[j, q], values[j, q] = best[q], blended[best[q]]

    return rows, values


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def product_top_k(
    history: Any, weights: Any, barred: Any, allowed: Any, k: int, workers: int
) -> Any:  # pragma: no cover - compiled
    """Positions (users, k), -1 past the end, and scores of the k greatest positive cells of each row of a product.

    history (users, n) and weights (n, n) by row as (index, start, value); barred (index, start) by row, without rows
    where nothing is barred; allowed (n,) bool, or empty where all are. Ties go to the lower position.
    """
    users = len(history[1]) - 1
    n = len(weights[1]) - 1
    positions = np.full((users, k), -1, np.int64)
    scores = np.full((users, k), -np.inf, np.float32)

    for worker in numba.prange(workers):
        total = np.empty(n, np.float32)
        mark = np.full(n, -1, np.int32)
        seen = np.empty(n, np.int32)
        for u in range(worker, users, workers):
            count = 0
            for q in range(history[1][u], history[1][u + 1]):
                i = history[0][q]
                a, z = weights[1][i], weights[1][i + 1]
                count = _gather(total, mark, u, seen, weights[0], weights[2], a, z, history[2][q], count)

            if len(barred[1]) > 1:
                for q in range(barred[1][u], barred[1][u + 1]):
                    total[barred[0][q]] = -1  # places that were not reached are never read

            held = 0
            for q in range(count):
                i = seen[q]
                score = total[i]
                if score <= 0 or (len(allowed) and not allowed[i]):
                    continue
                if held == k and (score < scores[u, k - 1] or (score == scores[u, k - 1] and i > positions[u, k - 1])):
                    continue

                at = held if held < k else k - 1
                while at > 0 and (
                    scores[u, at - 1] < score or (scores[u, at - 1] == score and positions[u, at - 1] > i)
                ):
                    scores[u, at], positions[u, at] = scores[u, at - 1], positions[u, at - 1]
                    at -= 1

                scores[u, at], positions[u, at] = score, i
                held = min(held + 1, k)

    return positions, scores


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def largest_of_columns(
    index: Any, start: Any, value: Any, keep: int, workers: int
) -> Any:  # pragma: no cover - compiled
    """Rows (columns, keep), -1 past the end, and values of each column's `keep` largest magnitudes, rows ascending."""
    m = len(start) - 1
    rows = np.full((m, keep), -1, np.int32)
    values = np.zeros((m, keep), np.float32)

    for worker in numba.prange(workers):
        for j in range(worker, m, workers):
            first, count = start[j], start[j + 1] - start[j]
            best = _largest(value[first : first + count], np.arange(count), count, keep)
            for q in range(len(best)):
                rows[j, q], values[j, q] = index[first + best[q]], value[first + best[q]]

    return rows, values


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def candidate_sums(
    start: Any, item: Any, weight: Any, matrix: Any, candidates: Any, columns: Any, out: Any, workers: int
) -> None:  # pragma: no cover - compiled
    """Fill columns of `out` (users, m, features) with what each user's items say of each candidate.

    start (users + 1,), item (n,): users' items; weight (n, 3): what they count in three sums; matrix by row as (index,
    start, value); candidates (users, m), -1 past the end. columns (4,): where the logarithms of the three sums and of
    1 + the number of positive cells go, -1 for nowhere.
    """
    n, m = len(matrix[1]) - 1, candidates.shape[1]
    for worker in numba.prange(workers):
        place = np.full(n, -1, np.int32)
        sums = np.zeros((m, 4), np.float32)
        for u in range(worker, len(candidates), workers):
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


@numba.njit(parallel=True, cache=True, fastmath=True)  # type: ignore[untyped-decorator]
def candidate_cosines(
    queries: Any, vectors: Any, candidates: Any, column: int, out: Any, workers: int
) -> None:  # pragma: no cover - compiled
    """Fill a column of `out` (users, m, features) with query . vector of each candidate; -1 is none."""
    for worker in numba.prange(workers):
        for u in range(worker, len(candidates), workers):
            for c in range(candidates.shape[1]):
                if candidates[u, c] >= 0:
                    total = np.float32(0)
                    for d in range(queries.shape[1]):
                        total += queries[u, d] * vectors[candidates[u, c], d]

                    out[u, c, column] = total


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def network_scores(
    features: Any, inner: Any, bias: Any, outer: Any, workers: int
) -> Any:  # pragma: no cover - compiled
    """(users, m) relu(features @ inner + bias) @ outer: one candidate at a time, so that none depends on the others."""
    out = np.empty(features.shape[:2], np.float32)
    for worker in numba.prange(workers):
        hidden = np.empty(len(bias), np.float32)
        for u in range(worker, len(features), workers):
            for c in range(features.shape[1]):
                hidden[:] = bias
                for f in range(features.shape[2]):
                    for h in range(len(bias)):
                        hidden[h] += features[u, c, f] * inner[f, h]

                total = np.float32(0)
                for h in range(len(bias)):
                    total += outer[h] * max(hidden[h], np.float32(0))

                out[u, c] = total

    return out
