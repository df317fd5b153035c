"""The compiled loops behind `topk.py`, which imports this module when it first needs them: numba is slow to import.

All release the interpreter lock and start no threads of their own. numba keeps the machine code on disk.
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

LANES = 16  # items side by side in one vector: the width of 512-bit float32, split in two or four elsewhere
ROWS = 6  # queries of one register tile: 6 x 4 vectors leave 8 of 32 registers for the operands
# The instructions that numba itself compiles for: those of NUMBA_CPU_FEATURES, and none for a "generic" processor.
_NAMED: str | None = config.CPU_FEATURES
_FEATURES = (get_host_cpu_features() if _NAMED is None else _NAMED).split(",")
PAIRS = "+avx512bf16" in _FEATURES  # products of bfloat16 pairs, at four times the speed of float32
VECTORS = 4 if "+avx512f" in _FEATURES else 1  # vectors of items in one register tile
_SUPER = 64  # groups under one entry of the upper level of maxima

_exact = compiled()
_any_order = compiled(fastmath={"reassoc", "contract"})  # sums are vectorised; infinities stay what they are
_no_nan = compiled(fastmath={"reassoc", "contract", "nnan", "nsz"})  # maxima in any order too


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"


_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_LONG = ir.IntType(64)
_BFLOATS = ir.VectorType(_BFloat(), 2 * LANES)


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def _tile(_: Any, queries: Any, start: Any, items: Any, at: Any, best: Any, to: Any, stride: Any, steps: Any) -> Any:
    """best[to + r * stride + lane] becomes the maximum of itself and the products of query r with that lane's items."""
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
    """Emit the loop over the dimensions; returns ROWS x VECTORS sums, which never leave the registers."""
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
    """Largest approximate product of each query with each group of the chunks first..last.

    Args:
        queries: tiles (b / ROWS, steps, ROWS), flat.
        items: tiles (chunks x panels, steps, VECTORS x LANES), flat; float32, or uint32 holding two bfloat16.
        best: (b, chunks x LANES), written.
        steps: loop steps over the dimensions.
        panels: tiles of items in one chunk of LANES groups.
        first: chunk to begin with.
        last: chunk to stop before.
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
    """Lengths of values[rows], in float64; NaN or infinite where a value is."""
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
    """Write values[rows] * scales into tiles; bounds (2, slots) are upper bounds on length and on rounding error.

    out is (tiles, steps, width): float32 bits, or two bfloat16 to an entry. Scales are powers of two, lengths then at
    most 1, so that nothing overflows. Entries too small for a normal float32 become 0: products would drop them.
    """
    width, d = out.shape[2], values.shape[1]
    row = np.zeros(2 * out.shape[1], np.float32)
    bits = row.view(np.uint32)

    for slot in range(rows.size):
        length, error = 0.0, 0.0
        for j in range(d):
            value = np.float64(values[rows[slot], j]) * scales[slot]
            short = np.float32(value)
            if pairs:  # Dekker's splitting: rounds to the 8 significant bits of bfloat16
                wide = short * np.float32(65537)
                short = wide - (wide - short)

            if abs(short) < np.float32(2.0**-126):
                short = np.float32(0)

            row[j] = short
            length += value * value
            error += (value - short) * (value - short)

        bounds[0, slot] = np.sqrt(length) * 1.00001
        bounds[1, slot] = np.sqrt(error) * 1.00001
        for s in range(out.shape[1]):
            if pairs:
                out[slot // width, s, slot % width] = (bits[2 * s] >> 16) | (bits[2 * s + 1] & 0xFFFF0000)
            else:
                out[slot // width, s, slot % width] = bits[s]


@_exact
def _push(scores: NDArray[np.float32], positions: NDArray[np.int64], size: int, score: Any, position: int) -> int:
    """Offer a candidate to the heap, whose root is the worst: lowest score, then highest position. Returns the size."""
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
    """Replace the root of the heap's first `size` entries."""
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
    """Turn the heap into a list, best first."""
    for end in range(size - 1, 0, -1):
        score, position = scores[end], positions[end]
        worst, where = scores[0], positions[0]
        _sink(scores, positions, end, score, position)
        scores[end], positions[end] = worst, where


@_exact
def _holds(sorted_values: NDArray[np.int64], value: int) -> bool:
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
    """Inner product of two rows; given by index, for a slice would count references across threads."""
    total = 0.0
    for j in range(queries.shape[1]):
        total += np.float64(queries[q, j]) * np.float64(items[i, j])

    return np.float32(total)


@_no_nan
def _raise_to_bounds(
    best: NDArray[np.float32], norms: NDArray[np.float32], errors: NDArray[np.float32], whole: Any, rest: Any
) -> None:
    """Approximate group maxima of one query (groups,) become upper bounds of the exact ones."""
    for g in range(best.size):
        best[g] += whole * errors[g] + rest * norms[g]


@_no_nan
def _largest(values: NDArray[np.float32]) -> Any:
    largest = np.float32(-np.inf)
    for g in range(values.size):
        largest = max(largest, values[g])

    return largest


@_exact
def _first(values: NDArray[np.float32], wanted: Any, start: int) -> int:
    """Position of a value that is certainly there."""
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

    Queries (b, d) come with the bounds (2, b or more) on their scaled lengths and rounding errors and the `scales` that
    undo the scaling; `best` (b or more, groups) from `scan` is overwritten. Group g of the items (n, d) is
    allowed[g * group : (g + 1) * group], rising; norms and errors (groups,) bound its scaled members. Query q may not
    have indices[indptr[q] : indptr[q + 1]], sorted, nor what `mask` (n,), unless empty, forbids. Positions and scores
    (b, k) hold -1 and -inf, and are written.
    """
    groups, k = -(-allowed.size // group), positions.shape[1]  # without those that only fill the last tile
    upper = np.empty(-(-groups // _SUPER), np.float32)
    slack = 2.0**-23 * (queries.shape[1] + 16)  # of that many products summed in float32, twice over

    for q in range(queries.shape[0]):
        bound, out = best[q, :groups], indices[indptr[q] : indptr[q + 1]]
        whole = np.float32((query_bounds[0, q] + query_bounds[1, q]) * 1.00001)
        rest = np.float32((query_bounds[1, q] + slack * whole) * 1.00001)
        _raise_to_bounds(bound, norms, errors, whole, rest)
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
                if (size < k or score >= scores[q, 0]) and not _holds(out, position):
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
    """Top-k of each row of dense scores (b, n), other arguments as above; False where a score is NaN or infinite."""
    n, k = values.shape[1], positions.shape[1]
    for q in range(values.shape[0]):
        out = indices[indptr[q] : indptr[q + 1]]
        size = 0
        for start in range(0, n, _SUPER):
            stop = min(n, start + _SUPER)
            worst = scores[q, 0] if size == k else np.float32(-np.inf)
            better = 0
            sound = 0
            for i in range(start, stop):
                better += values[q, i] > worst
                sound += abs(values[q, i]) < np.float32(np.inf)

            if sound < stop - start:
                return False
            if not better:
                continue

            for i in range(start, stop):
                score = values[q, i]
                if (size < k or score > scores[q, 0]) and not (mask.size and not mask[i]) and not _holds(out, i):
                    size = _push(scores[q], positions[q], size, score, i)

        _sort(scores[q], positions[q], size)

    return True
