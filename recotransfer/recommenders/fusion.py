"""Several recommenders as one: their best candidates for each user, ranked together.

`RankFusion` learns nothing. The others learn on each user's last event, held out inside `fit`, how far to trust each
member: one weight each (`WeightedFusion`), a logistic regression (`StackedFusion`), or weights that depend on the user,
the item and how sure the member is (`AdaptiveFusion`). Modalities of one item are fused in `encoders`, not here.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, IdMap, Interactions, Reason
from recotransfer.errors import InputError
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.histories import seen_items
from recotransfer.numerics.topk import TopK, rank_candidates
from recotransfer.recommenders.base import Recommender
from recotransfer.registry import recommenders
from recotransfer.settings import PositiveInt, saved_settings

Members: TypeAlias = Sequence[Recommender | Mapping[str, Any]]
Doubles: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_] | None
Pairs: TypeAlias = sparse.csr_array | None
DEFAULT_MEMBERS: Members = (
    {"class": "HybridItems", "settings": {}},
    {"class": "EASE", "settings": {"neighbours": 100}},
)
TOP = 10  # list length that `validation_` speaks of


class Candidates(NamedTuple):
    """What the members list for some users: one row per user and item, sorted by both.

    Attributes:
        user, item: (n,) positions.
        share: (n, members) score between the list's bottom (0) and its best (1); 0 where not listed.
        rank: (n, members) place in the list from 1; 0 where not listed.
        history: (n,) number of events in the user's history.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    share: Doubles
    rank: Doubles
    history: Doubles


