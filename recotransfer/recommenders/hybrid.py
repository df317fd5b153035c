"""`HybridItems`, an item-item model that ranks warm items by behaviour and cold items by content, in one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import POPULARITY_BUCKETS, popularity_bucket
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.ages import steps_of, transitions
from recotransfer.numerics.histories import histories
from recotransfer.numerics.ridge import ease, local_ridge, ridge
from recotransfer.numerics.sparse import keep_largest, scaled, smoothed, without_diagonal
from recotransfer.numerics.vectors import Float, reciprocal
from recotransfer.recommenders._content_kernel import (
    agreed,
    local_scale,
    nearest_cosines,
    roots,
    sharpened,
    stand_ins,
    unit_embeddings,
)
from recotransfer.recommenders.base import Matrix
from recotransfer.recommenders.item_item import ItemItem, cells
from recotransfer.settings import Decay, NonNegative, PositiveInt, Share, fits

_PAST, _FUTURE = 1.5, 1.2  # exponents of history_decay in the order component, where recent items matter more


class HybridItems(ItemItem):
    """Recency-weighted histories times an item-item matrix that combines three components.

    1. Co-occurrence: ridge regression of every item on the others (EASE; Steck, 2019).
    2. Order, if events have times: regression of the items that follow on those before (SLIST; Choi et al., 2021).
    3. Content: a kernel, relu(cosine) ** sharpness of the item vectors, with rows and columns divided by the roots of
       their sums and scaled so that rows sum to `content_weight` on average. Cosines are scaled locally, by the root of
       both items' mean cosine to their nearest items (Zelnik-Manor and Perona, 2004), which prevents hubs: items that
       would be neighbours of all others.

    The first two form the behaviour matrix B, which content modifies twice. Each cell is multiplied by 1 + relu(cosine)
    of its items, and B is rescaled to its former sum. Then B is smoothed to S B S' with S = diag(a) + diag(1 - a) W: an
    item with n users keeps the share a = n / (n + prior_events) of its own row and column, and takes the rest from its
    content neighbours W. So an item without users gets the mean of its neighbours' behaviour, and an item with many
    users keeps its own. Users are represented by their histories, so new users need no refit; `extend` adds new items.
    Fitted without embeddings, the model uses behaviour only, which is the ablation of the transfer. `trust`
    interpolates between both versions by popularity of the item.

    Args:
        reg: ridge penalty of the co-occurrence regression.
        sequence_weight: weight of the order component, relative to co-occurrence.
        sequence_reg: ridge penalty of the order regression.
        content_weight: weight of the content component, relative to co-occurrence.
        sharpness: exponent of the cosine; higher values concentrate the weight on the nearest neighbours.
        prior_events: number of users at which an item's own behaviour and its neighbours' have equal weight.
        history_decay: factor on an item's weight for each newer item in the history; its powers 1.5 and 1.2 apply in
            the order component.
        neighbours: number of items from which each item is scored, per component.
        form: "sparse" regresses each item on its `neighbours`, in memory linear in the number of items; "dense" solves
            for all items at once, in a full items x items matrix. Sparse measured as good and many times faster.
        trust: share of content for recommended items with 0, 1-5, 6-20 and more users. An item's column is that share
            of its column with content, plus the rest of its column from behaviour alone.
            `recotransfer.diagnostics.guard` chooses it by the effect of content on held-out events.
    """

    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "reg": (10.0, 600.0),
        "sequence_weight": (0.5, 2.5),
        "sequence_reg": (15.0, 200.0),
        "content_weight": (0.08, 0.8),
        "sharpness": (3.0, 8.0),
        "prior_events": (0.05, 3.0),
        "history_decay": (0.4, 1.0),
        "neighbours": (60, 250),
    }

    def __init__(
        self,
        *,
        reg: NonNegative = 200.0,
        sequence_weight: NonNegative = 1.0,
        sequence_reg: NonNegative = 50.0,
        content_weight: NonNegative = 0.25,
        sharpness: NonNegative = 5.0,
        prior_events: NonNegative = 0.2,
        history_decay: Decay = 0.6,
        neighbours: PositiveInt = 100,
        form: Literal["sparse", "dense"] = "sparse",
        trust: Sequence[Share] = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        self.reg = reg
        self.sequence_weight = sequence_weight
        self.sequence_reg = sequence_reg
        self.content_weight = content_weight
        self.sharpness = sharpness
        self.prior_events = prior_events
        self.history_decay = history_decay
        self.neighbours = neighbours
        self.form = form
        self.trust = trust

    def check_settings(self) -> None:
        """Validate the settings; raises `InputError` for a value that is not allowed. `fit` calls this first."""
        count = len(POPULARITY_BUCKETS)
        if np.shape(self.trust) != (count,) or not fits(self.trust, Sequence[Share]):
            raise InputError(f"HybridItems: trust must be {count} numbers from 0 to 1, got {self.trust!r}")

        super().check_settings()

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        self.behaviour_weights_ = self._behaviour(events)
        self.items_ = None if items is None else unit_embeddings(items)
        if self.items_ is None:
            self.weights_ = self.behaviour_weights_
            return

        # Behaviour weighs more between items of similar content.
        self.behaviour_ = agreed(self.behaviour_weights_, self.items_)

        # The content kernel, with rows and columns divided by the roots of their sums.
        found = nearest_cosines(self.items_.vectors, self.items_.vectors, self.items_.has_content, self.neighbours)
        self.local_scale_ = local_scale(found)
        near = without_diagonal(sharpened(found, self.local_scale_, self.local_scale_, self.sharpness))
        self.column_root_ = roots(near.sum(axis=0))
        content = scaled(near, roots(near.sum(axis=1)), self.column_root_)

        # Scaled so that the rows with content sum to `content_weight` on average.
        total = content.sum(axis=1)
        self.level_ = float(self.content_weight * reciprocal(total[total > 0].mean())) if total.any() else 0.0
        self.row_root_ = self.level_ * roots(near.sum(axis=1))
        self.content_ = scaled(near, self.row_root_, self.column_root_)

        # Items with few users borrow the behaviour of similar items.
        self.lookalikes_ = stand_ins(near, self.popularity_)
        own = self._own_share()
        self.content_weights_ = without_diagonal(self._smoothed(self.lookalikes_, self.content_, own))
        self.weights_ = self._blend()

    def _behaviour(self, events: Interactions) -> Matrix:
        """(items, items) behaviour weights: co-occurrence plus order."""
        matrix = histories(events)
        gram = sparse.csr_array(matrix.T @ matrix)
        dense = self.form == "dense"
        both = ease(gram.toarray(), self.reg) if dense else local_ridge(gram, gram, self.reg, self.neighbours)
        self.cooccurrence_, self.order_ = both, None
        if events.time is None or not self.sequence_weight:
            return both

        steps = steps_of(events, by_moment=False)
        back, ahead = self.history_decay**_PAST, self.history_decay**_FUTURE
        past, future = transitions(steps, len(events.items), back, ahead)
        gram, target = sparse.csr_array(past.T @ past), sparse.csr_array(past.T @ future)
        if dense:
            order = without_diagonal(ridge(gram.toarray(), target.toarray(), self.sequence_reg))
        else:
            order = local_ridge(gram, target, self.sequence_reg, self.neighbours)

        self.order_ = order

        return both + self.sequence_weight * order

    def _own_share(self) -> Float:
        """(items,) share of an item's own behaviour, n / (n + prior_events).

        It is 1 if no neighbour has behaviour to borrow, and from 20 times `prior_events` users on, where smoothing is
        costly and has almost no effect.
        """
        users = self.popularity_[: self.lookalikes_.shape[1]]
        alone = (self.lookalikes_.sum(axis=0) == 0) | (users >= max(1, 20 * self.prior_events))
        return np.where(alone, 1, users * reciprocal(users + self.prior_events)).astype(np.float32)

    def _smoothed(self, stand_in: sparse.csr_array, content: sparse.csr_array, own_column: Float) -> Matrix:
        """(items, m) columns of S B S' + content for m items, given their stand-ins and shares of own behaviour."""
        own = self._own_share()
        if isinstance(self.behaviour_, np.ndarray):
            column = (stand_in.T @ self.behaviour_.T).T * (1 - own_column)
            if own_column.any():
                column += self.behaviour_ * own_column

            both = own[:, None] * column + (1 - own)[:, None] * (self.lookalikes_.T @ column) + content.toarray()
            return np.ascontiguousarray(both, np.float32)

        return smoothed(self.behaviour_, stand_in, own_column, self.lookalikes_, own, content, keep=2 * self.neighbours)

    # -- trust ---------------------------------------------------------------------------------------------------------

    def with_trust(self, trust: Sequence[float]) -> Self:
        """A copy with another value of `trust`, without a refit. This model is unchanged."""
        out = self._now()
        out._check_fitted()
        if out.items_ is None:
            raise InputError("this HybridItems was fitted without embeddings, so there is no content to trust")

        out.trust = trust
        out.check_settings()
        out.weights_ = out._blend()

        return out

    def _blend(self) -> Matrix:
        """(items, items) interpolation of `content_weights_` and `behaviour_weights_`, column by column, by `trust`."""
        share = self._shares(np.arange(len(self.popularity_)))
        if (share == 1).all():
            return self.content_weights_

        return _mix(self.content_weights_, share, self.behaviour_weights_) if share.any() else self.behaviour_weights_

    def _shares(self, items: NDArray[np.int64]) -> Float:
        """(len(items),) value of `trust` for each item, by its popularity."""
        return np.asarray(self.trust, np.float32).take(popularity_bucket(self.popularity_[items]))

    # -- new items -----------------------------------------------------------------------------------------------------

    def _content(self) -> Embeddings | None:
        return self.items_

    def _extend(self, items: Embeddings) -> None:
        """Add the columns and rows that `fit` would give items without events; existing weights are unchanged."""
        if self.items_ is None:
            raise InputError("this HybridItems cannot rank new items: it was fitted without embeddings")

        old, fresh = self.items_, unit_embeddings(items)
        if fresh.dim != old.dim:
            raise InputError(f"new items have {fresh.dim} dimensions, the model was fitted with {old.dim}")

        # Cosines of new with old items; the old items keep their local scales.
        n, m = len(old.ids), len(fresh.ids)
        found = scaled(
            nearest_cosines(fresh.vectors, old.vectors, old.has_content, self.neighbours), None, fresh.has_content
        )
        scale = local_scale(found)
        near = sharpened(found, self.local_scale_, scale, self.sharpness)
        stand_in = stand_ins(near, self.popularity_)
        root = roots(near.sum(axis=0))  # the kernel is symmetric, so a new item's row sums to what its column does
        content_column = scaled(near, self.row_root_, root)
        content_row = scaled(sparse.csr_array(near.T), self.level_ * root, self.column_root_)

        # Without events, new items borrow all their behaviour: their columns, rows, and the block among themselves.
        column = self._smoothed(stand_in, content_column, np.zeros(m, np.float32))
        own = self._own_share()
        borrowed = stand_in.T @ self.behaviour_
        row = _mix(borrowed, own, borrowed @ self.lookalikes_) + content_row
        corner = without_diagonal(stand_in.T @ (self.behaviour_ @ stand_in))

        none, tall = _empty(m, m), _empty(m, n)
        if isinstance(self.content_weights_, np.ndarray):
            self.content_weights_ = np.asarray(np.block([[self.content_weights_, column], [row, corner]]), np.float32)
            self.behaviour_ = np.pad(np.asarray(self.behaviour_), ((0, m), (0, m)))
            self.behaviour_weights_ = np.pad(np.asarray(self.behaviour_weights_), ((0, m), (0, m)))
        else:
            row = keep_largest(sparse.csr_array(row).T.tocsr(), 2 * self.neighbours).T.tocsr()
            self.content_weights_ = _blocks([self.content_weights_, column], [row, corner])
            self.behaviour_ = _blocks([self.behaviour_, None], [None, none])
            self.behaviour_weights_ = _blocks([self.behaviour_weights_, None], [None, none])

        self.content_ = _blocks([self.content_, content_column], [content_row, none])
        self.lookalikes_ = _blocks([self.lookalikes_, stand_in], [tall, none])
        self.row_root_ = np.concatenate([self.row_root_, self.level_ * root])
        self.column_root_ = np.concatenate([self.column_root_, root])
        self.local_scale_ = np.concatenate([self.local_scale_, scale])
        vectors = np.concatenate([old.vectors, fresh.vectors])
        present = np.concatenate([old.has_content, fresh.has_content])
        self.items_ = Embeddings(self.catalogue_, vectors, old.source, present, old.blocks)
        self.weights_ = self._blend()

    # -- reasons -------------------------------------------------------------------------------------------------------

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        if self.items_ is None:
            return super()._contributions(history, strength, items)

        # score = trust * (own behaviour + borrowed behaviour + content) + (1 - trust) * behaviour without content
        share, trust = self._own_share(), self._shares(items)
        total, plain = cells(self.content_weights_, history, items), cells(self.behaviour_weights_, history, items)
        content = np.minimum(cells(self.content_, history, items), np.maximum(total, 0))
        own = share[history][:, None] * cells(self.behaviour_, history, items) * share[items]
        out = {
            "behaviour": strength[:, None] * (trust * own + (1 - trust) * plain),
            "behaviour of similar items": strength[:, None] * trust * (total - content - own),
        }

        # Content is attributed to the modalities in proportion to their terms of the cosine.
        content = trust * content
        gains, first = {}, 0

        for name, width in self.items_.blocks:
            block = slice(first, first + width)
            gains[name] = np.maximum(self.items_.vectors[history, block] @ self.items_.vectors[items, block].T, 0)
            first += width

        whole = reciprocal(sum(gains.values()))
        for name, gain in gains.items():
            out[name] = np.asarray(strength[:, None] * content * gain * whole, np.float32)

        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        if self.items_ is None:
            return

        writer.matrix("plain", self.behaviour_weights_)  # names of parts are fixed by format 1
        writer.matrix("behaviour", self.behaviour_)
        writer.matrix("content", self.content_)
        writer.matrix("lookalikes", self.lookalikes_)
        if min(self.trust) < 1:
            writer.matrix("trusting", self.content_weights_)

        writer.array("row_root", self.row_root_)
        writer.array("column_root", self.column_root_)
        writer.array("reach", self.local_scale_)
        writer.array("vectors", self.items_.vectors)
        writer.array("present", self.items_.has_content)
        writer.json("items", {"source": self.items_.source, "blocks": self.items_.blocks, "level": self.level_})

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.items_ = None
        self.behaviour_weights_ = self.weights_
        if "vectors.npy" not in artifact:
            return

        self.content_weights_ = artifact.matrix("trusting") if min(self.trust) < 1 else self.weights_
        self.behaviour_ = artifact.matrix("behaviour")
        self.content_ = artifact.matrix("content")
        self.lookalikes_ = artifact.matrix("lookalikes")
        facts = artifact.json("items")
        blocks = tuple((name, width) for name, width in facts["blocks"])
        self.items_ = Embeddings(
            self.catalogue_, artifact.array("vectors"), facts["source"], artifact.array("present"), blocks
        )
        if "level" not in facts:  # saved by version 0.1, which scaled only rows and had no local scales
            ones = np.ones(len(self.catalogue_), np.float32)
            self.behaviour_weights_, self.level_ = self.behaviour_, self.content_weight
            self.row_root_, self.column_root_, self.local_scale_ = artifact.array("row_scale"), ones, ones
            return

        self.behaviour_weights_, self.level_ = artifact.matrix("plain"), facts["level"]
        self.row_root_ = artifact.array("row_root")
        self.column_root_ = artifact.array("column_root")
        self.local_scale_ = artifact.array("reach")


def _mix(matrix: Matrix, own: Float, other: Matrix) -> Matrix:
    """The mean own * matrix + (1 - own) * other, column by column."""
    if isinstance(matrix, np.ndarray):
        return np.asarray(own * matrix + (1 - own) * other, np.float32)

    return sparse.csr_array(scaled(matrix, None, own) + scaled(other, None, 1 - own))


def _empty(height: int, width: int) -> sparse.csr_array:
    return sparse.csr_array((height, width), dtype=np.float32)


def _blocks(top: list[sparse.csr_array | None], bottom: list[sparse.csr_array | None]) -> sparse.csr_array:
    return sparse.csr_array(sparse.block_array([top, bottom], format="csr"))
