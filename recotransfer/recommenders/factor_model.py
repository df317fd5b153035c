"""Base class of recommenders that score by the inner product of a user vector and an item vector."""

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
    """Recommenders that score by the inner product of user and item vectors, and search an index for the best items.

    Subclasses implement `_queries`, and call `_set_factors` in `_fit`.

    Attributes:
        index_: the index over the item vectors; exact until `choose_index` or `use_index` is called.
        index_report_: which index is used and why, with its measured recall.
    """

    source_of_scores: ClassVar[str] = "behaviour"

    index_: Index
    index_report_: str

    @abstractmethod
    def _queries(self, events: Interactions) -> Float:
        """(users of `events`, dim) user vectors; a zero row without a usable history, which is ranked by popularity."""

    @property
    def factors_(self) -> Float:
        """(items, dim) item vectors."""
        return self.index_.vectors

    def _set_factors(self, factors: Float) -> None:
        self.index_, self.index_report_ = ExactIndex().build(factors), "exact"

    def choose_index(self, target_recall: float = 0.95, *, users: int = 200, seed: int = 0) -> Self:
        """Switch to the fastest index whose recall of the exact top 10 is at least `target_recall`. Returns self.

        This speeds up single requests over large catalogues. `for_batch` returns to exact search.

        Args:
            target_recall: mean share of the exact top 10 that the index must find.
            users: number of known users, sampled at random, whose queries are measured.
            seed: random seed of the sample.
        """
        log = self.known_events()
        drawn = np.sort(np.random.default_rng(seed).permutation(len(log.users))[:users])
        queries = self._queries(subset(log, drawn))
        chosen = choose_index(self.factors_, target_recall=target_recall, sample_queries=queries)
        self.index_, self.index_report_ = chosen.index, chosen.reason

        return self

    def use_index(self, index: Index) -> Self:
        """Switch to `index`, which is built on the item vectors here, for single requests. Returns self."""
        self._check_fitted()
        self.index_ = index.build(self.factors_)
        self.index_report_ = f"{type(index).__name__}, as given"

        return self

    def for_batch(self) -> Self:
        """A copy with exact search, which is also fastest for many users at once."""
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
        unknown = ~queries.any(axis=1)  # all scores would be 0; an empty list is filled by popularity instead
        top.positions[unknown], top.scores[unknown] = -1, -np.inf
        return top

    def similar_items(
        self, items: ArrayLike, k: int = 10, *, filter: Filter | None = None, reason: bool = False
    ) -> Recommendations:
        """The k items whose vectors have the highest cosine similarity to each of `items`."""
        model = self._now()
        model._check_fitted()
        if reason:
            raise InputError(f"{type(self).__name__} compares item factors, which give no reasons; omit reason=True")

        positions = positions_like(items, model.catalogue_)
        mask = None if filter is None else filter.mask(model.catalogue_, model.item_columns_)
        rows = np.arange(len(positions))
        shape = (len(rows), len(model.catalogue_))
        itself = sparse.coo_array((np.ones(len(rows), np.float32), (rows, positions)), shape=shape).tocsr()
        unit = unit_rows(model.factors_)
        top = top_k(unit[positions], unit, min(k, len(model.catalogue_)), exclude=itself, mask=mask)

        return Recommendations(model.catalogue_.take(positions), model.catalogue_, top.positions, top.scores)

    def _write(self, writer: ArtifactWriter) -> None:
        save_index(self.index_, writer, "index")
        writer.json("index_report", self.index_report_)

    def _read(self, artifact: Artifact) -> None:
        self.index_ = load_index(artifact, "index")
        self.index_report_ = artifact.json("index_report")
