"""Fusions that learn how to combine their members from held-out events."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from recotransfer.data import Embeddings, Interactions
from recotransfer.errors import InputError, require
from recotransfer.evaluation.splits import hold_out_last
from recotransfer.io.artifacts import Artifact, ArtifactWriter
from recotransfer.numerics.choice_models import conditional_logit, mixture_weights, softmax_scale
from recotransfer.numerics.histories import seen_items, subset
from recotransfer.recommenders._fusion_examples import (
    FOLDS,
    Examples,
    LabelExamples,
    accuracy,
    choice_coefficients,
    hold_out_items,
    labelled,
    log_share,
    mean_ndcg,
    take_candidates,
    user_weights,
)
from recotransfer.recommenders.base import BLOCK
from recotransfer.recommenders.fusion import (
    DEFAULT_MEMBERS,
    Candidates,
    Doubles,
    FusedRecommender,
    Members,
    member_scores,
)
from recotransfer.settings import NonNegative, PositiveInt

_MOST_USERS = 10_000  # users to learn from; enough for a handful of coefficients
_LEAST_PROBABILITY = 1e-6  # lower bound: one confident error must not outweigh everything else


class _Learned(FusedRecommender):
    """Fusions whose coefficients are learned from events that the members were not fitted on.

    `fit` holds out each user's last event, to be ranked among the items that the members list for that user. If users
    are labels, it holds out a fifth of the items instead, to be scored for all labels. Afterwards the members are
    fitted again on all events.

    Attributes:
        coefficients_: flat: (kinds, members) of the member features, then one per shared feature.
        validation_: member -> its quality on what was held out, and "fused" with cross-fitted coefficients. NDCG@10,
            where users whose item no member lists count as misses; accuracy if users are labels.
        age_: (items,) time of an item's first event, from 1 (oldest) to 0 (newest); 0 without events or times.
        label_coefficients_: coefficients of the label features; None if users are not labels, or too few items have
            one.
        label_scales_: (members,) factor on a member's scores before the softmax; 1 if they are probabilities.
        exclusive_: whether every held-out item has exactly one label.
    """

    coefficients_: Doubles
    validation_: dict[str, float]
    age_: Doubles
    label_coefficients_: Doubles | None = None
    label_scales_: Doubles | None = None
    exclusive_: bool = True

    @abstractmethod
    def _member_features(self, candidates: Candidates) -> Doubles:
        """(n, kinds, members) features of each candidate that depend on the member."""

    def _shared_features(self, candidates: Candidates) -> Doubles:
        """(n, kinds) features of each candidate that do not depend on a member."""
        return np.zeros((len(candidates.user), 0))

    @abstractmethod
    def _estimate(self, features: Doubles, examples: Examples) -> Doubles:
        """(p,) coefficients of the (n, p) features, chosen to rank held-out items first."""

    @abstractmethod
    def _equal_weights(self, members: int) -> Doubles:
        """Coefficients that weigh all members alike, used if there is nothing to learn from."""

    # -- fit -----------------------------------------------------------------------------------------------------------

    def _fit(self, events: Interactions, items: Embeddings | None) -> None:
        reads_content = any(m.needs_items or m.scores_new_items for m in self._prototypes())
        labels = self._users_are_labels(items is not None and reads_content)
        train, valid = hold_out_items(events) if labels else hold_out_last(events)
        if not len(valid) and not labels:
            raise InputError(
                f"{type(self).__name__} learns from each user's last event, but no user has three items; use RankFusion"
            )

        # The coefficients come from members that have not seen the held-out events, the final members from all events.
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
        """Learn only the coefficients, from events to predict, and return self. The members are unchanged.

        If this model has not been fitted, its `members` must be fitted recommenders, all on the same log.

        Args:
            valid: events that the members were not fitted on.
            histories: each user's events before those of `valid`; by default the events the members were fitted on.
            items: vectors of the items in `valid`. If users are labels, `label` is then learned as well.

        Raises:
            InputError: the members were fitted on different users or items, or fewer than three users have a held-out
                item among the candidates and users are not labels.
        """
        self.check_settings()
        if not hasattr(self, "members_"):
            self.members_ = self._prototypes()

        first = self.members_[0]
        for member in self.members_:
            member._check_fitted()
            if member.catalogue_ != first.catalogue_ or member.events_.users != first.events_.users:
                raise InputError(
                    "the members were fitted on different users or items; fit them all on the same log and items"
                )

        self.catalogue_, self.events_, self.popularity_ = first.catalogue_, first.events_, first.popularity_
        self.age_ = _ages(self.events_)
        labels = items is not None and self.compares_users
        examples = self._examples(valid, self.events_ if histories is None else self._own_histories(histories))
        if (found := len(np.unique(examples.candidates.user))) < FOLDS and not labels:
            raise InputError(
                f"too few held-out items are among the members' first {self.depth}: those of {found} users, "
                f"{FOLDS} are needed; raise depth, give more users, or use RankFusion"
            )

        if found:
            features = self._features(examples.candidates)
            self.coefficients_ = self._estimate(features, examples)
        else:
            self.coefficients_ = self._equal_weights(len(self.members_))

        if labels and items is not None:
            self._learn_labels(valid, items)
        else:
            self.validation_ = self._cross_validated(features, examples)

        return self

    def _examples(self, valid: Interactions, known: Interactions) -> Examples:
        """The candidates of a sample of the users with events in `valid`, given the histories `known`."""
        valid = valid.with_items(self.catalogue_)
        events = np.flatnonzero(known.users.positions(valid.users.ids, missing="negative")[valid.user] >= 0)
        at = known.users.positions(valid.users.take(valid.user[events]))
        users = np.unique(at)
        users = users[np.linspace(0, max(len(users) - 1, 0), min(len(users), _MOST_USERS)).astype(np.int64)]
        kept = np.isin(at, users)
        width = len(self.catalogue_)
        truth = np.unique(np.searchsorted(users, at[kept]) * width + valid.item[events[kept]])
        blocks: list[Candidates] = []

        for start in range(0, max(len(users), 1), BLOCK):
            block = subset(known, users[start : start + BLOCK])
            c = self._candidates(block, seen_items(block), None)
            c = c._replace(user=c.user + start)
            found = np.unique(c.user[np.isin(c.user * width + c.item, truth)])
            blocks.append(take_candidates(c, np.isin(c.user, found)))  # lists without a held-out item teach nothing

        c = Candidates(*map(np.concatenate, zip(*blocks, strict=True)))
        relevant = np.bincount(truth // width, minlength=len(users)).astype(np.int64)

        return Examples(c, np.isin(c.user * width + c.item, truth), relevant)

    def _cross_validated(self, features: Doubles, examples: Examples) -> dict[str, float]:
        """NDCG@10 of each member, and of the fusion with coefficients learned on the other folds of users."""
        c = examples.candidates
        fold = np.unique(c.user, return_inverse=True)[1] % FOLDS
        score = np.zeros(len(c.user))

        for test in range(FOLDS):
            train = fold != test
            score[~train] = features[~train] @ self._estimate(features[train], examples.take(train))

        out = {}
        for at, name in enumerate(self._names()):
            listed = c.rank[:, at] > 0
            out[name] = mean_ndcg(examples.take(listed), -c.rank[listed, at])

        return {**out, "fused": mean_ndcg(examples, score)}

    # -- labels --------------------------------------------------------------------------------------------------------

    def _learn_labels(self, valid: Interactions, items: Embeddings) -> None:
        """Learn the scales and coefficients of `label`, and validate it, on held-out items with known labels."""
        labelled_items, true = labelled(valid, self.events_.users, items)
        users = np.arange(len(self.events_.users))
        scores = member_scores(self.members_, labelled_items, users).astype(np.float64)
        self.exclusive_ = bool((true.sum(axis=1) == 1).all())
        scales = []
        for member, of_member in zip(self.members_, scores, strict=True):
            known = ~np.isnan(of_member).any(axis=1)
            scales.append(1.0 if member.gives_probabilities else softmax_scale(of_member[known], true[known]))

        self.label_scales_ = np.array(scales)
        examples = LabelExamples(self._probabilities(scores), true, self._label_sizes(users))
        names = self._names()
        self.validation_ = {name: accuracy(examples.probability[:, :, m], true) for m, name in enumerate(names)}
        self.label_coefficients_ = None

        if len(true) >= FOLDS:
            fused = np.empty(true.shape)
            for fold in range(FOLDS):
                train = np.arange(len(true)) % FOLDS != fold
                coefficients = self._estimate_labels(examples.take(train))
                fused[~train] = self._fuse_labels(examples.take(~train), coefficients)

            self.label_coefficients_ = self._estimate_labels(examples)
            self.validation_["fused"] = accuracy(fused, true)

    def _probabilities(self, scores: Doubles) -> Doubles:
        """(items, labels, members) probabilities from (members, items, labels) scores; uniform for unknown items."""
        assert self.label_scales_ is not None  # learned together with the coefficients
        out = np.empty((*scores.shape[1:], len(scores)))

        for at, (member, each, scale) in enumerate(zip(self.members_, scores, self.label_scales_, strict=True)):
            known = ~np.isnan(each).any(axis=1)
            out[known, :, at] = each[known] if member.gives_probabilities else softmax(scale * each[known], axis=1)
            out[~known, :, at] = 1 / max(each.shape[1], 1)

        return out

    def _combined(self, scores: Doubles, users: NDArray[np.int64]) -> Doubles:
        if self.label_coefficients_ is None:
            return super()._combined(scores, users)

        unknown = np.zeros(scores.shape[1:], bool)  # the true labels, which fusing does not read
        examples = LabelExamples(self._probabilities(scores), unknown, self._label_sizes(users))
        return self._fuse_labels(examples, self.label_coefficients_)

    def _label_sizes(self, users: NDArray[np.int64]) -> Doubles:
        """(users,) number of events of each label."""
        return np.bincount(self.events_.user, minlength=len(self.events_.users))[users].astype(np.float64)

    def _label_features(self, examples: LabelExamples) -> Doubles:
        """(items, labels, kinds): each member's log probability; its log odds if an item may have several labels."""
        clipped = np.clip(examples.probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        return np.log(clipped) if self.exclusive_ else np.asarray(logit(clipped))

    def _estimate_labels(self, examples: LabelExamples) -> Doubles:
        """Maximum-likelihood coefficients of the label features."""
        features = self._label_features(examples)
        n, labels, kinds = features.shape
        reg = getattr(self, "reg", 1.0)
        if self.exclusive_:
            start = np.arange(n) * labels
            return conditional_logit(features.reshape(-1, kinds), start, examples.true.ravel(), np.ones(n), reg=reg)

        # With several labels per item, each item-label pair is a binary choice, the alternative having utility 0. So
        # this is a logistic regression, with the intercept as its last coefficient.
        pairs = np.concatenate([features.reshape(-1, kinds), np.ones((n * labels, 1))], axis=1)
        both = np.stack([pairs, np.zeros_like(pairs)], axis=1).reshape(-1, kinds + 1)
        true = np.stack([examples.true.ravel(), ~examples.true.ravel()], axis=1).ravel()
        return conditional_logit(both, np.arange(n * labels) * 2, true, np.ones(n * labels), reg=reg)

    def _fuse_labels(self, examples: LabelExamples, coefficients: Doubles) -> Doubles:
        """(items, labels) probabilities, under coefficients from `_estimate_labels`."""
        features = self._label_features(examples)
        if self.exclusive_:
            return np.asarray(softmax(features @ coefficients, axis=1))

        return np.asarray(expit(features @ coefficients[:-1] + coefficients[-1]))

    # -- scores --------------------------------------------------------------------------------------------------------

    def _features(self, candidates: Candidates) -> Doubles:
        """(n, p) all features, in the order of `coefficients_`."""
        by_member = self._member_features(candidates)
        return np.concatenate([by_member.reshape(len(by_member), -1), self._shared_features(candidates)], axis=1)

    def _votes(self, candidates: Candidates) -> Doubles:
        features = self._member_features(candidates)
        kinds, members = features.shape[1:]
        weights = self.coefficients_[: kinds * members].reshape(kinds, members)
        return np.asarray(np.einsum("nkm,km->nm", features, weights))

    def _shared_score(self, candidates: Candidates) -> Doubles:
        features = self._shared_features(candidates)
        return np.asarray(features @ self.coefficients_[len(self.coefficients_) - features.shape[1] :])

    def _popularity(self, candidates: Candidates) -> Doubles:
        """(n,) log number of users of each item, scaled so that the most popular item has 1."""
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
        if "labels.json" in artifact:  # absent if no labels were learned, and in folders of earlier versions
            self.label_coefficients_ = artifact.array("labels.coefficients")
            self.label_scales_ = artifact.array("labels.scales")
            self.exclusive_ = artifact.json("labels")["exclusive"]


class WeightedFusion(_Learned):
    """The weighted mean of the members' scores, each scaled to its list. Weights are at least 0 and sum to 1.

    The weights maximise the likelihood that the held-out item is chosen among the user's candidates (McFadden's
    conditional logit), a convex problem. Each user is weighted by the reciprocal of the best rank that any member gives
    the held-out item, because the top of the lists matters most.

    `label` returns the weighted mean of the members' probabilities (the linear opinion pool), with the weights that
    maximise the likelihood of the true labels of held-out items.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; unfitted copies of them are fitted.
        depth: number of items each member lists in `recommend`.
    """

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200) -> None:
        self.members = members
        self.depth = depth

    @property
    def weights_(self) -> dict[str, float]:
        """Member -> weight; if users are labels, the weight of its probabilities in `label`."""
        weights = self.coefficients_ if self.label_coefficients_ is None else self.label_coefficients_
        return dict(zip(self._names(), weights.tolist(), strict=True))

    def _member_features(self, candidates: Candidates) -> Doubles:
        return candidates.share[:, None, :]

    def _estimate(self, features: Doubles, examples: Examples) -> Doubles:
        # A common factor does not change the ranking, so the weights can be normalised afterwards.
        weights = choice_coefficients(features, examples, reg=1.0, least=0.0)
        total = weights.sum()
        return weights / total if total > 0 else self._equal_weights(len(weights))

    def _equal_weights(self, members: int) -> Doubles:
        return np.full(members, 1 / members)

    def _estimate_labels(self, examples: LabelExamples) -> Doubles:
        item, label = np.nonzero(examples.true)
        return mixture_weights(examples.probability[item, label], 1 / examples.true.sum(axis=1)[item])

    def _fuse_labels(self, examples: LabelExamples, coefficients: Doubles) -> Doubles:
        return np.asarray(examples.probability @ coefficients)


