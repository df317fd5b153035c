"""Recommenders based on item vectors alone: each user is a vector in the embedding space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, IdMap, Interactions
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.ridge import half_step, unobserved_metric
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float, unit_rows
from recotransfer.recommenders.factor_model import FactorModel
from recotransfer.settings import Decay, NonNegative


class _Profiles(FactorModel):
    """User vectors are weighted sums of the unit vectors of the history: W @ vectors @ metric.

    Attributes:
        blocks_: (name, width) of the modalities side by side in the vectors.
        present_: (items,) bool, items with content; the others are never listed.
    """

    needs_items: ClassVar[bool] = True
    scores_new_items: ClassVar[bool] = True

    history_decay: float
    blocks_: tuple[tuple[str, int], ...]
    present_: NDArray[np.bool_]

    @abstractmethod
    def _weights(self, events: Interactions) -> sparse.csr_array:
        """(users, items) weight of each item in a user's profile."""

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        assert items is not None  # fit checks needs_items
        self.blocks_, self.present_ = items.blocks, items.has_content
        self._set_factors(unit_rows(items.vectors))

    def _content(self) -> Embeddings:
        known = IdMap(self.catalogue_.take(np.arange(len(self.present_))))
        return Embeddings(known, self.factors_, present=self.present_, blocks=self.blocks_)

    def _extend(self, items: Embeddings) -> None:
        fresh = unit_rows(items.vectors)
        self.present_ = np.concatenate([self.present_, items.has_content])
        self.index_ = self.index_.extended(fresh)

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        if not self.present_.all():  # items without content score 0, which would outrank negative scores
            mask = self.present_ if mask is None else mask & self.present_

        return super()._rank(events, k, exclude, mask)

    def _queries(self, events: Interactions) -> Float:
        return self._projected(np.asarray(self._weights(events) @ self.factors_, np.float32))

    def _projected(self, vectors: Float) -> Float:
        """The vectors times the metric."""
        return vectors

    def _contributions(
        self, history: NDArray[np.int64], strength: Float, items: NDArray[np.int64]
    ) -> Mapping[str, Float]:
        # The score is an inner product, so it is the sum over history items and over the modalities' blocks of columns.
        summands = self._projected(self.factors_[history]) * self._profile_weights(history, strength)
        targets = self.factors_[items]
        out, first = {}, 0
        for name, width in self.blocks_:
            block = slice(first, first + width)
            out[name] = np.asarray(summands[:, block] @ targets[:, block].T, np.float32)
            first += width

        return out

    def _profile_weights(self, history: NDArray[np.int64], strength: Float) -> Float:
        """(len(history), 1) weight of each history item in the user's profile."""
        return strength[:, None]

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.json("blocks", self.blocks_)
        writer.array("present", self.present_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.blocks_ = tuple((name, width) for name, width in artifact.json("blocks"))
        self.present_ = artifact.array("present")


class ContentProfiles(_Profiles):
    """Cosine similarity between an item and the weighted mean of the user's items.

    Args:
        history_decay: factor on an item's weight for each newer item in the history; 1 weights all equally.
    """

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"history_decay": (0.3, 1.0)}

    def __init__(self, *, history_decay: Decay = 1.0) -> None:
        self.history_decay = history_decay

    def _weights(self, events: Interactions) -> sparse.csr_array:
        return self._history_weights(events)

    def _queries(self, events: Interactions) -> Float:
        return unit_rows(super()._queries(events))


class RidgeProfiles(_Profiles):
    """A ridge regression per user that predicts from an item's vector whether it is in the history.

    This is the user half-step of implicit ALS (Hu, Koren and Volinsky, 2008) with the embeddings as fixed item factors:
    a linear probe for each user.

    Args:
        reg: ridge penalty on the user's vector.
        unobserved: weight of each item outside the history, relative to 1 for an item in it.
        history_decay: factor on an item's weight for each newer item in the history; 1 weights all equally.
    """

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "reg": (0.01, 30.0),
        "unobserved": (0.0001, 0.3),
        "history_decay": (0.3, 1.0),
    }

    def __init__(self, *, reg: NonNegative = 1.0, unobserved: NonNegative = 0.01, history_decay: Decay = 1.0) -> None:
        self.reg = reg
        self.unobserved = unobserved
        self.history_decay = history_decay

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        super()._fit(events, items)
        self.metric_ = unobserved_metric(self.factors_, self.reg, self.unobserved)

    def _weights(self, events: Interactions) -> sparse.csr_array:
        return half_step(self._history_weights(events), self.factors_, self.metric_)

    def _projected(self, vectors: Float) -> Float:
        return vectors @ self.metric_

    def _profile_weights(self, history: NDArray[np.int64], strength: Float) -> Float:
        row = sparse.csr_array((strength, history, np.array([0, len(history)])), shape=(1, len(self.factors_)))
        return np.asarray(half_step(row, self.factors_, self.metric_).data[:, None], np.float32)

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("metric", self.metric_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.metric_ = artifact.array("metric")