class FusedRecommender(Recommender):
    """The union of the members' first `depth` items, ranked by what the members say of each.

    A member's scores count as shares of its list: 1 is the list's best, 0 its bottom, which is a score of 0, or the
    lowest listed where scores fall below 0. An item a member does not list is at the bottom. Scores of different users
    are not comparable. Items that no member lists follow by popularity. New items are listed by the members that can,
    so they stand lower the more members cannot.
    """

    members: Members
    depth: int
    members_: list[Recommender]

    @abstractmethod
    def _votes(self, candidates: Candidates) -> Doubles:
        """(n, members) what each member adds to the score of each candidate."""

    def _besides(self, candidates: Candidates) -> Doubles:
        """(n,) what no member adds."""
        return np.zeros(len(candidates.user))

    # -- members -------------------------------------------------------------------------------------------------------

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name, members as {"class": name, "settings": {...}}."""
        out = super().params()
        if isinstance(self.members, (list, tuple)):
            out["members"] = [_spec(member) for member in self.members]

        return out

    def check_settings(self) -> None:
        """Raise `InputError` for a setting that is not allowed, those of the members included."""
        for member in self._prototypes():
            member.check_settings()

        super().check_settings()

    def _prototypes(self) -> list[Recommender]:
        if not isinstance(self.members, (list, tuple)) or len(self.members) < 2:
            raise InputError(
                f"{type(self).__name__}: members must be a list of two recommenders or more, got {self.members!r}"
            )

        return [_made(member) for member in self.members]

    def _names(self) -> list[str]:
        """Class names, numbered where one occurs twice."""
        names = [type(member).__name__ for member in self.members_]
        twice = Counter(names)
        return [f"{name} {names[: at + 1].count(name)}" if twice[name] > 1 else name for at, name in enumerate(names)]

    @property
    def needs_items(self) -> bool:  # type: ignore[override]  # of an instance: it depends on the members
        """Some member needs embeddings."""
        return any(member.needs_items for member in self._prototypes())

    @property
    def scores_new_items(self) -> bool:  # type: ignore[override]
        """Some member ranks new items; the others do not list them."""
        return any(member.scores_new_items for member in self._prototypes())

    @property
    def scores_new_users(self) -> bool:  # type: ignore[override]
        """Every member ranks for new users."""
        return all(member.scores_new_users for member in self._prototypes())

    def _own_histories(self, histories: Interactions) -> Interactions:
        if barred := [type(member).__name__ for member in self._prototypes() if not member.scores_new_users]:
            raise InputError(
                f"{type(self).__name__} ranks only for users it was fitted on, as its member {barred[0]} does; "
                "leave histories out, or that member"
            )

        return super()._own_histories(histories)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        self.members_ = self._fitted(events, items)

    def _fitted(self, events: Interactions, items: Embeddings | None) -> list[Recommender]:
        """Fresh members fitted on `events`; those that read no content get none."""
        made = [_made(_spec(member)) for member in self.members]
        return [m.fit(events, items if m.needs_items or m.scores_new_items else None) for m in made]

    def _width(self) -> int | None:
        return next((width for m in self.members_ if (width := m._width()) is not None), None)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        self.members_ = [m._updated(events, None if m._width() is None else fresh, before) for m in self.members_]
        return "; ".join(dict.fromkeys(m.update_["how"] for m in self.members_)) + ", weights kept"

    def _extend(self, items: Embeddings) -> None:
        self.members_ = [m.extend(items) if m.scores_new_items else m for m in self.members_]

    def _forget_events(self) -> None:
        super()._forget_events()
        self.members_ = [member.without_events() for member in self.members_]

    def for_batch(self) -> Self:
        """A copy whose members search exactly."""
        out = self._now()
        out.members_ = [member.for_batch() for member in out.members_]
        return out

    # -- results -------------------------------------------------------------------------------------------------------

    def _scores(self, events: Interactions) -> sparse.csr_array:
        c = self._candidates(events, None, None)
        shape = (len(events.users), len(self.catalogue_))
        return sparse.coo_array((self._fused(c), (c.user, c.item)), shape=shape).tocsr()

    def _rank(self, events: Interactions, k: int, exclude: Pairs, mask: Mask) -> TopK:
        c = self._candidates(events, exclude, mask)
        return rank_candidates(c.user, c.item, self._fused(c), len(events.users), k)

    def _fused(self, candidates: Candidates) -> NDArray[np.float32]:
        score = self._votes(candidates).sum(axis=1) + self._besides(candidates)
        return np.asarray(score, np.float32)

    def _candidates(self, events: Interactions, exclude: Pairs, mask: Mask) -> Candidates:
        width, depth = len(self.catalogue_), min(self.depth, len(self.catalogue_))
        keys, shares, ranks = [], [], []
        for member in self.members_:
            top = _listed(member, events, depth, exclude, mask)
            user, place = np.nonzero(top.positions >= 0)
            keys.append(user * width + top.positions[user, place])
            shares.append(_shares(top)[user, place])
            ranks.append(place + 1)

        pairs, where = np.unique(np.concatenate(keys), return_inverse=True)
        share, rank = np.zeros((2, len(pairs), len(keys)))
        rows = np.split(where, np.cumsum([len(own) for own in keys])[:-1])

        for at, own in enumerate(rows):
            share[own, at], rank[own, at] = shares[at], ranks[at]

        user = pairs // width
        history = np.bincount(events.user, minlength=len(events.users)).astype(np.float64)

        return Candidates(user, pairs % width, share, rank, history[user])

    def _reasons(
        self, events: Interactions, positions: NDArray[np.int64], exclude_seen: bool, mask: Mask
    ) -> NDArray[np.object_]:
        """Each member's share of the score, and the own items that members name, weighted by those shares."""
        c = self._candidates(events, seen_items(events) if exclude_seen else None, mask)
        votes = np.maximum(self._votes(c), 0)
        votes = np.where(votes.sum(axis=1, keepdims=True) > 0, votes, c.rank > 0)
        votes /= votes.sum(axis=1, keepdims=True)
        row, column = np.nonzero(positions >= 0)
        width, asked = len(self.catalogue_), positions[row, column]
        keys, wanted = c.user * width + c.item, row * width + asked
        told = [_told(member, events, positions, exclude_seen, mask) for member in self.members_]
        names, out = self._names(), np.full(positions.shape, None, dtype=object)
        found = np.searchsorted(keys, wanted)
        known = np.isin(wanted, keys)

        for i, j, at, listed in zip(row, column, found, known, strict=True):
            out[i, j] = Reason((), {"popularity": 1.0})
            if listed:
                said = {names[m]: (float(votes[at, m]), told[m][i, j]) for m in np.flatnonzero(votes[at])}
                out[i, j] = _mixed(said)

        return out

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        writer.json("members", [recommenders.name_to_save(type(member)) for member in self.members_])
        for at, member in enumerate(self.members_):
            member.write(writer.within(f"member{at}"))

    def _read(self, artifact: Artifact) -> None:
        kinds = [recommenders.find_saved(name) for name in artifact.json("members")]
        self.members_ = [kind.read(artifact.within(f"member{at}")) for at, kind in enumerate(kinds)]


