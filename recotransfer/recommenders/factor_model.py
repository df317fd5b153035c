"""Recommenders whose score is the inner product of a user vector and an item vector."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recotransfer.data import Filter, Interactions, Recommendations, positions_like
from recotransfer.errors import InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.histories import subset
from recotransfer.numerics.topk import TopK, top_k
from recotransfer.numerics.vectors import Float, unit_rows
from recotransfer.recommenders.base import Recommender
from recotransfer.retrieval import ExactIndex, Index, choose_index, load_index, save_index


class FactorModel(Recommender):
    """Recommenders whose score is the inner product of user and item vectors; an index finds the best items.

    Attributes:
        index_: the item vectors and the search over them; exact until `choose_index` finds something quicker.
        index_report_: which index it is, why, and its recall.
    """

    source_of_scores: ClassVar[str] = "behaviour"

    index_: Index
    index_report_: str

    @abstractmethod
    def _queries(self, events: Interactions) -> Float:
        """(users of `events`, dim) user vectors; zero for a user without a usable history."""

    @property
    def factors_(self) -> Float:
        """(items, dim) item vectors."""
        return self.index_.vectors

    def _set_factors(self, factors: Float) -> None:
        self.index_, self.index_report_ = ExactIndex().build(factors), "exact"

    def choose_index(self, target_recall: float = 0.95, *, users: int = 200, seed: int = 0) -> Self:
        """Switch to the quickest index whose recall of the exact top 10 is at least `target_recall`. Returns self.

        Single requests over large catalogues become quicker; `for_batch` goes back to exact search.

        Args:
            target_recall: least mean share of the exact top 10 that the index finds.
            users: number of known users whose queries are measured.
            seed: random seed of their choice.
        """
        log = self.known_events()
        drawn = np.sort(np.random.default_rng(seed).permutation(len(log.users))[:users])
        queries = self._queries(subset(log, drawn))
        chosen = choose_index(self.factors_, target_recall=target_recall, sample_queries=queries)
        self.index_, self.index_report_ = chosen.index, chosen.reason

        return self

    def use_index(self, index: Index) -> Self:
        """Take `index` instead, built anew on the item vectors, for single requests. Returns self."""
        self._check_fitted()
        self.index_ = index.build(self.factors_)
        self.index_report_ = f"{type(index).__name__}, as given"

        return self

    def for_batch(self) -> Self:
        """A copy that searches exactly, which is also the quickest way for many users at once."""
        out = self._now()
        out._set_factors(out.factors_)
        return out

    def _scores(self, events: Interactions) -> Float:
        return self._queries(events) @ self.factors_.T

    def _rank(
        self, events: Interactions, k: int, exclude: sparse.csr_array | None, mask: NDArray[np.bool_] | None
    ) -> TopK:
        queries = self._queries(events)
        top = self.index_.search(queries, k, exclude=exclude, mask=mask)
        unknown = ~queries.any(axis=1)
        top.positions[unknown], top.scores[unknown] = -1, -np.inf
        return top

    def similar_items(
        self, items: ArrayLike, k: int = 10, *, filter: Filter | None = None, reason: bool = False
    ) -> Recommendations:
        """The k items with the greatest cosine to each of `items`."""
        model = self._now()
        model._check_fitted()
        if reason:
            raise InputError(f"{type(self).__name__} compares factors, which give no reasons; leave reason out")

        positions = positions_like(items, model.catalogue_)
        mask = None if filter is None else filter.mask(model.catalogue_, model.item_columns_)
        rows = np.arange(len(positions))
        shape = (len(rows), len(model.catalogue_))
        own = sparse.coo_array((np.ones(len(rows), np.float32), (rows, positions)), shape=shape).tocsr()
        unit = unit_rows(model.factors_)
        top = top_k(unit[positions], unit, min(k, len(model.catalogue_)), exclude=own, mask=mask)

        return Recommendations(model.catalogue_.take(positions), model.catalogue_, top.positions, top.scores)

    def _write(self, writer: ArtifactWriter) -> None:
        save_index(self.index_, writer, "index")
        writer.json("index_report", self.index_report_)

    def _read(self, artifact: Artifact) -> None:
        self.index_ = load_index(artifact, "index")
        self.index_report_ = artifact.json("index_report")
