"""DNA, RNA and protein sequences as counts of k-mers, over the whole sequence and by position.

A pretrained DNA model needs no class of its own: `SentenceText(model=folder, column="sequence")` averages the token
vectors of any transformers model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.arguments import checked_class
from recotransfer.data import Items
from recotransfer.encoders.base import columns_of, is_missing
from recotransfer.errors import InputError
from recotransfer.settings import PositiveInt, check_settings

_BLOCK = 1024  # sequences per batch, which bounds the memory


@checked_class
class KmerSequence:
    """Counts k-mers over the whole sequence and by position, hashed into one vector.

    The spectrum kernel (Leslie et al., 2002) counts k-mers wherever they occur. Positional counts are those of the
    weighted-degree kernel with shifts (Rätsch et al., "RASE", 2005): a k-mer is softly assigned to the two nearest of
    evenly spaced positions, so that sequences aligned at a site, such as promoters, are compared position by position.
    The counts of each kind are square-rooted and normalised to unit length, then added with hashed signs (Weinberger et
    al., 2009), so that the dot product of two sequences approximates the mean of the kernels. Case is ignored, T and U
    are equal, and k-mers with a letter outside the alphabet are skipped.

    Args:
        column: the column with sequences.
        k: lengths of the k-mers counted regardless of position.
        placed: (length, spacing of positions in letters) of the k-mers counted by position; may be empty.
        dim: width of a vector.
        alphabet: the letters; four for DNA and RNA, twenty for proteins.
    """

    modality = "sequence"

    def __init__(
        self,
        *,
        column: str = "sequence",
        k: Sequence[PositiveInt] = (4, 5, 6),
        placed: Sequence[Sequence[PositiveInt]] = ((1, 1), (2, 2), (3, 4), (4, 4)),
        dim: PositiveInt = 8192,
        alphabet: str = "ACGT",
    ) -> None:
        self.column = column
        self.k = k
        self.placed = placed
        self.dim = dim
        self.alphabet = alphabet

    @property
    def name(self) -> str:
        """Settings and version of the hashing."""
        places = "+".join(f"{k}in{span}" for k, span in self.placed)
        return f"KmerSequence/{'+'.join(map(str, self.k))}/{places}/{self.alphabet}/{self.dim}/1"

    @cached_property
    def _groups(self) -> list[tuple[int, int]]:
        """(length of the k-mers, spacing of positions) of each kind of count; spacing 0 counts the whole sequence."""
        check_settings(self)
        groups = [(k, 0) for k in self.k] + [(k, span) for k, span in self.placed]
        letters = len(set(self.alphabet))
        if not groups:
            raise InputError("KmerSequence: k and placed are both empty; give at least one length")

        most = int(40 / np.log2(max(letters, 2)))  # numbers of k-mers of at most 40 bits leave room for positions
        if letters < 2 or max(k for k, _ in groups) > most:
            raise InputError(f"k-mers of {letters} letters may be at most {most} long, got {max(k for k, _ in groups)}")

        return groups

    def values(self, items: Items) -> list[str | None]:
        """The sequence of each item, None where it has none."""
        cells = columns_of(items, [self.column])[self.column].tolist()
        return [None if is_missing(cell) else str(cell).strip() for cell in cells]

    def encode(self, values: Sequence[str]) -> NDArray[np.float32]:
        """(len(values), dim) float32, in order; NaN where a sequence has no k-mer within the alphabet."""
        out = [self._encode_block(values[first : first + _BLOCK]) for first in range(0, len(values), _BLOCK)]
        return np.concatenate(out) if out else np.zeros((0, self.dim), np.float32)

    def _encode_block(self, values: Sequence[str]) -> NDArray[np.float32]:
        letters, row, place = _concatenate(values, self.alphabet)
        total = np.zeros((len(values), self.dim))
        for number, (k, span) in enumerate(self._groups):
            kmer, first = _kmers(letters, row, k, len(self.alphabet))
            of, at, weight = row[first], place[first], np.ones(len(first))
            if span:  # counted at the two nearest positions, in proportion to their distance
                low, share = at // span, (at % span) / span
                bins = np.concatenate([low, low + 1])
                of, kmer, weight = np.tile(of, 2), np.tile(kmer, 2), np.concatenate([1 - share, share])
                kmer = kmer + (bins + 1) * len(self.alphabet) ** k

            total += _hash_counts(of, kmer, weight, number, total.shape)

        total /= np.sqrt(len(self._groups))
        total[~total.any(axis=1)] = np.nan

        return total.astype(np.float32)

    def explain_failure(self, value: object) -> str:
        """Why a sequence could not be encoded, in a sentence."""
        text = str(value)
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        return f"{shown!r} has no k-mer of the letters {self.alphabet}"


def _concatenate(
    values: Sequence[str], alphabet: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of all letters in order (n,): number in the alphabet (-1 for others), row of the sequence, place in it."""
    texts = [text.upper().encode("latin-1", "replace") for text in values]
    table = np.full(256, -1, np.int64)
    table[np.frombuffer(alphabet.upper().encode(), np.uint8)] = np.arange(len(alphabet))

    for one, other in (("T", "U"), ("U", "T")):
        if one in alphabet.upper() and other not in alphabet.upper():
            table[ord(other)] = table[ord(one)]

    lengths = np.array([len(text) for text in texts], np.int64)
    row = np.repeat(np.arange(len(texts)), lengths)
    starts = np.cumsum(lengths) - lengths

    return table[np.frombuffer(b"".join(texts), np.uint8)], row, np.arange(len(row)) - starts[row]


def _kmers(
    letters: NDArray[np.int64], row: NDArray[np.int64], k: int, base: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number (m,) of each k-mer within one sequence and the alphabet, and position (m,) of its first letter."""
    n = max(len(letters) - k + 1, 0)
    kmer, valid = np.zeros(n, np.int64), np.ones(n, bool)

    for step in range(k):
        letter = letters[step : step + n]
        kmer = kmer * base + letter
        valid &= (letter >= 0) & (row[step : step + n] == row[:n])

    first = np.flatnonzero(valid)

    return kmer[first], first


def _hash_counts(
    row: NDArray[np.int64], key: NDArray[np.int64], weight: NDArray[np.float64], salt: int, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """(rows, dim) square roots of the keys' counts, normalised to unit length, then hashed to columns and signs.

    `salt` makes each kind of count use other columns.
    """
    if not len(row):
        return np.zeros(shape)

    keys, column = np.unique(key, return_inverse=True)
    counts = sparse.coo_array((weight, (row, column)), shape=(shape[0], len(keys))).tocsr()
    counts.sum_duplicates()
    lengths = np.sqrt(np.asarray(counts.sum(axis=1), np.float64))  # of the square roots, whose squares are the counts
    counts.data = np.sqrt(counts.data) / np.repeat(np.maximum(lengths, 1e-12), np.diff(counts.indptr))

    hashes = _splitmix(keys.astype(np.uint64) ^ (np.uint64(salt + 1) << np.uint64(48)))
    sign = np.where(hashes >> np.uint64(63), 1.0, -1.0)
    bucket = (hashes % np.uint64(shape[1])).astype(np.int64)
    hashing = sparse.csr_array((sign, (np.arange(len(keys)), bucket)), shape=(len(keys), shape[1]))

    return np.asarray((counts @ hashing).toarray())


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each number, the same on every machine: the finaliser of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
