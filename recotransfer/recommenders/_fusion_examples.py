"""What fusions learn from: candidates of users with a held-out item, and labels of held-out items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.evaluation.metrics import Hits, ndcg
from recotransfer.numerics.choice_models import conditional_logit
from recotransfer.numerics.topk import rank_candidates
from recotransfer.recommenders.fusion import TOP, Candidates, Doubles

FOLDS = 3  # of cross-fitting, and the least number of examples to learn from
_EVERY = 5  # one labelled item in so many is held out
_MOST_ITEMS = 5_000  # upper bound on the number of held-out items
_MOST_PAIRS = 1 << 22  # upper bound on the number of item-label pairs, which bounds memory


class Examples(NamedTuple):
    """The candidates of each user, as training examples, if a held-out item of the user is among them.

    Attributes:
        candidates: n user-item pairs; `candidates.user` indexes `relevant`.
        hit: (n,) bool, True for held-out items.
        relevant: (users,) number of held-out items of every sampled user, whether or not any member lists them.
    """

    candidates: Candidates
    hit: NDArray[np.bool_]
    relevant: NDArray[np.int64]

    def take(self, rows: NDArray[np.bool_]) -> Examples:
        """The candidates for which `rows` (n,) is True; `relevant` is unchanged."""
        return Examples(take_candidates(self.candidates, rows), self.hit[rows], self.relevant)


class LabelExamples(NamedTuple):
    """The members' probabilities for every label of the held-out items, and the true labels.

    Attributes:
        probability: (items, labels, members).
        true: (items, labels) bool; every item has at least one true label.
        size: (labels,) number of items with each label.
    """

    probability: Doubles
    true: NDArray[np.bool_]
    size: Doubles

    def take(self, rows: NDArray[np.bool_]) -> LabelExamples:
        """The examples of the items for which `rows` (items,) is True."""
        return LabelExamples(self.probability[rows], self.true[rows], self.size)


def take_candidates(c: Candidates, keep: NDArray[np.bool_]) -> Candidates:
    """The candidates for which `keep` (n,) is True."""
    return Candidates(c.user[keep], c.item[keep], c.share[keep], c.rank[keep], c.history[keep])


def user_weights(examples: Examples) -> Doubles:
    """(n,) weight of each candidate's user: the reciprocal of the best rank that any member gives a held-out item."""
    c = examples.candidates
    best = np.where(c.rank > 0, 1 / np.maximum(c.rank, 1), 0).max(axis=1) * examples.hit
    out = np.zeros(len(examples.relevant))
    np.maximum.at(out, c.user, best)
    return out[c.user]


def choice_coefficients(features: Doubles, examples: Examples, *, reg: float, least: float | None = None) -> Doubles:
    """(p,) coefficients of a conditional logit of the held-out items among each user's candidates.

    Args:
        features: (n, p) of the candidates.
        examples: the candidates and which of them are held-out items.
        reg: ridge penalty.
        least: lower bound of every coefficient; None for no bound.
    """
    start = np.flatnonzero(np.diff(examples.candidates.user, prepend=-1))  # candidates are sorted by user
    return conditional_logit(features, start, examples.hit, user_weights(examples)[start], reg=reg, least=least)


def mean_ndcg(examples: Examples, score: Doubles) -> float:
    """Mean NDCG@10 over all sampled users, with candidates ranked by `score` (n,)."""
    c = examples.candidates
    shape = (len(examples.relevant), int(c.item.max(initial=0)) + 1)
    top = rank_candidates(c.user, c.item, score.astype(np.float32), shape[0], TOP)
    truth = (c.user * shape[1] + c.item)[examples.hit]
    found = np.isin(np.arange(shape[0])[:, None] * shape[1] + top.positions, truth) & (top.positions >= 0)
    return float(ndcg(Hits(found, examples.relevant), TOP).mean())


def hold_out_items(events: Interactions) -> tuple[Interactions, Interactions]:
    """The events to train on, and those of held-out items: a fifth of the items, at most 5,000.

    Items are held out in proportion to the sizes of the labels, and every label keeps at least one item.
    """
    bears = events.binary_matrix()
    items = np.unique(bears.indices)

    # Items are sorted by label, in random order within each, and every fifth is taken: a stratified sample.
    draw = np.random.default_rng(0).permutation(len(items))
    first = np.full(len(events.items), len(events.users))
    np.minimum.at(first, events.item, events.user)
    order = items[np.lexsort((draw, first[items]))]
    held = np.zeros(len(events.items), bool)
    held[order[_EVERY - 1 :: max(_EVERY, -(-len(order) // _MOST_ITEMS))]] = True

    # Labels of which every item would be held out keep all of their items.
    left = bears @ (~held).astype(np.float32)
    emptied = bears[np.flatnonzero(left == 0)]
    held[emptied.indices] = False

    return events.select(~held[events.item]), events.select(held[events.item])


def labelled(valid: Interactions, labels: IdMap, items: Embeddings) -> tuple[Embeddings, NDArray[np.bool_]]:
    """A random sample of the labelled items in `valid` with content, and their (items, labels) bool true labels."""
    position = labels.positions(valid.users.ids, missing="negative")
    bears = valid.with_items(items.ids).select(position[valid.user] >= 0).binary_matrix()
    rows = np.flatnonzero((np.bincount(bears.indices, minlength=len(items.ids)) > 0) & items.has_content)
    rows = np.random.default_rng(0).permutation(rows)[: max(FOLDS, _MOST_PAIRS // max(len(labels), 1))]
    ids = IdMap(items.ids.take(rows))
    true = np.zeros((len(rows), len(labels)), bool)
    known = np.flatnonzero(position >= 0)
    true[:, position[known]] = bears[known][:, rows].toarray().T > 0

    return items.align(ids), true


def accuracy(probability: Doubles, true: NDArray[np.bool_]) -> float:
    """Share of items whose most probable label is true; if all labels are equally probable, it counts as an error."""
    decided = probability.max(axis=1, initial=0) > probability.min(axis=1, initial=1)
    best = probability.argmax(axis=1)
    return float((true[np.arange(len(true)), best] & decided).mean()) if len(true) else 0.0


def log_share(counts: Doubles) -> Doubles:
    """log(1 + count), scaled so that the largest is 1."""
    return np.asarray(np.log1p(counts) / np.log1p(max(float(counts.max(initial=0)), 1.0)))
