"""A learning platform: courses for learners from what they took, how they learn, and what the courses are about.

A group of learners who behave alike is an item that each of them holds. What its members take is then learned like what
the takers of a course take, a learner without a course has a history, and nothing but the core ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer import experiments
from recotransfer.data import IdMap, Interactions, Items
from recotransfer.encoders import Encoder
from recotransfer.encoders.features import clusters as clustered
from recotransfer.errors import InputError
from recotransfer.evaluation import splits
from recotransfer.evaluation.split import Split
from recotransfer.experiments import Metric, Predictions, Problem


def courses(
    enrolments: Interactions,
    catalogue: Items,
    *,
    profiles: pd.DataFrame | None = None,
    groups: int = 8,
    ask: Literal["next", "cold courses", "new learners"] = "next",
    encoders: Sequence[Encoder] | None = None,
    seed: int = 0,
) -> Problem:
    """Which course each learner takes next, of those known, or of courses that nobody has taken yet.

    Args:
        enrolments: learners as users, courses as items.
        catalogue: the courses, those without a learner too.
        profiles: one row per learner, indexed by learner: numbers on how they learn, such as minutes per session.
            Learners with a row are put into groups by them (`features.clusters`); None leaves groups out, as the
            ablation does.
        groups: number of groups.
        ask: "next" holds out each learner's last course, "cold courses" all learners of a tenth of the courses, "new
            learners" all courses of a tenth of the learners, of whom only the profile is known.
        encoders: what reads the courses; by default what `default_encoders` finds.
        seed: random seed of the groups and of what is held out.
    """
    enrolments = enrolments.with_items(catalogue.ids.union(enrolments.items))
    split = _split(enrolments, ask, seed)
    items = _every(catalogue, split.train.items)
    if profiles is not None:
        labels = clustered(profiles, groups, seed=seed)
        items, split = _with_groups(items, split, dict(zip(profiles.index, labels.tolist(), strict=True)))

    return Problem(f"courses, {ask}", items, split, _JUDGED, encoders=encoders, asks="items")


def _split(enrolments: Interactions, ask: str, seed: int) -> Split:
    if ask == "next":
        return splits.leave_last(enrolments)
    if ask == "cold courses":
        return splits.cold_items(enrolments, seed=seed)
    if ask != "new learners":
        raise InputError(f'ask must be "next", "cold courses" or "new learners", got {ask!r}')
    if (count := len(enrolments.users)) < 3:
        raise InputError(f"new learners take three learners at least, one for each part; there are {count}, add some")

    lot = np.random.default_rng(seed).permutation(len(enrolments.users))
    tenth = max(1, len(lot) // 10)
    part = np.repeat(["test", "valid", "train"], [tenth, tenth, len(lot) - 2 * tenth])[np.argsort(lot)]
    rows = {name: enrolments.select(np.flatnonzero(part[enrolments.user] == name)) for name in np.unique(part)}
    none = enrolments.select(np.empty(0, np.int64))

    return Split(rows["train"], rows["valid"], rows["test"], none, none, name="new learners")


def _with_groups(items: Items, split: Split, group_of: Mapping[Any, int]) -> tuple[Items, Split]:
    """Items with one for each group, which is never up for choice, and the split with its learners' groups known."""
    names = IdMap([("group", number) for number in sorted(set(group_of.values()))])
    ids = items.ids.union(names)
    blank = pd.DataFrame(None, index=range(len(names)), columns=items.columns.columns, dtype=object)
    both = Items(ids, pd.concat([items.columns.astype(object), blank], ignore_index=True), items.kinds)
    learners = split.train.users
    held = np.array([group_of.get(learner, -1) for learner in learners.ids])
    who = np.flatnonzero(held >= 0)
    if not len(who):
        raise InputError(
            f"no learner has a profile: learners look like {learners.ids[:3].tolist()}, the index of the profiles like "
            f"{list(group_of)[:3]}; index the profiles by learner"
        )

    what = ids.positions(names.ids)[np.searchsorted([number for _, number in names.ids.tolist()], held[who])]
    wide = split.with_items(ids)
    train, valid, test = (_known(log, who, what) for log in (wide.train, wide.valid_history, wide.test_history))
    ranked = split.valid_items or items.ids, split.test_items or items.ids

    return both, replace(
        wide, train=train, valid_history=valid, test_history=test, valid_items=ranked[0], test_items=ranked[1]
    )


def _known(events: Interactions, who: NDArray[Any], what: NDArray[Any]) -> Interactions:
    """The events after one of each of these learners with their group, from before the log began."""
    start = None if events.time is None else np.full(len(who), events.time.min(initial=1.0) - 1)
    kind = None if events.kind is None else np.zeros(len(who), np.int16)
    ones = np.ones(len(who), np.float32)
    return Interactions(events.users, events.items, who, what, ones, start, kind, events.kinds).joined(events)


def _every(catalogue: Items, ids: IdMap) -> Items:
    """The catalogue with a row for every course that only the log knows."""
    rows = catalogue.ids.positions(ids.ids, missing="negative")
    return Items(ids, catalogue.columns.reindex(rows).reset_index(drop=True), catalogue.kinds)


def found_at(k: int) -> Metric:
    """Mean share of a learner's held-out courses that stand among the first k."""
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")

    def found(a: Predictions) -> float:
        first = np.argsort(-a.scores, axis=1, kind="stable")[:, :k]
        hits = np.take_along_axis(a.truth, first, axis=1).sum(axis=1)
        total = a.truth.sum(axis=1)
        return float((hits / np.maximum(total, 1))[total > 0].mean())

    return found


_JUDGED: Mapping[str, Metric] = {
    "MRR": experiments.mean_reciprocal_rank,
    "found at 10": found_at(10),
}
