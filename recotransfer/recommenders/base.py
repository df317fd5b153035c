"""The base class of every recommender: it translates ids, so that models compute on positions."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recotransfer.data import (
    Embeddings,
    Filter,
    IdMap,
    Interactions,
    Items,
    Recommendations,
    extended_columns,
    filter_columns,
    ids_like,
    positions_like,
)
from recotransfer.errors import InputError
from recotransfer.io.values import check_ids
from recotransfer.numerics.histories import histories, seen_items, subset
from recotransfer.numerics.topk import TopK, top_k_of_scores, top_k_of_sparse
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders._lists import filled, merged, reason_for
from recotransfer.recommenders._state import FittedState

BLOCK = 2048  # users scored at a time, which bounds memory
Matrix: TypeAlias = Float | sparse.csr_array


class Recommender(FittedState):
    """Ranks items for users.

    Subclasses implement `_fit`, `_scores`, `_write` and `_read` on positions; this class translates ids. A list that a
    model cannot fill (an empty history, too few scored items) is filled up by popularity, with scores below all others,
    so that it has fewer than k items only if fewer are allowed.

    Attributes:
        needs_items: whether `fit` requires embeddings.
        scores_new_items: whether `extend` accepts items unseen in `fit`, and content ranks items without events.
        scores_new_users: whether `recommend` accepts `histories` of users unseen in `fit`.
        search_space: setting -> (low, high), the range that tuning searches on a log scale.
        gives_probabilities: whether scores are probabilities that the user (label) has the item, so that users compare.
        compares_users: whether `label` ranks users against each other, so that all must be scored together.
        source_of_scores: the component named in a reason if the model cannot attribute scores to items of the history.
        update_: a record of the last update: how it was done, seconds, new events, users and items. Unset before.
    """

    needs_items: ClassVar[bool] = False
    scores_new_items: ClassVar[bool] = False
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {}
    gives_probabilities: ClassVar[bool] = False
    compares_users: ClassVar[bool] = False
    source_of_scores: ClassVar[str] = "popularity"

    update_: dict[str, Any]

    # -- for subclasses ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        """Learn from events sorted by user and time, and embeddings aligned with `events.items`."""

    @abstractmethod
    def _scores(self, events: Interactions) -> Matrix:
        """(users of `events`, items) scores, dense or sparse; cells not stored in a sparse result have no score."""

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        """The k best items for each user; models that search an index override this."""
        scores = self._scores(events)
        if isinstance(scores, np.ndarray):
            return top_k_of_scores(scores, k, exclude=exclude, mask=mask)

        return top_k_of_sparse(scores, k, exclude=exclude, mask=mask)

    def _history_weights(self, events: Interactions) -> sparse.csr_array:
        """(users, items) weight of each item in a user's history, decaying with age if the events have times."""
        return histories(events, getattr(self, "history_decay", 1.0) if events.time is not None else 1.0)

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        """Model component -> (len(history), len(items)) contribution of each item of the history to each score.

        Empty if the model cannot attribute its scores.
        """
        return {}

    def _extend(self, items: Embeddings) -> None:
        """Add `items`, all of them new, in place. `catalogue_` and `events_` already include them."""
        raise NotImplementedError

    def _content(self) -> Embeddings | None:
        """The catalogue's vectors, if the model keeps any, else None."""
        return None

    def _width(self) -> int | None:
        """Dimension of the embeddings the model was fitted with; None if it was fitted without."""
        content = self._content()
        return None if content is None else content.dim

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        """Learn from `events` in place, and return a description of how it was done.

        Args:
            events: all events, old and new, sorted by user and time.
            fresh: vectors of the new items, which are the last of the catalogue; None if the model has no vectors.
            before: the old events only, over the users and items of `events`.
        """
        content = self._content()
        self._fit(events, content if content is None or fresh is None else content.concat(fresh))
        return "fitted again on all events"

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(self, interactions: Interactions, items: Embeddings | None = None, *, columns: Items | None = None) -> Self:
        """Fit the model to events and embeddings, and return self. The catalogue is the union of their items.

        A refit replaces the earlier fit completely, in one step at the end. On error the model is unchanged.

        Args:
            interactions: the log.
            items: item embeddings.
            columns: item columns for filters; items without a row have empty cells.

        Raises:
            InputError: a setting is out of bounds, there are no events, or the model needs embeddings.
        """
        if self.needs_items and items is None:
            raise InputError(f"{type(self).__name__} needs embeddings: fit(interactions, items)")

        self.check_settings()
        if not len(interactions):
            raise InputError("no interactions to learn from; check the reader's report for what was dropped")

        catalogue = interactions.items if items is None else items.ids.union(interactions.items)
        check_ids(interactions.users.ids, catalogue.ids)
        out = self.unfitted()
        out._take(interactions.with_items(catalogue))
        out.item_columns_ = None if columns is None else filter_columns(columns, catalogue)
        out._fit(out.events_, None if items is None else items.align(catalogue))
        self.__dict__ = out.__dict__

        return self

    def updated(
        self, interactions: Interactions, items: Embeddings | None = None, *, columns: Items | None = None
    ) -> Self:
        """A copy of the model that has also learned from new events, which may add users and items.

        This model is unchanged. Closed-form models equal a `fit` on all events, up to rounding. ALS, BPR and SASRec
        continue from what they have learned, for fewer passes; re-ranking networks and fusion weights are kept.
        `update_` records how it was done.

        Args:
            interactions: the new events.
            items: vectors of new items; vectors of known items are ignored.
            columns: columns of new items, for filters; missing cells are empty.

        Raises:
            InputError: only one of the old and new events have times, or the vectors' dimension differs from the fit.
        """
        model = self._now()
        start = time.perf_counter()
        users, known = model.known_events().users, model.catalogue_
        interactions = interactions.with_ids_like(users, known)
        if items is not None:
            items = _in_types_of(known, items)

        width = model._width()
        if items is not None and (model.needs_items or model.scores_new_items) and items.dim != width:
            was = "without embeddings" if width is None else f"with {width} dimensions"
            raise InputError(f"{type(self).__name__} was fitted {was}, the new items have {items.dim}; fit it again")

        before = replace(model.events_, items=known if items is None else known.union(items.ids), kind=None, kinds=())
        events = before.concat(replace(interactions, kind=None, kinds=()))  # models keep no kinds
        given = Embeddings(IdMap([]), np.zeros((0, width or 0), np.float32)) if items is None else items
        fresh = None if width is None else given.align(IdMap(events.items.ids[len(known) :]))
        check_ids(interactions.users.ids, interactions.items.ids)
        out = model._updated(events, fresh, replace(before, users=events.users, items=events.items))
        out.update_ |= {"events": len(interactions), "users": len(events.users) - len(model.events_.users)}
        out.update_ |= {"items": len(events.items) - len(known), "seconds": round(time.perf_counter() - start, 3)}
        if model.item_columns_ is not None:
            out.item_columns_ = extended_columns(model.item_columns_, out.catalogue_, columns)

        return out

    def partial_fit(
        self, interactions: Interactions, items: Embeddings | None = None, *, columns: Items | None = None
    ) -> Self:
        """Update this model in place as `updated` does, and return self.

        The change takes effect in one step: requests already running finish with the old model. On error the model is
        unchanged.
        """
        self.__dict__ = self.updated(interactions, items, columns=columns).__dict__
        return self

    def _updated(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> Self:
        """A copy that has learned from all `events`; arguments as in `_update`."""
        out = self._copied()
        out._take(events)
        out.update_ = {"how": out._update(out.events_, fresh, before)}
        return out

    def extend(self, items: Embeddings, *, columns: Items | None = None) -> Self:
        """A copy of the model whose catalogue also includes `items`, without a refit. This model is unchanged.

        Args:
            items: vectors of new items; known items are ignored.
            columns: columns of the new items, for filters; missing cells are empty.

        Raises:
            InputError: the model cannot rank items unseen in fit, or the vectors' dimension differs from the fit.
        """
        out = self._copied()
        out._check_fitted()
        out._take_in(_in_types_of(out.catalogue_, items), columns)

        return out

    def _take_in(self, items: Embeddings, columns: Items | None) -> None:
        """Add the new items among `items` to the catalogue, in place."""
        if not self.scores_new_items:
            raise InputError(f"{type(self).__name__} cannot rank items unseen in fit; refit it or use LearnedHybrid")

        known = items.ids.positions(self.catalogue_.ids, missing="negative")
        fresh = np.setdiff1d(np.arange(len(items.ids)), known)
        if len(fresh):
            ids = IdMap(items.ids.take(fresh))
            self.catalogue_ = self.catalogue_.union(ids)
            self.events_ = self.events_.with_items(self.catalogue_)
            self.popularity_ = np.pad(self.popularity_, (0, len(fresh)))
            if self.item_columns_ is not None:
                self.item_columns_ = extended_columns(self.item_columns_, self.catalogue_, columns)

            self._extend(items.align(ids))

    def for_batch(self) -> Self:
        """A copy for batch jobs, with exact search; later updates do not affect it."""
        return self._now()

    # -- results -------------------------------------------------------------------------------------------------------

    def recommend(
        self,
        users: ArrayLike | None = None,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        filter: Filter | None = None,
        histories: Interactions | None = None,
        items: Embeddings | None = None,
        columns: Items | None = None,
        reason: bool = False,
    ) -> Recommendations:
        """The k best items for each user.

        Args:
            users: user ids; by default all users of `histories` if given, else of the fit.
            k: list length, at least 1.
            exclude_seen: leave out items in the user's history.
            filter: which items may be recommended.
            histories: the users' events up to now, used instead of those of the fit. Users may be new, items may not.
            items: vectors of items unseen in `fit`, to be ranked as well.
            columns: columns of those items, for `filter`; comparisons with empty cells are false.
            reason: explain each item by the items of the history and the model components that contributed.

        Raises:
            NotFittedError: the model has not been fitted.
            UnknownIdError: a user, or an id in `filter`, is unknown.
            InputError: k is below 1, or the model cannot rank the given histories or items.
        """
        model = self._now()
        model._check_fitted()
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        if items is not None:
            model = model.extend(items, columns=columns)

        log = model.known_events() if histories is None else model._own_histories(histories)
        at = np.arange(len(log.users)) if users is None else positions_like(users, log.users)
        rows, where = np.unique(at, return_inverse=True)
        mask = None if filter is None else filter.mask(model.catalogue_, model.item_columns_)
        tops, reasons = [], []

        for first in range(0, max(len(rows), 1), BLOCK):
            block = subset(log, rows[first : first + BLOCK])
            top = model._block(block, k, exclude_seen, mask)
            tops.append(top)
            if reason:
                reasons.append(model._reasons(block, top.positions, exclude_seen, mask))

        return Recommendations(
            log.users.take(at),
            model.catalogue_,
            np.concatenate([t.positions for t in tops])[where],
            np.concatenate([t.scores for t in tops])[where],
            np.concatenate(reasons)[where] if reason else None,
        )

    def similar_items(
        self, items: ArrayLike, k: int = 10, *, filter: Filter | None = None, reason: bool = False
    ) -> Recommendations:
        """The k items most similar to each of `items`: recommendations to a user whose history is that item alone."""
        model = self._now()
        model._check_fitted()
        positions = positions_like(items, model.catalogue_)
        rows = np.arange(len(positions))
        alone = Interactions(
            IdMap(rows), model.catalogue_, rows, positions, np.ones(len(rows), np.float32), np.zeros(len(rows))
        )
        if not model.scores_new_users:
            raise InputError(f"{type(self).__name__} has no item similarities of its own; use another model")

        found = model.recommend(k=k, filter=filter, histories=alone, reason=reason)
        ids = model.catalogue_.take(positions)

        return Recommendations(ids, found.catalogue, found.positions, found.scores, found.reason)

    def label(self, items: Embeddings, k: int = 1, *, users: ArrayLike | None = None) -> Recommendations:
        """The k best users for each item, known or new: the reverse of `recommend`.

        With labels as users this is classification. In the result, `users` holds the items and `catalogue` the users.
        Items without content have empty lists.

        Args:
            items: the items and their vectors, from the same encoder as in `fit`.
            k: list length, at least 1.
            users: candidate user ids; all known users by default.
        """
        model = self._now()
        model._check_fitted()
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")

        known = model.known_events().users
        chosen = np.arange(len(known)) if users is None else np.unique(positions_like(users, known))
        ids, items = items.ids.ids, _in_types_of(model.catalogue_, items, foreign=True)
        model = model._with_items(items)
        size = (len(items.ids), min(k, len(chosen)))
        best = TopK(np.full(size, -1, np.int64), np.full(size, -np.inf, np.float32))

        step = max(len(chosen), 1) if model.compares_users else BLOCK
        for first in range(0, len(chosen), step):
            block = chosen[first : first + step]
            best = merged(best, model._item_scores(items, block), block)

        best.positions[~items.has_content], best.scores[~items.has_content] = -1, -np.inf

        return Recommendations(ids, known, best.positions, best.scores)

    def _with_items(self, items: Embeddings) -> Self:
        """A copy whose catalogue includes `items`."""
        out = self._copied()
        out._take_in(items, None)

        return out

    def _item_scores(self, items: Embeddings, users: NDArray[np.int64]) -> Float:
        """(items, users) scores of catalogue items for the users at these positions."""
        at = self.catalogue_.positions(items.ids.ids)
        scores = self._scores(subset(self.events_, users))[:, at]
        return np.asarray((scores if isinstance(scores, np.ndarray) else scores.toarray()).T, np.float32)

    def _own_histories(self, histories: Interactions) -> Interactions:
        if not self.scores_new_users:
            raise InputError(f"{type(self).__name__} ranks only for users it was fitted on; leave histories out")

        events = histories.with_ids_like(histories.users, self.catalogue_).with_items(self.catalogue_)
        return events.select(events.order)

    def _block(self, events: Interactions, k: int, exclude_seen: bool, mask: NDArray[np.bool_] | None) -> TopK:
        seen = seen_items(events) if exclude_seen else None
        top = self._rank(events, min(k, len(self.catalogue_)), seen, mask)
        return filled(top, k, self.popularity_, seen, mask)

    def _reasons(
        self, events: Interactions, positions: NDArray[np.int64], exclude_seen: bool, mask: NDArray[np.bool_] | None
    ) -> NDArray[np.object_]:
        """(users, k) reason for each item at `positions`; `exclude_seen` and `mask` as when the lists were made."""
        out = np.full(positions.shape, None, dtype=object)
        weights = self._history_weights(events)

        for row in range(len(positions)):
            listed = np.flatnonzero(positions[row] >= 0)
            entries = slice(weights.indptr[row], weights.indptr[row + 1])
            history = weights.indices[entries].astype(np.int64)
            contributions = self._contributions(history, weights.data[entries], positions[row, listed])
            history %= len(self.catalogue_)  # a model may have several weights for an item, side by side
            for at, column in enumerate(listed):
                of_item = {name: values[:, at] for name, values in contributions.items()}
                out[row, column] = reason_for(of_item, history, self.catalogue_, source=self.source_of_scores)

        return out


def _in_types_of(known: IdMap, items: Embeddings, *, foreign: bool = False) -> Embeddings:
    """The same embeddings with ids converted to the type of known ids, so that 5 and "5" are one item.

    Ids that cannot be converted raise `InputError`, or with `foreign` are kept as ids of other items.
    """
    ids = ids_like(items.ids, known, "item", foreign=foreign)
    return items if ids is items.ids else replace(items, ids=ids)