class _RidgeFusion(_Learned):
    """Fusions with a ridge penalty on their coefficients."""

    def __init__(self, *, members: Members = DEFAULT_MEMBERS, depth: PositiveInt = 200, reg: NonNegative = 1.0) -> None:
        self.members = members
        self.depth = depth
        self.reg = reg


class StackedFusion(_RidgeFusion):
    """Logistic regression of "this is the held-out item" on the members' outputs (stacking; Wolpert, 1992).

    Features of each member: its scaled score, its reciprocal rank, and whether it lists the item. Features of the pair:
    log popularity of the item, log length of the history. Users are weighted as in `WeightedFusion`.

    `label` uses a logistic regression on the members' log probabilities and the label's log number of items:
    multinomial if every item has one label, otherwise binary for each label.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; unfitted copies of them are fitted.
        depth: number of items each member lists in `recommend`.
        reg: ridge penalty on the coefficients.
    """

    def _member_features(self, candidates: Candidates) -> Doubles:
        listed = candidates.rank > 0
        return np.stack([candidates.share, listed / np.maximum(candidates.rank, 1), listed], axis=1)

    def _shared_features(self, candidates: Candidates) -> Doubles:
        return np.stack([self._popularity(candidates), np.log1p(candidates.history)], axis=1)

    def _estimate(self, features: Doubles, examples: Examples) -> Doubles:
        LogisticRegression = require("sklearn.linear_model").LogisticRegression

        model = LogisticRegression(C=1 / max(self.reg, 1e-9), max_iter=1000)
        model.fit(features, examples.hit, sample_weight=user_weights(examples))
        return np.asarray(model.coef_[0], np.float64)

    def _equal_weights(self, members: int) -> Doubles:
        return np.repeat([1.0, 0.0], [members, 2 * members + 2])  # the sum of the scaled scores

    def _label_features(self, examples: LabelExamples) -> Doubles:
        by_member = super()._label_features(examples)
        size = np.broadcast_to(log_share(examples.size)[:, None], (*by_member.shape[:2], 1))
        return np.concatenate([by_member, size], axis=2)


