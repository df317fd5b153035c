"""Continual learning: replay of past events, and a measure of forgetting."""

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
    """Adds a sample of old events to new ones, so that a model trained on the result forgets less.

    The result is an ordinary log for a `Tuner`, a `Transfer` or a `Recommender`.

    - "reservoir" samples old events uniformly, in runs of up to 8 consecutive events of a user, so that relations
      between items survive. A uniform sample is what reservoir sampling (Vitter, 1985) keeps, and a strong baseline
      (Chaudhry et al., "On tiny episodic memories in continual learning", 2019).
    - "herding" picks equally many items of each user (label, class), greedily, so that the mean vector of the picked
      ones approximates that of all (Welling, 2009; iCaRL, Rebuffi et al., 2017). It suits few users with many items;
      where there are more users than `size`, it samples users.

    Args:
        size: maximum number of old events.
        how: sampling method.
        seed: random seed.
    """

    size: int
    how: Literal["reservoir", "herding"] = "reservoir"
    seed: int = 0

    def __call__(self, old: Interactions, new: Interactions, items: Embeddings | None = None) -> Interactions:
        """The sampled old events, then the new ones.

        Args:
            old: the log to sample from.
            new: the log to keep whole.
            items: vectors of the items, which only herding needs.

        Raises:
            InputError: an unknown method, a size below 1, herding without vectors, or only one of the logs has times.
        """
        if self.how not in ("reservoir", "herding") or self.size < 1:
            raise InputError(f'size must be 1 at least and how "reservoir" or "herding", got {self.size}, {self.how!r}')

        if self.how == "herding":
            if items is None:
                raise InputError("herding compares vectors; give items, or choose how='reservoir'")

            return old.select(self._herded(old, unit_rows(items.align(old.items).vectors))).concat(new)

        return old.select(self._sampled(old)).concat(new)

    def _sampled(self, old: Interactions) -> Int:
        """Random runs of consecutive events, up to `size` events in all."""
        rng = np.random.default_rng(self.seed)
        order = old.order
        place = np.arange(len(order)) - old.offsets[old.user[order]]
        run = np.cumsum(place % CHUNK == 0) - 1
        rank = rng.permutation(int(run.max(initial=-1)) + 1)[run]
        return np.sort(order[np.argsort(rank, kind="stable")][: self.size])

    def _herded(self, old: Interactions, vectors: NDArray[np.float32]) -> Int:
        """Greedy selection in rounds: per user, the event whose vector best points at the remaining error of the mean.

        After r rounds `lack` is (r + 1) times the user's mean minus the sum of the vectors picked so far.
        """
        rng = np.random.default_rng(self.seed)
        pairs = np.unique(old.user * max(len(old.items), 1) + old.item, return_index=True)[1]
        users = np.sort(rng.permutation(np.unique(old.user))[: self.size])
        rows = pairs[np.isin(old.user[pairs], users)]
        user = np.searchsorted(users, old.user[rows])
        start = np.flatnonzero(np.diff(user, prepend=-1))
        candidates = vectors[old.item[rows]]
        mean = np.add.reduceat(candidates, start) / np.bincount(user)[:, None]
        lack, left, picked = mean.copy(), np.ones(len(rows), bool), []

        for _ in range(self.size // len(users) if len(users) else 0):
            # Rounded, so that ties are broken in favour of the first event on every machine.
            gain = np.where(left, np.round(np.einsum("ij,ij->i", candidates, lack[user]), 5), -np.inf)
            order = np.lexsort((-gain, user))[start]
            best = order[left[order]]
            if not len(best):
                break

            left[best] = False
            lack[user[best]] -= candidates[best]
            lack += mean
            picked.append(rows[best])

        return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


class Forgetting(NamedTuple):
    """NDCG@k after the update minus before it, paired over users.

    Attributes:
        old: the difference on old events; below 0, the model has forgotten.
        new: the difference on new events; above 0, the model has learned.
    """

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
    """How an update of a model changed its NDCG@k on old and on new events.

    Args:
        before: the model before the update.
        after: the updated model.
        old: test events of the old domain or period, which neither model was fitted on.
        new: test events of the new one, which neither model was fitted on.
        histories: the users' histories, given to both models; None uses what each was fitted on. Only users that both
            models know are evaluated.
        k: length of the recommended lists.

    Raises:
        InputError: no user of the old or the new events is known to both models.
    """
    changes = []
    for name, truth in (("old", old), ("new", new)):
        known = [m.known_events().users if histories is None else histories.users for m in (before, after)]
        ids = truth.users.take(np.unique(truth.user))
        shared = ids[np.logical_and.reduce([users.positions(ids, missing="negative") >= 0 for users in known])]
        if not len(shared):
            raise InputError(f"no user of the {name} events is known to both models; give histories")

        events = truth.select(np.isin(truth.user, truth.users.positions(shared)))
        lists = [m.recommend(shared, k, histories=_over(histories, m)) for m in (before, after)]
        quality = [ndcg(hits(recommended, events), k) for recommended in lists]
        changes.append(paired(quality[1], quality[0]))

    return Forgetting(*changes)


def _over(histories: Interactions | None, model: Recommender) -> Interactions | None:
    """The events of the histories whose items are in the model's catalogue."""
    if histories is None:
        return None

    known = model.catalogue_.positions(histories.items.ids, missing="negative") >= 0
    return histories.select(known[histories.item])
