"""Continual learning: past events to replay, and how much was forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, Interactions
from recotransfer.diagnostics.drift import CHUNK, Int
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import hits, ndcg
from recotransfer.evaluation.uncertainty import Difference, paired
from recotransfer.numerics.vectors import unit_rows
from recotransfer.recommenders import Recommender


@checked_class
@dataclass(frozen=True)
class Replay:
    """Old events mixed into new ones, so that whatever learns from the result forgets less.

    The result is a log like any other: give it to a `Tuner`, a `Transfer` or a `Recommender`.

    - "reservoir" draws old events at random, in runs of up to 8 of one user: relations between items stay. It is what
      a reservoir (Vitter, 1985) holds, and the strong baseline of rehearsal (Chaudhry et al., "On tiny episodic
      memories in continual learning", 2019).
    - "herding" takes of each user (label, class) the same number, one by one, such that the mean vector of those taken
      comes nearest to that of all (Welling, 2009; iCaRL, Rebuffi et al., 2017). For few users of many items; where
      there are more users than `size`, some of them are drawn.

    Args:
        size: old events mixed in, at most.
        how: which of them.
        seed: random seed.
    """

    size: int
    how: Literal["reservoir", "herding"] = "reservoir"
    seed: int = 0

    def __call__(self, old: Interactions, new: Interactions, items: Embeddings | None = None) -> Interactions:
        """The old events chosen, then the new ones; herding needs the vectors of `items`.

        Raises:
            InputError: an unknown way, a size below 1, herding without vectors, or only one of the logs has times.
        """
        if self.how not in ("reservoir", "herding") or self.size < 1:
            raise InputError(f'size must be 1 at least and how "reservoir" or "herding", got {self.size}, {self.how!r}')

        if self.how == "herding":
            if items is None:
                raise InputError("herding compares vectors; give items, or choose how='reservoir'")

            return old.select(self._herded(old, unit_rows(items.align(old.items).vectors))).joined(new)

        return old.select(self._drawn(old)).joined(new)

    def _drawn(self, old: Interactions) -> Int:
        rng = np.random.default_rng(self.seed)
        order = old.order
        place = np.arange(len(order)) - old.offsets[old.user[order]]
        run = np.cumsum(place % CHUNK == 0) - 1
        rank = rng.permutation(int(run.max(initial=-1)) + 1)[run]
        return np.sort(order[np.argsort(rank, kind="stable")][: self.size])

    def _herded(self, old: Interactions, vectors: NDArray[np.float32]) -> Int:
        """One event of each user per round: the one whose vector lies furthest along what the sum still lacks."""
        rng = np.random.default_rng(self.seed)
        pairs = np.unique(old.user * max(len(old.items), 1) + old.item, return_index=True)[1]
        users = np.sort(rng.permutation(np.unique(old.user))[: self.size])
        rows = pairs[np.isin(old.user[pairs], users)]
        user = np.searchsorted(users, old.user[rows])
        start = np.flatnonzero(np.diff(user, prepend=-1))
        own = vectors[old.item[rows]]
        mean = np.add.reduceat(own, start) / np.bincount(user)[:, None]
        lack, left, taken = mean.copy(), np.ones(len(rows), bool), []

        for _ in range(self.size // len(users) if len(users) else 0):
            # Rounded, so that of events that tell as much the first is taken on every machine.
            gain = np.where(left, np.round(np.einsum("ij,ij->i", own, lack[user]), 5), -np.inf)
            order = np.lexsort((-gain, user))[start]
            best = order[left[order]]
            if not len(best):
                break

            left[best] = False
            lack[user[best]] -= own[best]
            lack += mean
            taken.append(rows[best])

        return np.sort(np.concatenate(taken)) if taken else np.empty(0, np.int64)


class Forgetting(NamedTuple):
    """NDCG@k after learning minus before it, paired over users: on `old` and on `new` events. Below 0 is forgetting."""

    old: Difference
    new: Difference


@checked
def forgetting(
    before: Recommender,
    after: Recommender,
    old: Interactions,
    new: Interactions,
    *,
    histories: Interactions | None = None,
    k: int = 10,
) -> Forgetting:
    """What a model lost on old events and won on new ones by learning.

    Args:
        before: the model as it was.
        after: the model that learned.
        old: events of the old domain or period that neither model was fitted on.
        new: such events of the new one.
        histories: what is known of the users, the same for both models; by default what each was fitted on, and
            only users known to both are asked.
        k: length of the lists.

    Raises:
        InputError: events without a user that both models know.
    """
    changes = []
    for name, truth in (("old", old), ("new", new)):
        known = [m.known_events().users if histories is None else histories.users for m in (before, after)]
        ids = truth.users.take(np.unique(truth.user))
        asked = ids[np.logical_and.reduce([users.positions(ids, missing="negative") >= 0 for users in known])]
        if not len(asked):
            raise InputError(f"no user of the {name} events is known to both models; give histories")

        events = truth.select(np.isin(truth.user, truth.users.positions(asked)))
        lists = [m.recommend(asked, k, histories=_over(histories, m)) for m in (before, after)]
        quality = [ndcg(hits(found, events), k) for found in lists]
        changes.append(paired(quality[1], quality[0]))

    return Forgetting(*changes)


def _over(histories: Interactions | None, model: Recommender) -> Interactions | None:
    """The part of the histories whose items the model knows."""
    if histories is None:
        return None

    known = model.catalogue_.positions(histories.items.ids, missing="negative") >= 0
    return histories.select(known[histories.item])
