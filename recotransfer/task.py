"""`TransferTask`: raw item content, pretrained encoders and a recommender in one model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from recotransfer import registry
from recotransfer.arguments import checked_class
from recotransfer.data import (
    ColumnKind,
    Embeddings,
    Filter,
    Interactions,
    Items,
    Recommendations,
    ids_like,
)
from recotransfer.encoders import (
    Encoder,
    EncodeReport,
    Fusion,
    block_names,
    default_encoders,
    encode_items,
    store_encoders,
    stored_encoders,
)
from recotransfer.errors import InputError, NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter, open_artifact, write_artifact
from recotransfer.io.values import check_ids
from recotransfer.recommenders import LearnedHybrid, Recommender, audience
from recotransfer.transfer import Transfer, Tuner, fit_transfers, tune_encoders

_BEFORE_TUNING = "this task's tuners have not run yet; call task.tuned(items, events) and use the task that it returns"


@checked_class
class TransferTask:
    """A recommender that knows items by pretrained encodings of their content, new items included.

    Args:
        recommender: the model that ranks; `LearnedHybrid()` by default.
        encoders: encoders of the items' content; by default chosen by the kinds of the columns. An empty sequence gives
            the ablation: behaviour only.
        weights: modality ("text", "image", "attributes") -> its weight in the fused vectors, 1 if not named.
        transfers: maps applied to the fused vectors in order; each is fitted on the output of the one before.
        tuners: modality -> tuner that trains its encoder before the items are encoded.
        cache: folder for vectors; encoding resumes from it after an interruption and skips unchanged items.
        progress: show a progress bar while encoding.
        notice: a sentence to show beside the results; it is saved with the task.

    Attributes:
        recommender: the model passed in; after `fit`, the task's own fitted one.
        transfers: the maps passed in; after `fit`, the task's own fitted ones.
        encoders_: the encoders in use, trained where the task has tuners.
        reports_: per encoder, what it could and could not read in the last call that encoded items.
        tuning_reports_: modality -> report of its tuner.
        fusion_: the fusion of the encoders' vectors; None without content.
        kinds_: column -> kind, for the columns that filters can use.
    """

    encoders_: list[Encoder]
    reports_: list[EncodeReport]
    fusion_: Fusion | None
    kinds_: dict[str, ColumnKind]
    tuning_reports_: dict[str, dict[str, Any]]

    def __init__(
        self,
        recommender: Recommender | None = None,
        *,
        encoders: Sequence[Encoder] | None = None,
        weights: Mapping[str, float] | None = None,
        transfers: Sequence[Transfer] = (),
        tuners: Mapping[str, Tuner] | None = None,
        cache: str | Path | None = None,
        progress: bool = True,
        notice: str | None = None,
    ) -> None:
        self.recommender = LearnedHybrid() if recommender is None else recommender
        self.encoders = encoders
        self.weights = weights
        self.progress = progress
        self.notice = notice
        self.transfers = list(transfers)
        self.tuners = dict(tuners or {})
        self.cache = None if cache is None else Path(cache)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(self, items: Items, interactions: Interactions, *, embeddings: Sequence[Embeddings] | None = None) -> Self:
        """Tune the encoders, encode the items, fuse and map the vectors, and fit the recommender. Returns self.

        The recommender, transfers and tuners passed to the constructor are not changed: the task fits its own.
        A refit replaces everything that the earlier fit learned. On error the task is unchanged.

        Args:
            items: the catalogue.
            interactions: the log, or any other relation of subjects to these items: labels are users too.
            embeddings: vectors of these items as `encode` returned them, one `Embeddings` per encoder, to save encoding
                them again. For a task without encoders (an empty sequence) they are the only content, and new items
                must come with theirs.

        Raises:
            InputError: `embeddings` for a task whose tuners have not run yet; see `tuned`.
        """
        out = copy.copy(self)
        out._fit(items, interactions, embeddings)
        self.__dict__ = out.__dict__  # in one step: requests in other threads never see half a fit
        return self

    def _fit(self, items: Items, interactions: Interactions, embeddings: Sequence[Embeddings] | None) -> None:
        self.recommender.check_settings()
        check_ids(items.ids.ids, interactions.users.ids, interactions.items.ids)
        if embeddings is None:
            embeddings = self._encode_to_fit(items, interactions)
        else:
            self._take_embeddings(items)

        self.fusion_, vectors = None, None
        if embeddings:
            self.fusion_ = Fusion(weights=self.modality_weights()).fit(embeddings)
            fused = self.fusion_.transform(embeddings)
            self.transfers, vectors = fit_transfers(self.transfers, fused, interactions)
        elif self.transfers:
            raise InputError("transfers map vectors, and there are none without content; give encoders")

        # The catalogue is the same with and without content, so that a variant and its ablation rank the same items.
        catalogue = items.ids.union(interactions.items)
        self.recommender = self.recommender.unfitted().fit(interactions.with_items(catalogue), vectors, columns=items)
        columns = self.recommender.item_columns_
        self.kinds_ = {name: kind for name, kind in items.kinds.items() if columns is not None and name in columns}

    def _encode_to_fit(self, items: Items, interactions: Interactions) -> list[Embeddings]:
        """The items' vectors by the task's encoders, which are trained first if the task has tuners."""
        self.encoders_ = self._encoders_for(items)
        if self.tuners:
            self.encoders_, self.tuning_reports_ = tune_encoders(self.encoders_, self.tuners, items, interactions)

        return self._encode(items)

    def _take_embeddings(self, items: Items) -> None:
        """Choose the encoders of new items, where the vectors of the known ones are given."""
        if self.tuners:
            raise InputError(f"embeddings were given, but {_BEFORE_TUNING}")
        if self.encoders is not None or not hasattr(self, "encoders_"):  # otherwise `encode` has chosen them
            self.encoders_ = self._encoders_for(items, vectors_given=True)

        self.reports_ = []

    def encode(self, items: Items) -> list[Embeddings]:
        """Vectors of the items, one `Embeddings` per encoder; `reports_` lists what could not be read.

        A fitted task uses the encoders that it was fitted with.
        """
        if not hasattr(self, "fusion_") or (self.encoders is not None and not self.tuners):
            if self.tuners:
                raise InputError(f"the items cannot be encoded: {_BEFORE_TUNING}")

            self.encoders_ = self._encoders_for(items)

        return self._encode(items)

    def _encode(self, items: Items) -> list[Embeddings]:
        self.modality_weights()  # raises for a misspelt modality before hours of encoding, not after
        embeddings, self.reports_ = self._encoded(items, self.progress)
        return embeddings

    def tuned(self, items: Items, interactions: Interactions) -> Self:
        """An unfitted task whose encoders have been tuned, and without tuners: the first step of `fit`."""
        out = copy.copy(self)
        encoders = self._encoders_for(items)
        out.encoders, out.tuning_reports_ = tune_encoders(encoders, self.tuners, items, interactions)
        out.tuners = {}
        vars(out).pop("fusion_", None)
        return out

    def _encoded(self, items: Items, progress: bool) -> tuple[list[Embeddings], list[EncodeReport]]:
        done = [encode_items(items, encoder, cache=self.cache, progress=progress) for encoder in self.encoders_]
        return [one.embeddings for one in done], [one.report for one in done]

    def _encoders_for(self, items: Items, *, vectors_given: bool = False) -> list[Encoder]:
        """The encoders for these items; none if the recommender does not use content."""
        model = self.recommender
        if not (model.needs_items or model.scores_new_items):
            return []
        if self.encoders is not None and not len(self.encoders) and model.needs_items and not vectors_given:
            raise InputError(f"{type(model).__name__} ranks by content alone; give encoders, or take LearnedHybrid")

        return default_encoders(items) if self.encoders is None else list(self.encoders)

    def modality_weights(self) -> dict[str, float] | None:
        """Modality -> weight, for every modality that the encoders in use read; None where all weigh the same."""
        if self.weights is None:
            return None

        names = block_names([encoder.modality for encoder in self.encoders_])
        if unknown := [name for name in self.weights if name not in names]:
            raise InputError(f"weights name {unknown[0]!r}; the modalities read are {', '.join(names) or 'none'}")

        return {name: float(self.weights.get(name, 1.0)) for name in names}

    def embed(self, items: Items) -> Embeddings:
        """The fused and mapped vectors of any items, known or new, as the recommender sees them."""
        return self._embedded(items)[0]

    def _embedded(
        self, items: Items, embeddings: Sequence[Embeddings] | None = None
    ) -> tuple[Embeddings, list[EncodeReport]]:
        self._check_fitted()
        if self.fusion_ is None or (embeddings is None and not self.encoders_):
            name = type(self.recommender).__name__
            raise InputError(f"this {name} cannot rank new items: it was fitted without encoders; fit a task with some")

        reports: list[EncodeReport] = []
        if embeddings is None:
            embeddings, reports = self._encoded(items, progress=False)

        out = self.fusion_.transform(embeddings)
        for transfer in self.transfers:
            out = transfer.transform(out)

        return out, reports

    def label(
        self,
        items: Items,
        k: int = 1,
        *,
        users: ArrayLike | None = None,
        embeddings: Sequence[Embeddings] | None = None,
    ) -> Recommendations:
        """The k best users for each item, known or new, with their scores; labels are users too.

        Args:
            items: the items to find users for.
            k: length of the lists.
            users: ids to choose from; all known users by default.
            embeddings: vectors of these items, as in `fit`.
        """
        task = copy.copy(self)
        return task.recommender.label(task._embedded(items, embeddings)[0], k, users=users)

    def extend(self, items: Items) -> Self:
        """A task that also recommends `items`, without a refit; this one is unchanged.

        Items that the task knows already keep their content. The new task's `reports_` list what could not be read.
        """
        out = copy.copy(self)
        out._check_fitted()
        new = out._new_items(items)
        out.reports_ = []
        if len(new):
            vectors, out.reports_ = out._embedded(new)
            out.recommender = out.recommender.extend(vectors, columns=new)

        return out

    def updated(
        self, items: Items, interactions: Interactions, *, embeddings: Sequence[Embeddings] | None = None
    ) -> Self:
        """A task that has also learned from further events, with their new users and items; this one is unchanged.

        Encoders, fusion and transfers are kept. The recommender's `update_` says how it learned.

        Args:
            items: the new items; known ones among them keep their content.
            interactions: the new events.
            embeddings: vectors of `items`, as in `fit`.
        """
        out = copy.copy(self)
        out._check_fitted()
        new = out._new_items(items)
        vectors, out.reports_ = None, []
        if len(new) and out.fusion_ is not None:
            if embeddings is not None:
                known = out.recommender.catalogue_
                embeddings = [replace(e, ids=ids_like(e.ids, known, "item")).align(new.ids) for e in embeddings]

            vectors, out.reports_ = out._embedded(new, embeddings)

        model = out.recommender
        events = interactions.with_ids_like(model.known_events().users, model.catalogue_)
        events = events.with_items(new.ids.union(events.items))
        out.recommender = model.updated(events, vectors, columns=new)

        return out

    def partial_fit(
        self, items: Items, interactions: Interactions, *, embeddings: Sequence[Embeddings] | None = None
    ) -> Self:
        """Learn from further events in place, as `updated` does. Returns self.

        The change is made in one step: running requests finish with the earlier state. On error the task is unchanged.
        """
        self.__dict__ = self.updated(items, interactions, embeddings=embeddings).__dict__
        return self

    def _new_items(self, items: Items) -> Items:
        """The items that the recommender does not know, with ids converted to the type of the known ids."""
        known = self.recommender.catalogue_
        ids = ids_like(items.ids, known, "item")
        items = items if ids is items.ids else replace(items, ids=ids)
        return items.take(np.flatnonzero(known.positions(ids.ids, missing="negative") < 0))

    def _check_fitted(self) -> None:
        if not hasattr(self, "fusion_"):
            raise NotFittedError.of(self)

    # -- results -------------------------------------------------------------------------------------------------------

    def recommend(
        self,
        users: ArrayLike | None = None,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        filter: Filter | None = None,
        histories: Interactions | None = None,
        items: Items | None = None,
        reason: bool = False,
    ) -> Recommendations:
        """The k best items for each user; arguments as in `Recommender.recommend`.

        `items` are new items to rank too, in this request only: the lists are those of `extend(items).recommend`.
        """
        self._check_fitted()
        model = self.recommender if items is None else self.extend(items).recommender
        return model.recommend(users, k, exclude_seen=exclude_seen, filter=filter, histories=histories, reason=reason)

    def similar_items(
        self, items: ArrayLike, k: int = 10, *, filter: Filter | None = None, reason: bool = False
    ) -> Recommendations:
        """The k items most similar to each of `items`; arguments as in `Recommender.similar_items`."""
        self._check_fitted()
        return self.recommender.similar_items(items, k, filter=filter, reason=reason)

    def audience(self, items: ArrayLike, k: int = 10) -> pd.DataFrame:
        """The k known users that each item suits best, in order: columns item, user, rank, score.

        Items come in the order given; users who already have the item are left out.
        """
        self._check_fitted()
        return audience(self.recommender, items, k)

    # -- persistence ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, events: bool = True) -> None:
        """Save everything needed to recommend and to add new items to the folder `path`, atomically.

        Encoders are saved too: a model from a local folder is copied (about 90 MB for MiniLM), and one from the hub is
        recorded by name and revision. A model folder with code or pickled weights is recorded by its absolute path and
        revision instead of being copied.

        Args:
            path: the folder; a task saved there earlier is replaced.
            events: also save the events of the fit. Without them the loaded task recommends for `histories` only.
        """
        task = copy.copy(self)
        task._check_fitted()
        if not events:
            task.recommender = task.recommender.without_events()

        write_artifact(path, type(self).__name__, task._write)

    def _write(self, writer: ArtifactWriter) -> None:
        facts: dict[str, Any] = {
            "recommender": registry.recommenders.name_to_save(type(self.recommender)),
            "encoders": store_encoders(self.encoders_, writer),
            "weights": None if self.weights is None else dict(self.weights),
            "kinds": self.kinds_,
            "transfers": [registry.transfers.name_to_save(type(transfer)) for transfer in self.transfers],
            "notice": self.notice,
        }
        writer.json("task", facts)
        for at, transfer in enumerate(self.transfers):
            transfer.write(writer.within(f"transfer {at}"))

        if self.fusion_ is not None:
            self.fusion_.save(writer)

        self.recommender.write(writer.within("model"))

    @classmethod
    def load(cls, path: str | Path, *, cache: str | Path | None = None, verify: bool = True) -> Self:
        """The task saved at `path`, with its arrays memory-mapped; encoders are loaded on first use.

        Args:
            path: the folder.
            cache: folder for vectors, as in the constructor.
            verify: compare the checksums of all files; False is for folders that were verified before.
        """
        artifact = open_artifact(path, verify=verify)
        artifact.check_class(cls)
        return cls._read(artifact, cache)

    @classmethod
    def _read(cls, artifact: Artifact, cache: str | Path | None) -> Self:
        facts = artifact.json("task")
        encoders = stored_encoders(facts["encoders"], artifact)
        recommender = registry.recommenders.find_saved(facts["recommender"]).read(artifact.within("model"))
        names, notice = facts.get("transfers", []), facts.get("notice")  # older folders lack both
        transfers = [
            registry.transfers.find_saved(name).read(artifact.within(f"transfer {at}")) for at, name in enumerate(names)
        ]
        task = cls(
            recommender, encoders=encoders, weights=facts["weights"], transfers=transfers, cache=cache, notice=notice
        )
        task.encoders_, task.kinds_, task.reports_ = encoders, facts["kinds"], []
        task.fusion_ = Fusion.load(artifact) if "fusion.json" in artifact else None
        return task
