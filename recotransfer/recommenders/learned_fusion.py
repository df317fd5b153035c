"""Fusions whose weights are learned from held-out events."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError, require
from recotransfer.evaluation.metrics import Hits, ndcg
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.histories import seen_items, subset
from recotransfer.numerics.topk import rank_candidates
from recotransfer.recommenders.base import BLOCK
from recotransfer.recommenders.fusion import DEFAULT_MEMBERS, TOP, Candidates, Doubles, FusedRecommender, Members
from recotransfer.settings import NonNegative, PositiveInt

_FOLDS = 3
_MOST_USERS = 10_000  # users to learn from: a few weights need no more


class Lesson(NamedTuple):
    """Candidates of users whose held-out item is among them.

    Attributes:
        candidates: their lists; users are numbered as in `relevant`.
        hit: (n,) bool, the held-out items.
        relevant: (users,) number of held-out items of every user asked for, found or not.
    """

    candidates: Candidates
    hit: NDArray[np.bool_]
    relevant: NDArray[np.int64]


class _Learned(FusedRecommender):
    """Fusions with coefficients, learned on events that their members have not seen.

    Attributes:
        coefficients_: (kinds of `_by_member`, members), then those of `_alone`, flat.
        validation_: NDCG@10 on the held-out events by member, and "fused": each user with coefficients learned from
            other users. Users whose item nobody lists count as misses.
        age_: (items,) time of the first event, from 1 for the oldest to 0 for the newest, or 0 where nothing is timed.
    """

    coefficients_: Doubles
    validation_: dict[str, float]
    age_: Doubles

    @abstractmethod
    def _by_member(self, candidates: Candidates) -> Doubles:
        """(n, kinds, members) features that belong to a member."""

    def _alone(self, candidates: Candidates) -> Doubles:
        """(n, kinds) features that belong to no member."""
        return np.zeros((len(candidates.user), 0))

    @abstractmethod
    def _estimate(self, features: Doubles, lesson: Lesson) -> Doubles:
        """Coefficients of the (n, p) features that put `lesson.hit` first."""

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        train, valid = hold_out_last(events)
        if not len(valid):
            raise InputError(
                f"{type(self).__name__} learns from last events, but no user has three items; take RankFusion"
            )

        draft = copy.copy(self)
        draft.members_ = self._fitted(train, items)
        draft.learn(valid)
        self.coefficients_, self.validation_ = draft.coefficients_, draft.validation_
        super()._fit(events, items)
        self.age_ = _ages(events)

    def learn(self, valid: Interactions, *, histories: Interactions | None = None) -> Self:
        """Learn the coefficients alone, on events to predict; the members stay as they are. Returns self.

        Where this model was not fitted, its `members` must be recommenders that were, all on the same log.

        Args:
            valid: events that the members have not seen.
            histories: what is known of each user when they are asked; by default what the members were fitted on.

        Raises:
            InputError: fewer than three users have a held-out item among the candidates.
        """
        self.check_settings()
        if not hasattr(self, "members_"):
            self.members_ = self._prototypes()

        first = self.members_[0]
        for member in self.members_:
            member._check_fitted()
            if member.catalogue_ != first.catalogue_ or member.events_.users != first.events_.users:
                raise InputError("the members know different users or items; fit all on the same log and items")

        self.catalogue_, self.events_, self.popularity_ = first.catalogue_, first.events_, first.popularity_
        self.age_ = _ages(self.events_)
        lesson = self._lesson(valid, self.events_ if histories is None else self._own_histories(histories))
        features = self._features(lesson.candidates)
        self.validation_ = self._validated(features, lesson)
        self.coefficients_ = self._estimate(features, lesson)

        return self

    def _lesson(self, valid: Interactions, known: Interactions) -> Lesson:
        valid = valid.with_items(self.catalogue_)
        events = np.flatnonzero(known.users.positions(valid.users.ids, missing="negative")[valid.user] >= 0)
        at = known.users.positions(valid.users.take(valid.user[events]))
        users = np.unique(at)
        users = users[np.linspace(0, max(len(users) - 1, 0), min(len(users), _MOST_USERS)).astype(np.int64)]
        kept = np.isin(at, users)
        width = len(self.catalogue_)
        truth = np.unique(np.searchsorted(users, at[kept]) * width + valid.item[events[kept]])
        parts: list[Candidates] = []

        for start in range(0, len(users), BLOCK):
            block = subset(known, users[start : start + BLOCK])
            c = self._candidates(block, seen_items(block), None)
            c = c._replace(user=c.user + start)
            found = np.unique(c.user[np.isin(c.user * width + c.item, truth)])
            parts.append(_rows(c, np.isin(c.user, found)))

        if sum(len(np.unique(c.user)) for c in parts) < _FOLDS:
            raise InputError(
                f"too few held-out items stand among the members' first {self.depth}; raise depth, give more users, "
                "or take RankFusion"
            )

        c = Candidates(*map(np.concatenate, zip(*parts, strict=True)))
        relevant = np.bincount(truth // width, minlength=len(users)).astype(np.int64)

        return Lesson(c, np.isin(c.user * width + c.item, truth), relevant)

    def _validated(self, features: Doubles, lesson: Lesson) -> dict[str, float]:
        """NDCG of each member, and of the fusion cross-fitted over folds of users."""
        c = lesson.candidates
        fold = np.unique(c.user, return_inverse=True)[1] % _FOLDS
        score = np.zeros(len(c.user))

        for held in range(_FOLDS):
            rest = fold != held
            part = Lesson(_rows(c, rest), lesson.hit[rest], lesson.relevant)
            score[~rest] = features[~rest] @ self._estimate(features[rest], part)

        out = {}
        for at, name in enumerate(self._names()):
            own = c.rank[:, at] > 0
            listed = Lesson(_rows(c, own), lesson.hit[own], lesson.relevant)
            out[name] = _ndcg(listed, -c.rank[own, at])

        return {**out, "fused": _ndcg(lesson, score)}

    def _features(self, candidates: Candidates) -> Doubles:
        own = self._by_member(candidates)
        return np.concatenate([own.reshape(len(own), -1), self._alone(candidates)], axis=1)

    def _votes(self, candidates: Candidates) -> Doubles:
        own = self._by_member(candidates)
        weights = self.coefficients_[: own[0].size].reshape(own.shape[1:]) if len(own) else np.zeros(own.shape[1:])
        return np.asarray(np.einsum("nbm,bm->nm", own, weights))

    def _besides(self, candidates: Candidates) -> Doubles:
        alone = self._alone(candidates)
        return np.asarray(alone @ self.coefficients_[len(self.coefficients_) - alone.shape[1] :])

    def _popularity(self, candidates: Candidates) -> Doubles:
        """(n,) log of each item's users, 1 for the most popular."""
        most = np.log1p(max(float(self.popularity_.max()), 1.0))
        return np.asarray(np.log1p(self.popularity_[candidates.item].astype(np.float64)) / most)

    def _update(self, events: Interactions, fresh: Embeddings | None, before: Interactions) -> str:
        self.age_ = _ages(events)
        return super()._update(events, fresh, before)

    def _extend(self, items: Embeddings) -> None:
        super()._extend(items)
        self.age_ = np.pad(self.age_, (0, len(self.catalogue_) - len(self.age_)))

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("coefficients", self.coefficients_)
        writer.array("age", self.age_)
        writer.json("validation", self.validation_)

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.coefficients_, self.age_ = artifact.array("coefficients"), artifact.array("age")
        self.validation_ = artifact.json("validation")


