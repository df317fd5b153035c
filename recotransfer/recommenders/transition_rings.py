"""`TransitionRings`: the items that followed a user's last two, ranked by similarity of content; nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.ages import steps_of, transitions
from recotransfer.numerics.sparse import scaled
from recotransfer.numerics.threads import slices
from recotransfer.numerics.topk import TopK, top_k_of_scores
from recotransfer.numerics.vectors import Float, reciprocal, unit_rows
from recotransfer.recommenders.base import Recommender
from recotransfer.settings import NonNegative

_SHARES = np.array([7, 2, 1])  # places that each ring has among every ten
_EARLIER = 0.5  # weight of the last item but one, relative to the last
_FAR = 10.0  # more than the scores within a ring can differ
_ROWS = 256  # users whose items are sorted at a time


class TransitionRings(Recommender):
    """A baseline without training: rings of transitions around the user's last two items.

    The first ring are the items that someone met right after one of the two, the second those that followed them, the
    third all others, items without events among them. Of every ten places of a list, 7, 2 and 1 go to the rings, whose
    items are ordered by cosine to the sum of the two items' vectors; in the first ring, frequent transitions are
    raised. On logs without times, the order is that of the log.
    Han et al., "An embarrassingly simple graph heuristic reveals shortcut-solvable benchmarks for sequential
    recommendation" (2026); there the rings are those of the last item (TGH-1), or of each of the two apart (TGH-2).

    Args:
        sequence_weight: weight of transitions, relative to a cosine of 1; each counts log(1 + times it was made),
            relative to the item's most frequent one.
    """

    needs_items: ClassVar[bool] = True
    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"sequence_weight": (0.05, 2.0)}
    source_of_scores: ClassVar[str] = "order and content"

    def __init__(self, *, sequence_weight: NonNegative = 1.0) -> None:
        self.sequence_weight = sequence_weight

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        assert items is not None  # fit checks needs_items
        past, future = transitions(steps_of(events, by_moment=False), len(events.items), 1.0, 1.0, horizon=1)
        followed = sparse.csr_array(past.T @ future)
        followed.data = np.log1p(followed.data)
        largest = followed.max(axis=1).toarray().ravel()
        self.followed_ = scaled(followed, reciprocal(largest).astype(np.float32), None)
        self.items_ = replace(items, vectors=unit_rows(items.vectors))

    def _content(self) -> Embeddings:
        return self.items_

    def _extend(self, items: Embeddings) -> None:
        n = len(self.catalogue_)
        self.items_ = self.items_.concat(replace(items, vectors=unit_rows(items.vectors)))
        self.followed_ = self.followed_.copy()
        self.followed_.resize((n, n))

    def _last_two(self, events: Interactions) -> sparse.csr_array:
        """(users, items) weights of each user's last two items."""
        steps = steps_of(events, by_moment=False)
        age = steps.age
        of = age < 2
        weight = np.where(age[of] == 0, 1, _EARLIER).astype(np.float32)
        shape = (len(events.users), len(events.items))
        return sparse.coo_array((weight, (steps.user[of], steps.item[of])), shape=shape).tocsr()

    def _scores(self, events: Interactions) -> Float:
        return self._by_place(events, None)

    def _by_place(self, events: Interactions, exclude: sparse.csr_array | None) -> Float:
        """(users, items) scores that fall with the place in the list; excluded items take no places of others."""
        last = self._last_two(events)
        out = np.empty(last.shape, np.float32)
        for rows in slices(len(out), _ROWS):
            out[rows] = 1 / (1 + self._places(last[rows], None if exclude is None else exclude[rows]))

        return out

    def _places(self, last: sparse.csr_array, exclude: sparse.csr_array | None) -> NDArray[np.int64]:
        """(users, items) place of each item in the list of all items, from 0; a ring that is used up leaves gaps."""
        vectors = self.items_.vectors
        first = sparse.csr_array(last @ self.followed_)
        second = (first @ self.followed_).toarray() > 0
        bonus = first.toarray()
        ring = np.where(bonus > 0, 0, np.where(second, 1, 2))
        score = unit_rows(np.asarray(last @ vectors, np.float32)) @ vectors.T + self.sequence_weight * bonus
        if exclude is not None:  # last in their ring
            score[exclude.nonzero()] = -_FAR / 2

        order = np.argsort(ring * (_FAR + self.sequence_weight * _FAR) - score, axis=1, kind="stable")
        ends = np.stack([(ring <= each).sum(axis=1) for each in range(len(_SHARES))], axis=1)
        sorted_ring = np.take_along_axis(ring, order, axis=1)
        start = np.pad(ends[:, :-1], ((0, 0), (1, 0)))
        rank = np.arange(ring.shape[1]) - np.take_along_axis(start, sorted_ring, axis=1)
        share = _SHARES[sorted_ring]
        place = rank // share * _SHARES.sum() + (np.cumsum(_SHARES) - _SHARES)[sorted_ring] + rank % share

        out = np.empty_like(order)
        np.put_along_axis(out, order, place, axis=1)

        return out

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        top = top_k_of_scores(self._by_place(events, exclude), k, exclude=exclude, mask=mask)
        unknown = np.diff(events.offsets) == 0  # an empty list is filled by popularity
        top.positions[unknown], top.scores[unknown] = -1, -np.inf
        return top

    def _write(self, writer: ArtifactWriter) -> None:
        writer.matrix("followed", self.followed_)
        writer.array("vectors", self.items_.vectors)
        writer.array("present", self.items_.has_content)
        writer.json("items", {"source": self.items_.source, "blocks": self.items_.blocks})

    def _read(self, artifact: Artifact) -> None:
        self.followed_ = sparse.csr_array(artifact.matrix("followed"))
        facts = artifact.json("items")
        blocks = tuple((name, width) for name, width in facts["blocks"])
        vectors, present = artifact.array("vectors"), artifact.array("present")
        self.items_ = Embeddings(self.catalogue_, vectors, facts["source"], present, blocks)
