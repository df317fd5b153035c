"""Item-based nearest neighbours by co-occurrence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.numerics.histories import histories
from recotransfer.numerics.sparse import keep_largest, scaled, without_diagonal
from recotransfer.numerics.vectors import reciprocal
from recotransfer.recommenders.item_item import ItemItem
from recotransfer.settings import Decay, NonNegative, PositiveInt


class ItemKNN(ItemItem):
    """Cosine similarity of the items' sets of users, shrunk towards zero for pairs with few users in common.

    Deshpande and Karypis, "Item-based top-N recommendation algorithms" (2004); shrinkage after Bell and Koren (2007).

    Args:
        neighbours: number of similar items kept for each item.
        shrink: number of common users at which the similarity is halved.
        history_decay: see `ItemItem`.
    """

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "neighbours": (10, 500),
        "shrink": (0.1, 100.0),
        "history_decay": (0.3, 1.0),
    }

    def __init__(
        self, *, neighbours: PositiveInt = 100, shrink: NonNegative = 10.0, history_decay: Decay = 1.0
    ) -> None:
        self.neighbours = neighbours
        self.shrink = shrink
        self.history_decay = history_decay

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        matrix = histories(events)
        matrix.data[:] = 1  # binary: an item's column is its set of users
        gram = sparse.csr_array(matrix.T @ matrix)
        inverse_norm = np.sqrt(reciprocal(gram.diagonal()))
        cosine = scaled(gram, inverse_norm, inverse_norm)
        cosine.data *= gram.data / (gram.data + self.shrink)
        self.weights_ = keep_largest(without_diagonal(cosine), self.neighbours)
