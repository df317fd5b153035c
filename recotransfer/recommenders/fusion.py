"""Late fusion of several recommenders: each member's best candidates for a user, ranked together.

`RankFusion` has nothing to learn. The others learn how far to trust each member from events held out inside `fit`: one
weight per member (`WeightedFusion`), a logistic regression (`StackedFusion`), or weights that depend on the user, the
item and the member's confidence (`AdaptiveFusion`). Modalities of one item are fused in `encoders`, not here.

`recommend` fuses lists of items. `label` fuses the members' scores for every label of an item: probabilities if they
give them, otherwise scores turned into probabilities.
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
from recotransfer.numerics.histories import seen_items, subset
from recotransfer.numerics.topk import TopK, rank_candidates
from recotransfer.numerics.vectors import Float
from recotransfer.recommenders.base import BLOCK, Recommender
from recotransfer.registry import recommenders
from recotransfer.settings import PositiveInt, saved_settings

Members: TypeAlias = Sequence[Recommender | Mapping[str, Any]]
Doubles: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_] | None
Pairs: TypeAlias = sparse.csr_array | None
DEFAULT_MEMBERS: Members = (
    {"class": "LearnedHybrid", "settings": {}},
    {"class": "EASE", "settings": {"neighbours": 100}},
)
TOP = 10  # list length of the NDCG in `validation_`
_RANK_OFFSET = 60  # the constant of reciprocal rank fusion, as its authors chose it
_TIE_BREAK = 1e-6  # weight of scores, which order items of equal reciprocal rank; below any difference near the top
_MOST_PAIRS = 1 << 21  # user-item pairs held in memory at a time


class Candidates(NamedTuple):
    """The union of the members' lists for some users: one row per user-item pair, sorted by user, then item.

    Attributes:
        user, item: (n,) positions.
        share: (n, members) score scaled from the bottom of the member's list (0) to its best (1); 0 without a score.
        rank: (n, members) rank in the member's list, from 1; 0 if not listed.
        history: (n,) number of events in the user's history.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    share: Doubles
    rank: Doubles
    history: Doubles


class _Scored(NamedTuple):
    """One member's scores for some pairs: the pair as user * items + item, its share and its rank."""

    pair: NDArray[np.int64]
    share: Doubles
    rank: Doubles


