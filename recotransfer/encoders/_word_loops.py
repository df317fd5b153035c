"""Compiled loops of `encoders/static.py`: look up the words of many texts in a vocabulary, and sum rows of a table.

They release the interpreter lock and start no threads. numba caches the machine code on disk.
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

_START = np.uint64(0xCBF29CE484222325)  # offset basis and prime of the 64-bit FNV-1a hash (Fowler, Noll and Vo)
_PRIME = np.uint64(0x100000001B3)
_HASH = np.uint64(ord("#"))
_SHIFT = np.uint64(32)
_LONGEST = 64  # bytes of an unknown word that are split into pieces, which takes time quadratic in them


@compiled()
def _slot(keys: _Keys, key: np.uint64) -> np.uint64:  # pragma: no cover - compiled
    """The slot of `key` in an open-addressing hash table, or the empty slot where it would be inserted."""
    mask = np.uint64(len(keys) - 1)
    at = (key ^ (key >> _SHIFT)) & mask
    while keys[at] != 0 and keys[at] != key:
        at = (at + np.uint64(1)) & mask

    return at


@compiled()
def open_table(text: _Bytes, ends: _Long) -> tuple[_Keys, _Int]:  # pragma: no cover - compiled
    """Build a hash table: keys (size,) uint64, 0 where empty, and rows (size,) int32 of the entries.

    The entries are concatenated in the UTF-8 bytes `text` and end at `ends`.
    """
    size = 16
    while size < 3 * len(ends):
        size *= 2

    keys, rows = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
    start = 0
    for row in range(len(ends)):
        key = _START
        for at in range(start, ends[row]):
            key = (key ^ np.uint64(text[at])) * _PRIME

        start = ends[row]
        slot = _slot(keys, key)
        keys[slot], rows[slot] = key, row

    return keys, rows


@compiled()
def lookup(
    text: _Bytes, ends: _Long, keys: _Keys, rows: _Int, letter: NDArray[np.bool_]
) -> tuple[_Int, _Long]:  # pragma: no cover - compiled
    """Rows found (m,) int32 in reading order, and where each text's rows begin (n + 1,).

    `letter` (256,) marks the bytes that belong to words. An unknown word is split into its longest known beginning,
    then the longest known "##" piece, and so on; bytes with which no piece begins are skipped.
    """
    found = np.empty(len(text), np.int32)
    start = np.zeros(len(ends) + 1, np.int64)
    inner = ((_START ^ _HASH) * _PRIME ^ _HASH) * _PRIME
    count = at = 0

    for n in range(len(ends)):
        while at < ends[n]:
            if not letter[text[at]]:
                at += 1
                continue

            first, key = at, _START
            while at < ends[n] and letter[text[at]]:
                key = (key ^ np.uint64(text[at])) * _PRIME
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
                    key = (key ^ np.uint64(text[end])) * _PRIME
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
    """Fill `out` (n, dim + width) with sums over each text's words, divided by the square root of their number.

    The first `dim` columns sum rows of `table` (words, dim), the others max(0, own[word] + before[previous word]) of
    two tables (words, width); NaN where a text has no word.
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
