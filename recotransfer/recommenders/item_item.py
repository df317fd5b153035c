"""Base class of recommenders that score by an item-item matrix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.sparse import product_top_k
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.base import Matrix, Recommender


class ItemItem(Recommender):
    """Recommenders that score by `history @ weights`, so new users need no refit. Only positive scores are kept.

    Subclasses set `weights_` in `_fit`.

    Attributes:
        history_decay: factor on an item's weight for each newer item in the history; 1 weights all equally. Has no
            effect on logs without times.
        weights_: (items, items) sparse or dense; rows are items of the history, columns the items scored.
    """

    history_decay: float
    weights_: Matrix

    def _scores(self, events: Interactions) -> sparse.csr_array:
        scores = self._history_weights(events) @ self.weights_
        if isinstance(scores, np.ndarray):
            return sparse.csr_array(np.maximum(scores, 0, out=scores))

        scores = sparse.csr_array(scores)
        scores.data[scores.data < 0] = 0
        scores.eliminate_zeros()
        return scores

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        # Products are ranked row by row, without storing all scores.
        return TopK(*product_top_k(self._history_weights(events), self.weights_, k, exclude, mask))

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        return {"behaviour": strength[:, None] * cells(self.weights_, history, items)}

    def _write(self, writer: ArtifactWriter) -> None:
        writer.matrix("weights", self.weights_)

    def _read(self, artifact: Artifact) -> None:
        self.weights_ = artifact.matrix("weights")


def cells(weights: Matrix, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Float:
    """(len(rows), len(columns)) dense submatrix of a dense or sparse matrix."""
    if isinstance(weights, np.ndarray):
        return weights[np.ix_(rows, columns)]

    return np.asarray(weights[rows][:, columns].toarray(), np.float32)
