"""Splits of items into training, validation and test: by share, by fold, by group, or a few per label."""

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

SPLIT_PARTS = ("train", "valid", "test")  # the parts of a split
_SYNONYMS = {"val": "valid", "validation": "valid", "dev": "valid"}  # names of parts in common data sets


@checked
def split_items(
    relations: Interactions, part: ArrayLike, *, groups: Sequence[Any] | None = None, name: str = "given"
) -> Split:
    """The split of relations by the part of their items: "train", "valid" (or "val", "validation", "dev") or "test".

    Unlabelled items are in no part of the relations, so that nothing is predicted for them.

    Args:
        relations: labels as users.
        part: (items,) part of each item; items with any other value are left out.
        groups: (items,) group of each item, such as a patient.
        name: name of the split.

    Raises:
        InputError: a group has items in two parts, or no relation is left to train or to test on.
    """
    item_part = named_parts(part)
    if len(item_part) != len(relations.items):
        raise InputError(f"{len(item_part)} parts for {len(relations.items)} items; give one per item")

    # A group in both training and test would leak the test into training.
    if (number := group_codes(groups, len(item_part))) is not None and groups is not None:
        table = pd.DataFrame({"number": number, "part": item_part})
        parts_of_group = table[np.isin(item_part, SPLIT_PARTS)].groupby("number")["part"].nunique()
        if (split_groups := parts_of_group.index[parts_of_group > 1]).size:
            group = groups[int(np.flatnonzero(number == split_groups[0])[0])]
            raise InputError(f"group {group!r} has items in two parts; keep groups whole, as fold_items does")

    event_part = item_part[relations.item]
    events = {key: relations.select(np.flatnonzero(event_part == key)) for key in SPLIT_PARTS}
    ranked = {key: IdMap(relations.items.take(np.flatnonzero(item_part == key))) for key in ("valid", "test")}
    train = events["train"]
    if not len(train) or not len(events["test"]):
        raise InputError("no relation is left to train on, or none to test on; check the parts of the labelled items")

    return Split(train, events["valid"], events["test"], train, train, ranked["valid"], ranked["test"], name)


@checked
def named_parts(part: ArrayLike) -> NDArray[Any]:
    """(n,) the parts with "val", "validation" and "dev" renamed to "valid"; other values are kept."""
    return pd.Series(np.asarray(part, dtype=object)).replace(_SYNONYMS).to_numpy(object)


@checked
def fold_items(
    relations: Interactions, *, folds: int = 5, valid: float = 0.15, groups: Sequence[Any] | None = None, seed: int = 0
) -> Iterator[Split]:
    """Cross-validation splits: each labelled item is in the test once, stratified by its first label.

    Args:
        relations: labels as users.
        folds: number of splits.
        valid: share of the items outside the test that becomes the validation part.
        groups: (items,) group of each item, such as a patient; groups are kept whole.
        seed: random seed.

    Raises:
        InputError: too few groups, or too few records of the commonest label, for so many folds.
    """
    StratifiedGroupKFold = require("sklearn.model_selection").StratifiedGroupKFold

    item, first = np.unique(relations.item, return_index=True)
    label = relations.user[first]
    number = group_codes(groups, len(relations.items))
    group = item if number is None else number[item]
    if not 0 < valid < 1:
        raise InputError(f"valid must be a share between 0 and 1, got {valid}")
    if folds < 2 or _most_folds(label, group) < folds:
        raise InputError(
            f"{folds} folds cannot be made of {len(item)} records in {len(np.unique(group))} groups: each fold needs "
            "a group and a record of the commonest label; give more records, or fewer folds (at least 2)"
        )

    for rest, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(item, label, group):
        part = np.full(len(relations.items), "", dtype=object)
        part[item[test]] = "test"
        inner = min(max(2, round(1 / valid)), _most_folds(label[rest], group[rest]))
        if inner < 2:
            raise InputError(f"{folds} folds leave one group for training and validation together; give more groups")

        # The validation part is one fold of an inner stratified split.
        splitter = StratifiedGroupKFold(inner, shuffle=True, random_state=seed)
        train_rows, valid_rows = next(iter(splitter.split(rest, label[rest], group[rest])))
        part[item[rest[train_rows]]] = "train"
        part[item[rest[valid_rows]]] = "valid"
        yield split_items(relations, part, name=f"{folds} folds")


@checked
def group_codes(groups: Sequence[Any] | None, count: int, what: str = "groups") -> NDArray[np.int64] | None:
    """(count,) integer codes of the groups; each record without a group gets a code of its own.

    Args:
        groups: group of each record, such as a patient; None returns None.
        count: number of records.
        what: name of the groups in errors.
    """
    if groups is None:
        return None
    if len(groups) != count:
        raise InputError(f"{len(groups)} {what} for {count} records; give one per record")

    codes = np.asarray(pd.factorize(np.fromiter(groups, dtype=object, count=count))[0], np.int64)
    missing = np.flatnonzero(codes < 0)
    codes[missing] = codes.max(initial=-1) + 1 + np.arange(len(missing))

    return codes


@checked
def stratified_parts(
    labels: Sequence[Any], *, test: float = 0.2, groups: Sequence[Any] | None = None, seed: int = 0
) -> NDArray[Any]:
    """(n,) random part of each record, "train", "valid" or "test", stratified by label; "" for unlabelled records.

    Args:
        labels: label of each record, None if unknown.
        test: share of the test; validation gets 15% of the rest.
        groups: group of each record, such as a patient; groups are kept whole.
        seed: random seed.
    """
    if not 0 < test <= 0.5:
        raise InputError(f"test must be a share above 0 and at most 0.5, got {test}")

    relations = Interactions.from_labels(labels, IdMap(np.arange(len(labels))))
    split = next(fold_items(relations, folds=round(1 / test), groups=groups, seed=seed))
    out = np.full(len(labels), "", dtype=object)

    for part in ("train", "valid", "test"):
        out[getattr(split, part).item] = part

    return out


@checked
def few_shot(split: Split, examples: int, *, known: Interactions | None = None, seed: int = 0) -> Split:
    """The split with a few random training relations per user and an empty validation part.

    Args:
        split: a split of any items.
        examples: training relations to keep per user; 0 is zero-shot.
        known: further relations to train on, such as those of `described`.
        seed: random seed.
    """
    train = split.train
    draw = pd.Series(np.random.default_rng(seed).random(len(train)))
    few = train.select(np.flatnonzero((draw.groupby(train.user).rank(method="first") <= examples).to_numpy()))
    if known is not None:
        items = train.items.union(known.items)
        split, few = split.with_items(items), few.with_items(items)
        both = [few, known.with_items(items)]
        user = np.concatenate([few.user, few.users.positions(known.users.take(known.user))])
        few = Interactions(
            few.users, items, user, np.concatenate([e.item for e in both]), np.concatenate([e.weight for e in both])
        )

    if not len(few):
        raise InputError("no relation is left to train on; raise examples, or give descriptions of the users as known")

    no_events = split.valid.select(np.empty(0, np.int64))

    return replace(split, train=few, valid=no_events, valid_history=few, test_history=few)


def _most_folds(label: NDArray[Any], group: NDArray[Any]) -> int:
    """The greatest possible number of folds: the number of groups or of records with the commonest label."""
    return min(len(np.unique(group)), int(np.unique(label, return_counts=True)[1].max(initial=0)))


def training_and_validation(split: Split) -> Interactions:
    """The training and validation relations combined."""
    if not len(split.valid):
        return split.train

    return split.known_before_test()
