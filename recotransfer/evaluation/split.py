"""What a split is: three parts and what is known of each user when a part is predicted. Leaks are refused."""

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
    """A log in three parts over one map of users and one of items, no pair in two of them.

    Attributes:
        train: models learn from this while settings are chosen.
        valid: events to predict for settings, from `valid_history`.
        test: events to predict once, from `test_history`.
        valid_history: what is known of each user when valid is asked: train, unless users are cold.
        test_history: what is known of each user when test is asked: mostly train and the valid events.
        valid_items: rank only these (cold-item protocols); None is the whole catalogue.
        test_items: the same for test.
        name: the protocol.
        facts: how it was made, JSON-able: seed, shares or times, ties, `left_out` events by reason.

    Raises:
        InputError: parts over different maps, a pair in two parts or in a truth and its history, a truth that asks for
            items that are not ranked, or facts that JSON cannot hold.
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
                raise InputError(f"{name} and train are over different users or items; `splits.given` unites them")

        try:
            json.dumps(dict(self.facts), allow_nan=False)
        except (TypeError, ValueError) as cause:
            raise InputError(f"facts must be plain JSON values ({cause}); use numbers, text, lists and dicts") from None

        for truth, earlier in (("valid", ("train", "valid_history")), ("test", ("train", "valid", "test_history"))):
            self._check_items(truth)
            for name in earlier:
                self._check_disjoint(name, truth)

    def _check_items(self, truth: str) -> None:
        asked, ranked = getattr(self, truth), getattr(self, f"{truth}_items")
        if ranked is None:
            return

        known = np.zeros(len(asked.items), bool)
        known[asked.items.positions(ranked.ids)] = True
        if (lost := asked.item[~known[asked.item]]).size:
            raise InputError(
                f"{len(lost)} {truth} events ask for items that {truth}_items lacks, for example "
                f"{asked.items.take(lost[:1])[0]!r}; take the events out or name the items"
            )

    def _check_disjoint(self, name: str, truth: str) -> None:
        mine, asked = getattr(self, name), getattr(self, truth)
        keys = pair_keys(asked)
        if not (both := np.unique(keys[is_among(keys, pair_keys(mine))])).size:
            return

        user, item = np.divmod(both[:1], len(asked.items))
        raise InputError(
            f"{len(both)} pairs stand in both {name} and {truth}, for example user {asked.users.take(user)[0]!r} with "
            f"item {asked.items.take(item)[0]!r}; take them out of one, for what a user already has is never listed"
        )

    def with_items(self, items: IdMap) -> Split:
        """The same split over another item map, which must hold every item that has an event or is ranked."""
        names = ("train", "valid", "test", "valid_history", "test_history")
        return replace(self, **{name: getattr(self, name).with_items(items) for name in names})

    def known_before_test(self) -> Interactions:
        """All events that may be learned from once settings are chosen: the test's histories where they hold train and
        valid, else those two with what valid was asked from.
        """
        known = pair_keys(self.test_history)
        if all(is_among(pair_keys(part), known).all() for part in (self.train, self.valid)):
            return self.test_history

        parts = [self.train, self.valid]
        if not is_among(pair_keys(self.valid_history), pair_keys(self.train)).all():
            parts.insert(1, self.valid_history)

        return functools.reduce(joined_logs, parts)

    def describe(self) -> dict[str, Any]:
        """Name, events, users and items of each part, numbers of ranked items (None: all), and the facts; JSON-able."""
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
    """(n,) one number per pair of user and item."""
    return events.user * max(len(events.items), 1) + events.item


def is_among(keys: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) True where a key is in `among`."""
    return pd.Series(keys).isin(among).to_numpy()  # by a hash table; numpy would sort


def _counts(events: Interactions) -> dict[str, int]:
    users, items = np.bincount(events.user), np.bincount(events.item)
    return {"events": len(events), "users": int((users > 0).sum()), "items": int((items > 0).sum())}


def over_ids(events: Interactions, users: IdMap, items: IdMap) -> Interactions:
    """The same events over wider maps."""
    events = events.with_items(items)
    user = users.positions(events.users.ids)[events.user]
    return Interactions(users, items, user, events.item, events.weight, events.time, events.kind, events.kinds)


def joined_logs(first: Interactions, then: Interactions) -> Interactions:
    """The events of both, over maps that they share."""
    for name in ("time", "kind"):
        if (getattr(first, name) is None) != (getattr(then, name) is None):
            raise InputError(
                f"only one of train and valid has a {name}, so that they cannot be one history; give both one"
            )

    kinds = tuple(dict.fromkeys([*first.kinds, *then.kinds]))
    at = np.array([kinds.index(name) for name in then.kinds], np.int16)

    def both(name: str) -> Any:
        return None if getattr(first, name) is None else np.concatenate([getattr(first, name), getattr(then, name)])

    kind = None if first.kind is None or then.kind is None else np.concatenate([first.kind, at[then.kind]])

    return Interactions(first.users, first.items, both("user"), both("item"), both("weight"), both("time"), kind, kinds)


def users_without_history(truth: Interactions, history: Interactions) -> int:
    """Users of the truth of whom nothing is known."""
    return len(np.setdiff1d(truth.user, history.user))


def earlier_than_history(truth: Interactions, history: Interactions) -> int | None:
    """Events of the truth before the last that is known of their user; None for untimed parts."""
    if truth.time is None or history.time is None:
        return None

    last = np.full(len(history.users), -np.inf)
    np.maximum.at(last, history.user, history.time)
    return int((truth.time < last[truth.user]).sum())
