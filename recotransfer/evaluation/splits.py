"""Evaluation protocols: ways to split a log into train, validation and test events without leakage.

Each function returns a `Split`: three disjoint parts, and the history of each user that a model may see before it
predicts a part. All protocols are deterministic: random draws depend on the seed and the ids, never on the order of
rows. A pair of user and item is never in two parts, nor both held out and in the history, because recommendations leave
out the items that a user already has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked
from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError
from recotransfer.evaluation.split import (
    HeldOut,
    Split,
    earlier_than_history,
    is_among,
    over_ids,
    pair_keys,
    users_without_history,
)

# Codes of the part that an event is in; left-out events are in none of the three.
_TRAIN, _VALID, _TEST, _LEFT_OUT = 0, 1, 2, 3

# How a protocol treats events at the same time, for the facts of the split.
_IN_ORDER = "events at the same time are in the order of the log"
_AT_CUT = "events at the time of a cut belong to the later part"
_NO_TIES = "times play no part"


@checked
def hold_out_last(interactions: Interactions, *, least: int = 3) -> HeldOut:
    """Hold out the last event of each user who has at least `least` distinct items.

    The last event is the latest one; ties go by order in the log. Earlier events of the same user and item are left
    out of training, so that the held-out item is always new to the user. Both parts are sorted by user and time.

    Args:
        interactions: the log, timed or not.
        least: fewest distinct items of a user whose last event is held out.

    Raises:
        InputError: `least` is below 1.
    """
    if least < 1:
        raise InputError(f"least must be at least 1 item, got {least}")

    ordered = interactions.select(interactions.order)
    last = _last_of_pairs(ordered)
    part = _hold_out(ordered, last.rows[(last.left == 0) & (last.size >= least)], np.int8(_VALID))

    return HeldOut(ordered.select(part == _TRAIN), ordered.select(part == _VALID))


@checked
def leave_last(interactions: Interactions, *, n: int = 1, least: int = 3) -> Split:
    """Hold out each user's last `n` items for test and the `n` before them for validation; n=1 is leave-one-out.

    A user's items are ordered by their last event; ties and untimed logs go by order in the log. Of each held-out item
    only the last event is kept and earlier ones are left out, so that the item is always new to the user. Users with
    fewer than `least` distinct items, or fewer than 2 n + 1, are in train only.

    Args:
        interactions: the log, timed or not.
        n: number of items per user in validation, and in test.
        least: fewest distinct items of a user with held-out events.

    Raises:
        InputError: no user has enough items, or `n` or `least` is below 1.
    """
    if n < 1 or least < 1:
        raise InputError(f"n and least must be at least 1, got n={n}, least={least}")

    least = max(least, 2 * n + 1)
    last = _last_of_pairs(interactions)
    chosen = (last.size >= least) & (last.left < 2 * n)
    if not chosen.any():
        raise InputError(f"no user has {least} distinct items, so leave_last has nothing to hold out; lower n or least")

    part = _hold_out(interactions, last.rows[chosen], np.where(last.left < n, _TEST, _VALID)[chosen])
    facts = {"n": int(n), "least": int(least), "ties": _IN_ORDER, **_repeats(interactions, part)}

    return _from_parts("leave-last", interactions, part, facts, known=part <= _VALID)


@checked
def time_cut(
    interactions: Interactions,
    *,
    valid: float = 0.1,
    test: float = 0.1,
    valid_from: float | str | datetime | None = None,
    test_from: float | str | datetime | None = None,
) -> Split:
    """Split at two times, the same for all users: train before the first, validation between them, test afterwards.

    The history of each part is all events before it. Events of pairs that are already in the history and of users
    without a history are left out of validation and test; the facts count both.

    Args:
        interactions: a timed log.
        valid: share of events in validation. The cut is the distinct time that comes closest to the share, so events
            at the same time stay together; those at a cut belong to the later part.
        test: share of events in test.
        valid_from: first moment of validation, instead of the shares: seconds since 1970, a datetime or ISO 8601 text
            (UTC if it names no time zone). Requires `test_from`.
        test_from: first moment of test.

    Raises:
        InputError: the log is untimed, shares or moments are out of range, or a part is empty.
    """
    if interactions.time is None:
        raise InputError("time_cut needs times and the log has no times; use random_per_user, or leave_last if the "
                         "log is in the order of the events")  # fmt: skip
    if (valid_from is None) != (test_from is None):
        raise InputError("valid_from and test_from go together; give both, or neither to use the shares")

    time = interactions.time
    if valid_from is None or test_from is None:
        start, end = _cuts(time, valid, test)
        shares = {"valid": float(valid), "test": float(test)}
    else:
        shares = None
        start, end = _seconds(valid_from), _seconds(test_from)
        if not start < end:
            raise InputError(f"valid_from must lie before test_from, got {valid_from!r} and {test_from!r}")

    before, middle = time < start, (time >= start) & (time < end)
    part = np.select([before, middle], [_TRAIN, _VALID], _TEST).astype(np.int8)
    known = before | middle
    part, counts = _leave_out_unpredictable(interactions, part, before, known)
    facts = {"valid_from": start, "test_from": end, "shares": shares, "ties": _AT_CUT, **counts}

    return _from_parts("time", interactions, part, facts, known=known)


@checked
def cold_items(interactions: Interactions, *, share: float = 0.1, seed: int = 0) -> Split:
    """Hold out all events of a random share of the items for validation and of another for test: the cold-start split.

    The history of both parts is train, and only the held-out items of a part are ranked. Users without events in train
    are left out of validation and test; the facts count them.

    Args:
        interactions: the log, timed or not.
        share: share of the items with events that is held out for validation, and for test.
        seed: random seed.

    Raises:
        InputError: the share is out of range, or there are too few items.
    """
    return _new_items("cold-items", interactions, np.arange(len(interactions.items)), interactions.items, share, seed)


@checked
def by_group(interactions: Interactions, groups: Iterable[Any], *, share: float = 0.1, seed: int = 0) -> Split:
    """Hold out random groups of items for validation and for test, so that no group is in two parts.

    Groups are of items, not of users: if images are items and labels are users, a patient is a group of images, and no
    patient in test has an image in training. The history of both parts is train. Only the held-out items with events
    are ranked, because an item without events is unlabelled, not wrong. Users without events in train are left out of
    validation and test; the facts count them.

    Args:
        interactions: the log, timed or not.
        groups: the group of each item, in the order of `interactions.items`.
        share: share of the groups with events that is held out for validation, and for test.
        seed: random seed.

    Raises:
        InputError: an item has no group, the share is out of range, or there are too few groups.
    """
    values = pd.Series(list(groups), dtype=object)
    if len(values) != len(interactions.items):
        raise InputError(f"{len(values)} groups for {len(interactions.items)} items; give one per item")
    if (lost := np.flatnonzero(values.isna())).size:
        raise InputError(
            f"items without a group: {len(lost)}, the first is {interactions.items.take(lost[:1])[0]!r}; "
            "give each item a group, or one of its own if it belongs to none"
        )

    codes, names = pd.factorize(values)

    return _new_items("by-group", interactions, codes.astype(np.int64), IdMap(list(names)), share, seed)


@checked
def cold_users(interactions: Interactions, *, share: float = 0.1, given: float = 0.8, seed: int = 0) -> Split:
    """Keep random users out of train, some for validation and some for test: how well a model serves new users.

    A cold user's first items are the history and the later ones are to be predicted. Items are ordered by their last
    event; ties and untimed logs go by order in the log. Of each held-out item only the last event is kept and earlier
    ones are left out. `valid_history` and `test_history` contain only the users of their part.

    Args:
        interactions: the log, timed or not.
        share: share of the users with enough items in validation, and in test; users with fewer are in train.
        given: how much of a cold user is history: a share between 0 and 1 of the distinct items (at least one is
            history and one held out), or a whole number of items.
        seed: random seed.

    Raises:
        InputError: `share` or `given` is out of range, or there are too few users.
    """
    if not (0 < given < 1 or (given >= 1 and given == int(given))):
        raise InputError(f"given must be a share between 0 and 1 or a whole number of items, got {given}")

    users = interactions.users
    last = _last_of_pairs(interactions)
    eligible = np.flatnonzero(last.sizes > max(given, 1))
    user_part = np.full(len(users), _TRAIN, np.int8)
    user_part[eligible] = _draw_parts(IdMap(users.take(eligible)), share, seed, "users with enough items")

    targets = np.maximum(np.round((1 - given) * last.size), 1) if given < 1 else last.size - given
    held_out = (user_part[last.user] != _TRAIN) & (last.left < np.minimum(targets, last.size - 1))
    part = _hold_out(interactions, last.rows[held_out], user_part[last.user[held_out]])

    of_user = user_part[interactions.user]
    valid_history = (part == _TRAIN) & (of_user == _VALID)
    test_history = (part == _TRAIN) & (of_user == _TEST)
    facts = {"share": float(share), "given": float(given), "seed": int(seed), "ties": _IN_ORDER}
    facts |= _repeats(interactions, part)

    # Only now, because the facts count repeats and not the histories of cold users.
    part[valid_history | test_history] = _LEFT_OUT

    return _from_parts("cold-users", interactions, part, facts, known=test_history, known_early=valid_history)


@checked
def random_per_user(interactions: Interactions, *, share: float = 0.1, seed: int = 0) -> Split:
    """Hold out a random share of each user's items, with all their events, for validation and another for test.

    Meant for data without an order, such as labels and ratings: on a timed log models would see the future (use
    `time_cut`). A share that is not a whole number of items is rounded up or down at random, so that it holds on
    average over users; every user keeps at least one item in train.

    Args:
        interactions: the log, timed or not.
        share: share of each user's distinct items in validation, and in test.
        seed: random seed.

    Raises:
        InputError: the share is out of range, or there are too few items.
    """
    _check_share(share)
    width = max(len(interactions.items), 1)
    codes, keys = pd.factorize(pair_keys(interactions))
    user, item = np.divmod(np.asarray(keys, np.int64), width)

    # Random rank of each pair among those of its user, drawn by a hash of both ids.
    user_hash = _hash(interactions.users, seed)
    pair_hash = pd.util.hash_array(pd.util.hash_array(user_hash)[user] ^ _hash(interactions.items, seed)[item])
    order = np.lexsort((keys, pair_hash, user))
    sizes = np.bincount(user, minlength=len(interactions.users))
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    # Adding a uniform number before rounding down makes the expected number exactly share * size.
    uniform = user_hash / 2.0**64
    most = np.maximum(sizes - 1, 0)
    tests = np.minimum(np.floor(share * sizes + uniform), most)[user]
    both = np.minimum(np.floor(2 * share * sizes + uniform), most)[user]
    part = np.select([rank < tests, rank < both], [_TEST, _VALID], _TRAIN).astype(np.int8)[codes]
    facts = {"share": float(share), "seed": int(seed), "ties": _NO_TIES, "events": len(interactions), "left_out": {}}

    return _from_parts("random-per-user", interactions, part, facts, known=part <= _VALID)


@checked
def given(
    train: Interactions,
    valid: Interactions,
    test: Interactions,
    *,
    history: Interactions | None = None,
    valid_items: IdMap | Iterable[Any] | None = None,
    test_items: IdMap | Iterable[Any] | None = None,
) -> Split:
    """Use parts that exist already, such as a published split, over the union of their users and items.

    No event is left out. The facts count users of validation and test without a history, and events to predict that are
    earlier than the last event of their user's history (None if either is untimed).

    Args:
        train: events to learn from.
        valid: events to predict during tuning.
        test: events to predict once, at the end.
        history: the events of each user that are known before both validation and test: train for new items, other
            events for new users. None takes train for validation, and train and `valid` for test.
        valid_items: the items to rank in validation; None ranks all.
        test_items: the items to rank in test; None ranks all.

    Raises:
        InputError: a part is empty, a pair is in two parts or both held out and in the history, or only one of train
            and valid has times or kinds.
    """
    parts = [part for part in (train, valid, test, history) if part is not None]
    ranked = [ids if ids is None or isinstance(ids, IdMap) else IdMap(ids) for ids in (valid_items, test_items)]
    users, items = train.users, train.items

    for part in parts[1:]:
        users, items = users.union(part.users), items.union(part.items)

    for ids in ranked:
        items = items if ids is None else items.union(ids)

    train, valid, test = (over_ids(part, users, items) for part in (train, valid, test))
    known = [train, _known_before_test(train, valid)] if history is None else [over_ids(history, users, items)] * 2
    facts = {
        "events": len(train) + len(valid) + len(test),
        "users_without_history": {
            "valid": users_without_history(valid, known[0]),
            "test": users_without_history(test, known[1]),
        },
        "earlier_than_history": {
            "valid": earlier_than_history(valid, known[0]),
            "test": earlier_than_history(test, known[1]),
        },
    }

    return _checked(Split(train, valid, test, known[0], known[1], ranked[0], ranked[1], "given", facts))


def _known_before_test(train: Interactions, valid: Interactions) -> Interactions:
    try:
        return train.concat(valid)
    except InputError as cause:  # say which of the given logs these are
        raise InputError(f"train and valid: {cause}") from None


class _LastEvents(NamedTuple):
    """The last event of each pair of user and item, sorted by user, then time.

    Attributes:
        rows: (pairs,) positions of the events in the log.
        user: (pairs,) their users.
        left: (pairs,) number of later pairs of the same user.
        size: (pairs,) number of pairs of the same user.
        sizes: (users,) number of pairs of each user.
    """

    rows: NDArray[np.int64]
    user: NDArray[np.int64]
    left: NDArray[np.int64]
    size: NDArray[np.int64]
    sizes: NDArray[np.int64]


def _last_of_pairs(events: Interactions) -> _LastEvents:
    order = events.order
    rows = order[~pd.Series(pair_keys(events)[order]).duplicated(keep="last").to_numpy()]
    user = events.user[rows]
    sizes = np.bincount(user, minlength=len(events.users)).astype(np.int64)
    left = np.cumsum(sizes)[user] - 1 - np.arange(len(rows))
    return _LastEvents(rows, user, left, sizes[user], sizes)


def _hold_out(events: Interactions, rows: NDArray[np.int64], parts: NDArray[np.int8] | np.int8) -> NDArray[np.int8]:
    """(n,) part of each event: `parts` at `rows`, left out for other events of the same pairs, train for the rest."""
    keys = pair_keys(events)
    part = np.where(is_among(keys, keys[rows]), _LEFT_OUT, _TRAIN).astype(np.int8)
    part[rows] = parts
    return part


def _new_items(
    name: str, events: Interactions, group: NDArray[np.int64], names: IdMap, share: float, seed: int
) -> Split:
    """Hold out random groups of items; `group` (items,) is each item's position in `names`, the names of the groups."""
    active = np.bincount(events.item, minlength=len(events.items)) > 0
    used = np.unique(group[active])
    group_part = np.full(len(names), _TRAIN, np.int8)
    unit = "items" if name == "cold-items" else "groups"
    group_part[used] = _draw_parts(IdMap(names.take(used)), share, seed, f"{unit} with events")

    item_part = group_part[group]
    part = item_part[events.item]
    known = part == _TRAIN
    part, counts = _leave_out_unpredictable(events, part, known, known)
    facts = {"share": float(share), "seed": int(seed), unit: len(used), "ties": _NO_TIES, **counts}
    ranked = [IdMap(events.items.take(np.flatnonzero(active & (item_part == code)))) for code in (_VALID, _TEST)]

    return _from_parts(name, events, part, facts, known=known, ranked=(ranked[0], ranked[1]))


