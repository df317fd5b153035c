"""What fusions learn to label from: held-out items, their true labels, and what the members say of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Embeddings, IdMap, Interactions

Doubles = NDArray[np.float64]
FOLDS = 3  # of cross-fitting; fewer items teach nothing
_EVERY, _MOST_ITEMS = 5, 5_000  # one labelled item in so many is held out, at most so many
_MOST_PAIRS = 1 << 22  # item-label pairs to learn from


class LabelLesson(NamedTuple):
    """What members say of the labels of held-out items.

    Attributes:
        probability: (items, labels, members).
        true: (items, labels) bool; every item has a true label.
        size: (labels,) number of items that bear each.
    """

    probability: Doubles
    true: NDArray[np.bool_]
    size: Doubles

    def take(self, rows: NDArray[np.bool_]) -> LabelLesson:
        """The lesson on some of the items."""
        return LabelLesson(self.probability[rows], self.true[rows], self.size)


def hold_out_items(events: Interactions) -> tuple[Interactions, Interactions]:
    """Events without those of a fifth of the items, at most 5,000, and those events; every label keeps an item.

    Every fifth item by label is held out, so that labels are held out in proportion.
    """
    bears = events.binary_matrix()
    items = np.unique(bears.indices)
    draw = np.random.default_rng(0).permutation(len(items))
    first = np.full(len(events.items), len(events.users))
    np.minimum.at(first, events.item, events.user)
    order = items[np.lexsort((draw, first[items]))]
    held = np.zeros(len(events.items), bool)
    held[order[_EVERY - 1 :: max(_EVERY, -(-len(order) // _MOST_ITEMS))]] = True
    left = bears @ (~held).astype(np.float32)
    emptied = bears[np.flatnonzero(left == 0)]
    held[emptied.indices] = False

    return events.select(~held[events.item]), events.select(held[events.item])


def labelled(valid: Interactions, labels: IdMap, items: Embeddings) -> tuple[Embeddings, NDArray[np.bool_]]:
    """Some held-out items with content, in random order, and (items, labels) which they bear."""
    user = labels.positions(valid.users.ids, missing="negative")[valid.user]
    bears = valid.with_items(items.ids).select(user >= 0).binary_matrix()
    rows = np.flatnonzero((np.bincount(bears.indices, minlength=len(items.ids)) > 0) & items.has_content)
    rows = np.random.default_rng(0).permutation(rows)[: max(FOLDS, _MOST_PAIRS // max(len(labels), 1))]
    ids = IdMap(items.ids.take(rows))
    place = labels.positions(valid.users.ids, missing="negative")
    true = np.zeros((len(rows), len(labels)), bool)
    known = np.flatnonzero(place >= 0)
    true[:, place[known]] = bears[known][:, rows].toarray().T > 0

    return items.align(ids), true


def accuracy(probability: Doubles, true: NDArray[np.bool_]) -> float:
    """Share of items whose likeliest label is true; where all labels are alike, none is."""
    told_apart = probability.max(axis=1, initial=0) > probability.min(axis=1, initial=1)
    best = probability.argmax(axis=1)
    return float((true[np.arange(len(true)), best] & told_apart).mean()) if len(true) else 0.0


def log_share(counts: Doubles) -> Doubles:
    """Log of each count, 1 for the greatest."""
    return np.asarray(np.log1p(counts) / np.log1p(max(float(counts.max(initial=0)), 1.0)))
