"""`Split`: train, validation and test events, and each user's history before them. Splits that leak are rejected."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError


class HeldOut(NamedTuple):
    """Two disjoint parts of a log, over the same users and items."""

    train: Interactions
    valid: Interactions


@dataclass(frozen=True)
class Split:
    """A log split into three disjoint parts over the same users and items.

    Attributes:
        train: events that models learn from while settings are tuned.
        valid: events to predict for tuning, given `valid_history`.
        test: events to predict once, given `test_history`.
        valid_history: events of each user that are known before valid: train, unless users are cold.
        test_history: events of each user that are known before test: usually train and valid.
        valid_items: the items to rank in validation (for cold items); None ranks the whole catalogue.
        test_items: the items to rank in test, in the same way.
        name: the protocol.
        facts: how the split was made, as plain JSON: seed, shares or times, ties, `left_out` events by reason.

    Raises:
        InputError: parts over different ids, a pair in two parts or both held out and in the history, held-out items
            that are not ranked, or facts that are not plain JSON.
    """

    train: Interactions
    valid: Interactions
    test: Interactions
    valid_history: Interactions
    test_history: Interactions
    valid_items: IdMap | None = None
    test_items: IdMap | None = None
    name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("valid", "test", "valid_history", "test_history"):
            part = getattr(self, name)
            if part.users != self.train.users or part.items != self.train.items:
                raise InputError(
                    f"{name} and train are over different users or items; `splits.given` brings them together"
                )

        try:
            json.dumps(dict(self.facts), allow_nan=False)
        except (TypeError, ValueError) as cause:
            raise InputError(f"facts must be plain JSON values ({cause}); use numbers, text, lists and dicts") from None

        for truth, earlier in (("valid", ("train", "valid_history")), ("test", ("train", "valid", "test_history"))):
            self._check_items(truth)
            for name in earlier:
                self._check_disjoint(name, truth)

    def _check_items(self, truth: str) -> None:
        """Raise `InputError` if a part to predict has items that are not ranked."""
        events, ranked = getattr(self, truth), getattr(self, f"{truth}_items")
        if ranked is None:
            return

        is_ranked = np.zeros(len(events.items), bool)
        is_ranked[events.items.positions(ranked.ids)] = True
        if (lost := events.item[~is_ranked[events.item]]).size:
            raise InputError(
                f"{truth}_items lacks items of {truth} events, for example {events.items.take(lost[:1])[0]!r} "
                f"(number of these events: {len(lost)}); remove the events or add the items"
            )

    def _check_disjoint(self, name: str, truth: str) -> None:
        """Raise `InputError` if a part to predict shares a pair of user and item with the part called `name`."""
        earlier, events = getattr(self, name), getattr(self, truth)
        keys = pair_keys(events)
        if not (both := np.unique(keys[is_among(keys, pair_keys(earlier))])).size:
            return

        user, item = np.divmod(both[:1], len(events.items))
        raise InputError(
            f"{name} and {truth} share pairs of user and item, for example user {events.users.take(user)[0]!r} with "
            f"item {events.items.take(item)[0]!r} (number of pairs: {len(both)}); remove them from one of the two, "
            "because items in a user's history are never recommended"
        )

    def with_items(self, items: IdMap) -> Split:
        """The same split over another item map, which must contain every item that has an event or is ranked."""
        names = ("train", "valid", "test", "valid_history", "test_history")
        return replace(self, **{name: getattr(self, name).with_items(items) for name in names})

    def known_before_test(self) -> Interactions:
        """All events before test, on which to refit once the settings are chosen.

        These are the test history if it includes train and valid, otherwise train, valid and the validation history.
        """
        known = pair_keys(self.test_history)
        if all(is_among(pair_keys(part), known).all() for part in (self.train, self.valid)):
            return self.test_history

        parts = [self.train, self.valid]
        if not is_among(pair_keys(self.valid_history), pair_keys(self.train)).all():
            parts.insert(1, self.valid_history)

        return functools.reduce(Interactions.concat, parts)

    def describe(self) -> dict[str, Any]:
        """Summary as plain JSON: name, sizes of all parts, numbers of ranked items (None for all), facts."""
        names = ("train", "valid", "test", "valid_history", "test_history")

        return {
            "name": self.name,
            "parts": {name: _counts(getattr(self, name)) for name in names},
            "ranked": {
                name: None if (ranked := getattr(self, f"{name}_items")) is None else len(ranked)
                for name in ("valid", "test")
            },
            "facts": dict(self.facts),
        }


def pair_keys(events: Interactions) -> NDArray[np.int64]:
    """(n,) a number per event that identifies its pair of user and item."""
    return events.user * max(len(events.items), 1) + events.item


def is_among(keys: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) bool, True where a key is in `among`."""
    return pd.Series(keys).isin(among).to_numpy()  # pandas uses a hash table, numpy would sort


def _counts(events: Interactions) -> dict[str, int]:
    users, items = np.bincount(events.user), np.bincount(events.item)
    return {"events": len(events), "users": int((users > 0).sum()), "items": int((items > 0).sum())}


def over_ids(events: Interactions, users: IdMap, items: IdMap) -> Interactions:
    """The same events over larger maps of users and items."""
    events = events.with_items(items)
    user = users.positions(events.users.ids)[events.user]
    return Interactions(users, items, user, events.item, events.weight, events.time, events.kind, events.kinds)


def users_without_history(truth: Interactions, history: Interactions) -> int:
    """Number of users with events to predict but no history."""
    return len(np.setdiff1d(truth.user, history.user))


def earlier_than_history(truth: Interactions, history: Interactions) -> int | None:
    """Number of events to predict that precede their user's last event in the history; None if either is untimed."""
    if truth.time is None or history.time is None:
        return None

    last = np.full(len(history.users), -np.inf)
    np.maximum.at(last, history.user, history.time)
    return int((truth.time < last[truth.user]).sum())
