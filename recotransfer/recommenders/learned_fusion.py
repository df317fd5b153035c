"""Fusions whose weights are learned from held-out events."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError, require
from recotransfer.evaluation.metrics import Hits, ndcg
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.choice_models import conditional_logit, mixture_weights, softmax_scale
from recotransfer.numerics.histories import seen_items, subset
from recotransfer.numerics.topk import rank_candidates
from recotransfer.recommenders._label_lessons import FOLDS, LabelLesson, accuracy, hold_out_items, labelled, log_share
from recotransfer.recommenders.base import BLOCK
from recotransfer.recommenders.fusion import (
    DEFAULT_MEMBERS,
    TOP,
    Candidates,
    Doubles,
    FusedRecommender,
    Members,
    member_scores,
)
from recotransfer.settings import NonNegative, PositiveInt

_MOST_USERS = 10_000  # users to learn from: a few weights need no more
_LEAST_PROBABILITY = 1e-6  # a member that is certain and wrong must not outweigh all others


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

    Where the users are labels, a fifth of the items is held out whole and the members' views of each are weighed over
    all labels; else each user's last event is held out and ranked among the items that members list for the user.

    Attributes:
        coefficients_: (kinds of `_by_member`, members), then those of `_alone`, flat.
        validation_: by member, and "fused" with coefficients learned from others: accuracy on the held-out items where
            users are labels, else NDCG@10 on the held-out events; users whose item nobody lists count as misses.
        age_: (items,) time of the first event, from 1 for the oldest to 0 for the newest, or 0 where nothing is timed.
        label_coefficients_: of `_label_features`, flat; None where users are no labels or too few items bear one.
        label_scales_: (members,) what scores are multiplied by before the softmax; 1 where they are probabilities.
    """

    coefficients_: Doubles
    validation_: dict[str, float]
    age_: Doubles
    label_coefficients_: Doubles | None = None
    label_scales_: Doubles | None = None
    exclusive_: bool = True

    @abstractmethod
    def _by_member(self, candidates: Candidates) -> Doubles:
        """(n, kinds, members) features that belong to a member."""

    def _alone(self, candidates: Candidates) -> Doubles:
        """(n, kinds) features that belong to no member."""
        return np.zeros((len(candidates.user), 0))

    @abstractmethod
    def _estimate(self, features: Doubles, lesson: Lesson) -> Doubles:
        """Coefficients of the (n, p) features that put `lesson.hit` first."""

    @abstractmethod
    def _equal_trust(self, members: int) -> Doubles:
        """Coefficients that trust every member alike, for when there is nothing to learn from."""

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        reads_content = any(m.needs_items or m.scores_new_items for m in self._prototypes())
        labels = self._users_are_labels(items is not None and reads_content)
        train, valid = hold_out_items(events) if labels else hold_out_last(events)
        if not len(valid) and not labels:
            raise InputError(
                f"{type(self).__name__} learns from last events, but no user has three items; take RankFusion"
            )

        draft = copy.copy(self)
        draft.members_ = self._fitted(train, items)
        draft.learn(valid, items=items)
        self.coefficients_, self.validation_ = draft.coefficients_, draft.validation_
        self.label_coefficients_, self.label_scales_ = draft.label_coefficients_, draft.label_scales_
        self.exclusive_ = draft.exclusive_
        super()._fit(events, items)
        self.age_ = _ages(events)

    def learn(
        self, valid: Interactions, *, histories: Interactions | None = None, items: Embeddings | None = None
    ) -> Self:
        """Learn the coefficients alone, on events to predict; the members stay as they are. Returns self.

        Where this model was not fitted, its `members` must be recommenders that were, all on the same log.

        Args:
            valid: events that the members have not seen.
            histories: what is known of each user when they are asked; by default what the members were fitted on.
            items: vectors of the items of `valid`; with them and users that are labels, also learn how to label.

        Raises:
            InputError: fewer than three users have a held-out item among the candidates, and users are no labels.
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
        labels = items is not None and self.compares_users
        lesson = self._lesson(valid, self.events_ if histories is None else self._own_histories(histories))
        if (found := len(np.unique(lesson.candidates.user))) < FOLDS and not labels:
            raise InputError(
                f"too few held-out items stand among the members' first {self.depth}; raise depth, give more users, "
                "or take RankFusion"
            )

        if found:
            features = self._features(lesson.candidates)
            self.coefficients_ = self._estimate(features, lesson)
        else:
            self.coefficients_ = self._equal_trust(len(self.members_))

        if labels and items is not None:
            self._learn_labels(valid, items)
        else:
            self.validation_ = self._validated(features, lesson)

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

        for start in range(0, max(len(users), 1), BLOCK):
            block = subset(known, users[start : start + BLOCK])
            c = self._candidates(block, seen_items(block), None)
            c = c._replace(user=c.user + start)
            found = np.unique(c.user[np.isin(c.user * width + c.item, truth)])
            parts.append(_rows(c, np.isin(c.user, found)))

        c = Candidates(*map(np.concatenate, zip(*parts, strict=True)))
        relevant = np.bincount(truth // width, minlength=len(users)).astype(np.int64)

        return Lesson(c, np.isin(c.user * width + c.item, truth), relevant)

    def _validated(self, features: Doubles, lesson: Lesson) -> dict[str, float]:
        """NDCG of each member, and of the fusion cross-fitted over folds of users."""
        c = lesson.candidates
        fold = np.unique(c.user, return_inverse=True)[1] % FOLDS
        score = np.zeros(len(c.user))

        for held in range(FOLDS):
            rest = fold != held
            part = Lesson(_rows(c, rest), lesson.hit[rest], lesson.relevant)
            score[~rest] = features[~rest] @ self._estimate(features[rest], part)

        out = {}
        for at, name in enumerate(self._names()):
            own = c.rank[:, at] > 0
            listed = Lesson(_rows(c, own), lesson.hit[own], lesson.relevant)
            out[name] = _ndcg(listed, -c.rank[own, at])

        return {**out, "fused": _ndcg(lesson, score)}

    # -- labels --------------------------------------------------------------------------------------------------------

    def _learn_labels(self, valid: Interactions, items: Embeddings) -> None:
        """Scales, coefficients and validation of `label`, from held-out items whose labels are known."""
        lesson_items, true = labelled(valid, self.events_.users, items)
        users = np.arange(len(self.events_.users))
        scores = member_scores(self.members_, lesson_items, users).astype(np.float64)
        self.exclusive_ = bool((true.sum(axis=1) == 1).all())
        self.label_scales_ = np.array(
            [
                1.0 if member.gives_probabilities else softmax_scale(own[known], true[known])
                for member, own in zip(self.members_, scores, strict=True)
                for known in [~np.isnan(own).any(axis=1)]
            ]
        )
        lesson = LabelLesson(self._probabilities(scores), true, self._label_sizes(users))
        names = self._names()
        self.validation_ = {name: accuracy(lesson.probability[:, :, m], true) for m, name in enumerate(names)}
        self.label_coefficients_ = None

        if len(true) >= FOLDS:
            fused = np.empty(true.shape)
            for fold in range(FOLDS):
                rest = np.arange(len(true)) % FOLDS != fold
                fused[~rest] = self._fuse_labels(lesson.take(~rest), self._estimate_labels(lesson.take(rest)))

            self.label_coefficients_ = self._estimate_labels(lesson)
            self.validation_["fused"] = accuracy(fused, true)

    def _probabilities(self, scores: Doubles) -> Doubles:
        """(items, labels, members) from scores (members, items, labels); alike for all labels of an unknown item."""
        assert self.label_scales_ is not None  # learned together with the coefficients
        out = np.empty((*scores.shape[1:], len(scores)))

        for at, (member, own, scale) in enumerate(zip(self.members_, scores, self.label_scales_, strict=True)):
            known = ~np.isnan(own).any(axis=1)
            out[known, :, at] = own[known] if member.gives_probabilities else softmax(scale * own[known], axis=1)
            out[~known, :, at] = 1 / max(own.shape[1], 1)

        return out

    def _combined(self, scores: Doubles, users: NDArray[np.int64]) -> Doubles:
        if self.label_coefficients_ is None:
            return super()._combined(scores, users)

        nothing = np.zeros(scores.shape[1:], bool)
        lesson = LabelLesson(self._probabilities(scores), nothing, self._label_sizes(users))
        return self._fuse_labels(lesson, self.label_coefficients_)

    def _label_sizes(self, users: NDArray[np.int64]) -> Doubles:
        return np.bincount(self.events_.user, minlength=len(self.events_.users))[users].astype(np.float64)

    def _label_features(self, lesson: LabelLesson) -> Doubles:
        """(items, labels, kinds): each member's log probability (log odds where an item may bear several labels)."""
        known = np.clip(lesson.probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        return np.log(known) if self.exclusive_ else np.asarray(logit(known))

    def _estimate_labels(self, lesson: LabelLesson) -> Doubles:
        """Coefficients of `_label_features` that make the true labels likeliest."""
        features = self._label_features(lesson)
        n, labels, kinds = features.shape
        reg = getattr(self, "reg", 1.0)
        if self.exclusive_:
            start = np.arange(n) * labels
            return conditional_logit(features.reshape(-1, kinds), start, lesson.true.ravel(), np.ones(n), reg=reg)

        # Each pair by itself: it bears the label or not, which is a choice against an alternative of utility 0.
        pairs = np.concatenate([features.reshape(-1, kinds), np.ones((n * labels, 1))], axis=1)
        both = np.stack([pairs, np.zeros_like(pairs)], axis=1).reshape(-1, kinds + 1)
        bears = np.stack([lesson.true.ravel(), ~lesson.true.ravel()], axis=1).ravel()
        return conditional_logit(both, np.arange(n * labels) * 2, bears, np.ones(n * labels), reg=reg)

    def _fuse_labels(self, lesson: LabelLesson, coefficients: Doubles) -> Doubles:
        """(items, labels) probabilities."""
        features = self._label_features(lesson)
        if self.exclusive_:
            return np.asarray(softmax(features @ coefficients, axis=1))

        return np.asarray(expit(features @ coefficients[:-1] + coefficients[-1]))

    # -- scores --------------------------------------------------------------------------------------------------------

    def _features(self, candidates: Candidates) -> Doubles:
        own = self._by_member(candidates)
        return np.concatenate([own.reshape(len(own), -1), self._alone(candidates)], axis=1)

    def _votes(self, candidates: Candidates) -> Doubles:
        own = self._by_member(candidates)
        weights = self.coefficients_[: own[0].size].reshape(own.shape[1:]) if len(own) else np.zeros(own.shape[1:])
        return np.asarray(np.einsum("nbm,bm->nm", own, weights))

    def _shared_score(self, candidates: Candidates) -> Doubles:
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

    # -- persistence ---------------------------------------------------------------------------------------------------

    def _write(self, writer: ArtifactWriter) -> None:
        super()._write(writer)
        writer.array("coefficients", self.coefficients_)
        writer.array("age", self.age_)
        writer.json("validation", self.validation_)
        if self.label_coefficients_ is not None and self.label_scales_ is not None:
            writer.array("labels.coefficients", self.label_coefficients_)
            writer.array("labels.scales", self.label_scales_)
            writer.json("labels", {"exclusive": self.exclusive_})

    def _read(self, artifact: Artifact) -> None:
        super()._read(artifact)
        self.coefficients_ = artifact.array("coefficients")
        self.age_ = artifact.array("age")
        self.validation_ = artifact.json("validation")
        if "labels.json" in artifact:  # earlier versions had none
            self.label_coefficients_ = artifact.array("labels.coefficients")
            self.label_scales_ = artifact.array("labels.scales")
            self.exclusive_ = artifact.json("labels")["exclusive"]


class WeightedFusion(_Learned):
    """One weight for each member, at least 0 and together 1, times its share of the score.

    The weights maximise the likelihood that the held-out item is chosen among the user's candidates (McFadden's
    conditional logit), each user counting by the reciprocal of the best rank that a member gives the item: what decides
    the top of the lists decides the weights. The problem is convex.

    Labels are scored by the weighted mean of the members' probabilities (the linear opinion pool), under the weights
    that make the labels of held-out items likeliest.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists in `recommend`.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200) -> None:
        self.members = members
        self.depth = depth

    @property
    def weights_(self) -> dict[str, float]:
        """Member -> weight; where users are labels, that of its probabilities in `label`."""
        weights = self.coefficients_ if self.label_coefficients_ is None else self.label_coefficients_
        return dict(zip(self._names(), weights.tolist(), strict=True))

    def _by_member(self, candidates: Candidates) -> Doubles:
        return candidates.share[:, None, :]

    def _estimate(self, features: Doubles, lesson: Lesson) -> Doubles:
        weights = _chosen(features, lesson, reg=1.0, least=0.0)
        total = weights.sum()
        return weights / total if total > 0 else self._equal_trust(len(weights))

    def _equal_trust(self, members: int) -> Doubles:
        return np.full(members, 1 / members)

    def _estimate_labels(self, lesson: LabelLesson) -> Doubles:
        item, label = np.nonzero(lesson.true)
        return mixture_weights(lesson.probability[item, label], 1 / lesson.true.sum(axis=1)[item])

    def _fuse_labels(self, lesson: LabelLesson, coefficients: Doubles) -> Doubles:
        return np.asarray(lesson.probability @ coefficients)


class StackedFusion(_Learned):
    """A logistic regression of "this is the held-out item" on what each member says (stacking; Wolpert, 1992).

    Of each member: share of the score, reciprocal rank, listed or not. Of the pair: log popularity of the item, log
    length of the history. Users count as in `WeightedFusion`.

    Labels are scored by a logistic regression on the members' log probabilities and the log number of items that bear
    the label: multinomial where every item bears one label, else one for each label.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists in `recommend`.
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

    def _equal_trust(self, members: int) -> Doubles:
        return np.repeat([1.0, 0.0], [members, 2 * members + 2])  # the shares alone

    def _label_features(self, lesson: LabelLesson) -> Doubles:
        said = super()._label_features(lesson)
        size = np.broadcast_to(log_share(lesson.size)[:, None], (*said.shape[:2], 1))
        return np.concatenate([said, size], axis=2)


class AdaptiveFusion(_Learned):
    """`WeightedFusion` whose weights depend on the user, the item and the member's confidence.

    A member's weight is linear in the log length of the user's history, the item's log popularity and age, and the
    margin by which the member's first item leads its second. The likelihood is that of `WeightedFusion`, still convex;
    weights may fall below 0.

    Labels are scored by the members' log probabilities, under weights linear in the margin by which a member's first
    label leads its second and in the log number of items that bear the label.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; fresh ones are fitted.
        depth: items that each member lists in `recommend`.
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

    def _equal_trust(self, members: int) -> Doubles:
        return np.repeat([1.0, 0.0], [members, 4 * members])

    def _label_features(self, lesson: LabelLesson) -> Doubles:
        said = super()._label_features(lesson)
        ordered = np.sort(lesson.probability, axis=1)
        margin = ordered[:, -1:] - ordered[:, -2:-1] if ordered.shape[1] > 1 else np.zeros_like(ordered)
        return np.concatenate([said, said * margin, said * log_share(lesson.size)[:, None]], axis=2)


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


def _chosen(features: Doubles, lesson: Lesson, *, reg: float, least: float | None = None) -> Doubles:
    """(p,) coefficients, at least `least`, under which held-out items are most likely chosen among the candidates."""
    start = np.flatnonzero(np.diff(lesson.candidates.user, prepend=-1))
    return conditional_logit(features, start, lesson.hit, _importance(lesson)[start], reg=reg, least=least)


def _ndcg(lesson: Lesson, score: Doubles) -> float:
    c = lesson.candidates
    shape = (len(lesson.relevant), int(c.item.max(initial=0)) + 1)
    top = rank_candidates(c.user, c.item, score.astype(np.float32), shape[0], TOP)
    truth = (c.user * shape[1] + c.item)[lesson.hit]
    found = np.isin(np.arange(shape[0])[:, None] * shape[1] + top.positions, truth) & (top.positions >= 0)
    return float(ndcg(Hits(found, lesson.relevant), TOP).mean())
