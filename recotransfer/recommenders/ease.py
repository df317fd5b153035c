"""Linear autoencoders over items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.numerics.histories import changed_users, histories
from recotransfer.numerics.ridge import ease, ease_updated, local_ridge
from recotransfer.recommenders.item_item import ItemItem
from recotransfer.settings import Decay, NonNegative, PositiveInt

_FEW = 8  # items per changed user from which updating the inverse is faster than a new inversion


class EASE(ItemItem):
    """Ridge regression of every item on all others, with zero diagonal (Steck, 2019).

    Args:
        reg: ridge penalty, in units of squared history weight; 100 to 500 suits most shops.
        neighbours: number of most predictive items on which each item is regressed, which needs memory linear in the
            number of items. None uses all of them, in a dense items x items matrix: feasible up to about 30,000 items.
        history_decay: see `ItemItem`.
    """

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"reg": (10.0, 2000.0), "history_decay": (0.3, 1.0)}

    def __init__(
        self, *, reg: NonNegative = 200.0, neighbours: PositiveInt | None = None, history_decay: Decay = 1.0
    ) -> None:
        self.reg = reg
        self.neighbours = neighbours
        self.history_decay = history_decay

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        matrix = histories(events)
        gram = sparse.csr_array(matrix.T @ matrix)
        if self.neighbours is None:
            self.weights_ = ease(gram.toarray(), self.reg)
        else:
            self.weights_ = local_ridge(gram, gram, self.reg, self.neighbours)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        count = len(changed_users(before, events))
        if self.neighbours is not None or count * _FEW > len(events.items):
            return super()._update(events, fresh, before)  # a full fit: here its solves are no dearer than an update

        self.weights_ = ease_updated(self.weights_, histories(before), histories(events), self.reg)
        return f"inverse updated for {count} user{'s' * (count != 1)}"