class RankFusion(FusedRecommender):
    """Reciprocal rank fusion: each member adds 1 / (60 + rank) (Cormack, Clarke and Büttcher, 2009). Learns nothing.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200) -> None:
        self.members = members
        self.depth = depth

    def _votes(self, candidates: Candidates) -> Doubles:
        return np.asarray((candidates.rank > 0) / (60 + candidates.rank))


def _spec(member: Any) -> Any:
    """A recommender as a file would hold it, tuples as lists; whatever else it is, as it came."""
    if not isinstance(member, Recommender):
        return member

    return {"class": recommenders.name_of(type(member)), "settings": json.loads(json.dumps(member.params()))}


def _made(member: Any) -> Recommender:
    if isinstance(member, Recommender):
        return member
    if not isinstance(member, Mapping) or not {"class"} <= set(member) <= {"class", "settings"}:
        raise InputError(f'a member must be a recommender or {{"class": ..., "settings": ...}}, got {member!r}')

    try:
        kind: type[Recommender] = recommenders.find(member["class"])
        made = kind(**saved_settings(kind, member.get("settings", {})))
    except TypeError as cause:
        raise InputError(f"member {member['class']}: {cause}") from None

    return made


def _listed(member: Recommender, events: Interactions, depth: int, exclude: Pairs, mask: Mask) -> TopK:
    """The member's list; one that could not be extended knows only the first items of the catalogue."""
    n = len(member.catalogue_)
    exclude = None if exclude is None else sparse.csr_array(exclude[:, :n])
    mask = None if mask is None else mask[:n]
    return member._rank(_within(events, member.catalogue_), min(depth, n), exclude, mask)


def _within(events: Interactions, items: IdMap) -> Interactions:
    """The events with `items`, which are the first of the catalogue, or all of it."""
    return events if items == events.items else events.select(events.item < len(items)).with_items(items)


def _shares(top: TopK) -> Doubles:
    """(users, k) scores between the bottom of each list and its best, in 0..1."""
    listed = top.positions >= 0
    scores = np.where(listed, top.scores, 0).astype(np.float64)
    low = scores.min(axis=1, keepdims=True, initial=0)
    span = np.max(np.where(listed, scores, low), axis=1, keepdims=True, initial=-np.inf) - low
    return np.where(span > 0, (scores - low) / np.where(span > 0, span, 1), 1)


def _told(
    member: Recommender, events: Interactions, positions: NDArray[np.int64], exclude_seen: bool, mask: Mask
) -> NDArray[np.object_]:
    """The member's own reasons for the items it knows."""
    n = len(member.catalogue_)
    known = np.where(positions < n, positions, -1)
    return member._reasons(_within(events, member.catalogue_), known, exclude_seen, None if mask is None else mask[:n])


def _mixed(said: Mapping[str, tuple[float, Reason | None]], most: int = 3) -> Reason:
    """One reason of several members' with their shares of the score."""
    items: Counter[Any] = Counter()
    for share, reason in said.values():
        for item, part in reason.because if reason is not None else ():
            items[item] += share * part  # type: ignore[assignment]  # a Counter adds up any numbers

    because = tuple((item, float(part)) for item, part in items.most_common(most) if part > 0.005)
    return Reason(because, {name: share for name, (share, _) in said.items()})
