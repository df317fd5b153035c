"""The state of a recommender: its settings and what it has learned, in memory and in a saved folder."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from recotransfer.arguments import Checked
from recotransfer.data import IdMap, Interactions
from recotransfer.errors import ArtifactError, InputError, NotFittedError
from recotransfer.io.artifacts import Artifact, ArtifactWriter, open_artifact, write_artifact
from recotransfer.numerics.vectors import Float
from recotransfer.settings import check_settings, saved_settings, settings_of


class FittedState(Checked, ABC):
    """Settings and fitted state of every recommender. Fitted state is never modified: changes are made to copies.

    Attributes:
        scores_new_users: whether `recommend` accepts `histories` of users unseen in `fit`.
        catalogue_: ids of the items that can be recommended.
        item_columns_: item columns for filters, one row per item of `catalogue_`; None if `fit` was given none.
        events_: the events of the fit, sorted by user and time; its users are the known users.
        popularity_: (items,) number of users of each item.
    """

    scores_new_users: ClassVar[bool] = True

    catalogue_: IdMap
    item_columns_: pd.DataFrame | None = None
    events_: Interactions
    popularity_: Float

    @abstractmethod
    def _write(self, writer: ArtifactWriter) -> None:
        """Write what `_fit` learned."""

    @abstractmethod
    def _read(self, artifact: Artifact) -> None:
        """Restore what `_write` stored."""

    # -- settings ------------------------------------------------------------------------------------------------------

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def setting(self, name: str) -> Any:
        """The value of the setting called `name`, a key of `params()` or `search_space`."""
        if name not in self.params():
            raise InputError(f"{type(self).__name__} has no setting {name!r}; it has {', '.join(self.params())}")

        return getattr(self, name)

    def with_settings(self, values: Mapping[str, Any]) -> Self:
        """A new, unfitted model with some settings changed."""
        return type(self)(**{**self.params(), **values})

    def unfitted(self) -> Self:
        """A new, unfitted model with the same settings."""
        return type(self)(**{name: getattr(self, name) for name in settings_of(type(self))})

    def check_settings(self) -> None:
        """Validate the settings; raises `InputError` for a value that is not allowed. `fit` calls this first."""
        check_settings(self)

    # -- fitted state --------------------------------------------------------------------------------------------------

    def _take(self, events: Interactions) -> None:
        """Set catalogue, events and popularity from the log of a fit or update."""
        self.catalogue_ = events.items
        self.events_ = events.select(events.order)
        pairs = np.unique(events.user * len(events.items) + events.item)  # repeated events count once
        self.popularity_ = np.bincount(pairs % len(events.items), minlength=len(events.items)).astype(np.float32)

    def _check_fitted(self) -> None:
        if not hasattr(self, "catalogue_"):
            raise NotFittedError.of(self)

    def known_events(self) -> Interactions:
        """The events the model was fitted on, sorted by user and time.

        Raises:
            InputError: the model was saved without its events.
        """
        self._check_fitted()
        if not len(self.events_):
            raise InputError(
                f"this {type(self).__name__} was saved without its events, so it knows no users and cannot be updated; "
                "pass histories, or save the model with its events"
            )

        return self.events_

    def without_events(self) -> Self:
        """A copy that keeps what was learned, but neither events nor users. This model is unchanged.

        The copy recommends only for `histories`. It can be extended with new items, but not updated with new events.

        Raises:
            InputError: the model ranks only for users it was fitted on.
        """
        out = self._copied()
        out._check_fitted()
        if not out.scores_new_users:
            raise InputError(f"{type(self).__name__} ranks only for users it was fitted on; save it with its events")

        out._forget_events()
        return out

    def _forget_events(self) -> None:
        """Drop the events in place; models that contain other models also drop theirs."""
        self.events_ = _no_events(self.catalogue_)

    def _now(self) -> Self:
        """A snapshot for one request, so that a concurrent `fit` or `partial_fit` cannot mix two states."""
        return copy.copy(self)

    def _copied(self) -> Self:
        """A copy that may be changed: it shares arrays, which nothing writes to, but has its own lists and dicts."""
        out = copy.copy(self)
        vars(out).update({name: _copied_containers(value) for name, value in vars(out).items()})
        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, events: bool = True) -> None:
        """Write the model to the folder `path`, atomically; an existing model there is replaced.

        Args:
            path: the folder.
            events: also store the events of the fit; `without_events` describes what a model can do without them.
        """
        model = self._now() if events else self.without_events()
        model._check_fitted()
        write_artifact(path, type(self).__name__, model.write)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """The model saved at `path`, with its arrays memory-mapped.

        Args:
            path: the folder.
            verify: compare the files with their checksums; False saves time if they were verified before.

        Raises:
            ArtifactError: the folder holds another class, is damaged, or was written by an incompatible version.
        """
        artifact = open_artifact(path, verify=verify)
        artifact.check_class(cls)
        return cls.read(artifact)

    def write(self, writer: ArtifactWriter) -> None:
        """Write the fitted model as parts of an artefact, for `save` and for models that contain this one."""
        writer.json("params", self.params())
        writer.ids("catalogue", self.catalogue_.ids)
        _write_log(writer, self.events_)
        writer.array("popularity", self.popularity_)
        if self.item_columns_ is not None:
            writer.table("columns", self.item_columns_)

        self._write(writer)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """The model that `write` stored, from an open artefact."""
        try:
            model = cls(**saved_settings(cls, artifact.json("params")))
        except TypeError as cause:
            raise ArtifactError(
                f"{artifact.folder}: the saved settings do not fit this version of {cls.__name__} ({cause}); "
                "fit and save the model again"
            ) from None

        model.catalogue_ = IdMap(artifact.ids("catalogue"))
        model.events_ = _read_log(artifact, model.catalogue_)
        model.popularity_ = artifact.array("popularity")
        if "columns.parquet" in artifact:  # reindex, because Parquet stores no rows of a table without columns
            model.item_columns_ = artifact.table("columns").reindex(range(len(model.catalogue_)))

        model._read(artifact)

        return model


def _no_events(catalogue: IdMap) -> Interactions:
    """An empty log without users, for a model without its events."""
    none = np.zeros(0, np.int64)
    return Interactions(IdMap([]), catalogue, none, none, np.zeros(0, np.float32))


def _write_log(writer: ArtifactWriter, events: Interactions) -> None:
    """Write users and events, or nothing if there are none. The items are the catalogue, which is stored separately."""
    if not len(events):
        return

    writer.ids("users", events.users.ids)
    for name in ("user", "item", "weight", "time"):
        if (values := getattr(events, name)) is not None:
            writer.array(f"events.{name}", values)


def _read_log(artifact: Artifact, catalogue: IdMap) -> Interactions:
    """The events that `_write_log` wrote."""
    if "events.user.npy" not in artifact:
        return _no_events(catalogue)

    return Interactions(
        IdMap(artifact.ids("users")),
        catalogue,
        artifact.array("events.user"),
        artifact.array("events.item"),
        artifact.array("events.weight"),
        artifact.array("events.time") if "events.time.npy" in artifact else None,
    )


def _copied_containers(value: Any) -> Any:
    """`value` with its lists and dicts copied at every depth; everything else is shared."""
    if type(value) is dict:
        return {name: _copied_containers(each) for name, each in value.items()}

    return [_copied_containers(each) for each in value] if type(value) is list else value