def _leave_out_unpredictable(
    events: Interactions, part: NDArray[np.int8], early: NDArray[np.bool_], known: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """Mark held-out events as left out if no list can contain them: their user is new, or already has the item.

    `early` and `known` (n,) mark the events of the validation and the test history. Returns the changed parts (n,) and
    the facts that count the events.
    """
    keys, part = pair_keys(events), part.copy()
    reasons: dict[str, int] = {}
    new_users: dict[str, int] = {}

    for name, code, history in (("valid", _VALID, early), ("test", _TEST, known)):
        held_out = part == code
        new = held_out & (np.bincount(events.user[history], minlength=len(events.users)) == 0)[events.user]
        seen = held_out & is_among(keys, keys[history])
        part[new | seen] = _LEFT_OUT
        reasons |= {f"{name}: user without history": int(new.sum()), f"{name}: already had": int(seen.sum())}
        new_users[name] = len(np.unique(events.user[new]))

    return part, {"events": len(events), "left_out": reasons, "users_without_history": new_users}


def _repeats(events: Interactions, part: NDArray[np.int8]) -> dict[str, Any]:
    """Facts that count the events left out because a later event of the same user and item is held out."""
    return {"events": len(events), "left_out": {"before a held-out repeat": int((part == _LEFT_OUT).sum())}}


def _from_parts(
    name: str,
    events: Interactions,
    part: NDArray[np.int8],
    facts: Mapping[str, Any],
    *,
    known: NDArray[np.bool_],
    known_early: NDArray[np.bool_] | None = None,
    ranked: tuple[IdMap | None, IdMap | None] = (None, None),
) -> Split:
    """Make the split from the part of each event; `known` marks the test history, `known_early` the validation one."""
    train, valid, test = (events.select(part == code) for code in (_TRAIN, _VALID, _TEST))
    early = train if known_early is None else events.select(known_early)
    return _checked(Split(train, valid, test, early, events.select(known), *ranked, name=name, facts=facts))


def _checked(split: Split) -> Split:
    for name in ("train", "valid", "test"):
        if not len(getattr(split, name)):
            raise InputError(f"{split.name}: no event is left for {name}; give more events; facts: {dict(split.facts)}")

    return split


def _check_share(share: float) -> None:
    if not 0 < share < 0.5:
        raise InputError(f"share must lie between 0 and 0.5, because valid and test take that much each; got {share}")


def _draw_parts(ids: IdMap, share: float, seed: int, unit: str) -> NDArray[np.int8]:
    """(n,) random part of each id, which depends on the seed and the set of ids, not on their order."""
    _check_share(share)
    count = max(1, round(share * len(ids)))
    if 2 * count >= len(ids):
        raise InputError(f"{len(ids)} {unit} are too few to take {count} for valid, {count} for test and keep some")

    part = np.full(len(ids), _TRAIN, np.int8)
    order = np.argsort(_hash(ids, seed), kind="stable")
    part[order[:count]], part[order[count : 2 * count]] = _TEST, _VALID

    return part


def _hash(ids: IdMap, seed: int) -> NDArray[np.uint64]:
    """(n,) a hash of each id, independent of its position and of the other ids."""
    texts = np.array([repr(value) for value in ids.ids.tolist()], dtype=object)
    return pd.util.hash_array(texts, hash_key=f"{seed % 10**16:016d}", categorize=False)


def _cuts(time: NDArray[np.float64], valid: float, test: float) -> tuple[float, float]:
    """Times at which validation and test begin: the distinct times that come closest to the shares."""
    if not (valid > 0 and test > 0 and valid + test < 1):
        raise InputError(f"valid and test must be positive shares that leave some for train, got {valid} and {test}")

    times, counts = np.unique(time, return_counts=True)
    if len(times) < 3:
        raise InputError(f"the log has {len(times)} distinct times, and three parts need at least 3; use leave_last")

    later = np.cumsum(counts[::-1])[::-1]  # number of events at each time or after it
    end = 2 + int(np.argmin(np.abs(later[2:] - test * len(time))))
    start = 1 + int(np.argmin(np.abs(later[1:end] - later[end] - valid * len(time))))

    return float(times[start]), float(times[end])


def _seconds(moment: float | str | datetime) -> float:
    """Seconds since 1970; a moment without a time zone is in UTC."""
    if isinstance(moment, (int, float, np.number)):
        return float(moment)

    try:
        stamp = pd.Timestamp(moment)
    except (ValueError, TypeError):
        raise InputError(f"{moment!r} is not a time; give seconds since 1970, a datetime or ISO 8601 text") from None

    return float((stamp.tz_localize("UTC") if stamp.tz is None else stamp).timestamp())
