"""`TransferTask`: raw item content, pretrained encoders and a recommender in one model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

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
    positions_like,
)
from recotransfer.encoders import (
    Encoder,
    EncodeReport,
    Fusion,
    TrainableEncoder,
    default_encoders,
    encode_items,
    store_encoders,
    stored_encoders,
)
from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter, open_artifact, write_artifact
from recotransfer.io.values import check_ids
from recotransfer.recommenders import HybridItems, Recommender
from recotransfer.transfer import Transfer, Tuner

_AUDIENCE_BLOCK = 4096  # users ranked at a time
_BEFORE_TUNING = "this task's tuners have not run yet; call task.tuned(items, events) and go on with what it returns"


@checked_class
class TransferTask:
    """A recommender that uses pretrained encoders of the items' content.

    Args:
        recommender: the model that ranks; `HybridItems()` by default.
        encoders: encoders of the items' content; by default chosen from the kinds of the columns. An empty sequence is
            the ablation: behaviour only.
        weights: modality ("text", "image", "attributes") -> weight; modalities not named weigh 1.
        transfers: maps of the fused vectors, in order; each is fitted on the output of the one before.
        tuners: modality -> tuner that changes the weights of its encoder before the items are encoded.
        cache: folder that keeps vectors between runs, so that encoding resumes and only changed items are encoded.
        progress: show a progress bar while encoding.
        notice: a sentence to show beside the results; it is saved with the task.

    Attributes:
        recommender: the one given, and after `fit` the task's own, fitted.
        transfers: those given, and after `fit` the task's own, fitted.
        encoders_: the encoders in use, tuned where the task has tuners.
        reports_: per encoder, what it could and could not read in the last call that encoded items.
        tuning_reports_: modality -> report of its tuner.
        fusion_: fusion of the encoders' vectors; None without content.
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
        self.recommender = HybridItems() if recommender is None else recommender
        self.encoders = encoders
        self.weights = weights
        self.progress = progress
        self.notice = notice
        self.transfers = list(transfers)
        self.tuners = dict(tuners or {})
        self.cache = None if cache is None else Path(cache)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(self, items: Items, interactions: Interactions, *, embeddings: Sequence[Embeddings] | None = None) -> Self:
        """Tune encoders, encode the items, fuse their modalities, map the vectors, fit the recommender. Returns self.

        The recommender, the transfers and the tuners that the task was given stay as they are; `recommender` and
        `transfers` are fitted ones of its own from here on. An earlier fit is replaced in one step at the end, so that
        nothing of it is left, and an error leaves the task unchanged.

        Args:
            items: the catalogue.
            interactions: the log, or any other relation of subjects to these items: labels are users too.
            embeddings: vectors of these items, one `Embeddings` per encoder, as `encode` returned them, so that nothing
                is encoded twice. Without encoders (an empty sequence) they are the content, and new items need theirs.

        Raises:
            InputError: `embeddings` for a task whose tuners have not run yet; see `tuned`.
        """
        out = copy.copy(self)
        out._fit(items, interactions, embeddings)
        self.__dict__ = out.__dict__
        return self

    def _fit(self, items: Items, interactions: Interactions, embeddings: Sequence[Embeddings] | None) -> None:
        self.recommender.check_settings()
        check_ids(items.ids.ids, interactions.users.ids, interactions.items.ids)
        if embeddings is None:
            if self.tuners:
                self.encoders_, self.tuning_reports_ = self._tuned(items, interactions)
            else:
                self.encoders_ = self._encoders_for(items)

            embeddings = self._encode(items)
        elif self.tuners:
            raise InputError(f"embeddings were given, but {_BEFORE_TUNING}")
        else:
            if self.encoders is not None or not hasattr(self, "encoders_"):  # else `encode` has chosen them
                self.encoders_ = self._encoders_for(items, given=True)

            self.reports_ = []

        self.fusion_ = Fusion(weights=self.modality_weights()).fit(embeddings) if embeddings else None
        if self.transfers and not embeddings:
            raise InputError("transfers map vectors, and there are none without content; give encoders")

        fused = self.fusion_.transform(embeddings) if self.fusion_ is not None else None
        self.transfers = [transfer.unfitted() for transfer in self.transfers]
        for transfer in self.transfers:
            assert fused is not None
            fused = transfer.fit(fused, interactions).transform(fused)

        catalogue = items.ids.union(interactions.items)  # with or without content, so that variants rank the same items
        self.recommender = self.recommender.unfitted().fit(interactions.with_items(catalogue), fused, columns=items)
        columns = self.recommender.item_columns_
        self.kinds_ = {name: kind for name, kind in items.kinds.items() if columns is not None and name in columns}

    def encode(self, items: Items) -> list[Embeddings]:
        """One `Embeddings` per encoder; after a fit, by its encoders. `reports_` lists what could not be read."""
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
        """A task that is not fitted, with its encoders tuned and no tuners left: the first step of `fit`."""
        out = copy.copy(self)
        out.encoders, out.tuning_reports_ = self._tuned(items, interactions)
        out.tuners = {}
        vars(out).pop("fusion_", None)
        return out

    def _tuned(self, items: Items, interactions: Interactions) -> tuple[list[Encoder], dict[str, dict[str, Any]]]:
        """The encoders, tuned where their modality has a tuner, and the tuners' reports by modality."""
        before = self._encoders_for(items)
        if unknown := set(self.tuners) - {encoder.modality for encoder in before}:
            read = ", ".join(sorted({encoder.modality for encoder in before})) or "none"
            raise InputError(f"tuners name {sorted(unknown)[0]!r}; the modalities read are {read}")

        out: list[Encoder] = []
        reports = {}
        for encoder in before:
            tuner = self.tuners.get(encoder.modality)
            if tuner is None:
                out.append(encoder)
            elif not hasattr(encoder, "module"):
                raise InputError(f"{type(encoder).__name__} has no weights to tune; leave its tuner out")
            else:
                own = copy.copy(tuner)  # `tune` writes its report into the tuner, which another task may use too
                out.append(own.tune(cast(TrainableEncoder, encoder), items, interactions))
                reports[encoder.modality] = getattr(own, "report_", {})

        return out, reports

    def _encoded(self, items: Items, progress: bool) -> tuple[list[Embeddings], list[EncodeReport]]:
        done = [encode_items(items, e, cache=self.cache, progress=progress) for e in self.encoders_]
        return [d.embeddings for d in done], [d.report for d in done]

    def _encoders_for(self, items: Items, *, given: bool = False) -> list[Encoder]:
        model = self.recommender
        if not (model.needs_items or model.scores_new_items):
            return []
        if self.encoders is not None and not len(self.encoders) and model.needs_items and not given:
            raise InputError(f"{type(model).__name__} ranks by content alone; give encoders, or take HybridItems")

        return default_encoders(items) if self.encoders is None else list(self.encoders)

    def modality_weights(self) -> dict[str, float] | None:
        """Modality -> weight, for every modality that the encoders in use read; None where all weigh the same."""
        if self.weights is None:
            return None

        names: list[str] = []
        for encoder in self.encoders_:
            # Numbered as `Fusion` numbers them: "text", "text 2".
            before = sum(name == encoder.modality or name.startswith(f"{encoder.modality} ") for name in names)
            names.append(f"{encoder.modality} {before + 1}" if before else encoder.modality)

        if unknown := [name for name in self.weights if name not in names]:
            raise InputError(f"weights name {unknown[0]!r}; the modalities read are {', '.join(names) or 'none'}")

        return {name: float(self.weights.get(name, 1.0)) for name in names}

    def embed(self, items: Items) -> Embeddings:
        """Fused vectors of any items, new ones too, as the recommender sees them."""
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
            k: list length.
            users: ids to choose from; everyone known by default.
            embeddings: vectors of these items, as in `fit`.
        """
        task = copy.copy(self)
        return task.recommender.label(task._embedded(items, embeddings)[0], k, users=users)

    def extend(self, items: Items) -> Self:
        """A task that also recommends `items`, without a refit. This one stays as it is.

        Ids it knows already are left as they are. The new task's `reports_` name what could not be read of new items.
        """
        out = copy.copy(self)
        out._check_fitted()
        fresh = out._unknown(items)
        out.reports_ = []
        if len(fresh):
            vectors, out.reports_ = out._embedded(fresh)
            out.recommender = out.recommender.extend(vectors, columns=fresh)

        return out

    def updated(
        self, items: Items, interactions: Interactions, *, embeddings: Sequence[Embeddings] | None = None
    ) -> Self:
        """A task that has also learned from further events, of new users and items too. This one stays as it is.

        Encoders, fusion and transfers are kept. The recommender's `update_` says how it learned.

        Args:
            items: the new items, at least; known ones among them are left as they are.
            interactions: the new events.
            embeddings: vectors of `items`, as in `fit`.
        """
        out = copy.copy(self)
        out._check_fitted()
        fresh = out._unknown(items)
        vectors, out.reports_ = None, []
        if len(fresh) and out.fusion_ is not None:
            given = None
            if embeddings is not None:
                known = out.recommender.catalogue_
                alike = [replace(each, ids=ids_like(each.ids, known, "item")) for each in embeddings]
                given = [each.align(fresh.ids) for each in alike]

            vectors, out.reports_ = out._embedded(fresh, given)

        model = out.recommender
        events = interactions.with_ids_like(model.known_events().users, model.catalogue_)
        events = events.with_items(fresh.ids.union(events.items))
        out.recommender = model.updated(events, vectors, columns=fresh)

        return out

    def partial_fit(
        self, items: Items, interactions: Interactions, *, embeddings: Sequence[Embeddings] | None = None
    ) -> Self:
        """Become what `updated` returns, in one step: requests that are running go on with the task as it was.

        Returns self. On error the task is unchanged.
        """
        self.__dict__ = self.updated(items, interactions, embeddings=embeddings).__dict__
        return self

    def _unknown(self, items: Items) -> Items:
        """Those of `items` that the recommender does not know, their ids in the types of those it knows."""
        known = self.recommender.catalogue_
        ids = ids_like(items.ids, known, "item")
        items = items if ids is items.ids else replace(items, ids=ids)
        return items.take(np.flatnonzero(known.positions(ids.ids, missing="negative") < 0))

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
        items: Items | None = None,
        reason: bool = False,
    ) -> Recommendations:
        """The k best items for each user; arguments as in `Recommender.recommend`.

        `items` are new items to rank as well, for this request alone: what `extend(items).recommend` gives.
        """
        self._check_fitted()
        model = self.recommender if items is None else self.extend(items).recommender
        return model.recommend(users, k, exclude_seen=exclude_seen, filter=filter, histories=histories, reason=reason)

    def similar_items(
        self, items: ArrayLike, k: int = 10, *, filter: Filter | None = None, reason: bool = False
    ) -> Recommendations:
        """The k items that go best with each of `items`."""
        self._check_fitted()
        return self.recommender.similar_items(items, k, filter=filter, reason=reason)

    def audience(self, items: ArrayLike, k: int = 10) -> pd.DataFrame:
        """The k known users who should see each item most, best first: columns item, user, rank, score.

        Items come in the order given; users who have had the item are left out.
        """
        self._check_fitted()
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")

        model = self.recommender
        users = model.known_events().users
        wanted = pd.unique(positions_like(items, model.catalogue_))
        place = np.full(len(model.catalogue_), -1)
        place[wanted] = np.arange(len(wanted))

        # Users are ranked block by block, and only the k best of each item so far are kept.
        best = pd.DataFrame({"place": [], "user": [], "score": []}).astype({"place": int, "user": int})
        only = Filter(allow=model.catalogue_.take(wanted))

        for first in range(0, len(users) if len(wanted) else 0, _AUDIENCE_BLOCK):
            found = model.recommend(users.ids[first : first + _AUDIENCE_BLOCK], len(wanted), filter=only)
            row, column = np.nonzero(found.positions >= 0)
            at = place[found.positions[row, column]]
            block = pd.DataFrame({"place": at, "user": first + row, "score": found.scores[row, column]})
            best = pd.concat([best, block]) if len(best) else block
            best = best.sort_values(["place", "score", "user"], ascending=[True, False, True])
            best = best[best.groupby("place").cumcount() < k]

        return pd.DataFrame(
            {
                "item": model.catalogue_.take(wanted[best["place"].to_numpy()]),
                "user": users.take(best["user"].to_numpy()),
                "rank": best.groupby("place").cumcount().to_numpy() + 1,
                "score": best["score"].to_numpy(np.float32),
            }
        )

    # -- persistence ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, events: bool = True) -> None:
        """Write everything needed to recommend, and to take in new items, to the folder `path`, atomically.

        Encoders travel with it: the model of one in a local folder is copied (as large as it is, 90 MB for a MiniLM),
        one of the hub is named with its revision. A folder with code or pickled weights is not copied but named by its
        absolute path and revision.

        Args:
            path: the folder; an earlier task there is replaced.
            events: also store the events of the fit. A task without them recommends for `histories` only.
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
        """The task saved at `path`, its arrays memory-mapped. Encoders load when they first encode.

        verify=False skips the checksums, where they were checked before.
        """
        artifact = open_artifact(path, verify=verify)
        if artifact.class_name != cls.__name__:
            raise ArtifactError(
                f"{path} holds a {artifact.class_name}, not a {cls.__name__}; load it with {artifact.class_name}.load"
            )

        return cls._read(artifact, cache)

    @classmethod
    def _read(cls, artifact: Artifact, cache: str | Path | None) -> Self:
        facts = artifact.json("task")
        encoders = stored_encoders(facts["encoders"], artifact)
        recommender = registry.recommenders.find_saved(facts["recommender"]).read(artifact.within("model"))
        names, notice = facts.get("transfers", []), facts.get("notice")  # 0.1 had none
        transfers = [
            registry.transfers.find_saved(name).read(artifact.within(f"transfer {at}")) for at, name in enumerate(names)
        ]
        task = cls(
            recommender, encoders=encoders, weights=facts["weights"], transfers=transfers, cache=cache, notice=notice
        )
        task.encoders_, task.kinds_, task.reports_ = encoders, facts["kinds"], []
        task.fusion_ = Fusion.load(artifact) if "fusion.json" in artifact else None
        return task
