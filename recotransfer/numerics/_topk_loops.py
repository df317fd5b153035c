"""The compiled loops behind `topk.py`, which imports this module on first use, because numba is slow to import.

They release the interpreter lock and start no threads. numba caches the machine code on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numpy.typing import NDArray

from recotransfer.numerics.compiled import compiled

LANES = 16  # items in one vector: 512 bits of float32; LLVM splits it on processors with narrower vectors
ROWS = 6  # queries in one register tile: 6 x 4 sums leave 8 of the 32 vector registers for operands
# numba compiles for the features in NUMBA_CPU_FEATURES if set ("" for a generic processor), else for this machine.
_NAMED: str | None = config.CPU_FEATURES
_FEATURES = (get_host_cpu_features() if _NAMED is None else _NAMED).split(",")
PAIRS = "+avx512bf16" in _FEATURES  # multiply pairs of bfloat16, four times as fast as float32
VECTORS = 4 if "+avx512f" in _FEATURES else 1  # vectors of items in one register tile
_SUPER = 64  # groups under one entry of the second level of maxima

_exact = compiled()
_any_order = compiled(fastmath={"reassoc", "contract"})  # vectorised sums that still handle infinities
_no_nan = compiled(fastmath={"reassoc", "contract", "nnan", "nsz"})  # vectorised maxima as well


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat type, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"


_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_LONG = ir.IntType(64)
_BFLOATS = ir.VectorType(_BFloat(), 2 * LANES)


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def _tile(_: Any, queries: Any, start: Any, items: Any, at: Any, best: Any, to: Any, stride: Any, steps: Any) -> Any:
    """Raise best[to + r * stride + lane] to the largest product of query r with the items in that lane."""
    pairs = items.dtype == types.uint32
    signature = types.void(queries, start, items, at, best, to, stride, steps)

    def generate(context: Any, code: Any, signature: Any, args: Any) -> Any:
        data = {i: context.make_array(signature.args[i])(context, code, args[i]).data for i in (0, 2, 4)}
        ends = _products(code, code.gep(data[0], [args[1]]), code.gep(data[2], [args[3]]), args[7], pairs)
        for r in range(ROWS):
            index = code.add(args[5], code.mul(args[6], _LONG(r)))
            place = code.bitcast(code.gep(data[4], [index]), _FLOATS.as_pointer())
            value = _load(code, place, _FLOATS)
            for end in ends[r * VECTORS : (r + 1) * VECTORS]:
                value = code.select(code.fcmp_ordered(">", value, end, flags=["nnan", "nsz"]), value, end)

            code.store(value, place).align = 4

        return context.get_dummy_value()

    return signature, generate


def _load(code: Any, place: Any, kind: Any) -> Any:
    value = code.load(code.bitcast(place, kind.as_pointer()), typ=kind)
    value.align = 4
    return value


def _products(code: Any, queries: Any, items: Any, steps: Any, pairs: bool) -> list[Any]:
    """Emit the loop over the dimensions and return its ROWS x VECTORS sums, which stay in registers throughout."""
    operand = _BFLOATS if pairs else _FLOATS
    name = "llvm.x86.avx512bf16.dpbf16ps.512" if pairs else f"llvm.fma.v{LANES}f32"
    kinds = [_FLOATS, operand, operand] if pairs else [operand, operand, _FLOATS]
    multiply = cgutils.get_or_insert_function(code.module, ir.FunctionType(_FLOATS, kinds), name)
    before, loop, after = code.block, code.append_basic_block("steps"), code.append_basic_block("after")
    code.branch(loop)
    code.position_at_end(loop)
    step = code.phi(_LONG)
    step.add_incoming(_LONG(0), before)
    sums = [code.phi(_FLOATS) for _ in range(ROWS * VECTORS)]
    column = code.gep(items, [code.mul(step, _LONG(VECTORS * LANES))])
    columns = [code.bitcast(_load(code, code.gep(column, [_LONG(v * LANES)]), _INTS), operand) for v in range(VECTORS)]
    query = code.gep(queries, [code.mul(step, _LONG(ROWS))])
    ends = []

    for r in range(ROWS):
        number = _load(code, code.gep(query, [_LONG(r)]), ir.IntType(32))
        one = code.insert_element(ir.Constant(_INTS, ir.Undefined), number, ir.IntType(32)(0))
        row = code.bitcast(code.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES)), operand)
        for total, values in zip(sums[r * VECTORS :], columns, strict=False):
            ends.append(code.call(multiply, [total, row, values] if pairs else [row, values, total]))

    following = code.add(step, _LONG(1))
    step.add_incoming(following, loop)
    for total, end in zip(sums, ends, strict=True):
        total.add_incoming(ir.Constant(_FLOATS, [0.0] * LANES), before)
        total.add_incoming(end, loop)

    code.cbranch(code.icmp_signed("<", following, steps), loop, after)
    code.position_at_end(after)

    return ends


@_exact
def scan(
    queries: NDArray[Any],
    items: NDArray[Any],
    best: NDArray[np.float32],
    steps: int,
    panels: int,
    first: int,
    last: int,
) -> None:
    """Write the largest approximate product of each query with each group of chunks first..last.

    Args:
        queries: flat tiles (b / ROWS, steps, ROWS).
        items: flat tiles (chunks x panels, steps, VECTORS x LANES); float32, or uint32 with two bfloat16 each.
        best: (b, chunks x LANES), output.
        steps: loop steps over the dimensions.
        panels: tiles of items in one chunk of LANES groups.
        first: first chunk.
        last: end of the chunks, exclusive.
    """
    best[:, first * LANES : last * LANES] = -np.inf
    groups = best.shape[1]
    flat = best.reshape(-1)

    for panel in range(first * panels, last * panels):
        column = panel // panels * LANES
        for tile in range(best.shape[0] // ROWS):
            _tile(
                queries, tile * steps * ROWS, items, panel * steps * VECTORS * LANES,
                flat, tile * ROWS * groups + column, groups, steps,
            )  # fmt: skip


@_any_order
def measure(values: NDArray[np.float32], rows: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Write the lengths of values[rows] in float64; NaN or infinite if any value of the row is."""
    for slot in range(rows.size):
        total = 0.0
        for j in range(values.shape[1]):
            total += np.float64(values[rows[slot], j]) * np.float64(values[rows[slot], j])

        out[slot] = np.sqrt(total)


