"""The flagship: one item-item model, behaviour where there is some, content where there is none, and both between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.artifacts import Artifact, ArtifactWriter
from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError
from recotransfer.index import nearest
from recotransfer.recommenders.base import ItemItem, Matrix, cells
from recotransfer.solvers import (
    Float,
    ease,
    histories,
    keep_largest,
    local_ridge,
    reciprocal,
    ridge,
    scaled,
    smoothed,
    transitions,
    unit_rows,
    without_diagonal,
)


class HybridItems(ItemItem):
    """Recency-weighted histories times one item-item matrix made of three.

    1. Co-occurrence: every item regressed on the others (EASE; Steck, 2019).
    2. Order, where events are timed: what comes next regressed on what came before (SLIST; Choi et al., 2021).
    3. Content: relu(cosine) ** sharpness of the item vectors, each held item's row summing to `content_weight`.

    The first two, the behaviour B, are smoothed over content: an item with n users keeps n / (n + prior_events) of its
    own row and column and takes the rest from its content neighbours: S B S' with S = diag(a) + diag(1 - a) W. An item
    nobody has touched is wholly its neighbours' mean, one touched often is itself, and there is no step between. New
    users are their events; new items enter through `extend`. Fitted without embeddings the model is behaviour only,
    which is the control arm of the transfer.

    Args:
        reg: ridge of the co-occurrence regression.
        sequence_weight: weight of the order part against co-occurrence.
        sequence_reg: ridge of the order regression.
        content_weight: weight of the content part against co-occurrence.
        sharpness: power of the cosine; greater means fewer, nearer neighbours count.
        prior_events: users at which an item's own behaviour and its neighbours' count the same.
        history_decay: weight of each own item per step of age, and of each step in the order part.
        neighbours: how many items speak for each item, in each part.
        form: "sparse" solves each item on its `neighbours` and grows with the items only; "dense" solves for all items
            at once and holds items x items. Sparse measured as good and many times faster.
    """

    scores_new_items: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "reg": (20.0, 1000.0),
        "sequence_weight": (0.1, 3.0),
        "sequence_reg": (5.0, 300.0),
        "content_weight": (0.03, 1.5),
        "sharpness": (2.0, 12.0),
        "prior_events": (0.1, 30.0),
        "history_decay": (0.3, 1.0),
        "neighbours": (60, 250),
    }

    def __init__(
        self,
        *,
        reg: float = 200.0,
        sequence_weight: float = 1.0,
        sequence_reg: float = 50.0,
        content_weight: float = 0.3,
        sharpness: float = 5.0,
        prior_events: float = 1.0,
        history_decay: float = 0.6,
        neighbours: int = 100,
        form: Literal["sparse", "dense"] = "sparse",
    ) -> None:
        self.reg, self.sequence_weight, self.sequence_reg = reg, sequence_weight, sequence_reg
        self.content_weight, self.sharpness, self.prior_events = content_weight, sharpness, prior_events
        self.history_decay, self.neighbours, self.form = history_decay, neighbours, form

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        if self.form not in ("sparse", "dense"):
            raise InputError(f'form must be "sparse" or "dense", got {self.form!r}')
        self.behaviour_ = self._behaviour(events)
        self.items_ = None if items is None else _unit(items)
        if self.items_ is None:
            self.weights_ = self.behaviour_
            return
        near = without_diagonal(self._nearest(self.items_.vectors, self.items_))
        self.row_scale_ = (self.content_weight * reciprocal(near.sum(axis=1))).astype(np.float32)
        self.content_ = scaled(near, self.row_scale_, None)
        self.lookalikes_ = self._lookalikes(near)
        own = self._own_share()
        self.weights_ = without_diagonal(self._smoothed(self.lookalikes_, self.content_, own))

    def _behaviour(self, events: Interactions) -> Matrix:
        matrix = histories(events)
        gram = sparse.csr_array(matrix.T @ matrix)
        dense = self.form == "dense"
        out = ease(gram.toarray(), self.reg) if dense else local_ridge(gram, gram, self.reg, self.neighbours)
        if events.time is None or not self.sequence_weight:
            return out
        past, future = transitions(events, self.history_decay)
        gram, target = sparse.csr_array(past.T @ past), sparse.csr_array(past.T @ future)
        if dense:
            order = without_diagonal(ridge(gram.toarray(), target.toarray(), self.sequence_reg))
        else:
            order = local_ridge(gram, target, self.sequence_reg, self.neighbours)
        return out + self.sequence_weight * order

    def _nearest(self, queries: Float, items: Embeddings) -> sparse.csr_array:
        """(items, queries) relu(cosine) ** sharpness of each query's nearest items."""
        found = nearest(items.vectors, queries, min(self.neighbours + 1, len(items.ids)), mask=items.has_content)
        kept = (found.positions >= 0) & (found.scores > 0)
        column = np.broadcast_to(np.arange(len(queries))[:, None], kept.shape)[kept]
        power = found.scores[kept] ** np.float32(self.sharpness)
        shape = (len(items.ids), len(queries))
        return sparse.coo_array((power, (found.positions[kept], column)), shape=shape).tocsr()

    def _lookalikes(self, near: sparse.csr_array) -> sparse.csr_array:
        """`near` among items with events, each column summing to 1: whose behaviour stands in for an item's own."""
        warm = scaled(near, self.popularity_[: near.shape[0]] > 0, None)
        warm.eliminate_zeros()
        return scaled(warm, None, reciprocal(warm.sum(axis=0)))

    def _own_share(self) -> Float:
        """(items,) share of an item's own behaviour, n / (n + prior_events); 1 where no neighbour could stand in."""
        users = self.popularity_[: self.lookalikes_.shape[1]]
        alone = self.lookalikes_.sum(axis=0) == 0
        return np.where(alone, 1, users * reciprocal(users + self.prior_events)).astype(np.float32)

    def _smoothed(self, stand_in: sparse.csr_array, content: sparse.csr_array, own_column: Float) -> Matrix:
        """(items, m) columns of S B S' + content for m items with their stand-ins and shares of own behaviour."""
        own = self._own_share()
        if isinstance(self.behaviour_, np.ndarray):
            column = (stand_in.T @ self.behaviour_.T).T * (1 - own_column)
            if own_column.any():
                column += self.behaviour_ * own_column
            both = own[:, None] * column + (1 - own)[:, None] * (self.lookalikes_.T @ column) + content.toarray()
            return np.asarray(both, np.float32)
        return smoothed(self.behaviour_, stand_in, own_column, self.lookalikes_, own, content, keep=2 * self.neighbours)

    # -- new items -----------------------------------------------------------------------------------------------------

    def _extend(self, items: Embeddings) -> None:
        """New columns and rows as `fit` would give items without events; the old block stays as it is."""
        if self.items_ is None:
            raise InputError("this HybridItems was fitted without embeddings, so new items mean nothing to it")
        old, fresh = self.items_, _unit(items)
        if fresh.dim != old.dim:
            raise InputError(f"new items have {fresh.dim} dimensions, the model was fitted with {old.dim}")
        n, m = len(old.ids), len(fresh.ids)
        near = scaled(self._nearest(fresh.vectors, old), None, fresh.has_content)
        stand_in = self._lookalikes(near)
        scale = np.asarray(self.content_weight * reciprocal(near.sum(axis=0)), np.float32)
        content_column = scaled(near, self.row_scale_, None)
        content_row = scaled(sparse.csr_array(near.T), scale, None)
        column = self._smoothed(stand_in, content_column, np.zeros(m, np.float32))
        own = self._own_share()
        reach = stand_in.T @ self.behaviour_
        row = _mix(reach, own, reach @ self.lookalikes_) + content_row
        corner = without_diagonal(stand_in.T @ (self.behaviour_ @ stand_in))
        none, tall = _empty(m, m), _empty(m, n)
        if isinstance(self.weights_, np.ndarray):
            self.weights_ = np.asarray(np.block([[self.weights_, column], [row, corner]]), np.float32)
            self.behaviour_ = np.pad(np.asarray(self.behaviour_), ((0, m), (0, m)))
        else:
            row = keep_largest(sparse.csr_array(row).T.tocsr(), 2 * self.neighbours).T.tocsr()
            self.weights_ = _blocks([self.weights_, column], [row, corner])
            self.behaviour_ = _blocks([self.behaviour_, None], [None, none])
        self.content_ = _blocks([self.content_, content_column], [content_row, none])
        self.lookalikes_ = _blocks([self.lookalikes_, stand_in], [tall, none])
        self.row_scale_ = np.concatenate([self.row_scale_, scale])
        vectors = np.concatenate([old.vectors, fresh.vectors])
        present = np.concatenate([old.has_content, fresh.has_content])
        self.items_ = Embeddings(self.catalogue_, vectors, old.source, present, old.blocks)

    # -- reasons -------------------------------------------------------------------------------------------------------

    def _evidence(self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]) -> Mapping[str, Float]:
        if self.items_ is None:
            return super()._evidence(history, strength, items)
        share = self._own_share()
        total = cells(self.weights_, history, items)
        content = np.minimum(cells(self.content_, history, items), np.maximum(total, 0))
        own = share[history][:, None] * cells(self.behaviour_, history, items) * share[items]
        out = {
            "behaviour": strength[:, None] * own,
            "behaviour of similar items": strength[:, None] * (total - content - own),
        }
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
        writer.matrix("behaviour", self.behaviour_)
        writer.matrix("content", self.content_)
        writer.matrix("lookalikes", self.lookalikes_)
        writer.array("row_scale", self.row_scale_)
        writer.array("vectors", self.items_.vectors)
        writer.array("present", self.items_.has_content)
        writer.json("items", {"source": self.items_.source, "blocks": self.items_.blocks})

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.items_ = None
        self.behaviour_ = self.weights_
        if "vectors.npy" not in artifact:
            return
        self.behaviour_ = artifact.matrix("behaviour")
        self.content_, self.lookalikes_ = artifact.matrix("content"), artifact.matrix("lookalikes")
        self.row_scale_ = artifact.array("row_scale")
        facts = artifact.json("items")
        blocks = tuple((name, width) for name, width in facts["blocks"])
        self.items_ = Embeddings(
            self.catalogue_, artifact.array("vectors"), facts["source"], artifact.array("present"), blocks
        )


def _unit(items: Embeddings) -> Embeddings:
    return Embeddings(items.ids, unit_rows(items.vectors), items.source, items.has_content, items.blocks)


def _mix(matrix: Matrix, own: Float, other: Matrix) -> Matrix:
    """The mean own * matrix + (1 - own) * other, column by column."""
    if isinstance(matrix, np.ndarray):
        return np.asarray(own * matrix + (1 - own) * other, np.float32)
    return sparse.csr_array(scaled(matrix, None, own) + scaled(other, None, 1 - own))


def _empty(height: int, width: int) -> sparse.csr_array:
    return sparse.csr_array((height, width), dtype=np.float32)


def _blocks(top: list[sparse.csr_array | None], bottom: list[sparse.csr_array | None]) -> sparse.csr_array:
    return sparse.csr_array(sparse.block_array([top, bottom], format="csr"))
