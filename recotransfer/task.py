"""The one place where raw content, encoders and a recommender meet: `TransferTask`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from recotransfer.artifacts import Artifact, ArtifactWriter, open_artifact, write_artifact
from recotransfer.data import Embeddings, Interactions, Items, Recommendations
from recotransfer.encoders import Encoder, EncodeReport, Fusion, default_encoders, encode_items, encoder_from_spec
from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.filters import Filter
from recotransfer.recommenders import HybridItems, Recommender, by_name


class TransferTask:
    """A recommender fed with what pretrained encoders know of the items.

    Args:
        recommender: what ranks; `HybridItems()` by default.
        encoders: what reads the items' content; by default chosen from the kinds of their columns. An empty sequence is
            the control arm: behaviour only.
        weights: modality ("text", "image", "attributes") -> weight; all the same by default.
        cache: folder that keeps vectors between runs; encoding then resumes and redoes only what changed.
        progress: show a bar while encoding.
    """

    def __init__(
        self,
        recommender: Recommender | None = None,
        *,
        encoders: Sequence[Encoder] | None = None,
        weights: Mapping[str, float] | None = None,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.recommender = HybridItems() if recommender is None else recommender
        self.encoders, self.weights, self.progress = encoders, weights, progress
        self.cache = None if cache is None else Path(cache)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(self, items: Items, interactions: Interactions) -> Self:
        """Encode the items, fuse their modalities, fit the recommender. Returns self."""
        parts = self.encode(items)
        self.fusion_ = Fusion(weights=self.weights).fit(parts) if parts else None
        embeddings = None if self.fusion_ is None else self.fusion_.transform(parts)
        self.recommender.fit(interactions, embeddings)
        self._attach(items)
        return self

    def encode(self, items: Items) -> list[Embeddings]:
        """One `Embeddings` per encoder; what could not be read is in `reports_`."""
        self.encoders_: list[Encoder] = self._encoders_for(items)
        self.reports_: list[EncodeReport] = []
        parts = []
        for encoder in self.encoders_:
            encoded = encode_items(items, encoder, cache=self.cache, progress=self.progress)
            self.reports_.append(encoded.report)
            parts.append(encoded.embeddings)
        return parts

    def _encoders_for(self, items: Items) -> list[Encoder]:
        if not (self.recommender.needs_items or self.recommender.scores_new_items):
            return []
        return default_encoders(items) if self.encoders is None else list(self.encoders)

    def _attach(self, items: Items) -> None:
        """Give the recommender the items' columns, without raw pictures, in the order of its catalogue."""
        plain = [c for c in items.columns.columns if not _holds_bytes(items.columns[c])]
        at = items.ids.positions(self.recommender.catalogue_.ids, missing="negative")
        columns = items.columns[plain].iloc[np.maximum(at, 0)].reset_index(drop=True)
        if (at < 0).any():
            columns = columns.mask(at < 0)
        self.recommender.item_columns = columns
        self.kinds_ = {c: items.kinds[c] for c in plain if c in items.kinds}

    def embed(self, items: Items) -> Embeddings:
        """Fused vectors of any items, new ones too, as the recommender sees them."""
        self._check_fitted()
        if self.fusion_ is None:
            raise InputError("this task was fitted without encoders, so items have no vectors")
        parts = [encode_items(items, e, cache=self.cache, progress=False).embeddings for e in self.encoders_]
        return self.fusion_.transform(parts)

    def extend(self, items: Items) -> TransferTask:
        """A copy that also recommends `items`, without a refit; ids it knows already are left as they are."""
        self._check_fitted()
        known = self.recommender.catalogue_
        fresh = items.take(np.flatnonzero(known.positions(items.ids.ids, missing="negative") < 0))
        out = copy.copy(self)
        if len(fresh):
            out.recommender = self.recommender.extend(self.embed(fresh))
            old = self.recommender.item_columns
            assert old is not None  # fit and load attach them
            new = fresh.columns.reindex(columns=list(old.columns))
            out.recommender.item_columns = pd.concat([old, new], ignore_index=True)
        return out

    def _check_fitted(self) -> None:
        if not hasattr(self, "fusion_"):
            raise NotFittedError("this TransferTask has not learned anything; call fit or load first")

    # -- results -------------------------------------------------------------------------------------------------------

    def recommend(
        self,
        users: ArrayLike | None = None,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        filter: Filter | None = None,
        histories: Interactions | None = None,
        reason: bool = False,
    ) -> Recommendations:
        """The k best items for each user; arguments as in `Recommender.recommend`."""
        self._check_fitted()
        return self.recommender.recommend(
            users, k, exclude_seen=exclude_seen, filter=filter, histories=histories, reason=reason
        )

    def similar_items(self, items: ArrayLike, k: int = 10, *, filter: Filter | None = None) -> Recommendations:
        """The k items that go best with each of `items`."""
        self._check_fitted()
        return self.recommender.similar_items(items, k, filter=filter)

    def audience(self, items: ArrayLike, k: int = 10) -> pd.DataFrame:
        """The k known users who should see each item most: columns item, user, rank, score; owners are left out."""
        self._check_fitted()
        wanted = np.asarray(items)
        found = self.recommender.recommend(k=len(wanted), filter=Filter(allow=wanted)).to_frame()
        found = found.sort_values(["item", "score"], ascending=[True, False], kind="stable")
        found["rank"] = found.groupby("item").cumcount() + 1
        return found.loc[found["rank"] <= k, ["item", "user", "rank", "score"]].reset_index(drop=True)

    def for_batch(self) -> TransferTask:
        """A copy whose recommender searches exactly."""
        out = copy.copy(self)
        out.recommender = self.recommender.for_batch()
        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything needed to recommend, and to take in new items, to the folder `path`, atomically."""
        self._check_fitted()
        write_artifact(path, type(self).__name__, self._write)

    def _write(self, writer: ArtifactWriter) -> None:
        facts: dict[str, Any] = {
            "recommender": type(self.recommender).__name__,
            "encoders": [encoder.spec() for encoder in self.encoders_],
            "weights": None if self.weights is None else dict(self.weights),
            "kinds": self.kinds_,
        }
        writer.json("task", facts)
        if self.fusion_ is not None:
            self.fusion_.save(writer)
        self.recommender.write(writer.within("model"))

    @classmethod
    def load(cls, path: str | Path, *, cache: str | Path | None = None) -> Self:
        """The task saved at `path`, its arrays memory-mapped. Encoders load when they are first asked to encode."""
        artifact = open_artifact(path)
        if artifact.class_name != cls.__name__:
            raise ArtifactError(
                f"{path} holds a {artifact.class_name}, not a {cls.__name__}; load it with {artifact.class_name}.load"
            )
        return cls._read(artifact, cache)

    @classmethod
    def _read(cls, artifact: Artifact, cache: str | Path | None) -> Self:
        facts = artifact.json("task")
        encoders = [encoder_from_spec(spec) for spec in facts["encoders"]]
        recommender = by_name(facts["recommender"]).read(artifact.within("model"))
        task = cls(recommender, encoders=encoders, weights=facts["weights"], cache=cache)
        task.encoders_, task.kinds_ = encoders, facts["kinds"]
        task.fusion_ = Fusion.load(artifact) if encoders else None
        return task


def _holds_bytes(column: pd.Series) -> bool:
    return column.dtype == object and any(not isinstance(v, (str, type(None), float, bool)) for v in column)