class FusedRecommender(Recommender):
    """The union of the members' first `depth` items, ranked by a combination of the members' scores.

    Each member's scores are scaled per list: 1 is its best item; 0 is a score of 0, or the lowest listed score if
    scores are negative. An item that a member does not list has 0 from it. Scores of different users are not
    comparable. Items that no member lists follow by popularity. New items are listed only by members that can rank
    them, so they rank lower the more members cannot.

    In `label` every member scores every given item, whatever the `depth`. If users are labels (some member gives
    probabilities, or the members use content and no item has two users), the members' scores of an item are combined
    over its candidate labels. Otherwise a user's score is what `recommend` would give if members listed every item.
    """

    members: Members
    depth: int
    members_: list[Recommender]

    @abstractmethod
    def _votes(self, candidates: Candidates) -> Doubles:
        """(n, members) contribution of each member to each candidate's score."""

    def _shared_score(self, candidates: Candidates) -> Doubles:
        """(n,) part of the score that does not come from a member."""
        return np.zeros(len(candidates.user))

    # -- members -------------------------------------------------------------------------------------------------------

    def params(self) -> dict[str, Any]:
        """Constructor arguments by name, members as {"class": name, "settings": {...}}."""
        out = super().params()
        if isinstance(self.members, (list, tuple)):
            out["members"] = [_spec(member) for member in self.members]

        return out

    def check_settings(self) -> None:
        """Validate the settings, those of the members too."""
        super().check_settings()
        for member in self._prototypes():
            member.check_settings()

    def _prototypes(self) -> list[Recommender]:
        if not isinstance(self.members, (list, tuple)) or len(self.members) < 2:
            raise InputError(
                f"{type(self).__name__}: members must be a list of two recommenders or more, got {self.members!r}"
            )

        return [_build(member) for member in self.members]

    def _names(self) -> list[str]:
        """The members' class names, numbered if one occurs more than once."""
        names = [type(member).__name__ for member in self.members_]
        twice = Counter(names)
        return [f"{name} {names[: at + 1].count(name)}" if twice[name] > 1 else name for at, name in enumerate(names)]

    @property
    def needs_items(self) -> bool:  # type: ignore[override]  # of an instance: it depends on the members
        """Whether any member needs embeddings."""
        return any(member.needs_items for member in self._prototypes())

    @property
    def scores_new_items(self) -> bool:  # type: ignore[override]
        """Whether any member ranks new items; the others do not list them."""
        return any(member.scores_new_items for member in self._prototypes())

    @property
    def scores_new_users(self) -> bool:  # type: ignore[override]
        """Whether every member ranks for new users."""
        return all(member.scores_new_users for member in self._prototypes())

    @property
    def gives_probabilities(self) -> bool:  # type: ignore[override]
        """Whether every member gives probabilities, so that `label` does too."""
        return all(member.gives_probabilities for member in self._prototypes())

    @property
    def compares_users(self) -> bool:  # type: ignore[override]
        """Whether users are labels, so that `label` combines the members' scores over all labels of an item."""
        return self._users_are_labels(self._width() is not None)

    def _users_are_labels(self, with_content: bool) -> bool:
        if any(member.gives_probabilities for member in self._prototypes()):
            return True

        return with_content and bool(self.popularity_.max(initial=0) <= 1)  # no item has two users

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
        """Unfitted copies of the members, fitted on `events`; only those that use content are given it."""
        made = [_build(_spec(member)) for member in self.members]
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

    # -- recommend -----------------------------------------------------------------------------------------------------

    def _scores(self, events: Interactions) -> sparse.csr_array:
        c = self._candidates(events, None, None)
        shape = (len(events.users), len(self.catalogue_))
        return sparse.coo_array((self._fused(c), (c.user, c.item)), shape=shape).tocsr()

    def _rank(self, events: Interactions, k: int, exclude: Pairs, mask: Mask) -> TopK:
        c = self._candidates(events, exclude, mask)
        return rank_candidates(c.user, c.item, self._fused(c), len(events.users), k)

    def _fused(self, candidates: Candidates) -> NDArray[np.float32]:
        score = self._votes(candidates).sum(axis=1) + self._shared_score(candidates)
        return np.asarray(score, np.float32)

    def _candidates(
        self, events: Interactions, exclude: Pairs, mask: Mask, also: NDArray[np.int64] | None = None
    ) -> Candidates:
        """The items that the members list, and for every user the items `also`, listed or not."""
        width, depth = len(self.catalogue_), min(self.depth, len(self.catalogue_))
        by_member = []

        for member in self.members_:
            top = _listed(member, events, depth, exclude, mask)
            user, place = np.nonzero(top.positions >= 0)
            share = _shares(top, top)
            listed = _Scored(
                user * width + top.positions[user, place], share[user, place], 1 + place.astype(np.float64)
            )
            if also is not None:
                below = _below(member, events, also, top, share)
                listed = _Scored(*(np.concatenate(both) for both in zip(listed, below, strict=True)))

            by_member.append(listed)

        keys = [scored.pair for scored in by_member]
        if also is not None:
            keys.append((np.arange(len(events.users))[:, None] * width + also).ravel())

        pairs, where = np.unique(np.concatenate(keys), return_inverse=True)
        share, rank = np.zeros((2, len(pairs), len(by_member)))
        rows = np.split(where, np.cumsum([len(each) for each in keys]))

        for at, scored in enumerate(by_member):
            share[rows[at], at], rank[rows[at], at] = scored.share, scored.rank

        user = pairs // width
        history = np.bincount(events.user, minlength=len(events.users)).astype(np.float64)

        return Candidates(user, pairs % width, share, rank, history[user])

    # -- label ---------------------------------------------------------------------------------------------------------

    def _item_scores(self, items: Embeddings, users: NDArray[np.int64]) -> Float:
        if self.compares_users:
            scores = member_scores(self.members_, items, users)
            step = max(1, _MOST_PAIRS // max(len(users), 1))
            fused = np.empty((len(items.ids), len(users)), np.float32)
            for first in range(0, len(fused), step):
                rows = slice(first, first + step)
                fused[rows] = self._combined(scores[:, rows].astype(np.float64), users)

            return fused

        width, at = len(self.catalogue_), self.catalogue_.positions(items.ids.ids)
        step = max(1, _MOST_PAIRS // (len(at) + self.depth))
        out = np.empty((len(at), len(users)), np.float32)

        for first in range(0, len(users), step):
            block = subset(self.events_, users[first : first + step])
            c = self._candidates(block, None, None, also=at)
            wanted = np.arange(len(block.users)) * width + at[:, None]
            out[:, first : first + step] = self._fused(c)[np.searchsorted(c.user * width + c.item, wanted)]

        return out

    def _combined(self, scores: Doubles, users: NDArray[np.int64]) -> Doubles:
        """(items, users) combined from (members, items, users), which is NaN if a member does not know the item.

        It is the mean of the probabilities if every member gives them. Otherwise it is the sum of reciprocal ranks
        among the users, with ties, which are frequent among few labels, broken by scores scaled to an item's range.
        """
        from scipy.stats import rankdata  # slow to import

        known = ~np.isnan(scores)
        filled = np.where(known, scores, 0)
        count = np.maximum(known.sum(axis=0), 1)
        if all(member.gives_probabilities for member in self.members_):
            return np.asarray(filled.sum(axis=0) / count)

        low, high = filled.min(axis=2, keepdims=True), filled.max(axis=2, keepdims=True)
        share = (filled - low) / np.where(high > low, high - low, 1)
        rank = np.stack([rankdata(-each, method="min", axis=1) for each in filled])
        votes = known / (_RANK_OFFSET + rank)

        return np.asarray(votes.sum(axis=0) + _TIE_BREAK * share.sum(axis=0) / count)

    # -- reasons -------------------------------------------------------------------------------------------------------

    def _reasons(
        self, events: Interactions, positions: NDArray[np.int64], exclude_seen: bool, mask: Mask
    ) -> NDArray[np.object_]:
        """Each member's share of the score, and the history items that members name, weighted by those shares."""
        c = self._candidates(events, seen_items(events) if exclude_seen else None, mask)
        votes = np.maximum(self._votes(c), 0)
        votes = np.where(votes.sum(axis=1, keepdims=True) > 0, votes, c.rank > 0)
        votes /= votes.sum(axis=1, keepdims=True)
        row, column = np.nonzero(positions >= 0)
        width = len(self.catalogue_)
        keys, wanted = c.user * width + c.item, row * width + positions[row, column]
        found, listed = np.searchsorted(keys, wanted), np.isin(wanted, keys)
        reasons = [_member_reasons(member, events, positions, exclude_seen, mask) for member in self.members_]
        names, out = self._names(), np.full(positions.shape, None, dtype=object)

        for i, j, at, is_listed in zip(row, column, found, listed, strict=True):
            out[i, j] = Reason((), {"popularity": 1.0})
            if is_listed:
                by_member = {names[m]: (float(votes[at, m]), reasons[m][i, j]) for m in np.flatnonzero(votes[at])}
                out[i, j] = _combined_reason(by_member)

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
    """Reciprocal rank fusion: each member adds 1 / (60 + rank) (Cormack, Clarke and Büttcher, 2009), unweighted.

    `label` averages probabilities if all members give them, and otherwise fuses ranks.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; unfitted copies of them are fitted.
        depth: number of items each member lists in `recommend`.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200) -> None:
        self.members = members
        self.depth = depth

    def _votes(self, candidates: Candidates) -> Doubles:
        return np.asarray((candidates.rank > 0) / (_RANK_OFFSET + candidates.rank))


def member_scores(members: Sequence[Recommender], items: Embeddings, users: NDArray[np.int64]) -> Float:
    """(members, items, users) scores; NaN for items that a member cannot score."""
    out = np.full((len(members), len(items.ids), len(users)), np.nan, np.float32)

    for at, member in enumerate(members):
        known = np.arange(len(items.ids))
        if not member.scores_new_items:
            known = np.flatnonzero(member.catalogue_.positions(items.ids.ids, missing="negative") >= 0)

        rows = items if len(known) == len(items.ids) else items.align(IdMap(items.ids.take(known)))
        model = member._with_items(rows) if member.scores_new_items else member
        step = max(len(users), 1) if model.compares_users else BLOCK
        for first in range(0, len(users) if len(known) else 0, step):
            out[at, known, first : first + step] = model._item_scores(rows, users[first : first + step])

    return out


def _spec(member: object) -> Any:
    """A recommender as a JSON-compatible spec; anything else unchanged."""
    if not isinstance(member, Recommender):
        return member

    return {"class": recommenders.name_of(type(member)), "settings": json.loads(json.dumps(member.params()))}


def _build(member: object) -> Recommender:
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
    """The member's list. A member that could not be extended knows only the first items of the catalogue."""
    n = len(member.catalogue_)
    exclude = None if exclude is None else sparse.csr_array(exclude[:, :n])
    mask = None if mask is None else mask[:n]
    return member._rank(_within(events, member.catalogue_), min(depth, n), exclude, mask)


def _below(member: Recommender, events: Interactions, items: NDArray[np.int64], top: TopK, share: Doubles) -> _Scored:
    """Those of `items` that the member scores but does not list in `top`, ranked behind its list.

    `share` holds the shares of `top`, which bound theirs from above.
    """
    mask = np.zeros(len(member.catalogue_), bool)
    mask[items[items < len(mask)]] = True
    if not mask.any():
        return _Scored(np.empty(0, np.int64), np.empty(0), np.empty(0))

    width = len(events.items)
    more = _listed(member, events, int(mask.sum()), None, mask)
    user, place = np.nonzero(more.positions >= 0)
    pairs = user * width + more.positions[user, place]
    row, column = np.nonzero(top.positions >= 0)
    fresh = ~np.isin(pairs, row * width + top.positions[row, column])
    user, place = user[fresh], place[fresh]
    lowest = np.where(top.positions >= 0, share, np.inf).min(axis=1, initial=1.0)
    order = np.arange(len(user)) - np.searchsorted(user, user)  # place among the user's items that are not listed
    below = np.minimum(_shares(more, top)[user, place], lowest[user])

    return _Scored(pairs[fresh], below, 1 + top.positions.shape[1] + order.astype(np.float64))


def _within(events: Interactions, items: IdMap) -> Interactions:
    """The events on `items`, which are the first items of the events' catalogue, or all of it."""
    return events if items == events.items else events.select(events.item < len(items)).with_items(items)


def _shares(scored: TopK, top: TopK) -> Doubles:
    """(users, k) scores scaled so that 0 is the bottom of each user's list `top` and 1 its best; at least 0."""
    listed = top.positions >= 0
    scores = np.where(listed, top.scores, 0).astype(np.float64)
    low = scores.min(axis=1, keepdims=True, initial=0)
    span = np.max(np.where(listed, scores, low), axis=1, keepdims=True, initial=-np.inf) - low
    values = np.where(scored.positions >= 0, scored.scores, 0).astype(np.float64)
    return np.asarray(np.where(span > 0, np.maximum((values - low) / np.where(span > 0, span, 1), 0), values >= low))


def _member_reasons(
    member: Recommender, events: Interactions, positions: NDArray[np.int64], exclude_seen: bool, mask: Mask
) -> NDArray[np.object_]:
    """The member's reasons for the items it knows."""
    n = len(member.catalogue_)
    known = np.where(positions < n, positions, -1)
    return member._reasons(_within(events, member.catalogue_), known, exclude_seen, None if mask is None else mask[:n])


def _combined_reason(by_member: Mapping[str, tuple[float, Reason | None]], most: int = 3) -> Reason:
    """One reason that combines the members' reasons, weighted by their shares of the score."""
    items: dict[Any, float] = {}
    for share, reason in by_member.values():
        for item, part in reason.because if reason is not None else ():
            items[item] = items.get(item, 0.0) + share * part

    best = sorted(items.items(), key=lambda pair: -pair[1])[:most]
    because = tuple((item, float(part)) for item, part in best if part > 0.005)

    return Reason(because, {name: share for name, (share, _) in by_member.items()})
