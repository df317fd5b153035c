"""Learning platforms: course recommendation from enrolments, learner profiles and course content.

Learners with similar profiles form a group, and the group is an item that each member has interacted with. A
recommender then learns what a group takes as it learns what the takers of a course take, and a learner without any
course still has a history to recommend from.
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
from recotransfer.encoders.features import clusters
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
    protocol: Literal["next", "cold courses", "new learners"] = "next",
    encoders: Sequence[Encoder] | None = None,
    seed: int = 0,
) -> Problem:
    """The problem of recommending courses: the next course, courses without learners, or for learners without courses.

    Args:
        enrolments: events with learners as users and courses as items.
        catalogue: all courses, including those without a learner.
        profiles: one row per learner, indexed by learner id: numbers that describe how they learn, such as minutes per
            session. Learners are clustered by them (`features.clusters`). None uses no groups; that is the ablation.
        groups: number of groups.
        protocol: "next" holds out each learner's last course, "cold courses" all enrolments in a tenth of the courses,
            "new learners" all enrolments of a tenth of the learners, of whom only the profile is known.
        encoders: encoders of the courses; None leaves the choice to the task.
        seed: random seed of the clustering and of the split.
    """
    enrolments = enrolments.with_items(catalogue.ids.union(enrolments.items))
    split = _split(enrolments, protocol, seed)
    items = _complete_catalogue(catalogue, split.train.items)

    if profiles is not None:
        numbers = clusters(profiles, groups, seed=seed)
        items, split = _with_groups(items, split, dict(zip(profiles.index, numbers.tolist(), strict=True)))

    return Problem(f"courses, {protocol}", items, split, _METRICS, encoders=encoders, target="items")


def _split(enrolments: Interactions, protocol: str, seed: int) -> Split:
    if protocol == "next":
        return splits.leave_last(enrolments)
    if protocol == "cold courses":
        return splits.cold_items(enrolments, seed=seed)
    if protocol != "new learners":
        raise InputError(f'protocol must be "next", "cold courses" or "new learners", got {protocol!r}')
    if (count := len(enrolments.users)) < 3:
        raise InputError(
            f'protocol="new learners" needs at least three learners, one per part, but got {count}; add learners'
        )

    order = np.random.default_rng(seed).permutation(count)
    tenth = max(1, count // 10)
    part = np.repeat(["test", "valid", "train"], [tenth, tenth, count - 2 * tenth])[np.argsort(order)]
    rows = {name: enrolments.select(np.flatnonzero(part[enrolments.user] == name)) for name in np.unique(part)}
    no_history = enrolments.select(np.empty(0, np.int64))

    return Split(rows["train"], rows["valid"], rows["test"], no_history, no_history, name="new learners")


def _with_groups(items: Items, split: Split, group_of: Mapping[Any, int]) -> tuple[Items, Split]:
    """The items with one more per group, and the split with each learner's group in their history.

    Groups are never recommended: the split ranks courses only.
    """
    groups = IdMap([("group", number) for number in sorted(set(group_of.values()))])
    ids = items.ids.union(groups)
    blank = pd.DataFrame(None, index=range(len(groups)), columns=items.columns.columns, dtype=object)
    extended = Items(ids, pd.concat([items.columns.astype(object), blank], ignore_index=True), items.kinds)

    learners = split.train.users
    number = np.array([group_of.get(learner, -1) for learner in learners.ids])
    member = np.flatnonzero(number >= 0)
    if not len(member):
        raise InputError(
            f"no learner has a profile: learners look like {learners.ids[:3].tolist()}, the index of the profiles like "
            f"{list(group_of)[:3]}; index the profiles by learner"
        )

    group = ids.positions(groups.ids)[np.searchsorted([number for _, number in groups.ids.tolist()], number[member])]
    wide = split.with_items(ids)
    train, valid_history, test_history = (
        _with_memberships(log, member, group) for log in (wide.train, wide.valid_history, wide.test_history)
    )

    return extended, replace(
        wide,
        train=train,
        valid_history=valid_history,
        test_history=test_history,
        valid_items=split.valid_items or items.ids,
        test_items=split.test_items or items.ids,
    )


def _with_memberships(events: Interactions, member: NDArray[Any], group: NDArray[Any]) -> Interactions:
    """The events, preceded by one event of each member with its group.

    Memberships come before the first event, so that they never count as a learner's latest choice.
    """
    time = None if events.time is None else np.full(len(member), events.time.min(initial=1.0) - 1)
    kind = None if events.kind is None else np.zeros(len(member), np.int16)
    ones = np.ones(len(member), np.float32)
    return Interactions(events.users, events.items, member, group, ones, time, kind, events.kinds).concat(events)


def _complete_catalogue(catalogue: Items, ids: IdMap) -> Items:
    """The catalogue with an empty row for each course that occurs in the log only."""
    rows = catalogue.ids.positions(ids.ids, missing="negative")
    return Items(ids, catalogue.columns.reindex(rows).reset_index(drop=True), catalogue.kinds)


def found_at(k: int) -> Metric:
    """Recall at k: the mean share of a learner's held-out courses that are among the first k candidates."""
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")

    def found(a: Predictions) -> float:
        first = np.argsort(-a.scores, axis=1, kind="stable")[:, :k]
        hits = np.take_along_axis(a.truth, first, axis=1).sum(axis=1)
        total = a.truth.sum(axis=1)
        return float((hits / np.maximum(total, 1))[total > 0].mean())

    return found


_METRICS: Mapping[str, Metric] = {
    "MRR": experiments.mean_reciprocal_rank,
    "found at 10": found_at(10),
}