@_exact
def pack(
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    scales: NDArray[np.float64],
    pairs: bool,
    out: NDArray[np.uint32],
    bounds: NDArray[np.float32],
) -> None:
    """Write values[rows] * scales into tiles, and upper bounds on each row's length and rounding error.

    `out` is (tiles, steps, width): float32 bits, or two bfloat16 per entry; `bounds` is (2, slots). Scales are powers
    of two that bring lengths to at most 1, so that nothing overflows. Subnormal entries become 0, because the bfloat16
    product ignores them; the rounding error accounts for that.
    """
    width, d = out.shape[2], values.shape[1]
    row = np.zeros(2 * out.shape[1], np.float32)
    bits = row.view(np.uint32)

    for slot in range(rows.size):
        length, error = 0.0, 0.0
        for j in range(d):
            value = np.float64(values[rows[slot], j]) * scales[slot]
            short = np.float32(value)
            if pairs:  # Dekker's splitting rounds to the 8 significant bits of bfloat16
                wide = short * np.float32(65537)
                short = wide - (wide - short)

            if abs(short) < np.float32(2.0**-126):
                short = np.float32(0)

            row[j] = short
            length += value * value
            error += (value - short) * (value - short)

        # The small factor covers the rounding of these sums and of the float32 result.
        bounds[0, slot] = np.sqrt(length) * 1.00001
        bounds[1, slot] = np.sqrt(error) * 1.00001
        for s in range(out.shape[1]):
            if pairs:
                out[slot // width, s, slot % width] = (bits[2 * s] >> 16) | (bits[2 * s + 1] & 0xFFFF0000)
            else:
                out[slot // width, s, slot % width] = bits[s]


@_exact
def _push(scores: NDArray[np.float32], positions: NDArray[np.int64], size: int, score: Any, position: int) -> int:
    """Add a candidate to a heap of the k best and return its size; the worst is at the root (tie: highest position)."""
    k = scores.size
    if size < k:
        node = size
        while node > 0:
            parent = (node - 1) // 2
            if scores[parent] < score or (scores[parent] == score and positions[parent] > position):
                break

            scores[node], positions[node] = scores[parent], positions[parent]
            node = parent

        scores[node], positions[node] = score, position
        return size + 1

    if score > scores[0] or (score == scores[0] and position < positions[0]):
        _sink(scores, positions, k, score, position)

    return size


@_exact
def _sink(scores: NDArray[np.float32], positions: NDArray[np.int64], size: int, score: Any, position: int) -> None:
    """Replace the root of the heap (its first `size` entries) and restore heap order."""
    node = 0
    while True:
        child = 2 * node + 1
        if child >= size:
            break

        right = child + 1
        if right < size and (
            scores[right] < scores[child] or (scores[right] == scores[child] and positions[right] > positions[child])
        ):
            child = right

        if score < scores[child] or (score == scores[child] and position > positions[child]):
            break

        scores[node], positions[node] = scores[child], positions[child]
        node = child

    scores[node], positions[node] = score, position


@_exact
def _sort(scores: NDArray[np.float32], positions: NDArray[np.int64], size: int) -> None:
    """Sort the heap in place, best first."""
    for end in range(size - 1, 0, -1):
        score, position = scores[end], positions[end]
        worst, where = scores[0], positions[0]
        _sink(scores, positions, end, score, position)
        scores[end], positions[end] = worst, where


@_exact
def _contains(sorted_values: NDArray[np.int64], value: int) -> bool:
    """Binary search."""
    low, high = 0, sorted_values.size
    while low < high:
        middle = (low + high) // 2
        if sorted_values[middle] < value:
            low = middle + 1
        else:
            high = middle

    return low < sorted_values.size and sorted_values[low] == value


@_any_order
def _dot(queries: NDArray[np.float32], q: int, items: NDArray[np.float32], i: int) -> Any:
    """Inner product of two rows, passed by index: slices would make threads contend for reference counts."""
    total = 0.0
    for j in range(queries.shape[1]):
        total += np.float64(queries[q, j]) * np.float64(items[i, j])

    return np.float32(total)


@_no_nan
def _raise_to_bounds(
    best: NDArray[np.float32], norms: NDArray[np.float32], errors: NDArray[np.float32], length: Any, error: Any
) -> None:
    """Turn one query's approximate group maxima (groups,) into upper bounds of the exact maxima."""
    for g in range(best.size):
        best[g] += length * errors[g] + error * norms[g]


@_no_nan
def _largest(values: NDArray[np.float32]) -> Any:
    largest = np.float32(-np.inf)
    for g in range(values.size):
        largest = max(largest, values[g])

    return largest


@_exact
def _first(values: NDArray[np.float32], wanted: Any, start: int) -> int:
    """First position from `start` on that holds `wanted`, which must exist."""
    while values[start] != wanted:
        start += 1

    return start


@_exact
def best_of_groups(
    queries: NDArray[np.float32],
    query_bounds: NDArray[np.float32],
    scales: NDArray[np.float64],
    best: NDArray[np.float32],
    items: NDArray[np.float32],
    allowed: NDArray[np.int64],
    group: int,
    norms: NDArray[np.float32],
    errors: NDArray[np.float32],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int64],
    mask: NDArray[np.bool_],
    positions: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Exact top-k of each query by rescoring groups, highest bound first, until no bound can reach the k-th score.

    Args:
        queries: (b, d).
        query_bounds: (2, b or more) bounds on the lengths and rounding errors of the scaled queries.
        scales: (b or more,) factors that undo the scaling of the products.
        best: (b or more, groups) from `scan`; overwritten.
        items: (n, d).
        allowed: ascending positions; group g is allowed[g * group : (g + 1) * group].
        group: items per group.
        norms: (groups,) bounds on the lengths of the scaled items.
        errors: (groups,) bounds on the rounding errors of the scaled items.
        indptr: (b + 1,) starts in `indices`.
        indices: sorted positions that are excluded for each query.
        mask: (n,) True for allowed items; empty if all are.
        positions: (b, k) filled with -1; output.
        scores: (b, k) filled with -inf; output.
    """
    groups, k = -(-allowed.size // group), positions.shape[1]  # without the padding groups
    upper = np.empty(-(-groups // _SUPER), np.float32)
    slack = 2.0**-23 * (queries.shape[1] + 16)  # twice the bound on the error of summing that many products in float32

    for q in range(queries.shape[0]):
        bound, excluded = best[q, :groups], indices[indptr[q] : indptr[q + 1]]
        length = np.float32((query_bounds[0, q] + query_bounds[1, q]) * 1.00001)
        error = np.float32((query_bounds[1, q] + slack * length) * 1.00001)
        _raise_to_bounds(bound, norms, errors, length, error)
        for s in range(upper.size):
            upper[s] = _largest(bound[s * _SUPER : (s + 1) * _SUPER])

        size = 0
        while True:
            highest = _largest(upper)
            if highest == -np.inf:
                break

            s = _first(upper, highest, 0)
            g = _first(bound, highest, s * _SUPER)
            reach = np.float32(highest * scales[q])
            if size == k and (reach < scores[q, 0] or (reach == scores[q, 0] and allowed[g * group] > positions[q, 0])):
                break

            for i in range(g * group, min(allowed.size, (g + 1) * group)):
                position = allowed[i]
                if mask.size and not mask[position]:
                    continue

                score = _dot(queries, q, items, position)
                if (size < k or score >= scores[q, 0]) and not _contains(excluded, position):
                    size = _push(scores[q], positions[q], size, score, position)

            bound[g] = -np.inf
            upper[s] = _largest(bound[s * _SUPER : (s + 1) * _SUPER])

        _sort(scores[q], positions[q], size)


@_any_order
def best_of_scores(
    values: NDArray[np.float32],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int64],
    mask: NDArray[np.bool_],
    positions: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> bool:
    """Top-k of each row of dense scores (b, n); False if any is NaN or infinite. Arguments as in `best_of_groups`."""
    n, k = values.shape[1], positions.shape[1]
    for q in range(values.shape[0]):
        excluded = indices[indptr[q] : indptr[q + 1]]
        size = 0
        for start in range(0, n, _SUPER):
            stop = min(n, start + _SUPER)
            # Counting first is a vectorised pass, and most blocks turn out to hold nothing better.
            worst = scores[q, 0] if size == k else np.float32(-np.inf)
            better = 0
            finite = 0
            for i in range(start, stop):
                better += values[q, i] > worst
                finite += abs(values[q, i]) < np.float32(np.inf)

            if finite < stop - start:
                return False
            if not better:
                continue

            for i in range(start, stop):
                score = values[q, i]
                if (
                    (size < k or score > scores[q, 0])
                    and not (mask.size and not mask[i])
                    and not _contains(excluded, i)
                ):
                    size = _push(scores[q], positions[q], size, score, i)

        _sort(scores[q], positions[q], size)

    return True
