"""Items dealt to training, validation and test: by share, by fold, by group, a few per label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer.arguments import checked
from recotransfer.data import IdMap, Interactions
from recotransfer.errors import InputError, require
from recotransfer.evaluation.split import Split

SIDES = ("train", "valid", "test")  # the parts of a split
_ALSO = {"val": "valid", "validation": "valid", "dev": "valid"}  # names that data sets give to parts


@checked
def split_items(
    relations: Interactions, part: ArrayLike, *, groups: Sequence[Any] | None = None, name: str = "given"
) -> Split:
    """A split whose items are dealt to "train", "valid" (or "val", "validation", "dev") and "test" by `part` (items,).

    Other values leave them out, and an item without a label is not asked for one.

    Raises:
        InputError: a group, such as a patient, of `groups` (items,) has items in two parts.
    """
    place = named_parts(part)
    if len(place) != len(relations.items):
        raise InputError(f"{len(place)} parts for {len(relations.items)} items; give one per item")

    if (number := grouped(groups, len(place))) is not None and groups is not None:
        table = pd.DataFrame({"number": number, "part": place})
        parts = table[np.isin(place, SIDES)].groupby("number")["part"].nunique()
        if (torn := parts.index[parts > 1]).size:
            name = groups[int(np.flatnonzero(number == torn[0])[0])]
            raise InputError(f"group {name!r} stands in two parts; deal out whole groups, as fold_items does")

    of_event = place[relations.item]
    rows = {key: relations.select(np.flatnonzero(of_event == key)) for key in SIDES}
    ranked = {key: IdMap(relations.items.take(np.flatnonzero(place == key))) for key in ("valid", "test")}
    train = rows["train"]
    if not len(train) or not len(rows["test"]):
        raise InputError("no relation is left to learn from, or none to judge on; look at the parts of the items")

    return Split(train, rows["valid"], rows["test"], train, train, ranked["valid"], ranked["test"], name)


@checked
def named_parts(part: ArrayLike) -> NDArray[Any]:
    """(n,) "train", "valid" and "test" from the names that data sets use; other values stay as they are."""
    return pd.Series(np.asarray(part, dtype=object)).replace(_ALSO).to_numpy(object)


@checked
def fold_items(
    relations: Interactions, *, folds: int = 5, valid: float = 0.15, groups: Sequence[Any] | None = None, seed: int = 0
) -> Iterator[Split]:
    """Splits in which each labelled item is in the test once, stratified by its first label; groups stay together.

    Args:
        relations: labels as users.
        folds: number of splits.
        valid: share of what is not in the test that settings are chosen on.
        groups: (items,) such as patients.
        seed: random seed.
    """
    StratifiedGroupKFold = require("sklearn.model_selection").StratifiedGroupKFold

    item, first = np.unique(relations.item, return_index=True)
    label = relations.user[first]
    number = grouped(groups, len(relations.items))
    group = item if number is None else number[item]
    if not 0 < valid < 1:
        raise InputError(f"valid must be a share between 0 and 1, got {valid}")
    if folds < 2 or _most_folds(label, group) < folds:
        raise InputError(
            f"{folds} folds cannot be made of {len(item)} records in {len(np.unique(group))} groups: each needs "
            "a group, and a record of the commonest label; give more records, or fewer folds, 2 at least"
        )

    for rest, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(item, label, group):
        part = np.full(len(relations.items), "", dtype=object)
        part[item[test]] = "test"
        inner = min(max(2, round(1 / valid)), _most_folds(label[rest], group[rest]))
        if inner < 2:
            raise InputError(f"{folds} folds leave one group to learn from and to validate on; give more groups")

        cut = StratifiedGroupKFold(inner, shuffle=True, random_state=seed).split(rest, label[rest], group[rest])
        train, held = next(iter(cut))
        part[item[rest[train]]], part[item[rest[held]]] = "train", "valid"
        yield split_items(relations, part, name=f"{folds} folds")


@checked
def grouped(groups: Sequence[Any] | None, count: int, what: str = "groups") -> NDArray[np.int64] | None:
    """(count,) a number for each group, such as a patient; a record whose group is missing is a group of its own.

    Args:
        groups: of each record, or None, which stays so.
        count: number of records.
        what: the groups are called in errors.
    """
    if groups is None:
        return None
    if len(groups) != count:
        raise InputError(f"{len(groups)} {what} for {count} records; give one per record")

    found = np.asarray(pd.factorize(np.fromiter(groups, dtype=object, count=count))[0], np.int64)
    missing = np.flatnonzero(found < 0)
    found[missing] = found.max(initial=-1) + 1 + np.arange(len(missing))

    return found


@checked
def dealt(
    labels: Sequence[Any], *, test: float = 0.2, groups: Sequence[Any] | None = None, seed: int = 0
) -> NDArray[Any]:
    """(n,) "train", "valid" or "test" of each labelled record by lot, each label in proportion; "" without a label.

    Validation is 15% of what is not in the test. Groups, such as patients, stay on one side.
    """
    if not 0 < test <= 0.5:
        raise InputError(f"test must be a share above 0 and at most a half, got {test}")

    relations = Interactions.from_labels(labels, IdMap(np.arange(len(labels))))
    split = next(fold_items(relations, folds=round(1 / test), groups=groups, seed=seed))
    out = np.full(len(labels), "", dtype=object)

    for part in ("train", "valid", "test"):
        out[getattr(split, part).item] = part

    return out


@checked
def few_shot(split: Split, examples: int, *, known: Interactions | None = None, seed: int = 0) -> Split:
    """The same split with few relations to learn from, drawn by lot, and none to choose settings on.

    Args:
        split: over any items.
        examples: training relations kept of each user; 0 is zero-shot.
        known: relations to learn from besides, such as those of `described`.
        seed: random seed.
    """
    train = split.train
    lot = pd.Series(np.random.default_rng(seed).random(len(train)))
    few = train.select(np.flatnonzero((lot.groupby(train.user).rank(method="first") <= examples).to_numpy()))
    if known is not None:
        items = train.items.union(known.items)
        split, few = split.with_items(items), few.with_items(items)
        both = [few, known.with_items(items)]
        user = np.concatenate([few.user, few.users.positions(known.users.take(known.user))])
        few = Interactions(
            few.users, items, user, np.concatenate([e.item for e in both]), np.concatenate([e.weight for e in both])
        )

    if not len(few):
        raise InputError("no relation is left to learn from; give examples, or descriptions of the subjects as known")

    nothing = split.valid.select(np.empty(0, np.int64))

    return replace(split, train=few, valid=nothing, valid_history=few, test_history=few)


def _most_folds(label: NDArray[Any], group: NDArray[Any]) -> int:
    """How many folds these records can be dealt to: no more than groups, nor than records of the commonest label."""
    return min(len(np.unique(group)), int(np.unique(label, return_counts=True)[1].max(initial=0)))


def training_and_validation(split: Split) -> Interactions:
    """Train and validation relations as one."""
    if not len(split.valid):
        return split.train

    return split.known_before_test()
