"""Exact search: `ExactIndex`."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.arguments import checked_class
from recotransfer.errors import NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.topk import PackedItems, TopK, check_filters, pack_items, rank_candidates, top_k
from recotransfer.retrieval.base import checked_vectors, expect_stored


@checked_class
class ExactIndex:
    """Exact search with `topk.top_k`. Vectors are packed on first use; a few added later are searched separately.

    >>> index = ExactIndex().build(np.eye(3, dtype=np.float32))
    >>> index.search(np.array([[0, 2, 1]], np.float32), k=2).positions.tolist()
    [[1, 2]]
    """

    def __init__(self) -> None:
        self._rows: NDArray[np.float32] | None = None  # has spare rows at the end, so that `add` rarely copies all
        self._size = 0
        self._packed: PackedItems | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All indexed vectors (n, d)."""
        if self._rows is None:
            raise NotFittedError("the index is empty; call build first")

        return self._rows[: self._size]

    def build(self, vectors: NDArray[np.float32]) -> Self:
        """Index `vectors` (n, d), by reference if they are contiguous float32."""
        self._rows, self._packed = checked_vectors(vectors, None), None
        self._size = len(self._rows)
        return self

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append `vectors` (m, d)."""
        old = self.vectors
        vectors = checked_vectors(vectors, old.shape[1])
        size = self._size + len(vectors)
        if not len(vectors):
            return

        if self._rows is None or len(self._rows) < size:
            self._rows = np.empty((size + size // 4 + 64, old.shape[1]), np.float32)
            self._rows[: self._size] = old

        self._rows[self._size : size] = vectors
        self._size = size
        if self._packed is not None:
            self._packed = dataclasses.replace(self._packed, items=self._rows[: len(self._packed.items)])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        exclude: sparse.csr_array | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> TopK:
        """The exact k best items for each query (b, d); arguments and result as in `topk.top_k`."""
        vectors, packed = self.vectors, self._packed
        n = len(vectors)
        check_filters((len(queries), n), k, exclude, mask)
        if not n:
            return top_k(queries, vectors, k)

        # Packing costs time, so it is repeated only once a sixteenth of the vectors are new.
        if packed is None or (n - len(packed.items)) * 16 > n:
            packed = self._packed = pack_items(vectors)

        m = len(packed.items)
        if m == n:
            return top_k(queries, packed, k, exclude=exclude, mask=mask)

        excludes = (None, None) if exclude is None else (exclude[:, :m], exclude[:, m:])
        masks = (None, None) if mask is None else (mask[:m], mask[m:])
        old = top_k(queries, packed, k, exclude=excludes[0], mask=masks[0])
        new = top_k(queries, vectors[m:], k, exclude=excludes[1], mask=masks[1])
        positions = np.hstack([old.positions, np.where(new.positions < 0, -1, new.positions + m)])
        rows, places = np.nonzero(positions >= 0)
        scores = np.hstack([old.scores, new.scores])[rows, places]

        return rank_candidates(rows, positions[rows, places], scores, len(queries), k)

    def extended(self, vectors: NDArray[np.float32]) -> ExactIndex:
        """A copy with `vectors` (m, d) appended; this index is unchanged."""
        out = ExactIndex()
        # Without spare rows, so that `add` copies them and never writes to those of this index.
        out._rows, out._size, out._packed = self.vectors, self._size, self._packed
        out.add(vectors)
        return out

    def save(self, writer: ArtifactWriter, prefix: str) -> None:
        """Write the vectors."""
        writer.json(prefix, {"class": "ExactIndex"})
        writer.array(f"{prefix}.vectors", self.vectors)

    @classmethod
    def load(cls, artifact: Artifact, prefix: str) -> Self:
        """The saved index; its vectors stay memory-mapped."""
        expect_stored(artifact.json(prefix), "ExactIndex", prefix)
        return cls().build(artifact.array(f"{prefix}.vectors"))
