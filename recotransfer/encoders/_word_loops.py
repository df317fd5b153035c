"""The compiled loops behind `encoders/static.py`: words of many texts looked up in a vocabulary, rows of a table added.

They release the interpreter lock and start no threads. numba keeps the machine code on disk.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recotransfer.numerics.compiled import compiled

_Keys: TypeAlias = NDArray[np.uint64]
_Bytes: TypeAlias = NDArray[np.uint8]
_Int: TypeAlias = NDArray[np.int32]
_Long: TypeAlias = NDArray[np.int64]
_Float: TypeAlias = NDArray[np.float32]

_START = np.uint64(0xCBF29CE484222325)  # FNV-1a in 64 bits (Fowler, Noll and Vo)
_TIMES = np.uint64(0x100000001B3)
_HASH = np.uint64(ord("#"))
_SHIFT = np.uint64(32)
_LONGEST = 64  # bytes of an unknown word that are looked at: its pieces cost the square of them


@compiled()
def _slot(keys: _Keys, key: np.uint64) -> np.uint64:  # pragma: no cover - compiled
    """Where `key` stands in the open table, or the empty slot where it would."""
    mask = np.uint64(len(keys) - 1)
    at = (key ^ (key >> _SHIFT)) & mask
    while keys[at] != 0 and keys[at] != key:
        at = (at + np.uint64(1)) & mask

    return at


@compiled()
def open_table(text: _Bytes, ends: _Long) -> tuple[_Keys, _Int]:  # pragma: no cover - compiled
    """Keys (size,) uint64, 0 where empty, and rows (size,) int32 of the entries whose UTF-8 bytes end at `ends`."""
    size = 16
    while size < 3 * len(ends):
        size *= 2

    keys, rows = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
    start = 0
    for row in range(len(ends)):
        key = _START
        for at in range(start, ends[row]):
            key = (key ^ np.uint64(text[at])) * _TIMES

        start = ends[row]
        slot = _slot(keys, key)
        keys[slot], rows[slot] = key, row

    return keys, rows


@compiled()
def lookup(
    text: _Bytes, ends: _Long, keys: _Keys, rows: _Int, letter: NDArray[np.bool_]
) -> tuple[_Int, _Long]:  # pragma: no cover - compiled
    """Rows found (m,) int32 in reading order, and where each text's begin (n + 1,).

    `letter` (256,) tells which bytes belong to words. An unknown word gives its longest known beginning, then the
    longest "##" piece that is known, and so on; bytes with which nothing begins are passed over.
    """
    found = np.empty(len(text), np.int32)
    start = np.zeros(len(ends) + 1, np.int64)
    inner = ((_START ^ _HASH) * _TIMES ^ _HASH) * _TIMES
    count = at = 0

    for n in range(len(ends)):
        while at < ends[n]:
            if not letter[text[at]]:
                at += 1
                continue

            first, key = at, _START
            while at < ends[n] and letter[text[at]]:
                key = (key ^ np.uint64(text[at])) * _TIMES
                at += 1

            row = rows[_slot(keys, key)]
            if row >= 0:
                found[count] = row
                count += 1
                continue

            piece, last = first, min(at, first + _LONGEST)
            while piece < last:
                key = _START if piece == first else inner
                best, after = -1, piece + 1
                for end in range(piece, last):
                    key = (key ^ np.uint64(text[end])) * _TIMES
                    row = rows[_slot(keys, key)]
                    if row >= 0:
                        best, after = row, end + 1

                if best >= 0:
                    found[count] = best
                    count += 1

                piece = after

        start[n + 1] = count

    return found[:count].copy(), start


@compiled(fastmath={"reassoc", "contract"})
def read(
    found: _Int, start: _Long, table: _Float, own: _Float, before: _Float, out: _Float
) -> None:  # pragma: no cover - compiled
    """Fill `out` (n, dim + width) with sums over each text's words, divided by the root of their number.

    The first part adds rows of `table` (words, dim), the second max(0, own[word] + before[word before it]), both
    (words, width); NaN where a text has no word.
    """
    dim, width = table.shape[1], own.shape[1]
    pair = np.empty(width, np.float32)

    for n in range(len(start) - 1):
        row = out[n]
        row[:] = 0
        for at in range(start[n], start[n + 1]):
            more, this = table[found[at]], own[found[at]]
            for d in range(dim):
                row[d] += more[d]

            if at > start[n]:
                last = before[found[at - 1]]
                for d in range(width):
                    pair[d] = this[d] + last[d]
            else:
                pair[:] = this

            for d in range(width):
                row[dim + d] += max(pair[d], np.float32(0))

        count = start[n + 1] - start[n]
        scale = np.float32(1 / np.sqrt(count)) if count else np.float32(np.nan)
        for d in range(dim + width):
            row[d] = row[d] * scale if count else scale