class WeightedFusion(_Learned):
    """One weight for each member, at least 0 and together 1, times its share of the score.

    The weights maximise the likelihood that the held-out item is chosen among the user's candidates (McFadden's
    conditional logit), each user counting by the reciprocal of the best rank that a member gives the item: what decides
    the top of the lists decides the weights. The problem is convex.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200) -> None:
        self.members = members
        self.depth = depth

    @property
    def weights_(self) -> dict[str, float]:
        """Member -> weight."""
        return dict(zip(self._names(), self.coefficients_.tolist(), strict=True))

    def _by_member(self, candidates: Candidates) -> Doubles:
        return candidates.share[:, None, :]

    def _estimate(self, features: Doubles, lesson: Lesson) -> Doubles:
        weights = _chosen(features, lesson, reg=1.0, least=0.0)
        total = weights.sum()
        return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


class StackedFusion(_Learned):
    """A logistic regression of "this is the held-out item" on what each member says (stacking; Wolpert, 1992).

    Of each member: share of the score, reciprocal rank, listed or not. Of the pair: log popularity of the item, log
    length of the history. Users count as in `WeightedFusion`.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists.
        reg: ridge on the coefficients.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200, reg: NonNegative = 1.0) -> None:
        self.members = members
        self.depth = depth
        self.reg = reg

    def _by_member(self, candidates: Candidates) -> Doubles:
        listed = candidates.rank > 0
        return np.stack([candidates.share, listed / np.maximum(candidates.rank, 1), listed], axis=1)

    def _alone(self, candidates: Candidates) -> Doubles:
        return np.stack([self._popularity(candidates), np.log1p(candidates.history)], axis=1)

    def _estimate(self, features: Doubles, lesson: Lesson) -> Doubles:
        LogisticRegression = require("sklearn.linear_model").LogisticRegression

        model = LogisticRegression(C=1 / max(self.reg, 1e-9), max_iter=1000)
        model.fit(features, lesson.hit, sample_weight=_importance(lesson))
        return np.asarray(model.coef_[0], np.float64)