class AdaptiveFusion(_RidgeFusion):
    """`WeightedFusion` whose weights depend on the user, the item and the member's confidence.

    A member's weight is a linear function of the log length of the user's history, the item's log popularity and age,
    and the member's margin: the difference between its first and second scores. The likelihood is that of
    `WeightedFusion`, and still convex; weights may be negative.

    `label` uses the members' log probabilities, with weights linear in the member's margin between its first and second
    label and in the label's log number of items.

    Args:
        members: recommenders, or {"class": name, "settings": {...}}; unfitted copies of them are fitted.
        depth: number of items each member lists in `recommend`.
        reg: ridge penalty on the coefficients.
    """

    def _member_features(self, candidates: Candidates) -> Doubles:
        c = candidates
        shared = [np.ones(len(c.user)), np.log1p(c.history), self._popularity(c), self.age_[c.item]]
        context = [np.broadcast_to(values[:, None], c.share.shape) for values in shared]

        # Scores are scaled so that the first is 1, so the margin is 1 minus the second.
        second = np.zeros((int(c.user.max(initial=-1)) + 1, c.share.shape[1]))
        row, member = np.nonzero(c.rank == 2)
        second[c.user[row], member] = c.share[row, member]

        return np.stack([*context, 1 - second[c.user]], axis=1) * c.share[:, None, :]

    def _estimate(self, features: Doubles, examples: Examples) -> Doubles:
        return choice_coefficients(features, examples, reg=self.reg)

    def _equal_weights(self, members: int) -> Doubles:
        return np.repeat([1.0, 0.0], [members, 4 * members])

    def _label_features(self, examples: LabelExamples) -> Doubles:
        by_member = super()._label_features(examples)
        ordered = np.sort(examples.probability, axis=1)
        margin = ordered[:, -1:] - ordered[:, -2:-1] if ordered.shape[1] > 1 else np.zeros_like(ordered)
        size = log_share(examples.size)[:, None]
        return np.concatenate([by_member, by_member * margin, by_member * size], axis=2)


def _ages(events: Interactions) -> Doubles:
    """(items,) time of each item's first event, from 1 (oldest) to 0 (newest); 0 without events or times."""
    age = np.zeros(len(events.items))
    if events.time is not None and len(events):
        first = np.full(len(age), np.inf)
        np.minimum.at(first, events.item, events.time)
        newest, oldest = events.time.max(), events.time.min()
        warm = np.isfinite(first)
        age[warm] = (newest - first[warm]) / max(newest - oldest, 1e-9)

    return age
