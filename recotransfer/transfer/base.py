"""The two kinds of transfer methods: maps on vectors (`Transfer`) and maps on encoders (`Tuner`)."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from recotransfer.arguments import Checked, checked
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import Encoder, TrainableEncoder
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.settings import check_settings, saved_settings, settings_of

Array = NDArray[np.float32]
Ints = NDArray[np.int64]


class Transfer(Checked, ABC):
    """A map on item vectors, learned from relations alone and applicable to any items, new ones included.

    Subclasses implement `_learn` and `_apply`. What they learn is a dict of arrays, which this class saves and loads.
    The users of the relations are whatever relates the items: shoppers, classes, shops. Items without content are
    ignored in learning and stay without content.

    Attributes:
        is_linear: whether the map is linear. The reasons of a recommendation then name the modalities it mixes
            ("text+image"); vectors that went through a network are called "content".
    """

    is_linear: ClassVar[bool] = False
    state_: dict[str, NDArray[Any]]

    @abstractmethod
    def _learn(self, vectors: Array, relations: Interactions) -> dict[str, NDArray[Any]]:
        """The arrays that `_apply` needs; `vectors` (n, dim) are those of `relations.items`, all with content."""

    @abstractmethod
    def _apply(self, vectors: Array) -> Array:
        """(n, dim') the mapped vectors of any items, computed from `state_`."""

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def unfitted(self) -> Self:
        """An unfitted transfer with the same settings."""
        return type(self)(**{name: getattr(self, name) for name in settings_of(type(self))})

    def fit(self, items: Embeddings, relations: Interactions) -> Self:
        """Learn from the items' vectors and the relations between users and items; returns self.

        Items without relations contribute their vectors only. Relations of items without content are ignored.

        Raises:
            InputError: invalid settings, or no item with content.
        """
        self.check_settings()
        known = np.flatnonzero(items.has_content)
        if not len(known):
            raise InputError(f"{type(self).__name__} has no item with content to learn from; see the encoder's report")

        self.dim_in_ = items.dim
        self.state_ = self._learn(items.vectors[known], _among(relations, items, known))

        return self

    def check_settings(self) -> None:
        """Raise `InputError` for an invalid setting; `fit` calls this first."""
        check_settings(self)

    def transform(self, items: Embeddings) -> Embeddings:
        """The mapped embeddings; their `source` lists the maps applied, in order.

        Raises:
            NotFittedError: the transfer has not been fitted.
            InputError: vectors of another width than in `fit`.
        """
        if not hasattr(self, "state_"):
            raise NotFittedError.of(self)
        if items.dim != self.dim_in_:
            raise InputError(f"{type(self).__name__} was fitted on {self.dim_in_} dimensions, not {items.dim}")

        out = self._apply(items.vectors)
        blocks = ((items.modalities, out.shape[1]),) if self.is_linear else ()
        return Embeddings(items.ids, out, f"{items.source} > {type(self).__name__}", items.has_content, blocks)

    def write(self, writer: ArtifactWriter) -> None:
        """Save the settings and the learned arrays."""
        names = sorted(self.state_)
        writer.json("transfer", {"params": self.params(), "dim": self.dim_in_, "state": names})
        for name in names:
            writer.array(name, self.state_[name])

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """The transfer that `write` stored."""
        facts = artifact.json("transfer")
        out = cls(**saved_settings(cls, facts["params"]))
        out.dim_in_ = facts["dim"]
        out.state_ = {name: artifact.array(name) for name in facts["state"]}
        return out


class Tuner(Checked, ABC):
    """Trains an encoder; the result takes the encoder's place in a `TransferTask`.

    Attributes:
        report_: plain JSON about the last `tune`: settings, learning curve, best epoch and seconds.
    """

    report_: dict[str, Any]

    @abstractmethod
    def tune(self, encoder: TrainableEncoder, items: Items, relations: Interactions) -> TrainableEncoder:
        """A trained encoder; `encoder` itself is unchanged.

        Args:
            encoder: where training starts.
            items: the items to learn from.
            relations: users and their items.
        """


@checked
def fit_transfers(
    transfers: Sequence[Transfer], vectors: Embeddings, relations: Interactions
) -> tuple[list[Transfer], Embeddings]:
    """Fitted copies of the transfers, each fitted on the output of the one before, and the output of the last."""
    fitted = [transfer.unfitted() for transfer in transfers]
    for transfer in fitted:
        vectors = transfer.fit(vectors, relations).transform(vectors)

    return fitted, vectors


@checked
def tune_encoders(
    encoders: Sequence[Encoder], tuners: Mapping[str, Tuner], items: Items, relations: Interactions
) -> tuple[list[Encoder], dict[str, dict[str, Any]]]:
    """The encoders, trained where their modality has a tuner, and the tuners' reports by modality.

    The encoders and tuners passed in are unchanged.

    Raises:
        InputError: a tuner for a modality that no encoder reads, or for an encoder without weights.
    """
    if unknown := set(tuners) - {encoder.modality for encoder in encoders}:
        read = ", ".join(sorted({encoder.modality for encoder in encoders})) or "none"
        raise InputError(f"tuners name {sorted(unknown)[0]!r}; the modalities read are {read}")

    out: list[Encoder] = []
    reports = {}
    for encoder in encoders:
        tuner = tuners.get(encoder.modality)
        if tuner is None:
            out.append(encoder)
        elif not hasattr(encoder, "module"):
            raise InputError(f"{type(encoder).__name__} has no weights to tune; leave its tuner out")
        else:
            own = copy.copy(tuner)  # `tune` writes its report into the tuner, which another task may use too
            out.append(own.tune(cast(TrainableEncoder, encoder), items, relations))
            reports[encoder.modality] = getattr(own, "report_", {})

    return out, reports


def _among(relations: Interactions, items: Embeddings, known: NDArray[np.int64]) -> Interactions:
    """The relations of the items at positions `known`, reindexed to those items."""
    place = np.full(len(items.ids), -1, np.int64)
    place[known] = np.arange(len(known))
    at = items.ids.positions(relations.items.ids, missing="negative")
    where = np.where(at >= 0, place[at], -1)[relations.item]
    kept = np.flatnonzero(where >= 0)
    r = relations.select(kept)
    ids = items.ids if len(known) == len(items.ids) else IdMap(items.ids.take(known))

    return Interactions(r.users, ids, r.user, where[kept], r.weight, r.time, r.kind, r.kinds)