class AdaptiveFusion(_Learned):
    """`WeightedFusion` whose weights depend on the user, the item and the member's confidence.

    A member's weight is linear in the log length of the user's history, the item's log popularity and age, and the
    margin by which the member's first item leads its second. The likelihood is that of `WeightedFusion`, still convex;
    weights may fall below 0.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists.
        reg: ridge on the coefficients.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200, reg: NonNegative = 1.0) -> None:
        self.members = members
        self.depth = depth
        self.reg = reg

    def _by_member(self, candidates: Candidates) -> Doubles:
        c = candidates
        shared = [np.ones(len(c.user)), np.log1p(c.history), self._popularity(c), self.age_[c.item]]
        context = [np.broadcast_to(values[:, None], c.share.shape) for values in shared]
        second = np.zeros((int(c.user.max(initial=-1)) + 1, c.share.shape[1]))
        row, member = np.nonzero(c.rank == 2)
        second[c.user[row], member] = c.share[row, member]
        return np.stack([*context, 1 - second[c.user]], axis=1) * c.share[:, None, :]

    def _estimate(self, features: Doubles, lesson: Lesson) -> Doubles:
        return _chosen(features, lesson, reg=self.reg)


def _rows(c: Candidates, keep: NDArray[np.bool_]) -> Candidates:
    return Candidates(c.user[keep], c.item[keep], c.share[keep], c.rank[keep], c.history[keep])


def _ages(events: Interactions) -> Doubles:
    age = np.zeros(len(events.items))
    if events.time is not None and len(events):
        first = np.full(len(age), np.inf)
        np.minimum.at(first, events.item, events.time)
        newest, oldest = events.time.max(), events.time.min()
        warm = np.isfinite(first)
        age[warm] = (newest - first[warm]) / max(newest - oldest, 1e-9)

    return age


def _importance(lesson: Lesson) -> Doubles:
    """(n,) for each candidate's user: reciprocal of the best rank that any member gives a held-out item."""
    c = lesson.candidates
    best = np.where(c.rank > 0, 1 / np.maximum(c.rank, 1), 0).max(axis=1) * lesson.hit
    out = np.zeros(len(lesson.relevant))
    np.maximum.at(out, c.user, best)
    return out[c.user]


def _chosen(x: Doubles, lesson: Lesson, *, reg: float, least: float | None = None) -> Doubles:
    """(p,) coefficients, at least `least`, under which held-out items are most likely chosen among the candidates."""
    from scipy.optimize import minimize

    user, hit = lesson.candidates.user, lesson.hit
    start = np.flatnonzero(np.diff(user, prepend=-1))
    group = np.repeat(np.arange(len(start)), np.diff(start, append=len(user)))
    weight = _importance(lesson)[start]
    target = weight[group] * hit / np.add.reduceat(hit, start, dtype=np.float64)[group]
    wanted = target @ x

    def loss(w: Doubles) -> tuple[float, Doubles]:
        score = x @ w
        top = np.maximum.reduceat(score, start)
        power = np.exp(score - top[group])
        total = np.add.reduceat(power, start)
        value = weight @ (top + np.log(total)) - target @ score + reg / 2 * w @ w
        return float(value), (power * (weight / total)[group]) @ x - wanted + reg * w

    bounds = None if least is None else [(least, None)] * x.shape[1]
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    return np.asarray(found.x)


def _ndcg(lesson: Lesson, score: Doubles) -> float:
    c = lesson.candidates
    shape = (len(lesson.relevant), int(c.item.max(initial=0)) + 1)
    top = rank_candidates(c.user, c.item, score.astype(np.float32), shape[0], TOP)
    truth = (c.user * shape[1] + c.item)[lesson.hit]
    found = np.isin(np.arange(shape[0])[:, None] * shape[1] + top.positions, truth) & (top.positions >= 0)
    return float(ndcg(Hits(found, lesson.relevant), TOP).mean())
