"""What every transfer method is: a map on vectors (`Transfer`) or a map on encoders (`Tuner`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import Checked
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import TrainableEncoder
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.settings import check_settings, saved_settings, settings_of

Array = NDArray[np.float32]
Ints = NDArray[np.int64]


class Transfer(Checked, ABC):
    """Vectors in, vectors out; learned from relations alone, applied to items seen or not.

    Subclasses implement `_learn` and `_apply`. All they learn is a dict of arrays, so saving is written once.
    Users of the relations are whatever relates the items: shoppers, classes, shops. Items without content are left out
    of learning and stay without content.

    Attributes:
        is_linear: every part of the result comes from the modalities together, in fixed proportions, so that reasons
            name them all ("text+image"). Networks mix them as they please: their vectors are plain "content".
    """

    is_linear: ClassVar[bool] = False
    state_: dict[str, NDArray[Any]]

    @abstractmethod
    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        """Arrays that `_apply` needs; `vectors` (n, dim) are rows of `relations.items`, all with content."""

    @abstractmethod
    def _apply(self, vectors: Array) -> Array:
        """(n, dim') the mapped vectors of any items, by `state_`."""

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def unfitted(self) -> Self:
        """A transfer with the same settings that has learned nothing."""
        return type(self)(**{name: getattr(self, name) for name in settings_of(type(self))})

    def fit(self, items: Embeddings, relations: Interactions) -> Self:
        """Learn from the items' vectors and how users relate them; returns self.

        Items of `items` without a relation are known by their vectors only; relations of items without content are
        left aside.
        """
        self.check_settings()
        known = np.flatnonzero(items.has_content)
        if not len(known):
            raise InputError(f"{type(self).__name__} has no item with content to learn from; see the encoder's report")

        self.dim_in_ = items.dim
        self.state_ = self._learn(items.vectors[known], _among(relations, items, known))

        return self

    def check_settings(self) -> None:
        """Raise `InputError` for a setting that its declaration does not allow; `fit` begins with it."""
        check_settings(self)

    def transform(self, items: Embeddings) -> Embeddings:
        """The mapped embeddings; `source` tells the maps applied, in order."""
        if not hasattr(self, "state_"):
            raise NotFittedError(f"this {type(self).__name__} has not learned anything; call fit or load first")
        if items.dim != self.dim_in_:
            raise InputError(f"{type(self).__name__} was fitted on {self.dim_in_} dimensions, not {items.dim}")

        out = self._apply(items.vectors)
        blocks = ((items.modalities, out.shape[1]),) if self.is_linear else ()
        return Embeddings(items.ids, out, f"{items.source} > {type(self).__name__}", items.has_content, blocks)

    def write(self, writer: ArtifactWriter) -> None:
        """Store what was learned."""
        names = sorted(self.state_)
        writer.json("transfer", {"params": self.params(), "dim": self.dim_in_, "state": names})
        for name in names:
            writer.array(name, self.state_[name])

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """Take back what `write` stored."""
        facts = artifact.json("transfer")
        out = cls(**saved_settings(cls, facts["params"]))
        out.dim_in_ = facts["dim"]
        out.state_ = {name: artifact.array(name) for name in facts["state"]}
        return out


class Tuner(Checked, ABC):
    """Encoder in, encoder out: the weights change, the encoder's place in a `TransferTask` does not.

    Attributes:
        report_: plain JSON on the last `tune`: steps, seconds and the learning curve.
    """

    report_: dict[str, Any]

    @abstractmethod
    def tune(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> TrainableEncoder:
        """An encoder of the same kind that learned from how users relate the items; `encoder` stays as it is."""


def _among(relations: Interactions, items: Embeddings, known: NDArray[np.int64]) -> Interactions:
    """The relations of the items at `known`, over a map of those items alone."""
    place = np.full(len(items.ids), -1, np.int64)
    place[known] = np.arange(len(known))
    at = items.ids.positions(relations.items.ids, missing="negative")
    where = np.where(at >= 0, place[at], -1)[relations.item]
    kept = np.flatnonzero(where >= 0)
    r = relations.select(kept)
    ids = items.ids if len(known) == len(items.ids) else IdMap(items.ids.take(known))

    return Interactions(r.users, ids, r.user, where[kept], r.weight, r.time, r.kind, r.kinds)
