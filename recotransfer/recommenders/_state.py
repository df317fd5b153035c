"""The state of a recommender: settings, what a fit has learned, and both in a saved folder."""

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
    """What every recommender keeps. Nothing of it is written to once it is learned: changes are made to copies.

    Attributes:
        scores_new_users: `histories` of users unseen in `fit` can be ranked for.
        catalogue_: the items that can be recommended.
        item_columns_: what filters read of each item, in the order of `catalogue_`; None where `fit` got no columns.
        events_: the log of the fit, sorted by user and time; its users are those the model knows.
        popularity_: (items,) number of users of each item.
    """

    scores_new_users: ClassVar[bool] = True

    catalogue_: IdMap
    item_columns_: pd.DataFrame | None = None
    events_: Interactions
    popularity_: Float

    @abstractmethod
    def _write(self, writer: ArtifactWriter) -> None:
        """Store what `_fit` learned."""

    @abstractmethod
    def _read(self, artifact: Artifact) -> None:
        """Take back what `_write` stored."""

    # -- settings ------------------------------------------------------------------------------------------------------

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def setting(self, name: str) -> Any:
        """The value of a setting, by a name as in `search_space`."""
        if name not in self.params():
            raise InputError(f"{type(self).__name__} has no setting {name!r}; it has {', '.join(self.params())}")

        return getattr(self, name)

    def with_settings(self, values: Mapping[str, Any]) -> Self:
        """A new model, not fitted, with some settings changed."""
        return type(self)(**{**self.params(), **values})

    def unfitted(self) -> Self:
        """A model with the same settings that has learned nothing."""
        return type(self)(**{name: getattr(self, name) for name in settings_of(type(self))})

    def check_settings(self) -> None:
        """Raise `InputError` for a setting that its declaration does not allow; `fit` begins with it."""
        check_settings(self)

    # -- what was learned ----------------------------------------------------------------------------------------------

    def _take(self, events: Interactions) -> None:
        """Set the catalogue to that of `events`, and each item's popularity to its number of users."""
        self.catalogue_ = events.items
        self.events_ = events.select(events.order)
        pairs = np.unique(events.user * len(events.items) + events.item)
        self.popularity_ = np.bincount(pairs % len(events.items), minlength=len(events.items)).astype(np.float32)

    def _check_fitted(self) -> None:
        if not hasattr(self, "catalogue_"):
            raise NotFittedError(f"this {type(self).__name__} has not learned anything; call fit or load first")

    def known_events(self) -> Interactions:
        """The log it was fitted on, sorted by user and time.

        Raises:
            InputError: a model that was saved without its events.
        """
        self._check_fitted()
        if not len(self.events_):
            raise InputError(
                f"this {type(self).__name__} was saved without its events, so it knows no users and takes no updates; "
                "give histories, or save it with its events"
            )

        return self.events_

    def without_events(self) -> Self:
        """A model that holds no events and knows no users, only what was learned from them. This one stays as it is.

        It recommends for `histories`, and takes new items, but no further events.

        Raises:
            InputError: a model that ranks only for users it was fitted on.
        """
        out = self._copied()
        out._check_fitted()
        if not out.scores_new_users:
            raise InputError(f"{type(self).__name__} ranks only for users it was fitted on; save it with its events")

        out._forget_events()
        return out

    def _forget_events(self) -> None:
        """Drop the log of the fit, in place; models that hold other models drop theirs too."""
        self.events_ = _no_events(self.catalogue_)

    def _now(self) -> Self:
        """The model as it is at this moment, for a request to work on while `fit` or `partial_fit` replaces it."""
        return copy.copy(self)

    def _copied(self) -> Self:
        """A copy that shares arrays with this model, which nobody writes to, but no list or dict."""
        out = copy.copy(self)
        vars(out).update({name: _own(value) for name, value in vars(out).items()})
        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, events: bool = True) -> None:
        """Write the model to the folder `path`, atomically; an earlier model there is replaced.

        Args:
            path: the folder.
            events: also store the events it learned from; see `without_events` for what a model can do that has none.
        """
        model = self._now() if events else self.without_events()
        model._check_fitted()
        write_artifact(path, type(self).__name__, model.write)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """The model saved at `path`, its arrays memory-mapped; refuses a folder of another class.

        verify=False skips the checksums, where they were checked before.
        """
        artifact = open_artifact(path, verify=verify)
        if artifact.class_name != cls.__name__:
            raise ArtifactError(f"{path} holds a {artifact.class_name}, not a {cls.__name__}; load it with that class")

        return cls.read(artifact)

    def write(self, writer: ArtifactWriter) -> None:
        """Store the fitted model's parts; `save` without the folder."""
        writer.json("params", self.params())
        writer.ids("catalogue", self.catalogue_.ids)
        _write_log(writer, self.events_)
        writer.array("popularity", self.popularity_)
        if self.item_columns_ is not None:
            writer.table("columns", self.item_columns_)

        self._write(writer)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """The model from an opened artefact's parts; `load` without the folder."""
        try:
            model = cls(**saved_settings(cls, artifact.json("params")))
        except TypeError as cause:
            what = f"settings do not fit this version ({cause}); save it again"
            raise ArtifactError(f"{artifact.folder}: {what}") from None

        model.catalogue_ = IdMap(artifact.ids("catalogue"))
        model.events_ = _read_log(artifact, model.catalogue_)
        model.popularity_ = artifact.array("popularity")
        if "columns.parquet" in artifact:  # a table without columns has no rows in a file
            model.item_columns_ = artifact.table("columns").reindex(range(len(model.catalogue_)))

        model._read(artifact)

        return model


def _no_events(catalogue: IdMap) -> Interactions:
    """A log of nobody: what a model has that was saved without its events."""
    none = np.zeros(0, np.int64)
    return Interactions(IdMap([]), catalogue, none, none, np.zeros(0, np.float32))


def _write_log(writer: ArtifactWriter, events: Interactions) -> None:
    """Store users and events, or nothing of `_no_events`; the items are the catalogue, which is stored by itself."""
    if not len(events):
        return

    writer.ids("users", events.users.ids)
    for name in ("user", "item", "weight", "time"):
        if (values := getattr(events, name)) is not None:
            writer.array(f"events.{name}", values)


def _read_log(artifact: Artifact, catalogue: IdMap) -> Interactions:
    """The events that `_write_log` stored."""
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


def _own(value: Any) -> Any:
    """`value` with its lists and dicts copied at every depth, and all else shared."""
    if type(value) is dict:
        return {name: _own(each) for name, each in value.items()}

    return [_own(each) for each in value] if type(value) is list else value
