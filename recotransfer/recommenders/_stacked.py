"""Weighted parts as one sparse product: what a request to `LearnedHybrid` multiplies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.evaluation.metrics import popularity_bucket
from recotransfer.numerics.sparse import product_top_k, scaled
from recotransfer.numerics.topk import TopK, top_k_of_scores
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._blend import BlendWeights
from recotransfer.recommenders._item_parts import ItemParts

AGAIN = "bought before"  # the curve of items that users come back to; `_again` has its weights
RARE = 1  # highest popularity bucket whose items are scored by whitened vectors
_POPULAR = 500  # items that popularity lifts
_CELLS = 20_000_000  # scores held at a time


class Stacked:
    """The parts under each curve added up, with columns weighted by popularity, one below the other.

    A curve counts twice where it has cells for both: once for candidates without users and once for the others, whose
    weights by age differ. Vectors, which score every item from every other, are kept apart for items of few users.

    Args:
        parts, blend: what is added up, and with which weights.
        diagonal: (items,) what an item of a history adds to its own score, under the curve `AGAIN`; None for nothing.

    Attributes:
        curves: (name, 0 for candidates without users or 1 for the others), in the order of the rows.
    """

    def __init__(self, parts: ItemParts, blend: BlendWeights, diagonal: Float | None = None) -> None:
        self.parts, self.blend = parts, blend
        bucket = popularity_bucket(parts.users)
        merged: dict[tuple[str, int], sparse.csr_array] = {}
        for name, part in parts.matrices.items():
            for used in (0, 1):
                weight = blend.popularity[name][bucket] * ((bucket > 0) == used)
                weighted = scaled(part, None, weight)
                weighted.eliminate_zeros()
                key = parts.curve_of[name], used
                if weighted.nnz:
                    merged[key] = sparse.csr_array(merged[key] + weighted) if key in merged else weighted

        if diagonal is not None:
            merged[AGAIN, 1] = sparse.csr_array(sparse.diags_array(diagonal), dtype=np.float32)

        self._rare = {used: np.flatnonzero((bucket <= RARE) & ((bucket > 0) == used)) for used in (0, 1)}
        self._vectors = {
            (name, used): np.asarray(vectors[items] * blend.popularity[name][bucket[items], None], np.float32)
            for name, vectors in parts.vectors.items()
            for used, items in self._rare.items()
            if len(items)
        }
        self.curves = [*merged, *self._vectors]
        self._height = len(merged) * len(parts.users)
        attraction = sparse.csr_array((appeal(parts) @ np.array(blend.appeal))[None, :].astype(np.float32))
        self._weights = sparse.csr_array(sparse.vstack([*merged.values(), attraction], format="csr"))

    def history(self, aged: Sequence[sparse.csr_array], again: sparse.csr_array | None = None) -> sparse.csr_array:
        """(users, curves x items) weight of each history item under each curve, side by side.

        `again` holds those under the curve `AGAIN`, if there is one; None leaves it out.
        """
        repeated = sparse.csr_array(aged[0].shape, dtype=np.float32) if again is None else again
        blocks = [
            repeated if name == AGAIN else _by_age(aged, self.blend.age[name][used]) for name, used in self.curves
        ]
        empty = sparse.csr_array((aged[0].shape[0], 0), dtype=np.float32)
        return sparse.csr_array(sparse.hstack([empty, *blocks], format="csr"))

    def scores(self, weights: sparse.csr_array) -> Float:
        """(users, items) scores of users with the given `history`."""
        n, first = len(self.parts.users), self._height
        out = np.asarray((self._sparse_side(weights) @ self._weights).toarray(), np.float32)
        for (name, used), vectors in self._vectors.items():
            profile = weights[:, first : first + n] @ self.parts.vectors[name]
            out[:, self._rare[used]] += profile @ vectors.T
            first += n

        return out

    def scores_at(self, weights: sparse.csr_array, items: NDArray[np.int64]) -> Float:
        """(users, width) scores of the items at these positions, for users with the given `history`."""
        out = np.empty(items.shape, np.float32)
        for rows in self._blocks(len(items)):
            out[rows] = np.take_along_axis(self.scores(weights[rows]), np.maximum(items[rows], 0), axis=1)

        return out

    def top_k(
        self, weights: sparse.csr_array, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        """The best items of users with the given `history`."""
        if not self._vectors:
            return TopK(*product_top_k(self._sparse_side(weights), self._weights, k, exclude, mask))

        found = []
        for rows in self._blocks(weights.shape[0]):
            seen = None if exclude is None else exclude[rows]
            found.append(top_k_of_scores(self.scores(weights[rows]), k, exclude=seen, mask=mask))

        return TopK(*(np.concatenate(part) for part in zip(*found, strict=True)))

    def _blocks(self, users: int) -> list[slice]:
        """Rows of users whose scores are held at a time; at least one block."""
        step = max(1, _CELLS // max(len(self.parts.users), 1))
        return [slice(start, start + step) for start in range(0, max(users, 1), step)]

    def _sparse_side(self, weights: sparse.csr_array) -> sparse.csr_array:
        """The columns of `weights` that belong to matrices, and a 1 for popularity."""
        ones = sparse.csr_array(np.ones((weights.shape[0], 1), np.float32))
        return sparse.csr_array(sparse.hstack([weights[:, : self._height], ones], format="csr"))


def appeal(parts: ItemParts) -> Float:
    """(items, 2) popularity in the whole log and lately: 1 for the most popular item, and 0 from the 501st on."""
    out = np.zeros((len(parts.users), 2), np.float32)
    for column, count in enumerate((parts.users, parts.lately)):
        top = np.argsort(-count, kind="stable")[:_POPULAR]
        out[top, column] = count[top] / max(int(count.max(initial=0)), 1)

    return out


def _by_age(aged: Sequence[sparse.csr_array], age: NDArray[np.float64]) -> sparse.csr_array:
    """(users, items) histories, each item weighted by its age."""
    weights = age.astype(np.float32)
    return sparse.csr_array(sum(weight * matrix for weight, matrix in zip(weights, aged, strict=True)))
